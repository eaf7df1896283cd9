//! A gate against slowdowns that noise can't fool: the instructions of what each call goes through, counted by Callgrind,
//! each with a limit. See `benches/path.rs`.

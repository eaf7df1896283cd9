//! What generated code names. Not for people: it changes with `outpost-build`, whose output must be made by the
//! version of this crate that it is compiled with.

pub use crate::{
    call::{BoxStream, CallFuture, Direct, Route, box_stream},
    module::{Limits, Reach, built},
};

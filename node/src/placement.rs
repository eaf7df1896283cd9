//! Which node hosts which module: asked for, decided, explained.
//!
//! ```text
//! document ─▶ spec ───┐
//! live nodes, labels ─┼─▶ scheduler (pure) ─▶ commands ─▶ log (Raft) ─▶ state, the same at every node
//! state ──────────────┘       on the leader
//! ```
//!
//! **Invariant:** `spec`, `document`, `scheduler`, `state` and `view` are pure: facts in, decisions out. Only `log`,
//! `leader` and `lease` do I/O.

mod audit;
pub(crate) mod document;
pub(crate) mod interface;
pub(crate) mod leader;
pub(crate) mod lease;
pub(crate) mod log;
pub(crate) mod scheduler;
pub(crate) mod spec;
pub(crate) mod state;
pub(crate) mod versions;
pub(crate) mod view;
pub(crate) mod watchdog;

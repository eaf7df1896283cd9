//! The path of a call.
//!
//! ```text
//! handle ───────────────┐
//! channel ──▶ table ──▶ slot ─┬─▶ the service trait's method      (direct: no encoding, no queue, no task)
//! ingress ──▶ table ────┘     ├─▶ the tonic server, in process    (wire: interceptors, layers, other clients)
//!                             └─▶ a gRPC connection               (the module is elsewhere)
//! ```
//!
//! **Invariant:** whatever way a call takes, it has the same result, status, deadline, cancellation and metadata.
//! [`guard`] (panics), [`deadline`] and [`scope`] are the pieces that both the direct and the wire path are made of.

mod channel;
pub(crate) mod deadline;
mod guard;
mod handle;
mod passed;
pub(crate) mod route;
pub(crate) mod scope;
pub(crate) mod slot;
mod streaming;
pub(crate) mod table;
mod wire;

pub use channel::Channel;
pub use deadline::remaining;
pub(crate) use guard::text as panic_text;
pub use handle::Handle;
pub use route::{BoxStream, CallFuture, Route, box_stream};
pub use slot::Direct;
pub use streaming::Streaming;
pub(crate) use wire::{Tonic, serve};

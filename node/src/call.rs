//! The path of a call.
//!
//! ```text
//! handle ───────────────┐             ┌─▶ the service trait's method     (direct: no encoding, no queue, no task)
//! channel ──▶ table ──▶ slot ─▶ gate ─┴─▶ the tonic server, in process   (wire: interceptors, layers, other clients)
//! ingress ──▶ table ────┤  └─▶ link ═══▶ the node that hosts the module  (bytes are passed on, never decoded)
//! a node  ══▶ table ────┘       └─▶ carrier ═══▶                        (small unary calls, many in one stream)
//! handle ──▶ slot ─▶ short ─▶ carrier ═══▶ gate ─▶ the trait's method     (the same from end to end, without HTTP)
//! ```
//!
//! **Invariant:** whatever way a call takes, it has the same result, status, deadline, cancellation and metadata.
//! [`guard`] (panics), [`deadline`] and [`scope`] are the pieces that both the direct and the wire path are made of.
//!
//! What becomes of a call whose answer was lost is the method's to say ([`delivery`]): [`retry`] decides whether it is made
//! again, [`dedupe`] keeps answers, so that it is not executed again, and [`resume`] goes on with a stream.

pub(crate) mod caller;
mod carrier;
pub(crate) mod chain;
mod channel;
pub(crate) mod counts;
pub(crate) mod deadline;
pub(crate) mod dedupe;
pub(crate) mod delivery;
pub(crate) mod destination;
pub(crate) mod frame;
pub(crate) mod gate;
mod guard;
mod handle;
pub(crate) mod link;
mod passed;
pub(crate) mod placed;
mod replay;
mod resume;
mod retry;
pub(crate) mod route;
pub(crate) mod scope;
pub(crate) mod short;
pub(crate) mod slot;
mod streaming;
pub(crate) mod table;
mod tally;
mod wire;

pub use caller::Caller;
pub use channel::Channel;
pub(crate) use channel::Declared;
pub use deadline::remaining;
pub(crate) use guard::text as panic_text;
pub use handle::Handle;
pub use route::{BoxStream, CallFuture, Route, box_stream};
pub use short::{CarriedFuture, Carries, carry, carry_nothing};
pub use slot::Direct;
pub use streaming::Streaming;
pub(crate) use wire::{Tonic, serve};

//! What this node does about its part of the placement: starts modules, opens and closes their gates, hands them over.
//!
//! ```text
//! placement state ─┐
//! leases, starts ──┼─▶ core (pure) ─▶ commands ─▶ driver ─▶ instances, gates, slots
//! answers ─────────┘                                  └────▶ proposals to the placement log
//! ```
//!
//! A move is made by its source and its target, each of which looks at the record and nothing else: no message goes
//! between them, so that whatever crashes, whoever reads the record knows where the move is.

pub(crate) mod core;
pub(crate) mod driver;

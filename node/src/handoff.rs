//! What this node does about its part of the placement: starts modules, opens and closes their gates, hands them over.
//!
//! ```text
//! placement state ─┐
//! leases, starts ──┼─▶ core (pure) ─▶ commands ─▶ driver ─▶ instances, gates, slots
//! answers ─────────┘                                  └────▶ proposals to the placement log
//! ```
//!
//! A move is made by its source and its target, each of which decides from the record and nothing else: so that whatever
//! crashes, whoever reads the record knows where the move is. What goes between them is the module's state, if it has any
//! (`transfer`).

pub(crate) mod checkpoint;
pub(crate) mod core;
pub(crate) mod driver;
pub(crate) mod transfer;

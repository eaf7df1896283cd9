//! Pieces of the call path, each by itself, for this project's own benchmarks. Not covered by any promise.

use std::{sync::Arc, time::Duration};

use crate::{
    call::{
        chain::{Chain, Sealing},
        gate::{Gate, LeaseEnd},
    },
    clock::Coarse,
    id::Epoch,
};

/// A gate that is open while a lease holds.
#[derive(Debug)]
pub struct LeasedGate(Gate);

impl LeasedGate {
    /// Opens one, for an hour.
    #[must_use]
    pub fn open() -> Self {
        let lease = Arc::new(LeaseEnd::default());
        let term = lease.grant(Coarse::now() + Duration::from_secs(3600), lease.revocations());
        let gate = Gate::closed(lease, Arc::new(Sealing::default()));
        gate.open(Epoch(1), term.expect("a new lease is granted"));
        Self(gate)
    }

    /// What the gate does for one call: lets it in, looks whether its answer counts, and counts it out. Whether it did.
    #[inline]
    #[must_use]
    pub fn pass(&self) -> bool {
        let Some(entered) = self.0.enter(Chain::NONE) else { return false };
        let counts = self.0.may_answer().is_ok();
        self.0.leave(entered);
        counts
    }
}

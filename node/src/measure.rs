//! Pieces of the call path, each by itself, for this project's own benchmarks. Not covered by any promise.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, uri::PathAndQuery};
use outpost_proto::cluster::v1::CarriedCall;
use prost::Message as _;

use crate::{
    call::{
        chain::{Chain, Sealing},
        frame,
        gate::{Gate, LeaseEnd},
        placed::{self, Arrival},
        slot::{ModuleFacts, Slot},
        table::Table,
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

/// A table of so many services, `service.N.Service`.
#[derive(Debug)]
pub struct Services(Table);

impl Services {
    /// Makes one.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let slot = |number| {
            let slot = Slot::starting(format!("service.{number}.Service"), ModuleFacts::built_in(), Arc::default());
            Arc::new(slot)
        };
        Self(Table::new((0..count).map(slot)))
    }

    /// Whether it has the service of a method's path.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.0.find(path).is_ok()
    }
}

/// Removes what only nodes may say from the fields of a request.
pub fn strip(fields: &mut HeaderMap) {
    placed::strip_request(fields);
}

/// A call as it is carried between two nodes, encoded.
#[must_use]
pub fn write_call(path: &PathAndQuery, fields: &HeaderMap, body: Bytes) -> Vec<u8> {
    frame::call(path, fields, body, Arrival { hops: 1, ..Arrival::default() }).encode_to_vec()
}

/// Reads one. Whether it is a call.
#[must_use]
pub fn read_call(call: Bytes) -> bool {
    CarriedCall::decode(call).is_ok_and(|call| frame::request(call).is_ok())
}

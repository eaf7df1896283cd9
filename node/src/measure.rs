//! Pieces of the call path, each by itself, for this project's own benchmarks. Not covered by any promise.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use crate::{
    call::{
        chain::{Chain, Sealing},
        counts::Origin,
        gate::{Gate, LeaseEnd},
    },
    clock::Coarse,
    config::{CallerSettings, UnmarkedModules},
    id::{Epoch, ModuleName},
    trust::{
        TrustError,
        callers::{CallPolicy, CallingModule},
    },
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
        let Some(entered) = self.0.enter(Chain::NONE, Origin::Here) else { return false };
        let counts = self.0.may_answer().is_ok();
        self.0.leave(entered);
        counts
    }
}

/// What a policy is asked when a module calls another one.
#[derive(Debug)]
pub struct Policed {
    policy: CallPolicy,
    from: CallingModule,
    to: ModuleName,
}

impl Policed {
    /// Reads a policy on modules `m0` to `m9`.
    ///
    /// # Errors
    /// A file that is none.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        let module = |number: usize| ModuleName::parse(&format!("m{number}")).expect("a good name");
        let settings = CallerSettings { policy: Some(path.to_owned()), ..CallerSettings::default() };
        let known: BTreeMap<_, _> = (0..10).map(|number| (module(number), Vec::new())).collect();
        let policy = CallPolicy::load(&settings, UnmarkedModules::Serve, known, false)?;
        Ok(Self { policy, from: CallingModule::new(module(0)), to: module(7) })
    }

    /// Whether `m0` may call `m7`.
    #[inline]
    #[must_use]
    pub fn admits(&self) -> bool {
        self.policy.admits_caller(&self.from, &self.to, "/shop.v1.Orders/Get").is_ok()
    }
}

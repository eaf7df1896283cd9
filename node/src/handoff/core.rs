//! What a node does about each module, decided from the placement's records. Pure.
//!
//! ```text
//!            Start            started            Open              Seal             handed over
//! (nothing) ──────▶ Starting ────────▶ Ready ──────────▶ Serving ──────▶ Sealed ───────────────▶ retired
//!                       │                ▲                  ▲               │
//!                       ▼ failed         │ a target waits   └── aborted ────┘
//!                    Failed              │ here until the record says that it is the owner
//! ```
//!
//! **Rule 0.** Whenever the epoch of an exclusive part is not the instance's own, the instance is retired, whatever its
//! state: the part has been elsewhere in between, even if it is back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    call::destination::Own,
    id::{Epoch, Incarnation, ModuleName},
    membership::{Hosted, Instance as Stage},
    placement::state::{Hosting, Part, PartChange, State, Version},
};

/// Time since the node began.
pub(crate) type Tick = Duration;

/// Tells the instances of one node apart.
pub(crate) type InstanceId = u64;

/// The pause before a factory that failed runs again; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Something that the node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Run the module's factory.
    Start {
        module: ModuleName,
        id: InstanceId,
    },
    /// Admit calls; `exclusive`: only while the lease holds.
    Open {
        module: ModuleName,
        id: InstanceId,
        epoch: Epoch,
        exclusive: bool,
    },
    /// Close the gate; calls that come wait.
    Seal {
        module: ModuleName,
        id: InstanceId,
    },
    /// Close the gate, let calls inside finish, end the instance.
    Retire {
        module: ModuleName,
        id: InstanceId,
    },
    Propose {
        module: ModuleName,
        expect: Version,
        change: PartChange,
        why: String,
    },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The factory answered.
    Started {
        module: ModuleName,
        id: InstanceId,
    },
    Failed {
        module: ModuleName,
        id: InstanceId,
        error: String,
    },
    /// The proposal for this module was answered, or given up.
    Asked {
        module: ModuleName,
    },
    /// Whether this node may serve exclusive parts.
    Lease {
        held: bool,
    },
    /// Time has passed, or the state is another one.
    Look,
}

/// What this node runs.
#[derive(Debug)]
pub(crate) struct Core {
    me: Incarnation,
    lease: bool,
    instances: BTreeMap<ModuleName, Instance>,
    /// Proposals without an answer: of which version. One at a time, since each is tried for some time.
    asked: BTreeMap<ModuleName, Version>,
    failures: BTreeMap<ModuleName, u32>,
    next: InstanceId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Instance {
    id: InstanceId,
    phase: Phase,
    /// It was tried again after it failed. The leader may have given the part to another node meanwhile, so the record
    /// must say that this one serves before it does.
    again: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    Serving {
        epoch: Epoch,
        exclusive: bool,
    },
    /// The gate is closed, for a move or for want of a lease; the instance could go on.
    Sealed {
        epoch: Epoch,
    },
    /// Its factory failed, at `epoch`, for the move `of` if it was for one.
    Failed {
        error: String,
        again: Tick,
        epoch: Epoch,
        of: Option<u64>,
    },
}

/// What the record of a part asks of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Nothing,
    /// Be ready to take over, by the move `id`, which an operator may have `chosen`.
    Prepare {
        prepared: bool,
        id: u64,
        chosen: bool,
    },
    Serve {
        epoch: Epoch,
        exclusive: bool,
        active: bool,
    },
    /// Hold: it is ours, and without a lease nobody may enter.
    Hold {
        epoch: Epoch,
    },
    /// Hand over: the target is ready.
    HandOver {
        epoch: Epoch,
    },
}

impl Core {
    pub(crate) fn new(me: Incarnation) -> Self {
        Self {
            me,
            lease: false,
            instances: BTreeMap::new(),
            asked: BTreeMap::new(),
            failures: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes note of an event, and says what to do now, given the state.
    pub(crate) fn on_event(&mut self, now: Tick, event: Event, state: &State) -> Vec<Command> {
        let mut commands = Vec::new();
        match event {
            Event::Started { module, id } => {
                match self.instances.get_mut(&module).filter(|instance| instance.id == id) {
                    Some(instance) => {
                        instance.phase = Phase::Ready;
                        self.failures.remove(&module);
                    }
                    // It was let go meanwhile.
                    None => commands.push(Command::Retire { module, id }),
                }
            }
            Event::Failed { module, id, error } => {
                if let Some(instance) = self.instances.get_mut(&module).filter(|instance| instance.id == id) {
                    let part = state.parts.get(&module);
                    let failures = self.failures.entry(module).or_default();
                    let pause = (FIRST_PAUSE * 2_u32.pow((*failures).min(10))).min(LONGEST_PAUSE);
                    *failures += 1;
                    let epoch = part.map_or(Epoch::default(), |part| part.epoch);
                    let of = part.and_then(Part::moving).map(|moving| moving.id);
                    instance.phase = Phase::Failed { error, again: now + pause, epoch, of };
                }
            }
            Event::Asked { module } => {
                self.asked.remove(&module);
            }
            Event::Lease { held } => self.lease = held,
            Event::Look => {}
        }
        let modules: BTreeSet<ModuleName> = state.parts.keys().chain(self.instances.keys()).cloned().collect();
        for module in modules {
            self.look_at(now, &module, state, &mut commands);
        }
        commands
    }

    /// What the node runs, for others to know.
    pub(crate) fn hosting(&self) -> BTreeMap<ModuleName, Hosted> {
        let hosted = self.instances.iter().map(|(module, instance)| {
            let (epoch, state, error) = match &instance.phase {
                Phase::Starting => (Epoch::default(), Stage::Starting, None),
                Phase::Ready => (Epoch::default(), Stage::Ready, None),
                Phase::Serving { epoch, .. } => (*epoch, Stage::Serving, None),
                Phase::Sealed { epoch } => (*epoch, Stage::Draining, None),
                Phase::Failed { error, epoch, .. } => (*epoch, Stage::Failed, Some(error.clone())),
            };
            (module.clone(), Hosted { epoch, state, error })
        });
        hosted.collect()
    }

    /// The instance of each module, and how calls should see it.
    pub(crate) fn instances(&self) -> BTreeMap<ModuleName, (InstanceId, Own)> {
        let seen = |instance: &Instance| match instance.phase {
            Phase::Failed { .. } => Own::Failed,
            Phase::Starting | Phase::Ready => Own::Starting,
            Phase::Sealed { .. } if !self.lease => Own::Held,
            Phase::Serving { .. } | Phase::Sealed { .. } => Own::Instance,
        };
        self.instances.iter().map(|(module, instance)| (module.clone(), (instance.id, seen(instance)))).collect()
    }

    fn want(&self, part: &Part) -> Want {
        match &part.hosting {
            Hosting::Replicated { hosts } if hosts.contains(&self.me.node) => {
                Want::Serve { epoch: part.epoch, exclusive: false, active: true }
            }
            Hosting::Exclusive { owner, active, moving } if *owner == self.me => {
                if !self.lease {
                    Want::Hold { epoch: part.epoch }
                } else if moving.as_ref().is_some_and(|moving| moving.prepared) {
                    Want::HandOver { epoch: part.epoch }
                } else {
                    Want::Serve { epoch: part.epoch, exclusive: true, active: *active }
                }
            }
            Hosting::Exclusive { moving: Some(moving), .. } if moving.to == self.me => {
                Want::Prepare { prepared: moving.prepared, id: moving.id, chosen: moving.chosen }
            }
            _ => Want::Nothing,
        }
    }

    fn look_at(&mut self, now: Tick, module: &ModuleName, state: &State, commands: &mut Vec<Command>) {
        let part = state.parts.get(module);
        let want = part.map_or(Want::Nothing, |part| self.want(part));
        let version = part.map_or(0, |part| part.version);
        let propose = |core: &mut Self, commands: &mut Vec<Command>, change, why: &str| {
            let again = core.asked.get(module) != Some(&version);
            if again {
                core.asked.insert(module.clone(), version);
                let (module, why) = (module.clone(), why.to_owned());
                commands.push(Command::Propose { module, expect: version, change, why });
            }
        };
        if let Some(instance) = self.instances.get(module)
            && self.is_of_the_past(now, &instance.phase, want)
        {
            commands.push(Command::Retire { module: module.clone(), id: instance.id });
            self.instances.remove(module);
        }
        let Some(instance) = self.instances.get_mut(module) else {
            if want != Want::Nothing {
                let id = self.next;
                self.next += 1;
                self.instances.insert(module.clone(), Instance { id, phase: Phase::Starting, again: false });
                commands.push(Command::Start { module: module.clone(), id });
            }
            return;
        };
        let id = instance.id;
        match (instance.phase.clone(), want) {
            (Phase::Failed { again, .. }, Want::Serve { .. } | Want::Hold { .. }) if now >= again => {
                instance.id = self.next;
                self.next += 1;
                instance.phase = Phase::Starting;
                instance.again = true;
                commands.push(Command::Start { module: module.clone(), id: instance.id });
            }
            (Phase::Failed { error, .. }, Want::Prepare { .. }) => {
                propose(self, commands, PartChange::AbortMove, &format!("it did not start: {error}"));
            }
            (Phase::Ready, Want::Prepare { prepared: false, .. }) => propose(self, commands, PartChange::Prepared, ""),
            (Phase::Ready, Want::Serve { active: false, .. }) if instance.again => {
                propose(self, commands, PartChange::Activated, "");
            }
            (Phase::Ready | Phase::Sealed { .. }, Want::Serve { epoch, exclusive, active }) => {
                instance.phase = Phase::Serving { epoch, exclusive };
                commands.push(Command::Open { module: module.clone(), id, epoch, exclusive });
                if !active {
                    propose(self, commands, PartChange::Activated, "");
                }
            }
            (Phase::Serving { epoch: own, exclusive: was }, Want::Serve { epoch, exclusive, active }) => {
                instance.phase = Phase::Serving { epoch, exclusive };
                if own != epoch || was != exclusive {
                    commands.push(Command::Open { module: module.clone(), id, epoch, exclusive });
                }
                if !active {
                    propose(self, commands, PartChange::Activated, "");
                }
            }
            (Phase::Serving { epoch, .. }, Want::Hold { .. }) => {
                instance.phase = Phase::Sealed { epoch };
                commands.push(Command::Seal { module: module.clone(), id });
            }
            (Phase::Serving { .. } | Phase::Ready, Want::HandOver { epoch }) => {
                instance.phase = Phase::Sealed { epoch };
                commands.push(Command::Seal { module: module.clone(), id });
                propose(self, commands, PartChange::Handover, "");
            }
            (Phase::Sealed { .. }, Want::HandOver { .. }) => propose(self, commands, PartChange::Handover, ""),
            (Phase::Starting | Phase::Failed { .. }, _)
            | (Phase::Ready, Want::Prepare { .. } | Want::Hold { .. })
            | (Phase::Sealed { .. }, Want::Hold { .. })
            // These were retired above.
            | (_, Want::Nothing)
            | (Phase::Serving { .. } | Phase::Sealed { .. }, Want::Prepare { .. }) => {}
        }
    }

    /// Whether an instance must go, and perhaps another one come, before anything else.
    fn is_of_the_past(&self, now: Tick, phase: &Phase, want: Want) -> bool {
        match (phase, want) {
            // A failure is kept for a while, so that the leader hears of it before it plans the same again; but an
            // operator who asks again wants it tried again.
            (Phase::Failed { again, .. }, Want::Nothing) => now >= *again,
            (Phase::Failed { again, of, .. }, Want::Prepare { id, chosen, .. }) => {
                now >= *again || (chosen && *of != Some(id))
            }
            (_, Want::Nothing) => true,
            // It was the owner, and the part is on its way back.
            (Phase::Serving { .. } | Phase::Sealed { .. }, Want::Prepare { .. }) => true,
            (Phase::Serving { epoch: own, exclusive: was }, Want::Serve { epoch, exclusive, .. }) => {
                *own != epoch && *was && exclusive
            }
            (Phase::Serving { epoch: own, exclusive: true }, Want::Hold { epoch } | Want::HandOver { epoch })
            | (
                Phase::Sealed { epoch: own },
                Want::Serve { epoch, .. } | Want::Hold { epoch } | Want::HandOver { epoch },
            ) => *own != epoch,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;

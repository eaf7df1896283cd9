//! What a node does about each module, decided from the placement's records. Pure.
//!
//! ```text
//!            Start            started      Activate       Open              Seal        drained         installed
//! (nothing) ──────▶ Starting ────────▶ Ready ──────▶ Activating ──▶ Serving ──▶ Sealed ──────▶ empty ─────────▶ Handover
//!                       │                ▲                             ▲            │                              │
//!                       ▼ failed         │ a target fills itself here, └── aborted ─┘                              ▼
//!                    Failed              │ and waits until the record says that it is the owner             Given, then retired
//! ```
//!
//! **Rule 0.** Whenever the epoch of an exclusive part is not the instance's own, the instance is retired, whatever its
//! state: the part has been elsewhere in between, even if it is back. But an instance which has the very state that the
//! record names may serve it, at whatever epoch.
//!
//! **While the part may be given back, nobody serves.** From the hand-over until the new owner has said that it serves, the
//! record names the state, and the old one has it as well. Unless the record is active, which it is at once where the new
//! one has nothing to do first, the old one may get the part back.
//!
//! **Only a record opens a gate that was sealed.** An abort is an entry of the log, never the end of some time: where time
//! runs out, an abort is proposed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    call::destination::Own,
    id::{Epoch, Incarnation, ModuleName},
    membership::{Hosted, Instance as Stage},
    placement::{
        spec::StateClass,
        state::{Hosting, Part, PartChange, Sealed, State, Version},
    },
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
    /// Fill an instance with the state of the part's owner, by the move `of`. `ready`: then it can serve at once.
    Fill {
        module: ModuleName,
        id: InstanceId,
        of: u64,
        from: Incarnation,
        ready: bool,
    },
    /// Do what has to be done before the first call at this epoch: run the module's hooks; and `restore` what was
    /// checkpointed, where nobody has handed over a state.
    Activate {
        module: ModuleName,
        id: InstanceId,
        epoch: Epoch,
        restore: bool,
    },
    /// Admit calls, of an exclusive part while the lease of this term holds.
    Open {
        module: ModuleName,
        id: InstanceId,
        epoch: Epoch,
        term: Option<u64>,
    },
    /// Close the gate; calls that come wait. Calls inside go on.
    Close {
        module: ModuleName,
        id: InstanceId,
    },
    /// Have long streams end, close the gate to all but what calls inside wait for, have those finish, and let the
    /// target of the move `of` have the state.
    Seal {
        module: ModuleName,
        id: InstanceId,
        of: u64,
        term: Option<u64>,
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
    /// The factory answered. `hooks`: the module wants to do something before it serves.
    Started {
        module: ModuleName,
        id: InstanceId,
        hooks: bool,
    },
    /// The factory failed, or what comes after it.
    Failed {
        module: ModuleName,
        id: InstanceId,
        error: String,
    },
    /// The instance has as much of the state as it can get while the source serves.
    Copied {
        module: ModuleName,
        id: InstanceId,
    },
    /// The instance has all of the state, and the source was told.
    Filled {
        module: ModuleName,
        id: InstanceId,
        digest: String,
    },
    Activated {
        module: ModuleName,
        id: InstanceId,
    },
    /// The gate of an instance that is being sealed has closed: from now on calls wait.
    Closed {
        module: ModuleName,
        id: InstanceId,
    },
    /// No call is inside an instance that was sealed.
    Drained {
        module: ModuleName,
        id: InstanceId,
    },
    /// The target of the move `of` has this state, which an instance was sealed with; and is `ready` to serve it.
    Installed {
        module: ModuleName,
        id: InstanceId,
        of: u64,
        sealed: Sealed,
        ready: bool,
    },
    /// The proposal for this module was answered, or given up.
    Asked {
        module: ModuleName,
    },
    /// The term of the lease under which this node may serve exclusive parts, if it may.
    Lease {
        term: Option<u64>,
    },
    /// Time has passed, or the state is another one.
    Look,
}

/// What this node runs.
#[derive(Debug)]
pub(crate) struct Core {
    me: Incarnation,
    /// The modules of this node's program whose state travels.
    classes: BTreeMap<ModuleName, StateClass>,
    /// How long a source waits, with its gate closed, for its target to take the state, before it proposes to stay.
    sealed_for: Duration,
    lease: Option<u64>,
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
    content: Content,
    /// The module wants to do something before it serves.
    hooks: bool,
    /// It was tried again after it failed. The leader may have given the part to another node meanwhile, so the record
    /// must say that this one serves before it does.
    again: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    Activating {
        epoch: Epoch,
    },
    Serving {
        epoch: Epoch,
        exclusive: bool,
    },
    /// The gate is closed, for want of a lease, or of the record's word that the part is served.
    Held {
        epoch: Epoch,
    },
    /// For the move `of`: the gate is closed, since this time, or about to be; the instance could go on.
    Sealed {
        epoch: Epoch,
        of: u64,
        since: Tick,
        step: Step,
    },
    /// It was handed over with the state that it has, and keeps that until the new owner serves.
    Given,
    /// It failed, at `epoch`, for the move `of` if it was for one.
    Failed {
        error: String,
        again: Tick,
        epoch: Epoch,
        of: Option<u64>,
    },
}

/// How far a sealed instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Long streams are about to end.
    Warning,
    /// Calls inside finish.
    Closing,
    /// No call is inside; the target takes the state.
    Empty,
    /// The target has it, and could serve at once.
    Installed { sealed: Sealed, ready: bool },
}

/// Which state an instance has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    /// The one that its factory has made, or what a checkpoint has made of that.
    Own,
    /// Some of the owner's, by the move `of`.
    Copy { of: u64, copied: bool },
    /// The state of this digest, by the move `of`.
    Of { of: u64, digest: String },
}

impl Content {
    fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Of { digest, .. } if digest == wanted)
    }
}

/// What the record of a part asks of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Want {
    Nothing,
    /// Be ready to take over, by the move `id`, which an operator may have `chosen`.
    Prepare {
        prepared: bool,
        id: u64,
        chosen: bool,
        from: Incarnation,
    },
    Serve {
        epoch: Epoch,
        exclusive: bool,
        active: bool,
        /// The digest of the state that it has to be served with.
        seal: Option<String>,
    },
    /// Hold: it is ours, and without a lease nobody may enter.
    Hold {
        epoch: Epoch,
        /// The digest of the state that it has to be served with.
        seal: Option<String>,
    },
    /// Hand over, by the move `of`: the target is ready.
    HandOver {
        epoch: Epoch,
        of: u64,
    },
    /// Keep the state of this digest, in case that the new owner comes to nothing.
    Keep {
        digest: String,
    },
}

impl Want {
    /// Whether it is for a state of this digest.
    fn names(&self, state: &str) -> bool {
        match self {
            Self::Keep { digest } => digest == state,
            Self::Serve { seal, .. } | Self::Hold { seal, .. } => seal.as_deref() == Some(state),
            Self::Nothing | Self::Prepare { .. } | Self::HandOver { .. } => false,
        }
    }
}

impl Core {
    pub(crate) fn new(me: Incarnation, classes: BTreeMap<ModuleName, StateClass>, sealed_for: Duration) -> Self {
        Self {
            me,
            classes,
            sealed_for,
            lease: None,
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
            Event::Started { module, id, hooks } => match self.instance(&module, id) {
                Some(instance) => {
                    instance.phase = Phase::Ready;
                    instance.hooks = hooks;
                }
                // It was let go meanwhile.
                None => commands.push(Command::Retire { module, id }),
            },
            Event::Failed { module, id, error } => self.fail(now, &module, id, error, state, &mut commands),
            Event::Copied { module, id } => {
                if let Some(Instance { content: Content::Copy { copied, .. }, .. }) = self.instance(&module, id) {
                    *copied = true;
                }
            }
            Event::Filled { module, id, digest } => {
                if let Some(instance) = self.instance(&module, id)
                    && let Content::Copy { of, .. } = instance.content
                {
                    instance.content = Content::Of { of, digest };
                }
            }
            Event::Activated { module, id } => {
                if let Some(instance) = self.instance(&module, id)
                    && let Phase::Activating { epoch } = instance.phase
                {
                    instance.phase = Phase::Held { epoch };
                    self.failures.remove(&module);
                }
            }
            Event::Closed { module, id } => {
                if let Some(Instance { phase: Phase::Sealed { step: step @ Step::Warning, since, .. }, .. }) =
                    self.instance(&module, id)
                {
                    (*step, *since) = (Step::Closing, now);
                }
            }
            Event::Drained { module, id } => {
                if let Some(Instance { phase: Phase::Sealed { step: step @ Step::Closing, .. }, .. }) =
                    self.instance(&module, id)
                {
                    *step = Step::Empty;
                }
            }
            Event::Installed { module, id, of: by, sealed, ready } => {
                // Nobody is inside, or there would have been nothing to take, whether or not that was told.
                if let Some(Instance { phase: Phase::Sealed { of, step, .. }, .. }) = self.instance(&module, id)
                    && *of == by
                {
                    *step = Step::Installed { sealed, ready };
                }
            }
            Event::Asked { module } => {
                self.asked.remove(&module);
            }
            Event::Lease { term } => {
                if self.lease != term {
                    self.hold(&mut commands);
                }
                self.lease = term;
            }
            Event::Look => {}
        }
        let modules: BTreeSet<ModuleName> = state.parts.keys().chain(self.instances.keys()).cloned().collect();
        for module in modules {
            self.look_at(now, &module, state, &mut commands);
        }
        commands
    }

    fn instance(&mut self, module: &ModuleName, id: InstanceId) -> Option<&mut Instance> {
        self.instances.get_mut(module).filter(|instance| instance.id == id)
    }

    /// The lease is lost, or another one than before: who served under it serves no more, until the record says so again.
    fn hold(&mut self, commands: &mut Vec<Command>) {
        for (module, instance) in &mut self.instances {
            if let Phase::Serving { epoch, exclusive: true } = instance.phase {
                instance.phase = Phase::Held { epoch };
                commands.push(Command::Close { module: module.clone(), id: instance.id });
            }
        }
    }

    fn fail(
        &mut self,
        now: Tick,
        module: &ModuleName,
        id: InstanceId,
        error: String,
        state: &State,
        commands: &mut Vec<Command>,
    ) {
        let failures = self.failures.get(module).copied().unwrap_or_default();
        let Some(instance) = self.instance(module, id) else { return };
        // A target that is cut off from its source may have the whole state already.
        if matches!(
            (&instance.phase, &instance.content),
            (Phase::Ready, Content::Of { .. }) | (Phase::Serving { .. }, _)
        ) {
            return;
        }
        let part = state.parts.get(module);
        let pause = (FIRST_PAUSE * 2_u32.pow(failures.min(10))).min(LONGEST_PAUSE);
        let epoch = part.map_or(Epoch::default(), |part| part.epoch);
        let of = part.and_then(Part::moving).map(|moving| moving.id);
        if instance.phase != Phase::Starting {
            commands.push(Command::Retire { module: module.clone(), id });
        }
        instance.phase = Phase::Failed { error, again: now + pause, epoch, of };
        self.failures.insert(module.clone(), failures + 1);
    }

    /// What the node runs, for others to know.
    pub(crate) fn hosting(&self) -> BTreeMap<ModuleName, Hosted> {
        let hosted = self.instances.iter().map(|(module, instance)| {
            let (epoch, state, error) = match &instance.phase {
                Phase::Starting => (Epoch::default(), Stage::Starting, None),
                Phase::Ready => (Epoch::default(), Stage::Ready, None),
                Phase::Activating { epoch } => (*epoch, Stage::Ready, None),
                Phase::Serving { epoch, .. } => (*epoch, Stage::Serving, None),
                Phase::Held { epoch } | Phase::Sealed { epoch, .. } => (*epoch, Stage::Draining, None),
                Phase::Given => (Epoch::default(), Stage::Draining, None),
                Phase::Failed { error, epoch, .. } => (*epoch, Stage::Failed, Some(error.clone())),
            };
            (module.clone(), Hosted { epoch, state, error, bytes: 0 })
        });
        hosted.collect()
    }

    /// The instance of each module, and how calls should see it.
    pub(crate) fn instances(&self) -> BTreeMap<ModuleName, (InstanceId, Own)> {
        let seen = |instance: &Instance| match instance.phase {
            Phase::Failed { .. } => Own::Failed,
            Phase::Starting | Phase::Ready | Phase::Activating { .. } | Phase::Given => Own::Starting,
            Phase::Held { .. } | Phase::Sealed { .. } if self.lease.is_none() => Own::Held,
            Phase::Serving { .. } | Phase::Held { .. } | Phase::Sealed { .. } => Own::Instance,
        };
        self.instances.iter().map(|(module, instance)| (module.clone(), (instance.id, seen(instance)))).collect()
    }

    fn travels(&self, module: &ModuleName) -> bool {
        self.classes.get(module).is_some_and(|class| class.travels())
    }

    fn want(&self, part: &Part) -> Want {
        match &part.hosting {
            Hosting::Replicated { hosts } if hosts.contains(&self.me.node) => {
                Want::Serve { epoch: part.epoch, exclusive: false, active: true, seal: None }
            }
            Hosting::Exclusive { owner, active, moving, seal } if *owner == self.me => {
                let (epoch, seal) = (part.epoch, seal.as_ref().map(|seal| seal.sealed.digest.clone()));
                match moving {
                    _ if self.lease.is_none() => Want::Hold { epoch, seal },
                    Some(moving) if moving.prepared => Want::HandOver { epoch, of: moving.id },
                    _ => Want::Serve { epoch, exclusive: true, active: *active, seal },
                }
            }
            Hosting::Exclusive { seal: Some(seal), .. } if seal.from == self.me => {
                Want::Keep { digest: seal.sealed.digest.clone() }
            }
            Hosting::Exclusive { owner, moving: Some(moving), .. } if moving.to == self.me => {
                let (prepared, id, chosen) = (moving.prepared, moving.id, moving.chosen);
                Want::Prepare { prepared, id, chosen, from: owner.clone() }
            }
            _ => Want::Nothing,
        }
    }

    fn look_at(&mut self, now: Tick, module: &ModuleName, state: &State, commands: &mut Vec<Command>) {
        let part = state.parts.get(module);
        let want = part.map_or(Want::Nothing, |part| self.want(part));
        let version = part.map_or(0, |part| part.version);
        if let Some(instance) = self.instances.get(module)
            && is_of_the_past(now, instance, &want)
        {
            commands.push(Command::Retire { module: module.clone(), id: instance.id });
            self.instances.remove(module);
        }
        let (travels, lease, restores) = (self.travels(module), self.lease, self.restores(module));
        let sealed_for = self.sealed_for;
        let Some(instance) = self.instances.get_mut(module) else {
            if !matches!(want, Want::Nothing | Want::Keep { .. }) {
                let id = self.next;
                self.next += 1;
                let instance =
                    Instance { id, phase: Phase::Starting, content: Content::Own, hooks: false, again: false };
                self.instances.insert(module.clone(), instance);
                commands.push(Command::Start { module: module.clone(), id });
            }
            return;
        };
        let (id, module) = (instance.id, module.clone());
        let mut propose = |commands: &mut Vec<Command>, change, why: String| {
            let known = self.asked.insert(module.clone(), version);
            if known != Some(version) {
                commands.push(Command::Propose { module: module.clone(), expect: version, change, why });
            }
        };
        let term = |exclusive: bool| if exclusive { lease } else { None };
        // Whoever keeps the state that the record names may let it go once the record says so.
        let unsaid = matches!(&want, Want::Serve { active, seal, .. } if !active || seal.is_some());
        match (&mut instance.phase, want) {
            (Phase::Failed { again, .. }, Want::Serve { .. } | Want::Hold { .. }) if now >= *again => {
                instance.id = self.next;
                self.next += 1;
                instance.phase = Phase::Starting;
                instance.content = Content::Own;
                instance.again = true;
                commands.push(Command::Start { module, id: instance.id });
            }
            (Phase::Failed { error, .. }, Want::Prepare { .. }) => {
                let why = format!("it can't be on {}: {error}", self.me.node);
                propose(commands, PartChange::AbortMove, why);
            }
            (Phase::Ready, Want::Prepare { prepared, id: of, from, .. }) => match &instance.content {
                Content::Own if travels => {
                    instance.content = Content::Copy { of, copied: false };
                    commands.push(Command::Fill { module, id, of, from, ready: !instance.hooks });
                }
                Content::Copy { copied: false, .. } => {}
                _ if !prepared => propose(commands, PartChange::Prepared, String::new()),
                _ => {}
            },
            (Phase::Ready, Want::Serve { epoch, exclusive, active, seal }) => match seal {
                // It is about to say that it has it.
                Some(_) if matches!(instance.content, Content::Copy { .. }) => {}
                Some(seal) if !instance.content.is(&seal) => {
                    let error = "the state that the module was handed over with is not here".to_owned();
                    let (again, of) = (now + FIRST_PAUSE, None);
                    instance.phase = Phase::Failed { error, again, epoch, of };
                    commands.push(Command::Retire { module, id });
                }
                seal if instance.hooks || (restores && seal.is_none()) => {
                    instance.phase = Phase::Activating { epoch };
                    commands.push(Command::Activate { module, id, epoch, restore: restores && seal.is_none() });
                }
                seal if !active && (instance.again || seal.is_some()) => {
                    instance.phase = Phase::Held { epoch };
                    propose(commands, PartChange::Activated, String::new());
                }
                _ => {
                    instance.phase = Phase::Serving { epoch, exclusive };
                    commands.push(Command::Open { module: module.clone(), id, epoch, term: term(exclusive) });
                    if unsaid {
                        propose(commands, PartChange::Activated, String::new());
                    }
                }
            },
            // It was handed over; and perhaps given back, before this node has heard of that.
            (Phase::Sealed { of, step: Step::Installed { sealed, .. }, .. }, want) if want.names(&sealed.digest) => {
                instance.content = Content::Of { of: *of, digest: sealed.digest.clone() };
                instance.phase = Phase::Given;
                self.look_at(now, &module, state, commands);
            }
            // As long as the record names a state, the part may be given back to who has it too: what would be done here
            // meanwhile would be lost. And a part that failed may have been given to somebody else.
            (Phase::Held { .. }, Want::Serve { active: false, seal, .. }) if instance.again || seal.is_some() => {
                propose(commands, PartChange::Activated, String::new());
            }
            (Phase::Held { .. } | Phase::Sealed { .. }, Want::Serve { epoch, exclusive, .. }) => {
                // An abort.
                instance.phase = Phase::Serving { epoch, exclusive };
                instance.content = Content::Own;
                commands.push(Command::Open { module: module.clone(), id, epoch, term: term(exclusive) });
                if unsaid {
                    propose(commands, PartChange::Activated, String::new());
                }
            }
            (Phase::Serving { epoch: own, exclusive: was }, Want::Serve { epoch, exclusive, .. }) => {
                let other = (*own, *was) != (epoch, exclusive);
                instance.phase = Phase::Serving { epoch, exclusive };
                if other {
                    commands.push(Command::Open { module: module.clone(), id, epoch, term: term(exclusive) });
                }
                if unsaid {
                    propose(commands, PartChange::Activated, String::new());
                }
            }
            (Phase::Serving { epoch, .. }, Want::Hold { .. }) => {
                instance.phase = Phase::Held { epoch: *epoch };
                commands.push(Command::Close { module, id });
            }
            (Phase::Serving { .. } | Phase::Held { .. } | Phase::Ready, Want::HandOver { epoch, of }) if !travels => {
                instance.phase = Phase::Sealed { epoch, of, since: now, step: Step::Empty };
                commands.push(Command::Close { module: module.clone(), id });
                propose(commands, HAND_OVER, String::new());
            }
            (Phase::Serving { .. } | Phase::Held { .. }, Want::HandOver { epoch, of }) => {
                instance.phase = Phase::Sealed { epoch, of, since: now, step: Step::Warning };
                commands.push(Command::Seal { module, id, of, term: lease });
            }
            // The move before this one was given up, and this one comes at once.
            (Phase::Sealed { of: before, epoch, .. }, Want::HandOver { of, .. }) if *before != of => {
                let epoch = *epoch;
                instance.phase = Phase::Serving { epoch, exclusive: true };
                commands.push(Command::Open { module: module.clone(), id, epoch, term: lease });
                self.look_at(now, &module, state, commands);
            }
            (Phase::Sealed { step, since, .. }, Want::HandOver { .. }) => match step {
                Step::Installed { sealed, ready } => {
                    let waited_us = u64::try_from((now - *since).as_micros()).unwrap_or(u64::MAX);
                    let change = PartChange::Handover { sealed: Some(sealed.clone()), ready: *ready, waited_us };
                    propose(commands, change, String::new());
                    // Later, nobody knows whether the target is there still: one that has gone must not be the owner in
                    // whose place nobody has the state.
                    *ready = false;
                }
                _ if !travels => propose(commands, HAND_OVER, String::new()),
                Step::Closing | Step::Empty if now - *since >= sealed_for => {
                    let within = humantime::format_duration(sealed_for);
                    propose(commands, PartChange::AbortMove, format!("its target did not take the state within {within} (cluster.handover_timeout)"));
                }
                _ => {}
            },
            // The new owner has come to nothing.
            (Phase::Given, Want::Serve { .. }) => {
                instance.phase = Phase::Ready;
                self.look_at(now, &module, state, commands);
            }
            (Phase::Starting | Phase::Activating { .. } | Phase::Failed { .. } | Phase::Given, _)
            | (Phase::Ready | Phase::Held { .. } | Phase::Sealed { .. }, Want::Hold { .. })
            | (Phase::Ready, Want::HandOver { .. })
            // These were retired above.
            | (_, Want::Nothing | Want::Keep { .. })
            | (Phase::Serving { .. } | Phase::Held { .. } | Phase::Sealed { .. }, Want::Prepare { .. }) => {}
        }
    }

    /// Whether the module gets its last checkpoint where nobody has handed over its state.
    fn restores(&self, module: &ModuleName) -> bool {
        self.classes.get(module) == Some(&StateClass::Checkpointed)
    }
}

/// A hand-over without a state.
const HAND_OVER: PartChange = PartChange::Handover { sealed: None, ready: false, waited_us: 0 };

/// Whether an instance must go, and perhaps another one come, before anything else.
fn is_of_the_past(now: Tick, instance: &Instance, want: &Want) -> bool {
    match (&instance.phase, want) {
        // A failure is kept for a while, so that the leader hears of it before it plans the same again; but an
        // operator who asks again wants it tried again.
        (Phase::Failed { again, .. }, Want::Nothing | Want::Keep { .. }) => now >= *again,
        (Phase::Failed { again, of, .. }, Want::Prepare { id, chosen, .. }) => {
            now >= *again || (*chosen && *of != Some(*id))
        }
        // It has the state that the record names, whatever this node has not heard of in between.
        (Phase::Sealed { step: Step::Installed { sealed, .. }, .. }, want) if want.names(&sealed.digest) => false,
        (Phase::Given, want) => !matches!(&instance.content, Content::Of { digest, .. } if want.names(digest)),
        (_, Want::Nothing | Want::Keep { .. }) => true,
        // It was the owner, and the part is on its way back.
        (
            Phase::Activating { .. } | Phase::Serving { .. } | Phase::Held { .. } | Phase::Sealed { .. },
            Want::Prepare { .. },
        ) => true,
        // What it has is for another move, or for a move that has come to nothing.
        (Phase::Ready, Want::Prepare { id, .. }) => match &instance.content {
            Content::Copy { of, .. } | Content::Of { of, .. } => of != id,
            Content::Own => false,
        },
        #[cfg(feature = "simulation")]
        (Phase::Ready, Want::Serve { seal: None, .. })
            if crate::simulation::is_broken(crate::simulation::Rule::CopyIsNamed) =>
        {
            false
        }
        (Phase::Ready, Want::Serve { seal: None, .. } | Want::HandOver { .. }) => instance.content != Content::Own,
        (Phase::Serving { epoch: own, exclusive: was }, Want::Serve { epoch, exclusive, .. }) => {
            own != epoch && *was && *exclusive
        }
        (
            Phase::Activating { epoch: own }
            | Phase::Serving { epoch: own, exclusive: true }
            | Phase::Held { epoch: own }
            | Phase::Sealed { epoch: own, .. },
            Want::Serve { epoch, .. } | Want::Hold { epoch, .. } | Want::HandOver { epoch, .. },
        ) => own != epoch,
        _ => false,
    }
}

#[cfg(test)]
mod tests;

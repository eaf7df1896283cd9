//! A state of the whole: the record in the log, three hosts, what is in flight between them, calls, the module's store.
//!
//! Numbers that only grow (versions, epochs) are kept as ranks: nothing in the protocol does more than compare them, so
//! two states that differ by the size of gaps have the same future. That makes the number of moves, aborts and take-overs
//! unlimited, in a finite number of states. For the same reason terms of a lease, of which only "is it this one?" matters,
//! are booleans.

mod same;

/// How many hosts there are.
pub const HOSTS: usize = 3;
/// How many calls there may be.
pub const CALLS: usize = 2;
/// How many messages, and how many proposals, may be under way; the next one is lost.
const UNDER_WAY: usize = 4;

/// Which host.
pub type HostId = u8;
/// Rank of the index of the entry that changed a record; 0 is none.
pub type Version = u8;
/// Rank of an epoch; 0 is none.
pub type Epoch = u8;
/// The content of a module's state: bit `k` is the effect of call `k`. It is its own digest.
pub type Content = u8;

/// A process of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// Its host.
    pub host: HostId,
    /// Grows with each restart.
    pub generation: u8,
}

/// A move under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Move {
    /// The version at which it began.
    pub id: Version,
    /// The target.
    pub to: Incarnation,
    /// The target has an instance.
    pub prepared: bool,
}

/// What a new owner must start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seal {
    /// Of the state.
    pub digest: Content,
    /// Who sealed it.
    pub from: Incarnation,
}

/// The record of the part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Record {
    /// Of its last change.
    pub version: Version,
    /// Of its owner.
    pub epoch: Epoch,
    /// The epoch of the last take-over.
    pub fence: Epoch,
    /// None only in a host's view that was reduced to "not mine".
    pub owner: Option<Incarnation>,
    /// The owner serves: it has said so, or was handed the part when it needed nothing else.
    pub active: bool,
    /// The move under way.
    pub moving: Option<Move>,
    /// From a handover until the new owner has said that it serves.
    pub seal: Option<Seal>,
}

/// Whether a host may serve, by the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Lease {
    /// It may not.
    #[default]
    None,
    /// Granted, on its way to the host or waiting for it to apply this version.
    Granted {
        /// What it must apply first.
        must: Version,
        /// By a leader that had been replaced.
        old: bool,
    },
    /// It holds.
    Held {
        /// By a leader that had been replaced.
        old: bool,
    },
    /// It has ended, and the host's clock stood still meanwhile.
    Suspended,
}

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Started, gate closed.
    Ready,
    /// It was decided that the gate opens, for a term of the lease.
    Opening,
    /// Its gate is open for a term of the lease.
    Serving,
    /// Its gate is closed for a move; calls may be inside.
    Sealing,
    /// Nobody is inside, and the final part was taken at this version of the record.
    Sealed {
        /// The version that the handover names.
        at: Version,
        /// The target has said that it has it.
        answered: bool,
    },
}

/// An instance of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// What it does.
    pub phase: Phase,
    /// For which its host took it over; 0 before.
    pub epoch: Epoch,
    /// The record's fence when it did.
    pub fence: Epoch,
    /// What is in memory; of a durable module, what it has read.
    pub content: Content,
    /// It holds a final part that was not put to use yet.
    pub installed: bool,
    /// Its host has seen that it was handed over; kept only where a rule that needs no such thing is off.
    pub given: bool,
    /// The move that it was started for, until it has an epoch.
    pub of: Version,
    /// The lease's term that its gate is open for goes on.
    pub term: bool,
}

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    /// Of its last process, which is also the one in force in the log.
    pub generation: u8,
    /// It runs.
    pub up: bool,
    /// Its lease.
    pub lease: Lease,
    /// The record as this host knows it.
    pub view: Record,
    /// Its instance.
    pub instance: Option<Instance>,
    /// The leader has heard of it in this term; kept only where a rule that needs no such thing is off.
    pub heard: bool,
}

/// Something under way between a source and a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// Who sent it.
    pub from: Incarnation,
    /// Who gets it.
    pub to: Incarnation,
    /// The move that it is about.
    pub of: Version,
    /// What is carried, or was installed.
    pub content: Content,
    /// The target's answer, not the source's final part.
    pub answer: bool,
}

/// A change of the record that was proposed and is not decided. The others are decided at once: whether they may be made
/// depends on nothing but the version that they name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proposal {
    /// By the source.
    Handover {
        /// The version that it saw.
        expect: Version,
        /// The epoch at that version.
        epoch: Epoch,
        /// The content it sealed.
        digest: Content,
        /// The source.
        from: Incarnation,
    },
    /// By a leader, of an owner whose lease it believes to have ended.
    Assign {
        /// The version that it saw.
        expect: Version,
        /// The new owner.
        to: Incarnation,
        /// Its leader leads still.
        leads: bool,
        /// Its leader gives the owner no grant.
        hold: bool,
    },
}

/// How far a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Nowhere yet; or refused, which is the same.
    New,
    /// Admitted.
    Inside {
        /// Where.
        host: HostId,
        /// It has had its effect.
        applied: bool,
        /// The lease's term in which it was admitted goes on.
        term: bool,
    },
    /// The reply has left the host.
    Reply,
    /// Its caller has the answer.
    Answered,
    /// Its caller knows that it will never know; or it was answered, and a loss was announced since.
    Over,
}

/// A call, by the one caller there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// How far it is.
    pub stage: Stage,
    /// Of the instance that it was admitted by.
    pub epoch: Epoch,
    /// The last take-over before that.
    pub fence: Epoch,
    /// A take-over since may have lost its effect, as is the case of the state's class.
    pub excused: bool,
    /// It was tried again.
    pub retried: bool,
    /// It has had an effect, if only of its first attempt.
    pub applied: bool,
}

/// A durable module's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Store {
    /// Writes of lower epochs are refused.
    pub fence: Epoch,
    /// What was written.
    pub content: Content,
}

/// What the caller's node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller {
    /// The highest fence that it was told of.
    pub known: Epoch,
    /// The fence of the newest answer that it took. No rule looks at it.
    pub seen: Epoch,
}

/// How many faults may happen yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Budget {
    /// Leases that end while their holder runs, by a pause or a partition.
    pub lease_ends: u8,
    /// Crashes.
    pub crashes: u8,
    /// Changes of the leader.
    pub elections: u8,
    /// Clocks that stand still while a lease ends.
    pub suspensions: u8,
    /// Moves; [`Budget::UNLIMITED`] is no limit.
    pub moves: u8,
}

impl Budget {
    /// For moves.
    pub const UNLIMITED: u8 = u8::MAX;
}

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Broken {
    /// I1.
    TwoOwnersOfAnEpoch,
    /// I2.
    TwoServe,
    /// I3.
    AnsweredCallLost,
    /// I4.
    CallTwice,
    /// I5, at the host.
    ReplyAfterTakeOver,
    /// I5, at the caller.
    OlderAnswerAfterNewer,
    /// I6.
    WriteBelowFence,
    /// I9.
    OtherContent,
    /// What the other invariants rest on, of leases.
    LeaseOfReplacedLeader,
    /// The same, of the log.
    CommittedEntryLost,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TwoOwnersOfAnEpoch => "I1: two owners have the same epoch",
            Self::TwoServe => "I2: two hosts admit calls at the same instant",
            Self::AnsweredCallLost => "I3: a call that was answered has no effect in what is served now",
            Self::CallTwice => "I4: a call has had its effect twice",
            Self::ReplyAfterTakeOver => "I5: a reply leaves a host from which the part was taken over",
            Self::OlderAnswerAfterNewer => {
                "I5: a caller takes an answer from before a take-over after one from behind it"
            }
            Self::WriteBelowFence => "I6: the store takes a write of an epoch below its fence",
            Self::OtherContent => "I9: an owner opens content that the record does not name",
            Self::LeaseOfReplacedLeader => "a leader grants what it was asked for after a later one was elected",
            Self::CommittedEntryLost => "what was committed, a later leader does not have",
        })
    }
}

/// A state of the whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct World {
    /// The record in the log.
    pub log: Record,
    /// The hosts.
    pub hosts: [Host; HOSTS],
    /// Sorted.
    pub messages: [Option<Message>; UNDER_WAY],
    /// Sorted.
    pub proposals: [Option<Proposal>; UNDER_WAY],
    /// The calls.
    pub calls: [Call; CALLS],
    /// The store.
    pub store: Store,
    /// The caller.
    pub caller: Caller,
    /// What may go wrong yet.
    pub budget: Budget,
    /// What the last step broke.
    pub broken: Option<Broken>,
}

/// Puts something under way, if there is room and it is not already.
pub(crate) fn put<T: Copy + PartialEq>(all: &mut [Option<T>; UNDER_WAY], one: T) {
    if !all.contains(&Some(one))
        && let Some(free) = all.iter_mut().find(|slot| slot.is_none())
    {
        *free = Some(one);
    }
}

impl World {
    /// Host 0 serves at epoch 1, and every host has a lease.
    pub fn initial(budget: Budget, calls: usize) -> Self {
        let owner = Incarnation { host: 0, generation: 1 };
        let log = Record { version: 1, epoch: 1, fence: 1, owner: Some(owner), active: true, moving: None, seal: None };
        let instance = Instance {
            phase: Phase::Serving,
            epoch: 1,
            fence: 1,
            content: 0,
            installed: false,
            given: false,
            of: 0,
            term: true,
        };
        let host = |id: HostId| Host {
            generation: 1,
            up: true,
            lease: Lease::Held { old: false },
            view: log,
            instance: (id == 0).then_some(instance),
            heard: true,
        };
        let call = |id: usize| Call {
            stage: if id < calls { Stage::New } else { Stage::Over },
            epoch: 0,
            fence: 0,
            excused: false,
            retried: false,
            applied: false,
        };
        Self {
            log,
            hosts: [host(0), host(1), host(2)],
            messages: [None; UNDER_WAY],
            proposals: [None; UNDER_WAY],
            calls: [call(0), call(1)],
            store: Store { fence: 1, content: 0 },
            caller: Caller { known: 1, seen: 1 },
            budget,
            broken: None,
        }
    }

    /// A host's process.
    pub fn incarnation(&self, host: HostId) -> Incarnation {
        Incarnation { host, generation: self.hosts[usize::from(host)].generation }
    }

    /// Whether a process runs.
    pub fn runs(&self, incarnation: Incarnation) -> bool {
        let host = &self.hosts[usize::from(incarnation.host)];
        host.up && host.generation == incarnation.generation
    }
}

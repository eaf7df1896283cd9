//! What is checked: bounds that together fit into the time of a test run, and others for those who have more of it.

use crate::{
    check::{Model, Wrong, explore},
    protocol::{Class, Protocol},
    rule::{Rule, Rules},
    voters::{self, Voting},
    world::Budget,
};

/// More states than any of these has.
pub const MOST_STATES: usize = 60_000_000;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Moves and take-overs.
    Part(Protocol),
    /// Those who vote.
    Voters(Voting),
}

/// What was found.
#[derive(Debug)]
pub struct Outcome {
    /// How many states there are, or were looked at before something was found.
    pub states: usize,
    /// How many steps the furthest of them is away.
    pub depth: usize,
    /// What is wrong, if anything is.
    pub wrong: Option<Wrong>,
    /// How many steps lead there.
    pub steps: usize,
    /// And which.
    pub trace: String,
}

impl Subject {
    /// Looks at all of it.
    pub fn explore(&self) -> Outcome {
        match self {
            Self::Part(protocol) => outcome(protocol),
            Self::Voters(voting) => outcome(voting),
        }
    }

    /// The same with these rules in force.
    #[must_use]
    pub fn with(self, rules: Rules) -> Self {
        match self {
            Self::Part(protocol) => Self::Part(Protocol { rules, ..protocol }),
            Self::Voters(voting) => Self::Voters(Voting { rules, ..voting }),
        }
    }
}

fn outcome<M: Model>(model: &M) -> Outcome {
    let found = explore(model, MOST_STATES);
    let trace = if found.wrong.is_some() { found.trace(model) } else { String::new() };
    Outcome { states: found.states, depth: found.depth, wrong: found.wrong, steps: found.steps(), trace }
}

/// Something to look at with bounds, and a name.
#[derive(Debug, Clone, Copy)]
pub struct Configuration {
    /// For the command line.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Takes minutes, and gigabytes.
    pub slow: bool,
    /// With every rule in force.
    pub subject: Subject,
}

const NO_FAULTS: Budget = Budget { lease_ends: 0, crashes: 0, elections: 0, suspensions: 0, moves: 0 };
const ANY_MOVES: Budget = Budget { moves: Budget::UNLIMITED, ..NO_FAULTS };
const LEASE: Budget = Budget { lease_ends: 1, moves: 2, ..NO_FAULTS };
const ANY_MOVES_LEASE: Budget = Budget { lease_ends: 1, ..ANY_MOVES };
const CRASH: Budget = Budget { crashes: 1, moves: 2, ..NO_FAULTS };
const LEADER: Budget = Budget { lease_ends: 1, elections: 1, moves: 1, ..NO_FAULTS };
const LEADERS: Budget = Budget { lease_ends: 2, elections: 1, ..NO_FAULTS };
const CLOCK: Budget = Budget { suspensions: 1, moves: 1, ..NO_FAULTS };
const ONE_MOVE: Budget = Budget { moves: 1, ..LEASE };
const BOTH: Budget = Budget { lease_ends: 1, crashes: 1, moves: 1, ..NO_FAULTS };
const MUCH: Budget = Budget { lease_ends: 2, elections: 1, moves: 1, ..NO_FAULTS };

const fn protocol(class: Class, budget: Budget, calls: usize) -> Protocol {
    Protocol { class, rules: Rules::ALL, budget, calls, reduce: true }
}

const fn quick(name: &'static str, about: &'static str, protocol: Protocol) -> Configuration {
    Configuration { name, about, slow: false, subject: Subject::Part(protocol) }
}

const fn slow(name: &'static str, about: &'static str, protocol: Protocol) -> Configuration {
    Configuration { name, about, slow: true, subject: Subject::Part(protocol) }
}

const fn voters(name: &'static str, about: &'static str, slow: bool, budget: voters::Budget) -> Configuration {
    Configuration { name, about, slow, subject: Subject::Voters(Voting { rules: Rules::ALL, budget }) }
}

const fn votes(elections: u8, changes: u8, losses: u8) -> voters::Budget {
    voters::Budget { elections, changes, losses }
}

/// All configurations.
pub const ALL: &[Configuration] = &[
    quick("ephemeral-moves", "any number of moves and aborts, no faults", protocol(Class::Ephemeral, ANY_MOVES, 1)),
    quick("ephemeral-lease", "two moves, a lease ends", protocol(Class::Ephemeral, LEASE, 1)),
    quick("ephemeral-crash", "two moves, a crash", protocol(Class::Ephemeral, CRASH, 1)),
    quick("ephemeral-calls", "a move, a lease ends, two calls", protocol(Class::Ephemeral, ONE_MOVE, 2)),
    quick("ephemeral-leader", "a move, a lease ends, the leader changes", protocol(Class::Ephemeral, LEADER, 1)),
    quick("ephemeral-clock", "a move, a clock stands still, two calls", protocol(Class::Ephemeral, CLOCK, 2)),
    quick("durable-moves", "any number of moves and aborts, no faults", protocol(Class::Durable, ANY_MOVES, 1)),
    quick("durable-lease", "two moves, a lease ends", protocol(Class::Durable, LEASE, 1)),
    quick("durable-crash", "two moves, a crash", protocol(Class::Durable, CRASH, 1)),
    quick("durable-calls", "a move, a lease ends, two calls", protocol(Class::Durable, ONE_MOVE, 2)),
    quick("durable-leader", "a move, a lease ends, the leader changes", protocol(Class::Durable, LEADER, 1)),
    quick("durable-clock", "a move, a clock stands still, two calls", protocol(Class::Durable, CLOCK, 2)),
    quick("none-moves", "any number of moves and aborts, a lease ends", protocol(Class::None, ANY_MOVES_LEASE, 1)),
    quick("none-crash", "two moves, a crash", protocol(Class::None, CRASH, 1)),
    quick("none-leader", "no move, two leases end, the leader changes", protocol(Class::None, LEADERS, 1)),
    voters("voters-change", "two elections, a change", false, votes(2, 1, 0)),
    voters("voters-changes", "two elections, two changes", false, votes(2, 2, 0)),
    voters("voters-lost", "two elections, a change, a loss", false, votes(2, 1, 1)),
    voters("voters-much", "three elections, two changes, a loss", false, votes(3, 2, 1)),
    slow("ephemeral-both", "a move, a crash, a lease ends", protocol(Class::Ephemeral, BOTH, 1)),
    slow("ephemeral-much", "a move, two leases end, the leader changes", protocol(Class::Ephemeral, MUCH, 1)),
    slow("ephemeral-any", "any number of moves, a lease ends", protocol(Class::Ephemeral, ANY_MOVES_LEASE, 1)),
    slow("durable-both", "a move, a crash, a lease ends", protocol(Class::Durable, BOTH, 1)),
    slow("durable-any", "any number of moves, a lease ends", protocol(Class::Durable, ANY_MOVES_LEASE, 1)),
    slow("none-both", "a move, a crash, a lease ends", protocol(Class::None, BOTH, 1)),
];

impl Configuration {
    /// The one with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|configuration| configuration.name == name)
    }
}

impl Rule {
    /// What is looked at without this rule, in a world that is just bad enough for it to be missed.
    pub fn missed_in(self) -> Subject {
        let mut rules = Rules::ALL.without(self);
        if let Some(other) = self.backed_by() {
            rules = rules.without(other);
        }
        let subject = if self.is_of_voters() { self.missed_by_voters() } else { self.missed_by_part() };
        subject.with(rules)
    }

    fn missed_by_voters(self) -> Subject {
        let budget = match self {
            Self::VoterIsItsData => votes(2, 0, 1),
            Self::HealthyBeforeChange => votes(1, 1, 2),
            Self::OneChangeAtATime => votes(2, 2, 0),
            _ => votes(2, 1, 0),
        };
        Subject::Voters(Voting { rules: Rules::ALL, budget })
    }

    fn missed_by_part(self) -> Subject {
        let (class, budget, calls) = match self {
            Self::StoreFence => (Class::Durable, Budget { moves: 0, ..CLOCK }, 2),
            Self::ReadAfterFence => (Class::Durable, ONE_MOVE, 2),
            Self::FenceAtCaller | Self::FenceInReply => (Class::Ephemeral, Budget { moves: 0, ..LEASE }, 2),
            Self::NewLeaderWaits | Self::GrantConfirmed | Self::TakeOverInTerm => {
                (Class::Ephemeral, Budget { moves: 0, ..LEADERS }, 1)
            }
            Self::OwnerIsIncarnation => (Class::Ephemeral, Budget { moves: 1, ..CRASH }, 1),
            Self::AckBeforeHandover | Self::DigestAtOpen => (Class::Ephemeral, Budget { moves: 1, ..CRASH }, 1),
            Self::TransferOfThisMove => (Class::Ephemeral, Budget { moves: 2, ..NO_FAULTS }, 1),
            Self::AnswerOfThisMove => (Class::Ephemeral, CRASH, 0),
            Self::RetryOnlyUnbegun => (Class::Ephemeral, NO_FAULTS, 1),
            _ => (Class::Ephemeral, ONE_MOVE, 1),
        };
        Subject::Part(protocol(class, budget, calls))
    }

    /// The rule that makes up for this one as long as it holds; both have to be off for anything to go wrong.
    pub fn backed_by(self) -> Option<Self> {
        (self == Self::DigestAtOpen).then_some(Self::AckBeforeHandover)
    }
}

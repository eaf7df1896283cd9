//! What is checked: bounds that together fit into the time of a test run, and others for those who have more of it.

use crate::{
    protocol::{Class, Protocol},
    rule::{Rule, Rules},
    world::Budget,
};

/// More states than any of these has.
pub const MOST_STATES: usize = 60_000_000;

/// A protocol with bounds, and a name.
#[derive(Debug, Clone, Copy)]
pub struct Configuration {
    /// For the command line.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Takes minutes, and gigabytes.
    pub slow: bool,
    /// With every rule in force.
    pub protocol: Protocol,
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
    Configuration { name, about, slow: false, protocol }
}

const fn slow(name: &'static str, about: &'static str, protocol: Protocol) -> Configuration {
    Configuration { name, about, slow: true, protocol }
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
    /// The protocol without this rule, in a world that is just bad enough for it to be missed.
    pub fn missed_in(self) -> Protocol {
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
        let mut rules = Rules::ALL.without(self);
        if let Some(other) = self.backed_by() {
            rules = rules.without(other);
        }
        Protocol { rules, ..protocol(class, budget, calls) }
    }

    /// The rule that makes up for this one as long as it holds; both have to be off for anything to go wrong.
    pub fn backed_by(self) -> Option<Self> {
        (self == Self::DigestAtOpen).then_some(Self::AckBeforeHandover)
    }
}

//! From facts to the smallest change. Pure: the same facts give the same plan.
//!
//! ```text
//! facts ─▶ survey: the rules that hold, who may host what ─▶ targets: where each part belongs ─▶ steps: the next change
//!            (survey.rs)                                       (exclusive.rs, replicated.rs)        of each record (step.rs)
//!                                                                     └─▶ balance.rs: moves that only even out the load
//! ```
//! The targets are found with a strong will to leave things where they are, so that a plan for what a plan has led to
//! is empty. Steps lead there one change of a record at a time; each has the version of the record that it is for, so
//! that what was planned from old facts changes nothing.
//!
//! **Invariant:** a part whose state can't travel is not moved, and no part is assigned to a second owner before the first
//! one's lease has ended.

mod balance;
mod exclusive;
mod explain;
#[cfg(test)]
mod properties;
mod replicated;
mod step;
mod survey;
mod targets;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use explain::{Explanation, explain};
pub(crate) use survey::{Obstacle, missing_label};

use self::{survey::Survey, targets::Targets};
use super::{
    spec::Spec,
    state::{Declared, Part, PartChange, State, Version},
};
use crate::id::{Incarnation, ModuleName, NodeId, Timestamp};

/// What the scheduler decides from.
#[derive(Debug, Clone)]
pub(crate) struct Facts<'a> {
    pub(crate) spec: &'a Spec,
    /// Only for pins that expire.
    pub(crate) now: Timestamp,
    /// Every node that has joined and was not forgotten.
    pub(crate) nodes: BTreeMap<NodeId, NodeFacts>,
    pub(crate) declared: BTreeMap<ModuleName, Declared>,
    pub(crate) parts: &'a BTreeMap<ModuleName, Part>,
    /// Incarnations that serve nothing any more and never will: their lease has ended for good, or they have left. One
    /// of a node that was forgotten need not be here.
    pub(crate) ended: BTreeSet<Incarnation>,
    /// Every incarnation that may still serve something has applied the log up to this index.
    pub(crate) applied_by_all: u64,
    pub(crate) limits: Limits,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    /// Of the incarnation that is in force.
    pub(crate) generation: u64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) cordoned: bool,
    pub(crate) standing: Standing,
    /// What its program has.
    pub(crate) modules: BTreeSet<ModuleName>,
    /// Modules that it says it serves.
    pub(crate) serves: BTreeSet<ModuleName>,
    /// Modules whose factory failed there lately. It serves none of them, and does not try again by itself.
    pub(crate) failed: BTreeSet<ModuleName>,
    /// Modules whose version there does not fit with what was there before, and why. What it has of them it keeps.
    pub(crate) unfit: BTreeMap<ModuleName, String>,
    /// It runs the version of the program that came last. While some node does not, nothing is moved for the sake of
    /// balance: a rollout moves things enough.
    pub(crate) newest: bool,
}

/// How a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It hosts, and may get more.
    Ready,
    /// It hosts, and gives away what it has.
    Draining,
    /// Nothing is heard of it, or it is not ready yet. What it may still serve is said by `Facts::ended`.
    Silent,
    /// It said that it goes, and hosts nothing.
    Left,
}

/// What is known of a node beside the log: by gossip, and by its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) standing: Standing,
    pub(crate) serves: BTreeSet<ModuleName>,
    pub(crate) failed: BTreeSet<ModuleName>,
    pub(crate) unfit: BTreeMap<ModuleName, String>,
}

/// What the scheduler must not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Moves under way, whatever for, with which no further one is begun for the sake of balance.
    pub(crate) max_rebalancing: usize,
    /// Moves under way, whatever for, with which no further one is begun at all.
    pub(crate) max_moves: usize,
}

/// What to do, and what can't be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// At most one of each part, in the order of the modules' names.
    pub(crate) changes: Vec<Planned>,
    /// What nobody hosts or will, or fewer nodes than asked for.
    pub(crate) unplaced: Vec<Unmet>,
    /// What is hosted, but not as the rules want it.
    pub(crate) misplaced: Vec<Unmet>,
}

/// A change to propose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) module: ModuleName,
    /// The version of its record that the change is for; 0 where there is none.
    pub(crate) expect: Version,
    pub(crate) change: PartChange,
    /// For people.
    pub(crate) reason: String,
}

/// A module whose rules are not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unmet {
    pub(crate) module: ModuleName,
    /// For people.
    pub(crate) reasons: Vec<String>,
}

impl<'a> Facts<'a> {
    /// Puts together what the log says and what was observed. A node that was not observed is silent.
    pub(crate) fn new(
        state: &'a State,
        spec: &'a Spec,
        now: Timestamp,
        observed: &BTreeMap<NodeId, Observed>,
        ended: BTreeSet<Incarnation>,
        applied_by_all: u64,
        limits: Limits,
    ) -> Self {
        let mut ended = ended;
        let mut nodes = BTreeMap::new();
        for (node, record) in &state.nodes {
            let seen = observed.get(node);
            let standing = match seen {
                _ if record.left => Standing::Left,
                Some(seen) if record.draining && seen.standing == Standing::Ready => Standing::Draining,
                Some(seen) => seen.standing,
                None => Standing::Silent,
            };
            if standing == Standing::Left {
                ended.insert(Incarnation { node: node.clone(), generation: record.generation });
            }
            let facts = NodeFacts {
                generation: record.generation,
                labels: record.labels.clone(),
                cordoned: record.cordoned,
                standing,
                modules: record.modules.keys().cloned().collect(),
                serves: seen.map(|seen| seen.serves.clone()).unwrap_or_default(),
                failed: seen.map(|seen| seen.failed.clone()).unwrap_or_default(),
                unfit: seen.map(|seen| seen.unfit.clone()).unwrap_or_default(),
                newest: true,
            };
            nodes.insert(node.clone(), facts);
        }
        let running = |facts: &NodeFacts| matches!(facts.standing, Standing::Ready | Standing::Draining);
        let versions = nodes.iter().filter(|(_, facts)| running(facts)).map(|(node, _)| &state.nodes[node]);
        let newest = versions.max_by_key(|record| record.version_since).map(|record| &record.version);
        let mut limits = limits;
        for (node, facts) in &mut nodes {
            facts.newest = newest.is_none_or(|newest| state.nodes[node].version == *newest);
            if running(facts) && !facts.newest {
                limits.max_rebalancing = 0;
            }
        }
        let declared =
            state.declared().into_iter().map(|(module, declared)| (module.clone(), declared.clone())).collect();
        Self { spec, now, nodes, declared, parts: &state.parts, ended, applied_by_all, limits }
    }

    /// Whether an incarnation serves nothing any more and never will.
    fn has_ended(&self, incarnation: &Incarnation) -> bool {
        self.ended.contains(incarnation) || !self.nodes.contains_key(&incarnation.node)
    }

    /// Whether an incarnation is the one in force, and runs.
    fn runs(&self, incarnation: &Incarnation) -> bool {
        self.nodes.get(&incarnation.node).is_some_and(|node| {
            node.generation == incarnation.generation && matches!(node.standing, Standing::Ready | Standing::Draining)
        })
    }

    fn incarnation(&self, node: &NodeId) -> Option<Incarnation> {
        self.nodes.get(node).map(|facts| Incarnation { node: node.clone(), generation: facts.generation })
    }
}

/// What should be done next.
pub(crate) fn plan(facts: &Facts<'_>) -> Plan {
    let survey = Survey::of(facts);
    let targets = Targets::find(&survey);
    let mut plan = step::steps(&survey, &targets);
    balance::balance(&survey, &targets, &mut plan);
    plan.changes.sort_by(|a, b| a.module.cmp(&b.module));
    let under_way = facts.parts.values().filter(|part| part.moving().is_some()).count();
    let mut left = facts.limits.max_moves.saturating_sub(under_way);
    plan.changes.retain(|planned| match planned.change {
        PartChange::BeginMove { .. } => {
            let begins = left > 0;
            left = left.saturating_sub(1);
            begins
        }
        _ => true,
    });
    plan.unplaced.sort_by(|a, b| a.module.cmp(&b.module));
    plan.misplaced.sort_by(|a, b| a.module.cmp(&b.module));
    plan
}

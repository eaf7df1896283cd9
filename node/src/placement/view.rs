//! What one node knows, put together for the scheduler and for people. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    scheduler::{Facts, Limits, Observed, Standing},
    spec::Spec,
    state::{Command, Hosting, PartChange, Proposal, State},
    versions::Versions,
};
use crate::{
    id::{Incarnation, ModuleName, NodeId, Timestamp},
    membership::{Instance, Lifecycle, Members},
    placement::scheduler,
};

/// How many rounds of changes are foreseen. Each is at least one change of a record; far more than any plan takes.
const MOST_ROUNDS: usize = 1_000;

/// What leases say, at the leader.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    /// Incarnations that may still serve: they asked within the last lease.
    pub(crate) renewing: BTreeSet<Incarnation>,
    /// Incarnations that may not, and never will.
    pub(crate) ended: BTreeSet<Incarnation>,
    /// The index that all of those that may have applied.
    pub(crate) applied_by_all: u64,
}

/// Every incarnation that a part's record names.
pub(crate) fn owners(state: &State) -> BTreeSet<Incarnation> {
    let owners = state.parts.values().filter_map(|part| match &part.hosting {
        Hosting::Exclusive { owner, .. } => Some(owner.clone()),
        Hosting::Replicated { .. } => None,
    });
    owners.collect()
}

/// Whether the log alone shows that an incarnation serves nothing any more: its node has left, or has started again on
/// the same data directory, of which no two processes can have the lock.
pub(crate) fn has_gone(state: &State, incarnation: &Incarnation) -> bool {
    state.nodes.get(&incarnation.node).is_some_and(|node| {
        (node.left && incarnation.generation == node.generation)
            || (incarnation.generation < node.generation && incarnation.generation >= node.marker_since)
    })
}

/// The facts that a plan is made from.
pub(crate) fn facts<'a>(
    state: &'a State,
    spec: &'a Spec,
    members: &Members,
    heard: &Heard,
    versions: &Versions,
    now: Timestamp,
    limits: Limits,
) -> Facts<'a> {
    let mut observed: BTreeMap<NodeId, Observed> = BTreeMap::new();
    for (node, record) in &state.nodes {
        let incarnation = Incarnation { node: node.clone(), generation: record.generation };
        let member = members.get(node).filter(|member| member.generation == record.generation);
        let standing = match member {
            // Gossip is a hint: a node that renews its lease is there, whatever is heard of it.
            Some(member) if !member.alive && !heard.renewing.contains(&incarnation) => Standing::Silent,
            Some(member) => match member.lifecycle {
                Lifecycle::Joining | Lifecycle::Ready => Standing::Ready,
                Lifecycle::Draining | Lifecycle::Leaving => Standing::Draining,
            },
            // It has joined, and the word has not got round.
            None if heard.renewing.contains(&incarnation) => Standing::Ready,
            None => Standing::Silent,
        };
        let hosts = |stage: Instance| -> BTreeSet<ModuleName> {
            let hosting = member.into_iter().flat_map(|member| &member.hosting);
            hosting.filter(|(_, hosted)| hosted.state == stage).map(|(module, _)| module.clone()).collect()
        };
        let (serves, failed) = (hosts(Instance::Serving), hosts(Instance::Failed));
        observed.insert(node.clone(), Observed { standing, serves, failed, unfit: BTreeMap::new() });
    }
    // One that is on its way out, or silent, will hardly call what moves now; and its modules need a place.
    let calls = |node: &NodeId| {
        observed.get(node).is_some_and(|seen| seen.standing == Standing::Ready) && !state.nodes[node].draining
    };
    for (node, unfit) in versions.unfit(state, calls) {
        if let Some(observed) = observed.get_mut(&node) {
            observed.unfit = unfit;
        }
    }
    let gone = owners(state).into_iter().filter(|owner| has_gone(state, owner));
    let ended = gone.chain(heard.ended.iter().cloned()).collect();
    Facts::new(state, spec, now, &observed, ended, heard.applied_by_all, limits)
}

/// Where a module is, and will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreseen {
    pub(crate) module: ModuleName,
    pub(crate) from: Vec<NodeId>,
    pub(crate) to: Vec<NodeId>,
    pub(crate) reason: String,
}

/// Plays the scheduler forward, as if every change were made at once and every module started: what a spec leads to.
pub(crate) fn foresee(
    state: &State,
    spec: &Spec,
    members: &Members,
    versions: &Versions,
    now: Timestamp,
    limits: Limits,
) -> (Vec<Foreseen>, scheduler::Plan) {
    let mut future = state.clone();
    let mut reasons: BTreeMap<ModuleName, String> = BTreeMap::new();
    for _ in 0..MOST_ROUNDS {
        let index = future.index;
        let heard = Heard { applied_by_all: index, ..Heard::default() };
        let plan = scheduler::plan(&facts(&future, spec, members, &heard, versions, now, limits));
        if plan.changes.is_empty() {
            break;
        }
        for planned in plan.changes {
            reasons.entry(planned.module.clone()).or_insert(planned.reason);
            play(&mut future, planned.module, planned.change);
        }
    }
    let heard = Heard { applied_by_all: future.index, ..Heard::default() };
    let rest = scheduler::plan(&facts(&future, spec, members, &heard, versions, now, limits));
    let mut foreseen = Vec::new();
    for module in state.parts.keys().chain(future.parts.keys()).collect::<BTreeSet<_>>() {
        let hosts = |state: &State| -> Vec<NodeId> {
            state.parts.get(module).map(|part| part.hosts().into_iter().cloned().collect()).unwrap_or_default()
        };
        let (from, to) = (hosts(state), hosts(&future));
        if from != to {
            let reason = reasons.remove(module).unwrap_or_default();
            foreseen.push(Foreseen { module: module.clone(), from, to, reason });
        }
    }
    (foreseen, rest)
}

/// What becomes of the state makes no difference to where things are.
const HANDOVER: PartChange = PartChange::Handover { sealed: None, ready: false, waited_us: 0 };

/// Makes a change, and what follows from it.
fn play(state: &mut State, module: ModuleName, change: PartChange) {
    let follow: &[PartChange] = match &change {
        PartChange::Assign(_) => &[PartChange::Activated],
        PartChange::BeginMove { .. } => &[PartChange::Prepared, HANDOVER, PartChange::Activated],
        _ => &[],
    };
    for change in std::iter::once(change).chain(follow.iter().cloned()) {
        let expect = state.parts.get(&module).map_or(0, |part| part.version);
        let command = Command::Part { module: module.clone(), expect, change, why: String::new() };
        let index = state.index + 1;
        // A change that is refused is one that the next round plans anew.
        let _ = state.apply(index, &Proposal { at: Timestamp(0), by: String::new(), asked: None, command });
    }
}

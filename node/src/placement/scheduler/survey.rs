//! The rules that hold, and what speaks against a node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{Facts, NodeFacts, Standing};
use crate::{
    id::{Incarnation, ModuleName, NodeId},
    placement::{
        spec::{Effective, Kind, Pin, StateClass},
        state::{Hosting, Part},
    },
};

/// Facts, with what follows from them alone.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    pub(super) facts: &'a Facts<'a>,
    /// Of each module that some program has.
    pub(super) rules: BTreeMap<&'a ModuleName, Effective>,
    /// Both ways.
    apart: BTreeMap<&'a ModuleName, BTreeSet<&'a ModuleName>>,
    /// What must be on each host of a module: what it says, and between exclusive modules also what the other says.
    companions: BTreeMap<&'a ModuleName, BTreeSet<&'a ModuleName>>,
    places: BTreeMap<&'a ModuleName, Place<'a>>,
    /// Modules that some other one must share its nodes with.
    wanted: BTreeMap<&'a ModuleName, BTreeSet<&'a ModuleName>>,
}

/// Where an exclusive part is, as far as a decision about its place goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// Nobody hosts it.
    Nowhere,
    /// There, or on its way there, and it can be moved.
    At(&'a NodeId),
    /// There, and nothing can be done about it now.
    Fixed(&'a NodeId),
    /// It is still replicated, on these.
    Among(&'a BTreeSet<NodeId>),
}

/// What speaks against a node as the host of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle<'a> {
    Unknown,
    NoSuchModule,
    Pinned(&'a Pin),
    Label { label: &'a str, wanted: &'a str, has: Option<&'a str> },
    Left,
    Unfit(&'a str),
    Silent,
    Draining,
    Failed,
    Cordoned,
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("it is not a node of this cluster"),
            Self::NoSuchModule => f.write_str("its program has no such module"),
            Self::Pinned(pin) => write!(f, "the module is pinned to {} ({})", pin.node, pin.reason),
            Self::Label { label, wanted, has: Some(has) } => write!(f, "its label {label} is {has}, not {wanted}"),
            Self::Label { label, wanted, has: None } => {
                write!(f, "it has no label {label}, and {label} = {wanted} is required")
            }
            Self::Left => f.write_str("it has left"),
            Self::Unfit(problem) => f.write_str(problem),
            Self::Silent => f.write_str("it does not answer"),
            Self::Draining => f.write_str("it is draining"),
            Self::Failed => f.write_str("the module failed to start there lately"),
            Self::Cordoned => f.write_str("it is cordoned"),
        }
    }
}

impl<'a> Survey<'a> {
    pub(super) fn of(facts: &'a Facts<'a>) -> Self {
        let rules: BTreeMap<&ModuleName, Effective> = facts
            .declared
            .iter()
            .map(|(module, declared)| (module, facts.spec.effective(module, declared, facts.now)))
            .collect();
        let mut apart: BTreeMap<&ModuleName, BTreeSet<&ModuleName>> = BTreeMap::new();
        for (module, effective) in &rules {
            for other in &effective.apart {
                // The name as the facts own it, and only if there is such a module.
                let Some((other, _)) = facts.declared.get_key_value(other) else { continue };
                apart.entry(module).or_default().insert(other);
                apart.entry(other).or_default().insert(module);
            }
        }
        let mut companions: BTreeMap<&ModuleName, BTreeSet<&ModuleName>> = BTreeMap::new();
        let mut wanted: BTreeMap<&ModuleName, BTreeSet<&ModuleName>> = BTreeMap::new();
        let exclusive = |module: &ModuleName| rules.get(module).is_some_and(|rules| rules.kind == Kind::Exclusive);
        for (module, effective) in &rules {
            for other in &effective.with {
                let Some((other, _)) = facts.declared.get_key_value(other) else { continue };
                companions.entry(module).or_default().insert(other);
                wanted.entry(other).or_default().insert(module);
                if exclusive(module) && exclusive(other) {
                    companions.entry(other).or_default().insert(module);
                }
            }
        }
        let mut survey = Self { facts, rules, apart, companions, wanted, places: BTreeMap::new() };
        survey.places = facts.parts.iter().map(|(module, part)| (module, survey.place_of(module, part))).collect();
        survey
    }

    pub(super) fn exclusive(&self, module: &ModuleName) -> bool {
        self.rules.get(module).is_some_and(|rules| rules.kind == Kind::Exclusive)
    }

    pub(super) fn state(&self, module: &ModuleName) -> StateClass {
        self.facts.declared.get(module).map(|declared| declared.state).unwrap_or_default()
    }

    pub(super) fn apart(&self, module: &ModuleName) -> impl Iterator<Item = &'a ModuleName> + '_ {
        self.apart.get(module).into_iter().flatten().copied()
    }

    /// Whether it must keep away from other modules, or they from it.
    pub(super) fn keeps_apart(&self, module: &ModuleName) -> bool {
        self.apart.contains_key(module)
    }

    /// The modules that must be on each of its hosts.
    pub(super) fn companions(&self, module: &ModuleName) -> impl Iterator<Item = &'a ModuleName> + '_ {
        self.companions.get(module).into_iter().flatten().copied()
    }

    /// The modules that must have it on each of their hosts.
    pub(super) fn wanted_by(&self, module: &ModuleName) -> impl Iterator<Item = &'a ModuleName> + '_ {
        self.wanted.get(module).into_iter().flatten().copied()
    }

    /// Whether its place has to do with that of another module.
    pub(super) fn is_tied(&self, module: &ModuleName) -> bool {
        self.companions.contains_key(module) || self.wanted.contains_key(module)
    }

    pub(super) fn part(&self, module: &ModuleName) -> Option<&'a Part> {
        self.facts.parts.get(module)
    }

    /// What speaks against a node, whatever else is where; `present` for one that has the module already.
    pub(super) fn obstacle(&self, module: &ModuleName, node: &NodeId, present: bool) -> Option<Obstacle<'_>> {
        let Some(facts) = self.facts.nodes.get(node) else { return Some(Obstacle::Unknown) };
        let standing = match facts.standing {
            Standing::Ready => None,
            Standing::Draining => Some(Obstacle::Draining),
            Standing::Silent => Some(Obstacle::Silent),
            Standing::Left => Some(Obstacle::Left),
        };
        let failed = facts.failed.contains(module).then_some(Obstacle::Failed);
        let cordoned = (facts.cordoned && !present).then_some(Obstacle::Cordoned);
        let unfit = facts
            .unfit
            .get(module)
            .filter(|_| !(present && self.keeps(module, node)))
            .map(|problem| Obstacle::Unfit(problem));
        self.rule_against(module, node, facts).or(standing).or(failed).or(unfit).or(cordoned)
    }

    /// Whether what a node has of a module is of its present process: a process that has replaced it starts anew.
    fn keeps(&self, module: &ModuleName, node: &NodeId) -> bool {
        match self.part(module).map(|part| &part.hosting) {
            Some(Hosting::Exclusive { owner, .. }) => owner.node == *node && self.facts.runs(owner),
            Some(Hosting::Replicated { .. }) | None => true,
        }
    }

    /// What speaks against a node as things are.
    pub(super) fn obstacle_now(&self, module: &ModuleName, node: &NodeId) -> Option<Obstacle<'_>> {
        self.obstacle(module, node, self.is_present(module, node))
    }

    /// Which of the module's own rules speaks against a node, however that node is doing.
    fn rule_against(&self, module: &ModuleName, node: &NodeId, facts: &'a NodeFacts) -> Option<Obstacle<'_>> {
        if !facts.modules.contains(module) {
            return Some(Obstacle::NoSuchModule);
        }
        let rules = self.rules.get(module)?;
        if let Some(pin) = rules.pin.as_ref().filter(|pin| pin.node != *node) {
            return Some(Obstacle::Pinned(pin));
        }
        missing_label(&rules.require, &facts.labels)
    }

    /// Whether a node runs another version than the one that came last.
    pub(super) fn is_outdated(&self, node: &NodeId) -> bool {
        self.facts.nodes.get(node).is_some_and(|facts| !facts.newest)
    }

    pub(super) fn failed(&self, module: &ModuleName, node: &NodeId) -> bool {
        self.facts.nodes.get(node).is_some_and(|facts| facts.failed.contains(module))
    }

    /// Whether a node that does not answer may still serve a replicated module, and may do so once it is heard again.
    pub(super) fn may_come_back(&self, module: &ModuleName, node: &NodeId) -> bool {
        let Some(facts) = self.facts.nodes.get(node) else { return false };
        let incarnation = Incarnation { node: node.clone(), generation: facts.generation };
        facts.standing == Standing::Silent
            && !self.facts.has_ended(&incarnation)
            && self.rule_against(module, node, facts).is_none()
    }

    /// Whether a move that is under way may go on.
    pub(super) fn target_is_good(&self, module: &ModuleName, to: &Incarnation) -> bool {
        let in_force = self.facts.nodes.get(&to.node).is_some_and(|node| node.generation == to.generation);
        in_force && self.obstacle(module, &to.node, false).is_none()
    }

    pub(super) fn place(&self, module: &ModuleName) -> Place<'a> {
        self.places.get(module).copied().unwrap_or(Place::Nowhere)
    }

    /// Who has handed a part over and has its state still, where the new owner comes to nothing. Whatever else speaks
    /// against that node: it has to give the state away before it goes.
    pub(super) fn keeper(&self, module: &ModuleName, part: &'a Part) -> Option<&'a Incarnation> {
        let Hosting::Exclusive { owner, active: false, seal: Some(seal), .. } = &part.hosting else { return None };
        let failed = self.failed(module, &owner.node);
        let serves = self.facts.runs(owner) && !failed;
        let lost = !serves && (failed || self.facts.has_ended(owner));
        (lost && seal.from != *owner && self.facts.runs(&seal.from)).then_some(&seal.from)
    }

    fn place_of(&self, module: &ModuleName, part: &'a Part) -> Place<'a> {
        let (owner, active, moving) = match &part.hosting {
            Hosting::Exclusive { owner, active, moving, .. } => (owner, *active, moving.as_ref()),
            Hosting::Replicated { hosts } => return Place::Among(hosts),
        };
        if let Some(keeper) = self.keeper(module, part) {
            return Place::At(&keeper.node);
        }
        let moving = moving.filter(|moving| self.target_is_good(module, &moving.to));
        if self.facts.runs(owner) {
            // State that was never there is not lost.
            let settled_state =
                self.state(module) == StateClass::Fixed && (active || !self.failed(module, &owner.node));
            return match (moving, settled_state) {
                (Some(moving), true) => Place::Fixed(&moving.to.node),
                (Some(moving), false) => Place::At(&moving.to.node),
                (None, true) => Place::Fixed(&owner.node),
                (None, false) => Place::At(&owner.node),
            };
        }
        if !self.facts.has_ended(owner) {
            return Place::Fixed(&owner.node);
        }
        if let Some(moving) = moving.filter(|moving| moving.prepared) {
            return Place::At(&moving.to.node);
        }
        let again = self.facts.nodes.get(&owner.node).is_some_and(|node| node.generation > owner.generation);
        if again { Place::At(&owner.node) } else { Place::Nowhere }
    }

    /// The hosts of a module as it is now or will be once its move has ended.
    pub(super) fn present(&self, module: &ModuleName) -> BTreeSet<&'a NodeId> {
        match self.place(module) {
            Place::Nowhere => BTreeSet::new(),
            Place::At(node) | Place::Fixed(node) => BTreeSet::from([node]),
            Place::Among(hosts) => hosts.iter().collect(),
        }
    }

    pub(super) fn is_present(&self, module: &ModuleName, node: &NodeId) -> bool {
        match self.place(module) {
            Place::Nowhere => false,
            Place::At(at) | Place::Fixed(at) => at == node,
            Place::Among(hosts) => hosts.contains(node),
        }
    }

    /// Nodes that may host a module, whatever else is where.
    pub(super) fn candidates(&self, module: &ModuleName) -> BTreeSet<&'a NodeId> {
        let may = |node: &&NodeId| self.obstacle_now(module, node).is_none();
        self.facts.nodes.keys().filter(may).collect()
    }
}

/// The first label that is required and is not there.
pub(crate) fn missing_label<'l>(
    require: &'l BTreeMap<String, String>,
    labels: &'l BTreeMap<String, String>,
) -> Option<Obstacle<'l>> {
    let missing = require.iter().find(|(label, wanted)| labels.get(*label) != Some(*wanted));
    missing.map(|(label, wanted)| Obstacle::Label { label, wanted, has: labels.get(label).map(String::as_str) })
}

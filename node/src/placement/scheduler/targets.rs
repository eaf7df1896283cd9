//! Where each part belongs.

use std::collections::{BTreeMap, BTreeSet};

use super::{exclusive, replicated, survey::Survey};
use crate::{
    id::{ModuleName, NodeId},
    placement::spec::{Count, Kind},
};

/// Where each part belongs; while it is being found, where it belongs or is.
#[derive(Debug)]
pub(super) struct Targets<'a> {
    at: BTreeMap<&'a ModuleName, BTreeSet<&'a NodeId>>,
    decided: BTreeSet<&'a ModuleName>,
    /// Exclusive modules for which no node is right. They belong where they are, if anywhere.
    homeless: BTreeSet<&'a ModuleName>,
    /// How many parts each node has.
    load: BTreeMap<&'a NodeId, usize>,
    /// The only node that can host a module, of those that keep apart from others.
    only: BTreeMap<&'a ModuleName, &'a NodeId>,
}

impl<'a> Targets<'a> {
    pub(super) fn find(survey: &Survey<'a>) -> Self {
        let mut targets = Self {
            at: BTreeMap::new(),
            decided: BTreeSet::new(),
            homeless: BTreeSet::new(),
            load: survey.facts.nodes.keys().map(|node| (node, 0)).collect(),
            only: BTreeMap::new(),
        };
        for (module, rules) in &survey.rules {
            let nodes = match rules.kind {
                // It will be on each of them, so the others had better know.
                Kind::Replicated(Count::Every) => survey.candidates(module),
                _ => survey.present(module),
            };
            targets.count(module, nodes);
            if survey.keeps_apart(module) {
                let mut candidates = survey.candidates(module).into_iter();
                if let (Some(only), None) = (candidates.next(), candidates.next()) {
                    targets.only.insert(module, only);
                }
            }
        }
        exclusive::decide(survey, &mut targets);
        replicated::decide(survey, &mut targets);
        targets
    }

    fn count(&mut self, module: &'a ModuleName, nodes: BTreeSet<&'a NodeId>) {
        for node in &nodes {
            *self.load.entry(*node).or_default() += 1;
        }
        for node in self.at.insert(module, nodes).into_iter().flatten() {
            if let Some(load) = self.load.get_mut(node) {
                *load = load.saturating_sub(1);
            }
        }
    }

    pub(super) fn decide(&mut self, module: &'a ModuleName, nodes: BTreeSet<&'a NodeId>) {
        self.count(module, nodes);
        self.decided.insert(module);
    }

    /// Takes a decision back, in favour of where it is.
    pub(super) fn reconsider(&mut self, survey: &Survey<'a>, module: &'a ModuleName) {
        self.count(module, survey.present(module));
        self.decided.remove(module);
    }

    /// No node is right for it: it stays where it is.
    pub(super) fn strand(&mut self, survey: &Survey<'a>, module: &'a ModuleName) {
        self.decide(module, survey.present(module));
        self.homeless.insert(module);
    }

    pub(super) fn is_homeless(&self, module: &ModuleName) -> bool {
        self.homeless.contains(module)
    }

    pub(super) fn of(&self, module: &ModuleName) -> impl Iterator<Item = &'a NodeId> + '_ {
        self.at.get(module).into_iter().flatten().copied()
    }

    pub(super) fn has(&self, module: &ModuleName, node: &NodeId) -> bool {
        self.at.get(module).is_some_and(|nodes| nodes.contains(node))
    }

    pub(super) fn load(&self, node: &NodeId) -> usize {
        self.load.get(node).copied().unwrap_or_default()
    }

    /// Modules that belong on a node and that this one keeps apart from.
    pub(super) fn in_the_way<'s>(
        &'s self,
        survey: &'s Survey<'a>,
        module: &ModuleName,
        node: &'s NodeId,
    ) -> impl Iterator<Item = &'a ModuleName> + 's {
        survey.apart(module).filter(move |other| self.decided.contains(other) && self.has(other, node))
    }

    fn can_only_be_on(&self, module: &ModuleName, node: &NodeId) -> bool {
        self.only.get(module).is_some_and(|only| *only == node)
    }

    /// Whether a node is the only one for a module that this one keeps apart from.
    pub(super) fn would_strand(&self, survey: &Survey<'a>, module: &ModuleName, node: &NodeId) -> bool {
        survey.apart(module).any(|other| self.can_only_be_on(other, node))
    }

    /// How many modules that are not decided yet would have to give way, or could not.
    pub(super) fn disturbs(&self, survey: &Survey<'a>, module: &ModuleName, node: &NodeId) -> Disturbs {
        let undecided = survey.apart(module).filter(|other| !self.decided.contains(other));
        undecided.fold(Disturbs::default(), |disturbs, other| Disturbs {
            strands: disturbs.strands + usize::from(self.can_only_be_on(other, node)),
            moves: disturbs.moves + usize::from(self.has(other, node)),
        })
    }

    /// Why a module does not belong on a node, if something but the load speaks against it.
    pub(super) fn objection(&self, survey: &Survey<'a>, module: &ModuleName, node: &NodeId) -> Option<String> {
        if let Some(obstacle) = survey.obstacle_now(module, node) {
            return Some(obstacle.to_string());
        }
        if let Some(other) = self.in_the_way(survey, module, node).next() {
            return Some(format!("{other} is on it, and the two are kept apart"));
        }
        let missing = survey.companions(module).find(|other| !self.has(other, node))?;
        let others: Vec<&str> = self.of(missing).map(NodeId::as_str).collect();
        let obstacle = survey.obstacle_now(missing, node);
        Some(match (obstacle, others.as_slice()) {
            (Some(obstacle), []) => format!("it must have {missing} as well, for which {obstacle}"),
            (None, []) => format!("it must have {missing} as well, which is nowhere"),
            (_, others) => format!("it must have {missing} as well, which is on {}", others.join(", ")),
        })
    }
}

/// What a choice would do to modules that are decided later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Disturbs {
    /// So many could be nowhere else.
    pub(super) strands: usize,
    /// So many would have to be moved.
    pub(super) moves: usize,
}

/// Breaks ties, for each module in another way, and the same way each time: FNV-1a, with its bits mixed.
pub(super) fn tie(module: &ModuleName, node: &NodeId) -> u64 {
    let bytes = module.as_str().bytes().chain([0]).chain(node.as_str().bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

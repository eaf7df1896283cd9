//! Where the copies of replicated modules belong.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    survey::{Obstacle, Survey},
    targets::{Targets, tie},
};
use crate::{
    id::{ModuleName, NodeId},
    placement::spec::{Count, Kind},
};

pub(super) fn decide<'a>(survey: &Survey<'a>, targets: &mut Targets<'a>) {
    let heights = heights(survey);
    let mut order: Vec<_> = survey
        .rules
        .iter()
        .filter_map(|(module, rules)| match rules.kind {
            Kind::Exclusive => None,
            Kind::Replicated(count) => Some((*module, count)),
        })
        .map(|(module, count)| {
            let may = survey.candidates(module).len();
            // Who has the least choice comes first; a module that can be everywhere takes what is left.
            let slack = match count {
                Count::Every => usize::MAX,
                Count::Exactly(count) => may.saturating_sub(usize::from(count)),
            };
            (heights.get(module).copied().unwrap_or_default(), slack, module, count)
        })
        .collect();
    order.sort_unstable_by_key(|(height, slack, module, _)| (*height, *slack, *module));
    for (_, _, module, count) in order {
        let hosts = hosts(survey, targets, module, count);
        targets.decide(module, hosts);
    }
}

/// How many replicated modules stand below each in the longest chain of those that must be where it is. Chains that are
/// longer than a few, or circles, are cut off.
fn heights<'a>(survey: &Survey<'a>) -> BTreeMap<&'a ModuleName, usize> {
    const CUT: usize = 16;
    let mut heights: BTreeMap<&ModuleName, usize> = BTreeMap::new();
    for _ in 0..CUT {
        let mut changed = false;
        for module in survey.rules.keys().filter(|module| !survey.exclusive(module)) {
            let below = survey.companions(module).filter(|other| !survey.exclusive(other));
            let height = below.map(|other| 1 + heights.get(other).copied().unwrap_or_default()).max();
            if let Some(height) = height {
                changed |= heights.insert(module, height.min(CUT)) != Some(height.min(CUT));
            }
        }
        if !changed {
            break;
        }
    }
    heights
}

fn hosts<'a>(survey: &Survey<'a>, targets: &Targets<'a>, module: &'a ModuleName, count: Count) -> BTreeSet<&'a NodeId> {
    let hosts = survey.present(module);
    let present = |node: &NodeId| hosts.contains(node);
    // A host is not given up because nothing is heard of it for a while, nor for a failure where nobody does better.
    let may = |node: &NodeId| match survey.obstacle(module, node, present(node)) {
        None => true,
        Some(Obstacle::Silent) => present(node) && survey.may_come_back(module, node),
        Some(Obstacle::Failed) => present(node),
        Some(_) => false,
    };
    let candidates: Vec<&NodeId> = survey
        .facts
        .nodes
        .keys()
        .filter(|node| may(node))
        .filter(|node| survey.companions(module).all(|other| targets.has(other, node)))
        .filter(|node| targets.in_the_way(survey, module, node).next().is_none())
        .collect();
    let Count::Exactly(count) = count else { return candidates.into_iter().collect() };

    // Exclusive modules that must have it beside them were placed before.
    let mut wanted = BTreeSet::new();
    for other in survey.wanted_by(module).filter(|other| survey.exclusive(other)) {
        wanted.extend(targets.of(other));
    }
    let spread = survey.rules.get(module).and_then(|rules| rules.spread.as_deref());
    let value = |node: &NodeId| {
        let labels = survey.facts.nodes.get(node).map(|facts| &facts.labels);
        spread.and_then(|label| labels.and_then(|labels| labels.get(label))).map(String::as_str)
    };
    let mut left: Vec<(_, &NodeId)> = candidates
        .into_iter()
        .map(|node| {
            let disturbs = targets.disturbs(survey, module, node);
            let silent = survey.obstacle(module, node, true) == Some(Obstacle::Silent);
            let first = (!wanted.contains(node), survey.failed(module, node), disturbs.strands);
            let then = (
                !present(node),
                silent,
                survey.is_outdated(node),
                disturbs.moves,
                targets.load(node),
                tie(module, node),
            );
            ((first, then), node)
        })
        .collect();
    left.sort_unstable();
    if spread.is_none() {
        return left.into_iter().map(|(_, node)| node).take(usize::from(count)).collect();
    }
    let mut chosen = BTreeSet::new();
    let mut so_far: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    while chosen.len() < usize::from(count) {
        let best = left.iter().enumerate().min_by_key(|(_, ((first, then), node))| {
            let there = so_far.get(&value(node)).copied().unwrap_or_default();
            (*first, there, *then)
        });
        let Some((index, _)) = best else { break };
        let (_, node) = left.remove(index);
        *so_far.entry(value(node)).or_default() += 1;
        chosen.insert(node);
    }
    chosen
}

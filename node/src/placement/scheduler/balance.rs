//! Moves that only even out the load.
//!
//! Each makes the fullest node that has something to give, and the emptiest that can take it, differ by two parts less;
//! none is made between nodes that differ by less than two. So the sum of the squares of the loads falls with each, and
//! they come to an end.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    Plan, Planned, Standing,
    survey::Survey,
    targets::{Targets, tie},
};
use crate::{
    id::{ModuleName, NodeId},
    placement::state::{Hosting, Part, PartChange},
};

/// What a node that has more than another gives away.
const WORTH_IT: usize = 2;

pub(super) fn balance(survey: &Survey<'_>, targets: &Targets<'_>, plan: &mut Plan) {
    let ready = survey.facts.nodes.iter().filter(|(_, node)| node.standing == Standing::Ready && !node.cordoned);
    let mut load: BTreeMap<&NodeId, usize> = ready.map(|(node, _)| (node, targets.load(node))).collect();
    let mut movable: BTreeMap<&NodeId, Vec<&ModuleName>> = BTreeMap::new();
    for module in survey.rules.keys() {
        if let Some(owner) = movable_from(survey, targets, module) {
            movable.entry(owner).or_default().push(module);
        }
    }
    // Where two parts have moved to is not among the targets: one that keeps apart from others moves alone.
    let mut apart_moved = false;
    for _ in under_way(survey, plan)..survey.facts.limits.max_rebalancing {
        let Some((module, from, to)) = best(survey, targets, &load, &movable, apart_moved) else { break };
        let Some(incarnation) = survey.facts.incarnation(to) else { break };
        apart_moved |= survey.keeps_apart(module);
        let reason = format!("balance: {from} has {} parts, {to} has {}", load[from], load[to]);
        *load.entry(from).or_default() -= 1;
        *load.entry(to).or_default() += 1;
        if let Some(modules) = movable.get_mut(from) {
            modules.retain(|other| *other != module);
        }
        let expect = survey.part(module).map_or(0, |part| part.version);
        let change = PartChange::BeginMove { to: incarnation, chosen: false };
        plan.changes.push(Planned { module: module.clone(), expect, change, reason });
    }
}

/// The node that a part could be moved from, if nothing but its load counts.
fn movable_from<'a>(survey: &Survey<'a>, targets: &Targets<'_>, module: &ModuleName) -> Option<&'a NodeId> {
    let part = survey.part(module)?;
    let Part {
        hosting: Hosting::Exclusive { owner, active: true, moving: None, seal: None, .. }, chosen: false, ..
    } = part
    else {
        return None;
    };
    let rules = survey.rules.get(module)?;
    let free = !survey.state(module).is_some() && rules.pin.is_none() && !survey.is_tied(module);
    let settled = survey.exclusive(module) && targets.has(module, &owner.node) && !targets.is_homeless(module);
    (free && settled && survey.facts.runs(owner)).then_some(&owner.node)
}

/// Moves that have begun or are about to, without those that are given up.
fn under_way(survey: &Survey<'_>, plan: &Plan) -> usize {
    let moving = survey.facts.parts.values().filter(|part| part.moving().is_some()).count();
    let begun = plan.changes.iter().filter(|planned| matches!(planned.change, PartChange::BeginMove { .. })).count();
    moving + begun
}

/// The best move: from the fullest node that has something for another, to the emptiest that may have it.
fn best<'m, 'n>(
    survey: &Survey<'_>,
    targets: &Targets<'_>,
    load: &BTreeMap<&'n NodeId, usize>,
    movable: &BTreeMap<&'n NodeId, Vec<&'m ModuleName>>,
    apart_moved: bool,
) -> Option<(&'m ModuleName, &'n NodeId, &'n NodeId)> {
    let mut nodes: Vec<(usize, &NodeId)> = load.iter().map(|(node, load)| (*load, *node)).collect();
    nodes.sort_unstable_by_key(|(load, node)| (*load, *node));
    let may = |module: &ModuleName, node: &NodeId| {
        survey.obstacle(module, node, false).is_none()
            && !(survey.keeps_apart(module)
                && (apart_moved || targets.in_the_way(survey, module, node).next().is_some()))
            && !targets.would_strand(survey, module, node)
    };
    let mut full = nodes.clone();
    full.sort_unstable_by_key(|(load, node)| (Reverse(*load), *node));
    for (most, from) in full {
        for (least, to) in nodes.iter().take_while(|(least, _)| least + WORTH_IT <= most) {
            _ = least;
            let modules = movable.get(from).into_iter().flatten().filter(|module| may(module, to));
            if let Some(module) = modules.min_by_key(|module| (tie(module, to), **module)) {
                return Some((module, from, to));
            }
        }
    }
    None
}

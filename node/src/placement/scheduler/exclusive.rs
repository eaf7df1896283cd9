//! Where exclusive parts belong. Those that must share a node are placed as one.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    survey::{Place, Survey},
    targets::{Disturbs, Targets, tie},
};
use crate::id::{ModuleName, NodeId};

/// How long a chain of modules may be that make room for one another.
const DEPTH: usize = 3;
/// How often a plan may try to make room. Which modules can be kept apart is a hard puzzle; this is not a solver.
const ATTEMPTS: usize = 2000;

/// Modules that must share a node.
struct Group<'a> {
    members: Vec<&'a ModuleName>,
    /// Nodes that may host them all, whatever else is where.
    candidates: BTreeSet<&'a NodeId>,
    /// Where one of them is that can't be moved.
    fixed: Option<&'a NodeId>,
}

/// What makes one node better than another, the most important first.
type Rank<'a> = (usize, Reverse<usize>, Reverse<usize>, (bool, usize), usize, u64, &'a NodeId);

pub(super) fn decide<'a>(survey: &Survey<'a>, targets: &mut Targets<'a>) {
    let groups = groups(survey);
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_cached_key(|index| {
        let group = &groups[*index];
        let settled = survey.present(group.members[0]).into_iter().any(|node| {
            group.candidates.contains(node)
                && group.members.iter().all(|member| survey.is_present(member, node))
                && targets.disturbs(survey, group.members[0], node) == Disturbs::default()
        });
        (group.fixed.is_none(), !settled, group.candidates.len(), group.members[0])
    });
    let of =
        |(index, group): (usize, &Group<'a>)| group.members.iter().map(|member| (*member, index)).collect::<Vec<_>>();
    let group_of = groups.iter().enumerate().flat_map(of).collect();
    let homes = vec![None; groups.len()];
    let mut search = Search { survey, homes, groups, group_of, targets, attempts: ATTEMPTS };
    for group in order {
        if let Some(node) = search.groups[group].fixed {
            search.gather(group, node);
        } else if !search.settle(group, DEPTH) {
            search.strand(group);
        }
    }
}

fn groups<'a>(survey: &Survey<'a>) -> Vec<Group<'a>> {
    let mut groups = Vec::new();
    let mut seen = BTreeSet::new();
    for module in survey.rules.keys().filter(|module| survey.exclusive(module)) {
        let mut members = Vec::new();
        let mut next = vec![*module];
        while let Some(member) = next.pop() {
            if seen.insert(member) {
                members.push(member);
                next.extend(survey.companions(member).filter(|other| survey.exclusive(other)));
            }
        }
        if !members.is_empty() {
            members.sort_unstable();
            groups.push(group(survey, members));
        }
    }
    groups
}

fn group<'a>(survey: &Survey<'a>, members: Vec<&'a ModuleName>) -> Group<'a> {
    let fixed = members.iter().find_map(|member| match survey.place(member) {
        Place::Fixed(node) => Some(node),
        Place::Nowhere | Place::At(_) | Place::Among(_) => None,
    });
    let mut needed: BTreeSet<&ModuleName> = members.iter().copied().collect();
    needed.extend(members.iter().flat_map(|member| survey.companions(member)));
    let may = |node: &&NodeId| needed.iter().all(|module| survey.obstacle_now(module, node).is_none());
    let candidates = survey.facts.nodes.keys().filter(may).collect();
    Group { members, candidates, fixed }
}

struct Search<'a, 's> {
    survey: &'s Survey<'a>,
    groups: Vec<Group<'a>>,
    group_of: BTreeMap<&'a ModuleName, usize>,
    homes: Vec<Option<&'a NodeId>>,
    targets: &'s mut Targets<'a>,
    attempts: usize,
}

impl<'a> Search<'a, '_> {
    /// Puts a group on its best node, if need be by making room for it.
    fn settle(&mut self, group: usize, depth: usize) -> bool {
        let mut nodes: Vec<&'a NodeId> = self.groups[group].candidates.iter().copied().collect();
        nodes.sort_by_cached_key(|node| self.rank(group, node));
        let free = nodes.iter().find(|node| self.in_the_way(group, node).is_empty());
        if let Some(node) = free {
            self.put(group, Some(node));
            return true;
        }
        if depth == 0 {
            return false;
        }
        nodes.into_iter().any(|node| self.make_room(group, node, depth))
    }

    /// Puts a group on a node, and what it keeps apart from elsewhere. Where that can't be, nothing is changed.
    fn make_room(&mut self, group: usize, node: &'a NodeId, depth: usize) -> bool {
        let others = self.in_the_way(group, node);
        let immovable = |other: &usize| self.groups[*other].fixed.is_some() || self.homes[*other].is_none();
        if self.attempts == 0 || others.iter().any(immovable) {
            return false;
        }
        self.attempts -= 1;
        let before: BTreeMap<usize, Option<&'a NodeId>> =
            self.homes.iter().copied().enumerate().filter(|(_, home)| home.is_some()).collect();
        for other in &others {
            self.put(*other, None);
        }
        self.put(group, Some(node));
        if others.iter().all(|other| self.settle(*other, depth - 1)) {
            return true;
        }
        for index in 0..self.groups.len() {
            let home = before.get(&index).copied().flatten();
            if self.homes[index] != home {
                self.put(index, home);
            }
        }
        false
    }

    fn put(&mut self, group: usize, home: Option<&'a NodeId>) {
        self.homes[group] = home;
        for member in &self.groups[group].members {
            match home {
                Some(node) => self.targets.decide(member, BTreeSet::from([node])),
                None => self.targets.reconsider(self.survey, member),
            }
        }
    }

    /// Groups that are on a node already and keep apart from this one.
    fn in_the_way(&self, group: usize, node: &NodeId) -> BTreeSet<usize> {
        let members = self.groups[group].members.iter();
        members
            .flat_map(|member| self.targets.in_the_way(self.survey, member, node))
            .filter_map(|module| self.group_of.get(module).copied())
            .filter(|other| *other != group)
            .collect()
    }

    fn rank(&self, group: usize, node: &'a NodeId) -> Rank<'a> {
        let (survey, group) = (self.survey, &self.groups[group]);
        let mut disturbs = Disturbs::default();
        let mut kept = 0;
        let mut helpers = BTreeSet::new();
        for member in &group.members {
            let more = self.targets.disturbs(survey, member, node);
            disturbs.strands += more.strands;
            disturbs.moves += more.moves;
            if survey.is_present(member, node) {
                // Where an operator has moved one of them, the others follow.
                let chosen = survey.part(member).is_some_and(|part| part.is_chosen());
                kept += if chosen { 1 + group.members.len() } else { 1 };
            }
            let replicated = survey.companions(member).filter(|other| !survey.exclusive(other));
            helpers.extend(replicated.filter(|other| survey.is_present(other, node)));
        }
        let tie = tie(group.members[0], node);
        // What has to move at all moves where it need not move again.
        let moves = (survey.is_outdated(node), disturbs.moves);
        let load = self.targets.load(node);
        (disturbs.strands, Reverse(kept), Reverse(helpers.len()), moves, load, tie, node)
    }

    /// Brings the members of a group to the one that can't be moved, as far as they may be there.
    fn gather(&mut self, group: usize, node: &'a NodeId) {
        for index in 0..self.groups[group].members.len() {
            let member = self.groups[group].members[index];
            match self.survey.place(member) {
                Place::Fixed(there) => self.targets.decide(member, BTreeSet::from([there])),
                Place::At(_) | Place::Among(_) | Place::Nowhere => {
                    let obstacle = self.survey.obstacle_now(member, node);
                    let blocked = self.targets.in_the_way(self.survey, member, node).next().is_some();
                    if obstacle.is_none() && !blocked {
                        self.targets.decide(member, BTreeSet::from([node]));
                    } else {
                        self.targets.strand(self.survey, member);
                    }
                }
            }
        }
        self.homes[group] = Some(node);
    }

    fn strand(&mut self, group: usize) {
        for member in &self.groups[group].members {
            self.targets.strand(self.survey, member);
        }
    }
}

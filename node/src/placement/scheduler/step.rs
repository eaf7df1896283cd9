//! From where a part is to where it belongs: the next change of its record, and what stands against it.

use std::collections::BTreeSet;

use super::{Plan, Planned, Standing, Unmet, survey::Survey, targets::Targets};
use crate::{
    id::{Incarnation, ModuleName, NodeId},
    placement::{
        spec::{Count, Kind, StateClass},
        state::{Hosting, Move, Part, PartChange},
    },
};

/// How many nodes are named where a module can be nowhere.
const NAMED: usize = 20;

pub(super) fn steps(survey: &Survey<'_>, targets: &Targets<'_>) -> Plan {
    let mut plan = Plan::default();
    for (module, rules) in &survey.rules {
        let mut step = Step { survey, targets, module, plan: &mut plan };
        match rules.kind {
            Kind::Exclusive => step.exclusive(),
            Kind::Replicated(count) => step.replicated(count),
        }
    }
    for module in survey.facts.parts.keys().filter(|module| !survey.rules.contains_key(module)) {
        let reasons = vec!["no program in the cluster has this module any more; its record is kept".to_owned()];
        plan.misplaced.push(Unmet { module: module.clone(), reasons });
    }
    plan
}

/// One module's turn.
struct Step<'a, 's> {
    survey: &'s Survey<'a>,
    targets: &'s Targets<'a>,
    module: &'s ModuleName,
    plan: &'s mut Plan,
}

impl Step<'_, '_> {
    fn change(&mut self, change: PartChange, reason: impl Into<String>) {
        let expect = self.survey.part(self.module).map_or(0, |part| part.version);
        self.plan.changes.push(Planned { module: self.module.clone(), expect, change, reason: reason.into() });
    }

    fn unplaced(&mut self, reasons: Vec<String>) {
        self.plan.unplaced.push(Unmet { module: self.module.clone(), reasons });
    }

    fn misplaced(&mut self, reasons: Vec<String>) {
        self.plan.misplaced.push(Unmet { module: self.module.clone(), reasons });
    }

    fn objection(&self, node: &NodeId) -> Option<String> {
        self.targets.objection(self.survey, self.module, node)
    }

    /// Why it is not on any of the nodes where it does not belong.
    fn objections(&self) -> Vec<String> {
        let others: Vec<&NodeId> =
            self.survey.facts.nodes.keys().filter(|node| !self.targets.has(self.module, node)).collect();
        if others.is_empty() {
            return vec!["there is no other node".to_owned()];
        }
        let because = |node: &&NodeId| {
            let because = self.objection(node);
            let because = because.as_deref().unwrap_or("the modules that must be there as well can't all be");
            format!("{node}: {because}")
        };
        let mut reasons: Vec<String> = others.iter().take(NAMED).map(because).collect();
        if others.len() > NAMED {
            reasons.push(format!("and {} other nodes", others.len() - NAMED));
        }
        reasons
    }

    /// Where an exclusive part belongs, if a node is right for it.
    fn target(&self) -> Option<Incarnation> {
        let node = self.targets.of(self.module).next().filter(|_| !self.targets.is_homeless(self.module))?;
        self.survey.facts.incarnation(node)
    }

    fn exclusive(&mut self) {
        let Some(part) = self.survey.part(self.module) else {
            match self.target() {
                Some(to) => self.change(PartChange::Assign(to), "nobody hosts it yet"),
                None => self.unplaced(self.objections()),
            }
            return;
        };
        if let Some(keeper) = self.survey.keeper(self.module, part) {
            let reason = format!("{} does not serve it, and {} has the state still", part.hosts()[0], keeper.node);
            return self.change(PartChange::Assign(keeper.clone()), reason);
        }
        match &part.hosting {
            Hosting::Replicated { hosts } => self.narrow(part, hosts),
            Hosting::Exclusive { owner, moving, .. }
                if self.survey.facts.has_ended(owner) && !self.survey.facts.runs(owner) =>
            {
                self.take_over(owner, moving.as_ref());
            }
            Hosting::Exclusive { owner, moving, .. } if !self.survey.facts.runs(owner) => {
                self.wait_for(owner, moving.as_ref());
            }
            Hosting::Exclusive { moving: Some(moving), .. } => self.moving(moving),
            Hosting::Exclusive { owner, moving: None, .. } => self.at_rest(owner, part.is_settled()),
        }
    }

    /// The owner serves no more.
    fn take_over(&mut self, owner: &Incarnation, moving: Option<&Move>) {
        let Some(to) = self.target() else {
            let mut reasons = vec![format!("{} had it, and serves no more", owner.node)];
            reasons.extend(self.objections());
            return self.unplaced(reasons);
        };
        let reason = match moving {
            _ if to.node == owner.node => format!("{} has started again", owner.node),
            Some(moving) if moving.prepared && moving.to == to => {
                format!("{} serves no more, and {} is ready for it", owner.node, to.node)
            }
            _ => format!("{} serves no more", owner.node),
        };
        self.change(PartChange::Assign(to), reason);
    }

    /// The owner may still serve, and can't be asked.
    fn wait_for(&mut self, owner: &Incarnation, moving: Option<&Move>) {
        if let Some(moving) = moving
            && !self.survey.target_is_good(self.module, &moving.to)
        {
            let reason = self.no_good(moving);
            self.change(PartChange::AbortMove, reason);
        }
        let generation = self.survey.facts.nodes.get(&owner.node).map(|node| node.generation);
        let why = if generation == Some(owner.generation) { "does not answer" } else { "has started again" };
        self.unplaced(vec![format!("{} {why}; nobody else gets it before the lease of {owner} has ended", owner.node)]);
    }

    fn no_good(&self, moving: &Move) -> String {
        let to = &moving.to;
        if self.survey.facts.incarnation(&to.node).as_ref() != Some(to) {
            return format!("{} has started again", to.node);
        }
        match (self.objection(&to.node), self.targets.of(self.module).next()) {
            (Some(objection), _) => format!("not to {}: {objection}", to.node),
            (None, Some(node)) => format!("it belongs on {node} now"),
            (None, None) => format!("not to {}", to.node),
        }
    }

    /// The owner serves, and a move is under way.
    fn moving(&mut self, moving: &Move) {
        let good = self.survey.target_is_good(self.module, &moving.to);
        if !good || !self.targets.has(self.module, &moving.to.node) {
            let reason = self.no_good(moving);
            return self.change(PartChange::AbortMove, reason);
        }
        if let Some(objection) = self.objection(&moving.to.node) {
            self.misplaced(vec![format!("it is on its way to {}, but {objection}", moving.to.node)]);
        }
    }

    /// The owner serves, or is about to.
    fn at_rest(&mut self, owner: &Incarnation, settled: bool) {
        let objection = self.objection(&owner.node);
        let Some(to) = self.target() else {
            let objection = objection.unwrap_or_else(|| "its rules are not met".to_owned());
            let mut reasons = vec![format!("it is on {}, but {objection}", owner.node)];
            reasons.extend(self.objections());
            return self.misplaced(reasons);
        };
        let failed = self.survey.failed(self.module, &owner.node);
        let objection = match objection {
            Some(objection) => objection,
            None if to.node == owner.node => return,
            None => format!("it belongs on {}", to.node),
        };
        if to.node != owner.node {
            match (settled, failed) {
                (true, _) => {
                    self.change(PartChange::BeginMove { to, chosen: false }, format!("{}: {objection}", owner.node))
                }
                // It serves nothing, so that nothing is to be handed over.
                (false, true) => self.change(PartChange::Assign(to), format!("{}: {objection}", owner.node)),
                (false, false) => self.misplaced(vec![format!(
                    "it goes to {} as soon as {} has begun to serve it: {objection}",
                    to.node, owner.node
                )]),
            }
            return;
        }
        self.misplaced(if self.survey.state(self.module) == StateClass::Fixed {
            vec![format!(
                "it would have to leave {} ({objection}), but it declares state that can't travel; \
                 move it by hand with `outpost move --lose-state`",
                owner.node
            )]
        } else {
            vec![format!("it is on {}, but {objection}", owner.node)]
        });
    }

    /// It was replicated, and is exclusive now: first one host, then, when everybody knows, an owner.
    fn narrow(&mut self, part: &Part, hosts: &BTreeSet<NodeId>) {
        let Some(to) = self.target() else {
            let mut reasons = vec!["it should be exclusive, and no node is right for it".to_owned()];
            reasons.extend(self.objections());
            return self.misplaced(reasons);
        };
        if hosts.len() != 1 || !hosts.contains(&to.node) {
            let reason = "it is exclusive now; the other hosts end first";
            self.change(PartChange::Replicate([to.node].into()), reason);
        } else if self.survey.facts.applied_by_all >= part.version {
            self.change(PartChange::Assign(to), "it is exclusive now");
        } else {
            self.misplaced(vec!["it becomes exclusive as soon as every node knows its only host".to_owned()]);
        }
    }

    fn replicated(&mut self, count: Count) {
        let wanted: BTreeSet<NodeId> = self.targets.of(self.module).cloned().collect();
        let facts = self.survey.facts;
        match self.survey.part(self.module).map(|part| &part.hosting) {
            None if wanted.is_empty() => {}
            None => self.change(PartChange::Replicate(wanted.clone()), "nobody hosts it yet"),
            Some(Hosting::Exclusive { owner, moving: Some(moving), .. }) if facts.runs(owner) => {
                // One that goes on comes to its end first.
                if !self.survey.target_is_good(self.module, &moving.to) {
                    let reason = self.no_good(moving);
                    self.change(PartChange::AbortMove, reason);
                }
            }
            Some(Hosting::Exclusive { owner, .. }) => {
                let mut hosts = wanted.clone();
                if !facts.has_ended(owner) || facts.runs(owner) {
                    hosts.insert(owner.node.clone());
                }
                if !hosts.is_empty() {
                    self.change(PartChange::Replicate(hosts), "it is replicated now");
                }
            }
            Some(Hosting::Replicated { hosts }) => self.rehost(hosts, &wanted),
        }
        self.tell_shortage(count, &wanted);
    }

    /// First more hosts, then fewer: those that go are let go when the others serve.
    fn rehost(&mut self, hosts: &BTreeSet<NodeId>, wanted: &BTreeSet<NodeId>) {
        let facts = self.survey.facts;
        if wanted.is_empty() {
            return;
        }
        let gone = |node: &NodeId| match (facts.incarnation(node), facts.nodes.get(node)) {
            (Some(incarnation), Some(node)) => {
                matches!(node.standing, Standing::Silent | Standing::Left) && facts.has_ended(&incarnation)
            }
            _ => true,
        };
        let there: BTreeSet<NodeId> = hosts.iter().filter(|node| !gone(node)).cloned().collect();
        let names = |nodes: Vec<&NodeId>| nodes.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
        let lost: Vec<&NodeId> = hosts.difference(&there).collect();
        let more: Vec<&NodeId> = wanted.difference(hosts).collect();
        let fewer: Vec<&NodeId> = there.difference(wanted).collect();
        if !lost.is_empty() || !more.is_empty() {
            let reason = match (lost.is_empty(), more.is_empty()) {
                (true, _) => format!("{} more", names(more)),
                (false, true) => format!("{} serve no more", names(lost)),
                (false, false) => format!("{} in place of {}", names(more), names(lost)),
            };
            self.change(PartChange::Replicate(there.union(wanted).cloned().collect()), reason);
        } else if !fewer.is_empty() && self.all_serve(wanted) {
            let objection = fewer.first().and_then(|node| self.objection(node));
            let reason = match objection {
                Some(objection) => format!("without {}: {objection}", names(fewer)),
                None => format!("without {}", names(fewer)),
            };
            self.change(PartChange::Replicate(wanted.clone()), reason);
        }
    }

    /// Whether the hosts that can serve do.
    fn all_serve(&self, hosts: &BTreeSet<NodeId>) -> bool {
        let facts = hosts.iter().filter_map(|node| self.survey.facts.nodes.get(node));
        let (mut some, mut all) = (false, true);
        for node in facts {
            let serves = node.serves.contains(self.module);
            some |= serves;
            all &= serves || node.standing != Standing::Ready || node.failed.contains(self.module);
        }
        some && all
    }

    fn tell_shortage(&mut self, count: Count, wanted: &BTreeSet<NodeId>) {
        let well: Vec<&NodeId> = wanted.iter().filter(|node| self.objection(node).is_none()).collect();
        let enough = match count {
            Count::Every => !well.is_empty(),
            Count::Exactly(count) => well.len() >= usize::from(count),
        };
        let unwell: Vec<String> = wanted
            .iter()
            .filter_map(|node| self.objection(node).map(|objection| format!("{node}: {objection}")))
            .collect();
        if enough {
            if !unwell.is_empty() {
                self.misplaced(unwell);
            }
            return;
        }
        let mut reasons = vec![match count {
            Count::Every => "no node can host it".to_owned(),
            Count::Exactly(count) => format!("{} of {count} hosts", well.len()),
        }];
        reasons.extend(unwell);
        reasons.extend(self.objections());
        self.unplaced(reasons);
    }
}

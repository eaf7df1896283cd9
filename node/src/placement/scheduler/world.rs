//! A cluster without processes, for tests: a state, what is observed of its nodes, and what they would do.

use std::collections::{BTreeMap, BTreeSet};

use super::{Facts, Limits, Observed, Plan, Standing, plan};
use crate::{
    id::{Incarnation, ModuleName, NodeId, Timestamp},
    placement::{
        document::{Format, parse},
        spec::{Kind, Spec, StateClass},
        state::{Command, Declared, Hosting, Node, Part, PartChange, Proposal, Sealed, State},
    },
};

pub(super) fn module(name: &str) -> ModuleName {
    ModuleName::parse(name).unwrap()
}

pub(super) fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// A hand-over without state, or with state to a target that is ready or not: by turns.
fn handover(version: u64) -> PartChange {
    let sealed = Sealed { digest: format!("state {version}"), bytes: 1 };
    PartChange::Handover {
        sealed: (!version.is_multiple_of(3)).then_some(sealed),
        ready: version % 3 == 2,
        waited_us: 0,
    }
}

pub(super) fn declared(kind: Kind, stateful: bool) -> Declared {
    let state = if stateful { StateClass::Fixed } else { StateClass::None };
    Declared { kind, state, services: Vec::new(), interface: None }
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) state: State,
    pub(super) observed: BTreeMap<NodeId, Observed>,
    pub(super) ended: BTreeSet<Incarnation>,
    pub(super) limits: Limits,
    pub(super) now: Timestamp,
    /// Of the program that nodes run from now on.
    pub(super) program: BTreeMap<ModuleName, Declared>,
    /// Of the nodes that join next.
    pub(super) version: String,
    /// How far every node has applied the log, where that is not all of it.
    pub(super) applied: Option<u64>,
}

impl World {
    /// Nodes without labels, each with all of these exclusive modules.
    pub(super) fn new(nodes: &[&str], modules: &[&str]) -> Self {
        let program = modules.iter().map(|name| (module(name), declared(Kind::Exclusive, false))).collect();
        let mut world = Self {
            state: State::default(),
            observed: BTreeMap::new(),
            ended: BTreeSet::new(),
            limits: Limits { max_rebalancing: 2, max_moves: 32 },
            now: Timestamp(0),
            program,
            version: "1".to_owned(),
            applied: None,
        };
        for name in nodes {
            world.join(name, &[]);
        }
        world
    }

    pub(super) fn command(&mut self, command: Command) {
        let proposal = Proposal { at: self.now, by: "test".into(), asked: None, command };
        let index = self.state.index + 1;
        self.state.apply(index, &proposal).unwrap_or_else(|refused| panic!("{refused}: {proposal:?}"));
    }

    /// A node joins, or starts again.
    pub(super) fn join(&mut self, name: &str, labels: &[(&str, &str)]) {
        let name = node(name);
        let generation = self.state.nodes.get(&name).map_or(1, |node| node.generation + 1);
        let record = Node {
            generation,
            marker: String::new(),
            marker_since: 0,
            raft_id: self.state.nodes.get(&name).map_or(self.state.index + 1, |node| node.raft_id),
            persistent: true,
            lease_ms: 0,
            labels: labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect(),
            application: "shop".into(),
            version: self.version.clone(),
            version_since: 0,
            modules: self.program.clone(),
            cordoned: false,
            draining: false,
            left: false,
        };
        self.command(Command::Register { node: name.clone(), record, brings: BTreeMap::new(), compared: 0 });
        let observed = Observed {
            standing: Standing::Ready,
            serves: BTreeSet::new(),
            failed: BTreeSet::new(),
            unfit: BTreeMap::new(),
        };
        self.observed.insert(name, observed);
    }

    pub(super) fn stand(&mut self, name: &str, standing: Standing) {
        self.observed.get_mut(&node(name)).unwrap().standing = standing;
    }

    pub(super) fn fail(&mut self, name: &str, of: &str) {
        let observed = self.observed.get_mut(&node(name)).unwrap();
        observed.failed.insert(module(of));
        observed.serves.remove(&module(of));
    }

    pub(super) fn cordon(&mut self, name: &str, cordoned: bool) {
        self.command(Command::Cordon { node: node(name), cordoned });
    }

    pub(super) fn incarnation(&self, name: &str) -> Incarnation {
        Incarnation { node: node(name), generation: self.state.nodes[&node(name)].generation }
    }

    /// The lease of the node's incarnation in force has ended.
    pub(super) fn end(&mut self, name: &str) {
        let incarnation = self.incarnation(name);
        self.ended.insert(incarnation);
    }

    /// A node crashes, and its lease ends.
    pub(super) fn lose(&mut self, name: &str) {
        self.stand(name, Standing::Silent);
        self.observed.get_mut(&node(name)).unwrap().serves.clear();
        self.end(name);
    }

    pub(super) fn leave(&mut self, name: &str) {
        let incarnation = self.incarnation(name);
        self.command(Command::Leave(incarnation));
        self.observed.get_mut(&node(name)).unwrap().serves.clear();
    }

    pub(super) fn ask(&mut self, text: &str) {
        let document = parse(text, Format::Toml, "placement.toml").unwrap_or_else(|faults| panic!("{faults:?}"));
        self.ask_spec(document.spec);
    }

    pub(super) fn ask_spec(&mut self, spec: Spec) {
        let (expect, _) = self.state.spec();
        self.command(Command::SetSpec { expect, spec, why: String::new() });
    }

    pub(super) fn part(&mut self, name: &str, change: PartChange) {
        let module = module(name);
        let expect = self.state.parts.get(&module).map_or(0, |part| part.version);
        self.command(Command::Part { module, expect, change, why: String::new() });
    }

    pub(super) fn facts(&self) -> Facts<'_> {
        let applied = self.applied.unwrap_or(self.state.index);
        let (_, spec) = self.state.spec();
        Facts::new(&self.state, spec, self.now, &self.observed, self.ended.clone(), applied, self.limits)
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&self.facts())
    }

    /// The changes that are planned: "cart: assign to node-1#1".
    pub(super) fn changes(&self) -> Vec<String> {
        let text = |planned: &super::Planned| match &planned.change {
            PartChange::Replicate(hosts) => {
                let hosts: Vec<&str> = hosts.iter().map(NodeId::as_str).collect();
                format!("{}: replicate on {}", planned.module, hosts.join(", "))
            }
            change => format!("{}: {change}", planned.module),
        };
        self.plan().changes.iter().map(text).collect()
    }

    /// The log takes a plan's changes.
    pub(super) fn carry_out(&mut self, plan: &Plan) {
        for planned in &plan.changes {
            let (module, expect, change) = (planned.module.clone(), planned.expect, planned.change.clone());
            self.command(Command::Part { module, expect, change, why: planned.reason.clone() });
        }
    }

    fn runs(&self, incarnation: &Incarnation) -> bool {
        let facts = self.facts();
        facts.runs(incarnation)
    }

    /// The nodes do what they should: targets get ready, owners hand over, hosts serve. Says whether they did anything.
    pub(super) fn act(&mut self) -> bool {
        let mut acted = false;
        for (name, part) in self.state.parts.clone() {
            let failed = |node: &NodeId| self.observed[node].failed.contains(&name);
            let change = match &part.hosting {
                Hosting::Exclusive { owner, .. } if !part.is_settled() && self.runs(owner) && !failed(&owner.node) => {
                    Some(PartChange::Activated)
                }
                Hosting::Exclusive { owner, active: true, moving: Some(moving), .. } if self.runs(&moving.to) => {
                    if !moving.prepared && !failed(&moving.to.node) {
                        Some(PartChange::Prepared)
                    } else {
                        (moving.prepared && self.runs(owner)).then(|| handover(part.version))
                    }
                }
                _ => None,
            };
            if let Some(change) = change {
                self.part(name.as_str(), change);
                acted = true;
            }
            let hosts: BTreeSet<NodeId> = self.state.parts[&name].hosts().into_iter().cloned().collect();
            for (node, observed) in &mut self.observed {
                let up = matches!(observed.standing, Standing::Ready | Standing::Draining);
                let should = up && hosts.contains(node) && !observed.failed.contains(&name);
                let changed = match should {
                    true => observed.serves.insert(name.clone()),
                    false => observed.serves.remove(&name),
                };
                acted |= changed;
            }
        }
        acted
    }

    /// Plans, and lets the nodes act, until there is nothing to do. Returns all changes.
    pub(super) fn settle(&mut self) -> Vec<super::Planned> {
        let mut changes = Vec::new();
        let bound = 60 + 6 * self.state.parts.len().max(self.program.len());
        for _ in 0..bound {
            let plan = self.plan();
            self.carry_out(&plan);
            let acted = self.act();
            if plan.changes.is_empty() && !acted {
                return changes;
            }
            changes.extend(plan.changes);
        }
        panic!("it does not settle: {:#?}", self.plan());
    }

    /// Who hosts a module, for the eye: "node-1" or "node-1, node-2".
    pub(super) fn hosts(&self, name: &str) -> String {
        let part = self.state.parts.get(&module(name));
        let hosts: Vec<&str> = part.map(Part::hosts).unwrap_or_default().into_iter().map(NodeId::as_str).collect();
        hosts.join(", ")
    }

    pub(super) fn unplaced(&self, name: &str) -> Vec<String> {
        reasons(&self.plan().unplaced, name)
    }

    pub(super) fn misplaced(&self, name: &str) -> Vec<String> {
        reasons(&self.plan().misplaced, name)
    }
}

fn reasons(unmet: &[super::Unmet], name: &str) -> Vec<String> {
    unmet.iter().filter(|unmet| unmet.module.as_str() == name).flat_map(|unmet| unmet.reasons.clone()).collect()
}

//! Whether a document can be put in force, given the modules and the nodes there are now.

use std::collections::{BTreeMap, BTreeSet};

use super::{Document, Fault, MOST_FAULTS, in_order, meant};
use crate::{
    id::{ModuleName, NodeId},
    placement::{
        scheduler::{Facts, NodeFacts, Obstacle, Standing, missing_label},
        spec::{Count, Effective, Kind, KindName, Origin, Pin, Rules},
        state::Declared,
    },
};

/// How many nodes are named in a fault.
const NAMED: usize = 10;

/// Everything that speaks against a document, in the order of its lines. Of the facts, those about nodes, modules and
/// the time count; the spec in them, and where parts are, do not.
///
/// A node counts as a possible host while it is ready. A cordoned one does too: what it has it keeps, and a cordon must
/// not keep the placement from being put in force again.
pub(crate) fn check(document: &Document, facts: &Facts<'_>) -> Vec<Fault> {
    let mut check = Check { document, facts, faults: Vec::new(), of_default: BTreeMap::new() };
    check.rules("default", None, &document.spec.default);
    // To look for what was meant costs more than to find that there is no such thing.
    for (module, rules) in &document.spec.modules {
        if check.faults.len() > MOST_FAULTS {
            break;
        }
        check.rules(&format!("module.{module}"), Some(module), rules);
    }
    let effective: BTreeMap<&ModuleName, Effective> = facts
        .declared
        .iter()
        .map(|(module, declared)| (module, document.spec.effective(module, declared, facts.now)))
        .collect();
    for (module, rules) in &effective {
        check.effective(module, rules, &effective);
    }
    check.finish()
}

struct Check<'a> {
    document: &'a Document,
    facts: &'a Facts<'a>,
    faults: Vec<Fault>,
    /// What a rule of the default does to modules: the first one's problem, and how many have one.
    of_default: BTreeMap<&'static str, (String, usize)>,
}

impl Check<'_> {
    fn fault(&mut self, rule: &str, problem: impl Into<String>) {
        let Document { name, .. } = self.document;
        let (name, line) = (name.clone(), self.document.line(rule));
        self.faults.push(Fault { name, line, rule: rule.to_owned(), problem: problem.into() });
    }

    /// A fault of a rule of one module, where the rule was given.
    fn fault_of(&mut self, module: &ModuleName, rule: &'static str, from: Origin, problem: String) {
        match from {
            Origin::Module => self.fault(&format!("module.{module}.{rule}"), problem),
            Origin::Default => {
                let (_, modules) = self.of_default.entry(rule).or_insert((format!("module {module}: {problem}"), 0));
                *modules += 1;
            }
            // Nobody asked for it in this document.
            Origin::Registration => {}
        }
    }

    fn finish(mut self) -> Vec<Fault> {
        for (rule, (problem, modules)) in std::mem::take(&mut self.of_default) {
            let others = match modules {
                0 | 1 => String::new(),
                modules => format!(" (and {} other modules)", modules - 1),
            };
            self.fault(&format!("default.{rule}"), format!("{problem}{others}"));
        }
        in_order(self.faults, &self.document.name)
    }

    fn module_names(&self) -> Vec<&str> {
        self.facts.declared.keys().map(ModuleName::as_str).collect()
    }

    /// What can be said of a section without knowing what it comes to.
    fn rules(&mut self, section: &str, module: Option<&ModuleName>, rules: &Rules) {
        if let Some(name) = module
            && !self.facts.declared.contains_key(name)
        {
            let remedy = meant(name.as_str(), self.module_names());
            self.fault(section, format!("no program in the cluster has a module `{name}`; {remedy}"));
        }
        for (rule, others) in [("with", &rules.with), ("apart", &rules.apart)] {
            let path = format!("{section}.{rule}");
            for other in others.iter().flatten() {
                if Some(other) == module {
                    self.fault(&path, "it names the module itself; delete it there");
                } else if !self.facts.declared.contains_key(other) {
                    let remedy = meant(other.as_str(), self.module_names());
                    self.fault(&path, format!("no program in the cluster has a module `{other}`; {remedy}"));
                }
            }
        }
        for (label, value) in rules.require.iter().flatten() {
            self.label(&format!("{section}.require"), label, Some(value));
        }
        if let Some(label) = &rules.spread {
            self.label(&format!("{section}.spread"), label, None);
        }
        if let Some(pin) = &rules.pin {
            self.pin(&format!("{section}.pin"), module, pin);
        }
        if let Some(declared) = module.and_then(|module| self.facts.declared.get(module)) {
            self.kind(section, rules, declared);
        }
    }

    fn kind(&mut self, section: &str, rules: &Rules, declared: &Declared) {
        if declared.state.is_some() && rules.kind == Some(KindName::Replicated) {
            let problem = "the module declares state, which a second host would not see; let `kind` be \"exclusive\"";
            self.fault(&format!("{section}.kind"), problem);
        }
        let asked = rules.kind.or(self.document.spec.default.kind);
        let exclusive = match asked {
            Some(kind) => kind == KindName::Exclusive || declared.state.is_some(),
            None => declared.kind == Kind::Exclusive || declared.state.is_some(),
        };
        // One that says itself that it is exclusive was refused when it was read.
        if exclusive && rules.replicas.is_some() && rules.kind.is_none() {
            let from = if asked.is_some() { "the default says so" } else { "its registration says so" };
            let remedy = if declared.state.is_some() {
                "delete `replicas`"
            } else {
                "add `kind = \"replicated\"`, or delete `replicas`"
            };
            self.fault(
                &format!("{section}.replicas"),
                format!("the module is exclusive ({from}), with one host; {remedy}"),
            );
        }
        if exclusive && rules.spread.is_some() {
            let problem = "the module is exclusive: there is one host, and nothing to spread; delete `spread`";
            self.fault(&format!("{section}.spread"), problem);
        }
    }

    /// A label that no node has is a mistake, or asks for a node that is not there yet.
    fn label(&mut self, rule: &str, label: &str, value: Option<&str>) {
        let nodes = || self.facts.nodes.values().filter(|node| node.standing != Standing::Left);
        let values: BTreeSet<&str> = nodes().filter_map(|node| node.labels.get(label)).map(String::as_str).collect();
        let problem = match value {
            _ if values.is_empty() => {
                let labels: BTreeSet<&str> = nodes().flat_map(|node| node.labels.keys()).map(String::as_str).collect();
                let remedy = match labels.is_empty() {
                    true => "none has any label; give it to a node".to_owned(),
                    false => meant(label, labels),
                };
                format!("no node has a label `{label}`; {remedy}")
            }
            Some(value) if !values.contains(value) => {
                format!("no node has {label} = \"{value}\"; {}", meant(value, values))
            }
            _ => return,
        };
        self.fault(rule, problem);
    }

    fn pin(&mut self, rule: &str, module: Option<&ModuleName>, pin: &Pin) {
        if !pin.holds(self.facts.now) {
            let expires = pin.expires.map(|expires| expires.to_string()).unwrap_or_default();
            self.fault(rule, format!("it expired at {expires}; delete it, or let it expire later"));
        }
        match self.facts.nodes.get(&pin.node) {
            Some(node) if node.standing == Standing::Left => {
                self.fault(rule, format!("node `{}` has left; pin it to one that is there", pin.node));
            }
            Some(node) => {
                if let Some(module) = module.filter(|module| self.facts.declared.contains_key(module))
                    && !node.modules.contains(module)
                {
                    let problem =
                        format!("the program of node `{}` has no module `{module}`; pin it to another", pin.node);
                    self.fault(rule, problem);
                }
            }
            None => {
                let nodes: Vec<&str> = self.facts.nodes.keys().map(NodeId::as_str).collect();
                let remedy = meant(pin.node.as_str(), nodes);
                self.fault(rule, format!("there is no node `{}`; {remedy}", pin.node));
            }
        }
    }

    /// What the rules of one module come to, its own and the default's.
    fn effective(&mut self, module: &ModuleName, rules: &Effective, all: &BTreeMap<&ModuleName, Effective>) {
        let from = &rules.origins;
        if from.kept_exclusive && from.kind == Origin::Default {
            let problem = format!(
                "it declares state, which a second host would not see; write `kind = \"exclusive\"` in [module.{module}]"
            );
            self.fault_of(module, "kind", Origin::Default, problem);
        }
        if let (Some(pin), Kind::Replicated(count)) = (&rules.pin, rules.kind)
            && count != Count::Exactly(1)
        {
            let hosts = match count {
                Count::Every => "every node".to_owned(),
                Count::Exactly(count) => format!("{count} nodes"),
            };
            let problem = format!(
                "it binds the module to the one node {}, and the module is replicated on {hosts}; \
                 let `kind` be \"exclusive\", or choose its hosts with `require`",
                pin.node
            );
            self.fault(&format!("module.{module}.pin"), problem);
        }
        for other in rules.with.intersection(&rules.apart) {
            let (rule, origin) = if from.apart == Origin::Module { ("apart", from.apart) } else { ("with", from.with) };
            let problem = format!("`with` and `apart` both name `{other}`; delete it in one of the two");
            self.fault_of(module, rule, origin, problem);
        }
        if let Some(pin) = &rules.pin {
            self.pinned(module, rules, pin, all);
        }
        if self.possible(module, rules) {
            self.companions(module, rules, all);
        }
    }

    /// Pins that contradict a rule, or one another.
    fn pinned(&mut self, module: &ModuleName, rules: &Effective, pin: &Pin, all: &BTreeMap<&ModuleName, Effective>) {
        let path = format!("module.{module}.pin");
        if let Some(missing) =
            self.facts.nodes.get(&pin.node).and_then(|node| missing_label(&rules.require, &node.labels))
        {
            let problem =
                format!("node `{}` is not what `require` asks for: {missing}; change one of the two", pin.node);
            self.fault(&path, problem);
        }
        let pin_of = |other: &ModuleName| all.get(other).and_then(|other| other.pin.as_ref());
        for other in &rules.with {
            if let Some(others) = pin_of(other).filter(|others| others.node != pin.node) {
                let problem = format!(
                    "it must share its node with {other}, which is pinned to {}; pin both to one node, or change `with`",
                    others.node
                );
                self.fault(&path, problem);
            }
        }
        for other in &rules.apart {
            if pin_of(other).is_some_and(|others| others.node == pin.node) {
                let problem = format!(
                    "it must not share its node with {other}, which is pinned to {} as well; pin one of them elsewhere",
                    pin.node
                );
                self.fault(&path, problem);
            }
        }
    }

    /// What speaks against each node as a host by the rules of one module, however full it is.
    fn against(&self, module: &ModuleName, rules: &Effective) -> (Vec<&NodeId>, Vec<String>) {
        let (mut may, mut against) = (Vec::new(), Vec::new());
        for (name, node) in &self.facts.nodes {
            match obstacle(module, rules, node) {
                None => may.push(name),
                // One that has left is not there.
                Some(Obstacle::Left) => {}
                Some(obstacle) => against.push(format!("{name}: {obstacle}")),
            }
        }
        if against.len() > NAMED {
            let more = against.len() - NAMED;
            against.truncate(NAMED);
            against.push(format!("and {more} others"));
        }
        (may, against)
    }

    /// Whether there are nodes enough for the module's own rules.
    fn possible(&mut self, module: &ModuleName, rules: &Effective) -> bool {
        let (may, against) = self.against(module, rules);
        let against = match against.is_empty() {
            true => "there are no other nodes".to_owned(),
            false => against.join(", "),
        };
        let from = &rules.origins;
        if may.is_empty() {
            // A label or a node that is nowhere was told already.
            if from.require != Origin::Registration && !rules.require.is_empty() && self.labels_exist(rules) {
                let problem = format!("no node can host it: {against}; change `require`, or the labels of a node");
                self.fault_of(module, "require", from.require, problem);
            }
            return false;
        }
        if let Kind::Replicated(Count::Exactly(count)) = rules.kind
            && rules.pin.is_none()
            && usize::from(count) > may.len()
        {
            let problem = format!(
                "{count} hosts are asked for, and {} can host it ({against}); ask for {} at the most, or add nodes",
                nodes(may.len()),
                may.len()
            );
            self.fault_of(module, "replicas", from.replicas, problem);
            return false;
        }
        true
    }

    fn labels_exist(&self, rules: &Effective) -> bool {
        let there = |(label, value): (&String, &String)| {
            self.facts
                .nodes
                .values()
                .any(|node| node.standing != Standing::Left && node.labels.get(label) == Some(value))
        };
        rules.require.iter().all(there)
    }

    /// Modules that must be beside it, and can't be.
    fn companions(&mut self, module: &ModuleName, rules: &Effective, all: &BTreeMap<&ModuleName, Effective>) {
        let hosts = |kind| match kind {
            Kind::Exclusive => Some(1),
            Kind::Replicated(Count::Exactly(count)) => Some(count),
            Kind::Replicated(Count::Every) => None,
        };
        for other in &rules.with {
            let Some(others) = all.get(other) else { continue };
            let (own, theirs) = (hosts(rules.kind), hosts(others.kind));
            if let (Some(own), Some(theirs)) = (own, theirs)
                && own > theirs
            {
                let problem = format!(
                    "each of its {own} hosts must have {other} as well, which has {theirs}; ask for more of {other}, or \
                     for fewer hosts"
                );
                self.fault_of(module, "with", rules.origins.with, problem);
                continue;
            }
            let (mine, _) = self.against(module, rules);
            let (theirs, _) = self.against(other, others);
            let both = mine.iter().filter(|node| theirs.contains(node)).count();
            if both == 0 && !theirs.is_empty() && (rules.pin.is_none() || others.pin.is_none()) {
                let problem = format!(
                    "no node can host both it and {other}: it can be on {}, and {other} on {}; change `require` or `pin` \
                     of one of them",
                    names(&mine),
                    names(&theirs)
                );
                self.fault_of(module, "with", rules.origins.with, problem);
            }
        }
    }
}

/// What speaks against a node by the rules of one module. A cordon does not: it is for a while.
fn obstacle<'r>(module: &ModuleName, rules: &'r Effective, node: &'r NodeFacts) -> Option<Obstacle<'r>> {
    let standing = match node.standing {
        Standing::Ready => None,
        Standing::Draining => Some(Obstacle::Draining),
        Standing::Silent => Some(Obstacle::Silent),
        Standing::Left => Some(Obstacle::Left),
    };
    let program = (!node.modules.contains(module)).then_some(Obstacle::NoSuchModule);
    standing.or(program).or_else(|| missing_label(&rules.require, &node.labels))
}

fn nodes(count: usize) -> String {
    match count {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    }
}

fn names(nodes: &[&NodeId]) -> String {
    let named: Vec<&str> = nodes.iter().take(NAMED).map(|node| node.as_str()).collect();
    match nodes.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} others", named.join(", ")),
    }
}

//! From keys and values to a spec, with every fault of the schema.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Document, Fault, MOST_MODULES, alike, clip, in_order,
    tree::{Item, Value},
};
use crate::{
    id::{BadTimestamp, ModuleName, NodeId, Timestamp},
    placement::spec::{Count, KindName, Pin, Rules, Spec},
};

const RULES: [&str; 7] = ["kind", "replicas", "require", "spread", "with", "apart", "pin"];
/// The largest count that can be asked for.
const MOST_REPLICAS: u16 = 1000;
/// How long a label or a reason may be, in bytes.
const LONGEST: usize = 1024;

pub(super) fn document(tree: &Item, name: &str) -> Result<Document, Vec<Fault>> {
    let mut reader = Reader { name, faults: Vec::new(), lines: BTreeMap::new() };
    let spec = reader.spec(tree);
    if reader.faults.is_empty() {
        return Ok(Document { name: name.to_owned(), spec, lines: reader.lines });
    }
    Err(in_order(reader.faults, name))
}

struct Reader<'a> {
    name: &'a str,
    faults: Vec<Fault>,
    lines: BTreeMap<String, usize>,
}

impl Reader<'_> {
    fn fault(&mut self, line: usize, rule: &str, problem: impl Into<String>) {
        self.faults.push(Fault { name: self.name.to_owned(), line, rule: rule.to_owned(), problem: problem.into() });
    }

    /// The entries of what must be a table.
    fn entries<'t>(&mut self, item: &'t Item, rule: &str) -> Vec<(String, &'t str, &'t Item)> {
        let Value::Table(table) = &item.value else {
            self.fault(item.line, rule, format!("{} where a table belongs", item.value.what()));
            return Vec::new();
        };
        let mut entries: Vec<(String, &str, &Item)> = Vec::new();
        let mut keys = BTreeSet::new();
        for (key, item) in table {
            let path = if rule.is_empty() { clip(key) } else { format!("{rule}.{}", clip(key)) };
            if !keys.insert(key) {
                self.fault(item.line, &path, "it is there twice; delete one of the two");
                continue;
            }
            self.lines.insert(path.clone(), item.line);
            entries.push((path, key, item));
        }
        entries
    }

    fn unknown(&mut self, line: usize, rule: &str, key: &str, known: &[&str]) {
        let remedy = match alike(key, known.iter().copied()) {
            Some(candidate) => format!("did you mean `{candidate}`?"),
            None => format!("known are {}", known.join(", ")),
        };
        self.fault(line, rule, format!("unknown key; {remedy}"));
    }

    fn text<'t>(&mut self, item: &'t Item, rule: &str) -> Option<&'t str> {
        let Value::Text(text) = &item.value else {
            self.fault(item.line, rule, format!("{} where text belongs; write it in quotes", item.value.what()));
            return None;
        };
        let problem = match text {
            text if text.trim().is_empty() => "an empty text; write something, or delete it",
            text if text.len() > LONGEST => "the text is too long; 1024 bytes are the most",
            text if text.contains(char::is_control) => "the text has line breaks or control characters; delete them",
            text => return Some(text),
        };
        self.fault(item.line, rule, problem);
        None
    }

    fn spec(&mut self, tree: &Item) -> Spec {
        let mut spec = Spec::default();
        for (path, key, item) in self.entries(tree, "") {
            match key {
                "default" => {
                    spec.default = self.rules(item, &path);
                    if spec.default.pin.is_some() {
                        let line = self.lines.get("default.pin").copied().unwrap_or(item.line);
                        self.fault(line, "default.pin", "a default can't bind modules to a node; pin each by its name");
                    }
                }
                "module" => spec.modules = self.modules(item, &path),
                _ => self.unknown(item.line, &path, key, &["default", "module"]),
            }
        }
        spec
    }

    fn modules(&mut self, item: &Item, path: &str) -> BTreeMap<ModuleName, Rules> {
        let entries = self.entries(item, path);
        if entries.len() > MOST_MODULES {
            let problem = format!("{} modules are too many; {MOST_MODULES} are the most", entries.len());
            self.fault(item.line, path, problem);
            return BTreeMap::new();
        }
        let mut modules = BTreeMap::new();
        for (path, name, item) in entries {
            let rules = self.rules(item, &path);
            // No name is as long as what is shown.
            match ModuleName::parse(&clip(name)) {
                Ok(name) => _ = modules.insert(name, rules),
                Err(error) => self.fault(item.line, &path, error.to_string()),
            }
        }
        modules
    }

    fn rules(&mut self, item: &Item, path: &str) -> Rules {
        let mut rules = Rules::default();
        let mut replicas_at = item.line;
        for (path, key, item) in self.entries(item, path) {
            match key {
                "kind" => rules.kind = self.kind(item, &path),
                "replicas" => {
                    rules.replicas = self.replicas(item, &path);
                    replicas_at = item.line;
                }
                "require" => rules.require = self.require(item, &path),
                "spread" => rules.spread = self.text(item, &path).map(str::to_owned),
                "with" => rules.with = self.names(item, &path),
                "apart" => rules.apart = self.names(item, &path),
                "pin" => rules.pin = self.pin(item, &path),
                _ => self.unknown(item.line, &path, key, &RULES),
            }
        }
        if rules.kind == Some(KindName::Exclusive) && rules.replicas.is_some() {
            let problem = "an exclusive module has one host; delete `replicas`, or let `kind` be \"replicated\"";
            self.fault(replicas_at, &format!("{path}.replicas"), problem);
        }
        rules
    }

    fn kind(&mut self, item: &Item, path: &str) -> Option<KindName> {
        let kind = match self.text(item, path)? {
            "exclusive" => return Some(KindName::Exclusive),
            "replicated" => return Some(KindName::Replicated),
            kind => kind,
        };
        let problem = match (kind, alike(kind, ["exclusive", "replicated"])) {
            ("sharded" | "external", _) => {
                format!("`{kind}` is reserved for a later version; use \"exclusive\" or \"replicated\"")
            }
            (_, Some(meant)) => format!("unknown kind `{}`; did you mean \"{meant}\"?", clip(kind)),
            _ => format!("unknown kind `{}`; use \"exclusive\" or \"replicated\"", clip(kind)),
        };
        self.fault(item.line, path, problem);
        None
    }

    fn replicas(&mut self, item: &Item, path: &str) -> Option<Count> {
        let count = match &item.value {
            Value::Text(text) if text == "every" => return Some(Count::Every),
            Value::Number(number) => u16::try_from(*number).ok().filter(|count| (1..=MOST_REPLICAS).contains(count)),
            _ => None,
        };
        if count.is_none() {
            let found = match &item.value {
                Value::Number(number) => number.to_string(),
                Value::Text(text) => format!("\"{}\"", clip(text).escape_debug()),
                other => other.what().to_owned(),
            };
            self.fault(
                item.line,
                path,
                format!("{found} is not a count; use a number from 1 to {MOST_REPLICAS}, or \"every\" for each node"),
            );
        }
        count.map(Count::Exactly)
    }

    fn require(&mut self, item: &Item, path: &str) -> Option<BTreeMap<String, String>> {
        let entries = self.entries(item, path);
        let mut labels = BTreeMap::new();
        for (path, label, item) in entries {
            let value = self.text(item, &path);
            if label.is_empty() || label.len() > LONGEST || label.contains(char::is_control) {
                self.fault(
                    item.line,
                    &path,
                    "that can't be a label's name; use a short one without control characters",
                );
            } else if let Some(value) = value {
                labels.insert(label.to_owned(), value.to_owned());
            }
        }
        Some(labels)
    }

    fn names(&mut self, item: &Item, path: &str) -> Option<BTreeSet<ModuleName>> {
        let Value::List(items) = &item.value else {
            let problem = format!("{} where a list of modules belongs; write [\"cart\"]", item.value.what());
            self.fault(item.line, path, problem);
            return None;
        };
        let mut names = BTreeSet::new();
        for item in items {
            match self.text(item, path).map(|name| ModuleName::parse(&clip(name))) {
                Some(Ok(name)) => _ = names.insert(name),
                Some(Err(error)) => self.fault(item.line, path, error.to_string()),
                None => {}
            }
        }
        Some(names)
    }

    fn pin(&mut self, item: &Item, path: &str) -> Option<Pin> {
        if !matches!(item.value, Value::Table(_)) {
            let problem = "a pin is a table; write { node = \"node-2\", reason = \"local GPU\" }";
            self.fault(item.line, path, problem);
            return None;
        }
        let (mut node, mut reason, mut expires) = (None, None, None);
        let mut wrong = false;
        for (path, key, item) in self.entries(item, path) {
            match key {
                "node" => match self.text(item, &path).map(|name| NodeId::parse(&clip(name))) {
                    Some(Ok(name)) => node = Some(name),
                    Some(Err(error)) => {
                        wrong = true;
                        self.fault(item.line, &path, error.to_string());
                    }
                    None => wrong = true,
                },
                "reason" => {
                    reason = self.text(item, &path);
                    wrong |= reason.is_none();
                }
                "expires" => expires = self.time(item, &path),
                _ => self.unknown(item.line, &path, key, &["node", "reason", "expires"]),
            }
        }
        if let (Some(node), Some(reason)) = (&node, reason) {
            return Some(Pin { node: node.clone(), reason: reason.to_owned(), expires });
        }
        if !wrong && node.is_none() {
            self.fault(item.line, path, "`node` is missing; name the node that the module is bound to");
        }
        if !wrong && reason.is_none() {
            self.fault(item.line, path, "`reason` is missing; tell those who come later why it is bound");
        }
        None
    }

    fn time(&mut self, item: &Item, path: &str) -> Option<Timestamp> {
        let text = self.text(item, path)?;
        text.parse().map_err(|bad: BadTimestamp| self.fault(item.line, path, format!("`{}` is {bad}", clip(text)))).ok()
    }
}

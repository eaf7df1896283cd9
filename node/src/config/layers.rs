//! One tree out of a file, the environment and flags, and where each value in it came from.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{ConfigError, Fault};

const PREFIX: &str = "OUTPOST_";
/// `OUTPOST_CONFIG` names the file, and the others are the operator's tool's.
const ELSEWHERE: [&str; 5] = ["CONFIG", "NODE", "CONTEXT", "CONTEXTS", "TOKEN_FILE"];

/// What settings are read from, as arguments: nothing here looks at the process.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not begin with `OUTPOST_` are left alone.
    pub environment: Vec<(String, String)>,
    /// Flags: how each was written (`--listen`), its key, and its value.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// Defaults, but for the ports: any free ones, so that tests do not meet.
    #[must_use]
    pub fn on_free_ports() -> Self {
        let listeners = ["ingress.listen", "cluster.listen", "admin.listen"];
        listeners.into_iter().fold(Self::default(), |sources, listener| sources.set(listener, "127.0.0.1:0"))
    }

    /// Adds a setting, as `--set KEY=VALUE` does.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.flags.push((format!("--set {key}"), key.to_owned(), value.to_owned()));
        self
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a file, from 1.
    File(Arc<Path>, usize),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Where the values of a merged tree came from, by key.
#[derive(Debug, Default)]
pub(super) struct Layers {
    origins: BTreeMap<String, Origin>,
    /// Values as they were written in the environment or a flag, where they may have been meant as text.
    texts: BTreeMap<String, String>,
}

impl Layers {
    pub(super) fn merge(sources: &Sources, modules: &[&str]) -> Result<(Table, Self), Vec<ConfigError>> {
        let mut tree = Table::new();
        let mut layers = Self::default();
        if let Some(path) = &sources.file {
            layers.read_file(path, &mut tree).map_err(|error| vec![error])?;
        }
        let mut errors = Vec::new();
        for (name, text) in &sources.environment {
            let Some(key) =
                name.strip_prefix(PREFIX).filter(|rest| !is_from_kubernetes(rest) && !ELSEWHERE.contains(rest))
            else {
                continue;
            };
            let key = key_of_variable(key, modules);
            if let Err(error) = layers.set(&mut tree, &key, text, Origin::Environment(name.clone())) {
                errors.push(error);
            }
        }
        for (flag, key, text) in &sources.flags {
            if let Err(error) = layers.set(&mut tree, key, text, Origin::Flag(flag.clone())) {
                errors.push(error);
            }
        }
        if errors.is_empty() { Ok((tree, layers)) } else { Err(errors) }
    }

    fn read_file(&mut self, path: &Path, tree: &mut Table) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error: error.to_string() })?;
        let syntax = |error: toml::de::Error| {
            let (line, column) = place(&text, error.span().map_or(0, |span| span.start));
            ConfigError::Syntax { path: path.to_owned(), line, column, problem: error.message().to_owned() }
        };
        *tree = text.parse::<Table>().map_err(syntax)?;
        let spans = DeTable::parse(&text).map_err(syntax)?;
        self.note_lines("", spans.get_ref(), &text, &Arc::from(path));
        Ok(())
    }

    fn note_lines(&mut self, prefix: &str, table: &DeTable<'_>, text: &str, path: &Arc<Path>) {
        for (name, value) in table {
            let key = join(prefix, name.get_ref());
            let (line, _) = place(text, name.span().start);
            self.origins.insert(key.clone(), Origin::File(Arc::clone(path), line));
            if let DeValue::Table(table) = value.get_ref() {
                self.note_lines(&key, table, text, path);
            }
        }
    }

    fn set(&mut self, tree: &mut Table, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let mut at = tree;
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().filter(|last| !last.is_empty());
        let (Some(last), true) = (last, parts.iter().all(|part| !part.is_empty())) else {
            return Err(ConfigError::Unknown { origin, key: key.to_owned(), suggestion: None });
        };
        for part in parts {
            let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
            at = match next {
                Value::Table(table) => table,
                _ => return Err(ConfigError::Unknown { origin, key: key.to_owned(), suggestion: None }),
            };
        }
        let value = parse(text);
        // What a lower layer said about keys below this one no longer holds.
        let below = format!("{key}.");
        self.origins.retain(|known, _| !known.starts_with(&below));
        if let Value::Table(table) = &value {
            self.origins.extend(flatten(table).into_iter().map(|(inner, _)| (join(key, &inner), origin.clone())));
        }
        self.origins.insert(key.to_owned(), origin);
        self.texts.insert(key.to_owned(), text.to_owned());
        at.insert(last.to_owned(), value);
        Ok(())
    }

    /// Where a value was set.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Where to look for a fault at a key: at it, at what was set in it, or at what it was set in.
    fn nearest_origin(&self, key: &str) -> Origin {
        // An element of an array is where the array is.
        let key = key.split('[').next().unwrap_or_default();
        // Of keys in a table, those set last are the likeliest to be at fault.
        let strength = |origin: &Origin| match origin {
            Origin::Default => 0,
            Origin::File(..) => 1,
            Origin::Environment(_) => 2,
            Origin::Flag(_) => 3,
        };
        let below = format!("{key}.");
        let set = self.origins.iter().filter(|(known, _)| *known == key || known.starts_with(&below));
        if let Some((_, origin)) = set.max_by_key(|(known, origin)| (strength(origin), *known == key)) {
            return origin.clone();
        }
        let mut at = key;
        while let Some((up, _)) = at.rsplit_once('.') {
            if let Some(origin) = self.origins.get(up) {
                return origin.clone();
            }
            at = up;
        }
        Origin::Default
    }

    /// Puts text in the place of a value that came from the environment or a flag and was read as something else:
    /// `12345678` may be a password. Says whether it did.
    pub(super) fn as_text(&self, prefix: &str, key: &str, table: &mut Table) -> bool {
        let Some(text) = self.texts.get(&join(prefix, key)) else { return false };
        let mut parts: Vec<&str> = key.split('.').collect();
        let Some(last) = parts.pop() else { return false };
        let mut at = table;
        for part in parts {
            let Some(Value::Table(inner)) = at.get_mut(part) else { return false };
            at = inner;
        }
        match at.get_mut(last) {
            Some(value) if !value.is_str() => {
                *value = Value::String(text.clone());
                true
            }
            _ => false,
        }
    }

    pub(super) fn value_error(&self, key: &str, value: Option<&Value>, problem: String) -> ConfigError {
        let value = value.map(ToString::to_string);
        ConfigError::Value { origin: self.nearest_origin(key), key: key.to_owned(), value, problem }
    }

    pub(super) fn fault(&self, prefix: &str, fault: Fault) -> ConfigError {
        self.value_error(&join(prefix, &fault.key), fault.value.as_ref(), fault.problem)
    }

    /// A key that nothing reads, with the known one that it looks like.
    pub(super) fn unknown(&self, prefix: &str, key: &str, known: &Table) -> ConfigError {
        let alike = |candidate: &String| strsim::jaro_winkler(candidate, key);
        let candidates = flatten(known).into_iter().map(|(key, _)| key).chain(known.keys().cloned());
        let suggestion = candidates
            .filter(|candidate| alike(candidate) > 0.8)
            .max_by(|a, b| alike(a).total_cmp(&alike(b)))
            .map(|candidate| join(prefix, &candidate));
        let key = join(prefix, key);
        ConfigError::Unknown { origin: self.nearest_origin(&key), key, suggestion }
    }
}

/// `INGRESS__MAX_MESSAGE_SIZE` is `ingress.max_message_size`: two underscores are a dot. A module's dashes are
/// underscores in a variable's name.
fn key_of_variable(name: &str, modules: &[&str]) -> String {
    let mut parts: Vec<String> = name.split("__").map(str::to_ascii_lowercase).collect();
    if let [first, module, ..] = parts.as_mut_slice()
        && first == "modules"
        && let Some(known) = modules.iter().find(|known| known.replace('-', "_") == *module)
    {
        *module = (*known).to_owned();
    }
    parts.join(".")
}

/// In a namespace with a Service named `outpost`, Kubernetes gives every pod `OUTPOST_SERVICE_HOST`, `OUTPOST_PORT`,
/// `OUTPOST_PORT_7000_TCP_ADDR` and the like. A Service named `outpost-x` makes `OUTPOST_X_PORT`.
fn is_from_kubernetes(rest: &str) -> bool {
    let plain = !rest.contains("__");
    let service = rest.contains("SERVICE_HOST") || rest.contains("SERVICE_PORT");
    let port = rest == "PORT" || rest.ends_with("_PORT") || rest.contains("_TCP") || rest.contains("_UDP");
    plain && (service || port)
}

/// A value in the environment or a flag is TOML; what is not, is a string.
fn parse(text: &str) -> Value {
    let document = format!("value = {text}");
    match document.parse::<Table>() {
        Ok(mut table) if table.len() == 1 => table.remove("value").unwrap_or_else(|| Value::String(text.to_owned())),
        _ => Value::String(text.to_owned()),
    }
}

/// Line and column of a byte, from 1.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(byte)];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

pub(super) fn join(prefix: &str, key: &str) -> String {
    match (prefix, key) {
        ("", key) => key.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, key) => format!("{prefix}.{key}"),
    }
}

/// Every value that is not a table, with its key.
pub(super) fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                flat.extend(flatten(inner).into_iter().map(|(key, value)| (join(name, &key), value)));
            }
            Value::Table(_) => {}
            value => flat.push((name.clone(), value.clone())),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_name_keys() {
        let modules = ["front-desk", "cart"];
        assert_eq!(key_of_variable("INGRESS__LISTEN", &modules), "ingress.listen");
        assert_eq!(key_of_variable("MODULES__FRONT_DESK__OPENS_AT", &modules), "modules.front-desk.opens_at");
    }

    #[test]
    fn what_kubernetes_injects_for_a_service_is_left_alone() {
        for name in ["SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_7000_TCP", "PORT_7000_TCP_ADDR", "SHOP_SERVICE_HOST"]
        {
            assert!(is_from_kubernetes(name), "{name}");
        }
        for name in ["INGRESS__LISTEN", "LOG__FILTER", "MODULES__CART__PORT", "TYPO"] {
            assert!(!is_from_kubernetes(name), "{name}");
        }
    }

    #[test]
    fn values_are_toml_or_text() {
        assert_eq!(parse("7"), Value::Integer(7));
        assert_eq!(parse("\"7\""), Value::String("7".into()));
        assert_eq!(parse("10s"), Value::String("10s".into()));
        assert_eq!(parse("[\"a\"]"), Value::Array(vec![Value::String("a".into())]));
        assert_eq!(parse("1\nother = 2"), Value::String("1\nother = 2".into()));
    }
}

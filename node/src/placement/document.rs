//! Placement documents: TOML or JSON, one schema.
//!
//! ```text
//! text ─▶ tree (keys, values, lines) ─▶ read ─▶ Document ─▶ check (against the modules and nodes there are) ─▶ Spec
//! Spec ─▶ render ─▶ TOML, which reads back as the same Spec
//! ```
//! Each step tells all its faults at once, with the line, the rule and the remedy.

mod check;
mod read;
mod render;
#[cfg(test)]
mod tests;
mod tree;

use std::{collections::BTreeMap, fmt};

pub(crate) use check::check;
pub(crate) use render::{diff, render};

use super::spec::Spec;

/// How large a document may be, in bytes.
pub(crate) const LARGEST: usize = 256 * 1024;
/// How many modules it may name.
pub(crate) const MOST_MODULES: usize = 10_000;
/// How many faults are told at once.
const MOST_FAULTS: usize = 100;
/// How much of a name or a value is shown in a fault, in characters.
const SHOWN: usize = 80;

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Toml,
    Json,
}

impl Format {
    /// By its name: "toml" or "json".
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// A spec, and where its rules were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// For messages: "placement.toml".
    pub(crate) name: String,
    pub(crate) spec: Spec,
    /// By rule: "module.cart.replicas".
    lines: BTreeMap<String, usize>,
}

impl Document {
    /// A spec that nobody wrote as a document: faults in it have no line.
    pub(crate) fn of(name: &str, spec: Spec) -> Self {
        Self { name: name.to_owned(), spec, lines: BTreeMap::new() }
    }

    /// The line of a rule, or of what it is in; 0 where there is none.
    fn line(&self, rule: &str) -> usize {
        let mut rule = rule;
        loop {
            if let Some(line) = self.lines.get(rule) {
                return *line;
            }
            let Some((up, _)) = rule.rsplit_once('.') else { return 0 };
            rule = up;
        }
    }
}

/// Something that is wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Fault {
    /// Of the document.
    pub(crate) name: String,
    /// From 1; 0 where there is none.
    pub(crate) line: usize,
    /// "module.cart.replicas"; empty where it is about the text as a whole.
    pub(crate) rule: String,
    /// And its remedy.
    pub(crate) problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.rule.is_empty() {
            write!(f, ": {}", self.rule)?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// Reads a document. Only `check` knows whether the modules and nodes that it names are there.
///
/// # Errors
/// All its faults, in the order of their lines.
pub(crate) fn parse(text: &str, format: Format, name: &str) -> Result<Document, Vec<Fault>> {
    let broken = |line: usize, problem: String| Fault { name: name.to_owned(), line, rule: String::new(), problem };
    if text.len() > LARGEST {
        let problem = format!("{} bytes are too many; a placement has {LARGEST} at the most", text.len());
        return Err(vec![broken(0, problem)]);
    }
    let tree = match format {
        Format::Toml => tree::from_toml(text),
        Format::Json => tree::from_json(text),
    };
    let tree =
        tree.map_err(|faults| faults.into_iter().map(|(line, problem)| broken(line, problem)).collect::<Vec<_>>())?;
    read::document(&tree, name)
}

/// Faults in the order of their lines; no more than people would read.
fn in_order(mut faults: Vec<Fault>, name: &str) -> Vec<Fault> {
    faults.sort_by_key(|fault| fault.line);
    if faults.len() > MOST_FAULTS {
        faults.truncate(MOST_FAULTS);
        let problem = format!("there are more faults; these are the first {MOST_FAULTS}");
        faults.push(Fault { name: name.to_owned(), line: 0, rule: String::new(), problem });
    }
    faults
}

/// The beginning of a text, for messages.
fn clip(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The candidate that a name was probably meant to be.
fn alike<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &&str| strsim::jaro_winkler(candidate, name);
    let best = candidates.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    best.filter(|candidate| likeness(candidate) > 0.8)
}

/// "; did you mean `cart`?", or else what is there.
fn meant<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(candidate) = alike(name, candidates.clone()) {
        return format!("did you mean `{candidate}`?");
    }
    let known: Vec<&str> = candidates.into_iter().collect();
    match known.len() {
        0 => "there are none yet".to_owned(),
        1..=12 => format!("there are {}", known.join(", ")),
        more => format!("there are {} and {} others", known[..10].join(", "), more - 10),
    }
}

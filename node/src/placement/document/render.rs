//! A spec as text: the whole of it, or what is different in another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use crate::{
    id::ModuleName,
    placement::spec::{Count, Pin, Rules, Spec},
};

/// The TOML that reads back as this spec. The same spec gives the same text.
pub(crate) fn render(spec: &Spec) -> String {
    let mut text = String::new();
    if spec.default != Rules::default() {
        section(&mut text, "default", &spec.default);
    }
    for (module, rules) in &spec.modules {
        section(&mut text, &format!("module.{module}"), rules);
    }
    text
}

fn section(text: &mut String, name: &str, rules: &Rules) {
    if !text.is_empty() {
        text.push('\n');
    }
    // Writing to a string does not fail.
    _ = writeln!(text, "[{name}]");
    for (rule, value) in values(rules) {
        _ = writeln!(text, "{rule} = {value}");
    }
}

/// What would be different in the rules, a line each: `+ module.cart.replicas = 3`, `- default.spread = zone`,
/// `~ module.cart.kind: exclusive -> replicated`. A word stands without quotes.
pub(crate) fn diff(old: &Spec, new: &Spec) -> Vec<String> {
    let (old, new) = (flatten(old), flatten(new));
    let rules: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let line = |rule: &String| match (old.get(rule), new.get(rule)) {
        (None, Some(new)) => Some(format!("+ {rule} = {new}")),
        (Some(old), None) => Some(format!("- {rule} = {old}")),
        (Some(old), Some(new)) if old != new => Some(format!("~ {rule}: {old} -> {new}")),
        _ => None,
    };
    rules.into_iter().filter_map(line).collect()
}

fn flatten(spec: &Spec) -> BTreeMap<String, String> {
    let modules = spec.modules.iter().map(|(module, rules)| (format!("module.{module}"), rules));
    let sections = std::iter::once(("default".to_owned(), &spec.default)).chain(modules);
    let rules = sections.flat_map(|(section, rules)| {
        values(rules).into_iter().map(move |(rule, value)| (format!("{section}.{rule}"), unquoted(value)))
    });
    rules.collect()
}

/// Each rule that is given, as TOML.
fn values(rules: &Rules) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    if let Some(kind) = rules.kind {
        values.push(("kind", quoted(&kind.to_string())));
    }
    match rules.replicas {
        Some(Count::Exactly(count)) => values.push(("replicas", count.to_string())),
        Some(Count::Every) => values.push(("replicas", quoted("every"))),
        None => {}
    }
    if let Some(labels) = &rules.require {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{} = {}", key(label), quoted(value))).collect();
        values.push((
            "require",
            if labels.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", labels.join(", ")) },
        ));
    }
    if let Some(label) = &rules.spread {
        values.push(("spread", quoted(label)));
    }
    for (rule, modules) in [("with", &rules.with), ("apart", &rules.apart)] {
        if let Some(modules) = modules {
            values.push((rule, list(modules)));
        }
    }
    if let Some(Pin { node, reason, expires }) = &rules.pin {
        let mut pin = format!("{{ node = {}, reason = {}", quoted(node.as_str()), quoted(reason));
        if let Some(expires) = expires {
            _ = write!(pin, ", expires = {}", quoted(&expires.to_string()));
        }
        values.push(("pin", pin + " }"));
    }
    values
}

fn list(modules: &BTreeSet<ModuleName>) -> String {
    let modules: Vec<String> = modules.iter().map(|module| quoted(module.as_str())).collect();
    format!("[{}]", modules.join(", "))
}

/// A basic string, which may stand anywhere, even as a key.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => _ = write!(quoted, "\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn key(label: &str) -> String {
    if is_word(label) { label.to_owned() } else { quoted(label) }
}

fn unquoted(value: String) -> String {
    let word = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).filter(|value| is_word(value));
    word.map(str::to_owned).unwrap_or(value)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

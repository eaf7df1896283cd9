//! `audit`: what operators have changed, and whether that is still what it was.

use outpost_proto::{
    admin::v1::{AuditEntry, AuditRequest, AuditResponse},
    audit,
};
use serde_json::json;

use crate::{
    admin::Admin,
    args::{AuditArgs, AuditVerb, DataOutput},
    error::CliError,
    output::Output,
    text::time,
};

pub(crate) async fn run(args: &AuditArgs, out: &mut Output) -> Result<(), CliError> {
    let admin = Admin::connect(&args.node).await?;
    let told = admin.ask("the question what operators changed", admin.client().audit(AuditRequest {})).await?;
    match (&args.verb, args.output) {
        (Some(AuditVerb::Verify { contains }), output) => {
            let head = verified(&told, contains.as_deref()).map_err(CliError::Failed)?;
            match output {
                DataOutput::Json => out.print_json(&json!({ "entries": told.entries.len(), "head": head })).await,
                DataOutput::Table => {
                    let entries = match told.entries.len() {
                        1 => "1 entry".to_owned(),
                        entries => format!("{entries} entries"),
                    };
                    out.print(&format!("{entries} in one chain, which ends with {head}")).await
                }
            }
        }
        (None, DataOutput::Json) => out.print_json(&json!(told)).await,
        (None, DataOutput::Table) => {
            let lines: String = told.entries.iter().map(line).collect();
            out.print_told(if lines.is_empty() { "no operator has changed anything" } else { &lines }).await
        }
    }
}

fn line(entry: &AuditEntry) -> String {
    let AuditEntry { index, at_ms, by, from, kind, text, .. } = entry;
    format!("{} {index:>6}  {kind:15}  {text} (by {by}, from {from})\n", time(*at_ms))
}

/// The hash of the last entry, if all of them are a chain, and this hash is part of it.
fn verified(told: &AuditResponse, contains: Option<&str>) -> Result<String, String> {
    let AuditResponse { previous, entries } = told;
    if let Some(broken) = audit::first_break(previous, entries) {
        return Err(format!(
            "the chain is broken at index {}: that entry, or one before it, is not what it was",
            broken.index
        ));
    }
    let head = entries.last().map_or(previous, |last| &last.hash);
    if let Some(hash) = contains {
        let has = |known: &String| known.eq_ignore_ascii_case(hash);
        if !has(previous) && !entries.iter().any(|entry| has(&entry.hash)) {
            return Err(format!(
                "{hash} is not part of the chain: it is another one now, or that entry is older than the {} that are kept",
                entries.len()
            ));
        }
    }
    Ok(head.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> AuditResponse {
        let mut previous = audit::FIRST.to_owned();
        let entries = (1..=3u64).map(|index| {
            let entry = AuditEntry { index, by: "alice".to_owned(), ..AuditEntry::default() };
            previous = audit::hash(&previous, &entry);
            AuditEntry { hash: previous.clone(), ..entry }
        });
        AuditResponse { previous: audit::FIRST.to_owned(), entries: entries.collect() }
    }

    #[test]
    fn a_chain_is_verified_from_its_beginning_to_its_end() {
        let head = verified(&told(), None).unwrap();
        assert_eq!(head, told().entries[2].hash);
        assert_eq!(verified(&told(), Some(&told().entries[0].hash.to_uppercase())), Ok(head));
        assert!(verified(&told(), Some("00ff")).unwrap_err().contains("00ff"));
        let mut forged = told();
        forged.entries[1].by = "mallory".to_owned();
        assert!(verified(&forged, None).unwrap_err().contains("index 2"));
        assert_eq!(verified(&AuditResponse { entries: Vec::new(), ..told() }, None), Ok(audit::FIRST.to_owned()));
    }

    #[test]
    fn an_entry_is_a_line() {
        let entry = AuditEntry {
            index: 12,
            at_ms: 1_700_000_000_000,
            by: "alice".to_owned(),
            from: "10.0.0.9:5 at node-1".to_owned(),
            kind: "node-cordoned".to_owned(),
            text: "node-2 gets nothing new".to_owned(),
            hash: String::new(),
        };
        assert_eq!(
            line(&entry),
            "2023-11-14T22:13:20Z     12  node-cordoned    node-2 gets nothing new (by alice, from 10.0.0.9:5 at node-1)\n"
        );
    }
}

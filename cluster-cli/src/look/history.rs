//! `history`: the versions of the placement.

use outpost_proto::admin::v1::PlacementVersion;
use serde_json::json;

use crate::{
    admin::Admin,
    args::{DataOutput, HistoryArgs, HistoryVerb},
    change::document,
    error::CliError,
    output::Output,
    text::{dash, table, time},
};

pub(crate) async fn run(args: &HistoryArgs, out: &mut Output) -> Result<(), CliError> {
    let versions = document::history(&Admin::connect(&args.node).await?).await?;
    match (args.verb, args.output) {
        (None, DataOutput::Json) => out.print_json(&json!(versions)).await,
        (None, DataOutput::Table) => out.print_told(&text(&versions)).await,
        (Some(HistoryVerb::Show { version }), output) => {
            let found = versions.iter().find(|it| it.version == version).ok_or(CliError::NoVersion { version })?;
            match output {
                DataOutput::Json => out.print_json(&json!(found)).await,
                // As it is: it may be applied again.
                DataOutput::Table => out.print(&found.document).await,
            }
        }
    }
}

fn text(versions: &[PlacementVersion]) -> String {
    let rows = versions.iter().map(|it| {
        [it.version.to_string(), time(it.at_ms), dash(&it.by), dash(it.why.lines().next().unwrap_or_default())]
    });
    table(["VERSION", "AT", "BY", "WHY"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_line() {
        let version = PlacementVersion {
            version: 3,
            at_ms: 1_700_000_000_000,
            by: "ada@desk".to_owned(),
            why: "for the sale\nand more".to_owned(),
            document: String::new(),
        };
        let shown = text(&[version]);
        assert_eq!(shown.lines().nth(1), Some(" 3        2023-11-14T22:13:20Z  ada@desk  for the sale"));
    }
}

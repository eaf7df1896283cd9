//! Whole placement documents: `plan`, `apply`, `rollback`.

use std::{fs, path::PathBuf};

use outpost_proto::admin::v1::{
    ApplyRequest, Changed, Document, HistoryRequest, PlacementVersion, PlanRequest, PlanResponse, RollbackRequest,
};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::{Operation, Printed, by};
use crate::{
    admin::Admin,
    args::{ApplyArgs, DataOutput, DocumentArgs, DocumentFormat, PlanArgs, RollbackArgs},
    error::CliError,
    output::Output,
    text::{Colour, colours, list, paint, table},
    wait::{Goal, Hosts, Target, Wait, goes_on},
};

/// A document that can't be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadDocument {
    #[error("what is {path} written in? end its name in .toml or .json, or say so with --format")]
    Format { path: PathBuf },
    #[error("what is stdin written in? say so with --format toml or --format json")]
    StdinFormat,
    #[error("{name} is not UTF-8 text")]
    NotText { name: String },
}

pub(crate) async fn plan(args: &PlanArgs, out: &mut Output) -> Result<(), CliError> {
    let document = read(&args.document).await?;
    let name = document.name.clone();
    let admin = Admin::connect(&args.node).await?;
    let plan = ask_plan(&admin, document).await?;
    match args.output {
        DataOutput::Json => out.print_json(&json!(plan)).await?,
        DataOutput::Table => {
            out.print(&format!("{}check index: {}", text(&plan, &name, colours()), plan.index)).await?;
        }
    }
    if changes(&plan) { Err(CliError::WouldChange) } else { Ok(()) }
}

pub(crate) async fn apply(args: &ApplyArgs, out: &mut Output) -> Result<(), CliError> {
    let document = read(&args.document).await?;
    let operation = Operation::open(&args.change.node).await?;
    let plan = ask_plan(&operation.admin, document.clone()).await?;
    let name = document.name.clone();
    if args.change.output == DataOutput::Table && changes(&plan) {
        out.print(&text(&plan, &name, colours())).await?;
    }
    let request = ApplyRequest {
        document: Some(document),
        check_index: args.check.check_index,
        by: by(&args.change),
        why: args.reason.why.clone(),
    };
    let changed = operation.admin.ask("the request to apply it", operation.admin.client().apply(request)).await?;
    let limit = args.wait.limit();
    let (wait, already) = (settle(&plan, changed), format!("{name} is in force already"));
    let done = in_force(&name, changed);
    operation
        .finish(changed, &wait, limit, Printed { output: args.change.output, done: &done, already: &already }, out)
        .await
}

pub(crate) async fn rollback(args: &RollbackArgs, out: &mut Output) -> Result<(), CliError> {
    let operation = Operation::open(&args.change.node).await?;
    let versions = history(&operation.admin).await?;
    let old = earlier(&versions, operation.before.placement, args.version)?;
    let name = format!("version {}", old.version);
    let document = Document { text: old.document.clone(), format: "toml".to_owned(), name: name.clone() };
    let plan = ask_plan(&operation.admin, document).await?;
    if args.change.output == DataOutput::Table && changes(&plan) {
        out.print(&text(&plan, &name, colours())).await?;
    }
    let request = RollbackRequest {
        version: old.version,
        check_index: args.check.check_index,
        by: by(&args.change),
        why: args.reason.why.clone(),
    };
    let changed = operation.admin.ask("the request to roll back", operation.admin.client().rollback(request)).await?;
    let (wait, already) = (settle(&plan, changed), format!("what {name} says is in force already"));
    let done = in_force(&name, changed);
    let printed = Printed { output: args.change.output, done: &done, already: &already };
    operation.finish(changed, &wait, args.wait.limit(), printed, out).await
}

/// The versions of the placement, the newest first.
pub(crate) async fn history(admin: &Admin) -> Result<Vec<PlacementVersion>, CliError> {
    Ok(admin.ask("the question for the history", admin.client().history(HistoryRequest {})).await?.versions)
}

/// The version asked for, or the newest before the one in force.
fn earlier(versions: &[PlacementVersion], placement: u64, wanted: Option<u64>) -> Result<&PlacementVersion, CliError> {
    match wanted {
        Some(version) => {
            let found = versions.iter().find(|it| it.version == version);
            found.ok_or(CliError::NoVersion { version })
        }
        None => {
            let before = versions.iter().filter(|it| it.version < placement).max_by_key(|it| it.version);
            before.ok_or(CliError::NothingBefore { placement })
        }
    }
}

async fn ask_plan(admin: &Admin, document: Document) -> Result<PlanResponse, CliError> {
    let request = PlanRequest { document: Some(document) };
    admin.ask("the question what it would change", admin.client().plan(request)).await
}

fn in_force(name: &str, changed: Changed) -> String {
    format!("{name} is in force, as version {} of the placement", changed.placement)
}

fn settle(plan: &PlanResponse, changed: Changed) -> Wait {
    let target = |change: &outpost_proto::admin::v1::PlannedChange| {
        let mut nodes = change.to.clone();
        nodes.sort();
        Target { module: change.module.clone(), hosts: Hosts::Nodes(nodes) }
    };
    Wait {
        goal: Goal::Settled { targets: plan.changes.iter().map(target).collect(), firm: false },
        index: changed.index,
        what: "the new placement".to_owned(),
        opening: None,
        goes_on: goes_on("outpost status"),
    }
}

async fn read(args: &DocumentArgs) -> Result<Document, CliError> {
    let path = &args.file;
    let is_stdin = path.as_os_str() == "-";
    let extension = path.extension().and_then(|extension| extension.to_str());
    let format = match (args.format, extension) {
        (Some(DocumentFormat::Toml), _) | (None, Some("toml")) => "toml",
        (Some(DocumentFormat::Json), _) | (None, Some("json")) => "json",
        _ if is_stdin => return Err(BadDocument::StdinFormat.into()),
        _ => return Err(BadDocument::Format { path: path.clone() }.into()),
    };
    let (name, bytes) = if is_stdin {
        let mut bytes = Vec::new();
        tokio::io::stdin().read_to_end(&mut bytes).await.map_err(CliError::Stdin)?;
        ("stdin".to_owned(), bytes)
    } else {
        let bytes = fs::read(path).map_err(|error| CliError::File { path: path.clone(), error })?;
        (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes)
    };
    let text = String::from_utf8(bytes).map_err(|_| BadDocument::NotText { name: name.clone() })?;
    Ok(Document { text, format: format.to_owned(), name })
}

fn changes(plan: &PlanResponse) -> bool {
    !plan.rules.is_empty() || !plan.changes.is_empty()
}

/// What a plan changes, in sections that end with an empty line.
fn text(plan: &PlanResponse, name: &str, colours: bool) -> String {
    let mut text = String::new();
    if !changes(plan) {
        text = format!("{name} changes nothing.\n\n");
    }
    if !plan.rules.is_empty() {
        let rules = plan.rules.iter().map(|rule| format!("  {}\n", painted(rule, colours)));
        text += &format!("rules of {name}:\n{}\n", rules.collect::<String>());
    }
    if !plan.changes.is_empty() {
        let rows = plan.changes.iter().map(|change| {
            [change.module.clone(), list(&change.from), "->".to_owned(), list(&change.to), change.reason.clone()]
        });
        text += &format!("{}\n", table(["MODULE", "FROM", "", "TO", "WHY"], rows));
    }
    if !plan.unplaced.is_empty() {
        let lines =
            plan.unplaced.iter().map(|unplaced| format!("  {}: {}\n", unplaced.module, unplaced.reasons.join("; ")));
        let title = paint("on fewer nodes than asked for, or on none:", Colour::Yellow, colours);
        text += &format!("{title}\n{}\n", lines.collect::<String>());
    }
    text
}

fn painted(rule: &str, colours: bool) -> String {
    match rule.chars().next() {
        Some('+') => paint(rule, Colour::Green, colours),
        Some('-') => paint(rule, Colour::Red, colours),
        Some('~') => paint(rule, Colour::Yellow, colours),
        _ => rule.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::{PlannedChange, Unplaced};

    use super::*;

    fn plan_of_cart() -> PlanResponse {
        let change = PlannedChange {
            module: "cart".to_owned(),
            from: vec!["node-1".to_owned()],
            to: vec!["node-3".to_owned(), "node-2".to_owned()],
            reason: "2 replicas".to_owned(),
        };
        let unplaced = Unplaced { module: "orders".to_owned(), reasons: vec!["no node has zone = a".to_owned()] };
        PlanResponse {
            index: 4,
            rules: vec!["+ module.cart.replicas = 2".to_owned(), "- module.orders.pin".to_owned()],
            changes: vec![change],
            unplaced: vec![unplaced],
        }
    }

    #[test]
    fn a_plan_shows_rules_moves_and_what_fails() {
        assert_eq!(
            text(&plan_of_cart(), "p.toml", false),
            "rules of p.toml:\n  + module.cart.replicas = 2\n  - module.orders.pin\n\n \
             MODULE  FROM        TO              WHY\n \
             cart    node-1  ->  node-3, node-2  2 replicas\n\n\
             on fewer nodes than asked for, or on none:\n  orders: no node has zone = a\n\n"
        );
        assert!(text(&plan_of_cart(), "p.toml", true).contains("\u{1b}[32m+ module"));
        assert_eq!(text(&PlanResponse::default(), "p.toml", false), "p.toml changes nothing.\n\n");
    }

    #[test]
    fn a_wait_for_a_document_knows_what_was_planned() {
        let wait = settle(&plan_of_cart(), Changed { index: 9, placement: 5, changed: true });
        assert_eq!(wait.index, 9);
        let Goal::Settled { targets, firm: false } = wait.goal else { panic!("{wait:?}") };
        let hosts = Hosts::Nodes(vec!["node-2".to_owned(), "node-3".to_owned()]);
        assert_eq!(targets, [Target { module: "cart".to_owned(), hosts }]);
    }

    #[test]
    fn a_rollback_goes_to_the_version_before_the_one_in_force() {
        let version = |version| PlacementVersion { version, ..PlacementVersion::default() };
        let versions = [version(4), version(3), version(1)];
        assert_eq!(earlier(&versions, 4, None).unwrap().version, 3);
        assert_eq!(earlier(&versions, 4, Some(1)).unwrap().version, 1);
        assert!(matches!(earlier(&versions, 4, Some(2)), Err(CliError::NoVersion { version: 2 })));
        assert!(matches!(earlier(&versions, 1, None), Err(CliError::NothingBefore { placement: 1 })));
    }

    #[tokio::test]
    async fn a_document_says_what_it_is_written_in() {
        let args = |file: &str, format| DocumentArgs { file: file.into(), format };
        for (file, error) in
            [("-", "what is stdin written in?"), ("placement.yaml", "what is placement.yaml written in?")]
        {
            let refused = read(&args(file, None)).await.unwrap_err().to_string();
            assert!(refused.starts_with(error), "{refused}");
        }
        let missing = read(&args("/no/such/file", Some(DocumentFormat::Json))).await.unwrap_err().to_string();
        assert!(missing.starts_with("can't read /no/such/file"), "{missing}");
    }
}

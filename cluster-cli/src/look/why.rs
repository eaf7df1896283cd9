//! `why`: how the cluster came to place a module where it is.

use outpost_proto::admin::v1::{ExplainRequest, ExplainResponse};
use serde_json::json;

use super::{
    events,
    modules::{kind, pin, state},
    moves,
};
use crate::{
    admin::Admin,
    args::{DataOutput, WhyArgs},
    error::CliError,
    names,
    output::Output,
    text::table,
    wait::host_names,
};

pub(crate) async fn run(args: &WhyArgs, out: &mut Output) -> Result<(), CliError> {
    let admin = Admin::connect(&args.node).await?;
    names::module(&admin.cluster().await?, &args.module)?;
    let request = ExplainRequest { module: args.module.clone() };
    let explained = admin.ask("the question why", admin.client().explain(request)).await?;
    match args.output {
        DataOutput::Json => out.print_json(&json!(explained)).await,
        DataOutput::Table => out.print_told(&text(&explained)).await,
    }
}

fn text(explained: &ExplainResponse) -> String {
    let module = explained.module.clone().unwrap_or_default();
    let mut text = format!(
        "{} is {} on {} ({}, epoch {})\n",
        module.name,
        state(&module),
        host_names(&module),
        kind(&module),
        module.epoch
    );
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text += &format!("\n{title}:\n");
            text.extend(lines.iter().map(|line| format!("  {line}\n")));
        }
    };
    section("move", module.movement.iter().map(|movement| moves::line(movement, module.epoch)).collect());
    section("problems", module.problems.clone());
    section("rules", explained.rules.iter().cloned().chain(pin(&module)).collect());
    let rows = explained.nodes.iter().map(|node| {
        let verdict = match (node.host, node.eligible) {
            (true, true) => "host",
            (true, false) => "host, but may not be",
            (false, true) => "could be",
            (false, false) => "can't be",
        };
        [node.node.clone(), verdict.to_owned(), node.reason.clone()]
    });
    let verdicts = table(["NODE", "HOST", "WHY"], rows);
    section("nodes", verdicts.lines().map(str::to_owned).collect());
    section("last events", explained.events.iter().map(events::line).collect());
    text
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::{ClusterModule, Event, ModuleHost, NodeVerdict};

    use super::*;

    #[test]
    fn an_answer_has_rules_verdicts_and_events() {
        let host = ModuleHost { node: "node-1".to_owned(), ..ModuleHost::default() };
        let module = ClusterModule {
            name: "cart".to_owned(),
            kind: "exclusive".to_owned(),
            state: "serving".to_owned(),
            epoch: 2,
            hosts: vec![host],
            ..ClusterModule::default()
        };
        let verdict = |node: &str, host, eligible, reason: &str| NodeVerdict {
            node: node.to_owned(),
            host,
            eligible,
            reason: reason.to_owned(),
        };
        let event =
            Event { index: 7, kind: "placed".to_owned(), text: "cart is on node-1".to_owned(), ..Event::default() };
        let explained = ExplainResponse {
            module: Some(module),
            rules: vec!["kind = exclusive (registration)".to_owned()],
            nodes: vec![verdict("node-1", true, true, "was here first"), verdict("node-2", false, false, "cordoned")],
            events: vec![event],
        };
        let shown = text(&explained);
        assert!(shown.starts_with("cart is serving on node-1 (exclusive, epoch 2)\n\nrules:\n  kind = "), "{shown}");
        assert!(shown.contains("   node-2  can't be  cordoned\n"), "{shown}");
        assert!(shown.contains("\nlast events:\n  1970-01-01T00:00:00Z"), "{shown}");
    }
}

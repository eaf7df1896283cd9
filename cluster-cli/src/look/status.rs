//! `status`: the cluster on one screen.

use std::collections::BTreeMap;

use outpost_proto::admin::v1::Cluster;
use serde_json::json;

use super::nodes;
use crate::{
    admin::Admin,
    args::{DataOutput, StatusArgs},
    change::voters,
    describe,
    error::CliError,
    output::Output,
    text::{count, dash, table},
};

pub(crate) async fn run(args: &StatusArgs, out: &mut Output) -> Result<(), CliError> {
    if args.local {
        return describe::status(args, out).await;
    }
    let cluster = Admin::connect(&args.node).await?.cluster().await?;
    match args.output {
        DataOutput::Table => out.print_told(&text(&cluster)).await,
        DataOutput::Json => out.print_json(&json!(cluster)).await,
    }
}

fn text(cluster: &Cluster) -> String {
    let leader = match cluster.leader.as_str() {
        "" => "nobody: nothing can be changed now, and calls go on".to_owned(),
        leader => format!("{leader} (term {})", cluster.term),
    };
    let voters: Vec<String> = cluster.voters.iter().map(|voter| format!("{} {}", voter.node, voter.state)).collect();
    let facts = [
        ("application", cluster.application.clone()),
        ("cluster", if cluster.id.is_empty() { "none joined yet".to_owned() } else { cluster.id.clone() }),
        ("leader", leader),
        ("placement", format!("version {}, log index {}", cluster.placement, cluster.index)),
        ("voters", dash(&voters.join(", "))),
        ("modules", tally(cluster.modules.iter().map(|module| module.state.as_str()))),
        ("nodes", tally(cluster.nodes.iter().map(|node| node.state.as_str()))),
    ];
    let facts: String = facts.iter().map(|(name, value)| format!("{name:13} {value}\n")).collect();
    let rows = cluster.nodes.iter().map(|node| {
        let modules = node.modules.len().to_string();
        [node.name.clone(), nodes::state(node), dash(&node.role), modules, node.calls_in_flight.to_string()]
    });
    let nodes = table(["NODE", "STATE", "ROLE", "MODULES", "CALLS"], rows);
    let mut text = format!("{facts}\n{nodes}");
    let problems = problems(cluster);
    if !problems.is_empty() {
        text += &format!("\n{}:\n", count(problems.len(), "problem"));
        text.extend(problems.iter().map(|problem| format!("  {problem}\n")));
    }
    if let Some(note) = voters::note(cluster) {
        text += &format!("\nnote: {note}\n");
    }
    text
}

/// `10 serving`, or `10: 8 serving, 2 moving`
fn tally<'a>(states: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for state in states {
        *counts.entry(state).or_default() += 1;
    }
    let all: usize = counts.values().sum();
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let parts: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    match parts.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        _ => format!("{all}: {}", parts.join(", ")),
    }
}

fn problems(cluster: &Cluster) -> Vec<String> {
    let mut problems = cluster.problems.clone();
    let of_modules = cluster.modules.iter();
    problems.extend(of_modules.flat_map(|module| module.problems.iter().map(|it| format!("{}: {it}", module.name))));
    problems
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::{ClusterModule, ClusterNode, Voter};

    use super::*;

    #[test]
    fn one_screen_tells_who_leads_what_runs_and_what_is_wrong() {
        let node = |name: &str, cordoned| ClusterNode {
            name: name.to_owned(),
            state: "ready".to_owned(),
            role: "voter".to_owned(),
            cordoned,
            ..ClusterNode::default()
        };
        let module = |name: &str, state: &str, problems: &[&str]| ClusterModule {
            name: name.to_owned(),
            state: state.to_owned(),
            problems: problems.iter().map(ToString::to_string).collect(),
            ..ClusterModule::default()
        };
        let voter = Voter { node: "node-1".to_owned(), raft_id: 1, state: "leader".to_owned() };
        let cluster = Cluster {
            application: "shop".to_owned(),
            leader: "node-1".to_owned(),
            term: 3,
            index: 128,
            placement: 4,
            voters: vec![voter],
            nodes: vec![node("node-1", false), node("node-2", true)],
            modules: vec![module("cart", "serving", &[]), module("orders", "unplaced", &["no node has zone = a"])],
            problems: vec!["two nodes are named node-3".to_owned()],
            ..Cluster::default()
        };
        let shown = text(&cluster);
        for line in [
            "leader        node-1 (term 3)",
            "placement     version 4, log index 128",
            "voters        node-1 leader",
            "modules       2: 1 serving, 1 unplaced",
            "nodes         2 ready",
            " node-2  ready, cordoned  voter  0        0",
            "2 problems:",
            "  orders: no node has zone = a",
            "note: one voter: the placement log is on one disk only; 3 nodes with a data_dir get 3 voters",
        ] {
            assert!(shown.lines().any(|it| it == line), "{line} in\n{shown}");
        }
        assert!(text(&Cluster::default()).contains("leader        nobody: nothing can be changed now"));
    }
}

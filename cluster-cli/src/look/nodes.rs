//! `nodes`.

use outpost_proto::admin::v1::ClusterNode;
use serde_json::json;

use crate::{
    admin::Admin,
    args::{NodesArgs, NodesOutput},
    error::CliError,
    output::Output,
    text::{dash, list, table},
};

pub(crate) async fn run(args: &NodesArgs, out: &mut Output) -> Result<(), CliError> {
    let cluster = Admin::connect(&args.node).await?.cluster().await?;
    match args.output {
        NodesOutput::Table => out.print_told(&narrow(&cluster.nodes)).await,
        NodesOutput::Wide => out.print_told(&wide(&cluster.nodes)).await,
        NodesOutput::Json => out.print_json(&json!(cluster.nodes)).await,
    }
}

fn narrow(nodes: &[ClusterNode]) -> String {
    table(["NAME", "STATE", "ROLE", "VERSION", "INGRESS", "MODULES", "LABELS", "CALLS"], nodes.iter().map(columns))
}

fn wide(nodes: &[ClusterNode]) -> String {
    const HEADER: [&str; 13] = [
        "NAME",
        "STATE",
        "ROLE",
        "VERSION",
        "INGRESS",
        "MODULES",
        "LABELS",
        "CALLS",
        "CONNECTIONS",
        "CLUSTER",
        "ADMIN",
        "DISK",
        "GENERATION",
    ];
    let rows = nodes.iter().map(|node| {
        let [name, state, role, version, ingress, _, labels, calls] = columns(node);
        let disk = if node.persistent { "yes" } else { "no" }.to_owned();
        let (cluster, admin) = (dash(&node.address), dash(&node.admin));
        let (connections, generation) = (node.connections.to_string(), node.generation.to_string());
        let modules = list(&node.modules);
        [name, state, role, version, ingress, modules, labels, calls, connections, cluster, admin, disk, generation]
    });
    table(HEADER, rows)
}

fn columns(node: &ClusterNode) -> [String; 8] {
    let mut labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    let tls = if node.tls { ", TLS" } else { "" };
    [
        node.name.clone(),
        state(node),
        dash(&node.role),
        dash(&node.version),
        dash(&format!("{}{tls}", node.ingress)),
        node.modules.len().to_string(),
        list(&labels),
        node.calls_in_flight.to_string(),
    ]
}

/// `ready`, `ready, cordoned` or `ready, drained`, which is cordoned as well
pub(super) fn state(node: &ClusterNode) -> String {
    match (node.drained, node.cordoned) {
        (true, _) => format!("{}, drained", node.state),
        (false, true) => format!("{}, cordoned", node.state),
        (false, false) => node.state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_line() {
        let node = ClusterNode {
            name: "node-1".to_owned(),
            state: "ready".to_owned(),
            cordoned: true,
            role: "leader".to_owned(),
            version: "1.2.3".to_owned(),
            ingress: "127.0.0.1:7000".to_owned(),
            admin: "127.0.0.1:7001".to_owned(),
            labels: [("zone", "b"), ("disk", "ssd")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            modules: vec!["cart".to_owned(), "orders".to_owned()],
            calls_in_flight: 3,
            persistent: true,
            ..ClusterNode::default()
        };
        let nodes = [node];
        assert_eq!(
            narrow(&nodes).lines().nth(1),
            Some(" node-1  ready, cordoned  leader  1.2.3    127.0.0.1:7000  2        disk=ssd, zone=b  3")
        );
        let wide = wide(&nodes);
        let drained = ClusterNode { drained: true, ..nodes[0].clone() };
        assert_eq!(state(&drained), "ready, drained");
        assert!(wide.contains("cart, orders") && wide.contains("127.0.0.1:7001  yes"), "{wide}");
    }
}

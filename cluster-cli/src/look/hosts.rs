//! `where`: the hosts of a module.

use std::io::{self, IsTerminal as _};

use outpost_proto::admin::v1::{Cluster, ClusterModule};
use serde_json::json;

use super::modules::{kind, pin, state};
use crate::{
    admin::Admin,
    args::{DataOutput, WhereArgs},
    error::CliError,
    names,
    output::Output,
    text::{dash, table},
};

pub(crate) async fn run(args: &WhereArgs, out: &mut Output) -> Result<(), CliError> {
    let cluster = Admin::connect(&args.node).await?.cluster().await?;
    let module = names::module(&cluster, &args.module)?;
    if args.output == DataOutput::Json {
        return out.print_json(&json!(module.hosts)).await;
    }
    let is_for_people = io::stdout().is_terminal() && !module.hosts.is_empty();
    let text = if is_for_people { detailed(&cluster, module) } else { names_only(module) };
    if text.is_empty() {
        let why = if module.problems.is_empty() { state(module) } else { module.problems.join("; ") };
        return Err(CliError::NoHost { module: module.name.clone(), why });
    }
    out.print_told(&text).await
}

/// The hosts that are worth calling.
fn names_only(module: &ClusterModule) -> String {
    let hosts = module.hosts.iter().filter(|host| !matches!(host.state.as_str(), "failed" | "draining"));
    hosts.map(|host| format!("{}\n", host.node)).collect()
}

fn detailed(cluster: &Cluster, module: &ClusterModule) -> String {
    let rows = module.hosts.iter().map(|host| {
        let node = cluster.nodes.iter().find(|node| node.name == host.node);
        let ingress = node.map_or("", |node| node.ingress.as_str());
        [host.node.clone(), host.state.clone(), dash(ingress), dash(&host.error)]
    });
    let hosts = table(["NODE", "STATE", "INGRESS", "ERROR"], rows);
    let pin = pin(module).map(|pin| format!("{pin}\n")).unwrap_or_default();
    format!("{} is {}, {}, epoch {}\n{pin}\n{hosts}", module.name, kind(module), state(module), module.epoch)
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::{ClusterNode, ModuleHost};

    use super::*;

    #[test]
    fn scripts_get_names_and_people_get_more() {
        let host = |node: &str| ModuleHost { node: node.to_owned(), state: "serving".to_owned(), error: String::new() };
        let module = ClusterModule {
            name: "cart".to_owned(),
            kind: "exclusive".to_owned(),
            state_class: "fixed".to_owned(),
            state: "serving".to_owned(),
            epoch: 3,
            hosts: vec![host("node-2"), host("node-3")],
            ..ClusterModule::default()
        };
        let node =
            ClusterNode { name: "node-2".to_owned(), ingress: "127.0.0.1:7010".to_owned(), ..ClusterNode::default() };
        assert_eq!(names_only(&module), "node-2\nnode-3\n");
        let leaving = ClusterModule {
            hosts: vec![ModuleHost { state: "draining".to_owned(), ..host("node-1") }],
            ..module.clone()
        };
        assert_eq!(names_only(&leaving), "");
        let shown = detailed(&Cluster { nodes: vec![node], ..Cluster::default() }, &module);
        assert!(shown.starts_with("cart is exclusive, fixed, serving, epoch 3\n\n NODE"), "{shown}");
        assert!(shown.contains(" node-2  serving  127.0.0.1:7010  -\n"), "{shown}");
    }
}

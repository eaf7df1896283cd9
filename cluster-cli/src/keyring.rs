//! The keys that gossip is sealed with: `keyring`.

use outpost_proto::{admin::v1::ClusterNode, keyring::GossipKey};
use serde_json::json;

use crate::{
    admin::Admin,
    args::{DataOutput, KeyringVerb},
    error::CliError,
    output::Output,
    text::table,
};

pub(crate) async fn run(verb: &KeyringVerb, out: &mut Output) -> Result<(), CliError> {
    let args = match verb {
        KeyringVerb::Generate => return out.print(&GossipKey::new(rand::random()).secret()).await,
        KeyringVerb::List(args) => args,
    };
    let cluster = Admin::connect(&args.node).await?.cluster().await?;
    let nodes: Vec<&ClusterNode> =
        cluster.nodes.iter().filter(|node| !matches!(node.state.as_str(), "left" | "dead")).collect();
    match args.output {
        DataOutput::Table => out.print_told(&listed(&nodes)).await,
        DataOutput::Json => {
            let keys = |node: &&ClusterNode| json!({ "node": node.name, "gossip_keys": node.gossip_keys });
            out.print_json(&json!(nodes.iter().map(keys).collect::<Vec<_>>())).await
        }
    }
}

fn listed(nodes: &[&ClusterNode]) -> String {
    let rows = nodes.iter().map(|node| match node.gossip_keys.split_first() {
        None => [node.name.clone(), "none: its gossip is plain".to_owned(), String::new()],
        Some((seals, rest)) => [node.name.clone(), seals.clone(), rest.join(", ")],
    });
    table(["NODE", "SEALS WITH", "OPENS TOO"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_seals() {
        let node = |name: &str, keys: &[&str]| ClusterNode {
            name: name.to_owned(),
            gossip_keys: keys.iter().map(ToString::to_string).collect(),
            ..ClusterNode::default()
        };
        let text = listed(&[&node("node-1", &["aa", "bb", "cc"]), &node("node-2", &[])]);
        assert!(text.contains("aa") && text.contains("bb, cc") && text.contains("plain"), "{text}");
    }
}

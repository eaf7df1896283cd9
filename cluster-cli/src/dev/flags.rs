//! What a node is started with: flags of the command line that every application has.

use super::ports::Block;
use crate::args::Setting;

/// So many nodes begin a cluster together: it outlives the loss of one of them.
const FIRST_VOTERS: usize = 3;

#[derive(Debug)]
pub(super) struct Flags<'a> {
    /// Its index.
    pub(super) node: usize,
    /// Those of all nodes.
    pub(super) ports: &'a [Block],
    pub(super) data_dir: &'a str,
    /// How many nodes the cluster begins with, if it is new; one that is not leaves this alone.
    pub(super) begin_with: usize,
    /// The folder with certificates and keys, if there are to be some.
    pub(super) trust: Option<&'a str>,
    pub(super) settings: &'a [Setting],
}

/// The name of the cluster, which certificates tell.
pub(super) fn cluster(settings: &[Setting]) -> String {
    let set = settings.iter().rev().filter_map(|Setting(setting)| setting.split_once('='));
    let name = set.filter(|(key, _)| key.trim() == "cluster.name").map(|(_, name)| name).next();
    name.map_or_else(|| "dev".to_owned(), |name| name.trim().trim_matches('"').to_owned())
}

/// `node-1` of index 0
pub(super) fn name(node: usize) -> String {
    format!("node-{}", node + 1)
}

impl Flags<'_> {
    pub(super) fn arguments(&self) -> Vec<String> {
        let ports = self.ports[self.node];
        let others = self.ports.iter().enumerate().filter(|(index, _)| *index != self.node);
        let mut arguments = ["--listen", &ports.ingress().to_string(), "--admin-listen", &ports.admin().to_string()]
            .map(str::to_owned)
            .to_vec();
        let mut set = |setting: String| arguments.extend(["--set".to_owned(), setting]);
        set(format!("cluster.listen={}", ports.cluster()));
        set(format!("node.name={}", name(self.node)));
        set(format!("node.data_dir={}", quoted(self.data_dir)));
        set(format!("cluster.seeds={}", array(others.map(|(_, ports)| ports.cluster().to_string()))));
        // Of two voters both must live, so two are worse than one.
        let voters = if self.begin_with < FIRST_VOTERS { 1 } else { FIRST_VOTERS };
        set(format!("cluster.initial_voters={}", array((0..voters).map(name))));
        if let Some(trust) = self.trust {
            let name = name(self.node);
            set(format!("cluster.name={}", quoted(&cluster(self.settings))));
            set(format!("trust.certificate={}", quoted(&format!("{trust}/{name}.pem"))));
            set(format!("trust.key={}", quoted(&format!("{trust}/{name}.key"))));
            set(format!("trust.authorities={}", quoted(&format!("{trust}/ca.pem"))));
            set(format!("trust.gossip_keys={}", quoted(&format!("{trust}/gossip.keys"))));
        }
        for Setting(setting) in self.settings {
            set(setting.clone());
        }
        arguments
    }
}

/// A list, as TOML.
fn array(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.map(|item| quoted(&item)).collect();
    format!("[{}]", items.join(","))
}

/// A string, as TOML: JSON's escapes are among those that it has.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::ports::first_free;

    fn arguments(node: usize, nodes: usize, begin_with: usize) -> Vec<String> {
        let mut ports = Vec::new();
        for _ in 0..nodes {
            let from = ports.last().map_or(7000, |last: &Block| last.next());
            ports.push(first_free(from, |_| true).unwrap().0);
        }
        let settings = [Setting("log.filter=debug".to_owned())];
        Flags { node, ports: &ports, data_dir: "/d/a b", begin_with, trust: None, settings: &settings }.arguments()
    }

    #[test]
    fn a_node_is_told_where_it_is_and_who_the_others_are() {
        assert_eq!(
            arguments(1, 3, 3),
            [
                "--listen",
                "127.0.0.1:7010",
                "--admin-listen",
                "127.0.0.1:7011",
                "--set",
                "cluster.listen=127.0.0.1:7012",
                "--set",
                "node.name=node-2",
                "--set",
                "node.data_dir=\"/d/a b\"",
                "--set",
                "cluster.seeds=[\"127.0.0.1:7002\",\"127.0.0.1:7022\"]",
                "--set",
                "cluster.initial_voters=[\"node-1\",\"node-2\",\"node-3\"]",
                "--set",
                "log.filter=debug",
            ]
        );
    }

    #[test]
    fn with_certificates_the_cluster_has_the_name_that_is_in_them() {
        let ports = [first_free(7000, |_| true).unwrap().0];
        let arguments = |settings: &[Setting]| {
            let trust = Some("/t");
            Flags { node: 0, ports: &ports, data_dir: "/d", begin_with: 1, trust, settings }.arguments()
        };
        let plain = arguments(&[]);
        for setting in
            ["cluster.name=\"dev\"", "trust.certificate=\"/t/node-1.pem\"", "trust.authorities=\"/t/ca.pem\""]
        {
            assert!(plain.contains(&setting.to_owned()), "{setting} in {plain:?}");
        }
        assert_eq!(cluster(&[Setting("cluster.name=shop".to_owned())]), "shop");
        assert_eq!(cluster(&[Setting("cluster.name = \"shop\"".to_owned())]), "shop");
    }

    #[test]
    fn a_cluster_of_one_or_two_begins_with_one_voter() {
        for nodes in [1, 2] {
            let one = "cluster.initial_voters=[\"node-1\"]".to_owned();
            assert!(arguments(0, nodes, nodes).contains(&one));
        }
        assert!(arguments(0, 1, 1).contains(&"cluster.seeds=[]".to_owned()));
    }
}

//! What is left on a node that is drained. Pure.

use outpost_proto::admin::v1::{Cluster, ClusterModule};

use super::Progress;
use crate::status::printable;

pub(super) fn on_cluster(cluster: &Cluster, node: &str) -> Progress {
    let Some(known) = cluster.nodes.iter().find(|it| it.name == node) else { return Progress::Done };
    if !known.drained {
        return Progress::Failed("it is not drained any more: somebody has uncordoned it".to_owned());
    }
    let rest = rest(cluster, node);
    match rest.is_done() {
        true => Progress::Done,
        false => Progress::Going(rest.in_short()),
    }
}

/// What is left on a node.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Rest {
    /// What can leave it, and has not yet.
    pub(crate) leaving: Vec<Left>,
    /// What has state that can't travel, and stays.
    pub(crate) fixed: Vec<Left>,
    /// That it votes, and what is to be known about that.
    pub(crate) vote: Option<String>,
}

/// A module that is left on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) module: String,
    /// How it stands.
    pub(crate) standing: String,
    /// Why it is there still.
    pub(crate) why: String,
}

impl Rest {
    /// Whether nothing that can leave is left.
    pub(crate) fn is_done(&self) -> bool {
        self.leaving.is_empty() && self.vote.is_none()
    }

    /// `still there: cart (copying to node-2), its vote`
    fn in_short(&self) -> String {
        let modules = self.leaving.iter().map(|left| format!("{} ({})", left.module, left.standing));
        let parts: Vec<String> = modules.chain(self.vote.as_ref().map(|_| "its vote".to_owned())).collect();
        printable(&format!("still there: {}", parts.join(", ")))
    }

    /// The same with reasons, a line each.
    pub(crate) fn in_full(&self, node: &str) -> String {
        let modules = self.leaving.iter().chain(&self.fixed).map(|left| match left.why.as_str() {
            "" => format!("{} ({})", left.module, left.standing),
            why => format!("{} ({}): {why}", left.module, left.standing),
        });
        let lines: Vec<String> = modules.chain(self.vote.iter().map(|vote| format!("its vote: {vote}"))).collect();
        printable(&format!("on {node} there is still\n  {}", lines.join("\n  ")))
    }
}

pub(crate) fn rest(cluster: &Cluster, node: &str) -> Rest {
    let mut rest = Rest { vote: vote(cluster, node), ..Rest::default() };
    let known = cluster.nodes.iter().find(|it| it.name == node);
    for module in &cluster.modules {
        let Some(standing) = standing(module, node, known.is_some_and(|it| it.modules.contains(&module.name))) else {
            continue;
        };
        let is_host = module.hosts.iter().any(|host| host.node == node);
        let stays = module.state_class == "fixed" && is_host && module.movement.is_none();
        let errors = module.hosts.iter().filter(|host| !host.error.is_empty());
        let errors = errors.map(|host| format!("{}: {}", host.node, host.error));
        let mut why: Vec<String> = module.problems.iter().cloned().chain(errors).collect();
        if stays && why.is_empty() {
            why.push(format!(
                "its state can't travel; without it, it goes by `outpost move {} --to NODE --lose-state`",
                module.name
            ));
        }
        let left = Left { module: module.name.clone(), standing, why: why.join("; ") };
        if stays { rest.fixed.push(left) } else { rest.leaving.push(left) }
    }
    rest
}

/// How a module stands on a node; nothing if it has no business there.
fn standing(module: &ClusterModule, node: &str, has_instance: bool) -> Option<String> {
    let host = module.hosts.iter().find(|host| host.node == node);
    match (&module.movement, host) {
        (Some(movement), _) if movement.from == node => Some(format!("{} to {}", movement.phase, movement.to)),
        (Some(movement), _) if movement.to == node => Some(format!("{} from {}", movement.phase, movement.from)),
        (_, Some(host)) => Some(host.state.clone()),
        _ => has_instance.then(|| "ending".to_owned()),
    }
}

fn vote(cluster: &Cluster, node: &str) -> Option<String> {
    let voter = cluster.voters.iter().find(|voter| voter.node == node)?;
    let able = cluster.nodes.iter().filter(|it| it.name != node && it.state == "ready" && it.persistent && !it.drained);
    Some(match (cluster.leader.is_empty(), cluster.voters.len(), able.count()) {
        (true, ..) => "nobody leads the placement log now, so that no vote can be taken from anybody".to_owned(),
        (_, _, 0) => "no other node that is ready and not drained has a data_dir, and others never vote".to_owned(),
        (_, 1, _) => format!("it is the only voter ({})", voter.state),
        (_, voters, _) => format!("it is one of {voters} voters ({})", voter.state),
    })
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::{ClusterNode, ModuleHost, Movement, Voter};

    use super::*;

    fn module(name: &str, class: &str, host: &str) -> ClusterModule {
        let host = ModuleHost { node: host.to_owned(), state: "serving".to_owned(), ..ModuleHost::default() };
        ClusterModule {
            name: name.to_owned(),
            state_class: class.to_owned(),
            hosts: vec![host],
            ..ClusterModule::default()
        }
    }

    fn cluster(modules: Vec<ClusterModule>) -> Cluster {
        let node = |name: &str, drained| ClusterNode {
            name: name.to_owned(),
            state: "ready".to_owned(),
            persistent: true,
            drained,
            ..ClusterNode::default()
        };
        Cluster {
            leader: "node-2".to_owned(),
            nodes: vec![node("node-1", true), node("node-2", false)],
            modules,
            ..Cluster::default()
        }
    }

    #[test]
    fn what_is_left_is_told_until_only_what_can_not_leave_is_there() {
        let movement = Movement {
            from: "node-1".to_owned(),
            to: "node-2".to_owned(),
            phase: "copying".to_owned(),
            ..Movement::default()
        };
        let cart = ClusterModule { movement: Some(movement), ..module("cart", "ephemeral", "node-1") };
        let mut view = cluster(vec![cart, module("disk", "fixed", "node-1"), module("orders", "none", "node-2")]);
        view.voters = vec![Voter { node: "node-1".to_owned(), raft_id: 1, state: "follower".to_owned() }];
        let going = |text: &str| Progress::Going(text.to_owned());
        assert_eq!(on_cluster(&view, "node-1"), going("still there: cart (copying to node-2), its vote"));
        // The owner is another, and the old instance waits for it to serve.
        view.modules[0].hosts[0].node = "node-2".to_owned();
        view.modules[0].movement.as_mut().unwrap().phase = "activating".to_owned();
        view.voters.clear();
        assert_eq!(on_cluster(&view, "node-1"), going("still there: cart (activating to node-2)"));
        view.modules[0].movement = None;
        view.nodes[0].modules = vec!["cart".to_owned()];
        assert_eq!(on_cluster(&view, "node-1"), going("still there: cart (ending)"));
        view.nodes[0].modules.clear();
        assert_eq!(on_cluster(&view, "node-1"), Progress::Done);
        let left = rest(&view, "node-1");
        assert!(left.is_done() && left.leaving.is_empty(), "{left:?}");
        assert!(left.fixed[0].why.contains("`outpost move disk --to NODE --lose-state`"), "{left:?}");
    }

    #[test]
    fn what_stays_says_why() {
        let mut view = cluster(vec![module("cart", "none", "node-1")]);
        view.modules[0].problems =
            vec!["it is on node-1, but it is draining".to_owned(), "node-2: cordoned".to_owned()];
        view.voters = vec![Voter { node: "node-1".to_owned(), raft_id: 1, state: "leader".to_owned() }];
        view.nodes[1].persistent = false;
        assert_eq!(
            rest(&view, "node-1").in_full("node-1"),
            "on node-1 there is still\n  cart (serving): it is on node-1, but it is draining; node-2: cordoned\n  its \
             vote: no other node that is ready and not drained has a data_dir, and others never vote"
        );
    }

    #[test]
    fn a_drain_ends_when_somebody_else_ends_it() {
        let mut view = cluster(vec![module("cart", "none", "node-1")]);
        view.nodes[0].drained = false;
        assert!(matches!(on_cluster(&view, "node-1"), Progress::Failed(why) if why.contains("uncordoned")));
        view.nodes.clear();
        assert_eq!(on_cluster(&view, "node-1"), Progress::Done, "it was forgotten");
    }
}

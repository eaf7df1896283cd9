//! Whether a cluster is where a change sends it.
//!
//! ```text
//! Watch ─▶ Cluster ─▶ Wait::on_cluster ─▶ Progress        pure
//!            follow ◀──────┘  shows it, and ends at Done, Failed, a limit or Ctrl-C
//! ```

mod drain;
mod follow;
mod movement;

pub(crate) use drain::{Left, Rest, rest};
pub(crate) use follow::{Outcome, follow, views};
pub(crate) use movement::{Ending, Moved, ending, phase};
use outpost_proto::admin::v1::{Cluster, ClusterModule, Movement};

use crate::{status::printable, text::count};

/// What is waited for, after the entry `index` of the placement log.
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) goal: Goal,
    pub(crate) index: u64,
    /// For people: "the move of checkout to node-2".
    pub(crate) what: String,
    /// What became of it before it was waited for, if that is worth a line.
    pub(crate) opening: Option<String>,
    /// What to do about it when it is waited for no more.
    pub(crate) goes_on: String,
}

#[derive(Debug)]
pub(crate) enum Goal {
    /// This move has ended, in whichever way: only the events tell that.
    Moved {
        module: String,
        to: String,
        id: u64,
    },
    /// Every module serves, and none is on its way.
    Settled {
        targets: Vec<Target>,
        /// Whether the targets must be met. What was only planned may come out otherwise, when nodes come and go.
        firm: bool,
    },
    Forgotten {
        node: String,
    },
    /// Nothing that can leave the node is on it.
    Drained {
        node: String,
    },
    /// So many nodes vote; 0 is what the cluster thinks best.
    Voters {
        count: u32,
    },
}

/// Where one module should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) module: String,
    pub(crate) hosts: Hosts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// On these nodes, in the order of their names.
    Nodes(Vec<String>),
    /// On so many; 0 is every node.
    Count(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// What the node tells is from before the change.
    Behind(String),
    /// A phase, by its name, and how it stands.
    Step {
        phase: String,
        text: String,
    },
    /// How it stands.
    Going(String),
    /// Nothing is under way, but not all came out as planned: either it does not, or it has not begun.
    Quiet(String),
    Done,
    Failed(String),
}

impl Wait {
    pub(crate) fn on_cluster(&self, cluster: &Cluster) -> Progress {
        if cluster.index < self.index {
            let node = if cluster.seen_by.is_empty() { "the node" } else { &cluster.seen_by };
            return Progress::Behind(format!("{node} has not heard of it yet"));
        }
        match &self.goal {
            Goal::Moved { module, to, id } => movement::on_cluster(cluster, module, to, *id),
            Goal::Settled { targets, firm } => settled(cluster, targets, *firm),
            Goal::Forgotten { node } => match cluster.nodes.iter().any(|it| it.name == *node) {
                true => Progress::Going(format!("{node} is still known")),
                false => Progress::Done,
            },
            Goal::Drained { node } => drain::on_cluster(cluster, node),
            Goal::Voters { count } => voters(cluster, *count),
        }
    }

    /// The move that is waited for, while it is under way.
    fn movement<'a>(&self, cluster: &'a Cluster) -> Option<&'a Movement> {
        let Goal::Moved { module, id, .. } = &self.goal else { return None };
        let module = cluster.modules.iter().find(|it| it.name == *module)?;
        module.movement.as_ref().filter(|movement| movement.id == *id)
    }

    /// What is to be said when it has not come to its end in time, if that is more than how it stood last.
    fn in_full(&self, cluster: &Cluster) -> Option<String> {
        let Goal::Drained { node } = &self.goal else { return None };
        Some(rest(cluster, node).in_full(node))
    }
}

/// Where to look at a change that is waited for no more.
pub(crate) fn goes_on(look: &str) -> String {
    format!("it goes on, and `{look}` tells how it stands")
}

fn settled(cluster: &Cluster, targets: &[Target], firm: bool) -> Progress {
    let busy: Vec<String> = cluster.modules.iter().filter(|module| !is_settled(module)).map(standing).collect();
    if !busy.is_empty() {
        let all = count(cluster.modules.len(), "module");
        return Progress::Going(format!("{} of {all} not there yet: {}", busy.len(), busy.join(", ")));
    }
    let missed: Vec<String> = targets.iter().filter_map(|target| miss(cluster, target)).collect();
    match missed.is_empty() {
        true => Progress::Done,
        false if firm => Progress::Going(missed.join(", ")),
        false => Progress::Quiet(missed.join(", ")),
    }
}

fn is_settled(module: &ClusterModule) -> bool {
    module.state == "serving" && module.moving_to.is_empty()
}

/// `cart moving to node-2`, `orders unplaced (no node has zone = a)`
fn standing(module: &ClusterModule) -> String {
    let problem = module.problems.first().map(|problem| format!(" ({problem})")).unwrap_or_default();
    let to = if module.moving_to.is_empty() { String::new() } else { format!(" to {}", module.moving_to) };
    printable(&format!("{} {}{to}{problem}", module.name, module.state))
}

/// How a module misses its target.
fn miss(cluster: &Cluster, target: &Target) -> Option<String> {
    let Some(module) = cluster.modules.iter().find(|module| module.name == target.module) else {
        return Some(format!("{} is not in the cluster", target.module));
    };
    let hosts = module.hosts.len();
    match &target.hosts {
        Hosts::Nodes(nodes) => {
            let mut names: Vec<&String> = module.hosts.iter().map(|host| &host.node).collect();
            names.sort();
            let there = names.into_iter().eq(nodes);
            (!there).then(|| format!("{} is on {}, not on {}", module.name, host_names(module), nodes.join(", ")))
        }
        Hosts::Count(0) => (module.replicas != 0).then(|| format!("{} is on {hosts} of all nodes", module.name)),
        Hosts::Count(wanted) => (module.replicas != *wanted || usize::try_from(*wanted) != Ok(hosts))
            .then(|| format!("{} is on {hosts} of {wanted} nodes", module.name)),
    }
}

fn voters(cluster: &Cluster, count: u32) -> Progress {
    let voting = cluster.voters.len();
    if cluster.voters_set != count {
        return Progress::Going("not set yet".to_owned());
    }
    if count == 0 || usize::try_from(count) == Ok(voting) {
        return Progress::Done;
    }
    let able = cluster.nodes.iter().filter(|node| node.state == "ready" && node.persistent).count();
    match usize::try_from(count) {
        Ok(count) if able < count => Progress::Failed(format!(
            "{voting} of {count} vote: only {able} of the nodes that are ready have a data_dir, and others never vote; \
             more follow when there are more"
        )),
        _ => Progress::Going(format!("{voting} of {count} vote")),
    }
}

/// `node-1, node-2`
pub(crate) fn host_names(module: &ClusterModule) -> String {
    let names: Vec<&str> = module.hosts.iter().map(|host| host.node.as_str()).collect();
    if names.is_empty() { "no node".to_owned() } else { names.join(", ") }
}

/// `: no database; node-2: it has failed`
pub(crate) fn faults(module: &ClusterModule) -> String {
    let errors = module.hosts.iter().filter(|host| !host.error.is_empty());
    let errors = errors.map(|host| format!("{}: {}", host.node, host.error));
    let faults: Vec<String> = module.problems.iter().cloned().chain(errors).collect();
    if faults.is_empty() { String::new() } else { printable(&format!(": {}", faults.join("; "))) }
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::{ClusterNode, ModuleHost, Voter};

    use super::*;

    fn module(name: &str, state: &str, epoch: u64, moving_to: &str, hosts: &[(&str, &str)]) -> ClusterModule {
        let host = |(node, state): &(&str, &str)| ModuleHost {
            node: (*node).to_owned(),
            state: (*state).to_owned(),
            ..ModuleHost::default()
        };
        ClusterModule {
            name: name.to_owned(),
            state: state.to_owned(),
            epoch,
            moving_to: moving_to.to_owned(),
            hosts: hosts.iter().map(host).collect(),
            ..ClusterModule::default()
        }
    }

    fn cluster(index: u64, modules: Vec<ClusterModule>) -> Cluster {
        Cluster { index, modules, seen_by: "node-1".to_owned(), ..Cluster::default() }
    }

    fn wait(index: u64, goal: Goal) -> Wait {
        Wait { goal, index, what: "the change".to_owned(), opening: None, goes_on: goes_on("outpost status") }
    }

    #[test]
    fn settled_is_when_all_serve_and_none_moves() {
        let wait = wait(10, Goal::Settled { targets: Vec::new(), firm: false });
        let busy = vec![
            module("cart", "moving", 2, "node-2", &[("node-1", "serving")]),
            module("orders", "serving", 1, "", &[("node-1", "serving")]),
        ];
        assert_eq!(
            wait.on_cluster(&cluster(10, busy)),
            Progress::Going("1 of 2 modules not there yet: cart moving to node-2".to_owned())
        );
        let done = vec![module("cart", "serving", 3, "", &[("node-2", "serving")])];
        assert_eq!(wait.on_cluster(&cluster(11, done)), Progress::Done);
    }

    #[test]
    fn what_was_planned_may_come_out_otherwise_and_what_was_asked_may_not() {
        let target = Target { module: "cart".to_owned(), hosts: Hosts::Nodes(vec!["node-2".to_owned()]) };
        let here = cluster(10, vec![module("cart", "serving", 2, "", &[("node-1", "serving")])]);
        let goal = |firm| Goal::Settled { targets: vec![target.clone()], firm };
        let missed = "cart is on node-1, not on node-2".to_owned();
        assert_eq!(wait(10, goal(false)).on_cluster(&here), Progress::Quiet(missed.clone()));
        assert_eq!(wait(10, goal(true)).on_cluster(&here), Progress::Going(missed));
    }

    #[test]
    fn a_count_is_met_by_rule_and_by_hosts() {
        let counted = |count, replicas, hosts: &[(&str, &str)]| {
            let module = ClusterModule { replicas, ..module("cart", "serving", 2, "", hosts) };
            let target = Target { module: "cart".to_owned(), hosts: Hosts::Count(count) };
            wait(10, Goal::Settled { targets: vec![target], firm: true }).on_cluster(&cluster(10, vec![module]))
        };
        let (one, two) = (&[("a", "serving")][..], &[("a", "serving"), ("b", "serving")][..]);
        assert_eq!(counted(2, 2, two), Progress::Done);
        assert_eq!(counted(0, 0, two), Progress::Done);
        assert_eq!(counted(2, 2, one), Progress::Going("cart is on 1 of 2 nodes".to_owned()));
        assert_eq!(counted(1, 2, one), Progress::Going("cart is on 1 of 1 nodes".to_owned()));
    }

    #[test]
    fn voters_that_can_not_be_are_not_waited_for() {
        let node = |persistent| ClusterNode { state: "ready".to_owned(), persistent, ..ClusterNode::default() };
        let mut cluster = Cluster {
            index: 10,
            voters: vec![Voter::default()],
            nodes: vec![node(true), node(true), node(false)],
            ..Cluster::default()
        };
        let wait = wait(0, Goal::Voters { count: 3 });
        assert_eq!(wait.on_cluster(&cluster), Progress::Going("not set yet".to_owned()));
        cluster.voters_set = 3;
        assert!(matches!(wait.on_cluster(&cluster), Progress::Failed(text) if text.contains("only 2 of the nodes")));
        cluster.nodes[2].persistent = true;
        assert_eq!(wait.on_cluster(&cluster), Progress::Going("1 of 3 vote".to_owned()));
        cluster.voters = vec![Voter::default(); 3];
        assert_eq!(wait.on_cluster(&cluster), Progress::Done);
    }

    #[test]
    fn a_node_is_forgotten_when_it_is_not_named_any_more() {
        let wait = wait(5, Goal::Forgotten { node: "node-4".to_owned() });
        let node = ClusterNode { name: "node-4".to_owned(), ..ClusterNode::default() };
        let known = Cluster { index: 5, nodes: vec![node], ..Cluster::default() };
        assert_eq!(wait.on_cluster(&known), Progress::Going("node-4 is still known".to_owned()));
        assert_eq!(wait.on_cluster(&cluster(5, Vec::new())), Progress::Done);
    }
}

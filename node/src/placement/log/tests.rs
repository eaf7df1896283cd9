//! Whole clusters in one process, over TCP.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::*;
use crate::{
    id::{ModuleName, Timestamp},
    membership::{Lifecycle, Member},
    placement::state::{Node, PartChange},
};

/// How long a fact may take to become true.
const PATIENCE: Duration = Duration::from_secs(30);

fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(60),
        election_min: Duration::from_millis(250),
        election_max: Duration::from_millis(500),
        lease: Duration::from_millis(1500),
        propose: Duration::from_secs(10),
        autopilot: Duration::from_millis(200),
        settled: Duration::from_millis(100),
        dead_after: Duration::from_millis(800),
        snapshot_every: 50,
        ask: Duration::from_millis(100),
    }
}

fn name(node: &str) -> NodeId {
    NodeId::parse(node).unwrap()
}

/// What gossip would know: the same everywhere, but for links that are cut.
#[derive(Clone, Default)]
struct Gossip {
    inner: Arc<Mutex<Views>>,
}

#[derive(Default)]
struct Views {
    members: Members,
    views: BTreeMap<NodeId, watch::Sender<Arc<Members>>>,
    cut: Vec<NodeId>,
}

impl Gossip {
    fn change(&self, change: impl FnOnce(&mut Members)) {
        let mut inner = self.inner.lock().unwrap();
        change(&mut inner.members);
        inner.tell();
    }

    fn view(&self, node: &NodeId) -> watch::Receiver<Arc<Members>> {
        let mut inner = self.inner.lock().unwrap();
        let view = inner.views.entry(node.clone()).or_default().subscribe();
        inner.tell();
        view
    }

    /// Nobody reaches these nodes, nor they anybody.
    fn cut(&self, nodes: &[&NodeId]) {
        let mut inner = self.inner.lock().unwrap();
        inner.cut = nodes.iter().copied().cloned().collect();
        inner.tell();
    }
}

impl Views {
    fn tell(&self) {
        for (viewer, view) in &self.views {
            let apart = self.cut.contains(viewer);
            let sees = |node: &NodeId| node == viewer || (!apart && !self.cut.contains(node));
            let seen = self.members.iter().filter(|(node, _)| sees(node));
            view.send_replace(Arc::new(seen.map(|(node, member)| (node.clone(), member.clone())).collect()));
        }
    }
}

/// A node: its log, served.
struct Running {
    log: Log,
    node: NodeId,
    gossip: Gossip,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

struct Setup<'a> {
    node: &'a str,
    raft_id: RaftId,
    generation: u64,
    dir: Option<&'a Path>,
    initial_voters: &'a [&'a str],
    /// Whether it was told of others.
    seeds: bool,
    max_voters: u32,
    timing: Timing,
}

impl<'a> Setup<'a> {
    fn new(node: &'a str, raft_id: RaftId) -> Self {
        Self {
            node,
            raft_id,
            generation: 1,
            dir: None,
            initial_voters: &[],
            seeds: false,
            max_voters: 5,
            timing: timing(),
        }
    }

    async fn start(self, gossip: &Gossip) -> Running {
        let node = name(self.node);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seeds = watch::Sender::new(Vec::new());
        let options = Options {
            identity: Identity::made_up(self.generation, self.raft_id, self.dir.is_some()),
            node: node.clone(),
            cluster_name: "test".to_owned(),
            data_dir: self.dir.map(Path::to_owned),
            members: gossip.view(&node),
            trust: Trust::default(),
            seeds: self.seeds.then(|| seeds.subscribe()),
            initial_voters: self.initial_voters.iter().map(|node| name(node)).collect(),
            max_voters: self.max_voters,
            timing: self.timing,
        };
        let log = Log::open(options).await.unwrap();
        let member = Member {
            alive: true,
            lifecycle: Lifecycle::Ready,
            application: "test".to_owned(),
            version: "1".to_owned(),
            raft_id: self.raft_id,
            persistent: self.dir.is_some(),
            cluster: log.cluster().borrow().clone(),
            ..Member::new(self.generation, address)
        };
        gossip.change(|members| drop(members.insert(node.clone(), member)));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (consensus, placement) = log.services();
        let server = Server::builder()
            .add_service(consensus)
            .add_service(placement)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tasks.spawn(until(stop.clone(), async move { drop(server.await) }));
        let (mut cluster, told, me) = (log.cluster(), gossip.clone(), node.clone());
        tasks.spawn(until(stop.clone(), async move {
            loop {
                let found = cluster.borrow_and_update().clone();
                told.change(|members| members.get_mut(&me).unwrap().cluster = found);
                if cluster.changed().await.is_err() {
                    return;
                }
            }
        }));
        Running { log, node, gossip: gossip.clone(), stop, tasks }
    }
}

impl Running {
    /// Ends it as a crash would, as far as the others can see.
    async fn kill(mut self) {
        self.stop.cancel();
        self.log.shutdown().await;
        while self.tasks.join_next().await.is_some() {}
        self.gossip.change(|members| {
            if let Some(member) = members.get_mut(&self.node) {
                member.alive = false;
            }
        });
    }

    fn state(&self) -> Arc<State> {
        self.log.state().borrow().clone()
    }

    fn leadership(&self) -> Leadership {
        self.log.leadership().borrow().clone()
    }

    async fn cordon(&self, cordoned: bool) -> u64 {
        let command = Command::Cordon { node: self.node.clone(), cordoned };
        self.propose(command).await
    }

    async fn cordon_other(&self, other: &Running) -> u64 {
        self.propose(Command::Cordon { node: other.node.clone(), cordoned: true }).await
    }

    async fn propose(&self, command: Command) -> u64 {
        let proposal = Proposal { at: Timestamp(1), by: "test".to_owned(), asked: None, command };
        self.log.propose(proposal).await.unwrap().unwrap()
    }

    async fn register(&self, generation: u64) -> u64 {
        let record = self.record(generation);
        self.propose(Command::Register { node: self.node.clone(), record, brings: BTreeMap::new(), compared: 0 }).await
    }

    fn record(&self, generation: u64) -> Node {
        let identity = &self.log.inner.shared.identity;
        Node {
            generation,
            marker: identity.marker.clone(),
            marker_since: 0,
            raft_id: identity.raft_id,
            persistent: identity.persistent,
            lease_ms: 0,
            labels: BTreeMap::new(),
            application: "test".to_owned(),
            version: "1".to_owned(),
            version_since: 0,
            modules: BTreeMap::new(),
            cordoned: false,
            draining: false,
            left: false,
        }
    }
}

/// Waits for a fact; says what was there instead, should it not become one.
async fn wait(what: &str, nodes: &[&Running], fact: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        if Instant::now() > deadline {
            let views: Vec<String> = nodes
                .iter()
                .map(|node| format!("{}: index {}, {}", node.node, node.state().index, node.log.status()))
                .collect();
            panic!("waited for {what}; {views:#?}");
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn voters(node: &Running) -> Vec<String> {
    node.leadership()
        .voters
        .values()
        .map(NodeId::to_string)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect()
}

fn leader_of<'a>(nodes: &[&'a Running]) -> Option<&'a Running> {
    nodes.iter().find(|node| node.leadership().is_me).copied()
}

async fn dirs<const N: usize>() -> [TempDir; N] {
    std::array::from_fn(|_| tempfile::tempdir().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_works_at_once() {
    let gossip = Gossip::default();
    let begun = Instant::now();
    let node = Setup::new("a", 11).start(&gossip).await;
    node.register(1).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    wait("the cluster is founded", &[&node], || !node.state().cluster.is_empty()).await;
    assert!(node.state().nodes.contains_key(&node.node));
    wait("it leads", &[&node], || node.leadership().is_me).await;
    assert_eq!(node.leadership().role, Role::Leader);
    let renewed = node.log.renew(node.state().index).await.unwrap();
    assert_eq!(renewed, Renewed::Granted { must_apply: node.state().index });
    assert!(node.log.status().starts_with("leads; a leads in term"), "{}", node.log.status());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_initial_voters_form_one_cluster() {
    let gossip = Gossip::default();
    let dirs = dirs::<3>().await;
    let initial_voters = &["a", "b", "c"];
    let start = |node, raft_id, dir: usize| {
        let dir = Some(dirs[dir].path());
        Setup { dir, initial_voters, seeds: true, ..Setup::new(node, raft_id) }.start(&gossip)
    };
    let a = start("a", 11, 0).await;
    let b = start("b", 12, 1).await;
    wait("a says what it waits for", &[&a, &b], || a.log.status().contains("begins with: c")).await;
    assert_eq!(a.state().index, 0);
    let c = start("c", 13, 2).await;
    let nodes = [&a, &b, &c];
    wait("a leader", &nodes, || leader_of(&nodes).is_some()).await;
    for node in nodes {
        node.register(1).await;
    }
    wait("all know all", &nodes, || nodes.iter().all(|node| node.state().nodes.len() == 3)).await;
    assert_eq!(a.state().cluster, b.state().cluster);
    assert_eq!(voters(&c), ["a", "b", "c"]);

    // The leader goes; the others go on.
    let leads = leader_of(&nodes).unwrap().node.clone();
    let mut rest = Vec::new();
    for node in [a, b, c] {
        if node.node == leads {
            node.kill().await;
        } else {
            rest.push(node);
        }
    }
    let begun = Instant::now();
    rest[0].cordon(true).await;
    rest[1].cordon(true).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
    let nodes: Vec<&Running> = rest.iter().collect();
    wait("one state", &nodes, || {
        nodes.iter().all(|node| node.state().nodes.values().filter(|record| record.cordoned).count() == 2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sets_of_initial_voters_do_not_mix() {
    let gossip = Gossip::default();
    let first = ["a", "b", "c"];
    let second = ["c", "d", "e"];
    let start = |node, raft_id, initial_voters| {
        Setup { initial_voters, seeds: true, ..Setup::new(node, raft_id) }.start(&gossip)
    };
    let a = start("a", 11, &first).await;
    let b = start("b", 12, &first).await;
    let d = start("d", 14, &second).await;
    let e = start("e", 15, &second).await;
    let c = start("c", 13, &second).await;
    let others = [&c, &d, &e];
    wait("the second set has a leader", &others, || leader_of(&others).is_some()).await;
    wait("the first set has found that cluster, or waits", &[&a, &b], || {
        [&a, &b].iter().all(|node| {
            let cluster = node.log.cluster().borrow().clone();
            cluster == c.state().cluster && !cluster.is_empty()
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_every_state_and_proposes() {
    let gossip = Gossip::default();
    let a = Setup::new("a", 11).start(&gossip).await;
    a.register(1).await;
    let w = Setup { seeds: true, ..Setup::new("w", 21) }.start(&gossip).await;
    wait("the watcher has the state", &[&a, &w], || w.state().nodes.contains_key(&a.node)).await;
    let index = w.register(1).await;
    assert!(w.state().index >= index, "what a node has written it can read");
    assert_eq!(w.leadership().role, Role::Watcher);
    assert_eq!(w.leadership().leader, Some((11, a.node.clone())));
    assert_eq!(w.log.renew(index).await.unwrap(), Renewed::Granted { must_apply: index });
    a.register(2).await;
    a.propose(Command::Cordon { node: w.node.clone(), cordoned: true }).await;
    wait("both have one state", &[&a, &w], || a.state() == w.state()).await;

    let part = Command::Part {
        module: ModuleName::parse("cart").unwrap(),
        expect: 0,
        change: PartChange::Assign(Incarnation { node: a.node.clone(), generation: 2 }),
        why: String::new(),
    };
    w.propose(part).await;
    assert_eq!(w.state().parts.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_hears_of_more_than_it_knows_does_not_wait_to_watch_again() {
    // It pauses for longer than this test waits.
    let heartbeat = PATIENCE * 6;
    let patient = Timing { heartbeat, election_min: heartbeat * 2, election_max: heartbeat * 3, ..timing() };
    let gossip = Gossip::default();
    let [dir] = dirs().await;
    let a = Setup { dir: Some(dir.path()), ..Setup::new("a", 11) };
    let a = a.start(&gossip).await;
    a.register(1).await;
    let w = Setup { seeds: true, timing: patient, ..Setup::new("w", 21) }.start(&gossip).await;
    w.register(1).await;
    a.kill().await;
    let a = Setup { dir: Some(dir.path()), generation: 2, ..Setup::new("a", 11) }.start(&gossip).await;
    let index = a.register(2).await;
    wait("it leads again", &[&a, &w], || a.leadership().is_me).await;
    let renewed = w.log.renew(w.state().index).await.unwrap();
    assert!(matches!(renewed, Renewed::Granted { must_apply } if must_apply >= index), "{renewed:?}");
    wait("it knows what was decided", &[&a, &w], || w.state().index >= index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_told_of_others_never_founds_a_cluster() {
    let gossip = Gossip::default();
    let w = Setup { seeds: true, ..Setup::new("w", 21) }.start(&gossip).await;
    wait("it says what it waits for", &[&w], || w.log.status().contains("waiting for a cluster to join")).await;
    let refused = timeout(Duration::from_millis(700), async { w.cordon(true).await }).await;
    assert!(refused.is_err(), "nobody could take that");
    let a = Setup::new("a", 11).start(&gossip).await;
    wait("it finds one", &[&w, &a], || !w.state().cluster.is_empty() && w.state().cluster == a.state().cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_what_was_decided() {
    let gossip = Gossip::default();
    let [dir] = dirs::<1>().await;
    let start = |generation| Setup { dir: Some(dir.path()), generation, ..Setup::new("a", 11) }.start(&gossip);
    let a = start(1).await;
    a.register(1).await;
    for turn in 0..120 {
        a.cordon(turn % 2 == 0).await;
    }
    let before = a.state();
    a.kill().await;
    let a = start(2).await;
    wait("it leads again", &[&a], || a.leadership().is_me).await;
    let after = a.state();
    assert!(after.index >= before.index);
    assert_eq!((&after.cluster, &after.nodes), (&before.cluster, &before.nodes));
    a.register(2).await;
    assert_eq!(a.state().nodes[&a.node].generation, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_grows_to_three_and_to_five_voters_and_loses_nothing() {
    let gossip = Gossip::default();
    let dirs = dirs::<7>().await;
    let a = Setup { dir: Some(dirs[0].path()), ..Setup::new("a", 11) }.start(&gossip).await;
    a.register(1).await;

    // Proposes without a pause, and remembers what was answered.
    let applied: Arc<Mutex<Vec<u64>>> = Arc::default();
    let mut writes = JoinSet::new();
    let (log, node, noted) = (a.log.clone(), a.node.clone(), applied.clone());
    writes.spawn(async move {
        for turn in 0.. {
            let command = Command::SetSpec { expect: turn, spec: Default::default(), why: String::new() };
            let proposal = Proposal { at: Timestamp(1), by: node.to_string(), asked: None, command };
            let index = log.propose(proposal).await.unwrap().unwrap();
            noted.lock().unwrap().push(index);
            sleep(Duration::from_millis(2)).await;
        }
    });

    let mut nodes = vec![a];
    for (at, node) in ["b", "c", "d", "e", "f", "g"].into_iter().enumerate() {
        let setup = Setup { dir: Some(dirs[at + 1].path()), seeds: true, ..Setup::new(node, 12 + at as u64) };
        nodes.push(setup.start(&gossip).await);
        if at == 1 {
            let all: Vec<&Running> = nodes.iter().collect();
            wait("three voters", &all, || voters(all[0]).len() == 3).await;
        }
    }
    let all: Vec<&Running> = nodes.iter().collect();
    wait("five voters", &all, || voters(all[0]).len() == 5).await;
    let enough = applied.lock().unwrap().len() + 60;
    wait("more entries", &all, || applied.lock().unwrap().len() >= enough).await;
    writes.shutdown().await;
    let (count, last) = {
        let applied = applied.lock().unwrap();
        (applied.len() as u64, *applied.last().unwrap())
    };
    wait("all have all", &all, || all.iter().all(|node| node.state().index >= last)).await;
    for node in &all {
        let (version, _) = node.state().spec();
        assert!(version == count || version == count + 1, "{}: {version} of {count}", node.node);
    }
    wait("one state", &all, || all.iter().all(|node| node.state() == all[0].state())).await;

    // One of five is no majority even with the heir: the others have to forget the leader first.
    let goes = leader_of(&all).unwrap();
    gossip.change(|members| members.get_mut(&goes.node).unwrap().lifecycle = Lifecycle::Draining);
    wait("five others vote", &all, || {
        let voters = voters(goes);
        voters.len() == 5 && !voters.contains(&goes.node.to_string()) && goes.leadership().leader.is_some()
    })
    .await;
    goes.register(2).await;
}

/// Three voters with data directories, and watchers with some, all registered.
async fn cluster(gossip: &Gossip, dirs: &[TempDir]) -> Vec<Running> {
    let initial_voters = &["a", "b", "c"];
    let mut nodes = Vec::new();
    for (at, dir) in dirs.iter().enumerate() {
        let node = ["a", "b", "c", "d", "e"][at];
        let setup = Setup { dir: Some(dir.path()), initial_voters, seeds: true, ..Setup::new(node, 11 + at as u64) };
        nodes.push(setup.start(gossip).await);
    }
    let all: Vec<&Running> = nodes.iter().collect();
    wait("a leader", &all, || leader_of(&all).is_some()).await;
    for node in &nodes {
        node.register(1).await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_voter_is_replaced_and_becomes_a_watcher_when_it_comes_back() {
    let gossip = Gossip::default();
    let dirs = dirs::<4>().await;
    let mut nodes = cluster(&gossip, &dirs).await;
    let leads = leader_of(&nodes.iter().collect::<Vec<_>>()).unwrap().node.clone();
    let at = (0..3).find(|at| nodes[*at].node != leads).unwrap();
    let gone = nodes.remove(at);
    let (node, raft_id) = (gone.node.clone(), gone.log.inner.shared.me());
    gone.kill().await;
    let rest: Vec<&Running> = nodes.iter().collect();
    wait("the spare votes instead", &rest, || {
        rest.iter().all(|running| {
            let voters = voters(running);
            voters.len() == 3 && voters.contains(&"d".to_owned()) && !voters.contains(&node.to_string())
        })
    })
    .await;
    rest[0].cordon(true).await;

    let dir = Some(dirs[at].path());
    let initial_voters = &["a", "b", "c"];
    let setup = Setup { dir, generation: 2, initial_voters, seeds: true, ..Setup::new(node.as_str(), raft_id) };
    let back = setup.start(&gossip).await;
    wait("it has what was decided meanwhile", &[&back, rest[0]], || back.state() == rest[0].state()).await;
    let index = back.register(2).await;
    assert!(back.state().index >= index);
    assert!(!leader_of(&rest).unwrap().leadership().voters.contains_key(&raft_id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_directory_was_wiped_comes_back_under_another_id() {
    let gossip = Gossip::default();
    let dirs = dirs::<3>().await;
    let mut nodes = cluster(&gossip, &dirs).await;
    let leads = leader_of(&nodes.iter().collect::<Vec<_>>()).unwrap().node.clone();
    let at = (0..3).find(|at| nodes[*at].node != leads).unwrap();
    let gone = nodes.remove(at);
    let (node, old) = (gone.node.clone(), gone.log.inner.shared.me());
    gone.kill().await;
    let fresh = tempfile::tempdir().unwrap();
    let (dir, initial_voters) = (Some(fresh.path()), &["a", "b", "c"]);
    let setup = Setup { dir, generation: 2, initial_voters, seeds: true, ..Setup::new(node.as_str(), 99) };
    let back = setup.start(&gossip).await;
    back.register(2).await;
    assert!(back.state().retired.contains(&old));
    let mut all: Vec<&Running> = nodes.iter().collect();
    all.push(&back);
    wait("the new id votes, the old one does not", &all, || {
        all.iter().all(|node| {
            let voters = node.leadership().voters;
            voters.len() == 3 && voters.contains_key(&99) && !voters.contains_key(&old)
        })
    })
    .await;
    wait("the new one knows that it votes", &all, || back.leadership().role == Role::Voter).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_drains_hands_over_and_is_replaced() {
    let gossip = Gossip::default();
    let dirs = dirs::<4>().await;
    let nodes = cluster(&gossip, &dirs).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let leads = leader_of(&all).unwrap();
    gossip.change(|members| members.get_mut(&leads.node).unwrap().lifecycle = Lifecycle::Draining);
    wait("another leads, and it votes no more", &all, || {
        let voters = voters(leads);
        voters.len() == 3 && !voters.contains(&leads.node.to_string()) && leads.leadership().leader.is_some()
    })
    .await;
    leads.cordon(true).await;
    wait("it watches", &all, || leads.leadership().role == Role::Watcher || leads.leadership().role == Role::Learner)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_voter_of_two_nodes_hands_over_when_it_drains() {
    let gossip = Gossip::default();
    let dirs = dirs::<2>().await;
    let a = Setup { dir: Some(dirs[0].path()), ..Setup::new("a", 11) }.start(&gossip).await;
    let b = Setup { dir: Some(dirs[1].path()), seeds: true, ..Setup::new("b", 12) }.start(&gossip).await;
    let nodes = [&a, &b];
    a.register(1).await;
    b.register(1).await;
    gossip.change(|members| members.get_mut(&a.node).unwrap().lifecycle = Lifecycle::Draining);
    wait("b leads", &nodes, || b.leadership().is_me && voters(&b) == ["b"]).await;
    a.kill().await;
    b.cordon(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_take_over_is_fenced_against_a_late_renewal() {
    let gossip = Gossip::default();
    let a = Setup::new("a", 11).start(&gossip).await;
    let w = Setup { seeds: true, ..Setup::new("w", 21) }.start(&gossip).await;
    a.register(1).await;
    w.register(1).await;
    let silent = Incarnation { node: w.node.clone(), generation: 1 };
    assert!(matches!(w.log.renew(0).await, Ok(Renewed::Granted { .. })));
    wait("the lease ends", &[&a], || a.log.leases().expired(Instant::now(), &silent)).await;
    let term = a.log.leases().hold(Instant::now(), &silent).unwrap();
    assert_eq!(w.log.renew(0).await, Ok(Renewed::Held));
    let proposal = |command| Proposal { at: Timestamp(1), by: "a".to_owned(), asked: None, command };
    let change = PartChange::Assign(Incarnation { node: a.node.clone(), generation: 1 });
    let module = ModuleName::parse("cart").unwrap();
    let command = Command::Part { module, expect: 0, change, why: String::new() };
    let stale = a.log.propose_in_term(term + 1, proposal(command.clone())).await;
    assert_eq!(stale, Err(ProposeError::LostLead));
    let index = a.log.propose_in_term(term, proposal(command)).await.unwrap().unwrap();
    a.log.leases().release(&silent);
    let Ok(Renewed::Granted { must_apply }) = w.log.renew(0).await else { panic!("no grant") };
    assert!(must_apply >= index, "it has to hear of the take-over first");
    assert!(matches!(
        w.log.propose_in_term(term, proposal(Command::Forget(a.node.clone()))).await,
        Err(ProposeError::LostLead)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_grants_nothing_and_decides_nothing() {
    let gossip = Gossip::default();
    let dirs = dirs::<3>().await;
    let nodes = cluster(&gossip, &dirs).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let alone = leader_of(&all).unwrap();
    let rest: Vec<&Running> = all.iter().copied().filter(|node| node.node != alone.node).collect();
    assert!(matches!(alone.log.renew(0).await, Ok(Renewed::Granted { .. })));
    gossip.cut(&[&alone.node]);
    assert!(alone.log.renew(0).await.is_err(), "a majority has to confirm it");
    let term = alone.leadership().term;
    let command = Command::Cordon { node: alone.node.clone(), cordoned: true };
    let proposal = Proposal { at: Timestamp(1), by: "test".to_owned(), asked: None, command };
    let mut writes = JoinSet::new();
    let log = alone.log.clone();
    writes.spawn(async move { log.propose_in_term(term, proposal).await });
    wait("it knows that it leads no more", &all, || !alone.leadership().is_me).await;
    wait("the others have a leader", &rest, || leader_of(&rest).is_some()).await;
    rest[0].cordon(true).await;
    gossip.cut(&[]);
    let written = writes.join_next().await.unwrap().unwrap();
    assert!(matches!(written, Err(ProposeError::LostLead | ProposeError::Unknown { .. })), "{written:?}");
    wait("all agree", &all, || all.iter().all(|node| node.state() == rest[0].state())).await;
    assert!(!alone.state().nodes[&alone.node].cordoned, "what it proposed alone is void");
}

/// A generator of the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_crashes_and_cuts() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(8);
    let mut dice = Dice(seed);
    let gossip = Gossip::default();
    let dirs = dirs::<5>().await;
    let mut nodes: Vec<Option<Running>> = cluster(&gossip, &dirs).await.into_iter().map(Some).collect();

    let acknowledged: Arc<Mutex<Vec<ModuleName>>> = Arc::default();
    let logs: Arc<Mutex<Vec<Option<Log>>>> =
        Arc::new(Mutex::new(nodes.iter().map(|node| node.as_ref().map(|node| node.log.clone())).collect()));
    let mut writers = JoinSet::new();
    for writer in 0..3 {
        let (acknowledged, logs) = (acknowledged.clone(), logs.clone());
        writers.spawn(async move {
            for turn in 0usize.. {
                let log = logs.lock().unwrap()[(turn + writer) % 5].clone();
                let Some(log) = log else {
                    sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let module = ModuleName::parse(&format!("m-{writer}-{turn}")).unwrap();
                let change = PartChange::Replicate([name("a")].into());
                let command = Command::Part { module: module.clone(), expect: 0, change, why: String::new() };
                let proposal = Proposal { at: Timestamp(1), by: "test".to_owned(), asked: None, command };
                // A refusal means that a first attempt was applied, and its answer was lost.
                if log.propose(proposal).await.is_ok() {
                    acknowledged.lock().unwrap().push(module);
                }
                sleep(Duration::from_millis(3)).await;
            }
        });
    }

    for round in 0..rounds {
        let at = dice.roll(5);
        let pause = Duration::from_millis(100 + dice.roll(600) as u64);
        if dice.roll(2) == 0 {
            let gone = nodes[at].take().unwrap();
            let (node, raft_id) = (gone.node.clone(), gone.log.inner.shared.me());
            logs.lock().unwrap()[at] = None;
            gone.kill().await;
            sleep(pause).await;
            let (dir, initial_voters, generation) = (Some(dirs[at].path()), &["a", "b", "c"], 2 + round);
            let setup = Setup { dir, generation, initial_voters, seeds: true, ..Setup::new(node.as_str(), raft_id) };
            let back = setup.start(&gossip).await;
            logs.lock().unwrap()[at] = Some(back.log.clone());
            nodes[at] = Some(back);
        } else {
            let node = nodes[at].as_ref().unwrap().node.clone();
            gossip.cut(&[&node]);
            sleep(pause).await;
            gossip.cut(&[]);
        }
    }
    writers.shutdown().await;
    let all: Vec<&Running> = nodes.iter().flatten().collect();
    wait("a leader", &all, || leader_of(&all).is_some()).await;
    leader_of(&all).unwrap().cordon(true).await;
    wait("one state", &all, || all.iter().all(|node| node.state() == all[0].state())).await;
    let acknowledged = acknowledged.lock().unwrap();
    let state = all[0].state();
    assert!(!acknowledged.is_empty());
    let lost: Vec<&ModuleName> = acknowledged.iter().filter(|module| !state.parts.contains_key(*module)).collect();
    assert!(lost.is_empty(), "seed {seed}: {lost:?} of {} were lost", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_ends_the_log() {
    let gossip = Gossip::default();
    let [dir] = dirs::<1>().await;
    let a = Setup { dir: Some(dir.path()), ..Setup::new("a", 11) }.start(&gossip).await;
    a.register(1).await;
    // As good as a disk that is gone: nothing can be written any more.
    a.log.inner.shared.store.close().await;
    let command = Command::Cordon { node: a.node.clone(), cordoned: true };
    let proposal = Proposal { at: Timestamp(1), by: "test".to_owned(), asked: None, command };
    let answer = a.log.propose(proposal).await;
    assert!(matches!(answer, Err(ProposeError::Ended(_) | ProposeError::Unknown { .. })), "{answer:?}");
    let reason = timeout(PATIENCE, a.log.ended()).await.unwrap();
    assert!(reason.contains("closed"), "{reason}");
    assert!(a.log.status().contains("has ended"), "{}", a.log.status());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_joins_late_learns_by_snapshot() {
    let gossip = Gossip::default();
    let dirs = dirs::<3>().await;
    let a = Setup { dir: Some(dirs[0].path()), ..Setup::new("a", 11) }.start(&gossip).await;
    a.register(1).await;
    for turn in 0..300 {
        a.cordon(turn % 2 == 0).await;
    }
    let raft = &a.log.inner.shared.raft;
    wait("old entries are gone", &[&a], || raft.metrics().borrow().purged.is_some_and(|purged| purged.index > 100))
        .await;
    let b = Setup { dir: Some(dirs[1].path()), seeds: true, ..Setup::new("b", 12) }.start(&gossip).await;
    let c = Setup { dir: Some(dirs[2].path()), seeds: true, ..Setup::new("c", 13) }.start(&gossip).await;
    let all = [&a, &b, &c];
    wait("three voters", &all, || all.iter().all(|node| node.leadership().voters.len() == 3)).await;
    let learned = b.log.inner.shared.raft.metrics().borrow().snapshot;
    assert!(learned.is_some_and(|snapshot| snapshot.index > 100), "{learned:?}");
    b.cordon_other(&a).await;
    wait("one state", &all, || all.iter().all(|node| node.state() == a.state())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_goes_on_with_another_voter_and_shrinking_is_an_operators_choice() {
    let gossip = Gossip::default();
    let dirs = dirs::<4>().await;
    let mut nodes = cluster(&gossip, &dirs[..3]).await;
    let w = Setup { seeds: true, ..Setup::new("w", 21) }.start(&gossip).await;
    w.register(1).await;
    let gone = nodes.remove(0);
    gone.kill().await;
    w.cordon(true).await;
    let rest: Vec<&Running> = nodes.iter().chain([&w]).collect();
    wait("one state", &rest, || rest.iter().all(|node| node.state() == w.state())).await;
    w.log.propose(set_voters(1)).await.unwrap().unwrap();
    wait("one voter", &rest, || rest.iter().all(|node| node.leadership().voters.len() == 1)).await;
    w.cordon(false).await;
    wait("one state", &rest, || rest.iter().all(|node| node.state() == w.state())).await;
    let refused = w.log.propose(set_voters(2)).await.unwrap();
    assert_eq!(refused, Err(crate::placement::state::Refused::Voters(2)));
}

fn set_voters(count: u32) -> Proposal {
    Proposal { at: Timestamp(1), by: "test".to_owned(), asked: None, command: Command::SetVoters { count } }
}

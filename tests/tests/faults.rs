//! What a cluster of processes does when some of them end, stop or can't hear each other.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "the helpers are tests too, and say how long things took")]

use std::{collections::BTreeSet, net::UdpSocket, time::Duration};

use outpost_proto::admin::v1::{Cluster, HistoryRequest, ScaleRequest};
use outpost_tests::{
    clients::{Call, Load, Service, failures, longest_silence, owners, tell_process},
    network::{self, Network},
    processes::{Fleet, START, all_served, module, node, owner, ready_nodes},
};
use tokio::time::{Instant, sleep};

const FLEET: &str = env!("CARGO_BIN_EXE_fleet");

/// Half of what it is by default: the tests are as long as it is.
const LEASE: Duration = Duration::from_secs(4);
const SHORT_LEASE: &str = "cluster.lease=4s";
/// How much longer than a lease it may take until others serve what a lost node hosted.
const TAKE_OVER: Duration = Duration::from_secs(6);
const ELECTION: Duration = Duration::from_secs(10);
/// Those who vote are looked at every few seconds, and a node has to be ready for 10 before it may.
const NEW_VOTERS: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Clients of both services at each of these nodes, named by node and service.
fn load(fleet: &Fleet, at: &[usize], limit: Duration) -> Load {
    let mut load = Load::default();
    for node in at.iter().map(|index| fleet.node(*index)) {
        load.add(&format!("{} kinds", node.name), node.channel(), Service::Kinds, limit);
        load.add(&format!("{} everywhere", node.name), node.channel(), Service::Everywhere, limit);
    }
    load
}

/// The calls of the clients of one service.
fn of(calls: &[Call], service: &str) -> Vec<Call> {
    calls.iter().filter(|call| call.client.ends_with(service)).cloned().collect()
}

async fn leader(fleet: &Fleet, at: usize) -> usize {
    let view = fleet.until(at, "a leader", ELECTION, |view| !view.leader.is_empty()).await;
    fleet.index(&view.leader)
}

/// Moves `kinds` to a node, unless it is there.
async fn bring_kinds_to(fleet: &Fleet, at: usize, to: usize) {
    let view = fleet.until(at, "kinds to be served", START, |view| owner(view, "kinds").is_some()).await;
    if owner(&view, "kinds") != Some(&fleet.node(to).name) {
        fleet.move_module(at, "kinds", to).await;
    }
}

fn voter_ids(view: &Cluster) -> BTreeSet<u64> {
    view.voters.iter().map(|voter| voter.raft_id).collect()
}

fn generation(view: &Cluster, name: &str) -> u64 {
    node(view, name).map_or(0, |node| node.generation)
}

// Nodes that end without a word

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Leader,
    Voter,
    Plain,
}

#[tokio::test]
async fn a_leader_that_is_killed_is_replaced_and_comes_back() {
    survive(Victim::Leader).await;
}

#[tokio::test]
async fn a_voter_that_is_killed_is_replaced_and_comes_back() {
    survive(Victim::Voter).await;
}

#[tokio::test]
async fn a_node_without_a_vote_that_is_killed_is_replaced_and_comes_back() {
    survive(Victim::Plain).await;
}

async fn survive(who: Victim) {
    let mut fleet = Fleet::started(FLEET, 4, &[SHORT_LEASE, "cluster.max_voters=3"]).await;
    let leads = leader(&fleet, 0).await;
    let (lost, at) = match who {
        Victim::Leader => (leads, (leads + 1) % 3),
        Victim::Voter => ((leads + 1) % 3, leads),
        Victim::Plain => (3, leads),
    };
    let name = fleet.node(lost).name.clone();
    bring_kinds_to(&fleet, at, lost).await;
    let before = fleet.settled(at, 4, START).await;
    let (lost_pid, raft_id) = (fleet.node(lost).pid(), fleet.node(lost).raft_id());
    assert_eq!(voter_ids(&before).contains(&raft_id), who != Victim::Plain, "{before:?}");

    let others: Vec<usize> = (0..4).filter(|index| *index != lost).collect();
    let load = load(&fleet, &others, LEASE + TAKE_OVER);
    sleep(SECOND).await;
    fleet.kill(lost).await;
    let killed = Instant::now();
    fleet.until(at, "a new leader", ELECTION, |view| !view.leader.is_empty() && view.leader != name).await;
    println!("{who:?}: a leader after {:?}", killed.elapsed());
    let limit = (LEASE + TAKE_OVER).saturating_sub(killed.elapsed());
    fleet
        .until(at, "every module served elsewhere", limit, |view| {
            ["kinds", "relay"].iter().all(|module| owner(view, module).is_some_and(|owner| owner != name))
        })
        .await;
    println!("{who:?}: served elsewhere after {:?}", killed.elapsed());
    sleep(SECOND).await;
    let calls = load.finish().await;
    for client in others.iter().map(|other| format!("{} everywhere", fleet.node(*other).name)) {
        let silence = longest_silence(&calls, &client);
        assert!(silence < SECOND, "{client}: no answer for {silence:?}; {:#?}", failures(&of(&calls, "everywhere")));
    }
    let owners = owners(&of(&calls, "kinds"));
    assert!(owners.len() == 2 && owners[0] == lost_pid, "{lost_pid} first, then one other, not {owners:?}");

    // It comes back as who it was.
    fleet.start(lost);
    let back = fleet.settled(at, 4, START).await;
    assert_eq!(fleet.node(lost).raft_id(), raft_id);
    assert_eq!(voter_ids(&back), voter_ids(&before), "{:?}", back.voters);
    assert!(generation(&back, &name) > generation(&before, &name));
    let own = fleet.settled(lost, 4, START).await;
    assert_eq!((own.id, own.seen_by), (before.id.clone(), name.clone()));

    // Without its data, it is somebody new.
    fleet.kill(lost).await;
    fleet.wipe(lost);
    fleet.start(lost);
    fleet.settled(lost, 4, START).await;
    assert_ne!(fleet.node(lost).raft_id(), raft_id);
    let began = Instant::now();
    let settled = fleet
        .until(at, "three voters, the old id not among them", NEW_VOTERS, |view| {
            view.voters.len() == 3 && !voter_ids(view).contains(&raft_id)
        })
        .await;
    println!("{who:?}: the old id votes no more after {:?}", began.elapsed());
    assert_eq!(settled.id, before.id);
    fleet.one_leader_a_term();
}

#[tokio::test]
async fn a_cluster_that_was_killed_as_a_whole_goes_on_where_it_was() {
    let mut fleet = Fleet::started(FLEET, 3, &[SHORT_LEASE]).await;
    let scale = ScaleRequest { module: "everywhere".to_owned(), replicas: 2, ..ScaleRequest::default() };
    let placement = fleet.admin(0).scale(scale).await.unwrap().into_inner().placement;
    let before = fleet
        .until(1, "everywhere on two nodes", START, |view| {
            view.placement == placement
                && all_served(view)
                && module(view, "everywhere").is_some_and(|module| module.hosts.len() == 2)
        })
        .await;
    let history = fleet.admin(0).history(HistoryRequest {}).await.unwrap().into_inner();
    for index in 0..3 {
        fleet.kill(index).await;
    }
    let killed = Instant::now();
    for index in 0..3 {
        fleet.start(index);
    }
    for index in 0..3 {
        let after = fleet.settled(index, 3, Duration::from_secs(30).saturating_sub(killed.elapsed())).await;
        assert_eq!((&after.id, after.placement), (&before.id, placement));
        assert_eq!(voter_ids(&after), voter_ids(&before));
        assert_eq!(module(&after, "everywhere").map(|module| module.hosts.len()), Some(2));
        assert_eq!(fleet.admin(index).history(HistoryRequest {}).await.unwrap().into_inner(), history);
    }
    println!("served again after {:?}", killed.elapsed());
    let calls = {
        let load = load(&fleet, &[0, 1, 2], Duration::from_secs(10));
        sleep(SECOND).await;
        load.finish().await
    };
    assert_eq!(failures(&calls), [""; 0]);
    fleet.one_leader_a_term();
}

// Nodes that pause

#[tokio::test]
async fn an_owner_that_was_frozen_for_longer_than_its_lease_answers_no_more() {
    frozen(false).await;
}

#[tokio::test]
async fn an_owner_that_leads_and_was_frozen_for_longer_than_its_lease_answers_no_more() {
    frozen(true).await;
}

async fn frozen(leads: bool) {
    let fleet = Fleet::started(FLEET, 3, &[SHORT_LEASE]).await;
    let leading = leader(&fleet, 0).await;
    let lost = if leads { leading } else { (leading + 1) % 3 };
    let at = (lost + 1) % 3;
    bring_kinds_to(&fleet, at, lost).await;
    let name = fleet.node(lost).name.clone();
    let mut calls = {
        let load = load(&fleet, &[0, 1, 2], Duration::from_secs(5));
        sleep(SECOND).await;
        load.finish().await
    };
    assert_eq!(failures(&calls), [""; 0]);

    let connected: Vec<_> = (0..50).map(|_| fleet.node(lost).channel()).collect();
    for channel in &connected {
        tell_process(channel.clone(), Service::Kinds, Duration::from_secs(5)).await.unwrap();
    }
    // Nothing is inside a module when it freezes, as a call that was admitted before may end after.
    fleet.freeze(lost);
    let began = Instant::now();
    let others: Vec<usize> = (0..3).filter(|index| *index != lost).collect();
    let mut load = load(&fleet, &others, Duration::from_secs(20));
    // These wait in the sockets of the frozen process.
    for (number, channel) in connected.into_iter().enumerate() {
        load.add(&format!("{name} {number} kinds"), channel, Service::Kinds, Duration::from_secs(60));
    }
    fleet
        .until(at, "kinds served elsewhere", ELECTION + LEASE + TAKE_OVER, |view| {
            owner(view, "kinds").is_some_and(|owner| owner != name)
        })
        .await;
    println!("taken over after {:?}", began.elapsed());
    assert!(began.elapsed() >= LEASE * 5 / 8, "before the lease could end");
    sleep(SECOND).await;
    fleet.thaw(lost);
    let thawed = Instant::now();
    fleet.settled(lost, 3, START).await;
    sleep(SECOND * 2).await;
    calls.extend(load.finish().await);

    let kinds = of(&calls, "kinds");
    let through_it =
        kinds.iter().filter(|call| call.client.starts_with(&name) && call.ended > thawed && call.answer.is_ok());
    assert!(through_it.count() > 50, "the node that woke passes calls on");
    let owners = owners(&kinds);
    assert!(owners.len() == 2 && owners[0] == fleet.node(lost).pid(), "one owner after the other: {owners:?}");
    let silence =
        others.iter().map(|other| longest_silence(&calls, &format!("{} everywhere", fleet.node(*other).name)));
    assert!(silence.max() < Some(SECOND), "{:#?}", failures(&of(&calls, "everywhere")));
    fleet.one_leader_a_term();
}

/// Unlike above, the process is busy when it freezes: calls that it has read wait in its queues, before the task that
/// notices the end of the lease.
#[tokio::test]
async fn an_owner_that_was_frozen_amid_calls_answers_none_that_came_later() {
    let fleet = Fleet::started(FLEET, 3, &[SHORT_LEASE]).await;
    let lost = (leader(&fleet, 0).await + 1) % 3;
    let at = (lost + 1) % 3;
    bring_kinds_to(&fleet, at, lost).await;
    let (name, pid) = (fleet.node(lost).name.clone(), fleet.node(lost).pid());
    let mut load = Load::default();
    for number in 0..200 {
        load.add(&format!("{number} kinds"), fleet.node(lost).channel(), Service::Kinds, Duration::from_secs(60));
    }
    sleep(SECOND * 2).await;
    fleet.freeze(lost);
    let frozen = Instant::now();
    fleet
        .until(at, "kinds served elsewhere", ELECTION + LEASE + TAKE_OVER, |view| {
            owner(view, "kinds").is_some_and(|owner| owner != name)
        })
        .await;
    fleet.thaw(lost);
    fleet.settled(lost, 3, START).await;
    let calls = load.finish().await;
    // Calls from before may have been inside the module already.
    let later = calls.iter().filter(|call| call.sent > frozen && call.answer.as_ref().is_ok_and(|(by, _)| *by == pid));
    assert_eq!(later.count(), 0, "calls sent after the freeze, and answered by the owner of before");
}

// Names and places that are taken

#[tokio::test]
async fn of_two_processes_with_one_name_the_older_one_ends() {
    let mut fleet = Fleet::of(FLEET, 4, &[SHORT_LEASE]);
    fleet.node_mut(3).name = "node-2".to_owned();
    for index in 0..3 {
        fleet.start(index);
    }
    let before = fleet.settled(0, 3, START).await;
    fleet.start(3);
    let status = fleet.ended(1, START).await;
    assert_eq!(status.code(), Some(4), "{}", fleet.node(1).log());
    let line = fleet.logs(1, "another process has started as node `node-2`", SECOND).await;
    assert!(line.contains("node.name") && line.contains("ERROR"), "{line}");
    let after = fleet.settled(3, 3, START).await;
    assert_eq!((&after.id, after.seen_by.as_str()), (&before.id, "node-2"));
    assert!(generation(&after, "node-2") > generation(&before, "node-2"));
    fleet.one_leader_a_term();
}

#[tokio::test]
async fn a_second_process_on_one_data_directory_does_not_start() {
    let mut fleet = Fleet::of(FLEET, 2, &[]);
    fleet.start(0);
    fleet.settled(0, 1, START).await;
    let data_dir = fleet.node(0).data_dir.clone();
    fleet.node_mut(1).data_dir.clone_from(&data_dir);
    fleet.start(1);
    let status = fleet.ended(1, START).await;
    assert_eq!(status.code(), Some(3), "{}", fleet.node(1).log());
    let line = fleet.logs(1, "is in use by another process", SECOND).await;
    assert!(line.contains(&data_dir.display().to_string()) && line.contains("`node.data_dir`"), "{line}");
    fleet.settled(0, 1, SECOND).await;
}

#[tokio::test]
async fn a_gossip_port_that_is_taken_is_told() {
    let mut fleet = Fleet::of(FLEET, 1, &[]);
    let address = fleet.node(0).cluster;
    let _taken = UdpSocket::bind(address).unwrap();
    fleet.start(0);
    let status = fleet.ended(0, START).await;
    assert_eq!(status.code(), Some(3), "{}", fleet.node(0).log());
    let line = fleet.logs(0, "by UDP", SECOND).await;
    assert!(line.contains(&address.to_string()) && line.contains("`cluster.listen`"), "{line}");
}

#[tokio::test]
async fn a_node_whose_seeds_are_not_there_says_what_it_waits_for_and_joins_when_they_are() {
    let mut fleet = Fleet::of(FLEET, 2, &[]);
    fleet.start(1);
    let line = fleet.logs(1, "no cluster yet", START).await;
    assert!(line.contains("waiting for a cluster to join") && line.contains("0 nodes have answered"), "{line}");
    fleet.start(0);
    fleet.settled(1, 2, START).await;
}

// Nodes that are told to stop

#[tokio::test]
async fn a_node_that_is_told_to_stop_costs_no_call() {
    let mut fleet = Fleet::started(FLEET, 3, &[SHORT_LEASE]).await;
    let leads = leader(&fleet, 0).await;
    for (round, goes) in [(leads + 1) % 3, leads].into_iter().enumerate() {
        let at = (goes + 2) % 3;
        bring_kinds_to(&fleet, at, goes).await;
        let (name, pid) = (fleet.node(goes).name.clone(), fleet.node(goes).pid());
        let load = load(&fleet, &[0, 1, 2], Duration::from_secs(10));
        sleep(SECOND).await;
        fleet.terminate(goes);
        let told = Instant::now();
        let status = fleet.ended(goes, START).await;
        println!("round {round}: it ended after {:?}", told.elapsed());
        assert_eq!(status.code(), Some(0), "{}", fleet.node(goes).log());
        for other in (0..3).filter(|index| *index != goes) {
            fleet
                .until(other, "the others to know that it left", SECOND, |view| {
                    node(view, &name).is_some_and(|node| node.state == "left")
                })
                .await;
        }
        fleet.settled(at, 2, START).await;
        let calls = load.finish().await;

        let (own, others): (Vec<Call>, Vec<Call>) = calls.into_iter().partition(|call| call.client.starts_with(&name));
        assert_eq!(failures(&others), [""; 0], "round {round}");
        // Until it listens no more.
        let refused = |failure: &&String| !failure.contains("tcp connect error");
        let failed: Vec<String> = failures(&own).into_iter().filter(|failure| refused(&failure)).collect();
        assert_eq!(failed, [""; 0], "round {round}");
        assert!(own.iter().filter(|call| call.answer.is_ok()).count() > 100);
        let owners = owners(&of(&others, "kinds"));
        assert!(owners.len() >= 2 && owners[0] == pid && !owners[1..].contains(&pid), "{owners:?}, {pid} first");
        fleet.start(goes);
        fleet.settled(at, 3, START).await;
    }
    fleet.one_leader_a_term();
}

// Networks that fail

#[tokio::test]
async fn a_minority_stops_serving_before_the_majority_begins() {
    network::inside("networks::a_minority_stops_serving_before_the_majority_begins").await;
}

#[tokio::test]
async fn calls_and_moves_go_on_without_gossip() {
    network::inside("networks::calls_and_moves_go_on_without_gossip").await;
}

/// Run in a network of their own, by those above.
mod networks {
    use super::*;

    #[tokio::test]
    #[ignore = "needs the network that the test of the same name makes"]
    async fn a_minority_stops_serving_before_the_majority_begins() {
        let network = Network::of_this_process();
        let mut fleet = network.fleet(FLEET, &[SHORT_LEASE]);
        fleet.start_all().await;
        let lost = leader(&fleet, 0).await;
        let at = (lost + 1) % 3;
        let pid = fleet.node(lost).pid();
        bring_kinds_to(&fleet, at, lost).await;
        let load = load(&fleet, &[0, 1, 2], Duration::from_secs(2));
        sleep(SECOND).await;

        network.cut_off(lost);
        let cut = Instant::now();
        let name = fleet.node(lost).name.clone();
        fleet
            .until(at, "the majority to serve every module", ELECTION + LEASE + TAKE_OVER, |view| {
                ["kinds", "relay"].iter().all(|module| owner(view, module).is_some_and(|owner| owner != name))
            })
            .await;
        println!("the majority serves after {:?}", cut.elapsed());
        sleep(SECOND * 3).await;
        let calls = load.finish().await;
        let kinds = of(&calls, "kinds");
        let by_it = kinds.iter().filter(|call| matches!(call.answer, Ok((answered, _)) if answered == pid));
        let last = by_it.map(|call| call.ended).max().expect("it was the owner");
        assert!(last < cut + LEASE, "the minority answered {:?} after the cut", last - cut);
        println!("the minority served until {:?} after the cut", last.saturating_duration_since(cut));
        let owners = owners(&kinds);
        assert!(owners.len() == 2 && owners[0] == pid, "one owner after the other: {owners:?}");
        for index in 0..3 {
            let silence = longest_silence(&calls, &format!("{} everywhere", fleet.node(index).name));
            assert!(silence < SECOND, "{index}: {silence:?}; {:#?}", failures(&of(&calls, "everywhere")));
        }

        network.heal();
        let healed = Instant::now();
        agree(&fleet, ELECTION).await;
        println!("all agree {:?} after the network is whole", healed.elapsed());
        fleet.one_leader_a_term();
    }

    #[tokio::test]
    #[ignore = "needs the network that the test of the same name makes"]
    async fn calls_and_moves_go_on_without_gossip() {
        let network = Network::of_this_process();
        let mut fleet = network.fleet(FLEET, &[SHORT_LEASE]);
        fleet.start_all().await;
        let load = load(&fleet, &[0, 1, 2], Duration::from_secs(5));
        sleep(SECOND).await;
        network.mute_gossip();
        for round in 0..4 {
            // Until long after every node has counted the others as dead.
            sleep(Duration::from_secs(5)).await;
            let to = round % 3;
            let took = fleet.move_module(to, "kinds", to).await;
            println!("a move without gossip took {took:?}");
        }
        let calls = load.finish().await;
        assert_eq!(failures(&calls), [""; 0]);
        network.heal();
        agree(&fleet, START).await;
        fleet.one_leader_a_term();
    }

    /// All nodes see the same.
    async fn agree(fleet: &Fleet, limit: Duration) {
        let began = Instant::now();
        let mut views = Vec::new();
        for index in 0..fleet.nodes().len() {
            let left = limit.saturating_sub(began.elapsed());
            views.push(fleet.settled(index, fleet.nodes().len(), left).await);
        }
        for view in &views {
            assert_eq!((&view.leader, view.term, &view.id), (&views[0].leader, views[0].term, &views[0].id));
            assert_eq!(ready_nodes(view), ready_nodes(&views[0]));
            for name in ["kinds", "relay"] {
                assert_eq!(owner(view, name), owner(&views[0], name), "{name}");
            }
        }
    }
}

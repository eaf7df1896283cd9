//! Real sockets on loopback, and a short round: facts are waited for, with a limit.

use std::time::Duration;

use outpost_proto::keyring::{self, GossipKey};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout},
};

use super::*;
use crate::{
    config::{PlainGossip, TrustSettings},
    id::{Epoch, Timestamp},
    membership::{Identity, Instance},
};

const ROUND: Duration = Duration::from_millis(50);
/// Two seconds of silence are a death: a busy machine stalls for less.
const PHI: f64 = 40.0;
const LIMIT: Duration = Duration::from_secs(20);

fn node(text: &str) -> NodeId {
    NodeId::parse(text).unwrap()
}

async fn free_address() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn options(name: &str, address: SocketAddr, generation: u64, seeds: &[SocketAddr]) -> Options {
    Options {
        node: node(name),
        cluster: "test".to_owned(),
        listen: address,
        seeds: Seeds::new(seeds.iter().map(ToString::to_string).collect(), None, vec![address]),
        seal: None,
        interval: ROUND,
        phi: PHI,
        own: Member {
            application: "shop".to_owned(),
            raft_id: 1 + generation,
            cluster: format!("c-{name}"),
            ..Member::new(generation, address)
        },
    }
}

/// Nodes `n-0`, `n-1` and so on, that all have the first as their seed.
async fn nodes(count: usize) -> Vec<(Membership, SocketAddr)> {
    let mut addresses = Vec::new();
    for _ in 0..count {
        addresses.push(free_address().await);
    }
    let mut started = Vec::new();
    for (i, address) in addresses.iter().enumerate() {
        let options = options(&format!("n-{i}"), *address, 1, &addresses[..1]);
        started.push((Membership::start(options).await.unwrap(), *address));
    }
    started
}

/// Waits until what a node sees is as it should be; panics with its last view.
async fn wait(who: &Membership, what: &str, fact: impl FnMut(&Arc<Members>) -> bool) {
    let mut members = who.members();
    let seen = timeout(LIMIT, members.wait_for(fact)).await.map(drop);
    assert!(seen.is_ok(), "{who:?}: not within {LIMIT:?}: {what}; it sees {:#?}", who.members().borrow());
}

fn alive(members: &Members) -> Vec<&str> {
    members.iter().filter(|(_, member)| member.alive).map(|(name, _)| name.as_str()).collect()
}

async fn wait_alive(who: &Membership, names: &[&str]) {
    wait(who, &format!("alive: {names:?}"), |members| alive(members) == names).await;
}

#[tokio::test]
async fn a_node_sees_itself_at_once() {
    let nodes = nodes(1).await;
    let members = nodes[0].0.members().borrow().clone();
    assert_eq!(alive(&members), ["n-0"]);
    let own = &members[&node("n-0")];
    assert_eq!((own.application.as_str(), own.generation, own.raft_id), ("shop", 1, 2));
}

#[tokio::test]
async fn five_nodes_that_start_at_once_see_each_other() {
    let nodes = nodes(5).await;
    for (membership, _) in &nodes {
        wait_alive(membership, &["n-0", "n-1", "n-2", "n-3", "n-4"]).await;
    }
    let first = nodes[0].0.members().borrow().clone();
    for (membership, _) in &nodes {
        assert_eq!(*membership.members().borrow(), first);
    }
}

#[tokio::test]
async fn what_a_node_says_reaches_the_others() {
    let nodes = nodes(3).await;
    let speaker = &nodes[2].0;
    let hosted = Hosted { epoch: Epoch(7), state: Instance::Serving, error: None, bytes: 0 };
    let many: BTreeMap<_, _> =
        (0..300).map(|i| (ModuleName::parse(&format!("module-{i}")).unwrap(), hosted.clone())).collect();
    let few: BTreeMap<_, _> = many.iter().take(1).map(|(name, hosted)| (name.clone(), hosted.clone())).collect();
    speaker.set_cluster("c-9").unwrap();
    speaker.set_ingress("127.0.0.1:7000", true).unwrap();
    speaker.set_admin("127.0.0.1:7001").unwrap();
    speaker.set_lifecycle(Lifecycle::Ready);
    speaker.set_load(Load { calls_in_flight: 4, connections: 2 });
    for hosting in [many, few] {
        speaker.set_hosting(hosting.clone()).unwrap();
        for (membership, _) in &nodes {
            wait(membership, "what n-2 says of itself", |members| {
                members.get(&node("n-2")).is_some_and(|member| {
                    member.hosting == hosting
                        && member.cluster == "c-9"
                        && (member.ingress.as_str(), member.ingress_tls) == ("127.0.0.1:7000", true)
                        && member.admin == "127.0.0.1:7001"
                        && member.lifecycle == Lifecycle::Ready
                        && member.load == Load { calls_in_flight: 4, connections: 2 }
                })
            })
            .await;
        }
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_rest_goes_on() {
    let nodes = nodes(2).await;
    assert!(nodes[0].0.set_cluster(&"x".repeat(5000)).is_err());
    nodes[0].0.set_admin("127.0.0.1:7001").unwrap();
    wait(&nodes[1].0, "the admin address", |members| {
        members.get(&node("n-0")).is_some_and(|member| member.admin == "127.0.0.1:7001" && member.cluster == "c-n-0")
    })
    .await;
}

#[tokio::test]
async fn load_that_changes_all_the_time_wakes_nobody_all_the_time() {
    let nodes = nodes(2).await;
    wait_alive(&nodes[1].0, &["n-0", "n-1"]).await;
    let mut members = nodes[1].0.members();
    members.mark_unchanged();
    let (start, mut woken, mut calls) = (Instant::now(), 0, 0);
    while start.elapsed() < ROUND * 20 {
        calls += 1;
        nodes[0].0.set_load(Load { calls_in_flight: calls, connections: 0 });
        if timeout(Duration::from_millis(5), members.changed()).await.is_ok() {
            woken += 1;
        }
    }
    assert!((1..=8).contains(&woken), "woken {woken} times in 20 rounds by {calls} changes");
}

#[tokio::test]
async fn a_node_that_falls_silent_is_dead_and_still_known() {
    let mut nodes = nodes(3).await;
    for (membership, _) in &nodes {
        wait_alive(membership, &["n-0", "n-1", "n-2"]).await;
    }
    drop(nodes.pop());
    for (membership, _) in &nodes {
        wait_alive(membership, &["n-0", "n-1"]).await;
        assert!(membership.members().borrow().contains_key(&node("n-2")));
    }
}

#[tokio::test]
async fn all_know_of_a_leave_within_a_second() {
    let nodes = nodes(5).await;
    for (membership, _) in &nodes {
        wait_alive(membership, &["n-0", "n-1", "n-2", "n-3", "n-4"]).await;
    }
    let (leaving, address) = nodes.last().unwrap();
    let ended = leaving.ended();
    let start = Instant::now();
    let others = &nodes[..4];
    let known = async {
        for (membership, _) in others {
            wait(membership, "n-4 leaves", |members| {
                members.get(&node("n-4")).is_some_and(|member| member.lifecycle == Lifecycle::Leaving)
            })
            .await;
        }
        start.elapsed()
    };
    let ((), known) = tokio::join!(leaving.leave(), known);
    assert!(known < Duration::from_secs(1), "known by all after {known:?}");
    assert!(start.elapsed() < Duration::from_secs(1), "left after {:?}", start.elapsed());
    leaving.leave().await; // and nothing happens
    leaving.set_lifecycle(Lifecycle::Ready);
    UdpSocket::bind(address).await.expect("the port is free again");
    assert!(timeout(ROUND, ended).await.is_err(), "a leave is not an unexpected end");
}

#[tokio::test]
async fn a_leave_is_quick_at_the_usual_interval_too() {
    let (one, two) = (free_address().await, free_address().await);
    let slow = |name, address| {
        let usual = Duration::from_millis(500);
        Options { interval: usual, phi: 12.0, ..options(name, address, 1, &[one]) }
    };
    let stays = Membership::start(slow("stays", one)).await.unwrap();
    let goes = Membership::start(slow("goes", two)).await.unwrap();
    wait_alive(&stays, &["goes", "stays"]).await;
    wait_alive(&goes, &["goes", "stays"]).await;
    let start = Instant::now();
    let heard = wait(&stays, "it leaves", |members| members[&node("goes")].lifecycle == Lifecycle::Leaving);
    let heard = async {
        heard.await;
        start.elapsed()
    };
    let ((), heard) = tokio::join!(goes.leave(), heard);
    assert!(heard < Duration::from_millis(500), "heard after {heard:?}");
}

#[tokio::test]
async fn a_restarted_node_replaces_its_former_self_at_once() {
    let mut nodes = nodes(2).await;
    wait_alive(&nodes[0].0, &["n-0", "n-1"]).await;
    let (old, address) = nodes.pop().unwrap();
    drop(old);
    // The port of a node that fell silent is free a moment later.
    let start = Instant::now();
    let again = loop {
        match Membership::start(options("n-1", address, 2, &[nodes[0].1])).await {
            Ok(again) => break again,
            Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    let heard = Instant::now();
    wait(&nodes[0].0, "generation 2", |members| members[&node("n-1")].generation == 2).await;
    assert!(heard.elapsed() < Duration::from_secs(1), "not after a death of {:?}", heard.elapsed());
    wait_alive(&nodes[0].0, &["n-0", "n-1"]).await;
    wait_alive(&again, &["n-0", "n-1"]).await;
}

#[tokio::test]
async fn of_two_under_one_name_the_newer_counts_and_the_older_learns_it() {
    let nodes = nodes(2).await;
    wait_alive(&nodes[0].0, &["n-0", "n-1"]).await;
    let older = &nodes[1].0;
    let newer = Membership::start(options("n-1", free_address().await, 9, &[nodes[0].1])).await.unwrap();
    assert_eq!(timeout(LIMIT, older.superseded()).await.expect("the older one learns it"), 9);
    for membership in [&nodes[0].0, older, &newer] {
        wait(membership, "the newer one", |members| members[&node("n-1")].generation == 9).await;
    }
    assert!(timeout(ROUND * 4, newer.superseded()).await.is_err(), "the newer one stays");
}

#[tokio::test]
async fn clusters_of_other_names_do_not_mix() {
    let nodes = nodes(2).await;
    let stranger = Options { cluster: "other".to_owned(), ..options("z", free_address().await, 1, &[nodes[0].1]) };
    let stranger = Membership::start(stranger).await.unwrap();
    wait_alive(&nodes[0].0, &["n-0", "n-1"]).await;
    // Long enough that it would have been heard of: a third node is.
    let third = Membership::start(options("n-2", free_address().await, 1, &[nodes[0].1])).await.unwrap();
    wait_alive(&third, &["n-0", "n-1", "n-2"]).await;
    assert!(!nodes[0].0.members().borrow().contains_key(&node("z")));
    assert_eq!(stranger.members().borrow().len(), 1);
}

#[tokio::test]
async fn seeds_that_appear_in_a_file_are_found() {
    let nodes = nodes(1).await;
    // A seed that is no node, but shows by what it gets that the file was read.
    let reader = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), reader.local_addr().unwrap().to_string()).unwrap();
    let late = free_address().await;
    let seeds = Seeds::new(Vec::new(), Some(file.path().to_owned()), vec![late]);
    let late = Membership::start(Options { seeds, ..options("late", late, 1, &[]) }).await.unwrap();
    timeout(LIMIT, reader.recv(&mut [0; 10])).await.expect("the file is read").unwrap();
    assert_eq!(alive(&late.members().borrow()), ["late"]);
    std::fs::write(file.path(), format!("# the first\n{}\n", nodes[0].1)).unwrap();
    wait_alive(&late, &["late", "n-0"]).await;
    wait_alive(&nodes[0].0, &["late", "n-0"]).await;
}

#[tokio::test]
async fn a_node_with_nonsense_to_say_is_ignored() {
    let nodes = nodes(1).await;
    let address = free_address().await;
    let config = |name: &str| ChitchatConfig {
        chitchat_id: ChitchatId::new(name, 1, address),
        cluster_id: "test".to_owned(),
        gossip_interval: ROUND,
        listen_addr: address,
        seed_nodes: vec![nodes[0].1.to_string()],
        failure_detector_config: FailureDetectorConfig::default(),
        marked_for_deletion_grace_period: GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: ProtocolVersion::V1,
    };
    let good = core::encode(&options("x", address, 1, &[]).own).unwrap();
    for (name, key, value) in
        [("Bad Name", "lifecycle", "ready"), ("mad", keys::HOSTING, "{{{"), ("sane", "colour", "red")]
    {
        let mut words = good.clone();
        words.retain(|(known, _)| known != key);
        words.push((key.to_owned(), value.to_owned()));
        let peer = spawn_chitchat(config(name), words, &UdpTransport).await.unwrap();
        let knows = async {
            while !nodes[0]
                .0
                .inner
                .chitchat
                .with_chitchat(|c| c.node_states().keys().any(|id| *id.node_id == *name))
                .await
            {
                sleep(ROUND).await;
            }
        };
        timeout(LIMIT, knows).await.expect("chitchat knows the node");
        peer.shutdown().await.unwrap();
    }
    wait(&nodes[0].0, "the sane one", |members| members.contains_key(&node("sane"))).await;
    assert_eq!(nodes[0].0.members().borrow().len(), 2);
}

#[tokio::test]
async fn an_unexpected_end_is_told() {
    let nodes = nodes(1).await;
    let ended = nodes[0].0.ended();
    nodes[0].0.inner.chitchat.abort();
    let reason = timeout(LIMIT, ended).await.expect("the end is told");
    assert!(!reason.is_empty());
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let text = Membership::start(options("n", address, 1, &[])).await.unwrap_err().to_string();
    assert!(text.contains(&address.to_string()) && text.contains("cluster.listen"), "{text}");
    let nowhere = "0.0.0.0:7002".parse().unwrap();
    let text = Membership::start(options("n", nowhere, 1, &[])).await.unwrap_err().to_string();
    assert!(text.contains("cluster.advertise"), "{text}");
}

#[tokio::test]
async fn a_restart_with_a_data_directory_is_newer_though_the_clock_went_back() {
    let dir = tempfile::TempDir::new().unwrap();
    let watcher = nodes(1).await;
    let mut last = 0;
    for wall in [1_000_000, 5] {
        let identity = Identity::load(Some(dir.path()), Timestamp(wall)).unwrap();
        let options = options("back", free_address().await, identity.generation, &[watcher[0].1]);
        let back = Membership::start(options).await.unwrap();
        assert!(identity.generation > last);
        last = identity.generation;
        wait(&watcher[0].0, "it is alive", |members| {
            members.get(&node("back")).is_some_and(|member| member.alive && member.generation == last)
        })
        .await;
        drop(back);
    }
}

/// What is logged on this thread, which runs all tasks of a test.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).matches(text).count()
    }

    async fn wait(&self, text: &str) {
        let logged = async {
            while self.count(text) == 0 {
                sleep(ROUND).await;
            }
        };
        timeout(LIMIT, logged).await.unwrap_or_else(|_| panic!("`{text}` is not logged"));
    }
}

#[tokio::test]
async fn an_older_process_that_goes_on_is_warned_of_once() {
    let (log, _guard) = Log::start();
    let nodes = nodes(2).await;
    wait_alive(&nodes[0].0, &["n-0", "n-1"]).await;
    let newer = options("n-1", free_address().await, 9, &[nodes[0].1]);
    let _newer = Membership::start(Options { phi: 10.0, ..newer }).await.unwrap();
    let warning = "an older process with this node's name still runs";
    log.wait(warning).await;
    // Another process is noticed after that: the view was renewed meanwhile.
    let later = Membership::start(options("later", free_address().await, 1, &[nodes[0].1])).await.unwrap();
    wait_alive(&later, &["later", "n-0", "n-1"]).await;
    assert_eq!(log.count(warning), 1);
}

#[tokio::test]
async fn a_dead_process_supersedes_nobody_whatever_its_generation() {
    let (log, _guard) = Log::start();
    let mut nodes = nodes(1).await;
    let dead = Membership::start(options("n-1", free_address().await, 9, &[nodes[0].1])).await.unwrap();
    wait_alive(&nodes[0].0, &["n-0", "n-1"]).await;
    drop(dead);
    wait_alive(&nodes[0].0, &["n-0"]).await;
    let lower = options("n-1", free_address().await, 5, &[nodes[0].1]);
    let lower = Membership::start(Options { phi: 10.0, ..lower }).await.unwrap();
    tokio::select! {
        generation = lower.superseded() => panic!("superseded by {generation}, which is dead"),
        () = log.wait("last used with a higher generation") => {}
    }
    nodes.clear();
}

/// Options with keys, each of whose bytes are the same.
fn sealed(mut options: Options, keys: &[u8], plain: PlainGossip) -> Options {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gossip.keys");
    let keys: Vec<_> = keys.iter().map(|byte| GossipKey::new([*byte; 32])).collect();
    std::fs::write(&path, keyring::render(&keys)).unwrap();
    let mut settings = TrustSettings::default();
    (settings.gossip_keys, settings.plain_gossip) = (Some(path), plain);
    options.seal = Seal::load(&settings).unwrap();
    options
}

/// Two nodes, of which the second looks for the first.
async fn pair(seal: impl Fn(usize, Options) -> Options) -> [Membership; 2] {
    let [first, second] = [free_address().await, free_address().await];
    let one = Membership::start(seal(0, options("n-0", first, 1, &[]))).await.unwrap();
    let two = Membership::start(seal(1, options("n-1", second, 1, &[first]))).await.unwrap();
    [one, two]
}

#[tokio::test]
async fn nodes_with_a_key_in_common_see_each_other() {
    let keys: [&[u8]; 2] = [&[1, 2], &[2, 1]];
    let [one, two] = pair(|node, options| sealed(options, keys[node], PlainGossip::Refuse)).await;
    wait_alive(&one, &["n-0", "n-1"]).await;
    wait_alive(&two, &["n-0", "n-1"]).await;
    // More than fits into one datagram.
    let hosted = Hosted { epoch: Epoch(7), state: Instance::Serving, error: None, bytes: 0 };
    let many: BTreeMap<_, _> =
        (0..300).map(|i| (ModuleName::parse(&format!("module-{i}")).unwrap(), hosted.clone())).collect();
    two.set_hosting(many.clone()).unwrap();
    wait(&one, "what n-1 hosts", |members| members.get(&node("n-1")).is_some_and(|member| member.hosting == many))
        .await;
}

#[tokio::test]
async fn nodes_without_a_key_in_common_do_not() {
    for strangers_keys in [None, Some(&[3][..])] {
        let ours = |options| sealed(options, &[1], PlainGossip::Refuse);
        let [one, stranger] = pair(|node, options| match (node, strangers_keys) {
            (0, _) => ours(options),
            (_, Some(keys)) => sealed(options, keys, PlainGossip::Refuse),
            (_, None) => options,
        })
        .await;
        // A third node is seen by then, and it has come later.
        let at = one.members().borrow()[&node("n-0")].address;
        let third = Membership::start(ours(options("n-2", free_address().await, 1, &[at]))).await.unwrap();
        wait_alive(&one, &["n-0", "n-2"]).await;
        wait_alive(&third, &["n-0", "n-2"]).await;
        assert_eq!(alive(&stranger.members().borrow()), ["n-1"]);
    }
}

#[tokio::test]
async fn a_cluster_goes_over_to_keys_in_steps() {
    use PlainGossip::{Accept, Refuse, Send};
    // Neighbours in the order of the steps, either of which may ask the other first.
    for modes in [[None, Some(Send)], [Some(Send), Some(Accept)], [Some(Accept), Some(Refuse)]] {
        for modes in [modes, [modes[1], modes[0]]] {
            let [one, two] = pair(|node, options| match modes[node] {
                None => options,
                Some(plain) => sealed(options, &[1], plain),
            })
            .await;
            wait_alive(&one, &["n-0", "n-1"]).await;
            wait_alive(&two, &["n-0", "n-1"]).await;
        }
    }
}

#[tokio::test]
async fn rubbish_does_not_stop_gossip() {
    let [one, two] = pair(|_, options| sealed(options, &[1], PlainGossip::Refuse)).await;
    wait_alive(&one, &["n-0", "n-1"]).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = one.members().borrow()[&node("n-0")].address;
    for size in (0..1300usize).chain([9_000, 65_000]) {
        // The beginnings of plain gossip, of sealed gossip, and of neither.
        for head in [&45_139u16.to_le_bytes()[..], b"OPg1", b""] {
            let datagram: Vec<u8> = head.iter().copied().chain((0..size).map(|byte| byte as u8)).collect();
            let _ = stranger.send_to(&datagram, at).await;
        }
    }
    two.set_admin("127.0.0.1:7001").unwrap();
    wait(&one, "what n-1 says after that", |members| {
        members.get(&node("n-1")).is_some_and(|member| member.admin == "127.0.0.1:7001")
    })
    .await;
}

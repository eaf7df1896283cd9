//! What Prometheus sees of nodes: that it is what has happened, and what the page on it says.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use outpost::{App, BoxError, Module, Node, Sources, StartError};
use outpost_proto::keys::metadata::CALL_ID;
use outpost_tests::{
    Obedient, app,
    authority::{Authority, Kind, wall},
    cluster::{self, TestCluster, free_address, nodes},
    relay,
    scrape::{Scrape, get, scrape, until},
    store::{self, Whole, v1::FillRequest},
    v1::{
        Ask, Deed, KindsHandle, RelayHandle, kinds_client::KindsClient, kinds_server::KindsServer,
        relay_client::RelayClient,
    },
};
use tonic::{Code, Request};

fn ask(deed: Deed) -> Ask {
    Ask { deed: deed.into(), ..Ask::default() }
}

/// The settings of a node that can be scraped.
fn sources() -> Sources {
    Sources::on_free_ports().set("metrics.listen", "127.0.0.1:0")
}

async fn alone() -> Node {
    app(Obedient::default()).start(&sources()).await.unwrap()
}

/// Sees to it that a node hosts a module.
async fn put(cluster: &TestCluster, module: &str, node: &str) {
    if cluster.home(module).await != node {
        cluster.move_module(module, node).await;
        cluster.home(module).await;
    }
}

/// Nodes, of which `n1` hosts `kinds` and `n2` `relay`.
async fn apart() -> TestCluster {
    let cluster = nodes(2).with("metrics.listen", "127.0.0.1:0").start(|_| app(Obedient::default())).await;
    put(&cluster, "kinds", "n1").await;
    put(&cluster, "relay", "n2").await;
    cluster
}

// ---- The format, and the page ----

/// The metrics in the tables of docs/metrics.md, and the type of each.
fn documented() -> BTreeMap<String, String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `outpost_")?.split_once("` | "));
    rows.map(|(name, rest)| (format!("outpost_{name}"), rest.split(' ').next().unwrap().to_owned())).collect()
}

/// A cluster that has all there is: certificates, keys, a state that has moved, calls that went between nodes and failed.
#[tokio::test(flavor = "multi_thread")]
async fn each_metric_is_on_the_page_and_none_is_there_that_is_not() {
    let authority = Arc::new(Authority::new());
    let files = authority.server_files();
    let program =
        |node: &str| store::app::<Whole>(node).with(Module::new("kinds", kinds)).with(Module::new("relay", relay));
    let cluster = nodes(2)
        .secured(&authority)
        .with("metrics.listen", "127.0.0.1:0")
        .with_of("n1", "ingress.tls.certificate", files.certificate.to_str().unwrap())
        .with_of("n1", "ingress.tls.key", files.key.to_str().unwrap())
        .start(program)
        .await;
    let home = cluster.home("store").await;
    cluster.handle::<store::v1::StoreHandle>(&home).fill(FillRequest { bytes: 1 << 20 }).await.unwrap();
    cluster.move_module("store", &cluster.node_without("store").await).await;
    put(&cluster, "kinds", "n1").await;
    let mut client = KindsClient::new(cluster.client("n2"));
    client.unary(ask(Deed::Unspecified)).await.unwrap();
    client.unary(ask(Deed::Fail)).await.unwrap_err();
    cluster.handle::<KindsHandle>("n1").unary(ask(Deed::Fail)).await.unwrap_err();

    let target = cluster.home("store").await;
    until(cluster.node(&target), "outpost_module_state_taken_bytes", &[("module", "store")], |bytes| {
        bytes >= f64::from(1 << 20)
    })
    .await;
    let (n1, n2) = (scrape(cluster.node("n1")).await, scrape(cluster.node("n2")).await);
    let mut exposed: BTreeMap<String, String> = BTreeMap::new();
    exposed.extend(
        [&n1, &n2].iter().flat_map(|page| &page.families).map(|(name, kind)| (name.clone(), (*kind).to_owned())),
    );
    assert_eq!(exposed, documented(), "left is what nodes tell, right is docs/metrics.md");

    // Nothing that a caller has said, and nothing that has no bound.
    for page in [&n1, &n2] {
        assert_eq!(page.labels("module"), ["kinds", "relay", "store"].into());
        assert!(page.labels("peer").is_subset(&["n1", "n2"].into()));
    }
    let soon = |page: &Scrape, whose: &str| {
        let left = page.get("outpost_certificate_expiry_timestamp_seconds", &[("certificate", whose)]);
        left.map(|at| at - wall().as_secs_f64())
    };
    let a_day = |left: Option<f64>| left.is_some_and(|left| (80_000.0..86_400.0).contains(&left));
    assert!(a_day(soon(&n1, "node")) && a_day(soon(&n2, "node")));
    assert!(soon(&n1, "ingress").is_some_and(|left| left > 86_400.0) && soon(&n2, "ingress").is_none());
    assert_eq!(n1.sum("outpost_gossip_key_info", &[("use", "seal")]), 1.0);
    assert_eq!(n1.sum("outpost_trust_files_unusable", &[]), 0.0);
    assert!(n1.sum("outpost_gossip_sent_datagrams_total", &[]) > 0.0);
    assert!(n1.sum("outpost_gossip_received_datagrams_total", &[]) > 0.0);
}

async fn kinds() -> Result<KindsServer<Obedient>, BoxError> {
    Ok(KindsServer::new(Obedient::default()))
}

#[tokio::test]
async fn who_does_not_ask_for_openmetrics_gets_the_older_format() {
    let node = alone().await;
    let at = node.metrics_address().unwrap();
    let (head, page) = get(at, "/metrics", "*/*").await.unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(page.contains("# TYPE outpost_module_calls_total counter\n") && !page.contains("# EOF"), "{page}");
    // The judge of Prometheus itself, where it is there.
    if let Ok(mut promtool) = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
    {
        std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), page.as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
    for (path, status) in [("/", "404"), ("/livez", "404")] {
        assert!(get(at, path, "*/*").await.unwrap().0.contains(status));
    }
}

#[tokio::test]
async fn it_listens_only_where_it_is_told_to_and_beyond_loopback_only_with_the_risk_named() {
    let node = app(Obedient::default()).start(&Sources::on_free_ports()).await.unwrap();
    assert_eq!(node.metrics_address(), None);
    let open = Sources::on_free_ports().set("metrics.listen", "0.0.0.0:0");
    let error = app(Obedient::default()).start(&open).await.unwrap_err();
    assert!(matches!(error, StartError::Config(_)), "{error:?}");
    assert!(error.to_string().contains("metrics.plaintext_beyond_loopback = true"), "{error}");
    let named = open.set("metrics.plaintext_beyond_loopback", "true");
    let node = app(Obedient::default()).start(&named).await.unwrap();
    assert!(node.metrics_address().is_some());
}

#[tokio::test]
async fn a_node_that_waits_for_its_cluster_can_be_asked() {
    let at = free_address();
    let waiting = Sources::on_free_ports().set("metrics.listen", &at.to_string());
    // Two of the three are never there.
    let waiting = waiting.set("cluster.initial_voters", "[\"node-1\", \"node-2\", \"node-3\"]");
    tokio::select! {
        started = app(Obedient::default()).start(&waiting) => panic!("it has no cluster: {started:?}"),
        () = outpost_tests::wait::until("an answer", async || match get(at, "/metrics", "*/*").await {
            Ok((_, page)) if page.contains("outpost_build_info{application=\"kinds\",version=\"1.0.0\"") => {
                assert!(page.contains("\noutpost_joined 0\n"), "{page}");
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }) => {}
    }
}

// ---- Calls ----

#[tokio::test]
async fn calls_are_counted_by_module_and_origin_and_those_that_fail_by_code() {
    let node = alone().await;
    let mut client = KindsClient::new(cluster::connection(node.ingress_address()));
    let handle: KindsHandle = node.handle().unwrap();
    for _ in 0..3 {
        client.unary(ask(Deed::Unspecified)).await.unwrap();
        handle.unary(ask(Deed::Unspecified)).await.unwrap();
    }
    handle.unary(ask(Deed::Fail)).await.unwrap_err();
    client.unary(ask(Deed::Fail)).await.unwrap_err();
    client.unary(ask(Deed::Panic)).await.unwrap_err();
    handle.unary(ask(Deed::Panic)).await.unwrap_err();
    // By way of another module.
    RelayClient::new(cluster::connection(node.ingress_address())).unary(ask(Deed::Fail)).await.unwrap_err();
    // By the channel, and so through the codec.
    KindsClient::new(node.channel()).unary(ask(Deed::Fail)).await.unwrap_err();
    // One that is late.
    let mut late = Request::new(ask(Deed::Hang));
    late.set_timeout(Duration::from_millis(50));
    assert_eq!(handle.unary(late).await.unwrap_err().code(), Code::DeadlineExceeded);
    // And two that are given up, once they are inside.
    let kinds = [("module", "kinds")];
    let inside = || until(&node, "outpost_module_calls_in_flight", &kinds, |inside| inside == 1.0);
    let outside = || until(&node, "outpost_module_calls_in_flight", &kinds, |inside| inside == 0.0);
    tokio::select! {
        answer = client.unary(ask(Deed::Hang)) => panic!("it hangs: {answer:?}"),
        () = inside() => {}
    }
    outside().await;
    tokio::select! {
        answer = handle.unary(ask(Deed::Hang)) => panic!("it hangs: {answer:?}"),
        () = inside() => {}
    }
    outside().await;

    let cancelled = [("module", "kinds"), ("code", "CANCELLED")];
    until(&node, "outpost_module_call_errors_total", &cancelled, |calls| calls == 2.0).await;
    until(&node, "outpost_ingress_calls_total", &cancelled, |calls| calls == 1.0).await;
    let page = scrape(&node).await;
    let calls = |module, from| page.sum("outpost_module_calls_total", &[("module", module), ("from", from)]);
    assert_eq!((calls("kinds", "client"), calls("kinds", "module"), calls("kinds", "node")), (6.0, 9.0, 0.0));
    assert_eq!((calls("relay", "client"), calls("relay", "module")), (1.0, 0.0));
    let errors = |module, code| page.sum("outpost_module_call_errors_total", &[("module", module), ("code", code)]);
    assert_eq!((errors("kinds", "ABORTED"), errors("relay", "ABORTED")), (4.0, 1.0));
    assert_eq!((errors("kinds", "INTERNAL"), page.sum("outpost_module_panics_total", &kinds)), (2.0, 2.0));
    assert_eq!((errors("kinds", "DEADLINE_EXCEEDED"), errors("kinds", "CANCELLED")), (1.0, 2.0));
    let uncounted = |code| page.get("outpost_module_call_errors_total", &[("module", "kinds"), ("code", code)]);
    assert_eq!((uncounted("DATA_LOSS"), uncounted("NOT_FOUND"), uncounted("OK")), (Some(0.0), None, None));
    let ingress = |module, code| page.sum("outpost_ingress_calls_total", &[("module", module), ("code", code)]);
    assert_eq!((ingress("kinds", "OK"), ingress("kinds", "ABORTED"), ingress("kinds", "INTERNAL")), (3.0, 1.0, 1.0));
    assert_eq!(ingress("relay", "ABORTED"), 1.0);
    assert_eq!(ingress("kinds", "CANCELLED"), 1.0);
    assert_eq!(page.sum("outpost_ingress_call_duration_seconds_count", &kinds), 6.0);
    assert_eq!(page.get("outpost_remote_calls_total", &[]), None, "all was here");
    assert_eq!((page.sum("outpost_module_calls_in_flight", &[]), page.sum("outpost_joined", &[])), (0.0, 1.0));
}

/// A handle can't call it directly, and so finds that out inside its gate.
#[tokio::test]
async fn calls_of_a_module_behind_an_interceptor_are_counted_once() {
    let kinds = || async { Ok::<_, BoxError>(KindsServer::with_interceptor(Obedient::default(), Ok)) };
    let node = App::new("kinds", "1").module("kinds", kinds).start(&sources()).await.unwrap();
    let handle: KindsHandle = node.handle().unwrap();
    handle.unary(ask(Deed::Unspecified)).await.unwrap();
    handle.unary(ask(Deed::Fail)).await.unwrap_err();
    let mut stream = handle.server_stream(Ask { count: 2, ..Ask::default() }).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    // And one that is refused before it goes anywhere.
    let mut client = KindsClient::new(cluster::connection(node.ingress_address()));
    let mut malformed = Request::new(ask(Deed::Unspecified));
    malformed.metadata_mut().insert(CALL_ID, "two words".parse().unwrap());
    assert_eq!(client.unary(malformed).await.unwrap_err().code(), Code::InvalidArgument);

    drop(stream);
    until(&node, "outpost_module_calls_in_flight", &[("module", "kinds")], |inside| inside == 0.0).await;
    let page = scrape(&node).await;
    assert_eq!(page.sum("outpost_module_calls_total", &[("module", "kinds"), ("from", "module")]), 3.0);
    assert_eq!(page.sum("outpost_module_calls_total", &[]), 3.0);
    let errors = |code| page.sum("outpost_module_call_errors_total", &[("module", "kinds"), ("code", code)]);
    assert_eq!((errors("ABORTED"), errors("INVALID_ARGUMENT")), (1.0, 0.0));
    assert_eq!(page.sum("outpost_ingress_calls_total", &[("module", "kinds"), ("code", "INVALID_ARGUMENT")]), 1.0);
    assert_eq!(page.get("outpost_remote_calls_total", &[]), None, "nothing was sent anywhere");
}

#[tokio::test]
async fn a_stream_is_one_call_that_ends_as_its_last_word_says() {
    let node = alone().await;
    let mut client = KindsClient::new(cluster::connection(node.ingress_address()));
    let handle: KindsHandle = node.handle().unwrap();
    let failing = Ask { count: 2, ..ask(Deed::Fail) };
    let mut stream = client.server_stream(failing.clone()).await.unwrap().into_inner();
    while stream.message().await.is_ok_and(|message| message.is_some()) {}
    let mut stream = handle.server_stream(failing.clone()).await.unwrap().into_inner();
    while stream.message().await.is_ok_and(|message| message.is_some()) {}
    let mut stream = handle.server_stream(Ask { count: 2, ..Ask::default() }).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    let given_up = handle.server_stream(failing).await.unwrap();
    until(&node, "outpost_module_calls_in_flight", &[("module", "kinds")], |inside| inside >= 1.0).await;
    drop((given_up, stream));
    let cancelled = [("module", "kinds"), ("code", "CANCELLED")];
    until(&node, "outpost_module_call_errors_total", &cancelled, |calls| calls == 1.0).await;
    until(&node, "outpost_module_calls_total", &[("module", "kinds")], |calls| calls == 4.0).await;
    let page = scrape(&node).await;
    let errors = |code| page.sum("outpost_module_call_errors_total", &[("module", "kinds"), ("code", code)]);
    assert_eq!((errors("ABORTED"), errors("CANCELLED")), (2.0, 1.0));
    assert_eq!(page.sum("outpost_ingress_calls_total", &[("code", "ABORTED")]), 1.0);
    assert_eq!(page.get("outpost_ingress_call_duration_seconds_count", &[]), None, "it is not unary");
}

#[tokio::test]
async fn a_call_to_another_node_is_counted_at_both() {
    let cluster = apart().await;
    let mut client = KindsClient::new(cluster.client("n2"));
    let handle: KindsHandle = cluster.handle("n2");
    let elsewhere: RelayHandle = cluster.handle("n1");
    for _ in 0..4 {
        client.unary(ask(Deed::Unspecified)).await.unwrap();
        handle.unary(ask(Deed::Unspecified)).await.unwrap();
    }
    handle.unary(ask(Deed::Fail)).await.unwrap_err();
    client.unary(ask(Deed::Fail)).await.unwrap_err();
    // There, and back.
    elsewhere.unary(ask(Deed::Unspecified)).await.unwrap();

    let kinds = [("module", "kinds")];
    until(cluster.node("n1"), "outpost_module_calls_total", &kinds, |calls| calls == 11.0).await;
    until(cluster.node("n2"), "outpost_ingress_calls_total", &kinds, |calls| calls == 5.0).await;
    let (n1, n2) = (scrape(cluster.node("n1")).await, scrape(cluster.node("n2")).await);
    let served = |page: &Scrape, from| page.sum("outpost_module_calls_total", &[("module", "kinds"), ("from", from)]);
    assert_eq!((served(&n1, "node"), served(&n1, "module"), served(&n1, "client")), (11.0, 0.0, 0.0));
    assert_eq!(served(&n2, "module") + served(&n2, "client") + served(&n2, "node"), 0.0);
    let aborted = |page: &Scrape, name| page.sum(name, &[("module", "kinds"), ("code", "ABORTED")]);
    assert_eq!(aborted(&n1, "outpost_module_call_errors_total"), 2.0);
    assert_eq!(aborted(&n2, "outpost_module_call_errors_total"), 0.0);
    assert_eq!(aborted(&n2, "outpost_remote_calls_total"), 2.0);
    assert_eq!(n2.sum("outpost_remote_calls_total", &[("module", "kinds"), ("code", "OK")]), 9.0);
    assert_eq!(n2.sum("outpost_remote_call_duration_seconds_count", &kinds), 11.0);
    assert_eq!(n1.sum("outpost_remote_calls_total", &[("module", "relay"), ("code", "OK")]), 1.0);
    assert!(n2.sum("outpost_link_up", &[("peer", "n1"), ("connection", "carrier")]) == 1.0);
    assert!(n2.sum("outpost_link_connects_total", &[("peer", "n1"), ("connection", "carrier")]) >= 1.0);
}

#[tokio::test]
async fn calls_that_are_refused_for_who_makes_them_are_counted_and_in_audit_mode_those_that_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, "[relay]\nclients = [\"anyone\"]\nmodules = []\n[kinds]\nclients = []\nmodules = []\n").unwrap();
    for (mode, refused, audited) in [("enforce", 1.0, 0.0), ("audit", 0.0, 1.0)] {
        let sources = sources().set("callers.policy", policy.to_str().unwrap()).set("callers.mode", mode);
        let node = app(Obedient::default()).start(&sources).await.unwrap();
        let channel = cluster::connection(node.ingress_address());
        let answers = [
            KindsClient::new(channel.clone()).unary(ask(Deed::Unspecified)).await.map(drop),
            RelayClient::new(channel).unary(ask(Deed::Unspecified)).await.map(drop),
        ];
        assert_eq!(answers.iter().all(Result::is_err), mode == "enforce", "{answers:?}");
        let page = scrape(&node).await;
        for reason in ["client", "module"] {
            let of = |name| page.sum(name, &[("reason", reason)]);
            assert_eq!(of("outpost_policy_refused_calls_total"), refused, "{mode}: {reason}");
            assert_eq!(of("outpost_policy_audited_calls_total"), audited, "{mode}: {reason}");
        }
        let denied = page.sum("outpost_ingress_calls_total", &[("module", "kinds"), ("code", "PERMISSION_DENIED")]);
        assert_eq!(denied, refused);
    }
}

// ---- The cluster ----

#[tokio::test]
async fn who_leads_who_votes_and_who_is_there() {
    let mut cluster =
        nodes(3).voters(3).with("metrics.listen", "127.0.0.1:0").start(|_| app(Obedient::default())).await;
    let view = cluster.view_at("n1").await;
    for name in cluster.names() {
        let node = cluster.node(&name);
        let leads = f64::from(u8::from(name == view.leader));
        until(node, "outpost_placement_leader", &[], |leader| leader == leads).await;
        until(node, "outpost_lease_held", &[], |held| held == 1.0).await;
        until(node, "outpost_cluster_nodes", &[("state", "ready")], |ready| ready == 3.0).await;
        until(node, "outpost_cluster_modules", &[("state", "serving")], |serving| serving == 2.0).await;
        let page = scrape(node).await;
        assert_eq!(page.sum("outpost_placement_voter", &[]), 1.0);
        assert_eq!(page.sum("outpost_placement_has_leader", &[]), 1.0);
        assert_eq!(page.sum("outpost_placement_voters", &[]), 3.0);
        assert!(page.sum("outpost_placement_term", &[]) >= view.term as f64);
        assert!(page.sum("outpost_placement_applied_index", &[]) > 0.0);
    }
    let (gone, term) = (view.leader.clone(), view.term as f64);
    cluster.kill(&gone);
    let left = cluster.names();
    for name in &left {
        let node = cluster.node(name);
        until(node, "outpost_placement_term", &[], |now| now > term).await;
        until(node, "outpost_cluster_nodes", &[("state", "dead")], |dead| dead == 1.0).await;
        until(node, "outpost_placement_voters", &[("state", "unreachable")], |unreachable| unreachable == 1.0).await;
    }
    outpost_tests::wait::until("one leader", async || {
        let mut leaders = 0.0;
        for name in &left {
            leaders += scrape(cluster.node(name)).await.sum("outpost_placement_leader", &[]);
        }
        if leaders == 1.0 { Ok(()) } else { Err(format!("{leaders} lead")) }
    })
    .await;
}

#[tokio::test]
async fn a_move_is_counted_once_and_takes_the_instance_along() {
    let cluster = nodes(2).with("metrics.listen", "127.0.0.1:0").start(store::app::<Whole>).await;
    let (from, to) = (cluster.home("store").await, cluster.node_without("store").await);
    let changes = async |change: &str| {
        let mut changes = 0.0;
        for name in cluster.names() {
            let page = scrape(cluster.node(&name)).await;
            changes += page.sum("outpost_placement_changes_total", &[("change", change)]);
        }
        changes
    };
    let before = changes("handed_over").await;
    let epoch = cluster.move_module("store", &to).await;
    let serving = [("module", "store"), ("state", "serving")];
    until(cluster.node(&to), "outpost_module_instance", &serving, |serving| serving == 1.0).await;
    until(cluster.node(&to), "outpost_module_epoch", &[("module", "store")], |now| now == epoch as f64).await;
    until(cluster.node(&from), "outpost_move_pause_duration_seconds_count", &[], |pauses| pauses == 1.0).await;
    // A page may be a second old.
    outpost_tests::wait::until("the instance to be gone", async || {
        let there = scrape(cluster.node(&from)).await.get("outpost_module_instance", &serving);
        there.map_or(Ok(()), |there| Err(format!("{there}")))
    })
    .await;
    assert_eq!(scrape(cluster.node(&to)).await.sum("outpost_move_pause_duration_seconds_count", &[]), 0.0);
    for (change, expected) in [("move_begun", 1.0), ("prepared", 1.0), ("handed_over", before + 1.0)] {
        outpost_tests::wait::until(change, async || match changes(change).await {
            count if count == expected => Ok(()),
            count => Err(format!("{count}, not {expected}")),
        })
        .await;
    }
    assert_eq!(changes("move_aborted").await, 0.0);
    // Calls go on being counted where they were.
    cluster.handle::<store::v1::StoreHandle>(&from).get(store::v1::GetRequest::default()).await.unwrap();
    until(cluster.node(&to), "outpost_module_calls_total", &[("module", "store"), ("from", "node")], |calls| {
        calls == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_certificate_that_is_replaced_shows_when_the_new_one_expires() {
    let authority = Arc::new(Authority::new());
    let cluster =
        nodes(1).secured(&authority).with("metrics.listen", "127.0.0.1:0").start(|_| app(Obedient::default())).await;
    let (node, expiry) = (cluster.node("n1"), "outpost_certificate_expiry_timestamp_seconds");
    let before = scrape(node).await.get(expiry, &[]).unwrap();
    let (certificate, key) = authority.issue(&outpost_tests::authority::node("n1"), Kind::Lasting);
    let folder = cluster.trust_of("n1");
    outpost_tests::authority::replace(&folder.join("n1.pem"), &certificate);
    outpost_tests::authority::replace(&folder.join("n1.key"), &key);
    until(node, expiry, &[], |now| now > before + 8.0 * 86400.0).await;
    // And one that is none is told.
    outpost_tests::authority::replace(&folder.join("n1.pem"), "no certificate");
    until(node, "outpost_trust_files_unusable", &[], |unusable| unusable == 1.0).await;
}

/// A program without modules has no lines for any.
#[tokio::test]
async fn a_node_without_modules_has_metrics_too() {
    let node = App::new("empty", "1").start(&sources()).await.unwrap();
    let page = scrape(&node).await;
    assert!(page.labels("module").is_empty());
    assert_eq!(page.sum("outpost_build_info", &[("application", "empty"), ("version", "1")]), 1.0);
}

//! Nodes of one application that place, move and lose modules, seen by clients and by operators.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use outpost::{App, BoxError, Failure, Module, Sources};
use outpost_proto::{
    admin::v1::{
        self as admin, ApplyRequest, CordonRequest, Document, ExplainRequest, ForgetRequest, HistoryRequest,
        MoveRequest, PinRequest, PlanRequest, RollbackRequest, ScaleRequest, UnpinRequest,
    },
    keys::metadata as keys,
};
use outpost_tests::{
    Obedient,
    cluster::{TestCluster, connection, module, nodes, serves, settled},
    failure,
    load::{Load, Report},
    relay,
    v1::{
        Answer, Ask, Deed, KindsHandle, RelayHandle,
        kinds_client::KindsClient,
        kinds_server::KindsServer,
        relay_client::RelayClient,
        relay_server::{Relay, RelayServer},
    },
    wait::within,
    witness::{self, Book, SERVED_BY},
};
use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, IntoRequest as _, Request, Response, Status};

/// A cluster whose calls are written down.
async fn witnessed(setup: outpost_tests::cluster::Setup) -> (TestCluster, Arc<Book>) {
    let book = Arc::new(Book::default());
    let written = Arc::clone(&book);
    (setup.start(move |node| witness::app(node, &written)).await, book)
}

fn ask(text: &str) -> Ask {
    Ask { text: text.to_owned(), ..Ask::default() }
}

fn asked_to(deed: Deed) -> Ask {
    Ask { deed: deed.into(), ..Ask::default() }
}

/// The node that answers a client of another one.
async fn answered_by(cluster: &TestCluster, client_of: &str) -> Result<String, Status> {
    let answer = KindsClient::new(cluster.client(client_of)).unary(ask("")).await?;
    Ok(answer.metadata().get(SERVED_BY).unwrap().to_str().unwrap().to_owned())
}

fn outcome(status: &Status) -> Option<&str> {
    status.metadata().get(keys::OUTCOME).map(|value| value.to_str().unwrap())
}

fn assert_once(report: &Report, book: &Book) {
    report.assert_all_answered();
    assert_eq!(book.executed_twice(), Vec::<String>::new());
    let lost: Vec<_> = report.answered.iter().filter(|call| book.executed(call) != 1).collect();
    assert!(lost.is_empty(), "answered, and not executed: {lost:?}");
}

// ---- Calls ----

#[tokio::test]
async fn a_module_answers_at_every_node_wherever_it_is() {
    let (cluster, book) = witnessed(nodes(3)).await;
    cluster.move_module("kinds", "n2").await;
    cluster.move_module("relay", "n3").await;
    cluster.home("kinds").await;
    for node in cluster.names() {
        assert_eq!(answered_by(&cluster, &node).await.unwrap(), "n2");
        RelayClient::new(cluster.client(&node)).unary(ask(&node)).await.unwrap();
        cluster.handle::<KindsHandle>(&node).unary(ask("")).await.unwrap();
        cluster.handle::<RelayHandle>(&node).unary(ask("")).await.unwrap();
        assert_eq!(book.executed(&node), 1);
    }
    assert_eq!((book.admitted_by("n1"), book.admitted_by("n3")), (0, 0));
}

/// 100 moves, while everybody calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_or_runs_twice_while_a_module_moves_a_hundred_times() {
    let (cluster, book) = witnessed(nodes(3)).await;
    let names = cluster.names();
    let load = Load::start(&cluster, &names);
    let mut owners = vec![cluster.home("kinds").await];
    for round in 1..=100 {
        let target = &names[round % names.len()];
        let before = book.admitted_by(target);
        cluster.move_module("kinds", target).await;
        owners.push(target.clone());
        if round % 10 == 0 {
            cluster.move_module("relay", &names[round / 10 % names.len()]).await;
        }
        // Each owner lets a call in, so that the book tells all of them.
        outpost_tests::wait::until("a call at the new owner", async || match book.admitted_by(target) {
            after if after > before => Ok(()),
            after => Err(format!("{target} has let {after} calls in")),
        })
        .await;
    }
    assert_once(&load.stop().await, &book);
    book.one_owner_at_a_time(&owners).unwrap();
}

#[tokio::test]
async fn a_stream_ends_as_it_began_while_its_module_moves() {
    let (cluster, _) = witnessed(nodes(2)).await;
    let home = cluster.home("kinds").await;
    let (asks, open) = tokio::sync::mpsc::channel(1);
    let asked = tokio_stream::wrappers::ReceiverStream::new(open);
    let mut client = KindsClient::new(cluster.client("n2"));
    let mut answers = client.bidi(asked).await.unwrap().into_inner();
    asks.send(ask("before")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().text, "before");
    cluster.move_module("kinds", &cluster.node_without("kinds").await).await;
    asks.send(ask("after")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().text, "after", "{home} serves it to its end");
    drop(asks);
    assert!(answers.message().await.unwrap().is_none());
}

/// What a node does that is sent a call for a module which it does not have.
#[tokio::test]
async fn a_call_that_comes_by_an_old_route_goes_on_and_its_hops_are_limited() {
    let (cluster, _) = witnessed(nodes(3)).await;
    cluster.move_module("kinds", "n2").await;
    cluster.home("kinds").await;
    let mut node = KindsClient::new(connection(cluster.node("n3").cluster_address()));
    let mut by_route = async |hops: &str, epoch: &str| {
        let mut request = ask("").into_request();
        request.metadata_mut().insert(keys::HOPS, hops.parse().unwrap());
        request.metadata_mut().insert(keys::EPOCH, epoch.parse().unwrap());
        node.unary(request).await
    };
    let answer = by_route("1", "1").await.unwrap();
    assert_eq!(answer.metadata().get(SERVED_BY).unwrap(), "n2");
    assert!(answer.metadata().get(keys::MOVED).unwrap().to_str().unwrap().ends_with(" n2"), "the sender learns of it");
    for (hops, epoch) in [("3", "1"), ("1", "1000000")] {
        let status = by_route(hops, epoch).await.unwrap_err();
        assert_eq!((status.code(), outcome(&status)), (Code::Unavailable, Some("not-executed")), "{status:?}");
    }
}

#[tokio::test]
async fn a_call_to_a_module_that_is_nowhere_waits_and_its_error_says_that_it_did_not_run() {
    let setup = nodes(2).with("cluster.call_wait", "1s").with("cluster.max_waiting_calls", "4");
    let (mut cluster, book) = witnessed(setup).await;
    cluster.move_module("kinds", "n2").await;
    cluster.home("kinds").await;
    cluster.kill("n2");
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let mut client = KindsClient::new(cluster.client("n1"));
        calls.spawn(async move { (Instant::now(), client.unary(ask("lost")).await.unwrap_err()) });
    }
    let (mut unavailable, mut refused) = (0, 0);
    while let Some(ended) = within("the calls to end", calls.join_next()).await {
        let (began, status) = ended.unwrap();
        assert_eq!(outcome(&status), Some("not-executed"), "{status:?}");
        match status.code() {
            Code::Unavailable => {
                unavailable += 1;
                assert!(began.elapsed() >= Duration::from_secs(1), "it waits for as long as it may");
            }
            Code::ResourceExhausted => refused += 1,
            _ => panic!("{status:?}"),
        }
    }
    assert_eq!((unavailable, refused), (4, 16));
    assert_eq!(book.executed("lost"), 0);
}

#[tokio::test]
async fn a_call_that_waits_is_answered_when_the_module_is_back() {
    let (mut cluster, book) = witnessed(nodes(2).with("cluster.call_wait", "20s")).await;
    cluster.move_module("kinds", "n2").await;
    cluster.home("kinds").await;
    cluster.kill("n2");
    let handle: KindsHandle = cluster.handle("n1");
    let (answer, ()) = tokio::join!(handle.unary(ask("patient")), cluster.restart("n2"));
    assert_eq!(answer.unwrap().metadata().get(SERVED_BY).unwrap(), "n2");
    assert_eq!(book.executed("patient"), 1);
}

/// Tells whether a request of HTTP has brought the call.
struct Teller;

#[tonic::async_trait]
impl Relay for Teller {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        if request.get_ref().deed() == Deed::Fail {
            return Err(failure());
        }
        let text = if request.metadata().contains_key("content-type") { "http" } else { "short" };
        let mine = request.metadata().get("mine").cloned();
        let mut response =
            Response::new(Answer { text: text.into(), payload: request.into_inner().payload, ..Answer::default() });
        mine.map(|mine| response.metadata_mut().insert("mine", mine));
        Ok(response)
    }
}

#[tokio::test]
async fn a_handle_s_small_call_to_another_node_goes_without_http() {
    let teller = || async { Ok::<_, BoxError>(RelayServer::new(Teller)) };
    let cluster = nodes(2).start(move |_| App::new("teller", "1.0.0").module("relay", teller)).await;
    cluster.move_module("relay", "n2").await;
    let handle = cluster.handle::<RelayHandle>("n1");
    // While the nodes connect, calls take the long way.
    within("the short way", async { while handle.unary(ask("")).await.unwrap().get_ref().text != "short" {} }).await;
    let mut request = Request::new(Ask { payload: vec![1; 30_000], ..ask("") });
    request.metadata_mut().insert("mine", "kept".parse().unwrap());
    request.set_timeout(Duration::from_secs(60));
    let answer = handle.unary(request).await.unwrap();
    assert_eq!((&*answer.get_ref().text, answer.get_ref().payload.len()), ("short", 30_000));
    assert_eq!(answer.metadata().get("mine").unwrap(), "kept");
    let large = handle.unary(Ask { payload: vec![1; 40_000], ..ask("") }).await.unwrap();
    assert_eq!((&*large.get_ref().text, large.get_ref().payload.len()), ("http", 40_000));
    let failed = handle.unary(asked_to(Deed::Fail)).await.unwrap_err();
    assert_eq!((failed.code(), failed.details()), (Code::Aborted, &[1, 2, 3][..]));
    assert_eq!(failed.metadata().get("why").unwrap(), "because");
    // A client of the node that does not host it has come by HTTP, and the node passes it on.
    let passed_on = RelayClient::new(cluster.client("n1")).unary(ask("")).await.unwrap();
    assert_eq!(passed_on.get_ref().text, "http");
}

/// A program whose `kinds` refuses every call that has metadata of the framework's.
fn strict(_: &str) -> App {
    let none = |request: Request<()>| {
        let keys = request.metadata().keys().map(|key| format!("{key:?}"));
        let ours: Vec<String> = keys.filter(|key| key.contains(keys::PREFIX)).collect();
        if ours.is_empty() { Ok(request) } else { Err(Status::internal(format!("the module sees {ours:?}"))) }
    };
    let kinds = move || async move { Ok::<_, BoxError>(KindsServer::with_interceptor(Obedient::default(), none)) };
    App::new("kinds", "1.0.0").module("kinds", kinds).module("relay", relay)
}

#[tokio::test]
async fn a_client_can_not_speak_for_a_node() {
    let cluster = nodes(2).start(strict).await;
    cluster.home("kinds").await;
    for node in cluster.names() {
        let mut request = ask("").into_request();
        for (key, value) in [
            (keys::HOPS, "3"),
            (keys::EPOCH, "1000000"),
            (keys::DEPTH, "255"),
            (keys::OUTCOME, "not-executed"),
            ("outpost-other", "1"),
        ] {
            request.metadata_mut().insert(key, value.parse().unwrap());
        }
        let answer = KindsClient::new(cluster.client(&node)).unary(request).await.unwrap();
        let told: Vec<_> = answer.metadata().keys().map(|key| format!("{key:?}")).collect();
        assert!(!told.iter().any(|key| key.contains(keys::PREFIX)), "a client is told {told:?}");
    }
}

/// The status of a call that a module made, handed on, is the module's: that the inner call did not run says nothing
/// of the outer one.
#[tokio::test]
async fn what_the_framework_said_of_an_inner_call_is_not_said_of_the_outer_one() {
    let cluster = nodes(2).start(|_| outpost_tests::app(Obedient::default())).await;
    cluster.home("relay").await;
    for node in cluster.names() {
        let kinds = KindsClient::new(cluster.client(&node)).unary(asked_to(Deed::Panic)).await.unwrap_err();
        assert_eq!(outcome(&kinds), Some("unknown"), "{kinds:?}");
        let client = RelayClient::new(cluster.client(&node)).unary(asked_to(Deed::Panic)).await.unwrap_err();
        let handle = cluster.handle::<RelayHandle>(&node).unary(asked_to(Deed::Panic)).await.unwrap_err();
        assert_eq!((outcome(&client), outcome(&handle)), (None, None), "at {node}");
    }
}

// ---- Moves that do not succeed ----

/// A program whose `kinds` starts on `n1` only; on others its factory answers with an error, or never.
fn starts_on_n1(book: &Arc<Book>, error: Option<&'static str>) -> impl Fn(&str) -> App + Send + Sync + use<> {
    let book = Arc::clone(book);
    let factory = move || async move {
        match error {
            Some(error) => Err::<KindsServer<Obedient>, BoxError>(error.into()),
            None => std::future::pending().await,
        }
    };
    move |node| {
        let kinds = match node {
            "n1" => witness::kinds(node, &book, &Obedient::default()),
            _ => Module::new("kinds", factory),
        };
        App::new("kinds", "1.0.0").with(kinds).module("relay", relay)
    }
}

/// Moves `kinds` to `n2`, where it does not start, under load. Returns the event that ends the attempt.
async fn move_in_vain(cluster: &TestCluster, book: &Book) -> String {
    let load = Load::start(cluster, &cluster.names());
    let (home, epoch) = cluster.wait_until("kinds to serve", |view| settled(view, "kinds")).await;
    assert_eq!(home, "n1");
    cluster.begin_move("kinds", "n2").await.unwrap();
    let stays = |view: &admin::Cluster| match settled(view, "kinds")? {
        (host, now) if host == home && now == epoch => Ok(()),
        other => Err(format!("{other:?}")),
    };
    cluster.wait_until("the move to be given up", stays).await;
    load.more(100).await;
    assert_once(&load.stop().await, book);
    assert_eq!(book.admitted_by("n2"), 0);
    let explained =
        cluster.any_admin().explain(ExplainRequest { module: "kinds".to_owned() }).await.unwrap().into_inner();
    let aborted = explained.events.iter().find(|event| event.kind == "move-aborted").expect("the abort is told");
    assert_eq!(aborted.node, "n2");
    aborted.text.clone()
}

#[tokio::test]
async fn a_module_that_does_not_start_at_the_target_stays_where_it_is() {
    let book = Arc::new(Book::default());
    let cluster = nodes(2).start(starts_on_n1(&book, Some("the disk is full"))).await;
    let told = move_in_vain(&cluster, &book).await;
    assert!(told.contains("kinds stays on n1") && told.contains("the disk is full"), "{told}");
}

#[tokio::test]
async fn a_module_that_starts_for_too_long_at_the_target_stays_where_it_is() {
    let book = Arc::new(Book::default());
    let setup = nodes(2).with("cluster.move_timeout", "1s");
    let cluster = setup.start(starts_on_n1(&book, None)).await;
    let told = move_in_vain(&cluster, &book).await;
    assert!(told.contains("kinds stays on n1") && told.contains("cluster.move_timeout"), "{told}");
}

#[tokio::test]
async fn a_module_with_state_is_moved_only_by_somebody_who_gives_it_up() {
    let book = Arc::new(Book::default());
    let cluster = nodes(2)
        .start(move |node| {
            let kinds = witness::kinds(node, &book, &Obedient::default()).stateful();
            App::new("kinds", "1.0.0").with(kinds).module("relay", relay)
        })
        .await;
    assert_eq!(cluster.home("kinds").await, "n1");
    let status = cluster.begin_move("kinds", "n2").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("--lose-state"), "{status:?}");
    let status = cluster.apply("[module.kinds]\nkind = \"replicated\"").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let scale = ScaleRequest { module: "kinds".into(), replicas: 2, ..ScaleRequest::default() };
    assert_eq!(cluster.any_admin().scale(scale).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(cluster.home("kinds").await, "n1", "nothing of it has moved it");

    let request = MoveRequest { module: "kinds".into(), node: "n2".into(), lose_state: true, ..MoveRequest::default() };
    cluster.any_admin().r#move(request).await.unwrap();
    let there = |view: &admin::Cluster| match settled(view, "kinds")? {
        (host, _) if host == "n2" => Ok(()),
        other => Err(format!("{other:?}")),
    };
    cluster.wait_until("kinds to be on n2", there).await;
}

// ---- Nodes that go and come ----

#[tokio::test]
async fn a_node_that_stops_hands_over_and_no_call_fails() {
    let (mut cluster, book) = witnessed(nodes(3)).await;
    cluster.move_module("kinds", "n2").await;
    cluster.move_module("relay", "n2").await;
    cluster.home("kinds").await;
    let stay = ["n1".to_owned(), "n3".to_owned()];
    let load = Load::start(&cluster, &stay);
    load.more(100).await;
    let going = cluster.take("n2");
    let began = Instant::now();
    let state = |states: &'static [&'static str]| {
        move |view: &admin::Cluster| {
            let node = view.nodes.iter().find(|node| node.name == "n2").ok_or("it is not there")?;
            states.contains(&node.state.as_str()).then(Instant::now).ok_or_else(|| node.state.clone())
        }
    };
    let seen = cluster.wait_until_at("n3", "others to see that it goes", state(&["draining", "leaving", "left"]));
    let (stopped, seen) = tokio::join!(going.stop(), seen);
    assert!(seen - began < Duration::from_secs(1), "others saw it after {:?}", seen - began);
    assert_eq!((stopped.calls_cut, stopped.tasks_cut), (0, 0));
    let ended = Instant::now();
    let left = cluster.wait_until_at("n3", "others to see that it has left", state(&["left"])).await;
    assert!(left - ended < Duration::from_secs(1), "others saw it after {:?}", left - ended);
    load.more(100).await;
    assert_once(&load.stop().await, &book);
    assert!(stay.contains(&cluster.home("kinds").await));
}

#[tokio::test]
async fn a_replicated_module_survives_the_crash_of_a_node() {
    let setup = nodes(3).voters(3).with("cluster.prefer_local", "false");
    let (mut cluster, book) = witnessed(setup).await;
    cluster.apply("[default]\nkind = \"replicated\"\nreplicas = \"every\"").await.unwrap();
    for name in ["kinds", "relay"] {
        for node in cluster.names() {
            cluster.wait_until_at(&node, "every node to serve", |view| serves(view, name, 3)).await;
        }
    }
    let leader = cluster.view_at("n1").await.leader;
    let stay: Vec<String> = cluster.names().into_iter().filter(|name| *name != leader).collect();
    let load = Load::start(&cluster, &stay);
    load.more(300).await;
    let shares: Vec<_> = cluster.names().iter().map(|node| (node.clone(), book.admitted_by(node))).collect();
    assert!(book.admitted_by(&leader) > 0, "{leader} has no share of the calls: {shares:?}");
    cluster.kill(&leader);
    let safe = Instant::now() + Duration::from_secs(1);
    while Instant::now() < safe {
        load.more(20).await;
    }
    load.more(300).await;
    let report = load.stop().await;
    let late: Vec<_> = report.failed.iter().filter(|failed| failed.at > safe).collect();
    assert!(late.is_empty(), "calls failed more than a second after the crash: {late:#?}");
    let wrong: Vec<_> = report.failed.iter().filter(|failed| failed.status.code() != Code::Unavailable).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let lied: Vec<_> = report
        .failed
        .iter()
        .filter(|failed| outcome(&failed.status) == Some("not-executed") && book.executed(&failed.call) > 0)
        .collect();
    assert!(lied.is_empty(), "executed, and said not to be: {lied:#?}");
}

#[tokio::test]
async fn calls_of_a_replicated_module_stay_in_their_zone_while_that_can_be_reached() {
    let label = |zone: &str, hosts: &str| format!("{{ zone = \"{zone}\", hosts = \"{hosts}\" }}");
    let setup =
        nodes(4).with_of("n1", "node.labels", &label("a", "no")).with_of("n2", "node.labels", &label("a", "yes"));
    let setup = setup.with_of("n3", "node.labels", &label("b", "yes")).with_of("n4", "node.labels", &label("b", "yes"));
    let (mut cluster, _) = witnessed(setup).await;
    let placement = "[module.kinds]\nkind = \"replicated\"\nreplicas = \"every\"\nrequire = { hosts = \"yes\" }";
    cluster.apply(placement).await.unwrap();
    cluster.wait_until_at("n1", "three nodes to serve", |view| serves(view, "kinds", 3)).await;
    for _ in 0..100 {
        assert_eq!(answered_by(&cluster, "n1").await.unwrap(), "n2");
    }
    // One that can't be reached is no reason to wait.
    cluster.kill("n2");
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        match within("an answer", answered_by(&cluster, "n1")).await {
            Ok(node) => drop(seen.insert(node)),
            Err(status) => assert_eq!(outcome(&status), Some("unknown"), "{status:?}"),
        }
    }
    assert_eq!(seen, BTreeSet::from(["n3", "n4"].map(str::to_owned)));
}

/// Gossip keeps a node in mind for longer than the log does.
#[tokio::test]
async fn a_node_that_is_forgotten_is_not_shown_any_more() {
    let (mut cluster, _) = witnessed(nodes(3)).await;
    cluster.stop("n3").await;
    let request = ForgetRequest { node: "n3".to_owned(), by: "test".to_owned() };
    cluster.admin("n1").forget(request).await.unwrap();
    for name in cluster.names() {
        let gone = |view: &admin::Cluster| {
            let names: Vec<_> = view.nodes.iter().map(|node| node.name.as_str()).collect();
            if names == ["n1", "n2"] { Ok(()) } else { Err(format!("{names:?}")) }
        };
        cluster.wait_until_at(&name, "n3 to be forgotten", gone).await;
    }
}

/// The node that answers call "after", made while its owner crashes. What was on its way in that moment may have run.
async fn first_answer(handle: &KindsHandle) -> String {
    loop {
        match within("a new owner to answer", handle.unary(ask("after"))).await {
            Ok(answer) => return answer.metadata().get(SERVED_BY).unwrap().to_str().unwrap().to_owned(),
            Err(status) => assert_eq!(outcome(&status), Some("unknown"), "{status:?}"),
        }
    }
}

#[tokio::test]
async fn an_exclusive_module_is_taken_over_after_the_lease_of_a_node_that_crashed() {
    let setup = nodes(3).voters(3).with("cluster.lease", "2s").with("cluster.call_wait", "20s");
    let (mut cluster, book) = witnessed(setup).await;
    let leader = cluster.view_at("n1").await.leader;
    // One that leads, whose end the others notice later; and another one.
    let mut victims = cluster.names();
    victims.retain(|name| *name != leader);
    let victim = victims.remove(0);
    if cluster.home("kinds").await != victim {
        cluster.move_module("kinds", &victim).await;
        cluster.home("kinds").await;
    }
    let handle: KindsHandle = cluster.handle(&victims[0]);
    handle.unary(ask("before")).await.unwrap();
    let admitted = book.admitted_by(&victim);
    cluster.kill(&victim);
    let crashed = Instant::now();
    let answer = first_answer(&handle).await;
    assert!(crashed.elapsed() >= Duration::from_secs(1), "it was taken over before its lease could have ended");
    assert_ne!(answer, victim);
    assert_eq!((book.admitted_by(&victim), book.executed("after")), (admitted, 1));
}

#[tokio::test]
async fn the_end_of_the_leader_is_the_end_of_no_module() {
    let setup = nodes(3).voters(3).with("cluster.lease", "2s").with("cluster.call_wait", "20s");
    let (mut cluster, book) = witnessed(setup).await;
    let leader = cluster.view_at("n1").await.leader;
    if cluster.home("kinds").await != leader {
        cluster.move_module("kinds", &leader).await;
        cluster.home("kinds").await;
    }
    let other = cluster.names().into_iter().find(|name| *name != leader).unwrap();
    let handle: KindsHandle = cluster.handle(&other);
    cluster.kill(&leader);
    assert_ne!(first_answer(&handle).await, leader);
    assert_eq!(book.executed("after"), 1);
    let led = |view: &admin::Cluster| {
        (!view.leader.is_empty() && view.leader != leader).then_some(()).ok_or_else(String::new)
    };
    cluster.wait_until_at(&other, "another leader", led).await;
}

#[tokio::test]
async fn a_node_that_starts_again_has_its_modules_back_before_its_lease_has_ended() {
    let (mut cluster, book) = witnessed(nodes(2).with("cluster.lease", "60s").with("cluster.call_wait", "20s")).await;
    cluster.apply("[module.kinds]\npin = { node = \"n2\", reason = \"a test\" }").await.unwrap();
    let there = |view: &admin::Cluster| match settled(view, "kinds")? {
        (host, epoch) if host == "n2" => Ok(epoch),
        other => Err(format!("{other:?}")),
    };
    let epoch = cluster.wait_until("kinds to be on n2", there).await;
    let generation = |view: &admin::Cluster| {
        view.nodes.iter().find(|node| node.name == "n2").map(|node| node.generation).ok_or_else(String::new)
    };
    let first = cluster.wait_until("n2", generation).await;
    cluster.kill("n2");
    cluster.restart("n2").await;
    assert_eq!(answered_by(&cluster, "n1").await.unwrap(), "n2");
    assert!(cluster.wait_until_at("n1", "kinds to be on n2", there).await > epoch, "another process, another epoch");
    assert!(cluster.wait_until("n2", generation).await > first);
    let view = cluster.view_at("n2").await;
    assert_eq!((view.placement, module(&view, "kinds").unwrap().pin.clone().unwrap().reason.as_str()), (1, "a test"));
    assert!(book.admitted_by("n2") > 0);
}

#[tokio::test]
async fn a_cluster_of_one_is_the_same_after_a_restart() {
    let (mut cluster, _) = witnessed(nodes(1).with("cluster.lease", "60s")).await;
    cluster.apply("[module.kinds]\npin = { node = \"n1\", reason = \"a test\" }").await.unwrap();
    let before = cluster.view_at("n1").await;
    cluster.kill("n1");
    cluster.restart("n1").await;
    assert_eq!(answered_by(&cluster, "n1").await.unwrap(), "n1");
    let after = cluster.view_at("n1").await;
    assert_eq!((&after.id, after.placement), (&before.id, before.placement));
    assert_eq!(module(&after, "kinds").unwrap().pin.as_ref().unwrap().reason, "a test");
}

#[tokio::test]
async fn of_two_nodes_with_one_name_the_older_gives_way_before_the_newer_serves() {
    let (cluster, book) = witnessed(nodes(2).with("cluster.call_wait", "20s")).await;
    cluster.apply("[module.kinds]\npin = { node = \"n2\", reason = \"a test\" }").await.unwrap();
    let pinned = |view: &admin::Cluster| match settled(view, "kinds")? {
        (host, _) if host == "n2" => Ok(()),
        other => Err(format!("{other:?}")),
    };
    cluster.wait_until("kinds to be on n2", pinned).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (stopped, handle) = (Arc::clone(&stop), cluster.handle::<KindsHandle>("n2"));
    let mut older = JoinSet::new();
    older.spawn(async move {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            // Once it has given way, it has nowhere to send the call to.
            let _ = tokio::time::timeout(Duration::from_millis(100), handle.unary(ask("older"))).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let other = tempfile::tempdir().unwrap();
    let sources: Sources = cluster.sources("n2").set("node.data_dir", other.path().to_str().unwrap());
    let newer = witness::app("n2 anew", &book).start(&sources).await.unwrap();
    let failure = within("the older node to notice", cluster.node("n2").failed()).await;
    assert!(matches!(&failure, Failure::Superseded { node, .. } if node.as_str() == "n2"), "{failure}");
    let answer = within("the newer to serve", newer.handle::<KindsHandle>().unwrap().unary(ask(""))).await.unwrap();
    assert_eq!(answer.metadata().get(SERVED_BY).unwrap(), "n2 anew");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    older.join_next().await.unwrap().unwrap();
    let owners = ["n1", "n2", "n2 anew"].map(str::to_owned);
    let began = usize::from(book.admitted_by("n1") == 0);
    book.one_owner_at_a_time(&owners[began..]).unwrap();
}

// ---- What operators ask for ----

#[tokio::test]
async fn a_wrong_placement_changes_nothing_and_its_faults_are_told() {
    let (cluster, _) = witnessed(nodes(2)).await;
    let before = cluster.view_at("n1").await.placement;
    let wrong = "[module.kinds]\nkind = \"exclusive\"\n[module.kind]\nreplicas = 0\n";
    let status = cluster.apply(wrong).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("test.toml:4: module.kind.replicas: "), "{}", status.message());
    let status = cluster.apply("[module.kinds]\npin = { node = \"n9\", reason = \"r\" }").await.unwrap_err();
    assert!(
        status.message().contains("test.toml:2: module.kinds.pin") && status.message().contains("n9"),
        "{status:?}"
    );
    let status = cluster.apply("[module.kind]\nkind = \"exclusive\"").await.unwrap_err();
    assert!(status.message().contains("test.toml:1: module.kind") && status.message().contains("kinds"), "{status:?}");
    let plan = Document { text: wrong.to_owned(), format: "toml".to_owned(), name: String::new() };
    let status = cluster.any_admin().plan(PlanRequest { document: Some(plan) }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(cluster.view_at("n1").await.placement, before);
}

#[tokio::test]
async fn a_placement_is_changed_only_in_place_of_the_one_that_was_seen() {
    let (cluster, _) = witnessed(nodes(2)).await;
    let apply = async |check_index, kind: &str| {
        let text = format!("[module.kinds]\nkind = \"{kind}\"\n");
        let document = Document { text, format: "toml".into(), name: "test.toml".into() };
        let request = ApplyRequest { document: Some(document), check_index, ..ApplyRequest::default() };
        cluster.any_admin().apply(request).await.map(|changed| changed.into_inner())
    };
    let first = apply(Some(0), "replicated").await.unwrap();
    assert_eq!((first.placement, first.changed), (1, true));
    assert_eq!(apply(Some(0), "exclusive").await.unwrap_err().code(), Code::Aborted);
    let again = apply(Some(1), "replicated").await.unwrap();
    assert_eq!((again.placement, again.changed), (1, false), "it was so already");
    apply(Some(1), "exclusive").await.unwrap();

    let index = cluster.wait_until("kinds to serve", |view| {
        settled(view, "kinds")?;
        Ok(module(view, "kinds")?.index)
    });
    let check_index = Some(index.await + 1);
    let request = MoveRequest { module: "kinds".into(), node: "n2".into(), check_index, ..MoveRequest::default() };
    assert_eq!(cluster.any_admin().r#move(request).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn a_module_is_scaled_out_and_in_and_back_to_an_earlier_version() {
    let (cluster, book) = witnessed(nodes(3)).await;
    let load = Load::start(&cluster, &cluster.names());
    let scale = async |replicas| {
        let request = ScaleRequest { module: "kinds".into(), replicas, by: "tester".into(), ..ScaleRequest::default() };
        cluster.any_admin().scale(request).await.unwrap().into_inner().placement
    };
    assert_eq!(scale(2).await, 1);
    cluster.serving("kinds", 2).await;
    assert_eq!(scale(0).await, 2);
    assert_eq!(cluster.serving("kinds", 3).await, cluster.names());
    assert_eq!(scale(1).await, 3);
    cluster.serving("kinds", 1).await;
    let back = RollbackRequest { version: 2, ..RollbackRequest::default() };
    assert_eq!(cluster.any_admin().rollback(back).await.unwrap().into_inner().placement, 4);
    cluster.serving("kinds", 3).await;
    let exclusive = RollbackRequest { version: 0, ..RollbackRequest::default() };
    cluster.any_admin().rollback(exclusive).await.unwrap();
    cluster.home("kinds").await;
    load.more(100).await;
    assert_once(&load.stop().await, &book);
    let history = cluster.any_admin().history(HistoryRequest {}).await.unwrap().into_inner().versions;
    let told: Vec<_> = history.iter().map(|version| (version.version, version.why.as_str())).collect();
    let scaled = [(3, "scale kinds to 1"), (2, "scale kinds to every"), (1, "scale kinds to 2")];
    assert_eq!(told[2..], scaled, "the newest first");
    assert_eq!((history[2].by.as_str(), told[1].1), ("tester", "back to version 2"));
    let unknown = RollbackRequest { version: 99, ..RollbackRequest::default() };
    assert_eq!(cluster.any_admin().rollback(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_pin_binds_until_it_ends() {
    let (cluster, _) = witnessed(nodes(3)).await;
    let pin = PinRequest { module: "kinds".into(), node: "n2".into(), ..PinRequest::default() };
    let without_reason = cluster.any_admin().pin(pin.clone()).await.unwrap_err();
    assert_eq!(without_reason.code(), Code::InvalidArgument);
    cluster.any_admin().pin(PinRequest { reason: "a test".into(), ttl_seconds: 2, ..pin.clone() }).await.unwrap();
    let on = |node: &'static str| {
        move |view: &admin::Cluster| match settled(view, "kinds")? {
            (host, _) if host == node => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    cluster.wait_until("the pin to hold", on("n2")).await;
    let moved =
        outpost_tests::wait::until("the pin to expire", async || match cluster.begin_move("kinds", "n3").await {
            Err(status) if status.message().contains("unpin") => Err(status.message().to_owned()),
            moved => Ok(moved),
        });
    moved.await.unwrap();
    cluster.wait_until("the move", on("n3")).await;
    cluster.any_admin().pin(PinRequest { reason: "a test".into(), ..pin }).await.unwrap();
    cluster.wait_until("the pin to hold", on("n2")).await;
    let status = cluster.begin_move("kinds", "n1").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    cluster.any_admin().unpin(UnpinRequest { module: "kinds".into(), ..UnpinRequest::default() }).await.unwrap();
    cluster.move_module("kinds", "n1").await;
}

#[tokio::test]
async fn a_cordoned_node_gets_nothing_new() {
    let (cluster, _) = witnessed(nodes(3)).await;
    let cordon = async |cordoned| {
        let request = CordonRequest { node: "n3".into(), cordoned, by: String::new() };
        cluster.any_admin().cordon(request).await.unwrap().into_inner().changed
    };
    assert!(cordon(true).await);
    assert!(!cordon(true).await, "it was so already");
    let status = cluster.begin_move("kinds", "n3").await.unwrap_err();
    assert!(status.message().contains("cordoned"), "{status:?}");
    cluster.apply("[module.kinds]\nkind = \"replicated\"\nreplicas = \"every\"").await.unwrap();
    assert_eq!(cluster.serving("kinds", 2).await, ["n1", "n2"]);
    cordon(false).await;
    assert_eq!(cluster.serving("kinds", 3).await, cluster.names());
}

/// Slow: a node must have been there for ten seconds before it votes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_cluster_grows_to_five_and_shrinks_to_three_and_nothing_is_lost() {
    let (mut cluster, book) = witnessed(nodes(1)).await;
    let voters = |count: usize| {
        move |view: &admin::Cluster| {
            let voters: BTreeSet<&str> = view.voters.iter().map(|voter| voter.node.as_str()).collect();
            let up = view.voters.iter().all(|voter| voter.state != "unreachable");
            (voters.len() == count && up).then_some(()).ok_or_else(|| format!("{voters:?} vote"))
        }
    };
    let load = Load::start(&cluster, &["n1".to_owned()]);
    let mut version = 0;
    let mut change = async |cluster: &TestCluster| {
        version += 1;
        let text = format!("[module.kinds]\npin = {{ node = \"n1\", reason = \"change {version}\" }}");
        assert_eq!(cluster.apply(&text).await.unwrap().placement, version, "no change is lost");
    };
    change(&cluster).await;
    for (names, count) in [(["n2", "n3"], 3), (["n4", "n5"], 3)] {
        for name in names {
            cluster.add(name).await;
            change(&cluster).await;
        }
        cluster.wait_until("the right number of voters", voters(count)).await;
        change(&cluster).await;
    }
    for name in ["n3", "n2"] {
        cluster.stop(name).await;
        change(&cluster).await;
        // Only then may the next one go: a majority of the voters must be there.
        let replaced = |view: &admin::Cluster| {
            voters(3)(view)?;
            (!view.voters.iter().any(|voter| voter.node == name)).then_some(()).ok_or_else(|| format!("{name} votes"))
        };
        cluster.wait_until("a voter that went to be replaced", replaced).await;
    }
    load.more(100).await;
    assert_once(&load.stop().await, &book);
    let last = cluster.view_at("n5").await;
    assert_eq!(last.placement, version);
    let history = cluster.any_admin().history(HistoryRequest {}).await.unwrap().into_inner().versions;
    assert_eq!(history.len() as u64, version);
}

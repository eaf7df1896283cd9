//! What becomes of a call whose answer was lost, by what its method says; and that nothing else differs between methods.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{sync::Arc, time::Duration};

use outpost::{App, BoxError, Handle as _, Module};
use outpost_proto::keys::metadata as keys;
use outpost_tests::{
    cluster::{Setup, TestCluster, free_address, nodes},
    deliveries::{
        self, Ledger,
        v1::{Deed, DeliveriesHandle, Done, TailRequest, WatchRequest, Work, deliveries_client::DeliveriesClient},
    },
    failure,
    proxy::Proxy,
    wait::within,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, IntoRequest as _, Request, Response, Status, transport};

/// Of a module whose kept answers move with it.
async fn cluster(setup: Setup) -> (TestCluster, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::default());
    let written = Arc::clone(&ledger);
    (setup.start(move |node| deliveries::app(node, &written)).await, ledger)
}

/// Of one that declares no state.
async fn stateless(setup: Setup) -> (TestCluster, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::default());
    let written = Arc::clone(&ledger);
    (setup.start(move |node| deliveries::stateless_app(node, &written)).await, ledger)
}

fn work(text: &str, deed: Deed) -> Work {
    Work { text: text.to_owned(), deed: deed.into(), payload: vec![7; 1000] }
}

fn with_id(work: Work, call_id: &str) -> Request<Work> {
    let mut request = work.into_request();
    request.metadata_mut().insert(keys::CALL_ID, call_id.parse().unwrap());
    request
}

fn told<'a>(status: &'a Status, key: &str) -> Option<&'a str> {
    status.metadata().get(key).map(|value| value.to_str().unwrap())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Once,
    Idempotent,
    Dedupe,
}

const METHODS: [Method; 3] = [Method::Once, Method::Idempotent, Method::Dedupe];

/// A way to the module.
#[derive(Clone)]
enum Way {
    Handle(DeliveriesHandle),
    Channel(DeliveriesClient<outpost::Channel>),
    Socket(DeliveriesClient<transport::Channel>),
}

impl Way {
    async fn call(&self, method: Method, request: Request<Work>) -> Result<Response<Done>, Status> {
        match (self.clone(), method) {
            (Self::Handle(handle), Method::Once) => handle.once(request).await,
            (Self::Handle(handle), Method::Idempotent) => handle.idempotent(request).await,
            (Self::Handle(handle), Method::Dedupe) => handle.dedupe(request).await,
            (Self::Channel(mut client), Method::Once) => client.once(request).await,
            (Self::Channel(mut client), Method::Idempotent) => client.idempotent(request).await,
            (Self::Channel(mut client), Method::Dedupe) => client.dedupe(request).await,
            (Self::Socket(mut client), Method::Once) => client.once(request).await,
            (Self::Socket(mut client), Method::Idempotent) => client.idempotent(request).await,
            (Self::Socket(mut client), Method::Dedupe) => client.dedupe(request).await,
        }
    }
}

/// All ways to the module, from the node that hosts it and from another one.
fn ways(cluster: &TestCluster) -> Vec<(String, Way)> {
    let mut ways = Vec::new();
    for node in cluster.names() {
        let channel = cluster.node(&node).channel();
        let over_socket = DeliveriesHandle::over(cluster.client(&node));
        for (name, way) in [
            ("handle", Way::Handle(cluster.handle(&node))),
            ("handle over the channel", Way::Handle(DeliveriesHandle::over(channel.clone()))),
            ("channel", Way::Channel(DeliveriesClient::new(channel))),
            ("handle over a socket", Way::Handle(over_socket)),
            ("socket", Way::Socket(DeliveriesClient::new(cluster.client(&node)))),
        ] {
            ways.push((format!("{node}, {name}"), way));
        }
    }
    ways
}

// ---- Same meaning everywhere ----

#[tokio::test]
async fn every_method_means_the_same_on_every_way() {
    let (cluster, ledger) = cluster(nodes(2)).await;
    let home = cluster.home("deliveries").await;
    for (name, way) in ways(&cluster) {
        for method in METHODS {
            let text = format!("{name}, {method:?}");
            let answer = way.call(method, work(&text, Deed::Unspecified).into_request()).await.unwrap();
            assert_eq!(answer.metadata().get("said").unwrap(), "yes", "{text}");
            let at_its_ingress = name == format!("{home}, socket") || name == format!("{home}, handle over a socket");
            assert_eq!(answer.metadata().contains_key("from-a-socket"), at_its_ingress, "{text}");
            let keys = answer.metadata().keys().map(|key| format!("{key:?}"));
            assert!(!keys.collect::<String>().contains(keys::PREFIX), "{text}: {answer:?}");
            let done = answer.into_inner();
            assert_eq!((done.text.as_str(), done.run, done.payload.len()), (text.as_str(), 1, 1000));
            assert_eq!(done.call_id.len(), if method == Method::Dedupe { 32 } else { 0 }, "{text}");

            let id = format!("{text}!").replace([' ', ','], "-");
            let done = way.call(method, with_id(work(&text, Deed::Unspecified), &id)).await.unwrap().into_inner();
            assert_eq!((done.call_id, done.run), (id, 2), "{text}");

            let status = way.call(method, work(&text, Deed::Fail).into_request()).await.unwrap_err();
            let expected = failure();
            assert_eq!((status.code(), status.message()), (expected.code(), expected.message()), "{text}");
            assert_eq!((status.details(), told(&status, "why")), (expected.details(), Some("because")), "{text}");
            assert_eq!(told(&status, keys::OUTCOME), None, "{text}");

            let status = way.call(method, work(&text, Deed::Panic).into_request()).await.unwrap_err();
            assert_eq!((status.code(), told(&status, keys::REASON)), (Code::Internal, Some("panicked")), "{text}");
            assert_eq!(told(&status, keys::OUTCOME), Some("unknown"), "{text}");

            let mut late = work(&text, Deed::Hold).into_request();
            late.set_timeout(Duration::from_millis(50));
            let status = way.call(method, late).await.unwrap_err();
            // tonic's own channel may be the first to notice.
            let expected = [Code::DeadlineExceeded, Code::Cancelled];
            assert!(expected.contains(&status.code()), "{text}: {status:?}");
            assert_eq!(ledger.runs(&text).len(), 5, "{text}: nothing of it is made again");
        }
    }
    ledger.let_go();
}

#[tokio::test]
async fn an_id_that_is_not_valid_is_refused_on_every_way() {
    let (cluster, ledger) = cluster(nodes(2)).await;
    cluster.home("deliveries").await;
    for (name, way) in ways(&cluster) {
        for method in METHODS {
            let mut twice = with_id(work("never", Deed::Unspecified), "one");
            twice.metadata_mut().append(keys::CALL_ID, "two".parse().unwrap());
            for request in [with_id(work("never", Deed::Unspecified), "two words"), twice] {
                let status = way.call(method, request).await.unwrap_err();
                assert_eq!(status.code(), Code::InvalidArgument, "{name}, {method:?}");
                assert_eq!(told(&status, keys::REASON), Some("bad-call-id"), "{name}, {method:?}");
                assert_eq!(told(&status, keys::OUTCOME), Some("not-executed"), "{name}, {method:?}");
            }
        }
    }
    assert!(ledger.runs("never").is_empty());
}

#[tokio::test]
async fn words_of_rust_and_places_that_may_be_missing_are_resumed_with() {
    let (cluster, _) = cluster(nodes(1)).await;
    let handle: DeliveriesHandle = cluster.handle("n1");
    let mut lines = handle.tail(TailRequest { self_: Some("a".to_owned()) }).await.unwrap().into_inner();
    assert_eq!(lines.message().await.unwrap().unwrap().r#type.as_deref(), Some("a"));
    assert!(lines.message().await.unwrap().is_none());
}

// ---- Kept answers ----

#[tokio::test]
async fn a_call_of_one_id_runs_once_whoever_makes_it_and_gets_the_very_answer() {
    let (cluster, ledger) = cluster(nodes(2)).await;
    cluster.home("deliveries").await;
    for deed in [Deed::Unspecified, Deed::Fail, Deed::Panic] {
        let text = format!("{deed:?}");
        let mut first = None;
        for (name, way) in ways(&cluster) {
            let answer = way.call(Method::Dedupe, with_id(work(&text, deed), &text)).await;
            let answer = match answer {
                Ok(answer) => Ok((answer.metadata().get("said").cloned(), answer.into_inner())),
                Err(status) => {
                    let proof = status.metadata().get_bin("proof-bin").cloned();
                    Err((status.code(), status.message().to_owned(), status.details().to_owned(), proof))
                }
            };
            assert_eq!(first.get_or_insert_with(|| answer.clone()), &answer, "{text}: {name}");
        }
        assert_eq!(ledger.runs(&text).len(), 1, "{text}");
    }
    // They are found where the module has moved to.
    let kept = async |way: &Way| way.call(Method::Dedupe, with_id(work("moved", Deed::Unspecified), "moved")).await;
    let first = kept(&ways(&cluster)[0].1).await.unwrap().into_inner();
    for _ in 0..2 {
        cluster.move_module("deliveries", &cluster.node_without("deliveries").await).await;
        for (name, way) in ways(&cluster) {
            assert_eq!(kept(&way).await.unwrap().into_inner(), first, "{name}");
        }
    }
    // Another delivery keeps no answers.
    for run in 1..=2 {
        let once = ways(&cluster)[0].1.call(Method::Once, with_id(work("once", Deed::Unspecified), "once")).await;
        assert_eq!(once.unwrap().into_inner().run, run);
    }
}

#[tokio::test]
async fn a_second_call_of_an_id_waits_for_the_first() {
    let (cluster, ledger) = cluster(nodes(2)).await;
    cluster.home("deliveries").await;
    let mut calls = tokio::task::JoinSet::new();
    for (_, way) in ways(&cluster) {
        calls.spawn(async move { way.call(Method::Dedupe, with_id(work("held", Deed::Hold), "held")).await });
    }
    // The first caller may go away, too.
    ledger.begun("held", 1).await;
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    let (_, way) = ways(&cluster).remove(0);
    let late = way.call(Method::Dedupe, with_id(work("held", Deed::Hold), "held"));
    let (late, ()) = tokio::join!(late, async { ledger.let_go() });
    assert_eq!((late.unwrap().into_inner().run, ledger.runs("held").len()), (1, 1));
}

#[tokio::test]
async fn the_oldest_answers_are_forgotten() {
    let (cluster, ledger) = cluster(nodes(1).with("cluster.dedupe_entries", "2")).await;
    let handle: DeliveriesHandle = cluster.handle("n1");
    for text in ["a", "b", "c", "c", "b", "a"] {
        handle.dedupe(with_id(work(text, Deed::Unspecified), text)).await.unwrap();
    }
    assert_eq!(["a", "b", "c"].map(|text| ledger.runs(text).len()), [2, 1, 1]);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_not_run() {
    let (cluster, ledger) = cluster(nodes(2)).await;
    cluster.home("deliveries").await;
    for (name, way) in ways(&cluster) {
        let request = Work { payload: vec![0; 5 << 20], ..work("large", Deed::Unspecified) };
        let status = way.call(Method::Dedupe, request.into_request()).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{name}");
        assert_eq!(told(&status, keys::OUTCOME), Some("not-executed"), "{name}");
    }
    assert!(ledger.runs("large").is_empty());
}

// ---- Answers that are lost ----

/// Two nodes; what n1, which hosts the module, says to n2 goes through a proxy.
async fn apart() -> (TestCluster, Arc<Ledger>, Proxy) {
    let listen = free_address();
    let proxy = Proxy::before(listen).await;
    let setup = nodes(2).with_of("n1", "cluster.listen", &listen.to_string()).with_of(
        "n1",
        "cluster.advertise",
        &proxy.address.to_string(),
    );
    let (cluster, ledger) = cluster(setup).await;
    assert_eq!(cluster.home("deliveries").await, "n1");
    // A handle tells its node what the methods say, before reflection does.
    let _ = cluster.handle::<DeliveriesHandle>("n2");
    (cluster, ledger, proxy)
}

/// The ways of n2 on which its node can make a call again: a handle, and clients of other kinds.
fn ways_of_n2(cluster: &TestCluster) -> Vec<(String, Way)> {
    ways(cluster).into_iter().filter(|(name, _)| name.starts_with("n2")).collect()
}

#[tokio::test]
async fn an_answer_that_is_lost_is_given_again_and_the_module_has_run_once() {
    let (cluster, ledger, proxy) = apart().await;
    for (name, way) in ways_of_n2(&cluster) {
        // Nothing is sent before the other node has said a word.
        way.call(Method::Dedupe, work("before", Deed::Unspecified).into_request()).await.unwrap();
        let call = way.call(Method::Dedupe, work(&name, Deed::Unspecified).into_request());
        proxy.lose_answers();
        let cut = async {
            ledger.begun(&name, 1).await;
            proxy.cut();
        };
        let (answer, ()) = within("the answer", async { tokio::join!(call, cut) }).await;
        assert_eq!((answer.unwrap().into_inner().run, ledger.runs(&name).len()), (1, 1), "{name}");
    }
}

#[tokio::test]
async fn a_run_whose_caller_was_cut_off_goes_on_and_its_answer_is_found() {
    let (cluster, ledger, proxy) = apart().await;
    let handle: DeliveriesHandle = cluster.handle("n2");
    let call = handle.dedupe(work("held", Deed::Hold));
    let cut = async {
        ledger.begun("held", 1).await;
        proxy.cut();
        ledger.let_go();
    };
    let (answer, ()) = within("the answer", async { tokio::join!(call, cut) }).await;
    assert_eq!((answer.unwrap().into_inner().run, ledger.runs("held").len()), (1, 1));
}

#[tokio::test]
async fn what_runs_once_is_not_made_again_and_says_so_and_what_is_idempotent_is() {
    let (cluster, ledger, proxy) = apart().await;
    for (name, way) in ways_of_n2(&cluster) {
        for method in [Method::Once, Method::Idempotent] {
            let text = format!("{name}, {method:?}");
            way.call(method, work("before", Deed::Unspecified).into_request()).await.unwrap();
            let call = way.call(method, work(&text, Deed::Unspecified).into_request());
            proxy.lose_answers();
            let cut = async {
                ledger.begun(&text, 1).await;
                proxy.cut();
            };
            let (answer, ()) = within("the answer", async { tokio::join!(call, cut) }).await;
            match method {
                Method::Once => {
                    let status = answer.unwrap_err();
                    let word = |key| told(&status, key);
                    assert_eq!(status.code(), Code::Unavailable, "{text}: {status:?}");
                    assert_eq!((word(keys::OUTCOME), word(keys::REASON)), (Some("unknown"), Some("broken")), "{text}");
                    assert!(word(keys::EPOCH).is_some_and(|epoch| epoch.parse::<u64>().is_ok()), "{text}: {status:?}");
                    assert_eq!(ledger.runs(&text).len(), 1, "{text}");
                }
                _ => assert_eq!((answer.unwrap().into_inner().run, ledger.runs(&text).len()), (2, 2), "{text}"),
            }
        }
    }
}

/// A request that is not remembered whole can't be made again.
#[tokio::test]
async fn a_large_request_is_not_made_again() {
    let (cluster, ledger, proxy) = apart().await;
    let handle: DeliveriesHandle = cluster.handle("n2");
    let call = handle.dedupe(Work { payload: vec![0; 200 << 10], ..work("large", Deed::Hold) });
    let cut = async {
        ledger.begun("large", 1).await;
        proxy.cut();
    };
    let (answer, ()) = within("the end", async { tokio::join!(call, cut) }).await;
    let status = answer.unwrap_err();
    assert_eq!((told(&status, keys::OUTCOME), told(&status, keys::REASON)), (Some("unknown"), Some("broken")));
    // With the id that the error tells, the caller can make it again itself.
    let id = told(&status, keys::CALL_ID).unwrap().to_owned();
    ledger.let_go();
    let again = handle.dedupe(with_id(Work { payload: vec![0; 200 << 10], ..work("large", Deed::Hold) }, &id)).await;
    assert_eq!((again.unwrap().into_inner().run, ledger.runs("large").len()), (1, 1));
}

/// Its answers would not be where the module may be by then.
#[tokio::test]
async fn what_is_kept_by_a_module_without_state_is_for_the_caller_to_ask_for() {
    let (cluster, ledger) = stateless(nodes(2)).await;
    let home = cluster.home("deliveries").await;
    let other = cluster.node_without("deliveries").await;
    let handle: DeliveriesHandle = cluster.handle(&other);
    for run in [1, 1] {
        let answer = handle.dedupe(with_id(work("kept", Deed::Unspecified), "kept")).await.unwrap().into_inner();
        assert_eq!((answer.run, answer.node), (run, home.clone()));
    }
    cluster.move_module("deliveries", &other).await;
    assert_eq!(handle.dedupe(with_id(work("kept", Deed::Unspecified), "kept")).await.unwrap().into_inner().run, 2);
    assert_eq!(ledger.runs("kept"), [home, other]);
}

// ---- Moves ----

/// How the calls of one method end, on every way, that hold while the module moves, and for longer than that waits.
async fn cut_off(method: Method) -> (Vec<(String, Result<Done, Status>)>, Arc<Ledger>) {
    let (cluster, ledger) = cluster(nodes(2).with("cluster.seal_timeout", "300ms")).await;
    let home = cluster.home("deliveries").await;
    let target = cluster.node_without("deliveries").await;
    let mut calls = tokio::task::JoinSet::new();
    for (name, way) in ways(&cluster) {
        let request = work(&name, Deed::Hold).into_request();
        // What the request is part of by then can't be sent again.
        let direct = name == format!("{home}, handle");
        let name = if direct { "direct".to_owned() } else { name };
        calls.spawn(async move { (name, way.call(method, request).await.map(Response::into_inner)) });
    }
    for (name, _) in ways(&cluster) {
        ledger.begun(&name, 1).await;
    }
    cluster.move_module("deliveries", &target).await;
    if method == Method::Idempotent {
        for (name, _) in ways(&cluster).iter().filter(|(name, _)| *name != format!("{home}, handle")) {
            ledger.begun(name, 2).await;
        }
        ledger.let_go();
    }
    let mut ended = Vec::new();
    while let Some(call) = within("the end of a call", calls.join_next()).await {
        ended.push(call.unwrap());
    }
    assert_eq!(ended.len(), 10);
    (ended, ledger)
}

fn assert_cut_off(name: &str, ended: &Result<Done, Status>) {
    let status = ended.as_ref().unwrap_err();
    let word = |key| told(status, key);
    assert_eq!((word(keys::OUTCOME), word(keys::REASON)), (Some("unknown"), Some("moved")), "{name}: {status:?}");
    assert!(word(keys::EPOCH).is_some_and(|epoch| epoch.parse::<u64>().is_ok()), "{name}: {status:?}");
}

#[tokio::test]
async fn a_call_that_a_move_cuts_off_says_so() {
    let (ended, ledger) = cut_off(Method::Once).await;
    for (name, ended) in &ended {
        assert_cut_off(name, ended);
        assert!(ledger.runs(name).len() <= 1, "{name}");
    }
}

#[tokio::test]
async fn a_call_that_a_move_cuts_off_is_made_again_if_it_is_idempotent() {
    let (ended, _) = cut_off(Method::Idempotent).await;
    for (name, ended) in &ended {
        match name.as_str() {
            "direct" => assert_cut_off(name, ended),
            _ => assert_eq!(ended.as_ref().unwrap().run, 2, "{name}"),
        }
    }
}

#[tokio::test]
async fn a_run_that_a_move_cuts_off_is_not_run_again() {
    let (ended, ledger) = cut_off(Method::Dedupe).await;
    for (name, ended) in &ended {
        assert_cut_off(name, ended);
        assert!(ledger.runs(name).len() <= 1, "{name}");
    }
}

#[tokio::test]
async fn a_stream_goes_on_over_moves_without_a_gap_or_a_message_twice() {
    let (cluster, ledger) = cluster(nodes(2).with("cluster.stream_grace", "100ms")).await;
    let mut readers = tokio::task::JoinSet::new();
    for node in cluster.names() {
        for handle in [cluster.handle::<DeliveriesHandle>(&node), DeliveriesHandle::over(cluster.client(&node))] {
            readers.spawn(async move {
                let mut events = handle.watch(WatchRequest { after: 0, last: 300 }).await.unwrap().into_inner();
                let mut seen = Vec::new();
                while let Some(event) = events.message().await.unwrap() {
                    seen.push(event.sequence);
                }
                seen
            });
        }
    }
    ledger.begun("watch", 4).await;
    for _ in 0..2 {
        let target = cluster.node_without("deliveries").await;
        cluster.move_module("deliveries", &target).await;
    }
    while let Some(seen) = within("the end of a stream", readers.join_next()).await {
        assert_eq!(seen.unwrap(), (1..=300).collect::<Vec<_>>());
    }
    assert!(ledger.runs("watch").len() > 4, "no stream was asked for again");
}

// ---- Nodes that go ----

/// A cluster that goes on without the host of the module, and a handle at a node that stays.
async fn with_victim() -> (TestCluster, Arc<Ledger>, String, DeliveriesHandle) {
    let setup = nodes(3).voters(3).with("cluster.lease", "2s").with("cluster.call_wait", "20s");
    let (cluster, ledger) = cluster(setup).await;
    let leader = cluster.view_at("n1").await.leader;
    let mut others = cluster.names();
    others.retain(|name| *name != leader);
    let victim = others.remove(0);
    if cluster.home("deliveries").await != victim {
        cluster.move_module("deliveries", &victim).await;
        cluster.home("deliveries").await;
    }
    let handle = cluster.handle(&others[0]);
    (cluster, ledger, victim, handle)
}

#[tokio::test]
async fn a_call_of_an_idempotent_method_outlives_the_node_that_ran_it() {
    let (mut cluster, ledger, victim, handle) = with_victim().await;
    let idempotent = handle.idempotent(work("idempotent", Deed::Hold));
    let once = handle.once(work("once", Deed::Hold));
    let crash = async {
        ledger.begun("idempotent", 1).await;
        ledger.begun("once", 1).await;
        cluster.kill(&victim);
        ledger.begun("idempotent", 2).await;
        ledger.let_go();
    };
    let (idempotent, once, ()) = within("the calls", async { tokio::join!(idempotent, once, crash) }).await;
    let done = idempotent.unwrap().into_inner();
    assert_ne!(done.node, victim);
    assert_eq!((ledger.runs("idempotent").len(), ledger.runs("once").len()), (2, 1));
    assert_eq!(told(&once.unwrap_err(), keys::OUTCOME), Some("unknown"));
}

#[tokio::test]
async fn an_error_after_a_try_that_may_have_run_never_says_that_it_did_not() {
    let setup = nodes(2).with("cluster.lease", "60s").with("cluster.call_wait", "1s");
    let (mut cluster, ledger) = cluster(setup).await;
    cluster.move_module("deliveries", "n2").await;
    cluster.home("deliveries").await;
    let handle: DeliveriesHandle = cluster.handle("n1");
    let call = handle.idempotent(work("lost", Deed::Hold));
    let crash = async {
        ledger.begun("lost", 1).await;
        cluster.kill("n2");
    };
    // Nobody takes the module over for a minute, so the second try does not run.
    let (answer, ()) = within("the end", async { tokio::join!(call, crash) }).await;
    let status = answer.unwrap_err();
    assert_eq!((told(&status, keys::OUTCOME), told(&status, keys::REASON)), (Some("unknown"), Some("broken")));
}

#[tokio::test]
async fn a_stream_goes_on_when_its_node_crashes_without_a_gap_or_a_message_twice() {
    let (mut cluster, ledger, victim, handle) = with_victim().await;
    let events = handle.watch(WatchRequest { after: 3, last: 60 }).await.unwrap().into_inner();
    let mut events = std::pin::pin!(events);
    let (mut seen, mut hosts) = (Vec::new(), Vec::new());
    while let Some(event) = within("an event", events.next()).await {
        let event = event.unwrap();
        seen.push(event.sequence);
        hosts.push(event.node);
        if event.sequence == 20 {
            cluster.kill(&victim);
        }
    }
    assert_eq!(seen, (4..=60).collect::<Vec<_>>());
    assert_eq!((&hosts[0], ledger.runs("watch").len()), (&victim, 2));
    assert_ne!(hosts.last(), Some(&victim));
}

#[tokio::test]
async fn a_stream_is_not_asked_for_past_its_deadline() {
    let (mut cluster, _, victim, handle) = with_victim().await;
    let mut request = WatchRequest { after: 0, last: u64::MAX }.into_request();
    request.set_timeout(Duration::from_millis(700));
    let mut events = handle.watch(request).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().sequence, 1);
    cluster.kill(&victim);
    let status = loop {
        match within("the end", events.message()).await {
            Ok(event) => drop(event.unwrap()),
            Err(status) => break status,
        }
    };
    // It may be told so, or that there was no time left to try again.
    assert!([Code::DeadlineExceeded, Code::Unavailable].contains(&status.code()), "{status:?}");
    assert_eq!(told(&status, keys::OUTCOME), Some("unknown"), "{status:?}");
    assert!(events.message().await.unwrap().is_none());
}

/// A module's own UNAVAILABLE is its answer.
#[tokio::test]
async fn a_modules_own_status_is_never_a_reason_to_try_again() {
    use outpost_tests::v1::{
        Answer, Ask, RelayHandle,
        relay_server::{Relay, RelayServer},
    };

    /// Hands on the status of a call that it made, as many do.
    struct HandsOn(DeliveriesHandle);

    #[tonic::async_trait]
    impl Relay for HandsOn {
        async fn unary(&self, _: Request<Ask>) -> Result<Response<Answer>, Status> {
            let mut status = Status::unavailable("not today");
            status.metadata_mut().insert(keys::OUTCOME, "unknown".parse().unwrap());
            status.metadata_mut().insert(keys::REASON, "moved".parse().unwrap());
            status.metadata_mut().insert(keys::CALL_ID, "1".parse().unwrap());
            let _ = &self.0;
            Err(status)
        }
    }

    let ledger = Arc::new(Ledger::default());
    let relay = |deliveries: DeliveriesHandle| async move { Ok::<_, BoxError>(RelayServer::new(HandsOn(deliveries))) };
    let program = move |node: &str| {
        App::new("relays", "1").with(deliveries::module(node, &ledger)).with(Module::new("relay", relay))
    };
    let cluster = nodes(2).start(program).await;
    cluster.home("relay").await;
    for node in cluster.names() {
        let status = cluster.handle::<RelayHandle>(&node).unary(Ask::default()).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "not today"));
        assert_eq!([keys::OUTCOME, keys::REASON, keys::CALL_ID].map(|key| told(&status, key)), [None; 3]);
    }
}

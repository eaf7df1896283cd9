//! State that travels: whatever moves, drains or crashes, what was acknowledged is there, once.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outpost_proto::admin::v1::{self as admin, AbortMoveRequest, CordonRequest, DrainRequest};
use outpost_tests::{
    cluster::{TestCluster, module, nodes, settled},
    store::{
        self, PreCopied, Whole,
        v1::{
            AppendRequest, FillRequest, FollowRequest, ListRequest, ListResponse, StoreHandle,
            store_client::StoreClient,
        },
    },
    wait::{until, within},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Code, Status};

/// Callers that append, each an entry of its own each time.
#[derive(Debug)]
struct Writers {
    tasks: JoinSet<()>,
    stop: Arc<Mutex<bool>>,
    written: Arc<Mutex<Written>>,
}

/// How it went.
#[derive(Debug, Default)]
struct Written {
    acknowledged: Vec<String>,
    failed: Vec<(String, Status)>,
}

impl Writers {
    /// By a stock client and by a handle of each node.
    fn start(cluster: &TestCluster, nodes: &[String]) -> Self {
        Self::start_as("", cluster, nodes)
    }

    /// The same, with names that no others have.
    fn start_as(name: &str, cluster: &TestCluster, nodes: &[String]) -> Self {
        let mut writers = Self { tasks: JoinSet::new(), stop: Arc::default(), written: Arc::default() };
        for node in nodes {
            let client = StoreClient::new(cluster.client(node));
            writers.writer(format!("{name} {node} client"), move |request| {
                let mut client = client.clone();
                async move { client.append(request).await.map(drop) }
            });
            let handle: StoreHandle = cluster.handle(node);
            writers.writer(format!("{name} {node} handle"), move |request| {
                let handle = handle.clone();
                async move { handle.append(request).await.map(drop) }
            });
        }
        writers
    }

    fn writer<F>(&mut self, name: String, append: impl Fn(AppendRequest) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), Status>> + Send,
    {
        let (stop, written) = (Arc::clone(&self.stop), Arc::clone(&self.written));
        self.tasks.spawn(async move {
            for number in 0.. {
                if *stop.lock().unwrap_or_else(PoisonError::into_inner) {
                    return;
                }
                // Calls in the same process may never wait; others should have their turn.
                sleep(Duration::from_millis(1)).await;
                let id = format!("{name} {number}");
                let outcome = append(AppendRequest { id: id.clone(), take_ms: 0 }).await;
                let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
                match outcome {
                    Ok(()) => written.acknowledged.push(id),
                    Err(status) => written.failed.push((id, status)),
                }
            }
        });
    }

    fn acknowledged(&self) -> usize {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.len()
    }

    async fn more(&self, calls: usize) {
        let wanted = self.acknowledged() + calls;
        until("more entries to be acknowledged", async || match self.acknowledged() {
            done if done >= wanted => Ok(()),
            done => Err(format!("{done} of {wanted}")),
        })
        .await;
    }

    async fn stop(mut self) -> Written {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        while let Some(ended) = within("each writer to have its answer", self.tasks.join_next()).await {
            ended.expect("a writer gave up");
        }
        std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Written {
    /// INV-3: what was acknowledged is there; and nothing is there twice.
    async fn assert_kept(&self, cluster: &TestCluster, node: &str) {
        let handle: StoreHandle = cluster.handle(node);
        let list = handle.list(ListRequest {}).await.expect("the list").into_inner();
        let repeated = list.repeated.len();
        assert_eq!(repeated, 0, "appended more than once: {:?}", list.repeated.iter().take(5).collect::<Vec<_>>());
        let there: std::collections::HashSet<&String> = list.ids.iter().collect();
        let lost: Vec<&String> = self.acknowledged.iter().filter(|id| !there.contains(id)).collect();
        assert!(lost.is_empty(), "{} of {} were lost: {:?}", lost.len(), self.acknowledged.len(), lost.first());
        // What was told not to have run has not.
        for (id, status) in &self.failed {
            let outcome = status.metadata().get("outpost-outcome").map(|outcome| outcome.as_bytes().to_vec());
            let ran = outcome.as_deref() != Some(b"not-executed");
            assert!(ran || !there.contains(id), "{id} has run, and was told not to have: {status:?}");
        }
    }

    fn assert_none_failed(&self) {
        let failed: Vec<_> = self.failed.iter().take(3).collect();
        assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", self.failed.len(), self.acknowledged.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_each_move_and_no_call_fails() {
    let cluster = nodes(3).start(store::app::<Whole>).await;
    cluster.home("store").await;
    let writers = Writers::start(&cluster, &cluster.names());
    for round in 0..9 {
        writers.more(50).await;
        cluster.move_module("store", ["n2", "n3", "n1"][round % 3]).await;
    }
    writers.more(50).await;
    let written = writers.stop().await;
    written.assert_none_failed();
    written.assert_kept(&cluster, "n2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_copied_before_loses_nothing_either() {
    let cluster = nodes(2).start(store::app::<PreCopied>).await;
    let home = cluster.home("store").await;
    let handle: StoreHandle = cluster.handle(&home);
    handle.fill(FillRequest { bytes: 16 << 20 }).await.unwrap();
    let writers = Writers::start(&cluster, &cluster.names());
    for round in 0..6 {
        writers.more(50).await;
        cluster.move_module("store", ["n2", "n1"][round % 2]).await;
    }
    let written = writers.stop().await;
    written.assert_none_failed();
    written.assert_kept(&cluster, "n2").await;
    let moved = cluster.events("store").await.into_iter().filter(|(kind, _)| kind == "moved");
    assert!(moved.clone().count() == 6 && moved.into_iter().all(|(_, text)| text.contains("16.0 MiB of state")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_module_moves_and_goes_on_where_it_is() {
    let cluster = nodes(2).with("cluster.stream_grace", "100ms").start(store::app::<Whole>).await;
    cluster.home("store").await;
    let mut client = StoreClient::new(cluster.client("n2"));
    let append = |id: &str| AppendRequest { id: id.to_owned(), take_ms: 0 };
    client.append(append("one")).await.unwrap();
    let mut stream = client.follow(FollowRequest { after: 0 }).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().id, "one");

    let began = Instant::now();
    cluster.move_module("store", "n2").await;
    let status = within("the stream to end", stream.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(status.metadata().get("outpost-outcome").unwrap(), "unknown");
    assert!(began.elapsed() < Duration::from_secs(2), "calls that do not wait for it are not held up by it");

    client.append(append("two")).await.unwrap();
    let mut stream = client.follow(FollowRequest { after: 1 }).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().id, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_end_is_cut_off_and_says_that_it_may_have_run() {
    let cluster = nodes(2).with("cluster.seal_timeout", "200ms").start(store::app::<Whole>).await;
    cluster.home("store").await;
    let handles: Vec<StoreHandle> = vec![cluster.handle("n1"), cluster.handle("n2")];
    let mut calls = JoinSet::new();
    for (number, handle) in handles.into_iter().enumerate() {
        let request = AppendRequest { id: format!("slow {number}"), take_ms: 60_000 };
        calls.spawn(async move { handle.append(request).await });
    }
    let handle: StoreHandle = cluster.handle("n1");
    until("both calls to run", async || match handle.list(ListRequest {}).await.unwrap().into_inner().ids.len() {
        2 => Ok(()),
        calls => Err(format!("{calls} run")),
    })
    .await;
    cluster.move_module("store", "n2").await;
    while let Some(ended) = within("the calls to end", calls.join_next()).await {
        let status = ended.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.metadata().get("outpost-outcome").unwrap(), "unknown");
    }
    // They had run, before the state was written.
    let list = cluster.handle::<StoreHandle>("n2").list(ListRequest {}).await.unwrap().into_inner();
    assert_eq!(list.ids.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_drained_gives_away_everything_and_no_call_fails() {
    let cluster = nodes(3).voters(3).start(store::app::<Whole>).await;
    let home = cluster.home("store").await;
    let writers = Writers::start(&cluster, &cluster.names());
    writers.more(50).await;
    let request = DrainRequest { node: home.clone(), by: "tester".into(), why: "a new disk".into() };
    cluster.any_admin().drain(request.clone()).await.unwrap();
    let emptied = |view: &admin::Cluster| {
        let node = view.nodes.iter().find(|node| node.name == home).ok_or("it is not there")?;
        let (host, _) = settled(view, "store")?;
        match node.drained && node.state == "draining" && node.modules.is_empty() && host != home {
            true => Ok(()),
            false => Err(format!("{node:?}")),
        }
    };
    cluster.wait_until("the node to be empty", emptied).await;
    writers.more(50).await;
    let again = cluster.any_admin().drain(request).await.unwrap().into_inner();
    assert!(!again.changed);

    let back = CordonRequest { node: home.clone(), cordoned: false, by: "tester".into() };
    cluster.any_admin().cordon(back).await.unwrap();
    let ready = |view: &admin::Cluster| match view.nodes.iter().find(|node| node.name == home) {
        Some(node) if node.state == "ready" && !node.drained && !node.cordoned => Ok(()),
        node => Err(format!("{node:?}")),
    };
    cluster.wait_until("the node to be back", ready).await;
    cluster.move_module("store", &home).await;
    let written = writers.stop().await;
    written.assert_none_failed();
    written.assert_kept(&cluster, &home).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_restarted_one_by_one_and_no_call_fails() {
    let mut cluster = nodes(3).voters(3).start(store::app::<PreCopied>).await;
    cluster.home("store").await;
    let mut written = Vec::new();
    for going in ["n1", "n2", "n3"] {
        let stay: Vec<String> = cluster.names().into_iter().filter(|name| name != going).collect();
        let writers = Writers::start_as(going, &cluster, &stay);
        writers.more(50).await;
        let stopped = cluster.stop(going).await;
        assert_eq!((stopped.calls_cut, stopped.tasks_cut), (0, 0), "{going}");
        writers.more(50).await;
        cluster.restart(going).await;
        cluster.home("store").await;
        written.push(writers.stop().await);
    }
    for written in written {
        written.assert_none_failed();
        written.assert_kept(&cluster, "n1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_given_up_when_its_target_dies_and_the_source_goes_on() {
    let mut cluster = nodes(3).voters(3).start(store::app::<Whole>).await;
    let home = cluster.home("store").await;
    let handle: StoreHandle = cluster.handle(&home);
    handle.fill(FillRequest { bytes: 256 << 20 }).await.unwrap();
    let others: Vec<String> = cluster.names().into_iter().filter(|name| *name != home).collect();
    let writers = Writers::start(&cluster, &[home.clone(), others[1].clone()]);
    writers.more(50).await;
    cluster.begin_move("store", &others[0]).await.unwrap();
    let sealed = |view: &admin::Cluster| match module(view, "store")?.movement.as_ref() {
        Some(movement) if movement.phase == "sealed" => Ok(()),
        movement => Err(format!("{movement:?}")),
    };
    cluster.wait_until_at(&home, "the gate to be closed", sealed).await;
    cluster.kill(&others[0]);
    let back = |view: &admin::Cluster| match settled(view, "store")? {
        (host, _) if host == home && module(view, "store")?.movement.is_none() => Ok(()),
        other => Err(format!("{other:?}")),
    };
    cluster.wait_until_at(&home, "the source to go on", back).await;
    writers.more(50).await;
    let written = writers.stop().await;
    written.assert_kept(&cluster, &home).await;
    // Callers waited until the target was known to be dead: that may take longer than they wait.
    for (id, status) in &written.failed {
        assert_eq!(status.metadata().get("outpost-outcome").unwrap(), "not-executed", "{id}: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_can_be_given_up_by_an_operator() {
    let cluster = nodes(2).start(store::app::<Whole>).await;
    cluster.home("store").await;
    let abort = AbortMoveRequest { module: "store".into(), ..AbortMoveRequest::default() };
    let status = cluster.any_admin().abort_move(abort.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let handle: StoreHandle = cluster.handle("n1");
    handle.fill(FillRequest { bytes: 256 << 20 }).await.unwrap();
    let begun = cluster.begin_move("store", "n2").await.unwrap();
    let again = cluster.begin_move("store", "n2").await.unwrap();
    assert_eq!((again.index, again.changed), (begun.index, false), "who asks again follows the same move");
    let other = AbortMoveRequest { move_id: begun.index + 1, ..abort.clone() };
    let status = cluster.any_admin().abort_move(other).await.unwrap_err();
    assert!(status.message().contains("the move that is under way is"), "{status:?}");
    // It may have been decided already: only one of both is.
    let aborted = cluster.any_admin().abort_move(AbortMoveRequest { move_id: begun.index, ..abort }).await.is_ok();
    let ended = |view: &admin::Cluster| match module(view, "store")?.movement.as_ref() {
        None => settled(view, "store"),
        movement => Err(format!("{movement:?}")),
    };
    let (host, _) = cluster.wait_until("the move to end", ended).await;
    assert!(host == "n1" || !aborted, "it was given up, and is on {host}");
    within("a call", handle.list(ListRequest {})).await.unwrap();
}

/// How long a crash may take to be noticed, and made up for, in these.
fn quick() -> outpost_tests::cluster::Setup {
    nodes(3).voters(3).with("cluster.lease", "2s").with("cluster.call_wait", "20s")
}

/// The list, once there is one again. What was sent to a node at the moment of its crash may have run.
async fn taken_over(handle: &StoreHandle) -> ListResponse {
    let asked = async || {
        let answer = handle.list(ListRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.to_string())
    };
    until("somebody to take over", asked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_a_state_that_only_travels_and_nothing_else_goes_wrong() {
    let mut cluster = quick().start(store::app::<Whole>).await;
    let home = cluster.home("store").await;
    let other = cluster.node_without("store").await;
    let handle: StoreHandle = cluster.handle(&other);
    handle.append(AppendRequest { id: "one".into(), take_ms: 0 }).await.unwrap();
    cluster.kill(&home);
    let list = taken_over(&handle).await;
    assert_eq!(list.ids, Vec::<String>::new());
    assert!(list.epoch > 1 && list.node != home, "{list:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_only_what_came_after_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let app = |node: &str| {
        let store = store::store::<Whole>(node).checkpointed(Duration::from_millis(50));
        outpost::App::new("store", "1.0.0").with(store)
    };
    let mut cluster = quick().with("checkpoints.url", &url).start(app).await;
    let home = cluster.home("store").await;
    let other = cluster.node_without("store").await;
    let handle: StoreHandle = cluster.handle(&other);
    handle.append(AppendRequest { id: "one".into(), take_ms: 0 }).await.unwrap();
    let checkpoints = || {
        let mut left = vec![folder.path().to_path_buf()];
        let mut names = Vec::new();
        while let Some(next) = left.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { left.push(path) } else { names.push(path) }
            }
        }
        names
    };
    let holds = |path: &std::path::PathBuf| {
        std::fs::read(path).is_ok_and(|bytes| bytes.windows(3).any(|window| window == b"one"))
    };
    until("a checkpoint to be written", async || match checkpoints().iter().any(holds) {
        true => Ok(()),
        false => Err(format!("{:?}", checkpoints())),
    })
    .await;
    cluster.kill(&home);
    let list = taken_over(&handle).await;
    assert_eq!(list.ids, ["one"]);
    assert!(list.epoch > 1 && list.node != home, "{list:?}");
    assert!(checkpoints().len() <= 3, "older ones are deleted: {:?}", checkpoints());
}

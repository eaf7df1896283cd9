//! Very many nodes, in one process, since processes of their own would need more memory than there is.

use std::{fs, path::Path, sync::Arc, time::Duration};

use futures_util::stream::{self, FuturesUnordered, StreamExt as _};
use outpost::{Node, Sources};
use outpost_proto::admin::v1::{Cluster, MoveRequest, WatchRequest, admin_client::AdminClient};
use outpost_tests::{
    authority::gossip_keys,
    measure::{Echo, cpu_of, echo_app, median, resident_kib_of, runtime},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use crate::{
    MODULE, Plan,
    nodes::{is_served_by, module, ready},
    report::{Cell, Report, hundredths, tenths, whole},
};

/// Nodes that keep the log on disk.
const VOTERS: usize = 3;
const MOVES: usize = 5;
/// How long is waited for a fact.
const LIMIT: Duration = Duration::from_secs(120);
/// How many nodes are asked at a time.
const ASKED: usize = 16;

pub(crate) fn run(sizes: &[usize], plan: &Plan, report: &mut Report) {
    report.part("many", "many nodes in one process");
    // Each node has four sockets, and connections to others.
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit { current: files.maximum, ..files };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        report.say(&format!("The limit of open files stays at {:?}: {error}.", files.current));
    }
    let mut rows = Vec::new();
    for size in sizes {
        let runtime = runtime(2);
        rows.push(runtime.block_on(measure(*size, plan.sealed, report)));
        runtime.shutdown_timeout(Duration::from_secs(10));
    }
    let columns = [
        "nodes",
        "started",
        "start of the first to all serving, s",
        "to all seeing all, s",
        "a move: request to the leader's view, median ms",
        "to every view, median ms",
        "to every view, most ms",
        "CPU idle, % of a core a node",
        "resident KiB a node",
    ];
    report.table("Gossip every 500 ms, three nodes with their log on disk, the others in memory", &columns, rows);
}

async fn measure(count: usize, sealed: bool, report: &mut Report) -> Vec<Cell> {
    let folder = tempfile::Builder::new().prefix("many-").tempdir().expect("a folder");
    let own = std::process::id();
    let memory = resident_kib_of(own) as f64;
    let began = Instant::now();
    let keys = sealed.then(|| folder.path().join("gossip.keys"));
    if let Some(keys) = &keys {
        fs::write(keys, gossip_keys(&[7])).expect("a place for the keys");
    }
    let (nodes, refused) = start(count, folder.path(), keys.as_deref()).await;
    let started = began.elapsed();
    if !refused.is_empty() {
        report.say(&format!("**{} of {count} nodes did not start; the first: {}**", refused.len(), refused[0]));
    }
    let admins: Vec<Admin> = nodes.iter().filter_map(|node| Some(admin(node.admin_address()?))).collect();
    let missing = until_all(&admins, |view| ready(view) == nodes.len()).await;
    let seen = began.elapsed();
    if missing > 0 {
        let most = "did not see all others as ready";
        report.say(&format!("**{missing} of {} nodes {most} within {} s.**", admins.len(), LIMIT.as_secs()));
    }
    sleep(Duration::from_secs(2)).await;
    let (cpu, idle) = (cpu_of(own), Duration::from_secs(10));
    sleep(idle).await;
    let cpu = (cpu_of(own) - cpu).div_duration_f64(idle) * 100.0 / nodes.len() as f64;
    let memory = (resident_kib_of(own) as f64 - memory) / nodes.len() as f64;

    let (mut one, mut all) = (Vec::new(), Vec::new());
    for number in 0..MOVES {
        // Spread over the nodes, voters and others.
        let target = format!("node-{}", 1 + (number + 1) * (count / (MOVES + 1)).max(1));
        let asked = Instant::now();
        let request = MoveRequest { module: MODULE.to_owned(), node: target.clone(), ..MoveRequest::default() };
        if let Err(status) = admins[0].clone().r#move(request).await {
            report.say(&format!("**A move to {target} was refused: {status}**"));
            continue;
        }
        let there = |view: &Cluster| module(view).is_some_and(|module| is_served_by(module, &target));
        let missing = until_all(&admins[..1], there).await;
        one.push(asked.elapsed().as_secs_f64() * 1e3);
        let missing = missing.max(until_all(&admins, there).await);
        if missing > 0 {
            let views = admins.len();
            report.say(&format!("**{missing} of {views} nodes did not see a move within {} s.**", LIMIT.as_secs()));
        }
        all.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    let row = vec![
        whole(count as f64),
        whole(nodes.len() as f64),
        tenths(started.as_secs_f64()),
        if missing == 0 { tenths(seen.as_secs_f64()) } else { Cell::from(format!("{missing} never did")) },
        whole(median(one.iter().copied())),
        whole(median(all.iter().copied())),
        whole(all.iter().copied().fold(f64::NAN, f64::max)),
        hundredths(cpu),
        whole(memory),
    ];
    drop(nodes);
    row
}

type Admin = AdminClient<Channel>;

fn admin(address: std::net::SocketAddr) -> Admin {
    AdminClient::new(Endpoint::try_from(format!("http://{address}")).expect("a URI").connect_lazy())
}

/// Starts the first node, and then all others at once; and why some did not start.
async fn start(count: usize, folder: &Path, keys: Option<&Path>) -> (Vec<Node>, Vec<String>) {
    let start = |number: usize, sources: Sources| {
        let app = echo_app(Echo { number: number as i64, ..Echo::default() });
        let sources = match number <= VOTERS {
            true => sources.set("node.data_dir", &folder.join(number.to_string()).display().to_string()),
            false => sources,
        };
        let sources = match keys {
            Some(keys) => sources.set("trust.gossip_keys", &keys.display().to_string()),
            None => sources,
        };
        async move { app.start(&sources.set("node.name", &format!("node-{number}"))).await }
    };
    let mut nodes = Vec::new();
    let mut refused = Vec::new();
    let first = start(1, Sources::on_free_ports()).await.expect("a first node");
    let seed = format!("[\"{}\"]", first.cluster_address());
    nodes.push(first);
    let others = (2..=count).map(|number| {
        let starting = start(number, Sources::on_free_ports().set("cluster.seeds", &seed));
        timeout(LIMIT, starting)
    });
    let mut starting: FuturesUnordered<_> = others.collect();
    while let Some(started) = starting.next().await {
        match started {
            Ok(Ok(node)) => nodes.push(node),
            Ok(Err(error)) => refused.push(error.to_string()),
            Err(_) => refused.push(format!("not within {} s", LIMIT.as_secs())),
        }
    }
    (nodes, refused)
}

/// Asks all nodes for their view again and again, each until it shows a fact; gives how many never showed it.
///
/// Not by streams that stay open: to tell each change to a hundred watchers at once would be most of the work.
async fn until_all(admins: &[Admin], fact: impl Fn(&Cluster) -> bool + Send + Sync) -> usize {
    let began = Instant::now();
    let fact = Arc::new(fact);
    let mut left: Vec<&Admin> = admins.iter().collect();
    while !left.is_empty() && began.elapsed() < LIMIT {
        let asked = stream::iter(left).map(|admin| {
            let fact = Arc::clone(&fact);
            async move {
                let view = timeout(Duration::from_secs(10), view(admin)).await.ok().flatten();
                (!view.is_some_and(|view| fact(&view))).then_some(admin)
            }
        });
        left = asked.buffer_unordered(ASKED).filter_map(std::future::ready).collect().await;
        if !left.is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    }
    left.len()
}

async fn view(admin: &Admin) -> Option<Cluster> {
    admin.clone().watch(WatchRequest {}).await.ok()?.into_inner().message().await.ok()?
}

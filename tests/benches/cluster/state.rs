//! What callers notice when a module moves with its state; and how long a node takes to give away all that it hosts.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outpost::Sources;
use outpost_proto::admin::v1::{
    Cluster, CordonRequest, DrainRequest, Event, EventsRequest, MoveRequest, admin_client::AdminClient,
};
use outpost_tests::{
    measure::{connect, quantile, runtime},
    parts,
    store::v1::{AppendRequest, FillRequest, ListRequest, store_client::StoreClient},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use crate::{
    Plan,
    nodes::{Nodes, until},
    report::{Cell, Report, hundredths, tenths, whole},
};

/// Together they make about 5,000 calls a second.
const CLIENTS: usize = 16;
const PAUSE: Duration = Duration::from_millis(3);
/// Between moves.
const QUIET: Duration = Duration::from_millis(150);
const MIB: u64 = 1 << 20;

/// As many as the cluster remembers the events of.
const MOST_MOVES: usize = 60;

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    let moves = plan.moves.min(MOST_MOVES);
    report.part("state", "a module moves with its state while it is called");
    runtime(2).block_on(async {
        let mut rows = Vec::new();
        let mut pauses = Vec::new();
        for size in [MIB, 256 * MIB] {
            let measured = measure(size, moves).await;
            pauses.push(measured.median_pause);
            let ratio = measured.median_pause / pauses[0];
            rows.push(vec![
                whole((size / MIB) as f64),
                tenths(measured.median_pause),
                tenths(measured.slow_pause),
                hundredths(ratio),
                tenths(measured.median_slowest),
                tenths(measured.slow_slowest),
                tenths(measured.sealed),
                tenths(measured.quiet),
                Cell::from(measured.calls),
                tenths(measured.copied),
            ]);
        }
        let columns = [
            "state, MiB",
            "slowest call that met the closed gate, median ms",
            "p99 of moves, ms",
            "ratio of medians",
            "slowest call of all while it moved, median ms",
            "p99 of moves, ms",
            "gate closed until handed over, median ms",
            "slowest call without a move, median ms",
            "calls, and what became of them",
            "request to copied, median ms",
        ];
        report.table(
            &format!("{moves} moves, {CLIENTS} clients that pause for {PAUSE:?} between calls"),
            &columns,
            rows,
        );
        let Copies { moved, plain, kept } = copies(plan.moves.clamp(1, 9)).await;
        let row = |what: &str, took: f64| vec![Cell::from(what.to_owned()), whole(took), hundredths(plain / took)];
        report.table(
            "256 MiB over loopback, with nobody calling",
            &["way", "median ms", "speed, as a share of the plain copy's"],
            vec![
                row("plain TCP copy, whose bytes are dropped", plain),
                row("plain TCP copy, whose bytes are kept in new memory", kept),
                row("a move: from the request until the target has a copy, both digests included", moved),
            ],
        );
    });
}

/// Medians in milliseconds.
struct Copies {
    moved: f64,
    plain: f64,
    kept: f64,
}

/// How fast a state travels, in turns with plain copies.
async fn copies(rounds: usize) -> Copies {
    let nodes = Nodes::start(3, 3, &["cluster.max_rebalancing=0"]).await;
    let first = nodes.node("node-1");
    let mut store = StoreClient::new(connect(first.ingress).await);
    store.fill(FillRequest { bytes: 256 * MIB }).await.expect("it is filled");
    let (mut plain, mut kept) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        plain.push(plain_copy(256 * MIB, false).await.as_secs_f64() * 1e3);
        kept.push(plain_copy(256 * MIB, true).await.as_secs_f64() * 1e3);
        move_store(&first.admin, &format!("node-{}", (number + 1) % 3 + 1)).await;
        sleep(QUIET).await;
    }
    let moved = quantile(copied(&events(&first.admin).await), 0.5);
    Copies { moved, plain: quantile(plain, 0.5), kept: quantile(kept, 0.5) }
}

struct Measured {
    median_pause: f64,
    slow_pause: f64,
    median_slowest: f64,
    slow_slowest: f64,
    sealed: f64,
    quiet: f64,
    copied: f64,
    calls: String,
}

/// One call: when it was sent, how long it took, and its id if it was acknowledged.
struct Done {
    sent: Instant,
    took: Duration,
    id: String,
    failed: Option<String>,
}

async fn client(name: usize, channel: Channel, until: Instant) -> Vec<Done> {
    let mut store = StoreClient::new(channel);
    let mut done = Vec::new();
    for number in 0.. {
        if Instant::now() >= until {
            break;
        }
        let id = format!("{name} {number}");
        let sent = Instant::now();
        let answer = store.append(AppendRequest { id: id.clone(), take_ms: 0 }).await;
        done.push(Done { sent, took: sent.elapsed(), id, failed: answer.err().map(|status| status.to_string()) });
        sleep(PAUSE).await;
    }
    done
}

async fn measure(size: u64, moves: usize) -> Measured {
    let nodes = Nodes::start(3, 3, &["cluster.max_rebalancing=0"]).await;
    let first = nodes.node("node-1");
    let mut store = StoreClient::new(connect(first.ingress).await);
    store.fill(FillRequest { bytes: size }).await.expect("it is filled");
    let resident = || nodes.all().map(|(_, node)| node.process.resident_kib()).max().unwrap_or_default() / 1024;
    let mut clients = JoinSet::new();
    let step = QUIET * 2 + if size > MIB { Duration::from_millis(1500) } else { Duration::from_millis(100) };
    let end = Instant::now() + step * u32::try_from(moves).expect("a number of moves") + Duration::from_secs(2);
    for name in 0..CLIENTS {
        let address = nodes.node(&format!("node-{}", name % 3 + 1)).ingress;
        let channel = connect(address).await;
        clients.spawn(client(name, channel, end));
    }
    sleep(Duration::from_secs(1)).await;
    let before = resident();
    let clock = Clock::now();
    let mut times = Vec::new();
    for number in 0..moves {
        let quiet = Instant::now();
        sleep(QUIET).await;
        let began = Instant::now();
        move_store(&first.admin, &format!("node-{}", (number + 1) % 3 + 1)).await;
        let ended = Instant::now();
        // What comes late is seen too.
        sleep(QUIET / 3).await;
        times.push((quiet, began, ended + QUIET / 3));
    }
    let after = resident();
    let mut done = Vec::new();
    while let Some(client) = clients.join_next().await {
        done.extend(client.expect("a client does not panic"));
    }
    let slowest = |from: Instant, to: Instant| {
        let within = done.iter().filter(|call| call.sent + call.took >= from && call.sent <= to);
        within.map(|call| call.took.as_secs_f64() * 1e3).fold(0.0, f64::max)
    };
    let all: Vec<f64> = times.iter().map(|(_, began, ended)| slowest(*began, *ended)).collect();
    let quiets: Vec<f64> = times.iter().map(|(quiet, began, _)| slowest(*quiet, *began)).collect();
    let list = store.list(ListRequest {}).await.expect("the list").into_inner();
    let there: std::collections::HashSet<&String> = list.ids.iter().collect();
    let failed: Vec<&String> = done.iter().filter_map(|call| call.failed.as_ref()).collect();
    let lost = done.iter().filter(|call| call.failed.is_none() && !there.contains(&call.id)).count();
    let events = events(&first.admin).await;
    // From when the source may close its gate until the target has said that it serves.
    let pauses: Vec<f64> =
        closed(&events).into_iter().map(|(from, to)| slowest(clock.instant(from), clock.instant(to + 1))).collect();
    assert_eq!(pauses.len(), moves, "each move has its events");
    let calls = format!(
        "{}: {} failed{}, {lost} lost, {} twice; largest node {before} MiB before, {after} MiB after",
        done.len(),
        failed.len(),
        failed.first().map(|first| format!(" ({first})")).unwrap_or_default(),
        list.repeated.len()
    );
    Measured {
        median_pause: quantile(pauses.iter().copied(), 0.5),
        slow_pause: quantile(pauses, 0.99),
        median_slowest: quantile(all.iter().copied(), 0.5),
        slow_slowest: quantile(all, 0.99),
        sealed: quantile(sealed(&events), 0.5),
        quiet: quantile(quiets, 0.5),
        copied: quantile(copied(&events), 0.5),
        calls,
    }
}

async fn move_store(admin: &AdminClient<Channel>, to: &str) {
    let request = MoveRequest { module: "store".into(), node: to.into(), ..MoveRequest::default() };
    // The last move may have just ended, and the leader has yet to see that.
    while admin.clone().r#move(request.clone()).await.is_err() {
        sleep(Duration::from_millis(5)).await;
    }
    let there = |view: &Cluster| {
        let module = view.modules.iter().find(|module| module.name == "store");
        module.is_some_and(|module| {
            module.movement.is_none()
                && module.state == "serving"
                && matches!(&*module.hosts, [host] if host.node == to && host.state == "serving")
        })
    };
    until(admin, "the store to move", there).await;
}

async fn events(admin: &AdminClient<Channel>) -> Vec<Event> {
    let mut stream = admin.clone().events(EventsRequest::default()).await.expect("events").into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.expect("events") {
        if event.module == "store" {
            events.push(event);
        }
    }
    events
}

/// For how long calls had waited when each hand-over was proposed, in milliseconds.
fn sealed(events: &[Event]) -> Vec<f64> {
    let waited = events.iter().filter_map(|event| {
        let text = event.text.split_once("calls wait for ")?.1.strip_suffix(" so far")?;
        let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic() || c == 'µ')?);
        let number: f64 = number.parse().ok()?;
        Some(match unit {
            "s" => number * 1e3,
            "ms" => number,
            _ => number / 1e3,
        })
    });
    waited.collect()
}

/// When a move may have kept calls waiting, by the clock on the wall in milliseconds.
fn closed(events: &[Event]) -> Vec<(u64, u64)> {
    let mut prepared = 0;
    let mut closed = Vec::new();
    let mut moved = false;
    for event in events {
        match event.kind.as_str() {
            "move-prepared" => prepared = event.at_ms,
            "moved" => moved = true,
            "activated" if std::mem::take(&mut moved) => closed.push((prepared, event.at_ms)),
            _ => {}
        }
    }
    closed
}

/// Two clocks at one moment.
struct Clock {
    wall_ms: u64,
    instant: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "nodes date their events by it")]
    fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        Self { wall_ms: u64::try_from(wall.as_millis()).expect("a time"), instant: Instant::now() }
    }

    fn instant(&self, wall_ms: u64) -> Instant {
        self.instant + Duration::from_millis(wall_ms.saturating_sub(self.wall_ms))
    }
}

/// From the entry that begins a move to the one that says that the target has its copy, in milliseconds.
fn copied(events: &[Event]) -> Vec<f64> {
    let mut begun = 0;
    let mut took = Vec::new();
    for event in events {
        match event.kind.as_str() {
            "move-begun" => begun = event.at_ms,
            "move-prepared" => took.push(event.at_ms.saturating_sub(begun) as f64),
            _ => {}
        }
    }
    took
}

/// How long as many bytes take over a connection of their own, from one task to another.
async fn plain_copy(bytes: u64, keep: bool) -> Duration {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address: SocketAddr = listener.local_addr().expect("it is bound");
    let mut copying = JoinSet::new();
    copying.spawn(async move {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let chunk = vec![7; 256 << 10];
        for _ in 0..bytes / chunk.len() as u64 {
            stream.write_all(&chunk).await.expect("it is read");
        }
    });
    let (mut stream, _) = listener.accept().await.expect("it connects");
    let began = Instant::now();
    let mut buffer = vec![0; 256 << 10];
    let mut all = Vec::new();
    loop {
        let read = stream.read(&mut buffer).await.expect("it is written");
        if read == 0 {
            return began.elapsed();
        }
        if keep {
            all.push(buffer[..read].to_vec());
        }
    }
}

pub(crate) fn drain(plan: &Plan, report: &mut Report) {
    report.part("drain", "a node gives away a hundred modules with state");
    runtime(2).block_on(async {
        let mut took = Vec::new();
        let first = start("node-1", None).await;
        let admin = AdminClient::new(connect(first.admin_address().expect("it is on")).await);
        let all_on = |node: &'static str| {
            move |view: &Cluster| {
                let on = |host: &outpost_proto::admin::v1::ModuleHost| host.node == node && host.state == "serving";
                let served =
                    view.modules.iter().filter(|module| module.movement.is_none() && module.hosts.iter().all(on));
                served.count() == parts::PARTS && view.modules.iter().all(|module| module.state == "serving")
            }
        };
        until(&admin, "all on the first node", all_on("node-1")).await;
        let second = start("node-2", Some(first.cluster_address())).await;
        for round in 0..plan.rounds {
            let (from, to) = if round % 2 == 0 { ("node-1", "node-2") } else { ("node-2", "node-1") };
            let ready = |view: &Cluster| view.nodes.iter().filter(|node| node.state == "ready").count() == 2;
            until(&admin, "both nodes", ready).await;
            let began = Instant::now();
            let request = DrainRequest { node: from.into(), ..DrainRequest::default() };
            admin.clone().drain(request).await.expect("it is drained");
            until(&admin, "all on the other node", all_on(to)).await;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            let back = CordonRequest { node: from.into(), cordoned: false, ..CordonRequest::default() };
            admin.clone().cordon(back).await.expect("it is back");
        }
        let rows = vec![vec![
            whole(parts::PARTS as f64),
            tenths(quantile(took.iter().copied(), 0.5)),
            tenths(quantile(took.iter().copied(), 1.0)),
        ]];
        report.table("From the request to all serving elsewhere", &["modules", "median ms", "longest, ms"], rows);
        second.stop().await;
        first.stop().await;
    });
}

/// A node in this process.
async fn start(name: &str, seed: Option<SocketAddr>) -> outpost::Node {
    let seeds = seed.map(|seed| format!("\"{seed}\"")).unwrap_or_default();
    let sources = Sources::on_free_ports()
        .set("node.name", name)
        .set("cluster.max_rebalancing", "0")
        .set("cluster.gossip_interval", "100ms")
        .set("cluster.seeds", &format!("[{seeds}]"));
    parts::app().start(&sources).await.expect("the node starts")
}

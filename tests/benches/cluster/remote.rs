//! A call from one node to a module on another, against what would do the same without Outpost.
//!
//! ```text
//! this process                             a process of its own
//! handle ─▶ node ═════════ link ═════════▶ node ─▶ module
//! stock tonic client ─── one connection ─▶ stock tonic server      1.00
//! tarpc client ───────── one connection ─▶ tarpc server
//! ```

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use futures_util::StreamExt as _;
use outpost::{Node, Sources};
use outpost_tests::{
    authority::{self, Authority, Kind},
    measure::{Echo, Process, ask, connect, drive, echo_app, load, runtime},
    v1::{RelayHandle, relay_server::RelayServer},
};
use tarpc::{
    client, context,
    server::{BaseChannel, Channel as _},
    tokio_serde::formats::Bincode,
};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Server};

use crate::{
    ECHO, Plan,
    nodes::{Nodes, is_served_by, module},
    report::{Cell, Report, hundredths, tenths, whole},
    rounds::{Part, Sample, middle, progress, ratio, turns},
    served,
};

/// Bytes of a message, and calls in flight.
pub(crate) const LOADS: [(usize, usize); 7] =
    [(100, 1), (100, 16), (100, 64), (100, 256), (4 << 10, 64), (64 << 10, 16), (1 << 20, 4)];

#[tarpc::service]
trait Echoes {
    async fn echo(payload: Vec<u8>) -> Vec<u8>;
}

#[derive(Clone)]
struct Echoing;

impl Echoes for Echoing {
    async fn echo(self, _: context::Context, payload: Vec<u8>) -> Vec<u8> {
        payload
    }
}

/// Serves a baseline, and tells where on its standard output.
pub(crate) fn serve(kind: &str) {
    let kind = kind.to_owned();
    runtime(2).block_on(async move {
        if kind == "tarpc" {
            let mut calls = JoinSet::new();
            let mut listener =
                tarpc::serde_transport::tcp::listen((Ipv4Addr::LOCALHOST, 0), Bincode::default).await.expect("a port");
            listener.config_mut().max_frame_length(16 << 20);
            println!("{}", listener.local_addr());
            while let Some(Ok(transport)) = listener.next().await {
                let running = BaseChannel::with_defaults(transport).execute(Echoing.serve());
                calls.spawn(running.for_each_concurrent(None, |call| async move {
                    // As a task of its own, as its documentation has it.
                    let _ = JoinSet::from_iter([call]).join_next().await;
                }));
            }
        } else {
            let relay = RelayServer::new(Echo::default()).max_decoding_message_size(16 << 20);
            served::listen(Server::builder().add_service(relay)).await;
        }
    });
}

/// The same two nodes again, which show each other certificates.
struct Secured {
    handle: RelayHandle,
    caller: Node,
    host: Process,
    _authority: Authority,
}

impl Secured {
    async fn start() -> Self {
        let authority = Authority::new();
        let authorities = authority.write("ca.pem", authority.pem());
        let settings = |name: &str| {
            let files = authority.issue_files(&authority::node(name), Kind::Good);
            let path = |path: &Path| path.to_str().expect("a path of UTF-8").to_owned();
            [
                ("node.name", name.to_owned()),
                ("cluster.name", "test".to_owned()),
                ("cluster.max_rebalancing", "0".to_owned()),
                ("trust.certificate", path(&files.certificate)),
                ("trust.key", path(&files.key)),
                ("trust.authorities", path(&authorities)),
            ]
        };
        let cluster = free_address();
        let mut command = Command::new(ECHO);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(["--cluster-listen", &cluster.to_string(), "--log", "warn"]);
        for (key, value) in settings("node-1") {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let host = Process::start(command.stdout(Stdio::null()));
        let sources = Sources::on_free_ports().set("cluster.seeds", &format!("[\"{cluster}\"]"));
        let sources = settings("caller").iter().fold(sources, |sources, (key, value)| sources.set(key, value));
        let caller = echo_app(Echo::default()).start(&sources).await.expect("the node starts");
        let handle: RelayHandle = caller.handle().expect("the program has it");
        handle.unary(ask(1)).await.expect("the module is on its host");
        Self { handle, caller, host, _authority: authority }
    }
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("it is bound")
}

enum Way {
    Link(RelayHandle),
    Tonic(Channel),
    Tarpc(EchoesClient),
}

struct Measured {
    name: &'static str,
    way: Way,
    server: u32,
    /// Per load, the rounds.
    samples: Vec<Vec<Sample>>,
}

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    report.part("remote", "a call from one node to a module on another");
    runtime(2).block_on(measure(plan, report));
}

async fn measure(plan: &Plan, report: &mut Report) {
    let nodes = Nodes::start(1, 0, &["log.filter=info", "cluster.max_rebalancing=0"]).await;
    let host = nodes.node("node-1");
    let sources = Sources::on_free_ports()
        .set("node.name", "caller")
        .set("cluster.max_rebalancing", "0")
        .set("cluster.seeds", &format!("[\"{}\"]", host.cluster));
    let caller = echo_app(Echo::default()).start(&sources).await.expect("the node starts");
    let on_host = |view: &_| module(view).is_some_and(|module| is_served_by(module, "node-1"));
    host.until("the module on its host", on_host).await;
    let handle: RelayHandle = caller.handle().expect("the program has it");
    let secured = Secured::start().await;
    let (tonic, tonic_at) = served::start("tonic");
    let (tarpc, tarpc_at) = served::start("tarpc");
    let mut transport = tarpc::serde_transport::tcp::connect(tarpc_at[0], Bincode::default);
    transport.config_mut().max_frame_length(16 << 20);
    let transport = transport.await.expect("it listens");
    let tarpc_client = EchoesClient::new(client::Config::default(), transport).spawn();
    let mut all = [
        ("stock tonic, one connection", Way::Tonic(connect(tonic_at[0]).await), tonic.0.id()),
        ("a handle, over a link", Way::Link(handle), host.pid()),
        ("the same, with certificates", Way::Link(secured.handle.clone()), secured.host.0.id()),
        ("tarpc", Way::Tarpc(tarpc_client), tarpc.0.id()),
    ]
    .map(|(name, way, server)| Measured { name, way, server, samples: vec![Vec::new(); plan.loads.len()] });
    for measured in &all {
        sample(measured, 100, 16, Duration::from_millis(500)).await;
    }
    for round in 0..plan.rounds {
        progress("remote", round, plan.rounds);
        for (which, &(bytes, in_flight)) in plan.loads.iter().enumerate() {
            for index in turns(all.len(), round) {
                let taken = sample(&all[index], bytes, in_flight, plan.time).await;
                all[index].samples[which].push(taken);
            }
        }
    }
    for (which, &load) in plan.loads.iter().enumerate() {
        table(&all, which, load, report);
    }
    caller.stop().await;
    secured.caller.stop().await;
}

async fn sample(measured: &Measured, bytes: usize, in_flight: usize, time: Duration) -> Sample {
    let calling = async {
        match &measured.way {
            Way::Tonic(channel) => load(std::slice::from_ref(channel), in_flight, bytes, time).await,
            Way::Link(handle) => {
                let handle = handle.clone();
                let call = move |_| {
                    let handle = handle.clone();
                    async move { drop(handle.unary(ask(bytes)).await.expect("an answer")) }
                };
                drive(in_flight, time, call).await
            }
            Way::Tarpc(client) => {
                let client = client.clone();
                let call = move |_| {
                    let client = client.clone();
                    async move { drop(client.echo(context::current(), vec![7; bytes]).await.expect("an answer")) }
                };
                drive(in_flight, time, call).await
            }
        }
    };
    Sample::of(measured.server, calling).await
}

fn table(all: &[Measured], which: usize, (bytes, in_flight): (usize, usize), report: &mut Report) {
    let middle = |measured: &Measured, part: Part| middle(&measured.samples[which], part);
    let ratio = |measured: &Measured, part: Part| ratio(&measured.samples[which], &all[0].samples[which], part);
    let (rate, p50, p99): (Part, Part, Part) =
        (|sample| sample.loaded.rate, |sample| sample.loaded.p50, |sample| sample.loaded.p99);
    let rows = all.iter().map(|measured| {
        vec![
            Cell::from(measured.name),
            whole(middle(measured, rate)),
            hundredths(ratio(measured, rate)),
            whole(middle(measured, p50)),
            whole(middle(measured, p99)),
            hundredths(ratio(measured, p50)),
            tenths(middle(measured, |sample| sample.client)),
            tenths(middle(measured, |sample| sample.server)),
            hundredths(ratio(measured, Sample::both)),
        ]
    });
    let columns = [
        "way",
        "calls/s",
        "ratio",
        "p50 us",
        "p99 us",
        "p50 ratio",
        "client CPU us/call",
        "server CPU us/call",
        "CPU ratio",
    ];
    report.table(&format!("{bytes} bytes, {in_flight} in flight"), &columns, rows.collect());
}

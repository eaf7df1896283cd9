//! What a call costs, as ratios of medians from interleaved rounds of one run: absolute times depend on the machine.
//!
//! ```text
//! cargo build --release -p shop && cargo bench -p outpost-tests --bench calls
//! ```
//!
//! Prints Markdown. `-- --rounds N` sets the number of rounds (default 9), `-- --only local|ingress|idle` picks a part.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a benchmark reads the real clock, and what it prints is its product"
)]

use std::{
    env,
    hint::black_box,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use cpu_time::ProcessTime;
use outpost::{
    Node, Sources,
    measure::{LeasedGate, Policed},
};
use outpost_tests::{
    measure::{Echo, Process, ask, connect, echo_app, load, median, runtime},
    v1::{
        Answer, Ask, RelayHandle,
        relay_client::RelayClient,
        relay_server::{Relay, RelayServer},
    },
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};

/// What every call carries.
const BYTES: usize = 100;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let value = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).cloned()
    };
    if let Some(kind) = value("--serve") {
        return serve(&kind);
    }
    let rounds = value("--rounds").map_or(9, |rounds| rounds.parse().expect("--rounds takes a number"));
    let only = value("--only");
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    println!(
        "Medians of {rounds} interleaved rounds, on {} cores.",
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    if wanted("local") {
        local(rounds);
    }
    if wanted("ingress") {
        ingress(rounds);
    }
    if wanted("idle") {
        idle(rounds);
    }
}

async fn echo_node() -> Node {
    echo_app(Echo::default()).start(&Sources::on_free_ports()).await.expect("a node")
}

/// CPU nanoseconds a call, of the whole process. Each call sends on what the one before brought back, so that what is
/// measured is the call, not the making of its message.
async fn cpu_of<F>(calls: u32, call: impl Fn(Ask) -> F) -> f64
where
    F: Future<Output = Result<Response<Answer>, Status>>,
{
    let mut ask = ask(BYTES);
    let begun = ProcessTime::now();
    for _ in 0..calls {
        ask.payload = black_box(call(std::mem::take(&mut ask)).await).expect("an answer").into_inner().payload;
    }
    begun.elapsed().as_nanos() as f64 / f64::from(calls)
}

/// A handle's call of a local module, against the plain call and against tonic on loopback.
fn local(rounds: usize) {
    let rows = [
        "plain call of the trait",
        "handle, local module",
        "stock client, in-process channel",
        "stock client and server, loopback",
    ];
    let mut cpu: [Vec<f64>; 4] = Default::default();
    runtime(1).block_on(async {
        let node = echo_node().await;
        let handle: RelayHandle = node.handle().expect("the module");
        let plain: Arc<dyn Relay> = Arc::new(Echo::default());
        let channel = RelayClient::new(node.channel());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Server::builder()
            .add_service(RelayServer::new(Echo::default()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { server.await.expect("the server runs") });
        let socket = RelayClient::new(connect(address).await);
        for round in 0..=rounds {
            let measured = [
                cpu_of(1_000_000, |ask| plain.unary(Request::new(ask))).await,
                cpu_of(1_000_000, |ask| handle.unary(ask)).await,
                cpu_of(50_000, |ask| {
                    let mut channel = channel.clone();
                    async move { channel.unary(ask).await }
                })
                .await,
                cpu_of(3_000, |ask| {
                    let mut socket = socket.clone();
                    async move { socket.unary(ask).await }
                })
                .await,
            ];
            // The first round warms up.
            if round > 0 {
                for (all, one) in cpu.iter_mut().zip(measured) {
                    all.push(one);
                }
            }
        }
    });
    let more = median(cpu[1].iter().zip(&cpu[0]).map(|(handle, plain)| handle - plain));
    let cheaper = median(cpu[3].iter().zip(&cpu[1]).map(|(socket, handle)| socket / handle));
    println!(
        "\n### A local call (unary, 100 bytes, one task)\n\n| way | CPU ns a call | ratio to the plain call |\n|---|---|---|"
    );
    let medians = cpu.map(median);
    for (row, value) in rows.iter().zip(medians) {
        println!("| {row} | {value:.0} | {:.2} |", value / medians[0]);
    }
    println!(
        "\nA handle costs {more:.0} ns more than the plain call, and is {cheaper:.0} times cheaper than loopback."
    );
    let gate = LeasedGate::open();
    let passing = median((0..rounds).map(|_| {
        const TIMES: u32 = 10_000_000;
        let before = ProcessTime::now();
        for _ in 0..TIMES {
            assert!(black_box(&gate).pass(), "the gate is open");
        }
        before.elapsed().as_nanos() as f64 / f64::from(TIMES)
    }));
    println!("Of that, {passing:.1} ns are the gate: to let a call in, to look at the lease twice, to count it out.");
    let folder = tempfile::tempdir().expect("a folder for a policy");
    let policed = Policed::by_a_file_in(folder.path()).expect("a good policy");
    let asking = median((0..rounds).map(|_| {
        const TIMES: u32 = 10_000_000;
        let before = ProcessTime::now();
        for _ in 0..TIMES {
            assert!(black_box(&policed).admits(), "it may");
        }
        before.elapsed().as_nanos() as f64 / f64::from(TIMES)
    }));
    println!("Where `callers.policy` is set, to ask it takes {asking:.1} ns more.");
}

/// A server in a process of its own, for [`ingress`]: prints its address.
fn serve(kind: &str) {
    runtime(2).block_on(async {
        match kind {
            "outpost" => {
                let node = echo_node().await;
                println!("{}", node.ingress_address());
                std::future::pending::<()>().await;
            }
            "tonic" | "tonic-keepalive" => {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                println!("{}", listener.local_addr().expect("an address"));
                let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
                // What the ingress has by default, and tonic does not.
                let keepalive = (kind == "tonic-keepalive").then_some(Duration::from_secs(10));
                let server = Server::builder()
                    .http2_keepalive_interval(keepalive)
                    .add_service(RelayServer::new(Echo::default()));
                server.serve_with_incoming(incoming).await.expect("the server runs");
            }
            other => panic!("--serve takes outpost or tonic, not {other}"),
        }
    });
}

/// Starts this program as a server.
fn served(kind: &str) -> (Process, SocketAddr) {
    let this = env::current_exe().expect("this program");
    let mut process = Process::start(Command::new(this).args(["--serve", kind]).stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().expect("it is piped")).read_line(&mut line).expect("the address");
    (process, line.trim().parse().expect("an address"))
}

const IN_FLIGHT: usize = 64;

/// Calls a server for a while; gives calls a second, and the server's CPU microseconds a call.
async fn cost(channel: &Channel, server: &Process, time: Duration) -> (f64, f64) {
    let cpu = server.cpu();
    let loaded = load(std::slice::from_ref(channel), IN_FLIGHT, BYTES, time).await;
    (loaded.rate, (server.cpu() - cpu).as_secs_f64() * 1e6 / f64::from(loaded.calls))
}

/// A request through the ingress to a local module, against a stock tonic server with the same service.
fn ingress(rounds: usize) {
    let kinds = ["tonic", "tonic-keepalive", "outpost"];
    let names = ["stock tonic", "stock tonic, probing silent clients as the ingress does", "outpost ingress"];
    let mut measured: [Vec<(f64, f64)>; 3] = Default::default();
    runtime(1).block_on(async {
        let mut servers = Vec::new();
        for (process, address) in kinds.map(served) {
            let channel = connect(address).await;
            cost(&channel, &process, Duration::from_millis(500)).await;
            servers.push((process, channel));
        }
        for round in 0..rounds {
            // Who comes first changes each round.
            for which in (0..servers.len()).map(|which| (which + round) % servers.len()) {
                let (process, channel) = &servers[which];
                measured[which].push(cost(channel, process, Duration::from_secs(2)).await);
            }
        }
    });
    let ratio = |part: fn(&(f64, f64)) -> f64, which: usize| {
        median(measured[which].iter().zip(&measured[0]).map(|(this, stock)| part(this) / part(stock)))
    };
    println!("\n### A call through the ingress (unary, 100 bytes, {IN_FLIGHT} in flight on one connection)\n");
    println!("| server | calls a second | ratio | server CPU us a call | ratio |\n|---|---|---|---|---|");
    for (which, (name, values)) in names.iter().zip(&measured).enumerate() {
        let (rate, cpu): (Vec<f64>, Vec<f64>) = values.iter().copied().unzip();
        let (more, dearer) = (ratio(|(rate, _)| *rate, which), ratio(|(_, cpu)| *cpu, which));
        println!("| {name} | {:.0} | {more:.2} | {:.1} | {dearer:.2} |", median(rate), median(cpu));
    }
}

/// How long the shop takes to start, and what it holds in memory when nobody calls.
fn idle(rounds: usize) {
    let shop = shop_binary();
    let (mut starts, mut sizes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        let mut command = Command::new(&shop);
        let listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0"];
        command.args(listen).stderr(Stdio::piped());
        let mut process = Process::start(&mut command);
        let log = BufReader::new(process.0.stderr.take().expect("it is piped"));
        // The line is written once the ingress accepts connections.
        let serving = log.lines().map_while(Result::ok).any(|line| line.contains("serving"));
        assert!(serving, "the shop ended without serving");
        starts.push(begun.elapsed().as_secs_f64() * 1e3);
        sizes.push(process.resident_kib() as f64 / 1024.0);
    }
    println!("\n### The shop, idle\n\n| start to serving, ms | resident, MiB |\n|---|---|");
    println!("| {:.0} | {:.1} |", median(starts), median(sizes));
}

fn shop_binary() -> PathBuf {
    let here = env::current_exe().expect("this program");
    let path = here.ancestors().nth(2).expect("target/release").join("shop");
    assert!(path.is_file(), "{} is not there: run `cargo build --release -p shop` first", path.display());
    path
}

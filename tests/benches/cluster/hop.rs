//! What it costs to call a module by way of a node that does not host it, against proxies in the same place.
//!
//! ```text
//! client ─┬──────────────────────────▶ host            the module's node: 1.00
//!         ├─▶ another node ──────────▶ host
//!         └─▶ nginx or haproxy ──────▶ host
//! ```

use std::time::Duration;

use outpost_tests::{
    measure::{Loaded, ask, connect, cpu_of, load, runtime},
    v1::relay_client::RelayClient,
};
use tonic::transport::Channel;

use crate::{
    Plan,
    nodes::{Nodes, is_served_by, module},
    proxies::{self, Proxy},
    report::{Cell, Report, hundredths, tenths, whole},
    rounds::{middle, progress, ratio, turns},
};

/// Bytes of a message, and calls in flight.
const LOADS: [(usize, usize); 4] = [(100, 64), (100, 1), (4096, 64), (4096, 1)];

/// A way for a call to take.
struct Way {
    name: String,
    /// What is between the client and the host.
    hop: Vec<u32>,
    channels: Vec<Channel>,
    /// Per load, the rounds.
    measured: Vec<Vec<Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    loaded: Loaded,
    /// CPU time of a call, in microseconds.
    hop: f64,
    host: f64,
}

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    report.part("hop", "a call by way of a node that does not host its module");
    runtime(1).block_on(measure(plan, report));
}

async fn measure(plan: &Plan, report: &mut Report) {
    let mut nodes = Nodes::start(1, 0, &["log.filter=info", "cluster.max_rebalancing=0"]).await;
    let threads = |count: usize| [format!("node.worker_threads={count}")];
    for count in [2, 1] {
        nodes.add(&format!("hop-{count}"), &threads(count)).await;
    }
    let on_host = |view: &_| module(view).is_some_and(|module| is_served_by(module, "node-1"));
    for (_, node) in nodes.all() {
        node.until("the module on its host", on_host).await;
    }
    let host = nodes.node("node-1");
    let mut proxies = Vec::new();
    for (name, package) in [("nginx", "nginx-light"), ("haproxy", "haproxy")] {
        let Some(program) = proxies::program(name) else {
            report.say(&format!("**{name} is not installed, so its rows are missing: `apt-get install {package}`.**"));
            continue;
        };
        for count in [1, 2] {
            let proxy = match name {
                "nginx" => proxies::nginx(&program, nodes.folder(), count, host.ingress).await,
                _ => proxies::haproxy(&program, nodes.folder(), count, host.ingress).await,
            };
            let threads = if name == "nginx" { "worker" } else { "thread" };
            proxies.push((format!("{name}, {count} {threads}{}", if count == 1 { "" } else { "s" }), proxy));
        }
    }
    let mut ways = vec![("direct to the host".to_owned(), Vec::new(), host.ingress)];
    for (count, threads) in [(1, "thread"), (2, "threads")] {
        let hop = nodes.node(&format!("hop-{count}"));
        ways.push((format!("another node, {count} {threads}"), vec![hop.pid()], hop.ingress));
    }
    let proxies = proxies.iter();
    ways.extend(proxies.map(|(name, proxy): &(String, Proxy)| (name.clone(), proxy.pids(), proxy.address)));
    let mut measured = Vec::new();
    for (name, hop, address) in ways {
        let mut channels = Vec::new();
        for _ in 0..plan.connections {
            channels.push(connect(address).await);
        }
        let answer = RelayClient::new(channels[0].clone()).unary(ask(1)).await.expect("an answer").into_inner();
        assert_eq!(answer.number, host.number(), "{name}: another node answered than the host");
        load(&channels, 64, 100, Duration::from_millis(500)).await;
        measured.push(Way { name, hop, channels, measured: vec![Vec::new(); LOADS.len()] });
    }
    for round in 0..plan.rounds {
        progress("hop", round, plan.rounds);
        for (which, (bytes, in_flight)) in LOADS.into_iter().enumerate() {
            for index in turns(measured.len(), round) {
                let way = &mut measured[index];
                let sample = sample(way, host.pid(), bytes, in_flight, plan.time).await;
                way.measured[which].push(sample);
            }
        }
    }
    for (which, load) in LOADS.into_iter().enumerate() {
        table(&measured, which, load, plan, report);
    }
}

async fn sample(way: &Way, host: u32, bytes: usize, in_flight: usize, time: Duration) -> Sample {
    let cpu = || (way.hop.iter().map(|pid| cpu_of(*pid)).sum::<Duration>(), cpu_of(host));
    let before = cpu();
    // One call at a time needs one connection.
    let channels = &way.channels[..way.channels.len().min(in_flight)];
    let loaded = load(channels, in_flight, bytes, time).await;
    let after = cpu();
    let a_call = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(loaded.calls);
    Sample { loaded, hop: a_call(after.0 - before.0), host: a_call(after.1 - before.1) }
}

/// A number of a sample.
type Part = fn(&Sample) -> f64;

fn table(ways: &[Way], which: usize, (bytes, in_flight): (usize, usize), plan: &Plan, report: &mut Report) {
    let middle = |way: &Way, part: Part| middle(&way.measured[which], part);
    let ratio = |way: &Way, to: &Way, part: Part| ratio(&way.measured[which], &to.measured[which], part);
    let (rate, p50, p99): (Part, Part, Part) =
        (|sample| sample.loaded.rate, |sample| sample.loaded.p50, |sample| sample.loaded.p99);
    let rows = ways.iter().map(|way| {
        vec![
            Cell::from(way.name.as_str()),
            whole(middle(way, rate)),
            hundredths(ratio(way, &ways[0], rate)),
            whole(middle(way, p50)),
            whole(middle(way, p99)),
            hundredths(ratio(way, &ways[0], p50)),
            (!way.hop.is_empty()).then(|| tenths(middle(way, |sample| sample.hop))).into(),
            tenths(middle(way, |sample| sample.host)),
        ]
    });
    let columns = ["way", "calls/s", "ratio", "p50 us", "p99 us", "p50 ratio", "hop CPU us/call", "host CPU us/call"];
    let connections = plan.connections.min(in_flight);
    let title = format!(
        "{bytes} bytes, {in_flight} in flight on {connections} connection{}",
        if connections == 1 { "" } else { "s" }
    );
    report.table(&title, &columns, rows.collect());

    let better = |way: &Way, other: &Way| {
        let [latency, cpu] = [p50, |sample: &Sample| sample.hop].map(|part| ratio(way, other, part));
        format!("{latency:.2} times the p50 latency and {cpu:.2} times the CPU of {}", other.name)
    };
    for way in ways.iter().filter(|way| way.name.starts_with("another node")) {
        let alike = ways.iter().filter(|other| other.name.starts_with("nginx") || other.name.starts_with("haproxy"));
        let against: Vec<String> = alike.map(|other| better(way, other)).collect();
        if !against.is_empty() {
            report.say(&format!("{}: {}.", way.name, against.join("; ")));
        }
    }
}

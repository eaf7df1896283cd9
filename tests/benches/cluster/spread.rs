//! How evenly the hosts of a replicated module are called, and how little one that is slow.
//!
//! ```text
//! stock clients ─▶ ingress of one node ─┬▶ host-1
//!                                       ├▶ host-2 (slow)
//!                                       └▶ ...
//! ```

use std::time::Duration;

use outpost_tests::measure::{connect, quantile, runtime};
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::{
    Plan,
    clients::{Call, Clients, Manner, answers, failures, shown},
    nodes::{Nodes, ready},
    report::{Cell, Report, hundredths, tenths, whole},
    rounds::{middle, progress},
};

const HOSTS: [usize; 4] = [1, 2, 4, 8];
const CLIENTS: usize = 16;
/// Until the one that is slow answers.
const DELAY: Duration = Duration::from_millis(20);
/// What is slow is found out, and connections are made.
const SETTLING: Duration = Duration::from_secs(1);

/// A round of calls.
struct Sample {
    calls: f64,
    a_second: f64,
    /// Parts of all answers, of hosts in the order of their names.
    shares: Vec<f64>,
    p50: f64,
    p99: f64,
}

impl Sample {
    fn of(calls: &[Call], hosts: &[i64], time: Duration) -> Self {
        let (answered, count) = (answers(calls), calls.len() as f64);
        let shares = hosts.iter().map(|host| answered.get(host).map_or(0.0, |calls| *calls as f64 / count)).collect();
        let at = |part| quantile(calls.iter().map(|call| (call.ended - call.sent).as_secs_f64() * 1e3), part);
        Self { calls: count, a_second: count / time.as_secs_f64(), shares, p50: at(0.5), p99: at(0.99) }
    }

    fn least(&self) -> f64 {
        self.shares.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.shares.iter().copied().fold(0.0, f64::max)
    }

    /// The standard deviation of shares, as a part of their mean.
    fn variation(&self) -> f64 {
        let hosts = self.shares.len() as f64;
        let mean = self.shares.iter().sum::<f64>() / hosts;
        let variance = self.shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / hosts;
        variance.sqrt() / mean
    }

    /// What chance alone would make of that, if each call went to any host.
    fn by_chance(&self) -> f64 {
        ((self.shares.len() as f64 - 1.0) / self.calls).sqrt()
    }
}

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    report.part("spread", "calls of a replicated module, from clients at one node");
    runtime(1).block_on(async {
        let (mut alike, mut slowed) = (Vec::new(), Vec::new());
        for hosts in HOSTS {
            let cluster = Cluster::start(hosts, None).await;
            let door = cluster.rounds(DOOR, plan).await;
            alike.push(even(hosts, "a node beside them", &door));
            if hosts > 1 {
                let host = cluster.rounds("host-1", plan).await;
                alike.push(even(hosts, "one of them", &host));
                drop(cluster);
                let cluster = Cluster::start(hosts, Some(DELAY)).await;
                slowed.push(slow(hosts, &cluster.rounds(DOOR, plan).await, &door));
            }
        }
        let columns = [
            "hosts",
            "calls come in at",
            "calls/s",
            "equal share, %",
            "least, %",
            "most, %",
            "coefficient of variation",
            "by chance",
            "share of the first, %",
        ];
        report.table(&format!("hosts alike, {CLIENTS} clients"), &columns, alike);
        let columns = [
            "hosts",
            "round robin's share, %",
            "the slow one's share, %",
            "part of that",
            "p50 ms",
            "p99 ms",
            "p50 ms, none slow",
            "p99 ms, none slow",
            "calls/s",
            "calls/s, none slow",
        ];
        let delay = DELAY.as_millis();
        report.table(&format!("one host answers after {delay} ms, {CLIENTS} clients"), &columns, slowed);
        report.say(&format!(
            "By round robin, its share would be that of the others, and the p99 with any of these numbers of hosts {delay} ms at \
             the least."
        ));
    });
}

/// The node that hosts nothing.
const DOOR: &str = "node-1";

/// A node without the module, and hosts.
struct Cluster {
    nodes: Nodes,
    /// What hosts say they are.
    hosts: Vec<i64>,
}

impl Cluster {
    /// The last host is slow by `delay`.
    async fn start(hosts: usize, delay: Option<Duration>) -> Self {
        let mut nodes = Nodes::start(1, 0, &["cluster.max_rebalancing=0", "cluster.prefer_local=false"]).await;
        let mut numbers = Vec::new();
        for number in 1..=hosts {
            let mut settings = vec!["node.labels.role=host".to_owned()];
            let delay = delay.filter(|_| number == hosts);
            settings.extend(delay.map(|delay| format!("modules.echo.delay_ms={}", delay.as_millis())));
            let name = format!("host-{number}");
            nodes.add(&name, &settings).await;
            numbers.push(nodes.node(&name).number());
        }
        nodes.node(DOOR).until("all nodes", |view| ready(view) == hosts + 1).await;
        nodes.host_where("require = { role = \"host\" }", hosts).await;
        Self { nodes, hosts: numbers }
    }

    async fn rounds(&self, at: &str, plan: &Plan) -> Vec<Sample> {
        let mut channels: Vec<Channel> = Vec::new();
        for _ in 0..plan.connections {
            channels.push(connect(self.nodes.node(at).ingress).await);
        }
        let manner = Manner { clients: CLIENTS, pause: Duration::ZERO, deadline: Duration::from_secs(10) };
        let clients = Clients::start(&channels, manner);
        sleep(SETTLING).await;
        clients.take();
        let mut samples = Vec::new();
        for round in 0..plan.rounds {
            progress(&format!("spread, {} hosts, by {at}", self.hosts.len()), round, plan.rounds);
            sleep(plan.time).await;
            let calls = clients.take();
            assert!(failures(&calls).is_empty(), "calls failed: {}", shown(&failures(&calls)));
            samples.push(Sample::of(&calls, &self.hosts, plan.time));
        }
        samples
    }
}

fn percent(part: f64) -> Cell {
    tenths(100.0 * part)
}

fn even(hosts: usize, at: &str, rounds: &[Sample]) -> Vec<Cell> {
    vec![
        whole(hosts as f64),
        Cell::from(at),
        whole(middle(rounds, |round| round.a_second)),
        percent(1.0 / hosts as f64),
        percent(middle(rounds, Sample::least)),
        percent(middle(rounds, Sample::most)),
        Cell::Number(middle(rounds, Sample::variation), 3),
        Cell::Number(middle(rounds, Sample::by_chance), 3),
        percent(middle(rounds, |round| round.shares[0])),
    ]
}

fn slow(hosts: usize, rounds: &[Sample], alike: &[Sample]) -> Vec<Cell> {
    let share = |round: &Sample| round.shares.last().copied().unwrap_or_default();
    vec![
        whole(hosts as f64),
        percent(1.0 / hosts as f64),
        hundredths(100.0 * middle(rounds, share)),
        hundredths(middle(rounds, share) * hosts as f64),
        hundredths(middle(rounds, |round| round.p50)),
        hundredths(middle(rounds, |round| round.p99)),
        hundredths(middle(alike, |round| round.p50)),
        hundredths(middle(alike, |round| round.p99)),
        whole(middle(rounds, |round| round.a_second)),
        whole(middle(alike, |round| round.a_second)),
    ]
}

//! What clients notice of a rolling restart of all nodes, and how soon new nodes are used.
//!
//! Clients are behind what Kubernetes calls a Service: each new connection goes to a node that is ready, and one that is told
//! to stop is none any more. They are stock tonic clients, call at a fixed rate, and a call that is late counts from when it was
//! due.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use outpost_tests::{
    measure::{ask, quantile, runtime},
    v1::relay_client::RelayClient,
};
use rustix::process::Signal;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tonic::{
    Request,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    Plan,
    clients::{Call, failures, kind, median_ms, shown},
    nodes::{Node, Nodes, ready},
    report::{Cell, Report, hundredths, tenths, whole},
};

/// Of the cluster that is restarted.
const NODES: usize = 5;
/// Together.
const CALLS_A_SECOND: u32 = 2000;
const CLIENTS: u32 = 16;
/// How long is called before and after, to compare with.
const STEADY: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    report.part("rollout", "all nodes are restarted one after the other, and three join three, under load");
    runtime(2).block_on(async {
        for everywhere in [false, true] {
            restart(everywhere, report).await;
        }
        scale(plan, report).await;
    });
}

/// The addresses of nodes that are ready.
#[derive(Debug, Clone, Default)]
struct Service {
    ready: Arc<Mutex<Vec<SocketAddr>>>,
    turn: Arc<AtomicUsize>,
}

impl Service {
    fn add(&self, node: &Node) {
        self.lock().push(node.ingress);
    }

    fn remove(&self, node: &Node) {
        self.lock().retain(|address| *address != node.ingress);
    }

    /// To whom the next connection goes.
    fn next(&self) -> Option<SocketAddr> {
        let ready = self.lock();
        ready.get(self.turn.fetch_add(1, Ordering::Relaxed) % ready.len().max(1)).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self) -> Channel {
        let service = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let address = service.next();
            async move {
                let address = address.ok_or_else(|| std::io::Error::other("no node is ready"))?;
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://service").connect_with_connector_lazy(connector)
    }
}

/// Clients that call at their rate, whatever becomes of the calls.
struct Load {
    calls: Arc<Mutex<Vec<Call>>>,
    _tasks: JoinSet<()>,
}

impl Load {
    fn start(service: &Service) -> Self {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let period = Duration::from_secs(1) * CLIENTS / CALLS_A_SECOND;
        let began = Instant::now();
        for client in 0..CLIENTS {
            let (service, calls) = (service.clone(), Arc::clone(&calls));
            tasks.spawn(async move {
                let relay = RelayClient::new(service.channel());
                let mut ticks = interval_at(began + period * client / CLIENTS, period);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut calling = JoinSet::new();
                loop {
                    let sent = ticks.tick().await;
                    let (mut relay, calls) = (relay.clone(), Arc::clone(&calls));
                    calling.spawn(async move {
                        let mut request = Request::new(ask(100));
                        request.set_timeout(DEADLINE);
                        let answer = relay.unary(request).await.map(|answer| answer.into_inner().number);
                        let ended = Instant::now();
                        let answer = answer.map_err(|status| kind(&status));
                        let call = Call { client: client as usize, sent, ended, answer };
                        calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
                    });
                    while calling.try_join_next().is_some() {}
                }
            });
        }
        Self { calls, _tasks: tasks }
    }

    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was called for so long.
    async fn steady(&self) -> Vec<Call> {
        self.take();
        sleep(STEADY).await;
        self.take()
    }
}

/// The time that calls took, in milliseconds, at a quantile.
fn at(calls: &[Call], quantile_of: f64) -> f64 {
    quantile(calls.iter().map(|call| (call.ended - call.sent).as_secs_f64() * 1e3), quantile_of)
}

fn data(nodes: &Nodes, name: &str) -> Vec<String> {
    vec![format!("node.data_dir={}", nodes.folder().join(name).display())]
}

async fn restart(everywhere: bool, report: &mut Report) {
    let mut nodes = Nodes::start(NODES, NODES, &[]).await;
    if everywhere {
        nodes.host_everywhere().await;
    }
    let service = Service::default();
    nodes.all().for_each(|(_, node)| service.add(node));
    let load = Load::start(&service);
    let before = load.steady().await;
    let (began, mut served) = (Instant::now(), Vec::new());
    // As a StatefulSet does: the last first, and the next one when all are ready.
    for number in (1..=NODES).rev() {
        let name = format!("node-{number}");
        let node = nodes.take(&name);
        service.remove(&node);
        node.signal(Signal::TERM);
        let status = node.ended().await;
        assert!(status.success(), "{name}: {status}");
        let own = data(&nodes, &name);
        nodes.add(&name, &own).await;
        let node = nodes.node(&name);
        served.push(node.took);
        service.add(node);
        let whole = |view: &_| ready(view) == NODES;
        node.until("all nodes", whole).await;
        if everywhere {
            nodes.all_host().await;
        }
    }
    let (took, during) = (began.elapsed(), load.take());
    let after = load.steady().await;
    let rows = [("before", &before), ("meanwhile", &during), ("after", &after)].map(|(when, calls)| {
        vec![
            Cell::from(when),
            whole(calls.len() as f64),
            tenths(at(calls, 0.5)),
            tenths(at(calls, 0.99)),
            tenths(at(calls, 0.999)),
            hundredths(at(calls, 0.99) / at(&before, 0.99)),
            Cell::from(shown(&failures(calls))),
        ]
    });
    let module = if everywhere { "on every node" } else { "on one node" };
    report.table(
        &format!(
            "{NODES} nodes restarted in {:.1} s at {CALLS_A_SECOND} calls a second; the module {module}",
            took.as_secs_f64()
        ),
        &["when", "calls", "p50 ms", "p99 ms", "p99.9 ms", "p99 to before", "failed"],
        rows.to_vec(),
    );
    report.say(&format!(
        "A node serves {:.0} ms after the start of its process (median), the slowest {:.0} ms.",
        median_ms(&served),
        served.iter().map(Duration::as_secs_f64).fold(0.0, f64::max) * 1e3
    ));
}

/// From three nodes to six.
async fn scale(plan: &Plan, report: &mut Report) {
    let mut called = Vec::new();
    let mut failed = Vec::new();
    for _ in 0..plan.rounds {
        let nodes = Nodes::start(3, 0, &[]).await;
        nodes.host_everywhere().await;
        let service = Service::default();
        nodes.all().for_each(|(_, node)| service.add(node));
        let load = Load::start(&service);
        load.steady().await;
        let began = Instant::now();
        let begin = async |name: &str| {
            let node = nodes.begin(name, &[]).await;
            service.add(&node);
            node
        };
        let (four, five, six) = tokio::join!(begin("node-4"), begin("node-5"), begin("node-6"));
        // Clients keep their connections: new ones are other clients'.
        let more = Load::start(&service);
        let mut calls = Vec::new();
        for node in [&four, &five, &six] {
            while !calls.iter().any(|call: &Call| call.answer == Ok(node.number())) {
                assert!(began.elapsed() < LIMIT, "a node was not called");
                sleep(Duration::from_millis(5)).await;
                calls.append(&mut more.take());
                calls.append(&mut load.take());
            }
        }
        called.push(began.elapsed());
        failed.extend(calls.into_iter().filter(|call| call.answer.is_err()));
    }
    report.say(&format!(
        "From three nodes to six, {} times: the last of the three new ones has answered a call {:.0} ms after their start \
         (median); failed meanwhile: {}.",
        plan.rounds,
        median_ms(&called),
        shown(&failures(&failed))
    ));
}

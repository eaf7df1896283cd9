//! What a node tells Prometheus of itself: `GET /metrics`, where `metrics.listen` is set.
//!
//! ```text
//! counted where it happens (gates, links, policy, log) ─┐
//! known anyhow (leases, gossip, placement, files) ──────┴─▶ read when asked ─▶ prometheus-client ─▶ OpenMetrics
//! ```
//!
//! Nothing runs for it, and nothing is counted for it that could be read: between two questions it costs nothing. A page costs a
//! plan of the placement, as `outpost status` does, so one is made at a time, and is given to all who ask within a second.
//! Every metric is in `docs/metrics.md`, and a test compares the two.
//!
//! **Invariant:** a label is a word of ours, a name of the program's or a node's name. What a caller says is none, or callers
//! could fill the memory of who asks.

mod page;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use outpost_proto::admin::v1 as admin;
use page::{About, Page};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, prometheus_text, text},
    registry::{Registry, Unit},
};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    admin::seen,
    call::{
        counts::{CODES, Codes, Counts, Durations, Endings},
        gate::LeaseEnd,
        link::{Connections, Link, Links},
        slot::ModuleFacts,
    },
    clock,
    cluster::View,
    http1::{self, Answer},
    id::{ModuleName, Timestamp},
    membership::{Hosted, Instance},
    net::TcpListener,
    node::Facts,
    placement::log::Role,
    trust::{Acceptor, Follows, Seal, Shown, Trust, callers::CallPolicy, sealed::Datagrams},
};

/// What is read; see the module.
pub(crate) struct Telemetry {
    started: Timestamp,
    facts: Arc<Facts>,
    callers: CallPolicy,
    trust: Trust,
    seal: Option<Seal>,
    followed: Vec<Arc<dyn Follows>>,
    /// Of the ingress.
    tls: Option<Acceptor>,
    joined: OnceLock<Joined>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("joined", &self.joined).finish_non_exhaustive()
    }
}

/// What there is once the node has joined its cluster.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) view: View,
    pub(crate) lease: Arc<LeaseEnd>,
    pub(crate) links: Arc<Links>,
    pub(crate) pauses: Arc<Durations>,
}

/// The two text formats of Prometheus: the standard, for who asks for it; and the one that everything reads.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long it may take to ask for a page, and to get it: from far away, and of a large cluster.
const LIMIT: Duration = Duration::from_secs(10);
/// For how long a page is given again.
const FRESH: Duration = Duration::from_secs(1);

/// The last page of each format, and when it was made. Whoever asks while one is made waits for it.
#[derive(Debug, Default)]
struct Pages(Mutex<BTreeMap<&'static str, (Instant, Bytes)>>);

impl Pages {
    async fn get(
        &self,
        content_type: &'static str,
        write: impl FnOnce(&mut String) -> fmt::Result,
    ) -> Result<(&'static str, Bytes), fmt::Error> {
        let mut last = self.0.lock().await;
        let page = match last.get(content_type) {
            Some((made, page)) if made.elapsed() < FRESH => page.clone(),
            _ => {
                let mut page = String::new();
                write(&mut page)?;
                let page = Bytes::from(page);
                last.insert(content_type, (Instant::now(), page.clone()));
                page
            }
        };
        Ok((content_type, page))
    }
}

/// Answers until it is dropped.
pub(crate) async fn serve(listener: TcpListener, telemetry: Arc<Telemetry>) {
    let mut registry = Registry::with_prefix("outpost");
    registry.register_collector(Box::new(telemetry));
    let served = Arc::new((registry, Pages::default()));
    let answer = move |asked| {
        let served = Arc::clone(&served);
        async move { answer(&asked, &served.0, &served.1).await }
    };
    http1::serve(listener, "metrics.listen", LIMIT, answer).await;
}

async fn answer(asked: &Parts, registry: &Registry, pages: &Pages) -> Answer {
    match (&asked.method, asked.uri.path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let accepted = asked.headers.get(header::ACCEPT).map(HeaderValue::as_bytes).unwrap_or_default();
            let page = match String::from_utf8_lossy(accepted).contains("application/openmetrics-text") {
                true => pages.get(OPENMETRICS, |page| text::encode(page, registry)).await,
                false => pages.get(PLAIN, |page| prometheus_text::encode(page, registry)).await,
            };
            match page {
                Ok((content_type, text)) => Answer { status: StatusCode::OK, content_type, text },
                Err(fmt::Error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be written\n"),
            }
        }
        (_, "/metrics") => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "ask by GET\n"),
        _ => Answer::text(StatusCode::NOT_FOUND, "there is /metrics\n"),
    }
}

impl Telemetry {
    /// `followed` is what follows files, `tls` what clients are shown.
    pub(crate) fn new(
        facts: Arc<Facts>,
        callers: CallPolicy,
        (trust, seal, followed): (Trust, Option<Seal>, Vec<Arc<dyn Follows>>),
        tls: Option<Acceptor>,
    ) -> Self {
        Self { started: clock::wall(), facts, callers, trust, seal, followed, tls, joined: OnceLock::new() }
    }

    /// The node has joined.
    pub(crate) fn joined(&self, joined: Joined) {
        self.joined.set(joined).ok();
    }

    fn node(&self, page: &mut Page<'_>) -> fmt::Result {
        let node = self.facts.describe().node.unwrap_or_default();
        let outpost = env!("CARGO_PKG_VERSION");
        page.info(
            About("build", "The program of this node, and the version of Outpost in it."),
            [[("application", &*node.application), ("version", &*node.version), ("outpost", outpost)]],
        )?;
        page.gauge_in(
            Unit::Seconds,
            About("start_time", "When this node started, since 1970."),
            [([], seconds(self.started))],
        )?;
        let about = About("joined", "Whether this node has joined its cluster since it started.");
        page.gauge(about, [([], u64::from(self.joined.get().is_some()))])?;
        let about = About("ingress_connections", "Open connections of clients.");
        page.gauge(about, [([], node.connections)])?;
        let about = About("ingress_calls_in_flight", "Calls of clients that have not ended.");
        page.gauge(about, [([], node.calls_in_flight)])
    }

    fn calls(&self, page: &mut Page<'_>) -> fmt::Result {
        let modules: Vec<&ModuleFacts> = self.facts.modules().collect();
        let admitted: Vec<_> = modules.iter().map(|module| (module.name.as_str(), module.counts.admitted())).collect();
        page.counter(
            About("module_calls", "Calls that instances on this node have admitted, and that have ended."),
            admitted.iter().flat_map(|(module, (ended, _))| {
                let origins = ["module", "client", "node"].into_iter().zip(*ended);
                origins.map(|(origin, ended)| ([("module", *module), ("from", origin)], ended))
            }),
        )?;
        page.counter(
            About("module_call_errors", "Of those calls, the ones that did not end with OK."),
            modules.iter().flat_map(|module| errors(&module.name, &module.counts)),
        )?;
        page.gauge(
            About("module_calls_in_flight", "Calls that are inside an instance on this node."),
            admitted.iter().map(|(module, (_, inside))| ([("module", *module)], *inside)),
        )?;
        page.counter(
            About("module_panics", "Calls that panicked in an instance on this node."),
            modules.iter().map(|module| (of(&module.name), module.panics.load(Ordering::Relaxed))),
        )?;
        page.gauge(
            About("module_calls_waiting", "Calls that wait on this node for the module to be somewhere."),
            modules.iter().map(|module| (of(&module.name), module.waiting())),
        )?;
        page.counter(
            About("module_calls_waited", "Calls that have waited on this node for the module to be somewhere."),
            modules.iter().map(|module| (of(&module.name), module.counts.waited.load(Ordering::Relaxed))),
        )?;
        fn endings<'a>(
            page: &mut Page<'_>,
            modules: &[&'a ModuleFacts],
            (calls, durations): (About, About),
            of_module: fn(&ModuleFacts) -> &Endings,
        ) -> fmt::Result {
            page.counter(calls, modules.iter().flat_map(|module| by_code(&module.name, &of_module(module).codes)))?;
            // One that nothing was counted in would be twenty lines of nothing.
            let used = modules.iter().map(|module| (of(&module.name), &of_module(module).durations));
            page.durations(durations, used.filter(|(_, durations)| !durations.is_empty()))
        }
        endings(
            page,
            &modules,
            (
                About("ingress_calls", "Calls of clients that have ended, wherever the module is."),
                About("ingress_call_duration", "How long unary calls of clients took."),
            ),
            |module| &module.counts.ingress,
        )?;
        endings(
            page,
            &modules,
            (
                About("remote_calls", "Calls that this node made at, or passed on to, other nodes."),
                About("remote_call_duration", "How long unary calls took that other nodes answered."),
            ),
            |module| &module.counts.remote,
        )
    }

    fn policy(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counter(
            About("policy_refused_calls", "Calls that were refused for who made them."),
            self.callers.counts().map(|(reason, refused, _)| ([("reason", reason)], refused)),
        )?;
        page.counter(
            About("policy_audited_calls", "Calls that were served, and would be refused without audit mode."),
            self.callers.counts().map(|(reason, _, audited)| ([("reason", reason)], audited)),
        )
    }

    fn trust(&self, page: &mut Page<'_>) -> fmt::Result {
        let shown = Shown::of(&self.trust, self.seal.as_ref(), &self.followed);
        let of_node = (shown.expires != Timestamp(0)).then(|| ("node", seconds(shown.expires)));
        let of_ingress =
            self.tls.as_ref().and_then(Acceptor::expires).map(|expires| ("ingress", expires.as_secs_f64()));
        page.gauge_in(
            Unit::Seconds,
            About("certificate_expiry_timestamp", "When a certificate in force expires, since 1970."),
            of_node.into_iter().chain(of_ingress).map(|(whose, expires)| ([("certificate", whose)], expires)),
        )?;
        page.gauge_in(
            Unit::Seconds,
            About(
                "certificate_renewal_timestamp",
                "From when on a certificate in force should be replaced, since 1970.",
            ),
            (shown.expires != Timestamp(0)).then(|| ([("certificate", "node")], seconds(shown.renew))),
        )?;
        let unusable = self.followed.iter().filter(|files| files.fault().is_some()).count();
        page.gauge(
            About("trust_files_unusable", "Files that have changed and can't be used: what was in force stays."),
            (!self.followed.is_empty()).then_some(([], unusable)),
        )?;
        let keys = shown.keys.iter().enumerate();
        let keys = keys.map(|(at, id)| [("id", id.as_str()), ("use", if at == 0 { "seal" } else { "open" })]);
        page.info(About("gossip_key", "The keys of gossip; one of them seals, all of them open."), keys)?;
        let Some(Datagrams { sent, received, .. }) = self.seal.as_ref().map(|seal| &*seal.datagrams) else {
            return Ok(());
        };
        let about = About("gossip_sent_datagrams", "Datagrams of gossip that were sent.");
        page.counter(about, [([], sent.load(Ordering::Relaxed))])?;
        let about = About("gossip_received_datagrams", "Datagrams that came to the address of gossip.");
        page.counter(about, [([], received.load(Ordering::Relaxed))])?;
        let dropped = |why| self.seal.as_ref().map_or(0, |seal| seal.datagrams.dropped(why));
        page.counter(
            About("gossip_dropped_datagrams", "Of those, the ones that were dropped."),
            Datagrams::REASONS.map(|(why, reason)| ([("reason", reason)], dropped(why))),
        )
    }
}

impl Joined {
    fn placement(&self, page: &mut Page<'_>) -> fmt::Result {
        let cluster = seen(&self.view);
        let role = self.view.log.leadership().borrow().role;
        let flag = |page: &mut Page<'_>, about, is: bool| page.gauge(about, [([], u64::from(is))]);
        flag(page, About("placement_leader", "Whether this node leads the placement log."), role == Role::Leader)?;
        let votes = matches!(role, Role::Leader | Role::Voter);
        flag(page, About("placement_voter", "Whether this node votes on the placement log."), votes)?;
        let about = About("placement_has_leader", "Whether this node knows who leads the placement log.");
        flag(page, about, !cluster.leader.is_empty())?;
        let voters: BTreeMap<&str, usize> = count(cluster.voters.iter().map(|voter| &*voter.state));
        page.gauge(
            About("placement_voters", "Nodes that vote on the placement log, as this node sees them."),
            ["leader", "follower", "unreachable"]
                .map(|state| ([("state", state)], voters.get(state).copied().unwrap_or(0))),
        )?;
        page.gauge(About("placement_term", "The term of the placement log."), [([], cluster.term)])?;
        let about = About("placement_applied_index", "The last entry of the placement log that this node has applied.");
        page.gauge(about, [([], cluster.index)])?;
        page.gauge(About("placement_version", "The version of the placement in force."), [([], cluster.placement)])?;
        page.counter(
            About("placement_changes", "Changes of a module's record that this node proposed, and that were made."),
            self.view.log.changes().map(|(change, count)| ([("change", change)], count)),
        )?;
        let about = About("lease_held", "Whether this node may serve modules that one node hosts at a time.");
        flag(page, about, self.lease.holds_now())?;
        let modules: BTreeMap<&str, usize> = count(cluster.modules.iter().map(|module| &*module.state));
        page.gauge(
            About("cluster_modules", "Modules of the cluster, as this node sees them."),
            ["serving", "starting", "moving", "degraded", "unplaced"]
                .map(|state| ([("state", state)], modules.get(state).copied().unwrap_or(0))),
        )?;
        let nodes: BTreeMap<&str, usize> = count(cluster.nodes.iter().map(|node| &*node.state));
        page.gauge(
            About("cluster_nodes", "Nodes of the cluster, as this node sees them."),
            ["joining", "ready", "draining", "leaving", "left", "dead"]
                .map(|state| ([("state", state)], nodes.get(state).copied().unwrap_or(0))),
        )?;
        self.moves(page, &cluster)
    }

    fn moves(&self, page: &mut Page<'_>, cluster: &admin::Cluster) -> fmt::Result {
        let phases: BTreeMap<&str, usize> =
            count(cluster.modules.iter().filter_map(|module| module.movement.as_ref()).map(|moving| &*moving.phase));
        page.gauge(
            About("cluster_moves", "Moves of modules that are under way, as this node sees them."),
            ["starting", "copying", "draining", "sealed", "activating"]
                .map(|phase| ([("phase", phase)], phases.get(phase).copied().unwrap_or(0))),
        )?;
        page.durations(
            About(
                "move_pause_duration",
                "For how long the gates of modules were closed that moved away from this node.",
            ),
            [([], &*self.pauses)],
        )
    }

    fn links(&self, page: &mut Page<'_>) -> fmt::Result {
        let links = self.links.all();
        let node = |link: &'_ Arc<Link>| link.node.to_string();
        let names: Vec<String> = links.iter().map(node).collect();
        let peers = || names.iter().map(String::as_str).zip(&links);
        page.gauge(
            About("link_calls_in_flight", "Calls that are under way to another node."),
            peers().map(|(peer, link)| ([("peer", peer)], link.in_flight())),
        )?;
        let connections = || {
            peers().flat_map(|(peer, link)| {
                link.connections().map(|(kind, connection)| ([("peer", peer), ("connection", kind)], connection))
            })
        };
        page.gauge(
            About("link_up", "Whether a connection to another node is there."),
            connections().map(|(labels, connection)| (labels, u64::from(connection.up))),
        )?;
        let counted = |count: fn(&Connections) -> u64| connections().map(move |(labels, of)| (labels, count(&of)));
        let about = About("link_connects", "How often a connection to another node was made.");
        page.counter(about, counted(|connection| connection.made))?;
        let about = About("link_connect_failures", "How often a connection to another node could not be made.");
        page.counter(about, counted(|connection| connection.failed))
    }
}

/// What runs here of each module.
fn hosted(page: &mut Page<'_>, hosting: &BTreeMap<ModuleName, Hosted>) -> fmt::Result {
    page.gauge(
        About("module_instance", "1 for an instance that this node has, by its state."),
        hosting.iter().map(|(module, hosted)| {
            let state = match hosted.state {
                Instance::Starting => "starting",
                Instance::Ready => "ready",
                Instance::Serving => "serving",
                Instance::Draining => "draining",
                Instance::Failed => "failed",
            };
            ([("module", module.as_str()), ("state", state)], 1_u64)
        }),
    )?;
    page.gauge(
        About("module_epoch", "The epoch that an instance on this node serves at."),
        hosting.iter().filter(|(_, hosted)| hosted.epoch.0 > 0).map(|(module, hosted)| (of(module), hosted.epoch.0)),
    )?;
    page.gauge_in(
        Unit::Bytes,
        About(
            "module_state_taken",
            "How much state an instance on this node has taken over, in the move that made it.",
        ),
        hosting.iter().filter(|(_, hosted)| hosted.bytes > 0).map(|(module, hosted)| (of(module), hosted.bytes)),
    )
}

fn of(module: &ModuleName) -> page::Labels<'_, 1> {
    [("module", module.as_str())]
}

/// The codes that were counted. (There are seventeen, of which a module knows a few.)
fn by_code<'a>(module: &'a ModuleName, codes: &Codes) -> impl Iterator<Item = (page::Labels<'a, 2>, u64)> + use<'a> {
    let counted = NAMES.into_iter().zip(codes.counts()).filter(|(_, count)| *count > 0);
    counted.map(|(code, count)| ([("module", module.as_str()), ("code", code)], count))
}

/// The codes that say that something is wrong with the server: those that the chart's alerts are on.
const FAULTS: [&str; 5] = ["UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// The codes of errors that were counted; and those of [`FAULTS`] from 0 on, or nobody could tell how fast the first ones came.
fn errors<'a>(module: &'a ModuleName, counts: &Counts) -> impl Iterator<Item = (page::Labels<'a, 2>, u64)> + use<'a> {
    let any = counts.any();
    let codes = NAMES.into_iter().zip(counts.errors.counts());
    let told = codes.filter(move |(code, count)| *count > 0 || any && FAULTS.contains(code));
    told.map(|(code, count)| ([("module", module.as_str()), ("code", code)], count))
}

/// As gRPC calls its codes.
const NAMES: [&str; CODES] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn count<'a>(words: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    counts
}

fn seconds(at: Timestamp) -> f64 {
    Duration::from_millis(at.0).as_secs_f64()
}

impl Collector for Telemetry {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        self.node(&mut page)?;
        self.calls(&mut page)?;
        self.policy(&mut page)?;
        self.trust(&mut page)?;
        hosted(&mut page, &self.facts.hosting())?;
        match self.joined.get() {
            None => Ok(()),
            Some(joined) => {
                joined.placement(&mut page)?;
                joined.links(&mut page)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fmt::Write as _};

    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_within_a_second_get_one_page() {
        let (pages, made) = (Pages::default(), Cell::new(0));
        let get = async |format| {
            let page = pages.get(format, |page| {
                made.set(made.get() + 1);
                write!(page, "{}", made.get())
            });
            page.await.map(|(_, page)| page)
        };
        let (first, second) = tokio::join!(get(PLAIN), get(PLAIN));
        assert_eq!((first, second), (Ok("1".into()), Ok("1".into())));
        sleep(FRESH / 2).await;
        assert_eq!(get(PLAIN).await, Ok("1".into()));
        assert_eq!(get(OPENMETRICS).await, Ok("2".into()), "another format is another page");
        advance(FRESH / 2).await;
        assert_eq!(get(PLAIN).await, Ok("3".into()));
        assert_eq!(get(OPENMETRICS).await, Ok("2".into()));
        assert!(pages.get("text/broken", |_| Err(fmt::Error)).await.is_err());
        assert_eq!(get(PLAIN).await, Ok("3".into()), "who could not be answered is in nobody's way");
    }
}

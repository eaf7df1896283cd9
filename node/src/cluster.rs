//! A node's part in its cluster: identity, gossip, the placement log, the lease, and the listener for other nodes.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use outpost_proto::cluster::v1::{handoff_server::HandoffServer, link_server::LinkServer};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::server::NamedService;

use crate::{
    call::{Tonic, gate::LeaseEnd, slot::Slot, table::Table},
    clock,
    config::{IncompatibleVersions, Settings},
    disk,
    handoff::transfer::{Offers, Source},
    id::{Incarnation, ModuleName, NodeId},
    ingress::{Front, Server, carried::Carried},
    membership::{Identity, Lifecycle, Load, Member, Members, Membership, Options, Seeds},
    net::TcpListener,
    placement::{
        interface::Interface,
        leader::{self, Leader},
        lease,
        log::{self, Log},
        scheduler::Limits,
        spec::StateClass,
        state::{Command, Declared, Node as Record, Proposal, Refused, State},
        versions::Versions,
        view::Heard,
        watchdog::{self, Heart},
    },
    status::StartError,
    trust::{Acceptor, Follows, Seal, Shown, Trust},
};

/// How long the last words of a node may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often a node that waits for a cluster says so.
const NEWS: Duration = Duration::from_secs(10);
/// How often a node says how busy it is.
const LOAD: Duration = Duration::from_secs(1);

/// Why a node can't be part of its cluster any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Another process has this node's name, and is newer.
    #[error(
        "another process has started as node `{node}` (generation {generation}), and takes its place; if that was a \
             mistake, give each node a `node.name` of its own"
    )]
    Superseded {
        /// The name of both.
        node: NodeId,
        /// The newer one's generation.
        generation: u64,
    },
    /// Gossip has ended.
    #[error("gossip has ended: {0}")]
    Gossip(String),
    /// The placement log has ended.
    #[error("the placement log has ended: {0}")]
    Log(String),
}

/// What a node joins with.
pub(crate) struct Joining<'a> {
    pub(crate) application: &'a str,
    pub(crate) version: &'a str,
    pub(crate) declared: BTreeMap<ModuleName, Declared>,
    /// What those look like, by digest.
    pub(crate) interfaces: BTreeMap<String, Interface>,
    /// The cluster's name.
    pub(crate) cluster: &'a str,
    pub(crate) settings: &'a Settings,
    pub(crate) trust: Trust,
    pub(crate) seal: Option<Seal>,
    /// What follows files, of this and of other parts of the node.
    pub(crate) followed: Vec<Arc<dyn Follows>>,
    /// For other nodes.
    pub(crate) listener: TcpListener,
    pub(crate) table: Arc<Table>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    me: Incarnation,
    address: SocketAddr,
    membership: Membership,
    log: Log,
    lease: watch::Receiver<Option<u64>>,
    lease_end: Arc<LeaseEnd>,
    offers: Arc<Offers>,
    settled: watch::Receiver<Option<u64>>,
    superseded: watch::Receiver<Option<u64>>,
    limits: Limits,
    versions: Arc<Versions>,
    server: Server,
    trust: Trust,
    seal: Option<Seal>,
    followed: Vec<Arc<dyn Follows>>,
    /// Of the listener for other nodes.
    front: Front,
    joined_at: u64,
    /// It was told to end.
    going: CancellationToken,
    ended: CancellationToken,
    _tasks: JoinSet<()>,
}

/// What the operator's API answers from.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) me: NodeId,
    pub(crate) log: Log,
    pub(crate) members: watch::Receiver<Arc<Members>>,
    pub(crate) limits: Limits,
    pub(crate) versions: Arc<Versions>,
}

impl View {
    /// What leases say, as far as this node knows: only the leader does.
    pub(crate) fn heard(&self, state: &State) -> Heard {
        leader::heard(&self.log, state)
    }
}

/// What a node that serves tells the others of itself.
pub(crate) struct Serving {
    /// And whether it speaks TLS.
    pub(crate) ingress: (SocketAddr, bool),
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) calls: TaskTracker,
    pub(crate) connections: Arc<AtomicUsize>,
}

fn cluster_error(error: impl fmt::Display) -> StartError {
    StartError::Cluster(error.to_string())
}

impl Cluster {
    /// Joins a cluster, or founds one, and registers this node.
    ///
    /// # Errors
    /// A data directory that can't be used, an address that can't be, a cluster that refuses the node.
    /// # Cancel safety
    /// Dropping the future leaves the cluster, as a crash would.
    pub(crate) async fn join(joining: Joining<'_>) -> Result<Self, StartError> {
        let Joining {
            application,
            version,
            declared,
            interfaces,
            cluster: name,
            settings,
            trust,
            seal,
            followed,
            listener,
            table,
        } = joining;
        let (node, cluster) = (&settings.node, &settings.cluster);
        let data_dir = node.data_dir.clone();
        let identity = disk::blocking(move || Identity::load(data_dir.as_deref(), clock::wall()))
            .await
            .map_err(cluster_error)?
            .map_err(cluster_error)?;
        let me = Incarnation { node: node.name.clone(), generation: identity.generation };
        let listen = listener.local_addr().map_err(cluster_error)?;
        let address = cluster.advertise.map_or(listen, |advertise| advertise.address());

        let seeds = Seeds::new(cluster.seeds.clone(), cluster.seeds_file.clone(), vec![listen, address]);
        let own = Member {
            application: application.to_owned(),
            version: version.to_owned(),
            raft_id: identity.raft_id,
            persistent: identity.persistent,
            labels: node.labels.clone(),
            trust: Shown::of(&trust, seal.as_ref(), &followed),
            ..Member::new(identity.generation, address)
        };
        let options = Options {
            node: node.name.clone(),
            cluster: name.to_owned(),
            listen,
            seeds,
            seal: seal.clone(),
            interval: cluster.gossip_interval.get(),
            phi: cluster.gossip_phi,
            own,
        };
        let membership = Membership::start(options).await.map_err(cluster_error)?;
        let mut tasks = JoinSet::new();
        let record = Record {
            generation: identity.generation,
            marker: identity.marker.clone(),
            marker_since: 0,
            raft_id: identity.raft_id,
            persistent: identity.persistent,
            lease_ms: u64::try_from(cluster.lease.get().as_millis()).unwrap_or(u64::MAX),
            labels: node.labels.clone(),
            application: application.to_owned(),
            version: version.to_owned(),
            version_since: 0,
            modules: declared,
            cordoned: false,
            draining: false,
            left: false,
        };
        let log = Log::open(log::Options {
            identity,
            node: node.name.clone(),
            cluster_name: name.to_owned(),
            data_dir: node.data_dir.clone(),
            members: membership.members(),
            trust: trust.clone(),
            seeds: membership.seeds(),
            initial_voters: cluster.initial_voters.clone(),
            max_voters: cluster.max_voters,
            timing: log::Timing { lease: cluster.lease.get(), ..log::Timing::default() },
        })
        .await
        .map_err(cluster_error)?;

        let (consensus, placement) = log.services();
        let offers = Arc::new(Offers::default());
        let handoff = HandoffServer::new(Source::new(Arc::clone(&offers), log.cluster()));
        let built_in = [built_in(consensus), built_in(placement), built_in(handoff)];
        // The node's own first: no module can stand in for them.
        let slots = table.slots().filter(|slot| !slot.is_built_in()).cloned();
        let front = Front::for_nodes(Arc::new(Table::new(slots.chain(built_in))));
        let table = front.table().slots().cloned();
        let carried = self::built_in(LinkServer::new(Carried::new(front.clone())));
        let front = front.with(Arc::new(Table::new(table.chain([carried]))));
        let acceptor = Acceptor::for_nodes(&trust);
        let server = Server::start(listener, acceptor, front.clone(), &settings.for_nodes());

        let limits = Limits { max_rebalancing: cluster.max_rebalancing, max_moves: cluster.max_moves };
        let versions = Arc::new(Versions::default());
        let (settled_tx, settled) = watch::channel(None);
        let leader = Leader {
            me: node.name.clone(),
            log: log.clone(),
            members: membership.members(),
            limits,
            versions: Arc::clone(&versions),
            initial: cluster.initial_voters.clone(),
            move_timeout: cluster.move_timeout.get(),
            settled: settled_tx,
        };
        tasks.spawn(leader.run());
        let id = joined(&log).await?;
        if let Err(error) = membership.set_cluster(&id) {
            tracing::warn!(%error, "others are not told which cluster this node is of");
        }

        let incompatible = cluster.incompatible_versions;
        let joined_at = Newcomer { me: &me, record, interfaces, incompatible }.register(&log, &versions).await?;

        let (held_tx, lease) = watch::channel(None);
        let (superseded_tx, superseded) = watch::channel(None);
        let lease_end = Arc::new(LeaseEnd::default());
        let heart = Arc::new(Heart::default());
        let stuck = cluster.abort_when_stuck.then(|| cluster.lease.get() * 6 / 8);
        watchdog::watch(&lease_end, &heart, stuck).map_err(cluster_error)?;
        tasks.spawn(heart.beat());
        let (kept, term, end) = (log.clone(), cluster.lease.get(), Arc::clone(&lease_end));
        tasks.spawn(async move {
            let generation = lease::keep(kept, term, held_tx, end).await;
            superseded_tx.send_replace(Some(generation));
            // Whoever waits for it should get it, and not the end of the task.
            std::future::pending::<()>().await;
        });
        Ok(Self {
            me,
            address,
            membership,
            log,
            lease,
            lease_end,
            offers,
            settled,
            superseded,
            limits,
            versions,
            server,
            trust,
            seal,
            followed,
            front,
            joined_at,
            going: CancellationToken::new(),
            ended: CancellationToken::new(),
            _tasks: tasks,
        })
    }

    pub(crate) fn me(&self) -> &Incarnation {
        &self.me
    }

    /// Where other nodes connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// The term of the lease under which exclusive parts may be served here, if they may.
    pub(crate) fn lease(&self) -> watch::Receiver<Option<u64>> {
        self.lease.clone()
    }

    /// The same, for gates.
    pub(crate) fn lease_end(&self) -> Arc<LeaseEnd> {
        Arc::clone(&self.lease_end)
    }

    /// The parts that move away from here, for their targets to ask for.
    pub(crate) fn offers(&self) -> Arc<Offers> {
        Arc::clone(&self.offers)
    }

    pub(crate) fn view(&self) -> View {
        let Self { me, log, membership, limits, versions, .. } = self;
        let (members, versions) = (membership.members(), Arc::clone(versions));
        View { me: me.node.clone(), log: log.clone(), members, limits: *limits, versions }
    }

    /// Whether no other node has joined, or all have left.
    pub(crate) fn is_alone(&self) -> bool {
        is_alone(&self.log.state().borrow())
    }

    /// Waits until the leader, which is this node where it is alone, has nothing left to place, or is not alone.
    pub(crate) async fn settled(&self) {
        let mut settled = self.settled.clone();
        let mut state = self.log.state();
        tokio::select! {
            _ = settled.wait_for(|index| index.is_some_and(|index| index >= self.joined_at)) => {}
            _ = state.wait_for(|state| !is_alone(state)) => {}
        }
    }

    /// Waits until this node can't be part of the cluster any more.
    pub(crate) async fn failed(&self) -> Failure {
        let node = self.me.node.clone();
        let mut by_lease = self.superseded.clone();
        // Where nodes have certificates, gossip alone ends nobody: whoever has a key of it could say so. The log, which
        // refuses the lease, is heard of a moment later.
        let by_gossip = async {
            let generation = self.membership.superseded().await;
            if self.trust.identity().is_some() {
                tracing::warn!(
                    generation,
                    "gossip says that a newer process has this node's name; the log has not confirmed it"
                );
                std::future::pending::<()>().await;
            }
            generation
        };
        let failure = tokio::select! {
            generation = by_gossip => Failure::Superseded { node, generation },
            Ok(generation) = by_lease.wait_for(Option::is_some) => {
                Failure::Superseded { node, generation: generation.unwrap_or_default() }
            }
            reason = self.membership.ended() => Failure::Gossip(reason),
            reason = self.log.ended() => Failure::Log(reason),
        };
        if self.ended.is_cancelled() {
            std::future::pending::<()>().await;
        }
        failure
    }

    /// Tells the others what this node serves, for as long as it does.
    pub(crate) fn announce(&self, serving: Serving) -> impl Future<Output = ()> + Send + use<> {
        let (membership, mut state, node) = (self.membership.clone(), self.log.state(), self.me.node.clone());
        let going = self.going.clone();
        let (trust, seal, followed) = (self.trust.clone(), self.seal.clone(), self.followed.clone());
        let announce = async move {
            let (ingress, tls) = serving.ingress;
            let admin = serving.admin.map(|admin| admin.to_string()).unwrap_or_default();
            let told = membership.set_ingress(&ingress.to_string(), tls).and_then(|()| membership.set_admin(&admin));
            if let Err(error) = told {
                tracing::warn!(%error, "others are not told where clients reach this node");
            }
            membership.set_lifecycle(Lifecycle::Ready);
            let mut every = interval(LOAD);
            let mut drained = false;
            let mut shown = Shown::of(&trust, seal.as_ref(), &followed);
            loop {
                tokio::select! {
                    _ = every.tick() => {}
                    Ok(()) = state.changed() => {}
                }
                let drains = state.borrow_and_update().nodes.get(&node).is_some_and(|record| record.draining);
                if drains != std::mem::replace(&mut drained, drains) {
                    // The others see it go as they see one go that ends.
                    membership.set_lifecycle(if drains { Lifecycle::Draining } else { Lifecycle::Ready });
                }
                let shows = Shown::of(&trust, seal.as_ref(), &followed);
                if shown != shows {
                    if let Err(error) = membership.set_trust(shows.clone()) {
                        tracing::warn!(%error, "others are not told of new certificates or keys");
                    }
                    shown = shows;
                }
                membership.set_load(Load {
                    calls_in_flight: serving.calls.len() as u64,
                    connections: serving.connections.load(Ordering::Relaxed) as u64,
                });
            }
        };
        async move {
            going.run_until_cancelled_owned(announce).await;
        }
    }

    /// Tells the others that this node is about to end, and gives away what it hosts.
    pub(crate) fn go(&self) {
        self.going.cancel();
        self.membership.set_lifecycle(Lifecycle::Draining);
    }

    /// Waits until this node hosts nothing that another one could, and does not vote where another one could in its
    /// place. At once where it is alone.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn handed_over(&self) {
        let mut state = self.log.state();
        let node = &self.me.node;
        let _ = state
            .wait_for(|state| {
                let mut movable = state.parts.iter().filter(|(module, part)| {
                    let stays = state.declared().get(module).is_none_or(|declared| declared.state == StateClass::Fixed);
                    let keeps = part.seal().is_some_and(|seal| seal.from == self.me);
                    keeps || (part.hosts().contains(&node) && !stays)
                });
                is_alone(state) || movable.next().is_none()
            })
            .await;
        let members = self.membership.members();
        let _ = self
            .log
            .leadership()
            .wait_for(|leadership| {
                let votes = |node: &NodeId| leadership.voters.values().any(|voter| voter == node);
                let could = |member: &Member| member.alive && member.persistent && member.lifecycle == Lifecycle::Ready;
                let heir =
                    members.borrow().iter().any(|(other, member)| other != node && !votes(other) && could(member));
                !votes(node) || !heir
            })
            .await;
    }

    /// Lets in no more calls of other nodes. Those that are here may go on, and make calls of their own.
    pub(crate) fn refuse_calls(&self) {
        self.front.refuse();
    }

    /// Lets calls of other nodes finish until the deadline. Returns how many did not.
    pub(crate) async fn finish_calls(&self, deadline: Instant) -> usize {
        let calls = self.front.calls();
        calls.close();
        let _ = tokio::time::timeout_at(deadline, calls.wait()).await;
        calls.len()
    }

    /// Leaves: says so to the log and to the others, and falls silent.
    pub(crate) async fn leave(self) {
        self.ended.cancel();
        if !self.is_alone() {
            let proposal = self.proposal(Command::Leave(self.me.clone()));
            match timeout(FAREWELL, self.log.propose(proposal)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the cluster was not told of the end; it will find out"),
                Err(_) => tracing::warn!("the cluster did not take the news of the end; it will find out"),
            }
        }
        let _ = timeout(FAREWELL, self.membership.leave()).await;
        let _ = timeout(FAREWELL, self.log.shutdown()).await;
        self.server.stop(Instant::now()).await;
    }

    fn proposal(&self, command: Command) -> Proposal {
        Proposal { at: clock::wall(), by: self.me.node.to_string(), asked: None, command }
    }
}

fn is_alone(state: &State) -> bool {
    state.nodes.values().filter(|node| !node.left).count() <= 1
}

fn built_in<S, B>(server: S) -> Arc<Slot>
where
    S: tower::Service<http::Request<tonic::body::Body>, Response = http::Response<B>> + NamedService,
    S: Clone + Send + Sync + 'static,
    S::Error: Into<crate::BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<crate::BoxError>,
{
    Arc::new(Slot::built_in(S::NAME, Box::new(Tonic(server))))
}

/// Waits until this node belongs to a cluster; says what it waits for. Returns the cluster's id.
async fn joined(log: &Log) -> Result<String, StartError> {
    let mut cluster = log.cluster();
    let mut news = interval(NEWS);
    news.tick().await;
    loop {
        tokio::select! {
            id = cluster.wait_for(|id| !id.is_empty()) => return Ok(id.map_err(cluster_error)?.clone()),
            reason = log.ended() => return Err(cluster_error(reason)),
            _ = news.tick() => tracing::info!(status = log.status(), "waiting for a cluster"),
        }
    }
}

/// A node that is about to register.
struct Newcomer<'a> {
    me: &'a Incarnation,
    record: Record,
    /// What its modules look like, by digest.
    interfaces: BTreeMap<String, Interface>,
    incompatible: IncompatibleVersions,
}

impl Newcomer<'_> {
    /// Registers until the cluster takes it, or says that it never will. Returns the index of the entry.
    async fn register(self, log: &Log, versions: &Versions) -> Result<u64, StartError> {
        let mut pause = Duration::from_millis(50);
        let mut told = None;
        // What this node knew when it stopped may be long past. Nothing is refused before the log has said what it has now.
        let mut current = 0;
        loop {
            let mut states = log.state();
            let known = timeout(NEWS, states.wait_for(|state| state.index >= current)).await;
            let known = known.ok().and_then(Result::ok).map(|state| Arc::clone(&state));
            let Some(state) = known else {
                tracing::warn!(index = current, "the placement log is not known here up to this entry yet");
                continue;
            };
            let problem = versions.misfit(&state, &self.me.node, &self.record, &self.interfaces);
            let mut compared = state.index;
            match (&problem, self.incompatible) {
                (Some(problem), IncompatibleVersions::Refuse) if current > 0 => {
                    return Err(StartError::Incompatible(problem.clone()));
                }
                // Which is refused.
                (Some(_), IncompatibleVersions::Refuse) => compared = 0,
                (Some(problem), IncompatibleVersions::Join) if told.as_ref() != Some(problem) => {
                    tracing::warn!(problem, "this version does not fit with others");
                }
                _ => {}
            }
            told = problem;
            let new = self.interfaces.iter().filter(|(digest, _)| !state.interfaces.contains_key(*digest));
            let brings = new.map(|(digest, interface)| (digest.clone(), interface.clone())).collect();
            let (node, record) = (self.me.node.clone(), self.record.clone());
            let command = Command::Register { node, record, brings, compared };
            let proposal = Proposal { at: clock::wall(), by: self.me.node.to_string(), asked: None, command };
            match log.propose(proposal).await {
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(Refused::Uncompared { index, .. })) => {
                    current = index;
                    continue;
                }
                Ok(Err(refused)) => return Err(cluster_error(refused)),
                Err(error) => tracing::warn!(%error, "the cluster did not take this node yet"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }
}

//! The placement log: what was decided, agreed by a majority of its voters, and known to every node.
//!
//! ```text
//!            propose                        ┌─ voters ─ Raft ──────────────────┐
//! any node ─────────▶ the leader, wherever ─┤ store: redb, one fsync an entry  ├─▶ State, in the same order
//!                                           └──────────────────────────────────┘     │ watch
//!                                                        every other node ◀──────────┘
//! bootstrap: found or find a cluster      autopilot: who votes (on the leader)      leases: who was heard of (ditto)
//! ```
//!
//! A node is a voter, or it watches one. From outside, [`Log`] is the same on both: the newest state it knows, who
//! leads, and a way to propose.
//!
//! **Invariant:** nothing that Raft believes depends on gossip, names or addresses. Members are random numbers that are
//! made with a data directory and never used again; gossip only says where to dial, and the one who answers checks that
//! the message is for it.
//!
//! **Invariant:** a cluster begins once. A node that was told of others, and is not one of the initial voters, never
//! founds one, however long it waits.

mod autopilot;
mod bootstrap;
mod follow;
mod leases;
mod network;
mod peers;
#[cfg(feature = "simulation")]
mod runtime;
mod service;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leases::Leases;
use network::Network;
use openraft::{
    Config, Raft, ServerState, SnapshotPolicy,
    error::{ClientWriteError, RaftError},
};
use outpost_proto::cluster::v1 as wire;
use peers::Peers;
use store::{Answer, Machine, Owner, Recent, Request, Store, StoreError, Types};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{debug, error, info, warn};
use wire::{consensus_server::ConsensusServer, placement_server::PlacementServer};

use super::state::{Command, Outcome, PartChange, Proposal, State};
use crate::{
    clock, disk,
    id::{Incarnation, NodeId, RaftId},
    membership::{Identity, Members},
    trust::Trust,
};

/// The largest proposal, in bytes of JSON.
const LARGEST_PROPOSAL: usize = 1 << 20;

/// What a log needs to know.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) identity: Identity,
    pub(crate) node: NodeId,
    /// Nodes of other names do not mix.
    pub(crate) cluster_name: String,
    /// Where the log is kept; in memory without it.
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) members: watch::Receiver<Arc<Members>>,
    pub(crate) trust: Trust,
    /// Addresses that this node was told to look at; none when it was told of nobody.
    pub(crate) seeds: Option<watch::Receiver<Vec<SocketAddr>>>,
    /// The nodes that a new cluster begins with.
    pub(crate) initial_voters: Vec<NodeId>,
    /// The most nodes that vote: 1, 3 or 5.
    pub(crate) max_voters: u32,
    pub(crate) timing: Timing,
}

/// How long things take.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    /// How often a leader says that it is there.
    pub(crate) heartbeat: Duration,
    /// How long a voter waits for a leader before it stands for election, at the least.
    pub(crate) election_min: Duration,
    /// The same at the most; and how long a voter that has heard of a leader votes for nobody else.
    pub(crate) election_max: Duration,
    /// How long after a node's last word to the leader nobody takes over what it hosts.
    pub(crate) lease: Duration,
    /// How long [`Log::propose`] tries.
    pub(crate) propose: Duration,
    /// How often the leader looks at who votes.
    pub(crate) autopilot: Duration,
    /// How long a node must have been ready before it may vote.
    pub(crate) settled: Duration,
    /// How long a voter must have been gone before it is replaced.
    pub(crate) dead_after: Duration,
    /// After how many entries there is a new snapshot.
    pub(crate) snapshot_every: u64,
    /// How often a node that looks for a cluster asks, and how often a watched node gives a sign of life.
    pub(crate) ask: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_millis(750),
            election_max: Duration::from_millis(1500),
            lease: Duration::from_secs(8),
            propose: Duration::from_secs(10),
            autopilot: Duration::from_secs(5),
            settled: Duration::from_secs(10),
            dead_after: Duration::from_secs(60),
            snapshot_every: 1000,
            ask: Duration::from_secs(1),
        }
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0} nodes can't begin a cluster: name 1, 3 or 5 different ones, or none")]
    InitialVoters(usize),
    #[error("{0} voters are no majority's business: 1, 3 or 5")]
    MaxVoters(u32),
    #[error("can't start the placement log: {0}")]
    Raft(String),
}

/// Why it is not known that a proposal was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProposeError {
    /// Nothing was proposed.
    #[error("no leader of the placement log was found in {waited:?}: {status}")]
    NoLeader { waited: Duration, status: String },
    /// It may be applied, now or later.
    #[error("the placement log did not answer in {waited:?}; the change may still be made: {last}")]
    Unknown { waited: Duration, last: String },
    /// It changed nothing, and will not.
    #[error("this node leads no more")]
    LostLead,
    #[error("a proposal of {0} bytes is too large for the placement log")]
    TooLarge(usize),
    #[error("the placement log has ended: {0}")]
    Ended(String),
}

/// What a node is in the consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Leader,
    Voter,
    /// It catches up, to vote soon; or has just ceased to vote.
    Learner,
    Watcher,
}

/// Who leads, as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) term: u64,
    /// None during an election, and when the one that led has no majority.
    pub(crate) leader: Option<(RaftId, NodeId)>,
    /// This node leads, a majority has heard of it lately, and it has applied all that was decided before its term.
    pub(crate) is_me: bool,
    pub(crate) role: Role,
    /// The voters, as far as this node knows; while they change, the old and the new.
    pub(crate) voters: BTreeMap<RaftId, NodeId>,
    /// It is known from this node's own membership, not from watching another.
    own: bool,
}

impl Leadership {
    fn nobody() -> Self {
        let voters = BTreeMap::new();
        Self { term: 0, leader: None, is_me: false, role: Role::Watcher, voters, own: false }
    }

    fn to_wire(&self, peers: &Peers) -> wire::Leader {
        let voters = self.voters.iter();
        let voters = voters.map(|(raft_id, node)| wire::Voter { node: node.to_string(), raft_id: *raft_id }).collect();
        let (raft_id, node) = match &self.leader {
            Some((raft_id, node)) => (*raft_id, node.to_string()),
            None => (0, String::new()),
        };
        let address = peers.find(raft_id, None).map_or_else(String::new, |(_, member)| member.address.to_string());
        wire::Leader { raft_id, node, address, term: self.term, voters }
    }
}

/// What another node has said about who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    term: u64,
    leader: Option<(RaftId, NodeId)>,
    voters: BTreeMap<RaftId, NodeId>,
}

impl Heard {
    fn from_wire(leader: wire::Leader) -> Self {
        let voter = |voter: wire::Voter| Some((voter.raft_id, NodeId::parse(&voter.node).ok()?));
        let voters = leader.voters.into_iter().filter_map(voter).collect();
        let node = NodeId::parse(&leader.node).ok();
        Self { term: leader.term, leader: node.map(|node| (leader.raft_id, node)), voters }
    }
}

/// What asking for a lease gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// The node may serve for a while, counted from when it asked, as soon as it has applied this index.
    Granted { must_apply: u64 },
    /// A newer process of the same name is in force.
    Superseded { by: u64 },
    /// The cluster does not know this process: it has to register.
    Unknown,
    /// It was silent for a lease, and others are taking over. It should ask again soon.
    Held,
}

/// Why asking for a lease gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RenewError {
    #[error("no leader of the placement log is known: {0}")]
    NoLeader(String),
    #[error("the leader, node `{node}`, did not answer: {problem}")]
    Unreachable { node: NodeId, problem: String },
}

/// The log as this node knows it. Cheap to clone. To be ended with [`Log::shutdown`]; a log that is only dropped stops
/// answering, but keeps its file for as long as another node keeps a connection.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    tasks: AsyncMutex<JoinSet<()>>,
    /// Changes of parts that this node has proposed, and that were made.
    changed: [AtomicU64; PartChange::KINDS.len()],
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// What the log's tasks and services share.
struct Shared {
    identity: Identity,
    node: NodeId,
    cluster_name: String,
    initial_voters: Vec<NodeId>,
    seeds: Option<watch::Receiver<Vec<SocketAddr>>>,
    max_voters: u32,
    timing: Timing,
    store: Store,
    /// The cluster that the store is bound to.
    bound: AsyncMutex<Option<String>>,
    peers: Arc<Peers>,
    network: Network,
    raft: Raft<Types>,
    /// What the cluster is called in messages; empty before that is known.
    cluster: watch::Sender<String>,
    recent: Arc<Recent>,
    states: watch::Sender<Arc<State>>,
    leadership: watch::Sender<Leadership>,
    /// What watching another node has told; nothing while this node knows by itself.
    heard: watch::Sender<Option<Heard>>,
    /// The index that the leader last said to have been applied there; told anew with each answer.
    decided: watch::Sender<u64>,
    /// The last term whose leader this node knew by itself. What was heard of earlier ones is out of date.
    own_term: AtomicU64,
    /// What the search for a cluster is at.
    search: watch::Sender<String>,
    /// What the autopilot did last.
    autopilot: watch::Sender<String>,
    leases: Mutex<Leases>,
    /// When this node last began to ask a majority whether it leads, and was told so.
    confirmed: AsyncMutex<Option<Instant>>,
    stop: CancellationToken,
    ended: watch::Sender<Option<String>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("node", &self.node).field("raft_id", &self.identity.raft_id).finish()
    }
}

impl Log {
    /// Opens the log of this node, and begins to look for a cluster, or founds one. Returns before that is done: see
    /// [`Log::status`].
    ///
    /// The services of [`Log::services`] have to be reachable where gossip says this node is, or no other node joins.
    ///
    /// # Errors
    /// [`LogError`] when the data directory can't be used, or the options make no sense.
    pub(crate) async fn open(options: Options) -> Result<Self, LogError> {
        let Options {
            identity,
            node,
            cluster_name,
            data_dir,
            members,
            trust,
            seeds,
            mut initial_voters,
            max_voters,
            timing,
        } = options;
        let named = initial_voters.len();
        initial_voters.sort();
        initial_voters.dedup();
        if initial_voters.len() != named || ![0, 1, 3, 5].contains(&named) {
            return Err(LogError::InitialVoters(named));
        }
        if ![1, 3, 5].contains(&max_voters) {
            return Err(LogError::MaxVoters(max_voters));
        }

        let owner = Owner { raft_id: identity.raft_id, marker: identity.marker.clone() };
        let states = watch::Sender::new(Arc::new(State::default()));
        let recent = Arc::new(Recent::default());
        let opening = {
            let (states, recent) = (states.clone(), recent.clone());
            disk::blocking(move || -> Result<_, StoreError> {
                let store = Store::open(data_dir.as_deref(), &owner)?;
                let bound = store.cluster()?;
                let machine = Machine::load(store.clone(), states, recent)?;
                Ok((store, bound, machine))
            })
        };
        let (store, bound, machine) = opening.await.map_err(|error| LogError::Raft(error.to_string()))??;
        let cluster = watch::Sender::new(bound.clone().unwrap_or_default());

        let peers = Arc::new(Peers::new(members, timing.election_min.min(Duration::from_secs(2)), trust));
        let me = identity.raft_id;
        let network = Network { peers: peers.clone(), me, cluster: cluster.subscribe(), pause: timing.heartbeat };
        let config = raft_config(&cluster_name, &timing).map_err(|error| LogError::Raft(error.to_string()))?;
        let raft = Raft::new(me, config, network.clone(), store.clone(), machine).await;
        let raft = raft.map_err(|error| LogError::Raft(error.to_string()))?;

        let shared = Arc::new(Shared {
            leases: Mutex::new(Leases::new(timing.lease)),
            bound: AsyncMutex::new(bound),
            leadership: watch::Sender::new(Leadership::nobody()),
            heard: watch::Sender::new(None),
            decided: watch::Sender::new(0),
            own_term: AtomicU64::new(0),
            search: watch::Sender::new("looking for a cluster".to_owned()),
            autopilot: watch::Sender::default(),
            confirmed: AsyncMutex::new(None),
            stop: CancellationToken::new(),
            ended: watch::Sender::new(None),
            identity,
            node,
            cluster_name,
            initial_voters,
            seeds,
            max_voters,
            timing,
            store,
            peers,
            network,
            raft,
            cluster,
            recent,
            states,
        });
        let mut tasks = JoinSet::new();
        let stop = &shared.stop;
        tasks.spawn(until(stop.clone(), lead(shared.clone())));
        tasks.spawn(until(stop.clone(), bootstrap::run(shared.clone())));
        tasks.spawn(until(stop.clone(), follow::run(shared.clone())));
        tasks.spawn(until(stop.clone(), autopilot::run(shared.clone())));
        let (tasks, changed) = (AsyncMutex::new(tasks), Default::default());
        Ok(Self { inner: Arc::new(Inner { shared, tasks, changed }) })
    }

    /// The two services that other nodes call, for the cluster listener.
    pub(crate) fn services(&self) -> (ConsensusServer<network::Members>, PlacementServer<service::Service>) {
        let shared = &self.inner.shared;
        let consensus = ConsensusServer::new(network::Members { shared: shared.clone() })
            .max_decoding_message_size(peers::LARGEST)
            .max_encoding_message_size(peers::LARGEST);
        let placement = PlacementServer::new(service::Service { shared: shared.clone() })
            .max_decoding_message_size(peers::LARGEST)
            .max_encoding_message_size(peers::LARGEST);
        (consensus, placement)
    }

    /// The newest state that this node knows. It only ever becomes newer, but may lag behind the leader's.
    pub(crate) fn state(&self) -> watch::Receiver<Arc<State>> {
        self.inner.shared.states.subscribe()
    }

    /// Who leads, as this node knows.
    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.shared.leadership.subscribe()
    }

    /// What the cluster is called in messages, and what gossip should say of this node; empty before this node has
    /// found one, or has agreed to be of the first members of one.
    pub(crate) fn cluster(&self) -> watch::Receiver<String> {
        self.inner.shared.cluster.subscribe()
    }

    /// What this node does in the consensus, or what it waits for: one line for people.
    pub(crate) fn status(&self) -> String {
        self.inner.shared.status()
    }

    /// Proposes a change to the leader, wherever that is, and returns what applying it gave, once this node's own
    /// [`Log::state`] has it. Tries for `timing.propose`.
    ///
    /// When an answer is lost, the change is proposed again, and so may be in the log twice. Every change of a part and
    /// of the spec names the version that it replaces, and registering or leaving twice is the same as once: the second
    /// entry changes nothing. But its outcome is what the caller gets: `Refused::PartChanged` (or `SpecChanged`) may
    /// mean that the caller's own first attempt was applied. Whoever is refused has to look at the state again before
    /// it decides anything.
    ///
    /// # Errors
    /// [`ProposeError`]; only `NoLeader`, `LostLead` and `TooLarge` say that nothing was changed.
    ///
    /// # Cancel safety
    /// The change may be made although nobody waits for it any more.
    pub(crate) async fn propose(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        let kind = kind(&proposal);
        let proposed = self.inner.shared.propose(proposal).await;
        self.count(kind, &proposed);
        proposed
    }

    fn count(&self, kind: Option<usize>, proposed: &Result<Outcome, ProposeError>) {
        if let (Some(kind), Ok(Ok(_))) = (kind, proposed) {
            self.inner.changed[kind].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many changes of parts this node has proposed that were made, for each of [`PartChange::KINDS`].
    pub(crate) fn changes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.inner.changed.iter().map(|changed| changed.load(Ordering::Relaxed));
        PartChange::KINDS.into_iter().zip(counts)
    }

    /// Proposes a change as the leader of one term: it is applied in this term, or never. Does not wait for an election
    /// or forward; waits for `timing.propose` at the most.
    ///
    /// # Errors
    /// [`ProposeError`]; `LostLead` when this node does not lead in this term.
    ///
    /// # Cancel safety
    /// The change may be made although nobody waits for it any more.
    pub(crate) async fn propose_in_term(&self, term: u64, proposal: Proposal) -> Result<Outcome, ProposeError> {
        let shared = &self.inner.shared;
        let (current, is_me) = {
            let leadership = shared.leadership.borrow();
            (leadership.term, leadership.is_me)
        };
        if !is_me || current != term {
            return Err(ProposeError::LostLead);
        }
        let (waited, kind) = (shared.timing.propose, kind(&proposal));
        let proposed = match shared.write(Request { proposal: Some(proposal), term: Some(term) }, waited).await {
            Written::Applied(_, outcome) => Ok(outcome),
            Written::NotLeader(_) => Err(ProposeError::LostLead),
            Written::Unknown(last) => Err(ProposeError::Unknown { waited, last }),
            Written::Ended(reason) => Err(ProposeError::Ended(reason)),
        };
        self.count(kind, &proposed);
        proposed
    }

    /// Asks the leader, which may be this node, for leave to serve. `applied` is the index that this node has applied.
    /// One attempt, which takes no longer than half a lease.
    ///
    /// A grant counts from when this was called, and only once this node has applied the index in it.
    ///
    /// # Errors
    /// [`RenewError`] when there is no answer of a leader.
    ///
    /// # Cancel safety
    /// Safe: a grant that nobody hears of only makes others wait for longer.
    pub(crate) async fn renew(&self, applied: u64) -> Result<Renewed, RenewError> {
        self.inner.shared.renew(applied).await
    }

    /// The leases that this node has granted as the leader. Do not hold the lock across an await.
    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.inner.shared.leases()
    }

    /// Ends the log's tasks and closes its file. The node takes no part in the consensus any more.
    ///
    /// # Cancel safety
    /// What has ended stays ended; to call it again goes on with the rest.
    pub(crate) async fn shutdown(&self) {
        let shared = &self.inner.shared;
        shared.stop.cancel();
        let mut tasks = self.inner.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
        if let Err(error) = shared.raft.shutdown().await {
            warn!(%error, "the placement log did not end well");
        }
        shared.store.close().await;
    }

    /// Waits for the log to fail: the reason for which the process has to end. A disk that failed once is not tried
    /// again. Never returns after [`Log::shutdown`].
    pub(crate) async fn ended(&self) -> String {
        let mut ended = self.inner.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// The change of a part that is proposed, if it is one.
fn kind(proposal: &Proposal) -> Option<usize> {
    match &proposal.command {
        Command::Part { change, .. } => Some(change.kind()),
        _ => None,
    }
}

/// Runs a task for as long as the log does.
async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    stop.run_until_cancelled(task).await;
}

fn raft_config(cluster: &str, timing: &Timing) -> Result<Arc<Config>, openraft::ConfigError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: millis(timing.election_max.max(Duration::from_secs(5))),
        max_payload_entries: 256,
        // A member that is behind by more than what is kept gets a snapshot.
        replication_lag_threshold: timing.snapshot_every.saturating_mul(2),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timing.snapshot_every),
        max_in_snapshot_log_to_keep: timing.snapshot_every,
        purge_batch_size: 64,
        snapshot_max_chunk_size: 1 << 20,
        ..Config::default()
    };
    Ok(Arc::new(config.validate()?))
}

/// What became of an attempt to write.
enum Written {
    Applied(u64, Outcome),
    /// It is not in the log. Perhaps with the one that leads.
    NotLeader(Option<(RaftId, NodeId)>),
    Unknown(String),
    Ended(String),
}

impl Shared {
    fn me(&self) -> RaftId {
        self.identity.raft_id
    }

    fn node(&self) -> &NodeId {
        &self.node
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds the store to a cluster before the first message of its members is accepted.
    async fn bound(&self, cluster: &str) -> Result<(), StoreError> {
        let mut bound = self.bound.lock().await;
        if bound.as_deref() != Some(cluster) {
            self.store.bind(cluster).await?;
            *bound = Some(cluster.to_owned());
        }
        Ok(())
    }

    fn status(&self) -> String {
        if let Some(reason) = &*self.ended.borrow() {
            return format!("the placement log has ended: {reason}");
        }
        if self.cluster.borrow().is_empty() || self.states.borrow().cluster.is_empty() {
            return self.search.borrow().clone();
        }
        let Leadership { leader, role, voters, term, .. } = self.leadership.borrow().clone();
        let role = match role {
            Role::Leader => "leads",
            Role::Voter => "votes",
            Role::Learner => "learns, to vote soon",
            Role::Watcher => "watches",
        };
        let voters: Vec<&str> = voters.values().map(NodeId::as_str).collect();
        let leader = leader.map_or_else(|| "nobody leads".to_owned(), |(_, node)| format!("{node} leads"));
        let autopilot = self.autopilot.borrow();
        let autopilot = if autopilot.is_empty() { String::new() } else { format!("; {}", *autopilot) };
        format!("{role}; {leader} in term {term}; voters: {}{autopilot}", voters.join(", "))
    }

    /// Who leads, by this node's own membership or by what it heard. If it is this node: since when it has, and in
    /// which term it has shown that it can write.
    fn observe(&self, leads_for: Duration, proven: Option<u64>) -> Leadership {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let name = |raft_id: RaftId| {
            let named = membership.get_node(&raft_id).and_then(store::Peer::node);
            named.or_else(|| self.peers.find(raft_id, None).map(|(node, _)| node))
        };
        let voters: BTreeMap<RaftId, NodeId> =
            membership.voter_ids().filter_map(|raft_id| Some((raft_id, name(raft_id)?))).collect();
        let votes = membership.voter_ids().any(|raft_id| raft_id == self.me());
        let leads = metrics.state == ServerState::Leader;
        let role = match (leads, votes, membership.get_node(&self.me()).is_some()) {
            (true, true, _) => Role::Leader,
            (_, true, _) => Role::Voter,
            (_, _, true) => Role::Learner,
            (_, _, false) => Role::Watcher,
        };
        // A leader that no majority answers may have been replaced without its knowledge.
        let silence = metrics.millis_since_quorum_ack.map_or(leads_for, Duration::from_millis);
        let backed = !leads || voters.len() == 1 || silence <= self.timing.election_max * 2;
        if votes
            && backed
            && let Some((raft_id, node)) = metrics.current_leader.and_then(|id| Some((id, name(id)?)))
        {
            let term = metrics.current_term;
            let is_me = leads && raft_id == self.me() && proven == Some(term);
            return Leadership { term, leader: Some((raft_id, node)), is_me, role, voters, own: true };
        }
        let term = metrics.current_term;
        match &*self.heard.borrow() {
            Some(heard) => Leadership {
                term: heard.term,
                leader: heard.leader.clone().filter(|(raft_id, _)| *raft_id != self.me()),
                is_me: false,
                role,
                voters: heard.voters.clone(),
                own: false,
            },
            None => Leadership { term, leader: None, is_me: false, role, voters, own: false },
        }
    }

    /// Adds an entry, if this node leads.
    async fn write(&self, request: Request, limit: Duration) -> Written {
        if let Some(Proposal { command: Command::Register { node, record, .. }, .. }) = &request.proposal {
            // Before anybody plans with it: a node that has just joined is not one that is silent.
            let incarnation = Incarnation { node: node.clone(), generation: record.generation };
            self.leases().joins(&incarnation, Instant::now());
        }
        match timeout(limit, self.raft.client_write(request)).await {
            Ok(Ok(written)) => match written.data {
                Answer::Applied(outcome) => Written::Applied(written.log_id.index, outcome),
                Answer::OtherTerm => Written::NotLeader(None),
                Answer::Nothing => Written::Unknown("the entry was none of ours".to_owned()),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                let node = forward.leader_node.as_ref().and_then(store::Peer::node);
                Written::NotLeader(forward.leader_id.zip(node))
            }
            Ok(Err(RaftError::APIError(error))) => Written::Unknown(error.to_string()),
            Ok(Err(RaftError::Fatal(error))) => Written::Ended(error.to_string()),
            Err(_) => Written::Unknown("no majority has confirmed it".to_owned()),
        }
    }

    /// Writes an entry as the leader of a term. Once it was applied, so was all that anybody was told of before.
    ///
    /// It is not enough to have begun the term with an entry: a leader that restarts goes on leading in the same term,
    /// and does not know which of its last entries were acknowledged.
    async fn prove(&self, term: u64) -> bool {
        let founded = !self.states.borrow().cluster.is_empty();
        let found = || Proposal {
            at: clock::wall(),
            by: self.node.to_string(),
            asked: None,
            command: Command::Found { cluster: self.cluster.borrow().clone() },
        };
        let request = Request { proposal: (!founded).then(found), term: Some(term) };
        let written = timeout(self.timing.election_max, self.raft.client_write(request)).await;
        matches!(written, Ok(Ok(written)) if written.data != Answer::OtherTerm)
    }

    async fn propose(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        let encoded = serde_json::to_vec(&proposal).unwrap_or_default();
        if encoded.len() > LARGEST_PROPOSAL {
            return Err(ProposeError::TooLarge(encoded.len()));
        }
        let waited = self.timing.propose;
        let deadline = Instant::now() + waited;
        let mut changes = self.leadership.subscribe();
        // Whom the last one asked said to ask.
        let mut hint = None;
        let mut unknown = None;
        while Instant::now() < deadline {
            let leader = hint.take().or_else(|| changes.borrow_and_update().leader.clone());
            // An attempt that takes longer than an election is better made again.
            let limit = (self.timing.election_max * 2).min(deadline - Instant::now());
            let written = match &leader {
                None => Written::NotLeader(None),
                Some((me, _)) if *me == self.me() => {
                    self.write(Request { proposal: Some(proposal.clone()), term: None }, limit).await
                }
                Some((other, node)) => self.forward(*other, node, encoded.clone(), limit).await,
            };
            match written {
                Written::Applied(index, outcome) => {
                    let mut states = self.states.subscribe();
                    // What was decided is decided, even where this node does not hear of it in time.
                    let _ = timeout_at(deadline, states.wait_for(|state| state.index >= index)).await;
                    return Ok(outcome);
                }
                Written::NotLeader(Some(other)) if leader.as_ref() != Some(&other) => {
                    hint = Some(other);
                    sleep(Duration::from_millis(5)).await;
                    continue;
                }
                Written::NotLeader(_) => {}
                Written::Unknown(problem) => {
                    debug!(problem, "proposing again");
                    unknown = Some(problem);
                }
                Written::Ended(reason) => return Err(ProposeError::Ended(reason)),
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep_until(deadline.min(Instant::now() + self.timing.heartbeat / 2)) => {}
            }
        }
        match unknown {
            Some(last) => Err(ProposeError::Unknown { waited, last }),
            None => Err(ProposeError::NoLeader { waited, status: self.status() }),
        }
    }

    /// Has another node add an entry.
    async fn forward(&self, leader: RaftId, node: &NodeId, proposal: Vec<u8>, limit: Duration) -> Written {
        let Some((node, member)) = self.peers.find(leader, Some(node)) else { return Written::NotLeader(None) };
        let cluster = self.cluster.borrow().clone();
        let mut request = tonic::Request::new(wire::ProposeRequest { cluster, proposal });
        request.set_timeout(limit);
        let mut client = self.peers.placement(member.address, Some(&node));
        let answered = match timeout(limit, client.propose(request)).await {
            Ok(answered) => answered,
            Err(_) => return Written::Unknown("the leader did not answer".to_owned()),
        };
        match answered.map(|response| response.into_inner().result) {
            Ok(Some(wire::propose_response::Result::Applied(applied))) => {
                match serde_json::from_slice(&applied.outcome) {
                    Ok(outcome) => Written::Applied(applied.index, outcome),
                    Err(error) => Written::Unknown(format!("the leader's answer can't be read: {error}")),
                }
            }
            Ok(Some(wire::propose_response::Result::NotLeader(leader))) => {
                Written::NotLeader(NodeId::parse(&leader.node).ok().map(|node| (leader.raft_id, node)))
            }
            Ok(None) => Written::Unknown("the leader's answer can't be read".to_owned()),
            Err(status) if status.code() == Code::FailedPrecondition => Written::NotLeader(None),
            Err(status) => Written::Unknown(status.message().to_owned()),
        }
    }

    async fn renew(&self, applied: u64) -> Result<Renewed, RenewError> {
        let incarnation = Incarnation { node: self.node.clone(), generation: self.identity.generation };
        let leader = self.leadership.borrow().leader.clone();
        let Some((raft_id, node)) = leader else { return Err(RenewError::NoLeader(self.status())) };
        if raft_id == self.me() {
            let renewed = self.grant(&incarnation, applied).await;
            return renewed.ok_or_else(|| RenewError::NoLeader(self.status()));
        }
        let unreachable = |problem: String| RenewError::Unreachable { node: node.clone(), problem };
        let (found, member) = self
            .peers
            .find(raft_id, Some(&node))
            .ok_or_else(|| unreachable("gossip does not know where it is".to_owned()))?;
        let limit = self.timing.lease / 2;
        let mut request = tonic::Request::new(wire::RenewRequest {
            cluster: self.cluster.borrow().clone(),
            node: incarnation.node.to_string(),
            generation: incarnation.generation,
            applied,
        });
        request.set_timeout(limit);
        let mut client = self.peers.placement(member.address, Some(&found));
        let answered = timeout(limit, client.renew(request)).await;
        let answered = answered.map_err(|_| unreachable("it took too long".to_owned()))?;
        let answer = answered.map_err(|status| unreachable(status.message().to_owned()))?.into_inner();
        use wire::renew_response::Result as Answer;
        match answer.result {
            Some(Answer::Granted(must_apply)) => {
                self.decided.send_replace(must_apply);
                Ok(Renewed::Granted { must_apply })
            }
            Some(Answer::SupersededBy(by)) => Ok(Renewed::Superseded { by }),
            Some(Answer::Unknown(_)) => Ok(Renewed::Unknown),
            Some(Answer::Held(_)) => Ok(Renewed::Held),
            Some(Answer::NotLeader(_)) | None => Err(unreachable("it leads no more".to_owned())),
        }
    }

    /// Grants a lease as the leader; none when this node does not lead.
    async fn grant(&self, incarnation: &Incarnation, applied: u64) -> Option<Renewed> {
        let asked = Instant::now();
        if !self.leadership.borrow().is_me || !self.confirm(asked).await {
            return None;
        }
        match self.states.borrow().nodes.get(&incarnation.node) {
            Some(record) if record.generation > incarnation.generation => {
                return Some(Renewed::Superseded { by: record.generation });
            }
            Some(record) if record.generation == incarnation.generation && !record.left => {}
            Some(_) | None => return Some(Renewed::Unknown),
        }
        if !self.leases().renew(incarnation, asked, applied) {
            // Held, or this node has lost its place this moment.
            return self.leadership.borrow().is_me.then_some(Renewed::Held);
        }
        // Read after the table: a take-over that was finished before is in it.
        Some(Renewed::Granted { must_apply: self.states.borrow().index })
    }

    /// Whether a majority confirms, later than `asked`, that this node leads; then it has also applied all that was
    /// committed before. Those who ask at the same time share one round.
    async fn confirm(&self, asked: Instant) -> bool {
        let mut confirmed = self.confirmed.lock().await;
        if confirmed.is_some_and(|at| at >= asked) {
            return true;
        }
        let begun = Instant::now();
        let confirms = timeout(self.timing.election_min, self.raft.ensure_linearizable()).await;
        let yes = matches!(confirms, Ok(Ok(_)));
        if yes {
            *confirmed = Some(begun);
        }
        yes
    }
}

/// Tells everybody here who leads, and has a new leader show that it can write.
async fn lead(shared: Arc<Shared>) {
    let mut metrics = shared.raft.metrics();
    let mut heard = shared.heard.subscribe();
    let mut leads = None;
    let mut proven = None;
    loop {
        let (ended, term, state) = {
            let metrics = metrics.borrow_and_update();
            (metrics.running_state.as_ref().err().map(ToString::to_string), metrics.current_term, metrics.state)
        };
        if let Some(reason) = ended {
            if !shared.stop.is_cancelled() {
                error!(error = reason, "the placement log has ended");
                shared.ended.send_replace(Some(reason));
            }
            return;
        }
        heard.borrow_and_update();
        let now = Instant::now();
        leads = match (state == ServerState::Leader, leads) {
            (false, _) => None,
            (true, Some((known, since))) if known == term => Some((term, since)),
            (true, _) => Some((term, now)),
        };
        let leads_for = leads.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
        let seen = shared.observe(leads_for, proven);
        if seen.own {
            shared.own_term.store(seen.term, Ordering::Relaxed);
            shared.heard.send_if_modified(|heard| heard.take().is_some());
        }
        match seen.is_me {
            true => shared.leases().lead(seen.term, now),
            false => {
                shared.leases().step_down();
                // Whoever was held is forgotten: what was proposed for that must be decided before a lease is granted
                // again, and the entry that proves the lead anew comes after it.
                if shared.leadership.borrow().is_me {
                    proven = None;
                }
            }
        }
        shared.leadership.send_if_modified(|known| {
            let changed = *known != seen;
            if known.leader != seen.leader {
                let leader = seen.leader.as_ref().map(|(_, node)| node.as_str());
                info!(term = seen.term, leader, role = ?seen.role, "who leads the placement log has changed");
            }
            *known = seen;
            changed
        });
        if state == ServerState::Leader && proven != Some(term) && shared.prove(term).await {
            proven = Some(term);
            continue;
        }
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() && metrics.borrow().running_state.is_ok() {
                shared.ended.send_replace(Some("it stopped without a reason".to_owned()));
                return;
            },
            _ = heard.changed() => {}
            () = sleep(shared.timing.heartbeat * 2) => {}
        }
    }
}

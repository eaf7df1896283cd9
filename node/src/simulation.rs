//! What a simulated node has in place of the network, the clocks and the disk of its machine. For this project's own tests
//! alone: see `tests/simulation`.
//!
//! All nodes of a simulation run on one thread, in turns. Whose turn it is, [`take_turn`] says; whatever the node does
//! then, it does on that [`Machine`].

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, TryStreamExt as _, future::BoxFuture};
use object_store::{ObjectStore as _, ObjectStoreExt as _, memory::InMemory};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use crate::{
    call::{chain::Chain, counts::Origin, gate::LeaseEnd, slot::Target, table::Table},
    cluster::Cluster,
    id::{Epoch, Incarnation, ModuleName, NodeId},
    placement::{
        log::Log,
        state::{Hosting, State},
    },
};

/// A computer in the simulation.
pub trait Machine: Send + Sync {
    /// Since 1970, as its clock on the wall tells.
    fn wall(&self) -> Duration;

    /// Since some moment; stands still while the machine is suspended.
    fn monotonic(&self) -> Duration;

    /// Since some moment; goes on while the machine is suspended.
    fn boottime(&self) -> Duration;

    /// How long what is asked of its disk takes this time.
    fn disk(&self) -> Duration;

    /// Listens for connections.
    ///
    /// # Errors
    /// An address that is taken, or not the machine's.
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// Connects.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

    /// Listens for datagrams, and can send some.
    ///
    /// # Errors
    /// An address that is taken, or not the machine's.
    fn datagrams(&self, address: SocketAddr) -> io::Result<Box<dyn Datagrams>>;

    /// The addresses that `HOST:PORT` stands for.
    ///
    /// # Errors
    /// A name that nobody knows.
    fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>>;
}

/// One end of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The address of this end.
    fn local_address(&self) -> SocketAddr;

    /// The address of the other end.
    fn peer_address(&self) -> SocketAddr;
}

/// A socket that listens until it is dropped.
pub trait Listener: Send + Sync {
    /// Where.
    fn address(&self) -> SocketAddr;

    /// The next connection.
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Box<dyn Stream>>>;
}

/// A socket for datagrams, open until it is dropped. What is sent is not bytes but the message itself: how gossip is
/// encoded is tested elsewhere.
pub trait Datagrams: Send + Sync {
    /// Where.
    fn address(&self) -> SocketAddr;

    /// Sends one, which may be lost.
    fn send(&self, to: SocketAddr, message: Box<dyn Any + Send>);

    /// The next one, and who sent it.
    fn poll_receive(&self, context: &mut Context<'_>) -> Poll<(SocketAddr, Box<dyn Any + Send>)>;
}

/// A rule that can be broken on purpose, to see whether the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Nobody takes over before the lease of the owner has ended.
    TakeOverWaitsForTheLease,
    /// A gate that is open for a lease looks whether that holds.
    GateLooksAtTheLease,
    /// It looks again before an answer leaves.
    AnswerLooksAtTheLease,
    /// A node that knows of a take-over takes no answer from before it.
    CallerLooksAtTheFence,
    /// A call that may have run is not sent again.
    NoSecondAttempt,
    /// A state is sealed when the calls inside have finished.
    SealWaitsForCalls,
    /// The answers that are kept go with the state.
    AnswersTravel,
    /// A store refuses the writes of an earlier owner.
    FenceIsChecked,
    /// A copy is served only if the record names it.
    CopyIsNamed,
}

/// A module's answer, where it leaves its host, or where a node takes it from another one. Once for the message and once for
/// what follows it, or for both.
#[derive(Debug, Clone, Copy)]
pub struct Passing<'a> {
    /// Whose.
    pub module: &'a str,
    /// At which the gate is open that it leaves by, or that the other node says it was served at.
    pub epoch: u64,
    /// The node that it is taken from; none where it leaves.
    pub from: Option<&'a str>,
    /// As it is on a wire, where it is on one.
    pub message: Option<&'a [u8]>,
}

thread_local! {
    static PASSES: Cell<Option<fn(Passing<'_>)>> = const { Cell::new(None) };
    static MACHINE: RefCell<Option<Arc<dyn Machine>>> = const { RefCell::new(None) };
    static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    /// The object store that all nodes of a simulation reach.
    static OBJECTS: Arc<InMemory> = Arc::default();
}

/// From now on this thread is that machine; none is for what is no node.
pub fn take_turn(machine: Option<Arc<dyn Machine>>) {
    MACHINE.set(machine);
}

/// Whose turn it is.
///
/// # Panics
/// When it is nobody's: something of the node runs outside of the simulation.
pub(crate) fn machine() -> Arc<dyn Machine> {
    MACHINE.with_borrow(|machine| machine.clone()).expect("a node with the feature `simulation` runs in one")
}

/// Breaks a rule on this thread, or none.
pub fn break_rule(rule: Option<Rule>) {
    BROKEN.set(rule);
}

pub(crate) fn is_broken(rule: Rule) -> bool {
    BROKEN.get() == Some(rule)
}

/// Has somebody look at each answer on this thread, in the turn of the node that it is at.
pub fn watch_answers(watch: fn(Passing<'_>)) {
    PASSES.set(Some(watch));
}

pub(crate) fn passes(module: &ModuleName, epoch: Epoch, from: Option<&NodeId>, message: Option<&[u8]>) {
    if let Some(watch) = PASSES.get() {
        watch(Passing { module: module.as_str(), epoch: epoch.0, from: from.map(NodeId::as_str), message });
    }
}

/// The URL of the object store that all nodes of a simulation share.
pub const CHECKPOINTS: &str = "memory:///";

pub(crate) fn objects() -> Arc<InMemory> {
    OBJECTS.with(Arc::clone)
}

/// Names and contents of the checkpoints that are there, the oldest first.
#[must_use]
pub fn checkpoints() -> Vec<(String, Bytes)> {
    let objects = objects();
    // A store in memory keeps nobody waiting.
    let read = async {
        let listed: Vec<_> = objects.list(None).try_collect().await.ok()?;
        let mut all = Vec::new();
        for object in listed {
            all.push((object.location.to_string(), objects.get(&object.location).await.ok()?.bytes().await.ok()?));
        }
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Some(all)
    };
    read.now_or_never().flatten().unwrap_or_default()
}

/// The state in a checkpoint, without what is around it; none where it is not whole.
#[must_use]
pub fn state_of(checkpoint: Bytes) -> Option<Bytes> {
    crate::handoff::checkpoint::state_of(checkpoint)
}

/// Looks into a node, for checks after each step of a simulation.
#[derive(Debug, Clone)]
pub struct Observer {
    me: Incarnation,
    log: Log,
    state: watch::Receiver<Arc<State>>,
    lease_end: Arc<LeaseEnd>,
    table: Arc<Table>,
}

/// A module's record in the placement log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The index of the entry that changed it last.
    pub version: u64,
    /// See the design.
    pub epoch: u64,
    /// Name and generation of the owner; none where a module has several hosts.
    pub owner: Option<(String, u64)>,
    /// The owner has said that it serves.
    pub active: bool,
    /// Where it is about to move, and whether that node has said that it is prepared.
    pub moving_to: Option<(String, bool)>,
    /// The epoch of the last take-over.
    pub fence: u64,
    /// Who has the state that the owner must have before it serves: the node that sealed it, and its generation.
    pub sealed_by: Option<(String, u64)>,
}

/// What a node knows of the placement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The last entry that it has applied.
    pub index: u64,
    /// By module.
    pub records: BTreeMap<String, Record>,
}

impl Observer {
    pub(crate) fn new(cluster: &Cluster, table: Arc<Table>) -> Self {
        let log = cluster.log().clone();
        Self { me: cluster.me().clone(), state: log.state(), log, lease_end: cluster.lease_end(), table }
    }

    /// The node's name and generation.
    #[must_use]
    pub fn incarnation(&self) -> (String, u64) {
        (self.me.node.to_string(), self.me.generation)
    }

    /// The last entry that the node has applied.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.state.borrow().index
    }

    /// What it knows of the placement.
    #[must_use]
    pub fn placement(&self) -> Placement {
        let state = Arc::clone(&self.state.borrow());
        let records = state.parts.iter().map(|(module, part)| {
            let (owner, active) = match &part.hosting {
                Hosting::Exclusive { owner, active, .. } => (Some((owner.node.to_string(), owner.generation)), *active),
                Hosting::Replicated { .. } => (None, true),
            };
            let record = Record {
                version: part.version,
                epoch: part.epoch.0,
                owner,
                active,
                moving_to: part.moving().map(|moving| (moving.to.node.to_string(), moving.prepared)),
                fence: part.fence.0,
                sealed_by: part.seal().map(|seal| (seal.from.node.to_string(), seal.from.generation)),
            };
            (module.to_string(), record)
        });
        Placement { index: state.index, records: records.collect() }
    }

    /// The node that leads the placement log, as this one knows.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.log.leadership().borrow().leader.as_ref().map(|(_, node)| node.to_string())
    }

    /// Whether this node leads, and has shown that it can.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.log.leadership().borrow().is_me
    }

    /// The nodes that vote, as this one knows.
    #[must_use]
    pub fn voters(&self) -> Vec<String> {
        self.log.leadership().borrow().voters.values().map(ToString::to_string).collect()
    }

    /// The term of the consensus that this node knows of.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.log.leadership().borrow().term
    }

    /// Whether the lease of this node holds.
    #[must_use]
    pub fn lease_holds(&self) -> bool {
        self.lease_end.holds_now()
    }

    /// Whether a call of the service that came now would be let in here. The machine must have its turn.
    #[must_use]
    pub fn admits(&self, service: &str) -> bool {
        let Some(slot) = self.table.slots().find(|slot| slot.service() == service) else { return false };
        let target = slot.target();
        let local = match &**target {
            Target::Local(local) => Some(local),
            Target::Placed(placed) => placed.here.as_ref(),
            _ => None,
        };
        local.is_some_and(|local| local.pass(Chain::default(), Origin::Part).is_some())
    }

    /// How many calls wait for modules that are nowhere.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.table.slots().map(|slot| slot.facts().waiting()).sum()
    }
}

//! chitchat, and nothing of it beyond this file.
//!
//! ```text
//! setters ─▶ own: what this node says ─▶ ┐           ┌─▶ members (watch)
//! seeds ─▶ introduce: greet strangers ─▶ chitchat ─▶ run ─▶ superseded
//!                                          └─▶ peers, by UDP    └─▶ ended
//! ```
//!
//! Values of other nodes are seen when they arrive, deaths and load once a gossip round. A word goes to three nodes a
//! round by itself; a change of the lifecycle is pushed to all of them at once.
//!
//! **Invariant:** one member per name. chitchat knows each process under a name as a node of its own, and calls a dead
//! one alive until its silence is long enough; here the newest generation hides the others as soon as it is heard of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ListenerHandle, ProtocolVersion,
    spawn_chitchat, transport::Transport,
};
use outpost_proto::keys::gossip as keys;
use rand::seq::{IteratorRandom, SliceRandom};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info, warn};

use super::{
    Hosted, Lifecycle, Load, Member, Members,
    core::{self, Malformed, TooLarge},
    seeds::Seeds,
};
use crate::{
    id::{ModuleName, NodeId},
    net::UdpTransport,
    trust::{Seal, Shown},
};

/// How long a dead node is remembered. Longer, and dead nodes fill the datagrams of large clusters.
const GRACE: Duration = Duration::from_secs(15 * 60);
/// The most intervals that the failure detector judges by.
const WINDOW: usize = 200;
/// The load changes all the time: it is said, and shown, once in so many gossip rounds.
const LOAD_ROUNDS: u32 = 4;
/// How close to each other two looks at what chitchat knows may be.
const GAP: Duration = Duration::from_millis(50);
/// The most nodes that are told something at once; more learn it from those.
const PUSH_MAX: usize = 64;
/// How many seeds a node without company greets at once.
const GREET_MAX: usize = 8;
/// A leave is pushed so often: datagrams get lost, and nobody confirms.
const LEAVE_ROUNDS: usize = 3;
/// How long a peer's answer to a push may take; the news goes with the answer to that one.
const LEAVE_ROUND: Duration = Duration::from_millis(120);
/// How long chitchat may take to end.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How often malformed gossip is complained of, at the most.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// How to gossip.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) node: NodeId,
    /// Nodes of other names are not listened to.
    pub(crate) cluster: String,
    /// Where to listen, by UDP. A port, not 0: others connect to the same by TCP.
    pub(crate) listen: SocketAddr,
    pub(crate) seeds: Seeds,
    /// How to seal it; plain without.
    pub(crate) seal: Option<Seal>,
    /// The length of a gossip round.
    pub(crate) interval: Duration,
    /// How many usual intervals without a sign of life make a node dead.
    pub(crate) phi: f64,
    /// What the node says of itself at first. Its `generation` and its `address` (which others are told) are for good;
    /// `alive` means nothing.
    pub(crate) own: Member,
}

/// Gossip can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GossipError {
    #[error(
        "can't listen for gossip on {listen} by UDP: {problem}; set `cluster.listen` to a free address of this machine"
    )]
    Listen { listen: SocketAddr, problem: String },
    #[error("{advertise} is no address that others can send gossip to; set `cluster.advertise`")]
    Advertise { advertise: SocketAddr },
    #[error("the cluster's name has {bytes} bytes, and 255 are the most; set a shorter `cluster.name`")]
    ClusterName { bytes: usize },
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// The node's part in gossip. Cheap to clone; when the last is dropped without [`leave`](Self::leave), the node falls
/// silent, as if it had crashed.
#[derive(Clone)]
pub(crate) struct Membership {
    inner: Arc<Inner>,
}

struct Inner {
    /// Ends the tasks, and tells [`Membership::ended`] that the end is meant.
    stop: CancellationToken,
    _stopped: DropGuard,
    /// Cancelled when our own task is gone, for whatever reason.
    gone: CancellationToken,
    chitchat: Arc<ChitchatHandle>,
    node: NodeId,
    own: Arc<watch::Sender<Member>>,
    members: watch::Receiver<Arc<Members>>,
    /// None where there are no seeds to look for.
    seeds: Option<watch::Receiver<Vec<SocketAddr>>>,
    superseded: watch::Receiver<Option<u64>>,
    _tasks: JoinSet<()>,
}

#[cfg(not(feature = "simulation"))]
fn sealing(seal: Seal, config: &ChitchatConfig) -> Box<dyn Transport> {
    let own = config.chitchat_id.gossip_advertise_addr;
    Box::new(super::transport::Sealed { seal, cluster: config.cluster_id.clone(), own })
}

/// A simulated machine hands on messages as they are.
#[cfg(feature = "simulation")]
fn sealing(_: Seal, _: &ChitchatConfig) -> Box<dyn Transport> {
    Box::new(UdpTransport)
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl Membership {
    /// Begins to gossip. The members include this node at once.
    ///
    /// # Errors
    /// An address that can't be listened on, or more to say than gossip carries.
    pub(crate) async fn start(options: Options) -> Result<Self, GossipError> {
        let Options { node, cluster, listen, seeds, seal, interval, phi, own } = options;
        if own.address.port() == 0 || own.address.ip().is_unspecified() {
            return Err(GossipError::Advertise { advertise: own.address });
        }
        if cluster.len() > 255 {
            return Err(GossipError::ClusterName { bytes: cluster.len() });
        }
        let words = core::encode(&own)?;
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(node.as_str(), own.generation, own.address),
            cluster_id: cluster,
            gossip_interval: interval,
            listen_addr: listen,
            seed_nodes: Vec::new(), // they are ours: see `seeds`
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: phi,
                sampling_window_size: WINDOW,
                max_interval: interval * 10,
                initial_interval: interval,
                dead_node_grace_period: GRACE,
            },
            marked_for_deletion_grace_period: GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let transport: Box<dyn Transport> = match seal {
            Some(seal) => sealing(seal, &config),
            None => Box::new(UdpTransport),
        };
        let chitchat = spawn_chitchat(config, words, &*transport)
            .await
            .map_err(|error| GossipError::Listen { listen, problem: error.root_cause().to_string() })?;
        let chitchat = Arc::new(chitchat);

        let news = Arc::new(Notify::new());
        let bell = news.clone();
        // Under chitchat's lock: nothing but a bell. Load is looked at in its own time.
        let listener = chitchat.with_chitchat(|chitchat| {
            let bell = bell.clone();
            chitchat.subscribe_event("", move |event| {
                if event.key != keys::LOAD {
                    bell.notify_one();
                }
            })
        });
        let listener = listener.await;

        let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
        let lifecycle = own.lifecycle;
        let own = Arc::new(watch::channel(own).0);
        let (members_tx, members) = watch::channel(Arc::new(Members::new()));
        let (superseded_tx, superseded) = watch::channel(None);
        let live = chitchat.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
        let mut run = Run {
            chitchat: chitchat.clone(),
            node: node.clone(),
            own: own.clone(),
            told: lifecycle,
            members: members_tx,
            superseded: superseded_tx,
            known: BTreeMap::new(),
            rivals: BTreeMap::new(),
            patience: interval.mul_f64(phi) * 2,
            complaints: Complaints::default(),
            interval,
            _listener: listener,
            _gone: gone.clone().drop_guard(),
        };
        run.look(true).await;

        let mut tasks = JoinSet::new();
        let ended = stop.clone();
        tasks.spawn(async move {
            ended.run_until_cancelled(run.run(news, live)).await;
        });
        let mut sought = None;
        if !seeds.is_empty() {
            let (found, addresses) = watch::channel(Vec::new());
            sought = Some(addresses.clone());
            let greeting = introduce(chitchat.clone(), node.clone(), addresses, members.clone(), interval);
            let ended = stop.clone();
            tasks.spawn(async move {
                ended.run_until_cancelled(async { tokio::join!(seeds.watch(found), greeting) }).await;
            });
        }
        info!(node_id = %node, %listen, "gossip started");
        let inner = Inner {
            _stopped: stop.clone().drop_guard(),
            stop,
            gone,
            chitchat,
            node,
            own,
            members,
            seeds: sought,
            superseded,
            _tasks: tasks,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The members, this node among them. Those that died stay, with `alive` false, for about 15 minutes.
    pub(crate) fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.inner.members.clone()
    }

    /// The addresses that this node's seeds stand for, as they are found; none where it has no seeds.
    pub(crate) fn seeds(&self) -> Option<watch::Receiver<Vec<SocketAddr>>> {
        self.inner.seeds.clone()
    }

    /// Says how far this node is. Once it leaves, that is its last word.
    pub(crate) fn set_lifecycle(&self, lifecycle: Lifecycle) {
        self.inner.own.send_if_modified(|own| {
            let new = own.lifecycle != lifecycle && own.lifecycle != Lifecycle::Leaving;
            if new {
                own.lifecycle = lifecycle;
            }
            new
        });
    }

    /// Says how busy this node is. Cheap: others are told every few rounds.
    pub(crate) fn set_load(&self, load: Load) {
        // Not announced to our own task either, which asks for it in its own time.
        self.inner.own.send_if_modified(|own| {
            own.load = load;
            false
        });
    }

    /// Says which cluster this node belongs to.
    ///
    /// # Errors
    /// [`TooLarge`]; others are told nothing new then.
    pub(crate) fn set_cluster(&self, cluster: &str) -> Result<(), TooLarge> {
        self.change(|own| cluster.clone_into(&mut own.cluster))
    }

    /// Says where clients reach this node.
    ///
    /// # Errors
    /// [`TooLarge`]; others are told nothing new then.
    pub(crate) fn set_ingress(&self, ingress: &str, tls: bool) -> Result<(), TooLarge> {
        self.change(|own| {
            ingress.clone_into(&mut own.ingress);
            own.ingress_tls = tls;
        })
    }

    /// Says where operators reach this node.
    ///
    /// # Errors
    /// [`TooLarge`]; others are told nothing new then.
    pub(crate) fn set_admin(&self, admin: &str) -> Result<(), TooLarge> {
        self.change(|own| admin.clone_into(&mut own.admin))
    }

    /// Says what this node shows to others.
    ///
    /// # Errors
    /// [`TooLarge`]; others are told nothing new then.
    pub(crate) fn set_trust(&self, trust: Shown) -> Result<(), TooLarge> {
        self.change(|own| own.trust = trust)
    }

    /// Says what this node hosts. Errors of instances are shortened.
    ///
    /// # Errors
    /// [`TooLarge`]; others are told nothing new then.
    pub(crate) fn set_hosting(&self, hosting: BTreeMap<ModuleName, Hosted>) -> Result<(), TooLarge> {
        self.change(|own| own.hosting = hosting)
    }

    fn change(&self, change: impl FnOnce(&mut Member)) -> Result<(), TooLarge> {
        let mut outcome = Ok(());
        self.inner.own.send_if_modified(|own| {
            let mut changed = own.clone();
            change(&mut changed);
            if changed == *own {
                return false;
            }
            match core::encode(&changed) {
                Ok(_) => {
                    *own = changed;
                    true
                }
                Err(error) => {
                    outcome = Err(error);
                    false
                }
            }
        });
        outcome
    }

    /// Tells the others that this node leaves, and falls silent. Takes less than half a second, and no time without
    /// others.
    ///
    /// Each of up to 64 live nodes is told three times, since datagrams get lost and none is confirmed; in larger
    /// clusters the rest hears it from those. A node that hears it by no way finds out by silence.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the node saying that it leaves, and gossiping.
    pub(crate) async fn leave(&self) {
        let Inner { chitchat, own, stop, node, members, .. } = &*self.inner;
        if stop.is_cancelled() {
            return;
        }
        // First here, so that no later word of our own task takes it back.
        own.send_modify(|own| own.lifecycle = Lifecycle::Leaving);
        chitchat
            .with_chitchat(|chitchat| {
                chitchat.self_node_state().set(keys::LIFECYCLE, core::lifecycle(Lifecycle::Leaving));
            })
            .await;
        let peers = peers(node, &members.borrow().clone());
        if !peers.is_empty() {
            let each = peers.len().min(PUSH_MAX);
            let mut turn = peers.iter().cycle();
            for _ in 0..LEAVE_ROUNDS {
                greet(chitchat, turn.by_ref().take(each).copied());
                sleep(LEAVE_ROUND).await;
            }
        }
        stop.cancel();
        // Both fail only where it has ended.
        let _ = chitchat.initiate_shutdown();
        if timeout(END_LIMIT, chitchat.termination_watcher()).await.is_err() {
            warn!(node_id = %node, "gossip does not end; it is cut off");
            chitchat.abort();
        }
        info!(node_id = %node, told = peers.len(), "gossip ended");
    }

    /// Waits until gossip has ended though nobody wanted it to, and says why. The process should end then: others take
    /// it for dead, and it sees nobody.
    pub(crate) fn ended(&self) -> impl Future<Output = String> + Send + use<> {
        let (watcher, gone, stop) =
            (self.inner.chitchat.termination_watcher(), self.inner.gone.clone(), self.inner.stop.clone());
        async move {
            let reason = tokio::select! {
                result = watcher => match result {
                    Ok(()) => "it was shut down".to_owned(),
                    Err(error) => error.to_string(),
                },
                () = gone.cancelled() => "the view of the members is gone".to_owned(),
            };
            if stop.is_cancelled() {
                std::future::pending::<()>().await;
            }
            reason
        }
    }

    /// Waits until another process under this node's name is alive and has a higher generation, which is the result.
    /// This process is not the node any more then. (Of two with one generation, that with the higher address yields.)
    pub(crate) fn superseded(&self) -> impl Future<Output = u64> + Send + use<> {
        let mut superseded = self.inner.superseded.clone();
        async move {
            loop {
                match superseded.wait_for(Option::is_some).await.map(|generation| *generation) {
                    Ok(Some(generation)) => return generation,
                    Ok(None) => {}
                    Err(_) => std::future::pending().await, // gossip ended: nobody will tell
                }
            }
        }
    }
}

/// All other nodes in random order, those that seem alive first.
fn peers(node: &NodeId, members: &Members) -> Vec<SocketAddr> {
    let others = |alive| {
        let mut addresses: Vec<_> = members
            .iter()
            .filter(|(name, member)| *name != node && member.alive == alive)
            .map(|(_, member)| member.address)
            .collect();
        addresses.shuffle(&mut rand::rng());
        addresses
    };
    // A node that was heard of a moment ago is not called alive yet, and should know all the same.
    let mut peers = others(true);
    peers.extend(others(false));
    peers
}

/// Begins an exchange with each of `addresses`: they get all that is new here, and the other way round.
fn greet(chitchat: &ChitchatHandle, addresses: impl Iterator<Item = SocketAddr>) {
    for address in addresses {
        // Fails where chitchat has ended, which `ended` tells.
        let _ = chitchat.gossip(address);
    }
}

/// Greets seeds: several at once while this node is alone, later one of those that are no live member.
async fn introduce(
    chitchat: Arc<ChitchatHandle>,
    node: NodeId,
    mut seeds: watch::Receiver<Vec<SocketAddr>>,
    members: watch::Receiver<Arc<Members>>,
    interval: Duration,
) {
    loop {
        let (own, company): (Option<SocketAddr>, BTreeSet<SocketAddr>) = {
            let members = members.borrow();
            let others = members.iter().filter(|(name, member)| **name != node && member.alive);
            (members.get(&node).map(|own| own.address), others.map(|(_, member)| member.address).collect())
        };
        let alone = company.is_empty();
        let strangers = {
            let seeds = seeds.borrow_and_update();
            let strangers = seeds.iter().copied().filter(|seed| Some(*seed) != own && !company.contains(seed));
            strangers.sample(&mut rand::rng(), if alone { GREET_MAX } else { 1 })
        };
        greet(&chitchat, strangers.into_iter());
        let pause = if alone { interval } else { interval * LOAD_ROUNDS };
        tokio::select! {
            () = sleep(pause) => {}
            changed = seeds.changed() => if changed.is_err() { return },
        }
    }
}

/// What chitchat knew of a process when it was last looked at.
struct Known {
    /// Changes with each value.
    version: (u64, u64),
    /// Nothing while it has not said all, or nonsense.
    member: Option<(NodeId, Member)>,
}

/// The task that keeps chitchat told, and the members shown.
struct Run {
    chitchat: Arc<ChitchatHandle>,
    node: NodeId,
    own: Arc<watch::Sender<Member>>,
    /// The lifecycle that was pushed last.
    told: Lifecycle,
    members: watch::Sender<Arc<Members>>,
    superseded: watch::Sender<Option<u64>>,
    /// Parsed once, since most of what is looked at has not changed.
    known: BTreeMap<ChitchatId, Known>,
    /// Other processes under this node's name, with when they were first noticed.
    rivals: BTreeMap<(u64, SocketAddr), Rival>,
    /// How long a rival may be in view before it is complained of: a restarted node hears its former self for a while.
    patience: Duration,
    complaints: Complaints,
    interval: Duration,
    _listener: ListenerHandle,
    _gone: DropGuard,
}

struct Rival {
    since: Instant,
    warned: bool,
}

impl Run {
    async fn run(mut self, news: Arc<Notify>, mut live: watch::Receiver<BTreeMap<ChitchatId, chitchat::NodeState>>) {
        let mut own = self.own.subscribe();
        let mut tick = interval(self.interval * LOAD_ROUNDS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (say, with_load) = tokio::select! {
                _ = tick.tick() => (true, true),
                () = news.notified() => (false, false),
                changed = live.changed() => match changed {
                    Ok(()) => (false, false),
                    Err(_) => return,
                },
                changed = own.changed() => match changed {
                    Ok(()) => (true, false),
                    Err(_) => return,
                },
            };
            live.mark_unchanged();
            if say {
                self.say(with_load).await;
            }
            self.look(with_load).await;
            sleep(GAP.min(self.interval / 4)).await;
        }
    }

    /// Tells chitchat what is new of this node.
    async fn say(&mut self, with_load: bool) {
        let own = &self.own;
        let outcome = self
            .chitchat
            .with_chitchat(|chitchat| {
                // Read under the lock: what is said last is what was set last.
                let own = own.borrow().clone();
                core::encode(&own).map(|words| {
                    let state = chitchat.self_node_state();
                    let said = |key: &str| words.iter().any(|(word, _)| word == key);
                    let former: Vec<String> =
                        state.key_values().map(|(key, _)| key).filter(|key| !said(key)).map(str::to_owned).collect();
                    for (key, value) in &words {
                        if with_load || key != keys::LOAD {
                            state.set(key, value);
                        }
                    }
                    // An object has got shorter. A tombstone would make nodes that were away start anew.
                    for key in former {
                        state.set(key, core::EMPTY);
                    }
                    own.lifecycle
                })
            })
            .await;
        match outcome {
            Ok(lifecycle) if lifecycle != self.told => {
                self.told = lifecycle;
                let peers = peers(&self.node, &self.members.borrow().clone());
                greet(&self.chitchat, peers.into_iter().take(PUSH_MAX));
            }
            Ok(_) => {}
            Err(error) => warn!(node_id = %self.node, %error, "others are not told what is new of this node"),
        }
    }

    /// Shows what chitchat knows now. A view in which only load is new waits for its turn.
    async fn look(&mut self, with_load: bool) {
        let now = Instant::now();
        let (known, complaints) = (&mut self.known, &mut self.complaints);
        let (alive, own) = self
            .chitchat
            .with_chitchat(|chitchat| {
                refresh(known, chitchat, |id, problem| complaints.add(now, id, &problem));
                let alive: BTreeSet<ChitchatId> = chitchat.live_nodes().cloned().collect();
                (alive, chitchat.self_chitchat_id().clone())
            })
            .await;
        self.judge_rivals(now, &own, &alive);
        let members = core::newest(self.known.iter().filter_map(|(id, known)| {
            let (node, member) = known.member.as_ref()?;
            Some((node.clone(), Member { alive: alive.contains(id), ..member.clone() }))
        }));
        self.members.send_if_modified(|shown| {
            let same = if with_load { **shown == members } else { core::same_but_for_load(shown, &members) };
            if !same {
                debug!(members = members.len(), "members changed");
                *shown = Arc::new(members);
            }
            !same
        });
    }

    /// Looks for other processes under this node's name.
    fn judge_rivals(&mut self, now: Instant, own: &ChitchatId, alive: &BTreeSet<ChitchatId>) {
        let place = |id: &ChitchatId| (id.generation_id, id.gossip_advertise_addr);
        let namesakes: Vec<_> = self.known.keys().filter(|id| id.node_id == own.node_id && *id != own).collect();
        self.rivals.retain(|rival, _| namesakes.iter().any(|id| place(id) == *rival));
        for id in namesakes {
            let newer = core::supersedes(place(id), place(own));
            let (generation, address) = place(id);
            if newer && alive.contains(id) {
                // Of several, the first is reason enough.
                let first = self.superseded.send_if_modified(|superseded| {
                    let first = superseded.is_none();
                    superseded.get_or_insert(generation);
                    first
                });
                if first {
                    error!(node_id = %self.node, generation, %address, "a newer process has this node's name");
                }
                continue;
            }
            if !newer && !alive.contains(id) {
                self.rivals.remove(&place(id));
                continue;
            }
            let rival = self.rivals.entry(place(id)).or_insert(Rival { since: now, warned: false });
            if rival.warned || now.duration_since(rival.since) < self.patience {
                continue;
            }
            rival.warned = true;
            if newer {
                warn!(
                    node_id = %self.node, generation, %address,
                    "this node's name was last used with a higher generation, so others do not see this process until \
                     they forget that one; did the clock go back? with `node.data_dir` it does no harm"
                );
            } else {
                warn!(
                    node_id = %self.node, generation, %address,
                    "an older process with this node's name still runs; names must be unique: see `node.name`"
                );
            }
        }
    }
}

/// Parses what is new, and forgets what chitchat has forgotten.
fn refresh(
    known: &mut BTreeMap<ChitchatId, Known>,
    chitchat: &Chitchat,
    mut complain: impl FnMut(&ChitchatId, Malformed),
) {
    let states = chitchat.node_states();
    known.retain(|id, _| states.contains_key(id));
    for (id, state) in states {
        let version = (state.max_version(), state.last_gc_version());
        if known.get(id).is_some_and(|known| known.version == version) {
            continue;
        }
        let parsed = core::name(&id.node_id, id.gossip_advertise_addr).and_then(|node| {
            let member = core::decode(id.generation_id, id.gossip_advertise_addr, state.key_values())?;
            Ok(member.map(|member| (node, member)))
        });
        let member = parsed.unwrap_or_else(|problem| {
            complain(id, problem);
            None
        });
        known.insert(id.clone(), Known { version, member });
    }
}

/// Warnings of malformed gossip, not more than one in a while.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn add(&mut self, now: Instant, id: &ChitchatId, problem: &Malformed) {
        if self.last.is_some_and(|last| now.duration_since(last) < COMPLAIN_EVERY) {
            self.unsaid += 1;
            return;
        }
        let unsaid = std::mem::take(&mut self.unsaid);
        self.last = Some(now);
        warn!(peer_node_id = ?id, error = %problem, unsaid, "a node is ignored, since its gossip makes no sense");
    }
}

#[cfg(test)]
mod tests;

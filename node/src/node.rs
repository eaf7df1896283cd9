//! A running node: wiring only.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use outpost_proto::admin::v1::{self as admin, DescribeResponse};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;
use tonic_health::server::{HealthReporter, health_reporter};

use crate::{
    admin::{self as admin_api, guard::Guarded},
    app::App,
    call::{
        self, Channel, Handle, Route, Tonic,
        dedupe::Bounds,
        destination::Preference,
        slot::{ModuleFacts, Patience, Slot},
        table::Table,
    },
    cluster,
    cluster::{Cluster, Failure},
    config::{Listen, Loaded, Settings},
    handoff::{
        checkpoint::Checkpoints,
        driver::{Driver, Order, Runnable, Surroundings},
    },
    health::{self, Phase},
    id::ModuleName,
    ingress::{Front, Server},
    membership::{Hosted, Instance},
    module::{Limits, Program, Waits},
    net::{TcpListener, TcpSocket},
    placement::{interface::Interface, spec::StateClass, state::Declared},
    reflection::Reflection,
    status::StartError,
    telemetry::{self, Telemetry},
    trust::{self, Acceptor, Admission, Seal, Trust, callers::CallPolicy},
};

/// A running node: the modules of a program that are placed on it, and the listeners for clients, nodes and operators.
///
/// Dropping it ends everything at once; [`Node::stop`] hands over and lets calls finish.
#[derive(Debug)]
pub struct Node {
    phase: watch::Sender<Phase>,
    health_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    facts: Arc<Facts>,
    ingress: Server,
    admin: Option<Server>,
    health: HealthReporter,
    /// The table of the ingress.
    served: Arc<Table>,
    settings: Settings,
    table: Arc<Table>,
    orders: mpsc::Sender<Order>,
    cluster: Cluster,
    /// The driver, and what keeps the node's view of others fresh. Dropping it ends them.
    _tasks: JoinSet<()>,
}

/// The tasks of modules get this long to end, even when calls have used up the time to stop.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// What stopping a node cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Calls in flight at the deadline.
    pub calls_cut: usize,
    /// Modules' tasks that still ran at the deadline.
    pub tasks_cut: usize,
}

/// No module of this program serves the service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no module of this program serves `{0}`")]
pub struct NoService(&'static str);

/// Tells the nodes of one process apart.
static NODES: AtomicU32 = AtomicU32::new(0);

impl Node {
    pub(crate) async fn start(app: App, program: Program, loaded: Loaded) -> Result<Self, StartError> {
        let origin = |key: &'static str| (key, loaded.origin(key));
        // Addresses and certificates first: cheap, and what is most often wrong.
        let Settings { ingress, admin, cluster, .. } = &loaded.settings;
        let tls = ingress.tls.as_ref().map(Acceptor::for_clients).transpose()?;
        let name = if cluster.name.is_empty() { &app.name } else { &cluster.name }.clone();
        let trust = Trust::load(&loaded.settings, &name)?;
        let seal = Seal::load(&loaded.settings.trust)?;
        let admission = Admission::load(admin, &trust)?;
        let certificates = ingress.tls.as_ref().is_some_and(|tls| tls.client_authorities.is_some());
        let (of_callers, unmarked) = (&loaded.settings.callers, ingress.unmarked_modules);
        let callers = CallPolicy::load(of_callers, unmarked, services(&app, &program), certificates)?;
        let listen = Bound::to(ingress.listen, origin("ingress.listen"))?;
        let admin_listen = admin.enabled.then(|| Bound::to(admin.listen, origin("admin.listen"))).transpose()?;
        let cluster_listen = Bound::to(cluster.listen, origin("cluster.listen"))?.listen()?;
        let health_listen = loaded.settings.health.listen;
        let health_listen = health_listen.map(|listen| Bound::to(listen, origin("health.listen"))).transpose()?;
        let health_listen = health_listen.map(Bound::listen).transpose()?;
        let metrics_listen = loaded.settings.metrics.listen;
        let metrics_listen = metrics_listen.map(|listen| Bound::to(listen, origin("metrics.listen"))).transpose()?;
        let metrics_listen = metrics_listen.map(Bound::listen).transpose()?;
        let Loaded { settings, modules: configs, .. } = loaded;

        let waits = Arc::new(Waits::new(NODES.fetch_add(1, Ordering::Relaxed), program.names.clone()));
        let hinted = Arc::new(Notify::new());
        let patience = Patience { wait: settings.cluster.call_wait.get(), most: settings.cluster.max_waiting_calls };
        let facts = Arc::new(Facts::new(&app, &program, &callers, patience, &hinted));
        let modules = runnables(&app, &program, configs, &facts, &waits);
        let (health, health_server) = health_reporter();
        let own = [Arc::new(Slot::built_in(HEALTH, Box::new(Tonic(health_server))))];
        // The application's come last, so that a module may bring a health service of its own.
        let slots = modules.values().flat_map(|module| module.slots.iter().cloned());
        let table = Arc::new(Table::new(own.into_iter().chain(slots)));
        let reflection = Arc::new(reflection(&app, &table, callers.clone()));

        let (declared, interfaces) = declared(&app, &program, &reflection)?;
        // From the start: what keeps the node from joining may be in one of them.
        let followed = trust.follows().into_iter().chain(tls.as_ref().and_then(Acceptor::follows));
        let followed = followed.chain(seal.as_ref().map(Seal::follows)).chain(admission.follows());
        let followed: Vec<_> = followed.chain(callers.follows()).collect();
        let mut tasks = JoinSet::new();
        tasks.spawn(trust::follow(followed.clone()));
        // From the start, too: a node that waits for its cluster is alive.
        let phase = watch::Sender::new(Phase::Joining);
        let health_address = health_listen.as_ref().and_then(|listener| listener.local_addr().ok());
        if let Some(listener) = health_listen {
            tasks.spawn(health::serve(listener, phase.subscribe()));
        }
        let trusted = (trust.clone(), seal.clone(), followed.clone());
        let telemetry = Arc::new(Telemetry::new(Arc::clone(&facts), callers.clone(), trusted, tls.clone()));
        let metrics_address = metrics_listen.as_ref().and_then(|listener| listener.local_addr().ok());
        if let Some(listener) = metrics_listen {
            tasks.spawn(telemetry::serve(listener, Arc::clone(&telemetry)));
        }

        let joining = cluster::Joining {
            application: &app.name,
            version: &app.version,
            declared,
            interfaces,
            cluster: &name,
            settings: &settings,
            trust: trust.clone(),
            seal: seal.clone(),
            followed,
            listener: cluster_listen,
            table: Arc::clone(&table),
        };
        let cluster = Cluster::join(joining).await?;
        phase.send_replace(Phase::Starting);

        let max_state = settings.cluster.max_state_size.bytes();
        let checkpointed = app.modules.iter().any(|module| module.state == StateClass::Checkpointed);
        if checkpointed && settings.checkpoints.url.is_empty() {
            tracing::warn!(
                "checkpoints are kept where only this node finds them; set `checkpoints.url` to a place that every node \
                 reaches, or a crash of this node loses the state of its checkpointed modules"
            );
        }
        let place = checkpointed.then(|| checkpoint_url(&settings)).flatten();
        let checkpoints = Checkpoints::open(place.as_deref(), cluster.log().cluster(), max_state)?;
        let max_message = usize::try_from(settings.ingress.max_message_size.bytes()).unwrap_or(usize::MAX);
        let around = Surroundings {
            me: cluster.me().clone(),
            trust: trust.clone(),
            log: cluster.log().clone(),
            membership: cluster.membership().clone(),
            lease: cluster.lease(),
            lease_end: cluster.lease_end(),
            offers: cluster.offers(),
            checkpoints,
            table: Arc::clone(&table),
            waits,
            hinted,
            limits: Limits::new(max_message),
            start_timeout: settings.node.start_timeout.get(),
            drain_timeout: settings.cluster.drain_timeout.get(),
            stream_grace: settings.cluster.stream_grace.get(),
            seal_timeout: settings.cluster.seal_timeout.get(),
            handover_timeout: settings.cluster.handover_timeout.get(),
            max_state,
            prefer: preference(&settings),
            dedupe: Bounds {
                entries: settings.cluster.dedupe_entries,
                bytes: usize::try_from(settings.cluster.dedupe_bytes.bytes()).unwrap_or(usize::MAX),
            },
        };
        let mut driver = Driver::new(around, modules);
        facts.hosting.set(driver.hosting()).ok();
        telemetry.joined(telemetry::Joined {
            view: cluster.view(),
            lease: cluster.lease_end(),
            links: driver.links(),
            pauses: driver.pauses(),
        });
        if cluster.is_alone() {
            // A module that does not start has nowhere else to be, so neither does the node.
            cluster.settled().await;
            // Of which it is sure only when it has heard so from most voters, even if that is itself.
            let _ = cluster.lease().wait_for(Option::is_some).await;
            driver.start_all().await?;
        }
        let (orders, received) = mpsc::channel(4);
        tasks.spawn(driver.run(received));

        let served = Arc::new(with_reflection(&table, &reflection, &settings)?);
        for slot in served.slots() {
            health.set_service_status(slot.service(), tonic_health::ServingStatus::Serving).await;
        }
        let origins = settings.ingress.grpc_web.then_some(settings.ingress.grpc_web_origins.as_slice());
        let front = Front::new(Arc::clone(&served), origins, callers);
        let ingress = Server::start(listen.listen()?, tls, front.clone(), &settings.ingress);
        facts.serving(&ingress, front.calls().clone(), settings.ingress.tls.is_some());
        facts.cluster.set((cluster.me().node.to_string(), cluster.address())).ok();
        let admin = match admin_listen {
            Some(bound) => {
                let operators = admin_api::server(Arc::clone(&facts), cluster.view());
                let acceptor = Acceptor::for_operators(&trust, &admission);
                let guarded = Guarded { api: Tonic(operators), admission, strangers: Mutex::default() };
                let api = Slot::built_in(ADMIN, Box::new(guarded));
                let front = Front::new(Arc::new(Table::new([Arc::new(api)])), None, CallPolicy::default());
                Some(Server::start(bound.listen()?, acceptor, front, &settings.ingress))
            }
            None => None,
        };
        let serving = cluster::Serving {
            ingress: (ingress.address, settings.ingress.tls.is_some()),
            admin: admin.as_ref().map(|server| server.address),
            calls: front.calls().clone(),
            connections: Arc::clone(&ingress.connections),
        };
        tasks.spawn(cluster.announce(serving));
        phase.send_replace(Phase::Serving);
        Ok(Self {
            phase,
            health_address,
            metrics_address,
            facts,
            ingress,
            admin,
            health,
            served,
            settings,
            table,
            orders,
            cluster,
            _tasks: tasks,
        })
    }

    /// Where clients connect, with the port that was chosen if the setting said 0.
    #[must_use]
    pub fn ingress_address(&self) -> SocketAddr {
        self.ingress.address
    }

    /// Where operators connect.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|server| server.address)
    }

    /// Where an orchestrator asks whether it is well, where that was set.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }

    /// Where Prometheus asks, where that was set.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where other nodes connect.
    #[must_use]
    pub fn cluster_address(&self) -> SocketAddr {
        self.cluster.address()
    }

    /// A transport for stock tonic clients, to any module, wherever it is.
    #[must_use]
    pub fn channel(&self) -> Channel {
        Channel::new(Arc::clone(&self.table))
    }

    /// Waits until the node can't be part of its cluster any more, and says why: another process has its name, or its
    /// gossip or its placement log has ended. It should be stopped then, and the process should end.
    pub async fn failed(&self) -> Failure {
        self.cluster.failed().await
    }

    /// Looks into this node.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    #[must_use]
    pub fn observer(&self) -> crate::simulation::Observer {
        crate::simulation::Observer::new(&self.cluster, Arc::clone(&self.table))
    }

    /// A handle for the part of the program that is not a module.
    ///
    /// # Errors
    /// [`NoService`] when no module serves it.
    pub fn handle<H: Handle>(&self) -> Result<H, NoService> {
        let slot = self.table.service(H::SERVICE).map_err(|_| NoService(H::SERVICE))?;
        Ok(H::from_route(Route::new(Arc::clone(slot))))
    }

    /// What the node is and runs, as its admin API tells it.
    #[must_use]
    pub fn describe(&self) -> DescribeResponse {
        self.facts.describe()
    }

    /// Stops: hands over what it hosts to other nodes, where there are some; health says so, no connection is admitted,
    /// calls in flight finish, then modules end. What is left after `node.stop_timeout` is cut off; modules' tasks have
    /// 5 seconds after that.
    ///
    /// # Cancel safety
    /// Dropping the future ends everything at once, as dropping the node does.
    pub async fn stop(self) -> Stopped {
        let deadline = Instant::now() + self.settings.node.stop_timeout.get();
        self.facts.stopping.set(()).ok();
        self.phase.send_replace(Phase::Stopping);
        self.cluster.go();
        // Half of the time: what can't be handed over must not use up what calls in flight need.
        let handed_over = Instant::now() + self.settings.node.stop_timeout.get() / 2;
        let _ = timeout_at(handed_over, self.cluster.handed_over()).await;
        let _ = self.orders.send(Order::Drain).await;
        for slot in self.served.slots() {
            self.health.set_service_status(slot.service(), tonic_health::ServingStatus::NotServing).await;
        }
        self.health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        // Other nodes look for their modules elsewhere, or wait until there is a place.
        self.cluster.refuse_calls();
        let calls_cut = self.ingress.stop(deadline).await;
        let calls_cut = calls_cut + self.cluster.finish_calls(deadline).await;
        let grace = deadline.saturating_duration_since(Instant::now()).max(LAST_GRACE);
        let (done, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Stop { grace, done }).await;
        let tasks_cut = answer.await.unwrap_or_default();
        self.cluster.leave().await;
        if let Some(admin) = self.admin {
            admin.stop(Instant::now()).await;
        }
        Stopped { calls_cut, tasks_cut }
    }
}

const HEALTH: &str = "grpc.health.v1.Health";
const ADMIN: &str = "outpost.admin.v1.Admin";

/// An address that is ours, but that nobody can connect to yet: who does so finds a node that serves.
struct Bound {
    socket: TcpSocket,
    address: Listen,
    setting: (&'static str, String),
}

impl Bound {
    /// `setting` is the key that holds the address, and where that was set.
    fn to(address: Listen, setting: (&'static str, String)) -> Result<Self, StartError> {
        let bind = || {
            let socket = if address.address().is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // Connections of a process that has just ended do not keep the port.
            socket.set_reuseaddr(true)?;
            socket.bind(address.address())?;
            Ok(socket)
        };
        match bind() {
            Ok(socket) => Ok(Self { socket, address, setting }),
            Err(error) => Err(refused(address, setting, error)),
        }
    }

    fn listen(self) -> Result<TcpListener, StartError> {
        self.socket.listen(1024).map_err(|error| refused(self.address, self.setting, error))
    }
}

fn refused(address: Listen, (key, origin): (&'static str, String), error: io::Error) -> StartError {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "end the program that uses it, or choose another port (0 is any free one)",
        io::ErrorKind::AddrNotAvailable => "choose an address of this machine",
        io::ErrorKind::PermissionDenied => "choose a port from 1024 up, or run with the right to use this one",
        _ => "choose another address",
    };
    StartError::Listen { address: address.to_string(), key, origin, error, remedy }
}

/// Where checkpoints are kept; `None` is in memory, for a node that keeps nothing else either.
fn checkpoint_url(settings: &Settings) -> Option<String> {
    let url = &settings.checkpoints.url;
    if !url.is_empty() {
        return Some(url.clone());
    }
    let folder = std::path::absolute(settings.node.data_dir.as_ref()?.join("checkpoints")).ok()?;
    url::Url::from_directory_path(folder).ok().map(String::from)
}

/// Which hosts of a replicated module are called rather than others.
fn preference(settings: &Settings) -> Preference {
    let label = &settings.cluster.zone_label;
    let zone = settings.node.labels.get(label).filter(|value| !value.is_empty());
    Preference { local: settings.cluster.prefer_local, zone: zone.map(|zone| (label.clone(), zone.clone())) }
}

type Configs = BTreeMap<String, Box<dyn std::any::Any + Send>>;

/// Each module, as the driver runs it.
fn runnables(
    app: &App,
    program: &Program,
    mut configs: Configs,
    facts: &Facts,
    waits: &Arc<Waits>,
) -> BTreeMap<ModuleName, Runnable> {
    let modules = app.modules.iter().zip(&program.names).zip(&facts.modules).enumerate();
    let runnable = modules.map(|(index, ((module, name), entry))| {
        let slots = module.services.iter().map(|service| {
            Arc::new(Slot::starting((*service).to_owned(), Arc::clone(&entry.shared), Arc::clone(waits)))
        });
        let runnable = Runnable {
            index,
            factory: Arc::clone(&module.factory),
            config: configs.remove(name.as_str()).map(|config| Arc::new(Mutex::new(config))),
            state: module.states.first().copied(),
            class: module.state,
            checkpoint_every: module.checkpoint_every,
            facts: Arc::clone(&entry.shared),
            declared: Arc::new(call::Declared { module: name.clone(), calls: program.calls[name].clone() }),
            slots: slots.collect(),
        };
        (name.clone(), runnable)
    });
    runnable.collect()
}

/// The services of each module.
fn services(app: &App, program: &Program) -> BTreeMap<ModuleName, Vec<String>> {
    let services = app.modules.iter().map(|module| module.services.iter().map(ToString::to_string).collect());
    program.names.iter().cloned().zip(services).collect()
}

/// How many bytes all interfaces of a program may take in the log, packed. They are in one entry, in base64.
const INTERFACES: usize = 512 << 10;

/// What the cluster should know of each module, and what those look like of which something is known, by digest.
type Declaration = (BTreeMap<ModuleName, Declared>, BTreeMap<String, Interface>);

fn declared(app: &App, program: &Program, reflection: &Reflection) -> Result<Declaration, StartError> {
    let (mut all, mut interfaces) = (BTreeMap::new(), BTreeMap::new());
    let mut left = INTERFACES;
    for (name, module) in program.names.iter().zip(&app.modules) {
        let services: Vec<String> = module.services.iter().map(ToString::to_string).collect();
        let mut declared = Declared { kind: module.kind, state: module.state, services, interface: None };
        let descriptors = reflection.descriptors_of(&declared.services);
        if !descriptors.is_empty() {
            let (digest, interface) = Interface::pack(&descriptors);
            interface.services().map_err(|error| StartError::Descriptors(error.to_string()))?;
            match left.checked_sub(interface.len()) {
                Some(rest) => {
                    left = rest;
                    declared.interface = Some(digest.clone());
                    interfaces.insert(digest, interface);
                }
                None => {
                    tracing::warn!(
                        module = %name,
                        bytes = interface.len(),
                        left,
                        "versions of this module are not compared, since the log takes no larger descriptors of a program than \
                         512 KiB, compressed; fewer imports make them smaller"
                    );
                }
            }
        }
        all.insert(name.clone(), declared);
    }
    Ok((all, interfaces))
}

fn reflection(app: &App, table: &Table, callers: CallPolicy) -> Reflection {
    let services = table.slots().cloned().collect();
    let given = app.modules.iter().flat_map(|module| module.descriptors.iter().copied());
    Reflection::new(services, callers, given.chain([tonic_health::pb::FILE_DESCRIPTOR_SET]).collect())
}

/// The table of the ingress: the node's, and server reflection on what is in it.
fn with_reflection(table: &Table, reflection: &Reflection, settings: &Settings) -> Result<Table, StartError> {
    let slots: Vec<Arc<Slot>> = table.slots().cloned().collect();
    if !settings.ingress.reflection {
        return Ok(Table::new(slots));
    }
    Ok(Table::new(reflection.slots()?.into_iter().chain(slots)))
}

/// What can be said about a node.
#[derive(Debug)]
pub(crate) struct Facts {
    application: String,
    version: String,
    started: Instant,
    modules: Vec<ModuleEntry>,
    cycles: Vec<Vec<ModuleName>>,
    serving: OnceLock<Serving>,
    /// The node's name and its address for other nodes.
    cluster: OnceLock<(String, SocketAddr)>,
    /// What runs on this node.
    hosting: OnceLock<watch::Receiver<BTreeMap<ModuleName, Hosted>>>,
    stopping: OnceLock<()>,
}

#[derive(Debug)]
struct ModuleEntry {
    shared: Arc<ModuleFacts>,
    services: Vec<String>,
    calls: Vec<String>,
}

#[derive(Debug)]
struct Serving {
    address: SocketAddr,
    tls: bool,
    connections: Arc<AtomicUsize>,
    calls: TaskTracker,
}

impl Facts {
    /// Of a program that does not run.
    pub(crate) fn declared(app: &App, program: &Program) -> DescribeResponse {
        let patience = Patience { wait: Duration::ZERO, most: 0 };
        Self::new(app, program, &CallPolicy::default(), patience, &Arc::default()).describe_as(|_| "declared")
    }

    fn new(app: &App, program: &Program, callers: &CallPolicy, patience: Patience, hinted: &Arc<Notify>) -> Self {
        let modules = app.modules.iter().zip(&program.names).map(|(module, name)| ModuleEntry {
            // What can't travel stays with its module, which does not move by itself.
            shared: ModuleFacts::new(
                name.clone(),
                module.state.is_some(),
                module.exposed,
                callers.clone(),
                patience,
                Arc::clone(hinted),
            ),
            services: module.services.iter().map(ToString::to_string).collect(),
            calls: program.calls[name].iter().map(ToString::to_string).collect(),
        });
        Self {
            application: app.name.clone(),
            version: app.version.clone(),
            started: Instant::now(),
            modules: modules.collect(),
            cycles: program.cycles(),
            serving: OnceLock::new(),
            cluster: OnceLock::new(),
            hosting: OnceLock::new(),
            stopping: OnceLock::new(),
        }
    }

    fn serving(&self, ingress: &Server, calls: TaskTracker, tls: bool) {
        let (address, connections) = (ingress.address, Arc::clone(&ingress.connections));
        self.serving.set(Serving { address, tls, connections, calls }).ok();
    }

    /// The modules of the program.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &ModuleFacts> {
        self.modules.iter().map(|module| &*module.shared)
    }

    /// What runs on this node.
    pub(crate) fn hosting(&self) -> BTreeMap<ModuleName, Hosted> {
        self.hosting.get().map(|hosting| hosting.borrow().clone()).unwrap_or_default()
    }

    pub(crate) fn describe(&self) -> DescribeResponse {
        let hosting = self.hosting();
        self.describe_as(|module| match hosting.get(&module.shared.name).map(|hosted| hosted.state) {
            None => "elsewhere",
            Some(Instance::Starting) => "starting",
            Some(Instance::Failed) => "failed",
            Some(Instance::Ready | Instance::Serving | Instance::Draining) => "running",
        })
    }

    fn describe_as(&self, state: impl Fn(&ModuleEntry) -> &'static str) -> DescribeResponse {
        let serving = self.serving.get();
        let node = admin::Node {
            application: self.application.clone(),
            version: self.version.clone(),
            ingress: serving.map(|serving| serving.address.to_string()).unwrap_or_default(),
            tls: serving.is_some_and(|serving| serving.tls),
            state: match (serving, self.stopping.get()) {
                (None, _) => "starting",
                (Some(_), None) => "serving",
                (Some(_), Some(())) => "stopping",
            }
            .to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            process_id: std::process::id(),
            calls_in_flight: serving.map_or(0, |serving| serving.calls.len() as u64),
            connections: serving.map_or(0, |serving| serving.connections.load(Ordering::Relaxed) as u64),
            name: self.cluster.get().map(|(name, _)| name.clone()).unwrap_or_default(),
            cluster: self.cluster.get().map(|(_, address)| address.to_string()).unwrap_or_default(),
        };
        let mut modules: Vec<admin::Module> = self
            .modules
            .iter()
            .map(|module| admin::Module {
                name: module.shared.name.to_string(),
                state: state(module).to_owned(),
                services: module.services.clone(),
                dependencies: module.calls.clone(),
                panics: module.shared.panics.load(Ordering::Relaxed),
            })
            .collect();
        modules.sort_by(|a, b| a.name.cmp(&b.name));
        let cycles =
            self.cycles.iter().map(|cycle| admin::Cycle { modules: cycle.iter().map(ToString::to_string).collect() });
        DescribeResponse { node: Some(node), modules, cycles: cycles.collect() }
    }
}

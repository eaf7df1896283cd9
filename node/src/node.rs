//! A running node: wiring only.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use outpost_proto::admin::v1::{self as admin, DescribeResponse};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::Instant,
};
use tokio_util::{sync::DropGuard, task::TaskTracker};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::{
    admin as admin_api,
    app::App,
    call::{
        Channel, Handle, Route, Tonic,
        slot::{ModuleFacts, Slot, Target},
        table::Table,
    },
    config::{Listen, Loaded, Settings},
    id::ModuleName,
    ingress::{Front, Server, acceptor},
    module::{Context, Limits, Program, Supply, Tasks, Waits, descriptors_of, start},
    status::StartError,
};

/// A running node: the modules of a program, and the listeners for clients and operators.
///
/// Dropping it ends everything at once; [`Node::stop`] lets calls finish.
#[derive(Debug)]
pub struct Node {
    facts: Arc<Facts>,
    ingress: Server,
    admin: Option<Server>,
    health: HealthReporter,
    /// The table of the ingress.
    served: Arc<Table>,
    settings: Settings,
    modules: Modules,
}

/// The modules of a node. Dropping it ends them: their tasks are dropped, and their services, which hold handles on each
/// other, are let go.
#[derive(Debug)]
struct Modules {
    table: Arc<Table>,
    tasks: Tasks,
    _end_tasks: DropGuard,
}

impl Modules {
    fn new(table: Arc<Table>) -> Self {
        let tasks = Tasks::default();
        let _end_tasks = tasks.end_on_drop();
        Self { table, tasks, _end_tasks }
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        for slot in self.table.slots() {
            slot.set(Target::Stopped);
        }
    }
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
        let Settings { ingress, admin, .. } = &loaded.settings;
        let tls = ingress.tls.as_ref().map(acceptor).transpose()?;
        let listen = Bound::to(ingress.listen, origin("ingress.listen"))?;
        let admin_listen = admin.enabled.then(|| Bound::to(admin.listen, origin("admin.listen"))).transpose()?;
        let Loaded { settings, modules: mut configs, .. } = loaded;

        let waits = Arc::new(Waits::new(NODES.fetch_add(1, Ordering::Relaxed), program.names.clone()));
        let facts = Arc::new(Facts::new(&app, &program));
        let mut slots = Vec::new();
        for (module, module_facts) in app.modules.iter().zip(&facts.modules) {
            slots.extend(module.services.iter().map(|service| {
                Arc::new(Slot::starting((*service).to_owned(), Arc::clone(&module_facts.shared), Arc::clone(&waits)))
            }));
        }
        let (health, health_server) = health_reporter();
        let own = [Arc::new(Slot::built_in(HEALTH, Box::new(Tonic(health_server))))];
        // The application's come last, so that a module may bring a health service of its own.
        let table = Arc::new(Table::new(own.into_iter().chain(slots)));

        let modules = Modules::new(Arc::clone(&table));
        let channel = Channel::new(Arc::clone(&table));
        let factories = app.modules.iter().zip(&program.names).map(|(module, name)| {
            let context = Context::new(name.clone(), channel.clone(), modules.tasks.clone());
            let config = configs.remove(name.as_str());
            (Arc::clone(&module.factory), Supply { context, table: Arc::clone(&table), config })
        });
        let factories = factories.collect();
        let max_message = usize::try_from(settings.ingress.max_message_size.bytes()).unwrap_or(usize::MAX);
        let started =
            start(&waits, factories, Limits::new(max_message), settings.node.start_timeout.get(), |index, built| {
                for service in built {
                    let slot = table.service(service.service).expect("slots were made from the same names");
                    slot.set(Target::Local(service.local));
                }
                facts.modules[index].running.set(()).ok();
                tracing::debug!(module = %program.names[index], "module started");
            });
        // On failure, dropping `modules` ends what has started.
        started.await?;

        let served = Arc::new(with_reflection(&app, &table, &settings)?);
        for slot in served.slots() {
            health.set_service_status(slot.service(), tonic_health::ServingStatus::Serving).await;
        }
        let origins = settings.ingress.grpc_web.then_some(settings.ingress.grpc_web_origins.as_slice());
        let front = Front::new(Arc::clone(&served), origins);
        let ingress = Server::start(listen.listen()?, tls, front.clone(), &settings.ingress);
        facts.serving(&ingress, front.calls().clone(), settings.ingress.tls.is_some());
        let admin = match admin_listen {
            Some(bound) => {
                let api = Slot::built_in(ADMIN, Box::new(Tonic(admin_api::server(Arc::clone(&facts)))));
                let front = Front::new(Arc::new(Table::new([Arc::new(api)])), None);
                Some(Server::start(bound.listen()?, None, front, &settings.ingress))
            }
            None => None,
        };
        Ok(Self { facts, ingress, admin, health, served, settings, modules })
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

    /// A transport for stock tonic clients, to any module.
    #[must_use]
    pub fn channel(&self) -> Channel {
        Channel::new(Arc::clone(&self.modules.table))
    }

    /// A handle for the part of the program that is not a module.
    ///
    /// # Errors
    /// [`NoService`] when no module serves it.
    pub fn handle<H: Handle>(&self) -> Result<H, NoService> {
        let slot = self.modules.table.service(H::SERVICE).map_err(|_| NoService(H::SERVICE))?;
        Ok(H::from_route(Route::new(Arc::clone(slot))))
    }

    /// What the node is and runs, as its admin API tells it.
    #[must_use]
    pub fn describe(&self) -> DescribeResponse {
        self.facts.describe()
    }

    /// Stops: health says so, no connection is admitted, calls in flight finish, then modules end. What is left after
    /// `node.stop_timeout` is cut off; modules' tasks have 5 seconds after that.
    ///
    /// # Cancel safety
    /// Dropping the future ends everything at once, as dropping the node does.
    pub async fn stop(self) -> Stopped {
        let deadline = Instant::now() + self.settings.node.stop_timeout.get();
        self.facts.stopping.set(()).ok();
        self.modules.tasks.drain();
        for slot in self.served.slots() {
            self.health.set_service_status(slot.service(), tonic_health::ServingStatus::NotServing).await;
        }
        self.health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        let calls_cut = self.ingress.stop(deadline).await;
        let grace = deadline.saturating_duration_since(Instant::now()).max(LAST_GRACE);
        let tasks_cut = self.modules.tasks.stop(grace).await;
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

/// The table of the ingress: the node's, and server reflection on what is in it.
fn with_reflection(app: &App, table: &Table, settings: &Settings) -> Result<Table, StartError> {
    let slots: Vec<Arc<Slot>> = table.slots().cloned().collect();
    if !settings.ingress.reflection {
        return Ok(Table::new(slots));
    }
    let given = app.modules.iter().flat_map(|module| module.descriptors.iter().copied());
    let announced = slots.iter().filter_map(|slot| descriptors_of(slot.service()));
    let mut sets: Vec<&'static [u8]> = Vec::new();
    for set in given.chain(announced).chain([tonic_health::pb::FILE_DESCRIPTOR_SET]) {
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure();
        let builder = sets.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
        slots.iter().fold(builder, |builder, slot| builder.with_service_name(slot.service()))
    };
    let fault = |error: tonic_reflection::server::Error| StartError::Descriptors(error.to_string());
    let v1 = builder().with_service_name(REFLECTION[0]).build_v1().map_err(fault)?;
    let v1alpha = builder().with_service_name(REFLECTION[1]).build_v1alpha().map_err(fault)?;
    let reflection = [
        Arc::new(Slot::built_in(REFLECTION[0], Box::new(Tonic(v1)))),
        Arc::new(Slot::built_in(REFLECTION[1], Box::new(Tonic(v1alpha)))),
    ];
    Ok(Table::new(reflection.into_iter().chain(slots)))
}

const REFLECTION: [&str; 2] = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// What can be said about a node.
#[derive(Debug)]
pub(crate) struct Facts {
    application: String,
    version: String,
    started: Instant,
    modules: Vec<ModuleEntry>,
    cycles: Vec<Vec<ModuleName>>,
    serving: OnceLock<Serving>,
    stopping: OnceLock<()>,
}

#[derive(Debug)]
struct ModuleEntry {
    shared: Arc<ModuleFacts>,
    services: Vec<String>,
    calls: Vec<String>,
    running: OnceLock<()>,
}

#[derive(Debug)]
struct Serving {
    address: SocketAddr,
    tls: bool,
    connections: Arc<AtomicUsize>,
    calls: TaskTracker,
}

impl Facts {
    pub(crate) fn new(app: &App, program: &Program) -> Self {
        let modules = app.modules.iter().zip(&program.names).map(|(module, name)| ModuleEntry {
            shared: ModuleFacts::new(name.clone()),
            services: module.services.iter().map(ToString::to_string).collect(),
            calls: program.calls[name].iter().map(ToString::to_string).collect(),
            running: OnceLock::new(),
        });
        Self {
            application: app.name.clone(),
            version: app.version.clone(),
            started: Instant::now(),
            modules: modules.collect(),
            cycles: program.cycles(),
            serving: OnceLock::new(),
            stopping: OnceLock::new(),
        }
    }

    fn serving(&self, ingress: &Server, calls: TaskTracker, tls: bool) {
        let (address, connections) = (ingress.address, Arc::clone(&ingress.connections));
        self.serving.set(Serving { address, tls, connections, calls }).ok();
    }

    /// `declared` is what a module of a program that does not run is.
    pub(crate) fn describe_declared(&self) -> DescribeResponse {
        self.describe_as(|_| "declared")
    }

    pub(crate) fn describe(&self) -> DescribeResponse {
        self.describe_as(|module| if module.running.get().is_some() { "running" } else { "starting" })
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

//! Carries out what the core decides: runs factories, opens and closes gates, sets slots, proposes.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::DropGuard;

use super::core::{Command, Core, Event, InstanceId, Tick};
use crate::{
    call::{
        Channel,
        destination::{Destination, Own, destination},
        gate::{Gate, LeaseEnd},
        link::Links,
        placed::Placed,
        slot::{Local, ModuleFacts, Slot, Target},
        table::Table,
    },
    clock,
    id::{Incarnation, ModuleName},
    membership::{Hosted, Members, Membership},
    module::{Built, Context, ErasedFactory, Limits, Supply, Tasks, Waits, start},
    placement::{
        log::Log,
        state::{Command as LogCommand, PartChange, Proposal, State, Version},
    },
    status::StartError,
};

/// How often the core looks at the time.
const LOOK: Duration = Duration::from_millis(250);
/// An instance's tasks get this long to end, even when calls have used up the time.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// A module of the program, as it is run.
pub(crate) struct Runnable {
    /// Its place in the order of registration.
    pub(crate) index: usize,
    pub(crate) factory: Arc<dyn ErasedFactory>,
    pub(crate) config: Option<ConfigValue>,
    pub(crate) facts: Arc<ModuleFacts>,
    pub(crate) slots: Vec<Arc<Slot>>,
}

/// A module's configuration: what each of its instances gets a copy of.
pub(crate) type ConfigValue = Arc<Mutex<Box<dyn Any + Send>>>;

/// What the driver works with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) me: Incarnation,
    pub(crate) log: Log,
    pub(crate) membership: Membership,
    /// Whether exclusive parts may be served.
    pub(crate) lease: watch::Receiver<bool>,
    /// Until when, for gates.
    pub(crate) lease_end: Arc<LeaseEnd>,
    pub(crate) table: Arc<Table>,
    pub(crate) waits: Arc<Waits>,
    pub(crate) hinted: Arc<Notify>,
    pub(crate) limits: Limits,
    pub(crate) start_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) prefer_local: bool,
}

/// See [`crate::handoff`].
pub(crate) struct Driver {
    around: Surroundings,
    core: Core,
    modules: BTreeMap<ModuleName, Runnable>,
    instances: HashMap<InstanceId, Instance>,
    state: watch::Receiver<Arc<State>>,
    members: watch::Receiver<Arc<Members>>,
    links: Links,
    /// What each module's slots were set to last.
    routes: BTreeMap<ModuleName, Route>,
    jobs: JoinSet<Done>,
    /// The factories that run.
    starts: HashMap<InstanceId, AbortHandle>,
    /// Instances that let calls finish.
    retiring: JoinSet<usize>,
    hosting: watch::Sender<BTreeMap<ModuleName, Hosted>>,
    began: Instant,
}

/// An instance of a module in this process.
#[derive(Debug)]
struct Instance {
    gate: Arc<Gate>,
    tasks: Running,
    services: Vec<(&'static str, Local)>,
}

/// The tasks of an instance; dropped without a word when this is.
#[derive(Debug)]
struct Running {
    tasks: Tasks,
    _end: DropGuard,
}

impl Running {
    fn new() -> Self {
        let tasks = Tasks::default();
        Self { _end: tasks.end_on_drop(), tasks }
    }

    /// Asks them to end, and drops those that have not in time. Returns how many.
    async fn stop(self, grace: Duration) -> usize {
        self.tasks.stop(grace).await
    }
}

/// A destination, with all that makes one target differ from another.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    destination: Destination,
    instance: Option<InstanceId>,
    addresses: Vec<SocketAddr>,
}

/// A job that ended.
enum Done {
    Started { module: ModuleName, id: InstanceId, tasks: Running, built: Result<Vec<Built>, StartError> },
    Asked { module: ModuleName },
}

/// What a node asks of its driver.
#[derive(Debug)]
pub(crate) enum Order {
    /// Tells modules that they will end: those of their calls that never end by themselves should.
    Drain,
    /// Ends every instance; the answer is how many tasks had to be dropped.
    Stop { grace: Duration, done: oneshot::Sender<usize> },
}

impl Driver {
    pub(crate) fn new(around: Surroundings, modules: BTreeMap<ModuleName, Runnable>) -> Self {
        Self {
            core: Core::new(around.me.clone()),
            state: around.log.state(),
            members: around.membership.members(),
            around,
            modules,
            instances: HashMap::new(),
            links: Links::default(),
            routes: BTreeMap::new(),
            jobs: JoinSet::new(),
            starts: HashMap::new(),
            retiring: JoinSet::new(),
            hosting: watch::Sender::default(),
            began: Instant::now(),
        }
    }

    /// What the node runs.
    pub(crate) fn hosting(&self) -> watch::Receiver<BTreeMap<ModuleName, Hosted>> {
        self.hosting.subscribe()
    }

    /// Starts all that is this node's at once, and waits for it: for a node that is alone, where a module that does not
    /// start has nowhere else to be.
    ///
    /// # Errors
    /// The first factory that failed; the others are ended.
    /// # Cancel safety
    /// Dropping the future ends what has started.
    pub(crate) async fn start_all(&mut self) -> Result<(), StartError> {
        let held = *self.around.lease.borrow_and_update();
        let commands = self.decide(Event::Lease { held });
        let (starts, others): (Vec<_>, Vec<_>) =
            commands.into_iter().partition(|command| matches!(command, Command::Start { .. }));
        self.carry_out(others);
        let mut starting = Vec::new();
        let mut batch = Vec::new();
        for command in starts {
            let Command::Start { module, id } = command else { continue };
            let Some((index, factory, supply, tasks)) = self.prepare(&module) else { continue };
            batch.push((index, factory, supply));
            starting.push((index, module, id, tasks));
        }
        self.set_slots();
        let around = &self.around;
        let (waits, limits, limit) = (Arc::clone(&around.waits), around.limits, around.start_timeout);
        start(&waits, batch, limits, limit, |index, built| {
            let Some(at) = starting.iter().position(|(started, ..)| *started == index) else { return };
            let (_, module, id, tasks) = starting.swap_remove(at);
            self.install(module.clone(), id, tasks, built);
            let commands = self.decide(Event::Started { module, id });
            self.carry_out(commands);
            self.set_slots();
        })
        .await
    }

    /// Runs until it is told to stop.
    pub(crate) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                biased;
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Drain) => {
                        self.instances.values().for_each(|instance| instance.tasks.tasks.drain());
                        Event::Look
                    }
                    Some(Order::Stop { grace, done }) => {
                        // Whoever waited for the answer may be gone.
                        let _ = done.send(self.end(grace).await);
                        return;
                    }
                },
                Ok(()) = self.state.changed() => Event::Look,
                Some(_) = self.retiring.join_next() => Event::Look,
                Some(job) = self.jobs.join_next() => match job {
                    Ok(done) => self.done(done),
                    // A start that is not wanted any more.
                    Err(error) if error.is_cancelled() => Event::Look,
                    Err(error) => {
                        tracing::error!(%error, "a job of the module driver ended");
                        Event::Look
                    }
                },
                Ok(()) = self.around.lease.changed() => {
                    // Calls that a gate refused for want of a lease wait for this.
                    self.modules.values().flat_map(|runnable| &runnable.slots).for_each(|slot| slot.opened());
                    Event::Lease { held: *self.around.lease.borrow_and_update() }
                }
                Ok(()) = self.members.changed() => Event::Look,
                () = self.around.hinted.notified() => Event::Look,
                _ = looks.tick() => Event::Look,
            };
            let commands = self.decide(event);
            self.carry_out(commands);
            self.set_slots();
        }
    }

    fn now(&self) -> Tick {
        self.began.elapsed()
    }

    fn decide(&mut self, event: Event) -> Vec<Command> {
        let state = Arc::clone(&self.state.borrow_and_update());
        self.core.on_event(self.now(), event, &state)
    }

    fn done(&mut self, done: Done) -> Event {
        if let Done::Started { id, .. } = &done {
            self.starts.remove(id);
        }
        match done {
            Done::Started { module, id, tasks, built: Ok(built) } => {
                self.install(module.clone(), id, tasks, built);
                Event::Started { module, id }
            }
            Done::Started { module, id, built: Err(error), .. } => {
                tracing::error!(%module, %error, "module did not start");
                Event::Failed { module, id, error: error.to_string() }
            }
            Done::Asked { module } => Event::Asked { module },
        }
    }

    fn install(&mut self, module: ModuleName, id: InstanceId, tasks: Running, built: Vec<Built>) {
        let gate = Arc::new(Gate::closed(Arc::clone(&self.around.lease_end)));
        let services = built.into_iter().map(|built| (built.service, built.local.behind(Arc::clone(&gate)))).collect();
        tracing::debug!(%module, "module started");
        self.instances.insert(id, Instance { gate, tasks, services });
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Start { module, id } => self.begin(module, id),
                Command::Open { module, id, epoch, exclusive } => {
                    if let Some(instance) = self.instances.get(&id) {
                        instance.gate.open(exclusive);
                        tracing::debug!(%module, %epoch, "module is served here");
                    }
                    self.slots(&module).iter().for_each(|slot| slot.opened());
                }
                Command::Seal { module, id } => {
                    if let Some(instance) = self.instances.get(&id) {
                        instance.gate.close();
                        tracing::debug!(%module, "sealed");
                    }
                }
                Command::Retire { module, id } => self.retire(module, id),
                Command::Propose { module, expect, change, why } => self.propose(module, expect, change, why),
            }
        }
    }

    fn slots(&self, module: &ModuleName) -> &[Arc<Slot>] {
        self.modules.get(module).map_or(&[], |runnable| &runnable.slots)
    }

    /// What the factory of a module needs to run once more.
    fn prepare(&self, module: &ModuleName) -> Option<(usize, Arc<dyn ErasedFactory>, Supply, Running)> {
        let runnable = self.modules.get(module)?;
        let running = Running::new();
        let channel = Channel::new(Arc::clone(&self.around.table));
        let context = Context::new(module.clone(), channel, running.tasks.clone());
        let (table, config) = (Arc::clone(&self.around.table), runnable.config.clone());
        Some((runnable.index, Arc::clone(&runnable.factory), Supply { context, table, config }, running))
    }

    fn begin(&mut self, module: ModuleName, id: InstanceId) {
        let Some((index, factory, supply, tasks)) = self.prepare(&module) else {
            // The placement asks for a module that this program lacks: the leader will hear that it failed.
            let error = StartError::NoModule { module: module.clone() };
            self.jobs.spawn(async move { Done::Started { module, id, tasks: Running::new(), built: Err(error) } });
            return;
        };
        let around = &self.around;
        let (waits, limits, limit) = (Arc::clone(&around.waits), around.limits, around.start_timeout);
        let start = self.jobs.spawn(async move {
            let mut services = Vec::new();
            let started = start(&waits, vec![(index, factory, supply)], limits, limit, |_, built| services = built);
            let built = started.await.map(|()| services);
            Done::Started { module, id, tasks, built }
        });
        self.starts.insert(id, start);
    }

    fn retire(&mut self, module: ModuleName, id: InstanceId) {
        if let Some(start) = self.starts.remove(&id) {
            start.abort();
        }
        let Some(instance) = self.instances.remove(&id) else { return };
        instance.gate.close();
        let limit = self.around.drain_timeout;
        self.retiring.spawn(async move { instance.end(&module, limit).await });
    }

    fn propose(&mut self, module: ModuleName, expect: Version, change: PartChange, why: String) {
        let (log, by) = (self.around.log.clone(), self.around.me.node.to_string());
        self.jobs.spawn(async move {
            let command = LogCommand::Part { module: module.clone(), expect, change, why };
            match log.propose(Proposal { at: clock::wall(), by, command }).await {
                Ok(Ok(_)) => {}
                Ok(Err(refused)) => tracing::debug!(%module, %refused, "the placement has moved on"),
                Err(error) => tracing::warn!(%module, %error, "the placement log did not take a change"),
            }
            Done::Asked { module }
        });
    }

    /// Sets the slots of each module whose destination is another one now, and tells the others what runs here.
    fn set_slots(&mut self) {
        let state = Arc::clone(&self.state.borrow());
        let members = Arc::clone(&self.members.borrow_and_update());
        let instances = self.core.instances();
        for (module, runnable) in &self.modules {
            let (own, instance) = match instances.get(module) {
                None => (Own::Nothing, None),
                Some((id, own)) => (*own, Some(*id).filter(|id| self.instances.contains_key(id))),
            };
            let (me, hint) = (&self.around.me, runnable.facts.hint());
            let part = state.parts.get(module);
            let destination = destination(module, part, own, me, &members, hint.as_ref(), self.around.prefer_local);
            let addresses = match &destination {
                Destination::Elsewhere { hosts, .. } => {
                    hosts.iter().filter_map(|host| members.get(host)).map(|member| member.address).collect()
                }
                _ => Vec::new(),
            };
            let route = Route { destination, instance, addresses };
            if self.routes.get(module) == Some(&route) {
                continue;
            }
            tracing::debug!(%module, destination = ?route.destination, "calls go elsewhere now");
            for slot in &runnable.slots {
                slot.set(self.target(slot, &route, &members));
            }
            self.routes.insert(module.clone(), route);
        }
        self.links.keep(|node| members.contains_key(node));
        let hosting = self.core.hosting();
        let changed = self.hosting.send_if_modified(|known| {
            let changed = *known != hosting;
            known.clone_from(&hosting);
            changed
        });
        if changed && let Err(error) = self.around.membership.set_hosting(hosting) {
            tracing::warn!(%error, "others are not told what this node hosts");
        }
    }

    fn target(&self, slot: &Slot, route: &Route, members: &Members) -> Target {
        let local = || {
            let instance = self.instances.get(&route.instance?)?;
            let (_, local) = instance.services.iter().find(|(service, _)| *service == slot.service())?;
            Some(local.clone())
        };
        match &route.destination {
            Destination::Here => local().map_or(Target::Starting, Target::Local),
            Destination::Starting => Target::Starting,
            Destination::Nowhere(why) => Target::Nowhere(why.as_str().into()),
            Destination::Elsewhere { epoch, replicated, hosts, and_here } => {
                let here = if *and_here { local() } else { None };
                let links: Vec<_> =
                    hosts.iter().filter_map(|host| Some(self.links.to(host, members.get(host)?.address))).collect();
                if links.is_empty() && here.is_none() {
                    return Target::Nowhere("the address of its node is not known yet".into());
                }
                Target::Placed(Arc::new(Placed::new(*epoch, *replicated, links, here, rand::random())))
            }
        }
    }

    /// Ends every instance. Returns how many tasks had to be dropped.
    async fn end(&mut self, grace: Duration) -> usize {
        for slot in self.modules.values().flat_map(|runnable| &runnable.slots) {
            slot.set(Target::Stopped);
        }
        self.jobs.abort_all();
        let mut ends = JoinSet::new();
        for (_, instance) in self.instances.drain() {
            instance.gate.close();
            ends.spawn(instance.tasks.stop(grace));
        }
        let mut left = 0;
        while let Some(ended) = ends.join_next().await {
            left += ended.unwrap_or(1);
        }
        // Those that were moved away before may still let calls finish.
        let ended = async {
            while let Some(ended) = self.retiring.join_next().await {
                left += ended.unwrap_or(1);
            }
        };
        if timeout(grace, ended).await.is_err() {
            left += self.retiring.len();
        }
        left
    }
}

impl Instance {
    /// Lets calls inside finish, then ends the module's tasks. Returns how many of those had to be dropped.
    async fn end(self, module: &ModuleName, limit: Duration) -> usize {
        self.tasks.tasks.drain();
        let began = Instant::now();
        if timeout(limit, self.gate.drained()).await.is_err() {
            let calls = self.gate.inside();
            tracing::warn!(%module, calls, "calls go on in an instance that was moved away; its tasks end");
        }
        let left = self.tasks.stop(limit.saturating_sub(began.elapsed()).max(LAST_GRACE)).await;
        tracing::info!(%module, tasks_dropped = left, elapsed_ms = began.elapsed().as_millis() as u64, "module ended here");
        left
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Services hold handles on each other; what is in a slot would keep them.
        for slot in self.modules.values().flat_map(|runnable| &runnable.slots) {
            slot.set(Target::Stopped);
        }
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("core", &self.core).finish_non_exhaustive()
    }
}

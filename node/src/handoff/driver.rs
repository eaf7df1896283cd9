//! Carries out what the core decides: runs factories, opens and closes gates, sets slots, proposes.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    checkpoint::Checkpoints,
    core::{Command, Core, Event, InstanceId, Tick},
    transfer::{Installed, Offer, Offers, Taking, Untaken},
};
use crate::{
    call::{
        Channel, Declared,
        chain::{Chain, Sealing},
        counts::Durations,
        dedupe::{Bounds, Dedupe},
        destination::{Destination, Own, Preference, destination},
        gate::{Cut, Gate, LeaseEnd},
        link::Links,
        panic_text,
        placed::Placed,
        slot::{Local, ModuleFacts, Slot, Target},
        table::Table,
    },
    clock,
    id::{Epoch, Incarnation, ModuleName},
    membership::{Hosted, Instance as Stage, Members, Membership},
    module::{Built, Context, ErasedFactory, Held, Limits, Ownership, Supply, Tasks, Waits, start},
    placement::{
        log::Log,
        spec::StateClass,
        state::{Command as LogCommand, Hosting, PartChange, Proposal, State, Version},
    },
    status::{StartError, with_causes},
    trust::Trust,
};

/// How often the core looks at the time.
const LOOK: Duration = Duration::from_millis(250);
/// How many events of jobs may wait for the driver.
const QUEUE: usize = 64;
/// For how long a target that was ready counts as that.
const READY: Duration = Duration::from_millis(500);
/// Calls that were cut off get this long to notice.
const CUT_OFF: Duration = Duration::from_millis(100);
/// An instance's tasks get this long to end, even when calls have used up the time.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// A module of the program, as it is run.
pub(crate) struct Runnable {
    /// Its place in the order of registration.
    pub(crate) index: usize,
    pub(crate) factory: Arc<dyn ErasedFactory>,
    pub(crate) config: Option<ConfigValue>,
    /// How to make its state.
    pub(crate) state: Option<fn() -> Held>,
    pub(crate) class: StateClass,
    /// How often its state is checkpointed, if it is.
    pub(crate) checkpoint_every: Duration,
    pub(crate) facts: Arc<ModuleFacts>,
    /// Which modules it declares that it calls.
    pub(crate) declared: Arc<Declared>,
    pub(crate) slots: Vec<Arc<Slot>>,
}

/// A module's configuration: what each of its instances gets a copy of.
pub(crate) type ConfigValue = Arc<Mutex<Box<dyn Any + Send>>>;

/// What the driver works with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) me: Incarnation,
    pub(crate) trust: Trust,
    pub(crate) log: Log,
    pub(crate) membership: Membership,
    /// The term of the lease under which exclusive parts may be served, if they may.
    pub(crate) lease: watch::Receiver<Option<u64>>,
    /// Until when, for gates.
    pub(crate) lease_end: Arc<LeaseEnd>,
    /// The parts that move away from here, for their targets to ask for.
    pub(crate) offers: Arc<Offers>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) table: Arc<Table>,
    pub(crate) waits: Arc<Waits>,
    pub(crate) hinted: Arc<Notify>,
    pub(crate) limits: Limits,
    pub(crate) start_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) stream_grace: Duration,
    pub(crate) seal_timeout: Duration,
    pub(crate) handover_timeout: Duration,
    /// Bytes.
    pub(crate) max_state: u64,
    pub(crate) prefer: Preference,
    /// How many answers an instance keeps.
    pub(crate) dedupe: Bounds,
}

/// See [`crate::handoff`].
pub(crate) struct Driver {
    around: Surroundings,
    core: Core,
    modules: BTreeMap<ModuleName, Runnable>,
    instances: HashMap<InstanceId, Instance>,
    state: watch::Receiver<Arc<State>>,
    members: watch::Receiver<Arc<Members>>,
    links: Arc<Links>,
    /// Since when the gates of modules are closed that move away.
    closed: BTreeMap<ModuleName, Instant>,
    /// For how long they were, when they had.
    pauses: Arc<Durations>,
    /// What each module's slots were set to last.
    routes: BTreeMap<ModuleName, Route>,
    jobs: JoinSet<Done>,
    /// What is being done for each instance: its start, its filling, its activation, its sealing.
    doing: HashMap<InstanceId, Vec<AbortHandle>>,
    /// The parts that are being sealed, on any node.
    sealing: Arc<Sealing>,
    /// What jobs tell before they end.
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// What targets have taken.
    installed: (mpsc::Sender<Installed>, mpsc::Receiver<Installed>),
    /// How much state each instance that is being filled had when it was looked at last.
    filled: BTreeMap<ModuleName, u64>,
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
    state: Option<Held>,
    ownership: Ownership,
    /// The move for which no call is inside, and none will be.
    empty: watch::Sender<u64>,
    /// Bytes of state that it has taken.
    filled: Arc<AtomicU64>,
    checkpointed: bool,
    /// The answers that it keeps, for all of its services.
    kept: Arc<Dedupe>,
}

/// The tasks of an instance, dropped without a word when this is; and what else its module was given.
#[derive(Debug)]
struct Running {
    tasks: Tasks,
    state: Option<Held>,
    ownership: Ownership,
    _end: DropGuard,
}

impl Running {
    fn new(state: Option<Held>) -> Self {
        let tasks = Tasks::default();
        Self { _end: tasks.end_on_drop(), tasks, state, ownership: Ownership::default() }
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
    With(Event),
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
        let classes = modules.iter().map(|(name, runnable)| (name.clone(), runnable.class)).collect();
        let links = Arc::new(Links::new(around.trust.clone()));
        Self {
            core: Core::new(around.me.clone(), classes, around.handover_timeout),
            state: around.log.state(),
            members: around.membership.members(),
            around,
            modules,
            instances: HashMap::new(),
            links,
            closed: BTreeMap::new(),
            pauses: Arc::default(),
            routes: BTreeMap::new(),
            jobs: JoinSet::new(),
            doing: HashMap::new(),
            sealing: Arc::default(),
            events: mpsc::channel(QUEUE),
            installed: mpsc::channel(QUEUE),
            filled: BTreeMap::new(),
            retiring: JoinSet::new(),
            hosting: watch::Sender::default(),
            began: Instant::now(),
        }
    }

    /// What the node runs.
    pub(crate) fn hosting(&self) -> watch::Receiver<BTreeMap<ModuleName, Hosted>> {
        self.hosting.subscribe()
    }

    /// The ways to other nodes.
    pub(crate) fn links(&self) -> Arc<Links> {
        Arc::clone(&self.links)
    }

    /// How long the gates were closed of modules that have moved away.
    pub(crate) fn pauses(&self) -> Arc<Durations> {
        Arc::clone(&self.pauses)
    }

    /// Starts all that is this node's at once, and waits for it: for a node that is alone, where a module that does not
    /// start has nowhere else to be.
    ///
    /// # Errors
    /// The first factory that failed; the others are ended.
    /// # Cancel safety
    /// Dropping the future ends what has started.
    pub(crate) async fn start_all(&mut self) -> Result<(), StartError> {
        let term = *self.around.lease.borrow_and_update();
        let commands = self.decide(Event::Lease { term });
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
            let started = self.install(module, id, tasks, built);
            let commands = self.decide(started);
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
                Some(event) = self.events.1.recv() => {
                    if let Event::Closed { module, .. } = &event {
                        self.closed.insert(module.clone(), Instant::now());
                    }
                    event
                }
                Some(Installed { module, id, of, sealed, ready }) = self.installed.1.recv() => {
                    Event::Installed { module, id, of, sealed, ready }
                }
                Ok(()) = self.around.lease.changed() => {
                    // Calls that a gate refused for want of a lease wait for this.
                    self.modules.values().flat_map(|runnable| &runnable.slots).for_each(|slot| slot.opened());
                    Event::Lease { term: *self.around.lease.borrow_and_update() }
                }
                Ok(()) = self.members.changed() => Event::Look,
                () = self.around.hinted.notified() => Event::Look,
                _ = looks.tick() => {
                    self.measure();
                    Event::Look
                }
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
            self.doing.remove(id);
        }
        match done {
            Done::Started { module, id, tasks, built: Ok(built) } => self.install(module, id, tasks, built),
            Done::Started { module, id, built: Err(error), .. } => {
                tracing::error!(%module, %error, "module did not start");
                Event::Failed { module, id, error: error.to_string() }
            }
            Done::Asked { module } => Event::Asked { module },
            Done::With(event) => event,
        }
    }

    /// Notes how much of their state the instances that are being filled have.
    fn measure(&mut self) {
        let filled = self.core.instances().into_iter().filter_map(|(module, (id, _))| {
            let bytes = self.instances.get(&id)?.filled.load(Ordering::Relaxed);
            (bytes > 0).then_some((module, bytes))
        });
        self.filled = filled.collect();
    }

    fn install(&mut self, module: ModuleName, id: InstanceId, tasks: Running, built: Vec<Built>) -> Event {
        let gate = Arc::new(Gate::closed(Arc::clone(&self.around.lease_end), Arc::clone(&self.sealing)));
        for slot in self.slots(&module) {
            if slot.deliveries.keep_answers() && !self.modules.get(&module).is_some_and(|known| known.class.is_some()) {
                tracing::warn!(
                    %module,
                    service = slot.service(),
                    "methods with DEDUPE in a module without state: their answers do not move with it, so that nodes do \
                     not make their calls again; declare it `.ephemeral()`"
                );
            }
        }
        let around = &self.around;
        let kept = Dedupe::new(module.clone(), around.dedupe, around.limits.max_message_bytes);
        let services = built
            .into_iter()
            .map(|Built { service, local }| (service, local.behind(Arc::clone(&gate)).keeping(Arc::clone(&kept))));
        let services = services.collect();
        if let Some(runnable) = self.modules.get(&module) {
            runnable.facts.counts.watch(&gate);
        }
        tracing::debug!(%module, "module started");
        let (state, ownership) = (tasks.state.clone(), tasks.ownership.clone());
        let hooks = ownership.has_hooks();
        let instance = Instance {
            gate,
            tasks,
            services,
            state,
            ownership,
            empty: watch::Sender::new(0),
            filled: Arc::default(),
            checkpointed: false,
            kept,
        };
        self.instances.insert(id, instance);
        Event::Started { module, id, hooks }
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Start { module, id } => self.begin(module, id),
                Command::Fill { module, id, of, from, ready } => self.fill(module, id, of, &from, ready),
                Command::Activate { module, id, epoch, restore } => self.activate(module, id, epoch, restore),
                Command::Open { module, id, epoch, term } => self.open(&module, id, epoch, term),
                Command::Close { module, id } => {
                    if let Some(instance) = self.instances.get(&id) {
                        instance.gate.close();
                        self.closed.insert(module.clone(), Instant::now());
                        tracing::debug!(%module, "closed");
                    }
                }
                Command::Seal { module, id, of, term } => self.seal(module, id, of, term),
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
        let running = Running::new(runnable.state.map(|make| make()));
        let channel = Channel::of_module(Arc::clone(&runnable.declared), Arc::clone(&self.around.table));
        let context = Context::new(module.clone(), channel, running.tasks.clone(), running.ownership.clone());
        let (table, config, state) = (Arc::clone(&self.around.table), runnable.config.clone(), running.state.clone());
        let supply = Supply { context, table, config, state };
        Some((runnable.index, Arc::clone(&runnable.factory), supply, running))
    }

    fn begin(&mut self, module: ModuleName, id: InstanceId) {
        let Some((index, factory, supply, tasks)) = self.prepare(&module) else {
            // The placement asks for a module that this program lacks: the leader will hear that it failed.
            let error = StartError::NoModule { module: module.clone() };
            self.jobs.spawn(async move { Done::Started { module, id, tasks: Running::new(None), built: Err(error) } });
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
        self.doing.entry(id).or_default().push(start);
    }

    /// Does something for an instance, for as long as that is there and nothing else was decided.
    fn work(&mut self, module: &ModuleName, id: InstanceId, work: impl Future<Output = Event> + Send + 'static) {
        let module = module.clone();
        let work = self.jobs.spawn(async move {
            let panicked = |panic: Box<dyn Any + Send>| {
                let error = format!("it panicked: {}", panic_text(&*panic));
                tracing::error!(%module, error, "what was done for a module did not end");
                Event::Failed { module, id, error }
            };
            Done::With(AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(panicked))
        });
        let doing = self.doing.entry(id).or_default();
        doing.retain(|work| !work.is_finished());
        doing.push(work);
    }

    fn stop_work(&mut self, id: InstanceId) {
        self.doing.remove(&id).into_iter().flatten().for_each(|work| work.abort());
    }

    fn fill(&mut self, module: ModuleName, id: InstanceId, of: u64, from: &Incarnation, ready: bool) {
        let Some(instance) = self.instances.get(&id) else { return };
        let members = self.members.borrow();
        let Some(source) = members.get(&from.node).filter(|member| member.generation == from.generation) else {
            let error = format!("the address of node `{}` is not known here", from.node);
            drop(members);
            return self.work(&module.clone(), id, async move { Event::Failed { module, id, error } });
        };
        let taking = Taking {
            cluster: self.state.borrow().cluster.clone(),
            module: module.clone(),
            id,
            events: self.events.0.clone(),
            of,
            me: self.around.me.clone(),
            from: from.node.clone(),
            address: source.address,
            trust: self.around.trust.clone(),
            state: instance.state.clone(),
            replies: Arc::clone(&instance.kept),
            ready,
            progress: Arc::clone(&instance.filled),
            limit: self.around.max_state,
        };
        drop(members);
        self.work(&module.clone(), id, async move {
            let began = Instant::now();
            match taking.take().await {
                Ok(digest) => {
                    let (bytes, elapsed_ms) =
                        (taking.progress.load(Ordering::Relaxed), began.elapsed().as_millis() as u64);
                    tracing::debug!(%module, bytes, elapsed_ms, "the state is here");
                    taking.tell(digest).await;
                    Event::Look
                }
                // This node's log tells what becomes of the instance.
                Err(Untaken::Over) => Event::Look,
                Err(Untaken::Failed(error)) => {
                    tracing::warn!(%module, from = %taking.from, error, "the state was not taken");
                    Event::Failed { module, id, error }
                }
            }
        });
    }

    fn activate(&mut self, module: ModuleName, id: InstanceId, epoch: Epoch, restore: bool) {
        let Some(instance) = self.instances.get(&id) else { return };
        let (ownership, state, kept) = (instance.ownership.clone(), instance.state.clone(), Arc::clone(&instance.kept));
        let (checkpoints, limit) = (self.around.checkpoints.clone(), self.around.start_timeout);
        self.work(&module.clone(), id, async move {
            let activated = timeout(limit, async {
                if let Some(state) = state.filter(|_| restore) {
                    checkpoints.restore(&module, &state, &kept).await?;
                }
                ownership.activate(epoch).await
            });
            let error = match activated.await {
                Ok(Ok(())) => return Event::Activated { module, id },
                Ok(Err(error)) => with_causes(&*error),
                Err(_) => {
                    format!("it was not activated within {} (node.start_timeout)", humantime::format_duration(limit))
                }
            };
            tracing::error!(%module, %epoch, error, "module was not activated");
            Event::Failed { module, id, error }
        });
    }

    fn open(&mut self, module: &ModuleName, id: InstanceId, epoch: Epoch, term: Option<u64>) {
        // What was begun for a move that was given up.
        self.stop_work(id);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.empty.send_replace(0);
            instance.tasks.tasks.stay();
            instance.ownership.set(epoch);
            instance.gate.open(epoch, term.unwrap_or_default());
            tracing::debug!(%module, %epoch, "module is served here");
            if let Some(runnable) = self.modules.get(module)
                && let Some(state) = instance.state.clone()
                && runnable.class == StateClass::Checkpointed
                && !std::mem::replace(&mut instance.checkpointed, true)
            {
                let (ownership, every) = (instance.ownership.clone(), runnable.checkpoint_every);
                let keep = self.around.checkpoints.clone().keep(
                    module.clone(),
                    state,
                    Arc::clone(&instance.kept),
                    ownership,
                    every,
                );
                instance.tasks.tasks.spawn(keep);
            }
        }
        self.slots(module).iter().for_each(|slot| slot.opened());
    }

    fn seal(&mut self, module: ModuleName, id: InstanceId, of: u64, term: Option<u64>) {
        let Some(instance) = self.instances.get(&id) else { return };
        let (gate, tasks, empty) = (Arc::clone(&instance.gate), instance.tasks.tasks.clone(), instance.empty.clone());
        let (grace, limit, events) = (self.around.stream_grace, self.around.seal_timeout, self.events.0.clone());
        let (kept, opening) = (Arc::clone(&instance.kept), gate.opening());
        self.work(&module.clone(), id, async move {
            // Tasks and calls that go on by themselves should come to an end, whether or not there is a stream.
            tasks.drain();
            if gate.streams() > 0 {
                let _ = timeout(grace, gate.without_streams()).await;
                gate.during(opening, || gate.cut(Cut::Streams));
            }
            gate.during(opening, || gate.seal(term.unwrap_or_default()));
            tracing::debug!(%module, of, "sealing");
            // The node may be about to end.
            let _ = events.send(Event::Closed { module: module.clone(), id }).await;
            #[cfg(feature = "simulation")]
            if crate::simulation::is_broken(crate::simulation::Rule::SealWaitsForCalls) {
                empty.send_replace(of);
                return Event::Drained { module, id };
            }
            if timeout(limit, gate.sealed(opening)).await.is_err() {
                let calls = gate.inside();
                gate.during(opening, || {
                    gate.close();
                    gate.cut(Cut::All);
                    kept.cut(gate.epoch());
                });
                tracing::warn!(%module, calls, "calls that had not ended were cut off, since the module moves");
                // Those that nobody asks to go on notice later, and their answers do not count.
                let _ = timeout(CUT_OFF, gate.drained()).await;
            }
            empty.send_replace(of);
            Event::Drained { module, id }
        });
    }

    fn retire(&mut self, module: ModuleName, id: InstanceId) {
        self.stop_work(id);
        let Some(instance) = self.instances.remove(&id) else { return };
        instance.gate.give_up();
        let (limit, grace) = (self.around.drain_timeout, self.around.stream_grace);
        self.retiring.spawn(async move { instance.end(&module, limit, grace).await });
    }

    fn propose(&mut self, module: ModuleName, expect: Version, change: PartChange, why: String) {
        let (log, by) = (self.around.log.clone(), self.around.me.node.to_string());
        let handover = matches!(change, PartChange::Handover { .. });
        let pause = self.closed.get(&module).copied().filter(|_| handover).map(|since| (since, self.pauses()));
        // That a target is ready holds for as long as it was there a moment ago.
        let limit = match change {
            PartChange::Handover { ready: true, .. } => READY,
            _ => Duration::MAX,
        };
        self.jobs.spawn(async move {
            let command = LogCommand::Part { module: module.clone(), expect, change, why };
            match timeout(limit, log.propose(Proposal { at: clock::wall(), by, asked: None, command })).await {
                Ok(Ok(Ok(_))) => {
                    if let Some((since, pauses)) = pause {
                        pauses.count(since.elapsed());
                    }
                }
                Ok(Ok(Err(refused))) => tracing::debug!(%module, %refused, "the placement has moved on"),
                Ok(Err(error)) => tracing::warn!(%module, %error, "the placement log did not take a change"),
                Err(_) => tracing::debug!(%module, "the placement log takes long; the target is not taken for ready"),
            }
            Done::Asked { module }
        });
    }

    /// Sets the slots of each module whose destination is another one now, and tells the others what runs here.
    fn set_slots(&mut self) {
        let state = Arc::clone(&self.state.borrow());
        let members = Arc::clone(&self.members.borrow_and_update());
        let instances = self.core.instances();
        self.offer(&state, &instances);
        for (module, runnable) in &self.modules {
            let (own, instance) = match instances.get(module) {
                None => (Own::Nothing, None),
                Some((id, own)) => (*own, Some(*id).filter(|id| self.instances.contains_key(id))),
            };
            let (me, hint) = (&self.around.me, runnable.facts.hint());
            let part = state.parts.get(module);
            if let Some(part) = part {
                runnable.facts.fence_off(part.fence);
            }
            let destination = destination(module, part, own, me, &members, hint.as_ref(), &self.around.prefer);
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
        let mut hosting = self.core.hosting();
        for (module, hosted) in &mut hosting {
            hosted.bytes = self.filled.get(module).copied().unwrap_or_default();
        }
        let changed = self.hosting.send_if_modified(|known| {
            let changed = *known != hosting;
            known.clone_from(&hosting);
            changed
        });
        if changed && let Err(error) = self.around.membership.set_hosting(hosting) {
            tracing::warn!(%error, "others are not told what this node hosts");
        }
    }

    /// Lets the targets of this node's moves have what they ask for; and lets every gate know which parts, of any node, are
    /// being sealed.
    fn offer(&self, state: &State, instances: &BTreeMap<ModuleName, (InstanceId, Own)>) {
        let mut sealing = Chain::NONE;
        let known = self.around.offers.now();
        let mut offers: BTreeMap<ModuleName, Arc<Offer>> = BTreeMap::new();
        for (module, part) in &state.parts {
            let Hosting::Exclusive { owner, moving, seal, .. } = &part.hosting else { continue };
            let travels = self.modules.get(module).is_some_and(|runnable| runnable.class.travels());
            if travels && moving.as_ref().is_some_and(|moving| moving.prepared) {
                sealing = sealing.with(Chain::of(module.as_str()));
            }
            let Some((id, _)) = instances.get(module).filter(|_| travels) else { continue };
            let known = known.get(module).filter(|offer| offer.id == *id);
            if seal.as_ref().is_some_and(|seal| seal.from == self.around.me) {
                // The target may not know that this node has heard from it.
                offers.extend(known.map(|offer| (module.clone(), Arc::clone(offer))));
            }
            let Some(moving) = moving.as_ref().filter(|_| *owner == self.around.me) else { continue };
            let Some(instance) = self.instances.get(id) else { continue };
            let offer = known.filter(|offer| offer.of == moving.id).cloned().unwrap_or_else(|| {
                Arc::new(Offer {
                    module: module.clone(),
                    id: *id,
                    of: moving.id,
                    to: moving.to.clone(),
                    state: instance.state.clone(),
                    replies: Arc::clone(&instance.kept),
                    empty: instance.empty.subscribe(),
                    installed: self.installed.0.clone(),
                    over: CancellationToken::new(),
                    gone: CancellationToken::new(),
                    limit: self.around.max_state,
                    sent: Mutex::default(),
                })
            });
            offers.insert(module.clone(), offer);
        }
        self.sealing.set(sealing);
        // Of moves that are over, before those begin that may follow.
        for (module, offer) in &known {
            if offers.get(module).is_some_and(|offered| offered.of == offer.of && offered.id == offer.id) {
                continue;
            }
            let moving = state.parts.get(module).and_then(|part| part.moving());
            match moving.is_some_and(|moving| moving.id == offer.of) {
                true => offer.gone.cancel(),
                false => offer.over.cancel(),
            }
            if let Some(state) = &offer.state
                && let Err(error) = state.hooks.track_changes(false)
            {
                tracing::warn!(%module, error, "the module may note its changes on");
            }
        }
        if !(known.is_empty() && offers.is_empty()) {
            self.around.offers.set(offers);
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
            Destination::Elsewhere { epoch, replicated, hosts, near, and_here } => {
                let here = if *and_here { local() } else { None };
                let links: Vec<_> =
                    hosts.iter().filter_map(|host| Some(self.links.to(host, members.get(host)?.address))).collect();
                if links.is_empty() && here.is_none() {
                    return Target::Nowhere("the address of its node is not known yet".into());
                }
                Target::Placed(Arc::new(Placed::new(*epoch, *replicated, (links, *near), here, rand::random())))
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
        let serves = |(module, hosted): (ModuleName, Hosted)| {
            matches!(hosted.state, Stage::Serving | Stage::Draining).then_some(module)
        };
        let serving: Vec<ModuleName> = self.core.hosting().into_iter().filter_map(serves).collect();
        for (module, (id, _)) in self.core.instances() {
            let Some(instance) = self.instances.remove(&id) else { continue };
            instance.gate.close();
            let last = instance.checkpointed && serving.contains(&module);
            let checkpoints = self.around.checkpoints.clone();
            ends.spawn(async move {
                let (state, ownership) = (instance.state.clone(), instance.ownership.clone());
                let left = instance.tasks.stop(grace).await;
                // Nobody else has it: with this, whoever starts next loses nothing.
                if let Some(state) = state.filter(|_| last) {
                    match timeout(grace, checkpoints.write(&module, &state, &instance.kept, &ownership, None)).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => tracing::error!(%module, error, "the last checkpoint was not written"),
                        Err(_) => tracing::error!(%module, "the last checkpoint was not written in time"),
                    }
                }
                left
            });
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
    async fn end(self, module: &ModuleName, limit: Duration, grace: Duration) -> usize {
        self.tasks.tasks.drain();
        let began = Instant::now();
        if timeout(limit.min(grace), self.gate.without_streams()).await.is_err() {
            self.gate.cut(Cut::Streams);
        }
        if timeout(limit.saturating_sub(began.elapsed()), self.gate.drained()).await.is_err() {
            let calls = self.gate.inside();
            tracing::warn!(%module, calls, "calls that had not ended were cut off, since the module has moved away");
            self.gate.cut(Cut::All);
            self.kept.cut(self.gate.epoch());
            let _ = timeout(CUT_OFF, self.gate.drained()).await;
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

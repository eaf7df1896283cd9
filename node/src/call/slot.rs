//! Where a service is, now: the one place that a call looks, and that a move will change.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};
use tonic::{Code, body::Body};
use tower::util::BoxCloneSyncService;

use super::{
    chain::Chain,
    counts::{Counts, Origin},
    dedupe::Dedupe,
    delivery::Deliveries,
    gate::{Gate, Pass},
    placed::Placed,
    retry::Budget,
    scope::Scope,
    short::Carries,
};
use crate::{
    BoxError,
    id::{Epoch, ModuleName, NodeId},
    module::{Edge, Exposed, Waits},
    status::CallError,
    trust::callers::{CallPolicy, CallingModule},
};

pub(crate) type Request = http::Request<Body>;
pub(crate) type Response = http::Response<Body>;
pub(crate) type Remote = BoxCloneSyncService<Request, Response, BoxError>;

/// One service of a node. Handles, the channel and the ingress hold it for as long as they live; what is in it changes.
pub(crate) struct Slot {
    service: String,
    module: Arc<ModuleFacts>,
    built_in: bool,
    target: ArcSwap<Target>,
    changed: Notify,
    /// Who waits for whom while the node starts.
    waits: Arc<Waits>,
    /// What becomes of calls whose answer was lost.
    pub(crate) deliveries: Deliveries,
    /// How many of them may be made again.
    pub(super) budget: Budget,
}

/// What the services of one module share.
#[derive(Debug)]
pub(crate) struct ModuleFacts {
    pub(crate) name: ModuleName,
    chain: Chain,
    /// Whether the answers that an instance keeps go where the module goes.
    answers_travel: bool,
    pub(crate) exposed: Exposed,
    callers: CallPolicy,
    /// Answers of earlier epochs do not count: see `placement::state::Part::fence`.
    fence: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) counts: Counts,
    /// Calls that wait for the module to be somewhere.
    waiting: AtomicUsize,
    patience: Patience,
    hint: Mutex<Option<(Hint, Instant)>>,
    hinted: Arc<Notify>,
}

/// Where another node says that the module is, at an epoch that this node may not have heard of yet.
pub(crate) type Hint = (Epoch, NodeId);

/// How long a hint counts. By then this node has heard of the move itself, or is cut off, and would only follow it into
/// the past.
const HINT: Duration = Duration::from_secs(2);

/// How long, and how many, calls may wait for a module that is nowhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) wait: Duration,
    pub(crate) most: usize,
}

impl ModuleFacts {
    /// `answers_travel` where the answers that an instance keeps go where the module goes; `hinted` is notified when
    /// another node tells where the module is.
    pub(crate) fn new(
        name: ModuleName,
        answers_travel: bool,
        exposed: Exposed,
        callers: CallPolicy,
        patience: Patience,
        hinted: Arc<Notify>,
    ) -> Arc<Self> {
        let (panics, waiting, hint) = (AtomicU64::new(0), AtomicUsize::new(0), Mutex::default());
        let (chain, fence, counts) = (Chain::of(name.as_str()), AtomicU64::new(0), Counts::default());
        Arc::new(Self {
            name,
            chain,
            answers_travel,
            exposed,
            callers,
            fence,
            panics,
            counts,
            waiting,
            patience,
            hint,
            hinted,
        })
    }

    /// How many calls wait for the module to be somewhere.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A module of the node's own, which is never waited for.
    fn built_in() -> Arc<Self> {
        Self::new(
            ModuleName::node(),
            false,
            Exposed::Public,
            CallPolicy::default(),
            Patience { wait: Duration::ZERO, most: 0 },
            Arc::default(),
        )
    }

    /// Answers of epochs before this one do not count any more.
    pub(crate) fn fence_off(&self, epoch: Epoch) {
        self.fence.fetch_max(epoch.0, Ordering::SeqCst);
    }

    /// What another node has told lately.
    pub(crate) fn hint(&self) -> Option<Hint> {
        let mut hint = self.hint.lock().unwrap_or_else(PoisonError::into_inner);
        if hint.as_ref().is_some_and(|(_, told)| told.elapsed() >= HINT) {
            *hint = None;
        }
        hint.as_ref().map(|(hint, _)| hint.clone())
    }
}

/// Where calls to a service go.
#[derive(Debug)]
pub(crate) enum Target {
    /// Its factory has not answered yet: calls wait.
    Starting,
    Local(Local),
    /// On other nodes.
    Placed(Arc<Placed>),
    /// Over a transport that somebody gave.
    Remote(Remote),
    /// Nowhere at the moment, for this reason: calls wait for a while.
    Nowhere(Arc<str>),
    Stopped,
}

/// A service in this process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Local {
    /// The way to the trait behind the server, where the server is bare and its code was generated by us. A server in
    /// an interceptor or a layer has none: going around them would change what a call means.
    direct: Option<Direct>,
    wire: Arc<dyn Wire>,
    /// Of the instance that it is part of.
    pub(super) gate: Arc<Gate>,
    /// The answers that the instance keeps, for methods that want it. The node's own services have none.
    pub(super) kept: Option<Arc<Dedupe>>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("direct", &self.direct).finish_non_exhaustive()
    }
}

impl Local {
    pub(crate) fn new(direct: Option<Direct>, wire: Box<dyn Wire>) -> Self {
        Self { direct, wire: wire.into(), gate: Arc::default(), kept: None }
    }

    /// The same service, behind the gate that it shares with the other services of its instance.
    pub(crate) fn behind(self, gate: Arc<Gate>) -> Self {
        Self { gate, ..self }
    }

    /// The same service, with the table of answers that it shares with them too.
    pub(crate) fn keeping(self, kept: Arc<Dedupe>) -> Self {
        Self { kept: Some(kept), ..self }
    }

    /// The same service, for a run that the table itself owns.
    pub(super) fn not_keeping(&self) -> Self {
        Self { kept: None, ..self.clone() }
    }

    #[inline]
    pub(crate) fn direct<L: ?Sized + 'static>(&self) -> Option<&L> {
        self.direct.as_ref()?.local.downcast_ref::<Arc<L>>().map(|local| &**local)
    }

    /// The service by its messages as they travel, where the trait behind the server is known.
    /// And how large a message may be that it takes.
    pub(super) fn carries(&self) -> Option<&(Arc<dyn Carries>, usize)> {
        self.direct.as_ref()?.carries.as_ref()
    }

    pub(crate) fn call(&self, request: Request) -> BoxFuture<'static, Result<Response, BoxError>> {
        self.wire.call(request)
    }
}

/// An `Arc` of a service's generated, object-safe trait.
#[derive(Clone)]
pub struct Direct {
    local: Arc<dyn Any + Send + Sync>,
    carries: Option<(Arc<dyn Carries>, usize)>,
}

impl Direct {
    /// Hides the trait.
    #[must_use]
    pub fn new<L: ?Sized + Send + Sync + 'static>(local: Arc<L>) -> Self {
        Self { local: Arc::new(local), carries: None }
    }

    /// The same, for a service that takes messages as they travel too, up to so many bytes.
    #[must_use]
    pub fn carrying(self, carries: Arc<dyn Carries>, most: Option<usize>) -> Self {
        Self { carries: Some((carries, most.unwrap_or(usize::MAX))), ..self }
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").finish_non_exhaustive()
    }
}

/// A tonic server, or anything that looks like one, with its type erased.
pub(crate) trait Wire: Send + Sync {
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Response, BoxError>>;
}

impl Slot {
    pub(crate) fn starting(service: String, module: Arc<ModuleFacts>, waits: Arc<Waits>) -> Self {
        Self::with(service, module, waits, Target::Starting)
    }

    /// A service of the node's own, such as health.
    pub(crate) fn built_in(service: &str, wire: Box<dyn Wire>) -> Self {
        let module = ModuleFacts::built_in();
        let target = Target::Local(Local::new(None, wire));
        Self { built_in: true, ..Self::with(service.to_owned(), module, Arc::default(), target) }
    }

    pub(crate) fn remote(service: &str, remote: Remote) -> Self {
        let module = ModuleFacts::built_in();
        Self::with(service.to_owned(), module, Arc::default(), Target::Remote(remote))
    }

    fn with(service: String, module: Arc<ModuleFacts>, waits: Arc<Waits>, target: Target) -> Self {
        Self {
            deliveries: Deliveries::known(&service),
            service,
            module,
            built_in: false,
            target: ArcSwap::from_pointee(target),
            changed: Notify::new(),
            waits,
            budget: Budget::default(),
        }
    }

    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    pub(crate) fn is_built_in(&self) -> bool {
        self.built_in
    }

    pub(crate) fn module(&self) -> &ModuleName {
        &self.module.name
    }

    /// The module, as a call carries it along.
    #[inline]
    pub(crate) fn chain(&self) -> Chain {
        self.module.chain
    }

    /// Whether a module that has a handle on this one may call a method.
    ///
    /// # Errors
    /// It may not.
    #[inline]
    pub(super) fn admits_caller(&self, from: &CallingModule, path: &str) -> Result<(), CallError> {
        Ok(self.module.callers.admits_caller(from, &self.module.name, path)?)
    }

    /// Whether a module that declares that it calls this one may call a method.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn admits_module(&self, from: &ModuleName, path: &str) -> Result<(), CallError> {
        Ok(self.module.callers.admits_module(from, &self.module.name, path)?)
    }

    /// See [`CallPolicy::undeclared`].
    pub(super) fn undeclared(&self, from: &ModuleName, path: &str) -> Result<(), CallError> {
        Ok(self.module.callers.undeclared(from, &self.module.name, path)?)
    }

    /// Whether clients may call it.
    pub(crate) fn exposed(&self) -> Exposed {
        self.module.exposed
    }

    /// See [`ModuleFacts::new`].
    pub(super) fn answers_travel(&self) -> bool {
        self.module.answers_travel
    }

    /// Answers of epochs before this one do not count any more.
    pub(crate) fn fence(&self) -> Epoch {
        Epoch(self.module.fence.load(Ordering::SeqCst))
    }

    /// See [`ModuleFacts::fence_off`].
    pub(crate) fn fence_off(&self, epoch: Epoch) {
        self.module.fence_off(epoch);
    }

    /// Whether somebody has taken over since an owner at this epoch served, without its having handed over.
    pub(crate) fn is_fenced_off(&self, epoch: Epoch) -> bool {
        #[cfg(feature = "simulation")]
        if crate::simulation::is_broken(crate::simulation::Rule::CallerLooksAtTheFence) {
            return false;
        }
        epoch.0 < self.module.fence.load(Ordering::SeqCst)
    }

    pub(crate) fn facts(&self) -> &Arc<ModuleFacts> {
        &self.module
    }

    pub(crate) fn set(&self, target: Target) {
        self.target.store(Arc::new(target));
        self.changed.notify_waiters();
    }

    /// Where a call goes now. Costs no reference count, unless very many are held.
    #[inline]
    pub(crate) fn target(&self) -> arc_swap::Guard<Arc<Target>> {
        self.target.load()
    }

    /// Another node has answered that the module has moved on.
    #[cold]
    pub(crate) fn moved(&self, epoch: Epoch, node: &NodeId) {
        let mut hint = self.module.hint.lock().unwrap_or_else(PoisonError::into_inner);
        if hint.as_ref().is_none_or(|((known, _), _)| *known < epoch) {
            *hint = Some(((epoch, node.clone()), Instant::now()));
            drop(hint);
            self.module.hinted.notify_one();
        }
    }

    /// A gate of this slot has opened: calls that wait should look again.
    pub(crate) fn opened(&self) {
        self.changed.notify_waiters();
    }

    /// Ready when the target changes after this call of it.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Begins to wait for a module that is not there for a call.
    ///
    /// # Errors
    /// When too many calls wait, or, from within a factory, when the module waits for the one that is starting.
    #[cold]
    pub(crate) fn wait(&self, scope: Scope) -> Result<Waiting<'_>, CallError> {
        // From within a factory this wait is an edge between two modules, and a circle of edges would never end.
        let edge = self.waits.wait(scope.starting, self.module())?;
        let Patience { wait, most } = self.module.patience;
        let counted = Counted::of(&self.module.waiting);
        self.module.counts.waited.fetch_add(1, Ordering::Relaxed);
        // A start has a limit of its own.
        let until = edge.is_none().then(|| Instant::now() + wait);
        if edge.is_none() && counted.now > most {
            return Err(CallError::TooManyWaiting { module: self.module().clone(), most });
        }
        Ok(Waiting { slot: self, until, _counted: counted, _edge: edge })
    }

    /// A call that an instance here has admitted did not end well.
    #[cold]
    pub(super) fn failed(&self, code: Code) {
        self.module.counts.errors.count(code);
    }

    #[cold]
    pub(crate) fn panicked(&self, path: &str, message: &str) {
        self.module.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(module = %self.module.name, method = path, panic = message, "a call panicked");
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = match **self.target.load() {
            Target::Starting => "starting",
            Target::Nowhere(_) => "nowhere",
            Target::Placed(_) => "placed",
            Target::Local(_) => "local",
            Target::Remote(_) => "remote",
            Target::Stopped => "stopped",
        };
        f.debug_struct("Slot").field("service", &self.service).field("target", &target).finish_non_exhaustive()
    }
}

/// A call that waits for a module.
pub(crate) struct Waiting<'a> {
    slot: &'a Slot,
    until: Option<Instant>,
    _counted: Counted<'a>,
    _edge: Option<Edge<'a>>,
}

impl Waiting<'_> {
    /// Waits for a change, or for `pause` where that is shorter. A start on this node has a limit of its own, and is
    /// waited for as long as it takes.
    ///
    /// # Errors
    /// When the wait has taken too long: `why` it was needed.
    pub(crate) async fn wait(
        &self,
        changed: Notified<'_>,
        pause: Option<Duration>,
        starts: bool,
        why: impl FnOnce() -> String,
    ) -> Result<(), CallError> {
        let now = Instant::now();
        let until = self.until.filter(|_| !starts);
        if until.is_some_and(|until| until <= now) {
            return Err(CallError::Nowhere { module: self.slot.module().clone(), why: why() });
        }
        let pause = pause.map(|pause| now + pause);
        match until.into_iter().chain(pause).min() {
            None => changed.await,
            Some(until) => {
                // What comes after is for the next look to find out.
                let _ = tokio::time::timeout_at(until, changed).await;
            }
        }
        Ok(())
    }
}

/// One more in a count.
struct Counted<'a> {
    count: &'a AtomicUsize,
    now: usize,
}

impl<'a> Counted<'a> {
    fn of(count: &'a AtomicUsize) -> Self {
        Self { count, now: count.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Local {
    /// Lets a call in that has come through these modules, for as long as the pass is held; `None` when the gate is
    /// closed to it.
    pub(crate) fn pass(&self, chain: Chain, origin: Origin) -> Option<Pass> {
        self.gate.pass(chain, origin)
    }
}

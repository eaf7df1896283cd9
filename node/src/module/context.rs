//! What a module is given.

use std::{
    fmt,
    ops::Deref,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard, WaitForCancellationFuture},
    task::TaskTracker,
};

use crate::{
    BoxError,
    call::Channel,
    id::{Epoch, ModuleName},
};

/// A module's own configuration: the table `[modules.NAME]` of the application's file, with what the environment and
/// flags set over it. A parameter of the module's factory.
///
/// `T` needs `Deserialize`, and `Serialize` for `APP config`, which prints it: keep what must not be printed in a
/// [`Secret`](crate::Secret). What keys have that nobody sets is for serde to say: `#[serde(default)]` on the type. A
/// key that `T` does not have is an error at start, with or without serde's `deny_unknown_fields`.
#[derive(Debug, Clone)]
pub struct Config<T>(T);

impl<T> Config<T> {
    /// Wraps a value, as the framework does; of use in a module's own tests.
    pub fn new(config: T) -> Self {
        Self(config)
    }

    /// The configuration itself.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Config<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A module's side of the node. A parameter of the module's factory; cheap to clone.
#[derive(Clone)]
pub struct Context {
    module: ModuleName,
    channel: Channel,
    tasks: Tasks,
    ownership: Ownership,
}

impl Context {
    pub(crate) fn new(module: ModuleName, channel: Channel, tasks: Tasks, ownership: Ownership) -> Self {
        Self { module, channel, tasks, ownership }
    }

    /// A context outside of any node; of use in a module's own tests. Its channel knows no service, its epoch is one, nobody
    /// runs its hooks, and its tasks run for as long as they like.
    #[must_use]
    pub fn detached(module: ModuleName) -> Self {
        let ownership = Ownership::default();
        ownership.set(Epoch(1));
        Self::new(module, Channel::new(Arc::default()), Tasks::default(), ownership)
    }

    /// The epoch at which this instance serves: the fencing token of its module. It grows with each change of the owner,
    /// and is never used again. A store that refuses writes with a lower epoch than one that it has seen can't be written
    /// to by an owner that was replaced, and has yet to hear of it. Zero before the instance has served.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.ownership.epoch.load(Ordering::SeqCst)
    }

    /// Has something done whenever this instance becomes the one that serves, with the epoch: before its first call, and
    /// after its state was restored. The place to raise the fence of the module's own store, and to load what an earlier
    /// owner may have written since the factory ran. Callers wait meanwhile.
    ///
    /// If it fails, the module is not served here: it is tried again, and on other nodes.
    pub fn on_activate<F, E>(&self, hook: impl Fn(u64) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let hook = move |epoch| -> BoxFuture<'static, Result<(), BoxError>> {
            let run = hook(epoch);
            Box::pin(async move { run.await.map_err(Into::into) })
        };
        self.ownership.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(hook));
    }

    /// The name of the module.
    #[must_use]
    pub fn module(&self) -> &ModuleName {
        &self.module
    }

    /// A transport for stock tonic clients, to the modules that this one declares that it calls, by its handles or with
    /// [`Module::depends_on`](crate::Module::depends_on): calls of others are refused with PERMISSION_DENIED.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Runs a task that belongs to the module, and ends with it.
    ///
    /// When the module ends here, the task may finish what it does: see [`Context::stopping`]. If it still runs at the
    /// deadline, it is dropped. A panic in it is logged, and ends nothing else.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let module = self.module.clone();
        let ended = self.tasks.end.clone();
        self.tasks.tracker.spawn(async move {
            match ended.run_until_cancelled_owned(AssertUnwindSafe(task).catch_unwind()).await {
                Some(Ok(())) => {}
                Some(Err(panic)) => {
                    let message = crate::call::panic_text(&*panic);
                    tracing::error!(%module, task = name, panic = message, "a task panicked");
                }
                None => tracing::warn!(%module, task = name, "a task was dropped, as it did not end when asked to"),
            }
        });
    }

    /// Waits until the node begins to stop, or the module to move to another one. Calls in flight may still finish, but
    /// those that never end by themselves, such as a subscription, should end now: they would use up the time that the
    /// others have.
    ///
    /// A move may be given up; then what waits for this later waits for the next one.
    pub async fn draining(&self) {
        let mut draining = self.tasks.draining.subscribe();
        // The sender is held here.
        let _ = draining.wait_for(|draining| *draining).await;
    }

    /// Waits until the module should end: calls in flight have finished, and no more will come.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.tasks.stopping.cancelled()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("module", &self.module).finish_non_exhaustive()
    }
}

/// What runs when an instance becomes the one that serves.
type Hook = Arc<dyn Fn(u64) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;

/// What an instance of a module knows of its being the one that serves.
#[derive(Clone, Default)]
pub(crate) struct Ownership {
    epoch: Arc<AtomicU64>,
    hooks: Arc<Mutex<Vec<Hook>>>,
}

impl Ownership {
    pub(crate) fn set(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::SeqCst);
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::SeqCst))
    }

    /// Whether the module wants to do something before it serves.
    pub(crate) fn has_hooks(&self) -> bool {
        !self.hooks.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Has it done.
    ///
    /// # Errors
    /// The module's; a panic is one.
    pub(crate) async fn activate(&self, epoch: Epoch) -> Result<(), BoxError> {
        self.set(epoch);
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for hook in hooks {
            let run = AssertUnwindSafe(async move { hook(epoch.0).await }).catch_unwind();
            run.await.unwrap_or_else(|panic| {
                let text = crate::call::panic_text(&*panic);
                Err(format!("what runs on its activation panicked: {text}").into())
            })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ownership").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The tasks of one instance of a module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    draining: Arc<watch::Sender<bool>>,
    stopping: CancellationToken,
    end: CancellationToken,
}

impl Tasks {
    /// Drops them all, without asking, when the guard is dropped.
    pub(crate) fn end_on_drop(&self) -> DropGuard {
        self.end.clone().drop_guard()
    }

    /// Tells whoever asks that the module is about to end here.
    pub(crate) fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// It goes on after all.
    pub(crate) fn stay(&self) {
        self.draining.send_replace(false);
    }

    /// Runs a task of the framework's that belongs to the instance, until that ends.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tracker.spawn(async move {
            stopping.run_until_cancelled_owned(task).await;
        });
    }

    /// Asks the tasks to end, waits for them for so long, and drops those that are left. Returns how many.
    pub(crate) async fn stop(&self, grace: Duration) -> usize {
        self.drain();
        self.stopping.cancel();
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_ok() {
            return 0;
        }
        let left = self.tracker.len();
        self.end.cancel();
        // One that never yields can't be dropped; it ends with the process.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tracker.wait()).await;
        left
    }
}

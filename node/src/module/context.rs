//! What a module is given.

use std::{fmt, ops::Deref, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use tokio_util::{
    sync::{CancellationToken, DropGuard, WaitForCancellationFuture},
    task::TaskTracker,
};

use crate::{call::Channel, id::ModuleName};

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
}

impl Context {
    pub(crate) fn new(module: ModuleName, channel: Channel, tasks: Tasks) -> Self {
        Self { module, channel, tasks }
    }

    /// The name of the module.
    #[must_use]
    pub fn module(&self) -> &ModuleName {
        &self.module
    }

    /// A transport for stock tonic clients, to any module of the program. Declare what you call by it with
    /// [`Module::depends_on`](crate::Module::depends_on).
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
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.tasks.draining.cancelled()
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

/// The tasks of one instance of a module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    draining: CancellationToken,
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
        self.draining.cancel();
    }

    /// Asks the tasks to end, waits for them for so long, and drops those that are left. Returns how many.
    pub(crate) async fn stop(&self, grace: Duration) -> usize {
        self.draining.cancel();
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

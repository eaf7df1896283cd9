//! What a call hands down to the calls that it makes, without the module's doing.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::module::Starting;

/// The facts that are in force while a piece of a call is polled. Copied, so that it costs no reference count.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scope {
    /// When the call that is being served must have ended.
    pub(crate) deadline: Option<Instant>,
    /// The module whose factory is running.
    pub(crate) starting: Option<Starting>,
}

thread_local! {
    static CURRENT: Cell<Scope> = const { Cell::new(Scope { deadline: None, starting: None }) };
}

impl Scope {
    pub(crate) fn current() -> Self {
        CURRENT.get()
    }

    /// Runs `body` in this scope; a panic restores the outer one too.
    pub(crate) fn enter<T>(self, body: impl FnOnce() -> T) -> T {
        struct Restore(Scope);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _restore = Restore(CURRENT.replace(self));
        body()
    }

    /// Runs a future in this scope: it holds during each poll.
    pub(crate) fn around<F>(self, future: F) -> Scoped<F> {
        Scoped { scope: self, future }
    }
}

pin_project! {
    /// See [`Scope::around`].
    #[derive(Debug)]
    pub(crate) struct Scoped<F> {
        scope: Scope,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let future = this.future;
        this.scope.enter(|| future.poll(cx))
    }
}

//! What a call hands down to the calls that it makes, without the module's doing.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::{caller::ClientId, chain::Chain, deadline};
use crate::{module::Starting, status::CallError};

/// How deep calls within this process may nest. They share one stack, and to overflow it would end the process; a
/// program that means to go this deep has a loop.
const MAX_DEPTH: u8 = 64;

/// The facts that are in force while a piece of a call is polled. Copied, so that it costs no reference count.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scope {
    /// When the call that is being served must have ended. Whoever entered the scope sees to that.
    pub(crate) deadline: Option<Instant>,
    /// How many calls this one is nested in.
    depth: u8,
    /// The modules that it has come through.
    pub(crate) chain: Chain,
    /// The client that has begun it, where one has shown who it is.
    pub(crate) client: Option<ClientId>,
    /// The module whose factory is running.
    pub(crate) starting: Option<Starting>,
}

thread_local! {
    static CURRENT: Cell<Scope> =
        const { Cell::new(Scope { deadline: None, depth: 0, chain: Chain::NONE, client: None, starting: None }) };
}

impl Scope {
    #[inline]
    pub(crate) fn current() -> Self {
        CURRENT.get()
    }

    /// The scope of a call made in this one, and the deadline to enforce on it: none, where an outer call ends it in
    /// time.
    #[inline]
    pub(crate) fn of_call(timeout: Option<&[u8]>) -> Result<(Self, Option<Instant>), CallError> {
        let outer = Self::current();
        if outer.depth >= MAX_DEPTH {
            return Err(CallError::TooDeep(MAX_DEPTH));
        }
        let deadline = deadline::of(timeout, outer.deadline);
        let own = deadline.filter(|_| deadline != outer.deadline);
        Ok((Self { deadline, depth: outer.depth + 1, ..outer }, own))
    }

    /// The scope that a call from another node, nested in so many calls of these modules, begins in.
    pub(crate) fn arrived(depth: u8, chain: Chain, client: Option<ClientId>) -> Self {
        Self { depth, chain, client, ..Self::default() }
    }

    /// The scope of such a call, which must have ended by `deadline`.
    ///
    /// # Errors
    /// One that is nested too deep.
    pub(crate) fn of_carried(
        depth: u8,
        chain: Chain,
        client: Option<ClientId>,
        deadline: Option<Instant>,
    ) -> Result<Self, CallError> {
        if depth >= MAX_DEPTH {
            return Err(CallError::TooDeep(MAX_DEPTH));
        }
        Ok(Self { deadline, depth: depth + 1, chain, client, starting: None })
    }

    /// The same scope, with a client that somebody else holds.
    pub(crate) fn begun_by(self, client: Option<ClientId>) -> Self {
        Self { client, ..self }
    }

    /// The scope of what a module does for a call.
    #[inline]
    pub(crate) fn within(self, module: Chain) -> Self {
        Self { chain: self.chain.with(module), ..self }
    }

    /// How many calls a call in this scope is nested in.
    pub(crate) fn depth(&self) -> u8 {
        self.depth
    }

    /// The scope of a module's factory.
    pub(crate) fn of_start(starting: Starting) -> Self {
        Self { starting: Some(starting), ..Self::default() }
    }

    /// Runs `body` in this scope; a panic restores the outer one too.
    #[inline]
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

//! A panic in a module ends one call, nothing else.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::{scope::Scope, slot::Slot};
use crate::status::CallError;

/// Runs a piece of a module's code, in the scope of the call. A panic is logged and counted, and becomes an error
/// without its text.
///
/// State that the module shares between calls is the module's to guard, as in any Rust server (a `Mutex` is poisoned).
#[inline]
pub(crate) fn run<T>(slot: &Slot, path: &str, scope: Scope, code: impl FnOnce() -> T) -> Result<T, CallError> {
    scope.enter(|| catch(slot, path, code))
}

#[inline]
fn catch<T>(slot: &Slot, path: &str, code: impl FnOnce() -> T) -> Result<T, CallError> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| {
        slot.panicked(path, &text(&*panic));
        CallError::Panicked
    })
}

/// Drops what is a module's: its destructors are its code too.
#[inline]
pub(crate) fn discard<T>(slot: &Slot, path: &str, value: T) {
    // Counted and logged; there is nobody to tell.
    let _ = run(slot, path, Scope::current(), || drop(value));
}

/// A module's future: made, polled and dropped under guard.
///
/// A response is large, and each time it is handed on it is copied: so it is left in a place, and taken from there once.
pub(crate) struct Guarded<'a, F: Future> {
    slot: &'a Slot,
    path: &'a str,
    scope: Scope,
    future: Option<F>,
    output: Option<F::Output>,
}

impl<'a, F: Future> Guarded<'a, F> {
    #[inline]
    pub(crate) fn start(
        slot: &'a Slot,
        path: &'a str,
        scope: Scope,
        make: impl FnOnce() -> F,
    ) -> Result<Self, CallError> {
        let future = Some(catch(slot, path, make)?);
        Ok(Self { slot, path, scope, future, output: None })
    }
}

// An output is never pinned.
impl<F: Future + Unpin> Unpin for Guarded<'_, F> {}

impl<F: Future + Unpin> Guarded<'_, F> {
    /// Polls, and leaves what the future answers with in its place, to be taken or changed there.
    #[inline]
    pub(crate) fn poll_in_place(&mut self, cx: &mut Context<'_>) -> Poll<Result<&mut Option<F::Output>, CallError>> {
        let Self { slot, path, scope, future, output } = self;
        let poll = || {
            if let Some(running) = future {
                match Pin::new(running).poll(cx) {
                    Poll::Ready(done) => *output = Some(done),
                    Poll::Pending => return false,
                }
                *future = None;
            }
            true
        };
        match run(slot, path, *scope, poll) {
            Ok(false) => Poll::Pending,
            Ok(true) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

impl<F: Future + Unpin> Future for Guarded<'_, F> {
    type Output = Result<F::Output, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let place = ready!(self.poll_in_place(cx));
        Poll::Ready(place.map(|place| place.take().expect("a future is not polled after its end")))
    }
}

impl<F: Future> Drop for Guarded<'_, F> {
    #[inline]
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            discard(self.slot, self.path, future);
        }
    }
}

/// The text that a panic carries.
pub(crate) fn text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

//! A panic in a module ends one call, nothing else.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use super::{scope::Scope, slot::Slot};
use crate::status::CallError;

/// Runs a piece of a module's code, in the scope of the call. A panic is logged and counted, and becomes an error
/// without its text.
///
/// State that the module shares between calls is the module's to guard, as in any Rust server (a `Mutex` is poisoned).
#[inline]
pub(crate) fn run<T>(slot: &Slot, path: &str, scope: Scope, code: impl FnOnce() -> T) -> Result<T, CallError> {
    scope.within(slot.chain()).enter(|| catch(slot, path, code))
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
    let _ = catch(slot, path, || drop(value));
}

/// A module's future: made, polled and dropped under guard.
pub(crate) struct Guarded<'a, F> {
    slot: &'a Slot,
    path: &'a str,
    scope: Scope,
    future: Option<F>,
}

impl<'a, F> Guarded<'a, F> {
    #[inline]
    pub(crate) fn start(
        slot: &'a Slot,
        path: &'a str,
        scope: Scope,
        make: impl FnOnce() -> F,
    ) -> Result<Self, CallError> {
        let future = Some(catch(slot, path, make)?);
        Ok(Self { slot, path, scope, future })
    }
}

impl<F: Future + Unpin> Guarded<'_, F> {
    #[inline]
    pub(crate) fn poll_guarded(&mut self, cx: &mut Context<'_>) -> Result<Poll<F::Output>, CallError> {
        let Self { slot, path, scope, future } = self;
        run(slot, path, *scope, || {
            let polled = Pin::new(future.as_mut().expect("a future is not polled after its end")).poll(cx);
            if polled.is_ready() {
                *future = None;
            }
            polled
        })
    }
}

impl<F: Future + Unpin> Future for Guarded<'_, F> {
    type Output = Result<F::Output, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.poll_guarded(cx) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

impl<F> Guarded<'_, F> {
    /// Whether it has yet to end.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.future.is_some()
    }
}

impl<F> Drop for Guarded<'_, F> {
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

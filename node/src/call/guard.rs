//! A panic in a module ends one call, nothing else.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
};

use super::slot::Slot;
use crate::status::CallError;

/// Polls a piece of a module's code. A panic is logged and counted, and becomes an error without its text.
///
/// What the panic left half done is dropped with the call; state that the module shares between calls is the module's
/// to guard, as in any Rust server (a `Mutex` is poisoned).
#[inline]
pub(crate) fn poll<T>(slot: &Slot, path: &str, poll: impl FnOnce() -> Poll<T>) -> Poll<Result<T, CallError>> {
    match catch_unwind(AssertUnwindSafe(poll)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
        Err(panic) => {
            slot.panicked(path, &text(&*panic));
            Poll::Ready(Err(CallError::Panicked))
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

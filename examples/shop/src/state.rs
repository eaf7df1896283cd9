//! The one place where the shop locks.

use std::sync::{Mutex, PoisonError};

/// State that the concurrent calls of a module share.
#[derive(Debug, Default)]
pub(crate) struct State<T>(Mutex<T>);

impl<T> State<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Runs `work` alone on the state. `work` is not async, so the lock is never held over an await.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        // A panic in an earlier `work` fails that call only: the shop's state checks first and changes last, so what
        // it left behind is whole.
        let mut value = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut value)
    }
}

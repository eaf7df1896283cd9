//! Names for what the shop makes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock;

/// Hands out ids such as `ORDER-19A3F0C2B1E-00000001`: a kind, the start of the module, a counter.
///
/// The start keeps a restarted module from naming a new thing like an old one, which others may remember.
#[derive(Debug)]
pub(crate) struct Ids {
    kind: &'static str,
    started_ms: i64,
    count: AtomicU64,
}

impl Ids {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, started_ms: clock::unix_ms(), count: AtomicU64::new(0) }
    }

    pub(crate) fn fresh(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}-{:X}-{count:08}", self.kind, self.started_ms)
    }
}

//! Names for what the shop makes.

use std::sync::atomic::{AtomicU64, Ordering};

use outpost::Context;

use crate::clock;

/// Hands out ids such as `ORDER-00000003-19A3F0C2B1E-00000001`: a kind, the epoch of the module, the start of this instance
/// of it, a counter.
///
/// No two instances of a module serve at the same epoch, and it grows, so no id is given twice and ids grow, wherever the
/// module is and whatever the clocks there say. The start does the same for a cluster that was founded anew, where epochs
/// begin again.
#[derive(Debug)]
pub(crate) struct Ids {
    kind: &'static str,
    ctx: Context,
    started_ms: i64,
    count: AtomicU64,
}

impl Ids {
    pub(crate) fn new(kind: &'static str, ctx: Context) -> Self {
        Self { kind, ctx, started_ms: clock::unix_ms(), count: AtomicU64::new(0) }
    }

    pub(crate) fn fresh(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}-{:08X}-{:X}-{count:08}", self.kind, self.ctx.epoch(), self.started_ms)
    }
}

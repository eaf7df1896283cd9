//! The gate of one instance of a module: counts the calls inside, and can be closed.
//!
//! Counters are sharded, so that two cores that call the same module do not pass a cache line back and forth; a call
//! that enters and leaves touches only the shard of the thread that it entered on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::clock;

/// More than the cores of most machines would only make closing slower.
const SHARDS: usize = 8;

/// On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(AtomicUsize);

/// Admits calls while it is open, and counts those inside. One that is open for a lease looks at the clock for each call:
/// the task that would close it may not have run yet, in a process that was stopped for a while.
///
/// **Invariant:** once [`Gate::close`] has returned, no call enters, and every call that did is counted: the count is
/// raised before the closed flag is read, and the flag is set before the counts are, all in one total order.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shards: [Shard; SHARDS],
    /// One of the three below.
    state: AtomicU8,
    lease: Arc<LeaseEnd>,
    left: Notify,
}

const OPEN: u8 = 0;
/// Open until the lease ends.
const LEASED: u8 = 1;
const CLOSED: u8 = 2;

/// When the lease of this node ends, by [`clock::coarse`], in milliseconds. It has none at first.
#[derive(Debug, Default)]
pub(crate) struct LeaseEnd(AtomicU64);

impl LeaseEnd {
    pub(crate) fn set(&self, end: Duration) {
        self.0.store(u64::try_from(end.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Whether the lease holds.
    #[inline]
    pub(crate) fn holds(&self) -> bool {
        clock::coarse().as_millis() < u128::from(self.0.load(Ordering::SeqCst))
    }
}

/// Where a call was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered(u8);

thread_local! {
    static MINE: u8 = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        (THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS) as u8
    };
}

impl Gate {
    /// A gate that is closed, and can be opened for a lease.
    pub(crate) fn closed(lease: Arc<LeaseEnd>) -> Self {
        Self { state: AtomicU8::new(CLOSED), lease, ..Self::default() }
    }

    /// Lets a call in, if the gate is open. It must [`Gate::leave`].
    #[inline]
    pub(crate) fn enter(&self) -> Option<Entered> {
        let entered = Entered(MINE.with(|mine| *mine));
        self.shards[usize::from(entered.0)].0.fetch_add(1, Ordering::SeqCst);
        let open = match self.state.load(Ordering::SeqCst) {
            OPEN => true,
            LEASED => self.lease.holds(),
            _ => false,
        };
        if !open {
            self.leave(entered);
            return None;
        }
        Some(entered)
    }

    /// The same, for a call that outlives the borrow.
    pub(crate) fn pass(self: &Arc<Self>) -> Option<Pass> {
        let entered = self.enter()?;
        Some(Pass { gate: Arc::clone(self), entered })
    }

    #[inline]
    pub(crate) fn leave(&self, entered: Entered) {
        self.shards[usize::from(entered.0)].0.fetch_sub(1, Ordering::SeqCst);
        if self.state.load(Ordering::SeqCst) == CLOSED {
            self.left.notify_waiters();
        }
    }

    pub(crate) fn close(&self) {
        self.state.store(CLOSED, Ordering::SeqCst);
    }

    /// Opens it; `leased` is for as long as the lease holds. Who was refused for want of a lease should be told when it
    /// holds again.
    pub(crate) fn open(&self, leased: bool) {
        self.state.store(if leased { LEASED } else { OPEN }, Ordering::SeqCst);
    }

    /// How many calls are inside. Exact only while the gate is closed.
    pub(crate) fn inside(&self) -> usize {
        // One that entered on one thread and left on another is counted on the one it entered on.
        self.shards.iter().map(|shard| shard.0.load(Ordering::SeqCst)).sum()
    }

    /// Waits until nobody is inside a closed gate.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the gate as it is.
    pub(crate) async fn drained(&self) {
        loop {
            let left = self.left.notified();
            if self.inside() == 0 {
                return;
            }
            left.await;
        }
    }
}

/// Whether a call is inside a gate. For the future of a call, which may not hold a `Cell`; no two threads use it at once.
#[derive(Debug)]
pub(crate) struct Inside(AtomicU8);

impl Inside {
    const NO: u8 = u8::MAX;

    #[inline]
    pub(crate) fn new(entered: Option<Entered>) -> Self {
        Self(AtomicU8::new(entered.map_or(Self::NO, |entered| entered.0)))
    }

    #[inline]
    pub(crate) fn is_some(&self) -> bool {
        self.0.load(Ordering::Relaxed) != Self::NO
    }

    /// Takes it out: whoever has it now must see to its leaving.
    #[inline]
    pub(crate) fn take(&self) -> Option<Entered> {
        let entered = self.0.load(Ordering::Relaxed);
        self.0.store(Self::NO, Ordering::Relaxed);
        (entered != Self::NO).then_some(Entered(entered))
    }
}

/// A call inside a gate; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    entered: Entered,
}

impl Pass {
    /// Takes over a call that has entered.
    pub(crate) fn of(gate: &Arc<Gate>, entered: Entered) -> Self {
        Self { gate: Arc::clone(gate), entered }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.entered);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, thread};

    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in_and_opens_again() {
        let gate = Arc::new(Gate::default());
        let pass = gate.pass().expect("it is open");
        gate.close();
        assert!(gate.pass().is_none());
        assert_eq!(gate.inside(), 1, "who was refused is not counted");
        drop(pass);
        assert_eq!(gate.inside(), 0);
        gate.open(false);
        assert!(gate.pass().is_some());
    }

    #[test]
    fn a_lease_that_has_ended_closes_the_gate_though_nobody_did() {
        let lease = Arc::new(LeaseEnd::default());
        let gate = Arc::new(Gate::closed(Arc::clone(&lease)));
        gate.open(true);
        assert!(gate.pass().is_none(), "there is no lease yet");
        lease.set(clock::coarse() + Duration::from_secs(60));
        assert!(gate.pass().is_some());
        lease.set(clock::coarse());
        assert!(gate.pass().is_none(), "it has ended");
        gate.open(false);
        assert!(gate.pass().is_some(), "a gate that needs none does not look");
    }

    #[tokio::test]
    async fn a_drain_ends_with_the_last_call() {
        let gate = Arc::new(Gate::default());
        let pass = gate.pass().expect("it is open");
        gate.close();
        let mut drained = std::pin::pin!(gate.drained());
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        drop(pass);
        drained.await;
    }

    /// What is inside after closing and draining would be a call that a move loses.
    #[test]
    fn no_call_is_inside_a_gate_that_was_closed_and_drained() {
        const ROUNDS: usize = 2_000;
        let gate = Arc::new(Gate::default());
        let inside = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (gate, inside, stop) = (Arc::clone(&gate), Arc::clone(&inside), Arc::clone(&stop));
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if let Some(entered) = gate.enter() {
                            inside.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            gate.leave(entered);
                        }
                    }
                })
            })
            .collect();
        for _ in 0..ROUNDS {
            gate.close();
            while gate.inside() > 0 {
                thread::yield_now();
            }
            assert_eq!(inside.load(Ordering::SeqCst), 0, "a call was inside a closed gate");
            gate.open(false);
        }
        stop.store(true, Ordering::Relaxed);
        callers.into_iter().for_each(|caller| caller.join().expect("a caller panicked"));
    }
}

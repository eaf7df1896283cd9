//! The gate of one instance of a module: counts the calls inside, can be closed, and can cut off those inside.
//!
//! Each thread counts for itself (see `tally`), so that two cores that call the same module do not pass a cache line back and
//! forth.
//!
//! ```text
//!            open                       seal                         nobody is inside
//! closed ───────────▶ open (leased) ───────────▶ sealing ──────────────────────────────▶ closed
//!                          ▲                        │ lets in only what a call inside waits for
//!                          └────────── open ────────┘
//! ```

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use slab::Slab;
use tokio::sync::Notify;

use super::{
    chain::{Chain, Sealing},
    counts::Origin,
    tally::{Tally, fence},
};
#[cfg(feature = "simulation")]
use crate::simulation;
use crate::{
    clock::Coarse,
    id::{Epoch, ModuleName},
    status::CallError,
};

/// Admits calls while it is open, and counts those inside. One that is open for a lease looks at the clock for each call:
/// the task that would close it may not have run yet, in a process that was stopped for a while.
///
/// **Invariant:** once [`Gate::close`] has returned, or [`Gate::sealed`] is ready, no call enters, and every call that
/// did is counted: the count is raised before the state is read, and the state is set before the counts are read, with a barrier
/// of all threads in between.
///
/// **Invariant:** what a call that was cut off has done, it did before [`Gate::cut`] returned, or [`Gate::may_answer`]
/// forbids its answer.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    tally: Tally,
    /// One of the four below.
    state: AtomicU8,
    /// The epoch that it was opened for.
    epoch: AtomicU64,
    /// The term of the lease that it was opened under; 0 where it needs none.
    term: AtomicU64,
    lease: Arc<LeaseEnd>,
    /// The parts that are being sealed, on any node.
    sealing: Arc<Sealing>,
    left: Notify,
    /// A [`Cut`].
    cut: AtomicU8,
    /// Calls inside that have waited for something.
    waiting: Mutex<Slab<Option<Waker>>>,
    /// How many of the calls inside are in the middle of a stream of answers.
    streams: AtomicUsize,
    /// How often it was opened, or given up. Held while what belongs to one opening is done.
    opening: Mutex<u64>,
}

const OPEN: u8 = 0;
/// Open until the lease ends.
const LEASED: u8 = 1;
/// Lets in only calls that descend from one inside a part that is being sealed.
const SEALING: u8 = 2;
const CLOSED: u8 = 3;

/// Which calls inside are cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Cut {
    Nothing = 0,
    /// Those that wait in the middle of a stream of answers.
    Streams = 1,
    All = 2,
}

/// When the lease of this node ends, by [`Coarse`]; and its term, a number that grows each time that the lease was lost and
/// got again. It has none at first.
///
/// It ends by whichever of the clocks is first: the wall clock alone goes on while the machine is suspended. Where that one
/// was set back just before, by less than the watchdog notices, the lease is too long by as much.
#[derive(Debug, Default)]
pub(crate) struct LeaseEnd {
    end: AtomicU64,
    wall_end: AtomicU64,
    term: AtomicU64,
    /// How often it was taken back. Held while it is granted or taken back.
    revocations: Mutex<u64>,
    revoked: Notify,
}

impl LeaseEnd {
    /// How often it was taken back: to be looked at before it is asked for.
    pub(crate) fn revocations(&self) -> u64 {
        *self.revocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants it until `end`, unless it was taken back since it was asked for: nobody can say how long that was. Returns
    /// its term: a new one, if it did not hold.
    pub(crate) fn grant(&self, end: Coarse, revocations: u64) -> Option<u64> {
        let known = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != revocations {
            return None;
        }
        let term = self.term.load(Ordering::SeqCst);
        let term = if self.holds(term) { term } else { term + 1 };
        // Whoever sees the new end sees the rest.
        self.term.store(term, Ordering::SeqCst);
        self.wall_end.store(end.wall, Ordering::SeqCst);
        self.end.store(end.monotonic, Ordering::SeqCst);
        Some(term)
    }

    /// Whether it was ever granted.
    pub(crate) fn was_granted(&self) -> bool {
        self.term.load(Ordering::SeqCst) > 0
    }

    /// Takes it back: nobody can say how much time has passed.
    pub(crate) fn revoke(&self) {
        let mut revocations = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        *revocations += 1;
        self.end.store(0, Ordering::SeqCst);
        self.revoked.notify_one();
    }

    /// Waits until it is taken back.
    pub(crate) async fn revoked(&self) {
        self.revoked.notified().await;
    }

    /// Whether it holds, in whatever term.
    #[inline]
    pub(crate) fn holds_now(&self) -> bool {
        let (end, wall_end) = (self.end.load(Ordering::SeqCst), self.wall_end.load(Ordering::SeqCst));
        let now = Coarse::now();
        now.monotonic < end && now.wall < wall_end
    }

    /// Whether the lease holds, and has held without a gap since this term began.
    #[inline]
    pub(crate) fn holds(&self, term: u64) -> bool {
        #[cfg(feature = "simulation")]
        if simulation::is_broken(simulation::Rule::GateLooksAtTheLease) {
            return true;
        }
        self.holds_now() && self.term.load(Ordering::SeqCst) == term
    }
}

/// A call was counted, as one that came from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered(Origin);

impl Entered {
    /// The same, of a call that is counted elsewhere.
    pub(crate) fn as_part(self) -> Self {
        Self(Origin::Part)
    }
}

impl Gate {
    /// A gate that is closed, and can be opened for a lease.
    pub(crate) fn closed(lease: Arc<LeaseEnd>, sealing: Arc<Sealing>) -> Self {
        Self { state: AtomicU8::new(CLOSED), lease, sealing, ..Self::default() }
    }

    /// Lets a call in, if the gate is open to it; `chain` is the modules that it has come through. It must
    /// [`Gate::leave`].
    #[inline]
    pub(crate) fn enter(&self, chain: Chain, origin: Origin) -> Option<Entered> {
        self.tally.enter();
        let open = match self.state.load(Ordering::SeqCst) {
            OPEN => true,
            LEASED => self.is_leased(),
            SEALING => self.sealing.concerns(chain) && self.is_leased(),
            _ => false,
        };
        if !open {
            self.tally.refuse();
            self.gone();
            return None;
        }
        Some(Entered(origin))
    }

    /// The same, for a call that outlives the borrow.
    pub(crate) fn pass(self: &Arc<Self>, chain: Chain, origin: Origin) -> Option<Pass> {
        let entered = self.enter(chain, origin)?;
        Some(Pass::of(self, entered))
    }

    #[inline]
    pub(crate) fn leave(&self, Entered(origin): Entered) {
        self.tally.leave(origin);
        self.gone();
    }

    #[inline]
    fn gone(&self) {
        if self.state.load(Ordering::SeqCst) >= SEALING {
            self.left.notify_waiters();
        }
    }

    #[inline]
    fn is_leased(&self) -> bool {
        match self.term.load(Ordering::SeqCst) {
            0 => true,
            term => self.lease.holds(term),
        }
    }

    /// Whether an answer of a call inside counts: nobody can have taken over meanwhile, and it was not cut off.
    #[inline]
    pub(crate) fn may_answer(&self) -> Result<(), Refusal> {
        if self.cut.load(Ordering::SeqCst) == Cut::All as u8 {
            return Err(Refusal::Cut);
        }
        #[cfg(feature = "simulation")]
        if simulation::is_broken(simulation::Rule::AnswerLooksAtTheLease) {
            return Ok(());
        }
        if self.is_leased() { Ok(()) } else { Err(Refusal::LeaseLost) }
    }

    /// The epoch that it was opened for last.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::SeqCst))
    }

    pub(crate) fn close(&self) {
        self.set(CLOSED);
    }

    /// From now on, who enters sees this state, and who has entered is seen.
    fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
        fence();
    }

    /// Tells this opening of the gate from those before and after.
    pub(crate) fn opening(&self) -> u64 {
        *self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the gate, unless it has been opened again or given up since: what was begun for a move may come to
    /// itself after that is over.
    pub(crate) fn during(&self, opening: u64, act: impl FnOnce()) {
        let known = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == opening {
            act();
        }
    }

    /// Closes it for good.
    pub(crate) fn give_up(&self) {
        *self.opening.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.close();
    }

    /// Closes it to all but those that calls inside wait for; see [`Gate::sealed`].
    pub(crate) fn seal(&self, term: u64) {
        self.term.store(term, Ordering::SeqCst);
        self.set(SEALING);
    }

    /// Opens it at an epoch, for as long as the lease of this term holds; 0 is without one. Who was refused for want of
    /// a lease should be told when it holds again.
    pub(crate) fn open(&self, epoch: Epoch, term: u64) {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        *opening += 1;
        self.epoch.store(epoch.0, Ordering::SeqCst);
        self.term.store(term, Ordering::SeqCst);
        self.cut.store(Cut::Nothing as u8, Ordering::SeqCst);
        self.state.store(if term == 0 { OPEN } else { LEASED }, Ordering::SeqCst);
    }

    /// How many calls are inside. Exact only while the gate is closed.
    pub(crate) fn inside(&self) -> usize {
        self.tally.inside()
    }

    /// How many calls were inside and have left, by where they came from: here, a client, another node.
    pub(crate) fn ended(&self) -> [u64; 3] {
        self.tally.ended()
    }

    /// How many of the calls inside are in the middle of a stream of answers.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }

    /// Waits until nobody is inside a gate that is closed or being sealed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the gate as it is.
    pub(crate) async fn drained(&self) {
        self.until(|| self.inside() == 0).await;
    }

    /// Waits until no call is in the middle of a stream of answers.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the gate as it is.
    pub(crate) async fn without_streams(&self) {
        self.until(|| self.streams() == 0).await;
    }

    async fn until(&self, done: impl Fn() -> bool) {
        loop {
            let left = self.left.notified();
            if done() {
                return;
            }
            left.await;
        }
    }

    /// Waits until nobody is inside a gate that is being sealed, and closes it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the gate as it is.
    pub(crate) async fn sealed(&self, opening: u64) {
        loop {
            self.drained().await;
            self.during(opening, || self.close());
            // Somebody may have come in between.
            if self.inside() == 0 {
                return;
            }
            self.during(opening, || self.set(SEALING));
        }
    }

    /// Cuts calls off: they end with an error, at the latest when something asks them to go on.
    pub(crate) fn cut(&self, cut: Cut) {
        self.cut.fetch_max(cut as u8, Ordering::SeqCst);
        let wakers: Vec<Waker> = self.waiting().iter_mut().filter_map(|(_, waker)| waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether a call inside was cut off.
    #[inline]
    pub(crate) fn is_cut(&self, streams: bool) -> bool {
        match self.cut.load(Ordering::SeqCst) {
            0 => false,
            1 => streams,
            _ => true,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Slab<Option<Waker>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an answer does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Cut,
    LeaseLost,
}

impl Refusal {
    /// What the caller is told.
    pub(crate) fn of(self, module: &ModuleName, epoch: Epoch) -> CallError {
        let module = module.clone();
        match self {
            Self::Cut => CallError::Cut { module, epoch },
            Self::LeaseLost => CallError::LeaseLost { module, epoch },
        }
    }
}

/// A call inside a gate that has to wait: is woken when it is cut off.
#[derive(Debug, Default)]
pub(crate) struct Waits(Option<usize>);

impl Waits {
    /// Ready when the call was cut off; of those in the middle of a stream of answers more are. To be asked when the call
    /// itself has to wait.
    pub(crate) fn poll_cut(&mut self, gate: &Gate, streams: bool, cx: &Context<'_>) -> Poll<()> {
        {
            let mut waiting = gate.waiting();
            let key = *self.0.get_or_insert_with(|| waiting.insert(None));
            match &mut waiting[key] {
                Some(waker) => waker.clone_from(cx.waker()),
                empty => *empty = Some(cx.waker().clone()),
            }
        }
        // After the waker is where a cut finds it.
        if gate.is_cut(streams) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits no more. Has to be called before this is dropped.
    #[inline]
    pub(crate) fn end(&mut self, gate: &Gate) {
        if let Some(key) = self.0.take() {
            gate.waiting().remove(key);
        }
    }
}

/// Whether a call is inside a gate. For the future of a call, which may not hold a `Cell`; no two threads use it at once.
#[derive(Debug)]
pub(crate) struct Inside(AtomicU8);

impl Inside {
    const NO: u8 = u8::MAX;
    /// By number.
    const ORIGINS: [Origin; 4] = [Origin::Here, Origin::Client, Origin::Node, Origin::Part];

    #[inline]
    pub(crate) fn new(entered: Option<Entered>) -> Self {
        Self(AtomicU8::new(entered.map_or(Self::NO, |entered| entered.0 as u8)))
    }

    #[inline]
    pub(crate) fn is_some(&self) -> bool {
        self.0.load(Ordering::Relaxed) != Self::NO
    }

    /// Takes it out: whoever has it now must see to its leaving.
    #[inline]
    pub(crate) fn take(&self) -> Option<Entered> {
        let origin = Self::ORIGINS.get(usize::from(self.0.load(Ordering::Relaxed)));
        self.0.store(Self::NO, Ordering::Relaxed);
        origin.map(|origin| Entered(*origin))
    }
}

/// A call inside a gate; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    entered: Entered,
    waits: Waits,
    streams: bool,
}

impl Pass {
    /// Takes over a call that has entered.
    pub(crate) fn of(gate: &Arc<Gate>, entered: Entered) -> Self {
        Self { gate: Arc::clone(gate), entered, waits: Waits::default(), streams: false }
    }

    /// From now on the call is in the middle of a stream of answers.
    pub(crate) fn streams(&mut self) {
        if !std::mem::replace(&mut self.streams, true) {
            self.gate.streams.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// See [`Gate::may_answer`].
    #[inline]
    pub(crate) fn may_answer(&self) -> Result<(), Refusal> {
        self.gate.may_answer()
    }

    /// Whether what the call has done is part of the module's state: it was not cut off. Whether anybody may hear of it is
    /// another question: see [`Gate::may_answer`].
    pub(crate) fn is_in_time(&self) -> Result<(), Refusal> {
        if self.gate.is_cut(false) { Err(Refusal::Cut) } else { Ok(()) }
    }

    /// Whether the call was cut off.
    #[inline]
    pub(crate) fn is_cut(&self) -> bool {
        self.gate.is_cut(self.streams)
    }

    /// The epoch that it is served at.
    pub(crate) fn epoch(&self) -> Epoch {
        self.gate.epoch()
    }

    /// Whether the call is in the middle of a stream of answers.
    pub(crate) fn is_stream(&self) -> bool {
        self.streams
    }

    /// See [`Waits::poll_cut`].
    pub(crate) fn poll_cut(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.waits.poll_cut(&self.gate, self.streams, cx)
    }

    /// One more for the same call, which is inside already: for a part of it that goes on by itself.
    pub(crate) fn again(&self) -> Self {
        self.gate.tally.enter();
        Self::of(&self.gate, Entered(Origin::Part))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.waits.end(&self.gate);
        if self.streams {
            self.gate.streams.fetch_sub(1, Ordering::SeqCst);
            // One that waits for streams to end does so while the gate is open.
            self.gate.left.notify_waiters();
        }
        self.gate.leave(self.entered);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, thread, time::Duration};

    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in_and_opens_again() {
        let gate = Arc::new(Gate::default());
        let pass = gate.pass(Chain::default(), Origin::Here).expect("it is open");
        gate.close();
        assert!(gate.pass(Chain::default(), Origin::Here).is_none());
        assert_eq!(gate.inside(), 1, "who was refused is not counted");
        drop(pass);
        assert_eq!(gate.inside(), 0);
        gate.open(Epoch(1), 0);
        assert!(gate.pass(Chain::default(), Origin::Here).is_some());
    }

    #[test]
    fn a_lease_that_has_ended_closes_the_gate_though_nobody_did() {
        let lease = Arc::new(LeaseEnd::default());
        let gate = Arc::new(Gate::closed(Arc::clone(&lease), Arc::default()));
        gate.open(Epoch(1), 1);
        assert!(gate.pass(Chain::default(), Origin::Here).is_none(), "there is no lease yet");
        assert_eq!(lease.grant(Coarse::now() + Duration::from_secs(60), 0), Some(1));
        let pass = gate.pass(Chain::default(), Origin::Here).expect("it holds");
        assert_eq!(pass.may_answer(), Ok(()));
        lease.revoke();
        assert!(gate.pass(Chain::default(), Origin::Here).is_none(), "it has ended");
        assert_eq!(pass.may_answer(), Err(Refusal::LeaseLost));
        assert_eq!(lease.grant(Coarse::now() + Duration::from_secs(60), 0), None, "it was asked for before that");
        assert_eq!(lease.grant(Coarse::now() + Duration::from_secs(60), 1), Some(2));
        assert!(gate.pass(Chain::default(), Origin::Here).is_none(), "others may have taken over in between");
        assert_eq!(pass.may_answer(), Err(Refusal::LeaseLost));
        gate.open(Epoch(1), 2);
        assert_eq!(pass.may_answer(), Ok(()), "nobody has");
        gate.open(Epoch(1), 0);
        assert!(gate.pass(Chain::default(), Origin::Here).is_some(), "a gate that needs none does not look");
    }

    #[test]
    fn a_part_of_a_call_that_is_inside_is_counted_too_though_the_gate_is_closed() {
        let gate = Arc::new(Gate::default());
        let pass = gate.pass(Chain::NONE, Origin::Here).expect("it is open");
        gate.close();
        let part = pass.again();
        drop(pass);
        assert_eq!(gate.inside(), 1);
        drop(part);
        assert_eq!(gate.inside(), 0);
    }

    #[tokio::test]
    async fn a_drain_ends_with_the_last_call() {
        let gate = Arc::new(Gate::default());
        let pass = gate.pass(Chain::default(), Origin::Here).expect("it is open");
        gate.close();
        let mut drained = std::pin::pin!(gate.drained());
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        drop(pass);
        drained.await;
    }

    #[tokio::test]
    async fn a_gate_that_is_being_sealed_lets_in_what_calls_inside_wait_for() {
        let sealing = Arc::new(Sealing::default());
        let gate = Arc::new(Gate::closed(Arc::default(), Arc::clone(&sealing)));
        let (mine, other) = (Chain::of("cart"), Chain::of("orders"));
        gate.open(Epoch(1), 0);
        let pass = gate.pass(Chain::default(), Origin::Here).expect("it is open");
        sealing.set(mine);
        gate.seal(0);
        assert!(gate.pass(Chain::default(), Origin::Here).is_none());
        assert!(gate.pass(other, Origin::Here).is_none());
        let nested = gate.pass(mine.with(other), Origin::Here).expect("the call inside waits for it");
        let mut sealed = std::pin::pin!(gate.sealed(gate.opening()));
        drop(pass);
        assert!(futures_util::poll!(sealed.as_mut()).is_pending());
        drop(nested);
        sealed.await;
        assert!(gate.pass(mine, Origin::Here).is_none(), "nobody is inside any more that could wait for it");
    }

    #[tokio::test]
    async fn a_call_that_waits_is_woken_when_it_is_cut_off_and_its_answer_does_not_count() {
        let gate = Arc::new(Gate::default());
        let mut pass = gate.pass(Chain::default(), Origin::Here).expect("it is open");
        let mut stream = gate.pass(Chain::default(), Origin::Here).expect("it is open");
        stream.streams();
        let mut cut = std::pin::pin!(std::future::poll_fn(|cx| pass.poll_cut(cx)));
        let mut stream_cut = std::pin::pin!(std::future::poll_fn(|cx| stream.poll_cut(cx)));
        assert!(futures_util::poll!(cut.as_mut()).is_pending());
        assert!(futures_util::poll!(stream_cut.as_mut()).is_pending());
        gate.cut(Cut::Streams);
        assert!(futures_util::poll!(cut.as_mut()).is_pending());
        stream_cut.await;
        assert_eq!(gate.may_answer(), Ok(()));
        let ((), ()) = tokio::join!(cut, async { gate.cut(Cut::All) });
        assert_eq!(gate.may_answer(), Err(Refusal::Cut));
        gate.open(Epoch(1), 0);
        assert_eq!(gate.may_answer(), Ok(()));
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
                        if let Some(entered) = gate.enter(Chain::default(), Origin::Here) {
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
            gate.open(Epoch(1), 0);
        }
        stop.store(true, Ordering::Relaxed);
        callers.into_iter().for_each(|caller| caller.join().expect("a caller panicked"));
    }
}

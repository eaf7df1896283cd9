//! A connection and streams of it in one task.
//!
//! hyper makes a task of each stream. Where one stream carries nearly all that a connection does, each word between the two
//! would go by way of the scheduler, which wakes another thread to take a share of the work: twice the work, on two cores. Here
//! they are polled by turns, until none of them has anything to do.
//!
//! ```text
//! scheduler ─▶ Inward ─▶ Together ─┬─▶ connection
//!                ▲                 └─▶ streams
//!                └── woken by one of them while they are polled: once more, at once
//! ```

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt as _},
    task::AtomicWaker,
};
use hyper_util::rt::TokioExecutor;
use tokio::{task::coop, time::Instant};

/// How often a future that wakes itself is polled before others have their turn, ...
const MOST_TURNS: usize = 64;
/// ... and for how long, ...
const LONGEST: Duration = Duration::from_micros(500);
/// ... and how often where it waits for others to have theirs.
const TURNS_AWAITING: usize = 4;

/// Polls again at once what was woken while it was polled, rather than by way of the scheduler.
pub(crate) struct Inward {
    bell: Arc<Bell>,
    waker: Waker,
    turn: Turn,
}

/// A turn of other tasks, which something that is polled by an [`Inward`] may wait for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turn(Arc<Awaited>);

#[derive(Debug, Default)]
struct Awaited {
    none: AtomicBool,
    awaited: AtomicBool,
    waiter: AtomicWaker,
}

impl Turn {
    /// From now on there is nobody to wait for.
    pub(crate) fn skip(&self) {
        self.0.none.store(true, Ordering::Relaxed);
    }

    /// Has other tasks run before who waits is polled again. Whether there are any.
    pub(crate) fn wait(&self, cx: &Context<'_>) -> bool {
        if self.0.none.load(Ordering::Relaxed) {
            return false;
        }
        self.0.waiter.register(cx.waker());
        self.0.awaited.store(true, Ordering::Release);
        true
    }

    /// Whether they have yet to.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.awaited.load(Ordering::Acquire)
    }

    fn has_come(&self) {
        if self.0.awaited.swap(false, Ordering::AcqRel) {
            self.0.waiter.wake();
        }
    }
}

/// Knows that it was rung, however often the task that listens was polled for something else meanwhile.
#[derive(Default)]
struct Bell {
    /// One of the three below.
    state: AtomicU8,
    listener: AtomicWaker,
}

const QUIET: u8 = 0;
const POLLED: u8 = 1;
const RUNG: u8 = 2;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::AcqRel) == QUIET {
            self.listener.wake();
        }
    }
}

impl Inward {
    pub(crate) fn new() -> Self {
        Self::with(Turn::default())
    }

    /// The same, for what waits for turns.
    pub(crate) fn with(turn: Turn) -> Self {
        let bell = Arc::new(Bell::default());
        Self { waker: Waker::from(Arc::clone(&bell)), bell, turn }
    }

    /// The task that is to be woken.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        self.bell.listener.register(cx.waker());
    }

    /// Whether there is something to be polled for.
    pub(crate) fn is_rung(&self) -> bool {
        self.bell.state.load(Ordering::Acquire) == RUNG
    }

    /// Polls once; [`Inward::is_rung`] tells whether something has woken it since.
    pub(crate) fn poll_once<T>(&self, cx: &Context<'_>, body: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.listen(cx);
        self.bell.state.swap(QUIET, Ordering::AcqRel);
        body(&mut Context::from_waker(&self.waker))
    }

    /// Polls until nothing wakes it meanwhile. What it takes of a task's budget is the task's.
    pub(crate) fn poll<T>(&self, cx: &mut Context<'_>, mut body: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.listen(cx);
        let state = &self.bell.state;
        state.store(POLLED, Ordering::Release);
        let mut began = None;
        // Whoever wakes a task that has woken itself finds it in line already: this is its turn.
        self.turn.has_come();
        for turns in 1..=MOST_TURNS {
            // What was said before a ring that this takes back is seen.
            state.swap(POLLED, Ordering::AcqRel);
            if let Poll::Ready(ended) = body(&mut Context::from_waker(&self.waker)) {
                return Poll::Ready(ended);
            }
            if state.compare_exchange(POLLED, QUIET, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                if self.turn.is_awaited() {
                    break;
                }
                return Poll::Pending;
            }
            let too_long = began.get_or_insert_with(Instant::now).elapsed() >= LONGEST;
            if too_long || !coop::has_budget_remaining() || (turns >= TURNS_AWAITING && self.turn.is_awaited()) {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// A future that is polled so.
    pub(crate) async fn around<F: Future>(self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| self.poll(cx, |cx| future.as_mut().poll(cx))).await
    }
}

/// What hyper gives its streams to: each becomes a task, or stays with its connection. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams(Arc<Stay>);

#[derive(Default)]
struct Stay {
    all: bool,
    next: AtomicBool,
    begun: Mutex<Vec<BoxFuture<'static, ()>>>,
}

impl fmt::Debug for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stay").field("all", &self.all).finish_non_exhaustive()
    }
}

impl Streams {
    /// All of them stay.
    pub(crate) fn staying() -> Self {
        Self(Arc::new(Stay { all: true, ..Stay::default() }))
    }

    /// The next one stays: hyper begins a stream where it has just called the connection's service for it.
    pub(crate) fn next_stays(&self) {
        self.0.next.store(true, Ordering::Relaxed);
    }

    fn begun(&self) -> MutexGuard<'_, Vec<BoxFuture<'static, ()>>> {
        self.0.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        if self.0.all || self.0.next.swap(false, Ordering::Relaxed) {
            self.begun().push(Box::pin(stream));
        } else {
            TokioExecutor::new().execute(stream);
        }
    }
}

/// A connection and those of its streams that stay. Dropping it drops them.
pub(crate) struct Together<C: Future> {
    /// Gone as soon as it has ended, which its streams hear.
    connection: Option<Pin<Box<C>>>,
    streams: Streams,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
    ended: Option<C::Output>,
}

// What is pinned is in boxes.
impl<C: Future> Unpin for Together<C> {}

impl<C: Future> Together<C> {
    pub(crate) fn new(connection: C, streams: Streams) -> Self {
        Self { connection: Some(Box::pin(connection)), streams, running: FuturesUnordered::new(), ended: None }
    }

    /// The connection, unless it has ended.
    pub(crate) fn connection(&mut self) -> Option<Pin<&mut C>> {
        self.connection.as_mut().map(Pin::as_mut)
    }
}

impl<C: Future> Future for Together<C> {
    type Output = C::Output;

    /// Ready once the connection has ended, and its streams have too.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = &mut *self;
        loop {
            // First, since what a stream has said waits there to be sent.
            if let Some(connection) = &mut this.connection
                && let Poll::Ready(ended) = connection.as_mut().poll(cx)
            {
                this.connection = None;
                this.ended = Some(ended);
            }
            this.running.extend(this.streams.begun().drain(..));
            while let Poll::Ready(Some(())) = this.running.poll_next_unpin(cx) {}
            if this.streams.begun().is_empty() {
                break;
            }
        }
        match this.ended.take() {
            Some(ended) if this.running.is_empty() => Poll::Ready(ended),
            ended => {
                this.ended = ended;
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{future::pending, sync::atomic::AtomicUsize};

    use futures_util::FutureExt as _;
    use hyper::rt::Executor as _;
    use tokio::sync::oneshot;

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    pub(crate) struct Woken(pub(crate) AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn task() -> (Arc<Woken>, Waker) {
        let woken = Arc::new(Woken::default());
        (Arc::clone(&woken), Waker::from(woken))
    }

    #[test]
    fn what_wakes_itself_is_polled_again_and_the_task_is_not_woken() {
        let (woken, waker) = task();
        let (inward, mut polls) = (Inward::new(), 0);
        let polled = inward.poll(&mut Context::from_waker(&waker), |cx| {
            polls += 1;
            if polls < 3 {
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((polls, woken.0.load(Ordering::Relaxed)), (3, 0));
    }

    #[test]
    fn what_wakes_itself_for_ever_lets_other_tasks_run() {
        let (woken, waker) = task();
        let inward = Inward::new();
        let polled = inward.poll(&mut Context::from_waker(&waker), |cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_word_that_comes_between_two_polls_wakes_the_task_once() {
        let (woken, waker) = task();
        let (inward, mut inner) = (Inward::new(), None);
        let cx = &mut Context::from_waker(&waker);
        let mut poll = |inner: &mut Option<Waker>| {
            let polled = inward.poll(cx, |cx| {
                *inner = Some(cx.waker().clone());
                Poll::<()>::Pending
            });
            assert!(polled.is_pending());
        };
        poll(&mut inner);
        assert!(!inward.is_rung());
        for times in 1..3 {
            let inner_waker = inner.clone().unwrap();
            inner_waker.wake_by_ref();
            inner_waker.wake();
            assert!(inward.is_rung());
            assert_eq!(woken.0.load(Ordering::Relaxed), times);
            poll(&mut inner);
        }
    }

    #[test]
    fn a_turn_of_other_tasks_comes_with_the_next_poll() {
        let (woken, waker) = task();
        let turn = Turn::default();
        let (inward, mut polls) = (Inward::with(turn.clone()), 0);
        let mut poll = || {
            let polled = inward.poll(&mut Context::from_waker(&waker), |cx| {
                polls += 1;
                if polls == 1 {
                    assert!(turn.wait(cx));
                }
                Poll::<()>::Pending
            });
            assert!(polled.is_pending());
            (turn.is_awaited(), woken.0.load(Ordering::Relaxed))
        };
        assert_eq!(poll(), (true, 1), "it is in line again");
        assert_eq!(poll(), (false, 1));
        turn.skip();
        assert!(!turn.wait(&Context::from_waker(Waker::noop())));
        assert!(!turn.is_awaited());
    }

    #[test]
    fn what_is_polled_once_is_not_polled_again_and_says_that_it_was_woken() {
        let (woken, waker) = task();
        let (inward, mut polls) = (Inward::new(), 0);
        let polled = inward.poll_once(&Context::from_waker(&waker), |cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert!(polled.is_pending() && inward.is_rung());
        assert_eq!((polls, woken.0.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn streams_that_stay_end_after_their_connection_and_with_it_where_that_is_dropped() {
        let streams = Streams::staying();
        let (end, ended) = oneshot::channel::<i32>();
        let (over, is_over) = oneshot::channel::<()>();
        let (dropped, mut is_dropped) = oneshot::channel::<()>();
        let mut together = Together::new(ended, streams.clone());
        streams.execute(is_over.map(drop));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(together.poll_unpin(&mut cx).is_pending());
        end.send(7).unwrap();
        assert!(together.poll_unpin(&mut cx).is_pending(), "one of its streams goes on");
        assert!(together.connection().is_none());
        streams.execute(async move {
            let _dropped = dropped;
            pending().await
        });
        over.send(()).unwrap();
        assert!(together.poll_unpin(&mut cx).is_pending());
        assert!(is_dropped.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        drop(together);
        assert!(is_dropped.try_recv() == Err(oneshot::error::TryRecvError::Closed));

        let mut together = Together::new(std::future::ready(7), Streams::staying());
        assert_eq!(together.poll_unpin(&mut cx), Poll::Ready(7));
    }

    #[tokio::test]
    async fn one_stream_stays_and_the_others_are_tasks() {
        let streams = Streams::default();
        streams.next_stays();
        let [(first, is_first), (second, is_second)] = [oneshot::channel(), oneshot::channel()];
        streams.execute(async move { first.send(()).unwrap() });
        streams.execute(async move { second.send(()).unwrap() });
        is_second.await.unwrap();
        let mut is_first = pin!(is_first);
        assert!(is_first.as_mut().now_or_never().is_none());
        let mut together = Together::new(std::future::ready(()), streams);
        assert!(together.poll_unpin(&mut Context::from_waker(Waker::noop())).is_ready());
        is_first.await.unwrap();
    }
}

//! The caller's end of a stream that carries many calls.
//!
//! ```text
//! call ─▶ outbox ─▶ one gRPC stream ═══▶ the other node
//!   ▲                                        │
//!   └── waiting, by id ◀═════════════════════┘
//! ```
//! **Invariant:** each call ends as what is known of it: not run, where it was still in the outbox when the stream ended, or
//! came after the last one that the other node says it took; otherwise it may have run.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_util::StreamExt as _;
use outpost_proto::cluster::v1::{
    CarriedAnswer, CarriedCall, CarriedParcel, CarryRequest, CarryResponse, carry_request, carry_response,
};
use tokio::{sync::oneshot, task::coop::consume_budget};
use tokio_stream::Stream;
use tonic::Status;

/// How many calls may be under way in a stream. What is more gets a stream for each call, as without this.
const MOST_WAITING: usize = 1024;

/// How a call ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Answered(CarriedAnswer),
    /// The answer is to be fetched.
    Parcel {
        token: u64,
        unfetched: Unfetched,
    },
    /// The module did not run.
    NotRun(String),
    /// It may have.
    Broken(String),
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Carrier(Arc<Mutex<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    /// The id of the last call.
    last: u64,
    /// A call that was given up leaves its place empty.
    outbox: VecDeque<Option<carry_request::Frame>>,
    /// How many frames have been put into the outbox, and how many were taken out.
    put: u64,
    taken: u64,
    /// In an order that is the same in each run.
    waiting: HashMap<u64, Waiting, foldhash::fast::FixedState>,
    /// Answers that wait at the other node, for as long as this stream goes on.
    parcels: usize,
    /// Of the connection, when it waits for a frame.
    waker: Option<Waker>,
    /// There is another stream for new calls: this one ends with the last of its own.
    retired: bool,
    closed: bool,
}

#[derive(Debug)]
struct Waiting {
    /// Its place among all frames that were put into the outbox.
    place: u64,
    answer: oneshot::Sender<Ended>,
}

impl Carrier {
    fn takes_calls(&self) -> bool {
        let calls = self.lock();
        !calls.closed && !calls.retired
    }

    /// Whether a connection is as it should be: its stream takes calls, or the peer knows of none.
    pub(crate) fn is_good(this: &Option<Self>) -> bool {
        this.as_ref().is_none_or(Self::takes_calls)
    }

    /// Makes a call; its id is given here. `None` where the stream has ended, or has enough to carry.
    ///
    /// # Cancel safety
    /// Dropping the future ends the call at the peer.
    pub(crate) async fn call(&self, mut frame: CarriedCall) -> Option<Ended> {
        let (sender, answer) = oneshot::channel();
        let id = self.change(|calls| {
            if calls.closed
                || calls.retired
                || calls.waiting.len() >= MOST_WAITING
                || calls.outbox.len() >= 2 * MOST_WAITING
            {
                return None;
            }
            calls.last += 1;
            let id = calls.last;
            let place = calls.put;
            calls.waiting.insert(id, Waiting { place, answer: sender });
            frame.id = id;
            calls.put(carry_request::Frame::Call(frame));
            Some(id)
        })?;
        let mut given_up = GivenUp { carrier: self, id: Some(id) };
        let ended = answer.await;
        given_up.id = None;
        Some(ended.unwrap_or_else(|_| Ended::Broken("the stream ended".to_owned())))
    }

    /// What is to be sent: for the stream of requests.
    pub(crate) fn outbox(&self) -> Outbox {
        Outbox(self.clone())
    }

    /// Takes answers until there are no more. Returns why.
    pub(crate) async fn take(&self, mut answers: impl Stream<Item = Result<CarryResponse, Status>> + Unpin) -> String {
        let (mut arrived, mut last) = (Vec::new(), None);
        let why = 'taking: loop {
            // Other tasks get their turn however many answers there are.
            consume_budget().await;
            let over = poll_fn(|cx| poll_arrived(&mut answers, &mut arrived, cx)).await;
            let mut ended = Vec::with_capacity(arrived.len());
            for answer in arrived.drain(..) {
                match answer.map(|response| response.frame) {
                    Ok(Some(carry_response::Frame::Answer(answer))) => ended.push((answer.id, Ended::Answered(answer))),
                    Ok(Some(carry_response::Frame::Parcel(CarriedParcel { id, token }))) => {
                        self.lock().parcels += 1;
                        let unfetched = Unfetched { carrier: self.clone(), id, fetched: false };
                        ended.push((id, Ended::Parcel { token, unfetched }));
                    }
                    Ok(Some(carry_response::Frame::Last(id))) => {
                        self.end(std::mem::take(&mut ended));
                        last = Some(id);
                        self.end_after(id);
                    }
                    // Of a later version.
                    Ok(None) => {}
                    Err(status) => {
                        self.end(ended);
                        break 'taking status.message().to_owned();
                    }
                }
            }
            self.end(ended);
            if over {
                break "the other node ended the stream".to_owned();
            }
        };
        self.close(last, &why);
        why
    }

    /// Ends calls, and only then wakes their callers, one right after the other: for each that is woken alone, the scheduler
    /// would wake a thread to share in the work.
    fn end(&self, ended: Vec<(u64, Ended)>) {
        let ended: Vec<_> =
            self.change(|calls| ended.into_iter().map(|(id, ended)| (calls.waiting.remove(&id), ended)).collect());
        for (waiting, ended) in ended {
            // It may have been given up in this moment.
            let _ = waiting.map(|waiting| waiting.answer.send(ended));
        }
    }

    /// The other node takes no calls after this one.
    fn end_after(&self, last: u64) {
        let after: Vec<(u64, Waiting)> = self.change(|calls| {
            calls.retired = true;
            calls.waiting.extract_if(|id, _| *id > last).collect()
        });
        for (_, waiting) in after {
            let why = "the other node takes no more calls on this connection".to_owned();
            let _ = waiting.answer.send(Ended::NotRun(why));
        }
    }

    /// Takes no more calls, and closes once those that are under way are over.
    pub(crate) fn retire(&self) {
        self.change(|calls| calls.retired = true);
    }

    /// Changes the calls, and has the connection look at what there is to send, or that nothing is any more.
    fn change<T>(&self, change: impl FnOnce(&mut Calls) -> T) -> T {
        let (changed, waker) = {
            let mut calls = self.lock();
            let before = calls.put;
            let changed = change(&mut calls);
            // The end of the stream of requests is that of the stream.
            let done = calls.retired && calls.waiting.is_empty() && calls.parcels == 0;
            calls.closed |= done;
            let waker = if done || calls.put != before { calls.waker.take() } else { None };
            (changed, waker)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        changed
    }

    /// Ends all calls: the stream is no more. `last` is the last call that the other node took, if it has told.
    pub(crate) fn close(&self, last: Option<u64>, why: &str) {
        let (waiting, taken, waker) = {
            let mut calls = self.lock();
            calls.closed = true;
            calls.outbox.clear();
            (std::mem::take(&mut calls.waiting), calls.taken, calls.waker.take())
        };
        // The stream of requests ends, and with it what the other node does for it.
        if let Some(waker) = waker {
            waker.wake();
        }
        for (id, Waiting { place, answer }) in waiting {
            let not_run = place >= taken || last.is_some_and(|last| id > last);
            let ended = if not_run { Ended::NotRun(why.to_owned()) } else { Ended::Broken(why.to_owned()) };
            let _ = answer.send(ended);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that has arrived, up to as many as there may be calls. Whether there will be no more.
fn poll_arrived<T>(answers: &mut (impl Stream<Item = T> + Unpin), to: &mut Vec<T>, cx: &mut Context<'_>) -> Poll<bool> {
    while to.len() < MOST_WAITING {
        match answers.poll_next_unpin(cx) {
            Poll::Ready(Some(answer)) => to.push(answer),
            Poll::Ready(None) => return Poll::Ready(true),
            Poll::Pending if to.is_empty() => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    Poll::Ready(false)
}

impl Calls {
    /// See [`Carrier::change`].
    fn put(&mut self, frame: carry_request::Frame) {
        self.put += 1;
        self.outbox.push_back(Some(frame));
    }
}

/// Tells the other node when its caller has gone.
struct GivenUp<'a> {
    carrier: &'a Carrier,
    id: Option<u64>,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        self.carrier.change(|calls| match calls.waiting.remove(&id) {
            None => {}
            Some(_) if calls.closed => {}
            Some(Waiting { place, .. }) => match place.checked_sub(calls.taken) {
                // It was not sent: nobody has to hear of it.
                Some(left) => {
                    if let Some(frame) = usize::try_from(left).ok().and_then(|left| calls.outbox.get_mut(left)) {
                        *frame = None;
                    }
                }
                // As many as there were calls.
                None => calls.put(carry_request::Frame::Cancelled(id)),
            },
        });
    }
}

/// An answer that waits at the other node. Lets that forget it when this is dropped.
#[derive(Debug)]
pub(crate) struct Unfetched {
    carrier: Carrier,
    id: u64,
    fetched: bool,
}

impl Unfetched {
    /// It is on its way.
    pub(crate) fn fetched(mut self) {
        self.fetched = true;
    }
}

impl Drop for Unfetched {
    fn drop(&mut self) {
        self.carrier.change(|calls| {
            calls.parcels -= 1;
            if !self.fetched && !calls.closed {
                calls.put(carry_request::Frame::Cancelled(self.id));
            }
        });
    }
}

/// The stream of requests. Its end is that of the connection: what is left in it then was not sent.
#[derive(Debug)]
pub(crate) struct Outbox(Carrier);

impl Stream for Outbox {
    type Item = CarryRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<CarryRequest>> {
        let mut calls = self.0.lock();
        while let Some(frame) = calls.outbox.pop_front() {
            calls.taken += 1;
            if frame.is_some() {
                return Poll::Ready(Some(CarryRequest { frame }));
            }
        }
        if calls.closed {
            return Poll::Ready(None);
        }
        calls.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{FutureExt as _, poll};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    fn frame() -> CarriedCall {
        CarriedCall { path: "/shop.v1.Cart/Add".into(), ..CarriedCall::default() }
    }

    async fn next(outbox: &mut Outbox) -> Option<carry_request::Frame> {
        outbox.next().now_or_never().flatten().and_then(|request| request.frame)
    }

    fn id_of(frame: Option<carry_request::Frame>) -> u64 {
        match frame {
            Some(carry_request::Frame::Call(call)) => call.id,
            other => panic!("not a call: {other:?}"),
        }
    }

    fn answer(id: u64) -> Result<CarryResponse, Status> {
        let answer = CarriedAnswer { id, ..CarriedAnswer::default() };
        Ok(CarryResponse { frame: Some(carry_response::Frame::Answer(answer)) })
    }

    /// All that the peer says, at once.
    async fn said(carrier: &Carrier, answers: Vec<Result<CarryResponse, Status>>) {
        carrier.take(tokio_stream::iter(answers)).await;
    }

    #[tokio::test]
    async fn answers_find_their_calls_in_any_order() {
        let carrier = Carrier::default();
        let mut outbox = carrier.outbox();
        let (to, answers) = mpsc::channel(4);
        let mut taking = pin!(carrier.take(ReceiverStream::new(answers)));
        let mut one = pin!(carrier.call(frame()));
        let mut two = pin!(carrier.call(frame()));
        assert!(poll!(one.as_mut()).is_pending() && poll!(two.as_mut()).is_pending());
        assert_eq!((id_of(next(&mut outbox).await), id_of(next(&mut outbox).await)), (1, 2));
        to.send(answer(2)).await.unwrap();
        // Of a call that nobody knows, and one of a later version.
        to.send(answer(77)).await.unwrap();
        to.send(Ok(CarryResponse::default())).await.unwrap();
        assert!(poll!(taking.as_mut()).is_pending());
        assert!(matches!(two.await, Some(Ended::Answered(_))));
        assert!(poll!(one.as_mut()).is_pending());
        to.send(answer(1)).await.unwrap();
        assert!(poll!(taking.as_mut()).is_pending());
        assert!(matches!(one.await, Some(Ended::Answered(_))));
    }

    #[tokio::test]
    async fn what_is_known_of_a_call_when_the_stream_ends() {
        let carrier = Carrier::default();
        let mut outbox = carrier.outbox();
        let [mut sent, mut after_last, mut left] = [0; 3].map(|_| Box::pin(carrier.call(frame())));
        assert!(poll!(sent.as_mut()).is_pending() && poll!(after_last.as_mut()).is_pending());
        assert_eq!((id_of(next(&mut outbox).await), id_of(next(&mut outbox).await)), (1, 2));
        assert!(poll!(left.as_mut()).is_pending());
        said(&carrier, vec![Ok(CarryResponse { frame: Some(carry_response::Frame::Last(1)) })]).await;
        assert!(matches!(sent.await, Some(Ended::Broken(_))), "it was taken, and has no answer");
        assert!(matches!(after_last.await, Some(Ended::NotRun(_))), "the peer says that it did not take it");
        assert!(matches!(left.await, Some(Ended::NotRun(_))), "it was not sent");
        assert!(!carrier.takes_calls());
        assert!(carrier.call(frame()).await.is_none(), "it takes no more");
        assert!(next(&mut outbox).await.is_none(), "the stream of requests ends too");
    }

    #[tokio::test]
    async fn without_a_last_word_what_was_sent_may_have_run() {
        let carrier = Carrier::default();
        let mut outbox = carrier.outbox();
        let (mut sent, mut left) = (pin!(carrier.call(frame())), pin!(carrier.call(frame())));
        assert!(poll!(sent.as_mut()).is_pending());
        assert_eq!(id_of(next(&mut outbox).await), 1);
        assert!(poll!(left.as_mut()).is_pending());
        said(&carrier, vec![Err(Status::unavailable("reset"))]).await;
        assert!(matches!(sent.await, Some(Ended::Broken(why)) if why == "reset"));
        assert!(matches!(left.await, Some(Ended::NotRun(_))));
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_is_ended_at_the_peer() {
        let carrier = Carrier::default();
        let mut outbox = carrier.outbox();
        {
            let mut sent = pin!(carrier.call(frame()));
            let mut left = pin!(carrier.call(frame()));
            assert!(poll!(sent.as_mut()).is_pending());
            assert_eq!(id_of(next(&mut outbox).await), 1);
            assert!(poll!(left.as_mut()).is_pending());
        }
        let mut rest = Vec::new();
        while let Some(frame) = next(&mut outbox).await {
            rest.push(frame);
        }
        assert_eq!(rest, [carry_request::Frame::Cancelled(1)], "what was not sent is not sent");
        assert!(carrier.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn there_is_a_bound_to_what_is_carried() {
        let carrier = Carrier::default();
        let mut calls: Vec<_> = (0..MOST_WAITING).map(|_| Box::pin(carrier.call(frame()))).collect();
        for call in &mut calls {
            assert!(poll!(call.as_mut()).is_pending());
        }
        assert!(carrier.call(frame()).await.is_none(), "one too many is not taken");
        // Callers that give up again and again, while the connection takes nothing.
        calls.clear();
        for _ in 0..3 * MOST_WAITING {
            let _ = carrier.call(frame()).now_or_never();
        }
        assert!(carrier.lock().outbox.len() <= 2 * MOST_WAITING + 1, "{}", carrier.lock().outbox.len());
    }
}

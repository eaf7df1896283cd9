//! The body of a request that can be sent a second time.
//!
//! A call that its receiver did not run is sent elsewhere. The bytes that went to the first receiver are gone from the
//! client's stream by then, so they are remembered; they are reference-counted, so that costs no copy. Past a bound
//! they are forgotten, and the call can't be sent again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};

use crate::status::CallError;

/// How much of a request is remembered. Larger requests and long streams can't be sent again once they have begun.
pub(super) const MOST: usize = 64 << 10;

/// What was sent of a body, and the rest.
#[derive(Debug, Clone)]
pub(crate) struct Replay(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    rest: Body,
    sent: Vec<Bytes>,
    size: usize,
    /// Something was sent that is not remembered.
    forgotten: bool,
    /// Which sending is the one in force; a body of an earlier one gives nothing any more.
    sending: u32,
}

impl Replay {
    pub(crate) fn new(body: Body) -> Self {
        let inner = Inner { rest: body, sent: Vec::new(), size: 0, forgotten: false, sending: 0 };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// The body from its beginning; `None` when that is not known any more. Ends what was given before.
    pub(crate) fn body(&self) -> Option<Body> {
        let mut inner = self.lock();
        if inner.forgotten {
            return None;
        }
        inner.sending += 1;
        let sending = Sending { replay: self.clone(), sending: inner.sending, next: 0 };
        // To make a body of it asks whether it is at its end, for which it locks.
        drop(inner);
        Some(Body::new(sending))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Sending {
    replay: Replay,
    sending: u32,
    /// Index of the next remembered frame.
    next: usize,
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut inner = this.replay.lock();
        if inner.sending != this.sending {
            return Poll::Ready(Some(Err(Status::cancelled("the request is sent elsewhere"))));
        }
        if let Some(data) = inner.sent.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        // It may be a stream of a module's, whose panic would end the connection, and all calls on it.
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut inner.rest).poll_frame(cx)));
        let polled = polled.unwrap_or_else(|panic| {
            tracing::error!(panic = super::panic_text(&*panic), "a stream of requests panicked");
            inner.rest = Body::empty();
            Poll::Ready(Some(Err(CallError::Panicked.into())))
        });
        if let Poll::Ready(Some(Err(_))) = &polled {
            // What came before it is not the request.
            inner.forgotten = true;
            inner.sent.clear();
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            match frame.data_ref() {
                Some(data) if !inner.forgotten && inner.size + data.len() <= MOST => {
                    inner.size += data.len();
                    inner.sent.push(data.clone());
                    this.next += 1;
                }
                _ => {
                    inner.forgotten = true;
                    inner.sent.clear();
                    this.next = 0;
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let inner = self.replay.lock();
        self.next >= inner.sent.len() && inner.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    fn body(frames: &[&'static [u8]]) -> Body {
        let frames: Vec<_> = frames.iter().map(|data| Ok::<_, Status>(Frame::data(Bytes::from_static(data)))).collect();
        Body::new(StreamBody::new(stream::iter(frames)))
    }

    async fn read(body: Body) -> Result<Vec<u8>, Status> {
        Ok(body.collect().await?.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn a_body_is_sent_again_from_its_beginning() {
        let replay = Replay::new(body(&[b"one", b"two", b"three"]));
        let mut first = replay.body().unwrap().into_data_stream();
        assert_eq!(first.next().await.unwrap().unwrap(), "one");
        let second = replay.body().unwrap();
        assert!(first.next().await.unwrap().is_err(), "the first sending is over");
        assert_eq!(read(second).await.unwrap(), b"onetwothree");
        assert_eq!(read(replay.body().unwrap()).await.unwrap(), b"onetwothree");
    }

    #[tokio::test]
    async fn what_is_too_much_is_not_remembered() {
        let much: &'static [u8] = vec![7; MOST].leak();
        let replay = Replay::new(body(&[b"x", much]));
        assert_eq!(read(replay.body().unwrap()).await.unwrap().len(), MOST + 1);
        assert!(replay.body().is_none());
    }
}

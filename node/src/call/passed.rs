//! Streams of requests, and their end with the call that they belong to.
//!
//! A module in this process gets the caller's stream as the `tonic::Streaming` that its trait asks for, without its
//! messages being encoded. tonic builds a `Streaming` from a body and a decoder. Here the body yields, for each message, the five bytes that
//! announce a message of length zero, and leaves the message itself in a place that the decoder takes it from.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use tokio::sync::oneshot;
use tonic::{
    Status, Streaming,
    codec::{BufferSettings, DecodeBuf, Decoder},
    codegen::tokio_stream::Stream,
};

use crate::BoxError;

/// `grpc-encoding` is identity, and the message has no bytes.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

type Place<M> = Arc<Mutex<Option<M>>>;

/// Held for as long as a call goes on.
#[derive(Debug)]
pub(crate) struct Ongoing {
    _ends: oneshot::Sender<std::convert::Infallible>,
}

/// Ready when the call has ended: its [`Ongoing`] was dropped.
#[derive(Debug)]
pub(crate) struct Ended(oneshot::Receiver<std::convert::Infallible>);

pub(crate) fn ongoing() -> (Ongoing, Ended) {
    let (ends, ended) = oneshot::channel();
    (Ongoing { _ends: ends }, Ended(ended))
}

impl Ended {
    /// Whether the call has ended; wakes nobody.
    fn has(&mut self) -> bool {
        matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Closed))
    }

    /// May be polled again when it was ready, unlike what it is made of.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has() { Poll::Ready(()) } else { Pin::new(&mut self.0).poll(cx).map(|_| ()) }
    }
}

/// Hands over a stream. When the call has ended, since the caller went away or has its answer, the module's side ends
/// like a stream that was reset: without a further message, wherever the module keeps it.
pub(super) fn streaming<S>(messages: S, ended: Ended) -> Streaming<S::Item>
where
    S: Stream<Item: Send + 'static> + Send + 'static,
{
    let place = Place::default();
    let body = Passing { messages, place: Arc::clone(&place), ended };
    Streaming::new_request(Taking { place }, body, None, None)
}

pin_project! {
    struct Passing<S: Stream> {
        #[pin]
        messages: S,
        place: Place<S::Item>,
        ended: Ended,
    }
}

impl<S: Stream> Body for Passing<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if this.ended.poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Status::cancelled("the call has ended"))));
        }
        this.messages.poll_next(cx).map(|message| {
            // The place is free: tonic asks for a frame only once it has decoded all that it was given.
            *this.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(message?);
            Some(Ok(Frame::data(Bytes::from_static(EMPTY_MESSAGE))))
        })
    }
}

struct Taking<M> {
    place: Place<M>,
}

impl<M: Send + 'static> Decoder for Taking<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        Ok(self.place.lock().unwrap_or_else(PoisonError::into_inner).take())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // All that is ever buffered is one announcement; the default is 8 KiB a stream.
        BufferSettings::new(EMPTY_MESSAGE.len(), EMPTY_MESSAGE.len())
    }
}

pin_project! {
    /// The body of a request that is reset, not ended, when the call has ended. Without this, a call whose stream of
    /// requests is still open would go on: hyper sends while there is a body to send, and receives while a task that
    /// the module left behind still reads.
    pub(super) struct Resetting {
        #[pin]
        body: tonic::body::Body,
        ended: Ended,
    }
}

impl Resetting {
    pub(super) fn new(body: tonic::body::Body, ended: Ended) -> Self {
        Self { body, ended }
    }
}

impl Body for Resetting {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        // A waker is registered only by a body that has to wait: that of a unary call mostly has not.
        if !this.ended.has() {
            let frame = this.body.poll_frame(cx).map_err(Into::into);
            if frame.is_ready() || this.ended.poll(cx).is_pending() {
                return frame;
            }
        }
        // The reason that hyper writes into the reset: what gRPC calls CANCELLED.
        Poll::Ready(Some(Err(h2::Error::from(h2::Reason::CANCEL).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    /// Has no encoding at all.
    #[derive(Debug, PartialEq)]
    struct Opaque(u8);

    #[tokio::test]
    async fn messages_arrive_in_order_and_then_the_end() {
        let (_ongoing, ended) = ongoing();
        let streaming = streaming(stream::iter((0..200).map(Opaque)), ended);
        let seen: Vec<Opaque> = streaming.map(Result::unwrap).collect().await;
        assert_eq!(seen, (0..200).map(Opaque).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_call_that_ended_ends_the_stream() {
        let (ongoing, ended) = ongoing();
        let mut streaming = streaming(stream::iter([Opaque(1)]).chain(stream::pending()), ended);
        assert_eq!(streaming.message().await.unwrap(), Some(Opaque(1)));
        drop(ongoing);
        assert_eq!(streaming.message().await.unwrap(), None);
        assert_eq!(streaming.message().await.unwrap(), None, "and stays ended");
    }
}

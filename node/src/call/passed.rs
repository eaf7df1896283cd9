//! A stream of requests handed to a module in this process, as the `tonic::Streaming` that its trait asks for, without
//! encoding the messages.
//!
//! tonic builds a `Streaming` from a body and a decoder. Here the body yields, for each message, the five bytes that
//! announce a message of length zero, and leaves the message itself in a place that the decoder takes it from.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    Status, Streaming,
    codec::{BufferSettings, DecodeBuf, Decoder},
    codegen::tokio_stream::Stream,
};

/// `grpc-encoding` is identity, and the message has no bytes.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

type Place<M> = Arc<Mutex<Option<M>>>;

/// Hands over a stream. When `ended` is cancelled, since the caller went away or has its answer, the module's side
/// ends like a stream that was reset: without a further message, wherever the module keeps it.
pub(super) fn streaming<S>(messages: S, ended: CancellationToken) -> Streaming<S::Item>
where
    S: Stream<Item: Send + 'static> + Send + 'static,
{
    let place = Place::default();
    let body = Passing { messages, place: Arc::clone(&place), ended: ended.cancelled_owned() };
    Streaming::new_request(Taking { place }, body, None, None)
}

pin_project! {
    struct Passing<S: Stream> {
        #[pin]
        messages: S,
        place: Place<S::Item>,
        #[pin]
        ended: WaitForCancellationFutureOwned,
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

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    /// Has no encoding at all.
    #[derive(Debug, PartialEq)]
    struct Opaque(u8);

    #[tokio::test]
    async fn messages_arrive_in_order_and_then_the_end() {
        let ended = CancellationToken::new();
        let streaming = streaming(stream::iter((0..200).map(Opaque)), ended);
        let seen: Vec<Opaque> = streaming.map(Result::unwrap).collect().await;
        assert_eq!(seen, (0..200).map(Opaque).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_call_that_ended_ends_the_stream() {
        let ended = CancellationToken::new();
        let mut streaming = streaming(stream::iter([Opaque(1)]).chain(stream::pending()), ended.clone());
        assert_eq!(streaming.message().await.unwrap(), Some(Opaque(1)));
        ended.cancel();
        assert_eq!(streaming.message().await.unwrap(), None);
    }
}

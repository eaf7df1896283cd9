//! What a handle's streaming methods answer with.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, codegen::tokio_stream::Stream};

use super::{
    gate::Pass,
    guard,
    passed::Ongoing,
    route::{BoxStream, as_from_wire},
    scope::Scope,
    slot::Slot,
};
use crate::status::CallError;

/// Responses of a call, from a module in this process or from another node.
///
/// Dropping it ends the call. The call's deadline holds for it too, which a stock tonic client does not see to.
pub struct Streaming<T> {
    source: Source<T>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Ends the stream of requests, if there is one, with the call.
    ongoing: Option<Ongoing>,
}

enum Source<T> {
    Local(LocalStream<T>),
    Wire(Box<tonic::Streaming<T>>),
    /// The end, or an error, was given; the module's stream is gone.
    Ended,
}

/// A module's stream: polled and dropped under guard.
pub(super) struct LocalStream<T> {
    slot: Arc<Slot>,
    path: &'static str,
    scope: Scope,
    stream: Option<BoxStream<T>>,
    /// Of the instance that it comes from.
    _pass: Option<Pass>,
}

impl<T> LocalStream<T> {
    pub(super) fn new(
        slot: Arc<Slot>,
        path: &'static str,
        scope: Scope,
        stream: BoxStream<T>,
        pass: Option<Pass>,
    ) -> Self {
        Self { slot, path, scope, stream: Some(stream), _pass: pass }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        match guard::run(&self.slot, self.path, self.scope, || stream.as_mut().poll_next(cx)) {
            // A stream that ends with an error of code OK ends, as it would on a wire.
            Ok(Poll::Ready(Some(Err(status)))) if status.code() == Code::Ok => Poll::Ready(None),
            Ok(next) => next.map_err(as_from_wire),
            Err(panic) => Poll::Ready(Some(Err(panic.into()))),
        }
    }
}

impl<T> Drop for LocalStream<T> {
    fn drop(&mut self) {
        guard::discard(&self.slot, self.path, self.stream.take());
    }
}

impl<T> Streaming<T> {
    pub(super) fn local(stream: LocalStream<T>, deadline: Option<Instant>, ongoing: Option<Ongoing>) -> Self {
        Self { source: Source::Local(stream), timer: deadline.map(timer), ongoing }
    }

    pub(super) fn wire(stream: tonic::Streaming<T>, deadline: Option<Instant>, ongoing: Option<Ongoing>) -> Self {
        Self { source: Source::Wire(Box::new(stream)), timer: deadline.map(timer), ongoing }
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// The status that the call ended with. After an error there is nothing more.
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await.transpose()
    }
}

fn timer(deadline: Instant) -> Pin<Box<Sleep>> {
    Box::pin(tokio::time::sleep_until(deadline))
}

impl<T> Stream for Streaming<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { source, timer, ongoing } = &mut *self;
        let expired = timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
        let next = match source {
            Source::Ended => return Poll::Ready(None),
            _ if expired => Poll::Ready(Some(Err(CallError::DeadlineExceeded.into()))),
            Source::Local(stream) => stream.poll_next(cx),
            Source::Wire(stream) => Pin::new(&mut **stream).poll_next(cx),
        };
        if let Poll::Ready(None | Some(Err(_))) = next {
            *source = Source::Ended;
            *timer = None;
            *ongoing = None;
        }
        next
    }
}

impl<T> fmt::Debug for Streaming<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Local(..) => "local",
            Source::Wire(_) => "wire",
            Source::Ended => "ended",
        };
        f.debug_struct("Streaming").field("source", &source).finish_non_exhaustive()
    }
}

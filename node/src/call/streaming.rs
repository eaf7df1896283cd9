//! What a handle's streaming methods answer with.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep};
use tokio_util::sync::DropGuard;
use tonic::{Status, codegen::tokio_stream::Stream};

use super::{guard, route::BoxStream, scope::Scope, slot::Slot};
use crate::status::CallError;

/// Responses of a call, from a module in this process or from another node.
///
/// Dropping it ends the call. The call's deadline holds for it too, which a stock tonic client does not see to.
pub struct Streaming<T> {
    source: Source<T>,
    deadline: Option<Pin<Box<Sleep>>>,
}

enum Source<T> {
    Local(Progress, BoxStream<T>),
    Wire(Box<tonic::Streaming<T>>),
    /// The end, or an error, was given; the module's stream is gone.
    Ended,
}

/// A call in this process that has answered with a stream.
pub(super) struct Progress {
    slot: Arc<Slot>,
    path: &'static str,
    scope: Scope,
    /// Ends the stream of requests, if there is one, with the call.
    _ends: Option<DropGuard>,
}

impl Progress {
    pub(super) fn new(slot: Arc<Slot>, path: &'static str, deadline: Option<Instant>, ends: Option<DropGuard>) -> Self {
        Self { slot, path, scope: Scope { deadline, ..Scope::current() }, _ends: ends }
    }
}

impl<T> Streaming<T> {
    pub(super) fn local(progress: Progress, stream: BoxStream<T>) -> Self {
        let deadline = progress.scope.deadline;
        Self { source: Source::Local(progress, stream), deadline: deadline.map(timer) }
    }

    pub(super) fn wire(stream: tonic::Streaming<T>, deadline: Option<Instant>) -> Self {
        Self { source: Source::Wire(Box::new(stream)), deadline: deadline.map(timer) }
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

impl<T> Source<T> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        match self {
            Self::Local(Progress { slot, path, scope, .. }, stream) => {
                let next = || scope.enter(|| stream.as_mut().poll_next(cx));
                guard::poll(slot, path, next).map(|next| next.unwrap_or_else(|panic| Some(Err(panic.into()))))
            }
            Self::Wire(stream) => Pin::new(&mut **stream).poll_next(cx),
            Self::Ended => Poll::Ready(None),
        }
    }
}

impl<T> Stream for Streaming<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { source, deadline } = &mut *self;
        let expired = deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        let next = match source {
            Source::Ended => return Poll::Ready(None),
            _ if expired => Poll::Ready(Some(Err(CallError::DeadlineExceeded.into()))),
            _ => source.poll_next(cx),
        };
        if let Poll::Ready(None | Some(Err(_))) = next {
            *source = Source::Ended;
            *deadline = None;
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

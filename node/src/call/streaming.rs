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
    resume::{Again, Resume},
    route::{BoxStream, as_from_wire},
    scope::Scope,
    slot::Slot,
};
use crate::status::CallError;

/// Responses of a call, from a module in this process or from another node.
///
/// Dropping it ends the call. The call's deadline holds for it too, which a stock tonic client does not see to.
///
/// Where the method has the option `(outpost.v1.resume)`, a stream whose module moves, or whose node goes, is asked for
/// again, from the last message on.
pub struct Streaming<T> {
    source: Source<T>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Ends the stream of requests, if there is one, with the call.
    ongoing: Option<Ongoing>,
    /// Where the rest comes from when the module has moved, if the method says that it can be had.
    resume: Option<Box<dyn Resume<T>>>,
}

enum Source<T> {
    Local(LocalStream<T>),
    Wire(Box<tonic::Streaming<T>>),
    /// It ended, and is asked for again.
    Again(Again<T>),
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
    pass: Option<Pass>,
    /// The end, or an error, was given.
    ended: bool,
}

impl<T> LocalStream<T> {
    pub(super) fn new(
        slot: Arc<Slot>,
        path: &'static str,
        scope: Scope,
        stream: BoxStream<T>,
        pass: Option<Pass>,
    ) -> Self {
        let mut pass = pass;
        pass.iter_mut().for_each(Pass::streams);
        Self { slot, path, scope, stream: Some(stream), pass, ended: false }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        let next = self.poll_module(cx);
        match &next {
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Err(status))) => self.end(status.code()),
            _ => {}
        }
        next
    }

    /// It did not end well.
    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            self.slot.failed(code);
        }
    }

    fn poll_module(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let epoch = self.pass.as_ref().map(Pass::epoch).unwrap_or_default();
        let moved = || CallError::Moved { module: self.slot.module().clone(), epoch };
        if self.pass.as_ref().is_some_and(Pass::is_cut) {
            return Poll::Ready(Some(Err(moved().into())));
        }
        let next = match guard::run(&self.slot, self.path, self.scope, || stream.as_mut().poll_next(cx)) {
            // A stream that ends with an error of code OK ends, as it would on a wire.
            Ok(Poll::Ready(Some(Err(status)))) if status.code() == Code::Ok => Poll::Ready(None),
            Ok(next) => next.map_err(as_from_wire),
            Err(panic) => Poll::Ready(Some(Err(panic.into()))),
        };
        let Some(pass) = &mut self.pass else { return next };
        match next {
            Poll::Pending => pass.poll_cut(cx).map(|()| Some(Err(moved().into()))),
            Poll::Ready(next) => match pass.may_answer() {
                Ok(()) => Poll::Ready(next),
                Err(refusal) => Poll::Ready(Some(Err(refusal.of(self.slot.module(), epoch).into()))),
            },
        }
    }
}

impl<T> Drop for LocalStream<T> {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
        guard::discard(&self.slot, self.path, self.stream.take());
    }
}

impl<T> Streaming<T> {
    pub(super) fn local(stream: LocalStream<T>, deadline: Option<Instant>, ongoing: Option<Ongoing>) -> Self {
        Self { source: Source::Local(stream), timer: deadline.map(timer), ongoing, resume: None }
    }

    pub(super) fn wire(stream: tonic::Streaming<T>, deadline: Option<Instant>, ongoing: Option<Ongoing>) -> Self {
        Self { source: Source::Wire(Box::new(stream)), timer: deadline.map(timer), ongoing, resume: None }
    }

    /// The same stream, which goes on by itself.
    pub(super) fn resumed_by(self, resume: Box<dyn Resume<T>>) -> Self {
        Self { resume: Some(resume), ..self }
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
        let Self { source, timer, ongoing, resume } = &mut *self;
        let next = loop {
            let expired = timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
            let next = match source {
                Source::Ended => return Poll::Ready(None),
                Source::Local(stream) if expired => {
                    stream.end(Code::DeadlineExceeded);
                    break Poll::Ready(Some(Err(CallError::DeadlineExceeded.into())));
                }
                _ if expired => break Poll::Ready(Some(Err(CallError::DeadlineExceeded.into()))),
                Source::Local(stream) => stream.poll_next(cx),
                Source::Wire(stream) => Pin::new(&mut **stream).poll_next(cx),
                Source::Again(again) => match again.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Ok(rest)) => {
                        *source = rest.source;
                        continue;
                    }
                    Poll::Ready(Err(status)) => Poll::Ready(Some(Err(status))),
                },
            };
            match (&next, resume.as_mut()) {
                (Poll::Ready(Some(Ok(message))), Some(resume)) => resume.saw(message),
                (Poll::Ready(Some(Err(status))), Some(resume)) => {
                    if let Some(again) = resume.again(status) {
                        *source = Source::Again(again);
                        continue;
                    }
                }
                _ => {}
            }
            break next;
        };
        if let Poll::Ready(None | Some(Err(_))) = next {
            *source = Source::Ended;
            *timer = None;
            *ongoing = None;
            *resume = None;
        }
        next
    }
}

impl<T> fmt::Debug for Streaming<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Local(..) => "local",
            Source::Wire(_) => "wire",
            Source::Again(_) => "again",
            Source::Ended => "ended",
        };
        f.debug_struct("Streaming").field("source", &source).finish_non_exhaustive()
    }
}

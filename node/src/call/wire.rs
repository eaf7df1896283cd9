//! A call as a gRPC request, served by a tonic server in this process or passed on to another node.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Status, body::Body};
use tower::ServiceExt as _;

use super::{
    deadline,
    guard::{self, Guarded},
    passed::{self, Ongoing},
    scope::Scope,
    slot::{Request, Response, Slot, Target, Wire},
};
use crate::{BoxError, status::CallError};

/// Counts a call as in flight for as long as it lives.
pub(crate) type InFlight = TaskTrackerToken;

/// Serves a request that came from within the process. Extensions do not cross a call.
pub(crate) async fn serve_here(slot: Arc<Slot>, mut request: Request) -> Response {
    request.extensions_mut().clear();
    let mut response = serve(slot, request, None).await;
    response.extensions_mut().clear();
    response
}

/// Serves a request: with its deadline, for the body of the response too, and with panics caught.
///
/// Gives a response in any case. Dropping the future, or the response's body, ends the call, and with it the stream of
/// requests, wherever the module keeps that.
pub(crate) async fn serve(slot: Arc<Slot>, request: Request, in_flight: Option<InFlight>) -> Response {
    let timeout = request.headers().get(deadline::HEADER).map(http::HeaderValue::as_bytes);
    let (scope, timer) = match Scope::of_call(timeout) {
        Ok(entered) => entered,
        Err(error) => return Status::from(error).into_http(),
    };
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let (ongoing, ended) = passed::ongoing();
    let request = request.map(|body| Body::new(passed::Resetting::new(body, ended)));

    let answer = answer(&slot, path.path(), scope, request);
    let answer = match timer {
        None => answer.await,
        Some(deadline) => Box::pin(deadline::enforce(deadline, answer)).await.unwrap_or_else(|late| Err(late.into())),
    };
    match answer {
        Ok(response) => response.map(|body| {
            let body = Some(body);
            Body::new(CallBody {
                body,
                slot,
                path,
                scope,
                timer: None,
                begun: false,
                _ongoing: ongoing,
                _in_flight: in_flight,
            })
        }),
        Err(status) => status.into_http(),
    }
}

async fn answer(slot: &Arc<Slot>, path: &str, scope: Scope, mut request: Request) -> Result<Response, Status> {
    let mut target = slot.target();
    if let Target::Starting = **target {
        target = slot.started().await?;
    }
    match &**target {
        Target::Local(local) => {
            let answer = Guarded::start(slot, path, scope, || local.call(request))?.await?;
            answer.map_err(|error| match Status::try_from_error(error) {
                Ok(status) => status,
                Err(error) => {
                    let error = crate::status::with_causes(&*error);
                    CallError::Service { module: slot.module().clone(), error }.into()
                }
            })
        }
        Target::Remote(remote) => {
            if let Some(deadline) = scope.deadline {
                deadline::write(deadline, request.headers_mut());
            }
            remote.clone().oneshot(request).await.map_err(Status::from_error)
        }
        Target::Stopped | Target::Starting => Err(CallError::Stopped(slot.module().clone()).into()),
    }
}

/// The body of a response, with what holds for the whole of a call.
struct CallBody {
    /// The module's; `None` once it was cut off.
    body: Option<Body>,
    slot: Arc<Slot>,
    path: PathAndQuery,
    scope: Scope,
    timer: Option<Pin<Box<Sleep>>>,
    begun: bool,
    _ongoing: Ongoing,
    _in_flight: Option<InFlight>,
}

impl CallBody {
    /// Whether a stream that always has a next message has gone on for too long.
    fn late(&mut self) -> bool {
        // The message of a unary call is there when the body is first polled: no need for a clock then.
        let begun = std::mem::replace(&mut self.begun, true);
        begun && self.scope.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Whether the deadline has passed; if not, the task is woken when it does.
    fn expired(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.scope.deadline else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// Ends a stream in the middle, with a status in its trailers.
    fn cut(&mut self, error: CallError) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        guard::discard(&self.slot, self.path.path(), self.body.take());
        let mut trailers = http::HeaderMap::new();
        let written = Status::from(error).add_header(&mut trailers);
        Poll::Ready(Some(written.map(|()| Frame::trailers(trailers))))
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.body.is_some() && this.late() {
            return this.cut(CallError::DeadlineExceeded);
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = guard::run(&this.slot, this.path.path(), this.scope, || Pin::new(body).poll_frame(cx));
        match frame {
            Ok(Poll::Pending) if this.expired(cx) => this.cut(CallError::DeadlineExceeded),
            Ok(frame) => frame,
            Err(panic) => this.cut(panic),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for CallBody {
    fn drop(&mut self) {
        guard::discard(&self.slot, self.path.path(), self.body.take());
    }
}

/// Any server that a stock tonic `Router` would take.
pub(crate) struct Tonic<S>(pub(crate) S);

impl<S, B> Wire for Tonic<S>
where
    S: tower::Service<Request, Response = http::Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Response, BoxError>> {
        let service = self.0.clone();
        Box::pin(async move {
            let response = service.oneshot(request).await.map_err(Into::into)?;
            Ok(response.map(Body::new))
        })
    }
}

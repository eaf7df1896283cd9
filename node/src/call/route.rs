//! How a handle makes its calls: one function for each of gRPC's four kinds.

use std::{
    error::Error as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use tokio::time::Instant;
use tonic::{
    Code, Request, Response, Status, body::Body, client::Grpc, codec::Codec, codegen::tokio_stream::Stream,
    metadata::MetadataMap,
};

use super::{
    deadline,
    guard::Guarded,
    passed::{self, Ended},
    scope::Scope,
    slot::{self, Remote, Slot, Target},
    streaming::{LocalStream, Streaming},
    wire,
};
use crate::{BoxError, status::CallError};

/// What a call on a service's local trait returns: the very future that tonic's trait boxes.
pub type CallFuture<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

/// A response stream of a service in this process.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Boxes a response stream: once a call, not once a message.
pub fn box_stream<T>(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> BoxStream<T> {
    Box::pin(stream)
}

/// The way of a handle to its service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Route {
    slot: Arc<Slot>,
}

impl Route {
    pub(crate) fn new(slot: Arc<Slot>) -> Self {
        Self { slot }
    }

    /// One request, one response.
    ///
    /// # Errors
    /// The module's status, or one of the framework's.
    /// # Cancel safety
    /// Dropping the future ends the call: the module's own future is dropped, here or at the other end.
    #[inline]
    pub async fn unary<L, Req, Res, C>(
        &self,
        path: &'static str,
        mut request: Request<Req>,
        codec: C,
        direct: impl for<'a> FnOnce(&'a L, Request<Req>) -> CallFuture<'a, Res>,
    ) -> Result<Response<Res>, Status>
    where
        L: ?Sized + 'static,
        Req: Send + Sync + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = Req, Decode = Res> + Send + 'static,
    {
        let call = self.enter(path, &mut request)?;
        let target = call.target().await?;
        if let Some(service) = local::<L>(&target) {
            return call.run(|| direct(service, request)).await;
        }
        call.over_wire(&target, request, None, async move |mut grpc, request| {
            grpc.ready().await.map_err(Status::from_error)?;
            grpc.unary(request, PathAndQuery::from_static(path), codec).await
        })
        .await
    }

    /// One request, a stream of responses.
    ///
    /// # Errors
    /// See [`Route::unary`].
    /// # Cancel safety
    /// Dropping the future, or the stream it gave, ends the call.
    pub async fn server_stream<L, Req, Res, C>(
        &self,
        path: &'static str,
        mut request: Request<Req>,
        codec: C,
        direct: impl for<'a> FnOnce(&'a L, Request<Req>) -> CallFuture<'a, BoxStream<Res>>,
    ) -> Result<Response<Streaming<Res>>, Status>
    where
        L: ?Sized + 'static,
        Req: Send + Sync + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = Req, Decode = Res> + Send + 'static,
    {
        let call = self.enter(path, &mut request)?;
        let target = call.target().await?;
        if let Some(service) = local::<L>(&target) {
            let response = call.run(|| direct(service, request)).await?;
            return Ok(response.map(|stream| Streaming::local(call.stream(stream), call.timer, None)));
        }
        let response = call.over_wire(&target, request, None, async move |mut grpc, request| {
            grpc.ready().await.map_err(Status::from_error)?;
            grpc.server_streaming(request, PathAndQuery::from_static(path), codec).await
        });
        Ok(response.await?.map(|stream| Streaming::wire(stream, call.timer, None)))
    }

    /// A stream of requests, one response.
    ///
    /// # Errors
    /// See [`Route::unary`].
    /// # Cancel safety
    /// Dropping the future ends the call; requests that the module has not read are not sent.
    pub async fn client_stream<L, S, Res, C>(
        &self,
        path: &'static str,
        mut request: Request<S>,
        codec: C,
        direct: impl for<'a> FnOnce(&'a L, Request<tonic::Streaming<S::Item>>) -> CallFuture<'a, Res>,
    ) -> Result<Response<Res>, Status>
    where
        L: ?Sized + 'static,
        S: Stream<Item: Send + Sync + 'static> + Send + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = S::Item, Decode = Res> + Send + 'static,
    {
        let call = self.enter(path, &mut request)?;
        let target = call.target().await?;
        let (_ongoing, ended) = passed::ongoing();
        if let Some(service) = local::<L>(&target) {
            let request = request.map(|messages| passed::streaming(messages, ended));
            return call.run(|| direct(service, request)).await;
        }
        call.over_wire(&target, request, Some(ended), async move |mut grpc, request| {
            grpc.ready().await.map_err(Status::from_error)?;
            grpc.client_streaming(request, PathAndQuery::from_static(path), codec).await
        })
        .await
    }

    /// A stream of requests, a stream of responses.
    ///
    /// # Errors
    /// See [`Route::unary`].
    /// # Cancel safety
    /// Dropping the future, or the stream it gave, ends the call.
    pub async fn bidi<L, S, Res, C>(
        &self,
        path: &'static str,
        mut request: Request<S>,
        codec: C,
        direct: impl for<'a> FnOnce(&'a L, Request<tonic::Streaming<S::Item>>) -> CallFuture<'a, BoxStream<Res>>,
    ) -> Result<Response<Streaming<Res>>, Status>
    where
        L: ?Sized + 'static,
        S: Stream<Item: Send + Sync + 'static> + Send + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = S::Item, Decode = Res> + Send + 'static,
    {
        let call = self.enter(path, &mut request)?;
        let target = call.target().await?;
        let (ongoing, ended) = passed::ongoing();
        if let Some(service) = local::<L>(&target) {
            let request = request.map(|messages| passed::streaming(messages, ended));
            let response = call.run(|| direct(service, request)).await?;
            return Ok(response.map(|stream| Streaming::local(call.stream(stream), call.timer, Some(ongoing))));
        }
        let response = call.over_wire(&target, request, Some(ended), async move |mut grpc, request| {
            grpc.ready().await.map_err(Status::from_error)?;
            grpc.streaming(request, PathAndQuery::from_static(path), codec).await
        });
        Ok(response.await?.map(|stream| Streaming::wire(stream, call.timer, Some(ongoing))))
    }

    /// What every call does first: it finds out its deadline, and drops what would not cross a wire. Extensions are
    /// facts of one process, and never cross a call.
    #[inline]
    fn enter<T>(&self, path: &'static str, request: &mut Request<T>) -> Result<Call<'_>, CallError> {
        request.extensions_mut().clear();
        let metadata = request.metadata_mut();
        let (scope, timer) = if metadata.is_empty() {
            Scope::of_call(None)?
        } else {
            without_reserved(metadata);
            Scope::of_call(metadata.get(deadline::HEADER).map(|timeout| timeout.as_encoded_bytes()))?
        };
        Ok(Call { slot: &self.slot, path, scope, timer })
    }
}

/// One call of a handle.
struct Call<'a> {
    slot: &'a Arc<Slot>,
    path: &'static str,
    scope: Scope,
    /// The deadline, where no outer call enforces it.
    timer: Option<Instant>,
}

impl Call<'_> {
    #[inline]
    async fn target(&self) -> Result<Arc<Target>, CallError> {
        let target = self.slot.target();
        if !matches!(*target, Target::Starting) {
            return Ok(target);
        }
        let started = Box::pin(self.slot.started());
        match self.timer {
            None => started.await,
            Some(deadline) => deadline::enforce(deadline, started).await?,
        }
    }

    /// Runs the call on the local trait.
    #[inline]
    async fn run<'s, T>(&self, make: impl FnOnce() -> CallFuture<'s, T>) -> Result<Response<T>, Status> {
        let call = Guarded::start(self.slot, self.path, self.scope, make)?;
        let answer = match self.timer {
            None => call.await?,
            // Boxed, so that calls without a deadline do not carry a timer's size.
            Some(deadline) => Box::pin(deadline::enforce(deadline, call)).await??,
        };
        match answer {
            Ok(mut response) => {
                response.extensions_mut().clear();
                if !response.metadata().is_empty() {
                    without_reserved(response.metadata_mut());
                }
                Ok(response)
            }
            Err(status) => Err(as_from_wire(status)),
        }
    }

    fn stream<T>(&self, stream: BoxStream<T>) -> LocalStream<T> {
        LocalStream::new(Arc::clone(self.slot), self.path, self.scope, stream)
    }

    /// Runs the call through a tonic client: in this process when the service is here, but can't be called directly.
    async fn over_wire<Req, T, F>(
        &self,
        target: &Arc<Target>,
        mut request: Request<Req>,
        ended: Option<Ended>,
        call: impl FnOnce(Grpc<Transport>, Request<Req>) -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let way = match &**target {
            Target::Local(_) => Way::Local(Arc::clone(self.slot)),
            Target::Remote(remote) => Way::Remote(remote.clone()),
            Target::Stopped | Target::Starting => return Err(CallError::Stopped(self.slot.module().clone()).into()),
        };
        if let Some(deadline) = self.scope.deadline {
            write_deadline(deadline, request.metadata_mut());
        }
        let transport = Transport { way, ended };
        // What comes from a module of the same program is trusted to have a reasonable size; the direct path has no
        // limit either.
        let call = call(Grpc::new(transport).max_decoding_message_size(usize::MAX), request);
        let mut response = match self.timer {
            None => Box::pin(call).await?,
            Some(deadline) => Box::pin(deadline::enforce(deadline, call)).await?.map_err(late_not_cancelled)?,
        };
        response.extensions_mut().clear();
        Ok(response)
    }
}

#[inline]
fn local<L: ?Sized + 'static>(target: &Target) -> Option<&L> {
    match target {
        Target::Local(local) => local.direct::<L>(),
        _ => None,
    }
}

/// Removes the keys that are gRPC's own: on a wire they are never the caller's or the module's.
fn without_reserved(metadata: &mut MetadataMap) {
    for key in ["te", "content-type", "grpc-status", "grpc-message", "grpc-message-type"] {
        metadata.remove(key);
    }
}

fn write_deadline(deadline: Instant, metadata: &mut MetadataMap) {
    let mut headers = std::mem::take(metadata).into_headers();
    deadline::write(deadline, &mut headers);
    *metadata = MetadataMap::from_headers(headers);
}

/// A status as it would arrive over a wire: without the error that caused it, and with a code that says "error".
#[cold]
pub(super) fn as_from_wire(status: Status) -> Status {
    if status.code() == Code::Ok {
        return CallError::ErrorWithoutCode.into();
    }
    if status.source().is_none() {
        return status;
    }
    let details = bytes::Bytes::copy_from_slice(status.details());
    Status::with_details_and_metadata(status.code(), status.message(), details, status.metadata().clone())
}

/// tonic's channel enforces the deadline as well, and calls it CANCELLED when it is the first to.
fn late_not_cancelled(status: Status) -> Status {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return CallError::DeadlineExceeded.into();
        }
        cause = error.source();
    }
    status
}

/// What a handle's tonic client sends its request to.
struct Transport {
    way: Way,
    /// Of the one call that it is made for, if that has a stream of requests.
    ended: Option<Ended>,
}

enum Way {
    Local(Arc<Slot>),
    Remote(Remote),
}

impl tower::Service<slot::Request> for Transport {
    type Response = slot::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<slot::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.way {
            Way::Local(_) => Poll::Ready(Ok(())),
            Way::Remote(remote) => remote.poll_ready(cx),
        }
    }

    fn call(&mut self, request: slot::Request) -> Self::Future {
        let request = match self.ended.take() {
            Some(ended) => request.map(|body| Body::new(passed::Resetting::new(body, ended))),
            None => request,
        };
        match &mut self.way {
            Way::Local(slot) => {
                let slot = Arc::clone(slot);
                Box::pin(async move { Ok(wire::serve_here(slot, request).await) })
            }
            Way::Remote(remote) => remote.call(request),
        }
    }
}

//! How a handle makes its calls: one function for each of gRPC's four kinds.

use std::{
    error::Error as _,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status, client::Grpc, codec::Codec, codegen::tokio_stream::Stream, metadata::MetadataMap,
};

use super::{
    deadline, guard, passed,
    scope::Scope,
    slot::{self, Remote, Slot, Target},
    streaming::{Progress, Streaming},
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
        let target = self.slot.target().await?;
        let deadline = enter(&mut request);
        if let Some(service) = local::<L>(&target) {
            return self.run(path, deadline, direct(service, request)).await;
        }
        write_deadline(deadline, &mut request);
        let unary = |mut grpc: Grpc<Transport>| async move {
            grpc.ready().await.map_err(unready)?;
            grpc.unary(request, PathAndQuery::from_static(path), codec).await
        };
        self.over_wire(&target, deadline, unary).await
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
        let target = self.slot.target().await?;
        let deadline = enter(&mut request);
        if let Some(service) = local::<L>(&target) {
            let response = self.run(path, deadline, direct(service, request)).await?;
            return Ok(response.map(|stream| self.streaming(path, deadline, stream, None)));
        }
        write_deadline(deadline, &mut request);
        let server_stream = |mut grpc: Grpc<Transport>| async move {
            grpc.ready().await.map_err(unready)?;
            grpc.server_streaming(request, PathAndQuery::from_static(path), codec).await
        };
        let response = self.over_wire(&target, deadline, server_stream).await?;
        Ok(response.map(|stream| Streaming::wire(stream, deadline)))
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
        let target = self.slot.target().await?;
        let deadline = enter(&mut request);
        if let Some(service) = local::<L>(&target) {
            let ended = CancellationToken::new();
            let _ended = ended.clone().drop_guard();
            let request = request.map(|messages| passed::streaming(messages, ended));
            return self.run(path, deadline, direct(service, request)).await;
        }
        write_deadline(deadline, &mut request);
        let client_stream = |mut grpc: Grpc<Transport>| async move {
            grpc.ready().await.map_err(unready)?;
            grpc.client_streaming(request, PathAndQuery::from_static(path), codec).await
        };
        self.over_wire(&target, deadline, client_stream).await
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
        let target = self.slot.target().await?;
        let deadline = enter(&mut request);
        if let Some(service) = local::<L>(&target) {
            let ended = CancellationToken::new();
            let ends = ended.clone().drop_guard();
            let request = request.map(|messages| passed::streaming(messages, ended));
            let response = self.run(path, deadline, direct(service, request)).await?;
            return Ok(response.map(|stream| self.streaming(path, deadline, stream, Some(ends))));
        }
        write_deadline(deadline, &mut request);
        let bidi = |mut grpc: Grpc<Transport>| async move {
            grpc.ready().await.map_err(unready)?;
            grpc.streaming(request, PathAndQuery::from_static(path), codec).await
        };
        let response = self.over_wire(&target, deadline, bidi).await?;
        Ok(response.map(|stream| Streaming::wire(stream, deadline)))
    }

    /// Runs a call on the local trait: panics are caught, the deadline holds, and what would not cross a wire does not
    /// cross here either.
    #[inline]
    async fn run<T>(
        &self,
        path: &'static str,
        deadline: Option<Instant>,
        mut call: CallFuture<'_, T>,
    ) -> Result<Response<T>, Status> {
        let slot = &*self.slot;
        let call = poll_fn(move |cx| guard::poll(slot, path, || call.as_mut().poll(cx)));
        let answer = match deadline {
            None => call.await?,
            // Boxed, so that calls without a deadline do not carry a timer's size.
            Some(deadline) => Box::pin(timed(deadline, call)).await??,
        };
        match answer {
            Ok(mut response) => {
                response.extensions_mut().clear();
                Ok(response)
            }
            Err(status) => Err(as_from_wire(status)),
        }
    }

    fn streaming<T>(
        &self,
        path: &'static str,
        deadline: Option<Instant>,
        stream: BoxStream<T>,
        ends: Option<tokio_util::sync::DropGuard>,
    ) -> Streaming<T> {
        Streaming::local(Progress::new(Arc::clone(&self.slot), path, deadline, ends), stream)
    }

    /// Runs a call through a tonic client: in this process when the service is here, but can't be called directly.
    async fn over_wire<T, F>(
        &self,
        target: &Arc<Target>,
        deadline: Option<Instant>,
        call: impl FnOnce(Grpc<Transport>) -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
        T: Send,
    {
        let transport = match &**target {
            Target::Local(_) => Transport::Local(Arc::clone(&self.slot)),
            Target::Remote(remote) => Transport::Remote(remote.clone()),
            Target::Stopped | Target::Starting => return Err(CallError::Stopped(self.slot.module().clone()).into()),
        };
        // What comes from a module of the same program is trusted to have a reasonable size; the direct path has no
        // limit either.
        let call = call(Grpc::new(transport).max_decoding_message_size(usize::MAX));
        let mut response = match deadline {
            None => Box::pin(call).await?,
            Some(deadline) => Box::pin(timed(deadline, call)).await??,
        };
        response.extensions_mut().clear();
        Ok(response)
    }
}

/// Runs a call in a scope that has its deadline, until that deadline.
async fn timed<F: Future>(deadline: Instant, call: F) -> Result<F::Output, CallError> {
    let scope = Scope { deadline: Some(deadline), ..Scope::current() };
    deadline::enforce(deadline, scope.around(call)).await
}

#[inline]
fn local<L: ?Sized + 'static>(target: &Target) -> Option<&L> {
    match target {
        Target::Local(local) => local.direct::<L>(),
        _ => None,
    }
}

/// What every call does first. Extensions are facts of one process: they never cross a call.
#[inline]
fn enter<T>(request: &mut Request<T>) -> Option<Instant> {
    request.extensions_mut().clear();
    let metadata = request.metadata();
    let timeout = if metadata.is_empty() { None } else { metadata.get(deadline::HEADER) };
    deadline::of(timeout.map(|timeout| timeout.as_encoded_bytes()))
}

fn write_deadline<T>(deadline: Option<Instant>, request: &mut Request<T>) {
    if let Some(deadline) = deadline {
        let mut headers = std::mem::take(request.metadata_mut()).into_headers();
        deadline::write(deadline, &mut headers);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
    }
}

/// A status as it would arrive over a wire: without the error that caused it, and with a code that says "error".
#[cold]
fn as_from_wire(status: Status) -> Status {
    if status.code() == Code::Ok {
        return CallError::ErrorWithoutCode.into();
    }
    if status.source().is_none() {
        return status;
    }
    let details = bytes::Bytes::copy_from_slice(status.details());
    Status::with_details_and_metadata(status.code(), status.message(), details, status.metadata().clone())
}

fn unready(error: BoxError) -> Status {
    Status::from_error(error)
}

/// What a handle's tonic client sends its requests to.
#[derive(Clone)]
pub(crate) enum Transport {
    Local(Arc<Slot>),
    Remote(Remote),
}

impl tower::Service<slot::Request> for Transport {
    type Response = slot::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<slot::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Local(_) => Poll::Ready(Ok(())),
            Self::Remote(remote) => remote.poll_ready(cx),
        }
    }

    fn call(&mut self, request: slot::Request) -> Self::Future {
        match self {
            Self::Local(slot) => {
                let slot = Arc::clone(slot);
                Box::pin(async move { Ok(wire::serve_here(slot, request).await) })
            }
            Self::Remote(remote) => remote.call(request),
        }
    }
}

//! How a handle makes its calls.
//!
//! The streaming kinds have a function each. A unary call is begun, and then made, by the generated method itself:
//! requests and responses are large, and each function in between would copy them once more.

use std::{
    error::Error as _,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::Guard;
use futures_util::future::BoxFuture;
use http::{HeaderMap, uri::PathAndQuery};
use outpost_proto::keys::metadata as keys;
use prost::Message;
use tokio::time::{Instant, Sleep};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    client::Grpc,
    codec::Codec,
    codegen::tokio_stream::Stream,
    metadata::{KeyRef, MetadataMap},
};

use super::{
    counts::{Account, Origin},
    deadline, delivery,
    gate::{Gate, Inside, Pass, Refusal, Waits},
    guard::Guarded,
    passed::{self, Ended},
    placed,
    scope::Scope,
    short,
    slot::{self, Remote, Slot, Target},
    streaming::{LocalStream, Streaming},
    wire,
};
use crate::{BoxError, id::ModuleName, status::CallError, trust::callers::CallingModule};

/// What a call on a service's local trait returns: the very future that tonic's trait boxes.
pub type CallFuture<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

/// A response stream of a service in this process.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A method of a service's local trait.
pub(super) type Method<L, Req, Res> = for<'a> fn(&'a L, Req) -> CallFuture<'a, Res>;

/// Boxes a response stream: once a call, not once a message.
pub fn box_stream<T>(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> BoxStream<T> {
    Box::pin(stream)
}

/// The way of a handle to its service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Route {
    slot: Arc<Slot>,
    /// The module that has the handle, where it is one.
    from: Option<Arc<CallingModule>>,
}

impl Route {
    pub(crate) fn new(slot: Arc<Slot>) -> Self {
        Self { slot, from: None }
    }

    /// The way of a module's handle.
    pub(crate) fn of_module(from: ModuleName, slot: Arc<Slot>) -> Self {
        Self { slot, from: Some(Arc::new(CallingModule::new(from))) }
    }

    /// Begins a call: finds out its deadline, drops what would not cross a wire, and looks where the service is.
    /// Extensions are facts of one process, and never cross a call.
    ///
    /// # Errors
    /// A module that may not make it, a deadline that has passed, or calls that are nested too deep.
    #[inline]
    pub fn begin<T>(&self, path: &'static str, request: &mut Request<T>) -> Result<Call<'_>, Status> {
        if let Some(from) = &self.from {
            self.slot.admits_caller(from, path)?;
        }
        request.extensions_mut().clear();
        let metadata = request.metadata_mut();
        let (scope, deadline) = if metadata.is_empty() {
            Scope::of_call(None)?
        } else {
            without_reserved(metadata, placed::strip_request);
            delivery::check_call_id(metadata)?;
            Scope::of_call(metadata.get(deadline::HEADER).map(|timeout| timeout.as_encoded_bytes()))?
        };
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(CallError::DeadlineExceeded.into());
        }
        let target = self.slot.target();
        let entered = match &**target {
            Target::Local(local) => local.gate.enter(scope.chain, Origin::Here),
            _ => None,
        };
        Ok(Call { slot: &self.slot, path, scope, deadline, target, entered: Inside::new(entered) })
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
        direct: Method<L, Request<Req>, BoxStream<Res>>,
    ) -> Result<Response<Streaming<Res>>, Status>
    where
        L: ?Sized + 'static,
        Req: Send + Sync + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = Req, Decode = Res> + Send + 'static,
    {
        let call = self.begin(path, &mut request)?;
        if let Some(service) = call.local::<L>() {
            let response = call.direct(|| direct(service, request)).await?;
            return Ok(response.map(|stream| Streaming::local(call.stream(stream), call.scope.deadline, None)));
        }
        let response = call.over_wire(request, None, async move |mut grpc, request| {
            grpc.ready().await.map_err(Status::from_error)?;
            grpc.server_streaming(request, PathAndQuery::from_static(path), codec).await
        });
        Ok(response.await?.map(|stream| Streaming::wire(stream, call.scope.deadline, None)))
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
        direct: Method<L, Request<tonic::Streaming<S::Item>>, Res>,
    ) -> Result<Response<Res>, Status>
    where
        L: ?Sized + 'static,
        S: Stream<Item: Send + Sync + 'static> + Send + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = S::Item, Decode = Res> + Send + 'static,
    {
        let call = self.begin(path, &mut request)?;
        let (_ongoing, ended) = passed::ongoing();
        if let Some(service) = call.local::<L>() {
            let request = request.map(|messages| passed::streaming(messages, ended));
            return call.direct(|| direct(service, request)).await;
        }
        call.over_wire(request, Some(ended), async move |mut grpc, request| {
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
        direct: Method<L, Request<tonic::Streaming<S::Item>>, BoxStream<Res>>,
    ) -> Result<Response<Streaming<Res>>, Status>
    where
        L: ?Sized + 'static,
        S: Stream<Item: Send + Sync + 'static> + Send + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = S::Item, Decode = Res> + Send + 'static,
    {
        let call = self.begin(path, &mut request)?;
        let (ongoing, ended) = passed::ongoing();
        if let Some(service) = call.local::<L>() {
            let request = request.map(|messages| passed::streaming(messages, ended));
            let response = call.direct(|| direct(service, request)).await?;
            return Ok(response.map(|stream| Streaming::local(call.stream(stream), call.scope.deadline, Some(ongoing))));
        }
        let response = call.over_wire(request, Some(ended), async move |mut grpc, request| {
            grpc.ready().await.map_err(Status::from_error)?;
            grpc.streaming(request, PathAndQuery::from_static(path), codec).await
        });
        Ok(response.await?.map(|stream| Streaming::wire(stream, call.scope.deadline, Some(ongoing))))
    }
}

/// A call that a handle makes.
#[derive(Debug)]
pub struct Call<'a> {
    slot: &'a Arc<Slot>,
    path: &'static str,
    scope: Scope,
    /// The deadline, where no outer call enforces it.
    deadline: Option<Instant>,
    target: Guard<Arc<Target>>,
    /// Where it was counted at the gate, if it is inside.
    entered: Inside,
}

impl Drop for Call<'_> {
    #[inline]
    fn drop(&mut self) {
        self.leave();
    }
}

impl Call<'_> {
    /// The service's local trait, if the call can be made on that now.
    #[inline]
    #[must_use]
    pub fn local<L: ?Sized + 'static>(&self) -> Option<&L> {
        match &**self.target {
            Target::Local(local) if self.entered.is_some() => local.direct::<L>(),
            _ => None,
        }
    }

    #[inline]
    fn leave(&self) {
        if let (Some(entered), Target::Local(local)) = (self.entered.take(), &**self.target) {
            local.gate.leave(entered);
        }
    }

    /// Makes the call on the local trait.
    #[inline]
    pub fn direct<'c, T>(&'c self, make: impl FnOnce() -> CallFuture<'c, T>) -> DirectCall<'c, T> {
        let timer = self.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        let gate = match &**self.target {
            Target::Local(local) => Some(&*local.gate),
            _ => None,
        };
        let state = match Guarded::start(self.slot, self.path, self.scope, make) {
            Ok(call) => State::Running(call),
            Err(panic) => State::Panicked(panic),
        };
        DirectCall { state, timer, slot: self.slot, gate, waits: Waits::default() }
    }

    /// Makes the call through a tonic client: the module is elsewhere, or behind an interceptor, or has yet to start.
    ///
    /// # Errors
    /// The module's status, or one of the framework's.
    pub fn unary<'c, Req, Res, C>(
        &'c self,
        request: Request<Req>,
        codec: C,
    ) -> BoxFuture<'c, Result<Response<Res>, Status>>
    where
        Req: Send + Sync + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = Req, Decode = Res> + Send + 'static,
    {
        // Boxed, so that direct calls do not carry its size.
        Box::pin(self.over_wire(request, None, |grpc, request| one_message(grpc, request, self.path, codec)))
    }

    /// The same, for messages of prost: to a module on another node by the [short](super::short) way, where that can be gone.
    ///
    /// # Errors
    /// See [`Call::unary`].
    pub fn message<'c, Req, Res, C>(
        &'c self,
        request: Request<Req>,
        codec: C,
    ) -> BoxFuture<'c, Result<Response<Res>, Status>>
    where
        Req: Message + 'static,
        Res: Message + Default + 'static,
        C: Codec<Encode = Req, Decode = Res> + Send + 'static,
    {
        Box::pin(async move {
            let Target::Placed(placed) = &**self.target else { return self.unary(request, codec).await };
            let mut account = Account::open(self.slot.facts(), Origin::Here, true);
            account.went().elsewhere();
            let short = short::call(self.slot, self.path, self.scope, placed, &request);
            let tried = match self.deadline {
                None => short.await,
                Some(deadline) => {
                    Box::pin(deadline::enforce(deadline, short)).await.unwrap_or_else(|late| Err(late.into()))
                }
            };
            let answer = match tried {
                Ok(short::Tried::Answered(response)) => Ok(response),
                Ok(short::Tried::NotRun) => {
                    account.forget();
                    return self.unary(request, codec).await;
                }
                Ok(short::Tried::Other(answer)) => self.read(answer, request, codec).await,
                Err(status) => Err(status),
            };
            account.close(answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
            answer
        })
    }

    /// Reads the answer to a request by a tonic client.
    fn read<'c, Req, Res, C>(
        &'c self,
        answer: slot::Response,
        request: Request<Req>,
        codec: C,
    ) -> BoxFuture<'c, Result<Response<Res>, Status>>
    where
        Req: Send + Sync + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = Req, Decode = Res> + Send + 'static,
    {
        let way = Way::Answered(Some(answer));
        Box::pin(self.by(way, request, None, |grpc, request| one_message(grpc, request, self.path, codec)))
    }

    fn stream<T>(&self, stream: BoxStream<T>) -> LocalStream<T> {
        // The stream outlives this, and so does the call at the gate.
        let pass = match (self.entered.take(), &**self.target) {
            (Some(entered), Target::Local(local)) => Some(Pass::of(&local.gate, entered)),
            _ => None,
        };
        LocalStream::new(Arc::clone(self.slot), self.path, self.scope, stream, pass)
    }

    /// Runs the call through a tonic client: in this process when the service is here, but can't be called directly.
    async fn over_wire<Req, T, F>(
        &self,
        request: Request<Req>,
        ended: Option<Ended>,
        call: impl FnOnce(Grpc<Transport>, Request<Req>) -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let way = match &**self.target {
            Target::Remote(remote) => Way::Remote(remote.clone()),
            _ => Way::Local(Arc::clone(self.slot)),
        };
        self.by(way, request, ended, call).await
    }

    async fn by<Req, T, F>(
        &self,
        way: Way,
        mut request: Request<Req>,
        ended: Option<Ended>,
        call: impl FnOnce(Grpc<Transport>, Request<Req>) -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        // Where it is served it enters anew, and is counted.
        if let (Some(entered), Target::Local(local)) = (self.entered.take(), &**self.target) {
            local.gate.leave(entered.as_part());
        }
        if let Some(deadline) = self.scope.deadline {
            write_deadline(deadline, request.metadata_mut());
        }
        let transport = Transport { way, ended };
        // What comes from a module of the same program is trusted to have a reasonable size; the direct path has no
        // limit either.
        let call = call(Grpc::new(transport).max_decoding_message_size(usize::MAX), request);
        let mut response = match self.deadline {
            None => Box::pin(call).await?,
            Some(deadline) => Box::pin(deadline::enforce(deadline, call)).await?.map_err(late_not_cancelled)?,
        };
        response.extensions_mut().clear();
        Ok(response)
    }
}

/// A unary call by a tonic client.
async fn one_message<Req, Res, C>(
    mut grpc: Grpc<Transport>,
    request: Request<Req>,
    path: &'static str,
    codec: C,
) -> Result<Response<Res>, Status>
where
    Req: Send + Sync + 'static,
    Res: Send + Sync + 'static,
    C: Codec<Encode = Req, Decode = Res> + Send + 'static,
{
    grpc.ready().await.map_err(Status::from_error)?;
    grpc.unary(request, PathAndQuery::from_static(path), codec).await
}

/// A call on a service's local trait: panics are caught, the deadline holds, and what would not cross a wire does not
/// cross here either. Dropping it ends the call.
pub struct DirectCall<'a, T> {
    state: State<'a, T>,
    timer: Option<Pin<Box<Sleep>>>,
    slot: &'a Slot,
    /// That the call is inside of.
    gate: Option<&'a Gate>,
    waits: Waits,
}

impl<T> Drop for DirectCall<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(gate) = self.gate {
            self.waits.end(gate);
        }
        if matches!(&self.state, State::Running(call) if call.is_running()) {
            self.slot.failed(Code::Cancelled);
        }
    }
}

enum State<'a, T> {
    Running(Guarded<'a, CallFuture<'a, T>>),
    /// When it was made.
    Panicked(CallError),
    Ended,
}

impl<T> DirectCall<'_, T> {
    #[cold]
    fn fail(&mut self, error: CallError) -> Poll<Result<Response<T>, Status>> {
        self.state = State::Ended;
        let status = Status::from(error);
        self.slot.failed(status.code());
        Poll::Ready(Err(status))
    }
}

// A response is never pinned.
impl<T> Unpin for DirectCall<'_, T> {}

impl<T> Future for DirectCall<'_, T> {
    type Output = Result<Response<T>, Status>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let call = match &mut this.state {
            State::Running(call) => call,
            State::Panicked(_) | State::Ended => match std::mem::replace(&mut this.state, State::Ended) {
                State::Panicked(panic) => return this.fail(panic),
                _ => panic!("a future is not polled after its end"),
            },
        };
        if let Some(gate) = this.gate.filter(|gate| gate.is_cut(false)) {
            return this.fail(Refusal::Cut.of(this.slot.module(), gate.epoch()));
        }
        let mut polled = match call.poll_guarded(cx) {
            Ok(polled) => polled,
            Err(panic) => return this.fail(panic),
        };
        if polled.is_ready()
            && let Some(gate) = this.gate
            && let Err(refusal) = gate.may_answer()
        {
            return this.fail(refusal.of(this.slot.module(), gate.epoch()));
        }
        match &mut polled {
            Poll::Ready(Ok(response)) => {
                #[cfg(feature = "simulation")]
                if let Some(gate) = this.gate {
                    crate::simulation::passes(this.slot.module(), gate.epoch(), None, None);
                }
                response.extensions_mut().clear();
                if !response.metadata().is_empty() {
                    without_reserved(response.metadata_mut(), placed::strip);
                }
                polled
            }
            Poll::Ready(Err(_)) => polled.map_err(|status| {
                let status = as_from_wire(status);
                this.slot.failed(status.code());
                status
            }),
            Poll::Pending => {
                if this.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
                    return this.fail(CallError::DeadlineExceeded);
                }
                match this.gate {
                    Some(gate) if this.waits.poll_cut(gate, false, cx).is_ready() => {
                        this.fail(Refusal::Cut.of(this.slot.module(), gate.epoch()))
                    }
                    _ => Poll::Pending,
                }
            }
        }
    }
}

impl<T> fmt::Debug for DirectCall<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectCall").finish_non_exhaustive()
    }
}

/// Removes the keys that are gRPC's own: on a wire they are never the caller's or the module's.
pub(super) fn without_reserved(metadata: &mut MetadataMap, strip: impl FnOnce(&mut HeaderMap)) {
    for key in ["te", "content-type", "grpc-status", "grpc-message", "grpc-message-type"] {
        metadata.remove(key);
    }
    // Nor are those of nodes.
    let ours = |key: KeyRef<'_>| match key {
        KeyRef::Ascii(key) => key.as_str().starts_with(keys::PREFIX),
        KeyRef::Binary(key) => key.as_str().starts_with(keys::PREFIX),
    };
    if metadata.keys().any(ours) {
        let mut headers = std::mem::take(metadata).into_headers();
        strip(&mut headers);
        *metadata = MetadataMap::from_headers(headers);
    }
}

pub(super) fn write_deadline(deadline: Instant, metadata: &mut MetadataMap) {
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
    if status.source().is_none() && status.metadata().is_empty() {
        return status;
    }
    let details = bytes::Bytes::copy_from_slice(status.details());
    let mut headers = status.metadata().clone().into_headers();
    // What a node said of a call that the module made is not said of this one.
    placed::strip(&mut headers);
    let metadata = MetadataMap::from_headers(headers);
    Status::with_details_and_metadata(status.code(), status.message(), details, metadata)
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
    /// The answer is here already, for the client to read.
    Answered(Option<slot::Response>),
}

impl tower::Service<slot::Request> for Transport {
    type Response = slot::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<slot::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.way {
            Way::Local(_) | Way::Answered(_) => Poll::Ready(Ok(())),
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
            Way::Answered(response) => {
                let response = response.take().ok_or_else(|| "an answer is read once".into());
                Box::pin(std::future::ready(response))
            }
        }
    }
}

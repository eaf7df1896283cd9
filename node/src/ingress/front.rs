//! From an HTTP request to a call.

use std::{
    convert::Infallible,
    fmt,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use outpost_proto::{cluster::v1::CarriedCall, keys::metadata as keys};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Status, body::Body};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::{AllowHeaders, AllowOrigin, Cors, CorsLayer, ExposeHeaders};

use super::carried::Parcels;
use crate::{
    call::{
        caller::Held,
        counts::Origin,
        link::CARRY,
        placed::{self, Arrival},
        serve,
        short::Inside,
        slot::Slot,
        table::Table,
    },
    status::CallError,
    together::{Streams, Turn},
    trust::{
        Accepted, Client,
        callers::{CallPolicy, Certified, Refused},
    },
};

type Web = Cors<GrpcWebService<Calls>>;

/// What a listener serves. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Front {
    calls: Calls,
    web: Option<Web>,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front").field("callers", &self.calls.callers).finish_non_exhaustive()
    }
}

impl Front {
    /// `web_origins` are the origins that may call by gRPC-Web; `None` turns gRPC-Web off.
    pub(crate) fn new(table: Arc<Table>, web_origins: Option<&[String]>, policy: CallPolicy) -> Self {
        let calls = Calls { policy, ..Calls::of(table, Callers::Clients) };
        let web = web_origins.map(|origins| (cors(origins), GrpcWebLayer::new()).layer(calls.clone()));
        Self { calls, web }
    }

    /// What other nodes are served: the same, and what they say of a call is believed.
    pub(crate) fn for_nodes(table: Arc<Table>) -> Self {
        Self { calls: Calls::of(table, Callers::Nodes), web: None }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.calls.table
    }

    /// The same front, with another table.
    pub(crate) fn with(&self, table: Arc<Table>) -> Self {
        Self { calls: Calls { table, ..self.calls.clone() }, web: self.web.clone() }
    }

    /// Lets in no more calls of modules: who makes one hears that it did not run.
    pub(crate) fn refuse(&self) {
        self.calls.refusing.give();
    }

    /// Whether it does not.
    pub(super) fn refuses(&self) -> bool {
        self.calls.refusing.is_given()
    }

    /// Ready once it does not.
    pub(super) async fn refusing(&self) {
        self.calls.refusing.given().await;
    }

    /// Serves a call that another node has carried here.
    pub(super) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        // What nodes ask each other asks who is at the other end of the connection, which can't be told of a carried call.
        if request.uri().path().starts_with("/outpost.cluster.") {
            return Status::unimplemented("this service is not called by way of a link").into_http();
        }
        let Ok(response) = self.calls.call(request).await;
        response
    }

    /// Lets in a call that another node has carried here, or gives it back: see [`Inside::enter`].
    pub(super) fn enter(&self, call: CarriedCall) -> Result<(Inside, TaskTrackerToken), CarriedCall> {
        let entered = match str::from_utf8(&call.path).ok().and_then(|path| self.calls.table.find(path).ok()) {
            Some(slot) if !slot.is_built_in() && !self.calls.refusing.is_given() => {
                let path = call.path.clone();
                Inside::enter(slot, str::from_utf8(&path).unwrap_or_default(), call)?
            }
            _ => return Err(call),
        };
        Ok((entered, self.calls.in_flight.token()))
    }

    /// Answers that other nodes may fetch.
    pub(super) fn parcels(&self) -> &Parcels {
        &self.calls.parcels
    }

    pub(super) fn callers(&self) -> Callers {
        self.calls.callers
    }

    /// Calls in flight, but for those on the node's own services: a client may watch its health for as long as it is
    /// there.
    pub(crate) fn calls(&self) -> &TaskTracker {
        &self.calls.in_flight
    }

    /// The service of one connection. `info` is what tonic knows as connect info: `Request::remote_addr` reads it.
    /// `accepted` is who is at its other end, where that is known; `ending` tells other nodes' calls of its end.
    /// The stream that takes many calls stays with the connection, by `streams`, and what it answers goes out at once.
    pub(super) fn for_connection<I>(
        &self,
        info: I,
        accepted: Option<Accepted>,
        ending: Ending,
        (streams, turn): (Streams, Turn),
    ) -> Connected<I>
    where
        I: Clone + Send + Sync + 'static,
    {
        Connected { front: self.clone(), info, accepted, ending, streams, turn }
    }
}

/// Given once a connection is to have no more calls.
pub(super) type Ending = Signal;

/// Given once, and looked at with each call: without the lock that a token's look takes. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Signal {
    given: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Signal {
    pub(super) fn give(&self) {
        self.given.store(true, Ordering::SeqCst);
        self.token.cancel();
    }

    pub(super) fn is_given(&self) -> bool {
        self.given.load(Ordering::SeqCst)
    }

    /// Ready once it is.
    pub(super) async fn given(&self) {
        self.token.cancelled().await;
    }
}

#[derive(Clone)]
pub(super) struct Connected<I> {
    front: Front,
    info: I,
    accepted: Option<Accepted>,
    ending: Ending,
    streams: Streams,
    turn: Turn,
}

impl<I: Clone + Send + Sync + 'static> hyper::service::Service<Request<Incoming>> for Connected<I> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        // Of a call that another node passes on, that node is not the caller.
        match self.front.callers() {
            Callers::Clients => drop(request.extensions_mut().insert(self.info.clone())),
            Callers::Nodes => {
                request.extensions_mut().insert(self.ending.clone());
                if request.uri().path() == CARRY {
                    self.streams.next_stays();
                    self.turn.skip();
                }
            }
        }
        match &self.accepted {
            Some(Accepted::Peer(peer)) => drop(request.extensions_mut().insert(peer.clone())),
            Some(Accepted::Client(certified)) => drop(request.extensions_mut().insert(certified.clone())),
            None => {}
        }
        let kind = kind(&request);
        match (kind, &self.front.web) {
            (Kind::Grpc, _) => self.front.calls.call(request),
            (Kind::Web, Some(web)) => web.clone().oneshot(request).boxed(),
            (Kind::Web, None) | (Kind::Other, _) => Box::pin(ready(Ok(not_grpc()))),
        }
    }
}

enum Kind {
    Grpc,
    /// gRPC-Web, or the question of a browser whether it may.
    Web,
    Other,
}

fn kind(request: &Request<Body>) -> Kind {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if content_type.starts_with(b"application/grpc-web") {
        Kind::Web
    } else if content_type.starts_with(b"application/grpc") && request.version() == Version::HTTP_2 {
        Kind::Grpc
    } else if request.method() == Method::OPTIONS && request.headers().contains_key(header::ORIGIN) {
        Kind::Web
    } else {
        Kind::Other
    }
}

/// The gRPC specification asks for 415 here, so that no HTTP client takes the answer for a success.
fn not_grpc() -> Response<Body> {
    const TEXT: &[u8] = b"This is a gRPC server: call it by gRPC over HTTP/2, or by gRPC-Web.\n";
    let mut response = Response::new(Body::new(http_body_util::Full::new(Bytes::from_static(TEXT))));
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn cors(origins: &[String]) -> CorsLayer {
    let origins = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list(
            [
                "grpc-status",
                "grpc-message",
                "grpc-status-details-bin",
                keys::OUTCOME,
                keys::REASON,
                keys::EPOCH,
                keys::CALL_ID,
            ]
            .map(header::HeaderName::from_static),
        ))
}

/// gRPC requests to the services of a table.
#[derive(Clone)]
struct Calls {
    table: Arc<Table>,
    in_flight: TaskTracker,
    callers: Callers,
    /// Of clients' calls.
    policy: CallPolicy,
    refusing: Signal,
    parcels: Parcels,
}

/// Who connects to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Callers {
    Clients,
    /// Other nodes of the cluster, each of which brings the calls of many clients.
    Nodes,
}

impl tower::Service<Request<Body>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Calls::call(self, request)
    }
}

impl Calls {
    fn of(table: Arc<Table>, callers: Callers) -> Self {
        let (in_flight, refusing, parcels) = (TaskTracker::new(), Signal::default(), Parcels::default());
        Self { table, in_flight, callers, policy: CallPolicy::default(), refusing, parcels }
    }

    /// Who makes a client's call, if that is known and may make it.
    fn client(&self, slot: &Slot, request: &Request<Body>) -> Result<Option<Arc<Client>>, Refused> {
        // The node's own services are for everybody: health, and, where that is wanted, reflection.
        if slot.is_built_in() {
            return Ok(None);
        }
        let (extensions, path) = (request.extensions(), request.uri().path());
        let module = (slot.module(), slot.exposed());
        self.policy.admit(module, path, request.headers(), extensions.get::<Certified>())
    }

    fn call(&self, mut request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        if self.callers == Callers::Nodes
            && let Some(parcel) = self.parcels.fetch(request.uri().path())
        {
            return Box::pin(ready(Ok(parcel)));
        }
        let slot = match self.table.find(request.uri().path()) {
            Ok(slot) => Arc::clone(slot),
            Err(error) => return Box::pin(ready(Ok(Status::from(error).into_http()))),
        };
        let client = match self.callers {
            Callers::Clients => self.client(&slot, &request),
            Callers::Nodes => Ok(None),
        };
        let client = match client {
            Ok(client) => client,
            Err(refused) => {
                let status = Status::from(CallError::from(refused));
                slot.facts().counts.ingress.codes.count(status.code());
                return Box::pin(ready(Ok(status.into_http())));
            }
        };
        if !slot.is_built_in() && self.refusing.is_given() {
            let status = Status::from(CallError::Stopped(slot.module().clone()));
            if self.callers == Callers::Clients {
                slot.facts().counts.ingress.codes.count(status.code());
            }
            return Box::pin(ready(Ok(status.into_http())));
        }
        let in_flight = (!slot.is_built_in()).then(|| self.in_flight.token());
        let (origin, (arrival, held)) = match self.callers {
            Callers::Nodes => (Origin::Node, Arrival::take(request.headers_mut())),
            Callers::Clients => {
                placed::strip_request(request.headers_mut());
                let held = client.map(Held::of);
                (Origin::Client, (Arrival { client: held.as_ref().map(Held::id), ..Arrival::default() }, held))
            }
        };
        Box::pin(async move { Ok(serve(slot, request, origin, arrival, held, in_flight).await) })
    }
}

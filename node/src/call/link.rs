//! The connections to another node: one for a stream that carries many calls, one for streams of a call each.
//!
//! ```text
//! (not used) ─ first call ─▶ connecting ─▶ up ─▶ (lost) ─▶ connecting ...
//!                                └─ failed ─▶ down: calls are refused at once; tried again for ever, with a pause
//! ```
//! Where the certificates of a connection are at their end, or the peer takes no more calls on it, there is another for new
//! calls, and it ends with those that it has.
//!
//! A request goes out as it came in: neither its body nor the answer's is decoded.

use std::{
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Method, StatusCode, Uri, Version, header, uri, uri::PathAndQuery};
use http_body_util::Full;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use outpost_proto::cluster::v1::{CarriedAnswer, CarriedCall, link_client::LinkClient};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tonic::{Code, body::Body};

use super::{
    carrier::{Carrier, Ended},
    frame,
    placed::{self, Arrival},
    slot,
};
#[cfg(feature = "simulation")]
use crate::simulation;
use crate::{
    gather::Gathered,
    id::NodeId,
    together::{Inward, Streams, Together, Turn},
    trust::{Passes, Trust, Until},
};

/// An address that answers does so within this.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A peer that is silent for so long is asked whether it is there ...
const PROBE_AFTER: Duration = Duration::from_millis(500);
/// ... and has so long to answer.
/// Short enough to find out a node that is gone, and long enough for
/// one that is only busy: to close the connection ends all calls on it.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How much of one call may be under way unread.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
/// The same of all calls together has no bound but theirs, or some that nobody reads would stop the others. (It is the
/// most that HTTP/2 has.)
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Where answers are that were too large to be carried: see `link.proto`.
pub(crate) const PARCELS: &str = "/outpost.cluster.v1.Parcels/";
/// The method whose streams carry calls.
pub(crate) const CARRY: &str = "/outpost.cluster.v1.Link/Carry";

type Sender = http2::SendRequest<Body>;

/// The way to one node. Small unary calls share a stream; all others have one each, on another connection, so that nothing
/// waits behind a large message.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    streams: Kept<Sender>,
    /// None where the node does not know of it.
    carrier: Kept<Option<Carrier>>,
    in_flight: AtomicUsize,
    /// How long the node takes to answer: a moving average, in microseconds.
    latency: AtomicU32,
    /// When it last answered, in milliseconds since the link was made.
    answered: AtomicU64,
    made: Instant,
    trust: Trust,
}

/// A connection, made when it is first needed and made again when it breaks.
#[derive(Debug)]
struct Kept<T> {
    state: watch::Sender<State<T>>,
    made: AtomicU64,
    failed: AtomicU64,
    /// The first call was made.
    wanted: Notify,
}

#[derive(Debug, Clone)]
enum State<T> {
    Connecting,
    Up(T),
    Down(Arc<str>),
}

/// The answer to a call that was carried.
#[derive(Debug)]
pub(super) enum Carried {
    Answer(CarriedAnswer),
    /// It was too large for that.
    Fetched(slot::Response),
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// Nothing of it left this process; here it is.
    NotSent(Box<slot::Request>, String),
    /// The peer said that it did not look at it.
    NotRun(String),
    /// It may have run.
    Broken(String),
}

impl Link {
    fn new(node: NodeId, address: SocketAddr, trust: Trust) -> Arc<Self> {
        Arc::new(Self {
            node,
            address,
            streams: Kept::new(),
            carrier: Kept::new(),
            in_flight: AtomicUsize::new(0),
            latency: AtomicU32::new(0),
            answered: AtomicU64::new(0),
            made: Instant::now(),
            trust,
        })
    }

    /// Whether a call would be refused at once.
    pub(crate) fn is_down(&self) -> bool {
        self.streams.is_down() || self.carrier.is_down()
    }

    /// How many calls are under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The connection for a stream that carries many calls, and the one for streams of a call each.
    pub(crate) fn connections(&self) -> [(&'static str, Connections); 2] {
        [("carrier", self.carrier.look()), ("streams", self.streams.look())]
    }

    /// What one more call can be expected to wait: the product of how long the node takes and how much it has to do
    /// (after Finagle's "peak EWMA" balancer). What it once took is forgotten by half each second, or a node that was
    /// slow would never be asked again.
    pub(crate) fn cost(&self) -> u64 {
        self.latency() * (self.in_flight.load(Ordering::Relaxed) as u64 + 1)
    }

    /// How long the node takes to answer, in microseconds, and one at the least.
    pub(super) fn latency(&self) -> u64 {
        let seconds = self.age().saturating_sub(self.answered.load(Ordering::Relaxed)) / 1000;
        (u64::from(self.latency.load(Ordering::Relaxed)) >> seconds.min(63)).max(1)
    }

    /// Sends a request, and gives the answer; of one that is large, or a stream, the head. `way` is what the peer is told of
    /// how it came, `unary` where one message is all that either side sends.
    ///
    /// # Cancel safety
    /// Dropping the future ends the call at the peer.
    pub(crate) async fn send(
        &self,
        request: slot::Request,
        way: Arrival,
        unary: bool,
    ) -> Result<slot::Response, Unanswered> {
        let _counted = Counted::new(&self.in_flight);
        if unary { self.carry(request, way).await } else { self.stream(request, way).await }
    }

    /// Sends a request with others, if it is small.
    async fn carry(&self, request: slot::Request, way: Arrival) -> Result<slot::Response, Unanswered> {
        let carrier = match self.carrier.get(Carrier::is_good).await {
            Ok(Some(carrier)) if frame::fits(request.headers()) => carrier,
            Ok(_) => return self.stream(request, way).await,
            Err(error) => return Err(Unanswered::NotSent(Box::new(request), error)),
        };
        let (parts, body) = request.into_parts();
        let body = match frame::small(body).await {
            Ok(frame::Small::Whole(body)) => body,
            Ok(frame::Small::Larger(body)) => return self.stream(slot::Request::from_parts(parts, body), way).await,
            Err(status) => return Err(Unanswered::NotRun(status.message().to_owned())),
        };
        let call = parts.uri.path_and_query().map(|path| frame::call(path, &parts.headers, body.clone(), way));
        let carried = match call {
            Some(call) => self.carried(&carrier, call).await,
            None => None,
        };
        match carried {
            Some(Ok(Carried::Answer(answer))) => {
                frame::response(answer).map_err(|malformed| Unanswered::Broken(malformed.to_string()))
            }
            Some(Ok(Carried::Fetched(response))) => Ok(response),
            Some(Err(unanswered)) => Err(unanswered),
            // It has enough to carry.
            None => self.stream(slot::Request::from_parts(parts, Body::new(Full::new(body))), way).await,
        }
    }

    /// Sends a call with others, if that can be done at once.
    ///
    /// # Cancel safety
    /// Dropping the future ends the call at the peer.
    pub(super) async fn call(&self, call: CarriedCall) -> Option<Result<Carried, Unanswered>> {
        let carrier = self.carrier.now(Carrier::is_good)??;
        let _counted = Counted::new(&self.in_flight);
        self.carried(&carrier, call).await
    }

    /// `None` where the stream takes no call more.
    async fn carried(&self, carrier: &Carrier, call: CarriedCall) -> Option<Result<Carried, Unanswered>> {
        let began = Instant::now();
        Some(match carrier.call(call).await? {
            Ended::Answered(answer) => {
                self.observe(began.elapsed());
                Ok(Carried::Answer(answer))
            }
            Ended::Parcel { token, unfetched } => {
                self.observe(began.elapsed());
                let answer = self.fetch(token).await;
                if answer.is_ok() {
                    unfetched.fetched();
                }
                answer.map(Carried::Fetched)
            }
            Ended::NotRun(why) => Err(Unanswered::NotRun(why)),
            #[cfg(feature = "simulation")]
            Ended::Broken(why) if simulation::is_broken(simulation::Rule::NoSecondAttempt) => {
                Err(Unanswered::NotRun(why))
            }
            Ended::Broken(why) => Err(Unanswered::Broken(why)),
        })
    }

    /// Gets an answer that was too large to be carried.
    async fn fetch(&self, token: u64) -> Result<slot::Response, Unanswered> {
        let mut request = slot::Request::new(Body::empty());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("{PARCELS}{token}").parse().expect("a number makes a path");
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        match self.stream(request, Arrival::default()).await {
            Ok(response) if response.status() == StatusCode::GONE => {
                Err(Unanswered::Broken("the answer was not fetched in time".to_owned()))
            }
            Ok(response) => Ok(response),
            // The call has run.
            Err(Unanswered::NotSent(_, why) | Unanswered::NotRun(why) | Unanswered::Broken(why)) => {
                Err(Unanswered::Broken(why))
            }
        }
    }

    /// Sends a request on a stream of its own.
    async fn stream(&self, mut request: slot::Request, way: Arrival) -> Result<slot::Response, Unanswered> {
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = uri::Builder::new().scheme("http").authority(self.node.as_str()).path_and_query(path).build();
        *request.uri_mut() = uri.expect("a node's name is a host's");
        *request.version_mut() = Version::HTTP_2;
        placed::tell_way(request.headers_mut(), way);
        let mut sender = match self.streams.get(is_open).await {
            Ok(sender) => sender,
            Err(error) => return Err(Unanswered::NotSent(Box::new(request), error)),
        };
        let began = Instant::now();
        match sender.try_send_request(request).await {
            Ok(response) => {
                self.observe(began.elapsed());
                Ok(response.map(Body::new))
            }
            Err(mut error) => {
                let unsent = error.take_message();
                let error = error.into_error();
                let text = crate::status::with_causes(&error);
                match unsent {
                    Some(request) => Err(Unanswered::NotSent(Box::new(request), text)),
                    #[cfg(feature = "simulation")]
                    None if simulation::is_broken(simulation::Rule::NoSecondAttempt) => Err(Unanswered::NotRun(text)),
                    None if was_not_run(&error) => Err(Unanswered::NotRun(text)),
                    None => Err(Unanswered::Broken(text)),
                }
            }
        }
    }

    /// A slow answer counts at once, a fast one bit by bit: a node that has become slow should not be found out by
    /// many callers one after the other.
    fn observe(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let before = self.latency.load(Ordering::Relaxed);
        let now = if took > before { took } else { before - (before - took) / 8 };
        self.latency.store(now, Ordering::Relaxed);
        self.answered.store(self.age(), Ordering::Relaxed);
    }

    fn age(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn keep_connected(self: Arc<Self>) {
        // A connection ends by itself when nobody has its sender any more.
        let streams = self.streams.keep(&self, connect_streams, is_open, drop);
        let carried = self.carrier.keep(&self, connect_carrier, Carrier::is_good, |carrier| {
            carrier.inspect(Carrier::retire);
        });
        tokio::join!(streams, carried);
    }
}

impl<T: Clone> Kept<T> {
    fn new() -> Self {
        let (made, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { state: watch::Sender::new(State::Connecting), made, failed, wanted: Notify::new() }
    }

    fn is_down(&self) -> bool {
        matches!(&*self.state.borrow(), State::Down(_))
    }

    /// What is up now.
    fn now(&self, is_good: impl Fn(&T) -> bool) -> Option<T> {
        match &*self.state.borrow() {
            State::Up(up) if is_good(up) => Some(up.clone()),
            _ => None,
        }
    }

    /// Waits while the connection is being made; fails at once where that did not work the last time.
    async fn get(&self, is_good: impl Fn(&T) -> bool) -> Result<T, String> {
        // Nearly always.
        if let Some(up) = self.now(&is_good) {
            return Ok(up);
        }
        let mut watched = self.state.subscribe();
        loop {
            match &*watched.borrow_and_update() {
                State::Up(up) if is_good(up) => return Ok(up.clone()),
                State::Down(why) => return Err(why.to_string()),
                State::Up(_) | State::Connecting => self.wanted.notify_one(),
            }
            if watched.changed().await.is_err() {
                return Err("the node stops".to_owned());
            }
        }
    }

    /// Keeps it, from when it is first wanted. `connect` makes one; of one that is not good, or is at its end, there is soon
    /// another, and then it is told to `retire`.
    async fn keep(
        &self,
        link: &Link,
        connect: for<'a> fn(&'a Link) -> Connecting<'a, T>,
        is_good: fn(&T) -> bool,
        retire: fn(T),
    ) {
        // However this ends, nobody waits for it any more.
        let _ending = Ending(self);
        self.wanted.notified().await;
        let mut pause = FIRST_PAUSE;
        // Connections with calls under way, and the one that is used until there is another.
        let mut leaving = FuturesUnordered::new();
        let mut last: Option<T> = None;
        loop {
            match beside(&mut leaving, connect(link)).await {
                Ok(Made { up, mut connection, mut until }) => {
                    tracing::debug!(peer_node_id = %link.node, address = %link.address, "connected");
                    self.made.fetch_add(1, Ordering::Relaxed);
                    let since = Instant::now();
                    self.state.send_replace(State::Up(up.clone()));
                    last.take().into_iter().for_each(retire);
                    let ended = loop {
                        tokio::select! {
                            // The connection last, which may always have something to do.
                            biased;
                            passes = until.passes() => break match passes {
                                Passes::Renew => Used::Renew,
                                Passes::NoMore | Passes::Over => Used::NoMore,
                            },
                            Some(()) = leaving.next() => {}
                            // The peer wants no more calls, and has some of before.
                            () = self.wanted.notified() => if !is_good(&up) {
                                break Used::NoMore;
                            },
                            // Of a panic no more is known than that the connection is gone.
                            error = AssertUnwindSafe(&mut connection).catch_unwind() => {
                                break Used::Ended(error.unwrap_or(None));
                            }
                        }
                    };
                    let lasted = since.elapsed() >= LONGEST_PAUSE;
                    if !matches!(ended, Used::Ended(_)) {
                        tracing::debug!(peer_node_id = %link.node, "the connection is to be replaced");
                        leaving.push(run_out(connection));
                    }
                    let error = match ended {
                        Used::Renew if lasted => {
                            last = Some(up);
                            continue;
                        }
                        Used::Renew | Used::NoMore => {
                            retire(up);
                            None
                        }
                        Used::Ended(error) => error,
                    };
                    tracing::debug!(peer_node_id = %link.node, error = error.as_deref(), "the connection ended");
                    if lasted {
                        pause = FIRST_PAUSE;
                        self.state.send_replace(State::Connecting);
                        continue;
                    }
                    // The peer may be about to end: calls should go elsewhere, not wait for it.
                    let why = error.unwrap_or_else(|| "the connection did not last".to_owned());
                    self.state.send_replace(State::Down(why.into()));
                }
                Err(error) => {
                    tracing::debug!(peer_node_id = %link.node, address = %link.address, error, "can't connect");
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    // What was replaced in good time will do for a while.
                    if !last.as_ref().is_some_and(is_good) {
                        last.take().into_iter().for_each(retire);
                        self.state.send_replace(State::Down(error.into()));
                    }
                }
            }
            // Not all nodes that lost a peer should come back to it at once.
            beside(&mut leaving, sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn look(&self) -> Connections {
        Connections {
            up: matches!(&*self.state.borrow(), State::Up(_)),
            made: self.made.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    fn close(&self, why: &str) {
        self.state.send_replace(State::Down(why.into()));
    }
}

/// What has become of one of the connections of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connections {
    pub(crate) up: bool,
    /// How often one was made, and could not be.
    pub(crate) made: u64,
    pub(crate) failed: u64,
}

struct Ending<'a, T: Clone>(&'a Kept<T>);

impl<T: Clone> Drop for Ending<'_, T> {
    fn drop(&mut self) {
        self.0.close("the node is not there any more");
    }
}

/// How a connection ceases to be the one that is used.
enum Used {
    /// There should be another.
    Renew,
    /// It must not be used.
    NoMore,
    /// Why.
    Ended(Option<String>),
}

/// Waits for something while connections go on.
async fn beside<T>(leaving: &mut FuturesUnordered<BoxFuture<'static, ()>>, waited: impl Future<Output = T>) -> T {
    let mut waited = pin!(waited);
    loop {
        tokio::select! {
            waited = &mut waited => return waited,
            Some(()) = leaving.next() => {}
        }
    }
}

/// Lets a connection go on until it ends with its calls, or has to (see `trust::bounded`).
fn run_out(connection: Connection) -> BoxFuture<'static, ()> {
    AssertUnwindSafe(connection).catch_unwind().map(drop).boxed()
}

fn is_open(sender: &Sender) -> bool {
    !sender.is_closed()
}

/// What has to run for as long as a connection is used; why it ended.
type Connection = BoxFuture<'static, Option<String>>;

/// What is up, what has to run meanwhile, and for how long it may.
struct Made<T> {
    up: T,
    connection: Connection,
    until: Until,
}

type Connecting<'a, T> = BoxFuture<'a, Result<Made<T>, String>>;

/// Makes a connection for streams of one call each.
fn connect_streams(link: &Link) -> Connecting<'_, Sender> {
    connect(link, Streams::default(), None).boxed()
}

/// Makes a connection for a stream that carries many calls; none such where the peer does not know of it.
fn connect_carrier(link: &Link) -> Connecting<'_, Option<Carrier>> {
    open_carrier(link).boxed()
}

async fn open_carrier(link: &Link) -> Result<Made<Option<Carrier>>, String> {
    // Those whose calls were answered have others to make.
    let turn = Turn::default();
    let opened = connect(link, Streams::staying(), Some(turn.clone())).await?;
    let Made { up: sender, mut connection, until } = opened;
    let inward = Inward::with(turn);
    let carrier = Carrier::default();
    let origin = Uri::builder().scheme("http").authority(link.address.to_string()).path_and_query("/").build();
    let mut client = LinkClient::with_origin(Over(sender), origin.map_err(|error| error.to_string())?);
    let opening = timeout(CONNECT_LIMIT, client.carry(carrier.outbox()));
    let answers = tokio::select! {
        opened = opening => match opened {
            Ok(Ok(answers)) => answers.into_inner(),
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                // Kept, so that its end tells when there may be another version of the node.
                let connection = inward.around(holding(client, connection)).boxed();
                return Ok(Made { up: None, connection, until });
            }
            Ok(Err(status)) => return Err(status.message().to_owned()),
            Err(_) => return Err(format!("no answer within {}", humantime::format_duration(CONNECT_LIMIT))),
        },
        error = poll_fn(|cx| inward.poll(cx, |cx| connection.poll_unpin(cx))) => {
            return Err(error.unwrap_or_else(|| "the connection ended".to_owned()));
        }
    };
    let mut connection = holding(client, connection).boxed();
    // However it ends, with the node too, no call waits for it.
    let closing = Closing(carrier.clone());
    let running = async move {
        let Closing(carrier) = &closing;
        let mut taking = pin!(carrier.take(answers));
        let why = tokio::select! {
            biased;
            why = &mut taking => why,
            error = &mut connection => match error {
                // What has arrived before the end counts.
                Some(error) => taking.now_or_never().unwrap_or(error),
                // The other node wants no more streams on it, and ends this one when its calls are over.
                None => taking.await,
            }
        };
        carrier.close(None, &why);
        Some(why)
    };
    Ok(Made { up: Some(carrier), connection: inward.around(running).boxed(), until })
}

/// A connection that nobody can send a request on ends.
async fn holding<T>(client: T, connection: Connection) -> Option<String> {
    let ended = connection.await;
    drop(client);
    ended
}

struct Closing(Carrier);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close(None, "the connection was closed");
    }
}

/// A connection as tonic's clients want it.
#[derive(Clone)]
struct Over(Sender);

impl tower::Service<slot::Request> for Over {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: slot::Request) -> Self::Future {
        self.0.send_request(request).boxed()
    }
}

async fn connect(link: &Link, streams: Streams, turn: Option<Turn>) -> Result<Made<Sender>, String> {
    let connecting = async {
        let connected = link.trust.connect(link.address, Some(&link.node)).await;
        let (stream, until) = connected.map_err(|error| error.to_string())?;
        let (up, connection) = http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PROBE_AFTER)
            .keep_alive_timeout(PROBE_LIMIT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(Gathered::new(stream, turn)))
            .await
            .map_err(|error| error.to_string())?;
        let connection =
            Together::new(connection, streams).map(|ended| ended.err().map(|error| error.to_string())).boxed();
        Ok(Made { up, connection, until })
    };
    match timeout(CONNECT_LIMIT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(format!("no connection within {}", humantime::format_duration(CONNECT_LIMIT))),
    }
}

/// HTTP/2 says of a stream that it was refused, or that it came after the last one that a connection looked at, only
/// where no part of it was processed.
fn was_not_run(error: &hyper::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason() == Some(h2::Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote());
        }
        cause = error.source();
    }
    false
}

/// One more, until it is dropped.
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The links of a node. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Links {
    trust: Trust,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    links: HashMap<NodeId, (Arc<Link>, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Links {
    pub(crate) fn new(trust: Trust) -> Self {
        Self { trust, open: Mutex::default() }
    }

    /// The link to a node; a new one where its address has changed.
    pub(crate) fn to(&self, node: &NodeId, address: SocketAddr) -> Arc<Link> {
        let Open { links, tasks } = &mut *self.lock();
        if let Some((link, _)) = links.get(node)
            && link.address == address
        {
            return Arc::clone(link);
        }
        let link = Link::new(node.clone(), address, self.trust.clone());
        let task = tasks.spawn(Arc::clone(&link).keep_connected());
        if let Some(before) = links.insert(node.clone(), (Arc::clone(&link), task)) {
            close(&before);
        }
        // What has ended is let go.
        while tasks.try_join_next().is_some() {}
        link
    }

    /// Those that there are, in the order of their nodes.
    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        let mut links: Vec<_> = self.lock().links.values().map(|(link, _)| Arc::clone(link)).collect();
        links.sort_by(|a, b| a.node.cmp(&b.node));
        links
    }

    /// Closes the links to nodes that are not there any more.
    pub(crate) fn keep(&self, mut there: impl FnMut(&NodeId) -> bool) {
        self.lock().links.retain(|node, link| {
            let keep = there(node);
            if !keep {
                close(link);
            }
            keep
        });
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Links {
    /// Whoever waits for a connection waits no more.
    fn drop(&mut self) {
        self.keep(|_| false);
    }
}

fn close((link, task): &(Arc<Link>, AbortHandle)) {
    task.abort();
    let why = "the node is not there any more";
    link.streams.close(why);
    link.carrier.close(why);
}

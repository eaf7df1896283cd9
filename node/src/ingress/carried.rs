//! The serving end of a stream that carries many calls: see `call::carrier`.
//!
//! Each call is served as if it had come on a stream of its own. Too large an answer waits as a parcel, for the other node
//! to fetch it on one.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::StatusCode;
use outpost_proto::cluster::v1::{
    CarriedCall, CarriedParcel, CarryRequest, CarryResponse, carry_request, carry_response, link_server::Link,
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_stream::Stream;
use tokio_util::task::JoinMap;
use tonic::{Request, Response, Status, Streaming, body::Body};

use super::front::{Ending, Front};
use crate::{
    call::{frame, link::PARCELS},
    status::CallError,
    together::Inward,
};

/// How many calls of one stream run at a time. What is more is not read.
const MOST_RUNNING: usize = 4096;
/// How many answers may wait for the connection.
const QUEUE: usize = 1024;
/// Calls that compute for so long before they first wait, two in a row, hold up those behind them: ...
const SLOW: Duration = Duration::from_micros(100);
/// ... as one does that takes so long: no thread waits for a core for that long, nor may anybody for an answer; ...
const FAR_TOO_SLOW: Duration = Duration::from_millis(1);
/// ... as many calls of their method do not, for each time that.
const SPARED: u64 = 1024;
/// After calls have taken so long, or after so many frames, what is answered goes out: the other node has something to do
/// while this one goes on.
const SLICE: Duration = Duration::from_micros(20);
const AT_ONCE: usize = 64;
/// How many methods are kept in mind for that.
const MOST_SLOW: usize = 1024;
const MOST_SUSPECTS: usize = 4;
/// How long an answer waits to be fetched.
const KEEP: Duration = Duration::from_secs(10);

/// Answers that wait to be fetched. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parcels(Arc<Mutex<HashMap<u64, Kept>>>);

/// An answer, and who keeps it.
type Kept = (http::Response<Body>, oneshot::Sender<()>);

impl Parcels {
    /// The answer to a request for this path, if it is one for a parcel.
    pub(super) fn fetch(&self, path: &str) -> Option<http::Response<Body>> {
        let token = path.strip_prefix(PARCELS)?;
        let parcel = token.parse().ok().and_then(|token| self.lock().remove(&token));
        Some(match parcel {
            Some((response, fetched)) => {
                // Whoever keeps it may have given it up in this moment.
                let _ = fetched.send(());
                response
            }
            None => {
                let mut gone = http::Response::new(Body::empty());
                *gone.status_mut() = StatusCode::GONE;
                gone
            }
        })
    }

    /// Keeps an answer until it is fetched, or for a while. Tells its token.
    async fn keep(&self, response: http::Response<Body>, tell: impl FnOnce(u64)) {
        let (sender, fetched) = oneshot::channel();
        let parcel = Parcel { parcels: self, token: rand::random() };
        self.lock().insert(parcel.token, (response, sender));
        tell(parcel.token);
        let _ = timeout(KEEP, fetched).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A parcel, which is gone when this is.
struct Parcel<'a> {
    parcels: &'a Parcels,
    token: u64,
}

impl Drop for Parcel<'_> {
    fn drop(&mut self) {
        let parcel = self.parcels.lock().remove(&self.token);
        drop(parcel);
    }
}

/// Serves such streams.
#[derive(Debug)]
pub(crate) struct Carried {
    front: Arc<Front>,
    slow: Slow,
}

impl Carried {
    pub(crate) fn new(front: Front) -> Self {
        Self { front: Arc::new(front), slow: Slow::default() }
    }
}

#[tonic::async_trait]
impl Link for Carried {
    type CarryStream = Answers;

    async fn carry(&self, request: Request<Streaming<CarryRequest>>) -> Result<Response<Answers>, Status> {
        let outgoing = Outgoing::default();
        let ending = request.extensions().get::<Ending>().cloned().unwrap_or_default();
        let quick = Quick { slow: self.slow.clone(), ..Quick::default() };
        let serving = serve(request.into_inner(), Arc::clone(&self.front), quick, ending, outgoing.clone()).boxed();
        Ok(Response::new(Answers::new(outgoing, serving)))
    }
}

/// Answers that wait for the connection. Cheap to clone.
///
/// Not a channel of tokio: each of its answers would take of the budget that is the module's.
#[derive(Debug, Clone, Default)]
struct Outgoing(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    answers: VecDeque<carry_response::Frame>,
    /// Of the stream, when it waits for an answer.
    stream: Option<Waker>,
    /// Of who reads calls, when there are too many answers for more.
    reader: Option<Waker>,
}

impl Outgoing {
    /// Puts an answer in line; there is one for each call at the most, and no call is read where there are too many.
    fn put(&self, answer: carry_response::Frame) {
        let stream = {
            let mut queue = self.lock();
            queue.answers.push_back(answer);
            queue.stream.take()
        };
        stream.into_iter().for_each(Waker::wake);
    }

    /// Waits until the connection has taken enough of them.
    async fn room(&self) {
        poll_fn(|cx| {
            let mut queue = self.lock();
            if queue.answers.len() < QUEUE {
                return Poll::Ready(());
            }
            queue.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The next one, if there is one.
    fn take(&self) -> Option<carry_response::Frame> {
        let (answer, reader) = {
            let mut queue = self.lock();
            let answer = queue.answers.pop_front()?;
            (answer, if queue.answers.len() < QUEUE { queue.reader.take() } else { None })
        };
        reader.into_iter().for_each(Waker::wake);
        Some(answer)
    }

    /// Has the stream woken when there is one, which may be now.
    fn listen(&self, cx: &Context<'_>) {
        let mut queue = self.lock();
        if queue.answers.is_empty() {
            queue.stream = Some(cx.waker().clone());
        } else {
            drop(queue);
            cx.waker().wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream of answers. Dropping it ends the calls.
pub(crate) struct Answers {
    answers: Outgoing,
    /// Reads calls, and runs those that do not wait: here, so that their answers are where they are sent from.
    serving: Option<BoxFuture<'static, ()>>,
    /// It was polled, and what it has answered is not on its way yet.
    polled: bool,
    /// There was an answer since nothing was ready the last time.
    answered: bool,
    /// Of `serving`.
    inward: Inward,
}

impl Answers {
    fn new(answers: Outgoing, serving: BoxFuture<'static, ()>) -> Self {
        Self { answers, serving: Some(serving), polled: false, answered: false, inward: Inward::new() }
    }
}

impl Stream for Answers {
    type Item = Result<CarryResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.inward.listen(cx);
        loop {
            // What is there goes out before more is read: where nothing is ready, the connection sends what it has.
            if let Some(answer) = this.answers.take() {
                this.answered = true;
                return Poll::Ready(Some(Ok(CarryResponse { frame: Some(answer) })));
            }
            // tonic's encoder gives out what it has, and asks again; so that the connection has its turn, nothing is ready then
            // either.
            if std::mem::take(&mut this.answered) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // With it, those that run.
            let Some(serving) = &mut this.serving else { return Poll::Ready(None) };
            if std::mem::replace(&mut this.polled, true) {
                this.polled = false;
                // The task may have heard the bell while it waited for room on the connection, and not have come here.
                if this.inward.is_rung() {
                    cx.waker().wake_by_ref();
                }
                this.answers.listen(cx);
                return Poll::Pending;
            }
            if this.inward.poll_once(cx, |cx| serving.as_mut().poll(cx)).is_ready() {
                this.serving = None;
            }
        }
    }
}

/// Serves a stream until the other node ends it; or until this one takes no more calls, or none on this connection, and those
/// that it has are over.
async fn serve(mut calls: Streaming<CarryRequest>, front: Arc<Front>, mut quick: Quick, ending: Ending, to: Outgoing) {
    let mut running: JoinMap<u64, ()> = JoinMap::new();
    let mut last = 0;
    let (mut open, mut told) = (true, false);
    loop {
        to.room().await;
        while let Some((id, ended)) = running.join_next().now_or_never().flatten() {
            if ended.is_err_and(|error| error.is_panic()) {
                return panicked(id);
            }
        }
        if !told && ending.is_given() {
            (open, told) = (false, true);
            // What comes after that is made elsewhere at once, however long the others take.
            to.put(carry_response::Frame::Last(last));
        }
        open = open && !front.refuses();
        if !open && running.is_empty() {
            return to.put(carry_response::Frame::Last(last));
        }
        tokio::select! {
            // While calls come, nothing else is waited for: the rest was looked at above.
            biased;
            frame = calls.message(), if running.len() < MOST_RUNNING => match frame {
                // The other node knows that it was not taken.
                Ok(Some(CarryRequest { frame: Some(carry_request::Frame::Call(_)) })) if told => {}
                Ok(Some(CarryRequest { frame: Some(carry_request::Frame::Call(call)) })) => {
                    let id = call.id;
                    last = last.max(id);
                    let slow = quick.is_slow(&call.path);
                    let path = call.path.clone();
                    let mut call = Box::pin(run(call, Arc::clone(&front), to.clone()));
                    if slow {
                        running.spawn(id, call);
                    } else {
                        match poll_fn(|cx| Poll::Ready(quick.begin(&path, call.as_mut(), cx))).await {
                            Ok(Poll::Ready(())) => {}
                            // A task is for calls that wait for something.
                            Ok(Poll::Pending) => {
                                running.spawn(id, call);
                            }
                            Err(_) => return panicked(id),
                        }
                    }
                }
                Ok(Some(CarryRequest { frame: Some(carry_request::Frame::Cancelled(id)) })) => {
                    running.abort(&id);
                }
                // Of a later version.
                Ok(Some(CarryRequest { frame: None })) => {}
                // Nobody is there for the answers.
                Ok(None) | Err(_) => return,
            },
            // Who waits for the end of a call pays for it.
            Some(_) = running.join_next(), if !open || running.len() >= MOST_RUNNING => {}
            () = front.refusing(), if open => {}
            () = ending.given(), if !told => {}
        }
        if quick.is_full() {
            once_more().await;
        }
    }
}

/// Lets what is answered go out. How often, before other tasks have their turn, who polls the connection knows.
async fn once_more() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A module's panic was caught before. With the end of the stream its caller hears that nobody knows.
fn panicked(call: u64) {
    tracing::error!(call, "a call that another node carried here panicked");
}

/// How many calls of these methods are still to be begun elsewhere, whichever connection brings them. Cheap to clone.
#[derive(Debug, Clone, Default)]
struct Slow(Arc<Methods>);

#[derive(Debug, Default)]
struct Methods {
    any: AtomicBool,
    spared: Mutex<HashMap<Box<[u8]>, u64>>,
}

impl Slow {
    /// Whether one more of them is.
    fn spares<'a>(&self, method: impl FnOnce() -> &'a [u8]) -> bool {
        // Nearly always there are none.
        if !self.0.any.load(Ordering::Relaxed) {
            return false;
        }
        let (method, mut spared) = (method(), self.lock());
        let Some(left) = spared.get_mut(method) else { return false };
        *left -= 1;
        if *left == 0 {
            spared.remove(method);
            self.0.any.store(!spared.is_empty(), Ordering::Relaxed);
        }
        true
    }

    fn spare(&self, method: &[u8], times: u64) {
        let mut spared = self.lock();
        if spared.len() < MOST_SLOW {
            spared.insert(method.into(), times);
            self.0.any.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, u64>> {
        self.0.spared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins calls where their stream is read, and knows which should not be: as long as one computes, nobody reads on.
#[derive(Debug, Default)]
struct Quick {
    slow: Slow,
    /// Methods whose last call was slow, which may have been the thread's having to wait for a core.
    suspects: Vec<Box<[u8]>>,
    /// What calls have taken since what was answered could go out, and how many frames were read.
    spent: Duration,
    frames: usize,
}

impl Quick {
    fn is_slow(&mut self, path: &[u8]) -> bool {
        self.slow.spares(|| method(path))
    }

    /// Polls a call for the first time; a panic of its own is an error.
    fn begin(
        &mut self,
        path: &[u8],
        call: Pin<&mut (impl Future<Output = ()> + Send)>,
        cx: &mut Context<'_>,
    ) -> std::thread::Result<Poll<()>> {
        let began = Instant::now();
        let polled = catch_unwind(AssertUnwindSafe(|| call.poll(cx)));
        let took = began.elapsed();
        self.spent += took;
        if took >= SLOW || !self.suspects.is_empty() {
            self.judge(method(path), took);
        }
        polled
    }

    #[cold]
    fn judge(&mut self, method: &[u8], took: Duration) {
        let suspect = self.suspects.iter().position(|suspect| **suspect == *method);
        let suspected = suspect.map(|suspect| self.suspects.remove(suspect)).is_some();
        if suspected && took >= SLOW || took >= FAR_TOO_SLOW {
            // In the long run, such a method costs those behind it as little as any other.
            let times = u64::try_from(took.as_nanos() / SLOW.as_nanos()).unwrap_or(u64::MAX);
            self.slow.spare(method, times.saturating_mul(SPARED));
        } else if took >= SLOW {
            self.suspects.truncate(MOST_SUSPECTS - 1);
            self.suspects.insert(0, method.into());
        }
    }

    /// Whether it is time to let answers go out, with one frame more.
    fn is_full(&mut self) -> bool {
        self.frames += 1;
        let full = self.spent >= SLICE || self.frames >= AT_ONCE;
        if full {
            (self.spent, self.frames) = (Duration::ZERO, 0);
        }
        full
    }
}

/// The path of a method, without what a client may have put behind it.
fn method(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'?').next().unwrap_or_default()
}

async fn run(call: CarriedCall, front: Arc<Front>, to: Outgoing) {
    let id = call.id;
    match front.enter(call) {
        // The call counts until its answer is on its way.
        Ok((inside, _in_flight)) => match inside.run().await {
            Ok(answer) => to.put(carry_response::Frame::Answer(answer)),
            Err(large) => keep(id, large, &front, &to).await,
        },
        Err(call) => run_long(call, front, to).await,
    }
}

/// Runs a call that can't take the short way. Boxed, so that others do not carry its size.
fn run_long(call: CarriedCall, front: Arc<Front>, to: Outgoing) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let id = call.id;
        let response = match frame::request(call) {
            Ok(request) => front.answer(request).await,
            // Of a later version, maybe.
            Err(malformed) => Status::from(CallError::Malformed(malformed.to_string())).into_http(),
        };
        // Not only until the answer is read.
        let _in_flight = front.calls().token();
        match frame::whole(response).await {
            Ok(reply) => to.put(carry_response::Frame::Answer(frame::answer(id, reply))),
            Err(large) => keep(id, large, &front, &to).await,
        }
    })
}

/// Keeps an answer that is too large to be carried, and tells so.
fn keep<'a>(id: u64, answer: Box<http::Response<Body>>, front: &'a Front, to: &'a Outgoing) -> BoxFuture<'a, ()> {
    Box::pin(async move {
        let tell = |token| to.put(carry_response::Frame::Parcel(CarriedParcel { id, token }));
        front.parcels().keep(*answer, tell).await;
    })
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        net::{Ipv4Addr, SocketAddr},
    };

    use bytes::Bytes;
    use http::HeaderValue;
    use http_body_util::{BodyExt as _, Full};
    use outpost_proto::cluster::v1::link_server::LinkServer;
    use tokio::sync::watch;

    use super::*;
    use crate::{
        BoxError,
        call::{
            Tonic,
            link::{Link, Links, Unanswered},
            placed::Arrival,
            slot::{Slot, Wire},
            table::Table,
        },
        config::Settings,
        id::NodeId,
        ingress::Server,
        net::TcpListener,
        together::tests,
        trust::{
            Acceptor, Trust,
            realm::{self, Realm},
        },
    };

    /// Answers as the method's name says.
    struct Service {
        /// How many calls of `Hold` are under way.
        held: watch::Sender<usize>,
    }

    struct Held(watch::Sender<usize>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.send_modify(|held| *held -= 1);
        }
    }

    impl Wire for Service {
        fn call(&self, request: http::Request<Body>) -> BoxFuture<'static, Result<http::Response<Body>, BoxError>> {
            let held = self.held.clone();
            Box::pin(async move {
                let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let mut response = http::Response::new(Body::empty());
                let body = request.into_body().collect().await?.to_bytes();
                let content = match method.as_str() {
                    "Large" => Bytes::from(vec![7; 3 * frame::MOST]),
                    "Fields" => {
                        response.headers_mut().insert("x-large", HeaderValue::from_str(&"y".repeat(9 << 10))?);
                        body
                    }
                    "Hold" => {
                        held.send_modify(|held| *held += 1);
                        let _held = Held(held);
                        pending().await
                    }
                    _ => body,
                };
                let trailers = http::HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    HeaderValue::from_static("0"),
                )]);
                let content = Full::new(content).with_trailers(std::future::ready(Some(Ok(trailers))));
                *response.body_mut() = Body::new(content);
                Ok(response)
            })
        }
    }

    struct Peer {
        server: Server,
        front: Front,
        held: watch::Receiver<usize>,
        /// Keeps the link.
        links: Links,
        link: Arc<Link>,
    }

    /// Another node; one that `carries`, or an earlier version.
    async fn peer(carries: bool) -> Peer {
        peer_with(carries, &Trust::default(), Trust::default()).await
    }

    /// The same, where both show something.
    async fn peer_with(carries: bool, theirs: &Trust, ours: Trust) -> Peer {
        let (sender, held) = watch::channel(0);
        let service = Arc::new(Slot::built_in("test.Service", Box::new(Service { held: sender })));
        let mut front = Front::for_nodes(Arc::new(Table::new([Arc::clone(&service)])));
        if carries {
            let link = Box::new(Tonic(LinkServer::new(Carried::new(front.clone()))));
            let link = Arc::new(Slot::built_in("outpost.cluster.v1.Link", link));
            front = front.with(Arc::new(Table::new([service, link])));
        }
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let acceptor = Acceptor::for_nodes(theirs);
        let server = Server::start(listener, acceptor, front.clone(), &Settings::default().for_nodes());
        let links = Links::new(ours);
        let link = links.to(&NodeId::parse("peer").unwrap(), server.address);
        Peer { server, front, held, links, link }
    }

    async fn call(link: &Link, method: &str, body: Bytes) -> Result<(http::HeaderMap, Bytes, bool), Unanswered> {
        let uri = format!("http://peer/test.Service/{method}");
        let request = http::Request::post(uri).version(http::Version::HTTP_2);
        let request = request.header("content-type", "application/grpc").body(Body::new(Full::new(body))).unwrap();
        let (parts, body) = link.send(request, Arrival { hops: 1, ..Arrival::default() }, true).await?.into_parts();
        let body = body.collect().await.unwrap();
        let ok = body.trailers().is_some_and(|trailers| trailers["grpc-status"] == "0");
        Ok((parts.headers, body.to_bytes(), ok))
    }

    #[tokio::test]
    async fn calls_and_answers_of_all_sizes_arrive_from_nodes_of_both_versions() {
        for carries in [true, false] {
            let peer = peer(carries).await;
            for size in [0, 1, frame::MOST, frame::MOST + 1, 10 * frame::MOST] {
                let body = Bytes::from(vec![1; size]);
                let (_, answer, ok) = call(&peer.link, "Echo", body.clone()).await.unwrap();
                assert!(answer == body && ok, "{size} bytes, {carries}");
            }
            let (_, answer, ok) = call(&peer.link, "Large", Bytes::new()).await.unwrap();
            assert!(answer.len() == 3 * frame::MOST && ok, "{carries}");
            let (fields, answer, ok) = call(&peer.link, "Fields", Bytes::from_static(b"x")).await.unwrap();
            assert_eq!((fields["x-large"].len(), &*answer, ok), (9 << 10, &b"x"[..], true), "{carries}");
            assert_eq!(peer.front.parcels().lock().len(), 0, "what was fetched is gone");
        }
    }

    /// As long as anything may take that is to be seen.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Calls again and again until so many connections are open at the other node. A call may be answered that it was not run;
    /// none is lost.
    async fn call_until(peer: &Peer, connections: impl Fn(usize) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !connections(peer.server.connections.load(Ordering::Relaxed)) {
            assert!(Instant::now() < end, "{:?} connections", peer.server.connections);
            match call(&peer.link, "Echo", Bytes::from_static(b"x")).await {
                Ok((_, answer, ok)) => assert!(answer == b"x"[..] && ok),
                Err(Unanswered::NotRun(_) | Unanswered::NotSent(..)) => {}
                Err(error) => panic!("{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    const A_DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test]
    async fn a_new_certificate_of_either_side_is_shown_on_another_connection_and_no_call_is_lost() {
        for renewed in ["here", "there"] {
            let realm = Realm::new();
            let (ours, theirs) = (realm.trust("here"), realm.trust("peer"));
            let mut peer = peer_with(true, &theirs, ours.clone()).await;
            let link = Arc::clone(&peer.link);
            let mut calling = Box::pin(call(&link, "Hold", Bytes::new()));
            tokio::select! {
                answer = &mut calling => panic!("{answer:?}"),
                held = peer.held.wait_for(|held| *held == 1) => drop(held.unwrap()),
            }
            call_until(&peer, |connections| connections == 1).await;
            let (node, trust) = if renewed == "here" { ("here", &ours) } else { ("peer", &theirs) };
            realm.issue(node, A_DAY);
            realm::follow(trust);
            // The call that is under way keeps the old one.
            tokio::select! {
                answer = &mut calling => panic!("{renewed}: {answer:?}"),
                () = call_until(&peer, |connections| connections == 2) => {}
            }
            assert_eq!(*peer.held.borrow(), 1);
            drop(calling);
            peer.held.wait_for(|held| *held == 0).await.unwrap();
            call_until(&peer, |connections| connections == 1).await;
        }
    }

    #[tokio::test]
    async fn calls_on_streams_of_their_own_go_over_too() {
        let realm = Realm::new();
        let (ours, theirs) = (realm.trust("here"), realm.trust("peer"));
        // An earlier version: each call has a stream.
        let mut peer = peer_with(false, &theirs, ours).await;
        let link = Arc::clone(&peer.link);
        let mut calling = Box::pin(call(&link, "Hold", Bytes::new()));
        tokio::select! {
            answer = &mut calling => panic!("{answer:?}"),
            held = peer.held.wait_for(|held| *held == 1) => drop(held.unwrap()),
        }
        let before = peer.server.connections.load(Ordering::Relaxed);
        realm.issue("peer", A_DAY);
        realm::follow(&theirs);
        tokio::select! {
            answer = &mut calling => panic!("{answer:?}"),
            () = call_until(&peer, |connections| connections > before) => {}
        }
        assert_eq!(*peer.held.borrow(), 1);
    }

    #[tokio::test]
    async fn a_connection_ends_with_the_certificate_of_either_side() {
        for expires in ["here", "peer"] {
            let realm = Realm::new();
            let soon = |node| if node == expires { Duration::from_secs(8) } else { A_DAY };
            let [ours, theirs] = ["here", "peer"].map(|node| realm.trust_for(node, soon(node)));
            let peer = peer_with(true, &theirs, ours).await;
            call(&peer.link, "Echo", Bytes::new()).await.unwrap();
            let end = Instant::now() + PATIENCE;
            // A connection whose certificate has expired may look as if it could be used, until the other node has looked.
            while !matches!(call(&peer.link, "Echo", Bytes::new()).await, Err(Unanswered::NotSent(..))) {
                assert!(Instant::now() < end, "{expires}: its calls are answered still");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            while peer.server.connections.load(Ordering::Relaxed) > 0 {
                assert!(Instant::now() < end, "{expires}: it is open still");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_connection_ends_with_the_authority_of_the_other_side() {
        let (realm, next) = (Realm::new(), Realm::new());
        let (ours, theirs) = (realm.trust("here"), realm.trust("peer"));
        let peer = peer_with(true, &theirs, ours).await;
        call(&peer.link, "Echo", Bytes::new()).await.unwrap();
        let both = format!("{}{}", realm.pem, next.pem);
        let follow = |authorities: &str| {
            realm.write("ca.pem", authorities);
            realm::follow(&theirs);
        };
        follow(&both);
        let [certificate, key] = next.issue("peer", A_DAY).map(|path| std::fs::read_to_string(path.unwrap()).unwrap());
        realm.write("peer.pem", &certificate);
        realm.write("peer.key", &key);
        realm::follow(&theirs);
        follow(&next.pem);
        let end = Instant::now() + PATIENCE;
        while !matches!(call(&peer.link, "Echo", Bytes::new()).await, Err(Unanswered::NotSent(..))) {
            assert!(Instant::now() < end, "its calls are answered still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_connection_ends_when_what_either_side_has_shown_is_revoked() {
        for revoked in ["here", "peer"] {
            let realm = Realm::new();
            realm.revoke(&[], A_DAY);
            let (ours, theirs) = (realm.trust("here"), realm.trust("peer"));
            let other = if revoked == "here" { theirs.clone() } else { ours.clone() };
            let peer = peer_with(true, &theirs, ours).await;
            call(&peer.link, "Echo", Bytes::new()).await.unwrap();
            realm.revoke(&[revoked], A_DAY);
            realm::follow(&other);
            let end = Instant::now() + PATIENCE;
            while !matches!(call(&peer.link, "Echo", Bytes::new()).await, Err(Unanswered::NotSent(..))) {
                assert!(Instant::now() < end, "{revoked}: its calls are answered still");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_ends_at_the_other_node() {
        let mut peer = peer(true).await;
        {
            let mut calling = std::pin::pin!(call(&peer.link, "Hold", Bytes::new()));
            tokio::select! {
                answer = &mut calling => panic!("{answer:?}"),
                held = peer.held.wait_for(|held| *held == 1) => drop(held.unwrap()),
            }
        }
        peer.held.wait_for(|held| *held == 0).await.unwrap();
    }

    #[tokio::test]
    async fn a_link_that_is_closed_ends_its_calls_at_the_other_node() {
        let mut peer = peer(true).await;
        let mut calling = std::pin::pin!(call(&peer.link, "Hold", Bytes::new()));
        tokio::select! {
            answer = &mut calling => panic!("{answer:?}"),
            held = peer.held.wait_for(|held| *held == 1) => drop(held.unwrap()),
        }
        drop(peer.links);
        let ended = calling.await;
        assert!(matches!(ended, Err(Unanswered::Broken(_))), "{ended:?}");
        peer.held.wait_for(|held| *held == 0).await.unwrap();
    }

    #[tokio::test]
    async fn calls_under_way_when_the_other_node_dies_may_have_run() {
        let mut peer = peer(true).await;
        let mut calling = std::pin::pin!(call(&peer.link, "Hold", Bytes::new()));
        tokio::select! {
            answer = &mut calling => panic!("{answer:?}"),
            held = peer.held.wait_for(|held| *held == 1) => drop(held.unwrap()),
        }
        drop(peer.server);
        let ended = calling.await;
        assert!(matches!(ended, Err(Unanswered::Broken(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn a_node_that_takes_no_more_calls_ends_its_streams_and_stops_at_once() {
        let peer = peer(true).await;
        call(&peer.link, "Echo", Bytes::new()).await.unwrap();
        peer.front.refuse();
        let began = Instant::now();
        assert_eq!(peer.server.stop(began + Duration::from_secs(30)).await, 0);
        assert!(began.elapsed() < Duration::from_secs(10), "it waited for the link: {:?}", began.elapsed());
        let ended = call(&peer.link, "Echo", Bytes::new()).await;
        assert!(matches!(ended, Err(Unanswered::NotSent(..) | Unanswered::NotRun(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn no_call_is_read_where_too_many_answers_wait() {
        let answers = Outgoing::default();
        let cx = &mut Context::from_waker(Waker::noop());
        (0..QUEUE as u64).for_each(|id| answers.put(carry_response::Frame::Last(id)));
        let mut room = std::pin::pin!(answers.room());
        let (woken, waker) = tests::task();
        assert!(room.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(answers.take(), Some(carry_response::Frame::Last(0)));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(room.as_mut().poll(cx).is_ready());
        for id in 1..QUEUE as u64 {
            assert_eq!(answers.take(), Some(carry_response::Frame::Last(id)));
        }
        assert!(answers.take().is_none());
        answers.listen(&Context::from_waker(&waker));
        answers.put(carry_response::Frame::Last(0));
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "the stream hears of the next one");
    }

    /// Encodes as a stream of answers is, without the bytes.
    struct Nothing;

    impl tonic::codec::Encoder for Nothing {
        type Item = CarryResponse;
        type Error = Status;

        fn encode(&mut self, _: CarryResponse, to: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
            bytes::BufMut::put_u8(to, 0);
            Ok(())
        }
    }

    #[test]
    fn what_is_answered_goes_out_before_more_is_begun() {
        let outgoing = Outgoing::default();
        let (to, begun) = (outgoing.clone(), Arc::new(std::sync::atomic::AtomicU64::new(0)));
        let begins = Arc::clone(&begun);
        let serving = async move {
            for id in 1..=3 {
                begins.store(id, Ordering::Relaxed);
                to.put(carry_response::Frame::Last(id));
                once_more().await;
            }
        };
        let answers = Answers::new(outgoing, serving.boxed());
        let body = tonic::codec::EncodeBody::new_server(
            Nothing,
            answers,
            None,
            tonic::codec::SingleMessageCompressionOverride::default(),
            None,
        );
        let (mut body, (woken, waker)) = (std::pin::pin!(body), tests::task());
        let cx = &mut Context::from_waker(&waker);
        for slice in 1..=3 {
            // As hyper reads a body: until nothing is ready.
            let mut sent = 0;
            while let Poll::Ready(Some(frame)) = http_body::Body::poll_frame(body.as_mut(), cx) {
                sent += usize::from(frame.unwrap().is_data());
            }
            assert_eq!((sent, begun.load(Ordering::Relaxed)), (1, slice));
            assert!(woken.0.swap(0, Ordering::Relaxed) > 0, "it is asked again");
        }
    }

    #[test]
    fn a_method_is_slow_when_two_calls_in_a_row_are() {
        const METHOD: &[u8] = b"/a.B/C";
        let mut quick = Quick::default();
        for (took, slow) in [(2, false), (0, false), (2, false), (2, true)] {
            quick.judge(METHOD, took * SLOW);
            quick.judge(b"/a.B/Other", took * SLOW);
            assert_eq!(quick.is_slow(METHOD), slow);
        }
        assert!(!quick.is_slow(b"/a.B/D"));
        // One that another connection brings too.
        let mut other = Quick { slow: quick.slow.clone(), ..Quick::default() };
        let spared = (0..).take_while(|_| other.is_slow(METHOD)).count();
        assert_eq!(spared as u64, 2 * SPARED - 1);
        other.judge(METHOD, FAR_TOO_SLOW);
        assert!(quick.is_slow(METHOD), "once is enough where it is that slow");
    }

    #[tokio::test]
    async fn calls_that_arrive_while_the_connection_is_full_are_read_once_it_is_not() {
        let answers = Outgoing::default();
        let to = answers.clone();
        let arrived = Arc::new(tokio::sync::Notify::new());
        let arrives = Arc::clone(&arrived);
        let serving = async move {
            to.put(carry_response::Frame::Last(1));
            arrives.notified().await;
            to.put(carry_response::Frame::Last(2));
            pending().await
        };
        let mut answers = Answers::new(answers, serving.boxed());
        let (woken, waker) = tests::task();
        let cx = &mut Context::from_waker(&waker);
        assert!(Pin::new(&mut answers).poll_next(cx).is_ready());
        // The connection has no room: its task wakes up, and does not ask for answers.
        woken.0.store(0, Ordering::Relaxed);
        arrived.notify_one();
        assert_eq!(woken.0.swap(0, Ordering::Relaxed), 1);
        // It has some again, and sends what it has first.
        for _ in 0..2 {
            assert!(Pin::new(&mut answers).poll_next(cx).is_pending());
            assert_eq!(woken.0.swap(0, Ordering::Relaxed), 1, "nobody would ever read the call");
        }
        assert!(Pin::new(&mut answers).poll_next(cx).is_ready());
    }
}

//! The serving end of a stream that carries many calls: see `call::carrier`.
//!
//! Each call is served as if it had come on a stream of its own. Too large an answer waits as a parcel, for the other node
//! to fetch it on one.

use std::{
    collections::HashMap,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture, task::AtomicWaker};
use http::StatusCode;
use outpost_proto::cluster::v1::{
    CarriedCall, CarriedParcel, CarryRequest, CarryResponse, carry_request, carry_response, link_server::Link,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{coop::consume_budget, yield_now},
    time::{Instant, timeout},
};
use tokio_stream::Stream;
use tokio_util::task::JoinMap;
use tonic::{Request, Response, Status, Streaming, body::Body};

use super::front::{Ending, Front};
use crate::{
    call::{frame, link::PARCELS},
    status::CallError,
};

/// How many calls of one stream run at a time. What is more is not read.
const MOST_RUNNING: usize = 4096;
/// How many answers may wait for the connection.
const QUEUE: usize = 1024;
/// A call that computes for so long before it first waits holds up those behind it: ...
const SLOW: Duration = Duration::from_micros(100);
/// ... as many calls of its method do not, for each time that.
const SPARED: u64 = 1024;
/// How many methods are kept in mind for that.
const MOST_SLOW: usize = 1024;
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
    async fn keep(&self, response: http::Response<Body>, tell: impl AsyncFnOnce(u64)) {
        let (sender, fetched) = oneshot::channel();
        let parcel = Parcel { parcels: self, token: rand::random() };
        self.lock().insert(parcel.token, (response, sender));
        tell(parcel.token).await;
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
}

impl Carried {
    pub(crate) fn new(front: Front) -> Self {
        Self { front: Arc::new(front) }
    }
}

#[tonic::async_trait]
impl Link for Carried {
    type CarryStream = Answers;

    async fn carry(&self, request: Request<Streaming<CarryRequest>>) -> Result<Response<Answers>, Status> {
        let (to, answers) = mpsc::channel(QUEUE);
        let ending = request.extensions().get::<Ending>().cloned().unwrap_or_default();
        let serving = serve(request.into_inner(), Arc::clone(&self.front), ending, to).boxed();
        Ok(Response::new(Answers::new(answers, serving)))
    }
}

/// The stream of answers. Dropping it ends the calls.
pub(crate) struct Answers {
    answers: mpsc::Receiver<CarryResponse>,
    /// Reads calls, and runs those that do not wait: here, so that their answers are where they are sent from.
    serving: Option<BoxFuture<'static, ()>>,
    /// It was polled, and what it has answered is not on its way yet.
    polled: bool,
    /// Rung when it has something to do.
    bell: Arc<Bell>,
    waker: Waker,
}

/// Knows that it was rung, however often the task that listens was polled for something else meanwhile.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    listener: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.listener.wake();
    }
}

impl Answers {
    fn new(answers: mpsc::Receiver<CarryResponse>, serving: BoxFuture<'static, ()>) -> Self {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        Self { answers, serving: Some(serving), polled: false, bell, waker }
    }
}

impl Stream for Answers {
    type Item = Result<CarryResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.bell.listener.register(cx.waker());
        loop {
            // What is there goes out before more is read: where nothing is ready, the connection sends what it has.
            if let Poll::Ready(answer) = this.answers.poll_recv(cx) {
                return Poll::Ready(answer.map(Ok));
            }
            if std::mem::replace(&mut this.polled, true) {
                this.polled = false;
                // The task may have heard the bell while it waited for room on the connection, and not have come here.
                if this.bell.rung.load(Ordering::Acquire) {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
            if let Some(serving) = &mut this.serving {
                this.bell.rung.store(false, Ordering::Release);
                if serving.as_mut().poll(&mut Context::from_waker(&this.waker)).is_ready() {
                    this.serving = None;
                }
            }
        }
    }
}

type Sender = mpsc::Sender<CarryResponse>;

async fn send(to: &Sender, frame: carry_response::Frame) {
    // The connection may be gone, and then all of this is about to be.
    let _ = to.send(CarryResponse { frame: Some(frame) }).await;
}

/// Serves a stream until the other node ends it; or until this one takes no more calls, or none on this connection, and those
/// that it has are over.
async fn serve(mut calls: Streaming<CarryRequest>, front: Arc<Front>, Ending(ending): Ending, to: Sender) {
    let mut running: JoinMap<u64, ()> = JoinMap::new();
    let mut quick = Quick::default();
    let mut last = 0;
    let (mut open, mut told) = (true, false);
    loop {
        // Other tasks get their turn however many calls there are.
        consume_budget().await;
        while let Some((id, ended)) = running.join_next().now_or_never().flatten() {
            if ended.is_err_and(|error| error.is_panic()) {
                return panicked(id);
            }
        }
        if !told && ending.is_cancelled() {
            (open, told) = (false, true);
            // What comes after that is made elsewhere at once, however long the others take.
            send(&to, carry_response::Frame::Last(last)).await;
        }
        open = open && !front.refuses();
        if !open && running.is_empty() {
            return send(&to, carry_response::Frame::Last(last)).await;
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
                        continue;
                    }
                    match poll_fn(|cx| Poll::Ready(quick.begin(&path, call.as_mut(), cx))).await {
                        Ok(Poll::Ready(())) => {}
                        // A task is for calls that wait for something.
                        Ok(Poll::Pending) => {
                            running.spawn(id, call);
                        }
                        Err(_) => return panicked(id),
                    }
                    if quick.is_full() {
                        yield_now().await;
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
            () = ending.cancelled(), if !told => {}
        }
    }
}

/// A module's panic was caught before. With the end of the stream its caller hears that nobody knows.
fn panicked(call: u64) {
    tracing::error!(call, "a call that another node carried here panicked");
}

/// Begins calls where their stream is read, and knows which should not be: as long as one computes, nobody reads on.
#[derive(Debug, Default)]
struct Quick {
    /// How many calls of these methods are still to be begun elsewhere.
    slow: HashMap<Box<[u8]>, u64>,
    /// What calls have taken since what was answered could go out.
    spent: Duration,
}

impl Quick {
    fn is_slow(&mut self, path: &[u8]) -> bool {
        // Nearly always.
        if self.slow.is_empty() {
            return false;
        }
        let Some(left) = self.slow.get_mut(method(path)) else { return false };
        *left -= 1;
        if *left == 0 {
            self.slow.remove(method(path));
        }
        true
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
        if took >= SLOW && self.slow.len() < MOST_SLOW {
            // In the long run, such a method costs those behind it as little as any other.
            let times = u64::try_from(took.as_nanos() / SLOW.as_nanos()).unwrap_or(u64::MAX);
            self.slow.insert(method(path).into(), times.saturating_mul(SPARED));
        }
        polled
    }

    /// Whether it is time to let answers go out.
    fn is_full(&mut self) -> bool {
        let full = self.spent >= SLOW;
        if full {
            self.spent = Duration::ZERO;
        }
        full
    }
}

/// The path of a method, without what a client may have put behind it.
fn method(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'?').next().unwrap_or_default()
}

async fn run(call: CarriedCall, front: Arc<Front>, to: Sender) {
    let id = call.id;
    match front.enter(call) {
        // The call counts until its answer is on its way.
        Ok((inside, _in_flight)) => match inside.run().await {
            Ok(answer) => send(&to, carry_response::Frame::Answer(answer)).await,
            Err(large) => keep(id, large, &front, &to).await,
        },
        Err(call) => run_long(call, front, to).await,
    }
}

/// Runs a call that can't take the short way. Boxed, so that others do not carry its size.
fn run_long(call: CarriedCall, front: Arc<Front>, to: Sender) -> BoxFuture<'static, ()> {
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
            Ok(reply) => send(&to, carry_response::Frame::Answer(frame::answer(id, reply))).await,
            Err(large) => keep(id, large, &front, &to).await,
        }
    })
}

/// Keeps an answer that is too large to be carried, and tells so.
fn keep<'a>(id: u64, answer: Box<http::Response<Body>>, front: &'a Front, to: &'a Sender) -> BoxFuture<'a, ()> {
    Box::pin(async move {
        let tell = async |token| send(to, carry_response::Frame::Parcel(CarriedParcel { id, token })).await;
        front.parcels().keep(*answer, tell).await;
    })
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        net::{Ipv4Addr, SocketAddr},
        sync::atomic::AtomicUsize,
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

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn calls_that_arrive_while_the_connection_is_full_are_read_once_it_is_not() {
        let (to, answers) = mpsc::channel(QUEUE);
        let arrived = Arc::new(tokio::sync::Notify::new());
        let arrives = Arc::clone(&arrived);
        let serving = async move {
            to.send(CarryResponse::default()).await.unwrap();
            arrives.notified().await;
            to.send(CarryResponse::default()).await.unwrap();
            pending().await
        };
        let mut answers = Answers::new(answers, serving.boxed());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = &mut Context::from_waker(&waker);
        assert!(Pin::new(&mut answers).poll_next(cx).is_ready());
        // The connection has no room: its task wakes up, and does not ask for answers.
        woken.0.store(0, Ordering::Relaxed);
        arrived.notify_one();
        assert_eq!(woken.0.swap(0, Ordering::Relaxed), 1);
        // It has some again, and sends what it has first.
        assert!(Pin::new(&mut answers).poll_next(cx).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "nobody would ever read the call");
        assert!(Pin::new(&mut answers).poll_next(cx).is_ready());
    }
}

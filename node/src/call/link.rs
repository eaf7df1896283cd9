//! The connection to another node.
//!
//! ```text
//! (not used) ─ first call ─▶ connecting ─▶ up ─▶ (lost) ─▶ connecting ...
//!                                └─ failed ─▶ down: calls are refused at once; tried again for ever, with a pause
//! ```
//!
//! A request goes out as it came in: neither its body nor the answer's is decoded.

use std::{
    collections::HashMap,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tonic::body::Body;

use super::slot;
#[cfg(feature = "simulation")]
use crate::simulation;
use crate::{gather::Gathered, id::NodeId, net::TcpStream};

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

type Sender = http2::SendRequest<Body>;

/// One connection, made when it is first needed and made again when it breaks.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    state: watch::Sender<State>,
    /// The first call was made.
    wanted: Notify,
    in_flight: AtomicUsize,
    /// How long the node takes to answer: a moving average, in microseconds.
    latency: AtomicU32,
    /// When it last answered, in milliseconds since the link was made.
    answered: AtomicU64,
    made: Instant,
}

#[derive(Debug, Clone)]
enum State {
    Connecting,
    Up(Sender),
    Down(Arc<str>),
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
    fn new(node: NodeId, address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            node,
            address,
            state: watch::Sender::new(State::Connecting),
            wanted: Notify::new(),
            in_flight: AtomicUsize::new(0),
            latency: AtomicU32::new(0),
            answered: AtomicU64::new(0),
            made: Instant::now(),
        })
    }

    /// Whether a call would be refused at once.
    pub(crate) fn is_down(&self) -> bool {
        matches!(&*self.state.borrow(), State::Down(_))
    }

    /// What one more call can be expected to wait: the product of how long the node takes and how much it has to do
    /// (after Finagle's "peak EWMA" balancer). What it once took is forgotten by half each second, or a node that was
    /// slow would never be asked again.
    pub(crate) fn cost(&self) -> u64 {
        let seconds = self.age().saturating_sub(self.answered.load(Ordering::Relaxed)) / 1000;
        let latency = (u64::from(self.latency.load(Ordering::Relaxed)) >> seconds.min(63)).max(1);
        latency * (self.in_flight.load(Ordering::Relaxed) as u64 + 1)
    }

    /// Sends a request, and gives the head of the answer.
    ///
    /// # Cancel safety
    /// Dropping the future resets the call at the peer.
    pub(crate) async fn send(&self, request: slot::Request) -> Result<http::Response<Incoming>, Unanswered> {
        let mut sender = match self.sender().await {
            Ok(sender) => sender,
            Err(error) => return Err(Unanswered::NotSent(Box::new(request), error)),
        };
        let _counted = Counted::new(&self.in_flight);
        let began = Instant::now();
        match sender.try_send_request(request).await {
            Ok(response) => {
                self.observe(began.elapsed());
                Ok(response)
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

    /// Waits while the connection is being made; fails at once where that did not work the last time.
    async fn sender(&self) -> Result<Sender, String> {
        let mut watched = self.state.subscribe();
        loop {
            match &*watched.borrow_and_update() {
                State::Up(sender) if !sender.is_closed() => return Ok(sender.clone()),
                State::Down(why) => return Err(why.to_string()),
                State::Up(_) | State::Connecting => self.wanted.notify_one(),
            }
            if watched.changed().await.is_err() {
                return Err("the node stops".to_owned());
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
        self.wanted.notified().await;
        let mut pause = FIRST_PAUSE;
        loop {
            match connect(self.address).await {
                Ok((sender, connection)) => {
                    tracing::debug!(peer_node_id = %self.node, address = %self.address, "connected");
                    pause = FIRST_PAUSE;
                    self.state.send_replace(State::Up(sender));
                    // Of a panic no more is known than that the connection is gone.
                    let ended = AssertUnwindSafe(connection).catch_unwind().await.unwrap_or(Ok(()));
                    tracing::debug!(peer_node_id = %self.node, error = ended.err().map(|error| error.to_string()), "the connection ended");
                    self.state.send_replace(State::Connecting);
                }
                Err(error) => {
                    tracing::debug!(peer_node_id = %self.node, address = %self.address, error, "can't connect");
                    self.state.send_replace(State::Down(error.into()));
                    // Not all nodes that lost a peer should come back to it at once.
                    sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

type Connection = http2::Connection<TokioIo<Gathered<TcpStream>>, Body, TokioExecutor>;

async fn connect(address: SocketAddr) -> Result<(Sender, Connection), String> {
    let connecting = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        // A small request must not wait for the next one to fill a packet.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PROBE_AFTER)
            .keep_alive_timeout(PROBE_LIMIT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(Gathered::new(stream)))
            .await
            .map_err(|error| error.to_string())
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

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
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
#[derive(Debug, Default)]
pub(crate) struct Links {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    links: HashMap<NodeId, (Arc<Link>, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Links {
    /// The link to a node; a new one where its address has changed.
    pub(crate) fn to(&self, node: &NodeId, address: SocketAddr) -> Arc<Link> {
        let Open { links, tasks } = &mut *self.lock();
        if let Some((link, _)) = links.get(node)
            && link.address == address
        {
            return Arc::clone(link);
        }
        let link = Link::new(node.clone(), address);
        let task = tasks.spawn(Arc::clone(&link).keep_connected());
        if let Some(before) = links.insert(node.clone(), (Arc::clone(&link), task)) {
            close(&before);
        }
        // What has ended is let go.
        while tasks.try_join_next().is_some() {}
        link
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

fn close((link, task): &(Arc<Link>, AbortHandle)) {
    task.abort();
    link.state.send_replace(State::Down("the node is not there any more".into()));
}

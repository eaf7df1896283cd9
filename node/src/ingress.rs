//! The listener for clients: any gRPC client in any language, and browsers by gRPC-Web.
//!
//! ```text
//! accept ─▶ TLS ─▶ preface ─▶ HTTP/2 ─▶ front ─┬─ gRPC ─────▶ table ─▶ slot
//! (cap)   (timeout) (timeout) (limits)         └─ gRPC-Web ─▶ CORS, translation ─▶ the same
//! ```
//!
//! The accept loop is ours, since tonic's spins when file descriptors run out, has no cap on connections, and its
//! graceful end waits for clients that never answer.

pub(crate) mod carried;
mod front;
mod watched;

use std::{
    fmt,
    future::{pending, poll_fn},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

pub(crate) use front::Front;
use front::{Callers, Ending};
use futures_util::FutureExt as _;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use watched::Watched;

use crate::{
    call::link::{CONNECTION_WINDOW, STREAM_WINDOW},
    config::IngressSettings,
    gather::Gathered,
    net::{TcpListener, TcpStream},
    together::{Inward, Streams, Together, Turn},
    trust::{Accepted, Acceptor, Passes, Until},
};

/// How long nothing must have been written, once no call is in flight, for a stop to close what connections are left.
const QUIET: Duration = Duration::from_secs(1);

/// Accepts connections until it is told to stop.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    /// How often something was written to a client.
    written: Arc<AtomicUsize>,
    front: Front,
    /// No more connections; those that are there hear that they should end.
    stopping: CancellationToken,
    /// Connections that are left are closed.
    cut: CancellationToken,
    /// The accept loop, which owns the connections. Dropping the server ends it, and them.
    running: JoinSet<()>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves a listener that is bound already.
    pub(crate) fn start(
        listener: TcpListener,
        tls: Option<Acceptor>,
        front: Front,
        settings: &IngressSettings,
    ) -> Self {
        let address = listener.local_addr().expect("a listening socket has an address");
        let (stopping, cut) = (CancellationToken::new(), CancellationToken::new());
        let (connections, written) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let connection = Connection {
            written: Arc::clone(&written),
            settings: Arc::new(settings.clone()),
            tls,
            front: front.clone(),
            stopping: stopping.clone(),
            cut: cut.clone(),
            refusals: Arc::default(),
        };
        let mut running = JoinSet::new();
        running.spawn(accept(listener, connection, settings.max_connections, Arc::clone(&connections)));
        Self { address, connections, written, front, stopping, cut, running }
    }

    /// Stops admitting, lets calls in flight finish until the deadline, then closes what is left. Returns the number of
    /// calls that were cut off.
    ///
    /// A client that has heard of the end closes its connection, or lets us, once its calls are over. One that does not
    /// is not waited for: when no call is in flight and nothing was written for a while, nobody is served any more.
    pub(crate) async fn stop(mut self, deadline: Instant) -> usize {
        self.stopping.cancel();
        let calls = self.front.calls();
        let mut written = self.written.load(Ordering::Relaxed);
        loop {
            let quiet = Instant::now() + QUIET;
            if tokio::time::timeout_at(quiet.min(deadline), ended(&mut self.running)).await.is_ok() {
                return 0;
            }
            let before = std::mem::replace(&mut written, self.written.load(Ordering::Relaxed));
            if Instant::now() >= deadline || (calls.is_empty() && written == before) {
                break;
            }
        }
        let left = calls.len();
        self.cut.cancel();
        // A connection whose module blocks its thread can't be dropped; it ends with the process.
        let _ = tokio::time::timeout(QUIET, ended(&mut self.running)).await;
        left
    }
}

async fn ended(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

fn http(settings: &IngressSettings, callers: Callers, streams: Streams) -> auto::Builder<Streams> {
    let mut http = auto::Builder::new(streams);
    let header_list = u32::try_from(settings.max_header_list_size.bytes()).unwrap_or(u32::MAX);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_header_list_size(header_list)
        .keep_alive_interval(settings.keepalive_interval.get())
        .keep_alive_timeout(settings.keepalive_timeout.get());
    if callers == Callers::Nodes {
        // What is the mark of an attack from one client is what many have when they all give up at once; and to close
        // the connection would end the calls of the others.
        http.http2().max_pending_accept_reset_streams(10_000).max_local_error_reset_streams(None);
        http.http2().initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    }
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.preface_timeout.get())
        // hyper's least is 8 KiB.
        .max_buf_size((header_list as usize).max(8 << 10));
    http
}

async fn accept(listener: TcpListener, connection: Connection, most: usize, connections: Arc<AtomicUsize>) {
    let mut open = JoinSet::new();
    let mut refusals = Seldom::default();
    let mut pause = Pause::default();
    loop {
        connections.store(open.len(), Ordering::Relaxed);
        let stream = tokio::select! {
            biased;
            () = connection.stopping.cancelled() => break,
            Some(ended) = open.join_next() => {
                log_panic(ended);
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    // Out of descriptors or memory: the next try would fail at once, and so keep a core busy.
                    let wait = pause.next();
                    tracing::warn!(%error, retry_in_ms = wait.as_millis() as u64, "can't accept a connection");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        Some(ended) = open.join_next() => log_panic(ended), // frees a descriptor
                        () = connection.stopping.cancelled() => break,
                    }
                    continue;
                }
            },
        };
        pause.reset();
        if open.len() >= most {
            // Closed, not left in the backlog: the client learns at once that it should go elsewhere.
            drop(stream);
            if refusals.may_log() {
                tracing::warn!(max_connections = most, "closed a new connection: too many are open");
            }
            continue;
        }
        open.spawn(connection.clone().serve(stream));
    }
    drop(listener);
    while let Some(ended) = open.join_next().await {
        log_panic(ended);
        connections.store(open.len(), Ordering::Relaxed);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task ended");
    }
}

/// The peer went away between its connecting and our accepting.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted | Kind::ConnectionReset | Kind::ConnectionRefused | Kind::Interrupted
    )
}

/// How long to wait after accepting failed: longer each time, up to a second.
#[derive(Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn next(&mut self) -> Duration {
        let wait = Duration::from_millis(10 << self.failures.min(7)).min(Duration::from_secs(1));
        self.failures += 1;
        wait
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Lets one line a second into the log.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Option<Instant>,
}

impl Seldom {
    pub(crate) fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let may = self.last.is_none_or(|last| now - last >= Duration::from_secs(1));
        if may {
            self.last = Some(now);
        }
        may
    }
}

/// What each connection is served with.
#[derive(Clone)]
struct Connection {
    settings: Arc<IngressSettings>,
    tls: Option<Acceptor>,
    front: Front,
    written: Arc<AtomicUsize>,
    stopping: CancellationToken,
    cut: CancellationToken,
    refusals: Arc<Mutex<Seldom>>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // A reply must not wait for the next one to fill a packet. A peer that is gone makes this fail.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let peer_address = stream.connect_info().remote_addr();
        let Some(acceptor) = &self.tls else { return self.serve_http(stream, None, Until::default()).await };
        let handshake = tokio::time::timeout(self.settings.handshake_timeout.get(), acceptor.accept(stream));
        match self.cut.run_until_cancelled(handshake).await {
            Some(Ok(Ok((stream, accepted, until)))) => self.serve_http(stream, accepted, until).await,
            Some(Ok(Err(error))) if error.kind() == io::ErrorKind::PermissionDenied => {
                let may_log = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).may_log();
                let peer = peer_address.map(tracing::field::display);
                if may_log {
                    tracing::warn!(peer, %error, "refused a connection");
                }
            }
            Some(Ok(Err(error))) => tracing::debug!(%error, "a TLS handshake failed"),
            Some(Err(_)) => tracing::debug!("a TLS handshake took too long"),
            None => {}
        }
    }

    async fn serve_http<S>(self, stream: S, accepted: Option<Accepted>, mut until: Until)
    where
        S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let (ending, streams, turn) = (Ending::default(), Streams::default(), Turn::default());
        let service =
            self.front.for_connection(stream.connect_info(), accepted, ending.clone(), (streams.clone(), turn.clone()));
        let stream = Watched::new(stream, self.settings.preface_timeout.get(), self.written);
        let stream = TokioIo::new(Gathered::new(stream, Some(turn.clone())));
        let http = http(&self.settings, self.front.callers(), streams.clone());
        let inward = Inward::with(turn);
        let mut connection = Together::new(http.serve_connection(stream, service), streams);
        let mut told = false;
        loop {
            let stopping = async { if told { pending().await } else { self.stopping.cancelled().await } };
            tokio::select! {
                ended = poll_fn(|cx| inward.poll(cx, |cx| connection.poll_unpin(cx))) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended with an error");
                    }
                    return;
                }
                () = self.cut.cancelled() => return,
                passes = until.passes() => match passes {
                    Passes::Renew | Passes::NoMore => {
                        ending.give();
                        connection.connection().into_iter().for_each(auto::Connection::graceful_shutdown);
                    }
                    Passes::Over => {
                        tracing::info!("closed a connection, since a certificate that was shown on it is not good any more");
                        return;
                    }
                },
                () = stopping => {
                    told = true;
                    connection.connection().into_iter().for_each(auto::Connection::graceful_shutdown);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_failures_grows_to_a_second_and_begins_anew() {
        let mut pause = Pause::default();
        let waits: Vec<u128> = (0..10).map(|_| pause.next().as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        pause.reset();
        assert_eq!(pause.next().as_millis(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_logged_once_a_second() {
        let mut seldom = Seldom::default();
        assert!(seldom.may_log());
        assert!(!seldom.may_log());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(seldom.may_log());
    }
}

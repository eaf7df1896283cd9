//! What an orchestrator asks a node: whether its process is alive, and whether it serves clients. By HTTP, since that is what
//! orchestrators speak; a client that speaks gRPC asks `grpc.health.v1.Health` at the ingress.
//!
//! It tells one word, and can change nothing, so it needs neither TLS nor a right.
//!
//! **Invariant:** whether the process is alive never depends on other nodes, nor on how far its start has come: to end it
//! would mend nothing.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::net::TcpListener;

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections at a time. For a further one, the oldest is closed: who keeps many open must not keep others out.
const MOST: usize = 64;

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It finds its cluster, or waits for one.
    Joining,
    /// It belongs to its cluster, and what it hosts at first is about to start.
    Starting,
    /// It knows where modules are, and takes calls.
    Serving,
    Stopping,
}

impl Phase {
    /// Why clients should not be sent here, if they should not.
    fn unready(self) -> Option<&'static str> {
        match self {
            Self::Joining => Some("it has not joined its cluster yet\n"),
            Self::Starting => Some("its modules start\n"),
            Self::Serving => None,
            Self::Stopping => Some("it stops\n"),
        }
    }
}

/// Answers until it is dropped.
pub(crate) async fn serve(listener: TcpListener, phase: watch::Receiver<Phase>) {
    let mut open = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection (`health.listen`)");
                // Out of descriptors, say: the next try would fail at once.
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let phase = phase.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let answer = answer(request.method(), request.uri().path(), *phase.borrow());
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false).max_buf_size(8 << 10);
        // All of it has to come and go in time.
        let served = tokio::time::timeout(2 * PATIENCE, http.serve_connection(TokioIo::new(stream), answer));
        oldest.retain(|connection| !connection.is_finished());
        while oldest.len() >= MOST {
            oldest.pop_front().inspect(AbortHandle::abort);
        }
        oldest.push_back(open.spawn(async move { drop(served.await) }));
    }
}

fn answer(method: &Method, path: &str, phase: Phase) -> Response<Full<Bytes>> {
    let (status, text) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "ok\n"),
        (&Method::GET | &Method::HEAD, "/readyz") => match phase.unready() {
            None => (StatusCode::OK, "ok\n"),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        },
        (_, "/livez" | "/readyz") => (StatusCode::METHOD_NOT_ALLOWED, "ask by GET\n"),
        _ => (StatusCode::NOT_FOUND, "there are /livez and /readyz\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_is_not_ready() {
        for (phase, ready) in
            [(Phase::Joining, 503), (Phase::Starting, 503), (Phase::Serving, 200), (Phase::Stopping, 503)]
        {
            assert_eq!(answer(&Method::GET, "/livez", phase).status(), 200, "{phase:?}");
            assert_eq!(answer(&Method::GET, "/readyz", phase).status(), ready, "{phase:?}");
        }
        assert_eq!(answer(&Method::POST, "/livez", Phase::Serving).status(), 405);
        assert_eq!(answer(&Method::GET, "/", Phase::Serving).status(), 404);
    }
}

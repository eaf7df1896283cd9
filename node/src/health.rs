//! What an orchestrator asks a node: whether its process is alive, and whether it serves clients. By HTTP, since that is what
//! orchestrators speak; a client that speaks gRPC asks `grpc.health.v1.Health` at the ingress.
//!
//! It tells one word, and can change nothing, so it needs neither TLS nor a right.
//!
//! **Invariant:** whether the process is alive never depends on other nodes, nor on how far its start has come: to end it
//! would mend nothing.

use std::{future::ready, time::Duration};

use http::{Method, StatusCode, request::Parts};
use tokio::sync::watch;

use crate::{
    http1::{self, Answer},
    net::TcpListener,
};

/// How long it may take to ask for one word, and to get it.
const LIMIT: Duration = Duration::from_secs(2);

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
    let answer = move |asked: Parts| ready(answer(&asked.method, asked.uri.path(), *phase.borrow()));
    http1::serve(listener, "health.listen", LIMIT, answer).await;
}

fn answer(method: &Method, path: &str, phase: Phase) -> Answer {
    match (method, path) {
        (&Method::GET | &Method::HEAD, "/livez") => Answer::text(StatusCode::OK, "ok\n"),
        (&Method::GET | &Method::HEAD, "/readyz") => match phase.unready() {
            None => Answer::text(StatusCode::OK, "ok\n"),
            Some(why) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        (_, "/livez" | "/readyz") => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "ask by GET\n"),
        _ => Answer::text(StatusCode::NOT_FOUND, "there are /livez and /readyz\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_is_not_ready() {
        for (phase, ready) in
            [(Phase::Joining, 503), (Phase::Starting, 503), (Phase::Serving, 200), (Phase::Stopping, 503)]
        {
            assert_eq!(answer(&Method::GET, "/livez", phase).status, 200, "{phase:?}");
            assert_eq!(answer(&Method::GET, "/readyz", phase).status, ready, "{phase:?}");
        }
        assert_eq!(answer(&Method::POST, "/livez", Phase::Serving).status, 405);
        assert_eq!(answer(&Method::GET, "/", Phase::Serving).status, 404);
    }
}

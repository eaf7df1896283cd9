//! Short answers by plain HTTP/1.1: what orchestrators and monitoring ask a node.
//!
//! Whoever can connect is answered, so nobody may keep others out: each connection is for one request, which has to come in
//! time, and there is a bound on how many are open.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::net::TcpListener;

/// How long the head of a request may take to come.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections at a time. For a further one, the oldest is closed: who keeps many open must not keep others out.
const MOST: usize = 64;

/// What is answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) text: Bytes,
}

impl Answer {
    pub(crate) fn text(status: StatusCode, text: &'static str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", text: Bytes::from_static(text.as_bytes()) }
    }
}

/// Answers, by the heads of requests, until it is dropped. `setting` is the key that holds the address; a request has to come,
/// and its answer to go, within `limit`.
pub(crate) async fn serve<F, A>(listener: TcpListener, setting: &'static str, limit: Duration, answer: F)
where
    F: Fn(Parts) -> A + Clone + Send + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
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
                tracing::warn!(%error, setting, "can't accept a connection");
                // Out of descriptors, say: the next try would fail at once.
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let answer = answer.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let answer = answer(request.into_parts().0);
            async move {
                let Answer { status, content_type, text } = answer.await;
                let mut response = Response::new(Full::new(text));
                *response.status_mut() = status;
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
                Ok::<_, Infallible>(response)
            }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false).max_buf_size(8 << 10);
        let served = tokio::time::timeout(limit, http.serve_connection(TokioIo::new(stream), answer));
        oldest.retain(|connection| !connection.is_finished());
        while oldest.len() >= MOST {
            oldest.pop_front().inspect(AbortHandle::abort);
        }
        oldest.push_back(open.spawn(async move { drop(served.await) }));
    }
}

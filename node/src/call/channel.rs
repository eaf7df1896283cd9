//! The node's in-process channel.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tonic::{Status, body::Body};

use super::{table::Table, wire};

/// A transport for any tonic client, to whatever module serves the path: `CartClient::new(channel)`. Cheap to clone.
///
/// Within the process it takes no socket and no task, but messages are encoded; a [`Handle`](crate::Handle) does
/// without that too. It gives a response in any case: an error is a gRPC status.
#[derive(Debug, Clone)]
pub struct Channel {
    table: Arc<Table>,
}

impl Channel {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        Self { table }
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.table.find(request.uri().path()) {
            Ok(slot) => {
                let slot = Arc::clone(slot);
                Box::pin(async move { Ok(wire::serve_here(slot, request).await) })
            }
            Err(error) => Box::pin(async move { Ok(Status::from(error).into_http()) }),
        }
    }
}

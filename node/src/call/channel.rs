//! The node's in-process channel.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tonic::{Status, body::Body};

use super::{slot::Slot, table::Table, wire};
use crate::{id::ModuleName, status::CallError};

/// A transport for any tonic client, to whatever module serves the path: `CartClient::new(channel)`. Cheap to clone.
///
/// Within the process it takes no socket and no task, but messages are encoded; a [`Handle`](crate::Handle) does
/// without that too. It gives a response in any case: an error is a gRPC status.
#[derive(Debug, Clone)]
pub struct Channel {
    table: Arc<Table>,
    from: Option<Arc<Declared>>,
}

/// A module, and those that it declares that it calls.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) module: ModuleName,
    pub(crate) calls: BTreeSet<ModuleName>,
}

impl Channel {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        Self { table, from: None }
    }

    /// The channel of a module.
    pub(crate) fn of_module(from: Arc<Declared>, table: Arc<Table>) -> Self {
        Self { table, from: Some(from) }
    }

    /// Whether a call may be made.
    fn may_call(&self, slot: &Slot, path: &str) -> Result<(), CallError> {
        let Some(from) = self.from.as_ref().filter(|_| !slot.is_built_in()) else { return Ok(()) };
        if from.module != *slot.module() && !from.calls.contains(slot.module()) {
            slot.undeclared(&from.module, path)?;
        }
        slot.admits_module(&from.module, path)
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
        let path = request.uri().path();
        let found = self.table.find(path).and_then(|slot| self.may_call(slot, path).map(|()| slot));
        match found {
            Ok(slot) => {
                let slot = Arc::clone(slot);
                Box::pin(async move { Ok(wire::serve_here(slot, request).await) })
            }
            Err(error) => Box::pin(async move { Ok(Status::from(error).into_http()) }),
        }
    }
}

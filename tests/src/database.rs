//! What a durable module writes to: it refuses who was replaced.
//!
//! ```text
//! owner at epoch 4 ─ write(4, ..) ─▶ Database, fence 5 ─▶ refused, and counted
//! owner at epoch 5 ─ raise(5) ─────▶ everything that was ever written
//! ```

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

use crate::store::v1::{
    Content, RaiseRequest, WriteRequest, WriteResponse,
    database_client::DatabaseClient,
    database_server::{self, DatabaseServer},
};

/// How long an owner waits for its database.
const LIMIT: Duration = Duration::from_secs(2);

/// It is there for as long as this is.
#[derive(Debug)]
pub struct Database {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    _server: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Kept {
    fence: u64,
    ids: Vec<String>,
    known: HashSet<String>,
    repeated: Vec<String>,
    registers: BTreeMap<String, i64>,
    refused: Vec<u64>,
}

impl Kept {
    fn pass(&mut self, fence: u64) -> Result<(), Status> {
        if fence < self.fence {
            self.refused.push(fence);
            let text = format!("fence {fence} is of an owner that was replaced: it is {} now", self.fence);
            return Err(Status::failed_precondition(text));
        }
        self.fence = fence;
        Ok(())
    }
}

struct Service(Arc<Mutex<Kept>>);

#[tonic::async_trait]
impl database_server::Database for Service {
    async fn raise(&self, request: Request<RaiseRequest>) -> Result<Response<Content>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.pass(request.into_inner().fence)?;
        let registers = kept.registers.clone().into_iter().collect();
        Ok(Response::new(Content { ids: kept.ids.clone(), repeated: kept.repeated.clone(), registers }))
    }

    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let WriteRequest { fence, content } = request.into_inner();
        let Content { ids, registers, .. } = content.unwrap_or_default();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.pass(fence)?;
        for id in ids {
            if kept.known.insert(id.clone()) { kept.ids.push(id) } else { kept.repeated.push(id) }
        }
        kept.registers.extend(registers);
        Ok(Response::new(WriteResponse { length: kept.ids.len() as u64 }))
    }
}

impl Database {
    /// An empty one, at a free port of this address.
    ///
    /// # Panics
    /// When there is none.
    pub async fn at(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let kept = Arc::<Mutex<Kept>>::default();
        let service = DatabaseServer::new(Service(Arc::clone(&kept)));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let served = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
            served.await.expect("the database serves");
        });
        Self { address, kept, _server: server }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The fences of the writes that were refused.
    #[must_use]
    pub fn refused(&self) -> Vec<u64> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).refused.clone()
    }
}

/// Where a database is.
///
/// # Errors
/// The address is none.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::try_from(format!("http://{address}"))?.connect_timeout(LIMIT).timeout(LIMIT))
}

/// How a module gets at it.
#[derive(Debug, Clone)]
pub struct Writer(DatabaseClient<Channel>);

impl Writer {
    /// One that connects when it is used.
    #[must_use]
    pub fn to(database: &Endpoint) -> Self {
        Self(DatabaseClient::new(database.connect_lazy()).max_decoding_message_size(usize::MAX))
    }

    /// Keeps owners of before from writing, and gives all that they have written.
    ///
    /// # Errors
    /// There is a later owner, or it was not reached.
    pub async fn raise(&self, fence: u64) -> Result<Content, Status> {
        Ok(self.0.clone().raise(RaiseRequest { fence }).await?.into_inner())
    }

    /// Adds entries and sets registers. Gives the length of the list.
    ///
    /// # Errors
    /// `ABORTED`: there is a later owner, and nothing was written. `UNAVAILABLE`: it may have been.
    pub async fn write(&self, fence: u64, content: Content) -> Result<u64, Status> {
        let written = self.0.clone().write(WriteRequest { fence, content: Some(content) }).await;
        match written {
            Ok(written) => Ok(written.into_inner().length),
            Err(status) if status.code() == Code::FailedPrecondition => Err(Status::aborted(status.message())),
            Err(status) => Err(Status::unavailable(format!("the database: {status}"))),
        }
    }
}

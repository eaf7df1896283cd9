//! The program that runs on each node: a register, which one node has at a time, and a desk, which calls it; and the
//! modules with state, see [`state`].

use std::{path::Path, sync::Arc, time::Duration};

use outpost::{App, BoxError, Context, Module, State};
use tonic::{Request, Response, Status, service::Interceptor};

use crate::{
    book,
    machine::turn,
    state::{self, LEDGER, PAD, SHELF},
    v1::{
        Appended, Entry, RegisterHandle,
        desk_server::{Desk, DeskServer},
        register_server::{Register, RegisterServer},
    },
};

/// The module whose calls are watched.
pub const REGISTER: &str = "register";
/// Its service.
pub const SERVICE: &str = "register.v1.Register";
/// The module that calls it.
pub const DESK: &str = "desk";
/// Its service.
pub const DESK_SERVICE: &str = "register.v1.Desk";
/// All modules.
pub const MODULES: [&str; 5] = [REGISTER, DESK, PAD, SHELF, LEDGER];
/// Their services.
pub const SERVICES: [&str; 5] = [SERVICE, DESK_SERVICE, "register.v1.Pad", "register.v1.Shelf", "register.v1.Ledger"];
/// Those that an operator moves.
pub const MOVED: [&str; 4] = [REGISTER, PAD, SHELF, LEDGER];
/// How often the shelf is checkpointed.
const CHECKPOINTED_EVERY: Duration = Duration::from_millis(200);
/// The key of the metadata that tells which call it is, before the call itself has arrived.
pub const CALL: &str = "call-id";

/// Notes the calls that a module lets in: it runs as soon as one is.
#[derive(Debug, Clone)]
pub struct Admit {
    module: &'static str,
    generation: u64,
}

impl Admit {
    /// Of a node whose data are in that directory.
    ///
    /// # Errors
    /// Of reading its generation.
    pub fn new(module: &'static str, data_dir: &Path) -> Result<Self, BoxError> {
        Ok(Self { module, generation: std::fs::read_to_string(data_dir.join("generation"))?.trim().parse()? })
    }
}

impl Interceptor for Admit {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let node = turn().map(|board| board.name().to_owned()).unwrap_or_default();
        let call = request.metadata().get(CALL).and_then(|call| call.to_str().ok()).unwrap_or_default();
        book::admitted(call, self.module, &node, self.generation);
        Ok(request)
    }
}

struct Registering {
    generation: u64,
}

#[tonic::async_trait]
impl Register for Registering {
    async fn append(&self, request: Request<Entry>) -> Result<Response<Appended>, Status> {
        let Entry { id, work_ms } = request.into_inner();
        let node = turn().map(|board| board.name().to_owned()).unwrap_or_default();
        let generation = self.generation;
        if work_ms > 0 {
            tokio::time::sleep(Duration::from_millis(work_ms.into())).await;
        }
        // The effect comes with the end of the work: what was cut off before has had none.
        book::executed(&id, &node, generation);
        Ok(Response::new(Appended { id, node, generation, epoch: 0, place: 0 }))
    }
}

struct AtTheDesk {
    register: RegisterHandle,
}

#[tonic::async_trait]
impl Desk for AtTheDesk {
    async fn append(&self, request: Request<Entry>) -> Result<Response<Appended>, Status> {
        let call = request.metadata().get(CALL).cloned();
        let mut onwards = Request::new(request.into_inner());
        if let Some(call) = call {
            onwards.metadata_mut().insert(CALL, call);
        }
        self.register.append(onwards).await
    }
}

/// The program of one process. Which one it is, its data directory tells once it has begun.
#[must_use]
pub fn app(data_dir: &Path) -> App {
    let data: Arc<Path> = data_dir.into();
    let admit = move |module| {
        let data = Arc::clone(&data);
        move || Admit::new(module, &data)
    };
    let (register, pad, shelf, ledger) = (admit(REGISTER), admit(PAD), admit(SHELF), admit(LEDGER));
    let register = move || {
        let admit = register();
        async move {
            let admit = admit?;
            let registering = Registering { generation: admit.generation };
            Ok::<_, BoxError>(RegisterServer::with_interceptor(registering, admit))
        }
    };
    let pad = move |ctx: Context, list: State<state::List<true>>| {
        let admit = pad();
        async move { state::pad(admit?, ctx, list).await }
    };
    let shelf = move |ctx: Context, list: State<state::List<false>>| {
        let admit = shelf();
        async move { state::shelf(admit?, ctx, list).await }
    };
    let ledger = move |ctx: Context| {
        let admit = ledger();
        async move { state::ledger(admit?, ctx).await }
    };
    App::new("register", "1.0.0")
        .module(REGISTER, register)
        .module(DESK, desk)
        .module(PAD, pad)
        .with(Module::new(SHELF, shelf).checkpointed(CHECKPOINTED_EVERY))
        .with(Module::new(LEDGER, ledger).durable())
}

async fn desk(register: RegisterHandle) -> Result<DeskServer<impl Desk>, BoxError> {
    Ok(DeskServer::new(AtTheDesk { register }))
}

//! A node's admin API over a cluster that a test makes up and changes, and the tool that speaks to it.

#![allow(dead_code, clippy::allow_attributes, reason = "not every test file needs all of it")]

use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, stream};
use outpost_proto::{
    admin::v1::{
        AbortMoveRequest, ApplyRequest, AuditEntry, AuditRequest, AuditResponse, Changed, Cluster, ClusterModule,
        ClusterNode, CordonRequest, DescribeRequest, DescribeResponse, DrainRequest, Event, EventsRequest,
        ExplainRequest, ExplainResponse, ForgetRequest, HistoryRequest, HistoryResponse, ModuleHost, ModulePin,
        MoveRequest, Movement, NodeVerdict, PinRequest, PlacementVersion, PlanRequest, PlanResponse, PlannedChange,
        RollbackRequest, ScaleRequest, SetVotersRequest, UnpinRequest, Voter, WatchRequest,
        admin_server::{Admin, AdminServer},
    },
    audit,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStderr, Command},
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::{Request, Response, Status, codegen::BoxStream};

use crate::tool::{Ran, outpost, ran};

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) address: String,
    cluster: Arc<watch::Sender<Cluster>>,
    events: Arc<watch::Sender<Vec<Event>>>,
    /// Who asked for what, and why.
    asked: Arc<Mutex<Vec<String>>>,
    hang_up: Arc<Notify>,
    // The server ends with the last handle.
    _server: Arc<Mutex<JoinSet<()>>>,
}

impl Fake {
    /// Three nodes, of which node-1 leads, and the modules cart, catalog and checkout on node-1.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            address: listener.local_addr().unwrap().to_string(),
            cluster: Arc::new(watch::Sender::new(cluster())),
            events: Arc::new(watch::Sender::new(vec![event(1, "placed", "cart", "cart is on node-1")])),
            asked: Arc::default(),
            hang_up: Arc::default(),
            _server: Arc::default(),
        };
        let service = Operators {
            cluster: fake.cluster.clone(),
            events: fake.events.clone(),
            asked: fake.asked.clone(),
            hang_up: fake.hang_up.clone(),
        };
        let server = tonic::transport::Server::builder().add_service(AdminServer::new(service));
        fake._server.lock().unwrap().spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        fake
    }

    /// One entry of the log, which changes a module.
    pub(crate) fn change_module(&self, name: &str, change: impl FnOnce(&mut ClusterModule)) {
        self.change(|cluster| change(cluster.modules.iter_mut().find(|module| module.name == name).unwrap()));
    }

    /// One entry of the log.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Cluster)) {
        self.cluster.send_modify(|cluster| {
            cluster.index += 1;
            change(cluster);
        });
    }

    /// Ends the streams of the cluster that are open, as a node that stops does.
    pub(crate) fn hang_up(&self) {
        self.hang_up.notify_waiters();
    }

    /// The move of a module gets to a phase, with so many bytes of state.
    pub(crate) fn phase(&self, name: &str, phase: &str, bytes: u64) {
        self.change_module(name, |module| {
            let movement = module.movement.as_mut().unwrap();
            phase.clone_into(&mut movement.phase);
            movement.bytes = bytes;
        });
    }

    pub(crate) fn happened(&self, event: Event) {
        self.events.send_modify(|events| events.push(event));
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = outpost(args);
        command.env("OUTPOST_NODE", &self.address);
        command
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args).spawn().unwrap()).await
    }

    /// Starts it, for a test that looks at what it says on the way.
    pub(crate) fn begin(&self, args: &[&str]) -> (Child, Lines<BufReader<ChildStderr>>) {
        let mut child = self.command(args).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        (child, stderr)
    }
}

pub(crate) fn event(index: u64, kind: &str, module: &str, text: &str) -> Event {
    Event {
        index,
        at_ms: 1_700_000_000_000 + index,
        kind: kind.to_owned(),
        module: module.to_owned(),
        text: text.to_owned(),
        ..Event::default()
    }
}

pub(crate) fn host(node: &str, state: &str) -> ModuleHost {
    ModuleHost { node: node.to_owned(), state: state.to_owned(), error: String::new() }
}

fn cluster() -> Cluster {
    let node = |number: u16| ClusterNode {
        name: format!("node-{number}"),
        state: "ready".to_owned(),
        role: if number == 1 { "leader" } else { "voter" }.to_owned(),
        version: "1.2.3".to_owned(),
        ingress: format!("127.0.0.1:70{}0", number - 1),
        persistent: true,
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        modules: if number == 1 { vec!["cart".to_owned(), "checkout".to_owned()] } else { Vec::new() },
        ..ClusterNode::default()
    };
    let module = |name: &str, kind: &str, replicas| ClusterModule {
        name: name.to_owned(),
        kind: kind.to_owned(),
        replicas,
        state: "serving".to_owned(),
        epoch: 2,
        index: 17,
        services: vec![format!("shop.v1.{name}")],
        hosts: vec![host("node-1", "serving")],
        ..ClusterModule::default()
    };
    let voter = |number: u64| Voter {
        node: format!("node-{number}"),
        raft_id: number,
        state: if number == 1 { "leader" } else { "follower" }.to_owned(),
    };
    Cluster {
        id: "c1".to_owned(),
        application: "shop".to_owned(),
        seen_by: "node-1".to_owned(),
        leader: "node-1".to_owned(),
        term: 3,
        index: 100,
        placement: 4,
        voters: vec![voter(1), voter(2), voter(3)],
        nodes: vec![node(1), node(2), node(3)],
        modules: vec![
            module("cart", "exclusive", 0),
            module("catalog", "replicated", 1),
            module("checkout", "exclusive", 0),
        ],
        ..Cluster::default()
    }
}

struct Operators {
    cluster: Arc<watch::Sender<Cluster>>,
    events: Arc<watch::Sender<Vec<Event>>>,
    asked: Arc<Mutex<Vec<String>>>,
    hang_up: Arc<Notify>,
}

impl Operators {
    fn log(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    /// One entry of the log that a request asked for.
    fn commit(&self, change: impl FnOnce(&mut Cluster)) -> Result<Response<Changed>, Status> {
        let mut changed = Changed { changed: true, ..Changed::default() };
        self.cluster.send_modify(|cluster| {
            cluster.index += 1;
            change(cluster);
            (changed.index, changed.placement) = (cluster.index, cluster.placement);
        });
        Ok(Response::new(changed))
    }

    fn already(&self) -> Result<Response<Changed>, Status> {
        let cluster = self.cluster.borrow();
        Ok(Response::new(Changed { index: cluster.index, placement: cluster.placement, changed: false }))
    }

    fn check(&self, index: Option<u64>) -> Result<(), Status> {
        let placement = self.cluster.borrow().placement;
        match index {
            Some(index) if index != placement => {
                Err(Status::aborted(format!("version {placement} is in force, not {index}")))
            }
            _ => Ok(()),
        }
    }

    fn module(&self, name: &str) -> ClusterModule {
        self.cluster.borrow().modules.iter().find(|module| module.name == name).cloned().unwrap()
    }
}

fn module<'a>(cluster: &'a mut Cluster, name: &str) -> &'a mut ClusterModule {
    cluster.modules.iter_mut().find(|module| module.name == name).unwrap()
}

/// What the entry at `cluster.index` does.
pub(crate) fn begin_move(cluster: &mut Cluster, name: &str, to: &str, by: &str) {
    let id = cluster.index;
    let module = module(cluster, name);
    module.state = "moving".to_owned();
    module.moving_to = to.to_owned();
    module.movement = Some(Movement {
        id,
        from: module.hosts[0].node.clone(),
        to: to.to_owned(),
        phase: "starting".to_owned(),
        begun_ms: 1_700_000_000_000,
        bytes: 0,
        by: by.to_owned(),
    });
}

/// The module stays where it is.
pub(crate) fn end_move(module: &mut ClusterModule) {
    (module.state, module.moving_to, module.movement) = ("serving".to_owned(), String::new(), None);
}

#[tonic::async_trait]
impl Admin for Operators {
    /// One change, by ada.
    async fn audit(&self, _: Request<AuditRequest>) -> Result<Response<AuditResponse>, Status> {
        let entry = AuditEntry {
            index: 7,
            at_ms: 1_700_000_000_000,
            by: "ada".to_owned(),
            from: "127.0.0.1:5 at node-1".to_owned(),
            kind: "node-cordoned".to_owned(),
            text: "node-2 gets nothing new".to_owned(),
            hash: String::new(),
        };
        let entry = AuditEntry { hash: audit::hash(audit::FIRST, &entry), ..entry };
        Ok(Response::new(AuditResponse { previous: audit::FIRST.to_owned(), entries: vec![entry] }))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Err(Status::unimplemented("the tests of this are run against a node"))
    }

    type WatchStream = BoxStream<Cluster>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<BoxStream<Cluster>>, Status> {
        let hang_up = self.hang_up.clone().notified_owned();
        Ok(Response::new(WatchStream::new(self.cluster.subscribe()).map(Ok).take_until(hang_up).boxed()))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let name = request.into_inner().module;
        let verdict = |node: &str, host, reason: &str| NodeVerdict {
            node: node.to_owned(),
            host,
            eligible: true,
            reason: reason.to_owned(),
        };
        Ok(Response::new(ExplainResponse {
            module: Some(self.module(&name)),
            rules: vec!["kind = exclusive (registration)".to_owned()],
            nodes: vec![verdict("node-1", true, "is its host"), verdict("node-2", false, "another is its host")],
            events: self.events.borrow().clone(),
        }))
    }

    type EventsStream = BoxStream<Event>;

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<BoxStream<Event>>, Status> {
        let EventsRequest { after, follow } = request.into_inner();
        let later = move |events: Vec<Event>| events.into_iter().filter(move |event| event.index > after);
        if !follow {
            return Ok(Response::new(stream::iter(later(self.events.borrow().clone()).map(Ok)).boxed()));
        }
        let mut sent = 0;
        let news = WatchStream::new(self.events.subscribe()).flat_map(move |events| {
            let new: Vec<Event> = later(events).skip(sent).collect();
            sent += new.len();
            stream::iter(new.into_iter().map(Ok))
        });
        Ok(Response::new(news.boxed()))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let document = request.into_inner().document.unwrap();
        if document.text.contains("wrong") {
            return Err(Status::invalid_argument(format!("{}:1: there is no rule `wrong`", document.name)));
        }
        let index = self.cluster.borrow().placement;
        if document.text.is_empty() {
            return Ok(Response::new(PlanResponse { index, ..PlanResponse::default() }));
        }
        let change = PlannedChange {
            module: "cart".to_owned(),
            from: vec!["node-1".to_owned()],
            to: vec!["node-2".to_owned()],
            reason: "pinned".to_owned(),
        };
        Ok(Response::new(PlanResponse {
            index,
            rules: vec!["+ module.cart.pin = \"node-2\"".to_owned()],
            changes: vec![change],
            unplaced: Vec::new(),
        }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<Changed>, Status> {
        let ApplyRequest { document, check_index, by, why } = request.into_inner();
        self.check(check_index)?;
        self.log(format!("apply by {by}: {why}"));
        if document.unwrap().text.is_empty() {
            return self.already();
        }
        self.commit(|cluster| cluster.placement += 1)
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let version = |version| PlacementVersion {
            version,
            at_ms: 1_700_000_000_000,
            by: "ada@desk".to_owned(),
            why: format!("reason {version}"),
            document: format!("# version {version}\n"),
        };
        Ok(Response::new(HistoryResponse { versions: vec![version(4), version(3)] }))
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<Changed>, Status> {
        let RollbackRequest { version, check_index, by, why } = request.into_inner();
        self.check(check_index)?;
        self.log(format!("rollback to {version} by {by}: {why}"));
        self.commit(|cluster| cluster.placement += 1)
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<Changed>, Status> {
        let ScaleRequest { module: name, replicas, check_index, .. } = request.into_inner();
        self.check(check_index)?;
        if self.module(&name).kind != "replicated" {
            return Err(Status::failed_precondition(format!("{name} is exclusive, and has one host")));
        }
        self.log(format!("scale {name} to {replicas}"));
        self.commit(|cluster| {
            let module = module(cluster, &name);
            module.replicas = replicas;
            module.state = "degraded".to_owned();
        })
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<Changed>, Status> {
        let PinRequest { module: name, node, reason, ttl_seconds, .. } = request.into_inner();
        self.log(format!("pin {name} to {node} for {ttl_seconds} s: {reason}"));
        self.commit(|cluster| {
            let module = module(cluster, &name);
            module.hosts = vec![host(&node, "serving")];
            module.pin = Some(ModulePin { node, reason, expires_ms: 0 });
        })
    }

    async fn unpin(&self, _: Request<UnpinRequest>) -> Result<Response<Changed>, Status> {
        self.already()
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<Changed>, Status> {
        let MoveRequest { module: name, node, check_index, lose_state, by, .. } = request.into_inner();
        let now = self.module(&name);
        if check_index.is_some_and(|index| index != now.index) {
            return Err(Status::aborted(format!("{name} is at index {}", now.index)));
        }
        if let Some(movement) = now.movement {
            // The one that is under way, for whoever asks again.
            if movement.to == node {
                let placement = self.cluster.borrow().placement;
                return Ok(Response::new(Changed { index: movement.id, placement, changed: false }));
            }
            return Err(Status::failed_precondition(format!("it is on its way to {} already", movement.to)));
        }
        if now.hosts.iter().any(|host| host.node == node) {
            return self.already();
        }
        self.log(format!("move {name} to {node} by {by}, lose_state {lose_state}"));
        self.commit(|cluster| begin_move(cluster, &name, &node, &by))
    }

    async fn abort_move(&self, request: Request<AbortMoveRequest>) -> Result<Response<Changed>, Status> {
        let AbortMoveRequest { module: name, move_id, by, why } = request.into_inner();
        let Some(movement) = self.module(&name).movement else {
            return Err(Status::failed_precondition("no move of it is under way"));
        };
        if move_id != 0 && move_id != movement.id {
            return Err(Status::failed_precondition(format!("the move that is under way is {}", movement.id)));
        }
        self.log(format!("abort {name} by {by}: {why}"));
        self.commit(|cluster| end_move(module(cluster, &name)))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Changed>, Status> {
        let DrainRequest { node, by, why } = request.into_inner();
        if self.cluster.borrow().nodes.iter().any(|it| it.name == node && it.drained) {
            return self.already();
        }
        self.log(format!("drain {node} by {by}: {why}"));
        self.commit(|cluster| {
            let node = cluster.nodes.iter_mut().find(|it| it.name == node).unwrap();
            (node.cordoned, node.drained) = (true, true);
        })
    }

    async fn cordon(&self, request: Request<CordonRequest>) -> Result<Response<Changed>, Status> {
        let CordonRequest { node, cordoned, .. } = request.into_inner();
        self.commit(|cluster| {
            let node = cluster.nodes.iter_mut().find(|it| it.name == node).unwrap();
            node.cordoned = cordoned;
            node.drained &= cordoned;
        })
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<Changed>, Status> {
        let ForgetRequest { node, .. } = request.into_inner();
        self.commit(|cluster| cluster.nodes.retain(|it| it.name != node))
    }

    async fn set_voters(&self, request: Request<SetVotersRequest>) -> Result<Response<Changed>, Status> {
        let SetVotersRequest { count, .. } = request.into_inner();
        self.commit(|cluster| {
            cluster.voters_set = count;
            if count > 0 {
                cluster.voters.truncate(usize::try_from(count).unwrap());
            }
        })
    }
}

//! The operator's API: `outpost.admin.v1.Admin`, on a listener of its own: for this machine, or for who has a certificate.
//!
//! Every node answers from what it knows, and hands changes on to the leader. What is asked is checked here, against the
//! same facts that the leader plans with; the log then takes it only if nobody was faster.

pub(crate) mod guard;
mod render;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use outpost_proto::admin::v1::{
    self as proto, AbortMoveRequest, ApplyRequest, AuditRequest, AuditResponse, Changed, CordonRequest,
    DescribeRequest, DescribeResponse, DrainRequest, EventsRequest, ExplainRequest, ExplainResponse, ForgetRequest,
    HistoryRequest, HistoryResponse, MoveRequest, PinRequest, PlanRequest, PlanResponse, RollbackRequest, ScaleRequest,
    SetVotersRequest, UnpinRequest, WatchRequest,
    admin_server::{Admin, AdminServer},
};
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use crate::{
    clock,
    cluster::View,
    id::{Incarnation, ModuleName, NodeId, Timestamp},
    node::Facts,
    placement::{
        document::{self, Document, Format},
        log::ProposeError,
        scheduler,
        spec::StateClass,
        spec::{Count, KindName, Pin, Spec},
        state::{Asked, Command, Declared, Hosting, Part, PartChange, Proposal, Refused, State},
        view::{self, Heard},
    },
    status::AdminError,
    trust::operators::{Forbidden, Operator},
};

/// How close to each other two views of the cluster are sent.
const GAP: Duration = Duration::from_millis(20);
/// How many names are suggested or listed in an error.
const NAMED: usize = 20;
/// How long a reason, or who gives it, may be: both are kept by every node.
const LONGEST: usize = 1024;

pub(crate) fn server(facts: Arc<Facts>, view: View) -> AdminServer<impl Admin> {
    AdminServer::new(Operators { facts, view }).max_decoding_message_size(2 * document::LARGEST)
}

/// The cluster as operators see it.
pub(crate) fn seen(view: &View) -> proto::Cluster {
    let state = Arc::clone(&view.log.state().borrow());
    let (members, leadership) = (Arc::clone(&view.members.borrow()), view.log.leadership().borrow().clone());
    render::cluster(view, &state, &members, &leadership)
}

struct Operators {
    facts: Arc<Facts>,
    view: View,
}

type Streamed<T> = stream::BoxStream<'static, Result<T, Status>>;

impl Operators {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.view.log.state().borrow())
    }

    /// The facts, with another spec than the one in force perhaps, for a look at what is and could be.
    fn with_facts<T>(&self, state: &State, spec: &Spec, look: impl FnOnce(&scheduler::Facts<'_>) -> T) -> T {
        let members = Arc::clone(&self.view.members.borrow());
        let heard = Heard { applied_by_all: state.index, ..self.view.heard(state) };
        look(&view::facts(state, spec, &members, &heard, &self.view.versions, clock::wall(), self.view.limits))
    }

    /// `by` is who the tool says that it is: what counts where nobody has to show who it is.
    async fn propose(&self, asker: &Operator, by: String, command: Command) -> Result<u64, AdminError> {
        let by = match &asker.name {
            Some(name) => name.clone(),
            None if by.is_empty() => format!("operator at {}", self.view.me),
            None => by,
        };
        let (kind, text) = told(&command);
        let asked = Asked { node: self.view.me.to_string(), from: asker.from.clone(), kind: kind.to_owned(), text };
        for (what, text) in [("who asks", &by), ("the reason", &asked.text)] {
            if text.len() > LONGEST {
                return Err(AdminError::TooLong { what, bytes: text.len() });
            }
        }
        Ok(self.view.log.propose(Proposal { at: clock::wall(), by, asked: Some(asked), command }).await??)
    }

    fn module<'a>(&self, state: &'a State, name: &str) -> Result<(ModuleName, &'a Declared), AdminError> {
        let declared = state.declared();
        let found = ModuleName::parse(name).ok().and_then(|name| Some((name.clone(), *declared.get(&name)?)));
        found.ok_or_else(|| {
            let known = declared.keys().take(NAMED).map(ToString::to_string).collect();
            AdminError::NoModule { name: name.to_owned(), known }
        })
    }

    fn node(&self, state: &State, name: &str) -> Result<NodeId, AdminError> {
        let found = NodeId::parse(name).ok().filter(|node| state.nodes.contains_key(node));
        found.ok_or_else(|| {
            let known = state.nodes.keys().take(NAMED).map(ToString::to_string).collect();
            AdminError::NoNode { name: name.to_owned(), known }
        })
    }

    /// Puts a changed spec in force, if it is one and can be.
    async fn change(
        &self,
        check_index: Option<u64>,
        (asker, by, why): (&Operator, String, String),
        edit: impl FnOnce(&State, Spec) -> Result<Document, AdminError>,
    ) -> Result<Response<Changed>, Status> {
        let state = self.state();
        let (version, spec) = state.spec();
        if let Some(expected) = check_index
            && expected != version
        {
            return Err(AdminError::PlacementChanged { expected, current: version }.into());
        }
        let document = edit(&state, spec.clone())?;
        let faults = self.with_facts(&state, &document.spec, |facts| document::check(&document, facts));
        if !faults.is_empty() {
            return Err(AdminError::Faults(faults).into());
        }
        if document.spec == *spec {
            return Ok(Response::new(Changed { index: state.index, placement: version, changed: false }));
        }
        let index = self.propose(asker, by, Command::SetSpec { expect: version, spec: document.spec, why }).await?;
        Ok(Response::new(Changed { index, placement: version + 1, changed: true }))
    }

    fn changed(&self, index: u64) -> Response<Changed> {
        Response::new(Changed { index, placement: self.state().spec().0, changed: true })
    }

    fn unchanged(&self, state: &State) -> Response<Changed> {
        Response::new(Changed { index: state.index, placement: state.spec().0, changed: false })
    }
}

/// Who asks: see [`guard`], without which nobody does.
fn asker<T>(request: &Request<T>) -> Result<Operator, AdminError> {
    let known = request.extensions().get::<Operator>().cloned();
    known.ok_or_else(|| Forbidden::Unknown(String::new()).into())
}

/// What an operator's command is called, and what it does, for the audit log.
fn told(command: &Command) -> (&'static str, String) {
    let with = |text: String, why: &str| if why.is_empty() { text } else { format!("{text}: {why}") };
    match command {
        Command::SetSpec { expect, why, .. } => ("placement", with(format!("placement version {}", expect + 1), why)),
        Command::Part { module, change: PartChange::BeginMove { to, .. }, why, .. } => {
            ("move", with(format!("{module} to {}", to.node), why))
        }
        Command::Part { module, why, .. } => ("abort-move", with(format!("{module} stays"), why)),
        Command::Drain { node, why } => ("drain", with(node.to_string(), why)),
        Command::Cordon { node, cordoned } => (if *cordoned { "cordon" } else { "uncordon" }, node.to_string()),
        Command::Forget(node) => ("forget", node.to_string()),
        Command::SetVoters { count: 0 } => ("voters", "as many as the cluster chooses".to_owned()),
        Command::SetVoters { count } => ("voters", format!("{count} nodes vote")),
        // Not an operator's to give.
        Command::Found { .. } | Command::Register { .. } | Command::Leave(_) => ("other", String::new()),
    }
}

/// A spec that was not read from a document, but changed by a command.
fn edited(command: &str, spec: Spec) -> Document {
    Document::of(command, spec)
}

fn parse(document: Option<proto::Document>) -> Result<Document, AdminError> {
    let proto::Document { text, format, name } = document.unwrap_or_default();
    let format = Format::parse(&format).ok_or(AdminError::NoFormat(format))?;
    let name = if name.is_empty() { "placement".to_owned() } else { name };
    document::parse(&text, format, &name).map_err(AdminError::Faults)
}

#[tonic::async_trait]
impl Admin for Operators {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(self.facts.describe()))
    }

    type WatchStream = Streamed<proto::Cluster>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let view = self.view.clone();
        let watched = (view.log.state(), view.members.clone(), view.log.leadership(), view, true);
        let clusters = stream::unfold(watched, |(mut state, mut members, mut leadership, view, first)| async move {
            if !first {
                // The log ends with the node.
                tokio::select! {
                    changed = state.changed() => changed.ok()?,
                    Ok(()) = members.changed() => {}
                    Ok(()) = leadership.changed() => {}
                }
                // What comes together is told together.
                sleep(GAP).await;
            }
            let cluster = render::cluster(
                &view,
                &Arc::clone(&state.borrow_and_update()),
                &Arc::clone(&members.borrow_and_update()),
                &leadership.borrow_and_update().clone(),
            );
            Some((Ok(cluster), (state, members, leadership, view, false)))
        });
        Ok(Response::new(clusters.boxed()))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let name = request.into_inner().module;
        let state = self.state();
        let (module, _) = self.module(&state, &name)?;
        let (_, spec) = state.spec();
        let explained = self.with_facts(&state, spec, |facts| scheduler::explain(facts, &module));
        let Some(explained) = explained else {
            return Err(AdminError::NoModule { name, known: Vec::new() }.into());
        };
        let members = Arc::clone(&self.view.members.borrow());
        let leadership = self.view.log.leadership().borrow().clone();
        let cluster = render::cluster(&self.view, &state, &members, &leadership);
        Ok(Response::new(render::explanation(&module, explained, cluster, &state)))
    }

    type EventsStream = Streamed<proto::Event>;

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let EventsRequest { after, follow } = request.into_inner();
        let state = self.view.log.state();
        let later = stream::unfold((state, after, true), move |(mut state, after, first)| async move {
            if !first {
                if !follow {
                    return None;
                }
                state.changed().await.ok()?;
            }
            let known = Arc::clone(&state.borrow_and_update());
            let events: Vec<_> = known.events.iter().filter(|event| event.index > after).map(render::event).collect();
            let after = known.events.back().map_or(after, |last| last.index.max(after));
            Some((stream::iter(events.into_iter().map(Ok)), (state, after, false)))
        });
        Ok(Response::new(later.flatten().boxed()))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let document = parse(request.into_inner().document)?;
        let state = self.state();
        let (version, spec) = state.spec();
        let faults = self.with_facts(&state, &document.spec, |facts| document::check(&document, facts));
        if !faults.is_empty() {
            return Err(AdminError::Faults(faults).into());
        }
        let members = Arc::clone(&self.view.members.borrow());
        let View { versions, limits, .. } = &self.view;
        let (foreseen, rest) = view::foresee(&state, &document.spec, &members, versions, clock::wall(), *limits);
        Ok(Response::new(PlanResponse {
            index: version,
            rules: document::diff(spec, &document.spec),
            changes: foreseen.into_iter().map(render::foreseen).collect(),
            unplaced: rest.unplaced.into_iter().chain(rest.misplaced).map(render::unmet).collect(),
        }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        asker.may_change_all().map_err(AdminError::from)?;
        let ApplyRequest { document, check_index, by, why } = request.into_inner();
        self.change(check_index, (&asker, by, why), |_, _| parse(document)).await
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let state = self.state();
        Ok(Response::new(HistoryResponse { versions: state.specs.iter().rev().map(render::version).collect() }))
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        asker.may_change_all().map_err(AdminError::from)?;
        let RollbackRequest { version, check_index, by, why } = request.into_inner();
        let why = if why.is_empty() { format!("back to version {version}") } else { why };
        self.change(check_index, (&asker, by, why), |state, _| {
            let spec = match version {
                0 => Some(Spec::default()),
                version => state.specs.iter().find(|known| known.version == version).map(|known| known.spec.clone()),
            };
            let spec = spec.ok_or_else(|| AdminError::NoVersion {
                version,
                first: state.specs.front().map_or(0, |oldest| oldest.version),
                last: state.spec().0,
            })?;
            Ok(edited(&format!("version {version}"), spec))
        })
        .await
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        let ScaleRequest { module, replicas, check_index, by, why } = request.into_inner();
        let count = match replicas {
            0 => Count::Every,
            replicas => Count::Exactly(u16::try_from(replicas).unwrap_or(u16::MAX)),
        };
        let why = if why.is_empty() { format!("scale {module} to {count}") } else { why };
        self.change(check_index, (&asker, by, why), |state, mut spec| {
            let (module, _) = self.module(state, &module)?;
            asker.may_change(&module)?;
            let rules = spec.modules.entry(module).or_default();
            rules.kind = Some(KindName::Replicated);
            rules.replicas = Some(count);
            Ok(edited("scale", spec))
        })
        .await
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        let PinRequest { module, node, reason, ttl_seconds, check_index, by } = request.into_inner();
        if reason.trim().is_empty() {
            return Err(AdminError::NoReason.into());
        }
        let expires =
            (ttl_seconds > 0).then(|| Timestamp(clock::wall().0.saturating_add(ttl_seconds.saturating_mul(1000))));
        self.change(check_index, (&asker, by, format!("pin {module} to {node}: {reason}")), |state, mut spec| {
            let (module, _) = self.module(state, &module)?;
            asker.may_change(&module)?;
            let node = self.node(state, &node)?;
            spec.modules.entry(module).or_default().pin = Some(Pin { node, reason, expires });
            Ok(edited("pin", spec))
        })
        .await
    }

    async fn unpin(&self, request: Request<UnpinRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        let UnpinRequest { module, check_index, by, why } = request.into_inner();
        let why = if why.is_empty() { format!("unpin {module}") } else { why };
        self.change(check_index, (&asker, by, why), |state, mut spec| {
            let (module, _) = self.module(state, &module)?;
            asker.may_change(&module)?;
            if let Some(rules) = spec.modules.get_mut(&module) {
                rules.pin = None;
                if *rules == Default::default() {
                    spec.modules.remove(&module);
                }
            }
            Ok(edited("unpin", spec))
        })
        .await
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        let MoveRequest { module, node, check_index, lose_state, by, why } = request.into_inner();
        let state = self.state();
        let (module, declared) = self.module(&state, &module)?;
        asker.may_change(&module).map_err(AdminError::from)?;
        let node = self.node(&state, &node)?;
        let problem = |problem: String| AdminError::CannotMove { module: module.clone(), node: node.clone(), problem };
        let Some(part @ Part { version, hosting, .. }) = state.parts.get(&module) else {
            return Err(problem("it is not placed yet; `outpost why` tells the reason".to_owned()).into());
        };
        if let Some(expected) = check_index
            && expected != *version
        {
            return Err(AdminError::ModuleChanged { module, expected, current: *version }.into());
        }
        let Hosting::Exclusive { owner, moving, .. } = hosting else {
            let text =
                "several nodes host it at a time; use `outpost scale`, or `outpost apply` with rules for its hosts";
            return Err(problem(text.to_owned()).into());
        };
        if let Some(moving) = moving {
            // Whoever asks again, having lost the answer or the patience, wants to follow this one.
            if moving.to.node == node && moving.chosen {
                let placement = state.spec().0;
                return Ok(Response::new(Changed { index: moving.id, placement, changed: false }));
            }
            return Err(problem(format!("it is on its way to {} already", moving.to.node)).into());
        }
        if owner.node == node {
            return Ok(self.unchanged(&state));
        }
        if !part.is_settled() {
            return Err(problem(format!("{} has not begun to serve it yet; try again", owner.node)).into());
        }
        if declared.state == StateClass::Fixed && !lose_state {
            let text = "it declares state that can't travel and would be lost; move it all the same with --lose-state";
            return Err(problem(text.to_owned()).into());
        }
        let (_, spec) = state.spec();
        let pin = spec.effective(&module, declared, clock::wall()).pin;
        if let Some(pin) = pin {
            let text = format!("it is pinned to {} ({}); use `outpost unpin {module}` first", pin.node, pin.reason);
            return Err(problem(text).into());
        }
        let explained = self.with_facts(&state, spec, |facts| scheduler::explain(facts, &module));
        let verdict = explained.and_then(|explained| {
            explained.nodes.into_iter().find(|verdict| verdict.node == node && !verdict.eligible)
        });
        if let Some(verdict) = verdict {
            return Err(problem(verdict.reason).into());
        }
        let Some(to) = state.incarnation(&node) else {
            return Err(problem("it has left the cluster".to_owned()).into());
        };
        let change = PartChange::BeginMove { to, chosen: true };
        let index = self.propose(&asker, by, Command::Part { module, expect: *version, change, why }).await?;
        Ok(self.changed(index))
    }

    async fn abort_move(&self, request: Request<AbortMoveRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        let AbortMoveRequest { module, mut move_id, by, why } = request.into_inner();
        let mut states = self.view.log.state();
        loop {
            let state = Arc::clone(&states.borrow_and_update());
            let (module, _) = self.module(&state, &module)?;
            asker.may_change(&module).map_err(AdminError::from)?;
            let part = state.parts.get(&module);
            let problem = match part.and_then(Part::moving) {
                Some(moving) if move_id == 0 || move_id == moving.id => {
                    move_id = moving.id;
                    None
                }
                Some(moving) => Some(format!("the move that is under way is {}, to {}", moving.id, moving.to.node)),
                None => Some("no move of it is under way".to_owned()),
            };
            if let Some(problem) = problem {
                return Err(AdminError::CannotAbort { module, problem }.into());
            }
            let expect = part.map_or(0, |part| part.version);
            let command =
                Command::Part { module: module.clone(), expect, change: PartChange::AbortMove, why: why.clone() };
            match self.propose(&asker, by.clone(), command).await {
                Ok(index) => return Ok(self.changed(index)),
                // Its target has got ready, say: it is the same move, and can be given up as well.
                Err(AdminError::Refused(Refused::PartChanged { current, .. })) if current > expect => {
                    let has_come =
                        |state: &Arc<State>| state.parts.get(&module).is_none_or(|part| part.version >= current);
                    let ended = |_| AdminError::from(ProposeError::Ended("the node stops".to_owned()));
                    states.wait_for(has_come).await.map_err(ended)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        asker.may_change_all().map_err(AdminError::from)?;
        let DrainRequest { node, by, why } = request.into_inner();
        let state = self.state();
        let node = self.node(&state, &node)?;
        if state.nodes[&node].draining {
            return Ok(self.unchanged(&state));
        }
        let index = self.propose(&asker, by, Command::Drain { node, why }).await?;
        Ok(self.changed(index))
    }

    async fn cordon(&self, request: Request<CordonRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        asker.may_change_all().map_err(AdminError::from)?;
        let CordonRequest { node, cordoned, by } = request.into_inner();
        let state = self.state();
        let node = self.node(&state, &node)?;
        let known = &state.nodes[&node];
        if known.cordoned == cordoned && (cordoned || !known.draining) {
            return Ok(self.unchanged(&state));
        }
        let index = self.propose(&asker, by, Command::Cordon { node, cordoned }).await?;
        Ok(self.changed(index))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        asker.may_change_all().map_err(AdminError::from)?;
        let ForgetRequest { node, by } = request.into_inner();
        let state = self.state();
        let node = self.node(&state, &node)?;
        let heard = self.view.heard(&state);
        let gone = state.nodes[&node].left
            || state.incarnation(&node).is_some_and(|incarnation: Incarnation| heard.ended.contains(&incarnation));
        let alive = self.view.members.borrow().get(&node).is_some_and(|member| member.alive);
        if alive && !gone {
            return Err(AdminError::StillAlive(node).into());
        }
        let index = self.propose(&asker, by, Command::Forget(node)).await?;
        Ok(self.changed(index))
    }

    async fn audit(&self, _: Request<AuditRequest>) -> Result<Response<AuditResponse>, Status> {
        let state = self.state();
        let (previous, entries) = (state.audit.previous.clone(), state.audit.entries().collect());
        Ok(Response::new(AuditResponse { previous, entries }))
    }

    async fn set_voters(&self, request: Request<SetVotersRequest>) -> Result<Response<Changed>, Status> {
        let asker = asker(&request)?;
        asker.may_change_all().map_err(AdminError::from)?;
        let SetVotersRequest { count, by } = request.into_inner();
        if !matches!(count, 0 | 1 | 3 | 5) {
            return Err(AdminError::BadVoters(count).into());
        }
        let index = self.propose(&asker, by, Command::SetVoters { count }).await?;
        Ok(self.changed(index))
    }
}

//! A call as a gRPC request, served by a tonic server in this process or passed on to another node.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, uri::PathAndQuery};
use http_body::{Frame, SizeHint};
use outpost_proto::{options::MethodDelivery, v1::Delivery};
use tokio::time::{Instant, Sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Status, body::Body};
use tower::ServiceExt as _;

use super::{
    caller::Held,
    counts::{Account, Origin, Went, code_in},
    deadline,
    dedupe::{Dedupe, Reply},
    delivery,
    gate::{Pass, Refusal},
    guard::{self, Guarded},
    link::Link,
    passed::{self, Ongoing},
    placed::{self, Arrival, Attempt, CALL_ID, Choice, Outgoing, Placed, Tried},
    retry,
    route::as_from_wire,
    scope::Scope,
    slot::{Local, Request, Response, Slot, Target, Waiting, Wire},
};
use crate::{
    BoxError,
    id::{Epoch, NodeId},
    status::CallError,
};

/// Counts a call as in flight for as long as it lives.
pub(crate) type InFlight = TaskTrackerToken;

/// Serves a request that came from within the process. Extensions do not cross a call.
pub(crate) async fn serve_here(slot: Arc<Slot>, mut request: Request) -> Response {
    request.extensions_mut().clear();
    placed::strip_request(request.headers_mut());
    let mut response = serve(slot, request, Origin::Here, Arrival::default(), None, None).await;
    response.extensions_mut().clear();
    response
}

/// Serves a request: with its deadline, for the body of the response too, and with panics caught. If the module is on
/// another node, passes it on.
///
/// Gives a response in any case. Dropping the future, or the response's body, ends the call, and with it the stream of
/// requests, wherever the module keeps that.
pub(crate) async fn serve(
    slot: Arc<Slot>,
    mut request: Request,
    origin: Origin,
    arrival: Arrival,
    held: Option<Held>,
    in_flight: Option<InFlight>,
) -> Response {
    let timeout = request.headers().get(deadline::HEADER).map(http::HeaderValue::as_bytes);
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let method = slot.deliveries.of(path.path());
    let mut account = Account::open(slot.facts(), origin, method.unary);
    let mut refuse = |error: CallError| {
        let status = Status::from(error);
        account.close(status.code());
        status.into_http()
    };
    // What begins here is in the scope of who makes it, but for a client's call, which is in none.
    let entered = match (arrival.hops, arrival.client) {
        (0, None) => Scope::of_call(timeout),
        (_, client) => Scope::arrived(arrival.depth, arrival.chain, client).enter(|| Scope::of_call(timeout)),
    };
    let (scope, timer) = match entered {
        Ok(entered) => entered,
        Err(error) => return refuse(error),
    };
    let kept = method.delivery == Delivery::Dedupe;
    if let Err(error) = delivery::identify(request.headers_mut(), kept) {
        return refuse(error);
    }
    // For the caller to ask again with, where it did not give it.
    let call_id = kept.then(|| request.headers().get(CALL_ID).cloned()).flatten();
    let (ongoing, ended) = passed::ongoing();
    let request = request.map(|body| Body::new(passed::Resetting::new(body, ended)));

    let call = Call { slot: &slot, path: path.path(), method, scope, origin, arrival, went: account.went() };
    let answer = call.answer(request);
    let answer = match timer {
        None => answer.await,
        Some(deadline) => Box::pin(deadline::enforce(deadline, answer)).await.unwrap_or_else(|late| Err(late.into())),
    };
    let (mut response, of_node) = match answer {
        Ok(Answer { mut response, pass, from }) => {
            if let Some(pass) = &pass
                && arrival.hops > 0
            {
                placed::tell_epoch(response.headers_mut(), pass.epoch(), slot.fence());
            }
            let of_node = placed::is_of_a_node(response.headers());
            // An error that came at once; others are in the trailers.
            if let Some(code) = code_in(response.headers()) {
                account.close(code);
            }
            let response = response.map(|body| {
                let mut body = CallBody::new(body, slot, path, scope);
                (body.from, body.pass, body.ongoing, body.in_flight) = (from, pass, Some(ongoing), in_flight);
                (body.held, body.account) = (held, Some(account));
                Body::new(body)
            });
            (response, of_node)
        }
        Err(status) => {
            account.close(status.code());
            (status.into_http(), true)
        }
    };
    if let Some(call_id) = call_id.filter(|_| of_node) {
        response.headers_mut().insert(CALL_ID, call_id);
    }
    response
}

struct Call<'a> {
    slot: &'a Arc<Slot>,
    path: &'a str,
    method: MethodDelivery,
    scope: Scope,
    origin: Origin,
    arrival: Arrival,
    went: &'a Went,
}

struct Answer {
    response: Response,
    /// Held until the body of the response ends, where the module is here.
    pass: Option<Pass>,
    /// The node that it comes from, where the module is not, and the epoch that it was served at.
    from: Option<(Arc<Link>, Option<Epoch>)>,
}

/// A host that can't be reached may be about to be replaced; until that is known, it is tried again after this.
const PAUSE: Duration = Duration::from_millis(25);
/// A call from another node waits so long for this node to learn what the other one knows.
const CATCH_UP: Duration = Duration::from_secs(2);

impl Call<'_> {
    async fn answer(&self, mut request: Request) -> Result<Answer, Status> {
        let target = self.slot.target();
        let is_remote = matches!(&**target, Target::Remote(_));
        if self.method.delivery != Delivery::Once && self.arrival.hops == 0 && !is_remote {
            drop(target);
            return Box::pin(self.insist(request)).await;
        }
        // The common case, without anything that is only of use to calls which are passed on or wait.
        if let Target::Local(local) = &**target
            && let Some(pass) = local.pass(self.scope.chain, self.origin)
        {
            let local = local.clone();
            drop(target);
            return self.deliver(&local, pass, request).await;
        }
        if let Target::Remote(remote) = &**target {
            if let Some(deadline) = self.scope.deadline {
                deadline::write(deadline, request.headers_mut());
            }
            let remote = remote.clone();
            drop(target);
            self.went.elsewhere();
            let response = remote.oneshot(request).await.map_err(Status::from_error)?;
            return Ok(Answer { response, pass: None, from: None });
        }
        drop(target);
        Box::pin(self.find(request)).await
    }

    /// Makes a call until it is known to have run, or may not be made again.
    async fn insist(&self, request: Request) -> Result<Answer, Status> {
        let outgoing = Outgoing::new(request);
        let mut tries = retry::Tries::default();
        let mut lost = None;
        loop {
            let Some(request) = outgoing.request() else {
                // It is too large to remember, and was sent once.
                return lost.unwrap_or_else(|| Err(CallError::Panicked.into()));
            };
            let ended = match self.find(request).await {
                Ok(answer) => self.whole(answer).await,
                Err(status) => Err(status),
            };
            let pause = match retry::Ended::of(ended.as_ref().map(|answer| answer.response.headers())) {
                // Not this time; but it may have before.
                retry::Ended::NotRun if lost.is_some() => return lost.expect("it was looked at"),
                retry::Ended::NotRun => return ended,
                retry::Ended::Answered => {
                    self.slot.budget.answered();
                    return ended;
                }
                retry::Ended::MayHaveRun => {
                    let replicated = matches!(&**self.slot.target(), Target::Placed(placed) if placed.replicated);
                    let found = !replicated && self.slot.answers_travel();
                    tries.again(self.method.delivery, found, &self.slot.budget)
                }
            };
            match pause {
                Some(pause) if self.scope.deadline.is_none_or(|deadline| Instant::now() + pause < deadline) => {
                    lost = Some(ended);
                    tokio::time::sleep(pause).await;
                }
                _ => return ended,
            }
        }
    }

    /// Waits for all of a unary answer from another node, up to what is worth remembering: what breaks off later is lost
    /// like what never came.
    async fn whole(&self, answer: Answer) -> Result<Answer, Status> {
        let Some((link, epoch)) = answer.from.as_ref().filter(|_| self.method.unary) else { return Ok(answer) };
        match retry::arrived(answer.response).await {
            Ok(response) => Ok(Answer { response, ..answer }),
            Err(error) => {
                let (module, node) = (self.slot.module().clone(), link.node.clone());
                Err(CallError::Broken { module, node, epoch: *epoch, error }.into())
            }
        }
    }

    /// Finds who serves the module, for as long as that takes and the call has time.
    async fn find(&self, request: Request) -> Result<Answer, Status> {
        let slot = &**self.slot;
        let mut outgoing = None;
        let mut next = Some(request);
        let mut tries = Tries::default();
        let mut waiting: Option<Waiting<'_>> = None;
        let arrived = Instant::now();
        loop {
            // Before the target is looked at, so that no change is missed.
            let changed = slot.changed();
            let target = slot.target();
            let starts = matches!(&**target, Target::Starting);
            let own = match &**target {
                Target::Local(local) => Some(local),
                // The node that sent it has chosen among the hosts.
                Target::Placed(placed) if self.arrival.hops > 0 => placed.here.as_ref(),
                _ => None,
            };
            if let Some(local) = own
                && let Some(pass) = local.pass(self.scope.chain, self.origin)
            {
                let (local, request) = (local.clone(), next.take().expect("a call that goes on has its request"));
                drop(target);
                return self.deliver(&local, pass, request).await;
            }
            match &**target {
                Target::Local(_) => "it is about to move".clone_into(&mut tries.why),
                Target::Placed(placed) if placed.may_forward(self.arrival) => {
                    let placed = Arc::clone(placed);
                    drop(target);
                    let outgoing = outgoing.get_or_insert_with(|| {
                        Outgoing::new(next.take().expect("a call that was not made has its request"))
                    });
                    match self.elsewhere(&placed, outgoing, &mut next, &mut tries).await? {
                        Some(answer) => return Ok(answer),
                        // Part of it was sent, and is not remembered.
                        None if next.is_none() => return Err(self.nowhere(tries.why).into()),
                        None => {}
                    }
                }
                // The caller should choose another host; only one that knows of a newer epoch is waited for.
                Target::Placed(placed) if placed.replicated && self.arrival.epoch <= placed.epoch => {
                    return Err(CallError::NotHere { module: slot.module().clone() }.into());
                }
                Target::Placed(_) => "this node has yet to hear where it is".clone_into(&mut tries.why),
                Target::Nowhere(why) => why.as_ref().clone_into(&mut tries.why),
                Target::Starting => "it has yet to start".clone_into(&mut tries.why),
                Target::Stopped | Target::Remote(_) => return Err(CallError::Stopped(slot.module().clone()).into()),
            }
            if self.arrival.hops > 0 && arrived.elapsed() >= CATCH_UP {
                return Err(self.nowhere(tries.why).into());
            }
            let waiting = match &waiting {
                Some(waiting) => waiting,
                None => waiting.insert(slot.wait(self.scope)?),
            };
            let pause = match self.arrival.hops {
                0 => (!tries.nodes.is_empty()).then_some(PAUSE),
                _ => Some(CATCH_UP),
            };
            waiting.wait(changed, pause, starts, || tries.why.clone()).await?;
            tries.nodes.clear();
        }
    }

    fn nowhere(&self, why: String) -> CallError {
        CallError::Nowhere { module: self.slot.module().clone(), why }
    }

    /// Calls the module in this process, unless it has been, under the same id.
    async fn deliver(&self, local: &Local, pass: Pass, request: Request) -> Result<Answer, Status> {
        self.went.here();
        match &local.kept {
            // Asked again: a call that waited here may have come before this node knew what its method says.
            Some(kept) if self.slot.deliveries.of(self.path).delivery == Delivery::Dedupe => {
                Box::pin(self.once(kept, local, pass, request)).await
            }
            _ => self.here(local, pass, request).await,
        }
    }

    /// Calls the module in a task of its table of answers, unless that knows the call.
    async fn once(
        &self,
        kept: &Arc<Dedupe>,
        local: &Local,
        pass: Pass,
        mut request: Request,
    ) -> Result<Answer, Status> {
        delivery::identify(request.headers_mut(), true)?;
        let (key, request) = kept.take_in(self.path, self.scope.client, request).await?;
        let run = || {
            let (slot, path, local, pass) =
                (Arc::clone(self.slot), self.path.to_owned(), local.not_keeping(), pass.again());
            // It may go on when its caller has gone.
            let held = Held::again(self.scope.client);
            let scope = self.scope.begun_by(held.as_ref().map(Held::id));
            let (method, origin, arrival) = (self.method, self.origin, self.arrival);
            async move {
                let _held = held;
                // Who has asked for it has an account of it.
                let went = Went::default();
                let call = Call { slot: &slot, path: &path, method, scope, origin, arrival, went: &went };
                match call.run(&local, pass, request, Pass::is_in_time).await {
                    Ok(answer) => scope.around(Reply::read(answer.response)).await,
                    Err(status) => Reply::of(status),
                }
            }
        };
        let reply = kept.answer(key, run).await?;
        may_answer(&pass, self.slot)?;
        Ok(Answer { response: reply.response(), pass: Some(pass), from: None })
    }

    /// Calls the module in this process.
    async fn here(&self, local: &Local, pass: Pass, request: Request) -> Result<Answer, Status> {
        self.run(local, pass, request, Pass::may_answer).await
    }

    /// The same, with an answer that counts if `counts` says so.
    async fn run(
        &self,
        local: &Local,
        mut pass: Pass,
        request: Request,
        counts: fn(&Pass) -> Result<(), Refusal>,
    ) -> Result<Answer, Status> {
        let answer = run_inside(self.slot, self.path, self.scope, &mut pass, || local.call(request)).await?;
        counts(&pass).map_err(|refusal| refusal.of(self.slot.module(), pass.epoch()))?;
        let mut response = answer.map_err(|error| match Status::try_from_error(error) {
            Ok(status) => as_from_wire(status),
            Err(error) => {
                let error = crate::status::with_causes(&*error);
                CallError::Service { module: self.slot.module().clone(), error }.into()
            }
        })?;
        // The module's own status may be one that it was given by a call of its own.
        placed::strip(response.headers_mut());
        Ok(Answer { response, pass: Some(pass), from: None })
    }

    /// Tries the hosts that it knows, each once. `None` when none of them ran the call: then `next` is the request,
    /// unless it can't be made again.
    async fn elsewhere(
        &self,
        placed: &Placed,
        outgoing: &Outgoing,
        next: &mut Option<Request>,
        tries: &mut Tries,
    ) -> Result<Option<Answer>, Status> {
        loop {
            if next.is_none() {
                *next = outgoing.request();
            }
            let Some(mut request) = next.take() else { return Ok(None) };
            let link = match placed.choose(&tries.nodes) {
                Choice::There(link) => link,
                Choice::Here(local) => match local.pass(self.scope.chain, self.origin) {
                    Some(pass) => {
                        let _counted = placed.count_here();
                        return self.deliver(local, pass, request).await.map(Some);
                    }
                    None => {
                        *next = Some(request);
                        return Ok(None);
                    }
                },
                Choice::Nowhere => {
                    *next = Some(request);
                    return Ok(None);
                }
            };
            if let Some(deadline) = self.scope.deadline {
                deadline::write(deadline, request.headers_mut());
            }
            let attempt = Attempt {
                link,
                epoch: placed.epoch,
                arrival: self.arrival,
                scope: self.scope,
                unary: self.method.unary,
            };
            self.went.elsewhere();
            match attempt.send(request).await {
                Tried::Answered(mut response) => {
                    let told = told(self.slot, link, placed.epoch, self.arrival.hops, response.headers_mut())?;
                    if let Some(Told { epoch }) = told {
                        return Ok(Some(Answer { response, pass: None, from: Some((Arc::clone(link), epoch)) }));
                    }
                    tries.why = format!("node `{}` does not serve it yet", link.node);
                    // A node that would wait for itself to learn of the module was asked to; the call comes back.
                }
                Tried::NotRun { again, why } => {
                    tries.why = format!("node `{}` can't be reached: {why}", link.node);
                    *next = again.map(|mut request| {
                        placed::strip_request(request.headers_mut());
                        request
                    });
                }
                Tried::Broken(error) => {
                    let (module, node) = (self.slot.module().clone(), link.node.clone());
                    return Err(CallError::Broken { module, node, epoch: Some(placed.epoch), error }.into());
                }
            }
            tries.nodes.push(link.node.clone());
        }
    }
}

/// Runs what a module does for a call that is inside its gate.
///
/// # Errors
/// A panic, or that the call was cut off.
pub(super) async fn run_inside<F: Future + Unpin>(
    slot: &Slot,
    path: &str,
    scope: Scope,
    pass: &mut Pass,
    make: impl FnOnce() -> F,
) -> Result<F::Output, CallError> {
    let cut = |pass: &Pass| Refusal::Cut.of(slot.module(), pass.epoch());
    let mut call = Guarded::start(slot, path, scope, make)?;
    let running = poll_fn(|cx| {
        if pass.is_cut() {
            return Poll::Ready(Err(cut(pass)));
        }
        match call.poll_guarded(cx) {
            Ok(Poll::Pending) => pass.poll_cut(cx).map(|()| Err(cut(pass))),
            Ok(Poll::Ready(ended)) => Poll::Ready(Ok(ended)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    });
    running.await
}

/// What the answer of another node said of itself.
pub(super) struct Told {
    /// That it was served at.
    epoch: Option<Epoch>,
}

/// Takes out of an answer of another node, which was asked by a placement of epoch `by`, what it tells this one, and keeps
/// that in mind. `None` where the module did not run there, and another try may find it running.
///
/// # Errors
/// An answer that does not count.
pub(super) fn told(
    slot: &Slot,
    link: &Link,
    by: Epoch,
    hops: u8,
    headers: &mut HeaderMap,
) -> Result<Option<Told>, CallError> {
    let moved = placed::take_moved(headers);
    if placed::was_not_run(headers) {
        return Ok(None);
    }
    let epoch = placed::epoch_of(headers);
    // A node that was taken over from may answer another call yet.
    if let Some(fence) = placed::fence_of(headers) {
        slot.fence_off(fence);
    }
    fenced(slot, link, epoch)?;
    if hops == 0 && !placed::is_of_a_node(headers) {
        placed::forget_epoch(headers);
    }
    match moved {
        // The nodes before this one should learn of it as well, and this node has before them.
        Some((epoch, node)) => {
            slot.moved(epoch, &node);
            if hops > 0 {
                placed::tell_moved(headers, epoch, &node);
            }
        }
        None if hops > 0 => placed::tell_moved(headers, by, &link.node),
        None => {}
    }
    Ok(Some(Told { epoch }))
}

/// Whether the answer of a call in this process counts.
pub(super) fn may_answer(pass: &Pass, slot: &Slot) -> Result<(), CallError> {
    pass.may_answer().map_err(|refusal| refusal.of(slot.module(), pass.epoch()))
}

/// Whether the answer of another node counts: one that was taken over from does not know it, if it was cut off or stood
/// still, and answers all the same.
pub(super) fn fenced(slot: &Slot, from: &Link, epoch: Option<Epoch>) -> Result<(), CallError> {
    match epoch {
        Some(epoch) if slot.is_fenced_off(epoch) => {
            Err(CallError::Fenced { module: slot.module().clone(), node: from.node.clone(), epoch })
        }
        _ => Ok(()),
    }
}

/// What a call has tried.
#[derive(Default)]
struct Tries {
    /// Since it last waited.
    nodes: Vec<NodeId>,
    why: String,
}

/// The body of a response, with what holds for the whole of a call.
struct CallBody {
    /// The module's; `None` once it was cut off.
    body: Option<Body>,
    slot: Arc<Slot>,
    path: PathAndQuery,
    scope: Scope,
    /// The node that it comes from, if that is not this one, and the epoch that it is served at.
    from: Option<(Arc<Link>, Option<Epoch>)>,
    timer: Option<Pin<Box<Sleep>>>,
    begun: bool,
    ongoing: Option<Ongoing>,
    pass: Option<Pass>,
    in_flight: Option<InFlight>,
    /// Who has begun the call.
    held: Option<Held>,
    /// Closed with the trailers.
    account: Option<Account>,
}

impl CallBody {
    fn new(body: Body, slot: Arc<Slot>, path: PathAndQuery, scope: Scope) -> Self {
        let body = Some(body);
        Self {
            body,
            slot,
            path,
            scope,
            from: None,
            timer: None,
            begun: false,
            ongoing: None,
            pass: None,
            in_flight: None,
            held: None,
            account: None,
        }
    }

    /// Whether a stream that always has a next message has gone on for too long.
    fn late(&mut self) -> bool {
        // The message of a unary call is there when the body is first polled: no need for a clock then.
        let begun = std::mem::replace(&mut self.begun, true);
        begun && self.scope.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Whether the deadline has passed; if not, the task is woken when it does.
    fn expired(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.scope.deadline else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// Ends a call that was cut off, since the module moves.
    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let module = self.slot.module().clone();
        let stream = self.pass.as_ref().is_some_and(Pass::is_stream);
        let epoch = self.pass.as_ref().map(Pass::epoch).unwrap_or_default();
        self.cut(if stream { CallError::Moved { module, epoch } } else { CallError::Cut { module, epoch } })
    }

    /// Ends a stream in the middle, with a status in its trailers.
    fn cut(&mut self, error: CallError) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        guard::discard(&self.slot, self.path.path(), self.body.take());
        let mut trailers = HeaderMap::new();
        let written = Status::from(error).add_header(&mut trailers);
        Poll::Ready(Some(written.map(|()| Frame::trailers(trailers))))
    }

    /// Shows an answer to whoever looks at those of a simulation.
    #[cfg(feature = "simulation")]
    fn passes(&self, message: Option<&Bytes>) {
        let (epoch, from) = match (&self.pass, &self.from) {
            (Some(pass), _) => (pass.epoch(), None),
            (None, Some((link, Some(epoch)))) => (*epoch, Some(&link.node)),
            (None, _) => return,
        };
        crate::simulation::passes(self.slot.module(), epoch, from, message.map(AsRef::as_ref));
    }

    fn poll_module(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.body.is_some() && self.late() {
            return self.cut(CallError::DeadlineExceeded);
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if self.pass.as_ref().is_some_and(Pass::is_cut) {
            return self.end();
        }
        let frame =
            guard::run(&self.slot, self.path.path(), self.scope, || http_body::Body::poll_frame(Pin::new(body), cx));
        match frame {
            Ok(Poll::Pending) if self.expired(cx) => self.cut(CallError::DeadlineExceeded),
            Ok(Poll::Pending) => match &mut self.pass {
                Some(pass) => {
                    pass.streams();
                    match pass.poll_cut(cx) {
                        Poll::Ready(()) => self.end(),
                        Poll::Pending => Poll::Pending,
                    }
                }
                None => Poll::Pending,
            },
            Ok(Poll::Ready(Some(Err(broken)))) if self.from.is_some() => {
                let (link, epoch) = self.from.as_ref().expect("it was looked at");
                let (node, epoch) = (link.node.clone(), *epoch);
                let error = crate::status::with_causes(&broken);
                self.cut(CallError::Broken { module: self.slot.module().clone(), node, epoch, error })
            }
            Ok(Poll::Ready(Some(Ok(mut frame)))) => {
                let counts = match (&self.pass, &self.from) {
                    (Some(pass), _) => may_answer(pass, &self.slot),
                    (None, Some((link, epoch))) => fenced(&self.slot, link, *epoch),
                    (None, None) => Ok(()),
                };
                if let Err(error) = counts {
                    return self.cut(error);
                }
                #[cfg(feature = "simulation")]
                self.passes(frame.data_ref());
                // As in the head of an answer: what a node said of a call that the module made is not said of this one.
                if let (None, Some(trailers)) = (&self.from, frame.trailers_mut()) {
                    placed::strip(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Ok(frame) => frame,
            Err(panic) => self.cut(panic),
        }
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = self.poll_module(cx);
        if let (Poll::Ready(frame), Some(account)) = (&frame, &mut self.account) {
            match frame {
                None => account.close(Code::Unknown),
                Some(Err(status)) => account.close(status.code()),
                Some(Ok(frame)) => {
                    frame.trailers_ref().into_iter().for_each(|trailers| {
                        account.close(code_in(trailers).unwrap_or(Code::Unknown));
                    });
                }
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for CallBody {
    fn drop(&mut self) {
        guard::discard(&self.slot, self.path.path(), self.body.take());
    }
}

/// An answer of another node to a call that did not come this far by HTTP, as [`serve`] would give it.
pub(super) fn answered_elsewhere(
    slot: &Arc<Slot>,
    path: &'static str,
    scope: Scope,
    link: &Arc<Link>,
    told: Told,
    response: Response,
) -> Response {
    let path = PathAndQuery::from_static(path);
    response.map(|body| {
        let mut body = CallBody::new(body, Arc::clone(slot), path, scope);
        body.from = Some((Arc::clone(link), told.epoch));
        Body::new(body)
    })
}

/// An answer of a module here, which counts only if the module may still answer when it is read.
pub(super) fn answered_here(slot: Arc<Slot>, path: &str, scope: Scope, pass: Pass, response: Response) -> Response {
    let path = PathAndQuery::try_from(path).unwrap_or_else(|_| PathAndQuery::from_static("/"));
    response.map(|body| {
        let mut body = CallBody::new(body, slot, path, scope);
        body.pass = Some(pass);
        Body::new(body)
    })
}

/// Any server that a stock tonic `Router` would take.
pub(crate) struct Tonic<S>(pub(crate) S);

impl<S, B> Wire for Tonic<S>
where
    S: tower::Service<Request, Response = http::Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Response, BoxError>> {
        let service = self.0.clone();
        Box::pin(async move {
            let response = service.oneshot(request).await.map_err(Into::into)?;
            Ok(response.map(Body::new))
        })
    }
}

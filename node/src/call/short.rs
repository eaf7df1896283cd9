//! The short way of a call between nodes: from a handle on one to a module's trait on another, without a request of HTTP,
//! a tonic client or a tonic server in between. A client's call, which a node passes on, takes the second half of it.
//!
//! ```text
//! handle ─ message ─▶ frame ─▶ carrier ═══▶ gate ─ message ─▶ the service trait's method
//!    ▲                                                                │
//!    └──────────── message ◀─ frame ◀═════════════════════════════════┘
//! ```
//! It is for what nearly all calls are: unary, small, to a module that is where this node believes it is. A call that is
//! not, or that can't be made so now, takes the long way, over [`wire`](super::wire), as if nothing had been tried. So does
//! an answer that is more than a message: the tonic client of the long way reads it.

use std::{pin::Pin, sync::Arc};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use outpost_proto::{
    cluster::v1::{CarriedAnswer, CarriedCall, CarriedOwner, carried_answer::Trailers},
    v1::Delivery,
};
use prost::Message;
use tokio::time::{Duration, Instant};
use tonic::{Code, Extensions, Request, Response, Status, metadata::MetadataMap};

use super::{
    caller::Held,
    chain::Chain,
    counts::{Account, Origin},
    deadline,
    dedupe::Reply,
    frame,
    gate::Pass,
    link::{Carried, Unanswered},
    placed::{self, Arrival, Choice, Placed},
    route::{CallFuture, as_from_wire, without_reserved},
    scope::Scope,
    slot::{self, Slot, Target},
    wire,
};
use crate::{id::Epoch, status::CallError, trust::Client};

/// What announces a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// An answer, with its message as it travels.
pub type CarriedFuture<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send + 'a>>;

/// A service whose methods take and give messages as they travel. Implemented by `outpost-build`.
pub trait Carries: Send + Sync + 'static {
    /// Calls a unary method, by its path.
    fn carry<'a>(&'a self, path: &str, request: Request<Bytes>) -> CarriedFuture<'a>;
}

/// Calls a method with a message as it travels.
pub fn carry<'a, Req, Res>(
    request: Request<Bytes>,
    call: impl FnOnce(Request<Req>) -> CallFuture<'a, Res>,
) -> CarriedFuture<'a>
where
    Req: Message + Default,
    Res: Message + 'a,
{
    let (metadata, extensions, message) = request.into_parts();
    match Req::decode(message) {
        Ok(message) => {
            let answer = call(Request::from_parts(metadata, extensions, message));
            Box::pin(async move { Ok(answer.await?.map(|message| prefixed(&message))) })
        }
        // As tonic's server says it.
        Err(error) => Box::pin(std::future::ready(Err(Status::internal(error.to_string())))),
    }
}

/// The answer to a path that is none of the service's unary methods.
pub fn carry_nothing<'a>() -> CarriedFuture<'a> {
    Box::pin(std::future::ready(Err(Status::unimplemented(""))))
}

/// A message with its prefix.
fn prefixed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut bytes).expect("there is room for the message");
    bytes.freeze()
}

/// The message in a body, where that is one message as it is.
fn message_of(body: &Bytes) -> Option<Bytes> {
    let (mut prefix, length) = (body.get(..PREFIX)?, body.len() - PREFIX);
    let plain = prefix.get_u8() == 0 && prefix.get_u32() as usize == length;
    plain.then(|| body.slice(PREFIX..))
}

/// How a call went on the short way.
pub(super) enum Tried<T> {
    Answered(Response<T>),
    /// There is an answer, and it is more than a message.
    Other(slot::Response),
    /// The module did not run: the call takes the long way.
    NotRun,
}

/// Makes a call at the host that the placement names.
///
/// # Errors
/// That the module may have run, or that its answer does not count.
/// # Cancel safety
/// Dropping the future ends the call at the peer.
pub(super) async fn call<Req: Message, Res: Message + Default>(
    slot: &Arc<Slot>,
    path: &'static str,
    scope: Scope,
    placed: &Placed,
    request: &Request<Req>,
) -> Result<Tried<Res>, Status> {
    let method = slot.deliveries.of(path);
    // Where one of the hosts is here, the long way chooses: to choose twice would favour the others.
    let (None, Choice::There(link)) = (&placed.here, placed.choose(&[])) else { return Ok(Tried::NotRun) };
    let fields = request.metadata().as_ref();
    if !method.unary
        || method.delivery != Delivery::Once
        || request.get_ref().encoded_len() > frame::MOST - PREFIX
        || !frame::fits(fields)
    {
        return Ok(Tried::NotRun);
    }
    let way = Arrival {
        hops: 1,
        epoch: placed.epoch,
        depth: scope.depth().saturating_sub(1),
        chain: scope.chain,
        client: scope.client,
    };
    let left = scope.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let frame = CarriedCall {
        id: 0,
        path: Bytes::from_static(path.as_bytes()),
        fields: frame::fields(fields),
        body: prefixed(request.get_ref()),
        head: Some(frame::head(way, left)),
    };
    let broken = |error: String| {
        let (module, node) = (slot.module().clone(), link.node.clone());
        Status::from(CallError::Broken { module, node, epoch: Some(placed.epoch), error })
    };
    let mut response = match link.call(frame).await {
        Some(Ok(Carried::Answer(mut answer))) => {
            if let (Some(Trailers::Ok(_)), Some(owner)) = (&answer.trailers, &answer.owner)
                && let Some(message) = message_of(&answer.body)
            {
                slot.fence_off(Epoch(owner.fence));
                wire::fenced(slot, link, Some(Epoch(owner.epoch)))?;
                #[cfg(feature = "simulation")]
                crate::simulation::passes(slot.module(), Epoch(owner.epoch), Some(&link.node), Some(&answer.body));
                let fields = frame::headers(std::mem::take(&mut answer.headers));
                let fields = fields.map_err(|malformed| broken(malformed.to_string()))?;
                // As tonic's client says it.
                let message = Res::decode(message).map_err(|error| Status::internal(error.to_string()))?;
                let metadata = MetadataMap::from_headers(fields);
                return Ok(Tried::Answered(Response::from_parts(metadata, message, Extensions::default())));
            }
            frame::response(answer).map_err(|malformed| broken(malformed.to_string()))?
        }
        Some(Ok(Carried::Fetched(response))) => response,
        None | Some(Err(Unanswered::NotSent(..) | Unanswered::NotRun(_))) => return Ok(Tried::NotRun),
        Some(Err(Unanswered::Broken(error))) => return Err(broken(error)),
    };
    let told = wire::told(slot, link, placed.epoch, 0, response.headers_mut())?;
    Ok(match told {
        Some(told) => Tried::Other(wire::answered_elsewhere(slot, path, scope, link, told, response)),
        None => Tried::NotRun,
    })
}

/// A call from another node, inside the gate of its module.
pub(crate) struct Inside {
    slot: Arc<Slot>,
    service: Arc<dyn Carries>,
    pass: Pass,
    scope: Scope,
    _held: Option<Held>,
    id: u64,
    path: Bytes,
    fields: HeaderMap,
    message: Bytes,
}

impl Inside {
    /// Lets a call in; gives it back where it has to take the long way: the module is not here, say, or keeps its answers.
    pub(crate) fn enter(slot: &Arc<Slot>, path: &str, call: CarriedCall) -> Result<Self, CarriedCall> {
        let method = slot.deliveries.of(path);
        let (Some(head), true) = (&call.head, method.unary && method.delivery != Delivery::Dedupe) else {
            return Err(call);
        };
        let Some(message) = message_of(&call.body) else { return Err(call) };
        let target = slot.target();
        let local = match &**target {
            Target::Local(local) => local,
            // The node that sent it has chosen among the hosts.
            Target::Placed(placed) => match &placed.here {
                Some(local) => local,
                None => return Err(call),
            },
            _ => return Err(call),
        };
        // What is too large for the module's server is refused as that does it.
        let Some((service, _)) = local.carries().filter(|(_, most)| message.len() <= *most) else { return Err(call) };
        let Ok(fields) = frame::headers(call.fields.clone()) else { return Err(call) };
        // A node that passes a client's call on leaves it where the client has put it.
        let timeout = fields.get(deadline::HEADER).and_then(|timeout| deadline::of(Some(timeout.as_bytes()), None));
        let deadline =
            head.timeout_us.and_then(|left| Instant::now().checked_add(Duration::from_micros(left))).or(timeout);
        let depth = u8::try_from(head.depth).unwrap_or(u8::MAX);
        let chain = Chain::from_bits(head.chain_low, head.chain_high);
        let held = Client::decode(head.client.clone()).map(|client| Held::of(Arc::new(client)));
        let client = held.as_ref().map(Held::id);
        let Ok(scope) = Scope::of_carried(depth, chain, client, deadline) else { return Err(call) };
        let Some(pass) = local.pass(chain, Origin::Node) else { return Err(call) };
        let CarriedCall { id, path, .. } = call;
        let (slot, service) = (Arc::clone(slot), Arc::clone(service));
        Ok(Self { slot, service, pass, scope, _held: held, id, path, fields, message })
    }

    /// Runs it. `Err` is an answer that is too large to be carried.
    ///
    /// # Cancel safety
    /// Dropping the future ends the call.
    pub(crate) async fn run(self) -> Result<CarriedAnswer, Box<slot::Response>> {
        let Self { slot, service, mut pass, scope, _held, id, path, fields, message } = self;
        let request = Request::from_parts(MetadataMap::from_headers(fields), Extensions::default(), message);
        let path = str::from_utf8(&path).unwrap_or_default();
        let mut account = Account::open(slot.facts(), Origin::Node, true);
        account.went().here();
        let running = wire::run_inside(&slot, path, scope, &mut pass, || service.carry(path, request));
        let ended = match scope.deadline {
            None => running.await,
            Some(deadline) => Box::pin(deadline::enforce(deadline, running)).await.unwrap_or_else(Err),
        };
        let counts = |answer| wire::may_answer(&pass, &slot).map(|()| answer);
        let owner = CarriedOwner { epoch: pass.epoch().0, fence: slot.fence().0 };
        let answer = match ended.and_then(counts) {
            Ok(Ok(response)) => {
                account.close(Code::Ok);
                let (mut metadata, body, _) = response.into_parts();
                #[cfg(feature = "simulation")]
                crate::simulation::passes(slot.module(), pass.epoch(), None, Some(&body));
                if !metadata.is_empty() {
                    without_reserved(&mut metadata, placed::strip);
                }
                let (headers, trailers) = (frame::fields(&metadata.into_headers()), Some(Trailers::Ok(true)));
                CarriedAnswer { id, headers, body, trailers, owner: Some(owner), http_status: 0 }
            }
            Ok(Err(status)) => {
                let status = as_from_wire(status);
                account.close(status.code());
                CarriedAnswer { owner: Some(owner), ..frame::answer(id, Reply::of(status)) }
            }
            // Of the framework, not of the module.
            Err(error) => {
                let status = Status::from(error);
                account.close(status.code());
                frame::answer(id, Reply::of(status))
            }
        };
        if frame::small_enough(&answer) { Ok(answer) } else { Err(large(answer, slot, path, scope, pass)) }
    }
}

/// An answer for the caller to fetch.
fn large(answer: CarriedAnswer, slot: Arc<Slot>, path: &str, scope: Scope, pass: Pass) -> Box<slot::Response> {
    let response = frame::response(answer);
    let response = response.unwrap_or_else(|malformed| Status::internal(malformed.to_string()).into_http());
    Box::new(wire::answered_here(slot, path, scope, pass, response))
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::DrainRequest;

    use super::*;

    #[test]
    fn only_a_body_that_is_one_plain_message_is_one() {
        let message = DrainRequest { node: "a".repeat(300), ..DrainRequest::default() };
        let body = prefixed(&message);
        assert_eq!(DrainRequest::decode(message_of(&body).unwrap()).unwrap(), message);
        assert_eq!(message_of(&prefixed(&DrainRequest::default())).unwrap(), "");
        let changed = |at: usize, to: u8| {
            let mut body = body.to_vec();
            body[at] = to;
            message_of(&body.into())
        };
        assert_eq!(changed(0, 1), None, "compressed");
        assert_eq!(changed(4, 0), None, "of another length");
        for short in [&b""[..], b"\0\0\0\0"] {
            assert_eq!(message_of(&Bytes::copy_from_slice(short)), None);
        }
        assert_eq!(message_of(&[&body[..], b"x"].concat().into()), None, "more than one");
    }

    #[tokio::test]
    async fn what_is_no_message_of_the_method_is_refused_before_the_module_sees_it() {
        let request = Request::new(Bytes::from_static(b"\xff"));
        let call = |_: Request<DrainRequest>| -> CallFuture<'_, DrainRequest> { panic!("the module was called") };
        let status = carry(request, call).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert_eq!(carry_nothing().await.unwrap_err().code(), tonic::Code::Unimplemented);
    }
}

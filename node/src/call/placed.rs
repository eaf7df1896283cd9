//! Modules on other nodes: which host a call goes to, and what its answer says.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use outpost_proto::keys::metadata as keys;
use tonic::{
    Status,
    metadata::{Binary, MetadataMap, MetadataValue},
};

use super::{
    caller::{ClientId, Held},
    chain::Chain,
    link::{Counted, Link, Unanswered},
    replay::Replay,
    scope::Scope,
    slot::{Local, Request, Response},
};
use crate::{
    id::{Epoch, NodeId},
    trust::Client,
};

/// A call makes at most so many hops. Epochs along its way rise, so it could not go in circles anyhow.
pub(crate) const MAX_HOPS: u8 = 3;

const HOPS: HeaderName = HeaderName::from_static(keys::HOPS);
const EPOCH: HeaderName = HeaderName::from_static(keys::EPOCH);
const DEPTH: HeaderName = HeaderName::from_static(keys::DEPTH);
const FENCE: HeaderName = HeaderName::from_static(keys::FENCE);
const CLIENT: HeaderName = HeaderName::from_static(keys::CLIENT);
const CHAIN: HeaderName = HeaderName::from_static(keys::CHAIN);
const MOVED: HeaderName = HeaderName::from_static(keys::MOVED);
const OUTCOME: HeaderName = HeaderName::from_static(keys::OUTCOME);
pub(crate) const CALL_ID: HeaderName = HeaderName::from_static(keys::CALL_ID);

/// The nodes that serve a module, as far as this one knows.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) epoch: Epoch,
    /// Any of the hosts will do, and a host that does not serve is no reason to wait.
    pub(crate) replicated: bool,
    /// Never empty.
    pub(crate) hosts: Vec<Arc<Link>>,
    /// So many of the first ones are near: the others are called where none of these can be.
    near: usize,
    /// An instance in this process that takes its share of the calls.
    pub(crate) here: Option<Local>,
    /// How many of this node's own calls are under way there.
    here_in_flight: AtomicUsize,
    /// Where the sequence of random choices is.
    chosen: AtomicU64,
}

/// What a call that came from another node brings along. The default is that of one which begins here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) hops: u8,
    /// The epoch that it was routed by.
    pub(crate) epoch: Epoch,
    /// How many calls it is nested in.
    pub(crate) depth: u8,
    /// The modules that it has come through.
    pub(crate) chain: Chain,
    /// Who has begun it, where that is known.
    pub(crate) client: Option<ClientId>,
}

/// Where a call goes.
pub(crate) enum Choice<'a> {
    Here(&'a Local),
    There(&'a Arc<Link>),
    /// All have been tried.
    Nowhere,
}

impl Placed {
    /// `seed` begins the sequence of random choices.
    pub(crate) fn new(
        epoch: Epoch,
        replicated: bool,
        (hosts, near): (Vec<Arc<Link>>, usize),
        here: Option<Local>,
        seed: u64,
    ) -> Self {
        Self { epoch, replicated, hosts, near, here, here_in_flight: AtomicUsize::new(0), chosen: AtomicU64::new(seed) }
    }

    /// Chooses a host: the better one of two random ones (Mitzenmacher, "The Power of Two Choices in Randomized Load
    /// Balancing"), among those that are not known to be down.
    pub(crate) fn choose(&self, tried: &[NodeId]) -> Choice<'_> {
        if let ([link], None, []) = (&*self.hosts, &self.here, tried) {
            return Choice::There(link);
        }
        let untried: Vec<&Arc<Link>> = self.hosts.iter().filter(|link| !tried.contains(&link.node)).collect();
        let near = self.hosts.iter().take(self.near);
        let near: Vec<_> = near.filter(|link| !link.is_down() && !tried.contains(&link.node)).collect();
        let up: Vec<&Arc<Link>> = untried.iter().copied().filter(|link| !link.is_down()).collect();
        let none = Vec::new();
        let candidates = match (&near, &self.here) {
            // The instance here is near.
            (near, Some(_)) if near.is_empty() && self.near < self.hosts.len() => &none,
            (near, _) if !near.is_empty() => near,
            _ if up.is_empty() => &untried,
            _ => &up,
        };
        let count = candidates.len() + usize::from(self.here.is_some());
        let (first, second) = match count {
            0 => return Choice::Nowhere,
            1 => (0, 0),
            count => {
                let random = self.random();
                let first = (random as u32 as usize) % count;
                // Another one than the first.
                (first, (first + 1 + ((random >> 32) as usize) % (count - 1)) % count)
            }
        };
        // How long the instance here takes is not measured: as long as the fastest of the others, then. What is saved on the
        // way counts nothing, so that it has its share of the load, and no more.
        let here = || {
            let fastest = candidates.iter().map(|link| link.latency()).min().unwrap_or(1);
            fastest * (self.here_in_flight.load(Ordering::Relaxed) as u64 + 1)
        };
        let cost = |index: usize| candidates.get(index).map_or_else(here, |link| link.cost());
        let better = if cost(second) < cost(first) { second } else { first };
        match (candidates.get(better), &self.here) {
            (Some(link), _) => Choice::There(link),
            (None, Some(local)) => Choice::Here(local),
            (None, None) => Choice::Nowhere,
        }
    }

    /// Counts a call to the instance here until it is answered.
    pub(super) fn count_here(&self) -> Counted<'_> {
        Counted::new(&self.here_in_flight)
    }

    /// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
    fn random(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.chosen.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether a call may go on from here. Along its way epochs rise, so that two nodes with different views can't send
    /// it to and fro.
    pub(crate) fn may_forward(&self, arrival: Arrival) -> bool {
        arrival.hops == 0 || (arrival.hops < MAX_HOPS && self.epoch > arrival.epoch)
    }
}

/// The host of a call's next try.
pub(crate) struct Attempt<'a> {
    pub(crate) link: &'a Arc<Link>,
    pub(crate) epoch: Epoch,
    pub(crate) arrival: Arrival,
    pub(crate) scope: Scope,
    /// One message is all that either side sends.
    pub(crate) unary: bool,
}

/// How a try to pass a call on ended.
pub(crate) enum Tried {
    Answered(Response),
    /// The module did not run; here is the call again, if it can be made again.
    NotRun {
        again: Option<Request>,
        why: String,
    },
    /// The module may have run.
    Broken(String),
}

/// A request on its way to other nodes.
#[derive(Debug)]
pub(crate) struct Outgoing {
    parts: http::request::Parts,
    body: Replay,
}

impl Outgoing {
    pub(crate) fn new(request: Request) -> Self {
        let (parts, body) = request.into_parts();
        Self { parts, body: Replay::new(body) }
    }

    /// The request as the module would get it; `None` when part of it was sent and forgotten.
    pub(crate) fn request(&self) -> Option<Request> {
        let body = self.body.body()?;
        let mut request = http::Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.version_mut() = self.parts.version;
        *request.headers_mut() = self.parts.headers.clone();
        // Of who calls, where the module is here after all.
        *request.extensions_mut() = self.parts.extensions.clone();
        Some(request)
    }
}

impl Attempt<'_> {
    /// Sends the request. Of the answer only the headers are looked at.
    pub(crate) async fn send(&self, request: Request) -> Tried {
        let way = Arrival {
            hops: self.arrival.hops.saturating_add(1),
            epoch: self.epoch,
            depth: self.scope.depth().saturating_sub(1),
            chain: self.scope.chain,
            client: self.scope.client,
        };
        match self.link.send(prepared(request), way, self.unary).await {
            Ok(response) => Tried::Answered(response),
            Err(Unanswered::NotSent(request, why)) => Tried::NotRun { again: Some(*request), why },
            Err(Unanswered::NotRun(why)) => Tried::NotRun { again: None, why },
            Err(Unanswered::Broken(why)) => Tried::Broken(why),
        }
    }
}

/// A request as it leaves this process.
fn prepared(mut request: Request) -> Request {
    let headers = request.headers_mut();
    // Of a connection, not of a call; and HTTP/2 refuses them.
    for name in [header::CONNECTION, header::HOST, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    request.extensions_mut().clear();
    request
}

/// Writes what [`Arrival::take`] takes out.
pub(super) fn tell_way(headers: &mut HeaderMap, Arrival { hops, epoch, depth, chain, client }: Arrival) {
    headers.insert(HOPS, number(u64::from(hops)));
    headers.insert(EPOCH, number(epoch.0));
    headers.insert(DEPTH, number(u64::from(depth)));
    if !chain.is_empty()
        && let Ok(chain) = HeaderValue::try_from(chain.to_text())
    {
        headers.insert(CHAIN, chain);
    }
    if let Some(client) = client.and_then(ClientId::client) {
        tell_client(headers, client.encoded());
    }
}

/// The same of who has begun a call, as another node has told it.
pub(super) fn tell_client(headers: &mut HeaderMap, encoded: &[u8]) {
    if encoded.is_empty() {
        return;
    }
    let value = MetadataValue::<Binary>::from_bytes(encoded);
    if let Ok(value) = HeaderValue::from_bytes(value.as_encoded_bytes()) {
        headers.insert(CLIENT, value);
    }
}

fn number(number: u64) -> HeaderValue {
    HeaderValue::from(number)
}

impl Arrival {
    /// What another node has written into a request; takes it out. The client has to be held for as long as the call lasts.
    pub(crate) fn take(headers: &mut HeaderMap) -> (Self, Option<Held>) {
        let number = |name| headers.get(name).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        let held = headers.get(CLIENT).and_then(client).map(|client| Held::of(Arc::new(client)));
        let arrival = Self {
            hops: number(HOPS).unwrap_or(1).clamp(1, u64::from(u8::MAX)) as u8,
            epoch: Epoch(number(EPOCH).unwrap_or_default()),
            depth: number(DEPTH).unwrap_or_default().min(u64::from(u8::MAX)) as u8,
            chain: headers.get(CHAIN).and_then(|chain| chain.to_str().ok()).map(Chain::from_text).unwrap_or_default(),
            client: held.as_ref().map(Held::id),
        };
        strip_request(headers);
        (arrival, held)
    }
}

/// What a node says of a client.
fn client(value: &HeaderValue) -> Option<Client> {
    let metadata = MetadataMap::from_headers(HeaderMap::from_iter([(CLIENT, value.clone())]));
    Client::decode(metadata.get_bin(keys::CLIENT)?.to_bytes().ok()?)
}

/// Removes from a request what only nodes may say: all but the call's id, which is the caller's to give.
pub(crate) fn strip_request(headers: &mut HeaderMap) {
    // Several are as wrong as one that is not valid, and whoever reads it should see so.
    let ids: Vec<HeaderValue> = headers.get_all(CALL_ID).iter().cloned().collect();
    strip(headers);
    for id in ids {
        headers.append(CALL_ID, id);
    }
}

/// Removes what only nodes may say. From outside it is a lie, and from a module an accident: the status of a call that
/// it made, say, which it hands on.
pub(crate) fn strip(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| name.as_str().starts_with(keys::PREFIX)) {
        return;
    }
    for name in [HOPS, EPOCH, FENCE, DEPTH, CHAIN, CLIENT, MOVED, OUTCOME] {
        headers.remove(name);
    }
    let left: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(keys::PREFIX)).cloned().collect();
    left.iter().for_each(|name| {
        headers.remove(name);
    });
}

/// Whether the answer says that the module did not run, and that another try may find it running: anything but
/// UNAVAILABLE, such as a full queue, is for the caller to know.
pub(crate) fn was_not_run(headers: &HeaderMap) -> bool {
    is_not_executed(headers) && headers.get(Status::GRPC_STATUS).is_some_and(|status| status == UNAVAILABLE)
}

/// Whether the answer is an error of a node's own, after which the module may have run.
pub(crate) fn may_have_run(headers: &HeaderMap) -> bool {
    headers.get(OUTCOME).is_some_and(|outcome| outcome == UNKNOWN)
        && headers.get(Status::GRPC_STATUS).is_some_and(|status| status == UNAVAILABLE)
}

/// Whether the answer says that the module did not run.
pub(crate) fn is_not_executed(headers: &HeaderMap) -> bool {
    headers.get(OUTCOME).is_some_and(|outcome| outcome == NOT_EXECUTED)
}

/// Whether the answer is an error of a node's own.
pub(crate) fn is_of_a_node(headers: &HeaderMap) -> bool {
    headers.contains_key(OUTCOME)
}

/// `Code::Unavailable` as it is on the wire.
const UNAVAILABLE: &str = "14";

pub(crate) const NOT_EXECUTED: &str = "not-executed";
pub(crate) const UNKNOWN: &str = "unknown";

/// Tells the node that sent a call here at which epoch it was served, and which epochs were taken over.
pub(crate) fn tell_epoch(headers: &mut HeaderMap, epoch: Epoch, fence: Epoch) {
    headers.insert(EPOCH, number(epoch.0));
    headers.insert(FENCE, number(fence.0));
}

/// Which epochs' answers do not count any more, by the answer's word.
pub(crate) fn fence_of(headers: &HeaderMap) -> Option<Epoch> {
    headers.get(FENCE)?.to_str().ok()?.parse().ok().map(Epoch)
}

/// The epoch that an answer was served at.
pub(crate) fn epoch_of(headers: &HeaderMap) -> Option<Epoch> {
    headers.get(EPOCH)?.to_str().ok()?.parse().ok().map(Epoch)
}

/// Takes out what [`tell_epoch`] has put in.
pub(crate) fn forget_epoch(headers: &mut HeaderMap) {
    headers.remove(EPOCH);
    headers.remove(FENCE);
}

/// Tells the node that sent a call here that the module has moved on.
pub(crate) fn tell_moved(headers: &mut HeaderMap, epoch: Epoch, node: &NodeId) {
    if let Ok(value) = HeaderValue::try_from(format!("{epoch} {node}")) {
        headers.insert(MOVED, value);
    }
}

/// Where the module is now, by the answer's word; takes it out.
pub(crate) fn take_moved(headers: &mut HeaderMap) -> Option<(Epoch, NodeId)> {
    let value = headers.remove(MOVED)?;
    let (epoch, node) = value.to_str().ok()?.split_once(' ')?;
    Some((Epoch(epoch.parse().ok()?), NodeId::parse(node).ok()?))
}

#[cfg(test)]
mod tests {
    use futures_util::future::{BoxFuture, pending};

    use super::*;
    use crate::{
        BoxError,
        call::{link::Links, slot::Wire},
        trust::Trust,
    };

    /// Calls that are never asked for.
    struct Nothing;

    impl Wire for Nothing {
        fn call(&self, _: Request) -> BoxFuture<'static, Result<Response, BoxError>> {
            Box::pin(pending())
        }
    }

    #[tokio::test]
    async fn the_instance_here_has_its_share_and_no_more() {
        let links = Links::new(Trust::default());
        let other = links.to(&NodeId::parse("b").unwrap(), "127.0.0.1:9".parse().unwrap());
        let here = Some(Local::new(None, Box::new(Nothing)));
        let placed = Placed::new(Epoch(1), true, (vec![other], 1), here, 7);
        let chosen = || (0..100).filter(|_| matches!(placed.choose(&[]), Choice::Here(_))).count();
        assert!((20..80).contains(&chosen()), "nobody is busier than the other");
        let busy = placed.count_here();
        assert_eq!(chosen(), 0);
        drop(busy);
        assert!(chosen() > 0);
    }
}

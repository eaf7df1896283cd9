//! Clients that call all the time, each call with an id of its own, at nodes that they choose at random.

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use outpost_proto::keys::metadata as keys;
use tokio::time::sleep;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    app::{CALL, REGISTER},
    book::{self, End},
    machine::Board,
    state::{LEDGER, PAD, SHELF},
    v1::{
        Appended, Entry, desk_client::DeskClient, ledger_client::LedgerClient, pad_client::PadClient,
        register_client::RegisterClient, shelf_client::ShelfClient,
    },
};

/// What clients are told.
#[derive(Debug, Default)]
pub struct Orders {
    /// Where nodes are.
    pub nodes: Vec<SocketAddr>,
    /// They should make no more calls.
    pub stop: bool,
    /// They may wait for longer than a short lease.
    pub patient: bool,
    /// No fault is left: each call must be answered.
    pub calm: bool,
    /// How many calls are under way.
    pub under_way: usize,
}

/// A connection from a machine to an address, made when it is first used.
///
/// # Panics
/// Never: an address makes a good URI.
#[must_use]
pub fn channel(board: &Arc<Board>, address: SocketAddr) -> Channel {
    let board = Arc::clone(board);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a good URI");
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let connecting = board.connect_to(address);
        async move { connecting.await.map(TokioIo::new) }
    }))
}

fn end_of(outcome: &Result<(), Status>) -> End {
    let Err(status) = outcome else { return End::Acknowledged };
    match status.metadata().get(keys::OUTCOME).and_then(|outcome| outcome.to_str().ok()) {
        Some("not-executed") => End::NotExecuted,
        _ => End::Unknown,
    }
}

/// Whom a client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    Register,
    Desk,
    Pad,
    Shelf,
    Ledger,
}

impl Whom {
    const ALL: [Self; 5] = [Self::Register, Self::Desk, Self::Pad, Self::Shelf, Self::Ledger];

    /// Half of all calls are for the module that the run is about.
    fn at_random(favourite: &str) -> Self {
        let all = if rand::random_bool(0.5) {
            Self::ALL.into_iter().filter(|whom| whom.list().unwrap_or(REGISTER) == favourite).collect()
        } else {
            Self::ALL.to_vec()
        };
        all[rand::random_range(0..all.len())]
    }

    /// The name of a module with state.
    fn list(self) -> Option<&'static str> {
        match self {
            Self::Register | Self::Desk => None,
            Self::Pad => Some(PAD),
            Self::Shelf => Some(SHELF),
            Self::Ledger => Some(LEDGER),
        }
    }

    /// Whether a call of it may be made again under its id.
    fn keeps_answers(self) -> bool {
        matches!(self, Self::Pad | Self::Shelf)
    }

    async fn call(self, channel: Channel, request: Request<Entry>) -> Result<Appended, Status> {
        let answer = match self {
            Self::Register => RegisterClient::new(channel).append(request).await,
            Self::Desk => DeskClient::new(channel).append(request).await,
            Self::Pad => PadClient::new(channel).append(request).await,
            Self::Shelf => ShelfClient::new(channel).append(request).await,
            Self::Ledger => LedgerClient::new(channel).append(request).await,
        };
        answer.map(tonic::Response::into_inner)
    }
}

/// A call that is made again.
#[derive(Debug)]
struct Again {
    whom: Whom,
    id: String,
    times: u32,
}

/// Calls, one after the other.
pub async fn call(
    name: String,
    board: Arc<Board>,
    orders: Rc<RefCell<Orders>>,
    pause_ms: u64,
    favourite: &'static str,
) {
    let mut channels: BTreeMap<SocketAddr, Channel> = BTreeMap::new();
    let mut was_calm = false;
    let mut again: Option<Again> = None;
    for number in 0_u64.. {
        sleep(Duration::from_millis(rand::random_range(0..=pause_ms))).await;
        let (node, calm, patience) = {
            let orders = orders.borrow();
            if orders.stop {
                return;
            }
            (orders.nodes[rand::random_range(0..orders.nodes.len())], orders.calm, 1 + u64::from(orders.patient))
        };
        if calm && !std::mem::replace(&mut was_calm, true) {
            // Nobody has told this client of connections that were lost while it did not use them.
            channels.clear();
        }
        let channel = channels.entry(node).or_insert_with(|| channel(&board, node)).clone();
        let Again { whom, id, times } = again.take().unwrap_or_else(|| {
            let whom = Whom::at_random(favourite);
            let id = format!("{}-{name}-{number}", whom.list().unwrap_or("register"));
            Again { whom, id, times: 0 }
        });
        let work_ms = if rand::random_ratio(1, 8) { rand::random_range(0..300) } else { 0 };
        let mut request = Request::new(Entry { id: id.clone(), work_ms });
        request.metadata_mut().insert(CALL, id.parse().expect("an id is ASCII"));
        if whom.keeps_answers() {
            request.metadata_mut().insert(keys::CALL_ID, id.parse().expect("an id is ASCII"));
        }
        let limit = Duration::from_millis(if calm { 5000 } else { patience * rand::random_range(200..4000) });
        request.set_timeout(limit);
        book::sent(&id);
        orders.borrow_mut().under_way += 1;
        let calling = whom.call(channel, request);
        let outcome = match tokio::time::timeout(limit + Duration::from_millis(500), calling).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Status::deadline_exceeded("gave up")),
        };
        orders.borrow_mut().under_way -= 1;
        if let Ok(appended) = &outcome
            && appended.id != id
        {
            book::violation("INV-5", format!("{id} got the answer of {}", appended.id));
        }
        if let (Ok(appended), Some(module)) = (&outcome, whom.list()) {
            book::lists(|lists| lists.answered(module, appended));
        }
        let outcome = outcome.map(drop);
        let end = end_of(&outcome);
        // Of a call that was made before, nobody knows more when it has not run this time.
        if times == 0 || end == End::Acknowledged {
            book::ended(&id, end);
        }
        let repeats = if end == End::Acknowledged { rand::random_ratio(1, 8) } else { true };
        if whom.keeps_answers() && end != End::NotExecuted && times < 3 && repeats {
            again = Some(Again { whom, id: id.clone(), times: times + 1 });
        }
        if let Err(status) = &outcome {
            tracing::debug!(call = id, ?end, message = status.message(), "a call failed");
            if calm {
                book::violation("I11", format!("{id} at {node} failed although no fault is left: {status}"));
            }
            if rand::random_bool(0.5) {
                channels.remove(&node);
            }
        }
    }
}

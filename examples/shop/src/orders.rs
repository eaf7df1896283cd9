//! The orders that were placed, and how far each has come.
//!
//! A background task moves every order under way one status further at each tick. A watcher follows the status of one
//! order through a channel that holds a single value, so a slow watcher costs nothing; the statuses are a line, so it
//! can still tell which ones it missed.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use outpost::{BoxError, Config, Context, Snapshot, SnapshotReader, SnapshotWriter, State};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tonic::{Request, Response, Status};

use crate::{
    check, clock,
    ids::Ids,
    state::{self, Locked, v1 as written},
    v1::{
        Order, OrderStatus, OrdersCreateRequest, OrdersCreateResponse, OrdersGetRequest, OrdersGetResponse,
        OrdersListRequest, OrdersListResponse, WatchRequest, WatchResponse,
        orders_get_request::Selector,
        orders_server::{self, OrdersServer},
    },
};

/// Largest order, with its key, as it comes over the wire.
const MAX_ORDER_BYTES: usize = 64 * 1024;

/// How orders come along, under `[modules.orders]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrdersConfig {
    /// Time between two statuses of an order, in milliseconds; at least 1.
    pub step_ms: u64,
    /// How many orders are kept. Beyond, the order that was delivered first is forgotten; when none has been delivered
    /// yet, a new order is RESOURCE_EXHAUSTED.
    pub max_orders: usize,
}

impl Default for OrdersConfig {
    fn default() -> Self {
        Self { step_ms: 500, max_orders: 10_000 }
    }
}

/// Builds the module, and starts the task that moves orders along. It calls no other.
///
/// # Errors
/// When `step_ms` is 0.
pub async fn new(
    ctx: Context,
    config: Config<OrdersConfig>,
    book: State<Locked<Book>>,
) -> Result<OrdersServer<Orders>, BoxError> {
    if config.step_ms == 0 {
        return Err("step_ms must be at least 1".into());
    }
    ctx.spawn("advance-orders", advance(ctx.clone(), book.clone(), Duration::from_millis(config.step_ms)));
    Ok(OrdersServer::new(Orders { max_orders: config.max_orders, ids: Ids::new("ORDER", ctx), book }))
}

async fn advance(ctx: Context, book: State<Locked<Book>>, step: Duration) {
    let mut ticks = interval(step);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = ctx.stopping() => return,
            // Until it serves, what an instance has is a copy of what another one still moves along.
            _ = ticks.tick() => if ctx.epoch() > 0 { book.with(Book::advance) },
        }
    }
}

/// The module. It keeps at most `max_orders` orders of at most 64 kB each.
#[derive(Debug)]
pub struct Orders {
    max_orders: usize,
    ids: Ids,
    book: State<Locked<Book>>,
}

#[tonic::async_trait]
impl orders_server::Orders for Orders {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn create(&self, request: Request<OrdersCreateRequest>) -> Result<Response<OrdersCreateResponse>, Status> {
        let request = request.into_inner();
        check::id("user_id", &request.user_id)?;
        if request.idempotency_key.is_empty() {
            return Err(Status::invalid_argument("idempotency_key is missing"));
        }
        if request.encoded_len() > MAX_ORDER_BYTES {
            return Err(Status::resource_exhausted(format!("an order holds {MAX_ORDER_BYTES} bytes")));
        }
        let order = Order {
            id: self.ids.fresh(),
            user_id: request.user_id,
            items: request.items,
            total: request.total,
            status: OrderStatus::Placed.into(),
            charge_id: request.charge_id,
            tracking_id: None,
            created_at_unix_ms: clock::unix_ms(),
        };
        let (key, tracking_id) = (request.idempotency_key, request.tracking_id);
        let created = self.book.with(|book| book.create(key, order, tracking_id, self.max_orders))?;
        Ok(Response::new(OrdersCreateResponse { order: Some(created) }))
    }

    async fn get(&self, request: Request<OrdersGetRequest>) -> Result<Response<OrdersGetResponse>, Status> {
        let selector = check::present("selector", request.into_inner().selector)?;
        let order = self.book.with(|book| book.entry(&selector).map(|entry| entry.order.clone()))?;
        Ok(Response::new(OrdersGetResponse { order: Some(order) }))
    }

    async fn list(&self, request: Request<OrdersListRequest>) -> Result<Response<OrdersListResponse>, Status> {
        let OrdersListRequest { user_id, limit } = request.into_inner();
        let orders = self.book.with(|book| book.of_user(&user_id, check::limit(limit)));
        Ok(Response::new(OrdersListResponse { orders }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let order_id = request.into_inner().order_id;
        let selector = Selector::OrderId(order_id.clone());
        let status = self.book.with(|book| book.entry(&selector).map(|entry| entry.status.subscribe()))?;
        Ok(Response::new(statuses(order_id, status)))
    }
}

/// Each status of an order from the current one on, none left out, until it is delivered.
fn statuses(
    order_id: String,
    status: watch::Receiver<OrderStatus>,
) -> BoxStream<'static, Result<WatchResponse, Status>> {
    let current = *status.borrow();
    stream::unfold((status, Some(current)), move |(mut status, next)| {
        let order_id = order_id.clone();
        async move {
            let next = next?;
            if status.wait_for(|reached| *reached >= next).await.is_err() {
                let stopped = Status::unavailable("orders has stopped; watch again");
                return Some((Err(stopped), (status, None)));
            }
            let update = WatchResponse { order_id, status: next.into() };
            Some((Ok(update), (status, after(next))))
        }
    })
    .boxed()
}

/// The status that follows; none after the last.
fn after(status: OrderStatus) -> Option<OrderStatus> {
    match status {
        OrderStatus::Placed => Some(OrderStatus::Paid),
        OrderStatus::Paid => Some(OrderStatus::Packed),
        OrderStatus::Packed => Some(OrderStatus::Shipped),
        OrderStatus::Shipped => Some(OrderStatus::Delivered),
        OrderStatus::Delivered | OrderStatus::Unspecified => None,
    }
}

/// All orders. Each is either under way or delivered.
#[derive(Debug, Default)]
pub struct Book {
    /// Ids grow, so the newest order is the last.
    entries: BTreeMap<String, Entry>,
    ids_by_key: HashMap<String, String>,
    under_way: Vec<String>,
    /// In the order of delivery.
    delivered: VecDeque<String>,
}

impl Snapshot for Locked<Book> {
    async fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), BoxError> {
        state::write(out, self.with(|book| book.written())).await
    }

    async fn restore(&self, from: &mut SnapshotReader) -> Result<(), BoxError> {
        let book = Book::read(state::read(from).await?)?;
        self.with(|mine| *mine = book);
        Ok(())
    }
}

#[derive(Debug)]
struct Entry {
    order: Order,
    key: String,
    /// Shown from [`OrderStatus::Shipped`] on.
    tracking_id: String,
    status: watch::Sender<OrderStatus>,
}

impl Book {
    fn create(&mut self, key: String, order: Order, tracking_id: String, max_orders: usize) -> Result<Order, Status> {
        if let Some(created_before) = self.ids_by_key.get(&key).and_then(|id| self.entries.get(id)) {
            return Ok(created_before.order.clone());
        }
        // More than one, where there was more room before.
        while self.entries.len() >= max_orders {
            let Some(oldest) = self.delivered.pop_front() else {
                return Err(Status::resource_exhausted(format!("{max_orders} orders are under way")));
            };
            if let Some(forgotten) = self.entries.remove(&oldest) {
                self.ids_by_key.remove(&forgotten.key);
            }
        }
        self.under_way.push(order.id.clone());
        self.insert(key, order.clone(), tracking_id);
        Ok(order)
    }

    fn insert(&mut self, key: String, order: Order, tracking_id: String) {
        let id = order.id.clone();
        self.ids_by_key.insert(key.clone(), id.clone());
        let status = watch::Sender::new(order.status());
        self.entries.insert(id, Entry { order, key, tracking_id, status });
    }

    fn entry(&self, selector: &Selector) -> Result<&Entry, Status> {
        let (id, known_as) = match selector {
            Selector::OrderId(id) => (Some(id), id),
            Selector::IdempotencyKey(key) => (self.ids_by_key.get(key), key),
        };
        id.and_then(|id| self.entries.get(id))
            .ok_or_else(|| Status::not_found(format!("there is no order `{known_as}`")))
    }

    fn of_user(&self, user_id: &str, limit: usize) -> Vec<Order> {
        let newest_first = self.entries.values().rev().map(|entry| &entry.order);
        newest_first.filter(|order| order.user_id == user_id).take(limit).cloned().collect()
    }

    /// Moves every order under way one status further.
    fn advance(&mut self) {
        self.under_way.retain(|id| {
            let Some(entry) = self.entries.get_mut(id) else { return false };
            let Some(next) = after(entry.order.status()) else { return false };
            entry.order.set_status(next);
            if next == OrderStatus::Shipped {
                entry.order.tracking_id = Some(entry.tracking_id.clone());
            }
            entry.status.send_replace(next);
            let delivered = next == OrderStatus::Delivered;
            if delivered {
                self.delivered.push_back(id.clone());
            }
            !delivered
        });
    }
    fn written(&self) -> written::Orders {
        let known = |entry: &Entry| written::KnownOrder {
            idempotency_key: entry.key.clone(),
            order: Some(entry.order.clone()),
            tracking_id: entry.tracking_id.clone(),
        };
        written::Orders {
            orders: self.entries.values().map(known).collect(),
            delivered: self.delivered.iter().cloned().collect(),
        }
    }

    fn read(written: written::Orders) -> Result<Self, BoxError> {
        let mut book = Self { delivered: written.delivered.into(), ..Self::default() };
        for written::KnownOrder { idempotency_key, order, tracking_id } in written.orders {
            book.insert(idempotency_key, order.ok_or("a key has no order")?, tracking_id);
        }
        let under_way = book.entries.values().filter(|entry| after(entry.order.status()).is_some());
        book.under_way = under_way.map(|entry| entry.order.id.clone()).collect();
        Ok(book)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: &str) -> Order {
        Order { id: id.into(), user_id: "ada".into(), status: OrderStatus::Placed.into(), ..Order::default() }
    }

    fn book_with(max_orders: usize, ids: &[&str]) -> Book {
        let mut book = Book::default();
        for id in ids {
            book.create(format!("key of {id}"), order(id), "PARCEL-1".into(), max_orders).unwrap();
        }
        book
    }

    fn get(book: &Book, id: &str) -> Option<Order> {
        book.entry(&Selector::OrderId(id.into())).ok().map(|entry| entry.order.clone())
    }

    #[test]
    fn an_order_goes_through_every_status_and_stops() {
        let mut book = book_with(10, &["1"]);
        let mut seen = Vec::new();
        for _ in 0..6 {
            let order = get(&book, "1").unwrap();
            let shipped = order.status() >= OrderStatus::Shipped;
            assert_eq!(order.tracking_id.is_some(), shipped, "{order:?}");
            seen.push(order.status());
            book.advance();
        }
        use OrderStatus::{Delivered, Packed, Paid, Placed, Shipped};
        assert_eq!(seen, [Placed, Paid, Packed, Shipped, Delivered, Delivered]);
        assert!(book.under_way.is_empty());
    }

    #[test]
    fn the_same_key_gives_the_same_order() {
        let mut book = book_with(10, &["1"]);
        let again = book.create("key of 1".into(), order("2"), String::new(), 10).unwrap();
        assert_eq!(again.id, "1");
        assert_eq!(book.entries.len(), 1);
    }

    #[test]
    fn a_full_book_forgets_delivered_orders_only() {
        let mut book = book_with(2, &["1", "2"]);
        let refused = book.create("key".into(), order("3"), String::new(), 2).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        (0..4).for_each(|_| book.advance());
        book.create("key".into(), order("3"), String::new(), 2).unwrap();
        assert_eq!(["1", "2", "3"].map(|id| get(&book, id).is_some()), [false, true, true]);
        assert_eq!(book.ids_by_key.len(), 2);
    }

    #[tokio::test]
    async fn a_slow_watcher_misses_no_status() {
        let mut book = book_with(1, &["1"]);
        let status = book.entry(&Selector::OrderId("1".into())).unwrap().status.subscribe();
        let watcher = statuses("1".into(), status);
        (0..4).for_each(|_| book.advance());
        let seen: Vec<i32> = watcher.map(|update| update.unwrap().status).collect().await;
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn a_watcher_is_told_when_the_module_stops() {
        let book = book_with(1, &["1"]);
        let status = book.entry(&Selector::OrderId("1".into())).unwrap().status.subscribe();
        drop(book);
        let seen: Vec<_> = statuses("1".into(), status).collect().await;
        assert_eq!(seen[0].as_ref().unwrap().status, i32::from(OrderStatus::Placed));
        assert_eq!(seen[1].as_ref().unwrap_err().code(), tonic::Code::Unavailable);
        assert_eq!(seen.len(), 2);
    }
    #[test]
    fn orders_come_along_and_go_on_where_they_were() {
        let mut source = book_with(3, &["1", "2"]);
        (0..3).for_each(|_| source.advance());
        source.create("key of 3".into(), order("3"), "PARCEL-3".into(), 3).unwrap();
        source.advance();
        let mut target = Book::read(source.written()).unwrap();
        assert_eq!(target.written(), source.written());
        let again = target.create("key of 3".into(), order("4"), String::new(), 3).unwrap();
        assert_eq!((again.id.as_str(), again.status()), ("3", OrderStatus::Paid));
        (0..2).for_each(|_| target.advance());
        assert_eq!(get(&target, "3").unwrap().tracking_id.unwrap(), "PARCEL-3");
        // There is less room here: the two that were delivered make it.
        target.create("key of 4".into(), order("4"), String::new(), 2).unwrap();
        assert_eq!(["1", "2", "3", "4"].map(|id| get(&target, id).is_some()), [false, false, true, true]);
    }
}

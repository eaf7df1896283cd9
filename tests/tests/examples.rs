//! The examples in clusters: what they keep is there, wherever their modules go.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ledger::v1::{BalanceRequest, EntriesRequest, LedgerHandle, PostRequest, ledger_client::LedgerClient};
use outpost_tests::{
    cluster::{TestCluster, nodes},
    wait::{until, within},
};
use shop::v1::{
    Address, Card, CartAddRequest, CartGetRequest, CartHandle, CartLine, ChargeRequest, CheckoutHandle, Money, Order,
    OrderStatus, OrdersGetRequest, OrdersHandle, PaymentHandle, PlaceOrderRequest, RefundRequest, Review,
    ReviewsHandle, ReviewsListRequest, ShipRequest, ShippingHandle, UploadRequest, orders_get_request::Selector,
};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::sleep};
use tonic::{Code, Status};

// ---- The shop ----

fn card() -> Option<Card> {
    Some(Card { number: "4111 1111 1111 1111".into(), expiry_month: 12, expiry_year: 2099 })
}

fn address() -> Option<Address> {
    Some(Address {
        recipient: "Ada".into(),
        street: "Invalidenstr. 1".into(),
        city: "Berlin".into(),
        postcode: "10115".into(),
        country_code: "DE".into(),
    })
}

fn mugs(quantity: u32) -> CartAddRequest {
    CartAddRequest { user_id: "ada".into(), product_id: "mug".into(), quantity }
}

async fn lines(cart: &CartHandle) -> Vec<CartLine> {
    cart.get(CartGetRequest { user_id: "ada".into() }).await.unwrap().into_inner().lines
}

async fn order(orders: &OrdersHandle, id: &str) -> Result<Order, Status> {
    let selector = Some(Selector::OrderId(id.to_owned()));
    orders.get(OrdersGetRequest { selector }).await.map(|found| found.into_inner().order.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cart_survives_a_move() {
    let cluster = nodes(2).start(|_| shop::app()).await;
    let home = cluster.home("cart").await;
    let other = cluster.node_without("cart").await;
    let (here, there): (CartHandle, CartHandle) = (cluster.handle(&home), cluster.handle(&other));
    here.add(mugs(2)).await.unwrap();
    let kept = [CartLine { product_id: "mug".into(), quantity: 2 }];
    cluster.move_module("cart", &other).await;
    assert_eq!((lines(&here).await, lines(&there).await), (kept.to_vec(), kept.to_vec()));
    // And back, with what was added meanwhile.
    there.add(mugs(1)).await.unwrap();
    cluster.move_module("cart", &home).await;
    assert_eq!(lines(&there).await, [CartLine { product_id: "mug".into(), quantity: 3 }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_sent_and_reviewed_is_known_after_a_move() {
    let cluster = nodes(2).start(|_| shop::app()).await;
    for module in ["payment", "shipping", "orders", "reviews"] {
        assert_eq!(cluster.home(module).await, "n1", "it was there first");
    }
    let payment: PaymentHandle = cluster.handle("n1");
    let charge =
        |key: &str| ChargeRequest { idempotency_key: key.into(), amount: Some(Money::new("EUR", 500)), card: card() };
    let charged = payment.charge(charge("key")).await.unwrap().into_inner().charge.unwrap();
    let refunded = payment.charge(charge("refunded")).await.unwrap().into_inner().charge.unwrap();
    payment.refund(RefundRequest { charge_id: refunded.id }).await.unwrap();
    let shipping: ShippingHandle = cluster.handle("n1");
    let parcel = ShipRequest { reference: "1".into(), address: address(), weight_grams: 1 };
    let sent = shipping.ship(parcel.clone()).await.unwrap().into_inner();
    let cart: CartHandle = cluster.handle("n1");
    cart.add(mugs(1)).await.unwrap();
    let checkout: CheckoutHandle = cluster.handle("n1");
    let place = PlaceOrderRequest {
        user_id: "ada".into(),
        currency_code: "EUR".into(),
        address: address(),
        card: card(),
        idempotency_key: Some("order".into()),
    };
    let placed = checkout.place_order(place.clone()).await.unwrap().into_inner().order.unwrap();
    let reviews: ReviewsHandle = cluster.handle("n1");
    let review = Review { product_id: "mug".into(), user_id: "ada".into(), rating: 5, text: None };
    let upload = tokio_stream::iter([UploadRequest { review: Some(review) }]);
    reviews.upload(upload).await.unwrap();

    for module in ["payment", "shipping", "orders", "reviews"] {
        cluster.move_module(module, "n2").await;
    }
    let again = payment.charge(charge("key")).await.unwrap().into_inner().charge.unwrap();
    assert_eq!(again, charged, "a key stands for one charge");
    assert_eq!(payment.charge(charge("refunded")).await.unwrap_err().code(), Code::FailedPrecondition);
    let other = payment.charge(charge("other key")).await.unwrap().into_inner().charge.unwrap();
    assert!(other.id > charged.id, "ids grow: {} after {}", other.id, charged.id);
    assert_eq!(shipping.ship(parcel).await.unwrap().into_inner(), sent, "a reference stands for one parcel");
    let same = checkout.place_order(place).await.unwrap().into_inner().order.unwrap();
    assert_eq!(same.id, placed.id, "a key stands for one order");
    let listed = reviews.list(ReviewsListRequest { product_id: "mug".into(), limit: None }).await.unwrap();
    assert_eq!(listed.into_inner().reviews.len(), 1);
    // Orders come along on the other node.
    let orders: OrdersHandle = cluster.handle("n2");
    until("the order to be delivered", async || match order(&orders, &placed.id).await.unwrap().status() {
        OrderStatus::Delivered => Ok(()),
        status => Err(format!("{status:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_survive_the_crash_of_their_node() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let setup = nodes(3).voters(3).with("cluster.lease", "2s").with("cluster.call_wait", "20s");
    let mut cluster = setup.with("checkpoints.url", &url).start(|_| shop::app()).await;
    let home = cluster.home("orders").await;
    let other = cluster.node_without("orders").await;
    let orders: OrdersHandle = cluster.handle(&other);
    let create = shop::v1::OrdersCreateRequest {
        idempotency_key: "key".into(),
        user_id: "ada".into(),
        ..shop::v1::OrdersCreateRequest::default()
    };
    let created = orders.create(create.clone()).await.unwrap().into_inner().order.unwrap();
    let holds = |path: &std::path::Path| {
        let id = created.id.as_bytes();
        std::fs::read(path).is_ok_and(|bytes| bytes.windows(id.len()).any(|window| window == id))
    };
    until("the order to be in a checkpoint", async || {
        let mut folders = vec![folder.path().to_path_buf()];
        while let Some(next) = folders.pop() {
            for path in std::fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if holds(&path) {
                    return Ok(());
                }
            }
        }
        Err("it is in none".to_owned())
    })
    .await;
    cluster.kill(&home);
    let found = until("somebody to take over", async || order(&orders, &created.id).await.map_err(|e| e.to_string()));
    assert_eq!(found.await.user_id, "ada");
    let again = orders.create(create.clone()).await.unwrap().into_inner().order.unwrap();
    assert_eq!(again.id, created.id);
    let next = shop::v1::OrdersCreateRequest { idempotency_key: "next".into(), ..create };
    let next = orders.create(next).await.unwrap().into_inner().order.unwrap();
    assert!(next.id > created.id, "ids grow: {} after {}", next.id, created.id);
}

// ---- The ledger ----

/// Three nodes with one database; a crash is noticed soon.
async fn ledgers(database: &TempDir) -> TestCluster {
    let path = database.path().join("ledger.db");
    let setup = nodes(3).voters(3).with("cluster.lease", "2s").with("cluster.call_wait", "20s");
    setup.with("modules.ledger.database", path.to_str().unwrap()).start(|_| ledger::app()).await
}

/// Callers that book, each an entry of its own each time, and the same one again until it has an answer.
#[derive(Debug)]
struct Bookings {
    tasks: JoinSet<()>,
    stop: Arc<Mutex<bool>>,
    booked: Arc<Mutex<Booked>>,
}

#[derive(Debug, Default)]
struct Booked {
    acknowledged: Vec<String>,
    /// What was answered with an error before.
    failed: Vec<Status>,
}

const ACCOUNT: &str = "ada";

impl Bookings {
    /// By a stock client and by a handle of each node.
    fn start(cluster: &TestCluster, nodes: &[String]) -> Self {
        let mut bookings = Self { tasks: JoinSet::new(), stop: Arc::default(), booked: Arc::default() };
        for node in nodes {
            let client = LedgerClient::new(cluster.client(node));
            bookings.caller(format!("{node} client"), move |request| {
                let mut client = client.clone();
                async move { client.post(request).await.map(drop) }
            });
            let handle: LedgerHandle = cluster.handle(node);
            bookings.caller(format!("{node} handle"), move |request| {
                let handle = handle.clone();
                async move { handle.post(request).await.map(drop) }
            });
        }
        bookings
    }

    fn caller<F>(&mut self, name: String, post: impl Fn(PostRequest) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), Status>> + Send,
    {
        let (stop, booked) = (Arc::clone(&self.stop), Arc::clone(&self.booked));
        self.tasks.spawn(async move {
            for number in 0.. {
                if *stop.lock().unwrap_or_else(PoisonError::into_inner) {
                    return;
                }
                let id = format!("{name} {number}");
                let request = PostRequest { id: id.clone(), account: ACCOUNT.to_owned(), amount: 1 };
                while let Err(status) = post(request.clone()).await {
                    booked.lock().unwrap_or_else(PoisonError::into_inner).failed.push(status);
                    // Whoever could answer may be gone.
                    sleep(Duration::from_millis(20)).await;
                }
                booked.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.push(id);
            }
        });
    }

    async fn more(&self, calls: usize) {
        let acknowledged = || self.booked.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.len();
        let wanted = acknowledged() + calls;
        until("more entries to be acknowledged", async || match acknowledged() {
            done if done >= wanted => Ok(()),
            done => Err(format!("{done} of {wanted}")),
        })
        .await;
    }

    async fn stop(mut self) -> Booked {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        while let Some(ended) = within("each caller to have its answer", self.tasks.join_next()).await {
            ended.expect("a caller gave up");
        }
        std::mem::take(&mut *self.booked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Booked {
    /// All that was acknowledged is there, once; and nothing else.
    async fn assert_kept(&self, cluster: &TestCluster) {
        let handle: LedgerHandle = cluster.handle(&cluster.names()[0]);
        let entries = handle.entries(EntriesRequest { account: ACCOUNT.into() }).await.unwrap();
        let (mut there, mut acknowledged) = (entries.into_inner().ids, self.acknowledged.clone());
        there.sort();
        acknowledged.sort();
        assert_eq!(there, acknowledged);
        let balance = handle.balance(BalanceRequest { account: ACCOUNT.into() }).await.unwrap().into_inner().balance;
        assert_eq!(balance, acknowledged.len() as i64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_moves_loses_nothing_and_no_call_fails() {
    let database = tempfile::tempdir().unwrap();
    let cluster = ledgers(&database).await;
    cluster.home("ledger").await;
    let bookings = Bookings::start(&cluster, &cluster.names());
    for round in 0..6 {
        bookings.more(30).await;
        cluster.move_module("ledger", ["n2", "n3", "n1"][round % 3]).await;
    }
    bookings.more(30).await;
    let booked = bookings.stop().await;
    assert!(booked.failed.is_empty(), "{:?}", booked.failed.first());
    booked.assert_kept(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_whose_node_crashes_loses_nothing_that_was_acknowledged() {
    let database = tempfile::tempdir().unwrap();
    let mut cluster = ledgers(&database).await;
    let home = cluster.home("ledger").await;
    let others: Vec<String> = cluster.names().into_iter().filter(|name| *name != home).collect();
    let bookings = Bookings::start(&cluster, &others);
    bookings.more(30).await;
    cluster.kill(&home);
    bookings.more(30).await;
    cluster.restart(&home).await;
    bookings.more(30).await;
    let booked = bookings.stop().await;
    booked.assert_kept(&cluster).await;
}

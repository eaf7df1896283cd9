//! The shop three ways at equal load: one process, three nodes, and as many microservices as it has modules on the way of
//! an order.
//!
//! ```text
//! clients ─▶ one process: ten modules that call each other
//! clients ─▶ three nodes, on which the cluster has placed the modules
//! clients ─▶ cart, checkout ─▶ catalog, shipping, pricing, payment, orders: a stock tonic server each
//! ```
//!
//! The microservices are the very services of the modules, built without a node, with handles over stock tonic channels in
//! place of the modules that they call.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use outpost::{Config, Context, Handle, ModuleName, Sources, State};
use outpost_proto::admin::v1::{Cluster, ClusterModule, admin_client::AdminClient};
use outpost_tests::measure::{Loaded, Process, connect, cpu_of, drive, runtime};
use shop::{
    orders::OrdersConfig,
    v1::{Address, Card, CartAddRequest, PlaceOrderRequest, cart_client::CartClient, checkout_client::CheckoutClient},
};
use tokio::time::sleep;
use tonic::{
    body::Body,
    server::NamedService,
    transport::{Channel, Server},
};

use crate::{
    Plan,
    nodes::{ready, until},
    report::{Cell, Report, hundredths, tenths, whole},
    rounds::{middle, progress, ratio, turns},
    served,
};

/// Buyers who order again and again, each as soon as the last order has arrived.
const BUYERS: usize = 32;
/// Time between two statuses of an order. Those that were delivered are forgotten, so that none is refused.
const ORDER_STEP_MS: u64 = 50;
/// How long a new cluster gets to spread its modules.
const SPREADING: Duration = Duration::from_secs(10);

/// Serves the shop or a part of it, and tells on its standard output where: the ingress, and what else there is.
/// `what` is `node NAME SEED`, the seed being `-` for the first; or `service NAME` and, for each service that it calls,
/// `NAME=ADDRESS`.
pub(crate) fn serve(what: &str) {
    let words: Vec<String> = what.split(' ').map(ToOwned::to_owned).collect();
    runtime(2).block_on(async move {
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["node", name, seed] => node(name, seed).await,
            ["service", name, others @ ..] => service(name, others).await,
            _ => panic!("`{what}` is nothing to serve"),
        }
    });
}

async fn node(name: &str, seed: &str) {
    let mut sources = Sources::on_free_ports().set("node.name", name).set("log.filter", "warn");
    sources = sources.set("modules.orders.step_ms", &ORDER_STEP_MS.to_string());
    if seed != "-" {
        sources = sources.set("cluster.seeds", &format!("[\"{seed}\"]"));
    }
    served::announce(shop::app().start(&sources).await.expect("the shop starts")).await;
}

async fn service(name: &str, others: &[&str]) {
    let others: BTreeMap<&str, &str> =
        others.iter().map(|other| other.split_once('=').expect("NAME=ADDRESS")).collect();
    let channel = async |name: &str| connect(others[name]).await;
    let context = || Context::detached(ModuleName::parse(name).expect("a module's name"));
    match name {
        "catalog" => listen(shop::catalog::new().await.expect("it is built")).await,
        "pricing" => listen(shop::pricing::new(Config::new(Default::default())).await.expect("it is built")).await,
        "shipping" => {
            let (config, state) = (Config::new(Default::default()), State::new(Default::default()));
            listen(shop::shipping::new(context(), config, state).await.expect("it is built")).await;
        }
        "payment" => {
            let (config, state) = (Config::new(Default::default()), State::new(Default::default()));
            listen(shop::payment::new(context(), config, state).await.expect("it is built")).await;
        }
        "orders" => {
            let config = OrdersConfig { step_ms: ORDER_STEP_MS, ..OrdersConfig::default() };
            let (config, state) = (Config::new(config), State::new(Default::default()));
            listen(shop::orders::new(context(), config, state).await.expect("it is built")).await;
        }
        "cart" => {
            let (config, state) = (Config::new(Default::default()), State::new(Default::default()));
            let catalog = Handle::over(channel("catalog").await);
            listen(shop::cart::new(config, state, catalog).await.expect("it is built")).await;
        }
        "checkout" => {
            let checkout = shop::checkout::new(
                context(),
                Handle::over(channel("cart").await),
                Handle::over(channel("catalog").await),
                Handle::over(channel("shipping").await),
                Handle::over(channel("pricing").await),
                Handle::over(channel("payment").await),
                Handle::over(channel("orders").await),
            );
            listen(checkout.await.expect("it is built")).await;
        }
        _ => panic!("`{name}` is no service of an order"),
    }
}

/// Serves a service as tonic's own examples do.
async fn listen<S>(service: S)
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = std::convert::Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    served::listen(Server::builder().add_service(service)).await;
}

/// A shop that runs.
struct Shop {
    name: &'static str,
    processes: Vec<Process>,
    /// Of each buyer.
    buyers: Vec<Buyer>,
    samples: Vec<Sample>,
}

#[derive(Clone)]
struct Buyer {
    name: String,
    cart: CartClient<Channel>,
    checkout: CheckoutClient<Channel>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    loaded: Loaded,
    /// Orders per second of CPU time of all servers.
    a_cpu_second: f64,
    /// Of all servers together, in MiB.
    resident: f64,
}

impl Shop {
    /// `ways` are the addresses of cart and checkout, of which each buyer uses one pair.
    async fn new(name: &'static str, processes: Vec<Process>, ways: &[(SocketAddr, SocketAddr)]) -> Self {
        let mut channels = Vec::new();
        for (cart, checkout) in ways {
            channels.push((connect(cart).await, connect(checkout).await));
        }
        let buyer = |number: usize| {
            let (cart, checkout) = channels[number % channels.len()].clone();
            Buyer {
                name: format!("buyer-{number}"),
                cart: CartClient::new(cart),
                checkout: CheckoutClient::new(checkout),
            }
        };
        Self { name, processes, buyers: (0..BUYERS).map(buyer).collect(), samples: Vec::new() }
    }

    async fn one_process() -> Self {
        let (process, addresses) = served::start("node one -");
        all_served(addresses[2], 1).await;
        Self::new("one process", vec![process], &[(addresses[0], addresses[0])]).await
    }

    async fn three_nodes() -> Self {
        let (first, addresses) = served::start("node node-1 -");
        let (mut processes, mut ingresses) = (vec![first], vec![addresses[0]]);
        for name in ["node-2", "node-3"] {
            let (process, its) = served::start(&format!("node {name} {}", addresses[1]));
            processes.push(process);
            ingresses.push(its[0]);
        }
        all_served(addresses[2], 3).await;
        let ways: Vec<_> = ingresses.into_iter().map(|ingress| (ingress, ingress)).collect();
        Self::new("three nodes", processes, &ways).await
    }

    async fn microservices() -> Self {
        let mut started: BTreeMap<&str, (Process, SocketAddr)> = BTreeMap::new();
        let calls: [(&str, &[&str]); 7] = [
            ("catalog", &[]),
            ("pricing", &[]),
            ("shipping", &[]),
            ("payment", &[]),
            ("orders", &[]),
            ("cart", &["catalog"]),
            ("checkout", &["cart", "catalog", "shipping", "pricing", "payment", "orders"]),
        ];
        for (name, others) in calls {
            let others: Vec<String> = others.iter().map(|other| format!(" {other}={}", started[other].1)).collect();
            let (process, addresses) = served::start(&format!("service {name}{}", others.concat()));
            started.insert(name, (process, addresses[0]));
        }
        let way = (started["cart"].1, started["checkout"].1);
        let processes = started.into_values().map(|(process, _)| process).collect();
        Self::new("seven microservices (stock tonic)", processes, &[way]).await
    }

    async fn sample(&mut self, time: Duration) {
        let pids: Vec<u32> = self.processes.iter().map(|process| process.0.id()).collect();
        let cpu = || pids.iter().map(|pid| cpu_of(*pid)).sum::<Duration>();
        let before = cpu();
        let buyers = self.buyers.clone();
        let loaded = drive(BUYERS, time, move |which| buyers[which].clone().buy()).await;
        let spent = (cpu() - before).as_secs_f64();
        let resident = self.processes.iter().map(|process| process.resident_kib() as f64 / 1024.0).sum();
        self.samples.push(Sample { loaded, a_cpu_second: f64::from(loaded.calls) / spent, resident });
    }
}

impl Buyer {
    /// Puts two things into the cart, and orders them: 3 calls from outside, which make 11 between modules.
    async fn buy(mut self) {
        for product_id in ["mug", "kettle"] {
            let request = CartAddRequest { user_id: self.name.clone(), product_id: product_id.into(), quantity: 1 };
            self.cart.add(request).await.expect("it is added");
        }
        let order = PlaceOrderRequest {
            user_id: self.name.clone(),
            currency_code: "EUR".into(),
            address: Some(Address {
                recipient: "Ada".into(),
                street: "Invalidenstr. 1".into(),
                city: "Berlin".into(),
                postcode: "10115".into(),
                country_code: "DE".into(),
            }),
            card: Some(Card { number: "4111 1111 1111 1111".into(), expiry_month: 12, expiry_year: 2099 }),
            idempotency_key: None,
        };
        self.checkout.place_order(order).await.expect("it is ordered");
    }
}

/// Waits until as many nodes are there, each with modules, all of which are served.
async fn all_served(admin: SocketAddr, nodes: usize) {
    let admin = AdminClient::new(connect(admin).await);
    let all = |view: &Cluster| {
        let hosts: BTreeSet<&str> =
            view.modules.iter().flat_map(|module| &module.hosts).map(|host| host.node.as_str()).collect();
        // One that should have two hosts is served where there is one node.
        let is_served = |module: &ClusterModule| matches!(&*module.state, "serving" | "degraded");
        let served = view.modules.iter().all(|module| is_served(module) && module.movement.is_none());
        ready(view) == nodes && hosts.len() == nodes && served
    };
    until(&admin, "the shop on all of its nodes", all).await;
    // The cluster spreads modules a few at a time.
    sleep(SPREADING).await;
    until(&admin, "the shop on all of its nodes", all).await;
}

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    report.part("shop", "the shop three ways");
    runtime(1).block_on(async {
        let mut shops = [Shop::microservices().await, Shop::one_process().await, Shop::three_nodes().await];
        for shop in &mut shops {
            shop.sample(Duration::from_secs(1)).await;
            shop.samples.clear();
        }
        for round in 0..plan.rounds {
            progress("shop", round, plan.rounds);
            for index in turns(shops.len(), round) {
                shops[index].sample(plan.time).await;
            }
        }
        table(&shops, report);
    });
}

/// A number of a sample.
type Part = fn(&Sample) -> f64;

fn table(shops: &[Shop], report: &mut Report) {
    let middle = |shop: &Shop, part: Part| middle(&shop.samples, part);
    let ratio = |shop: &Shop, part: Part| ratio(&shop.samples, &shops[0].samples, part);
    let rows = shops.iter().map(|shop| {
        vec![
            Cell::from(shop.name),
            whole(shop.processes.len() as f64),
            whole(middle(shop, |sample| sample.loaded.rate)),
            whole(middle(shop, |sample| sample.a_cpu_second)),
            hundredths(ratio(shop, |sample| sample.a_cpu_second)),
            tenths(middle(shop, |sample| sample.loaded.p50 / 1e3)),
            tenths(middle(shop, |sample| sample.loaded.p99 / 1e3)),
            whole(middle(shop, |sample| sample.resident)),
        ]
    });
    let columns = [
        "shop",
        "processes",
        "orders a second",
        "orders a CPU second of the servers",
        "ratio",
        "p50 of an order, ms",
        "p99, ms",
        "memory, MiB",
    ];
    report.table(&format!("{BUYERS} buyers; an order is 3 calls from outside"), &columns, rows.collect());
}

//! The four kinds of calls, from a handle on one node to a module on another, against stock tonic.
//!
//! ```text
//! this process                             a process of its own
//! handle ─▶ node ═════════ link ═════════▶ node ─▶ module
//! stock tonic client ─── one connection ─▶ stock tonic server      1.00
//! ```

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use outpost::{App, BoxError, Sources};
use outpost_tests::{
    Answers,
    measure::{ask, connect, drive, runtime},
    v1::{
        Answer, Ask, KindsHandle,
        kinds_client::KindsClient,
        kinds_server::{Kinds, KindsServer},
    },
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server},
};

use crate::{
    Plan,
    report::{Cell, Report, hundredths, tenths, whole},
    rounds::{Sample, middle, progress, ratio, turns},
    served,
};

#[derive(Debug, Clone, Copy)]
enum Kind {
    Unary,
    Client,
    Server,
    Both,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Unary, "unary"),
    (Kind::Client, "client streaming"),
    (Kind::Server, "server streaming"),
    (Kind::Both, "bidirectional"),
];

/// How calls are made.
struct Shape {
    title: &'static str,
    bytes: usize,
    /// In each direction that streams; other directions have one, and so have unary calls.
    messages: u32,
    calls: usize,
    unary_calls: usize,
}

const SHAPES: [Shape; 4] = [
    Shape {
        title: "100 bytes: 8 streams of 1000 messages at a time, and 64 unary calls",
        bytes: 100,
        messages: 1000,
        calls: 8,
        unary_calls: 64,
    },
    Shape {
        title: "64 KiB: 4 streams of 50 messages at a time, and 16 unary calls",
        bytes: 64 << 10,
        messages: 50,
        calls: 4,
        unary_calls: 16,
    },
    Shape {
        title: "100 bytes: a stream of 8 messages at a time, and a unary call",
        bytes: 100,
        messages: 8,
        calls: 1,
        unary_calls: 1,
    },
    Shape {
        title: "64 KiB: a stream of 8 messages at a time, and a unary call",
        bytes: 64 << 10,
        messages: 8,
        calls: 1,
        unary_calls: 1,
    },
];

impl Shape {
    fn messages(&self, kind: Kind) -> u32 {
        if matches!(kind, Kind::Unary) { 1 } else { self.messages }
    }

    fn calls(&self, kind: Kind) -> usize {
        if matches!(kind, Kind::Unary) { self.unary_calls } else { self.calls }
    }
}

/// Says which process it is, and sends back what it is sent.
#[derive(Debug, Clone, Copy)]
struct Echoing;

fn answer(payload: Vec<u8>) -> Answer {
    Answer { payload, number: i64::from(std::process::id()), ..Answer::default() }
}

#[tonic::async_trait]
impl Kinds for Echoing {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        Ok(Response::new(answer(request.into_inner().payload)))
    }

    type ServerStreamStream = Answers;

    async fn server_stream(&self, request: Request<Ask>) -> Result<Response<Answers>, Status> {
        let Ask { payload, count, .. } = request.into_inner();
        let answers = (0..count).map(move |_| Ok::<_, Status>(answer(payload.clone())));
        let answers: Answers = Box::pin(tokio_stream::iter(answers));
        Ok(Response::new(answers))
    }

    async fn client_stream(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answer>, Status> {
        let mut asks = request.into_inner();
        let mut number = 0;
        while asks.message().await?.is_some() {
            number += 1;
        }
        Ok(Response::new(Answer { number, ..Answer::default() }))
    }

    type BidiStream = Answers;

    async fn bidi(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answers>, Status> {
        let answers: Answers = Box::pin(request.into_inner().map_ok(|ask| answer(ask.payload)));
        Ok(Response::new(answers))
    }
}

fn app() -> App {
    App::new("streams", "1").module("kinds", || async { Ok::<_, BoxError>(KindsServer::new(Echoing)) })
}

fn sources(name: &str) -> Sources {
    let quiet = Sources::on_free_ports().set("log.filter", "warn").set("cluster.max_rebalancing", "0");
    quiet.set("node.name", name)
}

/// Serves a side of the comparison: `node`, or `tonic`.
pub(crate) fn serve(what: &str) {
    runtime(2).block_on(async {
        match what {
            "node" => served::announce(app().start(&sources("host")).await.expect("the node starts")).await,
            _ => served::listen(Server::builder().add_service(KindsServer::new(Echoing))).await,
        }
    });
}

#[derive(Clone)]
enum Way {
    Link(KindsHandle),
    Tonic(KindsClient<Channel>),
}

/// A call, by either client: they have the same methods, and no trait.
macro_rules! call {
    ($client:expr, $kind:expr, $bytes:expr, $messages:expr) => {{
        let asks = (0..$messages).map(move |_| ask($bytes));
        let request = Ask { count: $messages, ..ask($bytes) };
        match $kind {
            Kind::Unary => {
                $client.unary(request).await.expect("an answer");
                1
            }
            Kind::Client => {
                let answer = $client.client_stream(tokio_stream::iter(asks)).await.expect("an answer");
                u32::try_from(answer.into_inner().number).unwrap_or_default()
            }
            Kind::Server => count($client.server_stream(request).await.expect("answers").into_inner()).await,
            Kind::Both => count($client.bidi(tokio_stream::iter(asks)).await.expect("answers").into_inner()).await,
        }
    }};
}

/// How many answers there are.
async fn count(answers: impl futures_util::Stream<Item = Result<Answer, Status>>) -> u32 {
    let mut answers = std::pin::pin!(answers);
    let mut count = 0;
    while let Some(answer) = answers.next().await {
        answer.expect("an answer");
        count += 1;
    }
    count
}

impl Way {
    async fn call(self, kind: Kind, bytes: usize, messages: u32) {
        let arrived = match self {
            Self::Link(handle) => call!(handle, kind, bytes, messages),
            Self::Tonic(mut client) => call!(client, kind, bytes, messages),
        };
        assert_eq!(arrived, messages, "messages of a call got lost");
    }

    async fn server(&self) -> i64 {
        let answer = match self {
            Self::Link(handle) => handle.unary(ask(1)).await,
            Self::Tonic(client) => client.clone().unary(ask(1)).await,
        };
        answer.expect("an answer").into_inner().number
    }
}

struct Measured {
    name: &'static str,
    way: Way,
    server: u32,
    /// Per shape and kind, the rounds.
    samples: Vec<Vec<Sample>>,
}

impl Measured {
    async fn sample(&self, shape: &Shape, kind: Kind, time: Duration) -> Sample {
        let (way, bytes, messages) = (self.way.clone(), shape.bytes, shape.messages(kind));
        let call = move |_| way.clone().call(kind, bytes, messages);
        Sample::of(self.server, drive(shape.calls(kind), time, call)).await
    }
}

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    report.part("streams", "the four kinds of calls, from one node to a module on another");
    runtime(2).block_on(measure(plan, report));
}

async fn measure(plan: &Plan, report: &mut Report) {
    let (host, addresses) = served::start("streams node");
    let seeds = format!("[\"{}\"]", addresses[1]);
    let caller = app().start(&sources("caller").set("cluster.seeds", &seeds)).await.expect("the node starts");
    let (stock, stock_at) = served::start("streams tonic");
    let mut all = [
        ("stock tonic", Way::Tonic(KindsClient::new(connect(stock_at[0]).await)), stock.0.id()),
        ("a handle, over a link", Way::Link(caller.handle().expect("the program has it")), host.0.id()),
    ]
    .map(|(name, way, server)| Measured {
        name,
        way,
        server,
        samples: vec![Vec::new(); SHAPES.len() * KINDS.len()],
    });
    for measured in &all {
        assert_eq!(
            measured.way.server().await,
            i64::from(measured.server),
            "{}: another process answers",
            measured.name
        );
        for (kind, _) in KINDS {
            measured.sample(&SHAPES[0], kind, Duration::from_millis(200)).await;
        }
    }
    for round in 0..plan.rounds {
        progress("streams", round, plan.rounds);
        for (which, (shape, kind)) in shaped().enumerate() {
            for index in turns(all.len(), round) {
                let sample = all[index].sample(shape, kind, plan.time).await;
                all[index].samples[which].push(sample);
            }
        }
    }
    for (number, shape) in SHAPES.iter().enumerate() {
        table(&all, number * KINDS.len(), shape, report);
    }
    caller.stop().await;
}

fn shaped() -> impl Iterator<Item = (&'static Shape, Kind)> {
    SHAPES.iter().flat_map(|shape| KINDS.iter().map(move |(kind, _)| (shape, *kind)))
}

/// `first` is where the samples of this shape begin.
fn table(all: &[Measured], first: usize, shape: &Shape, report: &mut Report) {
    let mut rows = Vec::new();
    for (which, (kind, name)) in (first..).zip(KINDS) {
        let messages = f64::from(shape.messages(kind));
        for measured in all {
            let (samples, stock) = (&measured.samples[which], &all[0].samples[which]);
            let a_second = middle(samples, |sample| sample.loaded.rate) * messages;
            rows.push(vec![
                Cell::from(name),
                Cell::from(measured.name),
                whole(a_second),
                tenths(a_second * shape.bytes as f64 / f64::from(1 << 20)),
                hundredths(ratio(samples, stock, |sample| sample.loaded.rate)),
                whole(middle(samples, |sample| sample.loaded.p50)),
                whole(middle(samples, |sample| sample.loaded.p99)),
                hundredths(ratio(samples, stock, |sample| sample.loaded.p50)),
                hundredths(middle(samples, |sample| sample.client / messages)),
                hundredths(middle(samples, |sample| sample.server / messages)),
                hundredths(ratio(samples, stock, Sample::both)),
            ]);
        }
    }
    let columns = [
        "kind",
        "way",
        "messages/s",
        "MiB/s",
        "rate ratio",
        "p50 us of a call",
        "p99 us",
        "p50 ratio",
        "client CPU us/message",
        "server CPU us/message",
        "CPU ratio",
    ];
    report.table(shape.title, &columns, rows);
}

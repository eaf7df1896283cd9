//! INV-5, "same meaning everywhere": one scenario, run over every way that a call can take.
//!
//! What differs by design is tested at the end, and told in `docs/calls.md`.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{pin::Pin, sync::atomic::Ordering, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use outpost::{App, BoxError, Handle as _, Sources};
use outpost_tests::{
    Marker, Obedient, Seen, app,
    cluster::{TestCluster, nodes},
    failure, relay,
    v1::{
        Answer, Ask, Deed, KindsHandle, RelayHandle, kinds_client::KindsClient, kinds_server::KindsServer,
        relay_client::RelayClient,
    },
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, IntoRequest as _, Request, Response, Status, metadata::MetadataValue, transport};

type Answers = Pin<Box<dyn Stream<Item = Result<Answer, Status>> + Send>>;
type Asks = Pin<Box<dyn Stream<Item = Ask> + Send>>;

/// A way to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A handle on a module in this process: the trait's method is called.
    Direct,
    /// The same, but the module's server has an interceptor, so that a handle may not go around it.
    Intercepted,
    /// A handle over the node's in-process channel.
    HandleOverChannel,
    /// A stock tonic client over the node's in-process channel.
    ClientOverChannel,
    /// A handle over a socket to the ingress.
    HandleOverSocket,
    /// A stock tonic client over a socket to the ingress.
    ClientOverSocket,
    /// A handle on a node that does not host the module. The module that calls it in turn is on that node too.
    HandleToOtherNode,
    /// A stock tonic client over the in-process channel of a node that does not host the module.
    ChannelToOtherNode,
    /// A stock tonic client over a socket to the ingress of a node that does not host the module.
    ClientToOtherNode,
}

impl Layout {
    const ALL: [Self; 9] = [
        Self::Direct,
        Self::Intercepted,
        Self::HandleOverChannel,
        Self::ClientOverChannel,
        Self::HandleOverSocket,
        Self::ClientOverSocket,
        Self::HandleToOtherNode,
        Self::ChannelToOtherNode,
        Self::ClientToOtherNode,
    ];

    /// Whether a tonic channel of the caller's own enforces the deadline too.
    fn has_tonic_channel(self) -> bool {
        matches!(self, Self::ClientOverSocket | Self::ClientToOtherNode)
    }

    /// Whether the module is on another node than the caller.
    fn is_apart(self) -> bool {
        matches!(self, Self::HandleToOtherNode | Self::ChannelToOtherNode | Self::ClientToOtherNode)
    }
}

#[derive(Clone)]
enum Kinds {
    Handle(KindsHandle),
    OverChannel(KindsClient<outpost::Channel>),
    OverSocket(KindsClient<transport::Channel>),
}

#[derive(Clone)]
enum Relay {
    Handle(RelayHandle),
    OverChannel(RelayClient<outpost::Channel>),
    OverSocket(RelayClient<transport::Channel>),
}

fn boxed(stream: impl Stream<Item = Result<Answer, Status>> + Send + 'static) -> Answers {
    Box::pin(stream)
}

impl Kinds {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        match self.clone() {
            Self::Handle(handle) => handle.unary(request).await,
            Self::OverChannel(mut client) => client.unary(request).await,
            Self::OverSocket(mut client) => client.unary(request).await,
        }
    }

    async fn server_stream(&self, request: Request<Ask>) -> Result<Response<Answers>, Status> {
        Ok(match self.clone() {
            Self::Handle(handle) => handle.server_stream(request).await?.map(boxed),
            Self::OverChannel(mut client) => client.server_stream(request).await?.map(boxed),
            Self::OverSocket(mut client) => client.server_stream(request).await?.map(boxed),
        })
    }

    async fn client_stream(&self, request: Request<Asks>) -> Result<Response<Answer>, Status> {
        match self.clone() {
            Self::Handle(handle) => handle.client_stream(request).await,
            Self::OverChannel(mut client) => client.client_stream(request).await,
            Self::OverSocket(mut client) => client.client_stream(request).await,
        }
    }

    async fn bidi(&self, request: Request<Asks>) -> Result<Response<Answers>, Status> {
        Ok(match self.clone() {
            Self::Handle(handle) => handle.bidi(request).await?.map(boxed),
            Self::OverChannel(mut client) => client.bidi(request).await?.map(boxed),
            Self::OverSocket(mut client) => client.bidi(request).await?.map(boxed),
        })
    }
}

impl Relay {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        match self.clone() {
            Self::Handle(handle) => handle.unary(request).await,
            Self::OverChannel(mut client) => client.unary(request).await,
            Self::OverSocket(mut client) => client.unary(request).await,
        }
    }
}

struct Fixture {
    layout: Layout,
    cluster: TestCluster,
    kinds: Kinds,
    relay: Relay,
    obedient: Obedient,
}

impl Fixture {
    async fn new(layout: Layout) -> Self {
        let obedient = Obedient::default();
        let kinds = obedient.clone();
        let program = move |_: &str| match layout {
            Layout::Intercepted => intercepted(kinds.clone()),
            _ => app(kinds.clone()),
        };
        let cluster = nodes(if layout.is_apart() { 2 } else { 1 }).start(program).await;
        let node = if layout.is_apart() { cluster.node("n2") } else { cluster.node("n1") };
        if layout == Layout::HandleToOtherNode {
            cluster.move_module("relay", "n2").await;
            cluster.home("relay").await;
        }
        assert_eq!(cluster.home("kinds").await, "n1");
        let socket = || {
            let address = format!("http://{}", node.ingress_address());
            transport::Endpoint::try_from(address).unwrap().connect_lazy()
        };
        let (kinds, relay) = match layout {
            Layout::Direct | Layout::Intercepted | Layout::HandleToOtherNode => {
                (Kinds::Handle(node.handle().unwrap()), Relay::Handle(node.handle().unwrap()))
            }
            Layout::HandleOverChannel => {
                (Kinds::Handle(KindsHandle::over(node.channel())), Relay::Handle(RelayHandle::over(node.channel())))
            }
            Layout::ClientOverChannel | Layout::ChannelToOtherNode => (
                Kinds::OverChannel(KindsClient::new(node.channel())),
                Relay::OverChannel(RelayClient::new(node.channel())),
            ),
            Layout::HandleOverSocket => {
                (Kinds::Handle(KindsHandle::over(socket())), Relay::Handle(RelayHandle::over(socket())))
            }
            Layout::ClientOverSocket | Layout::ClientToOtherNode => {
                (Kinds::OverSocket(KindsClient::new(socket())), Relay::OverSocket(RelayClient::new(socket())))
            }
        };
        Self { layout, cluster, kinds, relay, obedient }
    }

    fn seen(&self) -> &Seen {
        &self.obedient.seen
    }
}

fn intercepted(kinds: Obedient) -> App {
    let kinds = move || {
        let kinds = kinds.clone();
        async move { Ok::<_, BoxError>(KindsServer::with_interceptor(kinds, Ok)) }
    };
    App::new("kinds", "1.0.0").module("kinds", kinds).module("relay", relay)
}

fn ask(deed: Deed) -> Ask {
    Ask { text: "hello".to_owned(), deed: deed.into(), count: 2, payload: vec![7; 1000] }
}

fn asks(asks: impl IntoIterator<Item = Ask, IntoIter: Send + 'static>) -> Asks {
    Box::pin(tokio_stream::iter(asks))
}

/// Runs a part of the scenario over every layout.
async fn everywhere(part: impl AsyncFn(&Fixture)) {
    for layout in Layout::ALL {
        let fixture = Fixture::new(layout).await;
        let done = std::panic::AssertUnwindSafe(part(&fixture)).catch_unwind();
        match tokio::time::timeout(Duration::from_secs(40), done).await {
            Ok(Ok(())) => {}
            Ok(Err(panic)) => {
                eprintln!("... over {layout:?}");
                std::panic::resume_unwind(panic)
            }
            Err(_) => panic!("over {layout:?}: the scenario hangs"),
        }
    }
}

#[tokio::test]
async fn messages_arrive_whole() {
    everywhere(async |fixture| {
        let kinds = &fixture.kinds;
        let sent = Ask { payload: vec![42; 3 << 20], ..ask(Deed::Unspecified) };
        let answer = kinds.unary(sent.clone().into_request()).await.unwrap().into_inner();
        assert_eq!(answer, Answer { text: "hello".into(), number: 2, payload: sent.payload });

        let answers = kinds.server_stream(ask(Deed::Unspecified).into_request()).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[1].payload, vec![7; 1000]);

        let answer = kinds.client_stream(Request::new(asks((0..50).map(|_| ask(Deed::Unspecified))))).await.unwrap();
        assert_eq!((answer.get_ref().number, answer.get_ref().text.len()), (50, 250));
    })
    .await;
}

#[tokio::test]
async fn both_sides_of_a_stream_talk_in_turn() {
    everywhere(async |fixture| {
        let (tx, rx) = tokio::sync::mpsc::channel(1);
        let asks: Asks = Box::pin(ReceiverStream::new(rx));
        let mut answers = fixture.kinds.bidi(Request::new(asks)).await.unwrap().into_inner();
        for turn in 0..10 {
            tx.send(Ask { text: turn.to_string(), ..ask(Deed::Unspecified) }).await.unwrap();
            assert_eq!(answers.next().await.unwrap().unwrap().text, turn.to_string());
        }
        drop(tx);
        assert!(answers.next().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn metadata_crosses_and_extensions_do_not() {
    everywhere(async |fixture| {
        let mut request = ask(Deed::Unspecified).into_request();
        request.extensions_mut().insert(Marker);
        request.metadata_mut().insert("echo-once", MetadataValue::from_static("1"));
        request.metadata_mut().append("echo-twice", MetadataValue::from_static("a"));
        request.metadata_mut().append("echo-twice", MetadataValue::from_static("b"));
        request.metadata_mut().insert_bin("echo-bin", MetadataValue::from_bytes(&[0, 255, 10]));
        let response = fixture.kinds.unary(request).await.unwrap();
        assert_eq!(response.get_ref().text, "hello", "no extension of the caller's arrives");
        assert!(response.extensions().get::<Marker>().is_none(), "no extension of the module's arrives");
        let metadata = response.metadata();
        assert_eq!(metadata.get("echo-once").unwrap(), "1");
        assert_eq!(metadata.get_all("echo-twice").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(metadata.get_bin("echo-bin").unwrap().to_bytes().unwrap().as_ref(), [0, 255, 10]);

        let mut request = ask(Deed::Unspecified).into_request();
        request.metadata_mut().insert("echo-stream", MetadataValue::from_static("yes"));
        let response = fixture.kinds.server_stream(request).await.unwrap();
        assert_eq!(response.metadata().get("echo-stream").unwrap(), "yes");
    })
    .await;
}

fn assert_failure(status: &Status) {
    let wanted = failure();
    assert_eq!(status.code(), wanted.code());
    assert_eq!(status.message(), wanted.message());
    assert_eq!(status.details(), wanted.details());
    assert_eq!(status.metadata().get("why").unwrap(), "because");
    assert_eq!(status.metadata().get_bin("proof-bin"), wanted.metadata().get_bin("proof-bin"));
    assert!(std::error::Error::source(status).is_none(), "an error's cause stays with the module");
}

#[tokio::test]
async fn a_status_arrives_with_its_details_and_metadata() {
    everywhere(async |fixture| {
        let kinds = &fixture.kinds;
        assert_failure(&kinds.unary(ask(Deed::Fail).into_request()).await.unwrap_err());
        assert_failure(&kinds.client_stream(Request::new(asks([ask(Deed::Fail)]))).await.unwrap_err());

        let mut answers = kinds.server_stream(ask(Deed::Fail).into_request()).await.unwrap().into_inner();
        assert!(answers.next().await.unwrap().is_ok());
        assert!(answers.next().await.unwrap().is_ok());
        assert_failure(&answers.next().await.unwrap().unwrap_err());
        assert!(answers.next().await.is_none(), "an error is the end");

        let both = asks([ask(Deed::Fail), ask(Deed::Unspecified)]);
        let mut answers = kinds.bidi(Request::new(both)).await.unwrap().into_inner();
        assert_failure(&answers.next().await.unwrap().unwrap_err());
        assert!(answers.next().await.is_none(), "an error is the end");
    })
    .await;
}

#[tokio::test]
async fn an_error_of_code_ok_is_an_internal_error() {
    everywhere(async |fixture| {
        let status = fixture.kinds.unary(ask(Deed::FailWithOk).into_request()).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{status:?}");
    })
    .await;
}

#[tokio::test]
async fn a_panic_ends_one_call_without_its_text() {
    everywhere(async |fixture| {
        let kinds = &fixture.kinds;
        let assert_hidden = |status: &Status| {
            assert_eq!(status.code(), Code::Internal);
            assert!(!format!("{status:?}").contains("secret"), "{status:?}");
        };
        assert_hidden(&kinds.unary(ask(Deed::Panic).into_request()).await.unwrap_err());
        assert_hidden(&kinds.client_stream(Request::new(asks([ask(Deed::Panic)]))).await.unwrap_err());
        let answers = kinds.server_stream(ask(Deed::Panic).into_request()).await.unwrap().into_inner();
        let answers: Vec<_> = answers.collect().await;
        let (last, before) = answers.split_last().unwrap();
        assert_hidden(last.as_ref().unwrap_err());
        // On a wire, answers that wait for more to share a frame with are lost in the panic.
        assert!(before.iter().all(Result::is_ok) && before.len() <= 2, "{before:?}");
        // A caller in this process survives the panic of a module that it calls.
        assert_hidden(&fixture.relay.unary(ask(Deed::Panic).into_request()).await.unwrap_err());

        assert!(kinds.unary(ask(Deed::Unspecified).into_request()).await.is_ok(), "the module serves on");
        fixture.seen().running(0).await;
        let modules: Vec<_> =
            fixture.cluster.names().iter().flat_map(|n| fixture.cluster.node(n).describe().modules).collect();
        let panics =
            |name| modules.iter().filter(|module| module.name == name).map(|module| module.panics).sum::<u64>();
        assert_eq!((panics("kinds"), panics("relay")), (4, 0), "each is counted once, where it happened");
    })
    .await;
}

fn within<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

#[tokio::test]
async fn a_deadline_ends_the_call_at_both_ends() {
    everywhere(async |fixture| {
        let kinds = &fixture.kinds;
        let short = Duration::from_millis(50);
        // A tonic channel enforces the deadline itself as well, and who is first is chance. It says CANCELLED.
        let assert_late = |status: &Status| match status.code() {
            Code::DeadlineExceeded => {}
            Code::Cancelled if fixture.layout.has_tonic_channel() => {}
            _ => panic!("{status:?}"),
        };
        assert_late(&kinds.unary(within(ask(Deed::Hang), short)).await.unwrap_err());
        fixture.seen().running(0).await;
        assert_late(&kinds.client_stream(within(asks([ask(Deed::Hang)]), short)).await.unwrap_err());
        fixture.seen().running(0).await;

        let mut answers = kinds.server_stream(within(ask(Deed::Hang), short)).await.unwrap().into_inner();
        assert!(answers.next().await.unwrap().is_ok());
        assert!(answers.next().await.unwrap().is_ok());
        assert_late(&answers.next().await.unwrap().unwrap_err());
        assert!(answers.next().await.is_none());
        fixture.seen().running(0).await;

        let mut answers = kinds.bidi(within(asks([ask(Deed::Hang)]), short)).await.unwrap().into_inner();
        assert_late(&answers.next().await.unwrap().unwrap_err());
        fixture.seen().running(0).await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_never_pauses_ends_at_its_deadline() {
    everywhere(async |fixture| {
        let endless = Ask { count: u32::MAX, payload: Vec::new(), ..ask(Deed::Unspecified) };
        let request = within(endless, Duration::from_millis(500));
        let mut answers = fixture.kinds.server_stream(request).await.unwrap().into_inner();
        let status = loop {
            if let Err(status) = answers.next().await.unwrap() {
                break status;
            }
        };
        assert_eq!(status.code(), Code::DeadlineExceeded);
        drop(answers);
        fixture.seen().running(0).await;
    })
    .await;
}

#[tokio::test]
async fn a_deadline_is_handed_on() {
    everywhere(async |fixture| {
        let tell = || ask(Deed::TellDeadline);
        for direct in [true, false] {
            let told = async |request| match direct {
                true => fixture.kinds.unary(request).await.unwrap().into_inner().number,
                false => fixture.relay.unary(request).await.unwrap().into_inner().number,
            };
            assert_eq!(told(Request::new(tell())).await, -1, "no deadline, none is made up");
            let left = told(within(tell(), Duration::from_secs(60))).await;
            assert!((1..=60_000).contains(&left), "{left} ms left of 60 s");
            let mut nonsense = Request::new(tell());
            nonsense.metadata_mut().insert("grpc-timeout", MetadataValue::from_static("soon"));
            assert_eq!(told(nonsense).await, -1, "what does not parse is no deadline");
        }
        let request = within(ask(Deed::Hang), Duration::from_millis(50));
        fixture.relay.unary(request).await.unwrap_err();
        fixture.seen().running(0).await;
    })
    .await;
}

#[tokio::test]
async fn dropping_a_call_ends_it_in_the_module() {
    everywhere(async |fixture| {
        let (kinds, seen) = (&fixture.kinds, fixture.seen());
        let hang = || ask(Deed::Hang);
        let unary = kinds.unary(hang().into_request());
        dropped_while_running(unary, seen).await;
        let relayed = fixture.relay.unary(hang().into_request());
        dropped_while_running(relayed, seen).await;
        let client_stream = kinds.client_stream(Request::new(asks([hang()])));
        dropped_while_running(client_stream, seen).await;

        let mut answers = kinds.server_stream(hang().into_request()).await.unwrap().into_inner();
        assert!(answers.next().await.unwrap().is_ok());
        seen.running(1).await;
        drop(answers);
        seen.running(0).await;

        // A stock client of hyper's sends on while its stream of requests is open, whoever still listens.
        if !fixture.layout.has_tonic_channel() {
            let open = || -> Asks { Box::pin(tokio_stream::pending()) };
            let answers = kinds.bidi(Request::new(open())).await.unwrap().into_inner();
            seen.running(1).await;
            drop(answers);
            seen.running(0).await;
            dropped_while_running(kinds.client_stream(Request::new(open())), seen).await;
        }
    })
    .await;
}

async fn dropped_while_running(call: impl Future<Output = Result<Response<Answer>, Status>>, seen: &Seen) {
    tokio::select! {
        ended = call => panic!("a call that hangs has ended: {ended:?}"),
        () = seen.running(1) => {}
    }
    seen.running(0).await;
}

/// By design: the limit on a message's size is a limit of decoding, and a direct call decodes nothing.
#[tokio::test]
async fn difference_a_message_over_the_limit_is_refused_where_it_is_decoded() {
    everywhere(async |fixture| {
        let sent = Ask { payload: vec![42; 5 << 20], ..ask(Deed::Unspecified) };
        let answer = fixture.kinds.unary(sent.into_request()).await;
        match fixture.layout {
            Layout::Direct => assert_eq!(answer.unwrap().into_inner().payload.len(), 5 << 20),
            _ => assert_eq!(answer.unwrap_err().code(), Code::OutOfRange),
        }
    })
    .await;
}

/// By design: a handle calls directly only what has nothing around it.
#[tokio::test]
async fn an_interceptor_sees_every_call() {
    use std::sync::{Arc, atomic::AtomicUsize};

    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let factory = move || {
        let counted = Arc::clone(&counted);
        async move {
            let count = move |request| {
                counted.fetch_add(1, Ordering::SeqCst);
                Ok::<Request<()>, Status>(request)
            };
            Ok::<_, BoxError>(KindsServer::with_interceptor(Obedient::default(), count))
        }
    };
    let node = App::new("kinds", "1").module("kinds", factory).start(&Sources::on_free_ports()).await.unwrap();
    let handle: KindsHandle = node.handle().unwrap();
    handle.unary(ask(Deed::Unspecified)).await.unwrap();
    KindsClient::new(node.channel()).unary(ask(Deed::Unspecified)).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

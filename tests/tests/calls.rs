//! What a call does at its edges: in a circle, in a destructor, before its module has started, after its node has gone.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use outpost::{App, BoxError, Node, Sources, StartError};
use outpost_tests::{
    v1::{
        Answer, Ask, KindsHandle, RelayHandle,
        kinds_client::KindsClient,
        kinds_server::{Kinds, KindsServer},
        relay_client::RelayClient,
        relay_server::{Relay, RelayServer},
    },
    wait,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

async fn start(app: App) -> Node {
    app.start(&Sources::on_free_ports()).await.unwrap()
}

/// Asks itself, without an end.
struct Circle(RelayHandle);

#[tonic::async_trait]
impl Relay for Circle {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        self.0.unary(request.into_inner()).await
    }
}

#[tokio::test]
async fn a_call_in_a_circle_ends() {
    let factory = |relay: RelayHandle| async move { Ok::<_, BoxError>(RelayServer::new(Circle(relay))) };
    let node = start(App::new("circle", "1").module("circle", factory)).await;
    let direct = node.handle::<RelayHandle>().unwrap().unary(Ask::default()).await.unwrap_err();
    let wire = RelayClient::new(node.channel()).unary(Ask::default()).await.unwrap_err();
    for status in [direct, wire] {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("64"), "{status:?}");
    }
    // Nothing is left of it in the thread.
    assert_eq!(outpost::remaining(), None);
}

/// Panics where no future is polled.
struct Careless {
    when: &'static str,
    entered: Mutex<Option<oneshot::Sender<()>>>,
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("in a destructor");
    }
}

// Written out as `async_trait` would, but that the method runs code before it gives its future.
impl Relay for Careless {
    fn unary<'life0, 'async_trait>(
        &'life0 self,
        _: Request<Ask>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Answer>, Status>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        assert_ne!(self.when, "made", "before the future is made");
        let entered = self.entered.lock().unwrap().take();
        Box::pin(async move {
            let _bomb = PanicsWhenDropped;
            entered.map(|entered| entered.send(()));
            std::future::pending().await
        })
    }
}

async fn careless(when: &'static str) -> (Node, RelayHandle, oneshot::Receiver<()>) {
    let (entered, has_entered) = oneshot::channel();
    let entered = Arc::new(Mutex::new(Some(entered)));
    let factory = move || {
        let entered = Mutex::new(entered.lock().unwrap().take());
        async move { Ok::<_, BoxError>(RelayServer::new(Careless { when, entered })) }
    };
    let node = start(App::new("careless", "1").module("careless", factory)).await;
    let handle = node.handle().unwrap();
    (node, handle, has_entered)
}

#[tokio::test]
async fn a_panic_before_the_future_is_made_ends_one_call() {
    let (node, handle, _) = careless("made").await;
    assert_eq!(handle.unary(Ask::default()).await.unwrap_err().code(), Code::Internal);
    assert_eq!(RelayClient::new(node.channel()).unary(Ask::default()).await.unwrap_err().code(), Code::Internal);
    assert_eq!(node.describe().modules[0].panics, 2);
}

#[tokio::test]
async fn a_panic_in_a_destructor_does_not_reach_who_cancels() {
    let (node, handle, has_entered) = careless("dropped").await;
    tokio::select! {
        ended = handle.unary(Ask::default()) => panic!("a call that hangs has ended: {ended:?}"),
        entered = has_entered => entered.unwrap(),
    }
    assert_eq!(node.describe().modules[0].panics, 1);
    let mut request = Request::new(Ask::default());
    request.set_timeout(Duration::from_millis(10));
    assert_eq!(handle.unary(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(node.describe().modules[0].panics, 2);
}

/// Leaves a task behind that reads the requests on, and tells when they end.
struct Forgetful(mpsc::Sender<()>);

type Answers = Pin<Box<dyn Stream<Item = Result<Answer, Status>> + Send>>;

#[tonic::async_trait]
impl Kinds for Forgetful {
    async fn unary(&self, _: Request<Ask>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    type ServerStreamStream = Answers;

    async fn server_stream(&self, _: Request<Ask>) -> Result<Response<Answers>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn client_stream(&self, _: Request<Streaming<Ask>>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    type BidiStream = Answers;

    async fn bidi(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answers>, Status> {
        let (mut asks, ended) = (request.into_inner(), self.0.clone());
        #[expect(clippy::disallowed_methods, reason = "what a module must not do, and many do")]
        tokio::spawn(async move {
            while let Ok(Some(_)) = asks.message().await {}
            let _ = ended.send(()).await;
        });
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }
}

#[tokio::test]
async fn requests_end_with_their_call_wherever_the_module_keeps_them() {
    let (ended, mut has_ended) = mpsc::channel(4);
    let factory = move || {
        let ended = ended.clone();
        async move { Ok::<_, BoxError>(KindsServer::new(Forgetful(ended))) }
    };
    let node = start(App::new("forgetful", "1").module("forgetful", factory)).await;
    let open = || {
        let (asks, requests) = mpsc::channel(1);
        (asks, ReceiverStream::new(requests))
    };
    let ended = async |has_ended: &mut mpsc::Receiver<()>, way: &str| {
        let ended = tokio::time::timeout(Duration::from_secs(10), has_ended.recv()).await;
        assert!(ended.is_ok(), "{way}: the module still reads requests of a call that is over");
    };

    let (_asks, requests) = open();
    drop(node.handle::<KindsHandle>().unwrap().bidi(requests).await.unwrap());
    ended(&mut has_ended, "a handle").await;

    let (_asks, requests) = open();
    drop(KindsClient::new(node.channel()).bidi(requests).await.unwrap());
    ended(&mut has_ended, "a client on the channel").await;

    // The server ends this one, so that it does not depend on what the client does.
    let mut client = KindsClient::connect(format!("http://{}", node.ingress_address())).await.unwrap();
    let (_asks, requests) = open();
    let mut request = Request::new(requests);
    request.metadata_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let mut answers = client.bidi(request).await.unwrap().into_inner();
    assert_eq!(answers.next().await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    ended(&mut has_ended, "a client on a socket").await;
}

#[tokio::test]
async fn a_deadline_holds_while_the_module_starts() {
    let waits = |relay: RelayHandle| async move {
        let mut request = Request::new(Ask::default());
        request.set_timeout(Duration::from_millis(20));
        let status = relay.unary(request).await.unwrap_err();
        Err::<KindsServer<Forgetful>, BoxError>(format!("the call ended with {:?}", status.code()).into())
    };
    let hangs = || std::future::pending::<Result<RelayServer<Circle>, BoxError>>();
    let app = App::new("waits", "1").module("waits", waits).module("hangs", hangs);
    let error = app.start(&Sources::on_free_ports()).await.unwrap_err();
    assert!(matches!(&error, StartError::Factory { .. }), "{error}");
    assert!(error.to_string().contains("DeadlineExceeded"), "{error}");
}

#[tokio::test]
async fn a_node_that_is_dropped_lets_its_services_go() {
    struct Held(Arc<()>, RelayHandle);

    #[tonic::async_trait]
    impl Relay for Held {
        async fn unary(&self, _: Request<Ask>) -> Result<Response<Answer>, Status> {
            let _ = (&self.0, &self.1);
            Ok(Response::new(Answer::default()))
        }
    }

    let resource = Arc::new(());
    let held = Arc::clone(&resource);
    let factory = move |relay: RelayHandle| {
        let held = Arc::clone(&held);
        async move { Ok::<_, BoxError>(RelayServer::new(Held(held, relay))) }
    };
    let node = start(App::new("held", "1").module("held", factory)).await;
    let handle: RelayHandle = node.handle().unwrap();
    handle.unary(Ask::default()).await.unwrap();
    assert_eq!(Arc::strong_count(&resource), 3, "the test's, the factory's and the service's");
    drop(node);
    wait::until("the end of the service, though it had a handle on itself", async || {
        match Arc::strong_count(&resource) {
            1 => Ok(()),
            count => Err(format!("{count} hold it")),
        }
    })
    .await;
    assert_eq!(handle.unary(Ask::default()).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn an_axum_handler_calls_modules_over_the_channel() {
    use axum::{Router, extract::State, routing::get};
    use tower::ServiceExt as _;

    async fn greeting(State(channel): State<outpost::Channel>) -> String {
        let ask = Ask { text: "from a page".to_owned(), ..Ask::default() };
        KindsClient::new(channel).unary(ask).await.unwrap().into_inner().text
    }

    let node = start(outpost_tests::app(outpost_tests::Obedient::default())).await;
    let pages = Router::new().route("/", get(greeting)).with_state(node.channel());
    let page = pages.oneshot(http::Request::new(axum::body::Body::empty())).await.unwrap();
    let body = axum::body::to_bytes(page.into_body(), 100).await.unwrap();
    assert_eq!(body, "from a page");
}

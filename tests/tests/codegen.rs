//! Generated code compiles and works for .proto files that a generator trips over.

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use awkward::{
    common::v1::Result as CommonResult,
    r#type::v1::{
        Box as BoxMessage, HandleHandle, LocalHandle, LoopHandle, Option as OptionMessage, Self_,
        Streaming as StreamingMessage,
        handle_server::{Handle, HandleServer},
        local_server::{Local, LocalServer},
        loop_server::{Loop, LoopServer},
    },
};
use futures_util::StreamExt as _;
use outpost::{App, BoxError, Handle as _, Sources, services};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

#[allow(
    clippy::allow_attributes_without_reason,
    clippy::match_single_binding,
    clippy::missing_errors_doc,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
mod awkward {
    pub(crate) mod common {
        pub(crate) mod v1 {
            tonic::include_proto!("awkward.common.v1");
        }
    }
    pub(crate) mod r#type {
        pub(crate) mod v1 {
            tonic::include_proto!("awkward.r#type.v1");
        }
    }
}

#[allow(
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
mod bare {
    tonic::include_proto!("_");
}

struct Echo;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Loop for Echo {
    async fn r#move(&self, request: Request<BoxMessage>) -> Result<Response<OptionMessage>, Status> {
        Ok(Response::new(OptionMessage { crate_: Some(request.into_inner()) }))
    }

    type TypeStream = BoxStream<BoxMessage>;

    async fn r#type(&self, request: Request<OptionMessage>) -> Result<Response<Self::TypeStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::iter(request.into_inner().crate_.map(Ok)))))
    }

    async fn r#match(&self, request: Request<Streaming<BoxMessage>>) -> Result<Response<CommonResult>, Status> {
        let count = request.into_inner().count().await;
        Ok(Response::new(CommonResult { text: count.to_string() }))
    }

    type AwaitStream = Streaming<StreamingMessage>;

    async fn r#await(
        &self,
        request: Request<Streaming<StreamingMessage>>,
    ) -> Result<Response<Self::AwaitStream>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn clone(&self, request: Request<Self_>) -> Result<Response<Self_>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn old(&self, request: Request<BoxMessage>) -> Result<Response<BoxMessage>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

#[tonic::async_trait]
impl Local for Echo {
    async fn nothing(&self, _: Request<()>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn when(&self, request: Request<String>) -> Result<Response<prost_types::Timestamp>, Status> {
        let seconds = request.into_inner().parse().map_err(|_| Status::invalid_argument("not a number"))?;
        Ok(Response::new(prost_types::Timestamp { seconds, nanos: 0 }))
    }

    type NothingsStream = Streaming<()>;

    async fn nothings(&self, request: Request<Streaming<()>>) -> Result<Response<Streaming<()>>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

#[tonic::async_trait]
impl Handle for Echo {}

/// Implements nothing: the method answers by its default stub.
struct Stub;

#[tonic::async_trait]
impl bare::bare_server::Bare for Stub {}

struct Word;

#[tonic::async_trait]
impl bare::bare_server::Bare for Word {
    async fn call(self: Arc<Self>, request: Request<bare::Word>) -> Result<Response<bare::Word>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

async fn factory() -> Result<impl outpost::ServiceSet, BoxError> {
    let echo = Arc::new(Echo);
    let (handle, local) = (HandleServer::from_arc(Arc::clone(&echo)), LocalServer::from_arc(Arc::clone(&echo)));
    Ok(services(LoopServer::from_arc(echo)).and(local).and(handle))
}

async fn word() -> Result<bare::bare_server::BareServer<Word>, BoxError> {
    Ok(bare::bare_server::BareServer::new(Word))
}

#[tokio::test]
async fn names_that_rust_uses_itself_are_methods_and_messages() {
    let app = App::new("awkward", "1").module("awkward", factory).module("word", word);
    let node = app.start(&Sources::on_free_ports()).await.unwrap();
    let message =
        BoxMessage { r#type: Some("t".to_owned()), r#fn: [("a".to_owned(), 1)].into(), ..BoxMessage::default() };

    for handle in [node.handle::<LoopHandle>().unwrap(), LoopHandle::over(node.channel())] {
        let option = handle.r#move(message.clone()).await.unwrap().into_inner();
        assert_eq!(option.crate_.as_ref(), Some(&message));
        let boxes: Vec<_> = handle.r#type(option).await.unwrap().into_inner().collect().await;
        assert_eq!(boxes.len(), 1);
        let text =
            handle.r#match(tokio_stream::iter([message.clone(), message.clone()])).await.unwrap().into_inner().text;
        assert_eq!(text, "2");
        let numbers = tokio_stream::iter((0..3).map(|number| StreamingMessage { number }));
        let numbers = handle.r#await(numbers).await.unwrap().into_inner();
        assert_eq!(numbers.map(|message| message.unwrap().number).collect::<Vec<_>>().await, [0, 1, 2]);
        assert_eq!(handle.clone(Self_ {}).await.unwrap().into_inner(), Self_ {});
        #[expect(deprecated, reason = "it must carry the mark")]
        let old = handle.old(message.clone()).await.unwrap();
        assert_eq!(old.into_inner(), message);
    }
    for handle in [node.handle::<LocalHandle>().unwrap(), LocalHandle::over(node.channel())] {
        handle.nothing(()).await.unwrap();
        assert_eq!(handle.when("7".to_owned()).await.unwrap().into_inner().seconds, 7);
        assert_eq!(handle.nothings(tokio_stream::iter([(), ()])).await.unwrap().into_inner().count().await, 2);
    }
    node.handle::<HandleHandle>().unwrap();
    assert_eq!(<bare::BareHandle as outpost::Handle>::SERVICE, "Bare");

    // `bytes` and a derive were asked for in the build script.
    let said = bare::Word { text: bytes::Bytes::from_static(b"hello") };
    let heard = node.handle::<bare::BareHandle>().unwrap().call(said.clone()).await.unwrap().into_inner();
    assert_eq!(BTreeSet::from([said]), BTreeSet::from([heard]));
}

#[tokio::test]
async fn a_default_stub_answers_unimplemented() {
    let stub = || async { Ok::<_, BoxError>(bare::bare_server::BareServer::new(Stub)) };
    let node = App::new("stub", "1").module("stub", stub).start(&Sources::on_free_ports()).await.unwrap();
    let status = node.handle::<bare::BareHandle>().unwrap().call(bare::Word::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
}

#[test]
fn comments_reach_the_handle() {
    let generated = include_str!(concat!(env!("OUT_DIR"), "/awkward.r#type.v1.rs"));
    let handle = &generated[generated.find("pub mod loop_handle").unwrap()..];
    let handle = &handle[..handle.find("pub use loop_handle::LoopHandle").unwrap()];
    for comment in ["Words of Rust as methods", "comments may hold code", "/// Moves.", "/// Gone soon."] {
        assert!(handle.contains(comment), "{comment:?} is not in the handle");
    }
}

//! A server's descriptors, by server reflection.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use prost_types::FileDescriptorProto;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming, codegen::http::uri::PathAndQuery, metadata::MetadataMap, transport::Channel,
};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest as Question,
    server_reflection_response::MessageResponse as Reply,
};

use crate::{
    address::Address,
    connect::{self, REQUEST_LIMIT, not_grpc},
    error::CliError,
    status::Answer,
};

/// The versions of the protocol, newest first. On the wire they differ in nothing but this name.
const VERSIONS: [&str; 2] = ["v1", "v1alpha"];

/// A conversation with a server about what it serves.
#[derive(Debug)]
pub(crate) struct Reflection {
    channel: Channel,
    metadata: MetadataMap,
    version: &'static str,
    // Some servers end the stream with each error, so a conversation may take more than one.
    stream: Option<Stream>,
    files: BTreeMap<String, FileDescriptorProto>,
    address: Address,
}

#[derive(Debug)]
struct Stream {
    questions: mpsc::Sender<ServerReflectionRequest>,
    replies: Streaming<ServerReflectionResponse>,
}

impl Reflection {
    /// Begins, and asks for the names of the server's services. They come sorted.
    pub(crate) async fn begin(
        channel: Channel,
        metadata: MetadataMap,
        address: &Address,
        from: &connect::From,
    ) -> Result<(Self, Vec<String>), CliError> {
        let mut this = Self {
            channel,
            metadata,
            version: VERSIONS[0],
            stream: None,
            files: BTreeMap::new(),
            address: address.clone(),
        };
        let mut listed = this.ask(Question::ListServices(String::new())).await;
        if matches!(&listed, Err(Fault::Status(status)) if status.code() == Code::Unimplemented) {
            this.version = VERSIONS[1];
            listed = this.ask(Question::ListServices(String::new())).await;
        }
        match listed {
            Ok(Reply::ListServicesResponse(list)) => {
                let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
                names.sort();
                names.dedup();
                Ok((this, names))
            }
            Ok(_) => Err(this.wrong("it was asked for its services and answered something else")),
            Err(Fault::Status(status)) if status.code() == Code::Unimplemented => {
                Err(CliError::NoReflection { address: address.clone(), answer: Answer::new(&status, None) })
            }
            Err(Fault::Status(status)) => match not_grpc(address, from, &status) {
                Some(unreachable) => Err(unreachable.into()),
                None => Err(CliError::Answered(Answer::new(&status, None))),
            },
            Err(Fault::TimedOut) => Err(timed_out()),
        }
    }

    /// A service with all that its methods take and answer.
    pub(crate) async fn service(&mut self, name: &str) -> Result<ServiceDescriptor, CliError> {
        self.fetch(Question::FileContainingSymbol(name.to_owned()), name).await?;
        loop {
            let missing = self.files.values().flat_map(|file| &file.dependency).find(|import| !self.has(import));
            let Some(import) = missing.cloned() else { break };
            self.fetch(Question::FileByFilename(import.clone()), &import).await?;
            if !self.files.contains_key(&import) {
                return Err(self.wrong(format!("it was asked for the file `{import}` and answered another")));
            }
        }
        // It has protobuf's own types, which servers often leave out.
        let mut pool = DescriptorPool::global();
        pool.add_file_descriptor_protos(self.files.values().cloned()).map_err(|error| self.wrong(error.to_string()))?;
        pool.get_service_by_name(name).ok_or_else(|| self.wrong(format!("its files lack the service `{name}`")))
    }

    fn has(&self, file: &str) -> bool {
        self.files.contains_key(file) || DescriptorPool::global().get_file_by_name(file).is_some()
    }

    async fn fetch(&mut self, question: Question, name: &str) -> Result<(), CliError> {
        match self.ask(question).await {
            Ok(Reply::FileDescriptorResponse(response)) => {
                for bytes in response.file_descriptor_proto {
                    let file = FileDescriptorProto::decode(bytes.as_slice())
                        .map_err(|error| self.wrong(format!("the file of `{name}` can't be read: {error}")))?;
                    self.files.insert(file.name().to_owned(), file);
                }
                Ok(())
            }
            Ok(_) => Err(self.wrong(format!("it was asked for the file of `{name}` and answered something else"))),
            Err(Fault::Status(status)) => {
                Err(self.wrong(format!("it has no file of `{name}` ({})", Answer::new(&status, None))))
            }
            Err(Fault::TimedOut) => Err(timed_out()),
        }
    }

    async fn ask(&mut self, question: Question) -> Result<Reply, Fault> {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        // A stream that ended in an error is of no more use.
        let stream = self.stream.take();
        let Ok(asked) = tokio::time::timeout(REQUEST_LIMIT, self.ask_on(stream, request)).await else {
            return Err(Fault::TimedOut);
        };
        let (reply, stream) = asked.map_err(Fault::Status)?;
        self.stream = Some(stream);
        match reply.message_response {
            Some(Reply::ErrorResponse(error)) => {
                Err(Fault::Status(Status::new(Code::from_i32(error.error_code), error.error_message)))
            }
            Some(reply) => Ok(reply),
            None => Err(Fault::Status(Status::internal("an empty answer"))),
        }
    }

    async fn ask_on(
        &self,
        stream: Option<Stream>,
        request: ServerReflectionRequest,
    ) -> Result<(ServerReflectionResponse, Stream), Status> {
        let closed = || Status::unavailable("the server ended the conversation");
        let mut stream = match stream {
            Some(stream) => {
                stream.questions.send(request).await.map_err(|_| closed())?;
                stream
            }
            // A server may wait for the first question before it answers at all.
            None => self.open(request).await?,
        };
        let reply = stream.replies.message().await?.ok_or_else(closed)?;
        Ok((reply, stream))
    }

    async fn open(&self, first: ServerReflectionRequest) -> Result<Stream, Status> {
        let (questions, asked) = mpsc::channel(1);
        questions.send(first).await.map_err(|error| Status::internal(error.to_string()))?;
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let mut request = Request::new(ReceiverStream::new(asked));
        *request.metadata_mut() = self.metadata.clone();
        let path = format!("/grpc.reflection.{}.ServerReflection/ServerReflectionInfo", self.version);
        let path = PathAndQuery::try_from(path).map_err(|error| Status::internal(error.to_string()))?;
        let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
        let replies = grpc.streaming(request, path, codec).await?.into_inner();
        Ok(Stream { questions, replies })
    }

    fn wrong(&self, fault: impl Into<String>) -> CliError {
        CliError::Descriptors { address: self.address.clone(), fault: fault.into() }
    }
}

enum Fault {
    Status(Status),
    TimedOut,
}

fn timed_out() -> CliError {
    let remedy = "does the server answer at all?";
    CliError::TimedOut { what: "server reflection", limit: REQUEST_LIMIT, remedy }
}

//! Calls any method: `call`.

use std::{
    fs,
    future::pending,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
};

use comfy_table::{Table, presets};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions, ServiceDescriptor};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, sync::oneshot, time::Instant};
use tonic::{
    Code, Request, Status, client::Grpc, codec::CompressionEncoding, codegen::http::uri::PathAndQuery,
    metadata::MetadataMap, transport::Channel,
};

use crate::{
    address::Address,
    args::{CallArgs, CallOutput},
    codec::DynamicCodec,
    connect::{self, Target, connect},
    describe,
    error::CliError,
    json::{self, Splitter},
    metadata,
    names::{BadName, near, resolve},
    output::{self, Output},
    reflect::Reflection,
    status::Answer,
    tunnel::Tunnel,
};

pub(crate) async fn run(args: &CallArgs, out: &mut Output) -> Result<(), CliError> {
    // The way there is held until the call is over.
    let (address, from, _tunnel) = server(args).await?;
    let channel = connect(&address, &from, Some(&args.tls)).await?;
    let metadata = metadata::map(&args.headers);
    let (mut reflection, services) = Reflection::begin(channel.clone(), metadata.clone(), &address, &from).await?;
    let Some(text) = &args.method else {
        return list(&mut reflection, &services, args.output, out).await;
    };
    let (service, method) = resolve(&address.to_string(), text, &services)?;
    let service = reflection.service(&service).await?;
    match method {
        None => explain(&service, args.output, out).await,
        Some(name) => {
            let method = method_named(&service, &name)?;
            let input = Input::of(args)?;
            let sent = send(input, &method).await?;
            call(Call { channel, metadata, method, sent, args }, out).await
        }
    }
}

async fn server(args: &CallArgs) -> Result<(Address, connect::From, Option<Tunnel>), CliError> {
    let tls = args.tls.is_set();
    match &args.address {
        Some(address) => Ok((address.clone().with_tls(tls), connect::From::Address, None)),
        None => {
            let node = Target::of(&args.node).await?;
            let (ingress, tunnel) = node.reach(describe::ingress(&node).await?).await?;
            Ok((ingress.with_tls(tls), connect::From::Ingress(node.address), tunnel))
        }
    }
}

fn method_named(service: &ServiceDescriptor, name: &str) -> Result<MethodDescriptor, CliError> {
    service.methods().find(|method| method.name() == name).ok_or_else(|| {
        let methods: Vec<String> = service.methods().map(|method| method.name().to_owned()).collect();
        let (service, name, near) = (service.full_name().to_owned(), name.to_owned(), near(name, &methods));
        CliError::Name(BadName::UnknownMethod { service, name, near, methods })
    })
}

/// Where the messages come from.
enum Input {
    None,
    Text(Vec<u8>),
    Stdin,
}

impl Input {
    fn of(args: &CallArgs) -> Result<Self, CliError> {
        Ok(match (&args.json, args.data.as_deref()) {
            (None, None) => Self::None,
            (Some(text), _) => Self::Text(text.clone().into_bytes()),
            (None, Some("-")) => Self::Stdin,
            (None, Some(data)) => match data.strip_prefix('@') {
                None => Self::Text(data.to_owned().into_bytes()),
                Some(path) => {
                    let path = PathBuf::from(path);
                    Self::Text(fs::read(&path).map_err(|error| CliError::File { path, error })?)
                }
            },
        })
    }
}

/// The messages that a call sends, and word of the fault that ended them. With such a fault the stream stays open: a
/// server that sees it end takes what it got for the whole.
struct Sent {
    messages: BoxStream<'static, DynamicMessage>,
    fault: oneshot::Receiver<CliError>,
}

async fn send(input: Input, method: &MethodDescriptor) -> Result<Sent, CliError> {
    let (fault_tx, fault) = oneshot::channel();
    let descriptor = method.input();
    let text = match (input, method.is_client_streaming()) {
        (Input::None, true) => return Err(CliError::NoMessages { method: path(method) }),
        (Input::None, false) => b"{}".to_vec(),
        (Input::Text(text), _) => text,
        (Input::Stdin, false) => {
            let mut text = Vec::new();
            tokio::io::stdin().read_to_end(&mut text).await.map_err(CliError::Stdin)?;
            text
        }
        (Input::Stdin, true) => {
            if io::stdin().is_terminal() {
                let _ = writeln!(io::stderr(), "type {} as JSON; Ctrl-D ends", descriptor.full_name());
            }
            let stdin = Stdin { splitter: Some(Splitter::new()), descriptor };
            return Ok(Sent { messages: typed(stdin, fault_tx), fault });
        }
    };
    // All before the first is sent: a slip in the last should not leave half of the work done.
    let documents = json::split(&text);
    let messages: Vec<DynamicMessage> =
        documents.iter().map(|document| json::parse(document, &descriptor)).collect::<Result<_, _>>()?;
    if !method.is_client_streaming() && messages.len() != 1 {
        return Err(CliError::OneMessage { method: path(method), count: messages.len() });
    }
    Ok(Sent { messages: stream::iter(messages).boxed(), fault })
}

/// Messages from stdin, each as soon as its JSON is complete.
struct Stdin {
    /// `None` at the end of stdin.
    splitter: Option<Splitter>,
    descriptor: MessageDescriptor,
}

impl Stdin {
    async fn next(&mut self) -> Result<Option<DynamicMessage>, CliError> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let Some(splitter) = &mut self.splitter else { return Ok(None) };
            let mut document = splitter.next();
            if document.is_none() {
                match tokio::io::stdin().read(&mut buffer).await.map_err(CliError::Stdin)? {
                    0 => document = self.splitter.take().and_then(Splitter::finish),
                    read => splitter.push(&buffer[..read]),
                }
            }
            if let Some(document) = document {
                return Ok(Some(json::parse(&document, &self.descriptor)?));
            }
        }
    }
}

fn typed(stdin: Stdin, fault: oneshot::Sender<CliError>) -> BoxStream<'static, DynamicMessage> {
    stream::unfold((stdin, fault), |(mut stdin, fault)| async move {
        match stdin.next().await {
            Ok(Some(message)) => Some((message, (stdin, fault))),
            Ok(None) => None,
            Err(error) => {
                let _ = fault.send(error);
                pending().await
            }
        }
    })
    .boxed()
}

struct Call<'a> {
    channel: Channel,
    metadata: MetadataMap,
    method: MethodDescriptor,
    sent: Sent,
    args: &'a CallArgs,
}

async fn call(call: Call<'_>, out: &mut Output) -> Result<(), CliError> {
    let Call { channel, metadata, method, sent, args } = call;
    let Sent { messages, mut fault } = sent;
    let mut request = Request::new(messages);
    *request.metadata_mut() = metadata;
    let deadline = args.timeout.map(|limit| (limit, Instant::now() + limit));
    if let Some(limit) = args.timeout {
        request.set_timeout(limit);
    }
    let expired = async {
        match deadline {
            Some((_, deadline)) => tokio::time::sleep_until(deadline).await,
            None => pending().await,
        }
    };
    let timed_out = |limit| CliError::TimedOut { what: "the call", limit, remedy: "--timeout allows no more" };
    let answered = tokio::select! {
        Ok(error) = &mut fault => return Err(error),
        answered = answers(channel, request, &method, args, out) => answered,
        // A call with one answer is finished even so: it may do more than answer.
        () = output::closed(), if method.is_server_streaming() => return Err(CliError::StdoutClosed),
        () = expired => Err(CallFault::Status(Status::deadline_exceeded(""))),
    };
    match answered {
        Ok(()) => Ok(()),
        Err(CallFault::Cli(error)) => Err(error),
        Err(CallFault::Status(status)) => match deadline {
            // The transport has a timer of its own, and says CANCELLED when that is first.
            Some((limit, deadline))
                if Instant::now() >= deadline && matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) =>
            {
                Err(timed_out(limit))
            }
            _ => Err(CliError::Answered(Answer::new(&status, Some(method.parent_pool())))),
        },
    }
}

enum CallFault {
    Status(Status),
    Cli(CliError),
}

impl From<Status> for CallFault {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<CliError> for CallFault {
    fn from(error: CliError) -> Self {
        Self::Cli(error)
    }
}

/// Sends the request and prints each answer as it comes. On the wire every method is a stream of both; one answer is a
/// stream of length one.
async fn answers(
    channel: Channel,
    request: Request<BoxStream<'static, DynamicMessage>>,
    method: &MethodDescriptor,
    args: &CallArgs,
    out: &mut Output,
) -> Result<(), CallFault> {
    let mut grpc = Grpc::new(channel)
        .max_decoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let uri = PathAndQuery::try_from(format!("/{}", path(method)))
        .map_err(|error| Status::internal(format!("the method's name is no path: {error}")))?;
    let codec = DynamicCodec { answer: method.output() };
    let mut answers = grpc.streaming(request, uri, codec).await?.into_inner();
    let mut count = 0_usize;
    while let Some(message) = answers.message().await? {
        out.print(&render(&message, args).map_err(CliError::NotJson)?).await?;
        count += 1;
    }
    if count == 0 && !method.is_server_streaming() {
        return Err(CliError::NoAnswer { method: path(method) }.into());
    }
    Ok(())
}

fn render(message: &DynamicMessage, args: &CallArgs) -> Result<String, serde_json::Error> {
    let options = SerializeOptions::new().skip_default_fields(!args.emit_defaults);
    let mut text = Vec::new();
    match args.output {
        CallOutput::Json => message.serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)?,
        CallOutput::Pretty => {
            message.serialize_with_options(&mut serde_json::Serializer::pretty(&mut text), &options)?;
        }
    }
    Ok(String::from_utf8(text).expect("serde_json writes UTF-8"))
}

/// `shop.v1.Cart/Add`
fn path(method: &MethodDescriptor) -> String {
    format!("{}/{}", method.parent_service().full_name(), method.name())
}

fn streamed(message: &MessageDescriptor, is_stream: bool) -> String {
    format!("{}{}", if is_stream { "stream " } else { "" }, message.full_name())
}

fn takes(method: &MethodDescriptor) -> String {
    streamed(&method.input(), method.is_client_streaming())
}

fn gives(method: &MethodDescriptor) -> String {
    streamed(&method.output(), method.is_server_streaming())
}

async fn list(
    reflection: &mut Reflection,
    services: &[String],
    output: CallOutput,
    out: &mut Output,
) -> Result<(), CliError> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["METHOD", "TAKES", "ANSWERS"]);
    for service in services {
        match reflection.service(service).await {
            Ok(service) => {
                for method in service.methods() {
                    if output == CallOutput::Json {
                        out.print(&as_json(&method).to_string()).await?;
                    }
                    table.add_row([path(&method), takes(&method), gives(&method)]);
                }
            }
            // One service that its server can't describe is no reason to hide the others.
            Err(error @ CliError::Descriptors { .. }) => {
                let _ = writeln!(io::stderr(), "note: {service} is left out: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    match output {
        CallOutput::Json => Ok(()),
        CallOutput::Pretty => out.print(&table.trim_fmt()).await,
    }
}

async fn explain(service: &ServiceDescriptor, output: CallOutput, out: &mut Output) -> Result<(), CliError> {
    for method in service.methods() {
        match output {
            CallOutput::Json => out.print(&as_json(&method).to_string()).await?,
            CallOutput::Pretty => {
                let (path, example) = (path(&method), json::example(&method.input()));
                out.print(&format!("{path} ({}) returns ({})\n  {example}", takes(&method), gives(&method))).await?;
                // Of these the example has only the first.
                for oneof in method.input().oneofs().filter(|oneof| oneof.fields().len() > 1) {
                    let names: Vec<String> = oneof.fields().map(|field| field.name().to_owned()).collect();
                    out.print(&format!("  one of: {}", names.join(", "))).await?;
                }
            }
        }
    }
    Ok(())
}

fn as_json(method: &MethodDescriptor) -> serde_json::Value {
    json!({
        "method": path(method),
        "input": method.input().full_name(),
        "client_streaming": method.is_client_streaming(),
        "output": method.output().full_name(),
        "server_streaming": method.is_server_streaming(),
    })
}

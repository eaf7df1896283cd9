//! The listener for clients: what it serves, and what no client can do to it.

#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outpost::{App, BoxError, Module, Node, Sources, StartError, Stopped};
use outpost_tests::{
    Obedient, Seen, app,
    frames::{ACK, END_HEADERS, END_STREAM, PREFACE, Raw, frame, grpc_headers, kind},
    relay,
    v1::{
        Answer, Ask, Deed, KindsHandle, kinds_client::KindsClient, kinds_server::KindsServer, relay_client::RelayClient,
    },
    wait::{until, within},
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    codec::CompressionEncoding,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1 as reflection, v1alpha as reflection_alpha};

/// A node, and what its service sees.
struct Fixture {
    node: Node,
    seen: Arc<Seen>,
}

impl Fixture {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let obedient = Obedient::default();
        let seen = Arc::clone(&obedient.seen);
        Self { node: app(obedient).start(&sources(settings)).await.unwrap(), seen }
    }

    fn address(&self) -> SocketAddr {
        self.node.ingress_address()
    }

    /// A stock client with a connection of its own.
    fn client(&self) -> KindsClient<Channel> {
        KindsClient::new(channel(self.address()))
    }
}

fn sources(settings: &[(&str, &str)]) -> Sources {
    settings.iter().fold(Sources::on_free_ports(), |sources, (key, value)| sources.set(key, value))
}

fn channel(address: SocketAddr) -> Channel {
    Endpoint::try_from(format!("http://{address}")).unwrap().connect_lazy()
}

fn ask(deed: Deed) -> Ask {
    Ask { text: "hello".to_owned(), deed: deed.into(), ..Ask::default() }
}

fn sized(bytes: usize) -> Ask {
    Ask { payload: vec![0; bytes], ..ask(Deed::Unspecified) }
}

/// Reads what comes until the other side closes.
async fn closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset closes too.
    let _ = within("the node to close a connection", stream.read_to_end(&mut bytes)).await;
    bytes
}

/// A call that goes on until its sender is dropped, and gives an answer for each ask.
async fn open_call(client: &mut KindsClient<Channel>) -> (mpsc::Sender<Ask>, Streaming<Answer>) {
    let (tx, rx) = mpsc::channel(1);
    let mut answers = client.bidi(ReceiverStream::new(rx)).await.unwrap().into_inner();
    tx.send(ask(Deed::Unspecified)).await.unwrap();
    answers.message().await.unwrap().unwrap();
    (tx, answers)
}

// Connections

#[tokio::test]
async fn a_connection_that_does_not_say_its_preface_in_time_is_closed() {
    let fixture = Fixture::new(&[("ingress.preface_timeout", "200ms")]).await;
    let (mut honest, _) = Raw::connect(fixture.address()).await.unwrap();
    for said in [&b""[..], &PREFACE[..12], b"POST /kinds.v1."] {
        let mut stream = TcpStream::connect(fixture.address()).await.unwrap();
        stream.write_all(said).await.unwrap();
        closed(&mut stream).await;
        // More than the timeout has passed for this one too, but it had said its preface.
        within("an answer to a ping", honest.ping()).await.expect("an idle connection stays");
    }
}

#[tokio::test]
async fn one_connection_more_than_the_limit_is_closed_and_has_room_when_another_has_gone() {
    let fixture = Fixture::new(&[("ingress.max_connections", "2"), ("ingress.preface_timeout", "60s")]).await;
    let (first, _) = Raw::connect(fixture.address()).await.unwrap();
    let (mut second, _) = Raw::connect(fixture.address()).await.unwrap();
    let mut third = TcpStream::connect(fixture.address()).await.unwrap();
    assert_eq!(closed(&mut third).await, b"", "not served");
    second.ping().await.expect("the others are not touched");

    drop(first);
    until("room for a connection", async || Raw::connect(fixture.address()).await.map_err(|error| error.to_string()))
        .await;
    assert_eq!(fixture.node.describe().node.unwrap().connections, 2);
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed() {
    let settings = [("ingress.keepalive_interval", "100ms"), ("ingress.keepalive_timeout", "100ms")];
    let fixture = Fixture::new(&settings).await;
    let (mut silent, _) = Raw::connect(fixture.address()).await.unwrap();
    let (mut honest, _) = Raw::connect(fixture.address()).await.unwrap();
    let answering = async {
        loop {
            let ping = honest.find(|frame| frame.kind == kind::PING && frame.flags == 0).await.expect("open");
            honest.send(&frame(kind::PING, ACK, 0, &ping.payload)).await.expect("open");
        }
    };
    tokio::select! {
        () = answering => {}
        _ = within("the node to close a dead connection", silent.closed()) => {}
    }
    honest.ping().await.expect("who answers pings stays");
}

// TLS

/// A certificate for `localhost` in a directory that goes with it.
struct Certified {
    directory: PathBuf,
    certificate: String,
}

impl Certified {
    fn new(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let this = Self { directory, certificate: made.cert.pem() };
        fs::write(this.certificate(), &this.certificate).unwrap();
        fs::write(this.key(), made.signing_key.serialize_pem()).unwrap();
        this
    }

    fn certificate(&self) -> PathBuf {
        self.directory.join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.join("key.pem")
    }

    fn sources(&self) -> Sources {
        let [certificate, key] = [self.certificate(), self.key()].map(|path| path.display().to_string());
        sources(&[("ingress.tls.certificate", &certificate), ("ingress.tls.key", &key)])
    }

    fn channel(&self, address: SocketAddr) -> Channel {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.certificate));
        let endpoint = Endpoint::try_from(format!("https://localhost:{}", address.port())).unwrap();
        endpoint.tls_config(tls).unwrap().connect_lazy()
    }
}

impl Drop for Certified {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[tokio::test]
async fn clients_call_over_tls_and_an_unfinished_handshake_is_closed() {
    let certified = Certified::new("tls");
    let sources = certified.sources().set("ingress.handshake_timeout", "200ms").set("ingress.preface_timeout", "60s");
    let node = app(Obedient::default()).start(&sources).await.unwrap();
    let mut client = KindsClient::new(certified.channel(node.ingress_address()));
    client.unary(ask(Deed::Unspecified)).await.expect("a call over TLS");
    assert!(node.describe().node.unwrap().tls);

    // Nothing; and the beginning of a record of 256 bytes that never comes.
    for said in [&b""[..], &[22, 3, 1, 1, 0, 1]] {
        let mut stream = TcpStream::connect(node.ingress_address()).await.unwrap();
        stream.write_all(said).await.unwrap();
        closed(&mut stream).await;
    }
    client.unary(ask(Deed::Unspecified)).await.expect("the honest connection is still there");
}

#[tokio::test]
async fn who_speaks_no_tls_is_not_served() {
    let certified = Certified::new("plain");
    let node = app(Obedient::default()).start(&certified.sources()).await.unwrap();
    let status = KindsClient::new(channel(node.ingress_address())).unary(ask(Deed::Unspecified)).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok, "{status:?}");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let (certified, other) = (Certified::new("fits"), Certified::new("other"));
    let start = async |certificate: PathBuf, key: PathBuf| {
        let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
        let sources = sources(&[("ingress.tls.certificate", &certificate), ("ingress.tls.key", &key)]);
        let error = app(Obedient::default()).start(&sources).await.unwrap_err();
        assert!(matches!(error, StartError::Trust(_)), "{error:?}");
        error.to_string()
    };
    let absent = certified.directory.join("absent.pem");
    let text = start(absent.clone(), certified.key()).await;
    assert!(text.contains("`ingress.tls.certificate`") && text.contains(absent.to_str().unwrap()), "{text}");
    let text = start(certified.certificate(), absent.clone()).await;
    assert!(text.contains("`ingress.tls.key`") && text.contains(absent.to_str().unwrap()), "{text}");
    // Files that are there, but the wrong way round.
    let text = start(certified.key(), certified.certificate()).await;
    assert!(text.contains("`ingress.tls.certificate`"), "{text}");
    let text = start(certified.certificate(), other.key()).await;
    assert!(text.contains(certified.certificate().to_str().unwrap()), "{text}");
    assert!(text.contains(other.key().to_str().unwrap()), "{text}");
}

// Limits

#[tokio::test]
async fn calls_on_one_connection_are_limited_and_the_limit_is_announced() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const REFUSED_STREAM: u32 = 7;
    let fixture = Fixture::new(&[("ingress.max_concurrent_streams", "2")]).await;
    let (mut raw, settings) = Raw::connect(fixture.address()).await.unwrap();
    assert_eq!(settings.setting(MAX_CONCURRENT_STREAMS), Some(2), "{settings:?}");

    for stream in [1, 3, 5] {
        let headers = grpc_headers("/kinds.v1.Kinds/ClientStream");
        raw.send(&frame(kind::HEADERS, END_HEADERS, stream, &headers)).await.unwrap();
    }
    let refused = within("a refusal", raw.find(|frame| frame.kind == kind::RST_STREAM)).await.unwrap();
    assert_eq!((refused.stream, refused.error_code()), (5, Some(REFUSED_STREAM)));
    fixture.seen.running(2).await;
    raw.send(&frame(kind::DATA, END_STREAM, 1, &[])).await.unwrap();
    within("an answer", raw.find(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0)).await.unwrap();
    raw.send(&frame(kind::HEADERS, END_HEADERS, 7, &grpc_headers("/kinds.v1.Kinds/ClientStream"))).await.unwrap();
    fixture.seen.running(2).await;

    // A stock client waits for its turn by itself, once it knows the limit.
    let mut client = fixture.client();
    client.unary(ask(Deed::Unspecified)).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let mut client = client.clone();
        calls.spawn(async move { client.unary(ask(Deed::Unspecified)).await });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
}

#[tokio::test]
async fn headers_over_the_limit_are_refused_and_other_calls_go_on() {
    const MAX_HEADER_LIST_SIZE: u16 = 6;
    let fixture = Fixture::new(&[]).await;
    let (_, settings) = Raw::connect(fixture.address()).await.unwrap();
    assert_eq!(settings.setting(MAX_HEADER_LIST_SIZE), Some(16 << 10), "{settings:?}");

    let mut client = fixture.client();
    let (tx, mut answers) = open_call(&mut client).await;
    let with_header = |bytes: usize| {
        let mut request = Request::new(ask(Deed::Unspecified));
        request.metadata_mut().insert("big", "x".repeat(bytes).parse().unwrap());
        request
    };
    client.unary(with_header(15 << 10)).await.expect("below the limit");
    for bytes in [17 << 10, 60 << 10] {
        let status = within("a refusal", client.unary(with_header(bytes))).await.unwrap_err();
        assert_ne!(status.code(), Code::DeadlineExceeded, "{status:?}");
        tx.send(ask(Deed::Unspecified)).await.unwrap();
        let answer = answers.message().await.expect("the connection's other call is unharmed");
        assert_eq!(answer.unwrap().text, "hello");
    }
    fixture.seen.running(1).await;
}

#[tokio::test]
async fn the_limit_on_a_message_can_be_raised() {
    let fixture = Fixture::new(&[]).await;
    let status = fixture.client().unary(sized(5 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let mut packing = fixture.client().send_compressed(CompressionEncoding::Gzip);
    let status = packing.unary(sized(5 << 20)).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "unpacked it is as large: {status:?}");

    let fixture = Fixture::new(&[("ingress.max_message_size", "8MiB")]).await;
    let mut client = fixture.client().max_decoding_message_size(8 << 20);
    assert_eq!(client.unary(sized(5 << 20)).await.unwrap().get_ref().payload.len(), 5 << 20);
    let status = client.unary(sized(9 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
}

#[tokio::test]
async fn compressed_requests_are_read() {
    let fixture = Fixture::new(&[]).await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client = fixture.client().send_compressed(encoding);
        let answer = client.unary(sized(100_000)).await.unwrap_or_else(|status| panic!("{encoding:?}: {status:?}"));
        assert_eq!(answer.get_ref().payload.len(), 100_000);
    }
}

/// An honest client, who must not notice what others do.
struct Honest {
    client: KindsClient<Channel>,
    sender: mpsc::Sender<Ask>,
    answers: Streaming<Answer>,
}

impl Honest {
    async fn new(fixture: &Fixture) -> Self {
        let mut client = fixture.client();
        let (sender, answers) = open_call(&mut client).await;
        Self { client, sender, answers }
    }

    async fn assert_unharmed(&mut self, by: &str) {
        self.sender.send(ask(Deed::Unspecified)).await.unwrap();
        let answer = self.answers.message().await.unwrap_or_else(|status| panic!("after {by}: {status:?}"));
        assert_eq!(answer.unwrap().text, "hello", "after {by}");
        self.client.unary(ask(Deed::Unspecified)).await.unwrap_or_else(|status| panic!("after {by}: {status:?}"));
    }
}

/// Sends frames without end, and reads none of the answers if `deaf`; the node must end the connection, and no other.
async fn flood(fixture: &Fixture, name: &str, deaf: bool, begin: &[u8], next: impl Fn(u32) -> Vec<u8>) {
    let mut honest = Honest::new(fixture).await;
    let (mut raw, _) = Raw::connect(fixture.address()).await.unwrap();
    raw.send(begin).await.unwrap();
    let (mut read, mut write) = raw.into_inner().into_split();
    let sending = async {
        for turn in 0.. {
            // Many frames at a time: a flood.
            let frames: Vec<u8> = (turn * 64..(turn + 1) * 64).flat_map(&next).collect();
            if write.write_all(&frames).await.is_err() {
                return;
            }
        }
    };
    let reading = async {
        let mut bytes = vec![0; 64 << 10];
        while !deaf && read.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
        if deaf {
            std::future::pending::<()>().await;
        }
    };
    let ended = async {
        tokio::select! {
            () = sending => {}
            () = reading => {}
        }
    };
    within(&format!("the node to end a flood of {name}"), ended).await;
    drop((read, write));
    honest.assert_unharmed(name).await;
    until("the connection to be gone", async || match fixture.node.describe().node.unwrap() {
        node if (node.calls_in_flight, node.connections) == (1, 1) => Ok(()),
        node => Err(format!("after {name}: {node:?}")),
    })
    .await;
    drop(honest);
    fixture.seen.running(0).await;
}

#[tokio::test]
async fn a_flood_ends_its_connection_and_no_other() {
    const CANCEL: u32 = 8;
    let settings = [("ingress.keepalive_interval", "200ms"), ("ingress.keepalive_timeout", "200ms")];
    let fixture = Fixture::new(&settings).await;
    let call = grpc_headers("/kinds.v1.Kinds/Unary");

    let calls_that_are_reset = |turn: u32| {
        let stream = turn * 2 + 1;
        let mut frames = frame(kind::HEADERS, END_HEADERS, stream, &call);
        frames.extend(frame(kind::RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
        frames
    };
    flood(&fixture, "calls that are reset", false, &[], calls_that_are_reset).await;

    let begun = frame(kind::HEADERS, 0, 1, &call);
    let field = [&[0, 1, b'a', 100][..], &[b'x'; 100]].concat();
    flood(&fixture, "CONTINUATION", false, &begun, |_| frame(kind::CONTINUATION, 0, 1, &field)).await;
    flood(&fixture, "empty CONTINUATION", false, &begun, |_| frame(kind::CONTINUATION, 0, 1, &[])).await;

    let open = frame(kind::HEADERS, END_HEADERS, 1, &grpc_headers("/kinds.v1.Kinds/ClientStream"));
    flood(&fixture, "empty DATA", false, &open, |_| frame(kind::DATA, 0, 1, &[])).await;

    // Who takes the answers to these pays as much; who does not is held by the full socket, then closed for his pings.
    flood(&fixture, "SETTINGS", true, &[], |_| frame(kind::SETTINGS, 0, 0, &[])).await;
    flood(&fixture, "PING", true, &[], |_| frame(kind::PING, 0, 0, b"are you?")).await;
}

// What is not a call

async fn call(address: SocketAddr, path: &'static str) -> Status {
    let mut grpc = tonic::client::Grpc::new(channel(address));
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Ask, Answer>::default();
    grpc.unary(Request::new(ask(Deed::Unspecified)), PathAndQuery::from_static(path), codec).await.unwrap_err()
}

#[tokio::test]
async fn what_nobody_serves_is_unimplemented_and_named() {
    let fixture = Fixture::new(&[]).await;
    for (path, named) in [
        ("/nowhere.v1.Nobody/Unary", "`nowhere.v1.Nobody`"),
        ("/kinds.v1.Kinds/Nothing", ""), // tonic's own answer
        ("/kinds.v1.Kinds", "`/kinds.v1.Kinds`"),
        ("/kinds.v1.Kinds/", "`/kinds.v1.Kinds/`"),
        ("/kinds.v1.Kinds/Unary/more", "`/kinds.v1.Kinds/Unary/more`"),
        ("//Unary", ""),
        ("/", "`/`"),
    ] {
        let status = call(fixture.address(), path).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status:?}");
        assert!(status.message().contains(named), "{path}: {status:?}");
    }
}

/// A response with its body, by a plain HTTP client.
async fn http(
    address: SocketAddr,
    version: http::Version,
    request: http::request::Builder,
    body: impl Into<Bytes>,
) -> (StatusCode, HeaderMap, Bytes) {
    let mut request = request.version(version).body(Full::new(body.into())).unwrap();
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let mut connection = JoinSet::new();
    let response = if version == http::Version::HTTP_2 {
        let path = format!("http://{address}{}", request.uri());
        *request.uri_mut() = path.parse().unwrap();
        let (mut send, driven) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        connection.spawn(driven);
        within("a response", send.send_request(request)).await.unwrap()
    } else {
        request.headers_mut().insert(header::HOST, address.to_string().parse().unwrap());
        let (mut send, driven) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        connection.spawn(driven);
        within("a response", send.send_request(request)).await.unwrap()
    };
    let (head, body) = response.into_parts();
    let body = within("the body", body.collect()).await.unwrap().to_bytes();
    (head.status, head.headers, body)
}

fn post(content_type: &str) -> http::request::Builder {
    http::Request::post("/kinds.v1.Kinds/Unary").header(header::CONTENT_TYPE, content_type)
}

#[tokio::test]
async fn what_is_not_grpc_is_refused_as_http_has_it() {
    use http::Version;

    let fixture = Fixture::new(&[]).await;
    for (version, request) in [
        (Version::HTTP_2, post("application/json")),
        (Version::HTTP_2, http::Request::post("/kinds.v1.Kinds/Unary")),
        (Version::HTTP_2, http::Request::get("/")),
        (Version::HTTP_11, http::Request::get("/")),
        (Version::HTTP_11, http::Request::options("/kinds.v1.Kinds/Unary")),
        (Version::HTTP_11, post("application/json")),
        (Version::HTTP_11, post("application/grpc")), // no trailers there
    ] {
        let what = format!("{version:?}, {request:?}");
        let (status, headers, _) = http(fixture.address(), version, request, "{}").await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{what}");
        assert!(!headers.contains_key("grpc-status"), "{what}: {headers:?}");
    }
    fixture.seen.running(0).await;
}

// gRPC-Web

const TRAILERS: u8 = 0x80;

/// A length-prefixed message.
fn framed(ask: &Ask) -> Vec<u8> {
    let message = ask.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend(message);
    bytes
}

/// Frames of a gRPC-Web body: their first byte, and what is in them.
fn frames(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [first, a, b, c, d, rest @ ..] = body {
        let (payload, rest) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        frames.push((*first, payload.to_vec()));
        body = rest;
    }
    assert!(body.is_empty(), "half a frame is left: {body:?}");
    frames
}

fn assert_web_answer(body: &[u8]) {
    let frames = frames(body);
    let [(0, message), (TRAILERS, trailers)] = frames.as_slice() else { panic!("{frames:?}") };
    assert_eq!(Answer::decode(message.as_slice()).unwrap().text, "hello");
    let trailers = String::from_utf8_lossy(trailers).to_lowercase().replace(": ", ":");
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
}

#[tokio::test]
async fn a_browser_calls_by_grpc_web() {
    let fixture = Fixture::new(&[]).await;
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let request = post("application/grpc-web+proto").header("x-grpc-web", "1");
        let (status, headers, body) = http(fixture.address(), version, request, framed(&ask(Deed::Unspecified))).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_TYPE], "application/grpc-web+proto");
        assert_web_answer(&body);

        let request = post("application/grpc-web-text+proto").header(header::ACCEPT, "application/grpc-web-text+proto");
        let sent = BASE64_STANDARD.encode(framed(&ask(Deed::Unspecified)));
        let (status, headers, body) = http(fixture.address(), version, request, sent).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_TYPE], "application/grpc-web-text+proto");
        // Padded pieces, one after another.
        let body: Vec<u8> = body.chunks(4).flat_map(|four| BASE64_STANDARD.decode(four).unwrap()).collect();
        assert_web_answer(&body);
    }
}

#[tokio::test]
async fn a_browser_gets_a_status_by_grpc_web() {
    let fixture = Fixture::new(&[]).await;
    for (deed, wanted) in [(Deed::Fail, Code::Aborted), (Deed::Panic, Code::Internal)] {
        let request = post("application/grpc-web+proto");
        let (status, headers, body) =
            http(fixture.address(), http::Version::HTTP_11, request, framed(&ask(deed))).await;
        assert_eq!(status, StatusCode::OK);
        let in_trailers = frames(&body).into_iter().find(|(first, _)| *first == TRAILERS);
        let trailers = in_trailers.map(|(_, text)| String::from_utf8_lossy(&text).to_lowercase().replace(": ", ":"));
        let code = format!("grpc-status:{}", wanted as i32);
        let in_head = headers.get("grpc-status").is_some_and(|code| code == (wanted as i32).to_string().as_str());
        assert!(in_head || trailers.as_ref().is_some_and(|text| text.contains(&code)), "{headers:?} {trailers:?}");
    }
}

fn preflight(origin: &str) -> http::request::Builder {
    http::Request::builder()
        .method(Method::OPTIONS)
        .uri("/kinds.v1.Kinds/Unary")
        .header(header::ORIGIN, origin)
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
        .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "content-type,x-grpc-web,x-of-mine")
}

#[tokio::test]
async fn a_page_may_call_if_its_origin_is_allowed() {
    use http::Version;

    let fixture = Fixture::new(&[("ingress.grpc_web_origins", "[\"https://shop.example\"]")]).await;
    let (status, headers, _) = http(fixture.address(), Version::HTTP_11, preflight("https://shop.example"), "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://shop.example");
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_METHODS], "POST");
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_HEADERS], "content-type,x-grpc-web,x-of-mine");

    let request = post("application/grpc-web+proto").header(header::ORIGIN, "https://shop.example");
    let (_, headers, body) = http(fixture.address(), Version::HTTP_11, request, framed(&ask(Deed::Unspecified))).await;
    assert_web_answer(&body);
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://shop.example");
    let exposed = headers[header::ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
    for key in ["grpc-status", "grpc-message", "outpost-outcome", "outpost-reason"] {
        assert!(exposed.contains(key), "{exposed}");
    }

    for other in ["https://evil.example", "http://shop.example", "https://shop.example.evil.example", "null"] {
        let (_, headers, _) = http(fixture.address(), Version::HTTP_11, preflight(other), "").await;
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN), "{other}: {headers:?}");
    }

    let none = Fixture::new(&[]).await;
    let (_, headers, _) = http(none.address(), Version::HTTP_11, preflight("https://shop.example"), "").await;
    assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN), "{headers:?}");
    let every = Fixture::new(&[("ingress.grpc_web_origins", "[\"*\"]")]).await;
    let (_, headers, _) = http(every.address(), Version::HTTP_11, preflight("https://shop.example"), "").await;
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
}

#[tokio::test]
async fn grpc_web_can_be_turned_off() {
    let fixture = Fixture::new(&[("ingress.grpc_web", "false")]).await;
    let call = framed(&ask(Deed::Unspecified));
    for request in
        [post("application/grpc-web+proto"), post("application/grpc-web-text"), preflight("https://a.example")]
    {
        let (status, ..) = http(fixture.address(), http::Version::HTTP_11, request, call.clone()).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    fixture.client().unary(ask(Deed::Unspecified)).await.expect("gRPC is served");
}

// The node's own services

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn health_knows_every_service_and_tells_of_the_stop() {
    let fixture = Fixture::new(&[]).await;
    let mut health = HealthClient::new(channel(fixture.address()));
    let mut watches = Vec::new();
    for service in ["", "kinds.v1.Kinds", "kinds.v1.Relay", "grpc.health.v1.Health"] {
        let answer = health.check(about(service)).await.unwrap_or_else(|status| panic!("`{service}`: {status:?}"));
        assert_eq!(answer.get_ref().status(), ServingStatus::Serving, "{service}");
        let mut watch = health.watch(about(service)).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving, "{service}");
        watches.push((service, watch));
    }
    let status = health.check(about("nowhere.v1.Nobody")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");

    // A call keeps the node from ending before the watchers have heard.
    let (tx, _answers) = open_call(&mut fixture.client()).await;
    let mut stopping = JoinSet::new();
    stopping.spawn(fixture.node.stop());
    for (service, watch) in &mut watches {
        let reason = format!("news of `{service}`");
        let news = within(&reason, watch.message()).await.unwrap().expect("the watch goes on");
        assert_eq!(news.status(), ServingStatus::NotServing, "{service}");
    }
    drop(tx);
    // The watches are still open: they do not hold up the stop.
    let stopped = within("the stop", stopping.join_next()).await.unwrap().unwrap();
    assert_eq!(stopped, Stopped { calls_cut: 0, tasks_cut: 0 });
}

#[tokio::test]
async fn health_tells_of_the_stop_for_reflection_too() {
    for service in ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"] {
        let fixture = Fixture::new(&[]).await;
        let mut health = HealthClient::new(channel(fixture.address()));
        let mut overall = health.watch(about("")).await.unwrap().into_inner();
        let mut watch = health.watch(about(service)).await.unwrap().into_inner();
        assert_eq!(overall.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving, "{service}");
        let mut stopping = JoinSet::new();
        stopping.spawn(fixture.node.stop());
        assert_eq!(overall.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        // Without news, the stop's end is the next that the watch hears of.
        let news = within("news", watch.message()).await.unwrap_or_else(|status| panic!("`{service}`: {status:?}"));
        assert_eq!(news.expect("the watch goes on").status(), ServingStatus::NotServing, "{service}");
    }
}

/// Asks over one version of the protocol: the services, and for each the number of files that describe it.
macro_rules! reflect {
    ($module:ident, $address:expr) => {{
        use $module::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
        let mut client = $module::server_reflection_client::ServerReflectionClient::new(channel($address));
        let mut ask = async |request| {
            let request = $module::ServerReflectionRequest { host: String::new(), message_request: Some(request) };
            let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
            Ok::<_, Status>(answers.message().await?.expect("an answer").message_response.expect("a response"))
        };
        match ask(MessageRequest::ListServices(String::new())).await {
            Err(status) => Err(status),
            Ok(MessageResponse::ListServicesResponse(list)) => {
                let mut described = Vec::new();
                for service in list.service {
                    let files = match ask(MessageRequest::FileContainingSymbol(service.name.clone())).await {
                        Ok(MessageResponse::FileDescriptorResponse(files)) => files.file_descriptor_proto,
                        other => panic!("{}: {other:?}", service.name),
                    };
                    described.push((service.name, files));
                }
                described.sort();
                Ok(described)
            }
            Ok(other) => panic!("{other:?}"),
        }
    }};
}

/// Services, each with the files that describe it.
type Reflected = Vec<(String, Vec<Vec<u8>>)>;

fn assert_reflected(services: Reflected, own: &str) {
    let names: Vec<&str> = services.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["grpc.health.v1.Health", own, "kinds.v1.Kinds", "kinds.v1.Relay"]);
    let (_, files) = services.iter().find(|(name, _)| name == "kinds.v1.Kinds").unwrap();
    let file = prost_types::FileDescriptorProto::decode(files[0].as_slice()).unwrap();
    let kinds = file.service.iter().find(|service| service.name() == "Kinds").unwrap();
    let methods: Vec<&str> = kinds.method.iter().map(|method| method.name()).collect();
    assert_eq!(methods, ["Unary", "ServerStream", "ClientStream", "Bidi"]);
}

#[tokio::test]
async fn reflection_lists_and_describes_every_service() {
    let fixture = Fixture::new(&[]).await;
    let services: Result<_, Status> = reflect!(reflection, fixture.address());
    assert_reflected(services.unwrap(), "grpc.reflection.v1.ServerReflection");
}

#[tokio::test]
async fn reflection_in_its_older_version_lists_and_describes_every_service() {
    let fixture = Fixture::new(&[]).await;
    let services: Result<_, Status> = reflect!(reflection_alpha, fixture.address());
    assert_reflected(services.unwrap(), "grpc.reflection.v1alpha.ServerReflection");
}

#[tokio::test]
async fn reflection_can_be_turned_off() {
    let fixture = Fixture::new(&[("ingress.reflection", "false")]).await;
    let services: Result<Reflected, Status> = reflect!(reflection, fixture.address());
    assert_eq!(services.unwrap_err().code(), Code::Unimplemented);
    let services: Result<Reflected, Status> = reflect!(reflection_alpha, fixture.address());
    assert_eq!(services.unwrap_err().code(), Code::Unimplemented);
    let mut health = HealthClient::new(channel(fixture.address()));
    let status = health.check(about("grpc.reflection.v1.ServerReflection")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

// The end

#[tokio::test]
async fn a_stop_waits_for_calls_and_admits_no_connection() {
    let fixture = Fixture::new(&[]).await;
    let address = fixture.address();
    let mut client = fixture.client();
    let (tx, mut answers) = open_call(&mut client).await;
    let mut stopping = JoinSet::new();
    stopping.spawn(fixture.node.stop());
    until("connections to be refused", async || match TcpStream::connect(address).await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for _ in 0..3 {
        tx.send(ask(Deed::Unspecified)).await.unwrap();
        assert_eq!(answers.message().await.expect("the call goes on").unwrap().text, "hello");
    }
    assert!(stopping.try_join_next().is_none(), "the stop waits");
    drop(tx);
    assert_eq!(answers.message().await.expect("the call ends well"), None);
    let stopped = within("the stop", stopping.join_next()).await.unwrap().unwrap();
    assert_eq!(stopped, Stopped { calls_cut: 0, tasks_cut: 0 });
}

#[tokio::test]
async fn a_stop_lets_a_call_end_at_its_own_deadline() {
    let fixture = Fixture::new(&[]).await;
    let mut client = fixture.client();
    let mut calls = JoinSet::new();
    calls.spawn(async move {
        let mut request = Request::new(ask(Deed::Hang));
        request.set_timeout(std::time::Duration::from_secs(1));
        client.unary(request).await
    });
    fixture.seen.running(1).await;
    let stopped = within("the stop", fixture.node.stop()).await;
    assert_eq!(stopped, Stopped { calls_cut: 0, tasks_cut: 0 });
    let status = calls.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
}

#[tokio::test]
async fn at_the_deadline_of_a_stop_calls_are_cut_and_counted() {
    let fixture = Fixture::new(&[("node.stop_timeout", "300ms"), ("ingress.preface_timeout", "60s")]).await;
    let _silent = TcpStream::connect(fixture.address()).await.unwrap();
    let (_deaf, _) = Raw::connect(fixture.address()).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..2 {
        let mut client = fixture.client();
        calls.spawn(async move { client.unary(ask(Deed::Hang)).await });
    }
    let mut client = fixture.client();
    let (tx, mut answers) = open_call(&mut client).await;
    fixture.seen.running(3).await;
    let stopped = within("the stop", fixture.node.stop()).await;
    assert_eq!(stopped, Stopped { calls_cut: 3, tasks_cut: 0 });
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap_err();
    }
    within("the stream's end", answers.message()).await.expect_err("a call that was cut did not end well");
    fixture.seen.running(0).await;
    drop(tx);
}

#[tokio::test]
async fn silent_clients_do_not_hold_up_a_stop() {
    // The stop's timeout is longer than the test waits.
    let fixture = Fixture::new(&[("ingress.preface_timeout", "60s"), ("node.stop_timeout", "60s")]).await;
    let _silent = TcpStream::connect(fixture.address()).await.unwrap();
    let mut half = TcpStream::connect(fixture.address()).await.unwrap();
    half.write_all(&PREFACE[..12]).await.unwrap();
    let (_deaf, _) = Raw::connect(fixture.address()).await.unwrap();
    let admin = TcpStream::connect(fixture.node.admin_address().unwrap()).await.unwrap();
    until("all connections to be there", async || match fixture.node.describe().node.unwrap().connections {
        3 => Ok(()),
        count => Err(format!("{count}")),
    })
    .await;
    let stopped = within("the stop", fixture.node.stop()).await;
    assert_eq!(stopped, Stopped { calls_cut: 0, tasks_cut: 0 });
    drop(admin);
}

#[tokio::test]
async fn dropping_a_node_ends_its_calls() {
    let fixture = Fixture::new(&[]).await;
    let mut client = fixture.client();
    let mut calls = JoinSet::new();
    calls.spawn(async move { client.unary(ask(Deed::Hang)).await });
    fixture.seen.running(1).await;
    drop(fixture.node);
    fixture.seen.running(0).await;
    within("the call's end", calls.join_next()).await.unwrap().unwrap().unwrap_err();
}

/// No name that a module may have changes what a stop does.
#[tokio::test]
async fn a_stop_waits_for_calls_of_a_module_named_as_the_framework() {
    let node = App::new("kinds", "1")
        .module("outpost", || async { Ok::<_, BoxError>(KindsServer::new(Obedient::default())) })
        .start(&sources(&[("node.stop_timeout", "300ms")]))
        .await
        .unwrap();
    let mut client = KindsClient::new(channel(node.ingress_address()));
    let _open = open_call(&mut client).await;
    assert_eq!(node.describe().node.unwrap().calls_in_flight, 1);
    let stopped = within("the stop", node.stop()).await;
    assert_eq!(stopped, Stopped { calls_cut: 1, tasks_cut: 0 });
}

// What a module learns of its caller

#[tokio::test]
async fn a_module_knows_the_address_of_a_caller_from_outside() {
    let certified = Certified::new("caller");
    for tls in [false, true] {
        let sources = if tls { certified.sources() } else { Sources::on_free_ports() };
        let node = app(Obedient::default()).start(&sources).await.unwrap();
        let who = || Ask { deed: Deed::TellCaller.into(), ..Ask::default() };
        let outside = match tls {
            true => certified.channel(node.ingress_address()),
            false => channel(node.ingress_address()),
        };
        let heard = async |answer: Result<Response<Answer>, Status>| answer.unwrap().into_inner().text;
        assert_eq!(heard(KindsClient::new(outside.clone()).unary(who()).await).await, "127.0.0.1");
        let relayed = heard(RelayClient::new(outside).unary(who()).await).await;
        assert_eq!(relayed, "none", "the module that asked on behalf of somebody is in this process");
        assert_eq!(heard(KindsClient::new(node.channel()).unary(who()).await).await, "none");
        let handle: KindsHandle = node.handle().unwrap();
        assert_eq!(heard(handle.unary(who()).await).await, "none");
    }
}

/// `kinds` says what it is by `mark`; `relay` is public, and calls it.
fn marked(mark: fn(Module) -> Module) -> App {
    let kinds = Module::new("kinds", || async { Ok::<_, BoxError>(KindsServer::new(Obedient::default())) });
    App::new("kinds", "1.0.0").with(mark(kinds)).with(Module::new("relay", relay).public())
}

#[tokio::test]
async fn what_is_internal_is_not_for_clients() {
    type Mark = fn(Module) -> Module;
    let (unmarked, internal, public): (Mark, Mark, Mark) = (|module| module, Module::internal, Module::public);
    for (mark, setting, served) in [
        (unmarked, "serve", true),
        (unmarked, "audit", true),
        (unmarked, "refuse", false),
        (internal, "serve", false),
        (internal, "audit", false),
        (public, "refuse", true),
    ] {
        let node = marked(mark).start(&sources(&[("ingress.unmarked_modules", setting)])).await.unwrap();
        let at = node.ingress_address();
        let answer = KindsClient::new(channel(at)).unary(ask(Deed::Unspecified)).await;
        match answer {
            Ok(_) => assert!(served, "{setting} serves it"),
            Err(status) => {
                assert!(!served && status.code() == Code::PermissionDenied, "{setting}: {status:?}");
                let reason = status.metadata().get("outpost-reason").unwrap();
                assert_eq!(reason, "not-for-clients");
            }
        }
        let told: Result<Reflected, Status> = reflect!(reflection, at);
        assert_eq!(told.unwrap().iter().any(|(name, _)| name == "kinds.v1.Kinds"), served, "{setting}");
        // Other modules and the program itself may call it.
        RelayClient::new(channel(at)).unary(ask(Deed::Unspecified)).await.unwrap();
        let handle: KindsHandle = node.handle().unwrap();
        handle.unary(ask(Deed::Unspecified)).await.unwrap();
    }
}

/// The host of an internal module is another node: the ingress is where clients are refused, not the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_internal_is_for_modules_on_other_nodes() {
    let cluster = outpost_tests::cluster::nodes(2).start(|_| marked(Module::internal)).await;
    let home = cluster.home("kinds").await;
    let other = cluster.names().into_iter().find(|name| *name != home).unwrap();
    cluster.move_module("relay", &other).await;
    for name in cluster.names() {
        let refused = KindsClient::new(cluster.client(&name)).unary(ask(Deed::Unspecified)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        RelayClient::new(cluster.client(&name)).unary(ask(Deed::Unspecified)).await.unwrap();
    }
}

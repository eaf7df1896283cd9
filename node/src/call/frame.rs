//! Calls and answers as they travel in a stream that carries many of them: see `link.proto`.
//!
//! Pure: what arrives is checked here, and nothing that a peer sends is worse than refused.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, uri::PathAndQuery};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use outpost_proto::{
    cluster::v1::{
        CarriedAnswer, CarriedCall, CarriedField, CarriedHead, CarriedOwner, CarriedTrailers, carried_answer::Trailers,
    },
    keys::KNOWN_FIELDS,
};
use tonic::{Status, body::Body};

use super::{
    caller::ClientId,
    chain::Chain,
    deadline,
    dedupe::Reply,
    placed::{self, Arrival},
    slot::{Request, Response},
};
use crate::id::Epoch;

/// The largest message that travels so. Larger ones gain little, and would hold up small ones.
pub(crate) const MOST: usize = 32 << 10;
/// The most bytes of fields.
const MOST_FIELDS: usize = 8 << 10;

/// What is no call, or no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("`{0}` is no path of a method")]
    Path(String),
    #[error("a field has no name that is known here (number {0})")]
    Unknown(u32),
    #[error("`{0}` is no name of a field")]
    Name(String),
    #[error("the value of field `{0}` is not valid")]
    Value(String),
    #[error("{0} is no status of HTTP")]
    Status(u32),
    #[error("it has {0} fields")]
    Fields(usize),
}

/// Whether the fields of a request are few enough to travel so.
pub(crate) fn fits(headers: &HeaderMap) -> bool {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() <= MOST_FIELDS
}

/// The body of a request, as far as it matters here.
pub(crate) enum Small {
    Whole(Bytes),
    /// What was read of it, and the rest.
    Larger(Body),
}

/// Reads a body to its end, if that is not too far.
///
/// # Errors
/// A body that broke off.
pub(crate) async fn small(mut body: Body) -> Result<Small, Status> {
    let mut read = Read::default();
    while let Some(frame) = body.frame().await {
        read.take(frame?);
        if read.size() > MOST {
            return Ok(Small::Larger(Body::new(Rest { read: Some(read), rest: body })));
        }
    }
    Ok(Small::Whole(read.data()))
}

/// Reads an answer to its end, if that is not too far; otherwise gives it back.
pub(crate) async fn whole(response: Response) -> Result<Reply, Box<Response>> {
    let (parts, mut body) = response.into_parts();
    let mut read = Read::default();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => read.take(frame),
            Err(status) => return Ok(broken(&parts.headers, status)),
        }
        if read.size() > MOST {
            let body = Body::new(Rest { read: Some(read), rest: body });
            return Err(Box::new(Response::from_parts(parts, body)));
        }
    }
    if !fits(&parts.headers) || !read.trailers.as_ref().is_none_or(fits) {
        let body = Body::new(Rest { read: Some(read), rest: Body::empty() });
        return Err(Box::new(Response::from_parts(parts, body)));
    }
    Ok(Reply { status: parts.status, headers: parts.headers, body: read.data(), trailers: read.trailers })
}

/// An answer that breaks off: what is said of the whole of it stays, and what only nodes may say is not the module's.
fn broken(head: &HeaderMap, status: Status) -> Reply {
    let mut reply = Reply::of(status);
    placed::strip(&mut reply.headers);
    if let (Some(epoch), Some(fence)) = (placed::epoch_of(head), placed::fence_of(head)) {
        placed::tell_epoch(&mut reply.headers, epoch, fence);
    }
    reply
}

/// A request whose body is whole; its id is given when it is put in line.
pub(crate) fn call(path: &PathAndQuery, headers: &HeaderMap, body: Bytes, way: Arrival) -> CarriedCall {
    let path = Bytes::copy_from_slice(path.as_str().as_bytes());
    let mut fields = fields(headers);
    let head = (way.hops == 1).then(|| head(way, None));
    if head.is_none() {
        let mut told = HeaderMap::new();
        placed::tell_way(&mut told, way);
        fields.extend(told.iter().map(field));
    }
    CarriedCall { id: 0, path, fields, body, head }
}

/// The head of a call that no node has passed on before this one.
pub(crate) fn head(way: Arrival, left: Option<Duration>) -> CarriedHead {
    let (chain_low, chain_high) = way.chain.to_bits();
    let timeout_us = left.map(|left| u64::try_from(left.as_micros()).unwrap_or(u64::MAX));
    let client = way.client.and_then(ClientId::client).map(|client| client.encoded().clone()).unwrap_or_default();
    CarriedHead { epoch: way.epoch.0, depth: way.depth.into(), chain_low, chain_high, timeout_us, client }
}

/// Fields as they travel.
pub(crate) fn fields(headers: &HeaderMap) -> Vec<CarriedField> {
    // Of a connection; and here there is no other way than with trailers.
    headers.iter().filter(|(name, _)| **name != header::TE).map(field).collect()
}

/// The call that a peer sent.
pub(crate) fn request(call: CarriedCall) -> Result<Request, Malformed> {
    let CarriedCall { path, fields, body, head, .. } = call;
    let path = PathAndQuery::from_maybe_shared(path.clone())
        .map_err(|_| Malformed::Path(String::from_utf8_lossy(&path).into_owned()))?;
    let body = if body.is_empty() { Body::empty() } else { Body::new(Full::new(body)) };
    let mut request = http::Request::new(body);
    *request.headers_mut() = headers(fields)?;
    if let Some(head) = head {
        write_head(head, request.headers_mut());
    }
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = path.into();
    Ok(request)
}

/// An answer that is whole.
pub(crate) fn answer(id: u64, reply: Reply) -> CarriedAnswer {
    let Reply { status, headers, body, trailers } = reply;
    let trailers = trailers.map(|trailers| match is_ok(&trailers) {
        true => Trailers::Ok(true),
        false => Trailers::Fields(CarriedTrailers { fields: fields(&trailers) }),
    });
    let http_status = if status == StatusCode::OK { 0 } else { status.as_u16().into() };
    CarriedAnswer { id, http_status, headers: fields(&headers), body, trailers, owner: None }
}

/// Whether an answer may travel so.
pub(crate) fn small_enough(answer: &CarriedAnswer) -> bool {
    let size =
        |fields: &[CarriedField]| -> usize { fields.iter().map(|field| field.name.len() + field.value.len()).sum() };
    answer.body.len() <= MOST && size(&answer.headers) <= MOST_FIELDS
}

/// What the head of a call says, as fields.
fn write_head(head: CarriedHead, headers: &mut HeaderMap) {
    let CarriedHead { epoch, depth, chain_low, chain_high, timeout_us, client } = head;
    headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/grpc"));
    let depth = u8::try_from(depth).unwrap_or(u8::MAX);
    let chain = Chain::from_bits(chain_low, chain_high);
    placed::tell_way(headers, Arrival { hops: 1, epoch: Epoch(epoch), depth, chain, client: None });
    placed::tell_client(headers, &client);
    if let Some(left) = timeout_us {
        headers.insert(deadline::HEADER, deadline::format(Duration::from_micros(left)));
    }
}

/// The answer that a peer sent.
pub(crate) fn response(answer: CarriedAnswer) -> Result<Response, Malformed> {
    let CarriedAnswer { http_status, headers: fields, body, trailers, owner, .. } = answer;
    let trailers = match trailers {
        None => None,
        Some(Trailers::Ok(_)) => {
            Some(HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]))
        }
        Some(Trailers::Fields(CarriedTrailers { fields })) => Some(headers(fields)?),
    };
    let status = match http_status {
        0 => StatusCode::OK,
        other => u16::try_from(other)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .ok_or(Malformed::Status(other))?,
    };
    let mut headers = headers(fields)?;
    if let Some(CarriedOwner { epoch, fence }) = owner {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        placed::tell_epoch(&mut headers, Epoch(epoch), Epoch(fence));
    }
    Ok(Reply { status, headers, body, trailers }.into_response())
}

fn is_ok(trailers: &HeaderMap) -> bool {
    trailers.len() == 1 && trailers.get("grpc-status").is_some_and(|status| status == "0")
}

fn field((name, value): (&HeaderName, &HeaderValue)) -> CarriedField {
    let value = Bytes::copy_from_slice(value.as_bytes());
    match KNOWN_FIELDS.iter().position(|known| *known == name.as_str()) {
        Some(place) => CarriedField { known: place as u32 + 1, name: Bytes::new(), value },
        None => CarriedField { known: 0, name: Bytes::copy_from_slice(name.as_str().as_bytes()), value },
    }
}

/// Fields that have arrived.
pub(crate) fn headers(fields: Vec<CarriedField>) -> Result<HeaderMap, Malformed> {
    // Each is a few bytes at least, so that no request which is sent has more.
    if fields.len() > MOST_FIELDS {
        return Err(Malformed::Fields(fields.len()));
    }
    let mut headers = HeaderMap::with_capacity(fields.len());
    for CarriedField { known, name, value } in fields {
        let name = match known {
            0 => HeaderName::from_bytes(&name)
                .map_err(|_| Malformed::Name(String::from_utf8_lossy(&name).into_owned()))?,
            place => {
                let known = KNOWN_FIELDS.get(place as usize - 1).ok_or(Malformed::Unknown(place))?;
                HeaderName::from_static(known)
            }
        };
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed::Value(name.to_string()))?;
        // More than a map of headers holds is none.
        headers.try_append(name.clone(), value).map_err(|_| Malformed::Value(name.to_string()))?;
    }
    Ok(headers)
}

/// What was read of a body.
#[derive(Debug, Default)]
struct Read {
    first: Bytes,
    more: BytesMut,
    trailers: Option<HeaderMap>,
}

impl Read {
    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            // Mostly there is one.
            Ok(data) if self.size() == 0 => self.first = data,
            Ok(data) => self.more.extend_from_slice(&data),
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
    }

    fn size(&self) -> usize {
        self.first.len() + self.more.len()
    }

    fn data(&mut self) -> Bytes {
        if self.more.is_empty() {
            return std::mem::take(&mut self.first);
        }
        let mut all = BytesMut::with_capacity(self.size());
        all.extend_from_slice(&std::mem::take(&mut self.first));
        all.extend_from_slice(&std::mem::take(&mut self.more));
        all.freeze()
    }
}

/// A body whose beginning was read.
struct Rest {
    read: Option<Read>,
    rest: Body,
}

impl http_body::Body for Rest {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(read) = &mut self.read else { return Pin::new(&mut self.rest).poll_frame(cx) };
        let data = read.data();
        let frame = if data.is_empty() { read.trailers.take().map(Frame::trailers) } else { Some(Frame::data(data)) };
        match frame {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => {
                self.read = None;
                Pin::new(&mut self.rest).poll_frame(cx)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{call::caller::Held, trust::Client};

    fn header_map(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    async fn content(body: Body) -> (Bytes, Option<HeaderMap>) {
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        (collected.to_bytes(), trailers)
    }

    #[tokio::test]
    async fn a_request_arrives_as_it_was_sent() {
        let headers = header_map(&[
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "1S"),
            ("x-twice", "a"),
            ("x-twice", "b"),
            ("x-bin", "AAEC"),
        ]);
        let path = PathAndQuery::from_static("/shop.v1.Cart/Add");
        let mut expected = headers.clone();
        expected.remove(header::TE);
        for hops in 1..3 {
            let client = Arc::new(Client::new(Some("web".to_owned()), None));
            let held = Held::of(Arc::clone(&client));
            let way = Arrival { hops, epoch: Epoch(9), depth: 2, chain: Chain::of("cart"), client: Some(held.id()) };
            let sent = call(&path, &headers, Bytes::from_static(b"body"), way);
            let mut arrived = request(CarriedCall::decode(&*sent.encode_to_vec()).unwrap()).unwrap();
            assert_eq!(arrived.uri().path(), "/shop.v1.Cart/Add");
            assert_eq!((arrived.method(), arrived.version()), (&Method::POST, Version::HTTP_2));
            let (told, held) = Arrival::take(arrived.headers_mut());
            assert_eq!(held.unwrap().id().client(), Some(client));
            assert_eq!(Arrival { client: way.client, ..told }, way);
            assert_eq!(arrived.headers(), &expected);
            assert_eq!(content(arrived.into_body()).await.0, "body");
        }
    }

    #[test]
    fn a_head_says_what_fields_would() {
        let (chain_low, chain_high) = Chain::of("cart").to_bits();
        let client = Client::new(Some("web".to_owned()), None);
        let told = client.encoded().clone();
        let head = CarriedHead { epoch: 7, depth: 300, chain_low, chain_high, timeout_us: Some(1500), client: told };
        let call = CarriedCall { path: Bytes::from_static(b"/a/B"), head: Some(head), ..CarriedCall::default() };
        let mut arrived = request(CarriedCall::decode(&*call.encode_to_vec()).unwrap()).unwrap();
        let (way, held) = Arrival::take(arrived.headers_mut());
        assert_eq!(held.unwrap().id().client().as_deref(), Some(&client));
        let expected =
            Arrival { hops: 1, epoch: Epoch(7), depth: u8::MAX, chain: Chain::of("cart"), client: way.client };
        assert_eq!(way, expected);
        assert_eq!(
            arrived.headers(),
            &header_map(&[("content-type", "application/grpc"), ("grpc-timeout", "1500000n")])
        );
        let owner = CarriedOwner { epoch: 7, fence: 5 };
        let answered = response(CarriedAnswer { owner: Some(owner), ..CarriedAnswer::default() }).unwrap();
        let told = (placed::epoch_of(answered.headers()), placed::fence_of(answered.headers()));
        assert_eq!(told, (Some(Epoch(7)), Some(Epoch(5))));
    }

    #[tokio::test]
    async fn an_answer_arrives_as_it_was_given() {
        let ok = header_map(&[("grpc-status", "0")]);
        let more = header_map(&[("grpc-status", "5"), ("grpc-message", "no"), ("x-mine", "1")]);
        for (status, body, trailers) in [
            (StatusCode::OK, "a message", Some(ok.clone())),
            (StatusCode::OK, "", Some(ok)),
            (StatusCode::OK, "", Some(more)),
            (StatusCode::OK, "", None),
            (StatusCode::NOT_FOUND, "text", None),
        ] {
            let headers = header_map(&[("content-type", "application/grpc"), ("outpost-epoch", "3"), ("x", "y")]);
            let reply = Reply { status, headers, body: Bytes::from_static(body.as_bytes()), trailers };
            let sent = answer(1, Reply::read(reply.response()).await);
            let arrived = response(CarriedAnswer::decode(&*sent.encode_to_vec()).unwrap()).unwrap();
            assert_eq!(Reply::read(arrived).await, reply);
        }
    }

    #[tokio::test]
    async fn what_is_large_is_given_back_whole() {
        let all = Bytes::from(vec![7; MOST + 1]);
        let pieces: Vec<Bytes> = all.chunks(1000).map(Bytes::copy_from_slice).collect();
        let frames = || pieces.clone().into_iter().map(|piece| Ok::<_, Status>(Frame::data(piece)));
        let body = || Body::new(http_body_util::StreamBody::new(tokio_stream::iter(frames())));
        let Small::Larger(given_back) = small(body()).await.unwrap() else { panic!("it is too large") };
        assert_eq!(content(given_back).await.0, all);
        let given_back = whole(Response::new(body())).await.unwrap_err();
        assert_eq!(content(given_back.into_body()).await.0, all);
        let Small::Whole(whole) = small(Body::new(Full::new(all.slice(1..)))).await.unwrap() else {
            panic!("it is small enough")
        };
        assert_eq!(whole, all.slice(1..));
    }

    #[test]
    fn what_is_no_call_is_refused_with_its_reason() {
        let field = |known, name: &'static [u8], value: &'static [u8]| CarriedField {
            known,
            name: Bytes::from_static(name),
            value: Bytes::from_static(value),
        };
        let refused = |path: &'static [u8], field| {
            let call = CarriedCall { path: Bytes::from_static(path), fields: vec![field], ..CarriedCall::default() };
            request(call).unwrap_err()
        };
        assert_eq!(refused(b"/a b", field(0, b"x", b"y")), Malformed::Path("/a b".to_owned()));
        assert_eq!(refused(b"/a/B", field(0, b"x y", b"y")), Malformed::Name("x y".to_owned()));
        assert_eq!(refused(b"/a/B", field(0, b"x", b"\n")), Malformed::Value("x".to_owned()));
        assert_eq!(refused(b"/a/B", field(99, b"", b"y")), Malformed::Unknown(99));
        let fields = vec![CarriedField::default(); 30_000];
        let call = CarriedCall { path: Bytes::from_static(b"/a/B"), fields, ..CarriedCall::default() };
        assert_eq!(request(call).unwrap_err(), Malformed::Fields(30_000));
    }

    proptest! {
        /// Whatever a peer sends, it is a call, or an error.
        #[test]
        fn nothing_that_arrives_is_worse_than_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(call) = CarriedCall::decode(&*bytes) {
                let _ = request(call);
            }
            if let Ok(answer) = CarriedAnswer::decode(&*bytes) {
                let _ = response(answer);
            }
        }

        #[test]
        fn damage_is_refused_or_harmless(
            path in "/[a-zA-Z.]{1,20}/[a-zA-Z]{1,10}",
            fields in proptest::collection::vec(("[a-z-]{1,20}", "[ -~]{0,30}"), 0..8),
            body in proptest::collection::vec(any::<u8>(), 0..100),
            hops in 1..3_u8,
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
        ) {
            let fields: Vec<(HeaderName, HeaderValue)> = fields
                .iter()
                .filter_map(|(name, value)| Some((name.parse().ok()?, HeaderValue::from_str(value).ok()?)))
                .collect();
            let headers: HeaderMap = fields.into_iter().collect();
            let path = PathAndQuery::from_maybe_shared(path).unwrap();
            let mut sent = call(&path, &headers, body.into(), Arrival { hops, ..Arrival::default() }).encode_to_vec();
            let at = at.index(sent.len());
            sent[at] = with;
            if let Ok(call) = CarriedCall::decode(&*sent) {
                let _ = request(call);
            }
        }
    }
}

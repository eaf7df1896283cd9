//! The answers that an instance has given, by method and call id: bounded, and encoded to travel. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use outpost_proto::cluster::v1::{KeptAnswer, KeptAnswers, KeptHeader};
use prost::Message as _;

use crate::call::delivery;

/// How the encoding begins. A node that does not know the number does not read on.
const VERSION: u8 = 1;
/// What an answer takes beside its bytes, by a guess: entries of two collections, pointers, lengths.
const OVERHEAD: usize = 256;

/// What tells a call apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// "/shop.v1.Payments/Charge"
    pub(crate) method: String,
    pub(crate) call_id: String,
    /// The client that has begun it, where one has shown who it is: an id is the client's to choose, and another one may
    /// choose the same.
    pub(crate) client: String,
}

/// The whole answer of a unary call: a message, or a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Without them, the gRPC status is among the headers.
    pub(crate) trailers: Option<HeaderMap>,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Calls, with those that run.
    pub(crate) entries: usize,
    /// Of answers, with what they are found by.
    pub(crate) bytes: usize,
}

/// What is known of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known<'a, R> {
    Runs(&'a R),
    Answered(&'a Arc<Reply>),
}

/// Why the encoded answers of another node can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("kept answers have version {0:?}, and this node reads version {VERSION}")]
    Version(Option<u8>),
    #[error("kept answers are damaged: {0}")]
    Damaged(#[from] prost::DecodeError),
    #[error("the kept answer of call `{call_id}` of {method} is damaged: {what} is not valid")]
    Invalid { method: String, call_id: String, what: &'static str },
}

/// See the module. `R` stands for a call that runs.
#[derive(Debug)]
pub(crate) struct Book<R> {
    bounds: Bounds,
    running: HashMap<Key, R>,
    answers: HashMap<Key, (Arc<Reply>, usize)>,
    /// The keys of the answers, the oldest first.
    order: VecDeque<Key>,
    bytes: usize,
}

impl<R> Book<R> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, running: HashMap::new(), answers: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn look(&self, key: &Key) -> Option<Known<'_, R>> {
        let answered = self.answers.get(key).map(|(answer, _)| Known::Answered(answer));
        answered.or_else(|| self.running.get(key).map(Known::Runs))
    }

    /// Writes down a call that begins to run; it must not be known. Drops old answers to make room.
    ///
    /// # Errors
    /// How many run, if no more can.
    pub(crate) fn begin(&mut self, key: Key, running: R) -> Result<(), usize> {
        if self.running.len() >= self.bounds.entries {
            return Err(self.running.len());
        }
        self.running.insert(key, running);
        self.shrink();
        Ok(())
    }

    /// Writes down the answer of a call that ran.
    pub(crate) fn finish(&mut self, key: Key, answer: Arc<Reply>) {
        self.running.remove(&key);
        let size = OVERHEAD + 2 * (key.method.len() + key.call_id.len() + key.client.len()) + answer.size();
        match self.answers.insert(key.clone(), (answer, size)) {
            Some((_, before)) => self.bytes -= before,
            None => self.order.push_back(key),
        }
        self.bytes += size;
        self.shrink();
    }

    /// Forgets a call that did not run after all.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.running.remove(key);
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (&Key, &R)> {
        self.running.iter()
    }

    /// Whether an answer would be dropped as soon as it is kept.
    pub(crate) fn is_too_large(&self, answer: &Reply) -> bool {
        answer.size() > self.bounds.bytes / 2
    }

    fn shrink(&mut self) {
        while self.bytes > self.bounds.bytes || self.running.len() + self.answers.len() > self.bounds.entries {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some((_, size)) = self.answers.remove(&oldest) {
                self.bytes -= size;
            }
        }
    }

    /// The answers, the oldest first; then one for each call that runs.
    pub(crate) fn encode(&self, interrupted: &Reply) -> Bytes {
        let answered = self.order.iter().filter_map(|key| Some(kept(key, &self.answers.get(key)?.0)));
        let running = self.running.keys().map(|key| kept(key, interrupted));
        let answers = KeptAnswers { answers: answered.chain(running).collect() };
        let mut encoded = BytesMut::with_capacity(1 + answers.encoded_len());
        encoded.put_u8(VERSION);
        answers.encode(&mut encoded).expect("a buffer that grows");
        encoded.freeze()
    }

    /// Takes the answers that another instance has kept in place of its own.
    ///
    /// # Errors
    /// What is not such an encoding; then nothing has changed.
    pub(crate) fn decode(&mut self, encoded: &[u8]) -> Result<(), Unreadable> {
        let Some((&VERSION, rest)) = encoded.split_first() else {
            return Err(Unreadable::Version(encoded.first().copied()));
        };
        let answers = KeptAnswers::decode(rest)?.answers.into_iter().map(unkept);
        let answers: Vec<(Key, Reply)> = answers.collect::<Result<_, _>>()?;
        let running = std::mem::take(&mut self.running);
        *self = Self { running, ..Self::new(self.bounds) };
        answers.into_iter().for_each(|(key, reply)| self.finish(key, reply.into()));
        Ok(())
    }
}

impl Reply {
    fn size(&self) -> usize {
        let fields = self.headers.iter().chain(self.trailers.iter().flatten());
        // As HTTP/2 counts a field.
        let fields: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        fields + self.body.len()
    }
}

fn kept(key: &Key, reply: &Reply) -> KeptAnswer {
    KeptAnswer {
        method: key.method.clone(),
        call_id: key.call_id.clone(),
        client: key.client.clone(),
        http_status: u32::from(reply.status.as_u16()),
        headers: fields(&reply.headers),
        body: reply.body.to_vec(),
        trailers: reply.trailers.as_ref().map(fields).unwrap_or_default(),
        has_trailers: reply.trailers.is_some(),
    }
}

fn fields(headers: &HeaderMap) -> Vec<KeptHeader> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| KeptHeader {
        name: name.to_string(),
        value: value.as_bytes().into(),
    };
    headers.iter().map(field).collect()
}

fn unkept(answer: KeptAnswer) -> Result<(Key, Reply), Unreadable> {
    let KeptAnswer { method, call_id, http_status, headers, body, trailers, has_trailers, client } = answer;
    let invalid = |what| Unreadable::Invalid { method: method.clone(), call_id: call_id.clone(), what };
    if !delivery::is_valid(call_id.as_bytes()) {
        return Err(invalid("its call id"));
    }
    let status = u16::try_from(http_status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let reply = Reply {
        status: status.ok_or_else(|| invalid("its status"))?,
        headers: headers_of(headers).ok_or_else(|| invalid("a header"))?,
        body: body.into(),
        trailers: match has_trailers {
            true => Some(headers_of(trailers).ok_or_else(|| invalid("a trailer"))?),
            false => None,
        },
    };
    Ok((Key { method, call_id, client }, reply))
}

fn headers_of(fields: Vec<KeptHeader>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for KeptHeader { name, value } in fields {
        let (name, value) = (HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(&value).ok()?);
        headers.try_append(name, value).ok()?;
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Plain = Book<()>;

    fn key(call_id: &str) -> Key {
        Key { method: "/shop.v1.Payments/Charge".to_owned(), call_id: call_id.to_owned(), client: String::new() }
    }

    fn reply(body: &[u8]) -> Reply {
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let body = Bytes::copy_from_slice(body);
        Reply { status: StatusCode::OK, headers: HeaderMap::new(), body, trailers: Some(trailers) }
    }

    fn book(entries: usize, bytes: usize) -> Plain {
        Book::new(Bounds { entries, bytes })
    }

    fn run(book: &mut Plain, call_id: &str, body: &[u8]) {
        book.begin(key(call_id), ()).unwrap();
        book.finish(key(call_id), Arc::new(reply(body)));
    }

    fn answer(book: &Plain, call_id: &str) -> Option<Bytes> {
        match book.look(&key(call_id)) {
            Some(Known::Answered(reply)) => Some(reply.body.clone()),
            _ => None,
        }
    }

    #[test]
    fn a_call_runs_then_is_answered_and_another_method_is_another_call() {
        let mut book = book(10, 10_000);
        assert_eq!(book.look(&key("a")), None);
        book.begin(key("a"), ()).unwrap();
        assert!(matches!(book.look(&key("a")), Some(Known::Runs(()))));
        book.finish(key("a"), Arc::new(reply(b"one")));
        assert_eq!(answer(&book, "a").unwrap(), "one");
        assert_eq!(book.look(&Key { method: "/other".to_owned(), ..key("a") }), None);
        assert_eq!(book.look(&Key { client: "mallory".to_owned(), ..key("a") }), None);
        book.begin(key("b"), ()).unwrap();
        book.forget(&key("b"));
        assert_eq!(book.look(&key("b")), None);
    }

    #[test]
    fn the_oldest_answers_go_first_and_what_runs_stays() {
        let mut book = book(3, 10_000);
        book.begin(key("long"), ()).unwrap();
        for call_id in ["a", "b", "c"] {
            run(&mut book, call_id, b"x");
        }
        assert_eq!([answer(&book, "a"), answer(&book, "b")].map(|answer| answer.is_some()), [false, true]);
        book.begin(key("d"), ()).unwrap();
        book.begin(key("e"), ()).unwrap();
        assert_eq!(answer(&book, "c"), None, "what runs needs the room");
        assert_eq!(book.begin(key("f"), ()), Err(3));
        assert!(matches!(book.look(&key("long")), Some(Known::Runs(()))));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut book = book(1000, 10_000);
        for number in 0..100 {
            run(&mut book, &number.to_string(), &[7; 1000]);
            assert!(book.bytes <= 10_000);
        }
        assert!(answer(&book, "99").is_some() && answer(&book, "0").is_none());
        assert!(book.is_too_large(&reply(&[0; 5001])) && !book.is_too_large(&reply(&[0; 4000])));
        assert_eq!(book.answers.len(), book.order.len());
    }

    #[test]
    fn an_instance_with_less_room_keeps_the_newest() {
        let mut large = book(10, 10_000);
        ["a", "b", "c"].iter().for_each(|call_id| run(&mut large, call_id, b"x"));
        let mut small = book(2, 10_000);
        run(&mut small, "own", b"x");
        small.decode(&large.encode(&reply(b""))).unwrap();
        let kept = ["own", "a", "b", "c"].map(|call_id| answer(&small, call_id).is_some());
        assert_eq!(kept, [false, false, true, true]);
    }

    #[test]
    fn what_is_not_an_encoding_changes_nothing() {
        let mut book = book(10, 10_000);
        run(&mut book, "a", b"x");
        let answers =
            |answer: KeptAnswer| [&[VERSION][..], &KeptAnswers { answers: vec![answer] }.encode_to_vec()].concat();
        let good = kept(&key("b"), &reply(b"y"));
        let header = KeptHeader { name: "two words".to_owned(), value: vec![] };
        for bad in [
            vec![],
            vec![VERSION + 1],
            vec![VERSION, 0xff],
            answers(KeptAnswer { call_id: String::new(), ..good.clone() }),
            answers(KeptAnswer { http_status: 70_000, ..good.clone() }),
            answers(KeptAnswer { headers: vec![header.clone()], ..good.clone() }),
            answers(KeptAnswer { trailers: vec![header], ..good.clone() }),
        ] {
            book.decode(&bad).unwrap_err();
            assert!(answer(&book, "a").is_some());
        }
        book.decode(&answers(good)).unwrap();
        assert!(answer(&book, "a").is_none() && answer(&book, "b").is_some());
    }

    fn field() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
        let value = proptest::collection::vec(32u8..=126, 0..20);
        ("[a-z][a-z0-9-]{0,10}", value)
            .prop_map(|(name, value)| (HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(&value).unwrap()))
    }

    fn headers() -> impl Strategy<Value = HeaderMap> {
        proptest::collection::vec(field(), 0..5).prop_map(|fields| {
            let mut headers = HeaderMap::new();
            fields.into_iter().for_each(|(name, value)| {
                headers.append(name, value);
            });
            headers
        })
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let body = proptest::collection::vec(any::<u8>(), 0..50);
        (100u16..1000, headers(), body, proptest::option::of(headers())).prop_map(
            |(status, headers, body, trailers)| Reply {
                status: StatusCode::from_u16(status).unwrap(),
                headers,
                body: body.into(),
                trailers,
            },
        )
    }

    proptest! {
        #[test]
        fn what_travels_arrives(replies in proptest::collection::vec(("[!-~]{1,64}", any_reply()), 0..20)) {
            let mut from = book(1000, 1 << 20);
            for (call_id, reply) in &replies {
                from.finish(key(call_id), Arc::new(reply.clone()));
            }
            let mut to = book(1000, 1 << 20);
            to.decode(&from.encode(&reply(b""))).unwrap();
            prop_assert_eq!(&from.order, &to.order);
            prop_assert_eq!(&from.answers, &to.answers);
            prop_assert_eq!(from.bytes, to.bytes);
            prop_assert_eq!(from.encode(&reply(b"")), to.encode(&reply(b"")));
        }

        #[test]
        fn nothing_that_arrives_is_worse_than_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = book(10, 1000).decode(&bytes);
            let _ = book(10, 1000).decode(&[&[VERSION][..], &bytes].concat());
        }

        #[test]
        fn damage_is_refused_or_harmless(
            replies in proptest::collection::vec(("[!-~]{1,64}", any_reply()), 1..5),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<bool>(),
        ) {
            let mut from = book(1000, 1 << 20);
            for (call_id, reply) in replies {
                from.finish(key(&call_id), Arc::new(reply));
            }
            let mut encoded = from.encode(&reply(b"")).to_vec();
            let at = at.index(encoded.len());
            if cut { encoded.truncate(at) } else { encoded[at] = byte }
            let mut to = book(3, 500);
            let _ = to.decode(&encoded);
            prop_assert!(to.answers.len() <= 3 && to.bytes <= 500);
        }

        #[test]
        fn bounds_hold_whatever_is_called(
            steps in proptest::collection::vec((0u8..4, 0usize..6, 0usize..2000), 0..200),
        ) {
            let mut book = book(4, 3000);
            for (step, call, size) in steps {
                let key = key(&call.to_string());
                match step {
                    0 | 1 if book.look(&key).is_none() => {
                        let _ = book.begin(key, ());
                    }
                    2 if matches!(book.look(&key), Some(Known::Runs(()))) => book.finish(key, Arc::new(reply(&vec![0; size]))),
                    3 => book.forget(&key),
                    _ => {}
                }
                prop_assert!(book.running.len() + book.answers.len() <= 4);
                prop_assert!(book.bytes <= 3000);
                prop_assert_eq!(book.answers.len(), book.order.len());
                prop_assert_eq!(book.bytes, book.answers.values().map(|(_, size)| size).sum::<usize>());
            }
        }
    }
}

//! What strangers' input meets first, each by itself, for this project's own fuzzing. Not covered by any promise.
//!
//! Each takes any bytes, and panics where something that should hold does not: that is the finding.

use std::net::SocketAddr;

use outpost_proto::{
    cluster::v1::{CarriedAnswer, CarriedCall},
    identity::Identity,
    keyring::{self, GossipKey},
    mutual::Credentials,
    revocation::Lists,
};
use prost::Message as _;

use crate::{
    call::{
        dedupe::{Bounds, book::Book},
        frame,
    },
    config::{Loaded, Sources, Span, TokenAlgorithm, TokenSettings},
    placement::{
        document::{self, Format},
        state::{Proposal, State},
    },
    trust::{
        Client,
        operators::Operators,
        policy::Policy,
        sealed::{Opener, Ring, Sealer},
        tokens::Tokens,
    },
};

/// A target, by its name: which is that of the folder of its corpus, too.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("sealed_gossip", sealed_gossip),
    ("link_frames", link_frames),
    ("kept_answers", kept_answers),
    ("placement_document", placement_document),
    ("placement_log", placement_log),
    ("configuration", configuration),
    ("trust_files", trust_files),
    ("identity", identity),
    ("tokens", tokens),
];

/// A datagram that arrives, and the same bytes as a message that is sealed: that has to come out as it went in.
pub fn sealed_gossip(data: &[u8]) {
    let ring = Ring::new(&[GossipKey::new([1; 32])]);
    let own: SocketAddr = ([127, 0, 0, 1], 7002).into();
    let mut opener = Opener::new("fuzz", own);
    let _ = opener.open(&ring, data, 1000);
    // As a key's holder could send it: what is within the seal is any bytes.
    let mut sealer = Sealer::new("fuzz", own, [2; 8]);
    let mut nonce = 0u8;
    let nonces = || {
        nonce = nonce.wrapping_add(1);
        [nonce; 24]
    };
    let Ok(datagrams) = sealer.seal(&ring, data, own, 1000, nonces) else { return };
    let mut opened = None;
    for datagram in datagrams {
        opened = opener.open(&ring, &datagram, 1000).expect("what was sealed for here is opened");
    }
    assert_eq!(opened.map(|opened| opened.message).as_deref(), Some(data), "a message comes out as it went in");
}

/// A call and an answer that another node carries here.
pub fn link_frames(data: &[u8]) {
    if let Ok(call) = CarriedCall::decode(data) {
        let _ = frame::request(call);
    }
    if let Ok(answer) = CarriedAnswer::decode(data) {
        let _ = frame::response(answer);
    }
}

/// The answers that travel with a module's state. What is read is written as it was.
pub fn kept_answers(data: &[u8]) {
    let mut book = Book::<()>::new(Bounds { entries: 100, bytes: 1 << 20 });
    let _ = book.decode(data);
}

/// A placement document. One that is good reads the same when it is written and read again.
pub fn placement_document(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for format in [Format::Toml, Format::Json] {
        let Ok(document) = document::parse(text, format, "fuzz") else { continue };
        let again = document::parse(&document::render(&document.spec), Format::Toml, "fuzz");
        let again = again.unwrap_or_else(|faults| panic!("what was rendered is not read: {faults:?}"));
        assert_eq!(again.spec, document.spec, "a document reads the same again");
    }
}

/// Entries of the placement log, one a line. A panic in one would end every voter.
pub fn placement_log(data: &[u8]) {
    let mut state = State::default();
    for (index, line) in data.split(|byte| *byte == b'\n').enumerate() {
        if let Ok(proposal) = serde_json::from_slice::<Proposal>(line) {
            let _ = state.apply(index as u64 + 1, &proposal);
        }
    }
    let written = serde_json::to_vec(&state).expect("a state is written");
    let read: State = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(read, state, "a state reads the same again");
}

/// Settings as variables of the environment, a line each.
pub fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let environment = pairs.map(|(key, value)| (format!("OUTPOST_{key}"), value.to_owned())).collect();
    let _ = Loaded::load(&Sources { environment, ..Sources::default() }, &[("cart", None)]);
}

/// Files of certificates, keys, revoked certificates and operators.
pub fn trust_files(data: &[u8]) {
    let _ = Credentials::from_pem(data, data, data, std::time::Duration::from_secs(1_800_000_000));
    // The authority, and the list that it has signed.
    let _ = Lists::from_pem(data, data);
    let text = String::from_utf8_lossy(data);
    let _ = Operators::parse(&text);
    if let Ok(keys) = keyring::parse(&text) {
        assert_eq!(keyring::parse(&keyring::render(&keys)), Ok(keys), "a keyring reads the same again");
    }
}

/// The name in a certificate.
pub fn identity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string(), text, "there is one way to write an identity");
    }
}

/// A client's token, and what it is checked with; what other nodes say of clients, and who may call what.
pub fn tokens(data: &[u8]) {
    /// Whose other half is gone: it has signed one token, in the corpus.
    const KEYS: &[u8] = br#"{"keys": [{"kty": "EC", "crv": "P-256", "kid": "1",
        "x": "wbvOhIRfqYpXfQUOaa-WF9VQLnUjpYBiN6vBJ4sED1U", "y": "qOjppfQyeH9mBZwikAJ11KwsX3l-j7ew7e6NoFuQjSw"}]}"#;
    let settings = TokenSettings {
        keys: std::path::PathBuf::new(),
        issuer: "https://id.example".to_owned(),
        audiences: vec!["shop".to_owned()],
        algorithms: vec![TokenAlgorithm::ES256, TokenAlgorithm::RS256, TokenAlgorithm::EdDSA],
        scopes_claim: "scope".to_owned(),
        leeway: Span::seconds(30),
    };
    let now = std::time::Duration::from_secs(1_800_000_000);
    let text = String::from_utf8_lossy(data);
    let checked = Tokens::new(KEYS, &settings).expect("a good key").check(&text, now);
    if let Ok(client) = checked {
        let token = client.token().expect("it has shown one");
        assert_eq!((token.subject(), token.scopes().len()), ("alice", 2), "nothing else was ever signed");
    }
    if let Ok(tokens) = Tokens::new(data, &settings) {
        let _ = tokens.check(&text, now);
    }
    let _ = Policy::parse(&text);
    if let Some(client) = Client::decode(bytes::Bytes::copy_from_slice(data)) {
        let _ = (client.certificate(), client.token());
    }
}

//! What strangers' input meets first, each by itself, for this project's own fuzzing. Not covered by any promise.
//!
//! Each takes any bytes, and panics where something that should hold does not: that is the finding.

use std::net::SocketAddr;

use outpost_proto::{
    cluster::v1::{CarriedAnswer, CarriedCall},
    identity::Identity,
    keyring::{self, GossipKey},
    mutual::Credentials,
};
use prost::Message as _;

use crate::{
    call::{
        dedupe::{Bounds, book::Book},
        frame,
    },
    config::{Loaded, Sources},
    placement::{
        document::{self, Format},
        state::{Proposal, State},
    },
    trust::{
        operators::Operators,
        sealed::{Opener, Ring, Sealer},
    },
};

/// A target, by its name: which is that of the folder of its corpus, too.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("sealed_gossip", sealed_gossip),
    ("link_frames", link_frames),
    ("kept_answers", kept_answers),
    ("placement_document", placement_document),
    ("placement_log", placement_log),
    ("configuration", configuration),
    ("trust_files", trust_files),
    ("identity", identity),
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

/// Files of certificates, keys and operators.
pub fn trust_files(data: &[u8]) {
    let _ = Credentials::from_pem(data, data, data, std::time::Duration::from_secs(1_800_000_000));
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

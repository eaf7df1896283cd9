//! What nodes say of themselves, as words on the wire; and which of several nodes under one name counts.
//!
//! **Invariant:** nothing that another node says makes this file panic: it is a member, or a problem to be told.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
};

use outpost_proto::keys::gossip as keys;
use serde::{Serialize, de::DeserializeOwned};

use super::{Hosted, Lifecycle, Load, Member, Members};
use crate::id::NodeId;

/// The most that one value may have, in bytes. chitchat sends values in their order and one that does not fit into a
/// datagram would hold up all later ones for ever.
pub(super) const VALUE_MAX: usize = 4 << 10;
/// The most that all keys and values of a node may have, in bytes: half a datagram.
pub(super) const TOTAL_MAX: usize = 32 << 10;
/// What is kept for lifecycle and load, which are not refused later for the sake of others.
const RESERVED: usize = 256;
/// How much of an instance's error others are told. The rest is in the node's own log.
const ERROR_MAX: usize = 200;

/// This node would say more of itself than gossip can carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooLarge {
    #[error("what this node says of itself, {what}, has {bytes} bytes, and {VALUE_MAX} are the most; shorten it")]
    Value { what: String, bytes: usize },
    #[error(
        "all that this node says of itself has {bytes} bytes, and {TOTAL_MAX} are the most; the largest is {what}: \
         shorten it"
    )]
    Total { what: String, bytes: usize },
}

/// What another node says of itself makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value:?}: {problem}")]
pub(super) struct Malformed {
    key: String,
    value: String,
    problem: String,
}

impl Malformed {
    pub(super) fn new(key: &str, value: &str, problem: impl ToString) -> Self {
        Self { key: cut(key, 64).to_owned(), value: cut(value, 120).to_owned(), problem: problem.to_string() }
    }
}

/// Keys and values in the order in which others learn them.
type Words = Vec<(String, String)>;

/// Says what a node is. What arrives last says that all else has arrived: see [`decode`].
pub(super) fn encode(member: &Member) -> Result<Words, TooLarge> {
    let mut words: Words = [
        (keys::APPLICATION, member.application.clone()),
        (keys::VERSION, member.version.clone()),
        (keys::RAFT_ID, member.raft_id.to_string()),
        (keys::PERSISTENT, member.persistent.to_string()),
        (keys::INGRESS, member.ingress.clone()),
        (keys::INGRESS_TLS, member.ingress_tls.to_string()),
        (keys::ADMIN, member.admin.clone()),
        (keys::CLUSTER, member.cluster.clone()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let hosting = member.hosting.iter().map(|(module, hosted)| {
        let error = hosted.error.as_deref().map(|error| cut(error, ERROR_MAX).to_owned());
        (module, Hosted { error, ..hosted.clone() })
    });
    words.push((keys::TRUST.to_owned(), json(&member.trust)));
    words.extend(object(keys::LABELS, member.labels.iter())?);
    words.extend(object(keys::HOSTING, hosting)?);
    for (key, value) in &words {
        if value.len() > VALUE_MAX {
            return Err(TooLarge::Value { what: format!("`{key}`"), bytes: value.len() });
        }
    }
    let size = |(key, value): &(String, String)| key.len() + value.len();
    let bytes = words.iter().map(size).sum::<usize>() + RESERVED;
    if bytes > TOTAL_MAX {
        let largest = words.iter().max_by_key(|word| size(word)).map(|(key, _)| format!("`{key}`"));
        return Err(TooLarge::Total { what: largest.unwrap_or_default(), bytes });
    }
    words.push((keys::LOAD.to_owned(), json(&member.load)));
    words.push((keys::LIFECYCLE.to_owned(), lifecycle(member.lifecycle).to_owned()));
    Ok(words)
}

/// The word for a lifecycle.
pub(super) fn lifecycle(lifecycle: Lifecycle) -> &'static str {
    match lifecycle {
        Lifecycle::Joining => "joining",
        Lifecycle::Ready => "ready",
        Lifecycle::Draining => "draining",
        Lifecycle::Leaving => "leaving",
    }
}

fn read_lifecycle(word: &str) -> Lifecycle {
    let all = [Lifecycle::Ready, Lifecycle::Draining, Lifecycle::Leaving];
    all.into_iter().find(|known| lifecycle(*known) == word).unwrap_or_default()
}

fn json(value: &impl Serialize) -> String {
    // Text keys and plain values only: there is nothing in them that JSON lacks.
    serde_json::to_string(value).unwrap_or_default()
}

/// Objects of `entries`, none larger than a value may be: the first under `key`, the next under `key.1`.
fn object<K: Serialize + ToString, V: Serialize>(
    key: &str,
    entries: impl Iterator<Item = (K, V)>,
) -> Result<Words, TooLarge> {
    let name = |part: usize| if part == 0 { key.to_owned() } else { format!("{key}.{part}") };
    let mut words = Words::new();
    let mut text = String::new();
    for (entry, value) in entries {
        let what = entry.to_string();
        let pair = format!("{}:{}", json(&what), json(&value));
        if pair.len() + 2 > VALUE_MAX {
            return Err(TooLarge::Value { what: format!("`{what}` of `{key}`"), bytes: pair.len() + 2 });
        }
        if text.len() + pair.len() + 2 > VALUE_MAX {
            words.push((name(words.len()), format!("{text}}}")));
            text.clear();
        }
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(&pair);
    }
    let last = if text.is_empty() { "{}".to_owned() } else { format!("{text}}}") };
    words.push((name(words.len()), last));
    Ok(words)
}

/// What an object holds that nothing is left of.
pub(super) const EMPTY: &str = "{}";

/// Whether `key` is `of`, or one of the keys it goes on under.
fn part(key: &str, of: &str) -> bool {
    let Some(rest) = key.strip_prefix(of) else { return false };
    rest.is_empty() || rest.strip_prefix('.').is_some_and(|part| part.parse::<u16>().is_ok())
}

/// Understands what a node says of itself. `None` while not all of it has arrived.
///
/// Keys that a newer version adds are passed over.
pub(super) fn decode<'a>(
    generation: u64,
    address: SocketAddr,
    words: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Option<Member>, Malformed> {
    let mut member = Member::new(generation, address);
    let mut complete = false;
    for (key, value) in words {
        match key {
            keys::LIFECYCLE => {
                member.lifecycle = read_lifecycle(value);
                complete = true;
            }
            keys::INGRESS => value.clone_into(&mut member.ingress),
            keys::INGRESS_TLS => member.ingress_tls = value == "true",
            keys::ADMIN => value.clone_into(&mut member.admin),
            keys::APPLICATION => value.clone_into(&mut member.application),
            keys::VERSION => value.clone_into(&mut member.version),
            keys::RAFT_ID => {
                member.raft_id = value.parse().map_err(|error| Malformed::new(key, value, error))?;
            }
            keys::PERSISTENT => member.persistent = value == "true",
            keys::CLUSTER => value.clone_into(&mut member.cluster),
            keys::TRUST => member.trust = read_json(key, value)?,
            keys::LOAD => member.load = read_json::<Load>(key, value)?,
            key if part(key, keys::LABELS) => member.labels.extend(read_json::<BTreeMap<_, _>>(key, value)?),
            key if part(key, keys::HOSTING) => member.hosting.extend(read_json::<BTreeMap<_, _>>(key, value)?),
            _ => {}
        }
    }
    if !complete {
        return Ok(None);
    }
    // The wire says who a node is by this number; none is 0.
    if member.raft_id == 0 {
        return Err(Malformed::new(keys::RAFT_ID, "0", "no node has this number"));
    }
    Ok(Some(member))
}

/// Checks what chitchat knows a node by.
pub(super) fn name(node: &str, address: SocketAddr) -> Result<NodeId, Malformed> {
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(Malformed::new("address", &address.to_string(), "nothing can be sent there"));
    }
    NodeId::parse(node).map_err(|error| Malformed::new("node", node, error))
}

fn read_json<T: DeserializeOwned>(key: &str, value: &str) -> Result<T, Malformed> {
    serde_json::from_str(value).map_err(|error| Malformed::new(key, value, error))
}

/// The start of a text, of `max` bytes at the most.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// One member for each name: the newest generation, whether it is alive or not. An old process must not come back into
/// view because the new one is gone; and of two that claim one generation, all nodes must choose the same.
pub(super) fn newest(all: impl Iterator<Item = (NodeId, Member)>) -> Members {
    let mut members = Members::new();
    for (node, member) in all {
        match members.entry(node) {
            Entry::Vacant(vacant) => drop(vacant.insert(member)),
            Entry::Occupied(mut known) => {
                let place = |member: &Member| (member.generation, member.address);
                if supersedes(place(&member), place(known.get())) {
                    known.insert(member);
                }
            }
        }
    }
    members
}

/// Whether a process is newer than another under the same name.
pub(super) fn supersedes(one: (u64, SocketAddr), other: (u64, SocketAddr)) -> bool {
    (one.0, Reverse(one.1)) > (other.0, Reverse(other.1))
}

/// Whether two views differ in nothing but load, which changes all the time and nobody waits for.
pub(super) fn same_but_for_load(one: &Members, other: &Members) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((one_node, one), (other_node, other))| {
            one_node == other_node && (one == other || Member { load: other.load, ..one.clone() } == *other)
        })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use super::{super::Instance, *};
    use crate::{
        id::{Epoch, ModuleName, Timestamp},
        trust::Shown,
    };

    fn address() -> SocketAddr {
        "127.0.0.1:7002".parse().unwrap()
    }

    fn full() -> Member {
        let hosted = Hosted { epoch: Epoch(3), state: Instance::Serving, error: None, bytes: 0 };
        Member {
            lifecycle: Lifecycle::Ready,
            ingress: "127.0.0.1:7000".to_owned(),
            ingress_tls: true,
            admin: "127.0.0.1:7001".to_owned(),
            application: "shop".to_owned(),
            version: "1.2.3".to_owned(),
            raft_id: u64::MAX >> 1,
            persistent: true,
            cluster: "c1".to_owned(),
            labels: BTreeMap::from([("zone".to_owned(), "a \"quoted\" ä".to_owned())]),
            hosting: BTreeMap::from([(ModuleName::parse("cart").unwrap(), hosted)]),
            load: Load { calls_in_flight: 5, connections: 6 },
            trust: Shown {
                expires: Timestamp(5),
                renew: Timestamp(4),
                problem: None,
                keys: vec!["00ff00ff".to_owned()],
            },
            ..Member::new(9, address())
        }
    }

    fn decoded(words: &Words) -> Result<Option<Member>, Malformed> {
        decode(9, address(), words.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    fn with(key: &str, value: &str) -> Result<Option<Member>, Malformed> {
        let mut words = encode(&full()).unwrap();
        words.retain(|(known, _)| known != key);
        words.push((key.to_owned(), value.to_owned()));
        decoded(&words)
    }

    #[test]
    fn what_is_said_is_understood() {
        assert_eq!(decoded(&encode(&full()).unwrap()), Ok(Some(full())));
    }

    proptest! {
        #[test]
        fn many_modules_are_said_in_several_values(
            hosting in btree_map("[a-z]{1,12}", (any::<u64>(), proptest::option::of(".{0,80}")), 0..120),
            labels in btree_map(".{0,20}", ".{0,20}", 0..40),
        ) {
            let hosting = hosting.into_iter().map(|(module, (epoch, error))| {
                let error = error.map(|error| cut(&error, ERROR_MAX).to_owned());
                (ModuleName::parse(&module).unwrap(), Hosted { epoch: Epoch(epoch), state: Instance::Failed, error, bytes: 0 })
            });
            let member = Member { hosting: hosting.collect(), labels, ..full() };
            match encode(&member) {
                Ok(words) => {
                    prop_assert!(words.iter().all(|(_, value)| value.len() <= VALUE_MAX));
                    prop_assert_eq!(decoded(&words), Ok(Some(member)));
                }
                Err(error) => prop_assert!(matches!(error, TooLarge::Total { .. }), "{}", error),
            }
        }

        #[test]
        fn nothing_that_is_said_panics(key in "[a-z.0-9]{0,12}", value in any::<String>()) {
            for key in [key.as_str(), keys::HOSTING, keys::LOAD, keys::LABELS, keys::RAFT_ID, keys::LIFECYCLE] {
                let _ = with(key, &value);
            }
            let _ = name(&value, address());
        }
    }

    #[test]
    fn a_member_is_one_when_all_was_said() {
        let words = encode(&full()).unwrap();
        for some in 0..words.len() {
            assert_eq!(decoded(&words[..some].to_vec()), Ok(None), "after {some} of {}", words.len());
        }
    }

    #[test]
    fn words_of_a_newer_version_are_tolerated() {
        assert_eq!(with(keys::LIFECYCLE, "hibernating").unwrap().unwrap().lifecycle, Lifecycle::Joining);
        for word in [Lifecycle::Joining, Lifecycle::Ready, Lifecycle::Draining, Lifecycle::Leaving] {
            assert_eq!(with(keys::LIFECYCLE, lifecycle(word)).unwrap().unwrap().lifecycle, word);
            assert_eq!(json(&word), json(&lifecycle(word)), "one spelling");
        }
        let newer = r#"{"cart":{"epoch":4,"state":"paused","since":7},"pricing":{"epoch":1,"state":"starting"}}"#;
        let states: Vec<_> =
            with(keys::HOSTING, newer).unwrap().unwrap().hosting.into_values().map(|h| h.state).collect();
        assert_eq!(states, [Instance::Starting, Instance::Starting]);
        assert_eq!(with(keys::LOAD, r#"{"cpu":0.5}"#).unwrap().unwrap().load, Load::default());
        assert_eq!(with("colour", "blue"), Ok(Some(full())));
        assert_eq!(with("hosting.x", "blue"), Ok(Some(full())));
    }

    #[test]
    fn nonsense_is_told_by_key_and_value() {
        for (key, value) in [
            (keys::RAFT_ID, "-1"),
            (keys::RAFT_ID, "0"),
            (keys::HOSTING, "{"),
            (keys::HOSTING, r#"{"Bad Name":{"epoch":1,"state":"ready"}}"#),
            ("hosting.1", "[]"),
            (keys::LABELS, r#"{"a":1}"#),
            (keys::LOAD, "null"),
        ] {
            let text = with(key, value).unwrap_err().to_string();
            assert!(text.contains(key) && text.contains(&format!("{value:?}")), "{text}");
        }
        assert!(name("Bad Name", address()).is_err());
        for bad in ["0.0.0.0:7002", "127.0.0.1:0", "224.0.0.1:7002"] {
            assert!(name("node-1", bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn too_much_is_refused_before_it_is_said() {
        let long = |bytes| "x".repeat(bytes);
        let text = encode(&Member { cluster: long(VALUE_MAX + 1), ..full() }).unwrap_err().to_string();
        assert!(text.contains("`cluster`") && text.contains("4097 bytes"), "{text}");
        let labels = BTreeMap::from([("zone".to_owned(), long(VALUE_MAX))]);
        let text = encode(&Member { labels, ..full() }).unwrap_err().to_string();
        assert!(text.contains("`zone` of `labels`"), "{text}");
        let labels = (0..20).map(|i| (format!("l{i}"), long(2000))).collect();
        assert!(matches!(encode(&Member { labels, ..full() }), Err(TooLarge::Total { .. })));
        let mut failed = full();
        failed.hosting.values_mut().for_each(|hosted| hosted.error = Some("ä".repeat(10_000)));
        let said = decoded(&encode(&failed).unwrap()).unwrap().unwrap();
        assert!(said.hosting.values().all(|hosted| hosted.error.as_ref().unwrap().len() <= ERROR_MAX));
    }

    #[test]
    fn the_newest_generation_counts_alive_or_not() {
        let node = |text| NodeId::parse(text).unwrap();
        let member = |generation, port, alive| {
            let address = SocketAddr::new(address().ip(), port);
            Member { alive, ..Member::new(generation, address) }
        };
        let all = [
            (node("a"), member(2, 1, false)),
            (node("a"), member(1, 2, true)),
            (node("b"), member(5, 3, true)),
            (node("b"), member(5, 4, true)),
        ];
        let forwards = newest(all.clone().into_iter());
        let backwards = newest(all.into_iter().rev());
        assert_eq!(forwards, backwards, "all nodes see the same");
        assert_eq!(forwards[&node("a")], member(2, 1, false));
        assert_eq!(forwards[&node("b")], member(5, 3, true));
    }

    #[test]
    fn load_alone_is_no_news() {
        let members = |load, alive| {
            let member = Member { load: Load { calls_in_flight: load, connections: 0 }, alive, ..full() };
            Members::from([(NodeId::parse("a").unwrap(), member)])
        };
        assert!(same_but_for_load(&members(1, true), &members(2, true)));
        assert!(!same_but_for_load(&members(1, true), &members(1, false)));
        assert!(!same_but_for_load(&members(1, true), &Members::new()));
    }
}

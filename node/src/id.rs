//! Names and numbers that identify things: checked once, at the edge.

use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// The name of a module: `cart`, `front-desk`. Cheap to clone.
///
/// Lower-case letters, digits and dashes, 63 bytes at the most, beginning with a letter and not ending with a dash: a
/// DNS label, since names become parts of keys, files and labels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleName(Arc<str>);

impl ModuleName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`BadModuleName`] with the name.
    pub fn parse(name: &str) -> Result<Self, BadModuleName> {
        let letters = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let bytes = name.as_bytes();
        let good = bytes.len() <= 63
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last() != Some(&b'-')
            && bytes.iter().all(letters);
        if good { Ok(Self(name.into())) } else { Err(BadModuleName(name.to_owned())) }
    }

    /// The module that a node's own services (health, reflection) are accounted to.
    pub(crate) fn node() -> Self {
        Self("outpost".into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A text that can't name a module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` can't name a module: use 1 to 63 lower-case letters, digits and dashes, \
     beginning with a letter and not ending with a dash"
)]
pub struct BadModuleName(pub String);

impl TryFrom<String> for ModuleName {
    type Error = BadModuleName;

    fn try_from(name: String) -> Result<Self, BadModuleName> {
        Self::parse(&name)
    }
}

impl From<ModuleName> for String {
    fn from(name: ModuleName) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// The name of a node: `node-1`, `shop-0`. Stable over restarts, and unique in a cluster. Cheap to clone.
///
/// Lower-case letters, digits and dashes, 63 bytes at the most, neither beginning nor ending with a dash: a DNS label,
/// as the name of a pod is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Checks a name.
    ///
    /// # Errors
    /// [`BadNodeId`] with the name.
    pub fn parse(name: &str) -> Result<Self, BadNodeId> {
        let letters = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let bytes = name.as_bytes();
        let good = (1..=63).contains(&bytes.len())
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
            && bytes.iter().all(letters);
        if good { Ok(Self(name.into())) } else { Err(BadNodeId(name.to_owned())) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for NodeId {
    type Error = BadNodeId;

    fn try_from(name: String) -> Result<Self, BadNodeId> {
        Self::parse(&name)
    }
}

impl From<NodeId> for String {
    fn from(name: NodeId) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// A text that can't name a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` can't name a node: use 1 to 63 lower-case letters, digits and dashes, \
     neither beginning nor ending with a dash"
)]
pub struct BadNodeId(pub String);

/// One process under a node's name. A restarted node is a new incarnation; the higher generation is the newer one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Incarnation {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.generation)
    }
}

/// Fencing token of one part: grows by one with each change of its owner, and is never used again. The higher one wins.
/// Zero is that of a part which never had an owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Epoch(pub(crate) u64);

impl Epoch {
    #[must_use]
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A member of the consensus group: a random 63-bit number made once with a data directory, and never used again.
pub(crate) type RaftId = u64;

/// Wall-clock time, in milliseconds since 1970: for people to read, and for what expires. Never for an order of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Timestamp(pub(crate) u64);

/// As people write it, by RFC 3339: `2026-12-01T00:00:00Z`. What lies behind the year 9999 is the end of that year.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LAST: u64 = 253_402_300_799_999;
        humantime::format_rfc3339(UNIX_EPOCH + Duration::from_millis(self.0.min(LAST))).fmt(f)
    }
}

/// The same, in UTC only.
impl FromStr for Timestamp {
    type Err = BadTimestamp;

    fn from_str(text: &str) -> Result<Self, BadTimestamp> {
        let since = humantime::parse_rfc3339(text).ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        since.and_then(|since| u64::try_from(since.as_millis()).ok()).map(Self).ok_or(BadTimestamp)
    }
}

/// A text that is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a time in UTC; write it as 2026-12-01T00:00:00Z")]
pub(crate) struct BadTimestamp;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_be_called_as_a_pod_is() {
        for good in ["node-1", "shop-0", "0", "a", &"x".repeat(63)] {
            assert_eq!(NodeId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "Node", "-a", "a-", "a_b", "a.b", &"x".repeat(64)] {
            assert_eq!(NodeId::parse(bad), Err(BadNodeId(bad.to_owned())));
        }
    }

    #[test]
    fn any_time_can_be_shown_and_is_read_again() {
        assert_eq!(Timestamp(u64::MAX).to_string(), "9999-12-31T23:59:59.999000000Z");
        for time in [0, 1, 1_800_000_000_000, 253_402_300_799_999].map(Timestamp) {
            assert_eq!(time.to_string().parse(), Ok(time));
        }
        for bad in
            ["", "tomorrow", "2026-12-01", "2026-12-01T00:00:00", "2026-12-01T00:00:00+01:00", "1969-12-31T23:59:59Z"]
        {
            assert_eq!(bad.parse::<Timestamp>(), Err(BadTimestamp), "{bad}");
        }
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "cart", "front-desk", "v2", &"x".repeat(63)] {
            assert_eq!(ModuleName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "Cart", "2nd", "-a", "a-", "a_b", "a.b", "käse", &"x".repeat(64)] {
            assert_eq!(ModuleName::parse(bad), Err(BadModuleName(bad.to_owned())));
        }
    }
}

//! The keys that gossip is sealed with, and the file that holds them.
//!
//! ```text
//! # a comment
//! 8f1d…e0      64 hexadecimal digits; the first key seals, all of them open
//! 03aa…17
//! ```
//!
//! A new key takes over in three steps, each on all nodes before the next on any: it is added at the end, put first, and
//! then the old one is removed.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::hex;

/// One key: 32 bytes, which no output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey([u8; 32]);

/// What tells keys apart: the first four bytes of the key's SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 4]);

/// A text that is no key. It is not shown: it may be one with a slip of the pen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is 64 hexadecimal digits, such as `outpost keyring generate` prints")]
pub struct BadKey;

/// A file that is no keyring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadKeyring {
    /// A line is no key.
    #[error("line {line}: {error}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        error: BadKey,
    },
    /// There is none.
    #[error("there is no key in it; `outpost keyring generate` prints one")]
    Empty,
    /// More than a cluster can have use for.
    #[error("there are {0} keys in it, and 8 are the most")]
    TooMany(usize),
    /// One key twice.
    #[error("key {0} is in it twice")]
    Twice(KeyId),
}

impl GossipKey {
    /// A key of these bytes, which have to be random.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`BadKey`].
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        hex::parse(text).map(Self).ok_or(BadKey)
    }

    /// The key itself, as a file holds it.
    #[must_use]
    pub fn secret(&self) -> String {
        hex::render(&self.0)
    }

    /// The key itself, for a cipher.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What may be shown of it.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let digest: [u8; 32] = Sha256::digest(self.0).into();
        KeyId([digest[0], digest[1], digest[2], digest[3]])
    }
}

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GossipKey({})", self.id())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::render(&self.0))
    }
}

/// The keys of a file: the first seals.
///
/// # Errors
/// [`BadKeyring`].
pub fn parse(text: &str) -> Result<Vec<GossipKey>, BadKeyring> {
    let mut keys: Vec<GossipKey> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let key = GossipKey::parse(line).map_err(|error| BadKeyring::Line { line: index + 1, error })?;
        if keys.iter().any(|known| known.id() == key.id()) {
            return Err(BadKeyring::Twice(key.id()));
        }
        keys.push(key);
    }
    match keys.len() {
        0 => Err(BadKeyring::Empty),
        1..=8 => Ok(keys),
        more => Err(BadKeyring::TooMany(more)),
    }
}

/// The file with these keys.
#[must_use]
pub fn render(keys: &[GossipKey]) -> String {
    let head = "# Keys of gossip: the first seals, all of them open. Whoever has one can join the gossip.\n";
    keys.iter().fold(head.to_owned(), |file, key| format!("{file}{}\n", key.secret()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> GossipKey {
        GossipKey::new([byte; 32])
    }

    #[test]
    fn a_file_is_read_as_it_is_written() {
        let keys = vec![key(1), key(0xab)];
        assert_eq!(parse(&render(&keys)), Ok(keys));
        assert_eq!(parse(&format!("\n  {}  # the new one\n", key(7).secret().to_uppercase())), Ok(vec![key(7)]));
    }

    #[test]
    fn what_is_no_keyring_says_where_and_shows_no_key() {
        let good = key(1).secret();
        let bad = format!("{good}\n{}\n", &good[1..]);
        let error = parse(&bad).unwrap_err();
        assert_eq!(error, BadKeyring::Line { line: 2, error: BadKey });
        assert!(!error.to_string().contains(&good[1..9]));
        assert_eq!(parse("# nothing\n"), Err(BadKeyring::Empty));
        assert_eq!(parse(&format!("{good}\n{good}")), Err(BadKeyring::Twice(key(1).id())));
        let many: Vec<_> = (0..9).map(key).collect();
        assert_eq!(parse(&render(&many)), Err(BadKeyring::TooMany(9)));
        for text in ["é".repeat(32), "g".repeat(64), String::new()] {
            assert_eq!(GossipKey::parse(&text), Err(BadKey));
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let shown = format!("{:?}", key(9));
        assert!(!shown.contains(&key(9).secret()[..8]) && shown.contains(&key(9).id().to_string()));
    }
}

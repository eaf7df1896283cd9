//! The tokens that operators show in place of a certificate, and what a node knows of them.
//!
//! ```text
//! outpost_token_9c1f…07            256 random bits; only who shows it has it
//!      └── SHA-256 ──▶ 5d41…ff     in the file of `admin.operators`: what shows nothing of the token
//! ```

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::hex;

/// What every token begins with: so one is never taken for its hash, and is found where it should not be.
pub const PREFIX: &str = "outpost_token_";

/// One token, which no output shows.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// The SHA-256 of a token, as text that begins with [`PREFIX`].
///
/// A token has 256 random bits, which nobody guesses: so it needs neither salt nor a slow hash, as passwords do.
#[derive(Clone, Copy, Eq)]
pub struct TokenHash([u8; 32]);

/// A text that is no token. It is not shown: it may be one with a slip of the pen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is `{PREFIX}` and 64 hexadecimal digits, such as `outpost token generate` prints")]
pub struct BadToken;

/// A text that is no hash of a token. It is not shown: it may be the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hash of a token is 64 hexadecimal digits, such as `outpost token generate` prints")]
pub struct BadHash;

impl Token {
    /// A token of these bytes, which have to be random.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The token itself, as it is shown to a node.
    #[must_use]
    pub fn secret(&self) -> String {
        format!("{PREFIX}{}", hex::render(&self.0))
    }

    /// What may be shown of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.secret()).into())
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        text.strip_prefix(PREFIX).and_then(hex::parse).map(Self).ok_or(BadToken)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// In constant time, wherever hashes are compared.
impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl FromStr for TokenHash {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, BadHash> {
        hex::parse(text).map(Self).ok_or(BadHash)
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::render(&self.0))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written_and_is_not_shown() {
        let token = Token::new([0xab; 32]);
        let read: Token = token.secret().parse().unwrap();
        assert_eq!(read.secret(), token.secret());
        assert!(!format!("{token:?} {:?}", token.hash()).contains("abab"));
    }

    #[test]
    fn a_hash_is_what_sha256sum_says_and_tells_tokens_apart() {
        let hash = Token::new([0; 32]).hash();
        assert_eq!(hash.to_string(), HASH_OF_ZEROS);
        assert_eq!(hash.to_string().to_uppercase().parse(), Ok(hash));
        assert_ne!(Token::new([1; 32]).hash(), hash);
    }

    #[test]
    fn what_is_neither_says_so_and_shows_nothing() {
        let secret = Token::new([0xab; 32]).secret();
        for text in
            ["", PREFIX, &secret[1..], &secret[..secret.len() - 1], &format!("{secret}0"), &secret.replace("ab", "xy")]
        {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(!error.contains("abab"), "{error}");
        }
        let error = secret.parse::<TokenHash>().unwrap_err().to_string();
        assert!(!error.contains("abab"), "{error}");
    }

    /// `printf outpost_token_%064d 0 | sha256sum`
    const HASH_OF_ZEROS: &str = "52c6b7146254cc5818c26deb24215d3327b11fc784d1a2ff4c0bac221b884573";
}

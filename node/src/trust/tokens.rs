//! Tokens of clients: JSON Web Tokens (RFC 7519), checked with the keys of a JWK Set (RFC 7517).
//!
//! Which algorithms may be used is set here and not by who makes a token (RFC 8725, 3.1); each key is used with its own
//! only. What was checked is kept in mind until it expires: to check a signature takes longer than a call.

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, Once, PoisonError},
    time::Duration,
};

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, Validation,
    crypto::aws_lc,
    decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};
use lru::LruCache;
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use super::client::{Client, Token};
use crate::config::{TokenAlgorithm, TokenSettings};

/// How many keys a file may have.
const MOST_KEYS: usize = 64;
/// With how many of them a token is tried that does not name its key: anybody can have that done.
const MOST_TRIED: usize = 4;
/// How many tokens are kept in mind.
const MOST_SEEN: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");
/// How many bytes of names a token may have. They travel with each call.
const MOST_NAMES: usize = 2 << 10;

/// What tokens are checked with.
pub(crate) struct Tokens {
    keys: Vec<Key>,
    issuer: String,
    audiences: Vec<String>,
    algorithms: Vec<Algorithm>,
    leeway: Duration,
    scopes_claim: String,
    /// By the hash of the token: when it is good, and who shows it.
    seen: Mutex<LruCache<blake3::Hash, Checked>>,
}

/// A token that is good, at some times.
type Checked = (Times, Arc<Client>);

struct Key {
    id: Option<String>,
    /// What it may be used with.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// In seconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Times {
    expires: f64,
    not_before: f64,
}

impl Times {
    fn check(self, now: Duration, leeway: Duration) -> Result<(), BadToken> {
        let (now, leeway) = (now.as_secs_f64(), leeway.as_secs_f64());
        match () {
            // RFC 7519, 4.1.4: on or after.
            () if now >= self.expires + leeway => Err(BadToken::Expired),
            () if now + leeway < self.not_before => Err(BadToken::NotYet),
            () => Ok(()),
        }
    }
}

/// Why a token is not believed. Nothing of the token is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadToken {
    #[error("the token is no JSON Web Token")]
    NotAToken,
    #[error("the token is signed in a way that is not accepted here (`callers.tokens.algorithms`)")]
    Algorithm,
    #[error("none of the keys in `callers.tokens.keys` has signed the token")]
    Signature,
    #[error("the token is not of the issuer that is believed (`callers.tokens.issuer`)")]
    Issuer,
    #[error("the token is for another audience (`callers.tokens.audiences`)")]
    Audience,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token lacks one of the claims `iss`, `sub`, `aud` and `exp`, or they are of the wrong type")]
    Claims,
    #[error("the token's issuer, subject and scopes are longer than 2 KiB together")]
    TooLong,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    exp: Number,
    nbf: Option<Number>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.keys.iter().map(|key| &key.id).collect();
        f.debug_struct("Tokens").field("issuer", &self.issuer).field("keys", &keys).finish_non_exhaustive()
    }
}

impl Tokens {
    /// From a JWK Set.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn new(set: &[u8], settings: &TokenSettings) -> Result<Self, String> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // One that the application has chosen before is as good.
            let _ = aws_lc::DEFAULT_PROVIDER.install_default();
        });
        let set: JwkSet = serde_json::from_slice(set)
            .map_err(|error| format!("{error}; a JWK Set is needed: {{\"keys\": [...]}} (RFC 7517)"))?;
        if set.keys.len() > MOST_KEYS {
            return Err(format!("it has {} keys, and {MOST_KEYS} are the most", set.keys.len()));
        }
        let algorithms = settings.algorithms.iter().map(|algorithm| by(*algorithm)).collect::<Vec<_>>();
        let keys = set.keys.iter().filter_map(|jwk| Key::of(jwk, &algorithms)).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            let names: Vec<String> = algorithms.iter().map(|algorithm| format!("{algorithm:?}")).collect();
            return Err(format!("none of its keys is for signatures by {}", names.join(", ")));
        }
        Ok(Self {
            keys,
            issuer: settings.issuer.clone(),
            audiences: settings.audiences.clone(),
            algorithms,
            leeway: settings.leeway.get(),
            scopes_claim: settings.scopes_claim.clone(),
            seen: Mutex::new(LruCache::new(MOST_SEEN)),
        })
    }

    /// Checks a token, at a time since 1970.
    ///
    /// # Errors
    /// Why it is not believed.
    pub(crate) fn check(&self, token: &str, now: Duration) -> Result<Arc<Client>, BadToken> {
        let hash = blake3::hash(token.as_bytes());
        let known = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        if let Some((times, client)) = known {
            times.check(now, self.leeway)?;
            return Ok(client);
        }
        let (times, client) = self.verify(token)?;
        times.check(now, self.leeway)?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).put(hash, (times, Arc::clone(&client)));
        Ok(client)
    }

    /// Checks all but the time.
    fn verify(&self, token: &str) -> Result<Checked, BadToken> {
        let header = decode_header(token).map_err(|_| BadToken::NotAToken)?;
        if !self.algorithms.contains(&header.alg) {
            return Err(BadToken::Algorithm);
        }
        let mut validation = Validation::new(header.alg);
        // By the node's own clock, below.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&self.audiences);
        let named = |key: &&Key| header.kid.is_none() || key.id.is_none() || key.id == header.kid;
        let fitting =
            self.keys.iter().filter(named).filter(|key| key.algorithms.contains(&header.alg)).take(MOST_TRIED);
        let mut problem = BadToken::Signature;
        for key in fitting {
            match decode::<Claims>(token, &key.key, &validation) {
                Ok(token) => return self.read(token.claims),
                Err(error) => match error.kind() {
                    ErrorKind::InvalidSignature => {}
                    ErrorKind::InvalidIssuer => return Err(BadToken::Issuer),
                    ErrorKind::InvalidAudience => return Err(BadToken::Audience),
                    ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
                        return Err(BadToken::Claims);
                    }
                    _ => problem = BadToken::NotAToken,
                },
            }
        }
        Err(problem)
    }

    fn read(&self, Claims { iss, sub, exp, nbf, others }: Claims) -> Result<Checked, BadToken> {
        let seconds = |number: Number| number.as_f64().filter(|seconds| seconds.is_finite()).ok_or(BadToken::Claims);
        let times = Times { expires: seconds(exp)?, not_before: nbf.map_or(Ok(0.0), seconds)? };
        let scopes: Vec<String> = match others.get(&self.scopes_claim) {
            // RFC 8693, 4.2: separated by spaces.
            Some(Value::String(scopes)) => scopes.split_ascii_whitespace().map(ToOwned::to_owned).collect(),
            Some(Value::Array(scopes)) => scopes.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect(),
            _ => Vec::new(),
        };
        // Each has a few bytes more on its way.
        let length: usize = scopes.iter().map(|scope| scope.len() + 2).sum::<usize>() + iss.len() + sub.len();
        if length > MOST_NAMES {
            return Err(BadToken::TooLong);
        }
        Ok((times, Arc::new(Client::new(None, Some(Token::new(iss, sub, scopes))))))
    }
}

fn by(algorithm: TokenAlgorithm) -> Algorithm {
    match algorithm {
        TokenAlgorithm::ES256 => Algorithm::ES256,
        TokenAlgorithm::ES384 => Algorithm::ES384,
        TokenAlgorithm::EdDSA => Algorithm::EdDSA,
        TokenAlgorithm::RS256 => Algorithm::RS256,
        TokenAlgorithm::RS384 => Algorithm::RS384,
        TokenAlgorithm::RS512 => Algorithm::RS512,
        TokenAlgorithm::PS256 => Algorithm::PS256,
        TokenAlgorithm::PS384 => Algorithm::PS384,
        TokenAlgorithm::PS512 => Algorithm::PS512,
    }
}

impl Key {
    /// None where it is not for signatures that are accepted here.
    fn of(jwk: &Jwk, accepted: &[Algorithm]) -> Option<Result<Self, String>> {
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
            return None;
        }
        let own = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa.algorithms(),
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => &[Algorithm::ES256][..],
                EllipticCurve::P384 => &[Algorithm::ES384][..],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(_) => AlgorithmFamily::Ed.algorithms(),
            // A secret, for one: who can check with it can sign with it too.
            _ => return None,
        };
        let said = jwk.common.key_algorithm.map(|algorithm| format!("{algorithm:?}"));
        let may = |algorithm: &&Algorithm| {
            accepted.contains(algorithm) && said.as_ref().is_none_or(|said| *said == format!("{algorithm:?}"))
        };
        let algorithms: Vec<Algorithm> = own.iter().filter(may).copied().collect();
        if algorithms.is_empty() {
            return None;
        }
        let id = jwk.common.key_id.clone();
        let named = || id.clone().unwrap_or_else(|| "without a name".to_owned());
        match DecodingKey::from_jwk(jwk) {
            Ok(key) => Some(Ok(Self { id, algorithms, key })),
            Err(error) => Some(Err(format!("key {}: {error}", named()))),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

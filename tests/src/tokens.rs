//! Somebody who issues tokens to clients of a test.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

use crate::authority::wall;

/// Whose tokens the tests' nodes believe.
pub const ISSUER: &str = "https://id.example";
/// Whom those are for.
pub const AUDIENCE: &str = "shop";

/// See the module.
pub struct TokenIssuer {
    key: EncodingKey,
    name: String,
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenIssuer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TokenIssuer {
    /// One with a key of this name.
    ///
    /// # Panics
    /// When there is no randomness.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key").serialize_der();
        Self { key: EncodingKey::from_ec_der(&key), name: name.to_owned() }
    }

    /// What its tokens are checked with.
    ///
    /// # Panics
    /// Never: it has a key of this kind.
    #[must_use]
    pub fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).expect("a key of this kind");
        jwk.common.key_id = Some(self.name.clone());
        serde_json::to_value(jwk).expect("a key is JSON")
    }

    /// A token, good for so many seconds from now; less than none is one that has expired.
    ///
    /// # Panics
    /// Never: it has a key of this kind.
    #[must_use]
    pub fn token(&self, subject: &str, scopes: &str, seconds: i64) -> String {
        let expires = i64::try_from(wall().as_secs()).unwrap_or(i64::MAX).saturating_add(seconds);
        let claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "scope": scopes, "exp": expires });
        let header = Header { kid: Some(self.name.clone()), ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &self.key).expect("a key of this kind")
    }
}

/// A file of keys.
#[must_use]
pub fn key_set(issuers: &[&TokenIssuer]) -> String {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Shows a token with each call.
#[derive(Debug, Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    /// # Panics
    /// When the token is no text.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self(format!("Bearer {token}").parse().expect("a token is ASCII"))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

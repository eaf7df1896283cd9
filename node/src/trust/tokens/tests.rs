use std::path::PathBuf;

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

use super::*;
use crate::config::Span;

/// Somebody who makes tokens.
pub(in super::super) struct Issuer {
    key: EncodingKey,
    id: &'static str,
}

impl Issuer {
    pub(in super::super) fn new(id: &'static str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap().serialize_der();
        Self { key: EncodingKey::from_ec_der(&key), id }
    }

    pub(in super::super) fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    pub(in super::super) fn token(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &self.key).unwrap()
    }
}

pub(in super::super) fn settings() -> TokenSettings {
    TokenSettings {
        keys: PathBuf::new(),
        issuer: "https://id.example".to_owned(),
        audiences: vec!["shop".to_owned(), "shop-test".to_owned()],
        algorithms: vec![TokenAlgorithm::ES256, TokenAlgorithm::RS256],
        scopes_claim: "scope".to_owned(),
        leeway: Span::seconds(30),
    }
}

fn set(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into_bytes()
}

const NOW: Duration = Duration::from_secs(1_000_000);

/// Good claims, with some of them changed; null takes one out.
pub(in super::super) fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": "https://id.example", "sub": "alice", "aud": "shop", "exp": 1_000_600, "scope": "orders refunds",
    });
    for (claim, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
            value => claims[claim] = value.clone(),
        }
    }
    claims
}

#[test]
fn a_good_token_tells_who_and_what_for() {
    let issuer = Issuer::new("1");
    let tokens = Tokens::new(&set(&[issuer.jwk()]), &settings()).unwrap();
    let token = issuer.token(&claims(&json!({})));
    for _ in 0..2 {
        let client = tokens.check(&token, NOW).unwrap();
        let token = client.token().unwrap();
        assert_eq!((token.issuer(), token.subject()), ("https://id.example", "alice"));
        assert_eq!(token.scopes(), ["orders", "refunds"]);
    }
    let listed = issuer.token(&claims(&json!({ "aud": ["other", "shop-test"], "scope": ["a b", "c"] })));
    let client = tokens.check(&listed, NOW).unwrap();
    assert_eq!(client.token().unwrap().scopes(), ["a b", "c"]);
}

#[test]
fn claims_that_do_not_fit_are_refused() {
    let issuer = Issuer::new("1");
    let tokens = Tokens::new(&set(&[issuer.jwk()]), &settings()).unwrap();
    for (changes, expected) in [
        (json!({ "iss": "https://other.example" }), BadToken::Issuer),
        (json!({ "iss": null }), BadToken::Claims),
        (json!({ "aud": "other" }), BadToken::Audience),
        (json!({ "aud": null }), BadToken::Claims),
        (json!({ "sub": null }), BadToken::Claims),
        (json!({ "sub": 7 }), BadToken::Claims),
        (json!({ "exp": null }), BadToken::Claims),
        (json!({ "exp": "never" }), BadToken::Claims),
        (json!({ "exp": 999_970 }), BadToken::Expired),
        (json!({ "nbf": 1_000_031 }), BadToken::NotYet),
        (json!({ "scope": "s".repeat(3000) }), BadToken::TooLong),
    ] {
        assert_eq!(tokens.check(&issuer.token(&claims(&changes)), NOW), Err(expected), "{changes}");
    }
    for changes in [json!({ "exp": 999_971 }), json!({ "nbf": 1_000_030 }), json!({ "exp": 1_000_000.5 })] {
        assert!(tokens.check(&issuer.token(&claims(&changes)), NOW).is_ok(), "{changes}");
    }
}

#[test]
fn what_was_checked_is_not_good_for_longer() {
    let issuer = Issuer::new("1");
    let tokens = Tokens::new(&set(&[issuer.jwk()]), &settings()).unwrap();
    let token = issuer.token(&claims(&json!({})));
    assert!(tokens.check(&token, NOW).is_ok());
    assert!(tokens.check(&token, Duration::from_secs(1_000_629)).is_ok());
    assert_eq!(tokens.check(&token, Duration::from_secs(1_000_630)), Err(BadToken::Expired));
}

#[test]
fn only_keys_of_the_set_count() {
    let (issuer, other) = (Issuer::new("1"), Issuer::new("2"));
    let tokens = Tokens::new(&set(&[issuer.jwk()]), &settings()).unwrap();
    assert_eq!(tokens.check(&other.token(&claims(&json!({}))), NOW), Err(BadToken::Signature));
    // It claims to be signed by the key that is known.
    let forged = Issuer { id: "1", ..other };
    assert_eq!(tokens.check(&forged.token(&claims(&json!({}))), NOW), Err(BadToken::Signature));
    let both = Tokens::new(&set(&[issuer.jwk(), Issuer { id: "2", ..forged }.jwk()]), &settings()).unwrap();
    assert_eq!(both.keys.len(), 2);
    assert!(both.check(&issuer.token(&claims(&json!({}))), NOW).is_ok());
}

#[test]
fn a_token_does_not_choose_how_it_is_checked() {
    let issuer = Issuer::new("1");
    let jwk = issuer.jwk();
    let tokens = Tokens::new(&set(std::slice::from_ref(&jwk)), &settings()).unwrap();
    // Signed with what everybody knows, the public key: RFC 8725, 2.1.
    let public = jwk["x"].as_str().unwrap();
    let hmac = |algorithm| {
        let header = Header { kid: Some("1".to_owned()), ..Header::new(algorithm) };
        encode(&header, &claims(&json!({})), &EncodingKey::from_secret(public.as_bytes()).unwrap()).unwrap()
    };
    assert_eq!(tokens.check(&hmac(Algorithm::HS256), NOW), Err(BadToken::Algorithm));
    // "none": {"alg":"none"} is no algorithm that is known.
    let (_, rest) =
        issuer.token(&claims(&json!({}))).split_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(tokens.check(&format!("eyJhbGciOiJub25lIn0.{rest}"), NOW), Err(BadToken::NotAToken));
    // Another algorithm than the key is for, though it is accepted.
    assert_eq!(tokens.check(&format!("eyJhbGciOiJSUzI1NiJ9.{rest}"), NOW), Err(BadToken::Signature));
    for garbage in ["", ".", "..", "a.b.c", "a.b.c.d", "\u{1f980}"] {
        assert_eq!(tokens.check(garbage, NOW), Err(BadToken::NotAToken), "{garbage}");
    }
}

#[test]
fn a_set_without_a_key_of_use_is_refused() {
    let jwk = Issuer::new("1").jwk();
    let changed = |key: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[key] = value;
        set(&[jwk])
    };
    let fault = |set: &[u8]| Tokens::new(set, &settings()).unwrap_err();
    assert!(fault(b"no json").contains("JWK Set"));
    assert!(fault(&set(&[])).contains("none of its keys"));
    assert!(fault(&changed("use", json!("enc"))).contains("none of its keys"));
    assert!(fault(&changed("alg", json!("ES384"))).contains("none of its keys"));
    assert!(fault(&set(&[json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" })])).contains("none of its keys"));
    assert!(fault(&set(&vec![jwk.clone(); 65])).contains("64 are the most"));
    assert!(Tokens::new(&changed("use", json!("sig")), &settings()).is_ok());
}

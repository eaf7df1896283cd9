//! An outside client, by what it has shown.

use bytes::Bytes;
use outpost_proto::cluster::v1 as wire;
use prost::Message as _;

/// An outside client, by what it has shown to the node where its call came in. What another client says of itself in
/// metadata is never taken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    certificate: Option<String>,
    token: Option<Token>,
    /// The same, as other nodes are told.
    encoded: Bytes,
}

/// What a token says, once its signature, issuer, audience and time were found to be good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    issuer: String,
    subject: String,
    scopes: Vec<String>,
}

impl Token {
    pub(crate) fn new(issuer: String, subject: String, scopes: Vec<String>) -> Self {
        Self { issuer, subject, scopes }
    }

    /// Who has signed it: the claim `iss`.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// For whom: the claim `sub`.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What it is good for: the claim that `callers.tokens.scopes_claim` names.
    #[must_use]
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }
}

impl Client {
    /// One that has shown something.
    pub(crate) fn new(certificate: Option<String>, token: Option<Token>) -> Self {
        let told = token.clone().map(|Token { issuer, subject, scopes }| wire::Token { issuer, subject, scopes });
        let told = wire::Client { certificate: certificate.clone().unwrap_or_default(), token: told };
        Self { certificate, token, encoded: told.encode_to_vec().into() }
    }

    /// As another node tells it; `None` where it tells nothing that is one.
    pub(crate) fn decode(encoded: Bytes) -> Option<Self> {
        if encoded.is_empty() {
            return None;
        }
        let wire::Client { certificate, token } = wire::Client::decode(encoded.clone()).ok()?;
        let token = token.map(|wire::Token { issuer, subject, scopes }| Token { issuer, subject, scopes });
        Some(Self { certificate: Some(certificate).filter(|name| !name.is_empty()), token, encoded })
    }

    /// What tells it apart from others, for as long as it is who it is: not what its token is good for, which may change with
    /// the next one.
    pub(crate) fn key(&self) -> String {
        let certificate = self.certificate.as_deref().unwrap_or_default();
        let (issuer, subject) = self.token.as_ref().map_or(("", ""), |token| (token.issuer(), token.subject()));
        // So that no two are written alike.
        format!("{}:{certificate}{}:{issuer}{subject}", certificate.len(), issuer.len())
    }

    /// What other nodes are told.
    pub(crate) fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The name in the certificate that it has shown: its first URI, or else its first DNS name, or else its common name.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The token that it has shown.
    #[must_use]
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_the_same_on_the_next_node() {
        let token = Token::new("https://id.example".to_owned(), "alice".to_owned(), vec!["refunds".to_owned()]);
        let some = |text: &str| Some(text.to_owned());
        for client in [
            Client::new(None, Some(token.clone())),
            Client::new(some("spiffe://example.org/web"), None),
            Client::new(some("web"), Some(token)),
        ] {
            assert_eq!(Client::decode(client.encoded().clone()), Some(client));
        }
        let key = |certificate: &str, issuer: &str, subject: &str, scopes: &[&str]| {
            let scopes = scopes.iter().map(ToString::to_string).collect();
            Client::new(some(certificate), Some(Token::new(issuer.to_owned(), subject.to_owned(), scopes))).key()
        };
        assert_eq!(key("c", "i", "s", &["a"]), key("c", "i", "s", &["b"]));
        assert_ne!(key("c", "i", "s", &[]), key("ci", "", "s", &[]));
        assert_ne!(key("c", "i", "s", &[]), key("c", "is", "", &[]));
        assert_eq!(Client::decode(Bytes::new()), None);
        assert_eq!(Client::decode(Bytes::from_static(b"\xff")), None);
    }
}

//! The name in a certificate: a SPIFFE ID (the SPIFFE-ID specification, SPIFFE-ID.md, and X509-SVID.md, which put it into
//! the certificate's only URI).
//!
//! ```text
//! spiffe://example.org/outpost/shop/node/node-1
//!          └ domain            └ cluster └ name
//! spiffe://example.org/outpost/shop/operator/alice
//! ```

use std::{fmt, str::FromStr};

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The authority's realm: `example.org`.
    pub domain: String,
    /// The cluster's name, as `cluster.name` sets it.
    pub cluster: String,
    /// What it may be there.
    pub role: Role,
}

/// What somebody may be in a cluster, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// The node of this name.
    Node(String),
    /// Somebody who runs the cluster.
    Operator(String),
}

/// A text that is no identity of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not spiffe://DOMAIN/outpost/CLUSTER/node/NAME, nor spiffe://DOMAIN/outpost/CLUSTER/operator/NAME, with \
     letters, digits, dashes, dots and underscores for each word in capitals"
)]
pub struct BadIdentity(pub String);

impl Identity {
    /// Whether both are of one cluster, under one authority.
    #[must_use]
    pub fn is_of_cluster(&self, other: &Self) -> bool {
        self.domain == other.domain && self.cluster == other.cluster
    }

    /// The node's name, if it is a node's.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match &self.role {
            Role::Node(node) => Some(node),
            Role::Operator(_) => None,
        }
    }
}

/// Whether a text may be a part of a path of a SPIFFE ID: the name of an operator, among others.
#[must_use]
pub fn is_segment(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !text.is_empty() && text.len() <= 253 && text != "." && text != ".." && text.bytes().all(good)
}

/// Whether a text may name a node: a DNS label.
fn is_label(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= 63 && text.bytes().all(good) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a text may be a trust domain.
fn is_domain(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_');
    !text.is_empty() && text.len() <= 255 && text.bytes().all(good)
}

impl FromStr for Identity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let parse = || {
            // The longest that the specification allows.
            let rest = text.strip_prefix("spiffe://").filter(|_| text.len() <= 2048)?;
            let parts: Vec<&str> = rest.split('/').collect();
            let [domain, "outpost", cluster, role, name] = parts[..] else { return None };
            if !is_domain(domain) || !is_segment(cluster) || !is_segment(name) {
                return None;
            }
            let role = match role {
                "node" if is_label(name) => Role::Node(name.to_owned()),
                "operator" => Role::Operator(name.to_owned()),
                _ => return None,
            };
            Some(Self { domain: domain.to_owned(), cluster: cluster.to_owned(), role })
        };
        parse().ok_or_else(|| BadIdentity(text.to_owned()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, cluster, role } = self;
        match role {
            Role::Node(node) => write!(f, "spiffe://{domain}/outpost/{cluster}/node/{node}"),
            Role::Operator(name) => write!(f, "spiffe://{domain}/outpost/{cluster}/operator/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_it_is_written() {
        for text in
            ["spiffe://example.org/outpost/shop/node/node-1", "spiffe://prod.example.org/outpost/Shop_2/operator/a.b"]
        {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_one_is_none() {
        for text in [
            "",
            "node-1",
            "https://example.org/outpost/shop/node/node-1",
            "spiffe:///outpost/shop/node/node-1",
            "spiffe://Example.org/outpost/shop/node/node-1",
            "spiffe://example.org:80/outpost/shop/node/node-1",
            "spiffe://me@example.org/outpost/shop/node/node-1",
            "spiffe://example.org/ns/shop/sa/default",
            "spiffe://example.org/outpost/shop/node/",
            "spiffe://example.org/outpost/shop/node/node-1/",
            "spiffe://example.org/outpost/shop/node/Node_1",
            "spiffe://example.org/outpost/../node/node-1",
            "spiffe://example.org/outpost/sh%6fp/node/node-1",
            "spiffe://example.org/outpost/shop/root/node-1",
            "spiffe://example.org/outpost/shop/node/node-1?a=b",
        ] {
            assert_eq!(text.parse::<Identity>(), Err(BadIdentity(text.to_owned())));
        }
        let long = format!("spiffe://example.org/outpost/shop/operator/{}", "a".repeat(2048));
        assert!(long.parse::<Identity>().is_err());
    }
}

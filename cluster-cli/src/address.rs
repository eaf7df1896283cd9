//! Addresses of servers.

use std::{fmt, net::IpAddr, str::FromStr};

use http::uri::Authority;

/// Where a gRPC server listens, and whether it speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    authority: Authority,
    pub(crate) tls: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAddress {
    #[error("`{0}` is not an address; write HOST:PORT, such as 127.0.0.1:7000 or [::1]:7000")]
    NotHostAndPort(String),
    #[error("`{0}` has no port; write HOST:PORT, such as {0}:7000")]
    NoPort(String),
    #[error("scheme `{0}` is unknown; write http:// or https:// or nothing")]
    Scheme(String),
    #[error("`{0}` is more than an address; leave out what follows the port")]
    Path(String),
    #[error("write the address of an admin API without https://; a context says whether it asks for certificates")]
    TlsForAdmin,
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (tls, rest) = match text.split_once("://") {
            None => (false, text),
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(BadAddress::Scheme(scheme.to_owned())),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(BadAddress::Path(text.to_owned()));
        }
        let bad = || BadAddress::NotHostAndPort(text.to_owned());
        let authority = Authority::from_str(rest).map_err(|_| bad())?;
        if authority.host().is_empty() || rest.contains('@') {
            return Err(bad());
        }
        match authority.port_u16() {
            Some(1..) => Ok(Self { authority, tls }),
            None if authority.host() == rest => Err(BadAddress::NoPort(rest.to_owned())),
            Some(0) | None => Err(bad()),
        }
    }
}

/// The address of an admin API.
pub(crate) fn node_address(text: &str) -> Result<Address, BadAddress> {
    let address: Address = text.parse()?;
    if address.tls { Err(BadAddress::TlsForAdmin) } else { Ok(address) }
}

impl Address {
    pub(crate) fn with_tls(mut self, tls: bool) -> Self {
        self.tls |= tls;
        self
    }

    pub(crate) fn uri(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// A name is taken for remote, but for `localhost`.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host() == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// This address as seen by who reached its node at `node`: a node that listens on all of its addresses tells none
    /// of them.
    pub(crate) fn seen_from(self, node: &Self) -> Self {
        let port = self.authority.port_u16().unwrap_or_default();
        match self.ip() {
            Some(ip) if ip.is_unspecified() => match format!("{}:{port}", node.host()).parse() {
                Ok(authority) => Self { authority, ..self },
                Err(_) => self,
            },
            _ => self,
        }
    }

    /// A port of this machine.
    pub(crate) fn local(port: u16) -> Self {
        format!("127.0.0.1:{port}").parse().expect("it is an address")
    }

    pub(crate) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or_default()
    }

    fn host(&self) -> &str {
        self.authority.host()
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host().trim_matches(['[', ']']).parse().ok()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.authority.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_optional() {
        for (text, uri) in [
            ("127.0.0.1:7000", "http://127.0.0.1:7000"),
            ("http://localhost:7000/", "http://localhost:7000"),
            ("https://grpc.example.com:443", "https://grpc.example.com:443"),
            ("[::1]:7000", "http://[::1]:7000"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().uri(), uri);
        }
    }

    #[test]
    fn what_is_no_address_says_how_one_reads() {
        for text in ["", ":7000", "host:", "host:0", "host:70000", "::1:7000", "a b:1", "me@host:1"] {
            assert_eq!(text.parse::<Address>(), Err(BadAddress::NotHostAndPort(text.to_owned())), "{text}");
        }
        assert_eq!("localhost".parse::<Address>(), Err(BadAddress::NoPort("localhost".to_owned())));
        assert_eq!("unix://a:1".parse::<Address>(), Err(BadAddress::Scheme("unix".to_owned())));
        assert_eq!("http://a:1/b".parse::<Address>(), Err(BadAddress::Path("http://a:1/b".to_owned())));
        assert_eq!(node_address("https://a:1"), Err(BadAddress::TlsForAdmin));
    }

    #[test]
    fn an_ingress_on_all_addresses_is_reached_where_its_node_is() {
        let seen = |ingress: &str, node: &str| {
            ingress.parse::<Address>().unwrap().seen_from(&node.parse().unwrap()).to_string()
        };
        assert_eq!(seen("0.0.0.0:7000", "10.0.0.5:7001"), "10.0.0.5:7000");
        assert_eq!(seen("[::]:7000", "[::1]:7001"), "[::1]:7000");
        assert_eq!(seen("10.0.0.9:7000", "10.0.0.5:7001"), "10.0.0.9:7000");
    }

    #[test]
    fn loopback_is_recognised() {
        for (text, loopback) in [("127.0.0.1:1", true), ("[::1]:1", true), ("localhost:1", true), ("10.0.0.1:1", false)]
        {
            assert_eq!(text.parse::<Address>().unwrap().is_loopback(), loopback, "{text}");
        }
    }
}

//! Metadata of calls, as people write it.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::metadata::{KeyAndValueRef, MetadataMap};

/// One entry: `authorization: Bearer TOKEN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    name: HeaderName,
    value: HeaderValue,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHeader {
    #[error("`{0}` has no colon; write 'KEY: VALUE'")]
    NoColon(String),
    #[error("key `{0}` must be of a-z 0-9 _ - .")]
    Key(String),
    #[error("key `{0}` belongs to gRPC itself and can't be set")]
    Reserved(String),
    #[error("a timeout is set with --timeout")]
    Timeout,
    #[error("the value of `{0}` must be printable ASCII; for bytes, use a key that ends in -bin and base64")]
    Value(String),
    #[error("the value of `{0}` must be base64, as its key ends in -bin")]
    NotBase64(String),
}

impl FromStr for Header {
    type Err = BadHeader;

    fn from_str(text: &str) -> Result<Self, BadHeader> {
        let (key, value) = text.split_once(':').ok_or_else(|| BadHeader::NoColon(text.to_owned()))?;
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let name = match HeaderName::from_str(&key) {
            Ok(name) if key.bytes().all(allowed) => name,
            _ => return Err(BadHeader::Key(key)),
        };
        match key.as_str() {
            "grpc-timeout" => return Err(BadHeader::Timeout),
            "te" | "content-type" | "connection" | "host" => return Err(BadHeader::Reserved(key)),
            _ if key.starts_with("grpc-") => return Err(BadHeader::Reserved(key)),
            _ => {}
        }
        let printable = value.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
        let value =
            HeaderValue::from_str(value).ok().filter(|_| printable).ok_or_else(|| BadHeader::Value(key.clone()))?;
        let header = Self { name, value };
        if key.ends_with("-bin")
            && map(std::slice::from_ref(&header)).get_bin(&key).is_none_or(|it| it.to_bytes().is_err())
        {
            return Err(BadHeader::NotBase64(key));
        }
        Ok(header)
    }
}

/// What a call sends.
pub(crate) fn map(headers: &[Header]) -> MetadataMap {
    let mut map = HeaderMap::new();
    for header in headers {
        map.append(header.name.clone(), header.value.clone());
    }
    MetadataMap::from_headers(map)
}

/// The entries of an answer that say something to people: `key: value`, of bytes their base64.
pub(crate) fn worth_showing(map: &MetadataMap) -> Vec<(String, String)> {
    let entries = map.iter().filter_map(|entry| {
        let (key, value) = match entry {
            KeyAndValueRef::Ascii(key, value) => (key.as_str(), value.as_encoded_bytes()),
            KeyAndValueRef::Binary(key, value) => (key.as_str(), value.as_encoded_bytes()),
        };
        let transport = matches!(key, "content-type" | "date" | "server" | "vary" | "trailer" | "content-length");
        let own = transport || key.starts_with("grpc-") || key.starts_with("access-control-");
        (!own).then(|| (key.to_owned(), String::from_utf8_lossy(value).into_owned()))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_key_and_a_value() {
        let headers: Vec<Header> =
            ["Authorization: Bearer a:b", "x-none:", "x-id-bin: AAEC"].map(|text| text.parse().unwrap()).to_vec();
        let map = map(&headers);
        assert_eq!(map.get("authorization").unwrap(), "Bearer a:b");
        assert_eq!(map.get("x-none").unwrap(), "");
        assert_eq!(map.get_bin("x-id-bin").unwrap().to_bytes().unwrap().as_ref(), [0, 1, 2]);
    }

    #[test]
    fn what_can_not_be_sent_is_refused() {
        for (text, error) in [
            ("authorization", BadHeader::NoColon("authorization".to_owned())),
            (": value", BadHeader::Key(String::new())),
            ("a key: value", BadHeader::Key("a key".to_owned())),
            ("TE: trailers", BadHeader::Reserved("te".to_owned())),
            ("grpc-status: 0", BadHeader::Reserved("grpc-status".to_owned())),
            ("grpc-timeout: 1S", BadHeader::Timeout),
            ("x-name: Zoë", BadHeader::Value("x-name".to_owned())),
            ("x-id-bin: ***", BadHeader::NotBase64("x-id-bin".to_owned())),
        ] {
            assert_eq!(text.parse::<Header>(), Err(error), "{text}");
        }
    }
}

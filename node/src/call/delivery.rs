//! What becomes of a call whose answer was lost, as its method says; and the id that tells one call from another.

use std::{collections::HashMap, fmt};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderValue};
use outpost_proto::{keys::metadata as keys, options, options::MethodDelivery, v1::Delivery};
use tonic::metadata::MetadataMap;

use super::placed::CALL_ID;
use crate::{descriptors, status::CallError};

/// How long an id may be.
const LONGEST_ID: usize = 64;

/// What the methods of one service are. Those that it does not know may be streams, and are delivered once.
///
/// It comes to know better before the first call where a module's registration gives descriptors.
#[derive(Default)]
pub(crate) struct Deliveries(ArcSwapOption<HashMap<String, MethodDelivery>>);

impl Deliveries {
    /// Of a service, as far as the program itself knows.
    pub(crate) fn known(service: &str) -> Self {
        let deliveries = Self::default();
        if let Some(descriptors) = descriptors::of(service) {
            deliveries.learn(service, descriptors);
        }
        deliveries
    }

    /// Of a method, by its path.
    #[inline]
    pub(crate) fn of(&self, path: &str) -> MethodDelivery {
        const ONCE: MethodDelivery = MethodDelivery { delivery: Delivery::Once, unary: false };
        self.0.load().as_ref().and_then(|methods| methods.get(path).copied()).unwrap_or(ONCE)
    }

    /// Whether instances keep answers of some method.
    pub(crate) fn keep_answers(&self) -> bool {
        self.0.load().iter().flat_map(|methods| methods.values()).any(|method| method.delivery == Delivery::Dedupe)
    }

    /// Takes in what the encoded descriptors of the service say.
    pub(crate) fn learn(&self, service: &str, descriptors: &[u8]) {
        match options::deliveries(descriptors, service) {
            Ok(methods) => self.0.store((!methods.is_empty()).then(|| methods.into())),
            Err(error) => {
                tracing::warn!(service, %error, "the service's descriptors can't be read: no call is retried")
            }
        }
    }
}

impl fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deliveries").field(&self.0.load()).finish()
    }
}

/// Checks the id that a caller gave, if it gave one.
///
/// # Errors
/// One that is not valid: to give it another one would make the caller's own retry another call.
pub(crate) fn check_call_id(metadata: &MetadataMap) -> Result<(), CallError> {
    let mut given = metadata.get_all(keys::CALL_ID).iter().map(|id| id.as_encoded_bytes());
    valid_or_none(given.next(), given.next())
}

/// The same, for a request; and gives it an id if it has none and `needed`.
///
/// # Errors
/// As for [`check_call_id`].
pub(crate) fn identify(headers: &mut HeaderMap, needed: bool) -> Result<(), CallError> {
    let mut given = headers.get_all(CALL_ID).iter().map(HeaderValue::as_bytes);
    let first = given.next();
    valid_or_none(first, given.next())?;
    if first.is_none() && needed {
        let id = format!("{:032x}", rand::random::<u128>());
        headers.insert(CALL_ID, HeaderValue::try_from(id).expect("hexadecimal digits are a header's value"));
    }
    Ok(())
}

/// The id of a request.
pub(crate) fn call_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(CALL_ID)?.to_str().ok()
}

fn valid_or_none(id: Option<&[u8]>, second: Option<&[u8]>) -> Result<(), CallError> {
    match (id, second) {
        (None, None) => Ok(()),
        (Some(id), None) if is_valid(id) => Ok(()),
        _ => Err(CallError::BadCallId { most: LONGEST_ID }),
    }
}

pub(crate) fn is_valid(id: &[u8]) -> bool {
    (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identified(ids: &[&str], needed: bool) -> Result<Option<String>, CallError> {
        let mut headers = HeaderMap::new();
        for id in ids {
            headers.append(CALL_ID, HeaderValue::from_str(id).unwrap());
        }
        identify(&mut headers, needed)?;
        Ok(call_id(&headers).map(str::to_owned))
    }

    #[test]
    fn an_id_is_made_only_where_one_is_needed_and_none_was_given() {
        assert_eq!(identified(&[], false).unwrap(), None);
        let (one, two) = (identified(&[], true).unwrap().unwrap(), identified(&[], true).unwrap().unwrap());
        assert!(one != two && one.len() == 32, "{one} {two}");
        assert_eq!(identified(&["mine"], true).unwrap().as_deref(), Some("mine"));
        assert_eq!(identified(&["mine"], false).unwrap().as_deref(), Some("mine"));
    }

    #[test]
    fn an_id_that_is_not_valid_is_refused_and_not_replaced() {
        let long = "x".repeat(LONGEST_ID + 1);
        for bad in [&["one", "two"][..], &[""], &["two words"], &[long.as_str()], &["tab\t"]] {
            for needed in [true, false] {
                assert!(matches!(identified(bad, needed), Err(CallError::BadCallId { .. })), "{bad:?}");
            }
        }
        assert!(identified(&[&long[1..]], true).is_ok());
    }
}

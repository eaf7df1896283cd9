//! Reads what descriptors say in `outpost/v1/options.proto`.
//!
//! prost drops the options that it does not know. So these are the few messages of `google/protobuf/descriptor.proto` that
//! lead to ours, with ours in them.

use std::collections::HashMap;

use prost::{DecodeError, Message};

use crate::v1::Delivery;

#[derive(Message)]
struct FileSet {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
}

#[derive(Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Method>,
}

#[derive(Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    options: Option<MethodOptions>,
    #[prost(bool, tag = "5")]
    client_streaming: bool,
    #[prost(bool, tag = "6")]
    server_streaming: bool,
}

#[derive(Message)]
struct MethodOptions {
    #[prost(enumeration = "Delivery", tag = "52117")]
    delivery: i32,
}

/// What becomes of a method's calls whose answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodDelivery {
    /// As the option says.
    pub delivery: Delivery,
    /// One request, one response.
    pub unary: bool,
}

/// The methods of a service, by path: `/shop.v1.Cart/Add`. `descriptors` is an encoded `FileDescriptorSet`, which may hold
/// other services too.
///
/// # Errors
/// What is no such set.
pub fn deliveries(descriptors: &[u8], service: &str) -> Result<HashMap<String, MethodDelivery>, DecodeError> {
    let mut found = HashMap::new();
    for file in FileSet::decode(descriptors)?.file {
        for declared in &file.service {
            let full_name = match file.package.as_str() {
                "" => declared.name.clone(),
                package => format!("{package}.{}", declared.name),
            };
            if full_name != service {
                continue;
            }
            for method in &declared.method {
                let unary = !method.client_streaming && !method.server_streaming;
                let delivery = method.options.as_ref().map(MethodOptions::delivery).unwrap_or_default();
                // Compilers other than `outpost-build` do not see that the answers of streams can't be kept.
                let delivery = if delivery == Delivery::Dedupe && !unary { Delivery::Once } else { delivery };
                found.insert(format!("/{full_name}/{}", method.name), MethodDelivery { delivery, unary });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str, delivery: Delivery, server_streaming: bool) -> Method {
        let options = Some(MethodOptions { delivery: delivery.into() });
        Method { name: name.to_owned(), options, client_streaming: false, server_streaming }
    }

    #[test]
    fn methods_without_the_option_and_streams_whose_answers_can_not_be_kept_are_delivered_once() {
        let methods = vec![
            Method { name: "Plain".to_owned(), ..Method::default() },
            method("Once", Delivery::Once, false),
            method("Idempotent", Delivery::Idempotent, true),
            method("Dedupe", Delivery::Dedupe, false),
            method("Impossible", Delivery::Dedupe, true),
        ];
        let service = |name: &str, method| Service { name: name.to_owned(), method };
        let services =
            vec![service("Cart", methods), service("Other", vec![method("Dedupe", Delivery::Dedupe, false)])];
        let set = FileSet { file: vec![File { package: "shop".to_owned(), service: services }] };
        let found = deliveries(&set.encode_to_vec(), "shop.Cart").unwrap();
        let once = |unary| MethodDelivery { delivery: Delivery::Once, unary };
        let expected = [
            ("/shop.Cart/Plain".to_owned(), once(true)),
            ("/shop.Cart/Once".to_owned(), once(true)),
            ("/shop.Cart/Impossible".to_owned(), once(false)),
            ("/shop.Cart/Idempotent".to_owned(), MethodDelivery { delivery: Delivery::Idempotent, unary: false }),
            ("/shop.Cart/Dedupe".to_owned(), MethodDelivery { delivery: Delivery::Dedupe, unary: true }),
        ];
        assert_eq!(found, HashMap::from(expected));
        assert!(deliveries(b"\xff\xff", "shop.Cart").is_err());
    }

    /// The numbers are written twice: here, and where applications read them.
    #[test]
    fn the_numbers_are_those_of_the_published_file() {
        let file = include_str!("../proto/outpost/v1/options.proto");
        assert!(file.contains("Delivery delivery = 52117;"));
    }
}

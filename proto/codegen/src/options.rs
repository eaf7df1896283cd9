//! What a `.proto` file says of its methods in `outpost/v1/options.proto`, read and checked.

use std::collections::HashMap;

use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};
use protox::file::{File, FileResolver};

/// What the file is imported as.
pub(crate) const FILE: &str = "outpost/v1/options.proto";
/// Published by `outpost-proto`; the package of this crate has a copy of it, by a link.
const SOURCE: &str = include_str!("../options.proto");

const DELIVERY: &str = "outpost.v1.delivery";
const RESUME: &str = "outpost.v1.resume";

/// Makes the file importable without a folder that it is in.
pub(crate) struct Resolver;

impl FileResolver for Resolver {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name {
            FILE => File::from_source(name, SOURCE),
            _ => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// The options of the methods that have some, by path: "/shop.v1.Cart/Add".
pub(crate) type Options = HashMap<String, MethodOptions>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct MethodOptions {
    /// Each call must be seen by the table of the instance that keeps answers.
    pub(crate) dedupe: bool,
    pub(crate) resume: Option<Resume>,
}

/// How a handle asks for a stream again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resume {
    pub(crate) response: Place,
    pub(crate) request: Place,
}

/// A field that tells a place in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// As in the .proto file.
    pub(crate) name: String,
    /// Whether it is an `Option` in Rust.
    pub(crate) optional: bool,
}

/// An option that makes no sense where it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) file: String,
    /// Line and column, from 1, where they are known.
    pub(crate) at: Option<(i32, i32)>,
    pub(crate) problem: String,
}

/// Reads the options of all methods; `pool` has places and extensions.
///
/// # Errors
/// All options that make no sense.
pub(crate) fn read(pool: &DescriptorPool) -> Result<Options, Vec<Fault>> {
    let mut options = Options::new();
    let mut faults = Vec::new();
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    for method in methods {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let delivery = delivery(pool, &method).unwrap_or_else(|problem| {
            faults.push(fault(pool, &method, DELIVERY, problem));
            String::new()
        });
        let own = MethodOptions {
            dedupe: delivery == "DEDUPE",
            resume: resume(pool, &method).unwrap_or_else(|problem| {
                faults.push(fault(pool, &method, RESUME, problem));
                None
            }),
        };
        if own != MethodOptions::default() {
            options.insert(path, own);
        }
    }
    if faults.is_empty() { Ok(options) } else { Err(faults) }
}

/// The value of an option, where the method sets it.
fn value(pool: &DescriptorPool, method: &MethodDescriptor, option: &str) -> Option<Value> {
    let extension = pool.get_extension_by_name(option)?;
    let options = method.options();
    options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
}

/// The name of a method's delivery; empty where it says nothing.
fn delivery(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<String, String> {
    let Some(Value::EnumNumber(number)) = value(pool, method, DELIVERY) else { return Ok(String::new()) };
    let name = pool.get_enum_by_name("outpost.v1.Delivery").and_then(|delivery| delivery.get_value(number));
    let name = name.map(|value| value.name().to_owned()).unwrap_or_default();
    if name == "DEDUPE" && (method.is_client_streaming() || method.is_server_streaming()) {
        return Err(format!(
            "method `{}` streams, and only the answers of unary methods can be kept; remove DEDUPE, or use IDEMPOTENT",
            method.name()
        ));
    }
    Ok(name)
}

fn resume(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<Option<Resume>, String> {
    let Some(Value::Message(resume)) = value(pool, method, RESUME) else { return Ok(None) };
    if method.is_client_streaming() || !method.is_server_streaming() {
        return Err(format!(
            "method `{}` can't be resumed: only one with one request and a stream of responses can; remove the option",
            method.name()
        ));
    }
    let named = |field: &str, message: &MessageDescriptor| {
        let value = resume.get_field_by_name(field);
        let name = value.as_deref().and_then(Value::as_str).unwrap_or_default();
        place(field, name, message)
    };
    let (response, request) = (named("response_field", &method.output())?, named("request_field", &method.input())?);
    if response.kind() != request.kind() {
        return Err(format!(
            "`{}` is {:?} and `{}` is {:?}; the fields of a resume are of the same type",
            response.full_name(),
            response.kind(),
            request.full_name(),
            request.kind()
        ));
    }
    let place = |field: FieldDescriptor| Place {
        name: field.name().to_owned(),
        optional: field.supports_presence() && field.cardinality() == Cardinality::Optional,
    };
    Ok(Some(Resume { response: place(response), request: place(request) }))
}

/// The field of a message that an option names.
fn place(option: &str, name: &str, message: &MessageDescriptor) -> Result<FieldDescriptor, String> {
    if name.is_empty() {
        return Err(format!("`{option}` is missing: name a field of message `{}`", message.full_name()));
    }
    let Some(field) = message.get_field_by_name(name) else {
        let names: Vec<String> = message.fields().map(|field| format!("`{}`", field.name())).collect();
        let known = if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
        return Err(format!("`{option}`: message `{}` has no field `{name}`; {known}", message.full_name()));
    };
    let proto = field.field_descriptor_proto();
    // What proto3 calls optional is a oneof of its own, which nobody wrote.
    let in_oneof = field.containing_oneof().is_some() && !proto.proto3_optional();
    let orders = !matches!(field.kind(), Kind::Message(_) | Kind::Enum(_) | Kind::Bool | Kind::Double | Kind::Float);
    if field.is_list() || field.is_map() || in_oneof || !orders {
        return Err(format!(
            "`{option}`: `{}` can't tell a place in a stream; an integer, a string or bytes can, neither repeated nor \
             in a oneof",
            field.full_name()
        ));
    }
    Ok(field)
}

fn fault(pool: &DescriptorPool, method: &MethodDescriptor, option: &str, problem: String) -> Fault {
    const OPTIONS: i32 = 4; // `MethodDescriptorProto.options`
    let file = method.parent_file();
    let number = pool.get_extension_by_name(option).map(|extension| extension.number());
    let path = [method.path(), &[OPTIONS, number.unwrap_or_default().cast_signed()]].concat();
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    // An aggregate may have places for its parts only.
    let places = info.into_iter().flat_map(|info| &info.location);
    let span = places.filter(|place| place.path.starts_with(&path)).map(|place| &place.span).min();
    let at = span.and_then(|span| Some((span.first()? + 1, span.get(1)? + 1)));
    Fault { file: file.name().to_owned(), at, problem }
}

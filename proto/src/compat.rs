//! Whether two versions of a program can call each other while both run. Pure: descriptors in, differences out.
//!
//! What counts is what protobuf has on the wire (<https://protobuf.dev/programming-guides/proto3/#updating>): numbers, not
//! names, but that a name which is found under another number was hardly meant to be. Packages, services and methods have
//! no numbers: a call names them.
//!
//! While a cluster is upgraded, messages go both ways, so what is compared is compared in both directions. What is new is not a
//! difference: it is for the new version not to call before the old one has gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use prost_reflect::{
    Cardinality, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, ServiceDescriptor,
};
use serde::{Serialize, Serializer};

/// Something that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// What it is about: a service, a method, a field, a value of an enum.
    pub what: String,
    /// In a word that stays: for programs.
    pub rule: Rule,
    /// For people.
    pub problem: String,
}

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rule {
    /// The service is gone.
    ServiceRemoved,
    /// The method is gone.
    MethodRemoved,
    /// The method takes or gives a stream where it did not, or the other way round.
    MethodStreaming,
    /// The field is gone, and its number is not reserved.
    FieldRemoved,
    /// The field has another number.
    FieldNumber,
    /// The field's type is another one on the wire.
    FieldType,
    /// The field has many values where it had one, or the other way round.
    FieldCardinality,
    /// The field excludes other fields than it did.
    FieldOneof,
    /// One side sends or waits for what the other does not know.
    FieldRequired,
    /// The value is gone, and its number is not reserved.
    EnumValueRemoved,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ServiceRemoved => "service-removed",
            Self::MethodRemoved => "method-removed",
            Self::MethodStreaming => "method-streaming",
            Self::FieldRemoved => "field-removed",
            Self::FieldNumber => "field-number",
            Self::FieldType => "field-type",
            Self::FieldCardinality => "field-cardinality",
            Self::FieldOneof => "field-oneof",
            Self::FieldRequired => "field-required",
            Self::EnumValueRemoved => "enum-value-removed",
        })
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// All that does not fit, sorted.
pub fn compare(old: &[ServiceDescriptor], new: &[ServiceDescriptor]) -> Vec<Difference> {
    let new: BTreeMap<&str, &ServiceDescriptor> = new.iter().map(|service| (service.full_name(), service)).collect();
    let mut comparison = Comparison::default();
    for service in old {
        match new.get(service.full_name()) {
            Some(new) => comparison.service(service, new),
            None => comparison.find(service.full_name(), Rule::ServiceRemoved, "the service is gone"),
        }
    }
    comparison.found.into_iter().collect()
}

#[derive(Default)]
struct Comparison {
    found: BTreeSet<Difference>,
    /// Pairs of types that were compared, or are about to be: types may contain themselves.
    seen: BTreeSet<(String, String)>,
}

impl Comparison {
    fn find(&mut self, what: &str, rule: Rule, problem: impl Into<String>) {
        self.found.insert(Difference { what: what.to_owned(), rule, problem: problem.into() });
    }

    fn service(&mut self, old: &ServiceDescriptor, new: &ServiceDescriptor) {
        let methods: BTreeMap<String, MethodDescriptor> =
            new.methods().map(|method| (method.name().to_owned(), method)).collect();
        for old in old.methods() {
            let path = format!("{}/{}", old.parent_service().full_name(), old.name());
            let Some(new) = methods.get(old.name()) else {
                self.find(&path, Rule::MethodRemoved, "the method is gone");
                continue;
            };
            let kind = |method: &MethodDescriptor| match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "one message to one message",
                (false, true) => "one message to a stream",
                (true, false) => "a stream to one message",
                (true, true) => "a stream to a stream",
            };
            if kind(&old) != kind(new) {
                self.find(&path, Rule::MethodStreaming, format!("it was {}, and is {}", kind(&old), kind(new)));
            }
            self.message(&old.input(), &new.input());
            self.message(&old.output(), &new.output());
        }
    }

    fn message(&mut self, old: &MessageDescriptor, new: &MessageDescriptor) {
        if !self.seen.insert((old.full_name().to_owned(), new.full_name().to_owned())) {
            return;
        }
        for field in old.fields() {
            let what = format!("{}.{}", old.full_name(), field.name());
            let moved = new.get_field_by_name(field.name()).filter(|moved| moved.number() != field.number());
            match (moved, new.get_field(field.number())) {
                (Some(moved), _) => {
                    let problem = format!("its number was {}, and is {}", field.number(), moved.number());
                    self.find(&what, Rule::FieldNumber, problem);
                }
                (None, Some(new)) => self.field(&what, &field, &new),
                (None, None) => self.removed(&what, &field, new),
            }
        }
        for field in new.fields().filter(|field| field.is_required() && old.get_field(field.number()).is_none()) {
            let what = format!("{}.{}", new.full_name(), field.name());
            self.find(&what, Rule::FieldRequired, "it is new, and required: the old version does not send it");
        }
    }

    fn removed(&mut self, what: &str, field: &FieldDescriptor, new: &MessageDescriptor) {
        let number = field.number();
        if field.is_required() {
            return self.find(what, Rule::FieldRequired, "it was required, and is gone: the old version waits for it");
        }
        if !new.reserved_ranges().any(|range| range.contains(&number)) {
            let problem = format!(
                "the field is gone, and its number may come to mean something else; write `reserved {number};` to say \
                 that it does not"
            );
            self.find(what, Rule::FieldRemoved, problem);
        }
    }

    fn field(&mut self, what: &str, old: &FieldDescriptor, new: &FieldDescriptor) {
        let lists = |field: &FieldDescriptor| field.cardinality() == Cardinality::Repeated;
        if lists(old) != lists(new) {
            let many = |field| if lists(field) { "many values" } else { "one value" };
            self.find(what, Rule::FieldCardinality, format!("it was {}, and is {}", many(old), many(new)));
        }
        if old.is_required() != new.is_required() {
            let said = |field: &FieldDescriptor| if field.is_required() { "required" } else { "optional" };
            self.find(what, Rule::FieldRequired, format!("it was {}, and is {}", said(old), said(new)));
        }
        // A field that is alone in a oneof is as one that is in none.
        let oneof = |field: &FieldDescriptor| -> Option<BTreeSet<u32>> {
            let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic())?;
            Some(oneof.fields().map(|field| field.number()).collect())
        };
        let others = |field: &FieldDescriptor, of: &MessageDescriptor| -> BTreeSet<u32> {
            let together = oneof(field).unwrap_or_default();
            together.into_iter().filter(|number| *number != field.number() && of.get_field(*number).is_some()).collect()
        };
        if others(old, new.parent_message()) != others(new, old.parent_message()) {
            self.find(what, Rule::FieldOneof, "it is together in a oneof with other fields than it was");
        }
        match (old.kind(), new.kind()) {
            (Kind::Message(old_message), Kind::Message(new_message)) if old.is_group() == new.is_group() => {
                self.message(&old_message, &new_message);
            }
            (Kind::Enum(old), Kind::Enum(new)) => self.values(&old, &new),
            (old_kind, new_kind) if on_wire(&old_kind) != on_wire(&new_kind) || old.is_group() != new.is_group() => {
                self.find(what, Rule::FieldType, format!("its type was {old_kind:?}, and is {new_kind:?}"));
            }
            _ => {}
        }
    }

    fn values(&mut self, old: &EnumDescriptor, new: &EnumDescriptor) {
        if !self.seen.insert((old.full_name().to_owned(), new.full_name().to_owned())) {
            return;
        }
        for value in old.values() {
            let number = value.number();
            let is_known =
                new.get_value(number).is_some() || new.reserved_ranges().any(|range| range.contains(&number));
            if !is_known {
                let what = format!("{}.{}", old.full_name(), value.name());
                let problem = format!(
                    "the value is gone, and its number may come to mean something else; write `reserved {number};` to \
                     say that it does not"
                );
                self.find(&what, Rule::EnumValueRemoved, problem);
            }
        }
    }
}

/// Types that can be read as each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnWire {
    /// Numbers are cut to their width, as in C.
    Varint,
    ZigZag,
    Fixed32,
    Fixed64,
    Float,
    Double,
    String,
    Bytes,
    Message,
}

fn on_wire(kind: &Kind) -> OnWire {
    match kind {
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 | Kind::Bool | Kind::Enum(_) => OnWire::Varint,
        Kind::Sint32 | Kind::Sint64 => OnWire::ZigZag,
        Kind::Fixed32 | Kind::Sfixed32 => OnWire::Fixed32,
        Kind::Fixed64 | Kind::Sfixed64 => OnWire::Fixed64,
        Kind::Float => OnWire::Float,
        Kind::Double => OnWire::Double,
        Kind::String => OnWire::String,
        Kind::Bytes => OnWire::Bytes,
        Kind::Message(_) => OnWire::Message,
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;

    /// The services of a file, given without its first lines.
    fn services(body: &str) -> Vec<ServiceDescriptor> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.proto");
        let syntax = if body.contains("required ") { "proto2" } else { "proto3" };
        std::fs::write(&path, format!("syntax = \"{syntax}\";\npackage a;\n{body}")).unwrap();
        let set = protox::compile([&path], [folder.path()]).unwrap_or_else(|error| panic!("{error:?}"));
        DescriptorPool::from_file_descriptor_set(set).unwrap().services().collect()
    }

    /// What does not fit, each as `what rule`.
    fn found(old: &str, new: &str) -> Vec<String> {
        let found = compare(&services(old), &services(new));
        found.iter().map(|difference| format!("{} {}", difference.what, difference.rule)).collect()
    }

    /// A service that takes and gives a message with these fields.
    fn with(fields: &str) -> String {
        format!("message M {{ {fields} }} service S {{ rpc Do(M) returns (M); }}")
    }

    #[test]
    fn what_may_change_does() {
        let same =
            |old: &str, new: &str| assert_eq!(found(&with(old), &with(new)), Vec::<String>::new(), "{old} {new}");
        same("string a = 1;", "string a = 1; string b = 2;");
        same("string a = 1;", "string renamed = 1;");
        same("string a = 1;", "optional string a = 1;");
        same("string a = 1; string b = 2;", "string a = 1; reserved 2;");
        same("int32 a = 1;", "int64 a = 1;");
        same("sint32 a = 1;", "sint64 a = 1;");
        same("bool a = 1;", "uint32 a = 1;");
        same("fixed32 a = 1;", "sfixed32 a = 1;");
        same("repeated int32 a = 1;", "repeated int32 a = 1 [packed = false];");
        same("string a = 1;", "oneof o { string a = 1; }");
        same("oneof o { string a = 1; }", "oneof o { string a = 1; string b = 2; }");
        same("map<string, int32> a = 1;", "map<string, int64> a = 1;");
        same("enum E { X = 0; } E a = 1;", "enum E { Y = 0; Z = 1; } E a = 1;");
        // Another name of a type is the same on the wire.
        let renamed = "message N { string a = 1; } service S { rpc Do(N) returns (N); rpc Other(N) returns (N); }";
        assert_eq!(found(&with("string a = 1;"), renamed), Vec::<String>::new());
    }

    #[test]
    fn what_may_not_change_is_found() {
        let is = |old: &str, new: &str, expected: &[&str]| {
            assert_eq!(found(&with(old), &with(new)), expected, "{old} {new}")
        };
        is("string a = 1; string b = 2;", "string a = 1;", &["a.M.b field-removed"]);
        is("string a = 1;", "string a = 2;", &["a.M.a field-number"]);
        let swapped = ["a.M.a field-number", "a.M.b field-number"];
        is("string a = 1; string b = 2;", "string b = 1; string a = 2;", &swapped);
        is("int32 a = 1;", "sint32 a = 1;", &["a.M.a field-type"]);
        is("int32 a = 1;", "fixed32 a = 1;", &["a.M.a field-type"]);
        is("string a = 1;", "bytes a = 1;", &["a.M.a field-type"]);
        is("float a = 1;", "double a = 1;", &["a.M.a field-type"]);
        is("string a = 1;", "repeated string a = 1;", &["a.M.a field-cardinality"]);
        is("map<string, int32> a = 1;", "map<string, string> a = 1;", &["a.M.AEntry.value field-type"]);
        is(
            "string a = 1; string b = 2;",
            "oneof o { string a = 1; string b = 2; }",
            &["a.M.a field-oneof", "a.M.b field-oneof"],
        );
        is("enum E { X = 0; Y = 1; } E a = 1;", "enum E { X = 0; } E a = 1;", &["a.M.E.Y enum-value-removed"]);
        is("enum E { X = 0; Y = 1; } E a = 1;", "enum E { X = 0; reserved 1; } E a = 1;", &[]);
        is("required string a = 1;", "required string a = 1; required string b = 2;", &["a.M.b field-required"]);
        is(
            "required string a = 1;",
            "optional string a = 1; required int32 b = 9;",
            &["a.M.a field-required", "a.M.b field-required"],
        );
    }

    #[test]
    fn services_and_methods_are_known_by_name() {
        let one = "message M {} service S { rpc A(M) returns (M); rpc B(M) returns (M); }";
        assert_eq!(found(one, "message M {} service S { rpc A(M) returns (M); }"), ["a.S/B method-removed"]);
        assert_eq!(found(one, "message M {} service T { rpc A(M) returns (M); }"), ["a.S service-removed"]);
        let streams = "message M {} service S { rpc A(M) returns (stream M); rpc B(stream M) returns (M); }";
        assert_eq!(found(one, streams), ["a.S/A method-streaming", "a.S/B method-streaming"]);
    }

    #[test]
    fn types_that_contain_themselves_are_compared_once() {
        let tree =
            |leaf: &str| format!("message T {{ repeated T below = 1; {leaf} }} service S {{ rpc Do(T) returns (T); }}");
        assert_eq!(found(&tree("int32 a = 2;"), &tree("int32 a = 2;")), Vec::<String>::new());
        assert_eq!(found(&tree("int32 a = 2;"), &tree("string a = 2;")), ["a.T.a field-type"]);
    }
}

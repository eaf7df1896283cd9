//! JSON to messages, one by one as the text comes.

use prost_reflect::{DynamicMessage, Kind, MessageDescriptor};

/// A place in the input; lines and columns count from 1, and columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    line: usize,
    column: usize,
}

impl Place {
    const START: Self = Self { line: 1, column: 1 };

    fn advance(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => *self = Self { line: self.line + 1, column: 1 },
                0x80..=0xbf => {} // the rest of a character
                _ => self.column += 1,
            }
        }
    }
}

/// The text of one JSON value, and where it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    text: Vec<u8>,
    at: Place,
}

/// Cuts a text into the JSON values that follow each other in it, as soon as each is complete. It knows only where a
/// value ends; whether it is a good one, [`parse`] finds out.
#[derive(Debug)]
pub(crate) struct Splitter {
    buffer: Vec<u8>,
    /// What is before was handed out.
    start: usize,
    /// What is before was looked at.
    scanned: usize,
    at: Place,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    pub(crate) fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, scanned: 0, at: Place::START, depth: 0, in_string: false, escaped: false }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next value that is complete.
    pub(crate) fn next(&mut self) -> Option<Document> {
        if self.scanned == self.start {
            let rest = &self.buffer[self.start..];
            let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.at.advance(&rest[..blank]);
            self.start += blank;
            self.scanned = self.start;
        }
        while let Some(&byte) = self.buffer.get(self.scanned) {
            let first = self.scanned == self.start;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                self.scanned += 1;
                if !self.in_string && self.depth == 0 {
                    return Some(self.cut());
                }
                continue;
            }
            // A bare word ends where another value begins.
            let bare = !first && self.depth == 0;
            if bare && (byte.is_ascii_whitespace() || b"{[\"".contains(&byte)) {
                return Some(self.cut());
            }
            self.scanned += 1;
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(self.cut());
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// What is left when no more text comes: a bare word, or the beginning of a value.
    pub(crate) fn finish(mut self) -> Option<Document> {
        (self.scanned > self.start).then(|| self.cut())
    }

    fn cut(&mut self) -> Document {
        let text = self.buffer[self.start..self.scanned].to_vec();
        let document = Document { at: self.at, text };
        self.at.advance(&document.text);
        self.start = self.scanned;
        (self.depth, self.in_string, self.escaped) = (0, false, false);
        document
    }
}

/// All values of a text.
pub(crate) fn split(text: &[u8]) -> Vec<Document> {
    let mut splitter = Splitter::new();
    splitter.push(text);
    let mut documents: Vec<Document> = std::iter::from_fn(|| splitter.next()).collect();
    documents.extend(splitter.finish());
    documents
}

/// JSON that is not the message that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad JSON at line {}, column {}{}: {problem}{}", .at.line, .at.column, field(.path), known(.fields))]
pub(crate) struct BadJson {
    at: Place,
    path: String,
    problem: String,
    /// The message that holds the fault, and its fields.
    fields: Option<(String, Vec<String>)>,
}

fn field(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(", field `{path}`") }
}

fn known(fields: &Option<(String, Vec<String>)>) -> String {
    match fields {
        None => String::new(),
        Some((message, names)) if names.is_empty() => format!("; `{message}` has no fields"),
        Some((message, names)) => format!("; the fields of `{message}` are {}", names.join(", ")),
    }
}

/// Reads a value as a message, by the rules of protobuf's JSON.
pub(crate) fn parse(document: &Document, descriptor: &MessageDescriptor) -> Result<DynamicMessage, BadJson> {
    let text = std::str::from_utf8(&document.text).map_err(|error| {
        let mut at = document.at;
        at.advance(&document.text[..error.valid_up_to()]);
        BadJson { at, path: String::new(), problem: "the text is not UTF-8".to_owned(), fields: None }
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let read =
        DynamicMessage::deserialize(descriptor.clone(), serde_path_to_error::Deserializer::new(&mut json, &mut track));
    let error = match read.and_then(|message| json.end().map(|()| message)) {
        Ok(message) => return Ok(message),
        Err(error) => error,
    };
    let path = track.path();
    let mut at = document.at;
    at.advance(before(text, error.line(), error.column()));
    let problem = error.to_string();
    let problem = match problem.rsplit_once(" at line ") {
        Some((problem, _)) => problem.to_owned(),
        None => problem,
    };
    let names: Vec<&str> = path
        .iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Map { key } => Some(key.as_str()),
            _ => None,
        })
        .collect();
    let holder = holder(descriptor, &names);
    let fields = error.is_data().then(|| (holder.full_name().to_owned(), field_names(&holder)));
    let path = path.to_string();
    Err(BadJson { at, path: if path == "." { String::new() } else { path }, problem, fields })
}

/// What is before a line and column as serde_json counts them: columns in bytes, and of the last byte that was read.
fn before(text: &str, line: usize, column: usize) -> &[u8] {
    let line_start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let end = (line_start + column.saturating_sub(1)).min(text.len());
    &text.as_bytes()[..end]
}

/// The innermost message on the way to a field, as far as the names lead.
fn holder(descriptor: &MessageDescriptor, names: &[&str]) -> MessageDescriptor {
    let mut holder = descriptor.clone();
    for name in names {
        let field = holder.get_field_by_json_name(name).or_else(|| holder.get_field_by_name(name));
        match field.map(|field| field.kind()) {
            Some(Kind::Message(message)) if !message.full_name().starts_with("google.protobuf.") => holder = message,
            _ => break,
        }
    }
    holder
}

fn field_names(message: &MessageDescriptor) -> Vec<String> {
    message.fields().map(|field| field.name().to_owned()).collect()
}

/// A message as JSON that can be sent as it is, with a value for each field; of a oneof, for its first.
pub(crate) fn example(message: &MessageDescriptor) -> String {
    example_within(message, &mut Vec::new())
}

// Text and not a `Value`, which would forget the order of the fields.
fn example_within(message: &MessageDescriptor, around: &mut Vec<String>) -> String {
    let name = message.full_name();
    match name {
        "google.protobuf.Timestamp" => return "\"2030-01-31T12:00:00Z\"".to_owned(),
        "google.protobuf.Duration" => return "\"1.5s\"".to_owned(),
        "google.protobuf.FieldMask" => return "\"field,otherField\"".to_owned(),
        "google.protobuf.Struct" | "google.protobuf.Empty" => return "{}".to_owned(),
        "google.protobuf.ListValue" => return "[]".to_owned(),
        // What an Any holds is not known here, and a message in itself has no end.
        "google.protobuf.Value" | "google.protobuf.Any" => return "null".to_owned(),
        _ if around.iter().any(|it| it == name) => return "null".to_owned(),
        _ => {}
    }
    // The wrapper types are written as what they wrap.
    if name.starts_with("google.protobuf.") && name.ends_with("Value") {
        return message.fields().next().map_or("null".to_owned(), |field| example_of(&field.kind(), around));
    }
    around.push(name.to_owned());
    let fields = message.fields().filter(|field| {
        let first_of_oneof = field.containing_oneof().and_then(|oneof| oneof.fields().next());
        first_of_oneof.is_none_or(|first| first == *field)
    });
    let fields = fields.map(|field| {
        let kind = field.kind();
        let value = match &kind {
            Kind::Message(entry) if field.is_map() => {
                let key = match example_of(&entry.map_entry_key_field().kind(), around) {
                    text if text.starts_with('"') => text,
                    other => format!("\"{other}\""),
                };
                match example_of(&entry.map_entry_value_field().kind(), around).as_str() {
                    "null" => "{}".to_owned(),
                    value => format!("{{{key}: {value}}}"),
                }
            }
            kind if field.is_list() => match example_of(kind, around).as_str() {
                "null" => "[]".to_owned(),
                value => format!("[{value}]"),
            },
            kind => example_of(kind, around),
        };
        format!("\"{}\": {value}", field.name())
    });
    let text = format!("{{{}}}", fields.collect::<Vec<_>>().join(", "));
    around.pop();
    text
}

fn example_of(kind: &Kind, around: &mut Vec<String>) -> String {
    match kind {
        Kind::Message(message) => example_within(message, around),
        // The first is by convention what means nothing.
        Kind::Enum(values) => {
            format!("\"{}\"", values.values().nth(1).unwrap_or_else(|| values.default_value()).name())
        }
        Kind::Bool => "true".to_owned(),
        Kind::String => "\"text\"".to_owned(),
        Kind::Bytes => "\"YmFzZTY0\"".to_owned(),
        Kind::Double | Kind::Float => "0.5".to_owned(),
        _ => "1".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(documents: &[Document]) -> Vec<&str> {
        documents.iter().map(|document| std::str::from_utf8(&document.text).unwrap()).collect()
    }

    #[test]
    fn values_may_follow_each_other_in_any_way() {
        let documents = split(
            br#" {"a": "}\"{"}{"b":[1,{}]}

[2] "x y"true
12{"c":0}"#,
        );
        let expected = [r#"{"a": "}\"{"}"#, r#"{"b":[1,{}]}"#, "[2]", r#""x y""#, "true", "12", r#"{"c":0}"#];
        assert_eq!(texts(&documents), expected);
        assert_eq!(split(b" \n "), []);
    }

    #[test]
    fn a_value_is_handed_out_as_soon_as_it_is_complete() {
        let mut splitter = Splitter::new();
        let mut seen = Vec::new();
        for byte in b"{\"a\":{}} {\"b\"" {
            splitter.push(&[*byte]);
            seen.extend(splitter.next());
        }
        assert_eq!(texts(&seen), ["{\"a\":{}}"]);
        assert_eq!(splitter.finish().map(|rest| rest.at), Some(Place { line: 1, column: 10 }));
    }

    #[test]
    fn places_count_lines_and_characters() {
        let places: Vec<Place> = split("{\"ä\":1} {}\n  {}".as_bytes()).iter().map(|document| document.at).collect();
        assert_eq!(places, [Place { line: 1, column: 1 }, Place { line: 1, column: 9 }, Place { line: 2, column: 3 }]);
    }

    fn message(name: &str) -> MessageDescriptor {
        let mut pool = prost_reflect::DescriptorPool::global();
        pool.decode_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET).unwrap();
        pool.get_message_by_name(name).unwrap()
    }

    fn fault(text: &str) -> String {
        let documents = split(text.as_bytes());
        parse(documents.last().unwrap(), &message("google.rpc.BadRequest")).unwrap_err().to_string()
    }

    #[test]
    fn a_fault_has_a_place_and_a_field() {
        assert_eq!(
            fault("{}\n{\"fieldViolations\": [{\"field\": 7}]}"),
            "bad JSON at line 2, column 32, field `fieldViolations[0].field`: invalid type: integer `7`, expected a \
             string; the fields of `google.rpc.BadRequest.FieldViolation` are field, description, reason, \
             localized_message"
        );
        let unknown = fault("{\"violations\": []}");
        assert!(unknown.contains("unrecognized field name 'violations'"), "{unknown}");
        assert!(unknown.ends_with("the fields of `google.rpc.BadRequest` are field_violations"), "{unknown}");
        let unfinished = fault("{\"fieldViolations\": [");
        assert!(unfinished.starts_with("bad JSON at line 1, column 21"), "{unfinished}");
        assert!(unfinished.contains("EOF"), "{unfinished}");
    }

    #[test]
    fn names_may_be_as_in_the_proto_file_or_as_in_json() {
        for text in ["{\"field_violations\": []}", "{\"fieldViolations\": []}"] {
            assert!(parse(&split(text.as_bytes())[0], &message("google.rpc.BadRequest")).is_ok(), "{text}");
        }
    }

    #[test]
    fn an_example_can_be_sent_as_it_is() {
        for name in ["BadRequest", "RetryInfo", "ErrorInfo", "Status", "QuotaFailure", "Help"] {
            let message = message(&format!("google.rpc.{name}"));
            let text = example(&message);
            assert!(parse(&split(text.as_bytes())[0], &message).is_ok(), "{text}");
        }
        assert_eq!(
            example(&message("google.rpc.ErrorInfo")),
            "{\"reason\": \"text\", \"domain\": \"text\", \"metadata\": {\"text\": \"text\"}}"
        );
    }
}

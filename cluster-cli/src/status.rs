//! What a gRPC status looks like to people.

use std::{error::Error as _, fmt};

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use tonic::{Code, Status};

use crate::metadata::worth_showing;

/// An error that a server answered with: on one line, and then a line for each entry of metadata and each detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    code: Code,
    message: String,
    notes: Vec<String>,
}

impl Answer {
    /// `types` are the messages that details may be of, beyond those of google.rpc.
    pub(crate) fn new(status: &Status, types: Option<&DescriptorPool>) -> Self {
        let mut notes: Vec<String> =
            worth_showing(status.metadata()).into_iter().map(|(key, value)| format!("{key}: {value}")).collect();
        notes.extend(details(status.details(), types));
        let mut message = status.message().to_owned();
        // A server's own status has no cause here; one that was made up on this side has.
        if let Some(cause) = status.source() {
            let cause = crate::connect::cause(cause);
            if !message.contains(&cause) {
                message = if message.is_empty() { cause } else { format!("{message}: {cause}") };
            }
            notes.push("the connection or the stream broke before the call ended".to_owned());
        }
        Self { code: status.code(), message, notes }
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(self.code))?;
        if !self.message.is_empty() {
            write!(f, ": {}", printable(&self.message))?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n  {}", printable(note)))
    }
}

/// The code as it is written in the gRPC specification.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The text is a stranger's, and must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, character| {
        if character.is_control() && character != '\n' {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
        shown
    })
}

fn details(bytes: &[u8], types: Option<&DescriptorPool>) -> Vec<String> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let Ok(status) = tonic_types::Status::decode(bytes) else {
        return vec![format!("details: {} bytes that are no google.rpc.Status", bytes.len())];
    };
    let mut pool = types.cloned().unwrap_or_else(DescriptorPool::global);
    // A server may have brought its own version of these files; then they are there.
    let _ = pool.decode_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
    let shown = status.details.into_iter().map(|detail| {
        let name = detail.type_url.rsplit('/').next().unwrap_or_default();
        let json = pool
            .get_message_by_name(name)
            .and_then(|descriptor| DynamicMessage::decode(descriptor, detail.value.as_slice()).ok())
            .and_then(|message| serde_json::to_string(&message).ok());
        match json {
            Some(json) => format!("{name}: {json}"),
            None => format!("{name}: {} bytes", detail.value.len()),
        }
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[test]
    fn an_answer_shows_code_message_metadata_and_details() {
        let details = ErrorDetails::with_bad_request_violation("review.rating", "must be 1 to 5");
        let mut status = Status::with_error_details(Code::InvalidArgument, "bad review", details);
        status.metadata_mut().insert("x-request-id", "42".parse().unwrap());
        status.metadata_mut().insert("content-type", "application/grpc".parse().unwrap());
        assert_eq!(
            Answer::new(&status, None).to_string(),
            "INVALID_ARGUMENT: bad review\n  x-request-id: 42\n  google.rpc.BadRequest: \
             {\"fieldViolations\":[{\"field\":\"review.rating\",\"description\":\"must be 1 to 5\"}]}"
        );
    }

    #[test]
    fn a_message_can_not_steer_the_terminal() {
        let answer = Answer::new(&Status::not_found("no \u{1b}[31mred\u{7} thing"), None);
        assert_eq!(answer.to_string(), "NOT_FOUND: no \\u{1b}[31mred\\u{7} thing");
    }
}

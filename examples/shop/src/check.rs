//! What every module checks in the messages it gets.

use tonic::Status;

/// Longest id that the shop keeps. It bounds what a caller can make a module remember.
const MAX_ID_BYTES: usize = 128;

/// Checks an id: 1 to 128 characters, of `A-Z a-z 0-9 . _ @ -`.
pub(crate) fn id(field: &str, value: &str) -> Result<(), Status> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    if value.is_empty() || value.len() > MAX_ID_BYTES || !value.bytes().all(allowed) {
        return Err(Status::invalid_argument(format!(
            "{field} must be 1 to {MAX_ID_BYTES} characters of A-Z a-z 0-9 . _ @ -"
        )));
    }
    Ok(())
}

/// Takes a field that protobuf lets a caller leave out, but the shop does not.
pub(crate) fn present<T>(field: &str, value: Option<T>) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("{field} is missing")))
}

/// Takes a field of another module's answer. If it is missing, that module is at fault and not the caller.
pub(crate) fn answered<T>(field: &str, value: Option<T>) -> Result<T, Status> {
    value.ok_or_else(|| Status::internal(format!("{field} is missing in another module's answer")))
}

/// How many items of a list to answer with: 20 unless the caller says, and at most 100.
pub(crate) fn limit(wanted: Option<u32>) -> usize {
    wanted.map_or(20, |wanted| wanted.min(100) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_and_plain() {
        assert!(id("user_id", "ada@example.org").is_ok());
        for bad in ["", "a b", "a/b", "zoë", &"x".repeat(129)] {
            assert!(id("user_id", bad).is_err(), "{bad}");
        }
    }
}

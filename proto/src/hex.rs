//! Bytes in hexadecimal.

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

/// 32 bytes from 64 digits, of which letters may be small or large.
pub(crate) fn parse(text: &str) -> Option<[u8; 32]> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

pub(crate) fn render(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

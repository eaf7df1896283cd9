//! Deadlines: `grpc-timeout` on the wire, an instant in the process.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::scope::Scope;
use crate::status::CallError;

pub(crate) const HEADER: &str = "grpc-timeout";

/// How long the call that is being served may still take, or `None` when it has no deadline.
///
/// A handle hands this on by itself: a call that a module makes ends, at the latest, with the call that it serves.
/// Reads zero when the deadline has passed. In a task that the module spawned there is no call, so no deadline.
#[must_use]
pub fn remaining() -> Option<Duration> {
    Scope::current().deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

/// The earlier of the deadline of the outer call and the one that the request asks for.
#[inline]
pub(crate) fn of(timeout: Option<&[u8]>, inherited: Option<Instant>) -> Option<Instant> {
    // tonic's servers ignore a timeout that does not parse, and so must every path.
    let Some(timeout) = timeout.and_then(parse) else { return inherited };
    let own = Instant::now() + timeout;
    Some(inherited.map_or(own, |inherited| inherited.min(own)))
}

/// Writes what is left of a deadline into the headers of a request that leaves this process or enters a tonic server.
pub(crate) fn write(deadline: Instant, headers: &mut HeaderMap) {
    let left = deadline.saturating_duration_since(Instant::now());
    headers.insert(HEADER, format(left));
}

/// Runs a future until a deadline. One that has passed does not start it.
pub(crate) async fn enforce<F: Future>(deadline: Instant, future: F) -> Result<F::Output, CallError> {
    if deadline <= Instant::now() {
        return Err(CallError::DeadlineExceeded);
    }
    tokio::time::timeout_at(deadline, future).await.map_err(|_| CallError::DeadlineExceeded)
}

/// `TimeoutValue TimeoutUnit` of the [gRPC over HTTP/2 specification][1]: at most eight digits and a unit.
///
/// [1]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests
fn parse(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(value * 3600)),
        b'M' => Some(Duration::from_secs(value * 60)),
        b'S' => Some(Duration::from_secs(value)),
        b'm' => Some(Duration::from_millis(value)),
        b'u' => Some(Duration::from_micros(value)),
        b'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// The finest unit that fits in eight digits; rounded down, so that a deadline never grows on its way.
pub(crate) fn format(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let units = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm')];
    let seconds = (u128::from(left.as_secs()).min(MOST), 'S');
    let (value, unit) = units.into_iter().find(|(value, _)| *value <= MOST).unwrap_or(seconds);
    HeaderValue::try_from(format!("{value}{unit}")).expect("digits and a letter are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_specification_says() {
        assert_eq!(parse(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse(b"99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(parse(b"0n"), Some(Duration::ZERO));
        for bad in [&b""[..], b"S", b"1", b"123456789S", b"1s", b"-1S", b"1.5S", b" 1S"] {
            assert_eq!(parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_deadline_never_grows_on_its_way() {
        for left in [0, 1, 99_999_999, 100_000_000, 123_456_789_012, 99_999_999_999_999, 3_000_000_500_000_000] {
            let left = Duration::from_nanos(left);
            let read = parse(format(left).as_bytes()).unwrap();
            assert!(read <= left, "{left:?} became {read:?}");
            // Eight digits are seven that count, in the coarsest case.
            assert!(left - read <= left / 100_000, "{left:?} became {read:?}");
        }
    }
}

//! Clocks beside tokio's, which tells how long things take, and which tests can pause: the wall clock, for people to read
//! and for what expires; and a cheap one, for what is looked at on every call.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::id::Timestamp;

/// Now.
pub(crate) fn wall() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
    let now = SystemTime::now();
    // A clock before 1970 is one that was never set.
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Time since some moment, never going back. On Linux it costs a few nanoseconds, and is up to some milliseconds old: the
/// kernel keeps it current, so it is right at once in a process that was stopped for a while.
pub(crate) fn coarse() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::MonotonicCoarse;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    Duration::try_from(clock_gettime(CLOCK)).unwrap_or_default()
}

//! Clocks beside tokio's, which tells how long things take, and which tests can pause: the wall clock, for people to read
//! and for what expires; and a cheap one, for what is looked at on every call. With the feature `simulation` they are
//! those of a simulated machine.

use std::time::Duration;
#[cfg(not(feature = "simulation"))]
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(not(feature = "simulation"))]
use rustix::time::{ClockId, clock_gettime};

use crate::id::Timestamp;

/// Now.
pub(crate) fn wall() -> Timestamp {
    #[cfg(not(feature = "simulation"))]
    let since = {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
        let now = SystemTime::now();
        // A clock before 1970 is one that was never set.
        now.duration_since(UNIX_EPOCH).unwrap_or_default()
    };
    #[cfg(feature = "simulation")]
    let since = crate::simulation::machine().wall();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Time since some moment, never going back, without that for which the machine was suspended.
pub(crate) fn monotonic() -> Duration {
    #[cfg(feature = "simulation")]
    return crate::simulation::machine().monotonic();
    #[cfg(not(feature = "simulation"))]
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// The same, with that for which the machine was suspended, where the system tells.
#[cfg(not(feature = "simulation"))]
pub(crate) fn boottime() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    Duration::try_from(clock_gettime(CLOCK)).unwrap_or_default()
}

/// The same of a simulated machine.
#[cfg(feature = "simulation")]
pub(crate) fn boottime() -> Duration {
    crate::simulation::machine().boottime()
}

/// Time since some moment, never going back. On Linux it costs a few nanoseconds, and is up to some milliseconds old: the
/// kernel keeps it current, so it is right at once in a process that was stopped for a while.
#[cfg(not(feature = "simulation"))]
pub(crate) fn coarse() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::MonotonicCoarse;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    Duration::try_from(clock_gettime(CLOCK)).unwrap_or_default()
}

/// The same of a simulated machine.
#[cfg(feature = "simulation")]
pub(crate) fn coarse() -> Duration {
    crate::simulation::machine().monotonic()
}

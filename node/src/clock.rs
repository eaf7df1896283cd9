//! Clocks beside tokio's, which tells how long things take, and which tests can pause: the wall clock, for people to read
//! and for what expires; and cheap ones, for what is looked at on every call. With the feature `simulation` they are
//! those of a simulated machine.

#[cfg(not(feature = "simulation"))]
use std::time::{SystemTime, UNIX_EPOCH};
use std::{ops::Add, time::Duration};

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

/// A moment by two cheap clocks, in milliseconds: one never goes back, and one goes on while the machine is suspended. On
/// Linux each costs a few nanoseconds, and is up to some milliseconds old: the kernel keeps them current, so they are right
/// at once in a process that was stopped for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coarse {
    pub(crate) monotonic: u64,
    pub(crate) wall: u64,
}

impl Coarse {
    #[cfg(not(feature = "simulation"))]
    #[inline]
    pub(crate) fn now() -> Self {
        #[cfg(target_os = "linux")]
        const CLOCKS: [ClockId; 2] = [ClockId::MonotonicCoarse, ClockId::RealtimeCoarse];
        #[cfg(not(target_os = "linux"))]
        const CLOCKS: [ClockId; 2] = [ClockId::Monotonic, ClockId::Realtime];
        let [monotonic, wall] = CLOCKS.map(|clock| {
            let time = clock_gettime(clock);
            // A clock before 1970 is one that was never set.
            u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap_or_default()
        });
        Self { monotonic, wall }
    }

    /// The same of a simulated machine.
    #[cfg(feature = "simulation")]
    pub(crate) fn now() -> Self {
        let machine = crate::simulation::machine();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self { monotonic: ms(machine.monotonic()), wall: ms(machine.wall()) }
    }
}

impl Add<Duration> for Coarse {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self { monotonic: self.monotonic.saturating_add(ms), wall: self.wall.saturating_add(ms) }
    }
}

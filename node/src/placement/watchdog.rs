//! A thread beside the runtime that sees what the runtime can't: that time has passed without its clock, or that it is
//! stuck itself.
//!
//! A lease ends by two clocks: one that stands still while the machine is suspended, and one that can be set. So the
//! thread compares clocks, ten times a second: if they disagree on how much time has passed, the lease is taken back. Where
//! a hypervisor has stopped the whole machine, all clocks stood still until one is set right; what a gate lets through
//! before that is what the epoch is for: callers and stores that know of a newer one refuse it.

#[cfg(not(feature = "simulation"))]
use std::{sync::Weak, thread};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{call::gate::LeaseEnd, clock};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);
/// The machine was suspended for longer than this.
const SUSPENDED: Duration = Duration::from_millis(500);
/// A runtime that has not run for less than this may only be very busy.
const STUCK: Duration = Duration::from_secs(5);
/// The wall clock was set by more than this; or all other clocks stood still for so long.
const JUMP: Duration = Duration::from_secs(2);

/// Beats as long as the runtime runs.
#[derive(Debug, Default)]
pub(crate) struct Heart(AtomicU64);

impl Heart {
    /// Never returns.
    pub(crate) async fn beat(self: Arc<Self>) {
        let mut every = tokio::time::interval(LOOK);
        loop {
            every.tick().await;
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Watches for as long as the heart and the lease are there. With `stuck`, the process ends when the runtime has not run
/// for so long, and for some seconds at least, and the lease has ended.
///
/// # Errors
/// Those of starting a thread.
#[cfg(not(feature = "simulation"))]
pub(crate) fn watch(lease: &Arc<LeaseEnd>, heart: &Arc<Heart>, stuck: Option<Duration>) -> std::io::Result<()> {
    let (lease, heart, stuck) = (Arc::downgrade(lease), Arc::downgrade(heart), stuck.map(|stuck| stuck.max(STUCK)));
    thread::Builder::new().name("outpost-watchdog".to_owned()).spawn(move || run(&lease, &heart, stuck))?;
    Ok(())
}

/// The same in a simulation, where there is one thread, and a runtime that is stuck is stuck with all others.
#[cfg(feature = "simulation")]
#[expect(clippy::unnecessary_wraps, reason = "as that with a thread")]
pub(crate) fn watch(lease: &Arc<LeaseEnd>, heart: &Arc<Heart>, stuck: Option<Duration>) -> std::io::Result<()> {
    let (lease, heart, stuck) = (Arc::downgrade(lease), Arc::downgrade(heart), stuck.map(|stuck| stuck.max(STUCK)));
    #[expect(clippy::disallowed_methods, reason = "as the thread, it ends with what it watches")]
    tokio::spawn(async move {
        let mut watch = Watch::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let (Some(lease), Some(heart)) = (lease.upgrade(), heart.upgrade()) else { return };
            watch.look(&lease, &heart, stuck);
        }
    });
    Ok(())
}

#[cfg(not(feature = "simulation"))]
fn run(lease: &Weak<LeaseEnd>, heart: &Weak<Heart>, stuck: Option<Duration>) {
    let mut watch = Watch::default();
    loop {
        thread::sleep(LOOK);
        let (Some(lease), Some(heart)) = (lease.upgrade(), heart.upgrade()) else { return };
        watch.look(&lease, &heart, stuck);
    }
}

/// What is known from earlier looks.
#[derive(Debug, Default)]
struct Watch {
    clocks: Clocks,
    still: Still,
}

impl Watch {
    fn look(&mut self, lease: &LeaseEnd, heart: &Heart, stuck: Option<Duration>) {
        let Self { clocks, still } = self;
        if let Some(jump) = clocks.look(clock::monotonic(), clock::boottime(), Duration::from_millis(clock::wall().0)) {
            tracing::warn!(
                jump,
                "clocks disagree on the time that has passed: the lease is taken back, and asked for again"
            );
            lease.revoke();
        }
        let for_so_long = still.look(heart.0.load(Ordering::Relaxed));
        if stuck.is_some_and(|stuck| for_so_long >= stuck) && lease.was_granted() && !lease.holds_now() {
            tracing::error!(
                "no thread of the runtime has run for {for_so_long:?}, and the lease has ended: the process ends; \
                 a module blocks its threads, most likely (cluster.abort_when_stuck)"
            );
            std::process::abort();
        }
    }
}

/// What the clocks showed at the last look.
#[derive(Debug, Default)]
struct Clocks(Option<(Duration, Duration, Duration)>);

impl Clocks {
    /// Says in which way the clocks disagree on what has passed since the last look, if they do. The wall clock may be
    /// corrected, little by little.
    fn look(&mut self, monotonic: Duration, boottime: Duration, wall: Duration) -> Option<&'static str> {
        let (monotonic_before, boottime_before, wall_before) = self.0.replace((monotonic, boottime, wall))?;
        let passed = boottime.saturating_sub(boottime_before);
        if passed.abs_diff(monotonic.saturating_sub(monotonic_before)) > SUSPENDED {
            return Some("the machine was suspended");
        }
        let by_wall = wall.checked_sub(wall_before);
        if by_wall.is_none_or(|by_wall| by_wall.abs_diff(passed) > JUMP) && wall_before.abs_diff(wall) > JUMP {
            return Some("the wall clock was set, or the whole machine stood still");
        }
        None
    }
}

/// For how long a heart has not beaten: in looks, so that a process which was stopped as a whole is not held to be stuck.
#[derive(Debug, Default)]
struct Still {
    beats: u64,
    looks: u32,
}

impl Still {
    fn look(&mut self, beats: u64) -> Duration {
        self.looks = if beats == self.beats { self.looks + 1 } else { 0 };
        self.beats = beats;
        LOOK * self.looks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn clocks_that_disagree_are_noticed() {
        let wall = ms(1_700_000_000_000);
        let mut clocks = Clocks::default();
        assert_eq!(clocks.look(ms(0), ms(0), wall), None);
        assert_eq!(clocks.look(ms(100), ms(100), wall + ms(100)), None);
        assert_eq!(clocks.look(ms(9_100), ms(9_100), wall + ms(9_100)), None, "a process that was stopped");
        assert_eq!(clocks.look(ms(9_200), ms(9_200), wall + ms(9_350)), None, "a clock that is corrected");
        let suspended = clocks.look(ms(9_300), ms(39_300), wall + ms(39_350));
        assert_eq!(suspended, Some("the machine was suspended"));
        let paused = clocks.look(ms(9_400), ms(39_400), wall + ms(49_350));
        assert_eq!(paused, Some("the wall clock was set, or the whole machine stood still"));
        let set_back = clocks.look(ms(9_500), ms(39_500), wall);
        assert_eq!(set_back, Some("the wall clock was set, or the whole machine stood still"));
        assert_eq!(clocks.look(ms(9_600), ms(39_600), wall + ms(100)), None);
    }

    #[test]
    fn a_heart_is_still_for_as_many_looks_as_it_has_not_beaten() {
        let mut still = Still::default();
        assert_eq!(still.look(1), Duration::ZERO);
        assert_eq!(still.look(1), LOOK);
        assert_eq!(still.look(1), 2 * LOOK);
        assert_eq!(still.look(2), Duration::ZERO);
    }

    #[test]
    fn a_lease_that_was_taken_back_is_asked_for_under_another_term() {
        let lease = LeaseEnd::default();
        let end = clock::Coarse::now() + Duration::from_secs(60);
        assert_eq!(lease.grant(end, 0), Some(1));
        assert_eq!(lease.grant(end, 0), Some(1));
        lease.revoke();
        assert!(!lease.holds_now());
        assert_eq!(lease.grant(end, 0), None, "it was asked for before that");
        assert_eq!(lease.grant(end, lease.revocations()), Some(2));
    }
}

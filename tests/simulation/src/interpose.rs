//! Randomness and time of everything that does not ask the node's own places for them: `rand`, `HashMap`, tokio's seeds,
//! `Instant` in libraries. Two functions of the C library are defined here, and so taken instead of that one's; on a
//! thread that does not simulate they ask the kernel.
//!
//! (This is what the crate `mad-turmoil` does; there one generator serves the whole process and can be set once, and time
//! is 0 outside of the simulation.)

use std::cell::Cell;

use tokio::{runtime::Handle, time::Instant};

thread_local! {
    /// The state of the generator; none where the kernel is asked.
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
    /// The time in nanoseconds; none where the kernel is asked.
    static NOW: Cell<Option<u64>> = const { Cell::new(None) };
    /// What a runtime's clock showed at a time.
    static BASE: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
}

/// From now on, this thread's randomness comes from a seed.
pub fn seed(seed: u64) {
    RANDOM.set(Some(seed));
}

/// The time for what runs outside of a runtime, and for a runtime's clock to begin with, in nanoseconds.
pub fn set_now(now: u64) {
    NOW.set(Some(now));
}

/// The clock of the runtime that runs next: what it showed when the time was `nanoseconds`.
pub fn set_base(base: Option<(Instant, u64)>) {
    BASE.set(base);
}

/// The time as the running runtime's clock has it, in nanoseconds.
pub fn now() -> Option<u64> {
    let now = NOW.get()?;
    let Some((base, then)) = BASE.get() else { return Some(now) };
    if Handle::try_current().is_err() {
        return Some(now);
    }
    // A paused clock asks nobody for the time, and so does not come back here.
    let since = Instant::now().saturating_duration_since(base);
    Some(then + u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[expect(unsafe_code, reason = "to stand in for functions of the C library is what this is for")]
mod functions {
    use super::{RANDOM, next, now};

    /// As the function of the C library; the caller gives a buffer of that length.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
        let Ok(Some(mut state)) = RANDOM.try_with(std::cell::Cell::get) else {
            // SAFETY: the caller's promise is the kernel's condition.
            return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
        };
        if buffer.is_null() {
            return if length == 0 { 0 } else { -1 };
        }
        // SAFETY: the caller promises a buffer of that length.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&next(&mut state).to_le_bytes()[..chunk.len()]);
        }
        RANDOM.set(Some(state));
        isize::try_from(length).unwrap_or(isize::MAX)
    }

    /// As the function of the C library; the caller gives a place for the time.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
        let simulated = super::NOW.try_with(std::cell::Cell::get).ok().flatten().and_then(|_| now());
        let Some(now) = simulated else {
            // SAFETY: the caller's promise is the kernel's condition.
            return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
        };
        let now = libc::timespec {
            tv_sec: i64::try_from(now / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (now % 1_000_000_000) as libc::c_long,
        };
        // SAFETY: the caller promises a place for it.
        unsafe { time.write(now) };
        0
    }
}

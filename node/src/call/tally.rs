//! How many are inside something: counted by each thread for itself, and added up by who has closed it.
//!
//! Whoever goes in says so and then looks whether it is open; whoever closes it says so and then looks who is inside. For
//! one of them to see the other, both need a barrier between the two steps (Dekker's algorithm). Going in happens with every call,
//! and closing hardly ever: so the one that closes makes all threads pass a barrier (`membarrier(2)`), and the others only keep
//! the compiler from changing the order. Threads count on lines of their own, with a load and a store: an atomic addition
//! would cost more than all else that a call of a local module does at the gate.
//!
//! The idea is that of D. Dice, H. Huang, M. Yang: Asymmetric Dekker Synchronization (2001); folly has it as
//! `AsymmetricThreadFence`.

use std::{
    cell::Cell,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::counts::Origin;

/// As many threads have a line of their own. What others do costs an atomic addition.
const THREADS: usize = 32;

/// What one thread has counted, on a cache line of its own. Up both times, rather than up and down: so a thread counts for
/// itself, whoever has counted the call in, and it is known for nothing how many there have been.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    entered: AtomicU64,
    /// Of those, the ones that were inside and left, by [`Origin`] ...
    left: [AtomicU64; 4],
    /// ... and the ones that were turned away.
    refused: AtomicU64,
}

impl Line {
    fn gone(&self) -> u64 {
        let left = self.left.iter().map(|left| left.load(Ordering::Acquire));
        left.sum::<u64>() + self.refused.load(Ordering::Acquire)
    }
}

/// See the module.
///
/// **Invariant:** who was counted in before [`fence`] is seen by who has called it; who is counted in after that sees what was
/// written before it.
#[derive(Debug)]
pub(super) struct Tally {
    lines: [Line; THREADS],
    /// Of all other threads.
    shared: Line,
}

impl Default for Tally {
    fn default() -> Self {
        Self { lines: std::array::from_fn(|_| Line::default()), shared: Line::default() }
    }
}

impl Tally {
    /// Counts somebody in. What is read after this was not read before.
    #[inline]
    pub(super) fn enter(&self) {
        self.add(|line| &line.entered);
    }

    /// Counts somebody out, on whatever thread; what it has done before is seen by who adds up. What is read after this was not
    /// read before.
    #[inline]
    pub(super) fn leave(&self, origin: Origin) {
        self.add(|line| &line.left[origin as usize]);
    }

    /// The same for somebody who was turned away.
    pub(super) fn refuse(&self) {
        self.add(|line| &line.refused);
    }

    #[inline]
    fn add(&self, which: impl Fn(&Line) -> &AtomicU64) {
        match self.lines.get(line()) {
            Some(line) => {
                let count = which(line);
                count.store(count.load(Ordering::Relaxed) + 1, Ordering::Release);
            }
            None => drop(which(&self.shared).fetch_add(1, Ordering::Release)),
        }
        membarrier2::light();
    }

    /// How many are inside: never too few. Exact once nobody goes in any more.
    pub(super) fn inside(&self) -> usize {
        // Who is seen to have left is then seen to have entered, whatever threads those were.
        let gone: u64 = self.lines().map(Line::gone).sum();
        let entered: u64 = self.lines().map(|line| line.entered.load(Ordering::Acquire)).sum();
        usize::try_from(entered - gone).unwrap_or(usize::MAX)
    }

    /// How many were inside and have left, by where they came from: here, a client, another node.
    pub(super) fn ended(&self) -> [u64; 3] {
        std::array::from_fn(|origin| self.lines().map(|line| line.left[origin].load(Ordering::Relaxed)).sum())
    }

    fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().chain([&self.shared])
    }
}

/// Has all threads pass a barrier. Between what closes something and the look at who is inside.
pub(super) fn fence() {
    membarrier2::heavy();
}

thread_local! {
    static LINE: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Gives the line back with the thread's end.
    static LENT: Lent = Lent::take();
}

/// The line of this thread; beyond [`THREADS`] if it has none.
#[inline]
fn line() -> usize {
    match LINE.get() {
        usize::MAX => first(),
        line => line,
    }
}

/// A thread's line, for the first time.
#[cold]
fn first() -> usize {
    // A thread that is ending has given its own back.
    let line = LENT.try_with(|lent| lent.0).unwrap_or(THREADS);
    LINE.set(line);
    line
}

/// Lines that no thread has.
static FREE: Mutex<Free> = Mutex::new(Free { back: Vec::new(), next: 0 });

struct Free {
    back: Vec<usize>,
    next: usize,
}

/// A line that is one thread's. The lock hands on what the last one has counted.
struct Lent(usize);

impl Lent {
    fn take() -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let new = free.next;
        Self(free.back.pop().unwrap_or_else(|| {
            free.next = (new + 1).min(THREADS);
            new
        }))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Whatever this thread does yet, it does without.
        LINE.set(THREADS);
        if self.0 < THREADS {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).back.push(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    #[test]
    fn who_leaves_on_another_thread_is_counted_out() {
        let count = Tally::default();
        count.enter();
        count.enter();
        thread::scope(|threads| drop(threads.spawn(|| count.leave(Origin::Here)).join()));
        count.refuse();
        assert_eq!(count.inside(), 0);
        assert_eq!(count.ended(), [1, 0, 0], "who was turned away was not inside");
    }

    #[test]
    fn more_threads_than_lines_are_counted_and_lines_are_handed_on() {
        let count = Tally::default();
        for _round in 0..3 {
            let all = Barrier::new(2 * THREADS);
            thread::scope(|threads| {
                for _thread in 0..2 * THREADS {
                    threads.spawn(|| {
                        count.enter();
                        all.wait();
                        assert!(line() <= THREADS);
                        count.enter();
                        count.leave(Origin::Here);
                    });
                }
            });
        }
        assert_eq!(count.inside(), 6 * THREADS);
        assert!(FREE.lock().unwrap().next <= THREADS);
    }
}

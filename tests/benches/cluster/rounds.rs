//! Rounds of what is compared. All take turns within a round, so that what disturbs it disturbs all of them.

use std::{iter, time::Duration};

use outpost_tests::measure::{Loaded, cpu_of, median};

/// Says on standard error, which is not the benchmark's product, how far it is.
pub(crate) fn progress(part: &str, round: usize, rounds: usize) {
    eprintln!("{part}: round {} of {rounds} ...", round + 1);
}

/// The order of turns: who comes first changes each round.
pub(crate) fn turns(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| (index + round) % count)
}

/// The round in the middle.
pub(crate) fn middle<S>(rounds: &[S], part: impl Fn(&S) -> f64) -> f64 {
    median(rounds.iter().map(part))
}

/// Of the rounds' ratios, not of the medians.
pub(crate) fn ratio<S>(these: &[S], others: &[S], part: impl Fn(&S) -> f64) -> f64 {
    median(iter::zip(these, others).map(|(this, other)| part(this) / part(other)))
}

/// A round of calls from this process to a server in another one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) loaded: Loaded,
    /// CPU time of a call, in microseconds.
    pub(crate) client: f64,
    pub(crate) server: f64,
}

/// A number of a sample.
pub(crate) type Part = fn(&Sample) -> f64;

impl Sample {
    /// Watches both processes during a load.
    pub(crate) async fn of(server: u32, load: impl Future<Output = Loaded>) -> Self {
        let cpu = || (cpu_of(std::process::id()), cpu_of(server));
        let before = cpu();
        let loaded = load.await;
        let after = cpu();
        let a_call = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(loaded.calls);
        Self { loaded, client: a_call(after.0 - before.0), server: a_call(after.1 - before.1) }
    }

    /// CPU time of both sides.
    pub(crate) fn both(&self) -> f64 {
        self.client + self.server
    }
}

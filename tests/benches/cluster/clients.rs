//! Clients that call all the time, and write down what they got.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outpost_tests::{
    measure::{ask, median},
    v1::relay_client::RelayClient,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Request, Status, transport::Channel};

/// What a message carries.
const BYTES: usize = 100;
/// A client that was refused comes back after this.
const AFTER_FAILURE: Duration = Duration::from_millis(5);

/// One call, and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) client: usize,
    pub(crate) sent: Instant,
    pub(crate) ended: Instant,
    /// Which process answered, or the kind of the failure.
    pub(crate) answer: Result<i64, String>,
}

/// How clients call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) clients: usize,
    /// Between a client's calls.
    pub(crate) pause: Duration,
    pub(crate) deadline: Duration,
}

/// Clients at work; they end when it is dropped.
#[derive(Debug)]
pub(crate) struct Clients {
    calls: Arc<Mutex<Vec<Call>>>,
    _tasks: JoinSet<()>,
}

impl Clients {
    /// Clients that take turns with these connections, each making one call after the other.
    pub(crate) fn start(channels: &[Channel], manner: Manner) -> Self {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let mut tasks = JoinSet::new();
        for client in 0..manner.clients {
            let channel = channels[client % channels.len()].clone();
            tasks.spawn(work(client, channel, manner, Arc::clone(&calls)));
        }
        Self { calls, _tasks: tasks }
    }

    /// The calls that have ended since this was last asked.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a call of which something holds; gives it, and all that ended before. `None` when none came in time.
    pub(crate) async fn first(&self, limit: Duration, fact: impl Fn(&Call) -> bool) -> (Option<Call>, Vec<Call>) {
        let began = Instant::now();
        let mut all = Vec::new();
        while began.elapsed() < limit {
            let from = all.len();
            all.append(&mut self.take());
            if let Some(found) = all[from..].iter().find(|call| fact(call)) {
                return (Some(found.clone()), all);
            }
            sleep(Duration::from_millis(2)).await;
        }
        (None, all)
    }
}

async fn work(client: usize, channel: Channel, manner: Manner, calls: Arc<Mutex<Vec<Call>>>) {
    let mut relay = RelayClient::new(channel);
    loop {
        let mut request = Request::new(ask(BYTES));
        request.set_timeout(manner.deadline);
        let sent = Instant::now();
        let answer = relay.unary(request).await;
        let ended = Instant::now();
        let answer = answer.map(|answer| answer.into_inner().number).map_err(|status| kind(&status));
        let pause = if answer.is_ok() { manner.pause } else { AFTER_FAILURE };
        calls.lock().unwrap_or_else(PoisonError::into_inner).push(Call { client, sent, ended, answer });
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

/// The code, and whether the framework says that the module may have run.
pub(crate) fn kind(status: &Status) -> String {
    let outcome = status.metadata().get("outpost-outcome").and_then(|outcome| outcome.to_str().ok());
    format!("{:?} ({})", status.code(), outcome.unwrap_or("no outcome"))
}

/// The longest time that any client was without an answer, between these two moments: from an answer to the next, where
/// a part of that is in between.
pub(crate) fn longest_gap(calls: &[Call], from: Instant, to: Instant) -> Duration {
    let mut answers: BTreeMap<usize, Vec<Instant>> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.answer.is_ok()) {
        answers.entry(call.client).or_default().push(call.ended);
    }
    let gaps = answers.values().flat_map(|answers| answers.windows(2));
    gaps.filter(|gap| gap[1] >= from && gap[0] <= to).map(|gap| gap[1] - gap[0]).max().unwrap_or_default()
}

/// How many calls each process answered.
pub(crate) fn answers(calls: &[Call]) -> BTreeMap<i64, usize> {
    let mut processes = BTreeMap::new();
    for process in calls.iter().filter_map(|call| call.answer.as_ref().ok()) {
        *processes.entry(*process).or_default() += 1;
    }
    processes
}

/// How many calls failed, by kind.
pub(crate) fn failures<'a>(calls: impl IntoIterator<Item = &'a Call>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for call in calls {
        if let Err(kind) = &call.answer {
            *kinds.entry(kind.clone()).or_default() += 1;
        }
    }
    kinds
}

/// `3 Unavailable (unknown)`, or "none".
pub(crate) fn shown(kinds: &BTreeMap<String, usize>) -> String {
    if kinds.is_empty() {
        return "none".to_owned();
    }
    kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}

/// The median of times, in milliseconds.
pub(crate) fn median_ms<'a>(times: impl IntoIterator<Item = &'a Duration>) -> f64 {
    median(times.into_iter().map(|time| time.as_secs_f64() * 1e3))
}

/// The longest of times, in milliseconds.
pub(crate) fn longest_ms<'a>(times: impl IntoIterator<Item = &'a Duration>) -> f64 {
    times.into_iter().map(|time| time.as_secs_f64() * 1e3).fold(f64::NAN, f64::max)
}

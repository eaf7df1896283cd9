//! Clients that count, in a counter of `store` each: whatever is lost or runs twice shows at the very next call, and what
//! has to be remembered does not grow. For runs of millions of calls.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Channel};

use crate::store::v1::{AddRequest, store_client::StoreClient};

/// Calls that took longer are remembered.
const LONG: Duration = Duration::from_millis(20);
/// After a call that failed.
const PAUSE: Duration = Duration::from_millis(20);

/// What became of the calls.
#[derive(Debug, Default)]
pub struct Counts {
    acknowledged: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    twice: AtomicU64,
    long: Mutex<Vec<(Instant, Instant)>>,
    failures: Mutex<Vec<String>>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [acknowledged, failed] = [&self.acknowledged, &self.failed].map(|count| count.load(Relaxed));
        write!(f, "{acknowledged} calls acknowledged, {failed} failed, {} lost, {} twice", self.lost(), self.twice())
    }
}

impl Counts {
    /// Additions that were acknowledged, and are not in the counter.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Additions that are there twice.
    pub fn twice(&self) -> u64 {
        self.twice.load(Relaxed)
    }

    /// For each of these spans, how long the longest call took that went on in it; the shortest first.
    pub fn longest_in(&self, spans: &[(Instant, Instant)]) -> Vec<Duration> {
        let long = self.long.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |(from, to): &(Instant, Instant)| {
            let about = long.iter().filter(|(sent, ended)| sent <= to && ended >= from);
            about.map(|(sent, ended)| *ended - *sent).max().unwrap_or_default()
        };
        let mut longest: Vec<Duration> = spans.iter().map(within).collect();
        longest.sort_unstable();
        longest
    }

    /// Why calls failed: of the first of them.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Clients at work. They end when it is dropped.
#[derive(Debug)]
pub struct Tally {
    clients: JoinSet<()>,
    stop: CancellationToken,
    /// So far.
    pub counts: Arc<Counts>,
}

impl Tally {
    /// One client for each of these connections.
    #[must_use]
    pub fn start(channels: Vec<Channel>, limit: Duration) -> Self {
        let mut tally = Self { clients: JoinSet::new(), stop: CancellationToken::new(), counts: Arc::default() };
        for (number, channel) in channels.into_iter().enumerate() {
            let (counts, stop) = (Arc::clone(&tally.counts), tally.stop.clone());
            tally.clients.spawn(async move {
                let mut client = StoreClient::new(channel);
                // What has run for sure, and what may have.
                let (mut sure, mut perhaps) = (0_i64, 0_i64);
                while !stop.is_cancelled() {
                    let mut request = Request::new(AddRequest { key: format!("tally {number}"), by: 1 });
                    request.set_timeout(limit);
                    let sent = Instant::now();
                    match client.add(request).await {
                        Ok(answer) => {
                            let before = answer.into_inner().value;
                            counts.acknowledged.fetch_add(1, Relaxed);
                            counts.lost.fetch_add(u64::try_from(sure - before).unwrap_or_default(), Relaxed);
                            let more = before - sure - perhaps;
                            counts.twice.fetch_add(u64::try_from(more).unwrap_or_default(), Relaxed);
                            (sure, perhaps) = (before + 1, 0);
                        }
                        Err(status) => {
                            let outcome = status.metadata().get("outpost-outcome");
                            perhaps += i64::from(outcome.is_none_or(|outcome| outcome != "not-executed"));
                            let failed = counts.failed.fetch_add(1, Relaxed);
                            if failed < 10 {
                                let mut failures = counts.failures.lock().unwrap_or_else(PoisonError::into_inner);
                                failures.push(format!("{number} after {:?}: {status:?}", sent.elapsed()));
                            }
                            sleep(PAUSE).await;
                        }
                    }
                    let ended = Instant::now();
                    if ended - sent > LONG {
                        counts.long.lock().unwrap_or_else(PoisonError::into_inner).push((sent, ended));
                    }
                }
            });
        }
        tally
    }

    /// Waits until so many calls were acknowledged, altogether.
    pub async fn reach(&self, calls: u64) {
        while self.counts.acknowledged.load(Relaxed) < calls {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets calls finish.
    ///
    /// # Panics
    /// When a client has.
    pub async fn finish(mut self) -> Arc<Counts> {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client gave up");
        }
        self.counts
    }
}

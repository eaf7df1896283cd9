//! Clients that call without a pause, and write down what they got.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, transport::Channel};

use crate::v1::{Answer, Ask, Deed, everywhere_client::EverywhereClient, kinds_client::KindsClient};

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Of module `kinds`, which one node hosts at a time.
    Kinds,
    /// Of module `everywhere`.
    Everywhere,
}

/// One call, and how it ended.
#[derive(Debug, Clone)]
pub struct Call {
    /// The client that made it.
    pub client: String,
    /// When it was sent.
    pub sent: Instant,
    /// When it had ended.
    pub ended: Instant,
    /// Which process answered, and when by the clock of the machine, in microseconds; or why none did.
    pub answer: Result<(u32, u64), Status>,
}

/// Asks a node which process answers.
///
/// # Errors
/// As the call ended.
pub async fn tell_process(channel: Channel, service: Service, limit: Duration) -> Result<(u32, u64), Status> {
    let mut request = Request::new(Ask { deed: Deed::TellProcess.into(), ..Ask::default() });
    request.set_timeout(limit);
    let Answer { number, text, .. } = match service {
        Service::Kinds => KindsClient::new(channel).unary(request).await?.into_inner(),
        Service::Everywhere => EverywhereClient::new(channel).unary(request).await?.into_inner(),
    };
    Ok((u32::try_from(number).unwrap_or_default(), text.parse().unwrap_or_default()))
}

/// Clients that call until they are told to stop. They end when it is dropped.
#[derive(Debug, Default)]
pub struct Load {
    calls: Arc<Mutex<Vec<Call>>>,
    clients: JoinSet<()>,
    stops: BTreeMap<String, CancellationToken>,
}

impl Load {
    /// Adds a client that calls a service through one node, one call after the other, each with this limit.
    pub fn add(&mut self, client: &str, channel: Channel, service: Service, limit: Duration) {
        let (client, calls) = (client.to_owned(), Arc::clone(&self.calls));
        let stop = CancellationToken::new();
        self.stops.insert(client.clone(), stop.clone());
        self.clients.spawn(async move {
            while !stop.is_cancelled() {
                let sent = Instant::now();
                let answer = tell_process(channel.clone(), service, limit).await;
                let failed = answer.is_err();
                let call = Call { client: client.clone(), sent, ended: Instant::now(), answer };
                calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
                // A server that is gone refuses at once, and one that answers should not keep the machine busy alone.
                tokio::time::sleep(Duration::from_millis(if failed { 20 } else { 2 })).await;
            }
        });
    }

    /// Tells one client to stop after its call.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn stop_client(&self, client: &str) {
        self.stops.get(client).unwrap_or_else(|| panic!("`{client}` is no client of ours")).cancel();
    }

    /// What was called so far.
    #[must_use]
    pub fn so_far(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets calls finish, and gives all of them.
    pub async fn finish(mut self) -> Vec<Call> {
        self.stops.values().for_each(CancellationToken::cancel);
        while self.clients.join_next().await.is_some() {}
        self.so_far()
    }
}

/// The calls that failed, each in a line.
#[must_use]
pub fn failures(calls: &[Call]) -> Vec<String> {
    let Some(first) = calls.iter().map(|call| call.sent).min() else { return Vec::new() };
    let failed = calls.iter().filter_map(|call| Some((call, call.answer.as_ref().err()?)));
    failed
        .map(|(call, status)| {
            let (sent, took) = (call.sent - first, call.ended - call.sent);
            format!("{} at {sent:?}, after {took:?}: {:?} {}", call.client, status.code(), status.message())
        })
        .collect()
}

/// The longest time in which a client got no answer.
#[must_use]
pub fn longest_silence(calls: &[Call], client: &str) -> Duration {
    let answered = calls.iter().filter(|call| call.client == client && call.answer.is_ok());
    let mut ends: Vec<Instant> = answered.map(|call| call.ended).collect();
    ends.sort_unstable();
    ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// The processes that answered, in the order of when each answered, each named once for as long as it went on: two
/// owners at a time would be named in turns.
#[must_use]
pub fn owners(calls: &[Call]) -> Vec<u32> {
    let mut answers: Vec<(u64, u32)> =
        calls.iter().filter_map(|call| call.answer.as_ref().ok()).map(|(pid, at)| (*at, *pid)).collect();
    answers.sort_unstable();
    let mut owners: Vec<u32> = answers.into_iter().map(|(_, pid)| pid).collect();
    owners.dedup();
    owners
}

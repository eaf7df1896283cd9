//! Callers that call all the time, by every way there is, and write down how it went.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Response, Status};

use crate::{
    cluster::TestCluster,
    v1::{Answer, Ask, KindsHandle, RelayHandle, kinds_client::KindsClient, relay_client::RelayClient},
    wait::{until, within},
};

/// Between the calls of one caller.
const PAUSE: Duration = Duration::from_millis(1);

/// Callers at work.
#[derive(Debug)]
pub struct Load {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    log: Arc<Log>,
}

#[derive(Debug, Default)]
struct Log {
    answered: Mutex<Vec<String>>,
    failed: Mutex<Vec<Failed>>,
}

/// A call that ended with an error.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Its text.
    pub call: String,
    /// When it ended.
    pub at: Instant,
    /// How.
    pub status: Status,
}

/// How it went.
#[derive(Debug)]
pub struct Report {
    /// The texts of calls that were answered.
    pub answered: Vec<String>,
    /// The others.
    pub failed: Vec<Failed>,
}

impl Load {
    /// Calls `kinds` and `relay` on each of these nodes, with stock clients and with handles.
    pub fn start(cluster: &TestCluster, nodes: &[String]) -> Self {
        let mut load = Self { tasks: JoinSet::new(), stop: Arc::default(), log: Arc::default() };
        for node in nodes {
            let client = KindsClient::new(cluster.client(node));
            load.caller(format!("{node} client"), move |ask| {
                let mut client = client.clone();
                async move { client.unary(ask).await }
            });
            let client = RelayClient::new(cluster.client(node));
            load.caller(format!("{node} relay client"), move |ask| {
                let mut client = client.clone();
                async move { client.unary(ask).await }
            });
            let handle: KindsHandle = cluster.handle(node);
            load.caller(format!("{node} handle"), move |ask| {
                let handle = handle.clone();
                async move { handle.unary(ask).await }
            });
            let handle: RelayHandle = cluster.handle(node);
            load.caller(format!("{node} relay handle"), move |ask| {
                let handle = handle.clone();
                async move { handle.unary(ask).await }
            });
        }
        load
    }

    fn caller<C, F>(&mut self, name: String, call: C)
    where
        C: Fn(Ask) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<Answer>, Status>> + Send,
    {
        let (stop, log) = (Arc::clone(&self.stop), Arc::clone(&self.log));
        self.tasks.spawn(async move {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A call in the same process may never wait; others should have their turn.
                sleep(PAUSE).await;
                let text = format!("{name} {number}");
                match call(Ask { text: text.clone(), ..Ask::default() }).await {
                    Ok(answer) => {
                        assert_eq!(answer.get_ref().text, text, "an answer to another call");
                        log.answered.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                    }
                    Err(status) => {
                        let failed = Failed { call: text, at: Instant::now(), status };
                        log.failed.lock().unwrap_or_else(PoisonError::into_inner).push(failed);
                    }
                }
            }
        });
    }

    /// How many calls have been answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.log.answered.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until so many more calls were answered.
    pub async fn more(&self, calls: usize) {
        let wanted = self.answered() + calls;
        until("more calls to be answered", async || match self.answered() {
            answered if answered >= wanted => Ok(()),
            answered => Err(format!("{answered} of {wanted} calls were answered")),
        })
        .await;
    }

    /// Ends it, once each caller has an answer.
    ///
    /// # Panics
    /// When a caller has none in time, or had a wrong one.
    pub async fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = within("each caller to have its answer", self.tasks.join_next()).await {
            ended.expect("a caller gave up");
        }
        let take =
            |list: &Mutex<Vec<String>>| std::mem::take(&mut *list.lock().unwrap_or_else(PoisonError::into_inner));
        let failed = std::mem::take(&mut *self.log.failed.lock().unwrap_or_else(PoisonError::into_inner));
        Report { answered: take(&self.log.answered), failed }
    }
}

impl Report {
    /// Fails if a call has failed.
    ///
    /// # Panics
    /// Then, with the first few of them.
    pub fn assert_all_answered(&self) {
        let first: Vec<_> = self.failed.iter().take(5).collect();
        assert!(first.is_empty(), "{} of {} calls failed: {first:#?}", self.failed.len(), self.answered.len());
    }
}

//! Whether this node may serve exclusive parts: it has heard from the leader lately.
//!
//! The leader grants for a whole lease from when it was asked; this node uses five eighths of it, counted from before it
//! asked. So even where its clock runs slower than the leader's, by up to 1.6 times, it has stopped before anybody
//! takes over (the ratio is that of Kubernetes' client-go, `LeaseDuration` to `RenewDeadline`).

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use super::{
    log::{Leadership, Log, Renewed},
    state::State,
};
use crate::{call::gate::LeaseEnd, clock::Coarse};

/// How one renewal ended.
enum Answer {
    Granted,
    Superseded(u64),
    /// The cluster does not know this node, or nobody answered.
    None,
    /// Another one leads since it was asked for, or nobody does.
    Elsewhere,
}

/// Renews for ever. Says in `held` the term under which the lease holds, if it does: another one each time that it does
/// after it did not; and in `end`, for those that can't wait to be told, until when. Returns only when another process has this node's
/// place: its generation.
pub(crate) async fn keep(log: Log, lease: Duration, held: watch::Sender<Option<u64>>, end: Arc<LeaseEnd>) -> u64 {
    let (every, usable) = (lease / 8, lease * 5 / 8);
    let (mut state, mut leadership) = (log.state(), log.leadership());
    let mut until: Option<Instant> = None;
    loop {
        // Whoever leads from now on is asked at once, whatever became of the one that was asked.
        leadership.mark_unchanged();
        let (asked, asked_at, revocations) = (Instant::now(), Coarse::now(), end.revocations());
        // The lease of before may end while this renewal is under way.
        let answer = {
            let renewal = async {
                tokio::select! {
                    biased;
                    answer = renew(&log, &mut state) => answer,
                    Ok(()) = leadership.changed() => Answer::Elsewhere,
                }
            };
            let mut renewal = std::pin::pin!(renewal);
            match until {
                None => renewal.await,
                Some(over) => match timeout_at(over, renewal.as_mut()).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        lost(&held);
                        until = None;
                        renewal.await
                    }
                },
            }
        };
        match answer {
            // It counts from when it was asked for, and the answer may have taken longer than it lasts.
            Answer::Granted if asked.elapsed() < usable => {
                if let Some(term) = end.grant(asked_at + usable, revocations) {
                    until = Some(asked + usable);
                    held.send_if_modified(|held| held.replace(term) != Some(term));
                }
            }
            Answer::Superseded(generation) => {
                held.send_replace(None);
                return generation;
            }
            Answer::Elsewhere => continue,
            Answer::Granted | Answer::None => {}
        }
        if let Some(over) = until
            && over <= Instant::now() + every
        {
            // The next renewal may not come in time: see to the end on the way.
            pause(&end, &mut leadership, over.saturating_duration_since(Instant::now()).min(every)).await;
            if over <= Instant::now() {
                lost(&held);
                until = None;
            }
            continue;
        }
        pause(&end, &mut leadership, every).await;
    }
}

/// Waits; not at all once the lease was taken back, or somebody else leads.
async fn pause(end: &LeaseEnd, leadership: &mut watch::Receiver<Leadership>, pause: Duration) {
    // Whichever it was, a renewal comes next.
    tokio::select! {
        () = sleep(pause) => {}
        () = end.revoked() => {}
        Ok(()) = leadership.changed() => {}
    }
}

fn lost(held: &watch::Sender<Option<u64>>) {
    if held.send_replace(None).is_some() {
        tracing::warn!(
            "lost touch with the cluster: modules that one node hosts at a time are not served here for now"
        );
    }
}

async fn renew(log: &Log, state: &mut watch::Receiver<Arc<State>>) -> Answer {
    let applied = state.borrow().index;
    match log.renew(applied).await {
        // What was decided while this node was cut off must be known to it before it goes on.
        Ok(Renewed::Granted { must_apply }) => match state.wait_for(|state| state.index >= must_apply).await {
            Ok(_) => Answer::Granted,
            Err(_) => Answer::None,
        },
        Ok(Renewed::Superseded { by }) => Answer::Superseded(by),
        Ok(Renewed::Unknown | Renewed::Held) => Answer::None,
        Err(error) => {
            tracing::debug!(%error, "the lease was not renewed");
            Answer::None
        }
    }
}

//! Reads the cluster until a wait ends.

use std::{future::pending, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use outpost_proto::admin::v1::{Cluster, Movement};
use tokio::time::{self, Instant};
use tonic::Streaming;

use super::{Progress, Wait};
use crate::{admin::Admin, connect::Target, error::CliError, screen::Screen};

/// How long nothing may be under way before what was planned and did not happen is taken for not going to happen.
const QUIET: Duration = Duration::from_secs(2);
const RECONNECT: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(100);

/// How a wait ended, if neither the limit nor the user ended it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The cluster is there, or as near as it gets; then with what is missing.
    Done {
        cluster: Box<Cluster>,
        missing: Option<String>,
        /// The move that was waited for, as it was seen last.
        movement: Option<Movement>,
    },
    Failed(String),
}

/// Waits from `first` on until the goal is reached, at most for `limit` after `began`.
///
/// # Errors
/// When the limit has passed, or at Ctrl-C. Both leave the change going.
pub(crate) async fn follow(
    node: &Target,
    first: Cluster,
    rest: Streaming<Cluster>,
    wait: &Wait,
    (began, limit): (Instant, Duration),
) -> Result<Outcome, CliError> {
    let mut screen = Screen::stderr();
    let mut views = std::pin::pin!(stream::iter([first]).chain(views(node.clone(), rest)));
    let mut now = "begun".to_owned();
    if let Some(opening) = &wait.opening {
        screen.step(began.elapsed(), opening);
        now.clone_from(opening);
    }
    let mut reached = String::new();
    let mut movement = None;
    // What a terminal shows between two views, beside the time.
    let mut live = now.clone();
    let mut quiet_until: Option<Instant> = None;
    let mut last = Box::new(Cluster::default());
    let mut ticks = time::interval(TICK);
    let goes_on = || wait.goes_on.clone();
    loop {
        let quiet = async {
            match quiet_until {
                Some(until) => time::sleep_until(until).await,
                None => pending().await,
            }
        };
        tokio::select! {
            Some(cluster) = views.next() => {
                quiet_until = None;
                let progress = wait.on_cluster(&cluster);
                movement = wait.movement(&cluster).cloned().or(movement);
                last = Box::new(cluster);
                match progress {
                    Progress::Done => return Ok(Outcome::Done { cluster: last, missing: None, movement }),
                    Progress::Failed(why) => return Ok(Outcome::Failed(why)),
                    Progress::Behind(text) => now = text,
                    Progress::Step { phase, text } => {
                        match phase == reached {
                            true => screen.more(began.elapsed(), &text),
                            false => screen.step(began.elapsed(), &text),
                        }
                        reached = phase;
                        (now, live) = (text.clone(), text);
                    }
                    Progress::Going(text) => {
                        screen.now(began.elapsed(), &text);
                        (now, live) = (text.clone(), text);
                    }
                    Progress::Quiet(text) => {
                        quiet_until = Some(Instant::now() + QUIET);
                        now = text;
                    }
                }
            }
            () = quiet => return Ok(Outcome::Done { cluster: last, missing: Some(now), movement }),
            () = time::sleep_until(began + limit) => {
                let last = wait.in_full(&last).unwrap_or(now);
                return Err(CliError::WaitTimedOut { what: wait.what.clone(), limit, last, goes_on: goes_on() });
            }
            Ok(()) = tokio::signal::ctrl_c() => {
                return Err(CliError::Interrupted { what: wait.what.clone(), goes_on: goes_on() });
            }
            _ = ticks.tick(), if screen.is_terminal() => screen.now(began.elapsed(), &live),
        }
    }
}

/// What the node tells; when it stops telling, it is asked again, because a change that was begun needs no tool.
pub(crate) fn views(node: Target, stream: Streaming<Cluster>) -> impl Stream<Item = Cluster> {
    stream::unfold((node, Some(stream)), |(node, mut stream)| async move {
        loop {
            match &mut stream {
                Some(open) => match open.message().await {
                    Ok(Some(cluster)) => return Some((cluster, (node, stream))),
                    Ok(None) | Err(_) => stream = None,
                },
                None => {
                    time::sleep(RECONNECT).await;
                    let again = async { Admin::at(node.clone()).await?.watch().await };
                    if let Ok((cluster, open)) = again.await {
                        return Some((cluster, (node, Some(open))));
                    }
                }
            }
        }
    })
}

//! When a call is made again that may have run.
//!
//! A call that did not run is sent elsewhere by whoever looks for its module, whatever its method says. What is decided
//! here is the rest: the answer was lost, or the node says that it can't be trusted. The node that a call begins at
//! decides, and no other: retries of several nodes along the way would multiply.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::HeaderMap;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use outpost_proto::{keys::metadata as keys, v1::Delivery};
use tonic::{Code, Status, body::Body};

use super::{placed, replay::MOST, slot::Response};

/// How often a call is made at the most, as far as it may have run each time.
const MOST_TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How many retries a service is worth: gRPC's retry throttling (its proposal A6). An error costs one token, an answer
/// gives a tenth back, and there are no retries while less than half is left. So retries are at most a tenth of the calls
/// in the long run, and a node that ends with many calls inside does not use them up.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In tenths.
    tokens: AtomicU32,
}

/// 1000 tokens, which is the most that the proposal allows.
const FULL: u32 = 10_000;
const ERROR: u32 = 10;
const ANSWER: u32 = 1;

impl Default for Budget {
    fn default() -> Self {
        Self { tokens: AtomicU32::new(FULL) }
    }
}

impl Budget {
    pub(crate) fn answered(&self) {
        // Mostly it is full, and nothing is written.
        if self.tokens.load(Ordering::Relaxed) < FULL {
            self.change(|tokens| (tokens + ANSWER).min(FULL));
        }
    }

    /// Whether the call that has failed may be made again.
    pub(crate) fn failed(&self) -> bool {
        self.change(|tokens| tokens.saturating_sub(ERROR)) > FULL / 2
    }

    fn change(&self, change: impl Fn(u32) -> u32) -> u32 {
        let before = self.tokens.update(Ordering::Relaxed, Ordering::Relaxed, &change);
        change(before)
    }
}

/// How often a call was made.
#[derive(Debug, Default)]
pub(crate) struct Tries(u32);

impl Tries {
    /// The call has failed, and may have run: how long to wait before it is made again, if it may be.
    ///
    /// `found`: answers that an instance has kept are found wherever the call comes next. That is not so of a module that
    /// has several instances, or that moves without them.
    pub(crate) fn again(&mut self, delivery: Delivery, found: bool, budget: &Budget) -> Option<Duration> {
        self.0 += 1;
        let harmless = match delivery {
            Delivery::Once => false,
            Delivery::Idempotent => true,
            Delivery::Dedupe => found,
        };
        // Counted as an error whether or not this call is one to make again.
        (budget.failed() && harmless && self.0 < MOST_TRIES).then(|| pause(self.0))
    }
}

/// After so many failures in a row, counted from 1: longer each time. Not all who lost an answer should come back at once.
pub(crate) fn pause(failures: u32) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    pause.mul_f64(0.8 + rand::random::<f64>() * 0.4)
}

/// How a try of a call has ended, as far as that tells whether the module ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With the module's answer, or an error that another try would not change.
    Answered,
    NotRun,
    /// The answer was lost, or can't be trusted.
    MayHaveRun,
}

impl Ended {
    pub(crate) fn of(ended: Result<&HeaderMap, &Status>) -> Self {
        let (not_run, may_have_run) = match ended {
            Ok(headers) => (placed::is_not_executed(headers), placed::may_have_run(headers)),
            Err(status) => {
                let outcome = status.metadata().get(keys::OUTCOME);
                let is = |value: &str| outcome.is_some_and(|outcome| outcome == value);
                (is(placed::NOT_EXECUTED), is(placed::UNKNOWN) && status.code() == Code::Unavailable)
            }
        };
        match (not_run, may_have_run) {
            (true, _) => Self::NotRun,
            (false, true) => Self::MayHaveRun,
            (false, false) => Self::Answered,
        }
    }
}

/// Reads an answer to its end, or until it is larger than what is worth remembering. One that turns out to be a node's own
/// error becomes a response that says so in its head.
///
/// # Errors
/// Why it broke off.
pub(crate) async fn arrived(response: Response) -> Result<Response, String> {
    let (mut parts, mut body) = response.into_parts();
    let mut frames = Vec::new();
    let mut size = 0;
    while size <= MOST {
        match body.frame().await {
            None => break,
            Some(Err(broken)) => return Err(crate::status::with_causes(&broken)),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref().filter(|trailers| placed::is_of_a_node(trailers)) {
                    parts.headers.extend(trailers.clone());
                    return Ok(Response::from_parts(parts, Body::empty()));
                }
                size += frame.data_ref().map_or(0, Bytes::len);
                frames.push(Ok(frame));
            }
        }
    }
    let body = match frames.is_empty() {
        true => Body::empty(),
        false => Body::new(StreamBody::new(stream::iter(frames).chain(BodyStream::new(body)))),
    };
    Ok(Response::from_parts(parts, body))
}

/// Whether a call ended because of where its module is, not because of the module: what may help is to make it again.
/// A module's own status is none of these.
pub(crate) fn ended_on_the_way(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.metadata().contains_key(keys::OUTCOME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_made_five_times_at_the_most_with_growing_pauses() {
        let budget = Budget::default();
        let mut tries = Tries::default();
        let pauses: Vec<Duration> =
            std::iter::from_fn(|| tries.again(Delivery::Idempotent, true, &budget)).take(20).collect();
        assert_eq!(pauses.len(), 4);
        for (pause, nominal) in pauses.iter().zip([50, 100, 200, 400].map(Duration::from_millis)) {
            assert!((nominal.mul_f64(0.79)..nominal.mul_f64(1.21)).contains(pause), "{pauses:?}");
        }
        assert!(pause(u32::MAX) <= LONGEST_PAUSE.mul_f64(1.2));
    }

    #[test]
    fn only_what_does_no_harm_is_made_again() {
        let again = |delivery, found| Tries::default().again(delivery, found, &Budget::default()).is_some();
        assert_eq!([again(Delivery::Once, false), again(Delivery::Once, true)], [false, false]);
        assert_eq!([again(Delivery::Idempotent, false), again(Delivery::Idempotent, true)], [true, true]);
        assert_eq!([again(Delivery::Dedupe, false), again(Delivery::Dedupe, true)], [false, true]);
    }

    #[test]
    fn where_everything_fails_retries_end_and_answers_bring_a_tenth_of_them_back() {
        let budget = Budget::default();
        let allowed = (0..2000).filter(|_| budget.failed()).count();
        assert_eq!(allowed, 499);
        // Nothing is left; 5,010 answers make it 501 tokens, and one retry costs one.
        (0..5_020).for_each(|_| budget.answered());
        assert_eq!((0..10).filter(|_| budget.failed()).count(), 1);
        (0..100_000).for_each(|_| budget.answered());
        assert_eq!(budget.tokens.load(Ordering::Relaxed), FULL);
    }
}

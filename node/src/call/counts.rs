//! What calls are counted by. Each thread counts on cache lines of its own, so that to count costs no two cores one that
//! they pass back and forth; whoever wants to know adds up.
//!
//! | | counted by | told by |
//! |---|---|---|
//! | a call of a module here | the gate, which counts it anyhow | [`Gate::ended`] |
//! | one of those that did not end well | [`Codes`], when it has not | [`Account`], or who makes it on the trait |
//! | a client's call, and one that another node answers | [`Endings`], with how long it took | [`Account`] |

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Code;

use super::{gate::Gate, slot::ModuleFacts};

/// More than the cores of most machines would only make adding up slower.
const SHARDS: usize = 8;
/// gRPC's codes, from OK on.
pub(crate) const CODES: usize = 17;
/// Up to which a duration is counted in which bucket, in microseconds; the last one has no bound.
pub(crate) const BOUNDS_US: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];

thread_local! {
    static MINE: u8 = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        (THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS) as u8
    };
}

/// The shard that this thread counts in.
#[inline]
fn mine() -> u8 {
    MINE.with(|mine| *mine)
}

/// On cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line<T>(T);

/// Where a call comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Origin {
    /// A module of this process, or its main program.
    #[default]
    Here = 0,
    /// A client, by the ingress.
    Client = 1,
    /// Another node.
    Node = 2,
    /// A part of a call that is counted already.
    Part = 3,
}

/// How often each code was counted.
#[derive(Debug, Default)]
pub(crate) struct Codes([Line<[AtomicU64; CODES]>; SHARDS]);

impl Codes {
    pub(crate) fn count(&self, code: Code) {
        self.0[usize::from(mine())].0[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// In the order of the codes.
    pub(crate) fn counts(&self) -> [u64; CODES] {
        std::array::from_fn(|code| self.0.iter().map(|line| line.0[code].load(Ordering::Relaxed)).sum())
    }
}

/// How long something took, each time.
#[derive(Debug, Default)]
pub(crate) struct Durations([Line<Spread>; SHARDS]);

#[derive(Debug, Default)]
struct Spread {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Durations {
    pub(crate) fn count(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        let Line(spread) = &self.0[usize::from(mine())];
        spread.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        spread.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.counts().0.iter().all(|count| *count == 0)
    }

    /// How many were in each bucket, and how long all took together.
    pub(crate) fn counts(&self) -> ([u64; BOUNDS_US.len() + 1], Duration) {
        let sum = |of: &dyn Fn(&Spread) -> &AtomicU64| -> u64 {
            self.0.iter().map(|line| of(&line.0).load(Ordering::Relaxed)).sum()
        };
        let buckets = std::array::from_fn(|bucket| sum(&|spread| &spread.buckets[bucket]));
        (buckets, Duration::from_micros(sum(&|spread| &spread.sum_us)))
    }
}

/// How calls ended, and how long those with one answer took.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    pub(crate) codes: Codes,
    pub(crate) durations: Durations,
}

/// The calls of one module, at one node.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Of the calls that its instances here have admitted: how those ended that did not end well.
    pub(crate) errors: Codes,
    /// Of clients.
    pub(crate) ingress: Endings,
    /// That were sent to other nodes, made there or passed on.
    pub(crate) remote: Endings,
    /// That have waited for the module to be somewhere.
    pub(crate) waited: AtomicU64,
    instances: Mutex<Instances>,
}

#[derive(Debug, Default)]
struct Instances {
    /// Whether there was one, ever.
    any: bool,
    there: Vec<Arc<Gate>>,
    /// The calls of those that are gone.
    past: [u64; 3],
}

impl Instances {
    /// Keeps the calls of gates that nobody else has any more, and lets those go.
    fn settle(&mut self) {
        let Self { there, past, .. } = self;
        there.retain_mut(|gate| match Arc::get_mut(gate) {
            Some(gone) => {
                past.iter_mut().zip(gone.ended()).for_each(|(past, ended)| *past += ended);
                false
            }
            None => true,
        });
    }
}

impl Counts {
    /// Counts the calls of an instance too.
    pub(crate) fn watch(&self, gate: &Arc<Gate>) {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.settle();
        instances.any = true;
        instances.there.push(Arc::clone(gate));
    }

    /// Whether there is an instance, or was one.
    pub(crate) fn any(&self) -> bool {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).any
    }

    /// The calls of all instances: how many have ended, by where they came from (here, a client, another node), and how many
    /// are inside now.
    pub(crate) fn admitted(&self) -> ([u64; 3], usize) {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.settle();
        let mut ended = instances.past;
        for gate in &instances.there {
            ended.iter_mut().zip(gate.ended()).for_each(|(all, ended)| *all += ended);
        }
        (ended, instances.there.iter().map(|gate| gate.inside()).sum())
    }
}

/// Counts a call, once, when it ends. One that is dropped before was cancelled.
#[derive(Debug)]
pub(super) struct Account {
    module: Arc<ModuleFacts>,
    origin: Origin,
    began: Instant,
    /// One answer ends it: then it counts how long that took.
    unary: bool,
    went: Went,
    open: bool,
}

/// Where a call has gone.
#[derive(Debug, Default)]
pub(super) struct Went {
    here: AtomicBool,
    elsewhere: AtomicBool,
}

impl Went {
    /// An instance here has admitted it.
    pub(super) fn here(&self) {
        self.here.store(true, Ordering::Relaxed);
    }

    /// It is about to be sent to another node.
    pub(super) fn elsewhere(&self) {
        self.elsewhere.store(true, Ordering::Relaxed);
    }
}

impl Account {
    pub(super) fn open(module: &Arc<ModuleFacts>, origin: Origin, unary: bool) -> Self {
        Self { module: Arc::clone(module), origin, began: Instant::now(), unary, went: Went::default(), open: true }
    }

    /// To be told where it goes.
    pub(super) fn went(&self) -> &Went {
        &self.went
    }

    /// It has ended.
    pub(super) fn close(&mut self, code: Code) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let (counts, here) = (&self.module.counts, *self.went.here.get_mut());
        if here && code != Code::Ok {
            counts.errors.count(code);
        }
        let ingress = (self.origin == Origin::Client).then_some(&counts.ingress);
        // One that was sent in vain, and then served here, is not remote.
        let remote = (!here && *self.went.elsewhere.get_mut()).then_some(&counts.remote);
        for endings in ingress.into_iter().chain(remote) {
            endings.codes.count(code);
            if self.unary {
                endings.durations.count(self.began.elapsed());
            }
        }
    }

    /// It is counted elsewhere.
    pub(super) fn forget(mut self) {
        self.open = false;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.close(Code::Cancelled);
    }
}

/// The code in the headers of an answer, or its trailers.
pub(super) fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::chain::Chain, id::Epoch};

    #[test]
    fn a_duration_is_counted_in_the_bucket_that_its_bound_is_in() {
        let durations = Durations::default();
        let all = [0, 100, 101, 10_000_000, 10_000_001];
        all.iter().for_each(|us| durations.count(Duration::from_micros(*us)));
        let (buckets, sum) = durations.counts();
        assert_eq!((buckets[0], buckets[1], buckets[14], buckets[15]), (2, 1, 1, 1));
        assert_eq!(sum, Duration::from_micros(all.iter().sum()));
    }

    #[test]
    fn what_threads_count_adds_up() {
        let codes = Arc::new(Codes::default());
        let threads: Vec<_> = (0..2 * SHARDS)
            .map(|_| {
                let codes = Arc::clone(&codes);
                std::thread::spawn(move || (0..100).for_each(|_| codes.count(Code::Aborted)))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("it counts"));
        assert_eq!(codes.counts()[Code::Aborted as usize], 200 * SHARDS as u64);
    }

    #[test]
    fn the_calls_of_an_instance_count_when_it_is_gone_too() {
        let counts = Counts::default();
        let gate = Arc::new(Gate::default());
        counts.watch(&gate);
        let pass = gate.pass(Chain::NONE, Origin::Client).expect("it is open");
        drop(gate.pass(Chain::NONE, Origin::Node));
        assert_eq!(counts.admitted(), ([0, 0, 1], 1));
        gate.close();
        assert!(gate.pass(Chain::NONE, Origin::Here).is_none());
        drop(pass);
        assert_eq!(counts.admitted(), ([0, 1, 1], 0), "who was turned away is not counted");
        drop(gate);
        let next = Arc::new(Gate::default());
        next.open(Epoch(2), 0);
        counts.watch(&next);
        drop(next.pass(Chain::NONE, Origin::Here));
        assert_eq!(counts.admitted(), ([1, 1, 1], 0));
    }
}

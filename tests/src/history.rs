//! Callers of `store` that write down each call: when it was sent, and what is known to have become of it; and what must
//! hold of all calls together, whatever has happened to the nodes.
//!
//! ```text
//! Callers ─ append, put, get, add ─▶ nodes of a Fleet
//!    └─▶ History ─┬─ one_owner_at_a_time    by epoch, by the clocks of callers, by the clock of the machine
//!                 ├─ registers_are_right    linearizable, each for itself
//!                 └─ kept(list)             lost, twice, or there although it has not run
//! ```

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, transport::Channel};

use crate::{
    linear::{self, Operation},
    store::v1::{AddRequest, AppendRequest, GetRequest, ListResponse, PutRequest, Served, store_client::StoreClient},
};

pub use linear::Deed;

/// After a call that was answered, and after one that was not: a node that is gone refuses at once.
const PAUSE: Duration = Duration::from_millis(2);
const LONGER_PAUSE: Duration = Duration::from_millis(20);
/// How much longer than its deadline a caller waits for an answer: a node that stands still gives none.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many calls go to one register: so few that their order can be looked for.
const CALLS_OF_A_REGISTER: u64 = 48;

/// What a call was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// An entry of the list, of which no other call adds the same.
    Entry(String),
    /// Something about a register.
    Register(String, Deed),
}

/// A call, and how it ended.
#[derive(Debug, Clone)]
pub struct Call {
    /// The client that made it.
    pub client: String,
    /// What it was for.
    pub what: What,
    /// When it was sent.
    pub sent: Instant,
    /// When it had ended.
    pub ended: Instant,
    /// What became of it.
    pub outcome: Outcome,
}

/// What is known to have become of a call.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It was acknowledged: with the place of the entry or the value, and by whom.
    Done(i64, Served),
    /// It has not run, for this reason.
    NotExecuted(String),
    /// It may have run.
    Unknown(String),
}

impl Outcome {
    fn of(result: Result<(i64, Option<Served>), Status>) -> Self {
        let status = match result {
            Ok((number, served)) => return Self::Done(number, served.unwrap_or_default()),
            Err(status) => status,
        };
        let told = |key: &str| status.metadata().get(key).and_then(|value| value.to_str().ok());
        let why = |reason: &str| format!("{reason}: {:?} {}", status.code(), status.message());
        match (told("outpost-outcome"), told("outpost-reason")) {
            (Some("not-executed"), reason) => Self::NotExecuted(why(reason.unwrap_or("no reason"))),
            (Some(_), reason) => Self::Unknown(why(reason.unwrap_or("no reason"))),
            // The module's own word: its database has refused it.
            (None, _) if status.code() == Code::Aborted => Self::NotExecuted(why("refused")),
            // It has never left the client.
            (None, _) if status.message().contains("tcp connect error") => Self::NotExecuted(why("no connection")),
            (None, _) => Self::Unknown(why("no word")),
        }
    }
}

impl Call {
    /// By whom it was acknowledged, if it was.
    #[must_use]
    pub fn served(&self) -> Option<&Served> {
        match &self.outcome {
            Outcome::Done(_, served) => Some(served),
            _ => None,
        }
    }
}

/// Clients that call without a pause until they are told to stop. They end when it is dropped.
#[derive(Debug)]
pub struct Callers {
    calls: Arc<Mutex<Vec<Call>>>,
    turns: Arc<AtomicU64>,
    clients: JoinSet<()>,
    stop: CancellationToken,
    name: String,
    limit: Duration,
    began: Instant,
}

impl Callers {
    /// Nobody yet. Their entries and registers begin with this name, which no others have; their calls have this limit.
    #[must_use]
    pub fn new(name: &str, limit: Duration) -> Self {
        Self {
            calls: Arc::default(),
            turns: Arc::default(),
            clients: JoinSet::new(),
            stop: CancellationToken::new(),
            name: name.to_owned(),
            limit,
            began: Instant::now(),
        }
    }

    /// Adds a client that calls through one node, one call after the other. No two have one name.
    pub fn add(&mut self, name: &str, channel: Channel) {
        let (calls, turns, stop) = (Arc::clone(&self.calls), Arc::clone(&self.turns), self.stop.clone());
        let (name, limit, number) = (format!("{}{name}", self.name), self.limit, self.clients.len() as i64);
        let of = self.name.clone();
        self.clients.spawn(async move {
            for round in 0_i64.. {
                if stop.is_cancelled() {
                    return;
                }
                let what = match round % 2 {
                    0 => What::Entry(format!("{name} {round}")),
                    // Which is no other call's value.
                    _ => about_a_register(&of, turns.fetch_add(1, Ordering::Relaxed), round * 1000 + number),
                };
                let sent = Instant::now();
                let told = timeout(limit + PATIENCE, make(channel.clone(), &what, limit)).await;
                let told = told.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer, and no end")));
                let outcome = Outcome::of(told);
                let pause = if matches!(outcome, Outcome::Done(..)) { PAUSE } else { LONGER_PAUSE };
                let call = Call { client: name.clone(), what, sent, ended: Instant::now(), outcome };
                calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
                sleep(pause).await;
            }
        });
    }

    /// How many calls were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|call| call.served().is_some()).count()
    }

    /// Waits until so many more calls were acknowledged.
    ///
    /// # Panics
    /// When they are not within the limit.
    pub async fn more(&self, calls: usize, limit: Duration) {
        let (wanted, end) = (self.acknowledged() + calls, Instant::now() + limit);
        while self.acknowledged() < wanted {
            assert!(Instant::now() < end, "{} of {wanted} calls after {limit:?}", self.acknowledged());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets calls finish, and gives all of them.
    pub async fn finish(mut self) -> History {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client gave up");
        }
        let calls = std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner));
        History { calls, began: self.began }
    }
}

/// A register for some of these calls, and a counter for others.
fn about_a_register(of: &str, turn: u64, value: i64) -> What {
    let (pair, turn) = (turn / (2 * CALLS_OF_A_REGISTER), turn % (2 * CALLS_OF_A_REGISTER));
    let (key, deed) = match turn % 4 {
        0 => (format!("{of}register {pair}"), Deed::Put(value)),
        1 => (format!("{of}counter {pair}"), Deed::Add(1)),
        2 => (format!("{of}register {pair}"), Deed::Get),
        _ => (format!("{of}counter {pair}"), if turn % 8 == 3 { Deed::Get } else { Deed::Add(1) }),
    };
    What::Register(key, deed)
}

async fn make(channel: Channel, what: &What, limit: Duration) -> Result<(i64, Option<Served>), Status> {
    fn within<T>(message: T, limit: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        request
    }
    let mut client = StoreClient::new(channel);
    Ok(match what.clone() {
        What::Entry(id) => {
            let told =
                client.append(within(AppendRequest { id, take_ms: 0 }, limit)).await.map(Response::into_inner)?;
            (i64::try_from(told.length).unwrap_or(i64::MAX), told.served)
        }
        What::Register(key, Deed::Put(value)) => {
            (0, client.put(within(PutRequest { key, value }, limit)).await?.into_inner().served)
        }
        What::Register(key, Deed::Get) => {
            let told = client.get(within(GetRequest { key }, limit)).await?.into_inner();
            (told.value, told.served)
        }
        What::Register(key, Deed::Add(by)) => {
            let told = client.add(within(AddRequest { key, by }, limit)).await?.into_inner();
            (told.value, told.served)
        }
    })
}

/// What may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    /// Nothing.
    None,
    /// All that was acknowledged up to some epoch: the owner of then has crashed with it.
    WholeEpochs,
    /// Of what each owner has acknowledged, what came last.
    EndsOfEpochs,
}

/// All calls.
#[derive(Debug)]
pub struct History {
    calls: Vec<Call>,
    began: Instant,
}

impl History {
    /// Each of them, in the order in which they ended.
    #[must_use]
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    fn done(&self) -> impl Iterator<Item = (&Call, i64, &Served)> {
        self.calls.iter().filter_map(|call| match &call.outcome {
            Outcome::Done(number, served) => Some((call, *number, served)),
            _ => None,
        })
    }

    /// The calls that were not acknowledged, each in a line.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let failed = self.calls.iter().filter(|call| call.served().is_none());
        failed.map(|call| self.tell(call)).collect()
    }

    /// A call, for people.
    #[must_use]
    pub fn tell(&self, call: &Call) -> String {
        let (sent, took) = (call.sent - self.began, call.ended - call.sent);
        format!("{} at {sent:?} for {took:?}: {:?} {:?}", call.client, call.what, call.outcome)
    }

    /// INV-1: an epoch is of one process; whoever answers a call has an epoch as late as that of any call which had ended
    /// before this one was sent; and by the clock of the machine, nobody runs a call at an epoch once somebody has run one
    /// at a later one.
    ///
    /// # Errors
    /// Two calls of which that is not so.
    pub fn one_owner_at_a_time(&self) -> Result<(), String> {
        let mut owners: BTreeMap<u64, &Call> = BTreeMap::new();
        for (call, _, served) in self.done() {
            let first = owners.entry(served.epoch).or_insert(call);
            if first.served().is_some_and(|first| first.node != served.node) {
                return Err(format!("two owners of one epoch:\n{}\n{}", self.tell(first), self.tell(call)));
            }
        }
        let in_order = |mut marks: Vec<(u64, bool, &Call)>, what: &str| {
            // At the same time, who looks comes before who is seen: only what is certain counts.
            marks.sort_by_key(|(at, seen, _)| (*at, *seen));
            let mut latest: Option<&Call> = None;
            let epoch = |call: &Call| call.served().map_or(0, |served| served.epoch);
            for (_, seen, call) in marks {
                match latest {
                    Some(latest) if !seen && epoch(latest) > epoch(call) => {
                        return Err(format!("{what}:\n{}\n{}", self.tell(latest), self.tell(call)));
                    }
                    Some(latest) if epoch(latest) >= epoch(call) => {}
                    _ if seen => latest = Some(call),
                    _ => {}
                }
            }
            Ok(())
        };
        let us = |at: Instant| u64::try_from((at - self.began).as_micros()).unwrap_or(u64::MAX);
        let by_callers =
            self.done().flat_map(|(call, ..)| [(us(call.sent), false, call), (us(call.ended), true, call)]);
        in_order(by_callers.collect(), "an answer of an owner of before")?;
        let by_machine = self.done().flat_map(|(call, _, told)| [(told.at_us, false, call), (told.at_us, true, call)]);
        in_order(by_machine.collect(), "two owners at a time")
    }

    /// Each register is linearizable, for itself. Gives how many there were.
    ///
    /// # Errors
    /// The calls of one that is not.
    pub fn registers_are_right(&self) -> Result<usize, String> {
        let mut registers: HashMap<&str, Vec<(&Call, Operation)>> = HashMap::new();
        for call in &self.calls {
            let What::Register(key, deed) = &call.what else { continue };
            let answer = match &call.outcome {
                Outcome::Done(number, _) => Some((call.ended, *number)),
                // Nobody could see it if it had run.
                Outcome::Unknown(_) if *deed != Deed::Get => None,
                Outcome::Unknown(_) | Outcome::NotExecuted(_) => continue,
            };
            let operation = Operation { deed: *deed, sent: call.sent, answer };
            registers.entry(key).or_default().push((call, operation));
        }
        for (key, calls) in &registers {
            let operations: Vec<Operation> = calls.iter().map(|(_, operation)| *operation).collect();
            if !linear::is_linearizable(&operations) {
                let lines: Vec<String> = calls.iter().map(|(call, _)| self.tell(call)).collect();
                return Err(format!("`{key}` is not linearizable:\n{}", lines.join("\n")));
            }
        }
        Ok(registers.len())
    }

    /// INV-3: what was acknowledged is in the list, at the place that was told, but for such losses; nothing is there twice,
    /// and nothing of which it was said that it has not run.
    ///
    /// # Errors
    /// What is wrong.
    pub fn kept(&self, list: &ListResponse, losses: Losses) -> Result<Figures, String> {
        let places: HashMap<&str, i64> = list.ids.iter().map(String::as_str).zip(1..).collect();
        let mut figures = Figures { sent: self.calls.len(), ..Figures::default() };
        figures.twice = list.repeated.len() + list.ids.len() - places.len();
        let mut epochs: BTreeMap<u64, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
        let mut wrong = Vec::new();
        for call in &self.calls {
            let place = match &call.what {
                What::Entry(id) => places.get(id.as_str()),
                What::Register(..) => None,
            };
            match &call.outcome {
                Outcome::Done(number, served) => {
                    figures.acknowledged += 1;
                    if matches!(call.what, What::Register(..)) {
                        continue;
                    }
                    let (there, gone) = epochs.entry(served.epoch).or_default();
                    if place.is_some() {
                        there.push(*number)
                    } else {
                        gone.push(*number)
                    }
                    if place.is_some_and(|place| place != number) {
                        wrong.push(format!("it is at {place:?}: {}", self.tell(call)));
                    }
                }
                Outcome::NotExecuted(_) => {
                    figures.not_executed += 1;
                    if place.is_some() {
                        wrong.push(format!("it has run: {}", self.tell(call)));
                    }
                }
                Outcome::Unknown(_) => figures.unknown += 1,
            }
        }
        figures.lost = epochs.values().map(|(_, gone)| gone.len()).sum();
        let first_there = epochs.iter().find(|(_, (there, _))| !there.is_empty()).map(|(epoch, _)| *epoch);
        for (epoch, (there, gone)) in &epochs {
            let allowed = match losses {
                Losses::None => gone.is_empty(),
                Losses::WholeEpochs => gone.is_empty() || first_there.is_none_or(|first| *epoch < first),
                Losses::EndsOfEpochs => gone.iter().min().is_none_or(|gone| there.iter().max() < Some(gone)),
            };
            if !allowed {
                wrong.push(format!("of epoch {epoch} {} are lost and {} are there", gone.len(), there.len()));
            }
        }
        if figures.twice > 0 {
            let known: HashSet<&str> = list.repeated.iter().map(String::as_str).collect();
            wrong.push(format!("twice: {:?}", known.iter().take(5).collect::<Vec<_>>()));
        }
        match wrong.len() {
            0 => Ok(figures),
            count => Err(format!("{count} wrongs, of which:\n{}\n{figures}", wrong[..count.min(10)].join("\n"))),
        }
    }

    /// The entries that were acknowledged, and are not in the list.
    #[must_use]
    pub fn lost(&self, list: &ListResponse) -> Vec<&Call> {
        let there: HashSet<&str> = list.ids.iter().map(String::as_str).collect();
        let gone = |call: &&Call| matches!(&call.what, What::Entry(id) if !there.contains(id.as_str()));
        self.calls.iter().filter(|call| call.served().is_some()).filter(gone).collect()
    }

    /// How long clients went without an acknowledgement about these times: each client's longest wait that was not over at
    /// the time, or began within the span after it.
    #[must_use]
    pub fn stalls(&self, at: &[Instant], span: Duration) -> Stalls {
        let mut clients: HashMap<&str, Vec<Instant>> = HashMap::new();
        for (call, ..) in self.done() {
            clients.entry(&call.client).or_default().push(call.ended);
        }
        let mut stalls = Vec::new();
        for ends in clients.values() {
            for at in at {
                let about = ends.windows(2).filter(|pair| pair[1] >= *at && pair[0] <= *at + span);
                stalls.extend(about.map(|pair| pair[1] - pair[0]).max());
            }
        }
        stalls.sort_unstable();
        Stalls(stalls)
    }

    /// How long after a time it took until a call was acknowledged by another owner.
    #[must_use]
    pub fn served_again(&self, at: Instant) -> Option<Duration> {
        let epoch = self.done().filter(|(call, ..)| call.ended <= at).map(|(.., served)| served.epoch).max()?;
        let by_another = self.done().filter(|(.., served)| served.epoch > epoch);
        by_another.map(|(call, ..)| call.ended).min().map(|first| first.saturating_duration_since(at))
    }

    /// How often calls were not acknowledged, for each reason.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for call in &self.calls {
            if let Outcome::NotExecuted(why) | Outcome::Unknown(why) = &call.outcome {
                *reasons.entry(why.split(':').next().unwrap_or_default()).or_default() += 1;
            }
        }
        reasons
    }
}

/// What became of the calls, in numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Calls.
    pub sent: usize,
    /// Of which were acknowledged,
    pub acknowledged: usize,
    /// were said not to have run,
    pub not_executed: usize,
    /// may have run.
    pub unknown: usize,
    /// Entries that were acknowledged, and are gone.
    pub lost: usize,
    /// Entries that were added twice.
    pub twice: usize,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sent, acknowledged, not_executed, unknown, lost, twice } = self;
        write!(f, "{sent} calls: {acknowledged} acknowledged, {not_executed} not executed, {unknown} unknown; ")?;
        write!(f, "{lost} lost, {twice} twice")
    }
}

/// How long clients waited, the shortest first.
#[derive(Debug)]
pub struct Stalls(Vec<Duration>);

impl Stalls {
    /// The longest.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Stalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at =
            |percent: usize| self.0.get(self.0.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default();
        write!(f, "stalls p50 {:.0?}, p99 {:.0?}, longest {:.0?}", at(50), at(99), self.longest())
    }
}

//! Modules with state, one of each class whose state travels; and what must be true of what they hold.
//!
//! ```text
//! pad      ephemeral, copied before it moves     empty after a crash of its owner
//! shelf    checkpointed                          after a crash, what the newest checkpoint has
//! ledger   durable, in a store with a fence      whatever happens, all that was acknowledged
//! ```
//! Each holds a list of the entries that were added. What a list must be at an epoch is known when the placement's records
//! of that epoch are: so what is noted amid a millisecond is checked at its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use outpost::{BoxError, Context, Snapshot, SnapshotReader, SnapshotWriter, State, fence, simulation};
use tokio::{sync::oneshot, time::sleep};
use tonic::{Request, Response, Status};

use crate::{
    app::Admit,
    book,
    machine::turn,
    v1::{
        Appended, Entry,
        ledger_server::{self, LedgerServer},
        pad_server::{self, PadServer},
        shelf_server::{self, ShelfServer},
    },
};

/// The ephemeral module.
pub const PAD: &str = "pad";
/// The checkpointed one.
pub const SHELF: &str = "shelf";
/// The durable one.
pub const LEDGER: &str = "ledger";
/// How long something is usually on its way to the store at the most, in milliseconds.
const WAY: u64 = 40;
/// And if it has to be sent again and again: longer than a lease, and than callers wait.
const LONG_WAY: u64 = 15_000;

fn me() -> String {
    turn().map(|board| board.name().to_owned()).unwrap_or_default()
}

/// A list in memory. The `TRACKS` one is copied before it moves.
#[derive(Debug, Default)]
pub struct List<const TRACKS: bool> {
    entries: Mutex<Vec<String>>,
    /// The first entry since tracking began.
    tracked: Mutex<usize>,
}

impl<const TRACKS: bool> List<TRACKS> {
    fn entries(&self) -> MutexGuard<'_, Vec<String>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tracked(&self) -> MutexGuard<'_, usize> {
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<const TRACKS: bool> Snapshot for List<TRACKS> {
    async fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), BoxError> {
        let entries = self.entries().clone();
        if !TRACKS {
            book::lists(|lists| lists.sealed(SHELF, &entries));
        }
        Ok(out.write(serde_json::to_vec(&entries)?).await?)
    }

    async fn restore(&self, from: &mut SnapshotReader) -> Result<(), BoxError> {
        let entries = serde_json::from_slice(&from.rest().await?)?;
        *self.entries() = entries;
        Ok(())
    }

    fn track_changes(&self, track: bool) -> bool {
        if track {
            *self.tracked() = self.entries().len();
        }
        TRACKS
    }

    async fn changes(&self, out: &mut SnapshotWriter) -> Result<(), BoxError> {
        let (entries, since) = (self.entries().clone(), *self.tracked());
        book::lists(|lists| lists.sealed(PAD, &entries));
        Ok(out.write(serde_json::to_vec(&(since, &entries[since..]))?).await?)
    }

    async fn apply(&self, from: &mut SnapshotReader) -> Result<(), BoxError> {
        let (since, new): (usize, Vec<String>) = serde_json::from_slice(&from.rest().await?)?;
        let mut entries = self.entries();
        if entries.len() < since {
            return Err("the copy is older than the changes".into());
        }
        // The copy may have some of them.
        entries.truncate(since);
        entries.extend(new);
        Ok(())
    }
}

/// What serves a list in memory.
struct Listing<const TRACKS: bool> {
    ctx: Context,
    list: State<List<TRACKS>>,
    name: &'static str,
    /// The last epoch at which it was called.
    called: AtomicU64,
}

impl<const TRACKS: bool> Listing<TRACKS> {
    async fn add(&self, Entry { id, work_ms }: Entry) -> Appended {
        let epoch = self.ctx.epoch();
        if self.called.swap(epoch, Ordering::Relaxed) != epoch {
            let entries = self.list.entries().clone();
            book::lists(|lists| lists.opened(self.name, epoch, entries, None));
        }
        // Some calls go on after their effect.
        let (before, after) = if rand::random_bool(0.5) { (work_ms, 0) } else { (0, work_ms) };
        if before > 0 {
            sleep(Duration::from_millis(before.into())).await;
        }
        let place = {
            let mut entries = self.list.entries();
            entries.push(id.clone());
            entries.len() as u64
        };
        let node = me();
        // A call that began before the module went and came back is one of the epoch that it began at.
        book::appended(&id, self.name, epoch, &node, 0);
        if after > 0 {
            sleep(Duration::from_millis(after.into())).await;
        }
        Appended { id, node, generation: 0, epoch, place }
    }
}

#[tonic::async_trait]
impl pad_server::Pad for Listing<true> {
    async fn append(&self, request: Request<Entry>) -> Result<Response<Appended>, Status> {
        Ok(Response::new(self.add(request.into_inner()).await))
    }
}

#[tonic::async_trait]
impl shelf_server::Shelf for Listing<false> {
    async fn append(&self, request: Request<Entry>) -> Result<Response<Appended>, Status> {
        Ok(Response::new(self.add(request.into_inner()).await))
    }
}

/// # Errors
/// None.
pub async fn pad(
    admit: Admit,
    ctx: Context,
    list: State<List<true>>,
) -> Result<Watched<PadServer<impl pad_server::Pad>>, BoxError> {
    Ok(PadServer::with_interceptor(Listing { ctx, list, name: PAD, called: AtomicU64::new(0) }, admit))
}

/// # Errors
/// None.
pub async fn shelf(
    admit: Admit,
    ctx: Context,
    list: State<List<false>>,
) -> Result<Watched<ShelfServer<impl shelf_server::Shelf>>, BoxError> {
    let opened = list.clone();
    ctx.on_activate(move |epoch| {
        let entries = opened.entries().clone();
        // Before this owner writes one.
        let newest = simulation::checkpoints().into_iter().rev().find(|(name, _)| name.contains("/shelf/"));
        let newest = newest.and_then(|(_, content)| simulation::state_of(content));
        let newest = newest.and_then(|state| serde_json::from_slice(&state).ok()).unwrap_or_default();
        book::lists(|lists| lists.opened(SHELF, epoch, entries, Some(newest)));
        async { Ok::<_, BoxError>(()) }
    });
    Ok(ShelfServer::with_interceptor(Listing { ctx, list, name: SHELF, called: AtomicU64::new(0) }, admit))
}

/// A server that notes which calls were let in.
type Watched<S> = tonic::service::interceptor::InterceptedService<S, Admit>;

struct Booking {
    ctx: Context,
}

#[tonic::async_trait]
impl ledger_server::Ledger for Booking {
    async fn append(&self, request: Request<Entry>) -> Result<Response<Appended>, Status> {
        let Entry { id, work_ms } = request.into_inner();
        let epoch = self.ctx.epoch();
        sleep(Duration::from_millis(work_ms.into())).await;
        let place = at_the_store(epoch, Some(id.clone())).await;
        let place = place.map_err(|fenced| Status::aborted(fenced.to_string()))?;
        Ok(Response::new(Appended { id, node: me(), generation: 0, epoch, place }))
    }
}

/// # Errors
/// None.
pub async fn ledger(admit: Admit, ctx: Context) -> Result<Watched<LedgerServer<impl ledger_server::Ledger>>, BoxError> {
    ctx.on_activate(|epoch| async move { at_the_store(epoch, None).await.map(drop).map_err(BoxError::from) });
    Ok(LedgerServer::with_interceptor(Booking { ctx }, admit))
}

/// Sends an entry to the store, or only the epoch. What was sent arrives, whatever becomes of the sender.
async fn at_the_store(epoch: u64, id: Option<String>) -> Result<u64, fence::Fenced> {
    let (done, answer) = oneshot::channel();
    let long = id.is_some() && rand::random_ratio(1, 16);
    let now_ms = book::now_ms();
    book::lists(|lists| {
        let way = if long && lists.slow { LONG_WAY } else { WAY };
        let at = now_ms + rand::random_range(1..way);
        lists.under_way.push(Sent { at, epoch, id, node: me(), done });
    });
    match answer.await {
        Ok(answer) => answer,
        // The store never drops one.
        Err(_) => std::future::pending().await,
    }
}

/// What is on its way to the store of the ledger.
#[derive(Debug)]
struct Sent {
    /// When it arrives, in milliseconds.
    at: u64,
    epoch: u64,
    id: Option<String>,
    node: String,
    done: oneshot::Sender<Result<u64, fence::Fenced>>,
}

/// What an instance began to serve with.
#[derive(Debug)]
struct Opened {
    module: &'static str,
    epoch: u64,
    entries: Vec<String>,
    /// Of the newest checkpoint.
    checkpoint: Option<Vec<String>>,
}

/// An answer: the epoch, the node and the place in the list.
type Answer = (u64, String, u64);

/// What is known of the lists, and the store of the ledger.
#[derive(Debug, Default)]
pub struct Lists {
    /// What was wrong first, and is not told yet.
    pub wrong: Option<(&'static str, String)>,
    /// What was written as the state of a module.
    sealed: BTreeMap<&'static str, BTreeSet<Vec<String>>>,
    opened: Vec<Opened>,
    /// The list of each epoch of a module, as far as it has come.
    left: BTreeMap<(String, u64), Vec<String>>,
    /// The take-overs of each module, by their epoch; and whether the new owner had the state all the same.
    taken: BTreeMap<(String, u64), bool>,
    /// The first answer that each call got.
    answers: BTreeMap<String, (&'static str, Answer)>,
    /// Whether some of what is sent to the store is on its way for long.
    pub slow: bool,
    /// The store: what is on its way to it, its epoch, and what it holds.
    under_way: Vec<Sent>,
    fence: Option<u64>,
    stored: Vec<String>,
}

impl Lists {
    fn violated(&mut self, invariant: &'static str, text: String) {
        self.wrong.get_or_insert((invariant, text));
    }

    /// A record tells of a take-over.
    pub fn taken_over(&mut self, module: &str, epoch: u64, kept: bool) {
        self.taken.entry((module.to_owned(), epoch)).or_insert(kept);
    }

    /// Whether the state may have been lost after one epoch, until another one.
    fn lost(&self, module: &str, after: u64, until: u64) -> bool {
        let range = (module.to_owned(), after + 1)..=(module.to_owned(), until);
        after < until && self.taken.range(range).any(|(_, kept)| !kept)
    }

    /// A module writes its state, for another node or a checkpoint.
    fn sealed(&mut self, module: &'static str, entries: &[String]) {
        self.sealed.entry(module).or_default().insert(entries.to_vec());
    }

    fn opened(&mut self, module: &'static str, epoch: u64, entries: Vec<String>, checkpoint: Option<Vec<String>>) {
        if self.left.contains_key(&(module.to_owned(), epoch)) && checkpoint.is_none() {
            return;
        }
        self.left.insert((module.to_owned(), epoch), entries.clone());
        self.opened.push(Opened { module, epoch, entries, checkpoint });
    }

    /// An entry was added.
    pub fn appended(&mut self, module: &str, epoch: u64, id: &str) {
        let list = self.left.entry((module.to_owned(), epoch)).or_default();
        let again = list.iter().any(|known| known == id);
        list.push(id.to_owned());
        if again {
            self.violated("I4", format!("{id} was added twice to `{module}`, the second time at epoch {epoch}"));
        }
    }

    /// A call has been answered.
    pub fn answered(&mut self, module: &'static str, appended: &Appended) {
        let answer: Answer = (appended.epoch, appended.node.clone(), appended.place);
        let Some((_, first)) = self.answers.get(&appended.id).cloned() else {
            self.answers.insert(appended.id.clone(), (module, answer));
            if module == LEDGER && self.stored.iter().filter(|id| **id == appended.id).count() != 1 {
                self.violated("I3", format!("{} was acknowledged by the ledger, and is not there once", appended.id));
            }
            return;
        };
        let (one, other) = (first.0.min(answer.0), first.0.max(answer.0));
        if first != answer && !self.lost(module, one, other) {
            let text = format!("{} was answered {first:?}, and then {answer:?}, by `{module}`", appended.id);
            self.violated("I4", text);
        }
        // The entry is the later one's.
        self.answers.insert(appended.id.clone(), (module, answer));
    }

    /// Whether a call is one of a list: those are checked here.
    #[must_use]
    pub fn is_of_one(&self, call: &str) -> bool {
        call.starts_with(PAD) || call.starts_with(SHELF)
    }

    /// All that was noted in a millisecond is checked.
    pub fn settle(&mut self) {
        for opened in std::mem::take(&mut self.opened) {
            self.check(&opened);
        }
    }

    fn check(&mut self, opened: &Opened) {
        let Opened { module, epoch, entries, checkpoint } = opened;
        let earlier = self.left.range((module.to_string(), 0)..(module.to_string(), *epoch));
        let before = earlier.last().map(|((_, epoch), _)| *epoch);
        let carried = before.is_some_and(|before| !self.lost(module, before, *epoch));
        let count = entries.len();
        if carried {
            let sealed = self.sealed.get(module).is_some_and(|sealed| sealed.contains(entries));
            if !sealed {
                let text = format!("`{module}` has {count} entries at epoch {epoch}, and nobody sealed such a state");
                self.violated("I9", text);
            }
        } else if *entries != checkpoint.clone().unwrap_or_default() {
            let text = format!(
                "`{module}` was taken over at epoch {epoch} with {count} entries, which are not those of its last checkpoint"
            );
            self.violated("I9", text);
        }
        if let Some(before) = before {
            self.acknowledged(module, before, *epoch, entries);
        }
    }

    /// What was acknowledged up to an epoch is in the list of a later one, once. (I3)
    fn acknowledged(&mut self, module: &str, before: u64, epoch: u64, entries: &[String]) {
        let there: BTreeSet<&String> = entries.iter().collect();
        let missing = self.answers.iter().find(|(id, (of, answer))| {
            *of == module && answer.0 <= before && !self.lost(module, answer.0, epoch) && !there.contains(id)
        });
        if let Some((id, (_, answer))) = missing {
            let text = format!("{id} was acknowledged by `{module}` as {answer:?}, and is not there at epoch {epoch}");
            self.violated("I3", text);
        } else if there.len() != entries.len() {
            self.violated("I3", format!("`{module}` has an entry twice at epoch {epoch}"));
        }
    }

    /// When nobody calls any more.
    pub fn last_check(&mut self) {
        self.settle();
        for module in [PAD, SHELF] {
            let list = self.left.range((module.to_owned(), 0)..=(module.to_owned(), u64::MAX)).last();
            if let Some(((_, epoch), entries)) = list.map(|(key, entries)| (key.clone(), entries.clone())) {
                self.acknowledged(module, epoch, epoch, &entries);
            }
        }
        let stored = self.stored.clone();
        self.acknowledged(LEDGER, u64::MAX, 0, &stored);
    }

    /// What has arrived at the store by now: transactions, in some order. Returns the entries that were added.
    pub fn arrive(&mut self, now_ms: u64) -> Vec<(String, String)> {
        let mut added = Vec::new();
        for Sent { epoch, id, node, done, .. } in
            self.under_way.extract_if(.., |sent| sent.at <= now_ms).collect::<Vec<_>>()
        {
            let answer = match &id {
                Some(id) => self.write(epoch, id),
                None => self.raise(epoch).map(|()| 0),
            };
            added.extend(id.filter(|_| answer.is_ok()).map(|id| (id, node)));
            // Whoever sent it may have ended.
            let _ = done.send(answer);
        }
        added
    }

    fn raise(&mut self, epoch: u64) -> Result<(), fence::Fenced> {
        if self.fence.is_none_or(|stored| stored < epoch) {
            self.fence = Some(epoch);
        }
        fence::check(LEDGER, epoch, self.fence.map(u64::cast_signed))
    }

    /// A transaction of the store.
    fn write(&mut self, epoch: u64, id: &str) -> Result<u64, fence::Fenced> {
        fence::check(LEDGER, epoch, self.fence.map(u64::cast_signed))?;
        if self.fence.is_some_and(|stored| epoch < stored) {
            let text = format!("the store took {id} at epoch {epoch}, and its fence is at {:?}", self.fence);
            self.violated("I6", text);
        }
        if self.stored.iter().any(|known| known == id) {
            self.violated("INV-2, I4", format!("the store has {id}, and got it again at epoch {epoch}"));
        }
        self.stored.push(id.to_owned());
        Ok(self.stored.len() as u64)
    }
}

//! The placement log and its snapshot on disk: one redb file, or the same in memory.
//!
//! ```text
//! Raft ─ vote, entries ─▶ Store ─▶ redb (one transaction, one fsync each) ─▶ only then the answer
//!      ◀──────── entries ── (its end is in memory, too: `tail`)
//!      └ committed entries ─▶ Machine: State in memory, rebuilt from the last snapshot and the entries after it
//! ```
//!
//! **Invariant:** votes, entries and snapshots are on disk before anybody hears of them, and in the order in which they
//! were given: each write is awaited before the next one begins. How far they are committed is written with the next
//! entry only; after a start, the leader says it again.
//!
//! **Invariant:** an error of the disk is never retried. It ends the log, and with it the process.

mod tail;

use std::{
    collections::VecDeque,
    fmt::{self, Debug},
    io::{self, Cursor},
    ops::RangeBounds,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bytes::Bytes;
use openraft::{
    AnyError, Entry, EntryPayload, LogId, LogState, OptionalSend, RaftLogReader, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
    storage::{LogFlushed, RaftLogStorage, RaftStateMachine},
};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tail::Tail;
use tokio::sync::watch;

#[cfg(not(feature = "simulation"))]
use openraft::TokioRuntime as Runtime;

#[cfg(feature = "simulation")]
use super::runtime::Runtime;
use crate::{
    disk,
    id::{NodeId, RaftId},
    placement::state::{Outcome, Proposal, State},
};

/// The file in the data directory.
const FILE: &str = "placement.redb";
/// The layout of the file and of snapshots.
const FORMAT: u32 = 2;
/// Entries by index, as JSON.
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
/// Everything else by name, as JSON.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// How much is read at a time for one message.
const READ_AT_ONCE: usize = 4 << 20;
/// How many applied entries, and bytes of them, are kept for watchers.
const RECENT: usize = 1024;
const RECENT_BYTES: usize = 8 << 20;

openraft::declare_raft_types!(
    /// What Raft carries here.
    pub(crate) Types:
        D = Request,
        R = Answer,
        NodeId = RaftId,
        Node = Peer,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

/// What an entry holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// None for an entry that only shows that this can be written, and so that all before it is decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proposal: Option<Proposal>,
    /// Changes nothing unless it is in the log of this very term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) term: Option<u64>,
}

/// What applying an entry gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Applied(Outcome),
    /// The leader of the term that it was meant for leads no more.
    OtherTerm,
    /// It was not a proposal.
    Nothing,
}

/// A member: its name only. Where it is now, gossip knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    name: String,
}

impl Peer {
    pub(crate) fn new(node: &NodeId) -> Self {
        Self { name: node.as_str().to_owned() }
    }

    pub(crate) fn node(&self) -> Option<NodeId> {
        NodeId::parse(&self.name).ok()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Why the log can't be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(
        "the placement log in {place} is damaged: {problem}; restore it, or delete the directory so that \
         the node joins as a new one"
    )]
    Damaged { place: String, problem: String },
    #[error("the placement log in {place} is used by another process")]
    InUse { place: String },
    #[error("the placement log in {place} was written by another version of this program: {problem}")]
    Version { place: String, problem: String },
    #[error(
        "the placement log in {place} belongs to another node's identity; restore the files that belong together, or \
         delete the directory so that the node joins as a new one"
    )]
    Foreign { place: String },
    #[error("can't read or write the placement log in {place}: {problem}")]
    Io { place: String, problem: String },
}

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) raft_id: RaftId,
    pub(crate) marker: String,
}

/// A word given once, for the members that a new cluster begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Elected {
    /// A digest of the names and ids of the members.
    pub(crate) set: String,
    /// What the cluster is called.
    pub(crate) cluster: String,
}

/// Votes and entries. Cheap to clone; clones are the same log.
#[derive(Clone)]
pub(crate) struct Store {
    file: Arc<File>,
    tail: Arc<Mutex<Tail>>,
    /// How far entries are known to be committed in this process.
    committed: Arc<Mutex<Option<LogId<RaftId>>>>,
}

struct File {
    /// None once the log was closed.
    database: RwLock<Option<Database>>,
    /// For messages.
    place: String,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("place", &self.file.place).finish()
    }
}

type Transaction<'a> = &'a redb::WriteTransaction;

impl Store {
    /// Opens the log in a data directory, which is made if need be; without one, in memory. A new log is `owner`'s.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`] for a log that is damaged, in use, or somebody else's, and for a disk that fails.
    pub(crate) fn open(data_dir: Option<&Path>, owner: &Owner) -> Result<Self, StoreError> {
        let file = match data_dir {
            None => File::in_memory()?,
            Some(dir) => File::open(dir)?,
        };
        let place = file.place.clone();
        let store = Self { file: Arc::new(file), tail: Arc::default(), committed: Arc::default() };
        let format: Option<u32> = store.file.get("format")?;
        match format {
            None => store.file.write(|transaction| {
                transaction.open_table(ENTRIES)?;
                put(transaction, "format", &FORMAT)?;
                put(transaction, "owner", owner)
            })?,
            Some(FORMAT) => {
                let known: Option<Owner> = store.file.get("owner")?;
                if known.as_ref() != Some(owner) {
                    return Err(StoreError::Foreign { place });
                }
            }
            Some(other) => {
                return Err(StoreError::Version { place, problem: format!("format {other}, not {FORMAT}") });
            }
        }
        if let Some(dir) = data_dir {
            store.file.settle(dir)?;
        }
        Ok(store)
    }

    /// The cluster whose members may add to this log; none before it is known.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`] for a disk that fails or a log that is damaged.
    pub(crate) fn cluster(&self) -> Result<Option<String>, StoreError> {
        self.file.get("cluster")
    }

    /// Binds this log to a cluster, for good; returns once that is on disk.
    pub(crate) async fn bind(&self, cluster: &str) -> Result<(), StoreError> {
        let cluster = cluster.to_owned();
        self.run(move |file| file.write(|transaction| put(transaction, "cluster", &cluster))).await
    }

    /// The word that was given for the members that a new cluster begins with.
    pub(crate) async fn elected(&self) -> Result<Option<Elected>, StoreError> {
        self.run(|file| file.get("elected")).await
    }

    /// Gives the word, unless it was given already; returns the one that holds, once it is on disk.
    ///
    /// # Cancel safety
    /// The word may be given although nobody waits for it any more.
    pub(crate) async fn elect(&self, word: Elected) -> Result<Elected, StoreError> {
        self.run(move |file| {
            let mut holds = word.clone();
            file.write(|transaction| {
                if let Some(given) = transaction.open_table(META)?.get("elected")? {
                    holds = serde_json::from_slice(given.value())?;
                    return Ok(());
                }
                put(transaction, "elected", &word)?;
                put(transaction, "cluster", &word.cluster)
            })?;
            Ok(holds)
        })
        .await
    }

    /// Lets go of the file, once what is being read and written is done. Nothing can be read or written any more.
    pub(crate) async fn close(&self) {
        let file = self.file.clone();
        let closing = disk::blocking(move || {
            let database = file.database.write().unwrap_or_else(PoisonError::into_inner).take();
            drop(database);
        });
        // An error means that the runtime ends, and everything with it.
        let _ = closing.await;
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries of a range, from memory if they are there; from the disk no more bytes than a limit, but for the first.
    async fn entries(&self, range: impl RangeBounds<u64> + Send + 'static, limit: usize) -> Stored<Vec<Entry<Types>>> {
        if let Some(entries) = self.tail().read(&range) {
            return Ok(entries);
        }
        self.run(move |file| file.entries(range, limit)).await.map_err(reading)
    }

    /// Runs work on the disk where it holds up nobody else.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = self.file.clone();
        let place = self.file.place.clone();
        disk::blocking(move || work(&file))
            .await
            .unwrap_or_else(|error| Err(StoreError::Io { place, problem: error.to_string() }))
    }
}

/// What can go wrong inside a transaction.
struct Problem {
    damaged: bool,
    text: String,
}

macro_rules! problem_from {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Problem {
            fn from(error: redb::$error) -> Self {
                let error = redb::Error::from(error);
                Self { damaged: matches!(error, redb::Error::Corrupted(_)), text: error.to_string() }
            }
        }
    )*};
}

problem_from!(CommitError, SetDurabilityError, StorageError, TableError, TransactionError);

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        Self { damaged: true, text: error.to_string() }
    }
}

fn put(transaction: Transaction<'_>, name: &str, value: &impl Serialize) -> Result<(), Problem> {
    let value = serde_json::to_vec(value)?;
    transaction.open_table(META)?.insert(name, value.as_slice())?;
    Ok(())
}

impl File {
    fn in_memory() -> Result<Self, StoreError> {
        let place = "memory".to_owned();
        let backend = redb::backends::InMemoryBackend::new();
        match Builder::new().set_cache_size(4 << 20).create_with_backend(backend) {
            Ok(database) => Ok(Self { database: RwLock::new(Some(database)), place }),
            Err(error) => Err(StoreError::Io { place, problem: error.to_string() }),
        }
    }

    fn open(dir: &Path) -> Result<Self, StoreError> {
        let path: PathBuf = dir.join(FILE);
        let place = path.display().to_string();
        std::fs::create_dir_all(dir)
            .map_err(|error| StoreError::Io { place: place.clone(), problem: error.to_string() })?;
        let opened = Builder::new().set_cache_size(16 << 20).set_check_integrity_on_open(true).create(&path);
        match opened {
            Ok(database) => Ok(Self { database: RwLock::new(Some(database)), place }),
            Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) => {
                Err(StoreError::InUse { place })
            }
            Err(error @ DatabaseError::UpgradeRequired(_)) => {
                Err(StoreError::Version { place, problem: error.to_string() })
            }
            Err(DatabaseError::Storage(redb::StorageError::Io(error)))
                if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Err(StoreError::Io { place, problem: error.to_string() })
            }
            Err(error) => Err(StoreError::Damaged { place, problem: error.to_string() }),
        }
    }

    /// Makes sure that the file's name is on disk, too.
    fn settle(&self, dir: &Path) -> Result<(), StoreError> {
        let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| self.problem(Problem { damaged: false, text: error.to_string() }))
    }

    fn problem(&self, Problem { damaged, text: problem }: Problem) -> StoreError {
        let place = self.place.clone();
        if damaged { StoreError::Damaged { place, problem } } else { StoreError::Io { place, problem } }
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Problem>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let worked = match &*database {
            Some(database) => work(database),
            None => Err(Problem { damaged: false, text: "it was closed".to_owned() }),
        };
        worked.map_err(|problem| self.problem(problem))
    }

    /// One transaction, on disk when this returns.
    fn write(&self, work: impl FnOnce(Transaction<'_>) -> Result<(), Problem>) -> Result<(), StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            work(&transaction)?;
            transaction.commit()?;
            Ok(())
        })
    }

    fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        self.with(|database| {
            let table = match database.begin_read()?.open_table(META) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            let Some(value) = table.get(name)? else { return Ok(None) };
            Ok(Some(serde_json::from_slice(value.value())?))
        })
    }

    fn entries(&self, range: impl RangeBounds<u64>, limit: usize) -> Result<Vec<Entry<Types>>, StoreError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(ENTRIES)?;
            let mut entries = Vec::new();
            let mut bytes = 0;
            for entry in table.range(range)? {
                let (_, value) = entry?;
                bytes += value.value().len();
                if bytes > limit && !entries.is_empty() {
                    break;
                }
                entries.push(serde_json::from_slice(value.value())?);
            }
            Ok(entries)
        })
    }

    fn log_state(&self) -> Result<LogState<Types>, StoreError> {
        let last = self.with(|database| {
            let table = database.begin_read()?.open_table(ENTRIES)?;
            let Some((_, value)) = table.last()? else { return Ok(None) };
            Ok(Some(serde_json::from_slice::<Entry<Types>>(value.value())?.log_id))
        })?;
        let last_purged_log_id = self.get("purged")?;
        Ok(LogState { last_purged_log_id, last_log_id: last.or(last_purged_log_id) })
    }
}

type Stored<T> = Result<T, StorageError<RaftId>>;

fn reading(error: StoreError) -> StorageError<RaftId> {
    StorageIOError::read_logs(AnyError::new(&error)).into()
}

fn writing(error: StoreError) -> StorageError<RaftId> {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Stored<Vec<Entry<Types>>> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.entries(range, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Stored<Vec<Entry<Types>>> {
        self.entries(start..end, READ_AT_ONCE).await
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Stored<LogState<Types>> {
        self.run(File::log_state).await.map_err(reading)
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<RaftId>) -> Stored<()> {
        let vote = *vote;
        self.run(move |file| file.write(|transaction| put(transaction, "vote", &vote)))
            .await
            .map_err(|error| StorageIOError::write_vote(AnyError::new(&error)).into())
    }

    async fn read_vote(&mut self) -> Stored<Option<Vote<RaftId>>> {
        self.run(|file| file.get("vote")).await.map_err(|error| StorageIOError::read_vote(AnyError::new(&error)).into())
    }

    // Written with the next entry, for nothing: after a start, the state is as old as that until a leader is heard.
    async fn save_committed(&mut self, committed: Option<LogId<RaftId>>) -> Stored<()> {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Stored<Option<LogId<RaftId>>> {
        let known = *self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        match known {
            Some(committed) => Ok(Some(committed)),
            None => self.run(|file| file.get("committed")).await.map_err(reading),
        }
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Stored<()>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry<Types>> = entries.into_iter().collect();
        let committed = *self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = self
            .run(move |file| {
                let mut written = Vec::with_capacity(entries.len());
                file.write(|transaction| {
                    let mut table = transaction.open_table(ENTRIES)?;
                    for entry in entries {
                        let encoded = serde_json::to_vec(&entry)?;
                        table.insert(entry.log_id.index, encoded.as_slice())?;
                        written.push((entry, encoded.len()));
                    }
                    drop(table);
                    committed.map_or(Ok(()), |committed| put(transaction, "committed", &committed))
                })?;
                Ok(written)
            })
            .await;
        match appended {
            Ok(written) => {
                let mut tail = self.tail();
                written.into_iter().for_each(|(entry, size)| tail.push(entry, size));
                drop(tail);
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(io::Error::other(error.to_string())));
                Err(writing(error))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId<RaftId>) -> Stored<()> {
        self.tail().truncate(log_id.index);
        self.run(move |file| {
            file.write(|transaction| Ok(transaction.open_table(ENTRIES)?.retain_in(log_id.index.., |_, _| false)?))
        })
        .await
        .map_err(writing)
    }

    async fn purge(&mut self, log_id: LogId<RaftId>) -> Stored<()> {
        self.tail().purge(log_id.index);
        self.run(move |file| {
            file.write(|transaction| {
                put(transaction, "purged", &log_id)?;
                Ok(transaction.open_table(ENTRIES)?.retain_in(..=log_id.index, |_, _| false)?)
            })
        })
        .await
        .map_err(writing)
    }
}

/// The entries that were applied last, for those who watch.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    entries: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Without holes. An empty entry changed nothing.
    entries: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Recent {
    fn push(&self, index: u64, proposal: Bytes) {
        let mut ring = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.entries.back().is_some_and(|(last, _)| last + 1 != index) {
            *ring = Ring::default();
        }
        ring.bytes += proposal.len();
        ring.entries.push_back((index, proposal));
        while ring.entries.len() > RECENT || ring.bytes > RECENT_BYTES {
            let Some((_, dropped)) = ring.entries.pop_front() else { break };
            ring.bytes -= dropped.len();
        }
    }

    fn clear(&self) {
        *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = Ring::default();
    }

    /// The entries after one; nothing where some of them are gone.
    pub(crate) fn after(&self, index: u64) -> Option<Vec<(u64, Bytes)>> {
        let ring = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, _) = ring.entries.front()?;
        let skip = (index + 1).checked_sub(*first)?;
        let skip = usize::try_from(skip).ok()?;
        (skip <= ring.entries.len()).then(|| ring.entries.iter().skip(skip).cloned().collect())
    }
}

/// Lets everybody know of a state, unless they know a newer one.
pub(crate) fn publish(states: &watch::Sender<Arc<State>>, state: &Arc<State>) {
    states.send_if_modified(|known| {
        let newer = state.index > known.index;
        if newer {
            *known = state.clone();
        }
        newer
    });
}

/// The state machine: [`State`], and how far it is.
#[derive(Debug)]
pub(crate) struct Machine {
    store: Store,
    applied: Applied,
    states: watch::Sender<Arc<State>>,
    recent: Arc<Recent>,
}

/// All that a snapshot holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Applied {
    last: Option<LogId<RaftId>>,
    membership: StoredMembership<RaftId, Peer>,
    state: Arc<State>,
}

/// The first line of a snapshot.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    /// Of the rest, in hexadecimal.
    sha256: String,
}

impl Applied {
    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let mut snapshot = serde_json::to_vec(&Header { format: FORMAT, sha256: hex(&Sha256::digest(&body)) })?;
        snapshot.push(b'\n');
        snapshot.extend(body);
        Ok(snapshot)
    }

    fn decode(snapshot: &[u8]) -> Result<Self, String> {
        let end = snapshot.iter().position(|byte| *byte == b'\n').ok_or("the snapshot has no header")?;
        let (header, body) = (&snapshot[..end], &snapshot[end + 1..]);
        let header: Header = serde_json::from_slice(header).map_err(|error| format!("snapshot header: {error}"))?;
        if header.format != FORMAT {
            return Err(format!("the snapshot has format {}, not {FORMAT}", header.format));
        }
        if header.sha256 != hex(&Sha256::digest(body)) {
            return Err("the snapshot's digest does not match".to_owned());
        }
        serde_json::from_slice(body).map_err(|error| format!("snapshot: {error}"))
    }

    fn meta(&self) -> SnapshotMeta<RaftId, Peer> {
        let index = self.last.map_or(0, |last| last.index);
        let term = self.last.map_or(0, |last| last.leader_id.term);
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{term}-{index}"),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Machine {
    /// The state machine as of the last snapshot. Raft applies the entries after it again.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`] for a snapshot that is damaged or can't be read.
    pub(crate) fn load(
        store: Store,
        states: watch::Sender<Arc<State>>,
        recent: Arc<Recent>,
    ) -> Result<Self, StoreError> {
        let applied = match read_snapshot(&store.file)? {
            None => Applied::default(),
            Some(snapshot) => {
                Applied::decode(&snapshot).map_err(|text| store.file.problem(Problem { damaged: true, text }))?
            }
        };
        publish(&states, &applied.state);
        Ok(Self { store, applied, states, recent })
    }

    async fn save(&self, snapshot: Vec<u8>) -> Stored<()> {
        self.store
            .run(move |file| write_snapshot(file, &snapshot))
            .await
            .map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)).into())
    }
}

fn read_snapshot(file: &File) -> Result<Option<Vec<u8>>, StoreError> {
    file.with(|database| {
        let table = database.begin_read()?.open_table(META)?;
        Ok(table.get("snapshot")?.map(|snapshot| snapshot.value().to_vec()))
    })
}

fn write_snapshot(file: &File, snapshot: &[u8]) -> Result<(), StoreError> {
    file.write(|transaction| {
        transaction.open_table(META)?.insert("snapshot", snapshot)?;
        Ok(())
    })
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builds;

    async fn applied_state(&mut self) -> Stored<(Option<LogId<RaftId>>, StoredMembership<RaftId, Peer>)> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Stored<Vec<Answer>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        // One copy for the whole batch: those who watch hold the last one.
        let state = Arc::make_mut(&mut self.applied.state);
        for entry in entries {
            let index = entry.log_id.index;
            let (answer, proposal) = match &entry.payload {
                EntryPayload::Normal(Request { term: Some(term), .. }) if *term != entry.log_id.leader_id.term => {
                    (Answer::OtherTerm, Bytes::new())
                }
                EntryPayload::Normal(Request { proposal: None, .. }) => (Answer::Nothing, Bytes::new()),
                EntryPayload::Normal(Request { proposal: Some(proposal), .. }) => {
                    let encoded = serde_json::to_vec(proposal)
                        .map_err(|error| StorageIOError::apply(entry.log_id, AnyError::new(&error)))?;
                    (Answer::Applied(state.apply(index, proposal)), encoded.into())
                }
                EntryPayload::Blank => (Answer::Nothing, Bytes::new()),
                EntryPayload::Membership(membership) => {
                    self.applied.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    (Answer::Nothing, Bytes::new())
                }
            };
            state.index = index;
            self.applied.last = Some(entry.log_id);
            self.recent.push(index, proposal);
            answers.push(answer);
        }
        publish(&self.states, &self.applied.state);
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builds {
        Builds { store: self.store.clone(), applied: self.applied.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Stored<Box<Cursor<Vec<u8>>>> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<RaftId, Peer>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Stored<()> {
        let snapshot = snapshot.into_inner();
        let refused = |text: String| StorageIOError::read_snapshot(Some(meta.signature()), AnyError::error(text));
        let applied = Applied::decode(&snapshot).map_err(refused)?;
        if applied.last != meta.last_log_id {
            return Err(refused("the snapshot is not what its sender says it is".to_owned()).into());
        }
        self.save(snapshot).await?;
        self.applied = applied;
        self.recent.clear();
        publish(&self.states, &self.applied.state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Stored<Option<Snapshot<Types>>> {
        let failed = |error: AnyError| StorageIOError::read_snapshot(None, error);
        let read = self.store.run(read_snapshot).await.map_err(|error| failed(AnyError::new(&error)))?;
        let Some(snapshot) = read else { return Ok(None) };
        let meta = Applied::decode(&snapshot).map_err(|error| failed(AnyError::error(error)))?.meta();
        Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(snapshot)) }))
    }
}

/// Writes a snapshot of the state as it was when this was made.
#[derive(Debug)]
pub(crate) struct Builds {
    store: Store,
    applied: Applied,
}

impl RaftSnapshotBuilder<Types> for Builds {
    async fn build_snapshot(&mut self) -> Stored<Snapshot<Types>> {
        let meta = self.applied.meta();
        let signature = meta.signature();
        let failed = |error: AnyError| StorageIOError::write_snapshot(Some(signature.clone()), error);
        let applied = self.applied.clone();
        let snapshot = self
            .store
            .run(move |file| {
                let encoded = applied.encode().map_err(|error| file.problem(error.into()))?;
                write_snapshot(file, &encoded)?;
                Ok(encoded)
            })
            .await
            .map_err(|error| failed(AnyError::new(&error)))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(snapshot)) })
    }
}

#[cfg(test)]
mod tests;

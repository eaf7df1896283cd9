//! The state of a module, as it travels: what a module implements, and what it writes to and reads from.
//!
//! ```text
//! source: State<T> ─ snapshot ─▶ SnapshotWriter ─ chunks, digest ═▶ SnapshotReader ─ restore ─▶ State<T> :target
//! ```

use std::{
    any::Any,
    fmt,
    ops::Deref,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{FutureExt as _, future::BoxFuture};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use crate::BoxError;

/// The state of a module: what has to be where the module is.
///
/// A module gets it as a parameter of its factory, [`State<T>`], and keeps it: an empty one, made by `Default`. When the
/// module moves, the framework has the old instance write its state and the new one read it, with no call inside either;
/// after a crash, a module that is [`checkpointed`](crate::Module::checkpointed) gets its last checkpoint.
///
/// ```
/// use outpost::{BoxError, Snapshot, SnapshotReader, SnapshotWriter};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// #[derive(Default)]
/// struct Visits(AtomicU64);
///
/// impl Snapshot for Visits {
///     async fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), BoxError> {
///         out.write(self.0.load(Ordering::SeqCst).to_le_bytes().to_vec()).await?;
///         Ok(())
///     }
///
///     async fn restore(&self, from: &mut SnapshotReader) -> Result<(), BoxError> {
///         let count = from.take(8).await?.ok_or("the snapshot has no count")?;
///         self.0.store(u64::from_le_bytes(count[..].try_into()?), Ordering::SeqCst);
///         Ok(())
///     }
/// }
/// ```
///
/// A state that serde can write needs none of this: [`Json`] has it.
///
/// # Pre-copy
/// While a module writes its state at the end of a move, its callers wait. One with much state can have most of it
/// copied before: see [`Snapshot::track_changes`].
pub trait Snapshot: Default + Send + Sync + 'static {
    /// Writes the whole state. Calls may run meanwhile, and change it: what is written must be the state as it was at one
    /// moment, or be made so by what [`Snapshot::changes`] writes.
    ///
    /// # Errors
    /// Any: the move is given up, and the module stays where it is.
    fn snapshot(&self, out: &mut SnapshotWriter) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Reads what [`Snapshot::snapshot`] wrote, by this version of the program or another one, in place of what is
    /// there. No call runs meanwhile.
    ///
    /// # Errors
    /// Any: the module does not come here.
    fn restore(&self, from: &mut SnapshotReader) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Whether from now on the module notes what changes, for [`Snapshot::changes`]; with `false`, it may forget what it
    /// has noted. A module that answers `true` is copied while it serves: with this, then `snapshot`; at last, with its
    /// callers waiting, `changes`.
    fn track_changes(&self, _track: bool) -> bool {
        false
    }

    /// Writes what has changed since [`Snapshot::track_changes`]. No call runs meanwhile.
    ///
    /// # Errors
    /// Any: the move is given up, and the module stays where it is.
    fn changes(&self, _out: &mut SnapshotWriter) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { Err("the module tracks changes, and does not say what they are".into()) }
    }

    /// Reads what [`Snapshot::changes`] wrote, on top of what was restored.
    ///
    /// # Errors
    /// Any: the module does not come here.
    fn apply(&self, _from: &mut SnapshotReader) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { Err("the module tracks changes, and can't take them".into()) }
    }
}

/// The state of a module. A parameter of its factory; cheap to clone.
#[derive(Debug)]
pub struct State<T>(Arc<T>);

impl<T> State<T> {
    /// Wraps a state, as the framework does; of use in a module's own tests.
    pub fn new(state: T) -> Self {
        Self(Arc::new(state))
    }
}

/// What the framework does with a state, for a module's own tests: that a state is read as it was written, by the next
/// version of the program too. Functions, not methods, which the state may have of the same names.
impl<T: Snapshot> State<T> {
    /// All that [`Snapshot::snapshot`] writes.
    ///
    /// # Errors
    /// The module's; a panic is one.
    pub async fn save(state: &Self) -> Result<Bytes, BoxError> {
        let (mut out, chunks) = SnapshotWriter::new(u64::MAX);
        gather(async move { Hooks::snapshot(&*state.0, &mut out).await }, chunks).await
    }

    /// Has [`Snapshot::restore`] read it.
    ///
    /// # Errors
    /// The module's; a panic is one, and so are bytes that are left unread.
    pub async fn load(state: &Self, saved: impl Into<Bytes>) -> Result<(), BoxError> {
        Hooks::restore(&*state.0, &mut SnapshotReader::of(vec![saved.into()])).await
    }

    /// All that [`Snapshot::changes`] writes.
    ///
    /// # Errors
    /// Those of [`State::save`].
    pub async fn save_changes(state: &Self) -> Result<Bytes, BoxError> {
        let (mut out, chunks) = SnapshotWriter::new(u64::MAX);
        gather(async move { Hooks::changes(&*state.0, &mut out).await }, chunks).await
    }

    /// Has [`Snapshot::apply`] read it.
    ///
    /// # Errors
    /// Those of [`State::load`].
    pub async fn load_changes(state: &Self, saved: impl Into<Bytes>) -> Result<(), BoxError> {
        Hooks::apply(&*state.0, &mut SnapshotReader::of(vec![saved.into()])).await
    }
}

/// What is written, in one piece. The writer must end with the future.
async fn gather(
    write: impl Future<Output = Result<(), BoxError>>,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<Bytes, BoxError> {
    let read = async {
        let mut all = BytesMut::new();
        while let Some(chunk) = chunks.recv().await {
            all.extend_from_slice(&chunk);
        }
        all.freeze()
    };
    let (wrote, all) = tokio::join!(write, read);
    wrote.map(|()| all)
}

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A state that serde writes as JSON: for states that are small, say below a megabyte.
///
/// Its snapshot is taken under the lock, so that it is of one moment. With `#[serde(default)]` on fields, a new version
/// of the program reads what the old one wrote.
#[derive(Debug, Default)]
pub struct Json<T>(RwLock<T>);

impl<T> Json<T> {
    /// A state with this content.
    pub fn new(content: T) -> Self {
        Self(RwLock::new(content))
    }

    /// Looks at it. Do not hold the guard over an `.await`.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes it. Do not hold the guard over an `.await`.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Snapshot for Json<T>
where
    T: Default + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    async fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), BoxError> {
        let text = serde_json::to_vec(&*self.read())?;
        Ok(out.write(text).await?)
    }

    async fn restore(&self, from: &mut SnapshotReader) -> Result<(), BoxError> {
        let text = from.rest().await?;
        *self.write() = serde_json::from_slice(&text)?;
        Ok(())
    }
}

/// How large the pieces are that a state travels in.
const CHUNK: usize = 256 << 10;
/// How many of them may wait for the one who takes them.
const QUEUE: usize = 8;

/// A state that can't be written or read to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// It has more bytes than a state may have.
    #[error("the state has more than {limit} bytes; raise `cluster.max_state_size`, or keep less")]
    TooLarge {
        /// `cluster.max_state_size`, in bytes.
        limit: u64,
    },
    /// Whoever takes it has gone.
    #[error("nobody takes the state any more")]
    Gone,
    /// It ends in the middle of something.
    #[error("the state ends after {got} of {wanted} bytes that belong together")]
    Short {
        /// How many bytes were left.
        got: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// It did not arrive whole.
    #[error("{0}")]
    Broken(String),
}

/// Where a module writes its state.
#[derive(Debug)]
pub struct SnapshotWriter {
    to: mpsc::Sender<Bytes>,
    /// Small pieces, until they are enough for a chunk.
    buffer: BytesMut,
    left: u64,
    limit: u64,
}

impl SnapshotWriter {
    /// The second half gets what is written, in pieces of some size.
    pub(crate) fn new(limit: u64) -> (Self, mpsc::Receiver<Bytes>) {
        let (to, from) = mpsc::channel(QUEUE);
        (Self { to, buffer: BytesMut::new(), left: limit, limit }, from)
    }

    /// Writes bytes after those that were written. Waits while the one who takes them is slow. What is large should come
    /// as `Bytes` or `Vec<u8>`, which are not copied.
    ///
    /// # Errors
    /// A state that is too large, or that nobody takes.
    /// # Cancel safety
    /// What is written and what not is unknown when the future is dropped: the snapshot is spoilt.
    pub async fn write(&mut self, data: impl Into<Bytes>) -> Result<(), SnapshotError> {
        let mut data = data.into();
        let size = data.len() as u64;
        self.left = self.left.checked_sub(size).ok_or(SnapshotError::TooLarge { limit: self.limit })?;
        if data.len() < CHUNK / 4 {
            self.buffer.extend_from_slice(&data);
            if self.buffer.len() >= CHUNK {
                self.flush().await?;
            }
            return Ok(());
        }
        self.flush().await?;
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            self.to.send(chunk).await.map_err(|_| SnapshotError::Gone)?;
        }
        Ok(())
    }

    /// Hands over what is left.
    pub(crate) async fn flush(&mut self) -> Result<(), SnapshotError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.buffer.split().freeze();
        self.to.send(chunk).await.map_err(|_| SnapshotError::Gone)
    }
}

/// Where a module reads its state from: the bytes that were written, in the same order.
#[derive(Debug)]
pub struct SnapshotReader {
    from: mpsc::Receiver<Result<Bytes, SnapshotError>>,
    chunk: Bytes,
}

impl SnapshotReader {
    /// The first half is where the bytes are put.
    pub(crate) fn new() -> (mpsc::Sender<Result<Bytes, SnapshotError>>, Self) {
        let (to, from) = mpsc::channel(QUEUE);
        (to, Self { from, chunk: Bytes::new() })
    }

    /// Of a state that is in memory.
    pub(crate) fn of(state: Vec<Bytes>) -> Self {
        let (to, from) = mpsc::channel(state.len().max(1));
        state.into_iter().for_each(|chunk| to.try_send(Ok(chunk)).expect("there is room"));
        Self { from, chunk: Bytes::new() }
    }

    /// The next piece, as large as it is; `None` at the end. Pieces are not those that were written.
    ///
    /// # Errors
    /// A state that did not arrive whole.
    /// # Cancel safety
    /// No bytes are lost when the future is dropped.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        while self.chunk.is_empty() {
            match self.from.recv().await {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(None),
            }
        }
        Ok(Some(std::mem::take(&mut self.chunk)))
    }

    /// The next so many bytes; `None` at the end.
    ///
    /// # Errors
    /// A state that did not arrive whole, or that ends before as many.
    /// # Cancel safety
    /// Bytes may be lost when the future is dropped: the restore is spoilt.
    pub async fn take(&mut self, count: usize) -> Result<Option<Bytes>, SnapshotError> {
        let Some(first) = self.chunk().await? else { return Ok(None) };
        self.chunk = first;
        if self.chunk.len() >= count {
            return Ok(Some(self.chunk.split_to(count)));
        }
        let mut taken = BytesMut::with_capacity(count.min(CHUNK));
        while taken.len() < count {
            match self.chunk().await? {
                Some(mut chunk) => {
                    let more = chunk.split_to(chunk.remaining().min(count - taken.len()));
                    taken.extend_from_slice(&more);
                    self.chunk = chunk;
                }
                None => return Err(SnapshotError::Short { got: taken.len(), wanted: count }),
            }
        }
        Ok(Some(taken.freeze()))
    }

    /// All that is left, in one piece: for states that are small.
    ///
    /// # Errors
    /// A state that did not arrive whole.
    /// # Cancel safety
    /// Bytes may be lost when the future is dropped: the restore is spoilt.
    pub async fn rest(&mut self) -> Result<Vec<u8>, SnapshotError> {
        let mut rest = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            rest.extend_from_slice(&chunk);
        }
        Ok(rest)
    }
}

/// A [`Snapshot`] of whatever type. All are run under guard: a panic in a module's hook is an error of the move.
pub(crate) trait Hooks: Send + Sync {
    fn snapshot<'a>(&'a self, out: &'a mut SnapshotWriter) -> BoxFuture<'a, Result<(), BoxError>>;
    fn restore<'a>(&'a self, from: &'a mut SnapshotReader) -> BoxFuture<'a, Result<(), BoxError>>;
    fn track_changes(&self, track: bool) -> Result<bool, BoxError>;
    fn changes<'a>(&'a self, out: &'a mut SnapshotWriter) -> BoxFuture<'a, Result<(), BoxError>>;
    fn apply<'a>(&'a self, from: &'a mut SnapshotReader) -> BoxFuture<'a, Result<(), BoxError>>;
}

fn guarded<'a>(
    hook: &'static str,
    run: impl Future<Output = Result<(), BoxError>> + Send + 'a,
) -> BoxFuture<'a, Result<(), BoxError>> {
    let caught = std::panic::AssertUnwindSafe(run).catch_unwind();
    Box::pin(async move { caught.await.unwrap_or_else(|panic| Err(panicked(hook, &*panic))) })
}

fn panicked(hook: &'static str, panic: &(dyn Any + Send)) -> BoxError {
    format!("the module's `{hook}` panicked: {}", crate::call::panic_text(panic)).into()
}

impl<T: Snapshot> Hooks for T {
    fn snapshot<'a>(&'a self, out: &'a mut SnapshotWriter) -> BoxFuture<'a, Result<(), BoxError>> {
        guarded("snapshot", async {
            Snapshot::snapshot(self, out).await?;
            Ok(out.flush().await?)
        })
    }

    fn restore<'a>(&'a self, from: &'a mut SnapshotReader) -> BoxFuture<'a, Result<(), BoxError>> {
        guarded("restore", async {
            Snapshot::restore(self, from).await?;
            at_its_end(from).await
        })
    }

    fn track_changes(&self, track: bool) -> Result<bool, BoxError> {
        let call = std::panic::AssertUnwindSafe(|| Snapshot::track_changes(self, track));
        std::panic::catch_unwind(call).map_err(|panic| panicked("track_changes", &*panic))
    }

    fn changes<'a>(&'a self, out: &'a mut SnapshotWriter) -> BoxFuture<'a, Result<(), BoxError>> {
        guarded("changes", async {
            Snapshot::changes(self, out).await?;
            Ok(out.flush().await?)
        })
    }

    fn apply<'a>(&'a self, from: &'a mut SnapshotReader) -> BoxFuture<'a, Result<(), BoxError>> {
        guarded("apply", async {
            Snapshot::apply(self, from).await?;
            at_its_end(from).await
        })
    }
}

/// A module that leaves bytes unread has not understood its state.
async fn at_its_end(from: &mut SnapshotReader) -> Result<(), BoxError> {
    match from.chunk().await? {
        None => Ok(()),
        Some(chunk) => Err(format!("the module left {} bytes or more of its state unread", chunk.len()).into()),
    }
}

/// A state, as the framework holds it beside the module.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) hooks: Arc<dyn Hooks>,
    typed: Arc<dyn Any + Send + Sync>,
}

impl Held {
    /// How to make one of a type, empty.
    pub(crate) fn maker<T: Snapshot>() -> fn() -> Self {
        || {
            let state = Arc::new(T::default());
            let hooks: Arc<dyn Hooks> = Arc::<T>::clone(&state);
            Self { hooks, typed: state }
        }
    }

    /// The module's half of it.
    pub(crate) fn state<T: Snapshot>(&self) -> Option<State<T>> {
        Arc::clone(&self.typed).downcast().ok().map(State)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    async fn written(state: &impl Snapshot, limit: u64) -> Result<Vec<Bytes>, BoxError> {
        let (mut out, mut chunks) = SnapshotWriter::new(limit);
        let write = async move { Hooks::snapshot(state, &mut out).await };
        let read = async {
            let mut all = Vec::new();
            while let Some(chunk) = chunks.recv().await {
                all.push(chunk);
            }
            all
        };
        let (wrote, read) = tokio::join!(write, read);
        wrote.map(|()| read)
    }

    #[tokio::test]
    async fn a_state_of_serde_is_read_as_it_was_written() {
        let state = Json::new(BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]));
        let copy: Json<BTreeMap<String, i32>> = Json::default();
        let snapshot = written(&state, 1 << 20).await.unwrap();
        Hooks::restore(&copy, &mut SnapshotReader::of(snapshot)).await.unwrap();
        assert_eq!(*copy.read(), *state.read());
        let error = Hooks::restore(&copy, &mut SnapshotReader::of(vec![Bytes::from("no JSON")])).await.unwrap_err();
        assert!(error.to_string().contains("expected"), "{error}");
    }

    #[tokio::test]
    async fn a_state_that_is_too_large_says_so() {
        let state = Json::new("x".repeat(100));
        let error = written(&state, 64).await.unwrap_err().to_string();
        assert_eq!(error, "the state has more than 64 bytes; raise `cluster.max_state_size`, or keep less");
    }

    #[tokio::test]
    async fn bytes_come_in_the_pieces_that_are_asked_for() {
        let (mut out, mut chunks) = SnapshotWriter::new(u64::MAX);
        let large = Bytes::from(vec![7; 3 * CHUNK + 5]);
        let (first, sent) = (Bytes::from_static(b"first"), large.clone());
        let writes = async move {
            out.write(first).await.unwrap();
            out.write(sent).await.unwrap();
            out.write(Bytes::from_static(b"last")).await.unwrap();
            out.flush().await.unwrap();
        };
        let reads = async {
            let mut all = Vec::new();
            while let Some(chunk) = chunks.recv().await {
                assert!(chunk.len() <= CHUNK);
                all.push(chunk);
            }
            all
        };
        let ((), all) = tokio::join!(writes, reads);
        let mut reader = SnapshotReader::of(all);
        assert_eq!(reader.take(2).await.unwrap().unwrap(), "fi");
        assert_eq!(reader.take(3).await.unwrap().unwrap(), "rst");
        assert_eq!(reader.take(large.len()).await.unwrap().unwrap(), large);
        assert_eq!(reader.take(5).await, Err(SnapshotError::Short { got: 4, wanted: 5 }));
        assert_eq!(reader.take(1).await, Ok(None));
    }

    #[derive(Default)]
    struct Wrong;

    impl Snapshot for Wrong {
        async fn snapshot(&self, _: &mut SnapshotWriter) -> Result<(), BoxError> {
            panic!("out of order")
        }

        async fn restore(&self, _: &mut SnapshotReader) -> Result<(), BoxError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_hook_that_panics_or_leaves_bytes_is_an_error() {
        let error = written(&Wrong, 64).await.unwrap_err().to_string();
        assert_eq!(error, "the module's `snapshot` panicked: out of order");
        let mut reader = SnapshotReader::of(vec![Bytes::from_static(b"abc")]);
        let error = Hooks::restore(&Wrong, &mut reader).await.unwrap_err().to_string();
        assert_eq!(error, "the module left 3 bytes or more of its state unread");
    }
}

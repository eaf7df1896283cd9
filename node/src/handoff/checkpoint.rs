//! Checkpoints: the state of a module in an object store, for when its node crashes.
//!
//! ```text
//! URL/CLUSTER/MODULE/EPOCH-NUMBER.checkpoint      both numbers in 20 digits: the last name is the newest
//! ```
//! An object has the replies that are kept for calls which may come again, then the state, then the digest of both. The
//! replies are taken once the state is written, with a word on each call that ran then: no effect is in the state without
//! something about its call in the replies.
//!
//! **Invariant:** a former owner can't spoil what a new one reads: its checkpoints have a lower epoch, and so an earlier
//! name; and an object is whole, with the digest of its content at its end, or not taken.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload, memory::InMemory, path::Path};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use url::Url;

use crate::{
    BoxError,
    call::dedupe::Dedupe,
    disk,
    id::ModuleName,
    module::{Held, Ownership, SnapshotReader, SnapshotWriter},
    status::{StartError, with_causes},
};

/// Of a checkpoint that was written whole, before the digest of all before it.
const MAGIC: &[u8; 8] = b"outpost1";
/// How many checkpoints of a module are kept: one more than the newest, in case that this is damaged.
const KEPT: usize = 2;
/// Bytes after the state.
const TRAILER: usize = MAGIC.len() + blake3::OUT_LEN;

/// Where checkpoints are. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// The cluster's id.
    cluster: watch::Receiver<String>,
    /// Bytes.
    limit: u64,
}

impl Checkpoints {
    /// Opens a store: `file:///var/lib/shop`, or `s3://bucket/prefix` with the credentials that the environment has. A
    /// folder is made if it is not there. Without a URL, one in memory, which ends with the process.
    ///
    /// # Errors
    /// A URL that no store understands, or a folder that can't be made.
    pub(crate) fn open(url: Option<&str>, cluster: watch::Receiver<String>, limit: u64) -> Result<Self, StartError> {
        let Some(url) = url else {
            return Ok(Self { store: Arc::new(InMemory::new()), root: Path::default(), cluster, limit });
        };
        #[cfg(feature = "simulation")]
        if url == crate::simulation::CHECKPOINTS {
            return Ok(Self { store: crate::simulation::objects(), root: Path::default(), cluster, limit });
        }
        let url = &Url::parse(url)
            .map_err(|error| StartError::Checkpoints { url: String::new(), error: error.to_string() })?;
        let shown = without_credentials(url);
        let refused = |error: String| {
            let error = error.replace(url.as_str(), &shown);
            StartError::Checkpoints { url: shown.clone(), error }
        };
        if let (true, Ok(folder)) = (url.scheme() == "file", url.to_file_path()) {
            let mut builder = std::fs::DirBuilder::new();
            // What is in a state is nobody else's business.
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(folder).map_err(|error| refused(with_causes(&error)))?;
        }
        // Names of the environment are those of the stores' own tools, in capitals.
        let options = std::env::vars().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let (store, root) = object_store::parse_url_opts(url, options).map_err(|error| refused(with_causes(&error)))?;
        Ok(Self { store: store.into(), root, cluster, limit })
    }

    /// A module's folder.
    fn of(&self, module: &ModuleName) -> Path {
        self.root.clone().join(self.cluster.borrow().as_str()).join(module.as_str())
    }

    /// What there is of a module, the newest first.
    async fn list(&self, module: &ModuleName) -> Result<Vec<Path>, object_store::Error> {
        let listed = self.store.list(Some(&self.of(module)));
        let mut names: Vec<Path> = listed.map_ok(|object| object.location).try_collect().await?;
        names.retain(|name| name.as_ref().ends_with(".checkpoint"));
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// The number after the last one that was written at this epoch.
    async fn next(&self, module: &ModuleName, ownership: &Ownership) -> Result<u64, BoxError> {
        let epoch = format!("{:020}-", ownership.epoch().0);
        let names = self.list(module).await?;
        let written = names.iter().filter_map(|name| {
            let (number, _) = name.filename()?.strip_prefix(&epoch)?.split_once('.')?;
            number.parse::<u64>().ok()
        });
        Ok(written.max().unwrap_or_default() + 1)
    }

    /// Has a module read its newest checkpoint. One that is damaged is passed over, with a word in the log. Returns
    /// whether there was one.
    ///
    /// # Errors
    /// A store that does not answer, a module that can't read what it wrote; checkpoints all of which are damaged: to begin
    /// empty then is for an operator to decide.
    pub(crate) async fn restore(&self, module: &ModuleName, state: &Held, replies: &Dedupe) -> Result<bool, BoxError> {
        let names = self.list(module).await?;
        for name in &names {
            let object = self.store.get(name).await?.bytes().await?;
            let Some((kept, content)) = disk::blocking(move || content(object)).await? else {
                tracing::warn!(%module, checkpoint = %name, "a checkpoint is damaged; the one before it is taken");
                continue;
            };
            replies.decode(&kept)?;
            let bytes = content.len();
            let (to, mut reader) = SnapshotReader::new();
            let hooks = Arc::clone(&state.hooks);
            let feed = async move {
                // One that has failed says why.
                let _ = to.send(Ok(content)).await;
            };
            let ((), restored) = tokio::join!(feed, hooks.restore(&mut reader));
            restored?;
            tracing::info!(%module, checkpoint = %name, bytes, "restored");
            return Ok(true);
        }
        if let Some(newest) = names.first() {
            let text = format!(
                "none of the {} checkpoints of module `{module}` is whole, the newest is `{newest}`; put a whole one in its \
                 place, or delete all of them for the module to begin empty",
                names.len()
            );
            return Err(text.into());
        }
        tracing::info!(%module, "there is no checkpoint: it begins empty");
        Ok(false)
    }

    /// Writes a checkpoint at once, and then so often, where something has changed. Never returns.
    pub(crate) async fn keep(
        self,
        module: ModuleName,
        state: Held,
        replies: Arc<Dedupe>,
        ownership: Ownership,
        every: Duration,
    ) {
        let mut ticks = interval(every.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            ticks.tick().await;
            match self.write(&module, &state, &replies, &ownership, last).await {
                Ok(written) => last = Some(written),
                Err(error) => {
                    let error = with_causes(&*error);
                    tracing::error!(%module, error, "a checkpoint was not written: a crash loses what has come since the last");
                }
            }
        }
    }

    /// Writes a checkpoint, if the state is another one than the `last`. Returns its number and digest.
    pub(crate) async fn write(
        &self,
        module: &ModuleName,
        state: &Held,
        replies: &Dedupe,
        ownership: &Ownership,
        last: Option<(u64, blake3::Hash)>,
    ) -> Result<(u64, blake3::Hash), BoxError> {
        let (mut writer, mut chunks) = SnapshotWriter::new(self.limit);
        let hooks = Arc::clone(&state.hooks);
        // Ends with this future.
        let mut writing = JoinSet::new();
        writing.spawn(async move { hooks.snapshot(&mut writer).await });
        let mut written = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            written.push(chunk);
        }
        match writing.join_next().await {
            Some(Ok(result)) => result?,
            _ => return Err("the module was dropped while it wrote its state".into()),
        }
        // Not before: of a call that ends meanwhile, an answer without its effect is what the class allows a crash to lose;
        // an effect without its answer would be had twice.
        let replies = replies.encode();
        let mut content = vec![Bytes::copy_from_slice(&(replies.len() as u64).to_le_bytes()), replies];
        content.append(&mut written);
        let (content, digest) = disk::blocking(move || {
            let mut hasher = blake3::Hasher::new();
            content.iter().for_each(|chunk| {
                hasher.update(chunk);
            });
            (content, hasher.finalize())
        })
        .await?;
        let number = match last {
            Some(last) if last.1 == digest => return Ok(last),
            Some((number, _)) => number + 1,
            None => self.next(module, ownership).await?,
        };
        let mut content = content;
        let mut trailer = BytesMut::with_capacity(TRAILER);
        trailer.extend_from_slice(MAGIC);
        trailer.extend_from_slice(digest.as_bytes());
        content.push(trailer.freeze());
        let name = self.of(module).join(format!("{:020}-{number:020}.checkpoint", ownership.epoch().0));
        // Written late, it is what a former owner writes.
        #[cfg(feature = "simulation")]
        {
            let wait = crate::simulation::machine().disk();
            tokio::time::sleep(wait).await;
        }
        self.store.put(&name, PutPayload::from_iter(content)).await?;
        // Of older owners too; what a former one writes after this goes with the next.
        for old in self.list(module).await?.into_iter().skip(KEPT) {
            if let Err(error) = self.store.delete(&old).await {
                tracing::warn!(%module, checkpoint = %old, %error, "an old checkpoint was not deleted");
            }
        }
        Ok((number, digest))
    }
}

/// The replies and the state in an object, if the object is whole.
fn content(object: Bytes) -> Option<(Bytes, Bytes)> {
    let split = object.len().checked_sub(TRAILER)?;
    let (content, trailer) = (object.slice(..split), object.slice(split..));
    let digest = trailer.strip_prefix(MAGIC.as_slice())?;
    if blake3::hash(&content).as_bytes() != digest {
        return None;
    }
    let (length, _) = content.split_first_chunk()?;
    let end = usize::try_from(u64::from_le_bytes(*length)).ok()?.checked_add(length.len())?;
    (end <= content.len()).then(|| (content.slice(length.len()..end), content.slice(end..)))
}

/// The state in an object, if the object is whole.
#[cfg(feature = "simulation")]
pub(crate) fn state_of(object: Bytes) -> Option<Bytes> {
    content(object).map(|(_, state)| state)
}

/// A URL as it may be shown.
fn without_credentials(url: &Url) -> String {
    let mut url = url.clone();
    // What can't have them has none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::Epoch, module::Json};

    fn checkpoints() -> Checkpoints {
        let (_, cluster) = watch::channel("c1".to_owned());
        Checkpoints::open(None, cluster, 1 << 20).unwrap()
    }

    fn cart() -> ModuleName {
        ModuleName::parse("cart").unwrap()
    }

    fn holding(text: &str) -> Held {
        let held = Held::maker::<Json<String>>()();
        text.clone_into(&mut held.state::<Json<String>>().unwrap().write());
        held
    }

    async fn restored(checkpoints: &Checkpoints) -> String {
        let held = Held::maker::<Json<String>>()();
        checkpoints.restore(&cart(), &held, &replies()).await.unwrap();
        held.state::<Json<String>>().unwrap().read().clone()
    }

    fn replies() -> Arc<Dedupe> {
        Dedupe::new(cart(), crate::call::dedupe::Bounds { entries: 10, bytes: 1 << 10 }, 1 << 10)
    }

    fn at(epoch: u64) -> Ownership {
        let ownership = Ownership::default();
        ownership.set(Epoch(epoch));
        ownership
    }

    #[tokio::test]
    async fn the_newest_checkpoint_of_the_newest_owner_is_taken() {
        let checkpoints = checkpoints();
        assert_eq!(restored(&checkpoints).await, "");
        let first = checkpoints.write(&cart(), &holding("one"), &replies(), &at(9), None).await.unwrap();
        let second = checkpoints.write(&cart(), &holding("two"), &replies(), &at(9), Some(first)).await.unwrap();
        assert_eq!(restored(&checkpoints).await, "two");
        assert_eq!(
            checkpoints.write(&cart(), &holding("two"), &replies(), &at(9), Some(second)).await.unwrap(),
            second
        );
        let again = checkpoints.write(&cart(), &holding("three"), &replies(), &at(9), None).await.unwrap();
        assert_eq!(again.0, 3, "an instance that has not written yet goes on after the last one");
        checkpoints.write(&cart(), &holding("of the next owner"), &replies(), &at(10), None).await.unwrap();
        let stale = checkpoints.write(&cart(), &holding("of the former owner"), &replies(), &at(9), Some(second)).await;
        assert_eq!(stale.unwrap().0, 3, "it could be written");
        assert_eq!(restored(&checkpoints).await, "of the next owner");
        assert_eq!(checkpoints.list(&cart()).await.unwrap().len(), KEPT, "older ones are deleted");
    }

    #[tokio::test]
    async fn a_damaged_checkpoint_is_passed_over() {
        let checkpoints = checkpoints();
        let first = checkpoints.write(&cart(), &holding("one"), &replies(), &at(1), None).await.unwrap();
        checkpoints.write(&cart(), &holding("two"), &replies(), &at(1), Some(first)).await.unwrap();
        let newest = checkpoints.list(&cart()).await.unwrap().remove(0);
        let whole = checkpoints.store.get(&newest).await.unwrap().bytes().await.unwrap();
        for damaged in [whole.slice(1..), whole.slice(..whole.len() - 1), Bytes::new()] {
            checkpoints.store.put(&newest, damaged.into()).await.unwrap();
            assert_eq!(restored(&checkpoints).await, "one");
        }
        checkpoints.store.put(&newest, whole.clone().into()).await.unwrap();
        assert_eq!(restored(&checkpoints).await, "two");
        for name in checkpoints.list(&cart()).await.unwrap() {
            checkpoints.store.put(&name, whole.slice(1..).into()).await.unwrap();
        }
        let refused = checkpoints.restore(&cart(), &holding(""), &replies()).await.unwrap_err().to_string();
        assert!(refused.contains("none of the 2 checkpoints of module `cart`"), "{refused}");
    }

    #[test]
    fn a_url_that_nobody_understands_is_named_without_its_password() {
        let (_, cluster) = watch::channel(String::new());
        let url = "ftp://user:secret@example.org/x";
        let error = Checkpoints::open(Some(url), cluster, 1).unwrap_err().to_string();
        assert!(error.contains("ftp://example.org/x") && !error.contains("secret"), "{error}");
    }
}

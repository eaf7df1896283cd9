//! Who a node is over its restarts.
//!
//! ```text
//! DATA_DIR/lock             held for as long as the process runs: one process, one directory
//!          identity.json    marker and Raft id, written once
//!          generation       written anew at each start, before anybody hears of it
//! ```
//!
//! **Invariant:** under one data directory a generation is never used twice and never goes back, whatever the clock
//! does.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::id::{RaftId, Timestamp};

const LOCK: &str = "lock";
const IDENTITY: &str = "identity.json";
const GENERATION: &str = "generation";

/// Who a node is, for as long as its process runs. Keep it: with it goes the lock on the data directory.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) generation: u64,
    /// 128 random bits in hexadecimal, made with the data directory.
    pub(crate) marker: String,
    /// 63 random bits, made with the data directory; never 0.
    pub(crate) raft_id: RaftId,
    /// Whether it was read from, or written to, a data directory.
    pub(crate) persistent: bool,
    _lock: Option<File>,
}

/// A data directory that can't be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("can't {what} {}: {error}; check `node.data_dir` and who may write there", path.display())]
    Io { what: &'static str, path: PathBuf, error: io::Error },
    #[error("the data directory {} is in use by another process; stop that one, or set another `node.data_dir`", path.display())]
    InUse { path: PathBuf },
    #[error(
        "{} is damaged: {problem}; restore it from a backup, or remove the whole data directory to start as a new node",
        path.display()
    )]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "{} is damaged: {problem}; write a number into it that is higher than each that the node had, such as {wall} \
         if the clock of this machine was never ahead",
        path.display()
    )]
    Generation { path: PathBuf, problem: String, wall: u64 },
}

/// What `identity.json` holds. Keys that a newer version adds are passed over.
#[derive(Serialize, Deserialize)]
struct Written {
    marker: String,
    raft_id: RaftId,
}

impl Written {
    fn new() -> Self {
        Self { marker: format!("{:032x}", rand::random::<u128>()), raft_id: (rand::random::<u64>() >> 1).max(1) }
    }

    fn fault(&self) -> Option<String> {
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if self.marker.len() != 32 || !self.marker.bytes().all(hexadecimal) {
            return Some(format!("`marker` is {:?}, not 32 hexadecimal digits", self.marker));
        }
        let good = (1..=u64::MAX >> 1).contains(&self.raft_id);
        (!good).then(|| format!("`raft_id` is {}, not a number from 1 to 2^63 - 1", self.raft_id))
    }
}

#[cfg(test)]
impl Identity {
    /// One without a directory, and so without a lock.
    pub(crate) fn made_up(generation: u64, raft_id: RaftId, persistent: bool) -> Self {
        Self { generation, marker: format!("{raft_id:x}"), raft_id, persistent, _lock: None }
    }
}

impl Identity {
    /// Reads who the node is, or makes it up. `wall` is the time now. Blocks on the disk.
    ///
    /// When this returns, the generation is on disk: it is safe to tell others.
    ///
    /// # Errors
    /// A directory that can't be written, that another process uses, or whose files are damaged.
    pub(crate) fn load(data_dir: Option<&Path>, wall: Timestamp) -> Result<Self, IdentityError> {
        let Some(dir) = data_dir else {
            let Written { marker, raft_id } = Written::new();
            return Ok(Self { generation: wall.0, marker, raft_id, persistent: false, _lock: None });
        };
        create(dir).map_err(io_error("create", dir))?;
        let lock = lock(dir)?;
        let (Written { marker, raft_id }, last) = match read_identity(&dir.join(IDENTITY))? {
            Some(written) => (written, read_generation(&dir.join(GENERATION), wall)?),
            None => (Written::new(), 0),
        };
        let generation = wall.0.max(last.saturating_add(1));
        // In this order, an identity without a generation is never the trace of a crash.
        write(dir, GENERATION, format!("{generation}\n").as_bytes())?;
        if !dir.join(IDENTITY).exists() {
            let written = serde_json::json!({ "marker": marker, "raft_id": raft_id });
            write(dir, IDENTITY, format!("{written:#}\n").as_bytes())?;
        }
        Ok(Self { generation, marker, raft_id, persistent: true, _lock: Some(lock) })
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |error| IdentityError::Io { what, path: path.to_owned(), error }
}

/// For the node's user alone: keys and the log are kept here too.
fn create(dir: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn open_own(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(truncate);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn lock(dir: &Path) -> Result<File, IdentityError> {
    let path = dir.join(LOCK);
    let file = open_own(&path, false).map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(IdentityError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
    }
}

fn read_identity(path: &Path) -> Result<Option<Written>, IdentityError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let damaged = |problem| IdentityError::Damaged { path: path.to_owned(), problem };
    let written: Written = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    match written.fault() {
        Some(problem) => Err(damaged(problem)),
        None => Ok(Some(written)),
    }
}

fn read_generation(path: &Path, wall: Timestamp) -> Result<u64, IdentityError> {
    let damaged = |problem| IdentityError::Generation { path: path.to_owned(), problem, wall: wall.0 };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(damaged(format!("it is missing, and {IDENTITY} is there")));
        }
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let text = String::from_utf8_lossy(&text);
    // The highest number can't be followed by another: no clock wrote it.
    match text.trim().parse::<u64>() {
        Ok(generation) if generation < u64::MAX => Ok(generation),
        Ok(_) | Err(_) => {
            let start: String = text.trim().chars().take(40).collect();
            Err(damaged(format!("{start:?} is not the number of a generation")))
        }
    }
}

/// Replaces a file so that a crash leaves the old one or the new one, and a return means that the new one stays.
fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    let replace = || {
        let mut file = open_own(&temporary, true)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        // The rename is an entry of the directory, which has to reach the disk too. Only Unix can open a directory.
        if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
    };
    replace().map_err(io_error("write", &path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn load(dir: &TempDir, wall: u64) -> Result<Identity, IdentityError> {
        Identity::load(Some(&dir.path().join("data")), Timestamp(wall))
    }

    fn path(dir: &TempDir, name: &str) -> PathBuf {
        dir.path().join("data").join(name)
    }

    #[test]
    fn marker_and_raft_id_stay_and_the_generation_grows() {
        let dir = TempDir::new().unwrap();
        let first = load(&dir, 1000).unwrap();
        assert!(first.persistent);
        assert_eq!((first.generation, first.marker.len()), (1000, 32));
        assert_ne!(first.raft_id, 0);
        let (marker, raft_id) = (first.marker.clone(), first.raft_id);
        drop(first);
        for (wall, generation) in [(2000, 2000), (2000, 2001), (5, 2002), (0, 2003), (3000, 3000)] {
            let again = load(&dir, wall).unwrap();
            assert_eq!((&again.marker, again.raft_id), (&marker, raft_id));
            assert_eq!(again.generation, generation);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_generation_never_goes_back(walls in proptest::collection::vec(0_u64..1_000_000, 1..8)) {
            let dir = TempDir::new().unwrap();
            let mut last = None;
            for wall in walls {
                let generation = load(&dir, wall).unwrap().generation;
                prop_assert!(generation >= wall && last.is_none_or(|last| generation > last));
                last = Some(generation);
            }
        }
    }

    #[test]
    fn without_a_directory_a_process_is_somebody_new() {
        let [one, two] = [7, 7].map(|wall| Identity::load(None, Timestamp(wall)).unwrap());
        assert!(!one.persistent && one.generation == 7);
        assert_ne!((one.marker, one.raft_id), (two.marker, two.raft_id));
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = TempDir::new().unwrap();
        let first = load(&dir, 1).unwrap();
        let text = load(&dir, 1).unwrap_err().to_string();
        assert!(text.contains("in use by another process") && text.contains("node.data_dir"), "{text}");
        drop(first);
        load(&dir, 1).unwrap();
    }

    #[test]
    fn damage_is_told_with_file_problem_and_remedy() {
        let marker = "0123456789abcdef0123456789abcdef";
        let identity = |marker: &str, raft_id: &str| format!(r#"{{"marker":"{marker}","raft_id":{raft_id}}}"#);
        let good = identity(marker, "5");
        for (file, content, problem) in [
            (IDENTITY, String::new(), "EOF"),
            (IDENTITY, "{".to_owned(), "EOF"),
            (IDENTITY, "[1]".to_owned(), "invalid"),
            (IDENTITY, identity("xyz", "5"), "32 hexadecimal digits"),
            (IDENTITY, identity(marker, "0"), "from 1 to 2^63"),
            (IDENTITY, identity(marker, "9223372036854775808"), "from 1 to 2^63"),
            (IDENTITY, identity(marker, "-1"), "invalid value"),
            (GENERATION, String::new(), "not the number"),
            (GENERATION, "12x".to_owned(), "not the number"),
            (GENERATION, u64::MAX.to_string(), "not the number"),
        ] {
            let dir = TempDir::new().unwrap();
            drop(load(&dir, 1).unwrap());
            fs::write(path(&dir, IDENTITY), &good).unwrap();
            drop(load(&dir, 1).expect("a good file is read"));
            fs::write(path(&dir, file), &content).unwrap();
            let text = load(&dir, 99).unwrap_err().to_string();
            let remedy = if file == IDENTITY { "remove the whole data directory" } else { "such as 99" };
            for part in [file, problem, remedy] {
                assert!(text.contains(part), "{file} = {content:?}: no `{part}` in: {text}");
            }
        }
    }

    #[test]
    fn a_lost_generation_is_not_taken_for_a_new_node() {
        let dir = TempDir::new().unwrap();
        drop(load(&dir, 1).unwrap());
        fs::remove_file(path(&dir, GENERATION)).unwrap();
        assert!(load(&dir, 1).unwrap_err().to_string().contains("it is missing"));
    }

    #[test]
    fn a_crash_in_the_first_start_is_overcome() {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("data")).unwrap();
        fs::write(path(&dir, "generation"), "12\n").unwrap();
        fs::write(path(&dir, "identity.json.tmp"), "{\"mar").unwrap();
        assert!(load(&dir, 20).unwrap().persistent);
    }

    #[test]
    #[cfg(unix)]
    fn the_directory_is_the_nodes_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new().unwrap();
        let _identity = load(&dir, 1).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(dir.path().join("data")), 0o700);
        assert_eq!(mode(path(&dir, IDENTITY)), 0o600);
    }

    #[test]
    fn a_directory_that_is_a_file_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = Identity::load(Some(file.path()), Timestamp(1)).unwrap_err().to_string();
        assert!(text.contains("can't create") && text.contains("node.data_dir"), "{text}");
    }
}

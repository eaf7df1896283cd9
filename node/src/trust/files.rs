//! What is read from files, and read again when they change.
//!
//! Certificates live for a day where they are issued by a machine, so a process outlives them. Files are looked at, not
//! watched: an orchestrator that swaps a symbolic link is seen like anything else.
//!
//! **Invariant:** what can't be used is never put in force. The last that could stays, and the fault is told.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::TrustError;
use crate::clock;

/// The largest file: a bundle of many authorities has a few hundred KiB.
const LARGEST: u64 = 4 << 20;

/// A file, and the key of the setting that names it.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) key: &'static str,
    pub(super) path: PathBuf,
}

impl File {
    pub(super) fn new(key: &'static str, path: &Path) -> Self {
        Self { key, path: path.to_owned() }
    }

    /// What it holds is of no use.
    pub(super) fn unusable(&self, problem: String) -> TrustError {
        TrustError::Unusable { key: self.key, path: self.path.clone(), problem }
    }

    fn read(&self) -> Result<Vec<u8>, TrustError> {
        let read = || {
            let file = fs::File::open(&self.path)?;
            if file.metadata()?.len() > LARGEST {
                return Err(io::Error::other("it is larger than 4 MiB"));
            }
            fs::read(&self.path)
        };
        read().map_err(|error| TrustError::Unreadable { key: self.key, path: self.path.clone(), error })
    }
}

type Build<T> = Box<dyn Fn(&[File], &[Vec<u8>]) -> Result<T, TrustError> + Send + Sync>;

/// What was made of some files.
pub(super) struct FromFiles<T> {
    files: Vec<File>,
    build: Build<T>,
    current: ArcSwap<T>,
    read: Mutex<Read>,
    /// Of what is current; one higher with each change.
    version: AtomicU64,
    changes: watch::Sender<()>,
    due: Option<Due<T>>,
}

/// When there should be something newer than what is in force, since 1970, and in which of the files.
type Due<T> = (usize, fn(&T) -> Option<Duration>);

/// What they hold may be secret.
impl<T> fmt::Debug for FromFiles<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.files.iter().map(|file| &file.path)).finish()
    }
}

struct Read {
    /// Of each file. What they hold is not kept: it is secret.
    digests: Vec<blake3::Hash>,
    /// The same of what the files held at the last look, and is not in force: what is written in place is half there for a
    /// moment, and may look whole.
    seen: Option<Vec<blake3::Hash>>,
    /// Why what the files hold now is not in force.
    fault: Option<String>,
    /// Whether it was told that what is in force is older than it may be.
    overdue: bool,
}

impl<T> FromFiles<T> {
    pub(super) fn load(
        files: Vec<File>,
        build: impl Fn(&[File], &[Vec<u8>]) -> Result<T, TrustError> + Send + Sync + 'static,
    ) -> Result<Self, TrustError> {
        let contents = files.iter().map(File::read).collect::<Result<Vec<_>, _>>()?;
        let built = build(&files, &contents)?;
        let read = Mutex::new(Read { digests: digests(&contents), seen: None, fault: None, overdue: false });
        let (build, current) = (Box::new(build), ArcSwap::from_pointee(built));
        let (version, changes) = (AtomicU64::new(1), watch::Sender::new(()));
        Ok(Self { files, build, current, read, version, changes, due: None })
    }

    /// What is of use for ever, but should be followed by something newer: it stays in force, and that is told.
    pub(super) fn due(self, file: usize, due: fn(&T) -> Option<Duration>) -> Self {
        Self { due: Some((file, due)), ..self }
    }

    /// The same for a moment: costs no reference count.
    pub(super) fn now(&self) -> arc_swap::Guard<Arc<T>> {
        self.current.load()
    }

    pub(super) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// The version of what is current, which is never 0. What is read after this is of this version or a later one.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Tells of changes from now on. What is current is to be read after this, or a change may be missed.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Looks at the files again.
    fn look(&self) {
        let read = &mut *self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = self.files.iter().map(File::read).collect::<Result<Vec<_>, _>>();
        let built = match contents {
            Ok(contents) if digests(&contents) == read.digests => {
                (read.seen, read.fault) = (None, None);
                return;
            }
            Ok(contents) if read.seen.as_ref() != Some(&digests(&contents)) => {
                read.seen = Some(digests(&contents));
                return;
            }
            Ok(contents) => (self.build)(&self.files, &contents).map(|built| (digests(&contents), built)),
            Err(error) => Err(error),
        };
        match built {
            Ok((digests, built)) => {
                (read.digests, read.seen, read.fault) = (digests, None, None);
                self.current.store(Arc::new(built));
                self.version.fetch_add(1, Ordering::Release);
                self.changes.send_replace(());
                let files: Vec<_> = self.files.iter().map(|file| file.path.display().to_string()).collect();
                tracing::info!(files = files.join(", "), "put changed files in force");
            }
            Err(error) => {
                let fault = error.to_string();
                if read.fault.as_ref() != Some(&fault) {
                    tracing::error!(error = fault, "can't use changed files; what was in force before stays");
                    read.fault = Some(fault);
                }
            }
        }
    }

    fn tell_if_overdue(&self) {
        let overdue = self.overdue();
        let told = &mut self.read.lock().unwrap_or_else(PoisonError::into_inner).overdue;
        if let Some(overdue) = overdue.as_ref().filter(|_| !*told) {
            tracing::warn!("{overdue}");
        }
        *told = overdue.is_some();
    }

    fn overdue(&self) -> Option<String> {
        let (file, due) = self.due?;
        let (file, due) = (self.files.get(file)?, due(&self.now())?);
        let overdue = due <= Duration::from_millis(clock::wall().0);
        overdue.then(|| {
            let path = file.path.display();
            format!("{path} (`{}`) should have been replaced by something newer by now; it stays in force", file.key)
        })
    }
}

fn digests(contents: &[Vec<u8>]) -> Vec<blake3::Hash> {
    contents.iter().map(|content| blake3::hash(content)).collect()
}

/// Something that follows its files.
pub(crate) trait Follows: fmt::Debug + Send + Sync {
    /// Looks at the files again, which blocks. What has changed is in force from the second look on.
    fn follow(&self);

    /// Why changed files are not in force, if they are not.
    fn fault(&self) -> Option<String>;

    /// That what is in force is older than it may be, if it is.
    fn overdue(&self) -> Option<String>;
}

impl<T: Send + Sync> Follows for FromFiles<T> {
    fn follow(&self) {
        self.look();
        self.tell_if_overdue();
    }

    fn fault(&self) -> Option<String> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).fault.clone()
    }

    fn overdue(&self) -> Option<String> {
        FromFiles::overdue(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As often as a change has to be seen.
    fn follow(followed: &dyn Follows) {
        followed.follow();
        followed.follow();
    }

    fn number(files: &[File], contents: &[Vec<u8>]) -> Result<u32, TrustError> {
        let text = String::from_utf8_lossy(&contents[0]);
        text.trim().parse().map_err(|error: std::num::ParseIntError| files[0].unusable(error.to_string()))
    }

    /// A file with a 1 in it.
    fn one() -> (tempfile::TempDir, PathBuf, FromFiles<u32>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        fs::write(&path, "1").unwrap();
        let followed = FromFiles::load(vec![File::new("a.b", &path)], number).unwrap();
        (folder, path, followed)
    }

    #[test]
    fn what_cannot_be_used_is_told_and_not_put_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let load = || FromFiles::load(vec![File::new("a.b", &path)], number);
        let missing = load().err().unwrap().to_string();
        assert!(missing.contains("a.b") && missing.contains("number"), "{missing}");

        fs::write(&path, "1").unwrap();
        let followed = load().unwrap();
        fs::write(&path, "x").unwrap();
        follow(&followed);
        assert_eq!(*followed.current(), 1);
        assert!(followed.fault().unwrap().contains("invalid digit"));
        fs::remove_file(&path).unwrap();
        follow(&followed);
        assert_eq!(*followed.current(), 1);
        fs::write(&path, "2").unwrap();
        follow(&followed);
        assert_eq!(*followed.current(), 2);
        assert_eq!(followed.fault(), None);
    }

    #[test]
    fn what_should_have_been_replaced_stays_and_is_told() {
        let (_folder, path, followed) = one();
        assert_eq!(Follows::overdue(&followed), None);
        let followed = followed.due(0, |number| Some(Duration::from_secs(u64::from(*number))));
        follow(&followed);
        let told = Follows::overdue(&followed).unwrap();
        assert!(told.contains("`a.b`") && told.contains("stays in force"), "{told}");
        assert_eq!((*followed.current(), followed.fault()), (1, None));
        fs::write(&path, "4000000000").unwrap();
        follow(&followed);
        assert_eq!(Follows::overdue(&followed), None);
    }

    #[test]
    fn what_changes_between_two_looks_is_not_put_in_force() {
        let (_folder, path, followed) = one();
        // The beginning of what is written.
        fs::write(&path, "2").unwrap();
        followed.follow();
        fs::write(&path, "23").unwrap();
        followed.follow();
        assert_eq!(*followed.current(), 1);
        followed.follow();
        assert_eq!(*followed.current(), 23);
    }

    #[test]
    fn a_fault_is_gone_with_the_change_that_made_it() {
        let (_folder, path, followed) = one();
        fs::write(&path, "x").unwrap();
        follow(&followed);
        fs::write(&path, "1").unwrap();
        follow(&followed);
        assert_eq!(followed.fault(), None);
    }
}

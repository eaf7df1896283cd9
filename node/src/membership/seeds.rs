//! Where to find other nodes at first: a list, a file, and the names in both, looked up for as long as the node runs.
//! Services of Kubernetes are among them where this is built with the feature `kubernetes`: those are watched, not asked
//! again and again.
//!
//! chitchat is started without seeds. It looks names up once at the start and then each minute, so a name that was not
//! there yet would cost a minute, and it knows no files. What it offers is to greet one address now; so the seeds are
//! ours, and `gossip` greets them: all of them while the node is alone, later now and then one of which nothing is
//! known, so that two halves of a cluster find each other again.

#[cfg(feature = "kubernetes-client")]
mod kubernetes;
#[cfg(not(feature = "kubernetes-client"))]
#[path = "seeds/no_kubernetes.rs"]
mod kubernetes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing::{info, warn};

use self::kubernetes::Service;
use crate::{disk, net::lookup_host};

/// How often the file is read, and how soon a lookup that found nothing is repeated.
const SOON: Duration = Duration::from_secs(1);
/// How often names that stand for something are looked up again.
const AGAIN: Duration = Duration::from_secs(10);
/// A resolver that does not answer must not hold up the other names.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// What a file of seeds may hold: far more than a cluster can.
const FILE_MAX: u64 = 1 << 20;

/// Where other nodes may be. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seeds {
    list: Arc<[String]>,
    file: Option<Arc<Path>>,
    /// This node's own addresses: it is no seed of itself.
    own: Arc<[SocketAddr]>,
}

/// A seed, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Seed {
    /// `HOST:PORT`
    Host(String),
    /// `kubernetes://SERVICE.NAMESPACE:PORT`
    Service(Service),
}

/// What was found, and what is wrong with the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    addresses: BTreeSet<SocketAddr>,
    problems: BTreeSet<String>,
}

impl Seeds {
    /// Seeds are written `HOST:PORT`, or `kubernetes://SERVICE.NAMESPACE:PORT`; in `file` one a line, with `#` before a comment.
    pub(crate) fn new(list: Vec<String>, file: Option<PathBuf>, own: Vec<SocketAddr>) -> Self {
        Self { list: list.into(), file: file.map(Into::into), own: own.into() }
    }

    /// Whether something is a seed, and if not, what is expected.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn check(seed: &str) -> Result<(), &'static str> {
        parse(seed).map(drop)
    }

    /// Whether there is nothing to find, ever.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.file.is_none()
    }

    /// Reads the file and looks all names up, now. Without this node's own addresses.
    #[cfg(test)]
    pub(crate) async fn resolve(&self) -> Vec<SocketAddr> {
        self.find().await.addresses.into_iter().collect()
    }

    #[cfg(test)]
    async fn find(&self) -> Found {
        let (names, problems) = self.names().await;
        self.look_up(&names, problems).await
    }

    /// Keeps `found` current, until nobody wants to know.
    pub(super) async fn watch(self, found: watch::Sender<Vec<SocketAddr>>) {
        let mut told = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut services = Services::default();
        let mut due = Instant::now();
        while !found.is_closed() {
            let (now_named, problems) = self.names().await;
            let news = services.news.has_changed().unwrap_or(false);
            if now_named != names || news || Instant::now() >= due {
                names = now_named;
                services.follow(&names, &self.own);
                let mut all = self.look_up(&names, problems).await;
                for Found { addresses, problems } in services.news.borrow_and_update().values() {
                    all.addresses.extend(addresses);
                    all.problems.extend(problems.iter().cloned());
                }
                let Found { addresses, problems } = all;
                due = Instant::now() + if addresses.is_empty() { SOON } else { AGAIN };
                for problem in problems.difference(&told) {
                    warn!("{problem}");
                }
                told = problems;
                found.send_if_modified(|known| {
                    let addresses: Vec<_> = addresses.into_iter().collect();
                    let new = *known != addresses;
                    if new {
                        info!(seeds = ?addresses, "seeds resolved");
                        *known = addresses;
                    }
                    new
                });
            }
            // Its sender is beside it.
            let _ = timeout(SOON, services.news.changed()).await;
        }
    }

    /// What is written: in the list and in the file as it is now.
    async fn names(&self) -> (BTreeSet<Seed>, BTreeSet<String>) {
        let mut names = BTreeSet::new();
        let mut problems = BTreeSet::new();
        for seed in self.list.iter() {
            match parse(seed) {
                Ok(seed) => drop(names.insert(seed)),
                Err(error) => drop(problems.insert(format!("seed `{seed}` is passed over: {error}"))),
            }
        }
        let Some(file) = self.file.clone() else { return (names, problems) };
        let path = file.clone();
        match disk::blocking(move || read(&path)).await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(text) => {
                for (number, line) in (1..).zip(text.lines()) {
                    let seed = line.split('#').next().unwrap_or_default().trim();
                    if seed.is_empty() {
                        continue;
                    }
                    match parse(seed) {
                        Ok(seed) => drop(names.insert(seed)),
                        Err(error) => {
                            let line = format!("{}:{number}: seed `{seed}` is passed over: {error}", file.display());
                            problems.insert(line);
                        }
                    }
                }
            }
            Err(error) => {
                problems.insert(format!("can't read the seeds file {}: {error}; it is tried again", file.display()));
            }
        }
        (names, problems)
    }

    async fn look_up(&self, names: &BTreeSet<Seed>, mut problems: BTreeSet<String>) -> Found {
        let hosts = names.iter().filter_map(|seed| if let Seed::Host(host) = seed { Some(host) } else { None });
        let lookups = hosts.map(|name| async move {
            // An address needs no resolver, not even a broken one.
            if let Ok(address) = name.parse::<SocketAddr>() {
                return (name, Ok(vec![address]));
            }
            let answer = match timeout(LOOKUP_LIMIT, lookup_host(name)).await {
                Ok(Ok(addresses)) => Ok(addresses.collect()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {} s", LOOKUP_LIMIT.as_secs())),
            };
            (name, answer)
        });
        let mut addresses = BTreeSet::new();
        for (name, answer) in join_all(lookups).await {
            match answer {
                Ok(answer) => addresses.extend(answer.into_iter().filter(|address| !self.own.contains(address))),
                Err(error) => drop(problems.insert(format!("can't look up seed `{name}`: {error}; it is tried again"))),
            }
        }
        Found { addresses, problems }
    }
}

/// Services that are watched.
#[derive(Debug)]
struct Services {
    tasks: BTreeMap<Service, JoinSet<()>>,
    tell: watch::Sender<BTreeMap<Service, Found>>,
    news: watch::Receiver<BTreeMap<Service, Found>>,
}

impl Default for Services {
    fn default() -> Self {
        let (tell, news) = watch::channel(BTreeMap::new());
        Self { tasks: BTreeMap::new(), tell, news }
    }
}

impl Services {
    /// Watches those among the seeds, and no others.
    fn follow(&mut self, seeds: &BTreeSet<Seed>, own: &Arc<[SocketAddr]>) {
        let named = |service: &Service| seeds.contains(&Seed::Service(service.clone()));
        // One that has ended has panicked: it is begun again.
        self.tasks.retain(|service, task| named(service) && task.try_join_next().is_none());
        self.tell.send_if_modified(|found| {
            found.retain(|service, _| named(service));
            false
        });
        for seed in seeds {
            let Seed::Service(service) = seed else { continue };
            self.tasks.entry(service.clone()).or_insert_with(|| {
                let (service, own, tell) = (service.clone(), Arc::clone(own), self.tell.clone());
                let mut task = JoinSet::new();
                task.spawn(async move {
                    let key = service.clone();
                    let tell = |new: Found| {
                        tell.send_if_modified(|found| found.insert(key.clone(), new.clone()).as_ref() != Some(&new));
                    };
                    kubernetes::watch(service, &own, tell).await;
                });
                task
            });
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_MAX {
        return Err(format!("it has {size} bytes, and {FILE_MAX} are the most"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

fn parse(seed: &str) -> Result<Seed, &'static str> {
    const EXPECTED: &str = "expected a host and a port, such as `node-1.example:7002` or `[fd00::1]:7002`";
    if let Some(service) = seed.strip_prefix("kubernetes://") {
        return Service::parse(service).map(Seed::Service);
    }
    let host_and_port = || Ok(Seed::Host(seed.to_owned()));
    if seed.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return host_and_port();
    }
    let (host, port) = seed.rsplit_once(':').ok_or(EXPECTED)?;
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let good = !host.is_empty() && host.bytes().all(letters) && port.parse::<u16>().is_ok_and(|port| port != 0);
    // An address without brackets, `fd00::1`, is no name with a port; `1.2.3.4:0` is no address.
    if good && host.parse::<IpAddr>().is_err() { host_and_port() } else { Err(EXPECTED) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use tokio::task::JoinSet;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_seed_is_a_host_and_a_port() {
        for good in ["1.2.3.4:7002", "[fd00::1]:7002", "localhost:1", "a.b-c.example:65535", "shop-headless:7002"] {
            assert_eq!(parse(good), Ok(Seed::Host(good.to_owned())));
        }
        for bad in ["", ":", "a", "a:", ":1", "a:0", "a:65536", "1.2.3.4:0", "fd00::1", "a b:1", "http://a:1", "a:x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_is_a_seed_where_it_can_be_watched() {
        let seed = Seeds::check("kubernetes://shop-nodes.shop:cluster");
        if cfg!(feature = "kubernetes-client") {
            assert_eq!(seed, Ok(()));
        } else {
            assert!(seed.is_err_and(|error| error.contains("feature `kubernetes`")));
        }
    }

    #[cfg(feature = "kubernetes-client")]
    #[tokio::test]
    async fn a_watch_that_has_ended_is_begun_again() {
        let service = Service::parse("nodes.shop:cluster").unwrap();
        let mut ended = JoinSet::new();
        let task = ended.spawn(async {});
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        let mut services = Services::default();
        services.tasks.insert(service.clone(), ended);
        services.follow(&BTreeSet::from([Seed::Service(service.clone())]), &Arc::from([]));
        let watches = services.tasks.get_mut(&service).unwrap();
        assert!(watches.len() == 1 && watches.try_join_next().is_none(), "{watches:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_seed_or_refused(text in any::<String>()) {
            let _ = parse(&text);
        }
    }

    #[tokio::test]
    async fn list_file_and_names_are_resolved_without_the_node_itself() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# nodes\n\n 127.0.0.2:7002 # two\n127.0.0.9:7002\nnonsense\n127.0.0.2:7002\r\n")
            .unwrap();
        let list = vec!["127.0.0.1:7002".to_owned(), "localhost:7009".to_owned(), "no port".to_owned()];
        let seeds = Seeds::new(list, Some(file.path().to_owned()), vec![address("127.0.0.9:7002")]);
        let resolved = seeds.resolve().await;
        for expected in ["127.0.0.1:7002", "127.0.0.2:7002", "127.0.0.1:7009"] {
            assert!(resolved.contains(&address(expected)), "{expected} in {resolved:?}");
        }
        assert!(!resolved.contains(&address("127.0.0.9:7002")), "not itself: {resolved:?}");
        let problems = seeds.find().await.problems;
        assert!(problems.iter().any(|problem| problem.contains(":5: seed `nonsense`")), "{problems:?}");
        assert!(problems.iter().any(|problem| problem.contains("seed `no port`")), "{problems:?}");
    }

    #[tokio::test]
    async fn a_missing_file_is_a_problem_and_not_an_end() {
        let seeds = Seeds::new(vec!["127.0.0.1:7002".to_owned()], Some("/does/not/exist".into()), Vec::new());
        let found = seeds.find().await;
        assert_eq!(found.addresses, BTreeSet::from([address("127.0.0.1:7002")]));
        assert!(found.problems.iter().any(|problem| problem.contains("/does/not/exist")));
    }

    #[tokio::test]
    async fn a_name_that_nobody_knows_is_a_problem_and_not_an_end() {
        let list = vec!["nowhere.invalid:7002".to_owned(), "127.0.0.1:7002".to_owned()];
        let found = Seeds::new(list, None, Vec::new()).find().await;
        assert_eq!(found.addresses, BTreeSet::from([address("127.0.0.1:7002")]));
        assert!(found.problems.iter().any(|problem| problem.contains("nowhere.invalid")), "{found:?}");
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (found, mut known) = watch::channel(Vec::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(Seeds::new(Vec::new(), Some(file.path().to_owned()), Vec::new()).watch(found));
        for text in ["127.0.0.1:1\n", "127.0.0.1:1\n127.0.0.1:2\n", "127.0.0.1:2\n"] {
            fs::write(file.path(), text).unwrap();
            let expected: Vec<SocketAddr> = text.lines().map(address).collect();
            let seen = timeout(Duration::from_secs(5), known.wait_for(|known| *known == expected)).await;
            assert!(seen.is_ok(), "{text:?} was not seen");
        }
    }
}

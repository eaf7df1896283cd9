//! Nodes as processes: started, watched, and hurt.
//!
//! ```text
//! Fleet ─ start, kill, freeze, restart ─▶ processes ─ log ─▶ a file each, printed when a test fails
//!   ├─ until(reason, fact) ◀─ Admin.Watch ── ┤
//!   └─ terms: who led which term ◀───────────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outpost_proto::admin::v1::{
    Changed, Cluster, ClusterModule, ClusterNode, EventsRequest, MoveRequest, WatchRequest, admin_client::AdminClient,
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::wall_clock_us;

/// How many lines of each log are printed when a test fails.
const TAIL: usize = 60;
/// How long a node may take from its start until it serves.
pub const START: Duration = Duration::from_secs(30);

/// A node that is, or was, a process.
#[derive(Debug)]
pub struct Process {
    /// Its name in the cluster.
    pub name: String,
    /// Where clients connect.
    pub ingress: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    /// Where other nodes connect.
    pub cluster: SocketAddr,
    /// Its data directory.
    pub data_dir: PathBuf,
    log: PathBuf,
    /// What the command begins with: nothing, or what puts it into another network.
    pub wrapper: Vec<String>,
    /// What it is told beside what all are.
    pub settings: Vec<String>,
    child: Option<Child>,
    /// When it was started last, in milliseconds since 1970: its generation is not below.
    since: u64,
}

impl Process {
    /// The id of the process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// A client's connection to this node, made when it is used, and again when it was lost.
    #[must_use]
    pub fn channel(&self) -> Channel {
        connect_lazily(self.ingress)
    }

    /// What it has logged, over all of its processes.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it is known by to the placement log, made with its data directory.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn raft_id(&self) -> u64 {
        let path = self.data_dir.join("identity.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let digits = text.split("\"raft_id\":").nth(1).unwrap_or_default().trim_start();
        let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or_else(|_| panic!("no raft_id in {text}"))
    }

    /// How much memory the process has, in bytes.
    ///
    /// # Panics
    /// When it does not run, or the system does not tell.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("{path} does not tell")) * 1024
    }

    fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -s {name} {pid} ({})", self.name);
    }
}

/// A connection that is made when it is used.
///
/// # Panics
/// Never: an address is a URI.
#[must_use]
pub fn connect_lazily(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::try_from(format!("http://{address}")).expect("an address is a URI");
    endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
}

/// Some nodes of one program. Their processes end with it.
#[derive(Debug)]
pub struct Fleet {
    program: PathBuf,
    /// Of the program beside which nothing can be said: see [`Fleet::of`].
    settings: Vec<String>,
    nodes: Vec<Process>,
    terms: Arc<Mutex<BTreeMap<u64, BTreeSet<String>>>>,
    watching: JoinSet<()>,
    dir: TempDir,
}

impl Fleet {
    /// So many nodes, of which nobody runs yet: `node-1` and so on. The first three, or the first, begin a cluster.
    ///
    /// # Panics
    /// When there are no free ports, or no place for files.
    #[must_use]
    pub fn of(program: &str, count: usize, settings: &[&str]) -> Self {
        let here = (0..count).map(|_| (IpAddr::V4(Ipv4Addr::LOCALHOST), free_ports())).collect();
        Self::at(program, here, settings)
    }

    /// The same, each at an address of its own, with its ports for clients, operators and nodes.
    ///
    /// # Panics
    /// As [`Fleet::of`].
    #[must_use]
    pub fn at(program: &str, places: Vec<(IpAddr, [u16; 3])>, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("fleet-").tempdir().expect("a folder for the test");
        let nodes = places.into_iter().enumerate().map(|(index, (ip, [ingress, admin, cluster]))| {
            let name = format!("node-{}", index + 1);
            Process {
                ingress: SocketAddr::new(ip, ingress),
                admin: SocketAddr::new(ip, admin),
                cluster: SocketAddr::new(ip, cluster),
                data_dir: dir.path().join(&name),
                log: dir.path().join(format!("{name}.log")),
                wrapper: Vec::new(),
                settings: Vec::new(),
                child: None,
                since: 0,
                name,
            }
        });
        Self {
            program: program.into(),
            settings: settings.iter().map(ToString::to_string).collect(),
            nodes: nodes.collect(),
            terms: Arc::default(),
            watching: JoinSet::new(),
            dir,
        }
    }

    /// All of them run, and serve their modules.
    pub async fn started(program: &str, count: usize, settings: &[&str]) -> Self {
        let mut fleet = Self::of(program, count, settings);
        fleet.start_all().await;
        fleet
    }

    /// Starts all of them, and waits until each sees all of them ready, and every module served.
    pub async fn start_all(&mut self) {
        for index in 0..self.nodes.len() {
            self.start(index);
        }
        for index in 0..self.nodes.len() {
            self.settled(index, self.nodes.len(), START).await;
        }
    }

    /// Waits until a node sees so many nodes ready, and every module served.
    pub async fn settled(&self, at: usize, ready: usize, limit: Duration) -> Cluster {
        let reason = format!("{ready} ready nodes and every module served");
        // A node that was killed and started again can be seen for a while as what it was before.
        let stale = |node: &ClusterNode| self.nodes.iter().any(|it| it.name == node.name && it.since > node.generation);
        let settled =
            |view: &Cluster| ready_nodes(view).len() == ready && !view.nodes.iter().any(stale) && all_served(view);
        self.until(at, &reason, limit, settled).await
    }

    /// The node of this index, from 0.
    #[must_use]
    pub fn node(&self, index: usize) -> &Process {
        &self.nodes[index]
    }

    /// The same, to be changed before it starts.
    pub fn node_mut(&mut self, index: usize) -> &mut Process {
        &mut self.nodes[index]
    }

    /// All of them.
    #[must_use]
    pub fn nodes(&self) -> &[Process] {
        &self.nodes
    }

    /// The index of the node of this name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn index(&self, name: &str) -> usize {
        let found = self.nodes.iter().position(|node| node.name == name);
        found.unwrap_or_else(|| panic!("`{name}` is no node of ours"))
    }

    /// The command that runs a node.
    #[must_use]
    pub fn command(&self, index: usize) -> Command {
        let node = &self.nodes[index];
        let mut words = node.wrapper.clone();
        words.push(self.program.display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().current_dir(self.dir.path());
        // For `ip`, where a node runs in another network.
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let quoted = |texts: Vec<String>| texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ");
        let seeds = quoted(self.nodes.iter().map(|node| node.cluster.to_string()).collect());
        let first = if self.nodes.len() < 3 { 1 } else { 3 };
        let voters = quoted(self.nodes.iter().take(first).map(|node| node.name.clone()).collect());
        // Without certificates, operators reach a node from its own machine only.
        let local = if node.admin.ip().is_loopback() { node.admin.ip() } else { Ipv4Addr::LOCALHOST.into() };
        let admin = SocketAddr::new(local, node.admin.port());
        command.args(["--listen", &node.ingress.to_string(), "--admin-listen", &admin.to_string()]);
        let common = [
            format!("node.name={}", node.name),
            format!("node.data_dir={}", node.data_dir.display()),
            format!("cluster.listen={}", node.cluster),
            format!("cluster.seeds=[{seeds}]"),
            format!("cluster.initial_voters=[{voters}]"),
        ];
        for setting in common.iter().chain(&self.settings).chain(&node.settings) {
            command.args(["--set", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.log_of(index)).kill_on_drop(true);
        command
    }

    fn log_of(&self, index: usize) -> File {
        let path = &self.nodes[index].log;
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Starts a node, and does not wait for it.
    ///
    /// # Panics
    /// When it runs, or can't.
    pub fn start(&mut self, index: usize) {
        let started = u64::try_from(wall_clock_us() / 1000).unwrap_or(u64::MAX);
        let child = self.command(index).spawn();
        let node = &mut self.nodes[index];
        assert!(node.child.is_none(), "{} runs", node.name);
        node.since = started;
        node.child = Some(child.unwrap_or_else(|error| panic!("{}: {error}", node.name)));
        self.watching.spawn(note_leaders(node.admin, Arc::clone(&self.terms)));
    }

    /// Ends a process without a word, and waits until it is gone.
    pub async fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let mut child = node.child.take().unwrap_or_else(|| panic!("{} does not run", node.name));
        child.kill().await.unwrap_or_else(|error| panic!("{}: {error}", node.name));
    }

    /// Asks a process to stop.
    pub fn terminate(&self, index: usize) {
        self.nodes[index].signal("TERM");
    }

    /// Stops a process where it is, as if its machine had paused.
    pub fn freeze(&self, index: usize) {
        self.nodes[index].signal("STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self, index: usize) {
        self.nodes[index].signal("CONT");
    }

    /// Waits for a process to end by itself.
    ///
    /// # Panics
    /// When it does not, or did not run.
    pub async fn ended(&mut self, index: usize, limit: Duration) -> ExitStatus {
        let node = &mut self.nodes[index];
        let mut child = node.child.take().unwrap_or_else(|| panic!("{} does not run", node.name));
        let ended = timeout(limit, child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("waited {limit:?} for {} to end; it goes on", node.name));
        ended.unwrap_or_else(|error| panic!("{}: {error}", node.name))
    }

    /// Removes the data directory of a node that does not run.
    ///
    /// # Panics
    /// When it can't.
    pub fn wipe(&self, index: usize) {
        let node = &self.nodes[index];
        assert!(node.child.is_none(), "{} runs", node.name);
        fs::remove_dir_all(&node.data_dir).unwrap_or_else(|error| panic!("{}: {error}", node.name));
    }

    /// A folder for files of the test; it goes with the fleet.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// The operator's API of a node.
    #[must_use]
    pub fn admin(&self, index: usize) -> AdminClient<Channel> {
        AdminClient::new(connect_lazily(self.nodes[index].admin))
    }

    /// Waits until a node sees what is waited for, and gives what it saw.
    ///
    /// # Panics
    /// When it does not within the limit: with the reason, and what it last saw.
    pub async fn until(&self, at: usize, reason: &str, limit: Duration, fact: impl FnMut(&Cluster) -> bool) -> Cluster {
        seen(self.nodes[at].admin, limit, fact).await.unwrap_or_else(|last| {
            panic!("waited {limit:?} for {reason} at {}; last seen: {last}", self.nodes[at].name)
        })
    }

    /// Moves a module, and waits until it is served there. Returns how long that took.
    pub async fn move_module(&self, at: usize, module: &str, to: usize) -> Duration {
        let (began, node) = (Instant::now(), self.nodes[to].name.clone());
        let limit = Duration::from_secs(20);
        move_module(self.nodes[at].admin, module, &node, limit).await.unwrap_or_else(|problem| panic!("{problem}"));
        began.elapsed()
    }

    /// Begins a move, and does not wait for it.
    ///
    /// # Errors
    /// As the operator's API refuses it.
    pub async fn begin_move(&self, at: usize, module: &str, to: usize) -> Result<Changed, Status> {
        let node = self.nodes[to].name.clone();
        let request = MoveRequest { module: module.to_owned(), node, ..MoveRequest::default() };
        Ok(self.admin(at).r#move(request).await?.into_inner())
    }

    /// Waits until a log has a line with this in it, and gives that line.
    pub async fn logs(&self, at: usize, part: &str, limit: Duration) -> String {
        let end = Instant::now() + limit;
        loop {
            let log = self.nodes[at].log();
            if let Some(line) = log.lines().find(|line| line.contains(part)) {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "waited {limit:?} for `{part}` in the log of {}", self.nodes[at].name);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// No term had two leaders, as far as any node has told.
    ///
    /// # Panics
    /// When one had.
    pub fn one_leader_a_term(&self) {
        let terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(!terms.is_empty(), "nobody was seen to lead");
        for (term, leaders) in terms.iter() {
            assert!(leaders.len() == 1, "term {term} had {} leaders: {leaders:?}", leaders.len());
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in &self.nodes {
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            eprintln!("---- the end of the log of {}:\n{}", node.name, tail.join("\n"));
        }
    }
}

/// Looks at the cluster through one node until it shows a fact.
///
/// # Errors
/// What was last seen instead, within the limit.
pub async fn seen(
    admin: SocketAddr,
    limit: Duration,
    mut fact: impl FnMut(&Cluster) -> bool,
) -> Result<Cluster, String> {
    let end = Instant::now() + limit;
    let mut last = "nothing".to_owned();
    loop {
        let mut client = AdminClient::new(connect_lazily(admin));
        let mut views = match timeout_at(end, client.watch(WatchRequest {})).await {
            Ok(Ok(views)) => views.into_inner(),
            Ok(Err(status)) if Instant::now() < end => {
                last = status.to_string();
                sleep(Duration::from_millis(50)).await;
                continue;
            }
            _ => return Err(last),
        };
        loop {
            match timeout_at(end, views.message()).await {
                Ok(Ok(Some(view))) if fact(&view) => return Ok(view),
                Ok(Ok(Some(view))) => last = brief(&view),
                Ok(_) => break,
                Err(_) => return Err(last),
            }
        }
    }
}

/// Moves a module by the operator's API of a node, and waits until that one sees it served there.
///
/// # Errors
/// What was said, or last seen.
pub async fn move_module(admin: SocketAddr, module: &str, node: &str, limit: Duration) -> Result<(), String> {
    let end = Instant::now() + limit;
    let request = MoveRequest { module: module.to_owned(), node: node.to_owned(), ..MoveRequest::default() };
    loop {
        let moved: Result<Changed, Status> =
            AdminClient::new(connect_lazily(admin)).r#move(request.clone()).await.map(tonic::Response::into_inner);
        match moved {
            Ok(_) => break,
            Err(status) if Instant::now() >= end => return Err(format!("can't move {module} to {node}: {status}")),
            // Such as: it is on its way to another node already.
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
    let left = end.saturating_duration_since(Instant::now());
    match seen(admin, left, |view| owner(view, module) == Some(node)).await {
        Ok(_) => Ok(()),
        Err(last) => {
            let events = events(admin, module).await.unwrap_or_else(|status| vec![status.to_string()]).join("\n  ");
            Err(format!("waited {limit:?} for {module} on {node}; last seen: {last}\nevents:\n  {events}"))
        }
    }
}

/// What happened to a module, in words.
async fn events(admin: SocketAddr, module: &str) -> Result<Vec<String>, Status> {
    let mut stream = AdminClient::new(connect_lazily(admin)).events(EventsRequest::default()).await?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await? {
        if event.module == module {
            events.push(format!("{}: {}", event.kind, event.text));
        }
    }
    Ok(events)
}

/// Writes down who leads which term, for as long as the node can be asked.
async fn note_leaders(admin: SocketAddr, terms: Arc<Mutex<BTreeMap<u64, BTreeSet<String>>>>) {
    loop {
        if let Ok(views) = AdminClient::new(connect_lazily(admin)).watch(WatchRequest {}).await {
            let mut views = views.into_inner();
            while let Ok(Some(view)) = views.message().await {
                if let Some(leader) = view.voters.iter().find(|voter| voter.state == "leader") {
                    let leader = format!("{} ({})", leader.node, leader.raft_id);
                    let mut terms = terms.lock().unwrap_or_else(PoisonError::into_inner);
                    terms.entry(view.term).or_default().insert(leader);
                }
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The names of the nodes that are ready.
#[must_use]
pub fn ready_nodes(view: &Cluster) -> BTreeSet<&str> {
    view.nodes.iter().filter(|node| node.state == "ready").map(|node| node.name.as_str()).collect()
}

/// Whether there are modules, and each is served by as many nodes as it should be.
#[must_use]
pub fn all_served(view: &Cluster) -> bool {
    !view.leader.is_empty() && !view.modules.is_empty() && view.modules.iter().all(|module| module.state == "serving")
}

/// A module, as a node sees it.
#[must_use]
pub fn module<'a>(view: &'a Cluster, name: &str) -> Option<&'a ClusterModule> {
    view.modules.iter().find(|module| module.name == name)
}

/// A node, as a node sees it.
#[must_use]
pub fn node<'a>(view: &'a Cluster, name: &str) -> Option<&'a ClusterNode> {
    view.nodes.iter().find(|node| node.name == name)
}

/// The node that serves a module which one node hosts at a time.
#[must_use]
pub fn owner<'a>(view: &'a Cluster, name: &str) -> Option<&'a str> {
    let module = module(view, name).filter(|module| module.kind == "exclusive" && module.state == "serving")?;
    module.hosts.first().map(|host| host.node.as_str())
}

/// A view in a few lines, for people.
fn brief(view: &Cluster) -> String {
    let nodes = view.nodes.iter().map(|node| format!("{} {} {}", node.name, node.state, node.role));
    let voters = view.voters.iter().map(|voter| format!("{} ({}) {}", voter.node, voter.raft_id, voter.state));
    let modules = view.modules.iter().map(|module| {
        let hosts: Vec<String> = module.hosts.iter().map(|host| format!("{} {}", host.node, host.state)).collect();
        format!("{} {} on [{}] {:?}", module.name, module.state, hosts.join(", "), module.problems)
    });
    let list = |texts: &mut dyn Iterator<Item = String>| texts.collect::<Vec<_>>().join("; ");
    format!(
        "leader {:?} in term {}, index {}, placement {}\n  nodes: {}\n  voters: {}\n  modules: {}",
        view.leader,
        view.term,
        view.index,
        view.placement,
        list(&mut { nodes }),
        list(&mut { voters }),
        list(&mut { modules }),
    )
}

/// Three ports that nobody uses, that no other node of this test was given, and that the system gives to nobody who asks
/// for any.
fn free_ports() -> [u16; 3] {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    [(); 3].map(|()| {
        loop {
            let port = rand::random_range(10_000..30_000);
            let here = (Ipv4Addr::LOCALHOST, port);
            if TcpListener::bind(here).is_ok() && UdpSocket::bind(here).is_ok() && given.insert(port) {
                return port;
            }
        }
    })
}

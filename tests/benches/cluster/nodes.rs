//! Nodes as processes.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use outpost_proto::admin::v1::{
    ApplyRequest, Cluster, ClusterModule, DescribeRequest, Document, MoveRequest, WatchRequest,
    admin_client::AdminClient,
};
use outpost_tests::measure::{Process, connect};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tonic::transport::Channel;

use crate::{ECHO, MODULE};

/// Far more than anything here takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A node that serves.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) ingress: SocketAddr,
    pub(crate) cluster: SocketAddr,
    pub(crate) admin: AdminClient<Channel>,
    /// How long it took from the start of the process until it said that it serves.
    pub(crate) took: Duration,
}

impl Node {
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// What its module puts into an answer.
    pub(crate) fn number(&self) -> i64 {
        i64::from(self.pid())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process.0);
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait().expect("the process is ours") {
                return status;
            }
            assert!(began.elapsed() < LIMIT, "a node was told to stop, and goes on");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The cluster as this node sees it, once that shows a fact.
    pub(crate) async fn until(&self, reason: &str, fact: impl FnMut(&Cluster) -> bool) -> Cluster {
        until(&self.admin, reason, fact).await
    }

    /// Moves the module; gives how long it took until the cluster was seen to have it there.
    pub(crate) async fn move_to(&self, node: &str) -> Duration {
        let mut views = self.admin.clone().watch(WatchRequest {}).await.expect("a view").into_inner();
        let request = MoveRequest { module: MODULE.to_owned(), node: node.to_owned(), ..MoveRequest::default() };
        let mut tries = 0;
        let mut began;
        loop {
            began = Instant::now();
            match self.admin.clone().r#move(request.clone()).await {
                Ok(_) => break,
                // Such as: the last move has just ended, and the leader has yet to see that.
                Err(status) if tries > 100 => panic!("can't move to {node}: {status}"),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
            tries += 1;
        }
        let moved = async {
            while let Some(view) = views.message().await.expect("a view") {
                if module(&view).is_some_and(|module| is_served_by(module, node)) {
                    return began.elapsed();
                }
            }
            panic!("the node that is watched has ended");
        };
        timeout(LIMIT, moved).await.unwrap_or_else(|_| panic!("a move to {node} did not end"))
    }
}

/// Waits until a node's view of the cluster shows a fact.
pub(crate) async fn until(
    admin: &AdminClient<Channel>,
    reason: &str,
    mut fact: impl FnMut(&Cluster) -> bool,
) -> Cluster {
    let mut last = None;
    let looking = async {
        let mut views = admin.clone().watch(WatchRequest {}).await.expect("a view").into_inner();
        while let Some(view) = views.message().await.expect("a view") {
            if fact(&view) {
                return Some(view);
            }
            last = Some(view);
        }
        None
    };
    let found = timeout(LIMIT, looking).await.ok().flatten();
    found.unwrap_or_else(|| panic!("waited for {reason}; last seen: {last:#?}"))
}

/// The module that all of this is about.
pub(crate) fn module(view: &Cluster) -> Option<&ClusterModule> {
    view.modules.iter().find(|module| module.name == MODULE)
}

/// Whether this is the one host, and no move is under way.
pub(crate) fn is_served_by(module: &ClusterModule, node: &str) -> bool {
    module.state == "serving"
        && module.moving_to.is_empty()
        && matches!(&*module.hosts, [host] if host.node == node && host.state == "serving")
}

/// How many nodes are ready.
pub(crate) fn ready(view: &Cluster) -> usize {
    view.nodes.iter().filter(|node| node.state == "ready").count()
}

/// A cluster of processes, `node-1` the first of them. They end with it.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: BTreeMap<String, Node>,
    /// What all are told.
    settings: Vec<String>,
    folder: TempDir,
}

impl Nodes {
    /// Starts so many nodes, and waits until each sees all, and the module is served. The first `voters` of them keep
    /// their logs on disk.
    pub(crate) async fn start(count: usize, voters: usize, settings: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("cluster-").tempdir().expect("a folder");
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut this = Self { nodes: BTreeMap::new(), settings, folder };
        for number in 1..=count {
            let name = format!("node-{number}");
            let data = (number <= voters).then(|| format!("node.data_dir={}", this.folder().join(&name).display()));
            this.add(&name, data.as_slice()).await;
        }
        for node in this.nodes.values() {
            let whole =
                |view: &Cluster| ready(view) == count && module(view).is_some_and(|module| module.state == "serving");
            node.until("all nodes, and the module on one of them", whole).await;
        }
        this
    }

    /// Makes each node a host of the module, and waits until all are.
    pub(crate) async fn host_everywhere(&self) {
        self.host_where("", self.nodes.len()).await;
    }

    /// Makes each node that a rule is good for a host of the module, and waits until so many are.
    pub(crate) async fn host_where(&self, rule: &str, hosts: usize) {
        let text = format!("[module.{MODULE}]\nkind = \"replicated\"\nreplicas = \"every\"\n{rule}\n");
        let document = Document { text, format: "toml".to_owned(), name: "placement.toml".to_owned() };
        let request = ApplyRequest { document: Some(document), ..ApplyRequest::default() };
        self.node("node-1").admin.clone().apply(request).await.expect("the placement is good");
        self.hosted_by(hosts).await;
    }

    /// Waits until each node sees that each node serves the module.
    pub(crate) async fn all_host(&self) {
        self.hosted_by(self.nodes.len()).await;
    }

    /// Waits until each node sees that so many serve the module.
    async fn hosted_by(&self, hosts: usize) {
        for node in self.nodes.values() {
            let all = |view: &Cluster| {
                let serving =
                    module(view).map_or(0, |module| module.hosts.iter().filter(|host| host.state == "serving").count());
                serving == hosts
            };
            node.until("the module on all of its hosts", all).await;
        }
    }

    /// Starts one more; waits until it serves.
    pub(crate) async fn add(&mut self, name: &str, settings: &[String]) {
        let node = self.begin(name, settings).await;
        self.nodes.insert(name.to_owned(), node);
    }

    /// Starts one that is not kept here.
    pub(crate) async fn begin(&self, name: &str, settings: &[String]) -> Node {
        let mut command = Command::new(ECHO);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        let mut own = vec![format!("node.name={name}"), "cluster.listen=127.0.0.1:0".into(), "log.format=json".into()];
        // The first one founds the cluster.
        if let Some(other) = self.nodes.values().next() {
            own.push(format!("cluster.seeds=[\"{}\"]", other.cluster));
        }
        for setting in own.iter().chain(&self.settings).chain(settings) {
            command.args(["--set", setting]);
        }
        command
            .env_clear()
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let began = Instant::now();
        let mut process = Process::start(&mut command);
        let log = process.0.stderr.take().expect("it is piped");
        let (serving_tx, serving) = oneshot::channel();
        std::thread::spawn(move || read_log(BufReader::new(log), serving_tx));
        let addresses = timeout(LIMIT, serving).await.expect("a node serves in time");
        let took = began.elapsed();
        let [ingress, admin] = addresses.unwrap_or_else(|_| panic!("node `{name}` ended without serving"));
        let admin = AdminClient::new(connect(admin).await);
        let description = admin.clone().describe(DescribeRequest {}).await.expect("an answer").into_inner();
        let cluster = description.node.and_then(|node| node.cluster.parse().ok()).expect("an address");
        Node { process, ingress, cluster, admin, took }
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        &self.nodes[name]
    }

    /// Gives up a node: dropped, its process is killed.
    pub(crate) fn take(&mut self, name: &str) -> Node {
        self.nodes.remove(name).expect("a node of this name")
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// For files; it goes with the nodes.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Reads a node's log to its end: sends the addresses of ingress and operators, and prints what went wrong.
fn read_log(log: impl BufRead, serving: oneshot::Sender<[SocketAddr; 2]>) {
    let mut serving = Some(serving);
    let mut last = String::new();
    for line in log.lines().map_while(Result::ok) {
        let entry: Value = serde_json::from_str(&line).unwrap_or_default();
        let field = |name: &str| entry["fields"][name].as_str().and_then(|text| text.parse().ok());
        if let (Some(ingress), Some(admin), true) =
            (field("ingress"), field("admin"), entry["fields"]["message"] == "serving")
            && let Some(serving) = serving.take()
        {
            let _ = serving.send([ingress, admin]);
        }
        if entry["level"] == "ERROR" {
            eprintln!("{line}");
        }
        last = line;
    }
    if serving.is_some() {
        eprintln!("{last}");
    }
}

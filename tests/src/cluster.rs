//! A cluster: nodes of one application, each with a data directory and an operator's API of its own, in one process.

use std::{
    collections::BTreeMap,
    fmt,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use outpost::{App, Handle, Node, Sources, StartError, Stopped};
use outpost_proto::admin::v1::{
    self as admin, ApplyRequest, Changed, ClusterModule, Document, EventsRequest, MoveRequest, WatchRequest,
    admin_client::AdminClient,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Status, transport::Channel};

use crate::authority::{self, Authority, Kind};

/// A wait that is this long has failed.
const LIMIT: Duration = Duration::from_secs(30);

/// What a cluster is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    nodes: usize,
    voters: usize,
    settings: Vec<(String, String)>,
    /// Of one node.
    own: Vec<(String, String, String)>,
    authority: Option<Arc<Authority>>,
}

/// So many nodes, the first of which begins the cluster. Modules stay where they are, but for a test that asks for moves.
#[must_use]
pub fn nodes(nodes: usize) -> Setup {
    let quick = [("cluster.gossip_interval", "100ms"), ("cluster.gossip_phi", "16"), ("cluster.max_rebalancing", "0")];
    let settings = quick.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Setup { nodes, voters: 1, settings: settings.into(), own: Vec::new(), authority: None }
}

impl Setup {
    /// The first so many nodes begin the cluster together, so that any of them may end.
    #[must_use]
    pub fn voters(self, voters: usize) -> Self {
        Self { voters, ..self }
    }

    /// A setting of every node.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A setting of one node.
    #[must_use]
    pub fn with_of(mut self, node: &str, key: &str, value: &str) -> Self {
        self.own.push((node.to_owned(), key.to_owned(), value.to_owned()));
        self
    }

    /// Nodes and operators have certificates of this authority, and gossip is sealed with the key of sevens. The files of a
    /// node are `NODE.pem`, `NODE.key`, `authorities.pem` and `gossip.keys`, in its folder of the data.
    #[must_use]
    pub fn secured(self, authority: &Arc<Authority>) -> Self {
        Self { authority: Some(Arc::clone(authority)), ..self }.with("cluster.name", "test")
    }

    /// Starts the nodes, `n1` and so on, each with the program that `app` makes for it, and waits until each knows all.
    ///
    /// # Panics
    /// When a node does not start.
    pub async fn start(self, app: impl Fn(&str) -> App + Send + Sync + 'static) -> TestCluster {
        // `RUST_LOG=debug` shows what nodes say; the process may have begun to log already.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        let dirs = tempfile::tempdir().expect("a directory for the nodes' data");
        let Self { nodes, voters, settings, own, authority } = self;
        let names: Vec<String> = (1..=nodes).map(|index| format!("n{index}")).collect();
        let mut cluster = TestCluster { app: Box::new(app), settings, own, authority, dirs, nodes: BTreeMap::new() };
        let (first, later) = names.split_at(voters);
        cluster.begin(first).await;
        for name in later {
            cluster.add(name).await;
        }
        for name in &names {
            let ready = |view: &admin::Cluster| {
                let ready = view.nodes.iter().filter(|node| node.state == "ready").count();
                (ready == nodes).then_some(()).ok_or_else(|| format!("{ready} nodes are ready"))
            };
            cluster.wait_until_at(name, "every node to know all", ready).await;
        }
        cluster
    }
}

/// See the module.
pub struct TestCluster {
    app: Box<dyn Fn(&str) -> App + Send + Sync>,
    settings: Vec<(String, String)>,
    own: Vec<(String, String, String)>,
    authority: Option<Arc<Authority>>,
    nodes: BTreeMap<String, Running>,
    /// Deleted with the cluster.
    dirs: TempDir,
}

struct Running {
    node: Node,
    admin: AdminClient<Channel>,
}

impl fmt::Debug for TestCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestCluster").field("nodes", &self.names()).finish_non_exhaustive()
    }
}

impl TestCluster {
    /// The nodes that run.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// A node.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        &self.nodes.get(name).unwrap_or_else(|| panic!("{name} does not run")).node
    }

    /// A client of a node's operator API.
    #[must_use]
    pub fn admin(&self, name: &str) -> AdminClient<Channel> {
        self.nodes.get(name).unwrap_or_else(|| panic!("{name} does not run")).admin.clone()
    }

    /// The same, of any node.
    #[must_use]
    pub fn any_admin(&self) -> AdminClient<Channel> {
        self.admin(&self.any())
    }

    /// A connection to a node's ingress.
    #[must_use]
    pub fn client(&self, name: &str) -> Channel {
        connection(self.node(name).ingress_address())
    }

    /// A handle on a node.
    #[must_use]
    pub fn handle<H: Handle>(&self, name: &str) -> H {
        self.node(name).handle().expect("a module of the program serves it")
    }

    fn any(&self) -> String {
        self.nodes.keys().next().expect("a node runs").clone()
    }

    /// The settings of a node, which looks for those that run.
    #[must_use]
    pub fn sources(&self, name: &str) -> Sources {
        let seeds = self.nodes.values().map(|running| running.node.cluster_address());
        self.sources_with(name, &seeds.collect::<Vec<_>>())
    }

    fn sources_with(&self, name: &str, seeds: &[SocketAddr]) -> Sources {
        let seeds: Vec<String> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
        let data_dir = self.dirs.path().join(name);
        let sources = Sources::on_free_ports()
            .set("node.name", name)
            .set("node.data_dir", data_dir.to_str().expect("a path of UTF-8"))
            .set("cluster.seeds", &format!("[{}]", seeds.join(", ")));
        let sources = if self.authority.is_some() { self.secured(sources, name) } else { sources };
        let own = self.own.iter().filter(|(node, ..)| node == name).map(|(_, key, value)| (key, value));
        let all = self.settings.iter().map(|(key, value)| (key, value));
        all.chain(own).fold(sources, |sources, (key, value)| sources.set(key, value))
    }

    /// The folder with a node's certificate and keys.
    #[must_use]
    pub fn trust_of(&self, name: &str) -> PathBuf {
        self.dirs.path().join(format!("{name}-trust"))
    }

    fn secured(&self, sources: Sources, name: &str) -> Sources {
        let folder = self.trust_of(name);
        let file = |name: &str| folder.join(name);
        let (certificate, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
        let (authorities, gossip) = (file("authorities.pem"), file("gossip.keys"));
        // What a test has changed stays, as on a disk.
        if let Some(authority) = self.authority.as_ref().filter(|_| !folder.exists()) {
            std::fs::create_dir_all(&folder).expect("a folder for certificates");
            let (pem, secret) = authority.issue(&authority::node(name), Kind::Good);
            authority::replace(&certificate, &pem);
            authority::replace(&key, &secret);
            authority::replace(&authorities, authority.pem());
            authority::replace(&gossip, &authority::gossip_keys(&[7]));
        }
        let text = |path: &Path| path.to_str().expect("a path of UTF-8").to_owned();
        sources
            .set("trust.certificate", &text(&certificate))
            .set("trust.key", &text(&key))
            .set("trust.authorities", &text(&authorities))
            .set("trust.gossip_keys", &text(&gossip))
    }

    /// Starts the nodes that begin the cluster. Where those are several, each must know all before any is there.
    async fn begin(&mut self, names: &[String]) {
        let [_, _, ..] = names else {
            for name in names {
                self.add(name).await;
            }
            return;
        };
        let addresses: Vec<SocketAddr> = names.iter().map(|_| free_address()).collect();
        let voters: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        let starts = names.iter().zip(&addresses).map(|(name, address)| {
            let sources = self
                .sources_with(name, &addresses)
                .set("cluster.listen", &address.to_string())
                .set("cluster.initial_voters", &format!("[{}]", voters.join(", ")));
            let program = (self.app)(name);
            async move { program.start(&sources).await }
        });
        let started = join_all(starts.collect::<Vec<_>>()).await;
        for (name, node) in names.iter().zip(started) {
            self.put(name, node.unwrap_or_else(|error| panic!("{name} did not start: {error}")));
        }
    }

    fn put(&mut self, name: &str, node: Node) {
        let address = node.admin_address().expect("the admin API is on");
        let channel = match &self.authority {
            None => connection(address),
            Some(authority) => authority::connection(address, &authority.credentials(&authority::operator("tests"))),
        };
        let admin = AdminClient::new(channel);
        self.nodes.insert(name.to_owned(), Running { node, admin });
    }

    /// Starts one more node, or one that has ended, with the data that it left.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn add(&mut self, name: &str) {
        self.try_add(name).await.unwrap_or_else(|error| panic!("{name} did not start: {error}"));
    }

    /// The same, for a node that may not start.
    ///
    /// # Errors
    /// Those of [`App::start`].
    pub async fn try_add(&mut self, name: &str) -> Result<(), StartError> {
        let started = (self.app)(name).start(&self.sources(name)).await?;
        self.put(name, started);
        Ok(())
    }

    /// Starts a node that has ended, with the data that it left. One that was killed a moment ago may still hold them.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self, name: &str) {
        let given_up_at = Instant::now() + LIMIT;
        while let Err(error) = self.try_add(name).await {
            let held = error.to_string().contains("is in use") && Instant::now() < given_up_at;
            assert!(held, "{name} did not start: {error}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops a node as SIGTERM does.
    pub async fn stop(&mut self, name: &str) -> Stopped {
        self.take(name).stop().await
    }

    /// Ends a node as a crash does.
    pub fn kill(&mut self, name: &str) {
        drop(self.take(name));
    }

    /// Takes a node out, for a test that ends it itself.
    ///
    /// # Panics
    /// When it does not run.
    pub fn take(&mut self, name: &str) -> Node {
        self.nodes.remove(name).unwrap_or_else(|| panic!("{name} does not run")).node
    }

    /// Waits until some node's view of the cluster is as wanted; the error of `look` tells what is missing.
    ///
    /// # Panics
    /// After 30 seconds, with the reason and the last view.
    pub async fn wait_until<T>(&self, reason: &str, look: impl Fn(&admin::Cluster) -> Result<T, String>) -> T {
        self.wait_until_at(&self.any(), reason, look).await
    }

    /// The same, for the view of one node.
    ///
    /// # Panics
    /// After 30 seconds, with the reason and the last view.
    pub async fn wait_until_at<T>(
        &self,
        node: &str,
        reason: &str,
        look: impl Fn(&admin::Cluster) -> Result<T, String>,
    ) -> T {
        let given_up_at = Instant::now() + LIMIT;
        let mut views = self.admin(node).watch(WatchRequest {}).await.expect("the node is watched").into_inner();
        let mut last = "no view came".to_owned();
        loop {
            match timeout_at(given_up_at, views.message()).await {
                Ok(Ok(Some(view))) => match look(&view) {
                    Ok(found) => return found,
                    Err(missing) => last = format!("{missing}\n{}", shown(&view)),
                },
                Ok(end) => panic!("waited for {reason} at {node}; its view ended: {end:?}; last seen: {last}"),
                Err(_) => panic!("waited for {reason} at {node}; last seen: {last}"),
            }
        }
    }

    /// The cluster, as a node sees it now.
    pub async fn view_at(&self, node: &str) -> admin::Cluster {
        self.wait_until_at(node, "a view", |view| Ok(view.clone())).await
    }

    /// Waits until a module serves on so many nodes, and tells which.
    pub async fn serving(&self, module: &str, count: usize) -> Vec<String> {
        self.wait_until(&format!("{module} to serve on {count} nodes"), |view| serves(view, module, count)).await
    }

    /// Waits until a module serves on one node, and every node knows it; tells which.
    pub async fn home(&self, module: &str) -> String {
        let home = self.serving(module, 1).await.remove(0);
        for node in self.names() {
            let known = |view: &admin::Cluster| match serves(view, module, 1)? {
                hosts if hosts == [home.as_str()] => Ok(()),
                hosts => Err(format!("{module} is on {hosts:?}, not on {home}")),
            };
            self.wait_until_at(&node, "every node to know where a module is", known).await;
        }
        home
    }

    /// A node that does not host the module.
    ///
    /// # Panics
    /// When all do.
    pub async fn node_without(&self, module: &str) -> String {
        let home = self.home(module).await;
        self.names().into_iter().find(|name| *name != home).expect("one more node runs")
    }

    /// Asks for a move. Its end is another matter.
    ///
    /// # Errors
    /// Those of the operator's API.
    pub async fn begin_move(&self, module: &str, node: &str) -> Result<Changed, Status> {
        let request = MoveRequest { module: module.to_owned(), node: node.to_owned(), ..MoveRequest::default() };
        self.any_admin().r#move(request).await.map(tonic::Response::into_inner)
    }

    /// Moves a module, and waits until it serves there at a higher epoch.
    ///
    /// # Panics
    /// When it can't be moved.
    pub async fn move_module(&self, module: &str, node: &str) -> u64 {
        let before = self.wait_until("the module to serve", |view| settled(view, module)).await;
        self.begin_move(module, node).await.unwrap_or_else(|status| panic!("{module} to {node}: {status}"));
        let moved = |view: &admin::Cluster| match settled(view, module)? {
            (host, epoch) if host == node && epoch > before.1 => Ok(epoch),
            other => Err(format!("{module} is at {other:?}, and was at {before:?}")),
        };
        let given_up = async {
            // What the log says of it is for the message.
            let given_up = |view: &admin::Cluster| match self::module(view, module)? {
                there if there.movement.is_none() && there.state == "serving" => settled(view, module),
                _ => Err("it is under way".to_owned()),
            };
            self.wait_until("the move to end", given_up).await
        };
        let (host, _) = given_up.await;
        assert_eq!(host, node, "{module} has not moved: {:#?}", self.events(module).await);
        self.wait_until(&format!("{module} to move to {node}"), moved).await
    }

    /// Puts a placement document in force.
    ///
    /// # Errors
    /// Those of the operator's API.
    pub async fn apply(&self, text: &str) -> Result<Changed, Status> {
        let document = Document { text: text.to_owned(), format: "toml".to_owned(), name: "test.toml".to_owned() };
        let request = ApplyRequest { document: Some(document), by: "tester".to_owned(), ..ApplyRequest::default() };
        self.any_admin().apply(request).await.map(tonic::Response::into_inner)
    }

    /// What happened to a module, as the events' kinds and texts.
    ///
    /// # Panics
    /// When the node does not answer.
    pub async fn events(&self, module: &str) -> Vec<(String, String)> {
        let mut stream = self.any_admin().events(EventsRequest::default()).await.expect("events").into_inner();
        let mut events = Vec::new();
        while let Some(event) = stream.message().await.expect("events") {
            if event.module == module {
                events.push((event.kind, event.text));
            }
        }
        events
    }
}

/// A connection that is made when it is used first.
///
/// # Panics
/// Never: an address can be written.
#[must_use]
pub fn connection(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).expect("an address is a URI").connect_lazy()
}

/// An address that nobody listens on.
///
/// # Panics
/// Without a free port.
#[must_use]
pub fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}

/// A module in a view.
///
/// # Errors
/// When it is not there.
pub fn module<'a>(view: &'a admin::Cluster, name: &str) -> Result<&'a ClusterModule, String> {
    view.modules.iter().find(|module| module.name == name).ok_or_else(|| format!("there is no module {name}"))
}

/// The nodes that serve a module, if they are so many and nothing is under way.
///
/// # Errors
/// What is there instead.
pub fn serves(view: &admin::Cluster, name: &str, count: usize) -> Result<Vec<String>, String> {
    let module = module(view, name)?;
    let serving = module.hosts.iter().filter(|host| host.state == "serving");
    let serving: Vec<String> = serving.map(|host| host.node.clone()).collect();
    match module.state == "serving" && serving.len() == count && module.hosts.len() == count {
        true => Ok(serving),
        false => Err(format!("{name} is {} on {:?}", module.state, module.hosts)),
    }
}

/// The node that serves an exclusive module, and the epoch.
///
/// # Errors
/// What is there instead.
pub fn settled(view: &admin::Cluster, name: &str) -> Result<(String, u64), String> {
    let module = module(view, name)?;
    match module.hosts.as_slice() {
        [host] if module.state == "serving" => Ok((host.node.clone(), module.epoch)),
        hosts => Err(format!("{name} is {} on {hosts:?}", module.state)),
    }
}

/// A view, for the message of a wait that was given up.
fn shown(view: &admin::Cluster) -> String {
    let mut text = format!(
        "seen by {}: leader {:?}, index {}, placement {}, voters {:?}\n",
        view.seen_by,
        view.leader,
        view.index,
        view.placement,
        view.voters.iter().map(|voter| (voter.node.as_str(), voter.state.as_str())).collect::<Vec<_>>()
    );
    for node in &view.nodes {
        let _ = writeln!(text, "  {} ({}): {} {}", node.name, node.generation, node.state, node.modules.join(" "));
    }
    for module in &view.modules {
        let hosts: Vec<String> = module.hosts.iter().map(|host| format!("{}={}", host.node, host.state)).collect();
        let ClusterModule { name, state, epoch, moving_to, problems, .. } = module;
        let _ = writeln!(text, "  {name}: {state} {epoch} [{}] -> {moving_to:?} {problems:?}", hosts.join(" "));
    }
    text
}

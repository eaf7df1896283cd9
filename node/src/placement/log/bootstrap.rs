//! How a node comes by a cluster: it has one already, finds one, or is of those that begin one.
//!
//! ```text
//! the log is bound to a cluster ───────────────────────────▶ goes on with it
//! told of nobody ──────────────────────────────────────────▶ founds one, alone
//! told of others ─ asks them (Hello) ─ one has a cluster ──▶ joins it
//!                    │ none has, and this node is an initial voter
//!                    ▼
//!   all initial voters seen, empty, of one mind ─ the lowest name asks each for its word (Elect) ─ all agree ─▶ begins
//! ```
//!
//! A word is given once and kept on disk: for one set of names and ids, and one name of the cluster. Of two sets that
//! share a node, only one can begin a cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use futures_util::future::join_all;
use outpost_proto::cluster::v1::{ElectRequest, HelloRequest, HelloResponse, Voter};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tracing::{error, info, warn};

use super::{
    Shared,
    store::{Elected, Peer, StoreError, hex},
};
use crate::id::{NodeId, RaftId};

/// What a set of members is known by.
pub(crate) fn digest(voters: &BTreeMap<NodeId, RaftId>) -> String {
    let mut digest = Sha256::new();
    for (node, raft_id) in voters {
        digest.update(format!("{node}={raft_id:x}\n"));
    }
    hex(&digest.finalize())
}

impl Shared {
    /// The cluster that this node belongs to; empty as long as it only might.
    pub(crate) fn founded(&self) -> String {
        let state = self.states.borrow().cluster.clone();
        if !state.is_empty() {
            return state;
        }
        let leads = self.leadership.borrow().leader.is_some();
        if leads { self.cluster.borrow().clone() } else { String::new() }
    }

    /// Gives this node's word; returns the one that holds. When it is this one, messages of the cluster are accepted.
    pub(crate) async fn elect(&self, word: Elected) -> Result<Elected, StoreError> {
        // Held for the whole of it: joining another cluster and giving a word exclude each other.
        let mut bound = self.bound.lock().await;
        let cluster = self.cluster.borrow().clone();
        if !cluster.is_empty() && cluster != word.cluster {
            return Ok(Elected { set: String::new(), cluster });
        }
        let holds = self.store.elect(word.clone()).await?;
        if holds == word {
            *bound = Some(word.cluster.clone());
            self.cluster.send_replace(word.cluster);
        }
        Ok(holds)
    }

    fn tell(&self, status: String) {
        self.search.send_replace(status);
    }
}

/// Looks for a cluster until there is one.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut told = Instant::now();
    let mut last = String::new();
    while let Err(waits) = attempt(&shared).await {
        if last != waits || told.elapsed() >= shared.timing.ask * 10 {
            info!(status = waits, "no cluster yet");
            (told, last) = (Instant::now(), waits.clone());
        }
        shared.tell(waits);
        sleep(shared.timing.ask.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// One round. What this node waits for, if it still does.
async fn attempt(shared: &Shared) -> Result<(), String> {
    let begun = shared.raft.is_initialized().await.map_err(|error| error.to_string())?;
    if begun {
        shared.tell("waiting for a leader".to_owned());
        return Ok(());
    }
    let me = shared.node();
    let alone = shared.initial_voters.is_empty() || shared.initial_voters == [me.clone()];
    if alone && shared.seeds.is_none() {
        return begin(shared, BTreeMap::from([(me.clone(), shared.me())]), &BTreeMap::new()).await;
    }

    let answers = ask_everybody(shared).await;
    let clusters: BTreeMap<&str, &str> = answers
        .iter()
        .filter(|(_, hello)| !hello.cluster.is_empty())
        .map(|(_, hello)| (hello.cluster.as_str(), hello.node.as_str()))
        .collect();
    match clusters.first_key_value() {
        Some((cluster, node)) if clusters.len() == 1 => return join(shared, cluster, node).await,
        Some(_) => {
            let found: Vec<String> = clusters.iter().map(|(cluster, node)| format!("{cluster} ({node})")).collect();
            return Err(format!(
                "the nodes that this one was told of belong to different clusters: {}",
                found.join(", ")
            ));
        }
        None => {}
    }

    let voters = &shared.initial_voters;
    if !voters.contains(me) {
        let asked = answers.len();
        return Err(format!(
            "waiting for a cluster to join: {asked} nodes have answered, none has one; this node is not one of \
             cluster.initial_voters, and so does not begin one"
        ));
    }
    let mut found: BTreeMap<NodeId, RaftId> = BTreeMap::from([(me.clone(), shared.me())]);
    let mut addresses = BTreeMap::new();
    for (address, hello) in &answers {
        let Ok(node) = NodeId::parse(&hello.node) else { continue };
        if !voters.contains(&node) || node == *me {
            continue;
        }
        let theirs: BTreeSet<&str> = hello.initial_voters.iter().map(String::as_str).collect();
        if !voters.iter().map(NodeId::as_str).eq(theirs.iter().copied()) {
            let theirs: Vec<&str> = theirs.into_iter().collect();
            let theirs = if theirs.is_empty() { "nobody".to_owned() } else { theirs.join(", ") };
            return Err(format!("node `{node}` was told to begin with {theirs}; the lists have to be the same"));
        }
        if found.insert(node.clone(), hello.raft_id).is_some_and(|known| known != hello.raft_id) {
            return Err(format!("two nodes are called `{node}`"));
        }
        addresses.insert(node, *address);
    }
    let missing: Vec<&str> = voters.iter().filter(|node| !found.contains_key(node)).map(NodeId::as_str).collect();
    if !missing.is_empty() {
        return Err(format!("waiting for the other nodes that the cluster begins with: {}", missing.join(", ")));
    }
    match voters.first() {
        Some(first) if first == me => begin(shared, found, &addresses).await,
        Some(first) => Err(format!("all nodes that the cluster begins with are here; waiting for `{first}` to begin")),
        None => Ok(()),
    }
}

/// Begins a cluster with these members, after each has given its word.
async fn begin(
    shared: &Shared,
    voters: BTreeMap<NodeId, RaftId>,
    addresses: &BTreeMap<NodeId, SocketAddr>,
) -> Result<(), String> {
    let set = digest(&voters);
    let given = shared.store.elected().await.map_err(|error| error.to_string())?;
    // Once given, the word names the cluster; a crash in between changes nothing.
    let cluster = given.map_or_else(|| format!("{:032x}", rand::random::<u128>()), |word| word.cluster);
    let word = Elected { set, cluster: cluster.clone() };
    let holds = shared.elect(word.clone()).await.map_err(|error| error.to_string())?;
    if holds != word {
        return Err("this node has given its word for other members than those that are here; delete its data \
                    directory to take that back"
            .to_owned());
    }
    let request = ElectRequest {
        cluster_name: shared.cluster_name.clone(),
        voters: voters.iter().map(|(node, id)| Voter { node: node.to_string(), raft_id: *id }).collect(),
        cluster: cluster.clone(),
    };
    for (node, address) in addresses {
        let mut client = shared.peers.placement(*address, Some(node));
        let answer = timeout(shared.timing.election_max, client.elect(request.clone())).await;
        let answer = answer.map_err(|_| format!("node `{node}` does not answer"))?;
        let answer = answer.map_err(|status| format!("node `{node}`: {}", status.message()))?.into_inner();
        if !answer.agreed {
            return Err(format!("node `{node}` does not agree: {}", answer.reason));
        }
    }
    let members: BTreeMap<RaftId, Peer> = voters.iter().map(|(node, id)| (*id, Peer::new(node))).collect();
    shared.raft.initialize(members).await.map_err(|error| format!("can't begin a cluster: {error}"))?;
    let names: Vec<&str> = voters.keys().map(NodeId::as_str).collect();
    info!(cluster, voters = names.join(", "), "began a cluster");
    shared.tell("began a cluster; waiting for a leader".to_owned());
    Ok(())
}

async fn join(shared: &Shared, cluster: &str, node: &str) -> Result<(), String> {
    // See `elect`.
    let bound = shared.bound.lock().await;
    if let Some(bound) = bound.as_deref()
        && bound != cluster
    {
        let problem = format!(
            "this node's data directory belongs to cluster {bound}, but node `{node}` to {cluster}; delete the \
             directory so that it joins as a new node"
        );
        error!("{problem}");
        return Err(problem);
    }
    shared.cluster.send_replace(cluster.to_owned());
    info!(cluster, peer_node_id = node, "found a cluster");
    shared.tell(format!("found cluster {cluster} at node `{node}`; waiting for its state"));
    Ok(())
}

/// Says hello to every address known.
async fn ask_everybody(shared: &Shared) -> Vec<(SocketAddr, HelloResponse)> {
    let members = shared.peers.members();
    let others = members.iter().filter(|(node, _)| *node != shared.node());
    let mut addresses: BTreeMap<SocketAddr, Option<&NodeId>> =
        others.map(|(node, member)| (member.address, Some(node))).collect();
    if let Some(seeds) = &shared.seeds {
        for seed in seeds.borrow().iter() {
            addresses.entry(*seed).or_default();
        }
    }
    let asked =
        addresses.into_iter().map(|(address, node)| async move { (address, hello(shared, address, node).await) });
    let mut answers = Vec::new();
    for (address, answer) in join_all(asked).await {
        match answer {
            Ok(hello) if hello.raft_id == shared.me() => {}
            Ok(hello) if hello.node == shared.node().as_str() => {
                warn!(peer = %address, "another node has this node's name");
            }
            Ok(hello) => answers.push((address, hello)),
            Err(status) => tracing::debug!(peer = %address, error = status.message(), "no answer"),
        }
    }
    answers
}

async fn hello(shared: &Shared, address: SocketAddr, node: Option<&NodeId>) -> Result<HelloResponse, Status> {
    let request = HelloRequest { cluster_name: shared.cluster_name.clone(), node: shared.node().to_string() };
    let mut client = shared.peers.placement(address, node);
    let answer = timeout(shared.timing.ask.max(shared.timing.election_min), client.hello(request)).await;
    Ok(answer.map_err(|_| Status::deadline_exceeded("it took too long"))??.into_inner())
}

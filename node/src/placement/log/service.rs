//! What any node may ask about the placement log.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures_util::stream;
use outpost_proto::cluster::v1::{
    Applied, ElectRequest, ElectResponse, Entry, HelloRequest, HelloResponse, ProposeRequest, ProposeResponse,
    RenewRequest, RenewResponse, WatchRequest, WatchResponse, placement_server::Placement, propose_response,
    renew_response, watch_response::Change,
};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};
use tonic::{Request, Response, Status, codegen::BoxStream};

use super::{
    LARGEST_PROPOSAL, Leadership, Renewed, Shared, Written, bootstrap,
    store::{self, Elected},
};
use crate::{
    id::{Incarnation, NodeId},
    placement::state::{Command, Proposal, State},
    trust::{self, Peer},
};

/// Serves `outpost.cluster.v1.Placement`.
#[derive(Debug)]
pub(crate) struct Service {
    pub(super) shared: Arc<Shared>,
}

impl Service {
    fn of_this_cluster(&self, cluster: &str) -> Result<(), Status> {
        let mine = self.shared.cluster.borrow();
        if mine.is_empty() || *mine != cluster {
            return Err(Status::failed_precondition(format!("this node is of cluster `{}`, not `{cluster}`", *mine)));
        }
        Ok(())
    }

    fn of_this_name(&self, name: &str) -> Result<(), Status> {
        if self.shared.cluster_name != name {
            let mine = &self.shared.cluster_name;
            return Err(Status::failed_precondition(format!("this node's cluster is called `{mine}`, not `{name}`")));
        }
        Ok(())
    }

    fn leader(&self) -> outpost_proto::cluster::v1::Leader {
        self.shared.leadership.borrow().to_wire(&self.shared.peers)
    }
}

#[tonic::async_trait]
impl Placement for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        self.of_this_name(&request.get_ref().cluster_name)?;
        let shared = &self.shared;
        Ok(Response::new(HelloResponse {
            node: shared.node.to_string(),
            generation: shared.identity.generation,
            raft_id: shared.me(),
            cluster: shared.founded(),
            initial_voters: shared.initial_voters.iter().map(NodeId::to_string).collect(),
            leader: Some(self.leader()),
        }))
    }

    async fn elect(&self, request: Request<ElectRequest>) -> Result<Response<ElectResponse>, Status> {
        // The first of the voters is who begins.
        let first = request.get_ref().voters.iter().map(|voter| voter.node.as_str()).min().unwrap_or_default();
        trust::speaks_for(&request, first)?;
        let request = request.into_inner();
        self.of_this_name(&request.cluster_name)?;
        let shared = &self.shared;
        let refused = |reason: String| Ok(Response::new(ElectResponse { agreed: false, reason }));
        let founded = shared.founded();
        if !founded.is_empty() {
            return refused(format!("node `{}` belongs to cluster {founded} already", shared.node));
        }
        let mut voters = BTreeMap::new();
        for voter in &request.voters {
            let node = NodeId::parse(&voter.node).map_err(|error| Status::invalid_argument(error.to_string()))?;
            voters.insert(node, voter.raft_id);
        }
        if !voters.keys().eq(shared.initial_voters.iter()) {
            return refused(format!("node `{}` was told of other initial voters", shared.node));
        }
        if voters.get(&shared.node) != Some(&shared.me()) {
            return refused(format!("node `{}` has another data directory than that", shared.node));
        }
        if request.cluster.is_empty() {
            return refused("the cluster has no name".to_owned());
        }
        let word = Elected { set: bootstrap::digest(&voters), cluster: request.cluster };
        let holds = shared.elect(word.clone()).await.map_err(|error| Status::internal(error.to_string()))?;
        if holds != word {
            return refused(format!(
                "node `{}` has given its word for other members; delete its data directory to take that back",
                shared.node
            ));
        }
        Ok(Response::new(ElectResponse { agreed: true, reason: String::new() }))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let request = request.into_inner();
        self.of_this_cluster(&request.cluster)?;
        let shared = &self.shared;
        if request.proposal.len() > LARGEST_PROPOSAL {
            return Err(Status::invalid_argument(format!("a proposal has {LARGEST_PROPOSAL} bytes at the most")));
        }
        let proposal: Proposal = serde_json::from_slice(&request.proposal)
            .map_err(|error| Status::invalid_argument(format!("can't read the proposal: {error}")))?;
        match &proposal.command {
            Command::Register { node, .. } => trust::may_speak_for(peer.as_ref(), node.as_str())?,
            Command::Leave(leaver) => trust::may_speak_for(peer.as_ref(), leaver.node.as_str())?,
            _ => {}
        }
        match &proposal.asked {
            Some(asked) => trust::may_speak_for(peer.as_ref(), &asked.node)?,
            None => trust::may_speak_for(peer.as_ref(), &proposal.by)?,
        }
        let written =
            shared.write(store::Request { proposal: Some(proposal), term: None }, shared.timing.propose).await;
        let result = match written {
            Written::Applied(index, outcome) => {
                let outcome = serde_json::to_vec(&outcome).map_err(|error| Status::internal(error.to_string()))?;
                propose_response::Result::Applied(Applied { index, outcome })
            }
            Written::NotLeader(_) => propose_response::Result::NotLeader(self.leader()),
            Written::Unknown(problem) => return Err(Status::deadline_exceeded(problem)),
            Written::Ended(reason) => return Err(Status::unavailable(reason)),
        };
        Ok(Response::new(ProposeResponse { result: Some(result) }))
    }

    type WatchStream = BoxStream<WatchResponse>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<BoxStream<WatchResponse>>, Status> {
        let WatchRequest { cluster, after } = request.into_inner();
        self.of_this_cluster(&cluster)?;
        let shared = self.shared.clone();
        let mut tick = interval(shared.timing.ask);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watching = Watching {
            after,
            queue: VecDeque::new(),
            states: shared.states.subscribe(),
            leadership: shared.leadership.subscribe(),
            tick,
            ends: false,
            shared,
        };
        Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next))))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        trust::speaks_for(&request, &request.get_ref().node)?;
        let RenewRequest { cluster, node, generation, applied } = request.into_inner();
        self.of_this_cluster(&cluster)?;
        let node = NodeId::parse(&node).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let result = match self.shared.grant(&Incarnation { node, generation }, applied).await {
            Some(Renewed::Granted { must_apply }) => renew_response::Result::Granted(must_apply),
            Some(Renewed::Superseded { by }) => renew_response::Result::SupersededBy(by),
            Some(Renewed::Unknown) => renew_response::Result::Unknown(true),
            Some(Renewed::Held) => renew_response::Result::Held(true),
            None => renew_response::Result::NotLeader(self.leader()),
        };
        Ok(Response::new(RenewResponse { result: Some(result) }))
    }
}

/// One watcher's stream.
struct Watching {
    shared: Arc<Shared>,
    /// What the watcher knows once it has read all that is queued.
    after: u64,
    queue: VecDeque<Change>,
    states: watch::Receiver<Arc<State>>,
    leadership: watch::Receiver<Leadership>,
    tick: Interval,
    ends: bool,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<WatchResponse, Status>, Self)> {
        loop {
            if let Some(change) = self.queue.pop_front() {
                return Some((Ok(WatchResponse { change: Some(change) }), self));
            }
            if self.ends {
                return None;
            }
            let leadership = self.leadership.borrow_and_update().clone();
            // Who has no leader of its own may be cut off without knowing: whoever watches should look elsewhere.
            if !leadership.own {
                self.ends = true;
                self.queue.push_back(Change::Leader(leadership.to_wire(&self.shared.peers)));
                continue;
            }
            if let Err(status) = self.catch_up() {
                self.ends = true;
                return Some((Err(status), self));
            }
            if !self.queue.is_empty() {
                continue;
            }
            tokio::select! {
                _ = self.states.changed() => continue,
                _ = self.leadership.changed() => {}
                _ = self.tick.tick() => {}
                () = self.shared.stop.cancelled() => return None,
            }
            let leadership = self.leadership.borrow().to_wire(&self.shared.peers);
            self.queue.push_back(Change::Leader(leadership));
        }
    }

    /// Queues what the watcher does not know yet.
    fn catch_up(&mut self) -> Result<(), Status> {
        let state = self.states.borrow_and_update().clone();
        if state.index <= self.after {
            return Ok(());
        }
        if self.after > 0
            && let Some(entries) = self.shared.recent.after(self.after)
        {
            for (index, proposal) in entries {
                self.queue.push_back(Change::Entry(Entry { index, proposal: proposal.to_vec() }));
                self.after = index;
            }
            return Ok(());
        }
        let whole = serde_json::to_vec(&*state).map_err(|error| Status::internal(error.to_string()))?;
        self.queue.push_back(Change::State(whole));
        self.after = state.index;
        Ok(())
    }
}

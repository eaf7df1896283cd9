//! Raft's messages between members.
//!
//! A member is dialled by its id: where the node with this id is, gossip says at the time of the call. Gossip may be
//! wrong, and addresses change hands, so each message names the cluster and both ends, and whoever gets one that is for
//! somebody else refuses it.

use std::{io, sync::Arc, time::Duration};

use openraft::{
    RaftNetwork, RaftNetworkFactory, Vote,
    error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
        VoteResponse,
    },
};
use outpost_proto::cluster::v1::{ConsensusRequest, ConsensusResponse, consensus_server::Consensus};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{
    Shared,
    peers::Peers,
    store::{Peer, Types},
};
use crate::{
    id::{NodeId, RaftId},
    trust,
};

/// Makes Raft's connections.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) peers: Arc<Peers>,
    pub(crate) me: RaftId,
    /// Empty before it is known.
    pub(crate) cluster: watch::Receiver<String>,
    /// How long Raft leaves a member alone that can't be reached.
    pub(crate) pause: Duration,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Line;

    async fn new_client(&mut self, target: RaftId, peer: &Peer) -> Line {
        Line { network: self.clone(), target, node: peer.node() }
    }
}

/// One member's line to another.
#[derive(Debug)]
pub(crate) struct Line {
    network: Network,
    target: RaftId,
    /// What it is called, by the log. What gossip says of it is only where it is.
    node: Option<NodeId>,
}

/// Which of the services' methods.
#[derive(Clone, Copy)]
enum Method {
    Append,
    Vote,
    InstallSnapshot,
    TakeLead,
}

type Rpc<T, E> = Result<T, RPCError<RaftId, Peer, E>>;

impl Network {
    /// One call; the answer's body.
    async fn call(
        &self,
        target: (RaftId, Option<&NodeId>),
        method: Method,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, Status> {
        let (target, called) = target;
        let (node, member) = self
            .peers
            .find(target, called)
            .ok_or_else(|| Status::unavailable(format!("gossip does not know where member {target:x} is")))?;
        let cluster = self.cluster.borrow().clone();
        let mut request = Request::new(ConsensusRequest { cluster, from: self.me, to: target, body });
        request.set_timeout(limit);
        let mut client = self.peers.consensus(member.address, &node);
        let response = match method {
            Method::Append => client.append(request).await,
            Method::Vote => client.vote(request).await,
            Method::InstallSnapshot => client.install_snapshot(request).await,
            Method::TakeLead => client.take_lead(request).await,
        };
        Ok(response?.into_inner().body)
    }

    /// Asks a voter to stand for election.
    ///
    /// # Errors
    /// Its refusal, or that it can't be reached.
    pub(crate) async fn take_lead(
        &self,
        target: RaftId,
        called: Option<&NodeId>,
        limit: Duration,
    ) -> Result<(), Status> {
        self.call((target, called), Method::TakeLead, Vec::new(), limit).await.map(drop)
    }
}

impl Line {
    // Whatever goes wrong on the way counts as "unreachable", since Raft then waits before it tries again.
    async fn call<T, E>(&self, method: Method, body: &impl Serialize, option: &RPCOption) -> Rpc<T, E>
    where
        T: DeserializeOwned,
        E: DeserializeOwned + std::error::Error,
    {
        let unreachable = |error: &dyn std::error::Error| {
            RPCError::Unreachable(Unreachable::new(&io::Error::other(error.to_string())))
        };
        let body = serde_json::to_vec(body).map_err(|error| unreachable(&error))?;
        let answered = self.network.call((self.target, self.node.as_ref()), method, body, option.hard_ttl()).await;
        let body = answered.map_err(|status| unreachable(&status))?;
        let answer: Result<T, E> = serde_json::from_slice(&body).map_err(|error| unreachable(&error))?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl RaftNetwork<Types> for Line {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<RaftId>, RaftError<RaftId>> {
        self.call(Method::Append, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Rpc<InstallSnapshotResponse<RaftId>, RaftError<RaftId, InstallSnapshotError>> {
        self.call(Method::InstallSnapshot, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<RaftId>, RaftError<RaftId>> {
        self.call(Method::Vote, &request, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.network.pause))
    }
}

/// Serves Raft's messages.
#[derive(Debug)]
pub(crate) struct Members {
    pub(super) shared: Arc<Shared>,
}

impl Members {
    /// Makes sure that a message is for this member, and from one that may be of its cluster.
    async fn check(&self, request: Request<ConsensusRequest>) -> Result<ConsensusRequest, Status> {
        let shared = &self.shared;
        let peer = request.extensions().get::<trust::Peer>().cloned();
        let request = request.into_inner();
        if shared.stop.is_cancelled() {
            return Err(Status::unavailable("the placement log of this node has ended"));
        }
        if request.to != shared.me() {
            return Err(Status::failed_precondition(format!(
                "this is member {:x} (node {}), not {:x}",
                shared.me(),
                shared.node(),
                request.to
            )));
        }
        let mine = shared.cluster.borrow().clone();
        if mine.is_empty() || mine != request.cluster {
            let text = format!("this node is of cluster `{mine}`, not `{}`", request.cluster);
            return Err(Status::failed_precondition(text));
        }
        let state = Arc::clone(&shared.states.borrow());
        if state.retired.contains(&request.from) {
            warn!(from = request.from, "a member that was replaced still sends; refused");
            return Err(Status::failed_precondition("the sender was replaced, and must not come back"));
        }
        if let Some(peer) = peer {
            let from = request.from;
            let registered = state.nodes.iter().find(|(_, record)| record.raft_id == from && !record.left);
            let registered = registered.map(|(node, _)| node.clone());
            let voter = || shared.leadership.borrow().voters.get(&from).cloned();
            // Before anybody is registered, as the log of a new cluster begins.
            let seen = || shared.peers.find(from, None).map(|(node, _)| node);
            let node = registered.or_else(voter).or_else(seen);
            let node = node.ok_or_else(|| Status::unavailable("what the sender is called is not known here yet"))?;
            trust::may_speak_for(Some(&peer), node.as_str())?;
        }
        shared.bound(&mine).await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(request)
    }
}

fn body<T: DeserializeOwned>(request: &ConsensusRequest) -> Result<T, Status> {
    serde_json::from_slice(&request.body).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// What is said for a leader or a candidate has to be said by it.
fn for_itself(from: RaftId, vote: &Vote<RaftId>) -> Result<(), Status> {
    match vote.leader_id().voted_for() {
        Some(named) if named == from => Ok(()),
        _ => Err(Status::permission_denied("a member may only speak for itself")),
    }
}

fn answer<T: Serialize, E: Serialize>(answer: &Result<T, E>) -> Result<Response<ConsensusResponse>, Status> {
    let body = serde_json::to_vec(answer).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(ConsensusResponse { body }))
}

#[tonic::async_trait]
impl Consensus for Members {
    async fn append(&self, request: Request<ConsensusRequest>) -> Result<Response<ConsensusResponse>, Status> {
        let request = self.check(request).await?;
        let append: AppendEntriesRequest<Types> = body(&request)?;
        for_itself(request.from, &append.vote)?;
        answer(&self.shared.raft.append_entries(append).await)
    }

    async fn vote(&self, request: Request<ConsensusRequest>) -> Result<Response<ConsensusResponse>, Status> {
        let request = self.check(request).await?;
        let vote: VoteRequest<RaftId> = body(&request)?;
        for_itself(request.from, &vote.vote)?;
        answer(&self.shared.raft.vote(vote).await)
    }

    async fn install_snapshot(
        &self,
        request: Request<ConsensusRequest>,
    ) -> Result<Response<ConsensusResponse>, Status> {
        let request = self.check(request).await?;
        let snapshot: InstallSnapshotRequest<Types> = body(&request)?;
        for_itself(request.from, &snapshot.vote)?;
        answer(&self.shared.raft.install_snapshot(snapshot).await)
    }

    async fn take_lead(&self, request: Request<ConsensusRequest>) -> Result<Response<ConsensusResponse>, Status> {
        let request = self.check(request).await?;
        info!(from = request.from, "asked to lead");
        let elected = self.shared.raft.trigger().elect().await;
        elected.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ConsensusResponse::default()))
    }
}

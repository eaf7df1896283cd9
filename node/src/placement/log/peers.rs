//! Connections to other nodes, by where gossip says that they are.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outpost_proto::cluster::v1::{consensus_client::ConsensusClient, placement_client::PlacementClient};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::{
    id::{NodeId, RaftId},
    membership::{Member, Members},
    trust::Trust,
};

/// The largest message. A snapshot comes in parts; a whole state for a watcher does not.
pub(crate) const LARGEST: usize = 16 << 20;

/// Other nodes. Each has one connection, which is made when it is first used, and made again when it broke.
#[derive(Debug)]
pub(crate) struct Peers {
    members: watch::Receiver<Arc<Members>>,
    channels: Mutex<HashMap<(SocketAddr, Option<NodeId>), Channel>>,
    connect_within: Duration,
    trust: Trust,
}

impl Peers {
    pub(crate) fn new(members: watch::Receiver<Arc<Members>>, connect_within: Duration, trust: Trust) -> Self {
        Self { members, channels: Mutex::default(), connect_within, trust }
    }

    pub(crate) fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }

    /// The same, as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// The node with this id, whatever its name: the newest, should several claim it.
    pub(crate) fn find(&self, raft_id: RaftId) -> Option<(NodeId, Member)> {
        let members = self.members.borrow();
        let found = members.iter().filter(|(_, member)| member.raft_id == raft_id);
        found.max_by_key(|(_, member)| (member.alive, member.generation)).map(|(node, m)| (node.clone(), m.clone()))
    }

    pub(crate) fn consensus(&self, address: SocketAddr, node: &NodeId) -> ConsensusClient<Channel> {
        ConsensusClient::new(self.channel(address, Some(node)))
            .max_decoding_message_size(LARGEST)
            .max_encoding_message_size(LARGEST)
    }

    /// Where the name is not known, whoever is there is asked.
    pub(crate) fn placement(&self, address: SocketAddr, node: Option<&NodeId>) -> PlacementClient<Channel> {
        PlacementClient::new(self.channel(address, node))
            .max_decoding_message_size(LARGEST)
            .max_encoding_message_size(LARGEST)
    }

    fn channel(&self, address: SocketAddr, node: Option<&NodeId>) -> Channel {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address, node.cloned());
        if let Some(channel) = channels.get(&key) {
            return channel.clone();
        }
        // Addresses where nobody is any more.
        let members = self.members.borrow().clone();
        channels.retain(|(known, _), _| members.values().any(|member| member.address == *known));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a good URI");
        let endpoint = endpoint
            .connect_timeout(self.connect_within)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_with_connector_lazy(self.trust.connector(address, node.cloned()));
        channels.insert(key, channel.clone());
        channel
    }
}

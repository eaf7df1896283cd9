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
    channels: Mutex<Channels>,
    connect_within: Duration,
    trust: Trust,
}

/// By address, and who is meant.
#[derive(Debug, Default)]
struct Channels {
    all: HashMap<(SocketAddr, Option<NodeId>), Channel>,
    /// How often this node's certificate or what it believes had changed when they were made.
    made_at: u64,
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

    /// The node with this id; the newest, should several claim it. Where it is known what it is called, no other is.
    pub(crate) fn find(&self, raft_id: RaftId, called: Option<&NodeId>) -> Option<(NodeId, Member)> {
        let members = self.members.borrow();
        let found = members.iter().filter(|(_, member)| member.raft_id == raft_id);
        let found = found.filter(|(node, _)| called.is_none_or(|called| called == *node));
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
        let changes = self.trust.changes();
        if channels.made_at != changes {
            *channels = Channels { made_at: changes, ..Channels::default() };
        }
        let channels = &mut channels.all;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_dialled_by_the_name_in_the_log() {
        let [honest, liar] = ["a", "z"].map(|name| NodeId::parse(name).unwrap());
        let member = |generation, port| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            Member { raft_id: 7, alive: true, ..Member::new(generation, address) }
        };
        let members = Members::from([(honest.clone(), member(1, 1)), (liar.clone(), member(2, 2))]);
        let (_, members) = watch::channel(Arc::new(members));
        let peers = Peers::new(members, Duration::from_secs(1), Trust::default());
        let found = |called: Option<&NodeId>| peers.find(7, called).map(|(node, _)| node);
        assert_eq!(found(Some(&honest)), Some(honest.clone()));
        assert_eq!(found(None), Some(liar));
        assert_eq!(found(Some(&NodeId::parse("b").unwrap())), None, "nobody else will do");
    }
}

//! Who is there: names, addresses, what each node says of itself.
//!
//! ```text
//! seeds (list, DNS, file, Kubernetes) ─▶ gossip (chitchat) ─▶ core: words to members ─▶ one per name, the newest generation
//! what this node says of itself ─▶ ┘     └─ transport, sealed: nothing of who has no key of the cluster
//! ```
//!
//! **Invariant:** gossip is a hint. It finds addresses and tells early that a node is gone; it never decides who owns a
//! module.

mod core;
mod gossip;
mod identity;
mod seeds;
#[cfg(not(feature = "simulation"))]
mod transport;

use std::{collections::BTreeMap, net::SocketAddr};

pub(crate) use gossip::{Membership, Options};
pub(crate) use identity::Identity;
pub(crate) use seeds::Seeds;
use serde::{Deserialize, Serialize};

use crate::{
    id::{Epoch, ModuleName, NodeId, RaftId},
    trust::Shown,
};

/// The members as one node sees them: the newest generation under each name.
pub(crate) type Members = BTreeMap<NodeId, Member>;

/// A node, as it says of itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) generation: u64,
    /// Where other nodes reach it, by TCP and UDP.
    pub(crate) address: SocketAddr,
    /// The failure detector's word.
    pub(crate) alive: bool,
    pub(crate) lifecycle: Lifecycle,
    /// Where clients reach it; empty before it serves.
    pub(crate) ingress: String,
    /// Whether the ingress speaks TLS.
    pub(crate) ingress_tls: bool,
    /// Where its operators reach it, from its own machine.
    pub(crate) admin: String,
    pub(crate) application: String,
    pub(crate) version: String,
    pub(crate) raft_id: RaftId,
    /// Whether its log outlives its process.
    pub(crate) persistent: bool,
    /// The cluster that it belongs to; empty before it knows.
    pub(crate) cluster: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What it hosts, and how far that is.
    pub(crate) hosting: BTreeMap<ModuleName, Hosted>,
    pub(crate) load: Load,
    pub(crate) trust: Shown,
}

impl Member {
    /// A node of which nothing else is known.
    pub(crate) fn new(generation: u64, address: SocketAddr) -> Self {
        Self {
            generation,
            address,
            alive: false,
            lifecycle: Lifecycle::default(),
            ingress: String::new(),
            ingress_tls: false,
            admin: String::new(),
            application: String::new(),
            version: String::new(),
            raft_id: 0,
            persistent: false,
            cluster: String::new(),
            labels: BTreeMap::new(),
            hosting: BTreeMap::new(),
            load: Load::default(),
            trust: Shown::default(),
        }
    }
}

/// How far a node is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lifecycle {
    Ready,
    /// It hands over what it hosts.
    Draining,
    /// It is about to end: nothing should be sent to it.
    Leaving,
    /// It has started, and does not serve yet. A word of a newer version is read as this.
    #[default]
    #[serde(other)] // has to be the last
    Joining,
}

/// A module's instance on a node, as the node observes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hosted {
    pub(crate) epoch: Epoch,
    pub(crate) state: Instance,
    /// Why it does not run, if it failed to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Bytes of state that the instance has taken over so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// How far an instance of a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Instance {
    /// It could serve, and waits to be the owner.
    Ready,
    Serving,
    /// Calls inside may finish; nothing new.
    Draining,
    /// Its factory failed.
    Failed,
    /// Its factory runs. A word of a newer version is read as this: nothing is expected of it.
    #[serde(other)] // has to be the last
    Starting,
}

/// How busy a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Load {
    pub(crate) calls_in_flight: u64,
    pub(crate) connections: u64,
}

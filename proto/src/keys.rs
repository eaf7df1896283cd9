//! Names that nodes of two versions must agree on: keys of gossip and of call metadata.

/// Keys of what a node gossips of itself. Values are text. An object that is too large for one value goes on under
/// `KEY.1`, `KEY.2` and so on.
pub mod gossip {
    /// `joining`, `ready`, `draining` or `leaving`.
    pub const LIFECYCLE: &str = "lifecycle";
    /// The address of the ingress, `HOST:PORT`.
    pub const INGRESS: &str = "ingress";
    /// `true` where the ingress speaks TLS.
    pub const INGRESS_TLS: &str = "ingress.tls";
    /// The address of the admin API, `HOST:PORT`.
    pub const ADMIN: &str = "admin";
    /// The application's name.
    pub const APPLICATION: &str = "app";
    /// The application's version.
    pub const VERSION: &str = "app.version";
    /// The node's number in the placement log's consensus.
    pub const RAFT_ID: &str = "raft.id";
    /// `true` where the node's log outlives its process.
    pub const PERSISTENT: &str = "persistent";
    /// The id of the cluster that the node belongs to.
    pub const CLUSTER: &str = "cluster";
    /// Labels, a JSON object.
    pub const LABELS: &str = "labels";
    /// What the node hosts: a JSON object, module to instance.
    pub const HOSTING: &str = "hosting";
    /// How busy it is: a JSON object.
    pub const LOAD: &str = "load";
    /// What the node shows to others, and what is wrong with that: a JSON object.
    pub const TRUST: &str = "trust";
}

/// Keys of metadata that nodes add to calls. All begin with `outpost-`; what comes from outside under such a key is
/// dropped at the edge, but for [`CALL_ID`](metadata::CALL_ID).
pub mod metadata {
    /// The prefix of all of them.
    pub const PREFIX: &str = "outpost-";
    /// How many nodes a call has been passed on by, in decimal.
    pub const HOPS: &str = "outpost-hops";
    /// On a call, the epoch of the module's placement that it was routed by; on an answer, the one that it was served at; on
    /// an error, the one that it is about.
    pub const EPOCH: &str = "outpost-epoch";
    /// On an answer: answers of earlier epochs do not count any more, as far as the node that gives it knows.
    pub const FENCE: &str = "outpost-fence";
    /// The modules that a call has come through: a set of 128 bits in hexadecimal, one for each module's name.
    pub const CHAIN: &str = "outpost-chain";
    /// Who has begun a call, where the node at which it came in knows: an `outpost.cluster.v1.Client`.
    pub const CLIENT: &str = "outpost-client-bin";
    /// How many calls a call is nested in.
    pub const DEPTH: &str = "outpost-depth";
    /// On an answer: the module is elsewhere now, as `EPOCH NODE`.
    pub const MOVED: &str = "outpost-moved";
    /// On an error of the framework's own: whether the module may have run. `not-executed` or `unknown`.
    pub const OUTCOME: &str = "outpost-outcome";
    /// On the same: why, in a word that stays the same: `moved`, `broken` and so on.
    pub const REASON: &str = "outpost-reason";
    /// What tells a call apart from all others, and is the same each time that it is made. A client may give its own.
    pub const CALL_ID: &str = "outpost-call-id";
}

/// Names of fields that calls between nodes often have: they travel as their place in this list, counted from 1. The list
/// does not change: an earlier version of a node could not read a name that is new in it.
pub const KNOWN_FIELDS: [&str; 18] = [
    "content-type",
    "user-agent",
    "grpc-timeout",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    metadata::HOPS,
    metadata::EPOCH,
    metadata::FENCE,
    metadata::CHAIN,
    metadata::DEPTH,
    metadata::MOVED,
    metadata::OUTCOME,
    metadata::REASON,
    metadata::CALL_ID,
    "date",
];

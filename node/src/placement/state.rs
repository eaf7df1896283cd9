//! The state machine of the placement log. Pure: a command goes in, and each node that applies the same commands in the
//! same order has the same state.
//!
//! For each part (here: a module) there is one record, `(version, epoch, owner, phase)`. Whoever changes it says which
//! version it saw; if that is not the record's any more, nothing happens. A delayed change can therefore never undo a
//! later one, even where the epoch is the same again (after a move that was given up, say).
//!
//! ```text
//!                        ┌──────── AbortMove ────────┐
//!                        ▼                           │
//! (none) ─ Assign ─▶ Stable ─ BeginMove ─▶ Moving ─ Prepared ─▶ Moving, prepared ─ Handover ─▶ Stable at epoch + 1
//!                        ▲                                                                       │
//!                        └─────────────── Assign (take-over), epoch + 1 ◀────────────────────────┘
//! ```
//!
//! A hand-over of a part whose state travels names the state that was sealed, by its digest: only who has that state may
//! serve. The source keeps it until the new owner has said that it serves. A new owner that has nothing to do first is
//! active with the hand-over; one that has is active when it says so, and if it is gone before, an `Assign` to the source
//! gives it the part back with nothing lost.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

use bytesize::ByteSize;
use outpost_proto::admin::v1::AuditEntry;
use serde::{Deserialize, Serialize};

use super::{
    audit::Audit,
    interface::Interface,
    spec::{Kind, Spec, StateClass},
};
use crate::id::{Epoch, Incarnation, ModuleName, NodeId, RaftId, Timestamp};

/// How many versions of the spec can be rolled back to.
const HISTORY: usize = 20;
/// How many events are kept.
const EVENTS: usize = 256;

/// The index of the log entry that last changed a record: what a change is compared with.
pub(crate) type Version = u64;

/// Everything that was decided.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    /// The index of the last entry that was applied.
    pub(crate) index: u64,
    /// Made up once, by the first entry. Empty before.
    pub(crate) cluster: String,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// What the modules of those nodes that have not left look like, by digest.
    pub(crate) interfaces: BTreeMap<String, Known>,
    /// The index of the entry that brought the last one of those, or the last version.
    pub(crate) interfaces_since: u64,
    pub(crate) parts: BTreeMap<ModuleName, Part>,
    /// The newest first is last; never empty once a spec was set.
    pub(crate) specs: VecDeque<SpecVersion>,
    /// Members that must never come back, since a log may name them.
    pub(crate) retired: BTreeSet<RaftId>,
    /// How many members an operator wants to vote; 0 leaves it to the cluster.
    pub(crate) voters_set: u32,
    pub(crate) events: VecDeque<Event>,
    /// What operators have changed.
    pub(crate) audit: Audit,
}

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) generation: u64,
    /// Which data directory it has: 128 random bits in hexadecimal.
    pub(crate) marker: String,
    /// The generation of its first process with that data directory.
    #[serde(default)]
    pub(crate) marker_since: u64,
    pub(crate) raft_id: RaftId,
    /// Whether its log outlives its process; only then may it vote beside others.
    pub(crate) persistent: bool,
    /// How long it believes that nobody takes over from it, in milliseconds.
    #[serde(default)]
    pub(crate) lease_ms: u64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) application: String,
    pub(crate) version: String,
    /// The index of the entry with which the first of the nodes that have this version registered.
    #[serde(default)]
    pub(crate) version_since: u64,
    /// The modules that its program has.
    pub(crate) modules: BTreeMap<ModuleName, Declared>,
    /// Gets nothing new.
    #[serde(default)]
    pub(crate) cordoned: bool,
    /// Gives away what it has, too, and does not vote.
    #[serde(default)]
    pub(crate) draining: bool,
    /// It said that it goes, and hosts nothing any more.
    #[serde(default)]
    pub(crate) left: bool,
}

/// What a module's registration says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Declared {
    /// The kind that it has where the spec does not say.
    pub(crate) kind: Kind,
    /// What becomes of its state.
    #[serde(default)]
    pub(crate) state: StateClass,
    /// Full names of its services.
    pub(crate) services: Vec<String>,
    /// A digest of their descriptors, if the program has some.
    #[serde(default)]
    pub(crate) interface: Option<String>,
}

/// What a module looks like on some nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The index of the entry with which the first of these nodes registered.
    pub(crate) since: u64,
    pub(crate) interface: Interface,
}

/// One part's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The index of the entry that last changed this record.
    pub(crate) version: Version,
    pub(crate) epoch: Epoch,
    /// The epoch of the last take-over. Answers of earlier owners count no more, since nobody waited for their calls to
    /// finish; those of owners that handed over do, however late they arrive.
    #[serde(default)]
    pub(crate) fence: Epoch,
    pub(crate) hosting: Hosting,
    /// An operator chose the place; the scheduler does not move it for the sake of balance.
    #[serde(default)]
    pub(crate) chosen: bool,
}

/// Who hosts a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hosting {
    /// One owner at a time.
    Exclusive {
        owner: Incarnation,
        /// The owner serves this epoch: it has said so, or was given the part when it had all that it needs.
        active: bool,
        moving: Option<Move>,
        /// What the owner must have before it may serve, until it has said that it does.
        #[serde(default)]
        seal: Option<Seal>,
    },
    /// Each of these.
    Replicated { hosts: BTreeSet<NodeId> },
}

/// A move under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Move {
    /// The index of the entry that began it.
    pub(crate) id: u64,
    pub(crate) to: Incarnation,
    /// The target has an instance that could serve.
    pub(crate) prepared: bool,
    /// An operator asked for it.
    #[serde(default)]
    pub(crate) chosen: bool,
    /// When it began, and who asked for it.
    #[serde(default)]
    pub(crate) at: Timestamp,
    #[serde(default)]
    pub(crate) by: String,
}

/// The state that a part was handed over with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    pub(crate) sealed: Sealed,
    /// Who handed it over, and keeps it until the new owner serves.
    pub(crate) from: Incarnation,
    /// The move that did it.
    pub(crate) of: u64,
}

/// A state of a module that no call changes any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed {
    /// BLAKE3 over all that was transferred, in hexadecimal.
    pub(crate) digest: String,
    pub(crate) bytes: u64,
}

/// A version of the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpecVersion {
    /// From 1. Zero, which is never in the list, is the empty spec that a cluster begins with.
    pub(crate) version: u64,
    pub(crate) spec: Spec,
    pub(crate) by: String,
    pub(crate) at: Timestamp,
    pub(crate) why: String,
}

/// Something that an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Of the entry that it is about.
    pub(crate) index: u64,
    pub(crate) at: Timestamp,
    /// "node-joined", "move-begun": words that scripts may rely on.
    pub(crate) kind: String,
    pub(crate) module: Option<ModuleName>,
    pub(crate) node: Option<NodeId>,
    /// Who asked for it; the leader's name where nobody did.
    pub(crate) by: String,
    /// The whole of it, for people.
    pub(crate) text: String,
}

/// A command, with who gave it and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    pub(crate) at: Timestamp,
    /// The operator, or the node.
    pub(crate) by: String,
    /// What an operator asked for; none where it is no operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) asked: Option<Asked>,
    pub(crate) command: Command,
}

/// What an operator asked a node for, in that node's words: the same in the audit log of every version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) node: String,
    /// Where the operator was.
    pub(crate) from: String,
    /// Which method.
    pub(crate) kind: String,
    pub(crate) text: String,
}

/// What may be changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// The first entry of a cluster's log.
    Found { cluster: String },
    /// A node has started, or started again.
    Register {
        node: NodeId,
        record: Node,
        /// Those of its interfaces that the node did not find in the state.
        #[serde(default)]
        brings: BTreeMap<String, Interface>,
        /// The index of the state whose interfaces it has compared its own with.
        #[serde(default)]
        compared: u64,
    },
    /// A node has stopped, having handed over what it hosted.
    Leave(Incarnation),
    /// A node that is gone will not come back.
    Forget(NodeId),
    /// Whether a node may get something new. Where it may, it is not drained either.
    Cordon { node: NodeId, cordoned: bool },
    /// A node is to give away all that others can host, and get nothing new.
    Drain { node: NodeId, why: String },
    /// How many members should vote: 1, 3 or 5; 0 leaves it to the cluster.
    SetVoters { count: u32 },
    /// A new version of the spec, in place of version `expect`.
    SetSpec { expect: u64, spec: Spec, why: String },
    /// A change of one part's record, in place of version `expect`; 0 for one that is not there.
    Part { module: ModuleName, expect: Version, change: PartChange, why: String },
}

/// A change of one part's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PartChange {
    /// A first owner, or a take-over: whoever proposes it has made sure that the last owner serves no more.
    Assign(Incarnation),
    /// The hosts of a replicated part.
    Replicate(BTreeSet<NodeId>),
    BeginMove {
        to: Incarnation,
        /// By an operator, not for balance.
        chosen: bool,
    },
    AbortMove,
    /// The target has an instance.
    Prepared,
    /// This is the move: the owner, which has closed its gate, gives the part to the target.
    Handover {
        /// The state that the target has taken, where the module's state travels.
        sealed: Option<Sealed>,
        /// The target needs nothing but this entry to serve: no second one is waited for.
        #[serde(default)]
        ready: bool,
        /// For how long calls have waited so far, in microseconds.
        #[serde(default)]
        waited_us: u64,
    },
    /// The owner serves.
    Activated,
}

impl PartChange {
    /// What they are called in metrics.
    pub(crate) const KINDS: [&str; 7] =
        ["assigned", "replicated", "move_begun", "move_aborted", "prepared", "handed_over", "activated"];

    /// Which of them this is.
    pub(crate) fn kind(&self) -> usize {
        match self {
            Self::Assign(_) => 0,
            Self::Replicate(_) => 1,
            Self::BeginMove { .. } => 2,
            Self::AbortMove => 3,
            Self::Prepared => 4,
            Self::Handover { .. } => 5,
            Self::Activated => 6,
        }
    }
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refused {
    #[error("the cluster was founded already")]
    Founded,
    #[error("`{0}` is not a node of this cluster")]
    NoNode(NodeId),
    #[error("node `{node}` has started again since: generation {known} is newer than {seen}")]
    Superseded { node: NodeId, known: u64, seen: u64 },
    #[error(
        "the data directory of node `{0}` belonged to a node that was forgotten or replaced; delete the directory, so that it joins as a new one"
    )]
    Retired(NodeId),
    #[error("nodes with another version have joined since node `{node}` compared itself with them, by entry {index}")]
    Uncompared { node: NodeId, index: u64 },
    #[error("modules are placed on node `{0}` still; stop it, and wait until others host them")]
    StillThere(NodeId),
    #[error("{0} members can't vote: 1, 3 or 5 can; 0 leaves it to the cluster")]
    Voters(u32),
    #[error("the placement is at version {current}, not {expected}: somebody has changed it; look at it again")]
    SpecChanged { expected: u64, current: u64 },
    #[error("module `{module}` was changed in between: its record is at version {current}, not {expected}")]
    PartChanged { module: ModuleName, expected: Version, current: Version },
    #[error("module `{module}` is not in a state for that: {problem}")]
    Phase { module: ModuleName, problem: String },
}

/// What a command did: the index of its entry.
pub(crate) type Outcome = Result<u64, Refused>;

impl State {
    /// The spec in force, and its version.
    pub(crate) fn spec(&self) -> (u64, &Spec) {
        static NONE: std::sync::LazyLock<Spec> = std::sync::LazyLock::new(Spec::default);
        self.specs.back().map_or((0, &*NONE), |current| (current.version, &current.spec))
    }

    /// The incarnation of a node that is in force, if it has not left.
    pub(crate) fn incarnation(&self, node: &NodeId) -> Option<Incarnation> {
        let record = self.nodes.get(node).filter(|record| !record.left)?;
        Some(Incarnation { node: node.clone(), generation: record.generation })
    }

    /// What modules are, as the nodes that have them say; where versions of the program differ, the newest generation
    /// is believed.
    pub(crate) fn declared(&self) -> BTreeMap<&ModuleName, &Declared> {
        let mut nodes: Vec<&Node> = self.nodes.values().filter(|node| !node.left).collect();
        nodes.sort_by_key(|node| node.generation);
        nodes.iter().flat_map(|node| &node.modules).collect()
    }

    /// Applies the entry with this index.
    pub(crate) fn apply(&mut self, index: u64, proposal: &Proposal) -> Outcome {
        self.index = index;
        let applied = self.change(index, proposal);
        if let Ok(event) = applied {
            let (kind, module, node, text) = event;
            let Proposal { at, by, asked, .. } = proposal;
            if let Some(Asked { node, from, kind, text }) = asked {
                let (by, from) = (by.clone(), format!("{from} at {node}"));
                let (kind, text) = (kind.clone(), text.clone());
                self.audit.add(AuditEntry { index, at_ms: at.0, by, from, kind, text, hash: String::new() });
            }
            self.events.push_back(Event { index, at: *at, kind: kind.to_owned(), module, node, by: by.clone(), text });
            if self.events.len() > EVENTS {
                self.events.pop_front();
            }
            return Ok(index);
        }
        applied.map(|_| index)
    }

    fn change(&mut self, index: u64, proposal: &Proposal) -> Result<Told, Refused> {
        match &proposal.command {
            Command::Found { cluster } => {
                if !self.cluster.is_empty() {
                    return Err(Refused::Founded);
                }
                self.cluster.clone_from(cluster);
                Ok(("cluster-founded", None, None, format!("cluster {cluster} was founded")))
            }
            Command::Register { node, record, brings, compared } => {
                self.register(index, node, record, brings, *compared)
            }
            Command::Leave(incarnation) => {
                let record = self.node(&incarnation.node)?;
                if record.generation != incarnation.generation {
                    return Err(superseded(incarnation, record.generation));
                }
                record.left = true;
                self.drop_interfaces();
                Ok(told_of_node("node-left", &incarnation.node, format!("{} has left", incarnation.node)))
            }
            Command::Forget(node) => {
                let hosts = self.parts.values().any(|part| part.names(node));
                let record = self.node(node)?;
                // One that has crashed is gone as well, once others have what it hosted.
                if !record.left && hosts {
                    return Err(Refused::StillThere(node.clone()));
                }
                let raft_id = record.raft_id;
                self.retired.insert(raft_id);
                self.nodes.remove(node);
                self.drop_interfaces();
                Ok(told_of_node("node-forgotten", node, format!("{node} was forgotten")))
            }
            Command::Cordon { node, cordoned } => {
                let record = self.node(node)?;
                record.cordoned = *cordoned;
                record.draining &= *cordoned;
                let (kind, text) = match cordoned {
                    true => ("node-cordoned", format!("{node} gets nothing new")),
                    false => ("node-uncordoned", format!("{node} may get modules again")),
                };
                Ok(told_of_node(kind, node, text))
            }
            Command::Drain { node, why } => {
                let record = self.node(node)?;
                (record.cordoned, record.draining) = (true, true);
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                Ok(told_of_node("node-drained", node, format!("{node} is to give away what it hosts{why}")))
            }
            Command::SetVoters { count } => {
                if ![0, 1, 3, 5].contains(count) {
                    return Err(Refused::Voters(*count));
                }
                self.voters_set = *count;
                let text = match count {
                    0 => "the cluster chooses how many members vote".to_owned(),
                    count => format!("{count} members are to vote"),
                };
                Ok(("voters-set", None, None, text))
            }
            Command::SetSpec { expect, spec, why } => {
                let (current, _) = self.spec();
                if current != *expect {
                    return Err(Refused::SpecChanged { expected: *expect, current });
                }
                let (by, at, version) = (proposal.by.clone(), proposal.at, current + 1);
                self.specs.push_back(SpecVersion { version, spec: spec.clone(), by, at, why: why.clone() });
                if self.specs.len() > HISTORY {
                    self.specs.pop_front();
                }
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                Ok(("spec-changed", None, None, format!("the placement is now version {version}{why}")))
            }
            Command::Part { module, expect, change, why } => {
                let current = self.parts.get(module).map_or(0, |part| part.version);
                if current != *expect {
                    return Err(Refused::PartChanged { module: module.clone(), expected: *expect, current });
                }
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                let (kind, node, text) = self.change_part(index, proposal, module, change)?;
                Ok((kind, Some(module.clone()), node, format!("{text}{why}")))
            }
        }
    }

    fn register(
        &mut self,
        index: u64,
        node: &NodeId,
        record: &Node,
        brings: &BTreeMap<String, Interface>,
        compared: u64,
    ) -> Result<Told, Refused> {
        if self.retired.contains(&record.raft_id) {
            return Err(Refused::Retired(node.clone()));
        }
        // Or one node would be taken for the other.
        let taken = |(other, known): (&NodeId, &Node)| other != node && !known.left && known.raft_id == record.raft_id;
        if self.nodes.iter().any(taken) {
            return Err(Refused::Retired(node.clone()));
        }
        let mut record = record.clone();
        record.marker_since = record.generation;
        let mut text = format!("{node} has joined");
        if let Some(known) = self.nodes.get(node) {
            if known.generation >= record.generation {
                let (known, seen) = (known.generation, record.generation);
                // The same node again: its first attempt was answered, and the answer was lost.
                if known == seen && self.nodes[node].marker == record.marker {
                    return Ok(told_of_node("node-joined", node, text));
                }
                return Err(Refused::Superseded { node: node.clone(), known, seen });
            }
            (record.cordoned, record.draining) = (known.cordoned, known.draining);
            if known.marker == record.marker {
                record.marker_since = known.marker_since;
            }
            text = format!("{node} has started again");
            if known.raft_id != record.raft_id {
                text = format!("{node} has started again with another data directory");
            }
        }
        let interfaces = || record.modules.values().filter_map(|declared| declared.interface.as_ref());
        let unknown: Vec<&String> = interfaces().filter(|digest| !self.interfaces.contains_key(*digest)).collect();
        let brought = unknown.iter().all(|digest| brings.contains_key(*digest));
        if !brought || (compared < self.interfaces_since && interfaces().next().is_some()) {
            return Err(Refused::Uncompared { node: node.clone(), index });
        }
        for digest in unknown {
            let known = Known { since: index, interface: brings[digest].clone() };
            self.interfaces.insert(digest.clone(), known);
            self.interfaces_since = index;
        }
        let same = |known: &&Node| !known.left && known.version == record.version;
        let since = self.nodes.values().filter(same).map(|known| known.version_since).min();
        record.version_since = since.unwrap_or_else(|| {
            self.interfaces_since = index;
            index
        });
        if let Some(replaced) = self.nodes.get(node).cloned() {
            if replaced.raft_id != record.raft_id {
                self.retired.insert(replaced.raft_id);
            }
            self.give_up_changed(index, node, &replaced, &record);
        }
        self.nodes.insert(node.clone(), record);
        self.drop_interfaces();
        Ok(told_of_node("node-joined", node, text))
    }

    /// Takes a node that has started again with another version out of those replicated parts that look different there, and
    /// have other hosts: it would serve them before anybody has looked whether that fits.
    fn give_up_changed(&mut self, index: u64, node: &NodeId, before: &Node, now: &Node) {
        let interface = |record: &Node, module| record.modules.get(module).map(|declared| declared.interface.clone());
        for (module, part) in &mut self.parts {
            let Hosting::Replicated { hosts } = &mut part.hosting else { continue };
            if interface(before, module) != interface(now, module) && hosts.len() > 1 && hosts.remove(node) {
                (part.version, part.epoch) = (index, part.epoch.next());
            }
        }
    }

    /// Forgets what no node has any more.
    fn drop_interfaces(&mut self) {
        let there = self.nodes.values().filter(|node| !node.left).flat_map(|node| node.modules.values());
        let used: BTreeSet<&String> = there.filter_map(|declared| declared.interface.as_ref()).collect();
        self.interfaces.retain(|digest, _| used.contains(digest));
    }

    fn node(&mut self, node: &NodeId) -> Result<&mut Node, Refused> {
        self.nodes.get_mut(node).ok_or_else(|| Refused::NoNode(node.clone()))
    }

    /// Makes sure that an incarnation is the one in force.
    fn in_force(&self, incarnation: &Incarnation) -> Result<(), Refused> {
        match self.nodes.get(&incarnation.node) {
            Some(record) if record.generation == incarnation.generation && !record.left => Ok(()),
            Some(record) => Err(superseded(incarnation, record.generation)),
            None => Err(Refused::NoNode(incarnation.node.clone())),
        }
    }

    fn change_part(
        &mut self,
        index: u64,
        proposal: &Proposal,
        module: &ModuleName,
        change: &PartChange,
    ) -> Result<ToldOfPart, Refused> {
        let phase = |problem: &str| Refused::Phase { module: module.clone(), problem: problem.to_owned() };
        let known = self.parts.get(module).cloned();
        let part = known.clone().unwrap_or_else(Part::unplaced);
        match change {
            PartChange::Assign(to) => {
                self.in_force(to)?;
                let mut seal = None;
                match known.map(|part| part.hosting) {
                    Some(Hosting::Replicated { hosts }) if hosts.iter().any(|host| *host != to.node) => {
                        return Err(phase("other nodes host it still"));
                    }
                    // It has the state that it handed over still, and nobody has served a newer one.
                    Some(Hosting::Exclusive { active: false, seal: Some(kept), .. }) if kept.from == *to => {
                        seal = Some(kept);
                    }
                    _ => {}
                }
                let epoch = part.epoch.next();
                let hosting = Hosting::Exclusive { owner: to.clone(), active: false, moving: None, seal };
                self.parts.insert(module.clone(), Part { version: index, epoch, fence: epoch, hosting, chosen: false });
                return Ok(("assigned", Some(to.node.clone()), format!("{module} is for {} to serve", to.node)));
            }
            PartChange::Replicate(hosts) => {
                if hosts.is_empty() {
                    return Err(phase("it would be on no node"));
                }
                if let Some(unknown) = hosts.iter().find(|host| !self.nodes.contains_key(*host)) {
                    return Err(Refused::NoNode(unknown.clone()));
                }
                let names: Vec<&str> = hosts.iter().map(NodeId::as_str).collect();
                let text = format!("{module} is for {} to serve", names.join(", "));
                let (epoch, hosting) = (part.epoch.next(), Hosting::Replicated { hosts: hosts.clone() });
                self.parts.insert(module.clone(), Part { version: index, epoch, hosting, ..part });
                return Ok(("replicated", None, text));
            }
            _ => {}
        }
        let Hosting::Exclusive { owner, active, moving, seal } = part.hosting.clone() else {
            return Err(phase("it is not placed on one node"));
        };
        let (kind, node, text, next) = match (change, moving) {
            (PartChange::BeginMove { .. }, Some(moving)) => {
                return Err(phase(&format!("it is on its way to {} already", moving.to.node)));
            }
            // An owner that is active at once need not have opened yet: it may have no lease.
            (PartChange::BeginMove { .. }, None) if !active || seal.is_some() => {
                return Err(phase(&format!("{} has not begun to serve it yet", owner.node)));
            }
            (PartChange::BeginMove { to, .. }, None) if *to == owner => {
                return Err(phase(&format!("it is on {}", to.node)));
            }
            (PartChange::BeginMove { to, chosen }, None) => {
                self.in_force(to)?;
                let text = format!("{module} moves from {} to {}", owner.node, to.node);
                let (to, chosen, by) = (to.clone(), *chosen, proposal.by.clone());
                let node = to.node.clone();
                let moving = Some(Move { id: index, to, prepared: false, chosen, at: proposal.at, by });
                let hosting = Hosting::Exclusive { owner, active, moving, seal };
                ("move-begun", node, text, Part { hosting, ..part })
            }
            (PartChange::AbortMove, Some(moving)) => {
                let text = format!("{module} stays on {}", owner.node);
                let hosting = Hosting::Exclusive { owner, active, moving: None, seal };
                ("move-aborted", moving.to.node, text, Part { hosting, ..part })
            }
            (PartChange::Prepared, Some(moving)) => {
                let (node, text) = (moving.to.node.clone(), format!("{module} is ready on {}", moving.to.node));
                let moving = Some(Move { prepared: true, ..moving });
                (
                    "move-prepared",
                    node,
                    text,
                    Part { hosting: Hosting::Exclusive { owner, active, moving, seal }, ..part },
                )
            }
            (PartChange::Handover { sealed, ready, waited_us }, Some(moving)) => {
                if !moving.prepared {
                    return Err(phase(&format!("{} is not ready for it", moving.to.node)));
                }
                self.in_force(&moving.to)?;
                let (node, epoch) = (moving.to.node.clone(), part.epoch.next());
                let mut text = format!("{module} is {node}'s from now on, at epoch {epoch}");
                if let Some(sealed) = sealed {
                    let (size, waited) = (ByteSize(sealed.bytes).display().iec(), Duration::from_micros(*waited_us));
                    text = format!("{text}, with {size} of state; calls wait for {waited:.1?} so far");
                }
                let seal = sealed.clone().map(|sealed| Seal { sealed, from: owner, of: moving.id });
                let hosting = Hosting::Exclusive { owner: moving.to, active: *ready, moving: None, seal };
                ("moved", node, text, Part { epoch, hosting, chosen: moving.chosen, ..part })
            }
            (PartChange::AbortMove | PartChange::Prepared | PartChange::Handover { .. }, None) => {
                return Err(phase("no move is under way"));
            }
            (PartChange::Activated, moving) => {
                let (node, text) = (owner.node.clone(), format!("{} serves {module}", owner.node));
                let hosting = Hosting::Exclusive { owner, active: true, moving, seal: None };
                ("activated", node, text, Part { hosting, ..part })
            }
            (PartChange::Assign(_) | PartChange::Replicate(_), _) => {
                unreachable!("these are answered above")
            }
        };
        self.parts.insert(module.clone(), Part { version: index, ..next });
        Ok((kind, Some(node), text))
    }
}

/// Kind, module, node and text of an event.
type Told = (&'static str, Option<ModuleName>, Option<NodeId>, String);
type ToldOfPart = (&'static str, Option<NodeId>, String);

fn told_of_node(kind: &'static str, node: &NodeId, text: String) -> Told {
    (kind, None, Some(node.clone()), text)
}

fn superseded(incarnation: &Incarnation, known: u64) -> Refused {
    Refused::Superseded { node: incarnation.node.clone(), known, seen: incarnation.generation }
}

impl Part {
    /// One that nobody has ever hosted.
    fn unplaced() -> Self {
        let hosting = Hosting::Replicated { hosts: BTreeSet::new() };
        Self { version: 0, epoch: Epoch::default(), fence: Epoch::default(), hosting, chosen: false }
    }

    /// Who serves it, or will.
    pub(crate) fn hosts(&self) -> Vec<&NodeId> {
        match &self.hosting {
            Hosting::Exclusive { owner, .. } => vec![&owner.node],
            Hosting::Replicated { hosts } => hosts.iter().collect(),
        }
    }

    /// Whether an operator chose where it is, or where it is on its way to.
    pub(crate) fn is_chosen(&self) -> bool {
        self.moving().map_or(self.chosen, |moving| moving.chosen)
    }

    /// Whether the record says that a node hosts it, or will.
    pub(crate) fn names(&self, node: &NodeId) -> bool {
        self.hosts().contains(&node) || self.moving().is_some_and(|moving| moving.to.node == *node)
    }

    /// The state that its owner must have, and who has it too.
    pub(crate) fn seal(&self) -> Option<&Seal> {
        match &self.hosting {
            Hosting::Exclusive { seal, .. } => seal.as_ref(),
            Hosting::Replicated { .. } => None,
        }
    }

    /// Whether its owner has said that it serves, so that nobody keeps its state any more: then it may move again.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.hosting, Hosting::Exclusive { active: true, seal: None, .. })
    }

    pub(crate) fn moving(&self) -> Option<&Move> {
        match &self.hosting {
            Hosting::Exclusive { moving, .. } => moving.as_ref(),
            Hosting::Replicated { .. } => None,
        }
    }
}

impl fmt::Display for PartChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assign(to) => write!(f, "assign to {to}"),
            Self::Replicate(hosts) => write!(f, "replicate on {hosts:?}"),
            Self::BeginMove { to, .. } => write!(f, "begin a move to {to}"),
            Self::AbortMove => f.write_str("abort the move"),
            Self::Prepared => f.write_str("prepared"),
            Self::Handover { .. } => f.write_str("hand over"),
            Self::Activated => f.write_str("activated"),
        }
    }
}

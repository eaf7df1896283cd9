//! Who votes: the leader looks every few seconds, and does one step at a time.
//!
//! | nodes that may vote | voters |
//! |---|---|
//! | 1 or 2 | 1: with two, either one's end would stop both |
//! | 3 to 6 | 3 |
//! | 7 and more | 5 |
//!
//! A voter that died, or whose data directory is gone, is replaced when there is a spare, and otherwise stays on the
//! list: when it comes back, nothing has happened. One that drains is replaced first; where nobody can take its place,
//! the group shrinks to the next odd number, if all that remain are healthy and know everything. Apart from that, it
//! shrinks only when an operator says so.
//!
//! A new voter learns the whole log before it votes. Each change is one joint change from one odd set to another, and
//! is only begun while a majority of the old and of the new set is healthy. A change that was begun is finished first.
//! Nodes without a data directory do not count, and none votes beside others: the one that founded a cluster in memory
//! is its only voter until three others can take over.
//!
//! The leader does not remove itself while another voter can lead: it first hands over, by silence. It stops its
//! heartbeats and asks the chosen one to stand for election; it votes for that one itself, and in a group of three that
//! is a majority. In a group of five, the others vote as soon as they have not heard of the leader for
//! `election_max`. Where it does not work out, the leader goes on leading.
//!
//! The one case where a leader has to remove itself is the swap of a single voter for another. Should it crash after it
//! has written the second half of the change, but before the new voter has, neither can win an election; the window is
//! one message long, and without the swap the cluster would end with the voter in any case.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::ChangeMembers;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{Shared, store::Peer};
use crate::{
    id::{Incarnation, NodeId, RaftId},
    membership::Lifecycle,
    placement::state::{Hosting, Part},
};

/// By how many entries a learner may be behind when it begins to vote.
const CLOSE: u64 = 16;
/// A node that goes keeps its vote for so long, for its modules to go first; and on, while one is on its way.
const EMPTIED: Duration = Duration::from_secs(2);

/// What the leader sees.
#[derive(Debug, Clone, Default)]
struct Facts {
    me: RaftId,
    /// How many voters an operator wants; 0 leaves it to the rules.
    set: u32,
    /// The most voters that the rules choose.
    max: u32,
    /// The voters: one set, or the old and the new one of a change that was begun.
    configs: Vec<BTreeSet<RaftId>>,
    learners: BTreeSet<RaftId>,
    /// Every member, and every node that gossip knows.
    nodes: BTreeMap<RaftId, Facet>,
}

/// One node, as the leader sees it.
#[derive(Debug, Clone, Default)]
struct Facet {
    name: String,
    zone: Option<String>,
    /// Its log outlives its process.
    persistent: bool,
    alive: bool,
    /// It may begin to vote: of this cluster, alive, persistent, ready for some time.
    spare: bool,
    /// It will be a spare soon, if it stays ready.
    soon: bool,
    /// It is about to end.
    going: bool,
    /// It was gone for long.
    dead: bool,
    /// It can't come back: its data directory is another one now.
    retired: bool,
    /// It has all of the log, but for the last few entries.
    close: bool,
    /// It has the entry that says who votes now.
    told: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A change was begun, and is to be finished.
    Finish(BTreeSet<RaftId>),
    Learn(RaftId),
    /// From now on, these vote.
    Vote(BTreeSet<RaftId>),
    HandOver(RaftId),
    /// A learner that is not needed.
    Drop(RaftId),
    /// Nothing can be done yet.
    Wait(String),
}

fn odd(count: usize) -> usize {
    if count == 0 || count % 2 == 1 { count } else { count - 1 }
}

/// The next step towards the voters that the rules want; none when they are there.
fn next(facts: &Facts) -> Option<Step> {
    let none = Facet::default();
    let facet = |raft_id: &RaftId| facts.nodes.get(raft_id).unwrap_or(&none);
    let current = match facts.configs.as_slice() {
        [current] => current,
        [.., new] => return Some(Step::Finish(new.clone())),
        [] => return None,
    };

    // Voters that should stay, the leader first; nodes that could join them; voters that should be replaced.
    // A log in memory is good enough for as long as there is only one.
    let few = current.len() == 1 && facts.nodes.values().filter(|facet| facet.spare).count() < 3;
    let stays = |raft_id: &RaftId| {
        let facet = facet(raft_id);
        (facet.persistent || few) && !facet.going && !facet.dead && !facet.retired
    };
    let mut keep: Vec<RaftId> = current.iter().copied().filter(stays).collect();
    keep.sort_by_key(|raft_id| (*raft_id != facts.me, !facet(raft_id).alive, !facet(raft_id).close, *raft_id));
    let zones: BTreeSet<&str> = keep.iter().filter_map(|raft_id| facet(raft_id).zone.as_deref()).collect();
    let mut spares: Vec<RaftId> =
        facts.nodes.iter().filter(|(id, facet)| facet.spare && !current.contains(id)).map(|(id, _)| *id).collect();
    spares.sort_by_key(|raft_id| {
        let facet = facet(raft_id);
        let crowded = facet.zone.as_deref().is_some_and(|zone| zones.contains(zone));
        (crowded, !facts.learners.contains(raft_id), facet.name.clone(), *raft_id)
    });
    let poor = current.iter().copied().filter(|raft_id| !stays(raft_id) && !facet(raft_id).going);

    let lasting = |raft_id: &&RaftId| facet(raft_id).alive && facet(raft_id).persistent;
    let eligible = spares.len() + keep.iter().filter(lasting).count();
    let ruled = match eligible {
        0..=2 => 1,
        3..=6 => 3,
        7.. => 5,
    };
    let goal = match facts.set as usize {
        0 => current.len().max(ruled.min(facts.max as usize)),
        set => set,
    };
    let mut wanted: Vec<RaftId> = keep.into_iter().chain(spares).chain(poor).collect();
    if wanted.len() < current.len().min(goal) {
        // Some are about to end and have no successor. A new leader has to see for itself who is ready.
        if let Some(soon) = facts.nodes.iter().find(|(id, facet)| facet.soon && !facet.spare && !current.contains(id)) {
            return Some(Step::Wait(format!("{} has to be ready for longer before it votes", soon.1.name)));
        }
        wanted.retain(|raft_id| facet(raft_id).alive && facet(raft_id).close);
    }
    wanted.truncate(odd(goal.min(wanted.len())));
    let wanted: BTreeSet<RaftId> = wanted.into_iter().collect();
    if wanted.is_empty() || wanted == *current {
        let unneeded = facts.learners.iter().find(|raft_id| {
            let facet = facet(raft_id);
            // One that is alive should hear first that it does not vote any more.
            !current.contains(raft_id) && (facet.told || facet.retired || !facet.alive)
        });
        return unneeded.copied().map(Step::Drop);
    }

    let joining: Vec<RaftId> = wanted.difference(current).copied().collect();
    if let Some(unknown) = joining.iter().find(|raft_id| !facts.learners.contains(raft_id)) {
        return Some(Step::Learn(*unknown));
    }
    if let Some(behind) = joining.iter().find(|raft_id| !facet(raft_id).close) {
        return Some(Step::Wait(format!("{} learns the log before it votes", facet(behind).name)));
    }
    let healthy = |set: &BTreeSet<RaftId>| set.iter().filter(|id| facet(id).alive && !facet(id).retired).count();
    if healthy(current) <= current.len() / 2 || healthy(&wanted) <= wanted.len() / 2 {
        return Some(Step::Wait("too few voters are healthy for a change".to_owned()));
    }
    if wanted.len() < current.len() && !wanted.iter().all(|raft_id| facet(raft_id).alive && facet(raft_id).close) {
        return Some(Step::Wait("fewer voters are wanted, but not all that would remain know everything".to_owned()));
    }
    if !wanted.contains(&facts.me) && current.len() > 1 {
        let heir = wanted.intersection(current).find(|raft_id| facet(raft_id).alive && facet(raft_id).close);
        return Some(match heir {
            Some(heir) => Step::HandOver(*heir),
            None => Step::Wait("the leader is to go, and no other voter can lead".to_owned()),
        });
    }
    Some(Step::Vote(wanted))
}

/// Since when things are as they are.
#[derive(Debug, Default)]
struct Since {
    ready: BTreeMap<RaftId, Instant>,
    gone: BTreeMap<RaftId, Instant>,
    going: BTreeMap<RaftId, Instant>,
}

/// How long a fact has held, now that it does or does not.
fn held(since: &mut BTreeMap<RaftId, Instant>, raft_id: RaftId, holds: bool, now: Instant) -> Option<Duration> {
    if !holds {
        since.remove(&raft_id);
        return None;
    }
    Some(now.saturating_duration_since(*since.entry(raft_id).or_insert(now)))
}

fn look(shared: &Shared, since: &mut Since, now: Instant) -> Facts {
    let state = shared.states.borrow().clone();
    let members = shared.peers.members();
    let cluster = shared.cluster.borrow().clone();
    let metrics = shared.raft.metrics().borrow().clone();
    let membership = metrics.membership_config.membership();
    let mut names: BTreeMap<RaftId, Option<NodeId>> =
        membership.nodes().map(|(raft_id, peer)| (*raft_id, peer.node())).collect();
    for (node, member) in &*members {
        names.entry(member.raft_id).or_insert_with(|| Some(node.clone()));
    }

    let mut nodes = BTreeMap::new();
    for (raft_id, node) in names {
        let me = raft_id == shared.me();
        let record = node.as_ref().and_then(|node| state.nodes.get(node));
        let retired = state.retired.contains(&raft_id) || record.is_some_and(|record| record.raft_id != raft_id);
        let member = shared.peers.find(raft_id, None).map(|(_, member)| member);
        let alive = me || member.as_ref().is_some_and(|member| member.alive);
        let lifecycle = member.as_ref().map_or(Lifecycle::Joining, |member| member.lifecycle);
        let persistent = match &member {
            _ if me => shared.identity.persistent,
            Some(member) => member.persistent,
            None => record.is_none_or(|record| record.persistent),
        };
        let ready = held(&mut since.ready, raft_id, alive && lifecycle == Lifecycle::Ready, now);
        let gone = held(&mut since.gone, raft_id, !alive, now);
        // Its modules go first: while nobody leads, their callers would wait.
        let goes = matches!(lifecycle, Lifecycle::Draining | Lifecycle::Leaving) && alive;
        let going = held(&mut since.going, raft_id, goes, now);
        let owned = || {
            let owned = |part: &&Part| matches!(&part.hosting, Hosting::Exclusive { owner, .. } if Some(&owner.node) == node.as_ref());
            state.parts.values().filter(owned)
        };
        let (hosts, moves) = (owned().next().is_some(), owned().any(|part| part.moving().is_some()));
        let fit = persistent && !retired && member.as_ref().is_some_and(|member| member.cluster == cluster);
        let renews = node.as_ref().zip(record).is_some_and(|(node, record)| {
            let incarnation = Incarnation { node: node.clone(), generation: record.generation };
            shared.leases().renewing(now, &incarnation)
        });
        let matched = metrics.replication.as_ref().and_then(|replication| replication.get(&raft_id).copied().flatten());
        let last = metrics.last_log_index.unwrap_or(0);
        let facet = Facet {
            name: node.as_ref().map(NodeId::to_string).unwrap_or_default(),
            zone: member.as_ref().and_then(|member| member.labels.get("zone").cloned()),
            persistent,
            alive,
            spare: fit && ready.is_some_and(|ready| ready >= shared.timing.settled),
            soon: fit && ready.is_some(),
            going: going.is_some_and(|going| going >= EMPTIED || !hosts) && !moves,
            // One that has said that it goes is not waited for: the next one may go soon, and a majority with it.
            dead: gone.is_some_and(|gone| gone >= shared.timing.dead_after || record.is_some_and(|record| record.left))
                && !renews,
            retired,
            told: me || matched.is_some_and(|matched| Some(matched) >= *metrics.membership_config.log_id()),
            close: me || matched.is_some_and(|matched| matched.index + CLOSE >= last),
        };
        nodes.insert(raft_id, facet);
    }
    since.ready.retain(|raft_id, _| nodes.contains_key(raft_id));
    since.gone.retain(|raft_id, _| nodes.contains_key(raft_id));
    since.going.retain(|raft_id, _| nodes.contains_key(raft_id));
    Facts {
        me: shared.me(),
        set: state.voters_set,
        max: shared.max_voters,
        configs: membership.get_joint_config().clone(),
        learners: membership.learner_ids().collect(),
        nodes,
    }
}

/// Looks after the voters whenever this node leads.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut leadership = shared.leadership.subscribe();
    loop {
        shared.autopilot.send_replace(String::new());
        if leadership.wait_for(|leadership| leadership.is_me).await.is_err() {
            return;
        }
        let mut since = Since::default();
        let mut members = shared.peers.watch();
        while leadership.borrow_and_update().is_me {
            let facts = look(&shared, &mut since, Instant::now());
            let pause = match next(&facts) {
                None => {
                    shared.autopilot.send_replace(String::new());
                    shared.timing.autopilot
                }
                Some(Step::Wait(why)) => {
                    shared.autopilot.send_replace(why);
                    shared.timing.autopilot.min(shared.timing.heartbeat * 2)
                }
                Some(step) => match perform(&shared, &facts, &step).await {
                    // What it changed is known a moment later.
                    Ok(()) => shared.timing.heartbeat / 2,
                    Err(error) => {
                        warn!(?step, error, "could not change who votes");
                        shared.timing.autopilot
                    }
                },
            };
            let news = tokio::select! {
                () = sleep(pause) => false,
                // One may be about to end.
                Ok(()) = members.changed() => true,
                _ = leadership.wait_for(|leadership| !leadership.is_me) => false,
            };
            if news {
                // Changes that come together are looked at together.
                sleep(shared.timing.heartbeat).await;
            }
        }
    }
}

async fn perform(shared: &Shared, facts: &Facts, step: &Step) -> Result<(), String> {
    let name = |raft_id: &RaftId| facts.nodes.get(raft_id).map_or("?", |facet| facet.name.as_str());
    let names = |set: &BTreeSet<RaftId>| set.iter().map(name).collect::<Vec<_>>().join(", ");
    let limit = shared.timing.propose * 3;
    let too_long = |_| "no majority has confirmed it in time".to_owned();
    match step {
        Step::Finish(voters) | Step::Vote(voters) => {
            info!(voters = names(voters), "changing who votes");
            shared.autopilot.send_replace(format!("the voters become {}", names(voters)));
            let changed = timeout(limit, shared.raft.change_membership(voters.clone(), true)).await;
            changed.map_err(too_long)?.map_err(|error| error.to_string())?;
        }
        Step::Learn(raft_id) => {
            info!(peer_node_id = name(raft_id), "a node learns the log, to vote");
            let node = NodeId::parse(name(raft_id)).map_err(|error| error.to_string())?;
            let added = timeout(limit, shared.raft.add_learner(*raft_id, Peer::new(&node), false)).await;
            added.map_err(too_long)?.map_err(|error| error.to_string())?;
        }
        Step::Drop(raft_id) => {
            info!(peer_node_id = name(raft_id), "a member that does not vote is let go");
            let remove = ChangeMembers::RemoveNodes(BTreeSet::from([*raft_id]));
            let removed = timeout(limit, shared.raft.change_membership(remove, true)).await;
            removed.map_err(too_long)?.map_err(|error| error.to_string())?;
        }
        Step::HandOver(heir) => {
            info!(target_node_id = name(heir), "handing over the lead");
            shared.autopilot.send_replace(format!("{} is to lead", name(heir)));
            hand_over(shared, *heir).await?;
        }
        Step::Wait(_) => {}
    }
    Ok(())
}

/// Falls silent, so that another voter is elected.
async fn hand_over(shared: &Shared, heir: RaftId) -> Result<(), String> {
    /// Whatever happens: this node speaks again afterwards.
    struct Silent<'a>(&'a Shared);
    impl Drop for Silent<'_> {
        fn drop(&mut self) {
            self.0.raft.runtime_config().heartbeat(true);
            self.0.raft.runtime_config().elect(true);
        }
    }
    let silent = Silent(shared);
    shared.raft.runtime_config().heartbeat(false);
    shared.raft.runtime_config().elect(false);
    let called = shared.leadership.borrow().voters.get(&heir).cloned();
    let asked = shared.network.take_lead(heir, called.as_ref(), shared.timing.election_min).await;
    asked.map_err(|status| status.message().to_owned())?;
    // The others vote once they have not heard of this node for `election_max`, and may need a second try.
    let limit = shared.timing.election_max * 4;
    let mut metrics = shared.raft.metrics();
    let other = metrics.wait_for(|metrics| metrics.current_leader.is_some_and(|leader| leader != shared.me()));
    let led = timeout(limit, other).await.is_ok();
    drop(silent);
    if led { Ok(()) } else { Err("nobody else was elected".to_owned()) }
}

#[cfg(test)]
mod tests;

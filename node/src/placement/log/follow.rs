//! How a node that does not vote knows the state: it watches one that does.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use outpost_proto::cluster::v1::{WatchRequest, watch_response::Change};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, info};

use super::{Heard, Shared, store};
use crate::{id::NodeId, placement::state::Proposal};

/// Watches somebody whenever this node can't know by itself.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut leadership = shared.leadership.subscribe();
    let mut cluster = shared.cluster.subscribe();
    let mut decided = shared.decided.subscribe();
    let first = shared.timing.heartbeat / 2;
    let mut pause = first;
    let mut behind = false;
    loop {
        if cluster.wait_for(|cluster| !cluster.is_empty()).await.is_err() {
            return;
        }
        if leadership.wait_for(|leadership| !leadership.own).await.is_err() {
            return;
        }
        if let Some((node, address)) = someone(&shared, behind) {
            let watching = watch(&shared, node.as_ref(), address);
            let mut own = leadership.clone();
            tokio::select! {
                progress = watching => if progress { pause = first },
                _ = own.wait_for(|leadership| leadership.own) => {
                    info!("the placement log is this node's own now");
                    continue;
                }
            }
        }
        // Spread out, since all of a voter's watchers lose it at the same time.
        behind = tokio::select! {
            () = sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => false,
            () = falls_behind(&shared, &mut decided) => true,
        };
        pause = if behind { first } else { (pause * 2).min(shared.timing.ask * 2) };
    }
}

/// Waits for the leader to say that more was decided than this node knows. A lease counts only once it knows that, so
/// this can't wait for a pause to end.
async fn falls_behind(shared: &Shared, decided: &mut watch::Receiver<u64>) {
    while decided.changed().await.is_ok() {
        if *decided.borrow_and_update() > shared.states.borrow().index {
            return;
        }
    }
    std::future::pending().await
}

/// Somebody to watch: a voter if one is known, preferably not the leader, which has enough to do; but the leader for
/// who is `behind`, since it has just answered and knows all.
fn someone(shared: &Shared, behind: bool) -> Option<(Option<NodeId>, SocketAddr)> {
    let (voters, leader) = {
        let leadership = shared.leadership.borrow();
        (leadership.voters.clone(), leadership.leader.as_ref().map(|(raft_id, _)| *raft_id))
    };
    let mut known: Vec<(bool, u32, NodeId, SocketAddr)> = voters
        .iter()
        .filter(|(raft_id, _)| **raft_id != shared.me())
        .filter_map(|(raft_id, node)| Some((*raft_id, shared.peers.find(*raft_id, Some(node))?)))
        .filter(|(_, (_, member))| member.alive)
        .map(|(raft_id, (node, member))| (Some(raft_id) == leader, rand::random(), node, member.address))
        .collect();
    if behind && let Some((_, _, node, address)) = known.iter().find(|(leads, ..)| *leads) {
        return Some((Some(node.clone()), *address));
    }
    // What was heard of the voters may be out of date.
    if known.is_empty() || rand::random_ratio(1, 4) {
        let members = shared.peers.members();
        let others = members.iter().filter(|(node, member)| member.alive && *node != shared.node());
        known.extend(others.map(|(node, member)| (false, rand::random(), node.clone(), member.address)));
    }
    known.sort();
    if let Some((_, _, node, address)) = known.into_iter().next() {
        return Some((Some(node), address));
    }
    let seeds = shared.seeds.as_ref()?.borrow();
    (!seeds.is_empty()).then(|| (None, seeds[rand::random_range(0..seeds.len())]))
}

/// Watches one node until that ends. Returns whether it told anything.
async fn watch(shared: &Shared, node: Option<&NodeId>, address: SocketAddr) -> bool {
    let silence = shared.timing.ask * 3 + Duration::from_millis(500);
    let after = shared.states.borrow().index;
    let request = WatchRequest { cluster: shared.cluster.borrow().clone(), after };
    let mut client = shared.peers.placement(address, node);
    let mut changes = match timeout(silence, client.watch(request)).await {
        Ok(Ok(changes)) => changes.into_inner(),
        Ok(Err(status)) => {
            debug!(peer_node_id = node.map(NodeId::as_str), error = status.message(), "can't watch a node");
            return false;
        }
        Err(_) => return false,
    };
    let mut progress = false;
    loop {
        let change = match timeout(silence, changes.message()).await {
            Ok(Ok(Some(change))) => change.change,
            Ok(Ok(None)) => return progress,
            Ok(Err(status)) => {
                debug!(peer_node_id = node.map(NodeId::as_str), error = status.message(), "lost the node watched");
                return progress;
            }
            Err(_) => {
                debug!(peer_node_id = node.map(NodeId::as_str), "the node watched is silent");
                return progress;
            }
        };
        match change {
            Some(Change::State(state)) => match serde_json::from_slice(&state) {
                Ok(state) => store::publish(&shared.states, &Arc::new(state)),
                Err(error) => {
                    debug!(%error, "can't read the state of the node watched");
                    return progress;
                }
            },
            Some(Change::Entry(entry)) => {
                let mut state = shared.states.borrow().clone();
                if entry.index <= state.index {
                    continue; // known from elsewhere
                }
                if entry.index != state.index + 1 {
                    return progress; // asking again gives the whole state
                }
                let changed = Arc::make_mut(&mut state);
                if !entry.proposal.is_empty() {
                    match serde_json::from_slice::<Proposal>(&entry.proposal) {
                        Ok(proposal) => drop(changed.apply(entry.index, &proposal)),
                        Err(error) => {
                            debug!(%error, "can't read an entry of the node watched");
                            return progress;
                        }
                    }
                }
                changed.index = entry.index;
                store::publish(&shared.states, &state);
            }
            Some(Change::Leader(leader)) => {
                let heard = Heard::from_wire(leader);
                // A node that lags behind does not overrule one that knew better; one that knows of no leader has
                // perhaps only lost touch, and counts terms in which nobody led.
                let known = shared.heard.borrow().as_ref().map_or(0, |known| known.term);
                let known = known.max(shared.own_term.load(Ordering::Relaxed));
                if heard.leader.is_some() && heard.term >= known {
                    shared.heard.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&heard);
                        *known = Some(heard);
                        changed
                    });
                }
                continue;
            }
            None => continue, // of a later version
        }
        progress = true;
    }
}

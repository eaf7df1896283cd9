//! Who was heard of lately, as the leader knows. Pure: time comes in.
//!
//! A node may serve what it hosts for some time after it last asked; nobody may take that over before a longer time
//! has passed since the leader last granted. The table is the leader's alone and in memory: a new leader knows nothing,
//! and so waits for one whole lease before it believes that anybody is silent.
//!
//! **Why this is safe.** The leader grants only after a majority has confirmed, later than the node asked, that it
//! leads. A later leader therefore begins after that, and waits for a whole lease: longer than the node may go on.
//! Before anything is taken over from a silent node, it is *held*: it gets no grant until the entry of the take-over
//! was applied, and then only together with that entry's index, which it has to apply first. A leader that loses its
//! place in between can't finish the take-over, as its proposal is bound to its term.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::id::Incarnation;
#[cfg(feature = "simulation")]
use crate::simulation;

/// The leader's table.
#[derive(Debug)]
pub(crate) struct Leases {
    lease: Duration,
    /// Since when this node leads, and in which term.
    leads: Option<(u64, Instant)>,
    nodes: BTreeMap<Incarnation, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    applied: u64,
    /// Gets no grant, since it is being taken over from.
    held: bool,
}

impl Leases {
    /// A lease begins with the node's word; `lease` is how long after it nobody takes over.
    pub(crate) fn new(lease: Duration) -> Self {
        Self { lease, leads: None, nodes: BTreeMap::new() }
    }

    /// This node leads from now on. What it knew of another term is void.
    pub(crate) fn lead(&mut self, term: u64, now: Instant) {
        if self.leads.is_none_or(|(known, _)| known != term) {
            self.leads = Some((term, now));
            self.nodes.clear();
        }
    }

    /// This node leads no more.
    pub(crate) fn step_down(&mut self) {
        self.leads = None;
        self.nodes.clear();
    }

    /// A node asked at `asked`, and has applied `applied`. Whether it gets a grant.
    pub(crate) fn renew(&mut self, incarnation: &Incarnation, asked: Instant, applied: u64) -> bool {
        if self.leads.is_none() {
            return false;
        }
        // An older process of the node may be another one, which serves on until its own lease has ended.
        let lease = self.lease;
        self.nodes.retain(|known, seen| {
            let older = known.node == incarnation.node && known.generation < incarnation.generation;
            !older || asked.saturating_duration_since(seen.at) < lease
        });
        let seen = self.nodes.entry(incarnation.clone()).or_insert(Seen { at: asked, applied, held: false });
        if seen.held {
            return false;
        }
        seen.at = seen.at.max(asked);
        seen.applied = seen.applied.max(applied);
        true
    }

    /// A node is about to join: it is there, although it has yet to ask.
    pub(crate) fn joins(&mut self, incarnation: &Incarnation, now: Instant) {
        if self.leads.is_some() {
            self.nodes.entry(incarnation.clone()).or_insert(Seen { at: now, applied: 0, held: false });
        }
    }

    /// Whether a node may not serve any more: this node has led for at least one lease, and did not hear of it for one.
    pub(crate) fn expired(&self, now: Instant, incarnation: &Incarnation) -> bool {
        let Some((_, since)) = self.leads else { return false };
        let heard = self.nodes.get(incarnation).map_or(since, |seen| seen.at.max(since));
        now.saturating_duration_since(heard) >= self.waited_for()
    }

    /// How long nobody takes over from a node that is silent.
    fn waited_for(&self) -> Duration {
        #[cfg(feature = "simulation")]
        if simulation::is_broken(simulation::Rule::TakeOverWaitsForTheLease) {
            return self.lease / 4;
        }
        self.lease
    }

    /// Whether a node asked within the last lease.
    pub(crate) fn renewing(&self, now: Instant, incarnation: &Incarnation) -> bool {
        self.nodes.get(incarnation).is_some_and(|seen| now.saturating_duration_since(seen.at) < self.waited_for())
    }

    /// Begins to take over from a node whose lease has ended: it gets no grant until [`Leases::release`]. Returns the
    /// term in which that is true, which the proposals have to be bound to; none when the lease has not ended.
    pub(crate) fn hold(&mut self, now: Instant, incarnation: &Incarnation) -> Option<u64> {
        let (term, since) = self.leads?;
        if !self.expired(now, incarnation) {
            return None;
        }
        let seen = self.nodes.entry(incarnation.clone()).or_insert(Seen { at: since, applied: 0, held: false });
        seen.held = true;
        Some(term)
    }

    /// The take-over is done, and applied here, or was given up.
    pub(crate) fn release(&mut self, incarnation: &Incarnation) {
        // It was silent before, and still counts as that until it asks again.
        if let Some(seen) = self.nodes.get_mut(incarnation) {
            seen.held = false;
        }
    }

    /// The index that a node said last that it has applied; 0 where it said nothing to this leader.
    pub(crate) fn applied(&self, incarnation: &Incarnation) -> u64 {
        self.nodes.get(incarnation).map_or(0, |seen| seen.applied)
    }

    /// Makes the lease at least so long: nodes may have been told different ones.
    pub(crate) fn at_least(&mut self, lease: Duration) {
        self.lease = self.lease.max(lease);
    }

    /// Which nodes asked within the last lease.
    pub(crate) fn live(&self, now: Instant) -> impl Iterator<Item = &Incarnation> {
        self.nodes.keys().filter(move |incarnation| self.renewing(now, incarnation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    const LEASE: Duration = Duration::from_secs(8);
    const SECOND: Duration = Duration::from_secs(1);

    fn incarnation(node: &str, generation: u64) -> Incarnation {
        Incarnation { node: NodeId::parse(node).unwrap(), generation }
    }

    #[test]
    fn nobody_expires_before_the_leader_has_led_for_a_lease() {
        let (now, a) = (Instant::now(), incarnation("a", 1));
        let mut leases = Leases::new(LEASE);
        assert!(!leases.expired(now + LEASE * 9, &a), "it does not lead");
        leases.lead(3, now);
        assert!(!leases.expired(now + LEASE - SECOND, &a));
        assert!(leases.expired(now + LEASE, &a));
        leases.lead(4, now + LEASE);
        assert!(!leases.expired(now + LEASE, &a), "another term begins anew");
        leases.lead(4, now + LEASE * 2);
        assert!(leases.expired(now + LEASE * 2, &a), "to hear of the same term again changes nothing");
    }

    #[test]
    fn a_node_expires_one_lease_after_it_last_asked() {
        let (now, a) = (Instant::now(), incarnation("a", 1));
        let mut leases = Leases::new(LEASE);
        assert!(!leases.renew(&a, now, 1), "nobody to grant");
        leases.lead(3, now);
        assert!(leases.renew(&a, now + SECOND * 20, 1));
        assert!(leases.renew(&a, now + SECOND * 10, 1), "answers overtake each other");
        assert!(!leases.expired(now + SECOND * 27, &a));
        assert!(leases.renewing(now + SECOND * 27, &a));
        assert!(leases.expired(now + SECOND * 28, &a));
        assert!(!leases.renewing(now + SECOND * 28, &a));
        assert!(leases.expired(now + SECOND * 20, &incarnation("a", 2)), "a process that never asked");
    }

    #[test]
    fn a_held_node_gets_no_grant() {
        let (now, a) = (Instant::now(), incarnation("a", 1));
        let mut leases = Leases::new(LEASE);
        leases.lead(3, now);
        assert!(leases.renew(&a, now, 1));
        assert_eq!(leases.hold(now + SECOND, &a), None, "it may still serve");
        let later = now + LEASE;
        assert_eq!(leases.hold(later, &a), Some(3));
        assert!(!leases.renew(&a, later, 1));
        assert!(leases.expired(later, &a), "asking does not help");
        leases.release(&a);
        assert!(leases.renew(&a, later, 1));
        assert!(!leases.expired(later, &a));
        let unheard = incarnation("b", 1);
        assert_eq!(leases.hold(later, &unheard), Some(3));
        assert!(!leases.renew(&unheard, later, 1));
    }

    #[test]
    fn what_was_applied_is_what_was_said_to_this_leader() {
        let (now, a) = (Instant::now(), incarnation("a", 1));
        let mut leases = Leases::new(LEASE);
        leases.lead(3, now);
        assert_eq!(leases.applied(&a), 0);
        assert!(leases.renew(&a, now, 5));
        assert!(leases.renew(&a, now, 4), "answers overtake each other");
        assert_eq!(leases.applied(&a), 5);
        leases.lead(4, now);
        assert_eq!(leases.applied(&a), 0, "another term begins anew");
    }

    #[test]
    fn the_longest_lease_is_waited_for() {
        let (now, a) = (Instant::now(), incarnation("a", 1));
        let mut leases = Leases::new(LEASE);
        leases.lead(3, now);
        leases.at_least(LEASE * 3);
        leases.at_least(SECOND);
        assert!(!leases.expired(now + LEASE * 3 - SECOND, &a));
        assert!(leases.expired(now + LEASE * 3, &a));
    }
}

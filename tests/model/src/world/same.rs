//! Which states are the same: up to the size of numbers, and the names of hosts and calls.

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;

use super::{
    Call, Content, Epoch, HOSTS, Host, HostId, Incarnation, Instance, Lease, Move, Phase, Proposal, Record, Seal,
    Stage, Version, World,
};

impl World {
    /// Replaces versions and epochs by their ranks.
    pub(crate) fn rank(&mut self) {
        let mut versions = [0_u8; 256 / 8];
        let mut epochs = [0_u8; 256 / 8];
        self.each_version(&mut |version| versions[usize::from(*version) / 8] |= 1 << (*version % 8));
        self.each_epoch(&mut |epoch| epochs[usize::from(*epoch) / 8] |= 1 << (*epoch % 8));
        let rank = |used: &[u8; 32]| {
            let mut next = 0;
            let mut ranks = [0_u8; 64];
            for number in 1..64_usize {
                if used[number / 8] & (1 << (number % 8)) != 0 {
                    next += 1;
                    ranks[number] = next;
                }
            }
            ranks
        };
        let (versions, epochs) = (rank(&versions), rank(&epochs));
        self.each_version(&mut |version| *version = versions[usize::from(*version)]);
        self.each_epoch(&mut |epoch| *epoch = epochs[usize::from(*epoch)]);
    }

    fn each_version(&mut self, visit: &mut impl FnMut(&mut Version)) {
        let mut record = |record: &mut Record| {
            visit(&mut record.version);
            record.moving.iter_mut().for_each(|moving| visit(&mut moving.id));
        };
        record(&mut self.log);
        self.hosts.iter_mut().for_each(|host| record(&mut host.view));
        for host in &mut self.hosts {
            if let Lease::Granted { must, .. } = &mut host.lease {
                visit(must);
            }
            if let Some(instance) = &mut host.instance {
                visit(&mut instance.of);
                if let Phase::Sealed { at, .. } = &mut instance.phase {
                    visit(at);
                }
            }
        }
        self.messages.iter_mut().flatten().for_each(|message| visit(&mut message.of));
        for proposal in self.proposals.iter_mut().flatten() {
            match proposal {
                Proposal::Handover { expect, .. } | Proposal::Assign { expect, .. } => visit(expect),
            }
        }
    }

    fn each_epoch(&mut self, visit: &mut impl FnMut(&mut Epoch)) {
        visit(&mut self.log.epoch);
        visit(&mut self.log.fence);
        for host in &mut self.hosts {
            visit(&mut host.view.epoch);
            visit(&mut host.view.fence);
            if let Some(instance) = &mut host.instance {
                visit(&mut instance.epoch);
                visit(&mut instance.fence);
            }
        }
        for call in &mut self.calls {
            visit(&mut call.epoch);
            visit(&mut call.fence);
        }
        for proposal in self.proposals.iter_mut().flatten() {
            if let Proposal::Handover { epoch, .. } = proposal {
                visit(epoch);
            }
        }
        visit(&mut self.store.fence);
        visit(&mut self.caller.known);
        visit(&mut self.caller.seen);
    }

    /// The same state for all purposes, whichever way hosts and calls are numbered.
    #[must_use]
    pub fn canonical(&self) -> Self {
        const ORDERS: [[HostId; HOSTS]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        // Hosts are ordered by what can be told of each without the number of another; only where that leaves a choice,
        // the least of the possible states is searched for.
        let keys: [u64; HOSTS] = std::array::from_fn(|host| self.key(host as HostId));
        let call = |number: usize| {
            let Call { stage, epoch, fence, excused, retried, applied } = self.calls[number];
            let stage = match stage {
                Stage::Inside { applied, term, .. } => Stage::Inside { host: 0, applied, term },
                other => other,
            };
            (stage, epoch, fence, excused, retried, applied)
        };
        let (swaps, both) = (call(0) > call(1), call(0) == call(1));
        let mut best: Option<Self> = None;
        for order in ORDERS {
            let mut sorted = [0; HOSTS];
            keys.iter().zip(order).for_each(|(key, place)| sorted[usize::from(place)] = *key);
            if !sorted.is_sorted() {
                continue;
            }
            for swap in [swaps, !swaps].into_iter().take(if both { 2 } else { 1 }) {
                let other = self.renumbered(order, swap);
                if best.as_ref().is_none_or(|best| other < *best) {
                    best = Some(other);
                }
            }
        }
        best.unwrap_or_else(|| self.clone())
    }

    /// What can be told of a host without the number of another.
    fn key(&self, id: HostId) -> u64 {
        let is = |incarnation: Option<Incarnation>| incarnation.is_some_and(|incarnation| incarnation.host == id);
        let roles = |record: &Record| {
            let (to, from) = (record.moving.map(|moving| moving.to), record.seal.map(|seal| seal.from));
            [is(record.owner), is(to), is(from)]
        };
        let host = &self.hosts[usize::from(id)];
        let instance = host.instance.map(|instance| Instance { content: 0, ..instance });
        let view = (host.view.version, host.view.epoch, host.view.fence, host.view.active);
        let own = (host.generation, host.up, host.lease, host.heard, view, instance);
        let inside = self.calls.iter().filter(|call| matches!(call.stage, Stage::Inside { host, .. } if host == id));
        let ends = self
            .messages
            .iter()
            .flatten()
            .map(|message| u8::from(is(Some(message.from))) + 8 * u8::from(is(Some(message.to))));
        let others = (inside.count(), ends.sum::<u8>());
        FixedState::default().hash_one((own, roles(&self.log), roles(&host.view), others))
    }

    /// Host `h` becomes `order[h]`; the two calls change places if `swap`.
    fn renumbered(&self, order: [HostId; HOSTS], swap: bool) -> Self {
        let content = |content: Content| if swap { (content & 1) << 1 | content >> 1 } else { content };
        let incarnation = |old: Incarnation| Incarnation { host: order[usize::from(old.host)], ..old };
        let record = |old: &Record| Record {
            owner: old.owner.map(incarnation),
            moving: old.moving.map(|moving| Move { to: incarnation(moving.to), ..moving }),
            seal: old.seal.map(|seal| Seal { digest: content(seal.digest), from: incarnation(seal.from) }),
            ..*old
        };
        let mut new = self.clone();
        new.log = record(&self.log);
        for (old, place) in self.hosts.iter().zip(order) {
            let host = &mut new.hosts[usize::from(place)];
            *host = Host { view: record(&old.view), ..*old };
            if let Some(instance) = &mut host.instance {
                instance.content = content(instance.content);
            }
        }
        for message in new.messages.iter_mut().flatten() {
            message.from = incarnation(message.from);
            message.to = incarnation(message.to);
            message.content = content(message.content);
        }
        for proposal in new.proposals.iter_mut().flatten() {
            match proposal {
                Proposal::Handover { digest, from, .. } => {
                    *digest = content(*digest);
                    *from = incarnation(*from);
                }
                Proposal::Assign { to, .. } => *to = incarnation(*to),
            }
        }
        new.messages.sort_unstable();
        new.proposals.sort_unstable();
        if swap {
            new.calls.swap(0, 1);
        }
        for call in &mut new.calls {
            if let Stage::Inside { host, .. } = &mut call.stage {
                *host = order[usize::from(*host)];
            }
        }
        new.store.content = content(self.store.content);
        new
    }
}

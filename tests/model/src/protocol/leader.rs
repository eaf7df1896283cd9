//! The leader, and the log: moves begin and end, owners are taken over from, proposals commit.

use super::{Class, Next, Protocol, changed, index};
use crate::{
    rule::Rule,
    step::Step,
    world::{Broken, Budget, HOSTS, HostId, Incarnation, Lease, Move, Proposal, Record, Seal, Stage, World, put},
};

impl Protocol {
    pub(super) fn leader(&self, world: &World, next: &mut Next) {
        let log = &world.log;
        let Some(owner) = log.owner else { return };
        let version = log.version + 1;
        let mut go = |step, change: &dyn Fn(&mut World)| next.push(changed(world, step, change));
        match &log.moving {
            Some(_) => go(Step::AbortMove, &|new| new.log = Record { version, moving: None, ..*log }),
            None => {
                for to in may_begin(world, owner) {
                    go(Step::BeginMove { to }, &|new| {
                        let to = world.incarnation(to);
                        new.log = Record { version, moving: Some(Move { id: version, to, prepared: false }), ..*log };
                        if new.budget.moves != Budget::UNLIMITED {
                            new.budget.moves -= 1;
                        }
                    });
                }
            }
        }
        let under_way = world.proposals.iter().flatten();
        let taking_over = under_way.clone().any(|proposal| matches!(proposal, Proposal::Assign { leads: true, .. }));
        let gone = owner.generation < world.hosts[index(owner.host)].generation;
        for to in (0..HOSTS as HostId).filter(|to| world.hosts[index(*to)].up) {
            if gone {
                go(Step::AssignOfGone { to }, &|new| self.assign(new, world.incarnation(to)));
            } else if to != owner.host && !taking_over && self.is_silent(world, owner.host) {
                go(Step::TakeOver { to }, &|new| {
                    let hold = self.has(Rule::HoldWhileTakingOver);
                    let to = world.incarnation(to);
                    put(&mut new.proposals, Proposal::Assign { expect: log.version, to, leads: true, hold });
                });
            }
        }
        if !self.has(Rule::HoldUntilDecided)
            && under_way.clone().any(|proposal| matches!(proposal, Proposal::Assign { hold: true, .. }))
        {
            go(Step::GiveUpTakeOver, &|new| {
                for proposal in new.proposals.iter_mut().flatten() {
                    if let Proposal::Assign { hold, .. } = proposal {
                        *hold = false;
                    }
                }
            });
        }
        if world.budget.elections > 0 {
            go(Step::Elect, &|new| {
                new.budget.elections -= 1;
                for proposal in new.proposals.iter_mut().flatten() {
                    if let Proposal::Assign { leads, hold, .. } = proposal {
                        (*leads, *hold) = (false, false);
                    }
                }
                new.hosts.iter_mut().for_each(|host| host.heard = false);
            });
        }
    }

    /// Whether the leader may believe that the owner serves no more. A lease that has ended is one that the leader may
    /// have waited for; that its own clock tells it so at last is not a step of its own.
    pub(super) fn is_silent(&self, world: &World, owner: HostId) -> bool {
        let host = &world.hosts[index(owner)];
        let waited = match host.lease {
            Lease::None | Lease::Suspended => true,
            Lease::Held { old } => old,
            Lease::Granted { old, .. } => old || !self.has(Rule::CountFromAsking),
        };
        waited || !self.has(Rule::WaitForLease) || (!host.heard && !self.has(Rule::NewLeaderWaits))
    }

    pub(super) fn is_held(&self, world: &World, host: HostId) -> bool {
        let owner = world.log.owner.is_some_and(|owner| owner.host == host);
        let held = |proposal: &Proposal| matches!(proposal, Proposal::Assign { hold: true, leads: true, .. });
        owner && world.proposals.iter().flatten().any(held)
    }

    /// Applies an Assign.
    pub(super) fn assign(&self, world: &mut World, to: Incarnation) {
        let log = world.log;
        // Whoever holds what was sealed, and runs, can go on with it: then nothing may be lost.
        let faithful = !log.active && log.seal.is_some_and(|seal| seal.from == to) && world.runs(to);
        if self.class == Class::Ephemeral && !faithful {
            for call in &mut world.calls {
                call.excused |= !matches!(call.stage, Stage::New | Stage::Over);
            }
        }
        let seal = match log.seal {
            // Its owner may have served: what was sealed is out of date.
            _ if log.active => None,
            Some(seal) if seal.from == to && self.has(Rule::SealKeptForHolder) => Some(seal),
            Some(seal) if seal.from != to && !self.has(Rule::SealOnlyForHolder) => Some(seal),
            _ => None,
        };
        let epoch = if self.has(Rule::EpochPerOwner) { log.epoch + 1 } else { log.epoch };
        if epoch == log.epoch && Some(to) != log.owner {
            world.broken = Some(Broken::TwoOwnersOfAnEpoch);
        }
        let version = log.version + 1;
        world.log = Record { version, epoch, fence: epoch, owner: Some(to), active: false, moving: None, seal };
    }

    /// Proposals that were under way are decided.
    pub(super) fn commits(&self, world: &World, next: &mut Next) {
        let log = &world.log;
        for (slot, proposal) in world.proposals.iter().enumerate() {
            match *proposal {
                Some(Proposal::Assign { expect, to, leads, .. }) => {
                    let current = expect == log.version || !self.has(Rule::CasOnVersion);
                    let in_force = world.incarnation(to.host) == to && log.owner != Some(to);
                    if current && in_force && (leads || !self.has(Rule::TakeOverInTerm)) {
                        next.push(changed(world, Step::CommitAssign { to: to.host }, &|new| {
                            new.proposals[slot] = None;
                            self.assign(new, to);
                        }));
                    }
                }
                Some(Proposal::Handover { expect, epoch, digest, from }) => {
                    let current = expect == log.version || (epoch == log.epoch && !self.has(Rule::CasOnVersion));
                    let Some(moving) = log.moving.filter(|moving| moving.prepared) else { continue };
                    if current && log.owner == Some(from) && world.incarnation(moving.to.host) == moving.to {
                        // A target that has to do something first, and one that does not.
                        let readiness: &[bool] = if self.carried() { &[false, true] } else { &[false] };
                        for &ready in readiness {
                            next.push(changed(world, Step::CommitHandover { ready }, &|new| {
                                new.proposals[slot] = None;
                                new.log = Record {
                                    version: log.version + 1,
                                    epoch: log.epoch + 1,
                                    owner: Some(moving.to),
                                    active: ready,
                                    moving: None,
                                    seal: self.carried().then_some(Seal { digest, from }),
                                    ..*log
                                };
                            }));
                        }
                    }
                }
                None => {}
            }
        }
    }
}

/// To whom a move may begin.
fn may_begin(world: &World, owner: Incarnation) -> impl Iterator<Item = HostId> {
    let may = world.budget.moves > 0 && world.log.active && world.log.seal.is_none();
    let up = world.hosts.map(|host| host.up);
    (0..HOSTS as HostId).filter(move |to| may && up[index(*to)] && *to != owner.host)
}

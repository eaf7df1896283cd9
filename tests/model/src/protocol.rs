//! The protocol: what each of those who take part may do in a state of the whole.

use crate::{
    rule::{Rule, Rules},
    step::Step,
    world::{Broken, Budget, Call, HOSTS, HostId, Lease, Phase, Stage, World},
};

mod calls;
mod core;
mod leader;
mod lease;
mod tidy;
mod told;

/// What a module does with its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It has none.
    None,
    /// In memory; a move hands it over, a crash loses it.
    Ephemeral,
    /// In a database of its own, which is fenced by the epoch.
    Durable,
}

/// The protocol for modules of one class, with some rules in force, in a world where so much may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// Of the module.
    pub class: Class,
    /// In force.
    pub rules: Rules,
    /// What may go wrong. Where clocks may stand still, no lease can be trusted, and only what fences promise is checked.
    pub budget: Budget,
    /// How many calls are made, by one caller.
    pub calls: usize,
    /// What a host has and will never use is dropped, where the rules say that it will not.
    pub reduce: bool,
}

/// Where steps go.
type Next = Vec<(Step, World)>;

fn index(host: HostId) -> usize {
    usize::from(host)
}

impl Protocol {
    /// Where it begins.
    pub fn initial(&self) -> World {
        let mut world = World::initial(self.budget, self.calls);
        world.calls.iter_mut().skip(self.calls).for_each(|call| call.retried = true);
        self.tidy(&mut world);
        world.rank();
        world
    }

    /// What may happen next, with numbers that grow, as people expect; there is no end of states then.
    pub fn steps(&self, world: &World) -> Next {
        let mut next = Vec::with_capacity(24);
        self.leader(world, &mut next);
        for host in 0..HOSTS as HostId {
            self.lease(world, host, &mut next);
            if world.hosts[index(host)].up {
                self.core(world, host, &mut next);
            }
        }
        self.commits(world, &mut next);
        for call in 0..world.calls.len() {
            self.call(world, call, &mut next);
        }
        for (_, world) in &mut next {
            if world.broken.is_none() && self.trusts_clocks() {
                let open = (0..HOSTS as HostId).filter(|host| self.admits(world, *host));
                if open.count() > 1 {
                    world.broken = Some(Broken::TwoServe);
                }
            }
            if world.broken.is_none() && self.has_lost_a_call(world) {
                world.broken = Some(Broken::AnsweredCallLost);
            }
            self.tidy(world);
        }
        next
    }

    /// Whether the owner in the log serves.
    pub fn is_served(&self, world: &World) -> bool {
        (0..HOSTS as HostId).any(|id| {
            let host = &world.hosts[index(id)];
            let epoch = host.instance.map(|instance| instance.epoch);
            self.admits(world, id)
                && matches!(host.lease, Lease::Held { .. })
                && world.log.owner == Some(world.incarnation(id))
                && epoch == Some(world.log.epoch)
        })
    }

    fn has(&self, rule: Rule) -> bool {
        self.rules.has(rule)
    }

    fn reduces(&self) -> bool {
        self.reduce && self.rules == Rules::ALL
    }

    fn carried(&self) -> bool {
        self.class != Class::None
    }

    fn trusts_clocks(&self) -> bool {
        self.budget.suspensions == 0
    }

    /// Whether a call that comes now would be let in.
    fn admits(&self, world: &World, id: HostId) -> bool {
        let host = &world.hosts[index(id)];
        let Some(instance) = host.instance.filter(|instance| instance.phase == Phase::Serving) else { return false };
        let term = instance.term || !self.has(Rule::TermAtAdmission);
        host.up && (!self.has(Rule::LeaseAtAdmission) || (believes(host.lease) && term))
    }

    fn has_lost_a_call(&self, world: &World) -> bool {
        let mut answered = world.calls.iter().enumerate().filter(|(_, call)| call.stage == Stage::Answered);
        match self.class {
            Class::None => false,
            Class::Durable => answered.any(|(call, _)| world.store.content & (1 << call) == 0),
            Class::Ephemeral if !self.trusts_clocks() => false,
            Class::Ephemeral => answered.filter(|(_, call)| !call.excused).any(|(call, _)| {
                (0..HOSTS as HostId).filter(|host| self.admits(world, *host)).any(|host| {
                    let content = world.hosts[index(host)].instance.map_or(0, |instance| instance.content);
                    content & (1 << call) == 0
                })
            }),
        }
    }
}

fn changed(world: &World, step: Step, change: &dyn Fn(&mut World)) -> (Step, World) {
    let mut new = world.clone();
    change(&mut new);
    (step, new)
}

/// Whether a host takes its lease to hold.
fn believes(lease: Lease) -> bool {
    matches!(lease, Lease::Held { .. } | Lease::Suspended)
}

fn over(call: &Call) -> bool {
    matches!(call.stage, Stage::Answered | Stage::Over)
}

/// Its calls are cut, or finish as if it were still there.
fn end_instance(world: &mut World, id: HostId, cut: bool) {
    world.hosts[index(id)].instance = None;
    for call in &mut world.calls {
        if cut && matches!(call.stage, Stage::Inside { host, .. } if host == id) {
            call.stage = Stage::Over;
        }
    }
}

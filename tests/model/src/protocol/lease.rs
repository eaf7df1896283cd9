//! A host's lease, what it knows of the log, and its process.

use super::{Next, Protocol, changed, end_instance, index};
use crate::{
    rule::Rule,
    step::Step,
    world::{HostId, Lease, Stage, World},
};

impl Protocol {
    pub(super) fn lease(&self, world: &World, id: HostId, next: &mut Next) {
        let host = &world.hosts[index(id)];
        let mut go = |step, change: &dyn Fn(&mut World)| next.push(changed(world, step, change));
        if !host.up {
            return go(Step::Restart(id), &|new| {
                let host = &mut new.hosts[index(id)];
                (host.up, host.view) = (true, new.log);
                host.generation += 1;
            });
        }
        let must_apply = |version| host.view.version >= version || !self.has(Rule::MustApply);
        let held = self.is_held(world, id);
        match host.lease {
            Lease::None => {
                if !held {
                    go(Step::Renew(id), &|new| {
                        let must = new.log.version;
                        let host = &mut new.hosts[index(id)];
                        (host.lease, host.heard) = (Lease::Granted { must, old: false }, true);
                    });
                }
                if !self.has(Rule::GrantConfirmed) && world.budget.elections < self.budget.elections {
                    go(Step::RenewByOldLeader(id), &|new| {
                        new.hosts[index(id)].lease = Lease::Granted { must: 0, old: true };
                    });
                }
            }
            Lease::Granted { must, old } => {
                if must_apply(must) {
                    go(Step::TakeLease(id), &|new| new.hosts[index(id)].lease = Lease::Held { old });
                }
                if world.budget.lease_ends > 0 && self.has(Rule::CountFromAsking) {
                    go(Step::LeaseEnds(id), &|new| {
                        new.budget.lease_ends -= 1;
                        new.hosts[index(id)].lease = Lease::None;
                    });
                }
            }
            Lease::Held { .. } => {
                if world.budget.lease_ends > 0 {
                    go(Step::LeaseEnds(id), &|new| {
                        new.budget.lease_ends -= 1;
                        lose_lease(new, id);
                    });
                }
                if world.budget.suspensions > 0 {
                    go(Step::Suspend(id), &|new| {
                        new.budget.suspensions -= 1;
                        new.hosts[index(id)].lease = Lease::Suspended;
                    });
                }
                if !host.heard {
                    go(Step::Renew(id), &|new| new.hosts[index(id)].heard = true);
                }
            }
            Lease::Suspended => {
                go(Step::Notice(id), &|new| lose_lease(new, id));
                if !held {
                    go(Step::Resume(id), &|new| {
                        let host = &mut new.hosts[index(id)];
                        (host.view, host.lease, host.heard) = (new.log, Lease::Held { old: false }, true);
                    });
                }
            }
        }
        if host.view.version != world.log.version {
            go(Step::Learn(id), &|new| {
                let (me, log) = (new.incarnation(id), new.log);
                let host = &mut new.hosts[index(id)];
                host.view = log;
                if let Some(instance) = &mut host.instance
                    && !self.has(Rule::KeptWhenSkipped)
                    && self.is_sealed_for(&log, me, instance)
                {
                    instance.given |= log.owner != Some(me);
                }
            });
        }
        if world.budget.crashes > 0 {
            go(Step::Crash(id), &|new| {
                new.budget.crashes -= 1;
                new.hosts[index(id)].up = false;
                lose_lease(new, id);
                end_instance(new, id, true);
            });
        }
    }
}

/// Another lease will be of another term.
fn lose_lease(world: &mut World, id: HostId) {
    let host = &mut world.hosts[index(id)];
    host.lease = Lease::None;
    if let Some(instance) = &mut host.instance {
        instance.term = false;
    }
    for call in &mut world.calls {
        if let Stage::Inside { host, term, .. } = &mut call.stage
            && *host == id
        {
            *term = false;
        }
    }
}

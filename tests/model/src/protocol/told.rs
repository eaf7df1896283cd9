//! The protocol as a model to look at, and its states in words.

use std::fmt::Write as _;

use super::Protocol;
use crate::{
    check::Model,
    step::{Line, Step, content, name},
    world::{Broken, HostId, Lease, Phase, Proposal, Stage, World},
};

impl Model for Protocol {
    type World = World;
    type Step = Step;

    fn initial(&self) -> World {
        self.initial()
    }

    fn steps(&self, world: &World) -> Vec<(Step, World)> {
        self.steps(world)
    }

    fn canonical(&self, mut world: World) -> World {
        world.rank();
        world.canonical()
    }

    fn is_fault(step: &Step) -> bool {
        step.is_fault()
    }

    fn broken(world: &World) -> Option<Broken> {
        world.broken
    }

    fn is_well(&self, world: &World) -> bool {
        self.is_served(world)
    }

    fn describe(world: &World) -> Vec<String> {
        describe(world)
    }
}

fn describe(world: &World) -> Vec<String> {
    let mut lines = vec![format!("log   {}", Line(&world.log))];
    for (id, host) in world.hosts.iter().enumerate() {
        let mut line = format!("{}{}    ", name(id as HostId), host.generation);
        line.push_str(match (host.up, host.lease) {
            (false, _) => "down",
            (_, Lease::None) => "no lease",
            (_, Lease::Granted { .. }) => "lease granted",
            (_, Lease::Held { .. }) => "lease",
            (_, Lease::Suspended) => "lease ended, clock stopped",
        });
        if let Some(instance) = host.instance {
            let phase = match instance.phase {
                Phase::Ready => "ready",
                Phase::Opening => "opening",
                Phase::Serving if instance.term => "serving",
                Phase::Serving => "serving for a lease that has ended",
                Phase::Sealing => "sealing",
                Phase::Sealed { answered: false, .. } => "sealed",
                Phase::Sealed { answered: true, .. } => "sealed, target has it",
            };
            let _ = write!(line, ", {phase}, epoch {}, content {}", instance.epoch, content(instance.content));
        }
        if host.up && host.view.version != world.log.version {
            match host.view.owner.or(host.view.moving.map(|moving| moving.to)) {
                Some(_) => drop(write!(line, ", knows an older record: {}", Line(&host.view))),
                None => line.push_str(", knows that it is not the owner"),
            }
        }
        lines.push(line);
    }
    for (number, call) in world.calls.iter().enumerate() {
        let number = number + 1;
        match call.stage {
            Stage::New => lines.push(format!("call {number} not begun")),
            Stage::Inside { host, applied, term } => {
                let applied = if applied { "has had its effect" } else { "has had no effect" };
                let lease = if term { "" } else { ", the lease has ended since" };
                lines.push(format!("call {number} inside {} at epoch {}, {applied}{lease}", name(host), call.epoch));
            }
            Stage::Reply => lines.push(format!("call {number} is answered; fence {}", call.fence)),
            Stage::Answered => lines.push(format!("call {number} its caller has the answer")),
            Stage::Over => {}
        }
    }
    let under_way = world.proposals.iter().flatten().map(|proposal| match proposal {
        Proposal::Handover { digest, from, .. } => {
            format!("under way: Handover by {}, seal {}", name(from.host), content(*digest))
        }
        Proposal::Assign { to, hold, .. } => {
            let held = if *hold { "the owner gets no lease" } else { "the owner may get a lease" };
            format!("under way: Assign to {}; {held}", name(to.host))
        }
    });
    lines.extend(under_way);
    if world.store.fence > 0 {
        lines.push(format!("store fence {}, content {}", world.store.fence, content(world.store.content)));
    }
    if let Some(broken) = world.broken {
        lines.push(format!("{broken}"));
    }
    lines
}

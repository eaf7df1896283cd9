//! Breadth-first search over all states of a protocol.

use std::fmt::Write as _;

use foldhash::fast::FixedState;
use indexmap::IndexSet;

use crate::{
    protocol::Protocol,
    step::{Line, Step, content, name},
    world::{Broken, HostId, Lease, Phase, Proposal, Stage, World},
};

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// How many states there are, or were looked at before something was found.
    pub states: usize,
    /// How many steps the furthest of them is away.
    pub depth: usize,
    /// What is wrong, if anything is.
    pub wrong: Option<Wrong>,
    /// The states on the way to what is wrong.
    path: Vec<World>,
}

/// What is wrong with a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Something that must not happen can.
    Broken(Broken),
    /// From so many states no owner will ever serve again, unless a fault helps.
    Dead(usize),
    /// There are more states than were allowed for.
    TooMany,
}

/// Looks at every state that can be reached, and stops at the first that is broken. Where none is, looks for those from
/// which nobody can serve again.
pub fn explore(protocol: &Protocol, most: usize) -> Found {
    let mut states: IndexSet<World, FixedState> = IndexSet::with_hasher(FixedState::default());
    let mut parents: Vec<u32> = vec![0];
    let mut depths: Vec<u16> = vec![0];
    // Edges without bad luck, as (from, to).
    let mut edges: Vec<(u32, u32)> = Vec::new();
    states.insert(protocol.initial().canonical());
    let mut at = 0;
    while at < states.len() {
        let next = protocol.next(&states[at]);
        for (step, world) in next {
            let (index, new) = states.insert_full(world.canonical());
            if new {
                parents.push(at as u32);
                depths.push(depths[at] + 1);
                if let Some(broken) = states[index].broken {
                    return found(&states, &parents, &depths, Some((Wrong::Broken(broken), index)));
                }
            }
            if !step.is_fault() {
                edges.push((at as u32, index as u32));
            }
        }
        if states.len() > most {
            return found(&states, &parents, &depths, Some((Wrong::TooMany, at)));
        }
        at += 1;
    }
    let alive = can_reach(&states, &edges, |world| protocol.is_served(world));
    let dead = alive.iter().filter(|alive| !**alive).count();
    let first = alive.iter().position(|alive| !*alive);
    found(&states, &parents, &depths, first.map(|first| (Wrong::Dead(dead), first)))
}

/// From which states one can be reached that is good.
fn can_reach(states: &IndexSet<World, FixedState>, edges: &[(u32, u32)], good: impl Fn(&World) -> bool) -> Vec<bool> {
    // The edges by where they lead to, one after the other; `starts[n]` is where those to `n` begin.
    let mut starts = vec![0_u32; states.len() + 2];
    edges.iter().for_each(|(_, to)| starts[*to as usize + 2] += 1);
    (1..starts.len()).for_each(|at| starts[at] += starts[at - 1]);
    let mut sources = vec![0_u32; edges.len()];
    for (from, to) in edges {
        let place = &mut starts[*to as usize + 1];
        sources[*place as usize] = *from;
        *place += 1;
    }
    let mut reaches: Vec<bool> = states.iter().map(good).collect();
    let mut next: Vec<usize> = (0..states.len()).filter(|at| reaches[*at]).collect();
    while let Some(to) = next.pop() {
        for from in &sources[starts[to] as usize..starts[to + 1] as usize] {
            if !std::mem::replace(&mut reaches[*from as usize], true) {
                next.push(*from as usize);
            }
        }
    }
    reaches
}

fn found(
    states: &IndexSet<World, FixedState>,
    parents: &[u32],
    depths: &[u16],
    wrong: Option<(Wrong, usize)>,
) -> Found {
    let mut path = Vec::new();
    if let Some((_, mut at)) = wrong {
        path.push(states[at].clone());
        while at != 0 {
            at = parents[at] as usize;
            path.push(states[at].clone());
        }
        path.reverse();
    }
    let depth = depths.iter().max().map_or(0, |depth| usize::from(*depth));
    Found { states: states.len(), depth, wrong: wrong.map(|(wrong, _)| wrong), path }
}

impl Found {
    /// How many steps lead to what is wrong.
    pub fn steps(&self) -> usize {
        self.path.len().saturating_sub(1)
    }

    /// The way to what is wrong: each step, and below it what is another state since.
    pub fn trace(&self, protocol: &Protocol) -> String {
        let mut text = String::new();
        let mut world = protocol.initial();
        let mut seen = describe(&world);
        for line in &seen {
            let _ = writeln!(text, "      {line}");
        }
        for (number, canonical) in self.path.iter().enumerate().skip(1) {
            // States are kept up to the names of hosts and the size of numbers: take the step that leads to the like.
            let like = |(_, new): &(Step, World)| {
                let mut new = new.clone();
                new.rank();
                new.canonical() == *canonical
            };
            let step = protocol.steps(&world).into_iter().find(like);
            let Some((step, new)) = step else { break };
            world = new;
            let _ = writeln!(text, "{number:>4}. {step}");
            let now = describe(&world);
            for line in now.iter().filter(|line| !seen.contains(line)) {
                let _ = writeln!(text, "      {line}");
            }
            seen = now;
        }
        text
    }
}

/// The parts of a state that tell something, a line each.
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

//! Breadth-first search over all states of a model.

use std::{fmt, fmt::Write as _, hash::Hash};

use foldhash::fast::FixedState;
use indexmap::IndexSet;

use crate::world::Broken;

/// Something of which every run is looked at.
pub trait Model {
    /// A state of the whole.
    type World: fmt::Debug + Clone + Eq + Hash;
    /// What somebody does.
    type Step: fmt::Display;

    /// Where it begins.
    fn initial(&self) -> Self::World;

    /// What may happen next, with numbers that grow as people expect; there may be no end of states then.
    fn steps(&self, world: &Self::World) -> Vec<(Self::Step, Self::World)>;

    /// The one that stands for all states that differ by nothing that matters.
    fn canonical(&self, world: Self::World) -> Self::World;

    /// Whether this is bad luck, which nobody may rely on for the cluster to recover.
    fn is_fault(step: &Self::Step) -> bool;

    /// What the last step broke.
    fn broken(world: &Self::World) -> Option<Broken>;

    /// Whether all is well; from each state, one such should be within reach.
    fn is_well(&self, world: &Self::World) -> bool;

    /// The parts of a state that tell something, a line each.
    fn describe(world: &Self::World) -> Vec<String>;
}

/// What was found.
#[derive(Debug)]
pub struct Found<World> {
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
    /// From so many states nothing will ever be well again, unless a fault helps.
    Dead(usize),
    /// There are more states than were allowed for.
    TooMany,
}

/// Looks at every state that can be reached, and stops at the first that is broken. Where none is, looks for those from
/// which nothing can be well again.
pub fn explore<M: Model>(model: &M, most: usize) -> Found<M::World> {
    let mut states: IndexSet<M::World, FixedState> = IndexSet::with_hasher(FixedState::default());
    let mut parents: Vec<u32> = vec![0];
    let mut depths: Vec<u16> = vec![0];
    // Edges without bad luck, as (from, to).
    let mut edges: Vec<(u32, u32)> = Vec::new();
    states.insert(model.canonical(model.initial()));
    let mut at = 0;
    while at < states.len() {
        let next = model.steps(&states[at]);
        for (step, world) in next {
            let (index, new) = states.insert_full(model.canonical(world));
            if new {
                parents.push(at as u32);
                depths.push(depths[at] + 1);
                if let Some(broken) = M::broken(&states[index]) {
                    return found(&states, &parents, &depths, Some((Wrong::Broken(broken), index)));
                }
            }
            if !M::is_fault(&step) {
                edges.push((at as u32, index as u32));
            }
        }
        if states.len() > most {
            return found(&states, &parents, &depths, Some((Wrong::TooMany, at)));
        }
        at += 1;
    }
    let alive = can_reach(&states, &edges, |world| model.is_well(world));
    let dead = alive.iter().filter(|alive| !**alive).count();
    let first = alive.iter().position(|alive| !*alive);
    found(&states, &parents, &depths, first.map(|first| (Wrong::Dead(dead), first)))
}

/// From which states one can be reached that is good.
fn can_reach<World>(
    states: &IndexSet<World, FixedState>,
    edges: &[(u32, u32)],
    good: impl Fn(&World) -> bool,
) -> Vec<bool> {
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

fn found<World: Clone>(
    states: &IndexSet<World, FixedState>,
    parents: &[u32],
    depths: &[u16],
    wrong: Option<(Wrong, usize)>,
) -> Found<World> {
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

impl<World: Clone + Eq> Found<World> {
    /// How many steps lead to what is wrong.
    pub fn steps(&self) -> usize {
        self.path.len().saturating_sub(1)
    }

    /// The way to what is wrong: each step, and below it what is another state since.
    pub fn trace<M: Model<World = World>>(&self, model: &M) -> String {
        let mut text = String::new();
        let mut world = model.initial();
        let mut seen = M::describe(&world);
        for line in &seen {
            let _ = writeln!(text, "      {line}");
        }
        for (number, canonical) in self.path.iter().enumerate().skip(1) {
            // States are kept up to the names of hosts and the size of numbers: take the step that leads to the like.
            let step = model.steps(&world).into_iter().find(|(_, new)| model.canonical(new.clone()) == *canonical);
            let Some((step, new)) = step else { break };
            world = new;
            let _ = writeln!(text, "{number:>4}. {step}");
            let now = M::describe(&world);
            for line in now.iter().filter(|line| !seen.contains(line)) {
                let _ = writeln!(text, "      {line}");
            }
            seen = now;
        }
        text
    }
}

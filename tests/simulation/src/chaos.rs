//! What goes wrong: chosen by the seed, at random times and at each step of a move.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use rand::{RngExt as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::{
    app::MOVED,
    book,
    network::{Link, MS, Quality, Shared},
    site::{Site, Standing},
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A process ends as by SIGKILL, and is started again.
    Kill,
    /// The same, and it is started again under another address.
    NewAddress,
    /// A process ends, its data are gone, and it is started again under its name. Once in a run: two of three voters
    /// that lose their data are more than a cluster survives.
    Wipe,
    /// A machine says nothing more, and is switched on again.
    PowerCut,
    /// A process is told to stop, and is started again.
    Stop,
    /// One node is cut off from all others.
    Isolate,
    /// The nodes are cut into two groups.
    Halves,
    /// Nothing of one node reaches another; or all others.
    OneWay,
    /// Two nodes are cut off from each other, and from nobody else.
    Pair,
    /// What nodes say to each other is kept for a while, and then delivered.
    Hold,
    /// A node's links are slow and lose datagrams.
    Slow,
    /// Connections between two nodes are reset.
    Reset,
    /// A process is stopped, as by SIGSTOP, and goes on.
    Freeze,
    /// A machine is suspended: its monotonic clock stands still.
    Suspend,
    /// A machine's clocks run too fast or too slow.
    Rate,
    /// A machine's wall clock jumps.
    Wall,
    /// A machine's disk is slow.
    Disk,
    /// What a node says to all others is kept for longer than a short lease, and then delivered: its answers arrive when
    /// somebody else has taken over. Only where asked for, as it takes callers that wait for so long.
    Mute,
}

impl Fault {
    /// The usual ones.
    pub const ALL: [Self; 17] = [
        Self::Kill,
        Self::Wipe,
        Self::NewAddress,
        Self::PowerCut,
        Self::Stop,
        Self::Isolate,
        Self::Halves,
        Self::OneWay,
        Self::Pair,
        Self::Hold,
        Self::Slow,
        Self::Reset,
        Self::Freeze,
        Self::Suspend,
        Self::Rate,
        Self::Wall,
        Self::Disk,
    ];

    /// Those that hit one node, as a trap does.
    const OF_ONE: [Self; 7] =
        [Self::Kill, Self::PowerCut, Self::Isolate, Self::Freeze, Self::NewAddress, Self::Stop, Self::Reset];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// Faults that are left out unless asked for: each with the reason.
pub const NOT_YET: [(Fault, &str); 0] = [];

/// What ends a fault.
#[derive(Debug, Clone, Copy)]
enum Undo {
    Link(IpAddr, IpAddr),
    Quality(IpAddr, IpAddr),
    Rate(usize),
    Wall(usize),
    Disk(usize),
}

/// A step of a move, as the placement log shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begun,
    Prepared,
    HandedOver,
    Activated,
}

/// Whom a trap hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Source,
    Target,
    Leader,
}

/// A fault that waits for a step of a move.
#[derive(Debug)]
struct Trap {
    step: Step,
    victim: Victim,
    fault: Fault,
    module: &'static str,
    source: String,
    target: String,
    /// Of the record before the move.
    epoch: u64,
    /// When the step was seen, and how long after it the fault comes.
    seen: Option<u64>,
    delay: u64,
    given_up_at: u64,
}

/// How it goes wrong.
#[derive(Debug)]
pub struct Chaos {
    random: StdRng,
    /// The module that most of it happens to.
    pub favourite: &'static str,
    /// The mean time between faults, and between moves, in milliseconds.
    pub every_ms: f64,
    /// The same for moves.
    pub move_every_ms: f64,
    /// How long faults last at the most, in milliseconds.
    pub longest_ms: u64,
    kinds: Vec<Fault>,
    next: u64,
    next_move: u64,
    undo: BTreeMap<(u64, u64), Undo>,
    sequence: u64,
    trap: Option<Trap>,
    /// How many of each kind there were.
    pub counts: BTreeMap<String, u64>,
    /// How many faults hit a move at a step.
    pub sprung: u64,
}

impl Chaos {
    /// Of one seed: which kinds there are, and how many.
    #[must_use]
    pub fn new(mut random: StdRng, with: &[Fault]) -> Self {
        let usual = Fault::ALL.into_iter().filter(|kind| NOT_YET.iter().all(|(not, _)| not != kind));
        let all: Vec<Fault> = usual.chain(with.iter().copied()).collect();
        // A run of few kinds goes deeper into each.
        let kinds: Vec<Fault> = match random.random_range(0..3) {
            0 => all.clone(),
            _ => {
                let some: Vec<Fault> = all.iter().copied().filter(|_| random.random_bool(0.35)).collect();
                if some.is_empty() { all.clone() } else { some }
            }
        };
        let mut kinds = kinds;
        if kinds.contains(&Fault::Wall) && kinds.len() > 1 {
            // Without its data, a node goes by its clock: one that was ahead before makes it older than it was.
            let one = if random.random_bool(0.5) { Fault::Wall } else { Fault::Wipe };
            kinds.retain(|kind| *kind != one);
        }
        Self {
            every_ms: random.random_range(700.0..6000.0),
            move_every_ms: random.random_range(300.0..5000.0),
            longest_ms: random.random_range(500..14_000),
            favourite: MOVED[random.random_range(0..MOVED.len())],
            random,
            kinds,
            next: 0,
            next_move: 0,
            undo: BTreeMap::new(),
            sequence: 0,
            trap: None,
            counts: BTreeMap::new(),
            sprung: 0,
        }
    }

    fn after(&mut self, now: u64, mean_ms: f64) -> u64 {
        let share: f64 = self.random.random();
        now + (-mean_ms * (1.0 - share).ln() * MS as f64) as u64 + MS
    }

    /// One millisecond of it. Says whom to ask for a move of what where to, if it is time to.
    pub fn step(&mut self, now: u64, sites: &mut [Site], network: &Shared) -> Option<(usize, &'static str, String)> {
        self.undo_until(now, sites, network);
        self.spring(now, sites, network);
        if now >= self.next {
            if self.next > 0 {
                let owner = book::truth(self.one()).and_then(|record| record.owner);
                let owner = owner.and_then(|(owner, _)| sites.iter().position(|site| site.name == owner));
                // What happens to others is of less interest.
                let victim = match owner {
                    Some(owner) if self.random.random_bool(0.4) => owner,
                    _ => self.random.random_range(0..sites.len()),
                };
                if let Some(fault) = self.kinds.get(self.random.random_range(0..self.kinds.len().max(1))).copied() {
                    self.inject(fault, victim, now, sites, network);
                }
            }
            self.next = self.after(now, self.every_ms);
        }
        if now < self.next_move {
            return None;
        }
        self.next_move = self.after(now, self.move_every_ms);
        let module = self.one();
        let record = book::truth(module)?;
        let (source, _) = record.owner?;
        let others: Vec<&Site> = sites.iter().filter(|site| site.name != source).collect();
        let target = others.get(self.random.random_range(0..others.len()))?.name.clone();
        let asked: Vec<usize> = sites.iter().filter(|site| site.serves()).map(|site| site.index).collect();
        let asked = *asked.get(self.random.random_range(0..asked.len().max(1)))?;
        if self.trap.is_none() && self.random.random_bool(0.5) {
            let step = [Step::Begun, Step::Prepared, Step::HandedOver, Step::Activated];
            let victim = [Victim::Source, Victim::Target, Victim::Leader];
            self.trap = Some(Trap {
                step: step[self.random.random_range(0..4)],
                victim: victim[self.random.random_range(0..3)],
                fault: Fault::OF_ONE[self.random.random_range(0..Fault::OF_ONE.len())],
                module,
                source,
                target: target.clone(),
                epoch: record.epoch,
                seen: None,
                delay: self.random.random_range(0..12) * MS,
                given_up_at: now + 10_000 * MS,
            });
        }
        Some((asked, module, target))
    }

    /// A module, for something to happen to.
    fn one(&mut self) -> &'static str {
        match self.random.random_bool(0.6) {
            true => self.favourite,
            false => MOVED[self.random.random_range(0..MOVED.len())],
        }
    }

    fn spring(&mut self, now: u64, sites: &mut [Site], network: &Shared) {
        let Some(trap) = &mut self.trap else { return };
        if now >= trap.given_up_at {
            self.trap = None;
            return;
        }
        if trap.seen.is_none() {
            let Some(record) = book::truth(trap.module) else { return };
            let moving = record.moving_to.as_ref().filter(|(to, _)| *to == trap.target && record.epoch == trap.epoch);
            let given =
                record.epoch > trap.epoch && record.owner.as_ref().is_some_and(|(owner, _)| *owner == trap.target);
            let reached = match trap.step {
                Step::Begun => moving.is_some(),
                Step::Prepared => moving.is_some_and(|(_, prepared)| *prepared),
                Step::HandedOver => given,
                Step::Activated => given && record.active,
            };
            if !reached {
                return;
            }
            trap.seen = Some(now);
        }
        if trap.seen.is_none_or(|seen| now < seen + trap.delay) {
            return;
        }
        let Some(trap) = self.trap.take() else { return };
        let named = |name: &str| sites.iter().position(|site| site.name == name);
        let victim = match trap.victim {
            Victim::Source => named(&trap.source),
            Victim::Target => named(&trap.target),
            Victim::Leader => sites.iter_mut().position(|site| site.look(|seen| seen.leads()) == Some(true)),
        };
        let Some(victim) = victim else { return };
        tracing::warn!("trap: {:?} of the move to {} hits the {:?}", trap.step, trap.target, trap.victim);
        self.sprung += 1;
        self.inject(trap.fault, victim, now, sites, network);
    }

    fn lasting(&mut self, now: u64) -> u64 {
        now + self.random.random_range(50..=self.longest_ms) * MS
    }

    fn later(&mut self, at: u64, undo: Undo) {
        self.sequence += 1;
        self.undo.insert((at, self.sequence), undo);
    }

    fn link(&mut self, network: &Shared, from: IpAddr, to: IpAddr, link: Link, until: u64) {
        network.set(from, to, link);
        self.later(until, Undo::Link(from, to));
    }

    fn inject(&mut self, fault: Fault, victim: usize, now: u64, sites: &mut [Site], network: &Shared) {
        // The data of one voter of three can be lost, and of one that is alone with it, nothing is left.
        let fault = match fault {
            Fault::Wipe if !can_lose_data(sites, victim) => Fault::Kill,
            fault => fault,
        };
        let until = self.lasting(now);
        let ips: Vec<IpAddr> = sites.iter().map(Site::ip).collect();
        let me = ips[victim];
        let other = (victim + self.random.random_range(1..sites.len())) % sites.len();
        let name = sites[victim].name.clone();
        let seconds = (until - now) / MS;
        tracing::warn!("fault: {fault:?} at {name} for {seconds} ms (other: n{})", other + 1);
        network.note(&format!("{fault:?} {victim} {other} {until}"));
        *self.counts.entry(fault.name()).or_default() += 1;
        match fault {
            Fault::Kill | Fault::NewAddress | Fault::PowerCut | Fault::Wipe => {
                if fault == Fault::Wipe {
                    self.kinds.retain(|kind| *kind != Fault::Wipe);
                    sites[victim].loses_data = true;
                }
                if fault == Fault::PowerCut {
                    network.switch_off(me);
                }
                sites[victim].kill();
                sites[victim].restart_at = Some(until);
                sites[victim].moves_house |= fault == Fault::NewAddress;
            }
            // It comes back when it has ended.
            Fault::Stop => sites[victim].stop(),
            Fault::Isolate => {
                for ip in ips.iter().filter(|ip| **ip != me) {
                    self.link(network, me, *ip, Link::Cut, until);
                    self.link(network, *ip, me, Link::Cut, until);
                }
            }
            Fault::Halves => {
                let side: Vec<bool> = ips.iter().map(|_| self.random.random_bool(0.5)).collect();
                for (a, from) in ips.iter().enumerate() {
                    for (b, to) in ips.iter().enumerate() {
                        if side[a] != side[b] {
                            self.link(network, *from, *to, Link::Cut, until);
                        }
                    }
                }
            }
            Fault::OneWay => {
                if self.random.random_bool(0.5) {
                    self.link(network, me, ips[other], Link::Cut, until);
                } else {
                    let outwards = self.random.random_bool(0.5);
                    for ip in ips.iter().filter(|ip| **ip != me) {
                        let (from, to) = if outwards { (me, *ip) } else { (*ip, me) };
                        self.link(network, from, to, Link::Cut, until);
                    }
                }
            }
            Fault::Pair => {
                self.link(network, me, ips[other], Link::Cut, until);
                self.link(network, ips[other], me, Link::Cut, until);
            }
            Fault::Hold => {
                self.link(network, me, ips[other], Link::Held, until);
                if self.random.random_bool(0.5) {
                    self.link(network, ips[other], me, Link::Held, until);
                }
            }
            Fault::Mute => {
                // A link that is silent for five seconds and a half is given up.
                let until = now + self.random.random_range(3200..5400) * MS;
                for ip in ips.iter().filter(|ip| **ip != me) {
                    self.link(network, me, *ip, Link::Held, until);
                }
            }
            Fault::Slow => {
                let quality = Quality { least: 20.0, most: self.random.random_range(50.0..400.0), loss: 0.05 };
                for ip in ips.iter().filter(|ip| **ip != me) {
                    for (from, to) in [(me, *ip), (*ip, me)] {
                        network.set_quality(from, to, Some(quality));
                        self.later(until, Undo::Quality(from, to));
                    }
                }
            }
            Fault::Reset => drop(network.reset_between(me, ips[other])),
            Fault::Freeze | Fault::Suspend => {
                let standing = if fault == Fault::Freeze { Standing::Stopped } else { Standing::Suspended };
                // Often for longer than a lease.
                let until = if self.random.random_bool(0.5) { until + 8000 * MS } else { until };
                if sites[victim].standing.is_none() {
                    sites[victim].standing = Some((until, standing));
                }
            }
            Fault::Rate => {
                // A lease is safe where one clock is up to 1.6 times as fast as another.
                let rate = self.random.random_range(0.85..1.2);
                sites[victim].machine.set_rate(rate);
                self.later(until, Undo::Rate(victim));
            }
            Fault::Wall => {
                let wrong = self.random.random_range(-3600..3600);
                sites[victim].machine.set_wrong(wrong);
                self.later(until, Undo::Wall(victim));
            }
            Fault::Disk => {
                let most = Duration::from_millis(self.random.random_range(5..600));
                sites[victim].machine.set_disk(most);
                self.later(until, Undo::Disk(victim));
            }
        }
    }

    fn undo_until(&mut self, now: u64, sites: &mut [Site], network: &Shared) {
        while let Some(entry) = self.undo.first_entry() {
            if entry.key().0 > now {
                break;
            }
            undo(entry.remove(), sites, network);
        }
    }

    /// All faults end.
    pub fn end(&mut self, now: u64, sites: &mut [Site], network: &Shared) {
        self.trap = None;
        for (_, end) in std::mem::take(&mut self.undo) {
            undo(end, sites, network);
        }
        network.heal();
        for site in sites {
            if let Some((until, _)) = &mut site.standing {
                *until = now;
            }
            if let Some(at) = &mut site.restart_at {
                *at = (*at).min(now);
            }
        }
    }
}

/// Whether what a node has decided is with others too.
fn can_lose_data(sites: &mut [Site], victim: usize) -> bool {
    let name = sites[victim].name.clone();
    let mut voters =
        sites.iter_mut().filter_map(|site| site.look(|seen| seen.leads().then(|| seen.voters())).flatten());
    let voters = voters.next().unwrap_or_default();
    voters.len() >= 3 || (!voters.is_empty() && !voters.contains(&name))
}

fn undo(undo: Undo, sites: &mut [Site], network: &Shared) {
    match undo {
        Undo::Link(from, to) => network.set(from, to, Link::Up),
        Undo::Quality(from, to) => network.set_quality(from, to, None),
        Undo::Rate(index) => sites[index].machine.set_rate(1.0),
        Undo::Wall(index) => sites[index].machine.set_wrong(0),
        Undo::Disk(index) => sites[index].machine.set_disk(Duration::from_millis(1)),
    }
}

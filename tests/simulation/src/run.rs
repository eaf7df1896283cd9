//! One run, from one seed: a cluster begins; things go wrong while clients call and an operator moves the register; then
//! nothing goes wrong any more, and the cluster must get well.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use outpost::simulation::{self, Rule};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde::{Deserialize, Serialize};

use crate::{
    app::{MODULES, SERVICES},
    book::{self, Calls, Violation},
    chaos::{Chaos, Fault},
    clients::{self, Orders},
    interpose,
    machine::{Machine, Names, set_right_time},
    network::{Counts, MS, Quality, Shared},
    site::{Ended, Site},
};

/// A second, in nanoseconds.
const SECOND: u64 = 1000 * MS;
/// How long a cluster may take to begin.
const BEGIN: u64 = 60 * SECOND;
/// How long it may take to get well. (I11)
const RECOVER: u64 = 30 * SECOND;
/// How long it must be well for before it counts as that.
const WELL: u64 = 2 * SECOND;
/// How long each call must be answered then.
const CALM: u64 = 6 * SECOND;
/// How long the last calls may take.
const LAST: u64 = 8 * SECOND;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Decides everything else.
    pub seed: u64,
    /// How long things go wrong, in simulated seconds.
    pub seconds: u64,
    /// A rule to break, to see whether it is noticed.
    pub broken: Option<Rule>,
    /// Kinds of faults beside the usual ones.
    pub with: Vec<Fault>,
}

/// How it went.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// A digest of all that has arrived at anybody, in order: two runs of one seed have the same.
    pub hash: u64,
    /// How long it was, in simulated time.
    pub simulated_ms: u64,
    /// How many nodes there were.
    pub nodes: usize,
    /// How calls ended.
    pub calls: Calls,
    /// Moves that an operator asked for.
    pub moves_asked: u64,
    /// Moves that were made.
    pub moves: u64,
    /// Changes of the owner without a move.
    pub take_overs: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Faults that hit a move at a step.
    pub sprung: u64,
    /// Processes that were started.
    pub starts: u64,
    /// How long it took to get well, in simulated time.
    pub recovered_ms: u64,
    /// What the network did.
    pub network: Counts,
    /// The promise that was not kept.
    pub violation: Option<Violation>,
}

/// The first panic, of whomever.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

struct World {
    now: u64,
    network: Shared,
    names: Names,
    random: StdRng,
    sites: Vec<Site>,
    clients: Machine,
    orders: Rc<RefCell<Orders>>,
    starts: u64,
    leaders: BTreeMap<u64, usize>,
}

impl World {
    fn new(random: &mut StdRng, data: &Path) -> Self {
        let nodes = random.random_range(3..=5);
        let far = random.random_bool(0.3);
        let usual = Quality {
            least: if far { 5.0 } else { 0.1 },
            most: if far { random.random_range(10.0..60.0) } else { random.random_range(0.5..5.0) },
            loss: if random.random_bool(0.5) { 0.0 } else { random.random_range(0.0..0.02) },
        };
        let network = Shared::new(random.random(), usual);
        let names = Names::default();
        let lease = random.random_range(3..=8);
        // Often a node is held to be dead long before its lease has ended, and then the lease is all that counts.
        let (gossip_ms, phi) = match random.random_bool(0.6) {
            true => (random.random_range(100..=150), random.random_range(5..=8)),
            false => (random.random_range(100..=500), random.random_range(6..=16)),
        };
        let settings = [
            ("cluster.seeds", Site::seeds(nodes)),
            ("cluster.initial_voters", r#"["n1", "n2", "n3"]"#.to_owned()),
            ("cluster.gossip_interval", format!("{gossip_ms}ms")),
            ("cluster.gossip_phi", phi.to_string()),
            ("cluster.lease", format!("{lease}s")),
            ("cluster.move_timeout", format!("{}s", random.random_range(2..30))),
            ("cluster.drain_timeout", format!("{}s", random.random_range(1..20))),
            ("cluster.max_rebalancing", random.random_range(0..=2).to_string()),
            ("cluster.call_wait", format!("{}s", random.random_range(1..6))),
            ("checkpoints.url", simulation::CHECKPOINTS.to_owned()),
            ("node.stop_timeout", format!("{}s", random.random_range(2..20))),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value));
        let sites: Vec<Site> = (0..nodes).map(|index| Site::new(index, &network, &names, data, &settings)).collect();
        let mut clients = Machine::new("clients", Ipv4Addr::new(10, 1, 0, 1).into(), &network, &names, SECOND);
        let orders = Rc::new(RefCell::new(Orders::default()));
        clients.start(std::future::pending::<()>);
        let random = StdRng::seed_from_u64(random.random());
        Self { now: 0, network, names, random, sites, clients, orders, starts: 0, leaders: BTreeMap::new() }
    }

    fn call(&mut self, clients: usize, pause_ms: u64, favourite: &'static str) {
        for client in 0..clients {
            let board = Arc::clone(&self.clients.board);
            let orders = Rc::clone(&self.orders);
            self.clients.spawn(clients::call(format!("c{client}"), board, orders, pause_ms, favourite));
        }
    }

    /// A millisecond passes.
    fn tick(&mut self) {
        self.now += MS;
        book::at(self.now / MS);
        set_right_time(self.now);
        self.network.advance(self.now);
        for site in &mut self.sites {
            if site.start_when_due(self.now, &self.network, &self.names) {
                self.starts += 1;
                tracing::info!("{} starts", site.name);
            }
        }
        let mut order: Vec<usize> = (0..=self.sites.len()).collect();
        order.shuffle(&mut self.random);
        for index in order {
            let Some(site) = self.sites.get_mut(index) else {
                self.clients.tick();
                continue;
            };
            let Some(ended) = site.tick(self.now) else { continue };
            tracing::warn!("{} ended: {ended:?}", site.name);
            self.network.note(&format!("{} ended", site.name));
            site.restart_at = Some(self.now + SECOND);
            match ended {
                Ended::Stopped => {}
                Ended::NotStarted(why) => book::violation("a node starts", format!("{}: {why}", site.name)),
                Ended::Failed(why) => book::violation("a node goes on", format!("{}: {why}", site.name)),
            }
        }
        self.orders.borrow_mut().nodes = self.sites.iter().map(Site::ingress).collect();
        self.check();
    }

    /// What must be true at each millisecond.
    fn check(&mut self) {
        let now = self.now;
        let mut admit: [Vec<usize>; SERVICES.len()] = Default::default();
        for site in &mut self.sites {
            let stands = site.standing.is_some_and(|(until, _)| now < until);
            let Some(seen) = site.see() else { continue };
            for (admit, admits) in admit.iter_mut().zip(seen.admits) {
                if admits && !stands {
                    admit.push(site.index);
                }
            }
            let Some(term) = seen.leads_in else { continue };
            let leader = self.leaders.entry(term).or_insert(site.index);
            if *leader != site.index {
                let text = format!("n{} and n{} lead in term {term}", *leader + 1, site.index + 1);
                book::violation("one leader a term", text);
            }
        }
        book::settle();
        for (service, admit) in SERVICES.iter().zip(admit) {
            if admit.len() > 1 {
                let names: Vec<&str> = admit.iter().map(|index| self.sites[*index].name.as_str()).collect();
                book::violation("INV-1, I2", format!("{service} is served by {names:?} at once"));
            }
        }
        if let Some(panic) = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take() {
            book::violation("no panic", panic);
        }
    }

    /// What is missing for the cluster to be well. (I11, I12)
    fn missing(&mut self) -> Option<String> {
        let mut live = BTreeMap::new();
        for site in &mut self.sites {
            if site.stops {
                return Some(format!("{} is about to stop", site.name));
            }
            let Some((name, generation)) = site.look(|seen| seen.incarnation()) else {
                return Some(format!("{} does not run, or has not joined", site.name));
            };
            live.insert(name, generation);
        }
        let placements: Vec<_> = self.sites.iter_mut().filter_map(|site| site.look(|seen| seen.placement())).collect();
        let differs = placements.iter().any(|placement| placement.records != placements[0].records);
        if differs {
            return Some(format!("nodes have applied different placements: {placements:?}"));
        }
        for (module, service) in MODULES.into_iter().zip(SERVICES) {
            let Some(record) = placements[0].records.get(module) else {
                return Some(format!("`{module}` is not placed"));
            };
            let Some((owner, generation)) = &record.owner else { return Some(format!("nobody owns `{module}`")) };
            if live.get(owner) != Some(generation) || !record.active || record.moving_to.is_some() {
                return Some(format!("`{module}` is not settled: {record:?}; nodes: {live:?}"));
            }
            for site in &mut self.sites {
                let admits = site.look(|seen| seen.admits(service)) == Some(true);
                if admits != (site.name == *owner) {
                    return Some(format!("{} admits calls of `{module}`: {admits}, and {owner} owns it", site.name));
                }
            }
        }
        let leaders: BTreeSet<_> = self.sites.iter_mut().filter_map(|site| site.look(|seen| seen.leader())).collect();
        match leaders.iter().collect::<Vec<_>>().as_slice() {
            [Some(_)] => None,
            others => Some(format!("nodes take these for the leader: {others:?}")),
        }
    }
}

/// Runs a plan on this thread, which should be a new one: what others did on it would show. Nodes keep their data below
/// `data`.
#[must_use]
pub fn run(plan: &Plan, data: &Path) -> Report {
    interpose::seed(plan.seed ^ 0x6f75_7470_6f73_7421);
    interpose::set_now(SECOND);
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        PANIC.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic.to_string());
    }));
    simulation::break_rule(plan.broken);
    simulation::watch_answers(book::passes);
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut world = World::new(&mut random, data);
    world.orders.borrow_mut().patient = plan.with.contains(&Fault::Mute);
    let mut chaos = Chaos::new(StdRng::seed_from_u64(random.random()), &plan.with);
    let mut report = Report { seed: plan.seed, nodes: world.sites.len(), ..Report::default() };
    let asked = Rc::new(RefCell::new(0_u64));
    story(&mut world, &mut chaos, plan, &mut random, &mut report, &asked);
    let (moves, take_overs) = book::changes();
    let violation = book::first_violation();
    let calls = book::calls();
    if let Some(violation) = &violation {
        tracing::error!("{violation}");
    }
    simulation::break_rule(None);
    let asked = *asked.borrow();
    Report {
        hash: world.network.hash(),
        simulated_ms: world.now / MS,
        calls,
        moves_asked: asked,
        moves,
        take_overs,
        faults: std::mem::take(&mut chaos.counts),
        sprung: chaos.sprung,
        starts: world.starts,
        network: world.network.counts(),
        violation,
        ..report
    }
}

fn story(
    world: &mut World,
    chaos: &mut Chaos,
    plan: &Plan,
    random: &mut StdRng,
    report: &mut Report,
    asked: &Rc<RefCell<u64>>,
) {
    let fine = || book::first_violation().is_none();
    // It begins.
    let begun_by = world.now + BEGIN;
    while fine() {
        world.tick();
        match world.missing() {
            None => break,
            Some(missing) if world.now >= begun_by => book::violation("a cluster begins", missing),
            Some(_) => {}
        }
    }
    tracing::info!("the cluster has begun");
    world.call(random.random_range(2..=4), random.random_range(5..=60), chaos.favourite);
    book::lists(|lists| lists.slow = true);
    // Things go wrong.
    let until = world.now + plan.seconds * SECOND;
    while fine() && world.now < until {
        let World { now, sites, network, .. } = &mut *world;
        if let Some((at, module, target)) = chaos.step(*now, sites, network) {
            tracing::info!("{} is asked to move `{module}` to {target}", sites[at].name);
            *asked.borrow_mut() += 1;
            sites[at].ask_to_move(module, &target, |answer| {
                if let Err(why) = answer {
                    tracing::info!("the move was refused: {why}");
                }
            });
        }
        world.tick();
    }
    // They do not any more.
    tracing::info!("no more faults");
    let World { now, sites, network, .. } = &mut *world;
    chaos.end(*now, sites, network);
    book::lists(|lists| lists.slow = false);
    let (ended, mut well) = (world.now, None);
    while fine() {
        world.tick();
        match world.missing() {
            None => {
                let since = *well.get_or_insert(world.now);
                if world.now - since >= WELL {
                    report.recovered_ms = (since - ended) / MS;
                    break;
                }
            }
            Some(missing) => {
                well = None;
                if world.now - ended >= RECOVER {
                    book::violation("I11, I12", format!("30 s after the last fault: {missing}"));
                }
            }
        }
    }
    tracing::info!("the cluster is well");
    world.orders.borrow_mut().calm = true;
    let until = world.now + CALM;
    while fine() && world.now < until {
        world.tick();
    }
    world.orders.borrow_mut().stop = true;
    let until = world.now + LAST;
    while fine() && world.orders.borrow().under_way > 0 {
        world.tick();
        if world.now >= until {
            book::violation("INV-4", "a call does not end".to_owned());
        }
    }
    book::last_check();
    if fine() {
        for site in &mut world.sites {
            let waiting = site.look(|seen| seen.waiting()).unwrap_or_default();
            if waiting > 0 {
                book::violation("I10", format!("{waiting} calls wait at {} although nobody calls", site.name));
            }
        }
    }
}

//! What holds whatever happens: nodes come and go, fail and drain, and operators change their minds.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    Facts, Plan, Standing,
    survey::Survey,
    targets::Targets,
    world::{World, declared, module, node},
};
use crate::{
    id::{ModuleName, NodeId},
    placement::{
        document::{Document, check},
        spec::{Count, Kind, KindName, Origin, Pin, Rules, Spec, StateClass},
        state::{Declared, Hosting, Part, PartChange},
    },
};

const NODES: [&str; 6] = ["node-1", "node-2", "node-3", "a", "shop-0", "z9"];
const MODULES: [&str; 8] = ["cart", "checkout", "ledger", "mail", "payment", "pricing", "stock", "users"];
const ZONES: [&str; 2] = ["a", "b"];

/// Something that happens to a cluster. What makes no sense at the time changes nothing.
#[derive(Debug, Clone)]
enum Happening {
    Join(usize, Option<usize>),
    Leave(usize),
    /// A crash; the lease ends with it, or has still to end.
    Lose(usize, bool),
    End(usize),
    Stand(usize, Standing),
    Cordon(usize, bool),
    Fail(usize, usize),
    Move(usize, usize),
    Ask(Spec),
    /// The nodes do something, but not all there is.
    Act,
    /// The plan is carried out once.
    Plan,
    Settle,
}

fn a_node() -> impl Strategy<Value = usize> {
    0..NODES.len()
}

fn a_module() -> impl Strategy<Value = usize> {
    0..MODULES.len()
}

fn a_count() -> impl Strategy<Value = Count> {
    prop_oneof![Just(Count::Every), (1_u16..4).prop_map(Count::Exactly)]
}

fn names() -> impl Strategy<Value = Option<BTreeSet<ModuleName>>> {
    option::weighted(0.2, vec(select(&MODULES[..]), 0..3).prop_map(|names| names.into_iter().map(module).collect()))
}

prop_compose! {
    fn rules(tied: bool)(
        kind in option::weighted(0.3, select(&[KindName::Exclusive, KindName::Replicated][..])),
        replicas in option::weighted(0.3, a_count()),
        zone in option::weighted(0.3, select(&ZONES[..])),
        spread in option::weighted(0.3, Just("zone".to_owned())),
        with in names(),
        apart in names(),
        pin in option::weighted(0.1, select(&NODES[..])),
    ) -> Rules {
        let pin = pin.map(|name| Pin { node: node(name), reason: "a test".into(), expires: None });
        let require = zone.map(|zone| [("zone".to_owned(), zone.to_owned())].into());
        let (with, apart) = (with.filter(|_| tied), apart.filter(|_| tied));
        Rules { kind, replicas, require, spread, with, apart, pin }
    }
}

fn a_spec(tied: bool) -> impl Strategy<Value = Spec> {
    vec((select(&MODULES[..]), rules(tied)), 0..5).prop_map(|modules| Spec {
        default: Rules::default(),
        modules: modules.into_iter().map(|(name, rules)| (module(name), rules)).collect(),
    })
}

fn happening(tied: bool) -> impl Strategy<Value = Happening> {
    let standing = select(&[Standing::Ready, Standing::Draining, Standing::Silent][..]);
    prop_oneof![
        4 => (a_node(), option::of(0..ZONES.len())).prop_map(|(node, zone)| Happening::Join(node, zone)),
        1 => a_node().prop_map(Happening::Leave),
        1 => (a_node(), any::<bool>()).prop_map(|(node, ended)| Happening::Lose(node, ended)),
        1 => a_node().prop_map(Happening::End),
        3 => (a_node(), standing).prop_map(|(node, standing)| Happening::Stand(node, standing)),
        1 => (a_node(), any::<bool>()).prop_map(|(node, cordoned)| Happening::Cordon(node, cordoned)),
        1 => (a_node(), a_module()).prop_map(|(node, module)| Happening::Fail(node, module)),
        2 => (a_module(), a_node()).prop_map(|(module, node)| Happening::Move(module, node)),
        2 => a_spec(tied).prop_map(Happening::Ask),
        3 => Just(Happening::Act),
        3 => Just(Happening::Plan),
        2 => Just(Happening::Settle),
    ]
}

fn a_program() -> impl Strategy<Value = BTreeMap<ModuleName, Declared>> {
    let kind = prop_oneof![
        3 => Just((Kind::Exclusive, false)),
        1 => Just((Kind::Exclusive, true)),
        2 => a_count().prop_map(|count| (Kind::Replicated(count), false)),
    ];
    vec(kind, MODULES.len()).prop_map(|kinds| {
        let modules = MODULES.iter().map(|name| module(name));
        modules.zip(kinds.into_iter().map(|(kind, stateful)| declared(kind, stateful))).collect()
    })
}

impl World {
    fn happens(&mut self, happening: &Happening) {
        let known = |world: &Self, index: &usize| world.state.incarnation(&node(NODES[*index])).is_some();
        match happening {
            Happening::Join(index, zone) => {
                let name = node(NODES[*index]);
                // A node that is lost for good starts again, or one that runs, whose lease is still to end.
                self.join(name.as_str(), &zone.map(|zone| ("zone", ZONES[zone])).into_iter().collect::<Vec<_>>());
            }
            Happening::Leave(index) if known(self, index) => self.leave(NODES[*index]),
            Happening::Lose(index, ended) if known(self, index) => {
                self.stand(NODES[*index], Standing::Silent);
                if *ended {
                    self.lose(NODES[*index]);
                }
            }
            Happening::End(index) if known(self, index) => {
                // The leases of all earlier incarnations end.
                let now = self.incarnation(NODES[*index]);
                for generation in 1..now.generation {
                    self.ended.insert(crate::id::Incarnation { generation, ..now.clone() });
                }
            }
            Happening::Stand(index, standing) if known(self, index) => {
                let incarnation = self.incarnation(NODES[*index]);
                // What has ended does not come back.
                if !self.ended.contains(&incarnation) {
                    self.stand(NODES[*index], *standing);
                }
            }
            Happening::Cordon(index, cordoned) if known(self, index) => self.cordon(NODES[*index], *cordoned),
            Happening::Fail(index, of) if known(self, index) => {
                let name = module(MODULES[*of]);
                // A host that serves does not fail.
                if !self.observed[&node(NODES[*index])].serves.contains(&name) {
                    self.fail(NODES[*index], MODULES[*of]);
                }
            }
            Happening::Move(of, index) if known(self, index) => {
                let to = self.incarnation(NODES[*index]);
                let part = self.state.parts.get(&module(MODULES[*of])).map(|part| part.hosting.clone());
                // What its owner has yet to open is refused.
                if let Some(Hosting::Exclusive { owner, active: true, moving: None, seal: None }) = part
                    && owner != to
                {
                    self.part(MODULES[*of], PartChange::BeginMove { to, chosen: true });
                }
            }
            Happening::Ask(spec) => self.ask_spec(spec.clone()),
            Happening::Act => _ = self.act(),
            Happening::Plan => {
                let plan = self.plan();
                keeps_its_word(self, &plan);
                self.carry_out(&plan);
            }
            Happening::Settle => settle(self),
            _ => {}
        }
    }
}

/// Settles, and looks at each plan on the way.
fn settle(world: &mut World) {
    let bound = 60 + 8 * MODULES.len();
    for _ in 0..bound {
        let plan = world.plan();
        keeps_its_word(world, &plan);
        world.carry_out(&plan);
        if !world.act() && plan.changes.is_empty() {
            return;
        }
    }
    panic!("it does not settle: {:#?}", world.plan().changes);
}

/// What must hold of every plan.
fn keeps_its_word(world: &World, plan: &Plan) {
    let facts = world.facts();
    assert_eq!(*plan, super::plan(&facts), "the same facts give the same plan");
    let mut modules: Vec<&ModuleName> = plan.changes.iter().map(|planned| &planned.module).collect();
    modules.dedup();
    assert_eq!(modules.len(), plan.changes.len(), "one change of each part");
    for planned in &plan.changes {
        let part = facts.parts.get(&planned.module);
        let stateful = facts.declared[&planned.module].state == StateClass::Fixed;
        match &planned.change {
            PartChange::Assign(to) => {
                may_be_assigned(&facts, part, &planned.module);
                // Who gives a part away has its state until the other one serves, and gets it back if that never does.
                let keeps = part.and_then(Part::seal).is_some_and(|seal| seal.from == *to);
                let standing = facts.nodes[&to.node].standing;
                assert!(standing == Standing::Ready || (keeps && standing == Standing::Draining), "{planned:?}");
                let again = part.is_some_and(|part| part.hosts().contains(&&to.node));
                let moved = part.and_then(Part::moving).is_some_and(|moving| moving.to == *to);
                assert!(
                    !facts.nodes[&to.node].cordoned || again || moved || keeps,
                    "{planned:?} is new on a cordoned node"
                );
            }
            PartChange::BeginMove { to, chosen } => {
                assert!(!chosen);
                assert!(!stateful, "{planned:?} would lose state");
                assert!(!facts.nodes[&to.node].cordoned, "{planned:?} is new on a cordoned node");
                assert_eq!(facts.nodes[&to.node].standing, Standing::Ready, "{planned:?}");
            }
            PartChange::Replicate(hosts) => {
                assert!(!hosts.is_empty());
                assert!(!stateful);
                let before = part.map(Part::hosts).unwrap_or_default();
                for host in hosts.iter().filter(|host| !before.contains(host)) {
                    assert!(!facts.nodes[host].cordoned, "{planned:?} is new on a cordoned node");
                    assert_eq!(facts.nodes[host].standing, Standing::Ready, "{planned:?}");
                }
            }
            PartChange::AbortMove => assert!(part.and_then(Part::moving).is_some()),
            other => panic!("{other:?} is for the hosts to say"),
        }
    }
    let moving = facts.parts.values().filter(|part| part.moving().is_some()).count();
    let begun = plan.changes.iter().filter(|planned| matches!(planned.change, PartChange::BeginMove { .. })).count();
    if plan.changes.iter().any(|planned| planned.reason.starts_with("balance")) {
        assert!(moving + begun <= facts.limits.max_rebalancing, "{moving} and {begun} moves");
    }
}

/// Nobody may serve a part that is assigned.
fn may_be_assigned(facts: &Facts<'_>, part: Option<&Part>, name: &ModuleName) {
    let settled = part.is_some_and(Part::is_settled);
    match part.map(|part| &part.hosting) {
        None => {}
        Some(Hosting::Exclusive { owner, .. }) => {
            let failed = !settled && facts.nodes.get(&owner.node).is_some_and(|node| node.failed.contains(name));
            assert!(failed || facts.has_ended(owner), "{owner} may still serve {name}");
        }
        Some(Hosting::Replicated { hosts }) => {
            assert_eq!(hosts.len(), 1);
            assert!(facts.applied_by_all >= part.map_or(0, |part| part.version));
        }
    }
}

/// What must hold once nothing is planned any more.
fn is_settled(world: &World) {
    let plan = world.plan();
    assert_eq!(plan.changes, []);
    let facts = world.facts();
    let survey = Survey::of(&facts);
    let targets = Targets::find(&survey);
    let told: BTreeSet<&ModuleName> = plan.unplaced.iter().chain(&plan.misplaced).map(|unmet| &unmet.module).collect();
    for (name, rules) in &survey.rules {
        let hosts = facts.parts.get(*name).map(Part::hosts).unwrap_or_default();
        for host in &hosts {
            let objection = targets.objection(&survey, name, host);
            assert!(objection.is_none() || told.contains(*name), "{name} is on {host}: {objection:?}");
        }
        let enough = match rules.kind {
            Kind::Exclusive | Kind::Replicated(Count::Every) => !hosts.is_empty(),
            Kind::Replicated(Count::Exactly(count)) => hosts.len() >= usize::from(count),
        };
        assert!(enough || told.contains(*name), "{name} is on {hosts:?} only, and nobody was told");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_settles(program in a_program(), happenings in vec(happening(true), 1..40)) {
        let mut world = World::new(&[], &[]);
        world.program = program;
        for happening in &happenings {
            world.happens(happening);
        }
        settle(&mut world);
        is_settled(&world);
    }

    #[test]
    fn what_can_be_placed_is(program in a_program(), happenings in vec(happening(false), 1..40)) {
        let mut world = World::new(&[], &[]);
        world.program = program;
        for happening in &happenings {
            world.happens(happening);
        }
        // Every owner can be asked, or serves no more.
        for (name, record) in world.state.nodes.clone() {
            for generation in 1..=record.generation {
                let silent = world.observed[&name].standing == Standing::Silent;
                if generation < record.generation || silent {
                    world.ended.insert(crate::id::Incarnation { node: name.clone(), generation });
                }
            }
        }
        settle(&mut world);
        is_settled(&world);
        let facts = world.facts();
        let survey = Survey::of(&facts);
        for (name, rules) in &survey.rules {
            let hosts = facts.parts.get(*name).map(Part::hosts).unwrap_or_default();
            let candidates = survey.candidates(name);
            match rules.kind {
                Kind::Replicated(Count::Every) => {
                    for candidate in candidates {
                        prop_assert!(hosts.contains(&candidate), "{name} is not on {candidate}");
                    }
                }
                Kind::Exclusive | Kind::Replicated(Count::Exactly(_)) => {
                    let count = if let Kind::Replicated(Count::Exactly(count)) = rules.kind { usize::from(count) } else { 1 };
                    let fit = hosts.iter().filter(|host| candidates.contains(**host)).count();
                    let stateful = facts.declared[*name].state == StateClass::Fixed && !hosts.is_empty();
                    prop_assert!(fit == count.min(candidates.len()) || stateful, "{name}: {hosts:?} of {candidates:?}");
                }
            }
        }
    }

    #[test]
    fn what_passes_its_check_is_placed(program in a_program(), spec in a_spec(false), nodes in 1..=NODES.len()) {
        let mut world = World::new(&[], &[]);
        world.program = program;
        for (index, name) in NODES.iter().enumerate().take(nodes) {
            world.join(name, &[("zone", ZONES[index % 2])]);
        }
        let document = Document::of("the placement", spec.clone());
        if check(&document, &world.facts()).is_empty() {
            world.ask_spec(spec);
            settle(&mut world);
            let facts = world.facts();
            for unmet in world.plan().unplaced {
                // More hosts than there are nodes may have been asked for where the module was registered.
                let rules = facts.spec.effective(&unmet.module, &facts.declared[&unmet.module], facts.now);
                prop_assert_eq!(rules.origins.replicas, Origin::Registration, "{:?}", unmet);
                prop_assert!(matches!(rules.kind, Kind::Replicated(Count::Exactly(_))), "{:?}", unmet);
            }
        }
    }

    #[test]
    fn the_order_in_which_nodes_join_does_not_matter(
        program in a_program(),
        spec in a_spec(true),
        nodes in Just((0..NODES.len()).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let build = |order: &[usize]| {
            let mut world = World::new(&[], &[]);
            world.program = program.clone();
            for index in order {
                world.join(NODES[*index], &[("zone", ZONES[*index % 2])]);
            }
            world.ask_spec(spec.clone());
            world
        };
        let sorted: Vec<usize> = (0..NODES.len()).collect();
        prop_assert_eq!(build(&nodes).plan(), build(&sorted).plan());
    }

    #[test]
    fn a_new_node_takes_its_share_and_no_more(nodes in 1_usize..6, modules in 1_usize..40, max_rebalancing in 1_usize..5) {
        let modules: Vec<String> = (0..modules).map(|index| format!("m{index}")).collect();
        let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
        let mut world = World::new(&NODES[..nodes], &modules);
        world.limits.max_rebalancing = max_rebalancing;
        world.settle();
        prop_assert!(evenness(&world) <= 1);
        world.join("new", &[]);
        let changes = world.settle();
        let share = modules.len().div_ceil(nodes + 1);
        prop_assert!(changes.len() <= share, "{} moves for a share of {share}", changes.len());
        for planned in &changes {
            let to_new = matches!(&planned.change, PartChange::BeginMove { to, .. } if to.node == node("new"));
            prop_assert!(to_new, "{planned:?}");
        }
        prop_assert!(evenness(&world) <= 1);
    }

    #[test]
    fn a_node_that_goes_moves_only_its_parts(nodes in 2_usize..6, modules in 1_usize..40, drains: bool) {
        let modules: Vec<String> = (0..modules).map(|index| format!("m{index}")).collect();
        let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
        let mut world = World::new(&NODES[..nodes], &modules);
        world.settle();
        let had: BTreeSet<ModuleName> =
            modules.iter().filter(|name| world.hosts(name) == NODES[0]).map(|name| module(name)).collect();
        if drains {
            world.stand(NODES[0], Standing::Draining);
        } else {
            world.lose(NODES[0]);
        }
        let changes = world.settle();
        let moved: BTreeSet<ModuleName> = changes.iter().map(|planned| planned.module.clone()).collect();
        prop_assert_eq!(changes.len(), had.len());
        prop_assert_eq!(moved, had);
        prop_assert!(evenness(&world) <= 1);
    }
}

/// By how many parts the fullest and the emptiest ready node differ.
fn evenness(world: &World) -> usize {
    let mut load: BTreeMap<&NodeId, usize> = BTreeMap::new();
    for (name, observed) in &world.observed {
        if observed.standing == Standing::Ready {
            load.insert(name, 0);
        }
    }
    for part in world.state.parts.values() {
        for host in part.hosts() {
            if let Some(load) = load.get_mut(host) {
                *load += 1;
            }
        }
    }
    let (most, least) = (load.values().max(), load.values().min());
    most.copied().unwrap_or_default() - least.copied().unwrap_or_default()
}

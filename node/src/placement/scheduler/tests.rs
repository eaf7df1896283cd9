use super::explain::Verdict;
use super::{
    world::{World, declared, module, node},
    *,
};
use crate::placement::{
    spec::{Count, Kind},
    state::{Command, Sealed},
};

/// A world with one module on node-1, settled, and then this placement.
fn on_node_1(nodes: &[&str], rules: &str) -> World {
    let mut world = World::new(&["node-1"], &["cart"]);
    world.settle();
    for name in &nodes[1..] {
        world.join(name, &[]);
    }
    assert_eq!(world.hosts("cart"), "node-1");
    world.ask(rules);
    world
}

fn replicated(world: &mut World, name: &str, count: Count) {
    world.program.insert(module(name), declared(Kind::Replicated(count), false));
}

#[test]
fn each_module_gets_a_host() {
    let mut world = World::new(&["node-1"], &["cart", "stock"]);
    replicated(&mut world, "pricing", Count::Every);
    world.join("node-1", &[]);
    assert_eq!(
        world.changes(),
        ["cart: assign to node-1#2", "pricing: replicate on node-1", "stock: assign to node-1#2"]
    );
    assert_eq!(world.plan().changes[0].expect, 0);
    world.settle();
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn a_cluster_without_nodes_plans_nothing() {
    assert_eq!(World::new(&[], &[]).plan(), Plan::default());
}

#[test]
fn modules_are_spread_over_the_nodes() {
    let mut world = World::new(&["node-1", "node-2", "node-3"], &["a", "b", "c", "d", "e", "f"]);
    world.settle();
    let mut hosts: Vec<String> = ["a", "b", "c", "d", "e", "f"].iter().map(|name| world.hosts(name)).collect();
    hosts.sort();
    assert_eq!(hosts, ["node-1", "node-1", "node-2", "node-2", "node-3", "node-3"]);
}

#[test]
fn a_part_stays_where_it_is() {
    let world = on_node_1(&["node-1", "node-2", "node-3"], "");
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn a_node_that_does_not_answer_keeps_its_part_until_its_lease_has_ended() {
    let mut world = on_node_1(&["node-1", "node-2"], "");
    world.stand("node-1", Standing::Silent);
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(
        world.unplaced("cart"),
        ["node-1 does not answer; nobody else gets it before the lease of node-1#1 has ended"]
    );
    world.end("node-1");
    assert_eq!(world.changes(), ["cart: assign to node-2#1"]);
    world.settle();
    world.stand("node-1", Standing::Ready);
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn a_node_that_starts_again_gets_its_part_back_once_its_old_lease_has_ended() {
    let mut world = on_node_1(&["node-1", "node-2"], "");
    world.join("node-1", &[]);
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(
        world.unplaced("cart"),
        ["node-1 has started again; nobody else gets it before the lease of node-1#1 has ended"]
    );
    world.ended.insert(Incarnation { node: node("node-1"), generation: 1 });
    assert_eq!(world.changes(), ["cart: assign to node-1#2"]);
    // A cordon does not take from a node what it had.
    world.cordon("node-1", true);
    assert_eq!(world.changes(), ["cart: assign to node-1#2"]);
    world.stand("node-1", Standing::Silent);
    assert_eq!(world.changes(), ["cart: assign to node-2#1"]);
}

#[test]
fn a_node_that_has_left_or_was_forgotten_gives_up_its_part() {
    let mut world = on_node_1(&["node-1", "node-2"], "");
    world.leave("node-1");
    assert_eq!(world.changes(), ["cart: assign to node-2#1"]);
    world.command(crate::placement::state::Command::Forget(node("node-1")));
    assert_eq!(world.changes(), ["cart: assign to node-2#1"]);
}

#[test]
fn a_cordoned_node_keeps_what_it_has_and_gets_nothing_new() {
    let mut world = on_node_1(&["node-1"], "");
    world.cordon("node-1", true);
    assert_eq!(world.changes(), [""; 0]);
    world.program.insert(module("stock"), declared(Kind::Exclusive, false));
    world.join("node-1", &[]);
    world.ended.insert(Incarnation { node: node("node-1"), generation: 1 });
    world.settle();
    assert_eq!(world.hosts("cart"), "node-1");
    assert_eq!(world.unplaced("stock"), ["node-1: it is cordoned"]);
}

#[test]
fn a_draining_node_hands_over() {
    let mut world = on_node_1(&["node-1", "node-2"], "");
    world.stand("node-1", Standing::Draining);
    let plan = world.plan();
    assert_eq!(world.changes(), ["cart: begin a move to node-2#1"]);
    assert_eq!(plan.changes[0].reason, "node-1: it is draining");
    assert_eq!(plan.changes[0].change, PartChange::BeginMove { to: world.incarnation("node-2"), chosen: false });
    world.settle();
    assert_eq!(world.hosts("cart"), "node-2");
}

#[test]
fn a_draining_node_keeps_what_nobody_can_take() {
    let mut world = on_node_1(&["node-1", "node-2"], "");
    world.stand("node-1", Standing::Draining);
    world.cordon("node-2", true);
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(world.misplaced("cart"), ["it is on node-1, but it is draining", "node-2: it is cordoned"]);
}

#[test]
fn a_pin_binds_until_it_expires() {
    let pin = "[module.cart]\npin = { node = \"node-2\", reason = \"gpu\", expires = \"1970-01-01T00:00:10Z\" }";
    let mut world = on_node_1(&["node-1", "node-2"], pin);
    let plan = world.plan();
    assert_eq!(world.changes(), ["cart: begin a move to node-2#1"]);
    assert_eq!(plan.changes[0].reason, "node-1: the module is pinned to node-2 (gpu)");
    world.settle();
    world.lose("node-2");
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(
        world.unplaced("cart"),
        [
            "node-2 had it, and serves no more",
            "node-1: the module is pinned to node-2 (gpu)",
            "node-2: it does not answer"
        ]
    );
    world.now = Timestamp(10_000);
    assert_eq!(world.changes(), ["cart: assign to node-1#1"]);
}

#[test]
fn labels_that_are_required_decide() {
    let mut world = on_node_1(&["node-1"], "[module.cart]\nrequire = { zone = \"b\" }");
    world.join("node-2", &[("zone", "a")]);
    assert_eq!(
        world.misplaced("cart"),
        ["it is on node-1, but it has no label zone, and zone = b is required", "node-2: its label zone is a, not b"]
    );
    world.join("node-3", &[("zone", "b")]);
    assert_eq!(world.changes(), ["cart: begin a move to node-3#1"]);
}

#[test]
fn a_part_that_is_not_served_yet_is_not_moved() {
    let mut world = World::new(&["node-1"], &["cart"]);
    world.carry_out(&world.plan());
    world.join("node-2", &[]);
    world.stand("node-1", Standing::Draining);
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(world.misplaced("cart"), ["it goes to node-2 as soon as node-1 has begun to serve it: it is draining"]);
}

#[test]
fn a_part_whose_factory_failed_is_given_to_another_node() {
    let mut world = World::new(&["node-1"], &["cart"]);
    world.carry_out(&world.plan());
    world.fail("node-1", "cart");
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(
        world.misplaced("cart"),
        ["it is on node-1, but the module failed to start there lately", "there is no other node"]
            .iter()
            .map(|reason| (*reason).to_owned())
            .collect::<Vec<_>>()
    );
    world.join("node-2", &[]);
    assert_eq!(world.changes(), ["cart: assign to node-2#1"]);
    world.carry_out(&world.plan());
    world.fail("node-2", "cart");
    assert_eq!(world.changes(), [""; 0], "no node is better");
}

#[test]
fn a_move_to_a_node_that_is_no_good_any_more_is_given_up() {
    let mut world = on_node_1(&["node-1", "node-2"], "");
    world.part("cart", PartChange::BeginMove { to: world.incarnation("node-2"), chosen: true });
    assert_eq!(world.changes(), [""; 0]);
    let reason = |world: &World| world.plan().changes[0].reason.clone();

    let mut silent = world.clone();
    silent.stand("node-2", Standing::Silent);
    assert_eq!(silent.changes(), ["cart: abort the move"]);
    assert_eq!(reason(&silent), "not to node-2: it does not answer");

    let mut again = world.clone();
    again.join("node-2", &[]);
    assert_eq!(again.changes(), ["cart: abort the move"]);
    assert_eq!(reason(&again), "node-2 has started again");

    let mut failed = world.clone();
    failed.fail("node-2", "cart");
    assert_eq!(failed.changes(), ["cart: abort the move"]);

    let mut ruled_out = world.clone();
    ruled_out.ask("[module.cart]\npin = { node = \"node-1\", reason = \"disk\" }");
    assert_eq!(ruled_out.changes(), ["cart: abort the move"]);

    let mut both = world;
    both.stand("node-1", Standing::Silent);
    both.stand("node-2", Standing::Silent);
    assert_eq!(both.changes(), ["cart: abort the move"]);
}

#[test]
fn when_the_owner_dies_in_a_move_the_target_gets_the_part_if_it_is_ready() {
    let mut world = on_node_1(&["node-1", "node-2", "node-3"], "");
    world.part("cart", PartChange::BeginMove { to: world.incarnation("node-3"), chosen: true });
    let mut unprepared = world.clone();
    unprepared.lose("node-1");
    assert!(unprepared.changes()[0].starts_with("cart: assign to node-"));

    world.part("cart", PartChange::Prepared);
    world.stand("node-1", Standing::Silent);
    assert_eq!(world.changes(), [""; 0]);
    world.end("node-1");
    assert_eq!(world.changes(), ["cart: assign to node-3#1"]);
    assert_eq!(world.plan().changes[0].reason, "node-1 serves no more, and node-3 is ready for it");
}

/// A part on its way from node-1 to node-2, which was handed over with its state and has yet to serve.
fn handed_over() -> World {
    let mut world = World::new(&["node-1", "node-2", "node-3"], &["cart"]);
    world.part("cart", PartChange::Assign(world.incarnation("node-1")));
    world.part("cart", PartChange::Activated);
    world.part("cart", PartChange::BeginMove { to: world.incarnation("node-2"), chosen: true });
    world.part("cart", PartChange::Prepared);
    let sealed = Some(Sealed { digest: "abc".to_owned(), bytes: 3 });
    world.part("cart", PartChange::Handover { sealed, ready: false, waited_us: 0 });
    assert_eq!(world.changes(), Vec::<String>::new());
    world
}

#[test]
fn a_part_whose_new_owner_dies_before_it_serves_goes_back_to_who_has_its_state() {
    let mut world = handed_over();
    world.lose("node-2");
    assert_eq!(world.changes(), ["cart: assign to node-1#1"]);
    world.part("cart", PartChange::Assign(world.incarnation("node-1")));
    let part = &world.state.parts[&module("cart")];
    assert_eq!(part.seal().map(|seal| seal.sealed.digest.as_str()), Some("abc"), "it is to serve just that");
    assert_eq!(part.fence, part.epoch, "what node-2 may answer yet does not count");
}

#[test]
fn whoever_has_the_state_gets_the_part_back_even_while_it_goes() {
    let mut world = handed_over();
    world.stand("node-1", Standing::Draining);
    world.cordon("node-1", true);
    world.lose("node-2");
    assert_eq!(world.changes(), ["cart: assign to node-1#1"]);
    world.part("cart", PartChange::Assign(world.incarnation("node-1")));
    world.part("cart", PartChange::Activated);
    assert_eq!(world.changes(), ["cart: begin a move to node-3#1"]);
}

#[test]
fn a_part_whose_new_owner_can_t_serve_it_goes_back_to_who_has_its_state() {
    let mut world = handed_over();
    world.fail("node-2", "cart");
    assert_eq!(world.changes(), ["cart: assign to node-1#1"]);
}

#[test]
fn a_part_whose_old_and_new_owner_died_is_taken_over_without_that_state() {
    let mut world = handed_over();
    world.lose("node-2");
    world.lose("node-1");
    assert_eq!(world.changes(), ["cart: assign to node-3#1"]);
    world.part("cart", PartChange::Assign(world.incarnation("node-3")));
    assert_eq!(world.state.parts[&module("cart")].seal(), None);
}

#[test]
fn a_hand_over_does_not_fence_off_the_old_owner_s_last_answers() {
    let world = handed_over();
    let part = &world.state.parts[&module("cart")];
    assert!(part.fence < part.epoch);
}

#[test]
fn no_more_moves_are_begun_than_may_be_under_way() {
    let modules: Vec<String> = (0..10).map(|index| format!("m{index}")).collect();
    let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
    let mut world = World::new(&["node-1"], &modules);
    for name in &modules {
        world.part(name, PartChange::Assign(world.incarnation("node-1")));
        world.part(name, PartChange::Activated);
    }
    world.join("node-2", &[]);
    world.limits.max_moves = 3;
    world.command(Command::Drain { node: node("node-1"), why: String::new() });
    let begun = world.changes();
    assert_eq!(begun.len(), 3, "{begun:?}");
    world.part("m0", PartChange::BeginMove { to: world.incarnation("node-2"), chosen: false });
    assert_eq!(world.changes().len(), 2);
    world.cordon("node-1", false);
    let standing = world.facts().nodes[&node("node-1")].standing;
    assert_eq!(standing, Standing::Ready, "a node that is uncordoned is not drained any more");
}

#[test]
fn a_module_with_state_is_taken_over_but_never_moved() {
    let mut world = World::new(&[], &[]);
    world.program.insert(module("ledger"), declared(Kind::Exclusive, true));
    world.join("node-1", &[]);
    world.settle();
    world.join("node-2", &[]);
    world.stand("node-1", Standing::Draining);
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(
        world.misplaced("ledger"),
        ["it would have to leave node-1 (it is draining), but it declares state that can't travel; move it \
          by hand with `outpost move --lose-state`"]
    );
    world.leave("node-1");
    assert_eq!(world.changes(), ["ledger: assign to node-2#1"]);
}

#[test]
fn a_module_with_state_moves_when_an_operator_says_so() {
    let mut world = World::new(&[], &[]);
    world.program.insert(module("ledger"), declared(Kind::Exclusive, true));
    world.join("node-1", &[]);
    world.settle();
    world.join("node-2", &[]);
    world.part("ledger", PartChange::BeginMove { to: world.incarnation("node-2"), chosen: true });
    world.settle();
    assert_eq!(world.hosts("ledger"), "node-2");
}

#[test]
fn modules_that_belong_together_share_a_node() {
    let mut world = World::new(&["node-1", "node-2", "node-3"], &["a", "b", "c", "d", "e", "f"]);
    world.settle();
    world.ask("[module.a]\nwith = [\"b\"]\n[module.b]\nwith = [\"c\"]\n[module.c]\nwith = [\"a\"]");
    world.settle();
    assert_eq!(world.hosts("a"), world.hosts("b"));
    assert_eq!(world.hosts("a"), world.hosts("c"));
    // Where an operator moves one of them, the others follow.
    let other = ["node-1", "node-2", "node-3"].into_iter().find(|name| *name != world.hosts("a")).unwrap();
    world.part("b", PartChange::BeginMove { to: world.incarnation(other), chosen: true });
    world.settle();
    for name in ["a", "b", "c"] {
        assert_eq!(world.hosts(name), other);
    }
}

#[test]
fn a_module_follows_one_with_state() {
    let mut world = World::new(&["node-1"], &["cart"]);
    world.settle();
    world.program.insert(module("ledger"), declared(Kind::Exclusive, true));
    world.join("node-2", &[]);
    world.settle();
    assert_eq!(world.hosts("ledger"), "node-2");
    world.ask("[module.ledger]\nwith = [\"cart\"]");
    assert_eq!(world.changes(), ["cart: begin a move to node-2#1"]);
}

#[test]
fn an_exclusive_module_draws_a_replicated_one_to_its_node() {
    let mut world = World::new(&["node-1", "node-2", "node-3"], &["cart"]);
    replicated(&mut world, "cache", Count::Exactly(1));
    for name in ["node-1", "node-2", "node-3"] {
        world.join(name, &[]);
    }
    world.ask("[module.cart]\nwith = [\"cache\"]");
    world.settle();
    assert_eq!(world.hosts("cart"), world.hosts("cache"));
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn each_host_of_a_replicated_module_has_what_it_must_have_beside_it() {
    let mut world = World::new(&[], &[]);
    replicated(&mut world, "api", Count::Exactly(2));
    replicated(&mut world, "cache", Count::Exactly(3));
    for name in ["node-1", "node-2", "node-3", "node-4", "node-5"] {
        world.join(name, &[]);
    }
    world.ask("[module.api]\nwith = [\"cache\"]");
    world.settle();
    let cache = world.hosts("cache");
    assert!(world.hosts("api").split(", ").all(|host| cache.contains(host)));
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn modules_that_are_kept_apart_do_not_meet() {
    let mut world = on_node_1(&["node-1", "node-2"], "");
    world.program.insert(module("payment"), declared(Kind::Exclusive, false));
    world.ask("[module.payment]\napart = [\"cart\"]\nrequire = { zone = \"a\" }");
    world.join("node-3", &[("zone", "a")]);
    world.settle();
    assert_eq!((world.hosts("cart"), world.hosts("payment")), ("node-1".into(), "node-3".into()));
    // Payment can only be on node-1 now, so cart gives way.
    world.leave("node-3");
    world.join("node-1", &[("zone", "a")]);
    world.ended.insert(Incarnation { node: node("node-1"), generation: 1 });
    world.settle();
    assert_eq!((world.hosts("cart"), world.hosts("payment")), ("node-2".into(), "node-1".into()));
}

#[test]
fn a_chain_of_modules_makes_room() {
    // a can be on 1; b on 1 or 2; c on 2 or 3. At first there are only b on 1 and c on 2.
    let mut world = World::new(&[], &["b", "c"]);
    world.join("node-1", &[("a", "y"), ("b", "y")]);
    world.ask(
        "[module.a]\nrequire = { a = \"y\" }\napart = [\"b\", \"c\"]\n\
               [module.b]\nrequire = { b = \"y\" }\napart = [\"c\"]\n[module.c]\nrequire = { c = \"y\" }",
    );
    world.settle();
    world.join("node-2", &[("b", "y"), ("c", "y")]);
    world.settle();
    assert_eq!((world.hosts("b"), world.hosts("c")), ("node-1".into(), "node-2".into()));
    world.program.insert(module("a"), declared(Kind::Exclusive, false));
    world.join("node-3", &[("c", "y")]);
    world.join("node-1", &[("a", "y"), ("b", "y")]);
    world.ended.insert(Incarnation { node: node("node-1"), generation: 1 });
    world.settle();
    let hosts = (world.hosts("a"), world.hosts("b"), world.hosts("c"));
    assert_eq!(hosts, ("node-1".into(), "node-2".into(), "node-3".into()));
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn a_module_is_nowhere_rather_than_beside_what_it_is_kept_apart_from() {
    let mut world = on_node_1(&["node-1"], "[module.payment]\napart = [\"cart\"]");
    world.program.insert(module("payment"), declared(Kind::Exclusive, false));
    world.join("node-1", &[]);
    world.ended.insert(Incarnation { node: node("node-1"), generation: 1 });
    world.settle();
    let both = (world.unplaced("payment"), world.unplaced("cart"));
    assert_eq!(both, (vec!["node-1: cart is on it, and the two are kept apart".to_owned()], vec![]));
}

#[test]
fn copies_are_spread_over_the_values_of_a_label() {
    let mut world = World::new(&[], &[]);
    replicated(&mut world, "cart", Count::Exactly(2));
    for (name, zone) in [("node-1", "a"), ("node-2", "a"), ("node-3", "a")] {
        world.join(name, &[("zone", zone)]);
    }
    world.ask("[module.cart]\nspread = \"zone\"");
    world.settle();
    world.join("node-4", &[("zone", "b")]);
    let before = world.hosts("cart");
    assert_eq!(world.changes(), [format!("cart: replicate on {before}, node-4")]);
    world.settle();
    let after = world.hosts("cart");
    assert!(after.ends_with(", node-4") && after.len() == "node-1, node-4".len(), "{after}");
    assert!(before.contains(after.split(", ").next().unwrap()));
}

#[test]
fn a_replicated_module_gets_a_new_host_before_it_loses_one() {
    let mut world = World::new(&[], &[]);
    replicated(&mut world, "cart", Count::Exactly(1));
    world.join("node-1", &[]);
    world.settle();
    world.join("node-2", &[]);
    world.stand("node-1", Standing::Draining);
    assert_eq!(world.changes(), ["cart: replicate on node-1, node-2"]);
    world.carry_out(&world.plan());
    assert_eq!(world.changes(), [""; 0], "node-2 does not serve it yet");
    world.act();
    assert_eq!(world.changes(), ["cart: replicate on node-2"]);
    assert_eq!(world.plan().changes[0].reason, "without node-1: it is draining");
}

#[test]
fn a_replicated_module_waits_for_a_host_as_long_as_its_lease() {
    let mut world = World::new(&[], &[]);
    replicated(&mut world, "cart", Count::Exactly(2));
    for name in ["node-1", "node-2"] {
        world.join(name, &[]);
    }
    world.settle();
    world.join("node-3", &[]);
    world.stand("node-1", Standing::Silent);
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(world.unplaced("cart")[..2], ["1 of 2 hosts", "node-1: it does not answer"]);
    world.end("node-1");
    assert_eq!(world.changes(), ["cart: replicate on node-2, node-3"]);
    assert_eq!(world.plan().changes[0].reason, "node-3 in place of node-1");
}

#[test]
fn a_module_for_every_node_follows_the_nodes() {
    let mut world = World::new(&[], &[]);
    replicated(&mut world, "cart", Count::Every);
    for name in ["node-1", "node-2", "node-3"] {
        world.join(name, &[]);
    }
    world.settle();
    assert_eq!(world.hosts("cart"), "node-1, node-2, node-3");
    world.leave("node-2");
    world.settle();
    assert_eq!(world.hosts("cart"), "node-1, node-3");
    world.lose("node-1");
    world.lose("node-3");
    world.settle();
    assert_eq!(
        world.unplaced("cart"),
        ["no node can host it", "node-1: it does not answer", "node-2: it has left", "node-3: it does not answer"]
    );
}

#[test]
fn too_few_nodes_for_a_count_are_told() {
    let mut world = World::new(&[], &[]);
    replicated(&mut world, "cart", Count::Exactly(3));
    for name in ["node-1", "node-2", "node-3"] {
        world.join(name, &[]);
    }
    world.cordon("node-2", true);
    world.settle();
    assert_eq!(world.hosts("cart"), "node-1, node-3");
    assert_eq!(world.unplaced("cart"), ["2 of 3 hosts", "node-2: it is cordoned"]);
}

#[test]
fn a_replicated_module_becomes_exclusive_in_two_steps() {
    let mut world = World::new(&[], &[]);
    replicated(&mut world, "cart", Count::Every);
    for name in ["node-1", "node-2"] {
        world.join(name, &[]);
    }
    world.settle();
    world.ask("[module.cart]\nkind = \"exclusive\"");
    let first = world.changes();
    assert!(first == ["cart: replicate on node-1"] || first == ["cart: replicate on node-2"], "{first:?}");
    world.applied = Some(world.state.index);
    world.carry_out(&world.plan());
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(world.misplaced("cart"), ["it becomes exclusive as soon as every node knows its only host"]);
    world.applied = None;
    assert_eq!(world.changes(), [format!("cart: assign to {}#1", world.hosts("cart"))]);
    world.settle();
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn an_exclusive_module_becomes_replicated_when_it_is_at_rest() {
    let mut world = on_node_1(&["node-1", "node-2", "node-3"], "");
    world.part("cart", PartChange::BeginMove { to: world.incarnation("node-2"), chosen: true });
    world.ask("[module.cart]\nkind = \"replicated\"\nreplicas = 2");
    assert_eq!(world.changes(), [""; 0]);
    world.part("cart", PartChange::AbortMove);
    let changes = world.changes();
    assert!(changes[0].starts_with("cart: replicate on node-1, node-"), "{changes:?}");
    world.settle();
    assert!(world.hosts("cart").starts_with("node-1, node-"));
}

#[test]
fn a_new_node_gets_its_share_a_few_parts_at_a_time() {
    let mut world = World::new(&["node-1"], &["a", "b", "c", "d", "e", "f"]);
    world.settle();
    world.join("node-2", &[]);
    assert_eq!(world.changes().len(), 2);
    assert_eq!(world.plan().changes[0].reason, "balance: node-1 has 6 parts, node-2 has 0");
    world.carry_out(&world.plan());
    assert_eq!(world.changes(), [""; 0]);
    assert_eq!(world.settle().len(), 1);
}

#[test]
fn what_was_chosen_is_pinned_or_has_state_is_not_moved_for_balance() {
    let mut world = World::new(&[], &["chosen", "pinned"]);
    world.program.insert(module("ledger"), declared(Kind::Exclusive, true));
    world.join("node-2", &[]);
    world.settle();
    world.join("node-1", &[]);
    world.part("chosen", PartChange::BeginMove { to: world.incarnation("node-1"), chosen: true });
    world.ask("[module.pinned]\npin = { node = \"node-1\", reason = \"disk\" }");
    world.settle();
    world.leave("node-2");
    world.settle();
    world.join("node-3", &[]);
    assert_eq!(world.hosts("chosen"), "node-1");
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn a_module_that_no_program_has_any_more_is_left_and_told() {
    let mut world = World::new(&["node-1"], &["cart", "old"]);
    world.settle();
    world.program.remove(&module("old"));
    world.join("node-1", &[]);
    world.ended.insert(Incarnation { node: node("node-1"), generation: 1 });
    world.settle();
    assert_eq!(world.hosts("old"), "node-1");
    assert_eq!(world.misplaced("old"), ["no program in the cluster has this module any more; its record is kept"]);
}

fn explained(world: &World, name: &str) -> Vec<String> {
    let explanation = explain(&world.facts(), &module(name)).unwrap();
    let line = |verdict: Verdict| {
        let (host, eligible) =
            (if verdict.host { "host" } else { "-" }, if verdict.eligible { "eligible" } else { "-" });
        format!("{} {host} {eligible}: {}", verdict.node, verdict.reason)
    };
    explanation.nodes.into_iter().map(line).collect()
}

#[test]
fn each_node_is_explained() {
    let mut world = on_node_1(&["node-1", "node-2", "node-3", "node-4"], "");
    world.cordon("node-3", true);
    world.stand("node-4", Standing::Silent);
    assert_eq!(
        explained(&world, "cart"),
        [
            "node-1 host eligible: it hosts it",
            "node-2 - eligible: it could; node-1 has it, and it stays where it is",
            "node-3 - -: it is cordoned",
            "node-4 - -: it does not answer",
        ]
    );
    world.stand("node-1", Standing::Draining);
    world.carry_out(&world.plan());
    assert_eq!(
        explained(&world, "cart")[..2],
        ["node-1 host -: it hosts it for now: it is draining", "node-2 - eligible: it is on its way there"]
    );
    world.leave("node-1");
    assert_eq!(
        explained(&world, "cart")[..2],
        ["node-1 - -: it had it, and serves no more: it has left", "node-2 - eligible: it is on its way there"]
    );
    let explanation = explain(&world.facts(), &module("cart")).unwrap();
    assert_eq!(explanation.rules, ["kind = exclusive (registration)"]);
    assert_eq!(explain(&world.facts(), &module("nothing")), None);
}

#[test]
fn a_node_whose_version_does_not_fit_gets_nothing_and_keeps_what_it_has() {
    let mut world = on_node_1(&["node-1", "node-2"], "");
    let problem = "its version 2 does not fit";
    let unfit = |world: &mut World, at: &str| {
        world.observed.get_mut(&node(at)).unwrap().unfit.insert(module("cart"), problem.to_owned());
    };
    unfit(&mut world, "node-2");
    world.stand("node-1", Standing::Draining);
    assert_eq!(world.plan().changes, []);
    let facts = world.facts();
    let explanation = explain(&facts, &module("cart")).unwrap();
    assert_eq!(explanation.nodes[1].reason, problem);
    world.observed.get_mut(&node("node-2")).unwrap().unfit.clear();
    world.settle();
    assert_eq!(world.hosts("cart"), "node-2");
    // The node with the version before is back.
    world.stand("node-1", Standing::Ready);
    unfit(&mut world, "node-2");
    assert_eq!(world.plan().changes, []);
    // What starts there again has nothing to keep.
    world.end("node-2");
    world.join("node-2", &[]);
    unfit(&mut world, "node-2");
    world.settle();
    assert_eq!(world.hosts("cart"), "node-1");
}

#[test]
fn while_versions_differ_nothing_moves_for_balance_and_what_must_goes_to_the_newest() {
    let all = ["a", "b", "c", "d", "e", "f"];
    let on = |world: &World, node: &str| all.iter().filter(|module| world.hosts(module) == node).count();
    let mut world = World::new(&["node-1", "node-3"], &all);
    world.settle();
    world.stand("node-3", Standing::Draining);
    world.settle();
    world.version = "2".to_owned();
    world.join("node-2", &[]);
    // A node with the version before does not become the newest when it starts again.
    world.version = "1".to_owned();
    world.join("node-3", &[]);
    assert_eq!(world.plan(), Plan::default());
    world.stand("node-1", Standing::Draining);
    world.settle();
    assert_eq!(on(&world, "node-2"), 6);
    world.stand("node-1", Standing::Silent);
    assert_eq!(world.plan(), Plan::default());
    world.version = "2".to_owned();
    world.join("node-3", &[]);
    world.settle();
    assert_eq!((on(&world, "node-2"), on(&world, "node-3")), (3, 3), "balance goes on once all are the same");
}

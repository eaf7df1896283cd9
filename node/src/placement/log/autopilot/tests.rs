use proptest::prelude::*;

use super::*;

fn set(ids: &[RaftId]) -> BTreeSet<RaftId> {
    ids.iter().copied().collect()
}

fn good(raft_id: RaftId) -> Facet {
    Facet { name: format!("n{raft_id}"), persistent: true, alive: true, spare: true, ..Facet::default() }
}

fn facts(voters: &[RaftId], nodes: impl IntoIterator<Item = RaftId>) -> Facts {
    let nodes = nodes.into_iter().map(|raft_id| {
        let votes = voters.contains(&raft_id);
        (raft_id, Facet { close: votes, told: votes, ..good(raft_id) })
    });
    Facts { me: voters[0], set: 0, max: 5, configs: vec![set(voters)], learners: set(&[]), nodes: nodes.collect() }
}

/// Carries a step out, as Raft would.
fn carry_out(facts: &mut Facts, step: Step) {
    match step {
        Step::Finish(voters) => facts.configs = vec![voters],
        Step::Learn(raft_id) => {
            facts.learners.insert(raft_id);
            if let Some(facet) = facts.nodes.get_mut(&raft_id) {
                (facet.close, facet.told) = (true, true);
            }
        }
        Step::Vote(voters) => {
            let old = facts.configs[0].clone();
            facts.learners.retain(|raft_id| !voters.contains(raft_id));
            facts.learners.extend(old.difference(&voters));
            if !voters.contains(&facts.me) {
                facts.me = *voters.first().unwrap();
            }
            facts.configs = vec![voters];
        }
        Step::HandOver(raft_id) => facts.me = raft_id,
        Step::Drop(raft_id) => drop(facts.learners.remove(&raft_id)),
        Step::Wait(_) => {}
    }
}

/// Goes on until there is nothing to do.
fn settle(facts: &mut Facts) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..40 {
        match next(facts) {
            None | Some(Step::Wait(_)) => return steps,
            Some(step) => {
                steps.push(step.clone());
                carry_out(facts, step);
            }
        }
    }
    panic!("it never settles: {steps:?} {facts:?}");
}

#[test]
fn two_nodes_stay_at_one_voter() {
    assert_eq!(next(&facts(&[1], 1..=2)), None);
}

#[test]
fn one_grows_to_three_in_one_change() {
    let mut facts = facts(&[1], 1..=3);
    assert_eq!(next(&facts), Some(Step::Learn(2)));
    facts.learners.insert(2);
    assert_eq!(next(&facts), Some(Step::Learn(3)), "both are added before either is waited for");
    facts.learners.insert(3);
    assert!(matches!(next(&facts), Some(Step::Wait(_))));
    facts.nodes.get_mut(&2).unwrap().close = true;
    facts.nodes.get_mut(&3).unwrap().close = true;
    assert_eq!(next(&facts), Some(Step::Vote(set(&[1, 2, 3]))));
}

#[test]
fn seven_nodes_have_five_voters_unless_there_is_a_limit() {
    let mut many = facts(&[1, 2, 3], 1..=7);
    settle(&mut many);
    assert_eq!(many.configs, [set(&[1, 2, 3, 4, 5])]);
    let mut few = Facts { max: 3, ..facts(&[1, 2, 3], 1..=7) };
    assert_eq!(settle(&mut few), []);
}

#[test]
fn it_does_not_shrink_by_itself() {
    let mut facts = facts(&[1, 2, 3, 4, 5], 1..=7);
    for gone in 4..=7 {
        facts.nodes.get_mut(&gone).unwrap().alive = false;
        facts.nodes.get_mut(&gone).unwrap().spare = false;
    }
    facts.nodes.get_mut(&5).unwrap().dead = true;
    assert_eq!(next(&facts), None);
}

#[test]
fn an_operator_may_shrink_it() {
    let mut facts = Facts { set: 1, ..facts(&[1, 2, 3], 1..=3) };
    facts.me = 2;
    settle(&mut facts);
    assert_eq!((facts.configs, facts.learners), (vec![set(&[2])], set(&[])), "the leader stays");
}

#[test]
fn a_dead_voter_is_swapped_for_a_spare() {
    let mut facts = facts(&[1, 2, 3], 1..=4);
    let dead = facts.nodes.get_mut(&2).unwrap();
    (dead.alive, dead.spare, dead.close) = (false, false, false);
    assert_eq!(next(&facts), None, "it may come back");
    facts.nodes.get_mut(&2).unwrap().dead = true;
    assert_eq!(settle(&mut facts), [Step::Learn(4), Step::Vote(set(&[1, 3, 4])), Step::Drop(2)]);
}

#[test]
fn nothing_is_changed_while_too_few_are_healthy() {
    let mut facts = facts(&[1, 2, 3], 1..=4);
    for dead in [2, 3] {
        let dead = facts.nodes.get_mut(&dead).unwrap();
        (dead.alive, dead.spare, dead.close, dead.dead) = (false, false, false, true);
    }
    facts.learners.insert(4);
    facts.nodes.get_mut(&4).unwrap().close = true;
    assert!(matches!(next(&facts), Some(Step::Wait(_))), "{:?}", next(&facts));
}

#[test]
fn a_voter_whose_disk_is_gone_is_replaced_by_what_it_has_become() {
    let mut facts = facts(&[1, 2, 3], 1..=3);
    *facts.nodes.get_mut(&3).unwrap() = Facet { name: "n3".to_owned(), retired: true, ..Facet::default() };
    assert_eq!(next(&facts), None);
    facts.nodes.insert(33, Facet { name: "n3".to_owned(), ..good(33) });
    assert_eq!(settle(&mut facts), [Step::Learn(33), Step::Vote(set(&[1, 2, 33])), Step::Drop(3)]);
}

#[test]
fn a_change_that_was_begun_is_finished_first() {
    let mut facts = facts(&[1, 2, 3], 1..=5);
    facts.configs = vec![set(&[1]), set(&[1, 2, 3])];
    assert_eq!(next(&facts), Some(Step::Finish(set(&[1, 2, 3]))));
}

#[test]
fn a_leader_that_drains_hands_over_and_is_replaced() {
    let mut facts = facts(&[1, 2, 3], 1..=4);
    let going = facts.nodes.get_mut(&1).unwrap();
    (going.going, going.spare) = (true, false);
    let steps = settle(&mut facts);
    assert_eq!(steps, [Step::Learn(4), Step::HandOver(2), Step::Vote(set(&[2, 3, 4])), Step::Drop(1)]);
}

#[test]
fn without_a_spare_a_drain_shrinks_the_group_to_one_that_knows_everything() {
    let mut facts = facts(&[1, 2, 3], 1..=3);
    let going = facts.nodes.get_mut(&3).unwrap();
    (going.going, going.spare) = (true, false);
    assert_eq!(next(&facts), Some(Step::Vote(set(&[1]))));
    let going = facts.nodes.get_mut(&1).unwrap();
    (going.going, going.spare) = (true, false);
    facts.nodes.get_mut(&2).unwrap().close = false;
    assert_eq!(next(&facts), None, "nobody who stays knows everything");
}

#[test]
fn a_drain_waits_for_a_spare_that_is_not_ready_for_long_yet() {
    let mut facts = facts(&[1, 2, 3], 1..=4);
    let going = facts.nodes.get_mut(&3).unwrap();
    (going.going, going.spare) = (true, false);
    let late = facts.nodes.get_mut(&4).unwrap();
    (late.spare, late.soon) = (false, true);
    assert!(matches!(next(&facts), Some(Step::Wait(_))));
    facts.nodes.get_mut(&4).unwrap().spare = true;
    settle(&mut facts);
    assert_eq!(facts.configs, [set(&[1, 2, 4])]);
}

#[test]
fn the_only_voter_is_swapped_when_it_drains() {
    let mut facts = facts(&[1], 1..=2);
    let going = facts.nodes.get_mut(&1).unwrap();
    (going.going, going.spare) = (true, false);
    assert_eq!(settle(&mut facts), [Step::Learn(2), Step::Vote(set(&[2])), Step::Drop(1)]);
}

#[test]
fn a_founder_in_memory_votes_alone_or_not_at_all() {
    let mut facts = facts(&[1], 1..=3);
    let founder = facts.nodes.get_mut(&1).unwrap();
    (founder.persistent, founder.spare) = (false, false);
    assert_eq!(next(&facts), None);
    facts.nodes.insert(4, good(4));
    settle(&mut facts);
    assert_eq!(facts.configs, [set(&[2, 3, 4])]);
}

#[test]
fn spares_in_other_zones_come_first() {
    let mut facts = facts(&[1], 1..=4);
    for (raft_id, zone) in [(1, "x"), (2, "x"), (3, "y"), (4, "z")] {
        facts.nodes.get_mut(&raft_id).unwrap().zone = Some(zone.to_owned());
    }
    settle(&mut facts);
    assert_eq!(facts.configs, [set(&[1, 3, 4])]);
}

prop_compose! {
    fn any_facet()(alive: bool, persistent: bool, going: bool, dead: bool, retired in prop::bool::weighted(0.2),
        close: bool, ready: bool, soon: bool) -> Facet
    {
        Facet {
            alive: alive && !retired,
            persistent,
            going: going && alive && !retired,
            dead: dead && !alive,
            retired,
            close,
            told: close,
            soon: soon && alive && persistent && !going && !retired,
            spare: ready && alive && persistent && !going && !retired,
            ..Facet::default()
        }
    }
}

prop_compose! {
    fn any_facts()(size in prop::sample::select(vec![1usize, 3, 5]),
        facets in prop::collection::vec(any_facet(), 5..12),
        learners in prop::collection::btree_set(5u64..12, 0..3), set in prop::sample::select(vec![0u32, 0, 0, 1, 3, 5]),
        max in prop::sample::select(vec![1u32, 3, 5])) -> Facts
    {
        let mut nodes: BTreeMap<RaftId, Facet> = (0..).zip(facets).collect();
        // The leader: alive, and it knows its own log.
        let me = nodes.get_mut(&0).unwrap();
        (me.alive, me.close, me.dead, me.retired) = (true, true, false, false);
        for (raft_id, facet) in &mut nodes {
            facet.name = format!("n{raft_id}");
        }
        Facts { me: 0, set, max, configs: vec![(0..size as u64).collect()], learners, nodes }
    }
}

proptest! {
    #[test]
    fn every_change_is_safe(mut facts in any_facts()) {
        for _ in 0..40 {
            let Some(step) = next(&facts) else { break };
            let current = facts.configs[0].clone();
            let healthy = |set: &BTreeSet<RaftId>| {
                set.iter().filter(|id| facts.nodes.get(id).is_some_and(|facet| facet.alive && !facet.retired)).count()
            };
            match &step {
                Step::Vote(voters) => {
                    prop_assert!(voters.len() % 2 == 1, "an even number: {voters:?}");
                    prop_assert!(healthy(&current) > current.len() / 2);
                    prop_assert!(healthy(voters) > voters.len() / 2);
                    prop_assert!(voters.contains(&facts.me) || current.len() == 1, "the leader removes itself");
                    for joins in voters.difference(&current) {
                        prop_assert!(facts.learners.contains(joins) && facts.nodes[joins].close);
                        prop_assert!(facts.nodes[joins].persistent && !facts.nodes[joins].retired);
                    }
                    if facts.set == 0 && voters.len() < current.len() {
                        prop_assert!(current.iter().any(|id| facts.nodes[id].going), "it shrinks by itself");
                    }
                }
                Step::HandOver(heir) => prop_assert!(current.contains(heir) && facts.nodes[heir].alive),
                Step::Drop(learner) => prop_assert!(!current.contains(learner)),
                Step::Finish(_) | Step::Learn(_) => {}
                Step::Wait(_) => break,
            }
            carry_out(&mut facts, step);
        }
        let settled = matches!(next(&facts), None | Some(Step::Wait(_)));
        prop_assert!(settled, "it never settles: {facts:?}");
    }
}

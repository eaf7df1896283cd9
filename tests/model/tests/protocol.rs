//! With all rules the protocol is sound; without any one of them it is not.

use std::thread;

use outpost_model::{
    check::{Found, Wrong, explore},
    configuration::{ALL, Configuration, MOST_STATES},
    protocol::Protocol,
    rule::{Rule, Rules},
};

fn holds(class: &str) {
    for Configuration { name, protocol, .. } in ALL.iter().filter(|one| !one.slow && one.name.starts_with(class)) {
        let found = explore(protocol, MOST_STATES);
        assert!(found.wrong.is_none(), "{name}: {:?}\n{}", found.wrong, found.trace(protocol));
        assert!(found.states > 1_000, "{name}: {} states are too few to mean anything", found.states);
    }
}

#[test]
fn nothing_goes_wrong_with_modules_in_memory() {
    holds("ephemeral");
}

#[test]
fn nothing_goes_wrong_with_modules_in_a_store() {
    holds("durable");
}

#[test]
fn nothing_goes_wrong_with_modules_without_state() {
    holds("none");
}

#[test]
fn every_rule_is_missed_when_it_is_off() {
    thread::scope(|scope| {
        let (even, odd): (Vec<_>, Vec<_>) = Rule::all().iter().enumerate().partition(|(at, _)| at % 2 == 0);
        for half in [even, odd] {
            scope.spawn(move || {
                for (_, rule) in half {
                    let found = explore(&rule.missed_in(), MOST_STATES);
                    let missed = matches!(found.wrong, Some(Wrong::Broken(_) | Wrong::Dead(_)));
                    assert!(missed, "{}: nothing in {} states needs it", rule.name(), found.states);
                }
            });
        }
    });
}

#[test]
fn each_bound_for_a_missing_rule_is_safe_with_it() {
    let mut seen: Vec<Protocol> = Vec::new();
    for rule in Rule::all() {
        let protocol = Protocol { rules: Rules::ALL, ..rule.missed_in() };
        if !seen.contains(&protocol) {
            let Found { wrong, .. } = explore(&protocol, MOST_STATES);
            assert_eq!(wrong, None, "{}", rule.name());
            seen.push(protocol);
        }
    }
}

/// A state that was dropped must not have been one that matters.
#[test]
fn to_leave_out_what_makes_no_difference_makes_none() {
    for name in ["ephemeral-leader", "durable-moves", "none-leader"] {
        let configuration = Configuration::named(name).unwrap();
        let mut budget = configuration.protocol.budget;
        (budget.moves, budget.lease_ends) = (budget.moves.min(1), budget.lease_ends.min(1));
        let less = Protocol { budget, ..configuration.protocol };
        let all = Protocol { reduce: false, ..less };
        let (less, all) = (explore(&less, MOST_STATES), explore(&all, MOST_STATES));
        assert_eq!((less.wrong, all.wrong), (None, None), "{name}");
        assert!(less.states < all.states, "{name}: {} of {}", less.states, all.states);
    }
}

#[test]
fn a_trace_tells_each_step() {
    let protocol = Rule::OpenAfterActivated.missed_in();
    let found = explore(&protocol, MOST_STATES);
    let trace = found.trace(&protocol);
    assert!(trace.contains(&format!("{:>4}. ", found.steps())), "it stops early:\n{trace}");
    assert!(trace.contains("I3: "), "{trace}");
}

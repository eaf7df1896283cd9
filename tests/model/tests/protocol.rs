//! With all rules the protocol is sound; without any one of them it is not.

use std::thread;

use outpost_model::{
    check::{Wrong, explore},
    configuration::{ALL, Configuration, MOST_STATES, Subject},
    protocol::Protocol,
    rule::{Rule, Rules},
};

fn holds(class: &str) {
    for Configuration { name, subject, .. } in ALL.iter().filter(|one| !one.slow && one.name.starts_with(class)) {
        let found = subject.explore();
        assert!(found.wrong.is_none(), "{name}: {:?}\n{}", found.wrong, found.trace);
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
fn nothing_goes_wrong_while_the_voters_change() {
    holds("voters");
}

#[test]
fn every_rule_is_missed_when_it_is_off() {
    thread::scope(|scope| {
        let (even, odd): (Vec<_>, Vec<_>) = Rule::all().iter().enumerate().partition(|(at, _)| at % 2 == 0);
        for half in [even, odd] {
            scope.spawn(move || {
                for (_, rule) in half {
                    let found = rule.missed_in().explore();
                    let missed = matches!(found.wrong, Some(Wrong::Broken(_) | Wrong::Dead(_)));
                    assert!(missed, "{}: nothing in {} states needs it", rule.name(), found.states);
                }
            });
        }
    });
}

#[test]
fn each_bound_for_a_missing_rule_is_safe_with_it() {
    let mut seen: Vec<Subject> = Vec::new();
    for rule in Rule::all() {
        let subject = rule.missed_in().with(Rules::ALL);
        if !seen.contains(&subject) {
            assert_eq!(subject.explore().wrong, None, "{}", rule.name());
            seen.push(subject);
        }
    }
}

/// A state that was dropped must not have been one that matters.
#[test]
fn to_leave_out_what_makes_no_difference_makes_none() {
    for name in ["ephemeral-leader", "durable-moves", "none-leader"] {
        let Subject::Part(protocol) = Configuration::named(name).unwrap().subject else {
            panic!("{name} is of voters")
        };
        let mut budget = protocol.budget;
        (budget.moves, budget.lease_ends) = (budget.moves.min(1), budget.lease_ends.min(1));
        let less = Protocol { budget, ..protocol };
        let all = Protocol { reduce: false, ..less };
        let (less, all) = (explore(&less, MOST_STATES), explore(&all, MOST_STATES));
        assert_eq!((less.wrong, all.wrong), (None, None), "{name}");
        assert!(less.states < all.states, "{name}: {} of {}", less.states, all.states);
    }
}

#[test]
fn a_trace_tells_each_step() {
    for (rule, what) in [(Rule::OpenAfterActivated, "I3: "), (Rule::VotersInForce, "grants")] {
        let found = rule.missed_in().explore();
        let trace = found.trace;
        assert!(trace.contains(&format!("{:>4}. ", found.steps)), "it stops early:\n{trace}");
        assert!(trace.contains(what), "{trace}");
    }
}

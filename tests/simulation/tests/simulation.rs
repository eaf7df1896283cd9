//! The simulation itself, and the seeds that every change has to pass. To be run with `--release`.
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::{path::Path, process::Output};

/// Enough to find most of the rules that can be broken, and some minutes on two cores.
const SEEDS: &str = "60";
/// For what takes a crash at one moment of a move to show, or a process that is stopped amid a call until somebody else has
/// taken over: about one seed in sixty to eighty does. The run ends with the first.
const MANY: &str = "500";

fn simulate(arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_outpost-simulation")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// All else rests on this.
#[test]
fn a_seed_is_a_run() {
    for seed in ["1", "2", "3"] {
        let first = simulate(&["replay", seed, "--json"]);
        let second = simulate(&["replay", seed, "--json"]);
        assert!(text(&first).contains("\"hash\":"), "{}", text(&first));
        assert_eq!(text(&first), text(&second), "seed {seed} is not the same the second time");
    }
    let [one, two] = ["1", "2"].map(|seed| text(&simulate(&["replay", seed, "--json"])));
    assert_ne!(one, two, "two seeds are the same");
}

#[test]
fn promises_are_kept_whatever_goes_wrong() {
    let output = simulate(&["run", "--seeds", SEEDS]);
    println!("{}", text(&output));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn seeds_that_once_failed_do_not() {
    let list = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions.txt")).unwrap();
    for line in list.lines() {
        let written = line.split('#').next().unwrap_or_default();
        let arguments: Vec<&str> = written.split_whitespace().collect();
        if arguments.is_empty() {
            continue;
        }
        let output = simulate(&[&["replay"], arguments.as_slice()].concat());
        assert!(output.status.success(), "seed {line}: {}", text(&output));
    }
}

/// A simulation that finds nothing may not look. Each of these breaks a rule of the node.
#[test]
fn a_rule_that_is_broken_is_noticed() {
    let rules = [
        // A call is let in, or one that was already inside is answered.
        ("early-take-over", SEEDS, ["INV-1", "I5"]),
        ("no-lease-check", SEEDS, ["INV-1", "I5"]),
        ("late-answer", MANY, ["I5"; 2]),
        // Usually nobody waits for an answer for so long that somebody else has taken over.
        ("no-caller-fence --with mute", SEEDS, ["I5"; 2]),
        // Which call is seen first to be made again: one that has an answer by then, or one that was said not to have run.
        ("second-attempt", SEEDS, ["INV-2", "I7"]),
        ("early-seal", SEEDS, ["I3"; 2]),
        ("forgotten-answers", SEEDS, ["I4"; 2]),
        ("no-fence", SEEDS, ["I6"; 2]),
        ("unsealed-copy", MANY, ["I9"; 2]),
    ];
    for (broken, seeds, noticed) in rules {
        let options: Vec<&str> = broken.split(' ').collect();
        let output = simulate(&[&["run", "--seeds", seeds, "--break"], options.as_slice()].concat());
        assert_eq!(output.status.code(), Some(1), "nobody noticed {broken}: {}", text(&output));
        let found = text(&output);
        assert!(
            noticed.iter().any(|noticed| found.contains(noticed)),
            "{broken} was noticed as something else: {found}"
        );
        assert!(found.contains(&format!("--break {broken}")), "the command does not show it again: {found}");
    }
}

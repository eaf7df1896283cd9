//! A short run of each fuzz target: its corpus, and what is made of it. See `tests/fuzz/README.md`.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{fs, panic::catch_unwind, path::Path};

use outpost::fuzzing::TARGETS;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};

/// How many inputs are made for each target.
const MADE: usize = 3000;

/// The inputs of a folder, in the order of their names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// An input like others: cut, joined, with bytes changed, doubled or left out.
fn made(corpus: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
    let mut input = corpus.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..6) {
            0 => input.truncate(at),
            1 => input.insert(at, random.random()),
            2 if at < input.len() => drop(input.remove(at)),
            3 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            4 if at < input.len() => {
                let piece = input[at..].to_vec();
                input.extend(piece);
                input.truncate(1 << 16);
            }
            _ => {
                let other = corpus.choose(random).map(Vec::as_slice).unwrap_or_default();
                input.truncate(at);
                input.extend(&other[random.random_range(0..=other.len())..]);
            }
        }
    }
    input
}

#[test]
fn no_input_breaks_what_strangers_reach() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has nothing to begin with");
        let mut random = SmallRng::seed_from_u64(7);
        let made = (0..MADE).map(|_| self::made(&corpus, &mut random)).collect::<Vec<_>>();
        for input in corpus.iter().chain(&made) {
            if catch_unwind(|| target(input)).is_err() {
                panic!("{name} breaks with {:?}; keep it in tests/fuzz/corpus/{name}", String::from_utf8_lossy(input));
            }
        }
    }
}

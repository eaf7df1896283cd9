//! What a cluster costs, and how long its changes take: nodes as processes of their own on loopback.
//!
//! ```text
//! cargo bench -p outpost-tests --bench cluster                # all of it, in a few minutes
//! cargo bench -p outpost-tests --bench cluster -- hop crash   # parts: remote, hop, shop, move, state, drain, new, rollout,
//!                                                             # crash, idle, many
//! cargo bench -p outpost-tests --bench cluster -- many 300    # 100 nodes in one process, then 300
//! ```
//!
//! Prints Markdown, and with `--json FILE` keeps the same for machines. `--rounds N` sets the number of interleaved
//! rounds (default 5), `--seconds N` how long each round of `remote` and `hop` calls (default 1), `--connections N` how many
//! connections its client has (default 4), `--moves N` how often a module with state moves (default 50); with `--sealed`, the
//! gossip of `many` has a key.

#![expect(clippy::print_stdout, reason = "what a benchmark prints is its product")]

mod clients;
mod crash;
mod hop;
mod idle;
mod many;
mod moves;
mod new;
mod nodes;
mod plots;
mod proxies;
mod remote;
mod report;
mod rollout;
mod shop;
mod state;

use std::{env, fs, path::PathBuf, str::FromStr, time::Duration};

use report::Report;

/// The application that all nodes run.
const ECHO: &str = env!("CARGO_BIN_EXE_echo");
/// Its module.
const MODULE: &str = "echo";

/// What the command line asks for.
#[derive(Debug, Clone)]
struct Plan {
    rounds: usize,
    time: Duration,
    connections: usize,
    /// Of a module with state, in a row.
    moves: usize,
    /// Of the part `remote`: bytes of a message, and calls in flight.
    loads: Vec<(usize, usize)>,
    /// Of the part `many`: gossip has a key.
    sealed: bool,
}

fn main() {
    let mut parts = Vec::new();
    let mut sizes = vec![100];
    let mut json = None;
    let mut plots = None;
    let mut plan =
        Plan { rounds: 5, time: Duration::from_secs(1), connections: 4, moves: 50, loads: Vec::new(), sealed: false };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {}
            "--plots" => plots = Some(PathBuf::from(words.next().expect("--plots takes a folder"))),
            "--json" => json = Some(PathBuf::from(words.next().expect("--json takes a file"))),
            "--rounds" => plan.rounds = number(words.next()),
            "--seconds" => plan.time = Duration::from_secs(number(words.next())),
            "--connections" => plan.connections = number(words.next()),
            "--serve" => {
                let what = words.next().expect("--serve takes what to serve");
                return if what.contains(' ') { shop::serve(&what) } else { remote::serve(&what) };
            }
            "remote" | "hop" | "shop" | "move" | "state" | "drain" | "new" | "rollout" | "crash" | "idle" | "many" => {
                parts.push(word)
            }
            "--sealed" => plan.sealed = true,
            "--moves" => plan.moves = number(words.next()),
            "--load" => {
                let load = words.next().unwrap_or_default();
                let (bytes, in_flight) = load.split_once('x').expect("--load takes BYTESxCALLS: 100x64");
                plan.loads.push((number(Some(bytes.to_owned())), number(Some(in_flight.to_owned()))));
            }
            size if size.parse::<usize>().is_ok() => sizes.push(number(Some(word))),
            _ => panic!(
                "`{word}` is no part of this: remote, hop, shop, move, state, drain, new, rollout, crash, idle, many"
            ),
        }
    }
    if plan.loads.is_empty() {
        plan.loads.extend(remote::LOADS);
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let facts = machine();
    for (key, fact) in &facts {
        println!("- {key}: {fact}");
    }
    let mut report = Report::default();
    if wanted("remote") {
        remote::run(&plan, &mut report);
    }
    if wanted("hop") {
        hop::run(&plan, &mut report);
    }
    if wanted("shop") {
        shop::run(&plan, &mut report);
    }
    if wanted("move") {
        moves::run(&mut report);
    }
    if wanted("state") {
        state::run(&plan, &mut report);
    }
    if wanted("drain") {
        state::drain(&plan, &mut report);
    }
    if wanted("new") {
        new::run(&plan, &mut report);
    }
    if wanted("rollout") {
        rollout::run(&plan, &mut report);
    }
    if wanted("crash") {
        crash::run(&plan, &mut report);
    }
    if wanted("idle") {
        idle::run(&mut report);
    }
    if wanted("many") {
        many::run(&sizes, &plan, &mut report);
    }
    if let Some(path) = json {
        report.write(&path, &facts);
    }
    if let Some(folder) = plots {
        plots::draw(report.found(), &folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    }
}

fn number<T: FromStr>(word: Option<String>) -> T {
    word.and_then(|word| word.parse().ok()).expect("a number")
}

/// What the numbers depend on.
fn machine() -> Vec<(String, String)> {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let line = |path: &str, name: &str| {
        let text = file(path);
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    [
        ("cores", cores.to_string()),
        ("processor", line("/proc/cpuinfo", "model name")),
        ("kernel", file("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("memory", line("/proc/meminfo", "MemTotal")),
        ("load before", file("/proc/loadavg").trim().to_owned()),
    ]
    .map(|(key, fact)| (key.to_owned(), fact))
    .to_vec()
}

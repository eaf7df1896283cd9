//! What a cluster costs, and how long its changes take: nodes as processes of their own on loopback.
//!
//! ```text
//! cargo bench -p outpost-tests --bench cluster                # all of it, in a few minutes
//! cargo bench -p outpost-tests --bench cluster -- hop crash   # parts
//! cargo bench -p outpost-tests --bench cluster -- --help      # what parts there are, and options
//! ```
//!
//! Prints Markdown.

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
mod rounds;
mod served;
mod shop;
mod spread;
mod state;
mod streams;

use std::{env, fs, path::PathBuf, str::FromStr, time::Duration};

use report::Report;

/// The application that all nodes run.
const ECHO: &str = env!("CARGO_BIN_EXE_echo");
/// Its module.
const MODULE: &str = "echo";

/// What can be asked for, in the order in which it runs.
const PARTS: [(&str, &str); 13] = [
    ("remote", "a call from a handle on one node to a module on another"),
    ("streams", "the four kinds of calls, from one node to a module on another"),
    ("hop", "a call by way of a node that does not host its module, and of proxies"),
    ("spread", "how evenly replicas are called, and how little one that is slow"),
    ("shop", "the shop in one process, on three nodes, and as microservices"),
    ("move", "a module moves while it is called"),
    ("state", "a module with state moves"),
    ("drain", "a node with state is drained"),
    ("new", "a node joins"),
    ("rollout", "all nodes are restarted one after the other"),
    ("crash", "a host ends, or stands still"),
    ("idle", "nodes that have nothing to do"),
    ("many", "100 nodes in one process, or as many as are asked for: `many 300`"),
];

const OPTIONS: &str = "\
  --rounds N          interleaved rounds (5)
  --seconds N         how long a round of `remote`, `streams`, `hop`, `spread` and `shop` calls (1)
  --connections N     of the clients of `hop` and `spread` (4)
  --load BYTESxCALLS  of `remote`: 100x64 is 64 calls of 100 bytes in flight; can be repeated
  --moves N           how often a module with state moves (50)
  --sealed            gossip of `many` has a key
  --json FILE         keeps what is found for machines
  --plots FOLDER      draws ratios
  --help              this";

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
                return match what.split_once(' ') {
                    Some(("streams", side)) => streams::serve(side),
                    Some(_) => shop::serve(&what),
                    None => remote::serve(&what),
                };
            }
            "--help" => return help(),
            part if PARTS.iter().any(|(known, _)| *known == part) => parts.push(word),
            "--sealed" => plan.sealed = true,
            "--moves" => plan.moves = number(words.next()),
            "--load" => {
                let load = words.next().unwrap_or_default();
                let (bytes, in_flight) = load.split_once('x').expect("--load takes BYTESxCALLS: 100x64");
                plan.loads.push((number(Some(bytes.to_owned())), number(Some(in_flight.to_owned()))));
            }
            size if size.parse::<usize>().is_ok() => sizes.push(number(Some(word))),
            _ => panic!("`{word}` is no part of this: {}", PARTS.map(|(part, _)| part).join(", ")),
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
    if wanted("streams") {
        streams::run(&plan, &mut report);
    }
    if wanted("hop") {
        hop::run(&plan, &mut report);
    }
    if wanted("spread") {
        spread::run(&plan, &mut report);
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

fn help() {
    println!(
        "cargo bench -p outpost-tests --bench cluster [-- [OPTIONS] [PART...]]\n\nParts, all of them where none is named:"
    );
    PARTS.iter().for_each(|(part, what)| println!("  {part:<10}{what}"));
    println!("\nOptions:\n{OPTIONS}");
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

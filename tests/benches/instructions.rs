//! How many instructions the pieces of the call path take. Unlike times, counts are the same on a busy machine, so that they can
//! be held to a bound.
//!
//! ```text
//! cargo bench -p outpost-tests --bench instructions                     # all pieces, compared with instructions.toml
//! cargo bench -p outpost-tests --bench instructions -- gate-pass        # some of them
//! cargo bench -p outpost-tests --bench instructions -- --bless          # what is counted now is the new baseline
//! ```
//!
//! The program runs itself under Valgrind's callgrind, for each piece twice: with so many times and with twice as many. The
//! difference is without what comes before the first time.

#![expect(clippy::print_stdout, reason = "what a benchmark prints is its product")]

use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    io::ErrorKind,
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
};

use futures_util::FutureExt as _;
use outpost::{
    Sources,
    measure::{Frames, LeasedGate, Policed, Routes},
};
use outpost_tests::{
    measure::{Echo, ask, echo_app, runtime},
    v1::{Answer, Ask, RelayHandle, relay_server::Relay},
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tonic::{Request, Response, Status};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.toml");
/// At the head of that file.
const ABOUT_IT: &str = "\
# Instructions a time of each piece of the call path, as Valgrind counts them. Written by
#     cargo bench -p outpost-tests --bench instructions -- --bless
# Other compilers, C libraries and processors count a little differently: bless before a change, then look at what it does.

";
/// What a baseline may be exceeded by, where its file says nothing else.
const BOUND_PERCENT: f64 = 3.0;
/// Bytes of a message.
const BYTES: usize = 100;

const USAGE: &str = "\
Counts instructions of pieces of the call path, and compares them with tests/benches/instructions.toml.

cargo bench -p outpost-tests --bench instructions [-- [--bless] [PIECE...]]

  --bless  what is counted now is the new baseline of these pieces, or of all
  --help   this

Ends with 0 if no piece exceeds its baseline by more than the bound, 1 if one does, 2 if nothing could be counted.";

/// Does a piece so many times.
type Run = Box<dyn FnMut(u32)>;

struct Piece {
    name: &'static str,
    what: &'static str,
    /// What is counted is done so often, and twice as often.
    times: u32,
    prepare: fn() -> Run,
}

const PIECES: [Piece; 7] = [
    Piece {
        name: "trait-call",
        what: "plain call of the service's trait, for comparison",
        times: 10_000,
        prepare: plain,
    },
    Piece { name: "local-call", what: "call of a handle, module on this node", times: 10_000, prepare: local },
    Piece { name: "gate-pass", what: "the gate: in, may it answer, out", times: 50_000, prepare: gate },
    Piece { name: "policy-check", what: "may this module call that one", times: 50_000, prepare: policy },
    Piece { name: "route-find", what: "from a path to its service, of eight", times: TABLES * 40, prepare: route },
    Piece { name: "link-call", what: "a call in a link: written, and read", times: 10_000, prepare: link_call },
    Piece { name: "link-answer", what: "its answer: written, and read", times: 10_000, prepare: link_answer },
];

fn main() -> ExitCode {
    match run(env::args().skip(1).filter(|word| word != "--bench")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

/// Whether no piece takes more than it may.
fn run(mut words: impl Iterator<Item = String>) -> Result<bool, String> {
    let (mut bless, mut names) = (false, Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--help" => {
                println!("{USAGE}\n\nPieces:");
                PIECES.iter().for_each(|piece| println!("  {:<13}{}", piece.name, piece.what));
                return Ok(true);
            }
            "--bless" => bless = true,
            "--count" => {
                let times =
                    words.next().and_then(|times| times.parse().ok()).ok_or("--count takes a number and a name")?;
                let name = words.next().ok_or("--count takes a number and a name")?;
                do_as_counted(&mut *(find(&name)?.prepare)(), times);
                return Ok(true);
            }
            name => names.push(find(name)?.name),
        }
    }
    if cfg!(debug_assertions) {
        return Err("What counts is the release profile: use `cargo bench`.".to_owned());
    }
    let with = Tools::look()?;
    let known = Baseline::read()?;
    let mut found = BTreeMap::new();
    for piece in PIECES.iter().filter(|piece| names.is_empty() || names.contains(&piece.name)) {
        eprintln!("{}: under callgrind ...", piece.name);
        let (once, twice) = (with.count(piece, piece.times)?, with.count(piece, 2 * piece.times)?);
        found.insert(piece.name.to_owned(), (twice as f64 - once as f64) / f64::from(piece.times));
    }
    let faults = known.compare(&found);
    if bless {
        known.with(found, with.facts()).write()?;
        println!("\nThis is the baseline now: {BASELINE}");
    } else if !faults.is_empty() {
        known.explain(&faults, &with.facts());
    }
    Ok(bless || faults.is_empty())
}

fn find(name: &str) -> Result<&'static Piece, String> {
    let known = || PIECES.map(|piece| piece.name).join(", ");
    PIECES.iter().find(|piece| piece.name == name).ok_or_else(|| format!("`{name}` is no piece: {}", known()))
}

/// Valgrind knows this function by its name, and counts from where it is entered to where it is left, on this thread.
#[inline(never)]
fn do_as_counted(run: &mut dyn FnMut(u32), times: u32) {
    run(times);
    // Otherwise it would be a jump, and never be left.
    black_box(());
}

/// What counts.
struct Tools {
    valgrind: String,
    folder: TempDir,
}

impl Tools {
    fn look() -> Result<Self, String> {
        let version = Command::new("valgrind").arg("--version").output().map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                "Instructions are counted by Valgrind, which is not installed: `apt-get install valgrind`.".to_owned()
            }
            _ => format!("valgrind: {error}"),
        })?;
        let valgrind = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        let folder = tempfile::tempdir().map_err(|error| format!("a folder for what is counted: {error}"))?;
        Ok(Self { valgrind, folder })
    }

    /// What counts depend on.
    fn facts(&self) -> BTreeMap<String, String> {
        let facts =
            [("rust", env!("BUILT_BY")), ("valgrind", self.valgrind.as_str()), ("processor", env::consts::ARCH)];
        facts.map(|(name, fact)| (name.to_owned(), fact.to_owned())).into()
    }

    /// The instructions of a piece that is done so many times, and of what the first time has to do.
    fn count(&self, piece: &Piece, times: u32) -> Result<u64, String> {
        let (log, counts) = (self.folder.path().join("log"), self.folder.path().join("counts"));
        let ended = Command::new("valgrind")
            .arg("--tool=callgrind")
            .arg("--toggle-collect=*do_as_counted*")
            .arg(format!("--callgrind-out-file={}", counts.display()))
            .arg(format!("--log-file={}", log.display()))
            .arg(env::current_exe().map_err(|error| format!("this program: {error}"))?)
            .args(["--count", &times.to_string(), piece.name])
            .output()
            .map_err(|error| format!("valgrind: {error}"))?;
        let totals = fs::read_to_string(&counts).ok().and_then(|counts| {
            let totals = counts.lines().find_map(|line| line.strip_prefix("totals: "))?;
            totals.trim().parse::<u64>().ok().filter(|totals| *totals > 0)
        });
        match totals {
            Some(totals) if ended.status.success() => Ok(totals),
            _ => {
                let says = |path: &Path| fs::read_to_string(path).unwrap_or_default();
                let (own, log) = (String::from_utf8_lossy(&ended.stderr), says(&log));
                Err(format!("`{}` could not be counted ({}):\n{own}{log}", piece.name, ended.status))
            }
        }
    }
}

/// The file that is checked in.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Baseline {
    /// See [`BOUND_PERCENT`].
    bound_percent: Option<f64>,
    counted_with: BTreeMap<String, String>,
    instructions: BTreeMap<String, f64>,
}

impl Baseline {
    fn read() -> Result<Self, String> {
        match fs::read_to_string(BASELINE) {
            Ok(text) => toml::from_str(&text).map_err(|error| format!("{BASELINE}: {error}")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("{BASELINE}: {error}")),
        }
    }

    /// The same with what was counted now.
    fn with(mut self, found: BTreeMap<String, f64>, counted_with: BTreeMap<String, String>) -> Self {
        self.bound_percent.get_or_insert(BOUND_PERCENT);
        self.instructions.extend(found.into_iter().map(|(name, count)| (name, (count * 10.0).round() / 10.0)));
        self.instructions.retain(|name, _| find(name).is_ok());
        Self { counted_with, ..self }
    }

    fn write(&self) -> Result<(), String> {
        let text = toml::to_string(self).map_err(|error| error.to_string())?;
        fs::write(BASELINE, format!("{ABOUT_IT}{text}")).map_err(|error| format!("{BASELINE}: {error}"))
    }

    /// Prints what was found beside what is known; gives what is not within the bound.
    fn compare(&self, found: &BTreeMap<String, f64>) -> Vec<String> {
        let bound = self.bound_percent.unwrap_or(BOUND_PERCENT);
        println!("| piece | | instructions | baseline | change |\n|---|---|---|---|---|");
        let (mut faults, mut gains) = (Vec::new(), Vec::new());
        for Piece { name, what, .. } in &PIECES {
            let Some(count) = found.get(*name) else { continue };
            let Some(baseline) = self.instructions.get(*name) else {
                println!("| `{name}` | {what} | {count:.1} | - | - |");
                faults.push(format!("`{name}` has no baseline, and takes {count:.1} instructions now."));
                continue;
            };
            let change = 100.0 * (count / baseline - 1.0);
            println!("| `{name}` | {what} | {count:.1} | {baseline:.1} | {change:+.2} % |");
            if change > bound {
                faults.push(format!(
                    "`{name}` takes {count:.1} instructions; its baseline is {baseline:.1}, the bound +{bound} %, and this \
                     is {change:+.2} %."
                ));
            } else if change < -bound {
                gains.push(format!("`{name}` has become cheaper: `--bless {name}` holds it to that."));
            }
        }
        if !gains.is_empty() {
            println!("\n{}", gains.join("\n"));
        }
        faults
    }

    /// Says what is wrong, and what to do.
    fn explain(&self, faults: &[String], with: &BTreeMap<String, String>) {
        eprintln!();
        faults.iter().for_each(|fault| eprintln!("{fault}"));
        for (fact, now) in with {
            match self.counted_with.get(fact) {
                Some(then) if then == now => {}
                then => {
                    eprintln!(
                        "The baseline's {fact} is {}, and now it is {now}.",
                        then.map_or("unknown", String::as_str)
                    )
                }
            }
        }
        eprintln!(
            "If that is the price of something worth it, accept it, and say in the commit what for:\n    cargo bench -p \
             outpost-tests --bench instructions -- --bless"
        );
    }
}

/// Calls that are over at their first poll, so that nothing else runs; each sends on what the one before brought back.
fn call<F: Future<Output = Result<Response<Answer>, Status>>>(times: u32, call: impl Fn(Ask) -> F) {
    let mut ask = ask(BYTES);
    for _ in 0..times {
        let answer = call(std::mem::take(&mut ask)).now_or_never().expect("an echo does not wait");
        ask.payload = black_box(answer).expect("an echo does not fail").into_inner().payload;
    }
}

fn plain() -> Run {
    let plain: Arc<dyn Relay> = Arc::new(Echo::default());
    Box::new(move |times| call(times, |ask| plain.unary(Request::new(ask))))
}

fn local() -> Run {
    // Of one thread, which does nothing else until the calls are over.
    let runtime = runtime(1);
    let node = runtime.block_on(echo_app(Echo::default()).start(&Sources::on_free_ports())).expect("a node");
    let handle: RelayHandle = node.handle().expect("the module");
    Box::new(move |times| {
        let _context = runtime.enter();
        let _runs = &node;
        call(times, |ask| handle.unary(ask));
    })
}

/// Repeats what has to succeed.
fn repeated(mut act: impl FnMut() -> bool + 'static) -> Run {
    Box::new(move |times| {
        for _ in 0..times {
            assert!(black_box(act()), "what is counted succeeds");
        }
    })
}

fn gate() -> Run {
    let gate = LeasedGate::open();
    repeated(move || black_box(&gate).pass())
}

fn policy() -> Run {
    let folder = tempfile::tempdir().expect("a folder for a policy");
    let policed = Policed::by_a_file_in(folder.path()).expect("a good policy");
    repeated(move || black_box(&policed).admits())
}

/// Each has another seed for its hashes, which decides whether a look at a table meets a service that is not the right one.
const TABLES: u32 = 1000;

fn route() -> Run {
    let services = ["Cart", "Catalog", "Checkout", "Orders", "Payment", "Pricing", "Shipping", "Support"];
    let services = services.map(|service| format!("shop.v1.{service}"));
    let services = services.each_ref().map(String::as_str);
    let tables: Vec<Routes> = (0..TABLES).map(|_| Routes::of(&services)).collect();
    Box::new(move |times| {
        // Each table as often as the others.
        for table in tables.iter().cycle().take(times as usize) {
            assert!(table.finds(black_box("/shop.v1.Orders/Get")), "the service is there");
        }
    })
}

fn link_call() -> Run {
    let mut frames = Frames::of(BYTES);
    repeated(move || black_box(&mut frames).carry_call())
}

fn link_answer() -> Run {
    let mut frames = Frames::of(BYTES);
    repeated(move || black_box(&mut frames).carry_answer())
}

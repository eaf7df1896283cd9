//! Runs seeds, many or one.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write as _},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand, ValueEnum};
use outpost::simulation::Rule;
use outpost_simulation::{
    book::Calls,
    chaos::{Fault, NOT_YET},
    machine::turn,
    run::{Plan, Report, run},
};
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

/// A run that takes longer than this hangs.
const LONGEST: Duration = Duration::from_secs(300);

/// Whole nodes with simulated network, clocks and randomness: a seed is a run, and can be run again.
#[derive(Debug, Parser)]
#[command(
    name = "outpost-simulation",
    after_help = "Examples:
  outpost-simulation run --seeds 100            seeds 0 to 99
  outpost-simulation run --from 5000 --minutes 10
  outpost-simulation replay 42                  one seed again, and its report
  outpost-simulation replay 42 --trace          and what happened, line by line
  outpost-simulation run --break no-lease-check must find a violation

Exit codes: 0 all promises were kept, 1 one was not, 2 wrong arguments."
)]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs one seed after the other, until a promise is not kept.
    Run {
        /// How many seeds.
        #[arg(long, default_value_t = 20)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Ends after so many minutes, and then does not count seeds.
        #[arg(long)]
        minutes: Option<u64>,
        /// How many run at a time; each has a process of its own.
        #[arg(long)]
        jobs: Option<usize>,
        #[command(flatten)]
        options: Options,
    },
    /// Runs one seed.
    Replay {
        /// Which.
        seed: u64,
        /// Prints what nodes log and what goes wrong, with the simulated time. `OUTPOST_LOG` filters.
        #[arg(long)]
        trace: bool,
        /// Prints the report as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Options {
    /// How long things go wrong in each run, in simulated seconds.
    #[arg(long, default_value_t = 40)]
    seconds: u64,
    /// Breaks a rule of the node on purpose.
    #[arg(long = "break", value_enum)]
    broken: Option<Broken>,
    /// Adds a kind of fault that is left out otherwise.
    #[arg(long, value_enum)]
    with: Vec<Extra>,
}

/// Rules that can be broken.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Broken {
    /// Modules are taken over before the lease of their owner has ended.
    EarlyTakeOver,
    /// A gate does not look whether the lease holds.
    NoLeaseCheck,
    /// It does not look again before an answer leaves.
    LateAnswer,
    /// A node takes an answer from before a take-over that it knows of.
    NoCallerFence,
    /// A call that may have run is sent again.
    SecondAttempt,
    /// A state is sealed while calls are inside.
    EarlySeal,
    /// The answers that are kept do not go with the state.
    ForgottenAnswers,
    /// A fenced store takes what an earlier owner writes.
    NoFence,
    /// Who has a copy, or part of one, serves it when it takes over.
    UnsealedCopy,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Extra {
    /// A machine is suspended, and its monotonic clock stands still.
    Suspend,
    /// What a node says arrives when somebody else has taken over, and callers wait for longer.
    Mute,
}

impl Options {
    fn plan(&self, seed: u64) -> Plan {
        let broken = self.broken.map(|broken| match broken {
            Broken::EarlyTakeOver => Rule::TakeOverWaitsForTheLease,
            Broken::NoLeaseCheck => Rule::GateLooksAtTheLease,
            Broken::LateAnswer => Rule::AnswerLooksAtTheLease,
            Broken::NoCallerFence => Rule::CallerLooksAtTheFence,
            Broken::SecondAttempt => Rule::NoSecondAttempt,
            Broken::EarlySeal => Rule::SealWaitsForCalls,
            Broken::ForgottenAnswers => Rule::AnswersTravel,
            Broken::NoFence => Rule::FenceIsChecked,
            Broken::UnsealedCopy => Rule::CopyIsNamed,
        });
        let with = self.with.iter().map(|extra| match extra {
            Extra::Suspend => Fault::Suspend,
            Extra::Mute => Fault::Mute,
        });
        Plan { seed, seconds: self.seconds, broken, with: with.collect() }
    }

    /// The same, as they are written.
    fn written(&self) -> Vec<String> {
        let mut written = vec!["--seconds".to_owned(), self.seconds.to_string()];
        let name =
            |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| value().map(|value| value.get_name().to_owned());
        if let Some(broken) = self.broken
            && let Some(name) = name(&|| broken.to_possible_value())
        {
            written.extend(["--break".to_owned(), name]);
        }
        for extra in &self.with {
            if let Some(name) = name(&|| extra.to_possible_value()) {
                written.extend(["--with".to_owned(), name]);
            }
        }
        written
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        What::Run { seeds, from, minutes, jobs, options } => {
            let jobs = jobs.or_else(|| thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
            many(from, if minutes.is_some() { u64::MAX } else { seeds }, minutes, jobs.max(1), &options)
        }
        What::Replay { seed, trace, json, options } => one(options.plan(seed), trace, json),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("the simulation did not run: {error}");
            ExitCode::from(2)
        }
    }
}

/// Simulated time, and whose turn it is.
struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let ms = outpost_simulation::book::now_ms();
        let who = turn().map(|board| board.name().to_owned()).unwrap_or_else(|| "--".to_owned());
        write!(w, "{:>5}.{:03} {who:<7}", ms / 1000, ms % 1000)
    }
}

fn one(plan: Plan, trace: bool, json: bool) -> io::Result<bool> {
    if trace {
        let filter = std::env::var("OUTPOST_LOG").unwrap_or_else(|_| "info,openraft=warn,chitchat=warn".to_owned());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_timer(SimulatedTime)
            .with_writer(io::stderr)
            .init();
    }
    // In memory, where there is such a place: a simulated disk takes simulated time.
    let memory = std::path::Path::new("/dev/shm");
    let data = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
    let path = data.path().to_owned();
    // Whatever this thread did before would show in the random numbers.
    let report = thread::Builder::new().stack_size(16 << 20).spawn(move || run(&plan, &path))?;
    let report = report.join().map_err(|_| io::Error::other("the simulation itself panicked"))?;
    let mut out = io::stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => writeln!(out, "{}", Sums::of(&report))?,
    }
    if let Some(violation) = &report.violation {
        eprintln!("{violation}");
    }
    Ok(report.violation.is_none())
}

/// The sums of many runs.
#[derive(Debug, Default)]
struct Sums {
    runs: u64,
    simulated_ms: u64,
    calls: Calls,
    moves_asked: u64,
    moves: u64,
    take_overs: u64,
    faults: BTreeMap<String, u64>,
    sprung: u64,
    starts: u64,
    slowest_recovery_ms: u64,
    hash: u64,
}

impl Sums {
    fn of(report: &Report) -> Self {
        let mut sums = Self::default();
        sums.add(report);
        sums
    }

    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.simulated_ms += report.simulated_ms;
        let (sums, calls) = (&mut self.calls, report.calls);
        sums.sent += calls.sent;
        sums.acknowledged += calls.acknowledged;
        sums.not_executed += calls.not_executed;
        sums.unknown += calls.unknown;
        sums.lost += calls.lost;
        sums.duplicated += calls.duplicated;
        self.moves_asked += report.moves_asked;
        self.moves += report.moves;
        self.take_overs += report.take_overs;
        self.sprung += report.sprung;
        self.starts += report.starts;
        self.slowest_recovery_ms = self.slowest_recovery_ms.max(report.recovered_ms);
        self.hash ^= report.hash;
        for (kind, count) in &report.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Calls { sent, acknowledged, not_executed, unknown, lost, duplicated } = self.calls;
        writeln!(
            f,
            "runs          {}, {} simulated seconds, digest {:016x}",
            self.runs,
            self.simulated_ms / 1000,
            self.hash
        )?;
        writeln!(
            f,
            "calls         {sent} sent: {acknowledged} acknowledged, {not_executed} not executed, {unknown} unknown"
        )?;
        writeln!(f, "              {lost} lost, {duplicated} duplicated")?;
        writeln!(
            f,
            "moves         {} asked for, {} made; {} take-overs",
            self.moves_asked, self.moves, self.take_overs
        )?;
        writeln!(f, "processes     {} started; slowest recovery {} ms", self.starts, self.slowest_recovery_ms)?;
        let faults: u64 = self.faults.values().sum();
        let kinds: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        write!(f, "faults        {faults}, {} of them at a step of a move: {}", self.sprung, kinds.join(", "))
    }
}

/// The time of the machine that simulates.
#[expect(clippy::disallowed_methods, reason = "nothing of a simulation looks at it")]
fn real_now() -> Instant {
    Instant::now()
}

/// A seed that is being run.
struct Running {
    seed: u64,
    child: Child,
    since: Instant,
    output: thread::JoinHandle<io::Result<String>>,
}

fn begin(seed: u64, options: &Options) -> io::Result<Running> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["replay", &seed.to_string(), "--json"])
        .args(options.written())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
    let output = thread::spawn(move || io::read_to_string(&mut stdout));
    Ok(Running { seed, child, since: real_now(), output })
}

/// Why a seed failed; none where it did not.
fn end(running: Running, sums: &mut Sums) -> io::Result<Option<String>> {
    let Running { mut child, output, .. } = running;
    let status = child.wait()?;
    let output = output.join().map_err(|_| io::Error::other("the output was not read"))??;
    let Ok(report) = serde_json::from_str::<Report>(&output) else {
        return Ok(Some(format!("it ended with {status}, and without a report")));
    };
    sums.add(&report);
    Ok(report.violation.map(|violation| violation.to_string()))
}

fn many(from: u64, seeds: u64, minutes: Option<u64>, jobs: usize, options: &Options) -> io::Result<bool> {
    let began = real_now();
    let over = minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let mut sums = Sums::default();
    let mut next = from;
    let mut running: Vec<Running> = Vec::new();
    let mut failed: Option<(u64, String)> = None;
    loop {
        let more = failed.is_none() && next - from < seeds && over.is_none_or(|over| began.elapsed() < over);
        if more && running.len() < jobs {
            running.push(begin(next, options)?);
            next += 1;
            continue;
        }
        if running.is_empty() {
            break;
        }
        let mut index = 0;
        while index < running.len() {
            if running[index].since.elapsed() > LONGEST {
                running[index].child.kill()?;
            } else if running[index].child.try_wait()?.is_none() {
                index += 1;
                continue;
            }
            let ended = running.swap_remove(index);
            let seed = ended.seed;
            if let Some(why) = end(ended, &mut sums)?
                && failed.as_ref().is_none_or(|(known, _)| seed < *known)
            {
                failed = Some((seed, why));
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    let took = began.elapsed().as_secs_f64();
    let mut out = io::stdout().lock();
    writeln!(out, "{sums}")?;
    let per_hour = sums.runs as f64 * 3600.0 / took;
    let speed = sums.simulated_ms as f64 / 1000.0 / took;
    writeln!(
        out,
        "speed         {per_hour:.0} seeds an hour, {speed:.0} simulated seconds a second, {jobs} at a time"
    )?;
    for (fault, why) in NOT_YET {
        writeln!(out, "left out      {}: {why}", fault.name())?;
    }
    let Some((seed, why)) = failed else { return Ok(true) };
    writeln!(
        out,
        "\nseed {seed} failed: {why}\nto see it again:\n  cargo run --release --manifest-path tests/simulation/Cargo.toml -- replay {seed} {} --trace",
        options.written().join(" ")
    )?;
    Ok(false)
}

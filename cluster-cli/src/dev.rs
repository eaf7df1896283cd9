//! `dev`: a cluster of an application on this machine.
//!
//! ```text
//! stdin ──▶ command ──┐
//! signals ────────────┼─▶ fleet ─▶ actions ─▶ this file: starts, signals, prints
//! child (a node) ─────┘   pure                    ▲
//!    └── its output ─▶ lines ─────────────────────┘
//! ```

mod child;
mod command;
mod flags;
mod fleet;
mod lines;
mod ports;
mod program;

use std::{
    collections::VecDeque,
    fs,
    future::pending,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use child::{Child, News};
use flags::Flags;
use fleet::{Action, Event, Fleet};
use lines::Prefix;
use outpost_proto::identity::Role;
use ports::Block;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::{self, Instant},
};

use crate::{
    args::DevArgs,
    ca::{Authority, BadAuthority, Issued},
    context::{Context, Files, Local},
    error::{CliError, exit},
    output::Output,
    text::{colours, count},
};

/// Why a local cluster does not run, or not any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadDev {
    #[error("there is no program {program}{hint}")]
    NoProgram { program: String, hint: String },
    #[error("{program} is not a program: {why}")]
    NotAProgram { program: String, why: &'static str },
    #[error("no three free ports in a row are left from {from} on; choose others with --base-port")]
    NoPorts { from: u16 },
    #[error("can't make the folder {}: {error}", path.display())]
    Folder { path: PathBuf, error: io::Error },
    #[error("the path {} is not UTF-8, and can't be a setting", path.display())]
    Path { path: PathBuf },
    #[error("can't listen for signals: {0}")]
    Signals(io::Error),
    #[error("no node is left")]
    NoneLeft,
    #[error("the nodes were killed")]
    Killed,
}

impl BadDev {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NoProgram { .. } | Self::NotAProgram { .. } | Self::NoPorts { .. } | Self::Path { .. } => exit::USAGE,
            Self::Folder { .. } | Self::Signals(_) | Self::NoneLeft => exit::ANSWERED,
            Self::Killed => exit::INTERRUPTED,
        }
    }
}

pub(crate) async fn run(args: &DevArgs, out: &mut Output) -> Result<(), CliError> {
    let program = program::find(args.command.first().map(AsRef::as_ref).unwrap_or_default())?;
    let mut signals = Signals::listen().map_err(BadDev::Signals)?;
    let dir = absolute(&args.dir)?;
    let known = known_nodes(&dir);
    let trust = if args.plain { None } else { Some(Trust::open(&dir, &flags::cluster(&args.settings))?) };
    let mut shell = Shell { args, program, dir, is_new: known.is_empty(), trust, ports: Vec::new(), out };
    shell.find_ports().await?;
    let context = shell.context().await?;
    shell.print_header(&known, context.as_ref()).await?;
    let ended = shell.run(&mut signals).await;
    match ended? {
        exit::OK => Ok(()),
        exit::INTERRUPTED => Err(BadDev::Killed.into()),
        _ => Err(BadDev::NoneLeft.into()),
    }
}

fn absolute(dir: &Path) -> Result<String, BadDev> {
    let folder = |error| BadDev::Folder { path: dir.to_owned(), error };
    fs::create_dir_all(dir).map_err(folder)?;
    let path = fs::canonicalize(dir).map_err(folder)?;
    path.into_os_string().into_string().map_err(|path| BadDev::Path { path: path.into() })
}

/// The nodes that have data in the folder from an earlier run.
fn known_nodes(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("node-")).collect();
    names.sort();
    names
}

/// The certificates and keys of the cluster, in a folder beside the nodes' own.
struct Trust {
    folder: String,
    authority: Authority,
    cluster: String,
}

impl Trust {
    fn open(dir: &str, cluster: &str) -> Result<Self, BadAuthority> {
        const YEARS: u32 = 10 * 365;
        let folder = format!("{dir}/trust");
        let path = Path::new(&folder);
        if !Authority::authorities(path).exists() {
            Authority::init(path, "outpost.local", YEARS)?;
        }
        let authority = Authority::open(path)?;
        Ok(Self { folder, authority, cluster: cluster.to_owned() })
    }

    fn issue(&self, role: Role) -> Result<Issued, BadAuthority> {
        // A cluster that runs for longer is no local one; a restart of a node gives it another.
        const DAYS: u32 = 90;
        self.authority.issue(&self.cluster, role, DAYS)
    }
}

struct Shell<'a> {
    args: &'a DevArgs,
    program: PathBuf,
    dir: String,
    /// Whether the folder had no nodes at the start: then a cluster begins in it.
    is_new: bool,
    trust: Option<Trust>,
    /// One block a node.
    ports: Vec<Block>,
    out: &'a mut Output,
}

impl Shell<'_> {
    /// What a queue between a node and the terminal holds: beyond it, a node that logs more waits.
    const QUEUE: usize = 256;

    async fn find_ports(&mut self) -> Result<(), CliError> {
        for _ in 0..self.args.nodes {
            self.next_ports().await?;
        }
        Ok(())
    }

    async fn next_ports(&mut self) -> Result<(), CliError> {
        let from = self.ports.last().map_or(self.args.base_port, |last| last.next());
        let (block, taken) = ports::first_free(from, ports::is_free).ok_or(BadDev::NoPorts { from })?;
        if let (Some(first), Some(last)) = (taken.first(), taken.last()) {
            let node = flags::name(self.ports.len());
            let ports = if first == last { first.to_string() } else { format!("{first} to {last}") };
            self.say(&format!("{node} has {block}, because of ports in use at {ports}")).await?;
        }
        self.ports.push(block);
        Ok(())
    }

    /// Lets the tool find the cluster, and be believed by it, for as long as this runs.
    async fn context(&mut self) -> Result<Option<Local>, CliError> {
        let (Some(trust), Some(first)) = (&self.trust, self.ports.first()) else { return Ok(None) };
        let issued = trust.issue(Role::Operator("dev".to_owned()))?;
        let authorities = Authority::authorities(Path::new(&trust.folder));
        let files = Files { certificate: issued.certificate, key: issued.key, authorities };
        match Local::begin(Context::local(first.admin().to_string(), files)) {
            Ok(local) => Ok(Some(local)),
            Err(error) => {
                self.say(&format!(
                    "note: no context was made, so the tool does not find the cluster by itself: {error}"
                ))
                .await?;
                Ok(None)
            }
        }
    }

    async fn print_header(&mut self, known: &[String], context: Option<&Local>) -> Result<(), CliError> {
        let nodes = count(self.ports.len(), "node");
        let state = if self.is_new { "new" } else { "from an earlier run; remove the folder to begin anew" };
        let mut lines = vec![format!("{nodes} of {}; data in {} ({state})", self.program.display(), self.dir)];
        for (index, block) in self.ports.iter().enumerate() {
            let [ingress, admin, cluster] = [block.ingress(), block.admin(), block.cluster()];
            lines.push(format!("{}  clients {ingress}  operators {admin}  nodes {cluster}", flags::name(index)));
        }
        let started: Vec<String> = (0..self.ports.len()).map(flags::name).collect();
        let others: Vec<&str> = known.iter().filter(|name| !started.contains(name)).map(String::as_str).collect();
        if !others.is_empty() {
            lines.push(format!("note: {} took part earlier and is not started now; see --nodes", others.join(", ")));
        }
        if self.trust.is_some() {
            lines.push(format!("nodes and operators need certificates, which are in {}/trust", self.dir));
        }
        // Whatever the tool would do by itself, here it finds this cluster.
        let node = match (context, self.ports.first()) {
            (Some(Local { is_current: true, .. }), _) => String::new(),
            (Some(_), _) => format!("export OUTPOST_CONTEXT={}; ", Local::NAME),
            (None, Some(first)) if self.trust.is_none() => {
                format!("export OUTPOST_CONTEXT=none OUTPOST_NODE={}; ", first.admin())
            }
            _ => String::new(),
        };
        lines.push(format!(
            "in another terminal: {node}outpost status, outpost events -f, outpost move MODULE --to NODE"
        ));
        lines.push(format!("here: {}", command::HELP));
        for line in lines {
            self.say(&line).await?;
        }
        Ok(())
    }

    /// Runs the nodes until all have ended, and returns the exit code.
    async fn run(&mut self, signals: &mut Signals) -> Result<u8, CliError> {
        let (news_tx, mut news) = mpsc::channel(Self::QUEUE);
        let mut running = Running {
            fleet: Fleet::new(self.ports.len()),
            children: Vec::new(),
            tasks: JoinSet::new(),
            deadlines: JoinSet::new(),
            news: news_tx,
        };
        let mut stdin = Some(BufReader::new(tokio::io::stdin()).lines());
        let mut actions: VecDeque<Action> = (0..self.ports.len()).map(Action::Start).collect();
        loop {
            while let Some(action) = actions.pop_front() {
                match action {
                    Action::End(code) => return Ok(code),
                    action => actions.extend(self.act(action, &mut running).await?),
                }
            }
            let event = tokio::select! {
                Some(news) = news.recv() => match news {
                    News::Line { node, line } => {
                        self.print(Some(node), &line).await?;
                        continue;
                    }
                    News::Exited { node, how } => Event::Exited { node, how },
                },
                Some(Ok((node, run))) = running.deadlines.join_next() => Event::DeadlinePassed { node, run },
                () = signals.any() => Event::Interrupt,
                line = typed(&mut stdin) => match line.as_deref().map(command::parse) {
                    Some(Ok(None)) => continue,
                    Some(Ok(Some(command))) => Event::Typed(command),
                    Some(Err(error)) => {
                        self.say(&error.to_string()).await?;
                        continue;
                    }
                    None => {
                        stdin = None;
                        Event::StdinClosed
                    }
                },
            };
            actions.extend(running.fleet.on_event(event));
        }
    }

    /// Does it, and returns what is to be done because of that.
    async fn act(&mut self, action: Action, running: &mut Running) -> Result<Vec<Action>, CliError> {
        match action {
            Action::Say(text) => self.say(&text).await?,
            Action::Start(node) => {
                if let Err(how) = self.start(node, running).await? {
                    return Ok(running.fleet.on_event(Event::Exited { node, how }));
                }
            }
            Action::Signal(node, stop) => {
                if let Some(Some(child)) = running.children.get(node) {
                    child.signal(stop);
                }
            }
            Action::Deadline(node, run) => {
                let limit = self.args.stop_timeout;
                running.deadlines.spawn(async move {
                    time::sleep(limit).await;
                    (node, run)
                });
            }
            // It is for the loop.
            Action::End(_) => {}
        }
        Ok(Vec::new())
    }

    /// Starts a node, or tells why it can't be.
    async fn start(&mut self, node: usize, running: &mut Running) -> Result<Result<(), String>, CliError> {
        while self.ports.len() <= node {
            match self.next_ports().await {
                Ok(()) => {}
                Err(CliError::Dev(error)) => return Ok(Err(error.to_string())),
                Err(error) => return Err(error),
            }
        }
        // What earlier runs left.
        while running.tasks.try_join_next().is_some() {}
        running.children.resize_with(self.ports.len(), || None);
        let program = match self.program_of(node) {
            Ok(program) => program,
            Err(error) => return Ok(Err(error.to_string())),
        };
        match Child::start(&program, node, running.news.clone(), &mut running.tasks) {
            Ok(child) => running.children[node] = Some(child),
            Err(error) => return Ok(Err(format!("can't start {}: {error}", program.path.display()))),
        }
        Ok(Ok(()))
    }

    fn program_of(&self, node: usize) -> Result<child::Program, CliError> {
        let data_dir = format!("{}/{}", self.dir, flags::name(node));
        fs::create_dir_all(&data_dir).map_err(|error| BadDev::Folder { path: data_dir.clone().into(), error })?;
        if let Some(trust) = &self.trust {
            trust.issue(Role::Node(flags::name(node)))?;
        }
        let flags = Flags {
            node,
            trust: self.trust.as_ref().map(|trust| trust.folder.as_str()),
            ports: &self.ports,
            data_dir: &data_dir,
            // Who is added later joins what is there.
            begin_with: usize::from(self.args.nodes),
            settings: &self.args.settings,
        };
        let arguments = flags.arguments().into_iter().map(Into::into).chain(self.args.command.iter().skip(1).cloned());
        Ok(child::Program { path: self.program.clone(), arguments: arguments.collect(), colours: colours() })
    }

    async fn say(&mut self, text: &str) -> Result<(), CliError> {
        self.print(None, text).await
    }

    async fn print(&mut self, node: Option<usize>, line: &str) -> Result<(), CliError> {
        let prefix = Prefix { nodes: self.ports.len().max(usize::from(self.args.nodes)), colours: colours() };
        self.out.print(&format!("{}{line}", prefix.of(node))).await
    }
}

/// The nodes as processes.
struct Running {
    fleet: Fleet,
    children: Vec<Option<Child>>,
    /// Own the processes: dropped, they kill them.
    tasks: JoinSet<()>,
    deadlines: JoinSet<(usize, u64)>,
    news: mpsc::Sender<News>,
}

/// A line that was typed; `None` at the end of stdin.
async fn typed(stdin: &mut Option<tokio::io::Lines<BufReader<tokio::io::Stdin>>>) -> Option<String> {
    match stdin {
        Some(lines) => lines.next_line().await.ok().flatten(),
        None => pending().await,
    }
}

/// What asks a program to end: Ctrl-C, `kill`, and a terminal that is closed.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    last: Option<Instant>,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            last: None,
        })
    }

    /// One wish may come as two signals, where a program in between hands its own on. Nobody means two so soon.
    async fn any(&mut self) {
        const ONE_WISH: Duration = Duration::from_millis(300);
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
                _ = self.hangup.recv() => {}
            }
            if self.last.is_none_or(|last| last.elapsed() > ONE_WISH) {
                self.last = Some(Instant::now());
                return;
            }
        }
    }
}

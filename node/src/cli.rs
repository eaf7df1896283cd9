//! The command line that every application gets.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use outpost_proto::describe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    app::App,
    cluster::Failure,
    config::{Listen, Loaded, LogFormat, LogSettings, Settings, Sources, default_file},
    module::Program,
    node::{Facts, Node},
    status::{StartError, chain},
};

/// The codes that an application exits with.
mod exit {
    pub(super) const FAILED: u8 = 1;
    /// As clap has it for arguments that it can't read.
    pub(super) const USAGE: u8 = 2;
    pub(super) const NOT_STARTED: u8 = 3;
    /// Another process has the node's name, and is newer.
    pub(super) const SUPERSEDED: u8 = 4;
    /// The node's part of the cluster, its gossip or its placement log, has ended.
    pub(super) const CUT_OFF: u8 = 5;
    /// Added to the number of a signal, as shells do.
    pub(super) const SIGNAL: u8 = 128;
}

#[derive(Debug, Parser)]
#[command(disable_help_subcommand = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    flags: Flags,
}

const EXAMPLES: &str = "\
Examples:
  APP                                    runs all modules in this process
  APP --listen 127.0.0.1:8000            on another port
  APP --set log.filter=debug             any setting, by its key
  OUTPOST_INGRESS__LISTEN=[::1]:7000 APP the same by the environment: two underscores are a dot
  APP modules -o mermaid                 a picture of who calls whom
  APP config                             every setting in force, and where it was set

Exit codes: 0 stopped when asked to; 1 failed while running; 2 wrong arguments or settings;
3 did not start; 4 another process took the node's name; 5 its gossip or its placement log ended; 128 + N ended by signal N while starting, or by a second signal N.";

#[derive(Debug, Clone, Copy, Subcommand)]
enum Verb {
    /// Runs all modules in this process (the default).
    Run,
    /// Lists modules, their services and the modules that they call.
    Modules {
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: ModulesOutput,
    },
    /// Prints every setting in force, and where it was set.
    Config {
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: ConfigOutput,
    },
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum ModulesOutput {
    #[default]
    Table,
    Json,
    Mermaid,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum ConfigOutput {
    #[default]
    Toml,
    Json,
}

#[derive(Debug, Args)]
struct Flags {
    /// Reads settings from this file.
    #[arg(long, global = true, value_name = "FILE", env = "OUTPOST_CONFIG")]
    config: Option<PathBuf>,
    /// Listens for clients here (`ingress.listen`).
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Listens for operators here (`admin.listen`).
    #[arg(long, global = true, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// Listens for other nodes here (`cluster.listen`).
    #[arg(long, global = true, value_name = "ADDRESS")]
    cluster_listen: Option<String>,
    /// What is logged (`log.filter`): error, warn, info, debug, trace, or `warn,shop=debug`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// Sets any key, such as `ingress.max_connections=100`. The value is TOML, or else text.
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Allows to listen beyond loopback without TLS: everybody on the network can read and change calls.
    #[arg(long, global = true)]
    plaintext_beyond_loopback: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as log.filter=debug")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Flags {
    fn sources(self, application: &str) -> Sources {
        let mut flags: Vec<(String, String, String)> = Vec::new();
        for (key, value) in self.set {
            flags.push((format!("--set {key}"), key, value));
        }
        // A flag of its own says what is meant better than --set.
        let named = [
            ("--listen", "ingress.listen", self.listen),
            ("--admin-listen", "admin.listen", self.admin_listen),
            ("--cluster-listen", "cluster.listen", self.cluster_listen),
            ("--log", "log.filter", self.log),
        ];
        for (flag, key, value) in named {
            flags.extend(value.map(|value| (flag.to_owned(), key.to_owned(), value)));
        }
        if self.plaintext_beyond_loopback {
            let flag = "--plaintext-beyond-loopback".to_owned();
            flags.push((flag, "ingress.plaintext_beyond_loopback".to_owned(), "true".to_owned()));
        }
        Sources { file: self.config.or_else(|| default_file(application)), environment: environment(), flags }
    }
}

/// The variables that may be settings, in the order of their names. What is not text is read as nearly as it can be.
fn environment() -> Vec<(String, String)> {
    let mut variables: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .filter(|(name, _)| name.starts_with("OUTPOST_"))
        .collect();
    variables.sort();
    variables
}

impl App {
    /// Runs the application's command line: the whole of a `main` function.
    ///
    /// Without a verb it runs the modules until SIGTERM or Ctrl-C; `modules` and `config` print. `--help` tells more.
    #[must_use]
    pub fn main(self) -> ExitCode {
        let name = self.name.clone();
        let file = format!("Reads settings from this file; without it, from {name}.toml, if it is in this folder");
        let command = Cli::command()
            .name(name.clone())
            .version(self.version.clone())
            .mut_arg("config", |config| config.help(file))
            .after_help(EXAMPLES.replace("APP", &name));
        let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
            Ok(cli) => cli,
            Err(error) => error.exit(),
        };
        match self.run_verb(cli) {
            Ok(code) => code,
            Err(error) => {
                let code = match &error {
                    StartError::Config(_) => exit::USAGE,
                    _ => exit::NOT_STARTED,
                };
                report(&name, &error);
                ExitCode::from(code)
            }
        }
    }

    fn run_verb(self, cli: Cli) -> Result<ExitCode, StartError> {
        let program = self.program()?;
        let sources = cli.flags.sources(&self.name);
        match cli.verb.unwrap_or(Verb::Run) {
            Verb::Modules { output } => {
                let description = Facts::declared(&self, &program);
                Ok(print(&match output {
                    ModulesOutput::Table => describe::table(&description.modules, &description.cycles),
                    ModulesOutput::Mermaid => describe::mermaid(&description.modules),
                    ModulesOutput::Json => {
                        json(&serde_json::json!({"modules": description.modules, "cycles": description.cycles}))
                    }
                }))
            }
            Verb::Config { output } => {
                let loaded = self.load(&sources)?;
                Ok(print(&match output {
                    ConfigOutput::Toml => with_origins(&loaded),
                    ConfigOutput::Json => json(loaded.entries()),
                }))
            }
            Verb::Run => {
                let loaded = self.load(&sources)?;
                self.run(program, loaded)
            }
        }
    }

    fn run(self, program: Program, loaded: Loaded) -> Result<ExitCode, StartError> {
        let name = self.name.clone();
        log_to_stderr(&loaded.settings.log);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        if loaded.settings.node.worker_threads > 0 {
            runtime.worker_threads(loaded.settings.node.worker_threads);
        }
        let runtime = match runtime.enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                report(&name, &error);
                return Ok(ExitCode::from(exit::FAILED));
            }
        };
        let code = runtime.block_on(run(self, program, loaded));
        // A module's blocking work can't be cancelled, and must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        code
    }
}

async fn run(app: App, program: Program, loaded: Loaded) -> Result<ExitCode, StartError> {
    for cycle in program.cycles() {
        tracing::warn!(modules = chain(&cycle), "modules call each other in a circle");
    }
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("can't listen for signals");
        return Ok(ExitCode::from(exit::FAILED));
    };
    let name = app.name.clone();
    let settings = loaded.settings.clone();
    let node = tokio::select! {
        node = Node::start(app, program, loaded) => node?,
        code = either(&mut interrupt, &mut terminate) => return Ok(ended_by(code)),
    };
    let admin = node.admin_address().map(tracing::field::display);
    tracing::info!(application = name, ingress = %node.ingress_address(), admin, "serving");
    tokio::select! {
        _ = either(&mut interrupt, &mut terminate) => {}
        failure = node.failed() => {
            tracing::error!(%failure, "ending");
            // What it hosts is others' by now: nothing may be handed over, and nothing answered.
            return Ok(ExitCode::from(match failure {
                Failure::Superseded { .. } => exit::SUPERSEDED,
                Failure::Gossip(_) | Failure::Log(_) => exit::CUT_OFF,
            }));
        }
        () = warn_of_plaintext(&settings) => {}
    }
    tracing::info!("stopping: calls in flight may finish; a second signal ends them");
    let stopped = tokio::select! {
        stopped = node.stop() => stopped,
        code = either(&mut interrupt, &mut terminate) => {
            tracing::warn!("ended by a second signal: calls in flight were cut off");
            return Ok(ended_by(code));
        }
    };
    if stopped.calls_cut > 0 || stopped.tasks_cut > 0 {
        tracing::warn!(stopped.calls_cut, stopped.tasks_cut, "stopped at the deadline (node.stop_timeout)");
    } else {
        tracing::info!("stopped");
    }
    Ok(ExitCode::SUCCESS)
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
    }
}

fn ended_by(signal: SignalKind) -> ExitCode {
    ExitCode::from(exit::SIGNAL + u8::try_from(signal.as_raw_value()).unwrap_or_default())
}

/// Says once a minute that calls can be read by others, if they can.
async fn warn_of_plaintext(settings: &Settings) {
    let Settings { ingress, cluster, trust, .. } = settings;
    let open = |listen: Listen| !listen.address().ip().is_loopback();
    let ingress_open = ingress.tls.is_none() && open(ingress.listen);
    let cluster_open = open(cluster.listen) && !trust.is_set();
    let gossip_open = open(cluster.listen) && !trust.seals();
    if !ingress_open && !cluster_open && !gossip_open {
        return std::future::pending().await;
    }
    let mut minutes = tokio::time::interval(Duration::from_secs(60));
    loop {
        minutes.tick().await;
        if ingress_open {
            tracing::warn!(
                listen = %ingress.listen,
                "the ingress is open to the network without TLS: everybody on the way can read and change calls"
            );
        }
        if gossip_open && !cluster_open {
            tracing::warn!(
                listen = %cluster.listen,
                "gossip is open to the network without a seal: everybody on the way can read and forge it"
            );
        }
        if cluster_open {
            tracing::warn!(
                listen = %cluster.listen,
                "the cluster listener is open to the network without TLS: everybody on the way can read and change calls \
                 and placement"
            );
        }
    }
}

/// Crates that tell at length what is of use only to who works on them; `log.filter` may name them to hear it.
const QUIET: &str = "openraft=error,chitchat=warn,h2=warn,hyper=warn";

fn log_to_stderr(settings: &LogSettings) {
    let filter = EnvFilter::new(format!("{QUIET},{}", settings.filter));
    // As https://bixense.com/clicolors has it: `outpost dev` shows the log on a terminal, and reads it through a pipe.
    let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|forced| forced != "0");
    let colour = io::stderr().is_terminal() || forced;
    // With it, a log that nobody reads any more would panic in whoever logs.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        .log_internal_errors(false);
    // A program that embeds this may have set up a log of its own.
    let _ = match settings.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

fn with_origins(loaded: &Loaded) -> String {
    let width = loaded.entries().iter().map(|entry| entry.to_string().chars().count()).max().unwrap_or(0).min(60);
    let lines = loaded.entries().iter().map(|entry| format!("{:width$}  # {}\n", entry.to_string(), entry.origin));
    lines.collect()
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("these types have nothing that JSON lacks");
    text.push('\n');
    text
}

fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // `APP modules | head -1` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(exit::FAILED),
    }
}

fn report(name: &str, error: &impl fmt::Display) {
    for line in error.to_string().lines() {
        let _ = writeln!(io::stderr(), "{name}: error: {line}");
    }
}

//! The operator's tool of an Outpost cluster.
//!
//! ```text
//!             ┌─ look, describe ─▶ admin ─▶ admin API of any node      (outpost.admin.v1)
//!             ├─ change ─────────▶ admin    the same; then
//! args ──────▶┤    └─ wait       until the cluster is where it was sent: a pure core over what it tells
//!             ├─ call ───────────▶ any gRPC server
//!             │    ├─ reflect    the server's descriptors, by server reflection
//!             │    ├─ json       text to messages, one by one as they come
//!             │    └─ codec      messages whose types are known only at run time
//!             ├─ check-compat ───▶ .proto files, descriptors, or reflect
//!             ├─ ca, token, context ─▶ files: what is shown, and which cluster is meant
//!             │    └─ tunnel     the way to one in Kubernetes, by kubectl
//!             └─ dev ────────────▶ processes of an application on this machine
//! ```
//!
//! It speaks only the wire contract, so that it talks to nodes of other versions than its own. What was asked for goes
//! to stdout, everything else to stderr.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};

use crate::{
    args::{Cli, Verb},
    error::{CliError, exit},
    output::Output,
};

mod address;
mod admin;
mod args;
mod ca;
mod call;
mod change;
mod codec;
mod compat;
mod connect;
mod context;
mod describe;
mod dev;
mod error;
mod files;
mod json;
mod keyring;
mod look;
mod metadata;
mod names;
mod output;
mod reflect;
mod screen;
mod status;
mod text;
mod token;
mod tunnel;
mod wait;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: can't start: {error}");
            return ExitCode::from(exit::ANSWERED);
        }
    };
    let code = runtime.block_on(async {
        // `dev` has to stop what it started before it ends.
        let ends_itself = matches!(cli.verb, Verb::Dev(_));
        tokio::select! {
            // First, because who waits for a change says what Ctrl-C does not end.
            biased;
            ran = run(cli) => code(ran),
            Ok(()) = tokio::signal::ctrl_c(), if !ends_itself => exit::INTERRUPTED,
        }
    });
    // A read of the terminal can't be cancelled, and must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn run(cli: Cli) -> Result<(), CliError> {
    let out = &mut Output::stdout();
    match cli.verb {
        Verb::Status(args) => look::status::run(&args, out).await,
        Verb::Nodes(args) => look::nodes::run(&args, out).await,
        Verb::Modules(args) => look::modules::run(&args, out).await,
        Verb::Where(args) => look::hosts::run(&args, out).await,
        Verb::Why(args) => look::why::run(&args, out).await,
        Verb::Events(args) => look::events::run(&args, out).await,
        Verb::Audit(args) => look::audit::run(&args, out).await,
        Verb::History(args) => look::history::run(&args, out).await,
        Verb::Plan(args) => change::document::plan(&args, out).await,
        Verb::Apply(args) => change::document::apply(&args, out).await,
        Verb::Rollback(args) => change::document::rollback(&args, out).await,
        Verb::Moves(args) => look::moves::run(&args, out).await,
        Verb::Drain(args) => change::drain::run(&args, out).await,
        Verb::Move(args) => change::relocate::run(&args, out).await,
        Verb::Scale(args) => change::rule::scale(&args, out).await,
        Verb::Pin(args) => change::rule::pin(&args, out).await,
        Verb::Unpin(args) => change::rule::unpin(&args, out).await,
        Verb::Cordon(args) => change::node::cordon(&args, true, out).await,
        Verb::Uncordon(args) => change::node::cordon(&args, false, out).await,
        Verb::Forget(args) => change::node::forget(&args, out).await,
        Verb::Voters(args) => change::voters::run(&args, out).await,
        Verb::Call(args) => call::run(&args, out).await,
        Verb::Ca(verb) => ca::run(&verb, out).await,
        Verb::Keyring(verb) => keyring::run(&verb, out).await,
        Verb::Token(verb) => token::run(&verb, out).await,
        Verb::Context(verb) => context::run(&verb, out).await,
        Verb::CheckCompat(args) => compat::run(&args, out).await,
        Verb::Dev(args) => dev::run(&args, out).await,
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "outpost", &mut script);
            out.print(&String::from_utf8_lossy(&script)).await
        }
    }
}

fn code(ran: Result<(), CliError>) -> u8 {
    let Err(error) = ran else { return exit::OK };
    // `outpost modules | head -1` is no failure, and neither is the answer of `plan`.
    if !matches!(error, CliError::StdoutClosed | CliError::WouldChange) {
        let _ = writeln!(io::stderr(), "error: {error}");
    }
    error.exit_code()
}

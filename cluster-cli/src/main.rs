//! The operator's tool of an Outpost cluster.
//!
//! ```text
//!             ┌─ describe ──▶ admin API of a node      (outpost.admin.v1)
//! args ──────▶┤
//!             └─ call ─────▶ any gRPC server
//!                  ├─ reflect   the server's descriptors, by server reflection
//!                  ├─ json      text to messages, one by one as they come
//!                  └─ codec     messages whose types are known only at run time
//! ```
//!
//! It speaks only the wire contract, so that it talks to nodes of other versions than its own. What was asked for goes
//! to stdout, everything else to stderr.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;

use crate::{
    args::{Cli, Verb},
    error::{CliError, exit},
    output::Output,
};

mod address;
mod args;
mod call;
mod codec;
mod connect;
mod describe;
mod error;
mod json;
mod metadata;
mod names;
mod output;
mod reflect;
mod status;

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
        tokio::select! {
            ran = run(cli) => code(ran),
            Ok(()) = tokio::signal::ctrl_c() => exit::INTERRUPTED,
        }
    });
    // A read of the terminal can't be cancelled, and must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn run(cli: Cli) -> Result<(), CliError> {
    let mut out = Output::stdout();
    match cli.verb {
        Verb::Status(args) => describe::status(args, &mut out).await,
        Verb::Modules(args) => describe::modules(args, &mut out).await,
        Verb::Call(args) => call::run(&args, &mut out).await,
    }
}

fn code(ran: Result<(), CliError>) -> u8 {
    let Err(error) = ran else { return exit::OK };
    // `outpost modules | head -1` is no failure.
    if !matches!(error, CliError::StdoutClosed) {
        let _ = writeln!(io::stderr(), "error: {error}");
    }
    error.exit_code()
}

//! Runs the ledger.

use std::process::ExitCode;

fn main() -> ExitCode {
    ledger::app().main()
}

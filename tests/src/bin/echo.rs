//! The benchmarks' application: one module that answers with what it is sent, and with the id of its process.

use std::process::ExitCode;

use outpost_tests::measure::{Echo, echo_app};

fn main() -> ExitCode {
    echo_app(Echo { number: i64::from(std::process::id()) }).main()
}

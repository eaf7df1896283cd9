//! The benchmarks' application: a module that answers with what it is sent, and with the id of its process; and one with a
//! state that can be made large.

use std::process::ExitCode;

use outpost_tests::{
    measure::{Echo, echo_app},
    store::{PreCopied, store},
};

fn main() -> ExitCode {
    let echo = echo_app(Echo { number: i64::from(std::process::id()), ..Echo::default() });
    echo.with(store::<PreCopied>("echo")).main()
}

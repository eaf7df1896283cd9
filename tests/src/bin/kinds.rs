//! The test services as a program, for scenarios with a process of their own.

use std::process::ExitCode;

use outpost_tests::{Obedient, app};

fn main() -> ExitCode {
    app(Obedient::default()).main()
}

//! The test services as a program for several nodes: two modules that one node hosts at a time, and one on every node.

use std::process::ExitCode;

fn main() -> ExitCode {
    outpost_tests::fleet().main()
}

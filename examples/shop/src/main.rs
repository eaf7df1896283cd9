//! Runs the shop.

use std::process::ExitCode;

fn main() -> ExitCode {
    shop::app().main()
}

//! The module `store` as a program for several nodes. `STORE` says what becomes of its state: `whole`, `precopied`,
//! `checkpointed`, or the address of a database.

use std::{process::ExitCode, time::Duration};

use outpost::App;
use outpost_tests::{
    database,
    store::{PreCopied, Whole, durable, store},
};

/// How often it is written, where it is.
const CHECKPOINTS: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let class = std::env::var("STORE").unwrap_or_default();
    // Two processes of one node are told apart.
    let process = std::process::id().to_string();
    let module = match class.as_str() {
        "whole" => store::<Whole>(&process),
        "precopied" => store::<PreCopied>(&process),
        "checkpointed" => store::<PreCopied>(&process).checkpointed(CHECKPOINTS),
        address => match database::endpoint(address) {
            Ok(database) => durable(&process, &database),
            Err(error) => {
                eprintln!("store: error: `STORE={address}` is no class, nor the address of a database: {error}");
                return ExitCode::FAILURE;
            }
        },
    };
    App::new("store", "1.0.0").with(module).main()
}

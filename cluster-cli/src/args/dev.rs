//! `dev`.

use std::{ffi::OsString, path::PathBuf, str::FromStr, time::Duration};

use clap::Args;

use super::duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  outpost dev -- target/release/shop                   three nodes
  outpost dev --nodes 1 --set log.filter=debug -- target/debug/shop
  outpost dev --dir /tmp/a --base-port 8000 -- target/release/shop --config shop.toml

While it runs, type:
  r 2       stops node-2 in an orderly way and starts it again (or: restart node-2)
  k 2       kills it, as a crash would; it stays down
  stop 2    stops it in an orderly way
  s 2       starts it again
  add       one more node joins
  q         stops all, as Ctrl-C does; a second Ctrl-C kills them

Exit codes: 0 stopped when asked to; 1 no node is left; 2 wrong arguments; 130 killed by a second Ctrl-C.";

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// How many nodes to start.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) nodes: u16,
    /// Where the nodes keep their data, each in a folder of its own. They find it again at the next start; remove it to
    /// begin anew.
    #[arg(long, value_name = "FOLDER", default_value = ".outpost-dev")]
    pub(crate) dir: PathBuf,
    /// The first port. Node 1 has it and the next two, node 2 those 10 further on; one that is taken is passed over.
    #[arg(long, value_name = "PORT", default_value_t = 7000, value_parser = clap::value_parser!(u16).range(1024..=65000))]
    pub(crate) base_port: u16,
    /// A setting for every node; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// Without certificates and keys: whoever is on this machine can be a node, or an operator.
    #[arg(long)]
    pub(crate) plain: bool,
    /// How long a node may take to stop before it is killed.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) stop_timeout: Duration,
    /// The application's program, and arguments for it.
    #[arg(value_name = "BINARY", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// `KEY=VALUE`, as the application takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting(pub(crate) String);

impl FromStr for Setting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, _)) if !key.trim().is_empty() => Ok(Self(text.to_owned())),
            _ => Err("write KEY=VALUE, such as log.filter=debug"),
        }
    }
}

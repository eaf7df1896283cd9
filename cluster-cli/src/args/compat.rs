//! `check-compat`.

use clap::Args;

use super::{DataOutput, TlsArgs};

pub(super) const EXAMPLES: &str = "\
Examples:
  git worktree add ../last v1.4.0
  outpost check-compat ../last/proto proto          before the new version is merged
  outpost check-compat 10.0.0.5:7000 proto          against what runs: the ingress of any node
  outpost check-compat old.binpb new.binpb -o json  files of `buf build -o` or `protoc --include_imports -o`";

#[derive(Debug, Args)]
pub(crate) struct CompatArgs {
    /// The version that is in use: a folder of .proto files, a file with descriptors, or the address of a server.
    #[arg(value_name = "OLD")]
    pub(crate) old: String,
    /// The version that is to follow it, given in the same way.
    #[arg(value_name = "NEW")]
    pub(crate) new: String,
    /// How to print what does not fit.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
}

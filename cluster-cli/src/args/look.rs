//! Verbs that look and change nothing (and `voters`, which may do both).

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{DataOutput, NodeArgs, VotersWanted, WaitArgs};

pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
  outpost status
  outpost status --node 127.0.0.1:7011                 as another node sees it
  outpost status --local                               only the node that is asked: uptime, pid, connections
  outpost status -o json | jq -r '.problems[]'";

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Shows only the node that is asked.
    #[arg(long)]
    pub(crate) local: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

pub(super) const NODES_EXAMPLES: &str = "\
Examples:
  outpost nodes
  outpost nodes -o wide                                with the addresses for nodes and operators
  outpost nodes -o json | jq -r '.[] | select(.state != \"ready\").name'";

#[derive(Debug, Args)]
pub(crate) struct NodesArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: NodesOutput,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodesOutput {
    #[default]
    Table,
    /// The table with more columns.
    Wide,
    Json,
}

pub(super) const MODULES_EXAMPLES: &str = "\
Examples:
  outpost modules
  outpost modules -o json | jq -r '.[] | select(.state != \"serving\").name'
  outpost modules --local                              what runs on the node that is asked, with panics
  outpost modules -o mermaid > modules.mmd             a picture of who calls whom";

#[derive(Debug, Args)]
pub(crate) struct ModulesArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Shows what the node that is asked knows of its own instances.
    #[arg(long)]
    pub(crate) local: bool,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ModulesOutput,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModulesOutput {
    #[default]
    Table,
    Json,
    /// A flow chart for mermaid.js.org: who calls whom.
    Mermaid,
}

pub(super) const WHERE_EXAMPLES: &str = "\
Examples:
  outpost where checkout
  node=$(outpost where checkout | head -1)             names only where stdout is no terminal
  outpost where checkout -o json | jq -r '.[].state'";

#[derive(Debug, Args)]
pub(crate) struct WhereArgs {
    /// The module.
    pub(crate) module: String,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print them. On a terminal there is more than names.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

pub(super) const WHY_EXAMPLES: &str = "\
Examples:
  outpost why checkout
  outpost why checkout -o json | jq -r '.nodes[] | select(.eligible | not).reason'";

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The module.
    pub(crate) module: String,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

pub(super) const EVENTS_EXAMPLES: &str = "\
Examples:
  outpost events                                       all that are kept
  outpost events -f                                    and those to come
  outpost events --since 120                           those of later log entries than 120
  outpost events -f -o json | jq -r 'select(.kind == \"moved\").text'";

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Goes on with events to come.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events of later entries of the placement log than this.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub(crate) since: u64,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print them; JSON is an object a line.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

pub(super) const HISTORY_EXAMPLES: &str = "\
Examples:
  outpost history
  outpost history show 3 > placement.toml              one version's document
  outpost history -o json | jq -r '.[0].by'";

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<HistoryVerb>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum HistoryVerb {
    /// Prints a version's document.
    Show {
        /// The version.
        version: u64,
    },
}

pub(super) const PLAN_EXAMPLES: &str = "\
Examples:
  outpost plan placement.toml
  outpost plan - --format json < placement.json
  outpost plan placement.toml -o json | jq .index      what `apply --check-index` takes";

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) document: DocumentArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Args)]
pub(crate) struct DocumentArgs {
    /// The placement document: a .toml or .json file, or - for stdin.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What the document is written in, where the name of the file does not tell.
    #[arg(long, value_enum)]
    pub(crate) format: Option<DocumentFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DocumentFormat {
    Toml,
    Json,
}

pub(super) const VOTERS_EXAMPLES: &str = "\
Examples:
  outpost voters
  outpost voters set 3
  outpost voters set auto                              leaves it to the cluster";

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<AuditVerb>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Checks that each entry goes with the one before it, and prints the hash of the last.
    Verify {
        /// A hash that was printed earlier: it has to be part of the chain still.
        #[arg(long, value_name = "HASH")]
        contains: Option<String>,
    },
}

pub(super) const AUDIT_EXAMPLES: &str = "\
Examples:
  outpost audit
  outpost audit -o json > audit.json
  outpost audit verify
  outpost audit verify --contains 9f2c...              what was seen earlier is still part of it";

#[derive(Debug, Args)]
pub(crate) struct VotersArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<VotersVerb>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VotersVerb {
    /// Sets how many nodes decide on placement: 1, 3, 5, or auto.
    Set {
        /// 1, 3, 5 or auto.
        count: VotersWanted,
        /// Who asks, for the events. Without it, USER@HOST.
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

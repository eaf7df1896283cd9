//! Verbs that move what runs: `move`, `drain`, and `moves`, which looks at it.

use std::time::Duration;

use clap::{ArgGroup, Args};

use super::{
    DataOutput, NodeArgs,
    change::{ChangeArgs, ReasonArgs, WaitArgs},
    duration,
};

pub(super) const MOVE_EXAMPLES: &str = "\
Examples:
  outpost move checkout --to node-2                    again after Ctrl-C, it follows the same move
  outpost move checkout --to node-2 --no-wait
  outpost move checkout --wait                         follows the one under way, whoever began it
  outpost move checkout --id 101 -o json               follows this one, and no other
  outpost move checkout --abort --why 'node-2 is slow' it stays where it is
  outpost move cart --to node-2 --lose-state           although what it has in memory stays behind
  outpost move checkout --to node-2 --check-index 17   only if `modules -o json` still says so";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").args(["to", "wait", "id", "abort"]).required(true).multiple(true)))]
pub(crate) struct MoveArgs {
    /// The module.
    pub(crate) module: String,
    /// The node that it goes to. Without it, --wait or --id follows a move that is under way.
    #[arg(long, value_name = "NODE")]
    pub(crate) to: Option<String>,
    /// Gives the move up that is under way, if it is not decided yet.
    #[arg(long, conflicts_with_all = ["to", "lose_state", "check_index"])]
    pub(crate) abort: bool,
    /// Follows, or gives up, only the move with this id, as `moves` tells it.
    #[arg(long, value_name = "ID", conflicts_with = "to", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) id: Option<u64>,
    /// Moves a module that has state which can't travel, although its state stays behind.
    #[arg(long, requires = "to")]
    pub(crate) lose_state: bool,
    /// Refuses (exit code 5) unless the module's record is at this index.
    #[arg(long, value_name = "INDEX", requires = "to")]
    pub(crate) check_index: Option<u64>,
    #[command(flatten)]
    pub(crate) reason: ReasonArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

pub(super) const MOVES_EXAMPLES: &str = "\
Examples:
  outpost moves
  outpost moves -w                                     again whenever something about them changes
  outpost moves -o json | jq -r '.[] | select(.phase == \"sealed\").module'
  outpost moves -w -o json                             a list a line";

#[derive(Debug, Args)]
pub(crate) struct MovesArgs {
    /// Prints them again whenever something about them changes.
    #[arg(short, long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

pub(super) const DRAIN_EXAMPLES: &str = "\
Examples:
  outpost drain node-2 --why 'a new disk'              again after Ctrl-C, it waits for the same drain
  outpost drain node-2 --deadline 15m                  exit code 3 if something is left by then
  outpost drain node-2 --no-wait
  outpost uncordon node-2                              ends it: the node may get modules again";

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The node.
    pub(crate) name: String,
    /// Waits until nothing that can leave is left on it (the default).
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Returns as soon as the cluster has taken it.
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait. The drain goes on after that.
    #[arg(long, value_name = "DURATION", visible_alias = "timeout", default_value = "5m", value_parser = duration)]
    deadline: Duration,
    #[command(flatten)]
    pub(crate) reason: ReasonArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

impl DrainArgs {
    /// How long to wait, if at all. Of two flags the last counts, as everywhere.
    pub(crate) fn limit(&self) -> Option<Duration> {
        (self.wait || !self.no_wait).then_some(self.deadline)
    }
}

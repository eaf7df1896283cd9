//! Verbs that change the cluster.

use std::{str::FromStr, time::Duration};

use clap::Args;

use super::{DataOutput, DocumentArgs, NodeArgs, duration};

/// What every change has.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Who asks, for the history and the events. Without it, USER@HOST.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Refuses (exit code 5) unless this version of the placement is in force.
    #[arg(long, value_name = "VERSION")]
    pub(crate) check_index: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ReasonArgs {
    /// Why, for the history and the events.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) why: String,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Waits until it is done (the default).
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Returns as soon as the cluster has taken it.
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait. The change goes on after that.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

impl WaitArgs {
    /// How long to wait, if at all. Of two flags the last counts, so that a script's can be overruled.
    pub(crate) fn limit(&self) -> Option<Duration> {
        (self.wait || !self.no_wait).then_some(self.timeout)
    }
}

pub(super) const APPLY_EXAMPLES: &str = "\
Examples:
  outpost apply placement.toml --why 'two carts for the sale'
  outpost apply placement.toml --check-index 4         only if version 4 is in force, as `plan` told
  outpost apply placement.toml --no-wait
  generate | outpost apply - --format json";

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) document: DocumentArgs,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
    #[command(flatten)]
    pub(crate) reason: ReasonArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

pub(super) const ROLLBACK_EXAMPLES: &str = "\
Examples:
  outpost rollback                                     to the version before the one in force
  outpost rollback 3 --why 'version 4 overloads node-2'";

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The version. Without it, the one before that in force.
    pub(crate) version: Option<u64>,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
    #[command(flatten)]
    pub(crate) reason: ReasonArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

pub(super) const SCALE_EXAMPLES: &str = "\
Examples:
  outpost scale catalog 3
  outpost scale catalog every                          one on every node";

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// The module.
    pub(crate) module: String,
    /// On how many nodes, or `every`.
    pub(crate) count: Count,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
    #[command(flatten)]
    pub(crate) reason: ReasonArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// On how many nodes a replicated module runs; 0 is every node, as in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count(pub(crate) u32);

impl FromStr for Count {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("every", _) => Ok(Self(0)),
            (_, Ok(count @ 1..)) => Ok(Self(count)),
            _ => Err("write a number from 1, or `every` for one on every node"),
        }
    }
}

pub(super) const PIN_EXAMPLES: &str = "\
Examples:
  outpost pin checkout --to node-2 --reason 'its disk is there'
  outpost pin checkout --to node-2 --reason 'bisecting' --ttl 2h";

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// The module.
    pub(crate) module: String,
    /// The node that it stays on.
    #[arg(long, value_name = "NODE")]
    pub(crate) to: String,
    /// Why, for those who wonder later.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Lets go of it after so long. Without it, `unpin` does.
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

fn whole_seconds(text: &str) -> Result<Duration, String> {
    let wanted = duration(text)?;
    if wanted < Duration::from_secs(1) { Err("must be 1s at least".to_owned()) } else { Ok(wanted) }
}

pub(super) const UNPIN_EXAMPLES: &str = "\
Examples:
  outpost unpin checkout                               it stays where it is until something else moves it";

#[derive(Debug, Args)]
pub(crate) struct UnpinArgs {
    /// The module.
    pub(crate) module: String,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
    #[command(flatten)]
    pub(crate) reason: ReasonArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

pub(super) const CORDON_EXAMPLES: &str = "\
Examples:
  outpost cordon node-2                                before work on its machine
  outpost uncordon node-2";

pub(super) const UNCORDON_EXAMPLES: &str = "\
Examples:
  outpost uncordon node-2                              after `cordon`, and after `drain`";

#[derive(Debug, Args)]
pub(crate) struct CordonArgs {
    /// The node.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

pub(super) const FORGET_EXAMPLES: &str = "\
Examples:
  outpost forget node-4                                it is dead and does not come back";

#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// The node.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// How many nodes decide on placement; 0 leaves it to the cluster, as in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VotersWanted(pub(crate) u32);

impl FromStr for VotersWanted {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self(0)),
            "1" | "3" | "5" => Ok(Self(text.parse().unwrap_or(1))),
            _ => Err("write 1, 3, 5 or auto: an even number fails as easily as the odd one below it"),
        }
    }
}

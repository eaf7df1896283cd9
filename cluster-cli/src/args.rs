//! The command line.

mod call;
mod change;
mod compat;
mod dev;
mod look;
mod moving;
mod trust;

use std::{path::PathBuf, time::Duration};

pub(crate) use call::{CallArgs, CallOutput, TlsArgs};
pub(crate) use change::{
    ApplyArgs, ChangeArgs, CordonArgs, ForgetArgs, PinArgs, RollbackArgs, ScaleArgs, UnpinArgs, VotersWanted, WaitArgs,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
pub(crate) use compat::CompatArgs;
pub(crate) use dev::{DevArgs, Setting};
pub(crate) use look::{
    AuditArgs, AuditVerb, DocumentArgs, DocumentFormat, EventsArgs, HistoryArgs, HistoryVerb, ModulesArgs,
    ModulesOutput, NodesArgs, NodesOutput, PlanArgs, StatusArgs, VotersArgs, VotersVerb, WhereArgs, WhyArgs,
};
pub(crate) use moving::{DrainArgs, MoveArgs, MovesArgs};
pub(crate) use trust::{
    CaInitArgs, CaIssueArgs, CaRevokeArgs, CaVerb, ContextSetArgs, ContextVerb, KeyringVerb, TokenGenerateArgs,
    TokenVerb,
};

use crate::{
    address::{Address, node_address},
    error::exit,
};

const EXAMPLES: &str = "\
Examples:
  outpost dev --nodes 3 -- target/release/shop            a cluster on this machine
  outpost status                                          the cluster on one screen
  outpost move checkout --to node-2                       moves a module while it serves
  outpost drain node-2                                    empties a node, before work on its machine
  outpost plan placement.toml && echo nothing to do       what a placement would change
  outpost why checkout                                    why it is where it is
  outpost call shop.v1.Catalog/Get '{\"product_id\": \"mug\"}'";

/// Looks into a running Outpost cluster, changes it, and calls its modules.
#[derive(Debug, Parser)]
#[command(name = "outpost", version, disable_help_subcommand = true)]
#[command(after_help = with_codes(EXAMPLES))]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Shows the cluster on one screen: who leads, nodes, modules, and what is wrong.
    #[command(after_help = look::STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Lists the nodes.
    #[command(after_help = look::NODES_EXAMPLES)]
    Nodes(NodesArgs),
    /// Lists the modules, and where they are.
    #[command(after_help = look::MODULES_EXAMPLES)]
    Modules(ModulesArgs),
    /// Prints the hosts of a module, one a line.
    #[command(after_help = look::WHERE_EXAMPLES)]
    Where(WhereArgs),
    /// Tells why a module is where it is, or why it is nowhere.
    #[command(after_help = look::WHY_EXAMPLES)]
    Why(WhyArgs),
    /// Prints what happened in the cluster.
    #[command(after_help = look::EVENTS_EXAMPLES)]
    Events(EventsArgs),
    /// Prints what operators have changed, and verifies that nobody has changed that.
    #[command(after_help = with_codes(look::AUDIT_EXAMPLES))]
    Audit(AuditArgs),
    /// Lists the versions of the placement, the newest first.
    #[command(after_help = look::HISTORY_EXAMPLES)]
    History(HistoryArgs),
    /// Shows what a placement document would change, and changes nothing.
    #[command(after_help = with_codes(look::PLAN_EXAMPLES))]
    Plan(PlanArgs),
    /// Puts a placement document in force, and waits until every module is where it should be.
    #[command(after_help = with_codes(change::APPLY_EXAMPLES))]
    Apply(ApplyArgs),
    /// Puts an earlier placement in force again, as a new version.
    #[command(after_help = with_codes(change::ROLLBACK_EXAMPLES))]
    Rollback(RollbackArgs),
    /// Moves a module to another node while it serves, and follows or gives up a move.
    ///
    /// A move goes on when nobody waits for it: the same command, or --wait without --to, follows it again.
    #[command(after_help = with_codes(moving::MOVE_EXAMPLES))]
    Move(MoveArgs),
    /// Lists the moves that are under way.
    #[command(after_help = moving::MOVES_EXAMPLES)]
    Moves(MovesArgs),
    /// Sets on how many nodes a replicated module runs.
    #[command(after_help = with_codes(change::SCALE_EXAMPLES))]
    Scale(ScaleArgs),
    /// Binds a module to a node.
    #[command(after_help = with_codes(change::PIN_EXAMPLES))]
    Pin(PinArgs),
    /// Lets go of a module that was bound to a node.
    #[command(after_help = with_codes(change::UNPIN_EXAMPLES))]
    Unpin(UnpinArgs),
    /// Gives a node nothing new; what it has stays.
    #[command(after_help = with_codes(change::CORDON_EXAMPLES))]
    Cordon(CordonArgs),
    /// Has a node give away its modules and its vote, and gives it nothing new; it goes on running.
    ///
    /// It ends with 0 when nothing that can leave is left on the node. A module with state that can't travel stays: that
    /// is said, and is no failure.
    #[command(after_help = with_codes(moving::DRAIN_EXAMPLES))]
    Drain(DrainArgs),
    /// Lets a node have new modules again: ends `cordon` and `drain`.
    #[command(after_help = with_codes(change::UNCORDON_EXAMPLES))]
    Uncordon(CordonArgs),
    /// Forgets a node that has left for good.
    #[command(after_help = with_codes(change::FORGET_EXAMPLES))]
    Forget(ForgetArgs),
    /// Lists the nodes that decide on placement, or sets how many do.
    #[command(after_help = with_codes(look::VOTERS_EXAMPLES))]
    Voters(VotersArgs),
    /// Calls a method of any gRPC server that has server reflection.
    ///
    /// Without a method it lists the methods, and with only a service also the messages that they take. The server is
    /// the node's ingress, unless there is an --address.
    #[command(after_help = with_codes(call::EXAMPLES))]
    Call(Box<CallArgs>),
    /// Tells whether two versions of a program can run in one cluster: whether each can read what the other one writes.
    ///
    /// It ends with 1 where they can't, and says which field, method or value of an enum is to blame.
    #[command(after_help = with_codes(compat::EXAMPLES))]
    CheckCompat(CompatArgs),
    /// Runs a cluster of an application on this machine.
    ///
    /// Each node has a name (node-1 ...), a folder for its data, and three ports: clients, operators, other nodes.
    /// Ctrl-C stops them all. If this process is killed with SIGKILL, its nodes go on.
    #[command(after_help = dev::EXAMPLES)]
    Dev(DevArgs),
    /// Makes and revokes certificates for nodes and operators, where there is no other authority.
    #[command(subcommand, after_help = trust::CA_EXAMPLES)]
    Ca(CaVerb),
    /// Shows the keys that gossip is sealed with, and makes new ones.
    #[command(subcommand, after_help = trust::KEYRING_EXAMPLES)]
    Keyring(KeyringVerb),
    /// Makes tokens, which operators show where they have no certificate.
    #[command(subcommand, after_help = trust::TOKEN_EXAMPLES)]
    Token(TokenVerb),
    /// Remembers clusters: the address of a node of each, and what to show to it.
    #[command(subcommand, after_help = trust::CONTEXT_EXAMPLES)]
    Context(ContextVerb),
    /// Prints a script that completes this tool's command line.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

fn with_codes(examples: &str) -> String {
    format!("{examples}\n\n{}", exit::HELP)
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  outpost completions bash > ~/.local/share/bash-completion/completions/outpost
  outpost completions zsh > ~/.zfunc/_outpost
  outpost completions fish > ~/.config/fish/completions/outpost.fish";

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The admin API (`admin.listen`) of any node of the cluster; else that of the context, or 127.0.0.1:7001.
    #[arg(long, env = "OUTPOST_NODE", value_name = "ADDRESS", global = true, value_parser = node_address)]
    pub(crate) node: Option<Address>,
    /// The context (see `outpost context`), if it is not the current one; `none` is none.
    #[arg(long, env = "OUTPOST_CONTEXT", value_name = "NAME", global = true)]
    pub(crate) context: Option<String>,
    /// A file with the operator's token, if it is not that of the context. It is not sent in plain text to another machine.
    #[arg(long, env = "OUTPOST_TOKEN_FILE", value_name = "FILE", global = true)]
    pub(crate) token_file: Option<PathBuf>,
}

/// How to print what has two forms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DataOutput {
    #[default]
    Table,
    Json,
}

/// Bounded, because gRPC can't say more on the wire than eight digits.
fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let wanted = humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 500ms, 10s or 1m"))?;
    if wanted < Duration::from_millis(1) || wanted > LONGEST {
        return Err("must be from 1ms to 365d".to_owned());
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_examples() {
        for verb in Cli::command().get_subcommands() {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("outpost {}", verb.get_name())), "{}: {help}", verb.get_name());
        }
    }

    #[test]
    fn the_page_on_the_tool_has_every_verb_and_exit_code() {
        const PAGE: &str = include_str!("../../docs/cli.md");
        for verb in Cli::command().get_subcommands() {
            assert!(PAGE.contains(&format!("\n$ outpost {}", verb.get_name())), "{}", verb.get_name());
        }
        for line in exit::HELP.lines().skip(1) {
            let (code, meaning) = line.trim().split_once(' ').unwrap();
            let row = format!("| {code} | {} |", meaning.trim());
            assert!(PAGE.contains(&row), "{row}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_and_a_bound() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        for bad in ["10", "0s", "1us", "1000y", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_command_line_means_one_thing() {
        for (line, good) in [
            ("outpost call a/B {} -d {}", false),
            ("outpost call a/B -d -", true),
            ("outpost move checkout --to node-2 --wait --no-wait", true),
            ("outpost move checkout", false),
            ("outpost move checkout --no-wait", false),
            ("outpost move checkout --wait", true),
            ("outpost move checkout --id 7", true),
            ("outpost move checkout --id 0", false),
            ("outpost move checkout --to node-2 --id 7", false),
            ("outpost move checkout --abort --id 7", true),
            ("outpost move checkout --abort --to node-2", false),
            ("outpost move checkout --wait --lose-state", false),
            ("outpost drain node-2 --deadline 5m --wait --why disk", true),
            ("outpost drain node-2 --deadline 5", false),
            ("outpost drain", false),
            ("outpost moves -w -o json", true),
            ("outpost scale cart every", true),
            ("outpost scale cart 0", false),
            ("outpost pin cart --to node-1", false),
            ("outpost voters set 2", false),
            ("outpost voters set auto --node 127.0.0.1:1", true),
            ("outpost history show 3 --node 127.0.0.1:1", true),
            ("outpost history show 3 -o json", true),
            ("outpost check-compat old new -o json --tls", true),
            ("outpost context set a --kubernetes statefulset/shop --namespace shop", true),
            ("outpost context set a --kubernetes statefulset/shop --node 127.0.0.1:1", false),
            ("outpost context set a --node 127.0.0.1:1 --namespace shop", false),
            ("outpost context set a", false),
            ("outpost check-compat old", false),
            ("outpost call a/B --tls-certificate a.pem --tls-key a.key", true),
            ("outpost call a/B --tls-certificate a.pem", false),
            ("outpost dev --nodes 0 -- shop", false),
            ("outpost dev", false),
            ("outpost dev -- shop --log debug", true),
            ("outpost dev shop", true),
            ("outpost dev --set log.filter -- shop", false),
        ] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).is_ok(), good, "{line}");
        }
    }
}

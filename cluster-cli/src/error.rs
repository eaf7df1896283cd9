//! Why the tool failed, and the one table that turns that into exit codes.

use std::{io, path::PathBuf, time::Duration};

use crate::{
    address::Address, ca::BadAuthority, change::document::BadDocument, compat::BadVersion, connect::Unreachable,
    context::BadContext, dev::BadDev, json::BadJson, names::BadName, status::Answer, tunnel::NoTunnel,
};

/// The codes that the tool exits with. Scripts depend on them.
pub(crate) mod exit {
    pub(crate) const OK: u8 = 0;
    /// The call or request was answered with an error, or what was waited for failed.
    pub(crate) const ANSWERED: u8 = 1;
    /// As clap has it for arguments that it can't read.
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const TIMED_OUT: u8 = 3;
    pub(crate) const UNREACHABLE: u8 = 4;
    pub(crate) const CHANGED: u8 = 5;
    /// A code of its own: an error must never pass for "there is something to apply".
    pub(crate) const WOULD_CHANGE: u8 = 6;
    /// 128 and the number of the signal, as shells do.
    pub(crate) const INTERRUPTED: u8 = 130;

    /// The same for people.
    pub(crate) const HELP: &str = "\
Exit codes:
  0    done; of `plan`: nothing would change
  1    the answer was an error, or the change failed
  2    wrong arguments, names, JSON or placement document
  3    the wait timed out, and the change goes on
  4    the server can't be reached
  5    refused: something changed since --check-index
  6    of `plan`: something would change
  130  ended by Ctrl-C; a change that was begun goes on";
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("{0}")]
    Unreachable(#[from] Unreachable),
    #[error("{0}")]
    NoTunnel(#[from] NoTunnel),
    #[error(
        "{address} has no admin API ({answer}); set the node's admin.listen with --node, this may be its ingress; or \
         it is of an older version than this tool"
    )]
    NotAdmin { address: Address, answer: Answer },
    #[error("the node at {node} is {state} and has no ingress yet; try again, or set a server with --address")]
    NoIngress { node: Address, state: String },
    #[error("node {node} told `{ingress}` as its ingress, which is no address; set a server with --address")]
    BadIngress { node: Address, ingress: String },
    #[error(
        "{address} has no server reflection ({answer}), which tells what its methods take; \
         turn it on there (`ingress.reflection` of an Outpost application)"
    )]
    NoReflection { address: Address, answer: Answer },
    #[error("{address} described its services wrongly: {fault}")]
    Descriptors { address: Address, fault: String },
    #[error("{0}")]
    Name(#[from] BadName),
    #[error("{0}")]
    Json(#[from] BadJson),
    #[error("`{method}` takes one message, and the input has {count}")]
    OneMessage { method: String, count: usize },
    #[error(
        "`{method}` takes a stream of messages; give them as JSON or with -d, or send each as you type it with -d -"
    )]
    NoMessages { method: String },
    #[error("{0}")]
    Document(#[from] BadDocument),
    /// The cluster found a fault in what was asked for.
    #[error("{0}")]
    Refused(Answer),
    #[error("{0}\n  nothing was done; look at it again, and try with the index that is in force now")]
    Changed(Answer),
    #[error("{address} ended its answer without a word of the cluster; is it stopping? ask another node with --node")]
    NoCluster { address: Address },
    #[error("module `{module}` has no host: {why}; `outpost why {module}` tells more")]
    NoHost { module: String, why: String },
    #[error("there is no version {version} of the placement; `outpost history` lists them")]
    NoVersion { version: u64 },
    #[error("there is no placement before version {placement}, which is in force")]
    NothingBefore { placement: u64 },
    #[error("{0}")]
    Failed(String),
    #[error("{what} did not end within {}: {last}{}{goes_on}", humantime::format_duration(*limit), after(last))]
    WaitTimedOut { what: String, limit: Duration, last: String, goes_on: String },
    #[error("not waited for {what}; {goes_on}")]
    Interrupted { what: String, goes_on: String },
    /// The answer of `plan`, and no failure.
    #[error("something would change")]
    WouldChange,
    #[error("{0}")]
    Dev(#[from] BadDev),
    #[error("{0}")]
    Authority(#[from] BadAuthority),
    #[error("{0}")]
    Version(#[from] BadVersion),
    #[error("{0}")]
    Context(#[from] BadContext),
    /// What the user has set is of no use.
    #[error("{0}")]
    Refusal(String),
    #[error("can't read {path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("can't read stdin: {0}")]
    Stdin(io::Error),
    #[error("{0}")]
    Answered(Answer),
    #[error("DEADLINE_EXCEEDED: {what} did not end within {}; {remedy}", humantime::format_duration(*limit))]
    TimedOut { what: &'static str, limit: Duration, remedy: &'static str },
    #[error("`{method}` answered without a message")]
    NoAnswer { method: String },
    #[error("an answer has no JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("can't write to stdout: {0}")]
    Stdout(io::Error),
    /// Who read stdout has read enough.
    #[error("stdout is closed")]
    StdoutClosed,
}

/// What has several lines goes on with another.
fn after(text: &str) -> &'static str {
    if text.contains('\n') { "\n" } else { "; " }
}

impl CliError {
    pub(crate) fn exit_code(&self) -> u8 {
        // No `_` arm, so a new variant must choose here.
        match self {
            Self::StdoutClosed => exit::OK,
            Self::NotAdmin { .. }
            | Self::NoIngress { .. }
            | Self::BadIngress { .. }
            | Self::NoReflection { .. }
            | Self::Descriptors { .. }
            | Self::Answered(_)
            | Self::TimedOut { .. }
            | Self::NoAnswer { .. }
            | Self::NotJson(_)
            | Self::Stdout(_)
            | Self::NoCluster { .. }
            | Self::NoHost { .. }
            | Self::Failed(_) => exit::ANSWERED,
            Self::WaitTimedOut { .. } => exit::TIMED_OUT,
            Self::Changed(_) => exit::CHANGED,
            Self::WouldChange => exit::WOULD_CHANGE,
            Self::Interrupted { .. } => exit::INTERRUPTED,
            Self::Dev(error) => error.exit_code(),
            Self::Document(_)
            | Self::Refused(_)
            | Self::NoVersion { .. }
            | Self::NothingBefore { .. }
            | Self::Name(_)
            | Self::Json(_)
            | Self::OneMessage { .. }
            | Self::NoMessages { .. }
            | Self::File { .. }
            | Self::Authority(_)
            | Self::Context(_)
            | Self::Version(_)
            | Self::Refusal(_)
            | Self::Stdin(_) => exit::USAGE,
            Self::Unreachable(_) | Self::NoTunnel(_) => exit::UNREACHABLE,
        }
    }
}

//! Why the tool failed, and the one table that turns that into exit codes.

use std::{io, path::PathBuf, time::Duration};

use crate::{address::Address, connect::Unreachable, json::BadJson, names::BadName, status::Answer};

/// The codes that the tool exits with. Scripts depend on them.
pub(crate) mod exit {
    pub(crate) const OK: u8 = 0;
    /// The call or request was answered with an error.
    pub(crate) const ANSWERED: u8 = 1;
    /// As clap has it for arguments that it can't read.
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const UNREACHABLE: u8 = 4;
    /// 128 and the number of the signal, as shells do.
    pub(crate) const INTERRUPTED: u8 = 130;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("{0}")]
    Unreachable(#[from] Unreachable),
    #[error("{address} has no admin API ({answer}); set the node's admin.listen with --node, this may be its ingress")]
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
            | Self::Stdout(_) => exit::ANSWERED,
            Self::Name(_)
            | Self::Json(_)
            | Self::OneMessage { .. }
            | Self::NoMessages { .. }
            | Self::File { .. }
            | Self::Stdin(_) => exit::USAGE,
            Self::Unreachable(_) => exit::UNREACHABLE,
        }
    }
}

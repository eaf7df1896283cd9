//! Errors of the framework's own, and the one table that turns them into gRPC codes.

use std::time::Duration;

use outpost_proto::keys::metadata as keys;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    call::placed,
    id::{Epoch, ModuleName, NodeId},
    placement::{document::Fault, log::ProposeError, state::Refused},
    trust::{callers, operators::Forbidden},
};

/// Why the framework, not a module, ended a call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the call's deadline has passed")]
    DeadlineExceeded,
    #[error("the call ended in an internal error")]
    Panicked,
    #[error("no module serves `{0}`")]
    UnknownService(String),
    #[error("`{0}` is not the path of a gRPC method; a path reads /package.Service/Method")]
    NotAMethod(String),
    #[error("{0}")]
    Refused(#[from] callers::Refused),
    #[error("module `{0}` has stopped")]
    Stopped(ModuleName),
    #[error("factories wait for each other: {}", chain(.0))]
    WaitCycle(Vec<ModuleName>),
    #[error("calls are nested more than {0} deep: modules call each other without an end")]
    TooDeep(u8),
    #[error("the module answered with an error of code OK")]
    ErrorWithoutCode,
    #[error("a service of module `{module}` failed: {error}")]
    Service { module: ModuleName, error: String },
    #[error("module `{module}` is on no node now: {why}")]
    Nowhere { module: ModuleName, why: String },
    #[error("more than {most} calls wait for module `{module}`, which is on no node now")]
    TooManyWaiting { module: ModuleName, most: usize },
    #[error("module `{module}` is not on this node")]
    NotHere { module: ModuleName },
    #[error("module `{module}` moves to another node, and the call had not ended in time")]
    Cut { module: ModuleName, epoch: Epoch },
    #[error("module `{module}` moves to another node, where the stream can be opened again")]
    Moved { module: ModuleName, epoch: Epoch },
    #[error("this node has lost touch with the cluster, and another one may serve module `{module}` by now")]
    LeaseLost { module: ModuleName, epoch: Epoch },
    #[error("node `{node}` answered for module `{module}`, which another node has taken over from it")]
    Fenced { module: ModuleName, node: NodeId, epoch: Epoch },
    #[error("node `{node}`, which serves module `{module}`, broke off before the call ended: {error}")]
    Broken { module: ModuleName, node: NodeId, epoch: Option<Epoch>, error: String },
    #[error("`outpost-call-id` is not one value of 1 to {most} printable ASCII characters")]
    BadCallId { most: usize },
    #[error("the request has more than {most} bytes, the most that a method with kept answers takes")]
    TooLarge { most: usize },
    #[error(
        "{most} calls whose answers are to be kept run in module `{module}`; no more can (`cluster.dedupe_entries`)"
    )]
    TooManyKept { module: ModuleName, most: usize },
    #[error("module `{module}` has run this call, and its answer was too large to keep (`cluster.dedupe_bytes`)")]
    AnswerNotKept { module: ModuleName },
    #[error("another node sent a call that this one can't read: {0}")]
    Malformed(String),
    #[error(
        "module `{module}` was running this call when its state was saved, and its node has crashed since: nobody knows \
         whether the call's effect is in the state"
    )]
    Interrupted { module: ModuleName },
    #[error("nobody waited for the call's answer any more, and it did not end within {}", humantime::format_duration(*.0))]
    Abandoned(Duration),
}

/// Whether the module may have run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Executed {
    /// It has not: the call may be made again.
    No,
    Perhaps,
}

impl CallError {
    pub(crate) fn executed(&self) -> Executed {
        // No `_` arm, so a new variant must choose here.
        match self {
            Self::UnknownService(_)
            | Self::NotAMethod(_)
            | Self::Refused(_)
            | Self::Stopped(_)
            | Self::WaitCycle(_)
            | Self::TooDeep(_)
            | Self::Nowhere { .. }
            | Self::TooManyWaiting { .. }
            | Self::NotHere { .. }
            | Self::BadCallId { .. }
            | Self::TooLarge { .. }
            | Self::TooManyKept { .. }
            | Self::Malformed(_) => Executed::No,
            Self::DeadlineExceeded
            | Self::Panicked
            | Self::ErrorWithoutCode
            | Self::Service { .. }
            | Self::Cut { .. }
            | Self::Moved { .. }
            | Self::LeaseLost { .. }
            | Self::Fenced { .. }
            | Self::Broken { .. }
            | Self::AnswerNotKept { .. }
            | Self::Interrupted { .. }
            | Self::Abandoned(_) => Executed::Perhaps,
        }
    }

    /// The word for programs: it stays, whatever becomes of the text. docs/errors.md has them all.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::DeadlineExceeded => "deadline",
            Self::Panicked => "panicked",
            Self::UnknownService(_) => "unknown-service",
            Self::NotAMethod(_) => "not-a-method",
            Self::Refused(callers::Refused::Token(_)) => "bad-token",
            Self::Refused(callers::Refused::Expired) => "expired-certificate",
            Self::Refused(callers::Refused::Nameless(_)) => "unauthenticated",
            Self::Refused(callers::Refused::Client { .. }) => "not-for-clients",
            Self::Refused(callers::Refused::Module { .. }) => "not-for-module",
            Self::Stopped(_) => "stopped",
            Self::WaitCycle(_) => "wait-cycle",
            Self::TooDeep(_) => "too-deep",
            Self::ErrorWithoutCode => "error-without-code",
            Self::Service { .. } => "service-failed",
            Self::Nowhere { .. } => "nowhere",
            Self::TooManyWaiting { .. } => "too-many-waiting",
            Self::NotHere { .. } => "not-here",
            Self::Broken { .. } => "broken",
            // One word for both: the caller does the same about them.
            Self::Cut { .. } | Self::Moved { .. } => "moved",
            Self::LeaseLost { .. } => "lease-lost",
            Self::Fenced { .. } => "fenced",
            Self::BadCallId { .. } => "bad-call-id",
            Self::TooLarge { .. } => "too-large",
            Self::TooManyKept { .. } => "too-many-kept",
            Self::AnswerNotKept { .. } => "answer-not-kept",
            Self::Interrupted { .. } => "interrupted",
            Self::Malformed(_) => "malformed",
            Self::Abandoned(_) => "abandoned",
        }
    }

    /// The epoch of the placement that the call met.
    fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Broken { epoch, .. } => *epoch,
            Self::Cut { epoch, .. }
            | Self::Moved { epoch, .. }
            | Self::LeaseLost { epoch, .. }
            | Self::Fenced { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        // The only place that names a `Code`; no `_` arm, so a new variant must choose here.
        let code = match &error {
            CallError::DeadlineExceeded => Code::DeadlineExceeded,
            CallError::Panicked | CallError::ErrorWithoutCode | CallError::Service { .. } => Code::Internal,
            CallError::UnknownService(_) | CallError::NotAMethod(_) => Code::Unimplemented,
            // It may run elsewhere, or soon again.
            CallError::Stopped(_)
            | CallError::Nowhere { .. }
            | CallError::NotHere { .. }
            | CallError::Broken { .. }
            | CallError::Cut { .. }
            | CallError::Moved { .. }
            | CallError::LeaseLost { .. }
            | CallError::Fenced { .. }
            | CallError::Interrupted { .. } => Code::Unavailable,
            CallError::Refused(
                callers::Refused::Token(_) | callers::Refused::Expired | callers::Refused::Nameless(_),
            ) => Code::Unauthenticated,
            CallError::Refused(callers::Refused::Client { .. } | callers::Refused::Module { .. }) => {
                Code::PermissionDenied
            }
            CallError::Malformed(_) => Code::InvalidArgument,
            CallError::TooManyWaiting { .. } | CallError::TooManyKept { .. } => Code::ResourceExhausted,
            CallError::WaitCycle(_) | CallError::AnswerNotKept { .. } => Code::FailedPrecondition,
            CallError::TooDeep(_) => Code::ResourceExhausted,
            CallError::BadCallId { .. } => Code::InvalidArgument,
            // As tonic's servers have it.
            CallError::TooLarge { .. } => Code::OutOfRange,
            CallError::Abandoned(_) => Code::Cancelled,
        };
        let mut status = Status::new(code, error.to_string());
        let executed = match error.executed() {
            Executed::No => placed::NOT_EXECUTED,
            Executed::Perhaps => placed::UNKNOWN,
        };
        let metadata = status.metadata_mut();
        metadata.insert(keys::OUTCOME, MetadataValue::from_static(executed));
        metadata.insert(keys::REASON, MetadataValue::from_static(error.reason()));
        if let Some(epoch) = error.epoch() {
            metadata.insert(keys::EPOCH, epoch.0.into());
        }
        status
    }
}

/// Why an operator's request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("there is no module `{name}`; the modules are: {}", .known.join(", "))]
    NoModule { name: String, known: Vec<String> },
    #[error("there is no node `{name}`; the nodes are: {}", .known.join(", "))]
    NoNode { name: String, known: Vec<String> },
    #[error("there is no version {version} of the placement; those from {first} to {last} are kept")]
    NoVersion { version: u64, first: u64, last: u64 },
    #[error("`{0}` is no format of a placement document; write toml or json")]
    NoFormat(String),
    #[error("a pin needs a reason, for those who will wonder; give one with --reason")]
    NoReason,
    #[error("{0} nodes can't vote; choose 1, 3 or 5, or auto")]
    BadVoters(u32),
    #[error("{}", lines(.0))]
    Faults(Vec<Fault>),
    #[error("the placement is at version {current}, not {expected}: somebody has changed it; look at the plan again")]
    PlacementChanged { expected: u64, current: u64 },
    #[error("module `{module}` is at index {current}, not {expected}: it was changed meanwhile; look at it again")]
    ModuleChanged { module: ModuleName, expected: u64, current: u64 },
    #[error("module `{module}` can't move to {node}: {problem}")]
    CannotMove { module: ModuleName, node: NodeId, problem: String },
    #[error("there is nothing to give up for module `{module}`: {problem}")]
    CannotAbort { module: ModuleName, problem: String },
    #[error("node `{0}` is there; stop it before it is forgotten")]
    StillAlive(NodeId),
    #[error("{what} has {bytes} bytes, and 1024 are the most; write less")]
    TooLong { what: &'static str, bytes: usize },
    #[error("{0}")]
    Forbidden(#[from] Forbidden),
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("{0}")]
    Propose(#[from] ProposeError),
}

impl From<AdminError> for Status {
    fn from(error: AdminError) -> Self {
        // No `_` arm, so a new variant must choose here.
        let code = match &error {
            AdminError::NoModule { .. } | AdminError::NoNode { .. } | AdminError::NoVersion { .. } => Code::NotFound,
            AdminError::TooLong { .. }
            | AdminError::NoFormat(_)
            | AdminError::NoReason
            | AdminError::BadVoters(_)
            | AdminError::Faults(_) => Code::InvalidArgument,
            AdminError::PlacementChanged { .. } | AdminError::ModuleChanged { .. } => Code::Aborted,
            AdminError::CannotMove { .. } | AdminError::CannotAbort { .. } | AdminError::StillAlive(_) => {
                Code::FailedPrecondition
            }
            AdminError::Refused(refused) => match refused {
                Refused::SpecChanged { .. } | Refused::PartChanged { .. } | Refused::Uncompared { .. } => Code::Aborted,
                Refused::NoNode(_) => Code::NotFound,
                Refused::Founded
                | Refused::Superseded { .. }
                | Refused::Retired(_)
                | Refused::StillThere(_)
                | Refused::Voters(_)
                | Refused::Phase { .. } => Code::FailedPrecondition,
            },
            AdminError::Forbidden(forbidden) => match forbidden {
                Forbidden::Stranger(_) => Code::Unauthenticated,
                Forbidden::Unknown(_) | Forbidden::Scope { .. } | Forbidden::Module { .. } | Forbidden::Wide { .. } => {
                    Code::PermissionDenied
                }
            },
            AdminError::Propose(_) => Code::Unavailable,
        };
        Status::new(code, error.to_string())
    }
}

/// What the source of a move tells its target when its log shows that the move is over. Nothing else of a transfer has this code.
pub(crate) fn move_over() -> Status {
    Status::not_found("the move is over")
}

pub(crate) fn is_move_over(status: &Status) -> bool {
    status.code() == Code::NotFound
}

/// `cart -> pricing -> cart`
pub(crate) fn chain(modules: &[ModuleName]) -> String {
    modules.iter().map(ModuleName::as_str).collect::<Vec<_>>().join(" -> ")
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The modules do not fit together. One message a fault.
    #[error("{}", lines(.0))]
    Program(Vec<crate::module::ProgramError>),
    /// A setting is wrong.
    #[error("{}", lines(.0))]
    Config(Vec<crate::config::ConfigError>),
    /// An address can't be listened on.
    #[error("can't listen on {address} (`{key}`, {origin}): {error}; {remedy}")]
    Listen {
        /// The address as configured.
        address: String,
        /// The configuration key that holds it.
        key: &'static str,
        /// Where that was set.
        origin: String,
        /// What the system said.
        error: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A certificate or key can't be used.
    #[error("{0}")]
    Trust(#[from] crate::trust::TrustError),
    /// A module's factory answered with an error.
    #[error("module `{module}` did not start: {error}")]
    Factory {
        /// The module.
        module: ModuleName,
        /// What its factory said, with its causes.
        error: String,
    },
    /// A module's factory panicked.
    #[error("module `{module}` did not start: its factory panicked: {message}")]
    FactoryPanicked {
        /// The module.
        module: ModuleName,
        /// The text of the panic.
        message: String,
    },
    /// A module's factory took too long.
    #[error("module `{module}` did not start within {}{}; see what its factory does, or raise `node.start_timeout`",
        humantime::format_duration(*limit), waiting(.awaited_by))]
    FactoryTimeout {
        /// The module.
        module: ModuleName,
        /// The limit, `node.start_timeout`.
        limit: Duration,
        /// The modules whose factories were calling it.
        awaited_by: Vec<ModuleName>,
    },
    /// Factories call each other's modules, so that none can finish.
    #[error("factories wait for each other: {}; a factory may only call modules whose factories do not call it", chain(.0))]
    FactoryCycle(Vec<ModuleName>),
    /// The cluster wants this node to run a module that its program lacks.
    #[error("module `{module}` is not part of this program")]
    NoModule {
        /// The module.
        module: ModuleName,
    },
    /// The node could not become part of a cluster.
    #[error("{0}")]
    Cluster(String),
    /// Checkpoints can't be kept where they should be.
    #[error("checkpoints can't be kept at {url} (`checkpoints.url`): {error}")]
    Checkpoints {
        /// The setting, without credentials.
        url: String,
        /// What is wrong.
        error: String,
    },
    /// The program's version of a module does not fit with the cluster's.
    #[error(
        "this version of the program does not fit with what the cluster runs: {0}; change it so that both can run at a time, or set \
             `cluster.incompatible_versions` to \"join\": the module is then not hosted here while the other version is there. \
             A node that is gone for good is no obstacle once it was forgotten (`outpost forget`)"
    )]
    Incompatible(String),
    /// The descriptors that services were registered with contradict each other, or lack something.
    #[error(
        "the descriptors of the program's services are of no use: {0}; those that `Module::descriptors` is given must hold all that they import"
    )]
    Descriptors(String),
}

fn waiting(modules: &[ModuleName]) -> String {
    match modules {
        [] => String::new(),
        modules => {
            let names: Vec<String> = modules.iter().map(|module| format!("`{module}`")).collect();
            format!(" (awaited by {})", names.join(", "))
        }
    }
}

fn lines<E: std::fmt::Display>(errors: &[E]) -> String {
    errors.iter().map(E::to_string).collect::<Vec<_>>().join("\n")
}

/// An error and its causes on one line: `can't open the store: no such file`.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each variant that a caller may see.
    fn all() -> Vec<CallError> {
        let module = || ModuleName::parse("cart").unwrap();
        let epoch = Epoch(3);
        vec![
            CallError::DeadlineExceeded,
            CallError::Panicked,
            CallError::UnknownService("shop.v1.Cart".to_owned()),
            CallError::NotAMethod("/".to_owned()),
            callers::Refused::Token(callers::BadToken::Expired).into(),
            callers::Refused::Expired.into(),
            callers::Refused::Nameless(module()).into(),
            callers::Refused::Client { module: module(), why: "it is internal" }.into(),
            callers::Refused::Module { from: module(), module: module(), why: "".into() }.into(),
            CallError::Stopped(module()),
            CallError::WaitCycle(vec![module()]),
            CallError::TooDeep(64),
            CallError::ErrorWithoutCode,
            CallError::Service { module: module(), error: String::new() },
            CallError::Nowhere { module: module(), why: String::new() },
            CallError::TooManyWaiting { module: module(), most: 1 },
            CallError::NotHere { module: module() },
            CallError::Broken {
                module: module(),
                node: NodeId::parse("n1").unwrap(),
                epoch: Some(epoch),
                error: String::new(),
            },
            CallError::Cut { module: module(), epoch },
            CallError::Moved { module: module(), epoch },
            CallError::LeaseLost { module: module(), epoch },
            CallError::Fenced { module: module(), node: NodeId::parse("n1").unwrap(), epoch },
            CallError::BadCallId { most: 64 },
            CallError::TooLarge { most: 1 },
            CallError::TooManyKept { module: module(), most: 1 },
            CallError::AnswerNotKept { module: module() },
            CallError::Interrupted { module: module() },
            CallError::Malformed("it has no path".to_owned()),
            CallError::Abandoned(Duration::from_secs(30)),
        ]
    }

    #[test]
    fn every_error_is_in_the_page_for_authors_of_clients() {
        let page = include_str!("../../docs/errors.md");
        for error in all() {
            let (reason, epoch) = (error.reason(), error.epoch());
            let status = Status::from(error);
            let told = |key| status.metadata().get(key).map(|value| value.to_str().unwrap().to_owned());
            let code = format!("{:?}", status.code());
            // `ResourceExhausted` is RESOURCE_EXHAUSTED to everybody else.
            let words = code.chars().enumerate().map(|(at, letter)| match letter.is_uppercase() && at > 0 {
                true => format!("_{letter}"),
                false => letter.to_string(),
            });
            let code = words.collect::<String>().to_uppercase();
            let row = format!("| `{reason}` | {code} | `{}` |", told(keys::OUTCOME).unwrap());
            assert!(page.contains(&row), "docs/errors.md has no row that begins {row}");
            assert_eq!(told(keys::REASON).as_deref(), Some(reason));
            assert_eq!(told(keys::EPOCH), epoch.map(|epoch| epoch.to_string()));
        }
    }
}

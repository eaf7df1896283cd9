//! Errors of the framework's own, and the one table that turns them into gRPC codes.

use std::time::Duration;

use outpost_proto::keys::metadata as keys;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    call::placed,
    id::{ModuleName, NodeId},
    placement::{document::Fault, log::ProposeError, state::Refused},
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
    #[error("node `{node}`, which serves module `{module}`, broke off before the call ended: {error}")]
    Broken { module: ModuleName, node: NodeId, error: String },
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
            | Self::Stopped(_)
            | Self::WaitCycle(_)
            | Self::TooDeep(_)
            | Self::Nowhere { .. }
            | Self::TooManyWaiting { .. }
            | Self::NotHere { .. } => Executed::No,
            Self::DeadlineExceeded
            | Self::Panicked
            | Self::ErrorWithoutCode
            | Self::Service { .. }
            | Self::Broken { .. } => Executed::Perhaps,
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
            | CallError::Broken { .. } => Code::Unavailable,
            CallError::TooManyWaiting { .. } => Code::ResourceExhausted,
            CallError::WaitCycle(_) => Code::FailedPrecondition,
            CallError::TooDeep(_) => Code::ResourceExhausted,
        };
        let mut status = Status::new(code, error.to_string());
        let executed = match error.executed() {
            Executed::No => placed::NOT_EXECUTED,
            Executed::Perhaps => placed::UNKNOWN,
        };
        status.metadata_mut().insert(keys::OUTCOME, MetadataValue::from_static(executed));
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
    #[error("node `{0}` is there; stop it before it is forgotten")]
    StillAlive(NodeId),
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
            AdminError::NoFormat(_) | AdminError::NoReason | AdminError::BadVoters(_) | AdminError::Faults(_) => {
                Code::InvalidArgument
            }
            AdminError::PlacementChanged { .. } | AdminError::ModuleChanged { .. } => Code::Aborted,
            AdminError::CannotMove { .. } | AdminError::StillAlive(_) => Code::FailedPrecondition,
            AdminError::Refused(refused) => match refused {
                Refused::SpecChanged { .. } | Refused::PartChanged { .. } => Code::Aborted,
                Refused::NoNode(_) => Code::NotFound,
                Refused::Founded
                | Refused::Superseded { .. }
                | Refused::Retired(_)
                | Refused::StillThere(_)
                | Refused::Voters(_)
                | Refused::Phase { .. } => Code::FailedPrecondition,
            },
            AdminError::Propose(_) => Code::Unavailable,
        };
        Status::new(code, error.to_string())
    }
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
    Tls(#[from] crate::ingress::TlsError),
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
    /// The descriptors that services were registered with contradict each other.
    #[error("server reflection can't be built: {0}")]
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

//! Errors of the framework's own, and the one table that turns them into gRPC codes.

use std::time::Duration;

use tonic::{Code, Status};

use crate::id::ModuleName;

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
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        // The only place that names a `Code`; no `_` arm, so a new variant must choose here.
        let code = match &error {
            CallError::DeadlineExceeded => Code::DeadlineExceeded,
            CallError::Panicked | CallError::ErrorWithoutCode | CallError::Service { .. } => Code::Internal,
            CallError::UnknownService(_) | CallError::NotAMethod(_) => Code::Unimplemented,
            CallError::Stopped(_) => Code::Unavailable, // it may run elsewhere, or soon again
            CallError::WaitCycle(_) => Code::FailedPrecondition,
            CallError::TooDeep(_) => Code::ResourceExhausted,
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

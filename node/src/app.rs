//! An application: a name, and modules.

use crate::{
    config::{Loaded, Sources},
    module::{Declared, Factory, Module, Program},
    node::Node,
    placement::spec::{Kind, StateClass},
    status::StartError,
};

/// A program made of modules.
///
/// ```no_run
/// # mod cart { pub async fn new() -> Result<tonic_health::pb::health_server::HealthServer<tonic_health::server::HealthService>, outpost::BoxError> { unimplemented!() } }
/// use outpost::App;
///
/// fn main() -> std::process::ExitCode {
///     App::new("shop", env!("CARGO_PKG_VERSION"))
///         .module("cart", cart::new)
///         .main()
/// }
/// ```
#[derive(Debug)]
pub struct App {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) modules: Vec<Module>,
}

impl App {
    /// An application without modules. The version is what operators see; usually `env!("CARGO_PKG_VERSION")`.
    #[must_use]
    pub fn new(name: &str, version: &str) -> Self {
        Self { name: name.to_owned(), version: version.to_owned(), modules: Vec::new() }
    }

    /// Adds a module: see [`Module::new`].
    #[must_use]
    pub fn module<F, P>(self, name: &str, factory: F) -> Self
    where
        F: Factory<P>,
        P: Send + 'static,
    {
        self.with(Module::new(name, factory))
    }

    /// Adds a module that has more to say than its name and factory.
    #[must_use]
    pub fn with(mut self, module: Module) -> Self {
        self.modules.push(module);
        self
    }

    /// Checks that the modules fit together. Runs none of their code.
    pub(crate) fn program(&self) -> Result<Program, StartError> {
        let declared: Vec<Declared<'_>> = self
            .modules
            .iter()
            .map(|module| Declared {
                name: &module.name,
                services: &module.services,
                depends_on: &module.depends_on,
                state_on_several: module.state.is_some() && module.kind != Kind::Exclusive,
                states: module.states.len(),
                checkpointed: module.state == StateClass::Checkpointed,
            })
            .collect();
        Program::check(&declared).map_err(StartError::Program)
    }

    /// Reads the settings, and each module's configuration.
    ///
    /// # Errors
    /// [`StartError::Config`] with every fault.
    pub fn load(&self, sources: &Sources) -> Result<Loaded, StartError> {
        let modules: Vec<_> =
            self.modules.iter().map(|module| (module.name.as_str(), module.factory.config().copied())).collect();
        Loaded::load(sources, &modules).map_err(StartError::Config)
    }

    /// Starts a node in the tokio runtime that this is called in. [`App::main`] does so for a whole process.
    ///
    /// # Errors
    /// Whatever is wrong with the modules or the settings, an address that is taken, a factory that fails.
    /// # Cancel safety
    /// Dropping the future ends what has started.
    pub async fn start(self, sources: &Sources) -> Result<Node, StartError> {
        let program = self.program()?;
        let loaded = self.load(sources)?;
        Node::start(self, program, loaded).await
    }
}

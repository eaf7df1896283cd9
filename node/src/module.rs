//! What a module is: its registration, its factory, its start and its end.
//!
//! ```text
//! Module::new("cart", cart::new) ─▶ Program (names, services and dependencies fit) ─▶ start: all factories at once
//!                 │                                                                      │
//!                 └─ parameters of the factory = what the module needs                   └─▶ slots: calls may come
//! ```
//!
//! **Invariant:** what a module is called, serves and depends on is known from types, before any of its code runs.

mod context;
mod factory;
pub mod fence;
mod program;
mod reach;
mod snapshot;
mod start;

use std::{fmt, sync::Arc, time::Duration};

use crate::placement::spec::{Count, Kind, StateClass};

pub use context::{Config, Context};
pub(crate) use context::{Ownership, Tasks};
pub(crate) use factory::{Built, ErasedFactory, Needs, Supply};
pub use factory::{Factory, Parameter, ServiceSet, Services, services};
pub use program::ProgramError;
pub(crate) use program::{Declared, Dependency, Program};
pub(crate) use reach::direct_of;
pub use reach::{Limits, Reach, built};
pub(crate) use snapshot::{Held, Hooks};
pub use snapshot::{Json, Snapshot, SnapshotError, SnapshotReader, SnapshotWriter, State};
pub(crate) use start::{Edge, Starting, Waits, start};

/// Whether clients may call a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposed {
    Public,
    Internal,
    /// The module does not say.
    Unmarked,
}

/// A module: a name, and a factory that builds its services.
///
/// ```
/// # use outpost::{Module, BoxError};
/// # use tonic_health::server::HealthReporter;
/// # async fn health() -> Result<tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>, BoxError> {
/// #     Ok(tonic_health::server::health_reporter().1)
/// # }
/// let module = Module::new("health", health).depends_on("cart");
/// ```
pub struct Module {
    pub(crate) name: String,
    pub(crate) services: Vec<&'static str>,
    pub(crate) depends_on: Vec<Dependency>,
    pub(crate) descriptors: Vec<&'static [u8]>,
    pub(crate) kind: Kind,
    pub(crate) state: StateClass,
    /// How to make its state, for each parameter of its factory that is one.
    pub(crate) states: Vec<fn() -> Held>,
    /// How often its state is checkpointed.
    pub(crate) checkpoint_every: Duration,
    pub(crate) exposed: Exposed,
    pub(crate) factory: Arc<dyn ErasedFactory>,
}

impl Module {
    /// Names a module and says how to build it.
    ///
    /// The factory is an async function. Its parameters are what the module needs, in any order: handles of other
    /// modules' services (these are its declared dependencies), [`Config`] (its own configuration), [`State`] (what has
    /// to be where the module is), [`Context`]. It answers with a tonic server, or several joined by [`services`].
    ///
    /// A name that can't be one, or that another module has, is reported when the application starts.
    pub fn new<F, P>(name: &str, factory: F) -> Self
    where
        F: Factory<P>,
        P: Send + 'static,
    {
        let mut needs = Needs::default();
        F::declare(&mut needs);
        Self {
            name: name.to_owned(),
            services: F::Services::names(),
            depends_on: needs.services.into_iter().map(Dependency::Service).collect(),
            descriptors: Vec::new(),
            kind: Kind::Exclusive,
            state: if needs.states.is_empty() { StateClass::None } else { StateClass::Ephemeral },
            states: needs.states,
            checkpoint_every: Duration::ZERO,
            exposed: Exposed::Unmarked,
            factory: factory::erase(factory, needs.config),
        }
    }

    /// Declares that this module calls another one, by its name: for calls that it makes by other means than a handle
    /// parameter, such as a stock tonic client on [`Context::channel`].
    #[must_use]
    pub fn depends_on(mut self, module: &str) -> Self {
        self.depends_on.push(Dependency::Module(module.to_owned()));
        self
    }

    /// Declares that the module holds state between calls that nobody else has and that can't travel: one node hosts it
    /// at a time, and the cluster does not move it by itself, since its state would stay behind. No placement can make
    /// it replicated. For a service as it is found; one that is written for a cluster has a [`State`].
    ///
    /// A module without state that is not replicated is hosted by one node at a time too, and moves freely.
    #[must_use]
    pub fn stateful(mut self) -> Self {
        self.state = StateClass::Fixed;
        self
    }

    /// Declares that the module's state travels with it, and is lost when its node crashes. A module whose factory has a
    /// [`State`] as a parameter is so without saying it. Of one without, what travels are the replies that are kept for
    /// its `DEDUPE` methods.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.state = StateClass::Ephemeral;
        self
    }

    /// Declares that the module's [`State`] travels with it, and is also written to the object store of
    /// `checkpoints.url` so often and after each move: a crash loses what came after the last time.
    #[must_use]
    pub fn checkpointed(mut self, every: Duration) -> Self {
        self.state = StateClass::Checkpointed;
        self.checkpoint_every = every;
        self
    }

    /// Declares that the module keeps its state in a store of its own, such as a database, and fences what it writes
    /// with [`Context::epoch`], for which there is [`fence`]: a crash loses nothing, and a former owner can't write. A
    /// [`State`] beside it travels with a move, but does not outlive a crash: a cache, say.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.state = StateClass::Durable;
        self
    }

    /// Declares that several nodes may host the module at a time, and that so many should, where the placement does not
    /// say otherwise. For modules without state, or that keep it elsewhere.
    #[must_use]
    pub fn replicated(mut self, hosts: u16) -> Self {
        self.kind = Kind::Replicated(Count::Exactly(hosts.max(1)));
        self
    }

    /// The same, with every node as a host.
    #[must_use]
    pub fn on_every_node(mut self) -> Self {
        self.kind = Kind::Replicated(Count::Every);
        self
    }

    /// Declares that clients may call the module, whatever `ingress.unmarked_modules` says.
    #[must_use]
    pub fn public(mut self) -> Self {
        self.exposed = Exposed::Public;
        self
    }

    /// Declares that only other modules, wherever they are, and the program itself may call the module: at every node's
    /// ingress, its services are refused and not told of.
    #[must_use]
    pub fn internal(mut self) -> Self {
        self.exposed = Exposed::Internal;
        self
    }

    /// Adds encoded file descriptors, with all that they import, for server reflection and to compare versions. Only services
    /// whose code was not generated by `outpost-build` need this.
    #[must_use]
    pub fn descriptors(mut self, encoded: &'static [u8]) -> Self {
        self.descriptors.push(encoded);
        self
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("name", &self.name).field("services", &self.services).finish_non_exhaustive()
    }
}

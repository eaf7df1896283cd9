//! Factories: async functions whose parameters say what a module needs.

use std::{
    any::Any,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use tonic::{body::Body, server::NamedService};

use super::{
    Config, Context, direct_of,
    snapshot::{Held, Snapshot, State},
};
use crate::{
    BoxError,
    call::{Handle, Route, Tonic, slot::Local, table::Table},
    config::ModuleConfig,
};

/// What a module needs, as its factory's parameters tell.
#[derive(Debug, Default)]
pub struct Needs {
    /// Full names of services.
    pub(crate) services: Vec<&'static str>,
    /// How to read its configuration.
    pub(crate) config: Option<ModuleConfig>,
    /// How to make its state, for each parameter that is one.
    pub(crate) states: Vec<fn() -> Held>,
}

/// What the parameters of one module's factory are made from.
#[derive(Debug)]
pub struct Supply {
    pub(crate) context: Context,
    pub(crate) table: Arc<Table>,
    /// The module's configuration, a `T` where it declared `Config<T>`: each instance of the module gets a copy.
    pub(crate) config: Option<Arc<Mutex<Box<dyn Any + Send>>>>,
    /// The state of this instance, a `T` where the module declared `State<T>`.
    pub(crate) state: Option<Held>,
}

/// Something that a factory may have as a parameter: a generated handle, [`Config`], [`State`], [`Context`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a parameter of a module's factory",
    note = "a factory takes generated handles (`CartHandle`), `outpost::Config<T>` where T: Serialize + Deserialize + \
            Clone, `outpost::State<T>` where T: Snapshot, and `outpost::Context`"
)]
pub trait Parameter: Sized + Send {
    #[doc(hidden)]
    fn declare(needs: &mut Needs);
    #[doc(hidden)]
    fn take(supply: &mut Supply) -> Self;
}

impl<H: Handle> Parameter for H {
    fn declare(needs: &mut Needs) {
        needs.services.push(H::SERVICE);
    }

    fn take(supply: &mut Supply) -> Self {
        let slot = supply.table.service(H::SERVICE).expect("the program was checked to have the service");
        H::from_route(Route::of_module(supply.context.module().clone(), Arc::clone(slot)))
    }
}

impl Parameter for Context {
    fn declare(_: &mut Needs) {}

    fn take(supply: &mut Supply) -> Self {
        supply.context.clone()
    }
}

impl<T> Parameter for Config<T>
where
    T: Serialize + DeserializeOwned + Clone + Send + 'static,
{
    fn declare(needs: &mut Needs) {
        needs.config = Some(ModuleConfig::of::<T>());
    }

    fn take(supply: &mut Supply) -> Self {
        let config = supply
            .config
            .as_ref()
            .and_then(|config| config.lock().unwrap_or_else(PoisonError::into_inner).downcast_ref::<T>().cloned());
        Self::new(config.expect("the configuration was read as this type"))
    }
}

impl<T: Snapshot> Parameter for State<T> {
    fn declare(needs: &mut Needs) {
        needs.states.push(Held::maker::<T>());
    }

    fn take(supply: &mut Supply) -> Self {
        let state = supply.state.as_ref().and_then(Held::state);
        state.expect("the program was checked to have one state, of this type")
    }
}

/// An async function that builds a module's services. `P` is the tuple of its parameters.
#[diagnostic::on_unimplemented(
    message = "this is not a factory of a module",
    note = "a factory is `async fn(..) -> Result<S, E>`: each parameter a handle, `Config<T>`, `State<T>` or `Context` (12 at the \
            most), `S` a tonic server or `outpost::services(a).and(b)`, and `E: Into<outpost::BoxError>`"
)]
pub trait Factory<P>: Send + Sync + 'static {
    /// What it builds.
    type Services: ServiceSet;
    #[doc(hidden)]
    fn declare(needs: &mut Needs);
    #[doc(hidden)]
    fn build(&self, supply: Supply) -> impl Future<Output = Result<Self::Services, BoxError>> + Send + 'static;
}

macro_rules! factory {
    ($($parameter:ident),*) => {
        impl<F, Fut, S, E, $($parameter),*> Factory<($($parameter,)*)> for F
        where
            F: Fn($($parameter),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<S, E>> + Send + 'static,
            S: ServiceSet,
            E: Into<BoxError>,
            $($parameter: Parameter,)*
        {
            type Services = S;

            #[allow(unused_variables, reason = "there may be no parameter")]
            fn declare(needs: &mut Needs) {
                $($parameter::declare(needs);)*
            }

            #[allow(unused_mut, unused_variables, reason = "there may be no parameter")]
            fn build(&self, mut supply: Supply) -> impl Future<Output = Result<S, BoxError>> + Send + 'static {
                let services = self($($parameter::take(&mut supply)),*);
                async move { services.await.map_err(Into::into) }
            }
        }
    };
}

factory!();
factory!(P1);
factory!(P1, P2);
factory!(P1, P2, P3);
factory!(P1, P2, P3, P4);
factory!(P1, P2, P3, P4, P5);
factory!(P1, P2, P3, P4, P5, P6);
factory!(P1, P2, P3, P4, P5, P6, P7);
factory!(P1, P2, P3, P4, P5, P6, P7, P8);
factory!(P1, P2, P3, P4, P5, P6, P7, P8, P9);
factory!(P1, P2, P3, P4, P5, P6, P7, P8, P9, P10);
factory!(P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11);
factory!(P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12);

/// A service that a factory built.
#[derive(Debug)]
pub struct Built {
    pub(crate) service: &'static str,
    pub(crate) local: Local,
}

/// What a factory builds: one tonic server, or several joined by [`services`].
///
/// A server is whatever tonic's own `Router` would take: a generated `FooServer`, one with an interceptor, one in
/// layers (`tonic::service::LayerExt::named_layer` keeps its name), or one that somebody wrote by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a tonic server",
    note = "a factory builds a `FooServer`, one in an interceptor or in layers with a name \
            (`tonic::service::LayerExt::named_layer`), or several: `outpost::services(a).and(b)`"
)]
pub trait ServiceSet: Send + 'static {
    #[doc(hidden)]
    fn names() -> Vec<&'static str>;
    #[doc(hidden)]
    fn into_built(self) -> Vec<Built>;
}

impl<S, B> ServiceSet for S
where
    S: tower::Service<http::Request<Body>, Response = http::Response<B>> + NamedService,
    S: Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn names() -> Vec<&'static str> {
        vec![S::NAME]
    }

    fn into_built(self) -> Vec<Built> {
        let direct = direct_of(&self);
        vec![Built { service: S::NAME, local: Local::new(direct, Box::new(Tonic(self))) }]
    }
}

/// Several services of one module, which may share state: see [`services`].
#[derive(Debug)]
pub struct Services<A, B>(A, B);

/// The end of a list of services.
#[derive(Debug)]
pub struct Nothing;

impl ServiceSet for Nothing {
    fn names() -> Vec<&'static str> {
        Vec::new()
    }

    fn into_built(self) -> Vec<Built> {
        Vec::new()
    }
}

/// Begins a list of services: `services(CartServer::from_arc(cart.clone())).and(CartAdminServer::from_arc(cart))`.
pub fn services<S: ServiceSet>(first: S) -> Services<S, Nothing> {
    Services(first, Nothing)
}

impl<A: ServiceSet, B: ServiceSet> Services<A, B> {
    /// Adds a service.
    #[must_use]
    pub fn and<C: ServiceSet>(self, next: C) -> Services<Self, C> {
        Services(self, next)
    }
}

impl<A: ServiceSet, B: ServiceSet> ServiceSet for Services<A, B> {
    fn names() -> Vec<&'static str> {
        [A::names(), B::names()].concat()
    }

    fn into_built(self) -> Vec<Built> {
        let Self(first, next) = self;
        let mut built = first.into_built();
        built.extend(next.into_built());
        built
    }
}

/// A factory whose type is forgotten.
pub(crate) trait ErasedFactory: Send + Sync {
    fn config(&self) -> Option<&ModuleConfig>;
    fn build(&self, supply: Supply) -> BoxFuture<'static, Result<Vec<Built>, BoxError>>;
}

struct Erased<F, P> {
    factory: F,
    config: Option<ModuleConfig>,
    _parameters: std::marker::PhantomData<fn(P)>,
}

pub(crate) fn erase<F, P>(factory: F, config: Option<ModuleConfig>) -> Arc<dyn ErasedFactory>
where
    F: Factory<P>,
    P: 'static,
{
    Arc::new(Erased { factory, config, _parameters: std::marker::PhantomData })
}

impl<F: Factory<P>, P: 'static> ErasedFactory for Erased<F, P> {
    fn config(&self) -> Option<&ModuleConfig> {
        self.config.as_ref()
    }

    fn build(&self, supply: Supply) -> BoxFuture<'static, Result<Vec<Built>, BoxError>> {
        let services = self.factory.build(supply);
        Box::pin(async move { Ok(services.await?.into_built()) })
    }
}

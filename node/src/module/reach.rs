//! From a tonic server that a factory answered with, to the trait inside it.
//!
//! A factory may answer with any tower service, so its type tells nothing. A server that `outpost-build` generated
//! announces its type when one is built; if the very type comes back from the factory, and not one wrapped in a layer,
//! the way to its trait is known.

use std::{
    any::{Any, TypeId},
    cell::Cell,
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use crate::call::Direct;

/// What the generated code of a server tells. Implemented by `outpost-build` for each `FooServer<T>`.
pub trait Reach: Sized + Send + Sync + 'static {
    /// The full name of the service.
    /// The trait in the server.
    fn direct(&self) -> Direct;
    /// The server, with the node's limits in place of tonic's defaults.
    #[must_use]
    fn with_limits(self, limits: &Limits) -> Self;
}

/// What a node sets for the servers that are built in its factories; the module may still change it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Limits {
    /// The largest message that a server decodes, in bytes.
    pub max_message_bytes: usize,
}

type ToDirect<S> = fn(&S) -> Direct;

/// A `ToDirect<S>` under the id of `S`.
type Announced = HashMap<TypeId, Box<dyn Any + Send + Sync>>;

/// Facts about types, which hold for the whole process: so a global, which only grows, by one entry a type.
static ANNOUNCED: RwLock<Option<Announced>> = RwLock::new(None);

thread_local! {
    static LIMITS: Cell<Option<Limits>> = const { Cell::new(None) };
}

/// Called by generated code for each server that is built. Outside of a node's factory the server is left as it is.
#[must_use]
pub fn built<S: Reach>(server: S) -> S {
    let id = TypeId::of::<S>();
    let known = ANNOUNCED
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .is_some_and(|announced| announced.contains_key(&id));
    if !known {
        let direct: ToDirect<S> = S::direct;
        let mut announced = ANNOUNCED.write().unwrap_or_else(PoisonError::into_inner);
        announced.get_or_insert_default().insert(id, Box::new(direct));
    }
    match LIMITS.get() {
        Some(limits) => server.with_limits(&limits),
        None => server,
    }
}

/// The way to the trait in a server, if the server is bare and ours.
pub(crate) fn direct_of<S: 'static>(server: &S) -> Option<Direct> {
    let announced = ANNOUNCED.read().unwrap_or_else(PoisonError::into_inner);
    let direct = announced.as_ref()?.get(&TypeId::of::<S>())?.downcast_ref::<ToDirect<S>>()?;
    Some(direct(server))
}

impl Limits {
    pub(crate) fn new(max_message_bytes: usize) -> Self {
        Self { max_message_bytes }
    }

    /// Runs `body`; servers built in it get these limits.
    pub(crate) fn enter<T>(self, body: impl FnOnce() -> T) -> T {
        struct Restore(Option<Limits>);
        impl Drop for Restore {
            fn drop(&mut self) {
                LIMITS.set(self.0);
            }
        }
        let _restore = Restore(LIMITS.replace(Some(self)));
        body()
    }
}

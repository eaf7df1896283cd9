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
    const SERVICE: &'static str;
    /// The encoded descriptors of its file and all that this imports.
    const DESCRIPTORS: &'static [u8];
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

#[derive(Default)]
struct Announced {
    /// A `ToDirect<S>` under the id of `S`.
    direct: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    descriptors: HashMap<&'static str, &'static [u8]>,
}

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
        .is_some_and(|announced| announced.direct.contains_key(&id));
    if !known {
        let mut announced = ANNOUNCED.write().unwrap_or_else(PoisonError::into_inner);
        let announced = announced.get_or_insert_default();
        let direct: ToDirect<S> = S::direct;
        announced.direct.insert(id, Box::new(direct));
        announced.descriptors.insert(S::SERVICE, S::DESCRIPTORS);
    }
    match LIMITS.get() {
        Some(limits) => server.with_limits(&limits),
        None => server,
    }
}

/// The way to the trait in a server, if the server is bare and ours.
pub(crate) fn direct_of<S: 'static>(server: &S) -> Option<Direct> {
    let announced = ANNOUNCED.read().unwrap_or_else(PoisonError::into_inner);
    let direct = announced.as_ref()?.direct.get(&TypeId::of::<S>())?.downcast_ref::<ToDirect<S>>()?;
    Some(direct(server))
}

/// The descriptors of a service whose code is ours and that was built.
pub(crate) fn descriptors_of(service: &str) -> Option<&'static [u8]> {
    let announced = ANNOUNCED.read().unwrap_or_else(PoisonError::into_inner);
    announced.as_ref()?.descriptors.get(service).copied()
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

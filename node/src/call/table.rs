//! From the path of a request to the slot of its service.

use std::{collections::HashMap, sync::Arc};

use super::slot::Slot;
use crate::status::CallError;

/// The services of a node. Does not change while the node runs: what changes is in the slots.
#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: HashMap<String, Arc<Slot>, foldhash::fast::FixedState>,
}

impl Table {
    pub(crate) fn new(slots: impl IntoIterator<Item = Arc<Slot>>) -> Self {
        Self { slots: slots.into_iter().map(|slot| (slot.service().to_owned(), slot)).collect() }
    }

    /// The slot for a path `/package.Service/Method`.
    pub(crate) fn find(&self, path: &str) -> Result<&Arc<Slot>, CallError> {
        let method = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        match method {
            Some((service, method)) if !method.is_empty() && !method.contains('/') => self.service(service),
            _ => Err(CallError::NotAMethod(path.to_owned())),
        }
    }

    /// The slot of a service, by its full name.
    pub(crate) fn service(&self, name: &str) -> Result<&Arc<Slot>, CallError> {
        self.slots.get(name).ok_or_else(|| CallError::UnknownService(name.to_owned()))
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.values()
    }
}

//! Verbs that look at the cluster: a pure function from what it tells to text, each with a file of its own.

pub(crate) mod audit;
pub(crate) mod events;
pub(crate) mod history;
pub(crate) mod hosts;
pub(crate) mod modules;
pub(crate) mod moves;
pub(crate) mod nodes;
pub(crate) mod status;
pub(crate) mod why;

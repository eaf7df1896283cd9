//! Which nodes' versions of a module fit together. Asks nobody: descriptors in, verdicts out.
//!
//! Whoever calls a module may be on any node, and was compiled with what its node's version of the program has. So a node is
//! fit to host a module if the services that it would bring fit with those of each node that came before it. A node that
//! is the first with something new that does not fit has to wait until the others are gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use outpost_proto::compat;
use prost_reflect::{DescriptorPool, ServiceDescriptor};

use super::state::{Node, State};
use crate::{
    id::{Incarnation, ModuleName, NodeId},
    reflection::interface,
};

/// Why nodes must not host some of the modules that they have, for people.
pub(crate) type Unfit = BTreeMap<NodeId, BTreeMap<ModuleName, String>>;

/// What is known of the interfaces that nodes have registered, each by its digest.
#[derive(Debug, Default)]
pub(crate) struct Versions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    services: HashMap<String, Arc<[ServiceDescriptor]>>,
    /// Of an older interface and a newer one.
    problems: HashMap<(String, String), Option<String>>,
}

/// Something to ask a node for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) interface: String,
    /// Which describe it, together.
    pub(crate) services: Vec<String>,
    /// Who has it.
    pub(crate) nodes: BTreeSet<NodeId>,
}

/// An answer that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("the descriptors are others than it has registered")]
    Others,
    #[error("the descriptors can't be read: {0}")]
    Damaged(String),
}

/// One interface of a module, and who came with it.
struct Came<'a> {
    node: &'a NodeId,
    generation: u64,
    version: &'a str,
}

impl Versions {
    /// Takes in the encoded descriptors of an interface's services, by name.
    ///
    /// # Errors
    /// Descriptors of another interface, or none.
    pub(crate) fn learn(&self, digest: &str, descriptors: &BTreeMap<String, Vec<u8>>) -> Result<(), Unusable> {
        if interface(descriptors) != digest {
            return Err(Unusable::Others);
        }
        let services = descriptors.iter().map(|(service, set)| {
            let pool = DescriptorPool::decode(&**set).map_err(|error| Unusable::Damaged(error.to_string()))?;
            pool.get_service_by_name(service).ok_or_else(|| Unusable::Damaged(format!("{service} is not in them")))
        });
        let services = services.collect::<Result<_, _>>()?;
        self.known().services.insert(digest.to_owned(), services);
        Ok(())
    }

    /// What has to be asked for: nothing while all nodes have the same. Forgets what no node has any more.
    pub(crate) fn wanted(&self, state: &State) -> Vec<Wanted> {
        let mut known = self.known();
        let mut wanted: BTreeMap<&str, Wanted> = BTreeMap::new();
        let mut present: BTreeSet<&str> = BTreeSet::new();
        for nodes in by_module(state).into_values() {
            let differ = nodes.iter().any(|(_, _, interface)| *interface != nodes[0].2);
            for (node, services, interface) in nodes {
                present.insert(interface);
                if differ && !known.services.contains_key(interface) {
                    let new = || Wanted {
                        interface: interface.to_owned(),
                        services: services.to_vec(),
                        nodes: BTreeSet::new(),
                    };
                    wanted.entry(interface).or_insert_with(new).nodes.insert(node.clone());
                }
            }
        }
        known.services.retain(|interface, _| present.contains(&**interface));
        known.problems.retain(|(old, new), _| present.contains(&**old) && present.contains(&**new));
        wanted.into_values().collect()
    }

    /// Which nodes must not host what. A node whose descriptors are not known here yet is not fit. Those that are `gone` call
    /// nobody, and what others that can't be asked any more had is passed over.
    pub(crate) fn unfit(&self, state: &State, gone: &BTreeSet<Incarnation>) -> Unfit {
        let mut unfit = Unfit::new();
        let mut known = self.known();
        for (module, nodes) in by_module(state) {
            let mut first: BTreeMap<&str, Came<'_>> = BTreeMap::new();
            let came = |node| {
                let record: &Node = &state.nodes[node];
                Came { node, generation: record.generation, version: &record.version }
            };
            for (node, _, interface) in &nodes {
                let came = came(*node);
                if gone.contains(&Incarnation { node: (*node).clone(), generation: came.generation }) {
                    continue;
                }
                let known = first.get(interface).is_some_and(|first| first.generation <= came.generation);
                if !known {
                    first.insert(interface, came);
                }
            }
            for (node, _, interface) in &nodes {
                let this = came(*node);
                let earlier =
                    first.iter().filter(|(other, came)| *other != interface && came.generation < this.generation);
                let problem = earlier.into_iter().find_map(|(other, that)| {
                    let (old, new) =
                        if is_older(this.version, that.version) { (*interface, *other) } else { (*other, *interface) };
                    let problem = known.problem(interface, old, new)?;
                    let (version, others, node) = (this.version, that.version, that.node);
                    Some(format!("its version {version} does not fit with version {others} on {node}: {problem}"))
                });
                if let Some(problem) = problem {
                    unfit.entry((*node).clone()).or_default().insert(module.clone(), problem);
                }
            }
        }
        unfit
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Why two interfaces do not fit, of which `host` is that of the node to be judged.
    fn problem(&mut self, host: &str, old: &str, new: &str) -> Option<String> {
        let key = (old.to_owned(), new.to_owned());
        if let Some(problem) = self.problems.get(&key) {
            return problem.clone();
        }
        let (Some(before), Some(after)) = (self.services.get(old), self.services.get(new)) else {
            let unknown = !self.services.contains_key(host);
            return unknown.then(|| "it was not asked yet what has changed".to_owned());
        };
        let found = compat::compare(before, after);
        let more = found.len().saturating_sub(1);
        let problem = found.first().map(|first| match more {
            0 => format!("{}: {}", first.what, first.problem),
            _ => format!("{}: {} (and {more} more; `outpost check-compat` lists them)", first.what, first.problem),
        });
        self.problems.insert(key, problem.clone());
        problem
    }
}

/// A node that has a module, the services that describe it there, and their digest.
type Has<'a> = (&'a NodeId, &'a [String], &'a str);

/// The nodes of each module that have not left.
fn by_module(state: &State) -> BTreeMap<&ModuleName, Vec<Has<'_>>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (node, record) in state.nodes.iter().filter(|(_, record)| !record.left) {
        for (module, declared) in &record.modules {
            if let Some(interface) = &declared.interface {
                all.entry(module).or_default().push((node, declared.services.as_slice(), interface.as_str()));
            }
        }
    }
    all
}

/// Whether one version comes before another, as far as their numbers tell. Of others, the one that came later is the newer.
fn is_older(version: &str, than: &str) -> bool {
    let number = |text: &str| semver::Version::parse(text.strip_prefix('v').unwrap_or(text)).ok();
    number(version).zip(number(than)).is_some_and(|(version, than)| version < than)
}

#[cfg(test)]
mod tests;

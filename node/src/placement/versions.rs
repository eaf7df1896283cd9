//! Which nodes' versions of a module fit together. What each looks like is in the log: state in, verdicts out.
//!
//! Whoever calls a module may be on any node, and was compiled with what its node's version of the program has. So a node is
//! fit to host a module if the services that it would bring fit with those that were there before them, on each node that calls.
//! What came first stays: a node with something new that does not fit has to wait until the others are gone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use outpost_proto::compat;

use super::{
    interface::{Interface, Unreadable},
    state::{Known, Node, State},
};
use crate::id::{ModuleName, NodeId};

/// Why nodes must not be given some of the modules that they have, for people.
pub(crate) type Unfit = BTreeMap<NodeId, BTreeMap<ModuleName, String>>;

/// What became of comparing an older interface with a newer one. Kept, since it takes milliseconds, and is asked for at each
/// look at the placement.
#[derive(Debug, Default)]
pub(crate) struct Versions(Mutex<HashMap<(String, String), Option<String>>>);

impl Versions {
    /// Which nodes must not be given what, beside those that `call`.
    pub(crate) fn unfit(&self, state: &State, calls: impl Fn(&NodeId) -> bool) -> Unfit {
        let mut unfit = Unfit::new();
        let known = |interface: &str| state.interfaces.contains_key(interface);
        self.verdicts().retain(|(old, new), _| known(old) && known(new));
        for (module, nodes) in by_module(state) {
            if nodes.iter().all(|(_, interface)| *interface == nodes[0].1) {
                continue;
            }
            for (node, interface) in &nodes {
                let Some(own) = state.interfaces.get(*interface) else { continue };
                let problem = nodes.iter().find_map(|(other, theirs)| {
                    let before = state.interfaces.get(*theirs).filter(|theirs| theirs.since < own.since)?;
                    if !calls(other) {
                        return None;
                    }
                    let (this, that) = (&state.nodes[*node].version, &state.nodes[*other].version);
                    let (mine, theirs) = ((*interface, own), (*theirs, before));
                    let (old, new) = if is_older(this, that) { (mine, theirs) } else { (theirs, mine) };
                    let problem = self.verdict(old, new)?;
                    Some(format!("its version {this} does not fit with version {that} on {other}: {problem}"))
                });
                if let Some(problem) = problem {
                    unfit.entry((*node).clone()).or_default().insert(module.clone(), problem);
                }
            }
        }
        unfit
    }

    /// Why a node that is about to register does not fit with those that are there, silent ones too.
    pub(crate) fn misfit(
        &self,
        state: &State,
        node: &NodeId,
        record: &Node,
        brings: &BTreeMap<String, Interface>,
    ) -> Option<String> {
        let mut with = state.clone();
        with.nodes.insert(node.clone(), record.clone());
        for (digest, interface) in brings {
            with.interfaces
                .entry(digest.clone())
                .or_insert_with(|| Known { since: u64::MAX, interface: interface.clone() });
        }
        let (module, problem) = self.unfit(&with, |_| true).remove(node)?.into_iter().next()?;
        Some(format!("{module}: {problem}"))
    }

    /// Why two interfaces do not fit. They are compared without the lock: two that ask at once compare twice.
    fn verdict(&self, (old, before): (&str, &Known), (new, after): (&str, &Known)) -> Option<String> {
        let key = (old.to_owned(), new.to_owned());
        if let Some(verdict) = self.verdicts().get(&key) {
            return verdict.clone();
        }
        let verdict = compare(&before.interface, &after.interface).unwrap_or_else(|error| {
            // Each node reads its own at its start, so this is from a version that packs them differently.
            tracing::warn!(%error, "descriptors of another version can't be compared: they are taken to fit");
            None
        });
        self.verdicts().insert(key, verdict.clone());
        verdict
    }

    fn verdicts(&self) -> MutexGuard<'_, HashMap<(String, String), Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compare(old: &Interface, new: &Interface) -> Result<Option<String>, Unreadable> {
    let found = compat::compare(&old.services()?, &new.services()?);
    let more = found.len().saturating_sub(1);
    Ok(found.first().map(|first| match more {
        0 => format!("{}: {}", first.what, first.problem),
        _ => format!("{}: {} (and {more} more; `outpost check-compat` lists them)", first.what, first.problem),
    }))
}

/// The nodes of each module that have not left, and what it looks like there.
fn by_module(state: &State) -> BTreeMap<&ModuleName, Vec<(&NodeId, &str)>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (node, record) in state.nodes.iter().filter(|(_, record)| !record.left) {
        for (module, declared) in &record.modules {
            if let Some(interface) = &declared.interface {
                all.entry(module).or_default().push((node, interface.as_str()));
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

//! Answers that leave their hosts and are taken by other nodes, and which of them count. (I5)
//!
//! What a node's gates and slots know of leases and take-overs is not looked at here: when a module was taken over from
//! whom, the records tell that any node has applied; and what a node has reason to know, those that it has applied itself,
//! and the answers that it has taken.

use std::collections::{BTreeMap, BTreeSet};

use outpost::simulation::Passing;
use prost::Message as _;

use crate::{
    app::{DESK, REGISTER},
    state::LEDGER,
    v1::Appended,
};

/// How a message begins on a wire.
const PREFIX: usize = 5;

/// What is known of take-overs, and who knows.
#[derive(Debug, Default)]
pub struct Answers {
    /// Of each module, by their epochs.
    taken: BTreeMap<String, BTreeSet<u64>>,
    /// The last one that a node's process has reason to know of, by node and module.
    known: BTreeMap<(String, String), u64>,
}

impl Answers {
    /// A process begins, and knows nothing.
    pub fn begins(&mut self, node: &str) {
        self.known.retain(|(known, _), _| known != node);
    }

    /// A node has applied a record that names the last take-over.
    pub fn applied(&mut self, node: &str, module: &str, fence: u64) {
        self.taken.entry(module.to_owned()).or_default().insert(fence);
        self.knows(node, module, fence);
    }

    fn knows(&mut self, node: &str, module: &str, fence: u64) {
        let known = self.known.entry((node.to_owned(), module.to_owned())).or_default();
        *known = fence.max(*known);
    }

    /// An answer leaves that node, or arrives there. What is wrong with that.
    pub fn passes(&mut self, node: &str, answer: Passing<'_>) -> Option<String> {
        let said = answer.message.and_then(|message| Appended::decode(message.get(PREFIX..)?).ok());
        let call = said.as_ref().map_or("a call", |said| said.id.as_str());
        let Passing { module, epoch, from, .. } = answer;
        let Some(from) = from else {
            // The ledger keeps no answers, and says itself at which epoch it did what it was asked to.
            let epoch = said.as_ref().filter(|_| module == LEDGER).map_or(epoch, |said| said.epoch);
            let by = self.taken_from(module, epoch)?;
            return Some(format!(
                "the answer of {call} by `{module}` at epoch {epoch} left {node} after the take-over at epoch {by}"
            ));
        };
        let known = self.known.get(&(node.to_owned(), module.to_owned())).copied().unwrap_or_default();
        if epoch < known {
            return Some(format!(
                "{node} took the answer of {call} by `{module}` at epoch {epoch} from {from}, and knew of the take-over \
                 at epoch {known}"
            ));
        }
        // Who takes it knows of what was before it.
        let before = self.taken.get(module).and_then(|taken| taken.range(..=epoch).last()).copied();
        self.knows(node, module, before.unwrap_or_default());
        None
    }

    /// The take-over after which an owner may not answer any more.
    fn taken_from(&self, module: &str, epoch: u64) -> Option<u64> {
        // A module without state is handed over while calls are inside, and those may end whatever becomes of the next
        // owner.
        let until = if [REGISTER, DESK].contains(&module) { epoch + 1 } else { u64::MAX };
        self.taken.get(module)?.range(epoch + 1..=until).next().copied()
    }
}

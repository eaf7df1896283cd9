//! What operators have changed, as a chain of hashes: see `outpost_proto::audit`. Pure.

use std::collections::VecDeque;

use outpost_proto::{admin::v1::AuditEntry, audit};
use serde::{Deserialize, Serialize};

/// How many entries are kept. The hash before the oldest stays, so that who has seen it can tell that they follow it.
const KEPT: usize = 1000;

/// The chain, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Audit {
    /// The hash before the oldest entry.
    pub(crate) previous: String,
    entries: VecDeque<Entry>,
}

/// As `outpost_proto::admin::v1::AuditEntry`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    index: u64,
    at_ms: u64,
    by: String,
    from: String,
    kind: String,
    text: String,
    hash: String,
}

impl Default for Audit {
    fn default() -> Self {
        Self { previous: audit::FIRST.to_owned(), entries: VecDeque::new() }
    }
}

impl Audit {
    /// Adds an entry. Its hash is made here.
    pub(crate) fn add(&mut self, entry: AuditEntry) {
        let hash = audit::hash(self.entries.back().map_or(&self.previous, |last| &last.hash), &entry);
        let AuditEntry { index, at_ms, by, from, kind, text, .. } = entry;
        self.entries.push_back(Entry { index, at_ms, by, from, kind, text, hash });
        if self.entries.len() > KEPT
            && let Some(oldest) = self.entries.pop_front()
        {
            self.previous = oldest.hash;
        }
    }

    /// The entries, the oldest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = AuditEntry> + '_ {
        self.entries.iter().cloned().map(|Entry { index, at_ms, by, from, kind, text, hash }| AuditEntry {
            index,
            at_ms,
            by,
            from,
            kind,
            text,
            hash,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_a_chain_however_much_there_was() {
        let mut chain = Audit::default();
        for index in 1..=KEPT as u64 + 5 {
            chain.add(AuditEntry { index, text: format!("{index}"), ..AuditEntry::default() });
        }
        let entries: Vec<_> = chain.entries().collect();
        assert_eq!((entries.len(), entries[0].index), (KEPT, 6));
        assert_eq!(audit::first_break(&chain.previous, &entries), None);
        assert_eq!(audit::first_break(audit::FIRST, &entries).map(|entry| entry.index), Some(6));
    }
}

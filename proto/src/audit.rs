//! The chain of what operators have changed: each entry's hash covers the one before it, so that none can be changed, left
//! out or put in without all later ones being others.

use sha2::{Digest as _, Sha256};

use crate::{admin::v1::AuditEntry, hex};

/// The hash before the first entry of all.
pub const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The hash of an entry that comes after one with the hash `previous`: SHA-256, in hexadecimal, over that and the entry's
/// fields, each with its length before it. The entry's own `hash` does not count.
#[must_use]
pub fn hash(previous: &str, entry: &AuditEntry) -> String {
    let AuditEntry { index, at_ms, by, from, kind, text, hash: _ } = entry;
    let mut hasher = Sha256::new();
    for field in [previous.as_bytes(), &index.to_be_bytes(), &at_ms.to_be_bytes()] {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    for field in [by, from, kind, text] {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    hex::render(&hasher.finalize())
}

/// The first entry that does not go with what is before it, if there is one. `previous` is the hash before all of them.
#[must_use]
pub fn first_break<'a>(previous: &str, entries: &'a [AuditEntry]) -> Option<&'a AuditEntry> {
    let mut previous = previous.to_owned();
    let mut last = 0;
    entries.iter().find(|entry| {
        let good = entry.index > last && entry.hash == hash(&previous, entry);
        previous.clone_from(&entry.hash);
        last = entry.index;
        !good
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Vec<AuditEntry> {
        let mut previous = FIRST.to_owned();
        let entries = (1..=4u64).map(|index| {
            let entry = AuditEntry {
                index,
                at_ms: index * 1000,
                by: "alice".to_owned(),
                from: "10.0.0.1:5".to_owned(),
                kind: "node-cordoned".to_owned(),
                text: format!("node-{index} gets nothing new"),
                hash: String::new(),
            };
            previous = hash(&previous, &entry);
            AuditEntry { hash: previous.clone(), ..entry }
        });
        entries.collect()
    }

    #[test]
    fn what_was_changed_shows() {
        assert_eq!(first_break(FIRST, &chain()), None);
        // From the middle on, for who knows the hash before it.
        assert_eq!(first_break(&chain()[1].hash, &chain()[2..]), None);
        let broken = |change: &dyn Fn(&mut Vec<AuditEntry>)| {
            let mut entries = chain();
            change(&mut entries);
            first_break(FIRST, &entries).map(|entry| entry.index)
        };
        assert_eq!(broken(&|entries| entries[1].by = "mallory".to_owned()), Some(2));
        assert_eq!(broken(&|entries| drop(entries.remove(1))), Some(3));
        assert_eq!(broken(&|entries| entries.swap(2, 3)), Some(4));
        assert_eq!(broken(&|entries| entries[3].at_ms += 1), Some(4));
        // A word moves from one field to the next.
        let moved = |entries: &mut Vec<AuditEntry>| {
            (entries[0].by, entries[0].from) = ("alic".to_owned(), "e10.0.0.1:5".to_owned());
        };
        assert_eq!(broken(&moved), Some(1));
    }
}

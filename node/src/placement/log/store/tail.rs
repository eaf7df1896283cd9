//! The end of the log, in memory: what was just written is read again at once, to be sent and to be applied, and no disk has
//! to be waited for then. Pure.
//!
//! **Invariant:** what is here is on the disk as well. An entry comes when it is written, and goes before it is removed there.

use std::{
    collections::VecDeque,
    ops::{Bound, RangeBounds},
};

use openraft::Entry;

use super::{READ_AT_ONCE, Types};

/// How many entries are kept; and no more bytes of them than are read at a time.
const MOST: usize = 512;

/// See the module. Without holes.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// With its size as it is on the disk.
    entries: VecDeque<(Entry<Types>, usize)>,
    bytes: usize,
}

impl Tail {
    /// The index after the last one.
    fn next(&self) -> Option<u64> {
        self.entries.back().map(|(last, _)| last.log_id.index + 1)
    }

    /// An entry was written.
    pub(super) fn push(&mut self, entry: Entry<Types>, size: usize) {
        if self.next().is_some_and(|next| next != entry.log_id.index) {
            *self = Self::default();
        }
        self.bytes += size;
        self.entries.push_back((entry, size));
        while self.entries.len() > MOST || self.bytes > READ_AT_ONCE {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        self.bytes -= self.entries.pop_front().map_or(0, |(_, size)| size);
    }

    /// Entries from here on are about to be removed.
    pub(super) fn truncate(&mut self, from: u64) {
        while self.next().is_some_and(|next| next > from) {
            self.bytes -= self.entries.pop_back().map_or(0, |(_, size)| size);
        }
    }

    /// Entries up to this one are about to be removed.
    pub(super) fn purge(&mut self, last: u64) {
        while self.entries.front().is_some_and(|(first, _)| first.log_id.index <= last) {
            self.pop_front();
        }
    }

    /// The entries of a range; `None` where some of them may be on the disk only.
    pub(super) fn read(&self, range: &impl RangeBounds<u64>) -> Option<Vec<Entry<Types>>> {
        let first = self.entries.front()?.0.log_id.index;
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.checked_add(1)?,
            Bound::Unbounded => return None,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.checked_add(1)?,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.next()?,
        };
        if start < first || Some(end) > self.next() {
            return None;
        }
        let (skip, count) = (usize::try_from(start - first).ok()?, usize::try_from(end.saturating_sub(start)).ok()?);
        Some(self.entries.iter().skip(skip).take(count).map(|(entry, _)| entry.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload, LogId};

    use super::*;

    fn entry(index: u64) -> Entry<Types> {
        Entry { log_id: LogId::new(CommittedLeaderId::new(1, 1), index), payload: EntryPayload::Blank }
    }

    fn tail(indices: impl IntoIterator<Item = u64>) -> Tail {
        let mut tail = Tail::default();
        indices.into_iter().for_each(|index| tail.push(entry(index), 10));
        tail
    }

    fn read(tail: &Tail, range: impl RangeBounds<u64>) -> Option<Vec<u64>> {
        Some(tail.read(&range)?.iter().map(|entry| entry.log_id.index).collect())
    }

    #[test]
    fn only_what_is_there_as_a_whole_is_read() {
        let tail = tail(5..9);
        assert_eq!(read(&tail, 5..9), Some(vec![5, 6, 7, 8]));
        assert_eq!(read(&tail, 6..=7), Some(vec![6, 7]));
        assert_eq!(read(&tail, 8..), Some(vec![8]));
        assert_eq!(read(&tail, 7..7), Some(vec![]));
        assert_eq!(read(&tail, (Bound::Excluded(6), Bound::Included(8))), Some(vec![7, 8]));
        for range in [4..6, 8..10, 20..22] {
            assert_eq!(read(&tail, range.clone()), None, "{range:?}");
        }
        assert_eq!(read(&tail, ..6), None);
        assert_eq!((read(&tail, 5..=u64::MAX), read(&tail, 9..)), (None, Some(vec![])));
        assert_eq!(read(&Tail::default(), 0..0), None);
    }

    #[test]
    fn what_is_removed_is_not_read_any_more() {
        let mut tail = tail(5..9);
        tail.truncate(7);
        assert_eq!((read(&tail, 5..8), read(&tail, 5..7), tail.bytes), (None, Some(vec![5, 6]), 20));
        tail.push(entry(7), 10);
        tail.purge(5);
        assert_eq!((read(&tail, 5..8), read(&tail, 6..8), tail.bytes), (None, Some(vec![6, 7]), 20));
        tail.truncate(0);
        assert_eq!((read(&tail, 6..7), tail.bytes), (None, 0));
    }

    #[test]
    fn a_hole_begins_it_anew_and_it_has_a_bound() {
        let mut with_hole = tail([1, 2, 4]);
        assert_eq!((read(&with_hole, 1..3), read(&with_hole, 4..5), with_hole.bytes), (None, Some(vec![4]), 10));
        with_hole.push(entry(5), READ_AT_ONCE);
        assert_eq!((read(&with_hole, 4..5), read(&with_hole, 5..6)), (None, Some(vec![5])));
        with_hole.push(entry(6), READ_AT_ONCE + 1);
        assert_eq!((read(&with_hole, 6..7), with_hole.bytes), (None, 0), "one that is larger than all may be");
        let long = tail(0..2 * MOST as u64);
        assert_eq!((long.entries.len(), read(&long, 0..1)), (MOST, None));
    }
}

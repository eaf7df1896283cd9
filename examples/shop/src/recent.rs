//! A bounded memory of the past.

use std::collections::{HashMap, VecDeque};

/// The last things that happened, by key. When it is full, the oldest makes room for the newest.
#[derive(Debug)]
pub(crate) struct Recent<V> {
    capacity: usize,
    values: HashMap<String, V>,
    oldest_first: VecDeque<String>,
}

impl<V> Recent<V> {
    /// A `capacity` of 0 counts as 1.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), values: HashMap::new(), oldest_first: VecDeque::new() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.values.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.values.get_mut(key)
    }

    /// Remembers `value`. A key that is known already keeps its age.
    pub(crate) fn insert(&mut self, key: String, value: V) {
        if self.values.insert(key.clone(), value).is_some() {
            return;
        }
        self.oldest_first.push_back(key);
        if self.oldest_first.len() > self.capacity
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.values.remove(&oldest);
        }
    }

    /// Forgets a key. Takes time in proportion to what is remembered.
    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        let value = self.values.remove(key)?;
        self.oldest_first.retain(|known| known != key);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut recent = Recent::new(2);
        recent.insert("a".into(), 1);
        recent.insert("b".into(), 2);
        recent.insert("a".into(), 3);
        recent.insert("c".into(), 4);
        assert_eq!([recent.get("a"), recent.get("b"), recent.get("c")], [None, Some(&2), Some(&4)]);
    }

    #[test]
    fn what_was_removed_leaves_room() {
        let mut recent = Recent::new(2);
        recent.insert("a".into(), 1);
        recent.insert("b".into(), 2);
        assert_eq!(recent.remove("a"), Some(1));
        recent.insert("c".into(), 3);
        assert_eq!([recent.get("a"), recent.get("b"), recent.get("c")], [None, Some(&2), Some(&3)]);
    }
}

//! A bounded memory of the past.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

/// The last things that happened, by key. When it is full, the oldest makes room for the newest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Vec<(String, V)>", into = "Vec<(String, V)>", bound(serialize = "V: Clone + Serialize"))]
pub struct Recent<V> {
    values: HashMap<String, V>,
    oldest_first: VecDeque<String>,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { values: HashMap::new(), oldest_first: VecDeque::new() }
    }
}

impl<V> Recent<V> {
    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.values.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.values.get_mut(key)
    }

    /// Remembers `value`, and as many others as there is room for. A key that is known already keeps its age. A
    /// `capacity` of 0 counts as 1.
    pub(crate) fn insert(&mut self, key: String, value: V, capacity: usize) {
        if self.values.insert(key.clone(), value).is_none() {
            self.oldest_first.push_back(key);
        }
        // More than one, where the capacity was larger before.
        while self.oldest_first.len() > capacity.max(1) {
            let Some(oldest) = self.oldest_first.pop_front() else { return };
            self.values.remove(&oldest);
        }
    }

    /// Forgets a key. Takes time in proportion to what is remembered.
    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        let value = self.values.remove(key)?;
        self.oldest_first.retain(|known| known != key);
        Some(value)
    }

    /// All of it, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.oldest_first.iter().filter_map(|key| self.values.get_key_value(key))
    }
}

impl<V> From<Vec<(String, V)>> for Recent<V> {
    fn from(oldest_first: Vec<(String, V)>) -> Self {
        let mut recent = Self::default();
        for (key, value) in oldest_first {
            recent.insert(key, value, usize::MAX);
        }
        recent
    }
}

impl<V: Clone> From<Recent<V>> for Vec<(String, V)> {
    fn from(recent: Recent<V>) -> Self {
        recent.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut recent = Recent::default();
        for (key, value) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            recent.insert(key.into(), value, 2);
        }
        assert_eq!([recent.get("a"), recent.get("b"), recent.get("c")], [None, Some(&2), Some(&4)]);
    }

    #[test]
    fn what_was_removed_leaves_room() {
        let mut recent = Recent::default();
        recent.insert("a".into(), 1, 2);
        recent.insert("b".into(), 2, 2);
        assert_eq!(recent.remove("a"), Some(1));
        recent.insert("c".into(), 3, 2);
        assert_eq!([recent.get("a"), recent.get("b"), recent.get("c")], [None, Some(&2), Some(&3)]);
    }

    #[test]
    fn what_was_written_and_read_forgets_in_the_same_order() {
        let mut recent = Recent::default();
        for key in ["b", "c", "a"] {
            recent.insert(key.into(), key.to_owned(), 10);
        }
        let mut copy = Recent::from(Vec::from(recent));
        copy.insert("d".into(), "d".to_owned(), 2);
        let left: Vec<&String> = copy.iter().map(|(key, _)| key).collect();
        assert_eq!(left, ["a", "d"]);
    }
}

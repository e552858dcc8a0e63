//! A few values kept by key; the one that came first goes first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// At most `cap` values.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
    cap: usize,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    pub(super) fn new(cap: usize) -> Self {
        Self { values: HashMap::new(), order: VecDeque::new(), cap }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.values.get(key).cloned()
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.values.insert(key, value).is_none() {
            self.order.push_back(key);
        }
        while self.values.len() > self.cap
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        if self.values.remove(key).is_some() {
            self.order.retain(|k| k != key);
        }
    }
}

//! What is due when: one instant for each key, in order of time and then of key.

use std::collections::{BTreeMap, BTreeSet};

use millpond_protocol::Timestamp;

/// At most one instant for each key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Agenda<K> {
    times: BTreeMap<K, Timestamp>,
    order: BTreeSet<(Timestamp, K)>,
}

impl<K> Default for Agenda<K> {
    fn default() -> Self {
        Self { times: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Agenda<K> {
    /// Makes `key` due at `at` and at no other time.
    pub(super) fn set(&mut self, key: K, at: Timestamp) {
        match self.times.insert(key.clone(), at) {
            Some(before) if before == at => return,
            Some(before) => {
                self.order.remove(&(before, key.clone()));
            }
            None => {}
        }
        self.order.insert((at, key));
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some(at) = self.times.remove(key) {
            self.order.remove(&(at, key.clone()));
        }
    }

    /// The earliest instant.
    pub(super) fn first(&self) -> Option<Timestamp> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes out the earliest entry if it is due by `now`.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<(Timestamp, K)> {
        if self.first()? > now {
            return None;
        }
        let (at, key) = self.order.pop_first()?;
        self.times.remove(&key);
        Some((at, key))
    }
}

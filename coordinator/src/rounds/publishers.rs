//! The publishers of a pool, and up to when each has said that it has nothing more.

use std::collections::{BTreeMap, BTreeSet};

use millpond_protocol::Timestamp;

use super::MemberId;

/// Every publisher that is not revoked. Listeners never count.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Publishers {
    through: BTreeMap<MemberId, Option<Timestamp>>,
    /// The same by time, so that the one that holds up all others is the first.
    slowest: BTreeSet<(Option<Timestamp>, MemberId)>,
}

impl Publishers {
    /// Adds a publisher; one that is there already stays as it is.
    pub(super) fn add(&mut self, member: MemberId, through: Option<Timestamp>) {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.through.entry(member) {
            entry.insert(through);
            self.slowest.insert((through, member));
        }
    }

    pub(super) fn remove(&mut self, member: MemberId) {
        if let Some(through) = self.through.remove(&member) {
            self.slowest.remove(&(through, member));
        }
    }

    pub(super) fn contains(&self, member: MemberId) -> bool {
        self.through.contains_key(&member)
    }

    pub(super) fn len(&self) -> usize {
        self.through.len()
    }

    /// Takes the statement of a publisher; whether it says more than before.
    pub(super) fn complete(&mut self, member: MemberId, through: Timestamp) -> bool {
        let Some(said) = self.through.get_mut(&member) else { return false };
        if *said >= Some(through) {
            return false;
        }
        self.slowest.remove(&(*said, member));
        *said = Some(through);
        self.slowest.insert((*said, member));
        true
    }

    /// Up to when every publisher has said that it has nothing more; none without publishers.
    pub(super) fn all_through(&self) -> Option<Timestamp> {
        self.slowest.first().and_then(|(through, _)| *through)
    }
}

//! The publishers of a pool: who counts, and up to when each has said that it has nothing more.

use std::collections::{BTreeMap, BTreeSet};

use millpond_protocol::{Code, Label, Refusal, Timestamp};

use super::pool::Pool;
use super::{Fact, MemberId, Reply, Target};

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

impl Pool {
    /// `complete` and quorum count it from now on.
    pub(super) fn join(&mut self, member: MemberId, now: Timestamp) -> Reply {
        if !self.publishers.contains(member) {
            self.publishers.add(member, None);
            self.batches.joined(member);
            self.batches.reschedule_all(now, &self.policy, &self.publishers);
        }
        Reply::Done
    }

    /// It counts no more, and its leases end.
    pub(super) fn leave(&mut self, member: MemberId, now: Timestamp, facts: &mut Vec<Fact>) -> Reply {
        if self.publishers.contains(member) {
            self.publishers.remove(member);
            self.batches.left(member);
            self.batches.reschedule_all(now, &self.policy, &self.publishers);
        }
        self.rounds.evict(member, now, &self.policy, facts);
        Reply::Done
    }

    /// `complete {through}`: monotone, so that less than before says nothing.
    pub(super) fn complete_through(
        &mut self,
        member: MemberId,
        through: Timestamp,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        self.require_publisher(member)?;
        let before = self.publishers.all_through();
        if self.publishers.complete(member, through) {
            facts.push(Fact::CompletedThrough { member, through });
        }
        if self.publishers.all_through() != before {
            self.batches.reschedule_all(now, &self.policy, &self.publishers);
        }
        Ok(Reply::Done)
    }

    /// `complete {label}`: of the part that is open now.
    pub(super) fn complete_label(
        &mut self,
        member: MemberId,
        label: &Label,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        self.require_publisher(member)?;
        let batch = self.aim(&Target::Label(label.clone()), now)?;
        if self.batches.get_mut(batch).is_some_and(|open| open.complete(member)) {
            facts.push(Fact::CompletedLabel { batch, member });
            self.batches.reschedule(batch, now, &self.policy, &self.publishers);
        }
        Ok(Reply::Done)
    }

    fn require_publisher(&self, member: MemberId) -> Result<(), Refusal> {
        if self.publishers.contains(member) {
            return Ok(());
        }
        Err(Refusal::new(Code::Unauthorized, "only a publisher of the pool can say that it has nothing more"))
    }
}

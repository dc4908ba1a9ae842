//! The open batches of a pool, and the windows that are closed.

use std::collections::{BTreeMap, BTreeSet};

use millpond_protocol::{Label, Timestamp};

use super::agenda::Agenda;
use super::closed::Closed;
use super::publishers::Publishers;
use super::{Batch, BatchNo, Fact, Group, MemberId, Policy, sealing};

/// An open batch: its record and who is in it. Its uploads are rows of the shell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OpenBatch {
    pub(super) row: Batch,
    /// Who has an upload in it.
    members: BTreeSet<MemberId>,
    /// How many of those are publishers now.
    present: usize,
    /// The publishers that have nothing more for this part of a label.
    complete: BTreeSet<MemberId>,
}

impl OpenBatch {
    pub(super) fn restore(
        row: Batch,
        members: Vec<MemberId>,
        complete: BTreeSet<MemberId>,
        publishers: &Publishers,
    ) -> Self {
        let members = BTreeSet::from_iter(members);
        let present = members.iter().filter(|member| publishers.contains(**member)).count();
        Self { row, members, present, complete }
    }

    /// The end of its group, after which quorum and deadline count.
    pub(super) fn end(&self) -> Timestamp {
        sealing::end(&self.row.group, self.row.opened)
    }

    /// Orders batches by the time that they belong to.
    pub(super) fn key(&self) -> (Timestamp, BatchNo) {
        (self.end(), self.row.batch)
    }

    /// Counts an upload; whether it is the member's first here.
    pub(super) fn add(&mut self, member: MemberId, size: u64, publishers: &Publishers) -> bool {
        self.row.count += 1;
        self.row.bytes = self.row.bytes.saturating_add(size);
        let first = self.members.insert(member);
        self.present += usize::from(first && publishers.contains(member));
        first
    }

    /// Takes over what is in `other`, which is carried on once more by that.
    pub(super) fn absorb(&mut self, other: &Self, publishers: &Publishers) {
        self.row.count += other.row.count;
        self.row.bytes = self.row.bytes.saturating_add(other.row.bytes);
        self.row.carries = self.row.carries.max(other.row.carries + 1);
        self.members.extend(&other.members);
        self.present = self.members.iter().filter(|member| publishers.contains(**member)).count();
    }

    /// Notes that the member has nothing more for this part; whether that is new.
    pub(super) fn complete(&mut self, member: MemberId) -> bool {
        self.complete.insert(member)
    }

    /// How many members have an upload in it, revoked ones included.
    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    /// How many publishers have an upload in it.
    pub(super) fn present(&self) -> usize {
        self.present
    }

    /// How many publishers have nothing more for this part.
    pub(super) fn completed(&self) -> usize {
        self.complete.len()
    }
}

/// Open batches by number and by group, what is due when, and which windows are closed by a seal or a carry.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Batches {
    opened: BatchNo,
    open: BTreeMap<BatchNo, OpenBatch>,
    by_group: BTreeMap<Group, BatchNo>,
    /// Of those due at the same instant, the batch that ends first comes first.
    due: Agenda<(Timestamp, BatchNo)>,
    /// Windows that a seal or a carry closed, until their age closes them anyway.
    closed: Closed,
    /// Windows that end by then were closed by their age under an earlier policy.
    aged_through: Option<Timestamp>,
}

impl Batches {
    pub(super) fn restore(
        opened: BatchNo,
        open: Vec<OpenBatch>,
        closed: Vec<(Timestamp, Timestamp)>,
        aged_through: Option<Timestamp>,
    ) -> Self {
        let mut batches = Self { opened, aged_through, ..Self::default() };
        for (from, to) in closed {
            batches.closed.insert(from, to);
        }
        for batch in open {
            batches.by_group.insert(batch.row.group.clone(), batch.row.batch);
            batches.open.insert(batch.row.batch, batch);
        }
        batches
    }

    pub(super) fn get(&self, batch: BatchNo) -> Option<&OpenBatch> {
        self.open.get(&batch)
    }

    pub(super) fn get_mut(&mut self, batch: BatchNo) -> Option<&mut OpenBatch> {
        self.open.get_mut(&batch)
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// In order of opening.
    pub(super) fn iter(&self) -> impl Iterator<Item = &OpenBatch> {
        self.open.values()
    }

    /// The open batch of that group.
    pub(super) fn find(&self, group: &Group) -> Option<&OpenBatch> {
        self.by_group.get(group).and_then(|batch| self.open.get(batch))
    }

    /// The open part of that label.
    pub(super) fn find_label(&self, label: &Label) -> Option<&OpenBatch> {
        let part = |part| Group::Label { label: label.clone(), part };
        let (_, batch) = self.by_group.range(part(0)..=part(u32::MAX)).next()?;
        self.open.get(batch)
    }

    /// The open batch of that group, opened by that member if there is none.
    pub(super) fn open(
        &mut self,
        group: Group,
        opener: MemberId,
        now: Timestamp,
        policy: &Policy,
        facts: &mut Vec<Fact>,
    ) -> &mut OpenBatch {
        let batch = *self.by_group.entry(group.clone()).or_insert_with(|| {
            self.opened += 1;
            self.opened
        });
        self.open.entry(batch).or_insert_with(|| {
            let deadline = sealing::end(&group, now).after(policy.deadline());
            let (opened, count, bytes, carries, round) = (now, 0, 0, 0, None);
            let row = Batch { batch, group, opener, opened, deadline, count, bytes, carries, round };
            facts.push(Fact::BatchOpened(row.clone()));
            OpenBatch { row, members: BTreeSet::new(), present: 0, complete: BTreeSet::new() }
        })
    }

    /// Takes a batch out, because it is sealed or carried away: its window is closed from now on.
    pub(super) fn take(&mut self, batch: BatchNo) -> Option<OpenBatch> {
        let taken = self.open.remove(&batch)?;
        self.by_group.remove(&taken.row.group);
        self.due.remove(&taken.key());
        match taken.row.group {
            Group::Window { from, to } => self.closed.insert(from, to),
            Group::Label { .. } | Group::Count => {}
        }
        Some(taken)
    }

    /// Up to when windows are closed by their age at `now`, also under an earlier policy.
    pub(super) fn aged(&self, now: Timestamp, policy: &Policy) -> Option<Timestamp> {
        self.aged_through.max(policy.aged(now))
    }

    /// Where the run of windows ends that were closed by a seal or a carry and that this one is in; none if it was not.
    pub(super) fn closed_run(&self, from: Timestamp, to: Timestamp) -> Option<Timestamp> {
        self.closed.run_end(from, to)
    }

    /// The first open window from `from` on that ends by `end` and is one that the policy makes.
    pub(super) fn first_open(&self, from: Timestamp, end: Timestamp, policy: &Policy) -> Option<&Group> {
        let first = Group::Window { from, to: Timestamp::EPOCH };
        let open = self.by_group.range(first..).map(|(group, _)| group);
        open.take_while(|group| matches!(group, Group::Window { from, .. } if *from < end)).find(
            |group| matches!(group, Group::Window { from, to } if policy.window(*from) == (*from, *to) && *to <= end),
        )
    }

    /// Forgets closed windows that are known to be so by their age alone: what age has closed never opens again.
    pub(super) fn forget_closed(&mut self, now: Timestamp, policy: &Policy) {
        if let Some(aged) = self.aged(now, policy) {
            self.closed.forget(aged);
        }
    }

    /// What age has closed by `now` stays closed under another policy, though its deadline is longer.
    pub(super) fn keep_aged(
        &mut self,
        now: Timestamp,
        before: &Policy,
        after: &Policy,
        facts: &mut Vec<Fact>,
    ) {
        let known = self.aged(now, after);
        if let Some(through) = before.aged(now).filter(|through| Some(*through) > known) {
            self.aged_through = Some(through);
            facts.push(Fact::WindowsAged { through });
        }
    }

    /// A member became a publisher.
    pub(super) fn joined(&mut self, member: MemberId) {
        for batch in self.open.values_mut() {
            batch.present += usize::from(batch.members.contains(&member));
        }
    }

    /// A publisher is one no more.
    pub(super) fn left(&mut self, member: MemberId) {
        for batch in self.open.values_mut() {
            batch.present -= usize::from(batch.members.contains(&member));
            batch.complete.remove(&member);
        }
    }

    /// Works out anew when that batch is due.
    pub(super) fn reschedule(
        &mut self,
        batch: BatchNo,
        now: Timestamp,
        policy: &Policy,
        publishers: &Publishers,
    ) {
        if let Some(open) = self.open.get(&batch) {
            let (at, _) = sealing::due(open, now, policy, publishers);
            self.due.set(open.key(), at);
        }
    }

    /// The same for every open batch.
    pub(super) fn reschedule_all(&mut self, now: Timestamp, policy: &Policy, publishers: &Publishers) {
        for open in self.open.values() {
            let (at, _) = sealing::due(open, now, policy, publishers);
            self.due.set(open.key(), at);
        }
    }

    /// When the next open batch is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.first()
    }

    /// The batch that is due first, if any is due by `now`; it must be sealed or rescheduled.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<(Timestamp, BatchNo)> {
        self.due.pop_due(now).map(|(at, (_, batch))| (at, batch))
    }
}

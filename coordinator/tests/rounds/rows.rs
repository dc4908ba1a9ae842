//! What a shell writes down: the rows from which a pool is restored, and the checks that hold for every row ever written.

use std::collections::{BTreeMap, BTreeSet};

use millpond::rounds::{
    Batch, BatchNo, Cause, Fact, Group, MemberId, Policy, Round, RoundNo, RoundState, Snapshot, Version,
};
use millpond_protocol::Timestamp;

/// Key of an upload.
pub(crate) type Key = (MemberId, String);

/// A stored upload; the batch is the one that it first joined.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UploadRow {
    pub(crate) batch: BatchNo,
    pub(crate) event_time: Timestamp,
    pub(crate) size: u64,
    pub(crate) late: bool,
}

/// A sealed batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) group: Group,
    pub(crate) cause: Cause,
    /// Sorted by (member, upload), without data of arrival.
    pub(crate) entries: Vec<(Key, Timestamp)>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    pub(crate) policy: Policy,
    pub(crate) uploads: BTreeMap<Key, UploadRow>,
    pub(crate) batches: BTreeMap<BatchNo, Batch>,
    pub(crate) carried: BTreeMap<BatchNo, BatchNo>,
    pub(crate) manifests: BTreeMap<RoundNo, Manifest>,
    pub(crate) rounds: BTreeMap<RoundNo, Round>,
    pub(crate) publishers: BTreeMap<MemberId, Option<Timestamp>>,
    pub(crate) completed_labels: BTreeSet<(BatchNo, MemberId)>,
    pub(crate) versions: Version,
    pub(crate) newest_committed: RoundNo,
    pub(crate) pointer: Option<Version>,
    pub(crate) aged_through: Option<Timestamp>,
}

impl Rows {
    /// The batch that an upload is in now.
    pub(crate) fn home(&self, mut batch: BatchNo) -> BatchNo {
        while let Some(into) = self.carried.get(&batch) {
            batch = *into;
        }
        batch
    }

    pub(crate) fn is_open(&self, batch: BatchNo) -> bool {
        self.batches[&batch].round.is_none() && !self.carried.contains_key(&batch)
    }

    fn inside(&self, batch: BatchNo) -> impl Iterator<Item = (&Key, &UploadRow)> {
        self.uploads.iter().filter(move |(_, row)| self.home(row.batch) == batch)
    }

    /// Writes a fact, and checks it against all that is written already.
    pub(crate) fn record(&mut self, fact: &Fact) {
        match fact {
            Fact::BatchOpened(batch) => {
                assert_eq!(
                    batch.batch,
                    self.batches.len() as u64 + 1,
                    "batches are numbered in order of opening"
                );
                let again =
                    |other: &Batch| other.group == batch.group && matches!(other.group, Group::Window { .. });
                assert!(!self.batches.values().any(again), "a window has one batch, ever: {batch:?}");
                self.batches.insert(batch.batch, batch.clone());
            }
            Fact::WindowsAged { through } => {
                assert!(self.aged_through < Some(*through), "what is closed stays closed");
                self.aged_through = Some(*through);
            }
            Fact::BatchSealed { batch, cause, runs: _ } => {
                assert!(self.is_open(batch.batch), "only an open batch is sealed, once: {batch:?}");
                let round = batch.round.unwrap();
                assert_eq!(round, self.manifests.len() as u64 + 1, "manifests are numbered without gaps");
                let entries: Vec<_> =
                    self.inside(batch.batch).map(|(key, row)| (key.clone(), row.event_time)).collect();
                assert_eq!(batch.count, entries.len() as u64, "a manifest lists what the batch counts");
                assert!(batch.count > 0, "an empty batch is never sealed");
                let bytes: u64 = self.inside(batch.batch).map(|(_, row)| row.size).sum();
                assert_eq!(batch.bytes, bytes);
                self.batches.insert(batch.batch, batch.clone());
                self.manifests.insert(round, Manifest { group: batch.group.clone(), cause: *cause, entries });
            }
            Fact::BatchCarried { batch, into } => {
                assert!(
                    self.is_open(batch.batch) && self.is_open(into.batch),
                    "only open batches are carried"
                );
                self.batches.insert(into.batch, into.clone());
                if batch.batch != into.batch {
                    self.batches.insert(batch.batch, batch.clone());
                    self.carried.insert(batch.batch, into.batch);
                }
            }
            Fact::CompletedThrough { member, through } => {
                assert!(self.publishers[member] < Some(*through), "complete is monotone");
                self.publishers.insert(*member, Some(*through));
            }
            Fact::CompletedLabel { batch, member } => {
                assert!(self.completed_labels.insert((*batch, *member)));
            }
            Fact::Round { round, step: _ } => {
                assert_eq!(self.batches[&round.batch].round, Some(round.round));
                if let Some(before) = self.rounds.get(&round.round) {
                    let ended = matches!(before.state, RoundState::Committed { .. });
                    assert!(!ended, "a committed round never changes: {before:?} {round:?}");
                    assert!(round.attempt >= before.attempt, "attempts only grow");
                    assert!(round.ready || !before.ready, "ready stays");
                }
                if let RoundState::Committed { version } = round.state {
                    assert_eq!(version, self.versions + 1, "versions are numbered in order of commit");
                    self.versions = version;
                    self.newest_committed = self.newest_committed.max(round.round);
                }
                self.rounds.insert(round.round, round.clone());
            }
            Fact::Pointer { version } => {
                // A rollback's version has no round: its row is written with the pointer.
                self.versions = self.versions.max(*version);
                self.pointer = Some(*version);
            }
        }
    }

    /// What a shell reads at start.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let open = self.batches.values().filter(|batch| self.is_open(batch.batch)).map(|batch| {
            let members: BTreeSet<MemberId> = self.inside(batch.batch).map(|(key, _)| key.0).collect();
            let count = self.inside(batch.batch).count() as u64;
            let bytes = self.inside(batch.batch).map(|(_, row)| row.size).sum();
            (Batch { count, bytes, ..batch.clone() }, members.into_iter().collect())
        });
        let closed =
            self.batches.values().filter(|batch| !self.is_open(batch.batch)).filter_map(|batch| match batch
                .group
            {
                Group::Window { from, to } => Some((from, to)),
                Group::Label { .. } | Group::Count => None,
            });
        let live =
            |round: &&Round| !matches!(round.state, RoundState::Committed { .. } | RoundState::Failed { .. });
        Snapshot {
            policy: self.policy.clone(),
            batches: self.batches.len() as u64,
            rounds: self.manifests.len() as u64,
            versions: self.versions,
            newest_committed: self.newest_committed,
            pointer: self.pointer,
            open: open.collect(),
            closed_windows: closed.collect(),
            aged_through: self.aged_through,
            live: self.rounds.values().filter(live).cloned().collect(),
            publishers: self.publishers.iter().map(|(member, through)| (*member, *through)).collect(),
            completed_labels: self.completed_labels.iter().copied().collect(),
        }
    }
}

//! One pool: the value that events are fed to.

use std::collections::{BTreeMap, BTreeSet};

use millpond_protocol::{Code, Label, Refusal, Timestamp};

use super::batches::{Batches, OpenBatch};
use super::leases::Rounds;
use super::publishers::Publishers;
use super::results::Results;
use super::{Batch, BatchNo, Event, Fact, MemberId, Policy, Reply, Round, RoundNo, Version};

/// The state of one pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub(super) policy: Policy,
    pub(super) publishers: Publishers,
    pub(super) batches: Batches,
    pub(super) rounds: Rounds,
    pub(super) results: Results,
}

/// Everything that a pool's state is made of, read from the ledger's rows at start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    pub policy: Policy,
    /// Batches opened so far.
    pub batches: BatchNo,
    /// Manifests so far.
    pub rounds: RoundNo,
    /// Results so far.
    pub versions: Version,
    /// The highest round that committed.
    pub newest_committed: RoundNo,
    /// The version that the pool's pointer names.
    pub pointer: Option<Version>,
    /// Open batches with the members that are in each; count, bytes and members include what was carried in.
    pub open: Vec<(Batch, Vec<MemberId>)>,
    /// Start and end of windows whose batches were sealed or carried away; those that [`Policy::aged`] closes may be
    /// left out.
    pub closed_windows: Vec<(Timestamp, Timestamp)>,
    /// Of the last [`Fact::WindowsAged`].
    pub aged_through: Option<Timestamp>,
    /// Rounds neither committed nor failed.
    pub live: Vec<Round>,
    /// Every publisher with its `complete {through}`.
    pub publishers: Vec<(MemberId, Option<Timestamp>)>,
    /// `complete {label}` of open batches.
    pub completed_labels: Vec<(BatchNo, MemberId)>,
}

impl Pool {
    /// A pool from the ledger. A live lease has a full term from `now` and packing all of its time, and nothing waits for
    /// longer than if it had begun now; the facts say so.
    pub fn restore(snapshot: Snapshot, now: Timestamp) -> (Self, Vec<Fact>) {
        let policy = snapshot.policy;
        let mut facts = Vec::new();
        let mut publishers = Publishers::default();
        for (member, through) in snapshot.publishers {
            publishers.add(member, through);
        }
        let mut completed: BTreeMap<BatchNo, BTreeSet<MemberId>> = BTreeMap::new();
        for (batch, member) in snapshot.completed_labels {
            if publishers.contains(member) {
                completed.entry(batch).or_default().insert(member);
            }
        }
        let open = snapshot.open.into_iter().map(|(row, members)| {
            let complete = completed.remove(&row.batch).unwrap_or_default();
            OpenBatch::restore(row, members, complete, &publishers)
        });
        let mut batches = Batches::restore(
            snapshot.batches,
            open.collect(),
            snapshot.closed_windows,
            snapshot.aged_through,
        );
        batches.forget_closed(now, &policy);
        // What was met by an event was sealed with it, so only instants still to come, or passed while the server was
        // away, are left: they count from the beginning of time.
        batches.reschedule_all(Timestamp::EPOCH, &policy, &publishers);
        let rounds = Rounds::restore(snapshot.rounds, snapshot.live, now, &policy, &mut facts);
        let results = Results {
            versions: snapshot.versions,
            newest_committed: snapshot.newest_committed,
            pointer: snapshot.pointer,
        };
        (Self { policy, publishers, batches, rounds, results }, facts)
    }

    /// Applies one event; `now` never goes back. Facts are appended to `facts`, in order. After an error nothing has changed,
    /// save for what the passing of time caused, and that is in `facts`.
    ///
    /// # Errors
    /// `not_found`, `stale` and the like, in words for the client.
    pub fn apply(&mut self, now: Timestamp, event: Event, facts: &mut Vec<Fact>) -> Result<Reply, Refusal> {
        self.advance(now, facts);
        let reply = self.handle(now, event, facts)?;
        self.advance(now, facts);
        Ok(reply)
    }

    /// Does everything that is due by `now`.
    fn advance(&mut self, now: Timestamp, facts: &mut Vec<Fact>) {
        self.seal_due(now, facts);
        self.rounds.run_due(now, &self.policy, facts);
        self.batches.forget_closed(now, &self.policy);
    }

    fn handle(&mut self, now: Timestamp, event: Event, facts: &mut Vec<Fact>) -> Result<Reply, Refusal> {
        match event {
            Event::Upload(upload) => Ok(self.upload(&upload, now, facts)),
            Event::CompleteThrough { member, through } => self.complete_through(member, through, now, facts),
            Event::CompleteLabel { member, label } => self.complete_label(member, &label, now, facts),
            Event::Trigger { target, take } => self.trigger(&target, take, now, facts),
            Event::Claim { member, round } => self.claim(member, round, now, facts),
            Event::Beat { member, round, attempt } => self.beat(member, round, attempt, now, facts),
            Event::Result { member, round, attempt } => self.result(member, round, attempt, now, facts),
            Event::Fail { member, round, attempt, retryable } => {
                self.fail(member, round, attempt, retryable, now, facts)
            }
            Event::Ready { round } => self.ready(round, now, facts),
            Event::Retry { round } => self.retry(round, now, facts),
            Event::Rollback { of } => self.roll_back(of, facts),
            Event::PublisherAdded { member } => Ok(self.join(member, now)),
            Event::MemberRemoved { member } => Ok(self.leave(member, now, facts)),
            Event::Policy(policy) => self.adopt(*policy, now, facts),
            Event::Tick => Ok(Reply::Done),
        }
    }

    /// Another policy from now on: what it changes about open batches is sealed at once.
    fn adopt(&mut self, policy: Policy, now: Timestamp, facts: &mut Vec<Fact>) -> Result<Reply, Refusal> {
        let problems = policy.problems();
        if !problems.is_empty() {
            return Err(Refusal::new(Code::Malformed, problems.join("; ")));
        }
        self.batches.keep_aged(now, &self.policy, &policy, facts);
        self.policy = policy;
        self.batches.reschedule_all(now, &self.policy, &self.publishers);
        Ok(Reply::Done)
    }

    /// When the next [`Event::Tick`] changes something; before that only other events do.
    pub fn next_due(&self) -> Option<Timestamp> {
        [self.batches.next_due(), self.rounds.next_due()].into_iter().flatten().min()
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The oldest round on offer.
    pub fn offer(&self) -> Option<&Round> {
        self.rounds.offer()
    }

    /// A live round.
    pub fn round(&self, round: RoundNo) -> Option<&Round> {
        self.rounds.get(round)
    }

    /// The version that the pool's pointer names, if a result was ever committed.
    pub fn pointer(&self) -> Option<Version> {
        self.results.pointer
    }

    /// The open batch of that number.
    pub fn batch(&self, batch: BatchNo) -> Option<&Batch> {
        self.batches.get(batch).map(|open| &open.row)
    }

    /// Whether a part of that label is open, and stays so until `now` at least.
    pub fn has_open_part(&self, label: &Label, now: Timestamp) -> bool {
        self.batches.find_label(label).is_some() && self.batches.next_due().is_none_or(|due| due > now)
    }

    /// Every open batch, in order of opening.
    pub fn open_batches(&self) -> impl Iterator<Item = &Batch> {
        self.batches.iter().map(|open| &open.row)
    }

    /// Every round neither committed nor failed, oldest first.
    pub fn live_rounds(&self) -> impl Iterator<Item = &Round> {
        self.rounds.iter()
    }
}

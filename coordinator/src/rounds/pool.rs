//! One pool: the value that events are fed to.

use millpond_protocol::{Refusal, Timestamp};

use super::{Batch, Event, Fact, MemberId, Policy, Reply, Round, RoundNo, Version};

/// The state of one pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    policy: Policy,
}

/// Everything that a pool's state is made of, read from the ledger's rows at start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    pub policy: Policy,
    /// Batches opened so far.
    pub batches: u64,
    /// Manifests so far.
    pub rounds: u64,
    /// Results so far.
    pub versions: u64,
    /// The highest round that committed.
    pub newest_committed: RoundNo,
    /// The version that the pool's pointer names.
    pub pointer: Option<Version>,
    /// Open batches with the members that are in each; count, bytes and members include what was carried in.
    pub open: Vec<(Batch, Vec<MemberId>)>,
    /// Batches of windows that were sealed or carried away and whose deadline has not passed.
    pub closed_windows: Vec<Batch>,
    /// Rounds neither committed nor failed.
    pub live: Vec<Round>,
    /// Every publisher with its `complete {through}`.
    pub publishers: Vec<(MemberId, Option<Timestamp>)>,
    /// `complete {label}` of open batches.
    pub completed_labels: Vec<(u64, MemberId)>,
}

impl Pool {
    /// A pool from the ledger. A live lease gets a full term from `now`.
    pub fn restore(snapshot: Snapshot, now: Timestamp) -> (Self, Vec<Fact>) {
        let _ = now;
        (Self { policy: snapshot.policy }, Vec::new())
    }

    /// Applies one event. Facts are appended to `facts`; after an error there are none of this event and nothing has changed, save
    /// for what the passing of time caused.
    ///
    /// # Errors
    /// `not_found`, `stale` and the like, in words for the client.
    pub fn apply(&mut self, now: Timestamp, event: Event, facts: &mut Vec<Fact>) -> Result<Reply, Refusal> {
        let _ = (now, event, facts);
        Ok(Reply::Done)
    }

    /// When the next [`Event::Tick`] can change something.
    pub fn next_due(&self) -> Option<Timestamp> {
        None
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The oldest round on offer.
    pub fn offer(&self) -> Option<&Round> {
        None
    }

    /// A live round.
    pub fn round(&self, round: RoundNo) -> Option<&Round> {
        let _ = round;
        None
    }

    /// The pool's pointer, if a result was ever committed.
    pub fn pointer(&self) -> Option<Version> {
        None
    }

    /// The open batch of that number.
    pub fn batch(&self, batch: u64) -> Option<&Batch> {
        let _ = batch;
        None
    }

    /// Every open batch, in order of opening.
    pub fn open_batches(&self) -> impl Iterator<Item = &Batch> {
        std::iter::empty()
    }

    /// Every round neither committed nor failed, oldest first.
    pub fn live_rounds(&self) -> impl Iterator<Item = &Round> {
        std::iter::empty()
    }
}

//! When a batch seals, why, and what becomes of one below its minimum.
//!
//! Of several conditions the one that was met first counts; of those met at the same instant, the first in the order of
//! [`Cause`]. What became due while nobody looked is worked through in order of time, each at its own instant, so that the
//! batches do not depend on when the clock was read.

use millpond_protocol::{Code, Refusal, Timestamp, limits};

use super::batches::OpenBatch;
use super::policy::{BelowMinimum, Policy};
use super::pool::Pool;
use super::publishers::Publishers;
use super::{Batch, BatchNo, Cause, Fact, Group, MemberId, Reply, Target};

/// The end of a batch, after which quorum and deadline count: of the window, or the first receipt.
pub(super) fn end(group: &Group, opened: Timestamp) -> Timestamp {
    match group {
        Group::Window { to, .. } => *to,
        Group::Label { .. } | Group::Count => opened,
    }
}

/// When the batch is due as things stand at `now`, and why. Conditions without an instant of their own are met `now`:
/// they change by events only, and after each event everything due is sealed.
pub(super) fn due(
    batch: &OpenBatch,
    now: Timestamp,
    policy: &Policy,
    publishers: &Publishers,
) -> (Timestamp, Cause) {
    let row = &batch.row;
    let deadline = (row.deadline, Cause::Deadline);
    if waits_for_minimum(batch, policy) {
        return deadline;
    }
    let now = now.max(row.opened);
    let quorum_at = now.max(batch.end().after(policy.grace()));
    [
        is_full(row, policy).then_some((now, Cause::Full)),
        has_quorum(batch, policy, publishers).then_some((quorum_at, Cause::Quorum)),
        is_complete(batch, publishers).then_some((now, Cause::Complete)),
    ]
    .into_iter()
    .flatten()
    .fold(deadline, |first, other| first.min(other))
}

fn is_full(row: &Batch, policy: &Policy) -> bool {
    match row.group {
        Group::Count => row.count >= policy.count,
        Group::Window { .. } | Group::Label { .. } => false,
    }
}

/// Less than any share is short of a whole publisher: 0.55 of 100 is 55, though the product of both is a little more.
const ROUNDING: f64 = 1e-6;

/// Enough publishers are in it, by count or by share; revoked members count on neither side.
fn has_quorum(batch: &OpenBatch, policy: &Policy, publishers: &Publishers) -> bool {
    let present = batch.present();
    let by_count = policy.quorum > 0 && present as u64 >= policy.quorum;
    let by_share = policy.quorum_share > 0.0
        && present > 0
        && present as f64 >= policy.quorum_share * publishers.len() as f64 - ROUNDING;
    by_count || by_share
}

/// Every publisher has nothing more for it; never without publishers.
fn is_complete(batch: &OpenBatch, publishers: &Publishers) -> bool {
    match batch.row.group {
        Group::Window { .. } | Group::Count => publishers.all_through() >= Some(batch.end()),
        Group::Label { .. } => publishers.len() > 0 && batch.completed() == publishers.len(),
    }
}

fn is_below_minimum(batch: &OpenBatch, policy: &Policy) -> bool {
    batch.row.count < policy.min_uploads || (batch.members() as u64) < policy.min_members
}

/// Where carrying means staying open (label, count), full, quorum and complete wait for the minimum and only the
/// deadline carries; or a batch would use up its carries in one instant.
fn waits_for_minimum(batch: &OpenBatch, policy: &Policy) -> bool {
    let stays = match batch.row.group {
        Group::Window { .. } => false,
        Group::Label { .. } | Group::Count => true,
    };
    stays && policy.below_minimum == BelowMinimum::Carry && is_below_minimum(batch, policy)
}

/// What becomes of a batch that is due.
enum Verdict {
    Run,
    Skip,
    /// Into the first window not closed.
    CarryOn,
    /// Stays open with a new deadline.
    CarryHere,
}

fn verdict(batch: &OpenBatch, policy: &Policy) -> Verdict {
    if !is_below_minimum(batch, policy) {
        return Verdict::Run;
    }
    match policy.below_minimum {
        BelowMinimum::Run => Verdict::Run,
        BelowMinimum::Skip => Verdict::Skip,
        BelowMinimum::Carry if batch.row.carries >= limits::CARRIES_MAX => Verdict::Run,
        BelowMinimum::Carry => match batch.row.group {
            Group::Window { .. } => Verdict::CarryOn,
            Group::Label { .. } | Group::Count => Verdict::CarryHere,
        },
    }
}

impl Pool {
    /// Seals or carries everything due by `now`, in order of time.
    pub(super) fn seal_due(&mut self, now: Timestamp, facts: &mut Vec<Fact>) {
        while let Some((at, no)) = self.batches.pop_due(now) {
            let Some(batch) = self.batches.get(no) else { continue };
            let (_, cause) = due(batch, at, &self.policy, &self.publishers);
            match verdict(batch, &self.policy) {
                Verdict::Run => self.seal(no, cause, true, at, now, facts),
                Verdict::Skip => self.seal(no, cause, false, at, now, facts),
                Verdict::CarryHere => self.carry_here(no, at, facts),
                Verdict::CarryOn => {
                    if !self.carry_on(no, at, facts) {
                        self.seal(no, cause, true, at, now, facts);
                    }
                }
            }
        }
    }

    /// Seals a batch: it has a number in the chain of manifests from now on, and a round if it `runs`. It was due `at`;
    /// what the round waits for counts from `now`.
    fn seal(
        &mut self,
        no: BatchNo,
        cause: Cause,
        runs: bool,
        at: Timestamp,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) {
        let Some(mut batch) = self.batches.take(no).map(|open| open.row) else { return };
        let round = self.rounds.number();
        batch.round = Some(round);
        facts.push(Fact::BatchSealed { batch, cause, runs });
        if runs {
            self.rounds.begin(round, no, at, now, facts);
        }
    }

    /// A label's or a counted batch stays open and its deadline starts again.
    fn carry_here(&mut self, no: BatchNo, at: Timestamp, facts: &mut Vec<Fact>) {
        let Some(batch) = self.batches.get_mut(no) else { return };
        batch.row.carries += 1;
        batch.row.deadline = at.after(self.policy.deadline());
        facts.push(Fact::BatchCarried { batch: batch.row.clone(), into: batch.row.clone() });
        self.batches.reschedule(no, at, &self.policy, &self.publishers);
    }

    /// A window's uploads join the first window after it that is not closed, and are not late there. False if there is
    /// none, because the pool groups otherwise by now or the calendar ends.
    fn carry_on(&mut self, no: BatchNo, at: Timestamp, facts: &mut Vec<Fact>) -> bool {
        let Some(to) = self.batches.get(no).map(OpenBatch::end) else {
            return false;
        };
        if self.policy.grouping != super::policy::Grouping::Window {
            return false;
        }
        let Some(group) = self.batches.first_not_closed(to, at, &self.policy) else { return false };
        let Some(carried) = self.batches.take(no) else { return false };
        let into = self.batches.open(group, carried.row.opener, at, &self.policy, facts);
        into.absorb(&carried, &self.publishers);
        let into = into.row.clone();
        self.batches.reschedule(into.batch, at, &self.policy, &self.publishers);
        facts.push(Fact::BatchCarried { batch: carried.row, into });
        true
    }

    /// Seals at once, whatever the minimum; `take` leases the round, ahead of older ones, if the pool has a lease free.
    pub(super) fn trigger(
        &mut self,
        target: &Target,
        take: Option<MemberId>,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        let (batch, round) = (self.aim(target, now)?, self.rounds.next_number());
        self.seal(batch, Cause::Trigger, true, now, now, facts);
        let lease = take.and_then(|member| self.rounds.take(round, member, now, &self.policy, facts));
        Ok(Reply::Triggered { round, batch, lease })
    }

    /// The open batch that a trigger means.
    pub(super) fn aim(&self, target: &Target, now: Timestamp) -> Result<BatchNo, Refusal> {
        let (batch, what) = match target {
            Target::Window(start) => {
                let starts = |batch: &&OpenBatch| match batch.row.group {
                    Group::Window { from, .. } => from == *start,
                    Group::Label { .. } | Group::Count => false,
                };
                (
                    self.batches.iter().find(starts),
                    format!("no open batch of a window that starts at {start}"),
                )
            }
            Target::Label(label) => {
                (self.batches.find_label(label), format!("no open batch of the label {label}"))
            }
            Target::Open => (
                self.batches.of_the_moment(now, &self.policy),
                "nothing has come for the batch of now".to_owned(),
            ),
            Target::Oldest => {
                (self.batches.iter().min_by_key(|batch| batch.key()), "no open batch".to_owned())
            }
        };
        batch.map(|open| open.row.batch).ok_or_else(|| Refusal::new(Code::NotFound, what))
    }
}

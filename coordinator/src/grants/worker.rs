//! What takes time or has no asker: verifying what was committed, and ending what was not.
//!
//! One loop finds both from rows: at a start, when a commit says that grants changed, and when the next grant ends. A grant
//! that ends is verified like one that is committed, so what is whole by then counts.

use std::collections::HashMap;
use std::time::Duration;

use millpond_broker::GateHandle;
use millpond_failpoint::{Point, reach};
use millpond_protocol::message::{Outcome, Receipt};
use millpond_protocol::{Code, Refusal, limits};
use millpond_storage::Error as StorageError;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Grants, Look, receipt};
use crate::fanout::receipts;
use crate::ledger;
use crate::ledger::grants::{self, Grant, Set, Target};
use crate::ledger::transfer::Cause;

/// Sets that are worked on at once, beside those that have to be read.
const TASKS: usize = 16;
/// Grants that end in one job.
const PAGE: usize = 100;
/// The first pause after a failure; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, and the longest time between two looks at the rows.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Verifies and ends grants until `stop`. What is under way then goes on after the next start.
pub async fn run(grants: Grants, gate: GateHandle, stop: CancellationToken) {
    let mut commits = grants.ledger.commits();
    let mut worker = Worker {
        grants,
        gate,
        tasks: JoinSet::new(),
        running: HashMap::new(),
        paused: HashMap::new(),
        look: Instant::now(),
    };
    loop {
        if worker.look <= Instant::now() {
            worker.look().await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(worker.look) => {}
            Some(ended) = worker.tasks.join_next_with_id() => worker.ended(ended),
            commit = commits.recv() => match commit {
                Ok(commit) if !commit.pools.values().any(|change| change.grants) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => worker.look = Instant::now(),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

struct Worker {
    grants: Grants,
    gate: GateHandle,
    tasks: JoinSet<Result<(), Refusal>>,
    /// The set that each task is about.
    running: HashMap<Id, Set>,
    /// Sets that failed: how often in a row, and until when they wait.
    paused: HashMap<i64, (u32, Instant)>,
    /// When to look at the rows again.
    look: Instant,
}

impl Worker {
    async fn look(&mut self) {
        self.look = Instant::now() + PAUSE_MAX;
        let found = self.grants.ledger.read(|sql| {
            let now = ledger::now();
            Ok((grants::sets(sql)?, grants::ended(sql, now, PAGE)?, grants::next_end(sql)?))
        });
        let (sets, ended, next) = match found.await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "grants do not read");
                return;
            }
        };
        if let Some(next) = next {
            let wait = next.since(ledger::now()).max(PAUSE);
            self.look = self.look.min(Instant::now() + wait);
        }
        if !ended.is_empty() {
            // Each by itself; the commit of this job brings the next look.
            let job = self.grants.ledger.write(move |tx| {
                ended.iter().try_for_each(|grant| tx.verify_grants(std::slice::from_ref(grant)).map(drop))
            });
            if let Err(error) = job.await {
                tracing::error!(%error, "grants that have ended are not closed yet");
            }
        }
        self.paused.retain(|id, _| sets.iter().any(|set| set.id == *id));
        self.start(sets);
    }

    fn start(&mut self, mut waiting: Vec<Set>) {
        let now = Instant::now();
        waiting.retain(|set| {
            if let Some((_, until)) = self.paused.get(&set.id).filter(|(_, until)| *until > now) {
                self.look = self.look.min(*until);
                return false;
            }
            !self.running.values().any(|running| running.id == set.id)
        });
        while let Some(set) = next(&waiting, self.running.values()) {
            waiting.retain(|other| *other != set);
            let task = self.tasks.spawn(work(self.grants.clone(), self.gate.clone(), set.id));
            self.running.insert(task.id(), set);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Result<(), Refusal>), JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (error.id(), Err(Refusal::unavailable(format!("a bug: {error}")))),
        };
        // There may be more than had a place.
        self.look = Instant::now();
        let Some(Set { id: set, .. }) = self.running.remove(&id) else { return };
        match outcome {
            Ok(()) => drop(self.paused.remove(&set)),
            Err(error) => {
                let failures = self.paused.get(&set).map_or(0, |(failures, _)| *failures) + 1;
                let pause = PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(PAUSE_MAX);
                self.paused.insert(set, (failures, Instant::now() + pause));
                tracing::warn!(set, failures, %error, "committed files are not verified yet; it is tried again");
            }
        }
    }
}

/// What sets wait for, each by itself: what takes hours is in nobody's way but that of its like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Some calls to storage, and the reading of what came by one PUT where storage does not know its hash.
    Short,
    ReadUpload,
    ReadResult,
}

impl Turn {
    fn of(set: &Set) -> Self {
        match (set.reads, set.result) {
            (false, _) => Self::Short,
            (true, false) => Self::ReadUpload,
            (true, true) => Self::ReadResult,
        }
    }

    /// Sets that have it at once.
    fn max(self) -> usize {
        match self {
            Self::Short => TASKS,
            Self::ReadUpload => limits::VERIFYING_MAX,
            Self::ReadResult => limits::VERIFYING_RESULTS_MAX,
        }
    }
}

/// Whose turn it is: the oldest set of the member who has the fewest under way.
fn next<'a>(waiting: &[Set], running: impl Iterator<Item = &'a Set> + Clone) -> Option<Set> {
    let like = |set: &Set| {
        let turn = Turn::of(set);
        running.clone().filter(move |other| Turn::of(other) == turn)
    };
    let free = waiting.iter().filter(|set| like(set).count() < Turn::of(set).max());
    let own = |set: &Set| like(set).filter(|other| other.member == set.member).count();
    free.min_by_key(|set| (own(set), set.id)).copied()
}

/// Verifies what is to count together, and counts it. An error says that it is to be tried again.
async fn work(grants: Grants, gate: GateHandle, set: i64) -> Result<(), Refusal> {
    let members = grants.ledger.read(move |sql| grants::grants_of_set(sql, set)).await?;
    for grant in &members {
        match verify(&grants, grant).await {
            Ok(Look::Good) => {
                let id = grant.id;
                reach(Point::VerifyRead);
                grants.ledger.write(move |tx| tx.mark_verified(id)).await?;
            }
            // Cannot be: it was read.
            Ok(Look::Unread) => return Err(Refusal::unavailable("an object does not say its hash")),
            Ok(Look::Missing(why)) if grant.expires <= ledger::now() => {
                let refusal = Refusal::new(Code::NotFound, format!("the grant has ended: {why}"));
                return end(&grants, &gate, grant, Cause::Expired, refusal).await;
            }
            Ok(Look::Missing(why)) => return reopen(&grants, grant, set, Code::NotFound, &why).await,
            Ok(Look::Differs(why)) => {
                let refusal = Refusal::new(Code::Mismatch, why);
                return end(&grants, &gate, grant, Cause::Mismatch, refusal).await;
            }
            Err(error) if error.is_temporary() || grant.expires <= ledger::now() => {
                return Err(Refusal::unavailable(error.to_string()));
            }
            // Nothing but a change of storage or of the client's mind helps.
            Err(error) => {
                tracing::error!(%error, grant = %grant.target, "storage does not let a file be verified");
                return reopen(&grants, grant, set, Code::Unavailable, &error.to_string()).await;
            }
        }
    }
    reach(Point::VerifyMarked);
    count(&grants, &gate, members).await
}

async fn verify(grants: &Grants, grant: &Grant) -> Result<Look, StorageError> {
    match grants.look(grant).await? {
        Look::Unread => grants.read_whole(grant).await,
        look => Ok(look),
    }
}

async fn count(grants: &Grants, gate: &GateHandle, members: Vec<Grant>) -> Result<(), Refusal> {
    let Some(first) = members.first().cloned() else { return Ok(()) };
    let outcome = match first.target {
        Target::Upload(_) => grants.count_uploads(&first.who, members).await.map(drop),
        Target::Result { .. } => grants.count_result(first.clone()).await.map(|committed| {
            if let Some(committed) = committed {
                let stored =
                    Receipt { batch: Some(committed.batch), ..receipt(&first, Outcome::Stored, None) };
                receipts::tell(gate, &first.who, &stored);
            }
        }),
    };
    reach(Point::VerifyCounted);
    match outcome {
        Ok(()) => Ok(()),
        // Its owner was revoked, which ended all.
        Err(refusal) if refusal.code == Code::Unauthorized => Ok(()),
        // One was aborted or published meanwhile, which opened the others. A result's conflict stays: its round has
        // committed other bytes.
        Err(refusal) if refusal.code == Code::Conflict && matches!(first.target, Target::Upload(_)) => Ok(()),
        Err(refusal) if refusal.code.is_temporary() => Err(refusal),
        Err(refusal) => end(grants, gate, &first, Cause::Stale, refusal).await,
    }
}

async fn reopen(grants: &Grants, grant: &Grant, set: i64, code: Code, why: &str) -> Result<(), Refusal> {
    let (pool, why) = (grant.pool, Refusal::new(code, format!("{}: {why}", grant.target)));
    grants.ledger.write(move |tx| tx.reopen_grants(pool, set, &why)).await
}

/// Gives a grant up, if it is still there, and tells its owner.
async fn end(
    grants: &Grants,
    gate: &GateHandle,
    grant: &Grant,
    cause: Cause,
    refusal: Refusal,
) -> Result<(), Refusal> {
    for ended in grants.end(vec![grant.clone()], cause).await? {
        receipts::tell(gate, &ended.who, &receipt(&ended, Outcome::Refused, Some(refusal.clone())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(id: i64, member: i64, result: bool, reads: bool) -> Set {
        Set { id, member, result, reads }
    }

    /// What starts, in order, while nothing ends.
    fn started(mut waiting: Vec<Set>) -> Vec<i64> {
        let mut running = Vec::new();
        while let Some(set) = next(&waiting, running.iter()) {
            waiting.retain(|other| *other != set);
            running.push(set);
        }
        running.iter().map(|set| set.id).collect()
    }

    #[test]
    fn files_that_take_hours_to_read_keep_neither_results_nor_what_needs_no_reading() {
        let mut waiting: Vec<Set> = (0..100).map(|id| set(id, 1, false, true)).collect();
        waiting.extend([set(100, 2, true, true), set(101, 3, true, false), set(102, 4, false, false)]);
        assert_eq!(started(waiting), [0, 100, 101, 102, 1]);
    }

    #[test]
    fn the_next_file_is_of_the_member_who_has_fewer_under_way() {
        let first = set(0, 1, false, true);
        let waiting = [set(1, 1, false, true), set(2, 2, false, true)];
        assert_eq!(next(&waiting, [first].iter()), Some(waiting[1]));
        assert_eq!(next(&waiting, [first, waiting[1]].iter()), None);
    }
}

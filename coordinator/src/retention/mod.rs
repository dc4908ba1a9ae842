//! Retention: what the policies of pools do not keep any more is deleted, by itself every ten minutes and when somebody asks.
//!
//! [`plan`] decides, from rows, policy and time alone. `rows` reads what it decides on and finds what is due, `apply` does
//! it in small jobs (those of `expire`, `forget` and `ended`), [`explain`] says of every object why it is there. Deleting
//! has three steps: a mark in the ledger (from then on nobody is offered the bytes), objects `doomed` and rows deleted, and
//! the sweep, which deletes objects from storage. A crash between any two is taken up by the next run. Listing the bucket
//! is never part of it.
//!
//! What stays for ever: pools, members, the headers of manifests, and one row each for batches, rounds and versions.

mod apply;
pub mod clock;
mod ended;
mod expire;
pub mod explain;
mod forget;
pub mod plan;
mod rows;

use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond_protocol::{Code, PoolName, Refusal, Timestamp};
use millpond_storage::Storage;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use crate::dispatch::sweep;
use crate::ledger::{self, Ledger, PoolId};
use apply::Hands;
use clock::Trust;

/// Between two runs, while nothing is left over.
const EVERY: Duration = Duration::from_secs(600);
/// Before the first run, and after one that failed.
const SOON: Duration = Duration::from_secs(60);
/// After a run that left something over, at the least: others have as long to themselves as that run took.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Rows that one run changes in one pool: every pool gets its turn.
const SHARE: usize = 50_000;
/// Between two looks at the clock.
const LOOK: Duration = Duration::from_secs(60);
/// Longest time of a run that the server does by itself.
const LONGEST: Duration = Duration::from_secs(300);

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Batches whose bytes are gone.
    pub batches: u64,
    /// Versions of results whose bytes are gone.
    pub results: u64,
    /// Rounds whose attempts, log, deliveries and `round.json` are gone.
    pub rounds: u64,
    /// Uploads whose rows are gone, and with them key and hash.
    pub uploads: u64,
    /// Files deleted from the ledger.
    pub payloads: u64,
    /// Events deleted.
    pub events: u64,
    /// Objects doomed, and the bytes of these and of the payloads.
    pub objects: u64,
    pub bytes: u64,
    /// Objects deleted from storage, also such as other runs doomed.
    pub deleted: u64,
    /// More is due: run again.
    pub more: bool,
}

/// The right to run; others wait until it is dropped. It knows the pool at which the time of the last run was over.
#[derive(Debug)]
pub struct Turn(OwnedMutexGuard<PoolId>);

/// Runs retention, one run at a time. Clones share it.
#[derive(Clone)]
pub struct Collector {
    ledger: Ledger,
    storage: Storage,
    turn: Arc<Mutex<PoolId>>,
    /// When the clock was looked at last.
    looked: Arc<Mutex<Option<Instant>>>,
}

impl Collector {
    /// A collector; nothing runs yet.
    pub fn new(ledger: Ledger, storage: Storage) -> Self {
        Self { ledger, storage, turn: Arc::default(), looked: Arc::default() }
    }

    /// Runs now and then until `stop`, while the clock is believed.
    pub async fn run(self, stop: CancellationToken) {
        let mut next = Instant::now() + SOON;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK.min(next.saturating_duration_since(Instant::now()))) => {}
            }
            let now = match self.believe().await {
                Ok(now) if Instant::now() >= next => now,
                Ok(_) => continue,
                Err(_) => {
                    next = next.max(Instant::now() + LOOK);
                    continue;
                }
            };
            let begun = Instant::now();
            let Some(ran) = stop.run_until_cancelled(self.collect(now, None, LONGEST)).await else { return };
            if let Err(error) = &ran {
                tracing::warn!(%error, "retention: not everything that is due could be deleted; it is tried again");
            }
            next = Instant::now() + pause(&ran, begun.elapsed());
        }
    }

    /// The time, if it is believed.
    ///
    /// # Errors
    /// `conflict` while the clock is further than it can be; the ledger cannot be used now.
    pub async fn believe(&self) -> Result<Timestamp, Refusal> {
        let (now, trust) = self.look(false).await?;
        match trust.doubt {
            None => Ok(now),
            Some(doubt) => Err(Refusal::new(Code::Conflict, doubt.to_string()).hint(clock::ADVICE)),
        }
    }

    /// Believes the clock whatever it says: an operator has looked at it.
    ///
    /// # Errors
    /// The ledger cannot be used now.
    pub async fn confirm(&self) -> Result<Timestamp, Refusal> {
        Ok(self.look(true).await?.0)
    }

    /// Looks at the clock and keeps what is believed of it. When a doubt begins or ends, pools are told.
    async fn look(&self, confirmed: bool) -> Result<(Timestamp, Trust), Refusal> {
        let mut looked = self.looked.lock().await;
        let (now, at) = (ledger::now(), Instant::now());
        let since = looked.map(|last| at.duration_since(last));
        let job = move |tx: &mut ledger::Tx<'_>| {
            let before = clock::last(tx.sql())?;
            let trust = match before {
                Some(before) if !confirmed => before.look(now, since),
                Some(_) | None => Trust::in_clock(now),
            };
            clock::keep(tx.sql(), trust)?;
            Ok((before.and_then(|before| before.doubt), trust))
        };
        let (before, trust) = self.ledger.write(job).await?;
        *looked = Some(at);
        let ahead = trust.doubt.map_or(0.0, |doubt| doubt.ahead.as_secs_f64());
        metrics::gauge!("millpond_clock_doubted_seconds").set(ahead);
        let event = match (before, trust.doubt) {
            (None, Some(doubt)) => {
                tracing::error!(%doubt, advice = clock::ADVICE, "retention waits");
                ("clock-doubted", json!({ "ahead_s": doubt.ahead.as_secs() }))
            }
            (Some(_), None) => {
                tracing::info!(%now, "retention: the clock is believed again");
                ("clock-believed", json!({}))
            }
            (None, None) | (Some(_), Some(_)) => return Ok((now, trust)),
        };
        for (pool, rows) in self.ledger.read(rows::pools).await? {
            let event = event.clone();
            self.ledger.write(move |tx| apply::tell(tx, pool, &rows, event.0, &event.1)).await?;
        }
        Ok((now, trust))
    }

    /// The turn to run, if nobody else has it.
    ///
    /// # Errors
    /// `unavailable` while retention runs.
    pub fn try_turn(&self) -> Result<Turn, Refusal> {
        let turn = self.turn.clone().try_lock_owned();
        turn.map(Turn).map_err(|_| Refusal::unavailable("retention runs now").hint("ask again in a while"))
    }

    /// [`collect`](Self::collect_in), once it is its turn.
    ///
    /// # Errors
    /// As there.
    pub async fn collect(
        &self,
        now: Timestamp,
        only: Option<&PoolName>,
        longest: Duration,
    ) -> Result<Collected, Refusal> {
        let turn = Turn(self.turn.clone().lock_owned().await);
        self.collect_in(turn, now, only, longest).await
    }

    /// Deletes what is due at `now`, in one pool or in all, for at most about `longest`, and sweeps. What is left over is
    /// said in `more`.
    ///
    /// # Errors
    /// The ledger or storage cannot be used now: what was done until then stays done.
    pub async fn collect_in(
        &self,
        mut turn: Turn,
        now: Timestamp,
        only: Option<&PoolName>,
        longest: Duration,
    ) -> Result<Collected, Refusal> {
        let until = Instant::now() + longest;
        let mut done = Collected::default();
        let ran = self.pools(&mut turn.0, now, only, until, &mut done).await;
        count(&done);
        if done != Collected::default() {
            tracing::info!(?done, "retention: deleted");
        }
        ran?;
        let swept = sweep::sweep(&self.ledger, &self.storage, now, Some(until)).await?;
        done.deleted = swept.deleted as u64;
        done.more |= swept.more;
        if only.is_none() {
            self.ledger.write(move |tx| tx.forget_tokens(now)).await?;
        }
        drop(turn);
        Ok(done)
    }

    async fn pools(
        &self,
        last: &mut PoolId,
        now: Timestamp,
        only: Option<&PoolName>,
        until: Instant,
        done: &mut Collected,
    ) -> Result<(), Refusal> {
        let mut moved = false;
        let mut pools = self.ledger.read(rows::pools).await?;
        // Behind the one with which the last run did not come to an end: each has its turn.
        let begin = pools.partition_point(|(pool, _)| *pool <= *last);
        pools.rotate_left(begin);
        let mut cut = None;
        for (pool, rows) in pools {
            if only.is_some_and(|only| *only != rows.name) {
                continue;
            }
            let mut hands = Hands { ledger: &self.ledger, now, pool, rows: SHARE, until, moved, done };
            hands.events(&rows).await?;
            loop {
                let due = rows.clone();
                let due = self.ledger.read(move |sql| rows::due(sql, pool, &due, now)).await?;
                let (before, any) = (hands.rows, !due.is_empty());
                for work in due {
                    if !hands.spent() {
                        hands.task(work.task).await?;
                    }
                }
                if hands.spent() {
                    hands.done.more = true;
                    cut = cut.or_else(|| (Instant::now() >= until).then_some(pool));
                    break;
                }
                // What is due and cannot be moved waits for the next run.
                if !any || hands.rows == before {
                    break;
                }
            }
            moved = hands.moved;
        }
        *last = cut.unwrap_or(*last);
        sweep::forget(&self.ledger, &self.storage, now, until).await
    }
}

/// How long it is until the next run, after one that took so long.
fn pause(ran: &Result<Collected, Refusal>, took: Duration) -> Duration {
    match ran {
        Ok(done) if done.more => took.clamp(AT_ONCE, SOON),
        Ok(_) => EVERY,
        Err(_) => SOON,
    }
}

fn count(done: &Collected) {
    for (what, count) in [
        ("batch", done.batches),
        ("result", done.results),
        ("round", done.rounds),
        ("upload", done.uploads),
        ("payload", done.payloads),
        ("event", done.events),
        ("object", done.objects),
    ] {
        metrics::counter!("millpond_retention_total", "what" => what).increment(count);
    }
    metrics::counter!("millpond_retention_bytes_total").increment(done.bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_is_gone_on_with_as_soon_as_others_had_as_long_as_the_run() {
        let left = || Ok(Collected { more: true, ..Collected::default() });
        let seconds = |ran, took| pause(&ran, Duration::from_millis(took)).as_millis();
        assert_eq!(seconds(left(), 20), 1_000);
        assert_eq!(seconds(left(), 7_000), 7_000);
        assert_eq!(seconds(left(), 300_000), 60_000);
        assert_eq!(seconds(Ok(Collected::default()), 20), 600_000);
        assert_eq!(seconds(Err(Refusal::unavailable("away")), 20), 60_000);
    }
}

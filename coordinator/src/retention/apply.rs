//! What is due, done: small jobs of the ledger, one after the other, with rests in between.
//!
//! Every job looks at the rows again and asks the plan again, so what was found due a moment ago and is needed now (a
//! retry, a roll-back, another policy) stays. What has begun is marked first: whoever asks from then on is told that it is
//! not kept, and an end in the middle is taken up by the next run. Objects are doomed here and deleted by the sweep.

use std::time::{Duration, Instant};

use millpond_protocol::{Refusal, Timestamp};

use super::Collected;
use super::plan::PoolRows;
use super::rows::Task;
use crate::ledger::{Ledger, PoolId, Result, Tx};

/// After a job as many times as long as it took is left to others, at most [`REST_MAX`].
const REST: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(1);

pub(super) type Done<T> = std::result::Result<T, Refusal>;

/// A run's hands in one pool.
pub(super) struct Hands<'a> {
    pub ledger: &'a Ledger,
    pub now: Timestamp,
    pub pool: PoolId,
    /// Rows that may still be changed.
    pub rows: usize,
    /// When the run ends whatever is left, if it has changed anything by then: every run gets on.
    pub until: Instant,
    pub moved: bool,
    pub done: &'a mut Collected,
}

impl Hands<'_> {
    /// Whether the rest has to wait for the next run.
    pub(super) fn spent(&self) -> bool {
        self.rows == 0 || (self.moved && Instant::now() >= self.until)
    }

    /// One job, and the rest after it.
    pub(super) async fn write<T, F>(&mut self, rows: usize, job: F) -> Done<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    {
        let started = Instant::now();
        let written = self.ledger.write(job).await?;
        self.rows = self.rows.saturating_sub(rows.max(1));
        self.moved = true;
        tokio::time::sleep((started.elapsed() * REST).min(REST_MAX)).await;
        Ok(written)
    }

    /// Does one thing, as far as it may go in this run.
    pub(super) async fn task(&mut self, task: Task) -> Done<()> {
        match task {
            Task::Expire { id, .. } => self.expire(id).await,
            Task::Forget { id, .. } => self.forget(id).await,
            Task::Result { object, .. } => self.result(object).await,
            Task::Story { round } => self.story(round).await,
            Task::Rejected { last } => self.rejected(last).await,
        }
    }
}

/// An event, unless there is nobody left to read it.
pub(super) fn tell(
    tx: &mut Tx<'_>,
    pool: PoolId,
    rows: &PoolRows,
    kind: &str,
    body: &serde_json::Value,
) -> Result<()> {
    if rows.removed.is_none() {
        tx.event(pool, kind, body)?;
    }
    Ok(())
}

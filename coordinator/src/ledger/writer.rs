//! What the one writer does with a group of jobs: runs each in a savepoint, commits, then lets the answers out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millpond_failpoint::{Point, reach};
use millpond_protocol::{Refusal, limits};
use rusqlite::{Connection, params};
use tokio::sync::{broadcast, oneshot};

use super::log::die_if_unsynced;
use super::notice::Commit;
use super::tx::{Effects, Entry, State, Tx};
use super::{Error, OpenError, PoolId, Result, load, manage};
use crate::rounds::Event;

/// A pool whose tick failed waits that long for the next one.
const TICK_PAUSE: Duration = Duration::from_secs(5);

/// A job in line: runs in the transaction, and says what to do once the group's fate is known. Without a transaction,
/// because the group is lost, it only says that.
pub(super) struct Job(Run);

type Run = Box<dyn FnOnce(Option<&mut Tx<'_>>) -> Ran + Send>;

struct Ran {
    failed: bool,
    finish: Finish,
}

/// Lets a job's answer out once the group's fate is known.
type Finish = Box<dyn FnOnce(std::result::Result<(), Refusal>) + Send>;

/// Wraps a job and the channel that waits for it; `queued` counts the jobs in line.
pub(super) fn job<T, F>(
    run: F,
    answer: oneshot::Sender<std::result::Result<T, Refusal>>,
    queued: Arc<AtomicUsize>,
) -> Job
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
{
    Job(Box::new(move |tx| {
        queued.fetch_sub(1, Ordering::Relaxed);
        let outcome = match tx {
            Some(tx) => run(tx).map_err(Error::into_refusal),
            None => Err(not_now()),
        };
        let failed = outcome.is_err();
        // Whoever asked may have gone: what was committed stays committed.
        let finish =
            Box::new(move |fate: std::result::Result<(), Refusal>| drop(answer.send(fate.and(outcome))));
        Ran { failed, finish }
    }))
}

fn not_now() -> Refusal {
    Refusal::unavailable("the ledger could not commit")
}

/// The one connection that writes, and the pools' cores. What runs it decides which jobs make a group.
pub(super) struct Writer {
    pub(super) sql: Connection,
    pub(super) state: State,
    commits: broadcast::Sender<Arc<Commit>>,
}

/// What became of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Committed,
    Lost,
}

/// The group under way.
#[derive(Default)]
struct Group {
    effects: Effects,
    finish: Vec<Finish>,
    /// SQLite ended the transaction by itself: nothing of the group can be kept.
    lost: bool,
}

impl Writer {
    /// Reads every pool from its rows.
    pub(super) fn load(
        sql: Connection,
        commits: broadcast::Sender<Arc<Commit>>,
    ) -> std::result::Result<Self, OpenError> {
        let mut writer = Self { sql, state: State::default(), commits };
        writer.load_all()?;
        Ok(writer)
    }

    fn load_all(&mut self) -> std::result::Result<(), OpenError> {
        let corrupt = |e: Error| OpenError::Corrupt(e.to_string());
        let ids: Vec<PoolId> = self
            .sql
            .prepare_cached("SELECT id FROM pools WHERE removed IS NULL ORDER BY id")?
            .query_map([], |row| row.get(0))?
            .collect::<std::result::Result<_, _>>()?;
        self.run("BEGIN IMMEDIATE")?;
        let mut group = Group::default();
        for id in ids {
            let mut tx = Tx::begin(&self.sql, &mut self.state);
            tx.reload(id).map_err(corrupt)?;
            group.merge(tx.effects);
        }
        flush(&self.sql, &self.state, &mut group.effects).map_err(corrupt)?;
        self.run("COMMIT")?;
        // Another pool may have the name by now.
        self.state.revoked.extend(manage::members_to_end(&self.sql)?);
        Ok(())
    }

    /// In what time the first core wants to see the clock; nothing if it does now.
    pub(super) fn next_due(&mut self) -> Option<Duration> {
        let now = self.state.clock();
        self.state.due.first().map(|(due, _)| due.since(now))
    }

    /// Runs `first` and what comes after it, given how many jobs are in the group already, as one transaction.
    pub(super) fn group(&mut self, first: Option<Job>, mut more: impl FnMut(usize) -> Option<Job>) -> Fate {
        let started = Instant::now();
        let mut group = Group::default();
        if let Err(error) = self.run("BEGIN IMMEDIATE") {
            tracing::error!(%error, "ledger: no transaction begins");
            group.lost = true;
        }
        let mut next = first;
        loop {
            // Before every job: what time causes stays though the job fails.
            self.tick(&mut group);
            let Some(Job(run)) = next.take() else { break };
            self.one(run, &mut group);
            if !group.lost {
                next = more(group.finish.len());
            }
        }
        self.end(group, started)
    }

    /// Lets due cores see the time, each in a savepoint of its own.
    fn tick(&mut self, group: &mut Group) {
        let now = self.state.clock();
        while let Some(&(due, pool)) = self.state.due.first() {
            if group.lost || due > now {
                return;
            }
            let mut failed = None;
            self.step(group, |tx| {
                failed = tx.apply(pool, Event::Tick).err();
                failed.is_some()
            });
            if let Some(error) = failed {
                tracing::error!(%error, pool, "ledger: a tick failed");
            }
            // A core that advances never wants the same instant again.
            if self.state.due.first() == Some(&(due, pool)) {
                self.state.postpone(pool, now.after(TICK_PAUSE));
            }
        }
    }

    /// Runs one job; in a group that is lost it is only told so, for nothing may be written outside the transaction.
    fn one(&mut self, run: Run, group: &mut Group) {
        if group.lost {
            group.finish.push(run(None).finish);
            return;
        }
        let mut finish = None;
        let mut run = Some(run);
        self.step(group, |tx| {
            let Some(ran) = run.take().map(|run| run(Some(tx))) else { return true };
            finish = Some(ran.finish);
            ran.failed
        });
        // The savepoint did not even begin.
        let finish = finish.or_else(|| run.map(|run| run(None).finish));
        group.finish.extend(finish);
    }

    /// Runs `work` in a savepoint; it says whether it failed and is to be taken back.
    fn step(&mut self, group: &mut Group, work: impl FnOnce(&mut Tx<'_>) -> bool) {
        if self.run("SAVEPOINT job").is_err() {
            group.lost = true;
            return;
        }
        let mut tx = Tx::begin(&self.sql, &mut self.state);
        let failed = work(&mut tx);
        let effects = tx.effects;
        // Should the group be lost, all of these are read again.
        group.effects.touched.extend(effects.touched.iter().copied());
        for pool in &effects.touched {
            self.state.reschedule(*pool);
        }
        let kept = if failed {
            self.undo(effects, group)
        } else {
            self.run("RELEASE job").map(|()| {
                self.state.revoked.extend(&effects.revoked);
                self.state.roles.extend(effects.roles.iter().map(|(member, _, role)| (*member, *role)));
                group.merge(effects);
            })
        };
        // After some errors (disk full, I/O) SQLite has rolled the whole transaction back, and the savepoint with it, also
        // where the job took no notice.
        if kept.is_err() {
            group.lost = true;
        }
    }

    /// Runs a statement of each group or job, which is compiled once.
    fn run(&self, statement: &str) -> rusqlite::Result<()> {
        self.sql.prepare_cached(statement)?.execute([]).map(drop)
    }

    /// Takes a failed job back: its rows by the savepoint, its marks on the cores by reading them again.
    fn undo(&mut self, effects: Effects, group: &mut Group) -> rusqlite::Result<()> {
        self.run("ROLLBACK TO job")?;
        self.run("RELEASE job")?;
        // The rows that the cores are read from must say what was before this job.
        for pool in &effects.touched {
            match (effects.before.get(pool), self.state.pools.get_mut(pool)) {
                (Some(before), Some(entry)) => entry.counters = *before,
                // The job made the pool.
                (None, Some(_)) => self.state.remove(*pool),
                (_, None) => {}
            }
        }
        // A core that refuses has not changed.
        if !effects.moved {
            return Ok(());
        }
        if flush(&self.sql, &self.state, &mut group.effects).is_err() {
            group.lost = true;
            return Ok(());
        }
        for pool in effects.touched {
            self.reload(pool, group);
        }
        Ok(())
    }

    fn reload(&mut self, pool: PoolId, group: &mut Group) {
        let mut tx = Tx::begin(&self.sql, &mut self.state);
        let reloaded = tx.reload(pool);
        let effects = tx.effects;
        match reloaded {
            Ok(()) => group.merge(effects),
            Err(error) if error.is_no_row() => self.state.remove(pool),
            Err(error) => {
                tracing::error!(%error, pool, "ledger: a pool does not read");
                group.lost = true;
            }
        }
    }

    fn end(&mut self, mut group: Group, started: Instant) -> Fate {
        let jobs = group.finish.len();
        reach(Point::LedgerGrouped);
        let flushed = !group.lost
            && match flush(&self.sql, &self.state, &mut group.effects) {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(%error, "ledger: a group cannot be written");
                    false
                }
            };
        let committed = flushed
            && match self.run("COMMIT") {
                Ok(()) => true,
                Err(error) => {
                    die_if_unsynced(&error);
                    tracing::error!(%error, "ledger: COMMIT failed");
                    false
                }
            };
        metrics::histogram!("millpond_commit_jobs").record(jobs as f64);
        metrics::histogram!("millpond_commit_seconds").record(started.elapsed().as_secs_f64());
        if !committed {
            self.refuse(group);
            return Fate::Lost;
        }
        reach(Point::LedgerCommitted);
        group.effects.made.count();
        for finish in group.finish {
            finish(Ok(()));
        }
        reach(Point::LedgerAnswered);
        if !group.effects.commit.is_empty() {
            // No listener is no error.
            let _ = self.commits.send(Arc::new(group.effects.commit));
        }
        Fate::Committed
    }

    /// Nothing of the group is kept: everyone is told to try again, and the cores are read from the ledger.
    fn refuse(&mut self, group: Group) {
        if !self.sql.is_autocommit()
            && let Err(error) = self.sql.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "ledger: ROLLBACK failed");
        }
        for member in &group.effects.revoked {
            self.state.revoked.remove(member);
        }
        self.state.roles.extend(group.effects.roles.iter().rev().map(|(member, old, _)| (*member, *old)));
        let now = self.state.clock();
        for pool in &group.effects.touched {
            match load::pool(&self.sql, *pool, now) {
                Ok((entry, _)) => self.state.put(*pool, entry),
                Err(error) if error.is_no_row() => self.state.remove(*pool),
                Err(error) => tracing::error!(%error, pool, "ledger: a pool does not read"),
            }
        }
        for finish in group.finish {
            finish(Err(not_now()));
        }
    }
}

impl Group {
    fn merge(&mut self, effects: Effects) {
        self.effects.commit.add(effects.commit);
        self.effects.touched.extend(effects.touched);
        self.effects.revoked.extend(effects.revoked);
        self.effects.roles.extend(effects.roles);
        self.effects.made.add(&effects.made);
        for (batch, (count, bytes, small)) in effects.batches {
            let sum = self.effects.batches.entry(batch).or_default();
            *sum = (sum.0 + count, sum.1 + bytes, sum.2 + small);
        }
    }
}

/// Writes what is kept in memory during a group: the pools' counters and what uploads added to open batches.
fn flush(sql: &Connection, state: &State, effects: &mut Effects) -> Result<()> {
    for (batch, (count, bytes, small)) in std::mem::take(&mut effects.batches) {
        let (unpacked, packed): (u64, u64) = sql
            .prepare_cached(
                "UPDATE batches SET count = count + ?2, bytes = bytes + ?3, small_bytes = small_bytes + ?4 \
                 WHERE id = ?1 RETURNING max(small_bytes - packed_bytes, 0), packed_bytes",
            )?
            .query_row(params![batch, count, bytes, small], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let pool = batch >> 40;
        if unpacked >= limits::pack_room(packed)
            && let Some(entry) = state.pools.get(&pool)
        {
            effects.commit.pool(pool, &entry.name).pack = true;
        }
    }
    let touched: BTreeMap<_, _> =
        effects.touched.iter().filter_map(|id| Some((id, state.pools.get(id)?))).collect();
    for (id, entry) in touched {
        write_counters(sql, *id, entry)?;
    }
    Ok(())
}

/// Writes a pool's counters into its row.
///
/// # Errors
/// `unavailable` if the pool belongs to another coordinator.
pub(super) fn write_counters(sql: &Connection, id: PoolId, entry: &Entry) -> Result<()> {
    let c = entry.counters;
    let owned = sql
        .prepare_cached(
            "UPDATE pools SET seq = ?2, batches = ?3, rounds = ?4, versions = ?5, newest_committed = ?6, \
             pointer = ?7, kept_bytes = ?8 WHERE id = ?1 AND owner_epoch = 1",
        )?
        .execute(params![
            id,
            c.seq,
            c.batches,
            c.rounds,
            c.versions,
            c.newest_committed,
            c.pointer,
            c.kept_bytes
        ])?;
    if owned == 1 {
        return Ok(());
    }
    Err(Refusal::unavailable(format!("pool {} belongs to another coordinator", entry.name)).into())
}

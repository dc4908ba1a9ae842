//! Reader connections. What one job reads is of one moment, and a job that nobody waits for any more is interrupted.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use millpond_protocol::Refusal;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::{Error, Result, connect};

/// Instructions of SQLite's machine between two looks at whether anybody still waits: well under a millisecond.
pub(super) const LOOK_EVERY: i32 = 10_000;

/// A few connections that share their work.
#[derive(Clone)]
pub(super) struct Readers(Arc<Set>);

struct Set {
    idle: Mutex<Vec<Connection>>,
    places: Arc<Semaphore>,
    /// Jobs run where they are asked for, and no thread has a part in their order.
    #[cfg(test)]
    here: bool,
}

impl Readers {
    pub(super) fn open(path: &Path, connections: usize) -> rusqlite::Result<Self> {
        let idle = (0..connections)
            .map(|_| {
                let sql = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
                sql.pragma_update(None, "query_only", true)?;
                Ok(sql)
            })
            .collect::<rusqlite::Result<_>>()?;
        Ok(Self(Arc::new(Set {
            idle: Mutex::new(idle),
            places: Arc::new(Semaphore::new(connections)),
            #[cfg(test)]
            here: false,
        })))
    }

    /// One connection, on which jobs run where they are asked for.
    #[cfg(test)]
    pub(super) fn here(sql: Connection) -> Self {
        let (idle, places) = (Mutex::new(vec![sql]), Arc::new(Semaphore::new(1)));
        Self(Arc::new(Set { idle, places, here: true }))
    }

    /// Gives a connection for the one that is idle.
    #[cfg(test)]
    pub(super) fn exchange(&self, sql: &mut Connection) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.iter_mut().for_each(|idle| std::mem::swap(idle, sql));
    }

    /// Runs `job` in one snapshot, which has everything that was committed before the call. If the caller gives up, so
    /// does the job.
    pub(super) async fn run<T, F>(&self, job: F) -> std::result::Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let stopped = || Refusal::unavailable("the ledger has stopped");
        // The permit goes with the connection, not with the caller, who may give up while the query runs.
        let permit = self.0.places.clone().acquire_owned().await.map_err(|_| stopped())?;
        let set = self.0.clone();
        let caller = Caller::default();
        let gone = caller.gone();
        let run = move || {
            let _permit = permit;
            let sql = set.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut reader = Reader { sql, home: &set.idle };
            reader.snapshot(gone, job).unwrap_or_else(|| Err(stopped()))
        };
        #[cfg(test)]
        if self.0.here {
            return run();
        }
        tokio::task::spawn_blocking(run).await.map_err(|_| stopped())?
    }
}

/// Says when the caller has gone.
#[derive(Default)]
pub(super) struct Caller(Arc<AtomicBool>);

impl Caller {
    /// What SQLite asks now and then, to end a statement that nobody waits for.
    pub(super) fn gone(&self) -> impl FnMut() -> bool + Send + 'static + use<> {
        let gone = self.0.clone();
        move || gone.load(Ordering::Relaxed)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A reader connection on loan: it comes back however the query ends.
struct Reader<'a> {
    sql: Option<Connection>,
    home: &'a Mutex<Vec<Connection>>,
}

impl Reader<'_> {
    fn snapshot<T>(
        &mut self,
        gone: impl FnMut() -> bool + Send + 'static,
        job: impl FnOnce(&Connection) -> Result<T>,
    ) -> Option<std::result::Result<T, Refusal>> {
        let sql = self.sql.as_mut()?;
        let look = || job(Snapshot::begin(sql, gone)?.0);
        Some(look().map_err(Error::into_refusal))
    }
}

/// A read transaction: what is read is of the moment of the first statement, until this is dropped. Its own statements are
/// compiled once, for most jobs are as short as they are.
struct Snapshot<'a>(&'a mut Connection);

impl<'a> Snapshot<'a> {
    fn begin(sql: &'a mut Connection, gone: impl FnMut() -> bool + Send + 'static) -> rusqlite::Result<Self> {
        let snapshot = Self(sql);
        snapshot.0.progress_handler(LOOK_EVERY, Some(gone))?;
        snapshot.0.prepare_cached("BEGIN")?.execute([])?;
        Ok(snapshot)
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        // A caller who has gone may not interrupt this too: the next job would see this one's moment.
        let end = |sql: &mut Connection| {
            sql.progress_handler(0, None::<fn() -> bool>)?;
            sql.prepare_cached("ROLLBACK")?.execute([])
        };
        // It fails if SQLite has ended the transaction by itself.
        let _ = end(self.0);
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        home.extend(self.sql.take());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Ledger, READERS};
    use super::*;

    const ENDLESS: &str =
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

    fn endless(sql: &Connection) -> Result<u64> {
        Ok(sql.query_row(ENDLESS, [], |row| row.get(0))?)
    }

    #[tokio::test]
    async fn a_query_whose_caller_has_gone_leaves_its_connection_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        for _ in 0..=READERS {
            let given_up = tokio::time::timeout(Duration::from_millis(50), ledger.read(endless)).await;
            assert!(given_up.is_err());
        }
        // The runner's time-out fails if every connection still counts.
        assert_eq!(ledger.read(|sql| Ok(sql.query_row("SELECT 7", [], |row| row.get(0))?)).await, Ok(7));
    }

    #[tokio::test]
    async fn short_looks_do_not_wait_for_long_queries() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let long: Vec<_> = (0..READERS + 2)
            .map(|_| {
                let ledger = ledger.clone();
                tokio::spawn(async move { ledger.read(endless).await })
            })
            .collect();
        while ledger.0.readers.0.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ledger.look(|sql| Ok(sql.query_row("SELECT 7", [], |row| row.get(0))?)).await, Ok(7));
        long.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

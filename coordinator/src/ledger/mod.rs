//! The ledger: one SQLite file that is the truth of everything Millpond has acknowledged.
//!
//! All writes go through one thread (`thread.rs`), which gathers what waits into one transaction (`writer.rs`), feeds the pools' pure
//! cores inside it, commits, and only then lets answers and [`Commit`] notices out. So a state change and the messages
//! that it causes become true together, and an acknowledgement means fsync. Readers have their own connections.
//!
//! `rusqlite` is named in this folder alone, apart from the SQL of reads that belongs to one caller.

pub mod bodies;
pub(crate) mod clock;
pub(crate) mod error;
mod facts;
pub mod grants;
pub mod history;
pub mod joins;
mod load;
mod log;
pub mod manage;
mod migrate;
mod notice;
pub mod objects;
pub mod prune;
pub(crate) mod quota;
mod readers;
pub mod results;
pub mod sessions;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod stepped;
mod thread;
pub mod tokens;
pub mod transfer;
mod tx;
pub mod uploads;
mod writer;

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use millpond_protocol::Refusal;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Semaphore, broadcast, oneshot};

pub use clock::now;
pub use error::{Error, Result};
pub use notice::{Commit, PoolChange};
use readers::Readers;
pub use tx::Tx;
use writer::Writer;

/// The schema of the ledger that this program writes; it opens older ones, and no newer one.
pub const SCHEMA: u32 = migrate::KNOWN;

/// Internal id of a pool, never used again.
pub type PoolId = i64;

/// Connections for what may take long: enough for two cores and a slow query or two.
const READERS: usize = 4;
/// Connections for short looks that everybody waits for.
const LOOKERS: usize = 2;
/// Pages that the writer keeps, in KiB: it takes them only under load.
const CACHE_KIB: i32 = 8 << 10;
/// What the embedded storage makes beside a ledger that is there before it.
const OBJECTS: &str = "objects/catalog.sqlite";
/// Commits that a slow listener may fall behind before it must look at the ledger afresh.
const NOTICES: usize = 4_096;

/// The largest number (an upload's `seq`, a batch) inside a pool; none is that large in fact.
const NUMBER_MAX: i64 = (1 << 40) - 1;

/// The row id of number `n` (an upload's `seq`, a batch) of a pool.
pub fn row_id(pool: PoolId, n: u64) -> i64 {
    (pool << 40) | i64::try_from(n).unwrap_or(NUMBER_MAX).min(NUMBER_MAX)
}

/// The number inside its pool of a row id.
pub fn number(row_id: i64) -> u64 {
    u64::try_from(row_id & NUMBER_MAX).unwrap_or_default()
}

/// A handle to the open ledger; clones share it.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    jobs: mpsc::Sender<writer::Job>,
    /// Jobs in line.
    queued: Arc<AtomicUsize>,
    commits: broadcast::Sender<Arc<Commit>>,
    readers: Readers,
    lookers: Readers,
    /// One permit: taken from before a snapshot until it is dropped.
    snapshots: Arc<Semaphore>,
    /// Held for as long as the process uses the data directory; none has a ledger that is in memory alone.
    _lock: Option<File>,
}

impl Ledger {
    /// Opens `dir/ledger.db`, creating or migrating it, and starts the writer. The returned receiver resolves when the
    /// writer has ended, which while the handle lives means that the process cannot go on.
    ///
    /// # Errors
    /// The directory is in use by another process, the file is newer than this program, or the disk fails.
    pub fn open(dir: &Path) -> std::result::Result<(Self, oneshot::Receiver<()>), OpenError> {
        let io = |source| OpenError::Io { path: dir.display().to_string(), source };
        let lock = lock(dir)?;
        snapshot::remove_left_over(dir).map_err(io)?;

        let path = dir.join("ledger.db");
        if millpond_storage::directory::is_blank(&path) && dir.join(OBJECTS).exists() {
            return Err(OpenError::Lost { path: path.display().to_string() });
        }
        keep_private(&path).map_err(io)?;
        let mut sql = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        migrate::run(&mut sql, &path)?;
        // What each job changes is noted first, to be taken back if it fails: a page at a time, and never for long.
        sql.pragma_update(None, "temp_store", "MEMORY")?;
        // A full group's pages, so that none has to be written before its commit.
        sql.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let (readers, lookers) = (Readers::open(&path, READERS)?, Readers::open(&path, LOOKERS)?);

        let (jobs, queue) = mpsc::channel();
        let (commits, _) = broadcast::channel(NOTICES);
        let log =
            log::Log::start(&mut sql, connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?).map_err(io)?;
        let ended = thread::start(Writer::load(sql, commits.clone())?, log, queue)?;
        let inner = Inner {
            directory: dir.to_owned(),
            jobs,
            queued: Arc::default(),
            commits,
            readers,
            lookers,
            snapshots: Arc::new(Semaphore::new(1)),
            _lock: Some(lock),
        };
        Ok((Self(Arc::new(inner)), ended))
    }

    /// Puts `job` in line for the writer; the call itself takes the place in the queue. Resolves when the group that it
    /// became part of is on disk. A job that fails leaves nothing behind and does not disturb its neighbours.
    ///
    /// The queue has no bound of its own: the gate and the HTTP server bound what can be under way.
    pub fn write<T, F>(
        &self,
        job: F,
    ) -> impl Future<Output = std::result::Result<T, Refusal>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    {
        let (answer, outcome) = oneshot::channel();
        // A send fails only after the writer ended: the receiver then says so.
        let queued = self.0.queued.clone();
        queued.fetch_add(1, Ordering::Relaxed);
        let _ = self.0.jobs.send(writer::job(job, answer, queued));
        async move { outcome.await.unwrap_or_else(|_| Err(Refusal::unavailable("the ledger has stopped"))) }
    }

    /// Runs `job` on a reader connection: all that it reads is of one moment, with everything committed before the
    /// call. It ends early if the caller gives up.
    ///
    /// # Errors
    /// What the job says; SQLite's own errors become `unavailable`.
    pub async fn read<T, F>(&self, job: F) -> std::result::Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        self.0.readers.run(job).await
    }

    /// The same for a short look by key that others wait for (sign-in, state, live messages): long queries, however
    /// many there are, have no part in these connections.
    ///
    /// # Errors
    /// As [`Ledger::read`].
    pub async fn look<T, F>(&self, job: F) -> std::result::Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        self.0.lookers.run(job).await
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Jobs that wait for the writer.
    pub fn queued(&self) -> usize {
        self.0.queued.load(Ordering::Relaxed)
    }

    /// What commits from now on. A listener that lags looks at the ledger afresh.
    pub fn commits(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.0.commits.subscribe()
    }
}

/// Makes the data directory if it is missing, and takes it for this process until the file is dropped.
///
/// # Errors
/// Another process has it, or the disk fails.
pub fn lock(dir: &Path) -> std::result::Result<File, OpenError> {
    let io = |source| OpenError::Io { path: dir.display().to_string(), source };
    millpond_storage::directory::make_private(dir).map_err(io)?;
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(io)?;
    lock.try_lock().map_err(|_| OpenError::InUse(dir.display().to_string()))?;
    Ok(lock)
}

/// Why the ledger did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{0} is in use by another millpond process: stop that one first, or choose another data directory"
    )]
    InUse(String),
    #[error("{path}: {source}: check that the directory exists and belongs to the user that runs millpond")]
    Io { path: String, source: std::io::Error },
    #[error("the ledger has schema {found}, this program knows up to {known}: use a newer millpond")]
    Newer { found: u32, known: u32 },
    #[error(
        "{path} is empty or missing, and there are objects beside it that a ledger knows: nothing was changed; bring the ledger \
         back, or restore a backup to an empty data directory"
    )]
    Lost { path: String },
    #[error(
        "the ledger does not open, and nothing was changed; if it is damaged, restore a backup to another data directory"
    )]
    Sql(#[from] rusqlite::Error),
    #[error("the ledger's rows contradict each other: {0}")]
    Corrupt(String),
}

fn connect(path: &Path, flags: OpenFlags) -> std::result::Result<Connection, rusqlite::Error> {
    let sql = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    sql.set_prepared_statement_cache_capacity(128);
    sql.busy_timeout(Duration::from_secs(10))?;
    sql.pragma_update(None, "journal_mode", "WAL")?;
    sql.pragma_update(None, "synchronous", "FULL")?;
    sql.pragma_update(None, "foreign_keys", true)?;
    keep_plans(&sql)?;
    // `log.rs` says when.
    sql.pragma_update(None, "wal_autocheckpoint", 0)?;
    sql.pragma_update(None, "journal_size_limit", 64 << 20)?;
    Ok(sql)
}

/// A statement keeps the plan it was prepared with. Otherwise SQLite parses and plans many of them again at each run, for the
/// values that are bound might suggest a better one: half of the time that short statements take.
fn keep_plans(sql: &Connection) -> rusqlite::Result<()> {
    sql.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// The file, made if it is missing, is its owner's alone; SQLite gives what it puts beside it the same mode.
fn keep_private(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    for path in [path.to_owned(), path.with_extension("db-wal"), path.with_extension("db-shm")] {
        match std::fs::metadata(&path) {
            Ok(file) if file.permissions().mode() & 0o077 != 0 => {
                std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            }
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// How SQLite would go about a query, over an empty ledger.
#[cfg(test)]
pub(crate) fn plan(query: &str) -> Vec<String> {
    let sql = Connection::open_in_memory().unwrap();
    sql.execute_batch(include_str!("schema/0001.sql")).unwrap();
    let mut plan = sql.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
    let steps = plan.raw_query().mapped(|row| row.get(3)).collect::<rusqlite::Result<_>>();
    steps.unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_no_pool_has_is_no_other_number_and_of_no_other_pool() {
        assert_eq!(number(row_id(3, 5)), 5);
        for beyond in [(1 << 40) + 5, u64::MAX] {
            assert_eq!(row_id(3, beyond), row_id(3, (1 << 40) - 1));
            assert!(row_id(3, beyond) < row_id(4, 0));
        }
    }

    #[test]
    fn a_statement_is_planned_once_whatever_is_bound_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (_ledger, _) = Ledger::open(dir.path()).unwrap();
        let sql = connect(&dir.path().join("ledger.db"), OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        let mut statement = sql.prepare("SELECT 1 FROM pools WHERE id = ?1 AND seq = ?2 LIMIT ?3").unwrap();
        for n in [0, 1, 7] {
            assert!(!statement.exists([n, n, n]).unwrap());
            statement.clear_bindings();
        }
        assert_eq!(statement.get_status(rusqlite::StatementStatus::RePrepare), 0);
    }

    #[test]
    fn nobody_but_its_owner_reads_the_ledgers_files_whatever_the_directory_allows() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        // What an earlier version, or a copy by hand, left open.
        std::fs::write(dir.path().join("ledger.db"), "").unwrap();
        std::fs::set_permissions(dir.path().join("ledger.db"), Permissions::from_mode(0o644)).unwrap();
        let (_ledger, _) = Ledger::open(dir.path()).unwrap();
        for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
}

//! Rows: which object is which file, or which parts.
//!
//! This folder is all that knows the `rusqlite` crate. One thread writes; what waits for it shares a transaction, so
//! that many small objects cost one sync of the disk together. Readers have connections of their own and block.

mod objects;
mod uploads;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use millpond_failpoint::{Point, reach};
use rusqlite::{Connection, OpenFlags, Savepoint, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

pub(super) use self::objects::{Check, Object, Replaced};
pub(super) use self::uploads::{Ended, Expired, Finished, Part, Upload};
use super::blobs::BlobId;
use crate::directory;
use crate::limits::embedded as limits;

/// Behind a text, comes after every key that starts with the text.
pub(super) const LAST: char = char::MAX;

/// The format of the file, in `user_version`.
const FORMAT: i32 = 1;

const SCHEMA: &str = include_str!("schema.sql");

/// The catalogue could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// The disk is full; nothing was changed.
    #[error("the disk is full")]
    Full,
    /// A newer program wrote the file.
    #[error("the catalogue has format {0}, and this program knows {FORMAT}")]
    Newer(i32),
    /// It has no rows at all, and there are bodies.
    #[error(
        "the catalogue is empty or missing, and there are files that it has to name: nothing was changed; restore it, or start \
         with an empty data directory"
    )]
    Lost,
    /// The change was not made; the text is SQLite's.
    #[error("the catalogue failed, and nothing was changed: {0}")]
    Undone(String),
    /// Anything else, and a change may have been made; the text is SQLite's.
    #[error("the catalogue failed: {0}")]
    Failed(String),
}

impl From<rusqlite::Error> for CatalogError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl CatalogError {
    /// The same for a change of which is known that it was not made.
    fn undone(self) -> Self {
        match self {
            Self::Failed(text) => Self::Undone(text),
            other @ (Self::Full | Self::Newer(_) | Self::Lost | Self::Undone(_)) => other,
        }
    }
}

impl From<std::io::Error> for CatalogError {
    fn from(error: std::io::Error) -> Self {
        if directory::is_full(&error) { Self::Full } else { Self::Failed(error.to_string()) }
    }
}

/// What rows no longer name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Freed {
    /// What the files belonged to: an object in parts may have readers.
    pub(super) owner: Option<BlobId>,
    pub(super) files: Vec<BlobId>,
    pub(super) bytes: u64,
}

/// A change in line for the writer.
trait Job: Send {
    /// Does its work, by itself: what failed is rolled back alone.
    fn apply(&mut self, transaction: &mut Transaction<'_>) -> rusqlite::Result<()>;
    /// How its work failed, if it did.
    fn failure(&self) -> Option<CatalogError>;
    fn answer(self: Box<Self>, committed: Result<(), CatalogError>);
}

struct Pending<W, T> {
    work: Option<W>,
    done: Option<Result<T, CatalogError>>,
    answer: oneshot::Sender<Result<T, CatalogError>>,
}

impl<T, W> Job for Pending<W, T>
where
    T: Send,
    W: FnOnce(&Savepoint<'_>) -> rusqlite::Result<T> + Send,
{
    fn apply(&mut self, transaction: &mut Transaction<'_>) -> rusqlite::Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        let savepoint = transaction.savepoint()?;
        let done = work(&savepoint);
        // Dropped, it rolls back.
        if done.is_ok() {
            savepoint.commit()?;
        }
        self.done = Some(done.map_err(|error| CatalogError::from(error).undone()));
        Ok(())
    }

    fn failure(&self) -> Option<CatalogError> {
        self.done.as_ref()?.as_ref().err().cloned()
    }

    fn answer(self: Box<Self>, committed: Result<(), CatalogError>) {
        let Self { done, answer, .. } = *self;
        // Whoever asked may have left; the change stands.
        let done = match (committed, done) {
            (Ok(()), Some(done)) => done,
            (Ok(()), None) => Err(gone().undone()),
            (Err(error), _) => Err(error),
        };
        let _ = answer.send(done);
    }
}

fn gone() -> CatalogError {
    CatalogError::Failed("its writer has ended".into())
}

/// The open catalogue.
pub(super) struct Catalog {
    path: PathBuf,
    readers: Mutex<Vec<Connection>>,
    writer: mpsc::Sender<Box<dyn Job>>,
}

impl Catalog {
    /// `bodies` says whether there are files already: without a row for them a sweep would remove them all.
    pub(super) fn open(path: &Path, bodies: bool) -> Result<Self, CatalogError> {
        if bodies && directory::is_blank(path) {
            return Err(CatalogError::Lost);
        }
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))? {
            0 => connection
                .execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"))?,
            FORMAT => {}
            other => return Err(CatalogError::Newer(other)),
        }
        let (writer, jobs) = mpsc::channel(limits::QUEUE);
        thread::Builder::new().name("s3-catalog".into()).spawn(move || write(connection, jobs))?;
        Ok(Self { path: path.to_owned(), readers: Mutex::default(), writer })
    }

    /// Runs `work` in the writer's next transaction; returns once that is on disk.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Savepoint<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let (answer, answered) = oneshot::channel();
        let job = Pending { work: Some(work), done: None, answer };
        self.writer.send(Box::new(job)).await.map_err(|_| gone().undone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Bytes of all objects, and of the parts of uploads that have not ended. Blocks; reads every row.
    pub(super) fn bytes(&self) -> Result<u64, CatalogError> {
        self.read(|connection| {
            connection.query_row(
                "SELECT (SELECT coalesce(sum(size), 0) FROM object) +
                        (SELECT coalesce(sum(size), 0) FROM part WHERE upload IN (SELECT id FROM upload))",
                [],
                |row| row.get(0),
            )
        })
    }

    /// When the newest row was written, of those that say so; 0 if there is none. Blocks; reads every row.
    pub(super) fn newest_ms(&self) -> Result<i64, CatalogError> {
        self.read(|connection| {
            connection.query_row(
                "SELECT max(coalesce((SELECT max(modified_ms) FROM object), 0),
                            coalesce((SELECT max(modified_ms) FROM part), 0),
                            coalesce((SELECT max(started_ms) FROM upload), 0),
                            coalesce((SELECT max(ended_ms) FROM completed), 0))",
                [],
                |row| row.get(0),
            )
        })
    }

    /// The files that rows name and that start with the byte `first`. Blocks.
    pub(super) fn files(&self, first: u8) -> Result<HashSet<BlobId>, CatalogError> {
        let (mut low, mut high) = ([0; 16], [0xff; 16]);
        (low[0], high[0]) = (first, first);
        self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT id FROM object WHERE id BETWEEN ?1 AND ?2 AND parts = 0
                 UNION ALL SELECT file FROM part WHERE file BETWEEN ?1 AND ?2",
            )?;
            query.query_map(params![low, high], |row| Ok(BlobId(row.get(0)?)))?.collect()
        })
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, CatalogError> {
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&self.path, flags)?;
                connection.busy_timeout(std::time::Duration::from_secs(5))?;
                connection
            }
        };
        let result = query(&connection)?;
        // A connection that failed is not kept.
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < limits::READERS {
            readers.push(connection);
        }
        Ok(result)
    }
}

/// The writer: takes what waits, commits it together, answers.
fn write(mut connection: Connection, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < limits::GROUP {
            match jobs.try_recv() {
                Ok(job) => group.push(job),
                Err(_) => break,
            }
        }
        let result = commit(&mut connection, &mut group);
        for job in group {
            job.answer(result.clone());
        }
    }
}

fn commit(connection: &mut Connection, group: &mut [Box<dyn Job>]) -> Result<(), CatalogError> {
    let undone = |error| CatalogError::from(error).undone();
    let mut transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(undone)?;
    for job in group {
        job.apply(&mut transaction).map_err(undone)?;
        if transaction.is_autocommit() {
            // SQLite has rolled all of it back, as it does where the disk fails.
            let failure = job.failure();
            return Err(failure.unwrap_or_else(|| CatalogError::Undone("it was rolled back".into())));
        }
    }
    reach(Point::CatalogGrouped);
    transaction.commit()?;
    reach(Point::CatalogCommitted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_fails_is_rolled_back_alone() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY)").unwrap();
        let (mut group, mut answers) = (Vec::<Box<dyn Job>>::new(), Vec::new());
        // The second one's second row is there already.
        for rows in [[1, 2], [3, 1], [4, 5]] {
            let (answer, answered) = oneshot::channel();
            let work = move |savepoint: &Savepoint<'_>| {
                rows.iter().try_for_each(|n| savepoint.execute("INSERT INTO t VALUES (?1)", [n]).map(drop))
            };
            group.push(Box::new(Pending { work: Some(work), done: None, answer }));
            answers.push(answered);
        }
        commit(&mut connection, &mut group).unwrap();
        group.into_iter().for_each(|job| job.answer(Ok(())));
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap()).collect();
        assert!(matches!(&answers[..], [Ok(()), Err(CatalogError::Undone(_)), Ok(())]), "{answers:?}");
        let sum: i64 = connection.query_row("SELECT sum(n) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, 12);
    }
}

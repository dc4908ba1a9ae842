//! Rows: which object is which file.
//!
//! This is the only file that knows the `rusqlite` crate. One thread writes; what waits for it shares a transaction, so
//! that many small objects cost one sync of the disk together. Readers have connections of their own and block.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use millpond_protocol::Sha256;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Row, Transaction, TransactionBehavior, params,
};
use tokio::sync::{mpsc, oneshot};

use super::blobs::BlobId;
use crate::limits::embedded as limits;

/// Behind a text, comes after every key that starts with the text.
pub(super) const LAST: char = char::MAX;

/// The format of the file, in `user_version`.
const FORMAT: i32 = 1;

const SCHEMA: &str = "
CREATE TABLE object (
    key TEXT NOT NULL PRIMARY KEY,
    blob BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    modified_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;";

/// The catalogue could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// The disk is full; nothing was changed.
    #[error("the disk is full")]
    Full,
    /// A newer program wrote the file.
    #[error("the catalogue has format {0}, and this program knows {FORMAT}")]
    Newer(i32),
    /// Anything else; the text is SQLite's.
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

impl From<std::io::Error> for CatalogError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            Self::Full
        } else {
            Self::Failed(error.to_string())
        }
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) blob: BlobId,
    pub(super) size: u64,
    pub(super) sha256: Sha256,
    pub(super) modified_ms: i64,
}

/// What must hold for the object that is there now, or for its absence, when another is about to replace it.
pub(super) type Check = Box<dyn Fn(Option<&Object>) -> bool + Send>;

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    /// Done; the file is nobody's any more, if there was one.
    Done(Option<BlobId>),
    /// The check did not hold, and nothing was changed.
    Unmet,
}

enum Change {
    Put { object: Object, check: Option<Check> },
    Delete { key: String },
}

struct Job {
    change: Change,
    answer: oneshot::Sender<Result<Changed, CatalogError>>,
}

/// The open catalogue.
pub(super) struct Catalog {
    path: PathBuf,
    readers: Mutex<Vec<Connection>>,
    writer: mpsc::Sender<Job>,
}

impl Catalog {
    pub(super) fn open(path: &Path) -> Result<Self, CatalogError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))? {
            0 => connection.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;"))?,
            FORMAT => {}
            other => return Err(CatalogError::Newer(other)),
        }
        let (writer, jobs) = mpsc::channel(limits::QUEUE);
        thread::Builder::new().name("s3-catalog".into()).spawn(move || write(connection, jobs))?;
        Ok(Self { path: path.to_owned(), readers: Mutex::default(), writer })
    }

    /// Makes `object` the one of its key, if `check` holds; returns once that is on disk.
    pub(super) async fn put(&self, object: Object, check: Option<Check>) -> Result<Changed, CatalogError> {
        self.change(Change::Put { object, check }).await
    }

    /// Removes the object of a key; returns once that is on disk.
    pub(super) async fn delete(&self, key: String) -> Result<Changed, CatalogError> {
        self.change(Change::Delete { key }).await
    }

    async fn change(&self, change: Change) -> Result<Changed, CatalogError> {
        let gone = || CatalogError::Failed("its writer has ended".into());
        let (answer, answered) = oneshot::channel();
        self.writer.send(Job { change, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// The object of a key. Blocks.
    pub(super) fn find(&self, key: &str) -> Result<Option<Object>, CatalogError> {
        self.read(|connection| find(connection, key))
    }

    /// Up to `limit` objects whose keys start with `prefix` and come after `after`, in order of their bytes. Blocks.
    pub(super) fn page(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Object>, CatalogError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT key, blob, size, sha256, modified_ms FROM object
                 WHERE key > ?1 AND key BETWEEN ?2 AND ?3 ORDER BY key LIMIT ?4",
            )?;
            query.query_map(params![after, prefix, format!("{prefix}{LAST}"), limit], object)?.collect()
        })
    }

    /// The files of all objects whose names start with the byte `first`. Blocks.
    pub(super) fn blobs(&self, first: u8) -> Result<HashSet<BlobId>, CatalogError> {
        let (mut low, mut high) = ([0; 16], [0xff; 16]);
        (low[0], high[0]) = (first, first);
        self.read(|connection| {
            let mut query =
                connection.prepare_cached("SELECT blob FROM object WHERE blob BETWEEN ?1 AND ?2")?;
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
fn write(mut connection: Connection, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < limits::GROUP {
            match jobs.try_recv() {
                Ok(job) => group.push(job),
                Err(_) => break,
            }
        }
        let result = commit(&mut connection, &group);
        for (index, job) in group.into_iter().enumerate() {
            let answer = match &result {
                Ok(changed) => Ok(changed[index]),
                Err(error) => Err(error.clone()),
            };
            // Whoever asked may have left; the change stands.
            let _ = job.answer.send(answer);
        }
    }
}

fn commit(connection: &mut Connection, group: &[Job]) -> Result<Vec<Changed>, CatalogError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let changed = group.iter().map(|job| apply(&transaction, &job.change)).collect::<Result<_, _>>()?;
    transaction.commit()?;
    Ok(changed)
}

fn apply(transaction: &Transaction<'_>, change: &Change) -> rusqlite::Result<Changed> {
    let key = match change {
        Change::Put { object, .. } => &object.key,
        Change::Delete { key } => key,
    };
    let old = find(transaction, key)?;
    match change {
        Change::Put { object, check } => {
            if check.as_ref().is_some_and(|holds| !holds(old.as_ref())) {
                return Ok(Changed::Unmet);
            }
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO object (key, blob, size, sha256, modified_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![object.key, object.blob.0, object.size, object.sha256.0, object.modified_ms])?;
        }
        Change::Delete { key } => {
            transaction.prepare_cached("DELETE FROM object WHERE key = ?1")?.execute([key])?;
        }
    }
    Ok(Changed::Done(old.map(|object| object.blob)))
}

fn find(connection: &Connection, key: &str) -> rusqlite::Result<Option<Object>> {
    connection
        .prepare_cached("SELECT key, blob, size, sha256, modified_ms FROM object WHERE key = ?1")?
        .query_row([key], object)
        .optional()
}

fn object(row: &Row<'_>) -> rusqlite::Result<Object> {
    Ok(Object {
        key: row.get(0)?,
        blob: BlobId(row.get(1)?),
        size: row.get(2)?,
        sha256: Sha256(row.get(3)?),
        modified_ms: row.get(4)?,
    })
}

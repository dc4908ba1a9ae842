//! A copy of the ledger as it was at one moment, made while it is in use.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use millpond_protocol::{Refusal, Sha256};
use millpond_storage::directory;
use rusqlite::{Connection, OpenFlags, Row, params};
use sha2::{Digest as _, Sha256 as Hasher};
use tokio::sync::OwnedSemaphorePermit;

use super::objects::Object;
use super::readers::{Caller, LOOK_EVERY};
use super::{Error, Ledger, Result, connect};

/// The file's name in the data directory. One that a killed process left behind is replaced by the next, or removed at
/// the start.
const NAME: &str = "ledger.snapshot";
/// Bytes of the disk that a copy leaves to the ledger, its log and the embedded storage.
const MIN_FREE: u64 = 64 << 20;
/// Objects read in one go.
const PAGE: usize = 1_000;

/// A copy of the ledger. Until it is dropped the file exists, and no object that the copy names is deleted from storage.
pub struct Snapshot {
    path: PathBuf,
    pub size: u64,
    pub sha256: Sha256,
    _turn: OwnedSemaphorePermit,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // What is left is removed at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Ledger {
    /// Copies the ledger to a file in the data directory, which takes as much room as the ledger's rows. Writers go on;
    /// if the caller gives up, so does the copy. There is one at a time: the next waits until this one is dropped.
    ///
    /// # Errors
    /// `unavailable`: the disk is full or fails.
    pub async fn snapshot(&self) -> std::result::Result<Snapshot, Refusal> {
        // Before the copy: what is doomed from now on may be live in it.
        let turn = self.0.snapshots.clone().acquire_owned().await.map_err(|_| stopped())?;
        let (from, path) = (self.0.directory.join("ledger.db"), self.0.directory.join(NAME));
        let caller = Caller::default();
        let gone = caller.gone();
        let made = tokio::task::spawn_blocking(move || {
            let mut snapshot = Snapshot { path, size: 0, sha256: Sha256::of(&[]), _turn: turn };
            let mut sql = connect(&from, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            sql.progress_handler(LOOK_EVERY, Some(gone))?;
            check_room(&sql, &snapshot.path)?;
            copy(&sql, &snapshot.path)?;
            (snapshot.size, snapshot.sha256) = hash(&snapshot.path).map_err(unreadable)?;
            Ok(snapshot)
        });
        let made = made.await.map_err(|_| stopped())?;
        made.map_err(Error::into_refusal)
    }

    /// Whether a snapshot needs the objects that it names.
    pub fn keeps_objects(&self) -> bool {
        self.0.snapshots.available_permits() == 0
    }
}

impl Snapshot {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many objects the snapshot needs, and their bytes.
    ///
    /// # Errors
    /// The file does not read.
    pub async fn sum(&self) -> std::result::Result<(u64, u64), Refusal> {
        self.read(|sql| Ok(sum(sql)?)).await
    }

    /// The next objects that it needs after the one with the id `after`, in order of their ids.
    ///
    /// # Errors
    /// The file does not read.
    pub async fn objects(&self, after: i64) -> std::result::Result<Vec<Object>, Refusal> {
        self.read(move |sql| {
            let mut statement = sql.prepare(
                "SELECT id, key, size, sha256 FROM objects WHERE state = 'live' AND id > ?1 ORDER BY id LIMIT ?2",
            )?;
            let mut rows = statement.query(params![after, PAGE])?;
            let mut page = Vec::new();
            while let Some(row) = rows.next()? {
                page.push(read(row)?);
            }
            Ok(page)
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Refusal> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || job(&open(&path)?));
        let read = read.await.map_err(|_| stopped())?;
        read.map_err(Error::into_refusal)
    }
}

/// Removes what a killed process left behind.
pub(super) fn remove_left_over(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Copies an open ledger as it is now to a file of its own, in place of what is there. It is not on disk for certain yet.
pub(super) fn copy(sql: &Connection, to: &Path) -> Result<()> {
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unreadable(error)),
        Ok(()) | Err(_) => {}
    }
    super::keep_private(to).map_err(unreadable)?;
    sql.execute("VACUUM INTO ?1", [to.display().to_string()])?;
    Ok(())
}

/// Opens a copy to read it.
///
/// # Errors
/// It is no SQLite file.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

/// Takes back what a copy knows of files on their way, of which no backup has the bytes: their clients are told to send
/// them again.
///
/// # Errors
/// It cannot be written.
pub fn forget_transfers(path: &Path) -> rusqlite::Result<()> {
    let sql = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    sql.pragma_update(None, "synchronous", "FULL")?;
    sql.execute_batch(
        "BEGIN; UPDATE grants SET verified = 0, verifying = NULL; \
         UPDATE objects SET multipart = NULL WHERE state = 'granted'; COMMIT",
    )
}

/// How many objects a copy needs, and their bytes.
///
/// # Errors
/// It is no ledger.
pub fn sum(sql: &Connection) -> rusqlite::Result<(u64, u64)> {
    let query = "SELECT count(*), coalesce(sum(size), 0) FROM objects WHERE state = 'live'";
    sql.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// What a copy says of the object with this key, which it needs.
///
/// # Errors
/// It needs no such object.
pub fn object(sql: &Connection, key: &str) -> Result<Object> {
    sql.prepare_cached("SELECT id, key, size, sha256 FROM objects WHERE state = 'live' AND key = ?1")?
        .query_row([key], |row| Ok(read(row)))?
}

fn read(row: &Row<'_>) -> Result<Object> {
    let key: String = row.get(1)?;
    let parsed = key.parse();
    let key = parsed.map_err(|_| Refusal::unavailable(format!("{key} is no key of ours")))?;
    Ok(Object { id: row.get(0)?, key, size: row.get(2)?, sha256: Sha256(row.get(3)?) })
}

/// Refuses a copy that would fill the disk under the ledger itself.
fn check_room(sql: &Connection, path: &Path) -> Result<()> {
    let number = |pragma: &str| sql.pragma_query_value(None, pragma, |row| row.get::<_, u64>(0));
    let used = number("page_count")?.saturating_sub(number("freelist_count")?);
    let needed = used * number("page_size")? + MIN_FREE;
    let free = directory::free(path.parent().unwrap_or(Path::new("."))).map_err(unreadable)?;
    if free >= needed {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Error::Refused(Refusal::unavailable(format!(
        "a copy of the ledger needs {} MiB free in the data directory, and there are {}",
        mib(needed),
        mib(free)
    ))))
}

fn hash(path: &Path) -> io::Result<(u64, Sha256)> {
    let mut hasher = Hasher::new();
    let size = io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok((size, Sha256(hasher.finalize().into())))
}

fn stopped() -> Refusal {
    Refusal::unavailable("the ledger has stopped")
}

fn unreadable(error: io::Error) -> Error {
    Error::Refused(Refusal::unavailable(format!("the copy of the ledger: {error}")))
}

//! Objects of storage as rows: `granted → live → doomed → gone`. A row stands before a URL or bytes for its key exist,
//! so listing a bucket is never needed to know what is there.

use millpond_protocol::{Refusal, Sha256};
use millpond_storage::ObjectKey;
use rusqlite::{Connection, params};

use super::tx::Tx;
use super::{PoolId, Result};

/// An object of ours.
#[derive(Debug, Clone)]
pub struct Object {
    pub id: i64,
    pub key: ObjectKey,
    pub size: u64,
    pub sha256: Sha256,
}

impl Tx<'_> {
    /// Makes the row for an object that is about to be written. `kind` (`upload`, `result`, `pack` …) is for people who
    /// look at a bucket; The key is random.
    pub fn grant_object(&mut self, pool: PoolId, kind: &str, size: u64, sha256: Sha256) -> Result<Object> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| Refusal::unavailable("the system has no randomness"))?;
        let random = data_encoding::HEXLOWER.encode(&random);
        self.grant_object_at(&format!("{pool}/{kind}/{random}"), size, sha256)
    }

    /// The same with a key of the caller's choice, which nobody can guess and nothing else has.
    pub fn grant_object_at(&mut self, key: &str, size: u64, sha256: Sha256) -> Result<Object> {
        let parsed = key.parse().map_err(|_| Refusal::unavailable(format!("{key} is no object key")))?;
        self.sql
            .prepare_cached(
                "INSERT INTO objects (key, state, size, sha256, created) VALUES (?1, 'granted', ?2, ?3, ?4)",
            )?
            .execute(params![key, size, sha256.0.as_slice(), self.now.as_millis()])?;
        Ok(Object { id: self.sql.last_insert_rowid(), key: parsed, size, sha256 })
    }

    /// The object is in storage, verified, and counts from this commit on.
    pub fn live_object(&mut self, id: i64) -> Result<()> {
        self.sql
            .prepare_cached("UPDATE objects SET state = 'live', lived = 1 WHERE id = ?1")?
            .execute([id])?;
        Ok(())
    }

    /// Dooms what an earlier run of this process was about to write under `kind`; how many. What others may write by a
    /// grant is theirs.
    pub fn doom_left_over(&mut self, kind: &str) -> Result<usize> {
        Ok(self
            .sql
            .prepare_cached(
                "UPDATE objects SET state = 'doomed' WHERE state = 'granted' AND state IN ('granted', 'doomed') \
                 AND key GLOB ?1 AND NOT EXISTS (SELECT 1 FROM grants g WHERE g.object_id = objects.id)",
            )?
            .execute([format!("*/{kind}/*")])?)
    }

    /// The object is not needed: the sweep deletes it after this commit.
    pub fn doom_object(&mut self, id: i64) -> Result<()> {
        self.sql
            .prepare_cached("UPDATE objects SET state = 'doomed' WHERE id = ?1 AND state <> 'gone'")?
            .execute([id])?;
        Ok(())
    }

    /// The object is not what was declared, which whoever waits for its grant is told.
    pub(super) fn object_differed(&mut self, id: i64) -> Result<()> {
        self.sql.prepare_cached("UPDATE objects SET differed = 1 WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}

/// Whether the grant of that object ended because it was not what was declared.
pub fn differed(sql: &Connection, id: i64) -> Result<bool> {
    Ok(sql
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM objects WHERE id = ?1 AND differed = 1)")?
        .query_row([id], |row| row.get(0))?)
}

/// Reads an object's row.
///
/// # Errors
/// SQLite's, also when there is no such row.
pub fn object(sql: &Connection, id: i64) -> Result<Object> {
    let (key, size, sha256): (String, u64, [u8; 32]) = sql
        .prepare_cached("SELECT key, size, sha256 FROM objects WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let key =
        key.parse().map_err(|_| Refusal::unavailable(format!("object {id} has a key that does not read")))?;
    Ok(Object { id, key, size, sha256: Sha256(sha256) })
}

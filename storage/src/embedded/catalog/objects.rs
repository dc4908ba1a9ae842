//! Rows of objects.

use millpond_protocol::Sha256;
use rusqlite::{Connection, OptionalExtension as _, Row, Savepoint, params};

use super::super::blobs::BlobId;
use super::super::checksum::Checksum;
use super::{Catalog, CatalogError, Freed, LAST};
use crate::limits::embedded as limits;

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Object {
    pub(in super::super) key: String,
    /// The name of its file or, in parts, the upload that they belong to.
    pub(in super::super) id: BlobId,
    /// How many parts it is made of; 0: one file.
    pub(in super::super) parts: u32,
    pub(in super::super) size: u64,
    /// Of all its bytes or, in parts, of the SHA-256s of the parts one after the other.
    pub(in super::super) sha256: Sha256,
    /// In parts: the checksum that the upload was begun with.
    pub(in super::super) checksum: Option<Checksum>,
    /// What the client keeps with it, as JSON.
    pub(in super::super) meta: Option<String>,
    pub(in super::super) modified_ms: i64,
}

/// What must hold for the object that is there now, or for its absence, when another is about to replace it.
pub(in super::super) type Check = Box<dyn Fn(Option<&Object>) -> bool + Send>;

/// What became of an object that was to replace another.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Replaced {
    /// It is there; the old one is nobody's any more.
    Done(Freed),
    /// The check did not hold, and nothing was changed; whether there is an object.
    Unmet(bool),
}

const COLUMNS: &str = "key, id, parts, size, sha256, checksum, meta, modified_ms";

impl Catalog {
    /// Makes `object` the one of its key, if `check` holds; returns once that is on disk.
    pub(in super::super) async fn put(
        &self,
        object: Object,
        check: Option<Check>,
    ) -> Result<Replaced, CatalogError> {
        self.change(move |transaction| {
            let old = find(transaction, &object.key)?;
            if check.is_some_and(|holds| !holds(old.as_ref())) {
                return Ok(Replaced::Unmet(old.is_some()));
            }
            replace(transaction, old, &object).map(Replaced::Done)
        })
        .await
    }

    /// Removes the objects of some keys, as many as one transaction should; returns what is nobody's any more once that is
    /// on disk, and the keys that are left.
    pub(in super::super) async fn delete(
        &self,
        keys: Vec<String>,
    ) -> Result<(Vec<Freed>, Vec<String>), CatalogError> {
        self.change(move |transaction| delete(transaction, keys)).await
    }

    /// The object of a key. Blocks.
    pub(in super::super) fn find(&self, key: &str) -> Result<Option<Object>, CatalogError> {
        self.read(|connection| find(connection, key))
    }

    /// Up to `limit` objects whose keys start with `prefix` and come after `after`, in order of their bytes. Blocks.
    pub(in super::super) fn page(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Object>, CatalogError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM object
                 WHERE key > ?1 AND key BETWEEN ?2 AND ?3 ORDER BY key LIMIT ?4"
            ))?;
            query.query_map(params![after, prefix, format!("{prefix}{LAST}"), limit], object)?.collect()
        })
    }
}

fn delete(transaction: &Savepoint<'_>, keys: Vec<String>) -> rusqlite::Result<(Vec<Freed>, Vec<String>)> {
    let (mut keys, mut freed, mut files) = (keys.into_iter(), Vec::new(), 0);
    while files < limits::EXPIRE
        && let Some(key) = keys.next()
    {
        if let Some(old) = find(transaction, &key)? {
            transaction.prepare_cached("DELETE FROM object WHERE key = ?1")?.execute([key])?;
            let old = free(transaction, &old)?;
            files += old.files.len();
            freed.push(old);
        }
    }
    Ok((freed, keys.collect()))
}

/// Puts `object` in the place of the old one.
pub(super) fn replace(
    transaction: &Savepoint<'_>,
    old: Option<Object>,
    object: &Object,
) -> rusqlite::Result<Freed> {
    let freed = old.map(|old| free(transaction, &old)).transpose()?;
    transaction
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO object ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
        ))?
        .execute(params![
            object.key,
            object.id.0,
            object.parts,
            object.size,
            object.sha256.0,
            object.checksum.as_ref().map(ToString::to_string),
            object.meta,
            object.modified_ms,
        ])?;
    Ok(freed.unwrap_or_default())
}

/// The files of an object whose row goes, without the rows of its parts.
fn free(transaction: &Savepoint<'_>, old: &Object) -> rusqlite::Result<Freed> {
    let files = if old.parts == 0 {
        vec![old.id]
    } else {
        transaction
            .prepare_cached("DELETE FROM part WHERE upload = ?1 RETURNING file")?
            .query_map([old.id.0], |row| Ok(BlobId(row.get(0)?)))?
            .collect::<Result<_, _>>()?
    };
    Ok(Freed { owner: Some(old.id), files, bytes: old.size })
}

pub(super) fn find(connection: &Connection, key: &str) -> rusqlite::Result<Option<Object>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM object WHERE key = ?1"))?
        .query_row([key], object)
        .optional()
}

fn object(row: &Row<'_>) -> rusqlite::Result<Object> {
    Ok(Object {
        key: row.get(0)?,
        id: BlobId(row.get(1)?),
        parts: row.get(2)?,
        size: row.get(3)?,
        sha256: Sha256(row.get(4)?),
        checksum: checksum(row.get(5)?),
        meta: row.get(6)?,
        modified_ms: row.get(7)?,
    })
}

pub(super) fn checksum(text: Option<String>) -> Option<Checksum> {
    text.and_then(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_objects_of_many_parts_are_removed_a_bounded_number_of_rows_at_a_time() {
        let mut sql = Connection::open_in_memory().unwrap();
        sql.execute_batch(super::super::SCHEMA).unwrap();
        const MOST: usize = limits::EXPIRE;
        let parts = [MOST, 0, 1, MOST - 1, MOST / 2, 0, MOST / 2 + 1];
        for (n, parts) in parts.iter().enumerate() {
            let id = [n as u8; 16];
            let row = "INSERT INTO object VALUES (?1, ?2, ?3, 1, zeroblob(32), NULL, NULL, 5)";
            sql.execute(row, params![n.to_string(), id, parts]).unwrap();
            let part = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?2)
                INSERT INTO part SELECT ?1, n, randomblob(16), 1, zeroblob(32), NULL, 5 FROM n WHERE ?2 > 0";
            sql.execute(part, params![id, parts]).unwrap();
        }
        let mut keys: Vec<_> = (0..parts.len()).map(|n| n.to_string()).chain(["none".into()]).collect();
        let mut steps = Vec::new();
        while !keys.is_empty() {
            let savepoint = sql.savepoint().unwrap();
            let (freed, rest) = delete(&savepoint, keys).unwrap();
            savepoint.commit().unwrap();
            steps.push(freed.len());
            let files: usize = freed.iter().map(|freed| freed.files.len()).sum();
            assert!(files < 2 * MOST, "{files} in one step");
            keys = rest;
        }
        // The last key has no object.
        assert_eq!(steps, [1, 3, 3, 0]);
        let left = "SELECT (SELECT count(*) FROM object) + (SELECT count(*) FROM part)";
        assert_eq!(sql.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    }
}

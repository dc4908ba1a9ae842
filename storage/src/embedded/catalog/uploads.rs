//! Rows of uploads in parts: begun, filled, and ended in one transaction.

use millpond_protocol::Sha256;
use rusqlite::{Connection, OptionalExtension as _, Row, Savepoint, params};

use super::super::blobs::BlobId;
use super::super::checksum::{Algorithm, Checksum, Cover, Plan};
use super::super::parts::{Unfit, Wish};
use super::objects::{Object, checksum, find, replace};
use super::{Catalog, CatalogError, Check, Freed, LAST};
use crate::limits::embedded as limits;

/// An upload that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Upload {
    pub(in super::super) id: BlobId,
    pub(in super::super) key: String,
    /// The checksum that the object will have, if the client wants one.
    pub(in super::super) plan: Option<Plan>,
    /// What the client keeps with the object, as JSON.
    pub(in super::super) meta: Option<String>,
    pub(in super::super) started_ms: i64,
}

/// One part of an upload, or of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Part {
    pub(in super::super) n: u32,
    pub(in super::super) file: BlobId,
    pub(in super::super) size: u64,
    pub(in super::super) sha256: Sha256,
    /// By the algorithm of the upload's plan.
    pub(in super::super) checksum: Option<Vec<u8>>,
    pub(in super::super) modified_ms: i64,
}

/// What an upload became, as its client is told, once or again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Completed {
    pub(in super::super) parts: u32,
    pub(in super::super) sha256: Sha256,
    pub(in super::super) checksum: Option<Checksum>,
}

/// An upload that is to become an object.
pub(in super::super) struct Finished {
    pub(in super::super) id: BlobId,
    pub(in super::super) key: String,
    pub(in super::super) wish: Wish,
    pub(in super::super) check: Option<Check>,
    pub(in super::super) now_ms: i64,
}

/// What became of that.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Ended {
    /// It is the object, now or since an earlier request.
    Done(Completed, Vec<Freed>),
    /// The check did not hold, and nothing was changed; whether there is an object.
    Unmet(bool),
    /// The parts are not what the request says, and nothing was changed.
    Unfit(Unfit),
    /// There is no such upload.
    Unknown,
}

/// What one step of a sweep did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Expired {
    /// Of each upload that was ended.
    pub(in super::super) freed: Vec<Freed>,
    /// Completed uploads that were forgotten.
    pub(in super::super) forgotten: usize,
}

const UPLOAD: &str = "id, key, algorithm, full_object, meta, started_ms";
const PART: &str = "n, file, size, sha256, checksum, modified_ms";

impl Catalog {
    /// Begins an upload; returns once that is on disk. `false`: there are `most` of keys that begin like this one, up to its
    /// last `/`.
    pub(in super::super) async fn begin(&self, upload: Upload, most: usize) -> Result<bool, CatalogError> {
        self.change(move |transaction| {
            let prefix = upload.key.rfind('/').map_or("", |at| &upload.key[..=at]);
            let open: usize = transaction
                .prepare_cached("SELECT count(*) FROM upload WHERE key BETWEEN ?1 AND ?2")?
                .query_row(params![prefix, format!("{prefix}{LAST}")], |row| row.get(0))?;
            if open >= most {
                return Ok(false);
            }
            transaction
                .prepare_cached(&format!("INSERT INTO upload ({UPLOAD}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"))?
                .execute(params![
                    upload.id.0,
                    upload.key,
                    upload.plan.map(|plan| plan.algorithm.name()),
                    upload.plan.is_some_and(|plan| plan.cover == Cover::FullObject),
                    upload.meta,
                    upload.started_ms,
                ])?;
            Ok(true)
        })
        .await
    }

    /// Adds a part, or puts it in the place of the one with its number; returns once that is on disk. `None`: there is no
    /// such upload (any more).
    pub(in super::super) async fn add_part(
        &self,
        id: BlobId,
        key: String,
        part: Part,
    ) -> Result<Option<Freed>, CatalogError> {
        self.change(move |transaction| {
            if upload(transaction, id, &key)?.is_none() {
                return Ok(None);
            }
            let old = transaction
                .prepare_cached("SELECT file, size FROM part WHERE upload = ?1 AND n = ?2")?
                .query_row(params![id.0, part.n], |row| {
                    Ok(Freed { owner: None, files: vec![BlobId(row.get(0)?)], bytes: row.get(1)? })
                })
                .optional()?;
            transaction
                .prepare_cached(&format!(
                    "INSERT OR REPLACE INTO part (upload, {PART}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
                ))?
                .execute(params![
                    id.0,
                    part.n,
                    part.file.0,
                    part.size,
                    part.sha256.0,
                    part.checksum,
                    part.modified_ms
                ])?;
            Ok(Some(old.unwrap_or_default()))
        })
        .await
    }

    /// Makes an upload the object of its key; returns once that is on disk.
    pub(in super::super) async fn complete(&self, finished: Finished) -> Result<Ended, CatalogError> {
        self.change(move |transaction| complete(transaction, finished)).await
    }

    /// Ends an upload without an object; returns what is nobody's any more once that is on disk. `None`: there is no such
    /// upload.
    pub(in super::super) async fn abort(
        &self,
        id: BlobId,
        key: String,
    ) -> Result<Option<Freed>, CatalogError> {
        self.change(move |transaction| match upload(transaction, id, &key)? {
            Some(_) => drop_upload(transaction, id).map(Some),
            None => Ok(None),
        })
        .await
    }

    /// Ends some of the uploads to which nothing has come since `idle_ms`, and forgets some of what was completed before
    /// `ended_ms`, so many rows that others do not wait for long. To be repeated until it did nothing.
    pub(in super::super) async fn expire(
        &self,
        idle_ms: i64,
        ended_ms: i64,
    ) -> Result<Expired, CatalogError> {
        self.change(move |transaction| expire(transaction, idle_ms, ended_ms)).await
    }

    /// An upload that has not ended. Blocks.
    pub(in super::super) fn upload(&self, id: BlobId, key: &str) -> Result<Option<Upload>, CatalogError> {
        self.read(|connection| upload(connection, id, key))
    }

    /// Up to `limit` parts of an upload or of an object, with numbers above `after`. Blocks.
    pub(in super::super) fn parts(
        &self,
        id: BlobId,
        after: u32,
        limit: usize,
    ) -> Result<Vec<Part>, CatalogError> {
        self.read(|connection| parts(connection, id, after, limit))
    }

    /// Up to `limit` uploads whose keys start with `prefix` and that come after (key, id), in that order. Blocks.
    pub(in super::super) fn uploads(
        &self,
        prefix: &str,
        after: (&str, Option<BlobId>),
        limit: usize,
    ) -> Result<Vec<Upload>, CatalogError> {
        // Without an id, after all of the key.
        let id = after.1.map_or_else(|| vec![0xff; 17], |id| id.0.to_vec());
        self.read(|connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT {UPLOAD} FROM upload
                 WHERE (key, id) > (?1, ?2) AND key BETWEEN ?3 AND ?4 ORDER BY key, id LIMIT ?5"
            ))?;
            let last = format!("{prefix}{LAST}");
            query.query_map(params![after.0, id, prefix, last, limit], read_upload)?.collect()
        })
    }
}

fn complete(transaction: &Savepoint<'_>, finished: Finished) -> rusqlite::Result<Ended> {
    let Finished { id, key, wish, check, now_ms } = finished;
    let Some(upload) = upload(transaction, id, &key)? else {
        return Ok(match completed(transaction, id, &key)? {
            Some(completed) if wish.made(completed.parts, completed.sha256) => {
                Ended::Done(completed, Vec::new())
            }
            Some(_) => Ended::Unfit(Unfit::Part(0)),
            None => Ended::Unknown,
        });
    };
    let stored = parts(transaction, id, 0, limits::PARTS as usize)?;
    let whole = match wish.assemble(&stored, upload.plan) {
        Ok(whole) => whole,
        Err(unfit) => return Ok(Ended::Unfit(unfit)),
    };
    let old = find(transaction, &key)?;
    if check.is_some_and(|holds| !holds(old.as_ref())) {
        return Ok(Ended::Unmet(old.is_some()));
    }
    let object = Object {
        key,
        id,
        parts: whole.parts,
        size: whole.size,
        sha256: whole.sha256,
        checksum: whole.checksum.clone(),
        meta: upload.meta,
        modified_ms: now_ms,
    };
    let mut freed = vec![replace(transaction, old, &object)?];
    for part in whole.unused {
        transaction
            .prepare_cached("DELETE FROM part WHERE upload = ?1 AND n = ?2")?
            .execute(params![id.0, part.n])?;
        freed.push(Freed { owner: None, files: vec![part.file], bytes: part.size });
    }
    transaction.prepare_cached("DELETE FROM upload WHERE id = ?1")?.execute([id.0])?;
    transaction
        .prepare_cached(
            "INSERT INTO completed (id, key, parts, sha256, checksum, ended_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            id.0,
            object.key,
            whole.parts,
            whole.sha256.0,
            whole.checksum.as_ref().map(ToString::to_string),
            now_ms
        ])?;
    let completed = Completed { parts: whole.parts, sha256: whole.sha256, checksum: whole.checksum };
    Ok(Ended::Done(completed, freed))
}

fn expire(transaction: &Savepoint<'_>, idle_ms: i64, ended_ms: i64) -> rusqlite::Result<Expired> {
    let forgotten = transaction
        .prepare_cached(
            "DELETE FROM completed WHERE id IN (SELECT id FROM completed WHERE ended_ms < ?1 LIMIT ?2)",
        )?
        .execute(params![ended_ms, limits::EXPIRE])?;
    let (mut idle, mut parts) = (Vec::new(), 0);
    let mut query = transaction.prepare_cached(
        "SELECT id, (SELECT count(*) FROM part WHERE upload = id) FROM upload WHERE started_ms < ?1
         AND NOT EXISTS (SELECT 1 FROM part WHERE upload = id AND modified_ms >= ?1) LIMIT ?2",
    )?;
    let mut rows = query.query(params![idle_ms, limits::EXPIRE])?;
    while let Some(row) = rows.next()? {
        parts += row.get::<_, usize>(1)?;
        // One of them may have as many by itself.
        if parts > limits::EXPIRE && !idle.is_empty() {
            break;
        }
        idle.push(BlobId(row.get(0)?));
    }
    let freed = idle.into_iter().map(|id| drop_upload(transaction, id)).collect::<Result<_, _>>()?;
    Ok(Expired { freed, forgotten })
}

fn drop_upload(transaction: &Savepoint<'_>, id: BlobId) -> rusqlite::Result<Freed> {
    transaction.prepare_cached("DELETE FROM upload WHERE id = ?1")?.execute([id.0])?;
    let mut freed = Freed::default();
    let mut query = transaction.prepare_cached("DELETE FROM part WHERE upload = ?1 RETURNING file, size")?;
    let mut rows = query.query([id.0])?;
    while let Some(row) = rows.next()? {
        freed.files.push(BlobId(row.get(0)?));
        freed.bytes += row.get::<_, u64>(1)?;
    }
    Ok(freed)
}

fn upload(connection: &Connection, id: BlobId, key: &str) -> rusqlite::Result<Option<Upload>> {
    connection
        .prepare_cached(&format!("SELECT {UPLOAD} FROM upload WHERE id = ?1 AND key = ?2"))?
        .query_row(params![id.0, key], read_upload)
        .optional()
}

fn completed(connection: &Connection, id: BlobId, key: &str) -> rusqlite::Result<Option<Completed>> {
    connection
        .prepare_cached("SELECT parts, sha256, checksum FROM completed WHERE id = ?1 AND key = ?2")?
        .query_row(params![id.0, key], |row| {
            Ok(Completed { parts: row.get(0)?, sha256: Sha256(row.get(1)?), checksum: checksum(row.get(2)?) })
        })
        .optional()
}

fn parts(connection: &Connection, id: BlobId, after: u32, limit: usize) -> rusqlite::Result<Vec<Part>> {
    connection
        .prepare_cached(&format!("SELECT {PART} FROM part WHERE upload = ?1 AND n > ?2 ORDER BY n LIMIT ?3"))?
        .query_map(params![id.0, after, limit], |row| {
            Ok(Part {
                n: row.get(0)?,
                file: BlobId(row.get(1)?),
                size: row.get(2)?,
                sha256: Sha256(row.get(3)?),
                checksum: row.get(4)?,
                modified_ms: row.get(5)?,
            })
        })?
        .collect()
}

fn read_upload(row: &Row<'_>) -> rusqlite::Result<Upload> {
    let algorithm: Option<String> = row.get(2)?;
    let cover = if row.get(3)? { Cover::FullObject } else { Cover::Composite };
    Ok(Upload {
        id: BlobId(row.get(0)?),
        key: row.get(1)?,
        plan: algorithm.and_then(|name| Algorithm::named(&name)).map(|algorithm| Plan { algorithm, cover }),
        meta: row.get(4)?,
        started_ms: row.get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls for each number up to ?2.
    const NUMBERS: &str = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?2)";

    #[test]
    fn what_was_abandoned_is_ended_a_bounded_number_of_rows_at_a_time() {
        let mut sql = Connection::open_in_memory().unwrap();
        sql.execute_batch(super::super::SCHEMA).unwrap();
        let begin = |upload: u8, parts: usize, at: i64| {
            let id = [upload; 16];
            sql.execute("INSERT INTO upload VALUES (?1, 'k', NULL, 0, NULL, 5)", [id]).unwrap();
            let part = format!(
                "{NUMBERS} INSERT INTO part SELECT ?1, n, randomblob(16), 1, zeroblob(32), NULL, ?3 FROM n WHERE ?2 > 0"
            );
            sql.execute(&part, params![id, parts, at]).unwrap();
        };
        const MOST: usize = limits::EXPIRE;
        let abandoned = [MOST, 1, MOST - 1, MOST / 2, MOST / 2, 7, 0];
        (0..).zip(abandoned).for_each(|(upload, parts)| begin(upload, parts, 5));
        // To this one a part came later.
        begin(99, 1, 6);
        let completed = format!(
            "{NUMBERS} INSERT INTO completed SELECT randomblob(16), 'k', 1, zeroblob(32), ?1, 5 FROM n"
        );
        sql.execute(&completed, params![None::<String>, MOST + 3]).unwrap();
        let (mut uploads, mut forgotten) = (Vec::new(), Vec::new());
        loop {
            let savepoint = sql.savepoint().unwrap();
            let step = expire(&savepoint, 6, 6).unwrap();
            savepoint.commit().unwrap();
            if step == Expired::default() {
                break;
            }
            let parts: Vec<_> = step.freed.iter().map(|freed| freed.files.len()).collect();
            assert!(parts.iter().sum::<usize>() <= MOST, "{parts:?} in one step");
            uploads.extend(parts);
            forgotten.push(step.forgotten);
        }
        assert_eq!(uploads, abandoned);
        assert_eq!(&forgotten[..3], [MOST, 3, 0]);
        let left = "SELECT (SELECT count(*) FROM upload) + (SELECT count(*) FROM part)";
        assert_eq!(sql.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 2);
    }
}

//! Objects: what storage lists beside what the ledger knows, both in order of their keys.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use millpond_protocol::{Refusal, Sha256};
use millpond_storage::{Begun, Error, ObjectKey};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Check, Done, Stopped};
use crate::ledger::Result;

/// Rows read in one go.
const PAGE: usize = 1_000;
/// Between two words about one long object.
const WORD: Duration = Duration::from_secs(1);

/// An object's row.
#[derive(Debug, Clone)]
struct Row {
    key: String,
    state: String,
    size: u64,
    sha256: Sha256,
}

impl Check {
    pub(super) async fn objects(&mut self, deep: bool) -> Done<()> {
        let (count, bytes): (u64, u64) = self
            .ledger
            .read(|sql| {
                let query = "SELECT count(*), coalesce(sum(size), 0) FROM objects WHERE state = 'live'";
                Ok(sql.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
            })
            .await?;
        let (mut rows, mut last_row): (VecDeque<Row>, _) = (VecDeque::new(), Some(String::new()));
        let (mut listed, mut last_listed) = (VecDeque::new(), Some(String::new()));
        loop {
            // Storage first: what is new there while the rows are read has a row by then.
            if listed.is_empty()
                && let Some(after) = last_listed.take()
            {
                listed.extend(self.storage.list(&after).await.map_err(away)?);
                last_listed = listed.back().map(|object: &millpond_storage::Listed| object.key.clone());
                self.progress("objects", self.end.objects, Some(count)).await?;
            }
            if rows.is_empty()
                && let Some(after) = last_row.take()
            {
                rows.extend(self.ledger.read(move |sql| page(sql, &after)).await?);
                last_row = rows.back().map(|row| row.key.clone());
            }
            match (rows.front(), listed.front()) {
                (None, None) => return Ok(()),
                (Some(row), Some(object)) if row.key == object.key => {
                    let size = object.size;
                    listed.pop_front();
                    if let Some(row) = rows.pop_front() {
                        self.both(row, size, deep, bytes).await?;
                    }
                }
                (Some(row), object) if object.is_none_or(|object| row.key < object.key) => {
                    if let Some(row) = rows.pop_front() {
                        self.missing(row).await?;
                    }
                }
                (_, Some(_)) => {
                    if let Some(object) = listed.pop_front() {
                        self.unknown(object.key, object.size).await?;
                    }
                }
                (Some(_), None) => {}
            }
        }
    }

    /// An object that both know.
    async fn both(&mut self, row: Row, size: u64, deep: bool, of: u64) -> Done<()> {
        match row.state.as_str() {
            "live" => {}
            "gone" => return self.unknown(row.key, size).await,
            // On its way in or out: anything may be there.
            _ => return Ok(()),
        }
        self.end.objects += 1;
        if size != row.size {
            let what = format!("storage has {size} bytes of it, the ledger says {}", row.size);
            return self.differs("object-size", row.key, what).await;
        }
        if deep { self.bytes(row, of).await } else { Ok(()) }
    }

    /// Reads an object whole.
    async fn bytes(&mut self, row: Row, of: u64) -> Done<()> {
        let Ok(key) = row.key.parse::<ObjectKey>() else {
            return self.differs("object-key", row.key, "it is no key of ours").await;
        };
        let (tell, before, mut said) = (self.tell.clone(), self.end.bytes, Instant::now());
        let read = self.storage.hash(&key, |read| {
            if said.elapsed() >= WORD {
                said = Instant::now();
                let progress =
                    super::Progress { step: "bytes".to_owned(), done: before + read, of: Some(of) };
                // A word that finds no room is not missed.
                let _ = tell.try_send(super::Line::Progress(progress));
            }
        });
        match read.await {
            Ok((size, sha256)) => {
                self.end.read += 1;
                self.end.bytes += size;
                if (size, sha256) != (row.size, row.sha256) {
                    let what = format!(
                        "it has {size} bytes of {sha256}, the ledger says {} of {}",
                        row.size, row.sha256
                    );
                    self.differs("object-hash", row.key, what).await?;
                }
                self.progress("bytes", self.end.bytes, Some(of)).await
            }
            Err(Error::NotFound) => self.missing(row).await,
            Err(error) => {
                // Storage may be away, or this object may be what it cannot read: if it answers, the second.
                self.storage.stat(&key).await.map_err(away)?;
                self.differs("object-unreadable", row.key, error.to_string()).await
            }
        }
    }

    /// The ledger knows it and storage does not list it.
    async fn missing(&mut self, row: Row) -> Done<()> {
        if row.state != "live" {
            return Ok(());
        }
        self.end.objects += 1;
        // It may have come after the listing, or gone with its row.
        let Ok(key) = row.key.parse::<ObjectKey>() else {
            return self.differs("object-key", row.key, "it is no key of ours").await;
        };
        let there = self.storage.stat(&key).await.map_err(away)?;
        if there.is_some_and(|there| there.size == row.size)
            || self.state(&row.key).await?.as_deref() != Some("live")
        {
            return Ok(());
        }
        let what = format!("storage does not have it; it has {} bytes", row.size);
        self.differs("object-missing", row.key, what).await
    }

    /// Storage lists it, and the ledger does not know it or thinks that it is deleted.
    async fn unknown(&mut self, key: String, size: u64) -> Done<()> {
        let state = self.state(&key).await?;
        if !matches!(state.as_deref(), None | Some("gone")) {
            return Ok(());
        }
        // A test object, or one that was deleted while the listing was made, is gone by now.
        if let Ok(key) = key.parse::<ObjectKey>()
            && self.storage.stat(&key).await.map_err(away)?.is_none()
        {
            return Ok(());
        }
        match state {
            None => self.differs("object-unknown", key, format!("unknown to the ledger, {size} bytes")).await,
            Some(_) => {
                self.differs("object-again", key, format!("it was deleted and is there again, {size} bytes"))
                    .await
            }
        }
    }

    /// Uploads in parts that no row names and that have parts: nobody would ever give them up. One without any may just have been
    /// begun.
    pub(super) async fn uploads_in_parts(&mut self) -> Done<()> {
        let mut last = None;
        loop {
            let (page, next) = match self.storage.list_uploads(last.as_ref()).await {
                Ok(listed) => listed,
                Err(error) if error.is_temporary() => return Err(away(error)),
                Err(error) => {
                    let about = "uploads in parts".to_owned();
                    return self
                        .differs("upload-unlisted", about, format!("storage does not list them: {error}"))
                        .await;
                }
            };
            for upload in page {
                if let Some(bytes) = self.nobodys(&upload).await? {
                    let what =
                        format!("no row names its upload in parts {}, which has {bytes} bytes", upload.id);
                    self.differs("upload-unknown", upload.key, what).await?;
                }
            }
            if next.is_none() {
                return Ok(());
            }
            last = next;
        }
    }

    /// The bytes of an upload in parts, if it has any and no row names it.
    async fn nobodys(&self, upload: &Begun) -> Done<Option<u64>> {
        let (key, id) = (upload.key.clone(), upload.id.clone());
        let named = self.ledger.read(move |sql| {
            let query =
                "SELECT EXISTS (SELECT 1 FROM objects WHERE key = ?1 AND multipart = ?2 AND state <> 'gone')";
            Ok(sql.prepare_cached(query)?.query_row([&key, &id], |row| row.get::<_, bool>(0))?)
        });
        if named.await? {
            return Ok(None);
        }
        let (Ok(key), Ok(id)) = (upload.key.parse(), upload.id.parse()) else { return Ok(Some(0)) };
        match self.storage.list_parts(&key, &id).await {
            Ok(parts) if parts.is_empty() => Ok(None),
            Ok(parts) => Ok(Some(parts.iter().map(|part| part.size).sum())),
            // It has ended meanwhile.
            Err(Error::NoUpload) => Ok(None),
            Err(error) => Err(away(error)),
        }
    }

    async fn state(&self, key: &str) -> Done<Option<String>> {
        let key = key.to_owned();
        let read = move |sql: &Connection| {
            let found = sql
                .prepare_cached("SELECT state FROM objects WHERE key = ?1")?
                .query_row([&key], |row| row.get(0))
                .optional()?;
            Ok(found)
        };
        Ok(self.ledger.read(read).await?)
    }
}

fn away(error: Error) -> Stopped {
    Stopped::Refused(Refusal::unavailable(format!("storage: {error}")))
}

fn page(sql: &Connection, after: &str) -> Result<Vec<Row>> {
    let mut statement = sql.prepare_cached(
        "SELECT key, state, size, sha256 FROM objects WHERE key > ?1 ORDER BY key LIMIT ?2",
    )?;
    let rows = statement.query_map(params![after, PAGE], |row| {
        Ok(Row { key: row.get(0)?, state: row.get(1)?, size: row.get(2)?, sha256: Sha256(row.get(3)?) })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

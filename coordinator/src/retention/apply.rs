//! What is due, done: small jobs of the ledger, one after the other, with rests in between.
//!
//! Every job looks at the rows again and asks the plan again, so what was found due a moment ago and is needed now (a
//! retry, a roll-back, another policy) stays. What has begun is marked first: whoever asks from then on is told that it is
//! not kept, and an end in the middle is taken up by the next run. Objects are doomed here and deleted by the sweep.

use std::time::{Duration, Instant};

use millpond_protocol::{Refusal, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::json;

use super::Collected;
use super::plan::{self, PoolRows};
use super::rows::{self, Stage, Task};
use crate::ledger::{Ledger, PoolId, Result, Tx, row_id};

/// Rows that one job deletes, and bytes: what waits behind it waits some milliseconds.
const ROWS: usize = 1_000;
const BYTES: u64 = 4 << 20;
/// Uploads that one look at a batch reads.
const SCAN: usize = 4_000;
/// After a job as many times as long as it took is left to others, at most [`REST_MAX`].
const REST: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(1);

type Done<T> = std::result::Result<T, Refusal>;

/// A run's hands in one pool.
pub(super) struct Hands<'a> {
    pub ledger: &'a Ledger,
    pub now: Timestamp,
    pub pool: PoolId,
    /// Rows that may still be changed.
    pub rows: usize,
    /// When the run ends whatever is left, if it has changed anything by then: every run gets on.
    pub until: Instant,
    pub moved: bool,
    pub done: &'a mut Collected,
}

impl Hands<'_> {
    /// Whether the rest has to wait for the next run.
    pub(super) fn spent(&self) -> bool {
        self.rows == 0 || (self.moved && Instant::now() >= self.until)
    }

    async fn write<T, F>(&mut self, rows: usize, job: F) -> Done<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    {
        let started = Instant::now();
        let written = self.ledger.write(job).await?;
        self.rows = self.rows.saturating_sub(rows.max(1));
        self.moved = true;
        tokio::time::sleep((started.elapsed() * REST).min(REST_MAX)).await;
        Ok(written)
    }

    /// Does one thing, as far as it may go in this run.
    pub(super) async fn task(&mut self, task: Task) -> Done<()> {
        match task {
            Task::Expire { id, .. } => self.expire(id).await,
            Task::Forget { id, .. } => self.forget(id).await,
            Task::Result { object, .. } => self.result(object).await,
            Task::Story { round } => self.story(round).await,
            Task::Rejected { last } => self.rejected(last).await,
        }
    }

    /// Payloads and objects of a batch.
    async fn expire(&mut self, id: i64) -> Done<()> {
        let (pool, now) = (self.pool, self.now);
        let begun = self.write(1, move |tx| begin_to_expire(tx, pool, id, now)).await?;
        if !begun {
            return Ok(());
        }
        let parts = self.ledger.read(move |sql| parts(sql, id)).await?;
        for part in &parts {
            let (part, mut after) = (*part, 0);
            loop {
                let page = self.ledger.read(move |sql| held(sql, part, after)).await?;
                let Some(last) = page.last() else { break };
                after = last.seq;
                let payloads: Vec<_> =
                    page.iter().filter(|held| held.payload).map(|held| (held.seq, held.size)).collect();
                let objects: Vec<_> =
                    page.iter().filter_map(|held| Some((held.object?, held.size))).collect();
                let looked_only = payloads.is_empty() && objects.is_empty();
                self.payloads(payloads).await?;
                self.objects(objects).await?;
                // The next run looks from the beginning: a run that only looked would not have got on.
                if !looked_only && self.spent() {
                    return Ok(());
                }
            }
        }
        loop {
            let objects = self.ledger.read(move |sql| packs_and_manifest(sql, pool, id)).await?;
            if objects.is_empty() {
                break;
            }
            self.objects(objects).await?;
        }
        self.done.batches += 1;
        self.write(1, move |tx| stage(tx, id, "expiring", "expired")).await
    }

    async fn payloads(&mut self, payloads: Vec<(i64, u64)>) -> Done<()> {
        for chunk in chunks(&payloads) {
            self.done.payloads += chunk.len() as u64;
            self.done.bytes += chunk.iter().map(|(_, size)| size).sum::<u64>();
            let chunk = chunk.to_vec();
            self.write(chunk.len(), move |tx| {
                let mut delete = tx.sql().prepare_cached("DELETE FROM payloads WHERE seq = ?1")?;
                chunk.iter().try_for_each(|(seq, _)| delete.execute([seq]).map(drop))?;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn objects(&mut self, objects: Vec<(i64, u64)>) -> Done<()> {
        for chunk in objects.chunks(ROWS) {
            let chunk = chunk.to_vec();
            let (count, bytes) = self
                .write(chunk.len(), move |tx| {
                    let (mut count, mut bytes) = (0, 0);
                    for (object, size) in chunk {
                        if doom(tx, object)? {
                            (count, bytes) = (count + 1, bytes + size);
                        }
                    }
                    Ok((count, bytes))
                })
                .await?;
            self.done.objects += count;
            self.done.bytes += bytes;
        }
        Ok(())
    }

    /// The rows of a batch's uploads, and what else was kept for them.
    async fn forget(&mut self, id: i64) -> Done<()> {
        let now = self.now;
        let begun = self
            .write(1, move |tx| {
                let Some((batch, found)) = rows::batch(tx.sql(), id)? else { return Ok(false) };
                match found {
                    Stage::Expired(since) if plan::keys(batch.batch, since, now).is_due() => {
                        stage(tx, id, "expired", "forgetting")?;
                        Ok(true)
                    }
                    Stage::Forgetting(_) => Ok(true),
                    Stage::Kept | Stage::Expiring(_) | Stage::Expired(_) | Stage::Forgotten => Ok(false),
                }
            })
            .await?;
        if !begun {
            return Ok(());
        }
        for part in self.ledger.read(move |sql| parts(sql, id)).await? {
            let page = format!("SELECT seq FROM uploads WHERE batch_id = {part} ORDER BY seq LIMIT {ROWS}");
            if !self.forget_uploads(page).await? {
                return Ok(());
            }
            for table in ["batch_members", "packs"] {
                let key = if table == "packs" { "n" } else { "member_id" };
                let delete = format!(
                    "DELETE FROM {table} WHERE batch_id = ?1 AND {key} IN \
                     (SELECT {key} FROM {table} WHERE batch_id = ?1 LIMIT {ROWS})"
                );
                loop {
                    let delete = delete.clone();
                    let deleted =
                        self.write(ROWS, move |tx| Ok(tx.sql().prepare_cached(&delete)?.execute([part])?));
                    if deleted.await? < ROWS {
                        break;
                    }
                }
            }
        }
        self.write(1, move |tx| stage(tx, id, "forgetting", "forgotten")).await
    }

    /// Deletes uploads that `page` finds, until it finds none; false: the run ended before.
    async fn forget_uploads(&mut self, page: String) -> Done<bool> {
        loop {
            let query = page.clone();
            let seqs: Vec<i64> = self
                .ledger
                .read(move |sql| {
                    let mut statement = sql.prepare(&query)?;
                    let rows = statement.query_map([], |row| row.get(0))?;
                    Ok(rows.collect::<rusqlite::Result<_>>()?)
                })
                .await?;
            if seqs.is_empty() {
                return Ok(true);
            }
            self.done.uploads += seqs.len() as u64;
            self.write(seqs.len(), move |tx| {
                for table in ["superseded", "uploads"] {
                    let mut delete =
                        tx.sql().prepare_cached(&format!("DELETE FROM {table} WHERE seq = ?1"))?;
                    seqs.iter().try_for_each(|seq| delete.execute([seq]).map(drop))?;
                }
                Ok(())
            })
            .await?;
            if self.spent() {
                return Ok(false);
            }
        }
    }

    /// The rows of rejected uploads up to `last`.
    async fn rejected(&mut self, last: i64) -> Done<()> {
        let first = row_id(self.pool, 0);
        let page = format!(
            "SELECT seq FROM uploads WHERE batch_id IS NULL AND seq > {first} AND seq <= {last} ORDER BY seq LIMIT {ROWS}"
        );
        self.forget_uploads(page).await.map(drop)
    }

    /// The bytes of a result: every version of the object goes at once.
    async fn result(&mut self, object: i64) -> Done<()> {
        let (pool, now) = (self.pool, self.now);
        let gone = self
            .write(1, move |tx| {
                let rows = rows::pool(tx.sql(), pool)?;
                let versions = rows::results(tx.sql(), pool)?;
                let verdicts = plan::results(&rows, &versions, now);
                let of_object = || versions.iter().zip(&verdicts).filter(|(row, _)| row.object == object);
                if of_object().next().is_none() || !of_object().all(|(_, verdict)| verdict.is_due()) {
                    return Ok(None);
                }
                for (row, _) in of_object() {
                    tx.sql()
                        .prepare_cached(
                            "UPDATE results SET expired = ?3, data = NULL WHERE pool_id = ?1 AND version = ?2",
                        )?
                        .execute(params![pool, row.version, now.as_millis()])?;
                    tell(tx, pool, &rows, "result-expired", &json!({"version": row.version}))?;
                }
                doom(tx, object)?;
                let size: u64 = tx
                    .sql()
                    .prepare_cached("SELECT size FROM objects WHERE id = ?1")?
                    .query_row([object], |row| row.get(0))?;
                Ok(Some((of_object().count() as u64, size)))
            })
            .await?;
        if let Some((versions, size)) = gone {
            self.done.results += versions;
            self.done.objects += 1;
            self.done.bytes += size;
        }
        Ok(())
    }

    /// Attempts, log, deliveries and `round.json` of a round; `round.json` goes last.
    async fn story(&mut self, round: u64) -> Done<()> {
        let (pool, now) = (self.pool, self.now);
        for (table, which) in [
            ("round_logs", "pool_id = ?1 AND round = ?2"),
            (
                "deliveries",
                "pool_id = ?1 AND version IN (SELECT version FROM results WHERE pool_id = ?1 AND round = ?2)",
            ),
        ] {
            // A piece of a log has up to 64 KiB.
            let (key, most) =
                if table == "round_logs" { ("rowid", 64) } else { ("(version, member_id)", ROWS) };
            let columns = key.trim_matches(['(', ')']);
            let delete = format!(
                "DELETE FROM {table} WHERE {which} AND {key} IN (SELECT {columns} FROM {table} WHERE {which} LIMIT {most})"
            );
            loop {
                let delete = delete.clone();
                let deleted = self
                    .write(most, move |tx| {
                        if !story_is_due(tx, pool, round, now)? {
                            return Ok(0);
                        }
                        Ok(tx.sql().prepare_cached(&delete)?.execute(params![pool, round])?)
                    })
                    .await?;
                if deleted < most {
                    break;
                }
                if self.spent() {
                    return Ok(());
                }
            }
        }
        let ended = self
            .write(1, move |tx| {
                if !story_is_due(tx, pool, round, now)? {
                    return Ok(None);
                }
                tx.sql()
                    .prepare_cached("DELETE FROM attempts WHERE pool_id = ?1 AND round = ?2")?
                    .execute(params![pool, round])?;
                let object: Option<i64> = tx
                    .sql()
                    .prepare_cached(
                        "UPDATE rounds SET expired = ?3, params = NULL, ref = NULL WHERE pool_id = ?1 AND round = ?2 \
                         RETURNING story_object",
                    )?
                    .query_row(params![pool, round, now.as_millis()], |row| row.get(0))?;
                let doomed = object.map(|object| doom(tx, object)).transpose()?;
                Ok(Some(u64::from(doomed == Some(true))))
            })
            .await?;
        if let Some(objects) = ended {
            self.done.rounds += 1;
            self.done.objects += objects;
        }
        Ok(())
    }

    /// Events that are older than the policy keeps them.
    pub(super) async fn events(&mut self, rows: &PoolRows) -> Done<()> {
        let keeps = Duration::from_secs(rows.policy.keep_events_s);
        let (pool, before) = (self.pool, self.now.before(keeps));
        loop {
            let found = self.ledger.read(move |sql| old_events(sql, pool, before)).await?;
            let Some((last, count)) = found else { return Ok(()) };
            self.done.events += count as u64;
            self.write(count, move |tx| {
                tx.sql()
                    .prepare_cached("DELETE FROM events WHERE pool_id = ?1 AND seq <= ?2")?
                    .execute(params![pool, last])?;
                Ok(())
            })
            .await?;
            if self.spent() {
                return Ok(());
            }
        }
    }
}

/// Marks a batch and what was carried into it, if its bytes are due or were begun.
fn begin_to_expire(tx: &mut Tx<'_>, pool: PoolId, id: i64, now: Timestamp) -> Result<bool> {
    let Some((batch, found)) = rows::batch(tx.sql(), id)? else { return Ok(false) };
    let rows = rows::pool(tx.sql(), pool)?;
    match found {
        Stage::Kept if plan::uploads(&rows, &batch, now).is_due() => {}
        Stage::Expiring(_) => return Ok(true),
        Stage::Kept | Stage::Expired(_) | Stage::Forgetting(_) | Stage::Forgotten => return Ok(false),
    }
    stage(tx, id, "kept", "expiring")?;
    tx.sql()
        .prepare_cached("UPDATE batches SET expired = ?2 WHERE id = ?1 OR carried_into = ?1")?
        .execute(params![id, now.as_millis()])?;
    let round = batch.sealed.map(|sealed| sealed.round);
    tell(tx, pool, &rows, "batch-expired", &json!({"batch": batch.batch, "round": round}))?;
    Ok(true)
}

fn stage(tx: &Tx<'_>, id: i64, from: &str, to: &str) -> Result<()> {
    tx.sql()
        .prepare_cached(
            "UPDATE batches SET retention = ?3 WHERE (id = ?1 OR carried_into = ?1) AND retention = ?2",
        )?
        .execute(params![id, from, to])?;
    Ok(())
}

/// An event, unless there is nobody left to read it.
fn tell(tx: &mut Tx<'_>, pool: PoolId, rows: &PoolRows, kind: &str, body: &serde_json::Value) -> Result<()> {
    if rows.removed.is_none() {
        tx.event(pool, kind, body)?;
    }
    Ok(())
}

/// Dooms an object that counts; whether it did.
fn doom(tx: &Tx<'_>, object: i64) -> Result<bool> {
    let changed = tx
        .sql()
        .prepare_cached("UPDATE objects SET state = 'doomed' WHERE id = ?1 AND state = 'live'")?
        .execute([object])?;
    Ok(changed == 1)
}

fn story_is_due(tx: &Tx<'_>, pool: PoolId, round: u64, now: Timestamp) -> Result<bool> {
    let Some(found) = rows::round(tx.sql(), pool, round)? else { return Ok(false) };
    Ok(plan::story(&rows::pool(tx.sql(), pool)?, &found, now).is_due())
}

fn parts(sql: &Connection, id: i64) -> Result<Vec<i64>> {
    let mut statement =
        sql.prepare_cached("SELECT id FROM batches WHERE id = ?1 OR carried_into = ?1 ORDER BY id")?;
    let rows = statement.query_map([id], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// What the ledger and storage still hold of an upload.
struct Held {
    seq: i64,
    size: u64,
    payload: bool,
    object: Option<i64>,
}

fn held(sql: &Connection, batch: i64, after: i64) -> Result<Vec<Held>> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT seq, size, EXISTS (SELECT 1 FROM payloads p WHERE p.seq = u.seq), \
         (SELECT id FROM objects o WHERE o.id = u.object_id AND o.state = 'live') FROM uploads u WHERE batch_id = ?1 AND seq > ?2 ORDER BY seq LIMIT {SCAN}"
    ))?;
    let rows = statement.query_map(params![batch, after], |row| {
        Ok(Held { seq: row.get(0)?, size: row.get(1)?, payload: row.get(2)?, object: row.get(3)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A page of the packs that are not doomed yet, and the manifest.
fn packs_and_manifest(sql: &Connection, pool: PoolId, id: i64) -> Result<Vec<(i64, u64)>> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT o.id, o.size FROM batches b JOIN packs p ON p.batch_id = b.id JOIN objects o ON o.id = p.object_id \
         WHERE (b.id = ?1 OR b.carried_into = ?1) AND o.state = 'live' \
         UNION ALL SELECT o.id, o.size FROM batches b JOIN manifests m ON m.pool_id = ?2 AND m.seq = b.round \
         JOIN objects o ON o.id = m.object_id WHERE b.id = ?1 AND o.state = 'live' LIMIT {ROWS}"
    ))?;
    let rows = statement.query_map(params![id, pool], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The last of a page of old events, and how many they are.
fn old_events(sql: &Connection, pool: PoolId, before: Timestamp) -> Result<Option<(u64, usize)>> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT max(seq), count(*) FROM (SELECT seq, at FROM events WHERE pool_id = ?1 ORDER BY seq LIMIT {ROWS}) \
         WHERE at <= ?2"
    ))?;
    let found = statement
        .query_row(params![pool, before.as_millis()], |row| Ok((row.get::<_, Option<u64>>(0)?, row.get(1)?)))
        .optional()?;
    Ok(found.and_then(|(last, count)| Some((last?, count))))
}

/// Runs of at most [`ROWS`] rows and about [`BYTES`] bytes.
fn chunks(rows: &[(i64, u64)]) -> Vec<&[(i64, u64)]> {
    let (mut chunks, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, (_, size)) in rows.iter().enumerate() {
        bytes += size;
        if bytes >= BYTES || at + 1 - from == ROWS || at + 1 == rows.len() {
            chunks.push(&rows[from..=at]);
            (from, bytes) = (at + 1, 0);
        }
    }
    chunks
}

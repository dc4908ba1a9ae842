//! What the plan decides on, read from the ledger, and the work that is due.

use std::time::Duration;

use millpond_protocol::{PoolName, Refusal, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::plan::{self, BatchRows, Outcome, PoolRows, ResultRows, RoundRows, SealedRows, Verdict};
use crate::ledger::{PoolId, Result, Tx, row_id};

/// Things of one kind that one look at a pool finds: what is beyond comes with the next look.
pub(super) const FIND: usize = 1_000;
/// Rows that one job deletes: what waits behind it waits some milliseconds.
pub(super) const ROWS: usize = 1_000;
/// What is further in the future was written while the clock was ahead. It does not keep what came after it: it goes with
/// that.
const AHEAD: Duration = Duration::from_secs(86_400);
/// Uploads that one look at a batch reads.
const SCAN: usize = 4_000;

/// Something that is due, with the plan's reason.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Work {
    pub task: Task,
    pub verdict: Verdict,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Delete the bytes of a batch; perhaps that was begun already.
    Expire { id: i64, batch: u64 },
    /// Delete the rows of its uploads.
    Forget { id: i64, batch: u64 },
    /// Delete the bytes of a version.
    Result { version: u64, object: i64 },
    /// Delete attempts, log, deliveries and `round.json`.
    Story { round: u64 },
    /// Delete the rows of rejected uploads, this one and earlier ones.
    Rejected { last: i64 },
}

/// Every pool, removed ones too.
pub(super) fn pools(sql: &Connection) -> Result<Vec<(PoolId, PoolRows)>> {
    let mut statement =
        sql.prepare_cached("SELECT id, name, policy, removed, pointer, versions FROM pools ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut pools = Vec::new();
    while let Some(row) = rows.next()? {
        pools.push((row.get(0)?, pool_of(row)?));
    }
    Ok(pools)
}

/// One pool.
pub(super) fn pool(sql: &Connection, id: PoolId) -> Result<PoolRows> {
    let mut statement =
        sql.prepare_cached("SELECT id, name, policy, removed, pointer, versions FROM pools WHERE id = ?1")?;
    statement
        .query_and_then([id], pool_of)?
        .next()
        .unwrap_or_else(|| Err(crate::ledger::error::not_found(format!("pool with id {id}"))))
}

fn pool_of(row: &Row<'_>) -> Result<PoolRows> {
    Ok(PoolRows {
        name: row.get::<_, String>(1)?.parse::<PoolName>().map_err(Refusal::from)?,
        policy: serde_json::from_str(&row.get::<_, String>(2)?)?,
        removed: time(row, 3)?,
        pointer: row.get(4)?,
        versions: row.get(5)?,
    })
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::clamped))
}

/// How far retention has come with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Kept,
    Expiring(Timestamp),
    Expired(Timestamp),
    Forgetting(Timestamp),
    Forgotten,
}

const BATCH: &str = "SELECT b.id, b.batch, b.sealed, b.round, b.runs, r.ended, coalesce(r.state = 'committed', 0), \
     EXISTS (SELECT 1 FROM manifests m WHERE m.pool_id = b.pool_id AND m.seq = b.round) \
     AND NOT EXISTS (SELECT 1 FROM batches c JOIN packs p ON p.batch_id = c.id \
     WHERE (c.id = b.id OR c.carried_into = b.id) AND p.purged = 0), b.retention, b.expired \
     FROM batches b LEFT JOIN rounds r ON r.pool_id = b.pool_id AND r.round = b.round";

/// A batch that is part of no other.
pub(super) fn batch(sql: &Connection, id: i64) -> Result<Option<(BatchRows, Stage)>> {
    let mut statement = sql.prepare_cached(&format!("{BATCH} WHERE b.id = ?1 AND b.carried_into IS NULL"))?;
    Ok(statement.query_row([id], batch_of).optional()?.map(|(_, batch, stage)| (batch, stage)))
}

fn batch_of(row: &Row<'_>) -> rusqlite::Result<(i64, BatchRows, Stage)> {
    let sealed = match (time(row, 2)?, row.get::<_, Option<u64>>(3)?) {
        (Some(at), Some(round)) => {
            let runs: bool = row.get::<_, Option<bool>>(4)?.unwrap_or(true);
            let outcome = match (runs, time(row, 5)?, row.get(6)?) {
                (false, _, _) => Outcome::Skipped,
                (true, None, _) => Outcome::Live,
                (true, Some(ended), true) => Outcome::Committed(ended),
                (true, Some(ended), false) => Outcome::Failed(ended),
            };
            Some(SealedRows { round, at, written: row.get(7)?, outcome })
        }
        (None, _) | (_, None) => None,
    };
    let expired = time(row, 9)?.unwrap_or(Timestamp::EPOCH);
    let stage = match row.get_ref(8)?.as_str()? {
        "kept" => Stage::Kept,
        "expiring" => Stage::Expiring(expired),
        "expired" => Stage::Expired(expired),
        "forgetting" => Stage::Forgetting(expired),
        _ => Stage::Forgotten,
    };
    Ok((row.get(0)?, BatchRows { batch: row.get(1)?, sealed }, stage))
}

/// Versions whose bytes are kept.
pub(super) fn results(sql: &Connection, pool: PoolId) -> Result<Vec<ResultRows>> {
    let mut statement = sql.prepare_cached(
        "SELECT version, object_id, committed, pointed_until FROM results \
         WHERE pool_id = ?1 AND expired IS NULL ORDER BY version",
    )?;
    let rows = statement.query_map([pool], |row| {
        let committed = Timestamp::clamped(row.get(2)?);
        Ok(ResultRows { version: row.get(0)?, object: row.get(1)?, committed, pointed_until: time(row, 3)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

const ROUND: &str = "SELECT r.round, r.ended, r.state = 'committed', r.story_object IS NOT NULL, \
     (SELECT max(version) FROM results s WHERE s.pool_id = r.pool_id AND s.round = r.round AND s.expired IS NULL) \
     FROM rounds r WHERE r.pool_id = ?1 AND r.expired IS NULL AND r.ended IS NOT NULL";

/// An ended round whose story is kept.
pub(super) fn round(sql: &Connection, pool: PoolId, round: u64) -> Result<Option<RoundRows>> {
    let mut statement = sql.prepare_cached(&format!("{ROUND} AND r.round = ?2"))?;
    Ok(statement.query_row(params![pool, round], round_of).optional()?)
}

fn round_of(row: &Row<'_>) -> rusqlite::Result<RoundRows> {
    Ok(RoundRows {
        round: row.get(0)?,
        ended: Timestamp::clamped(row.get(1)?),
        committed: row.get(2)?,
        told: row.get(3)?,
        result: row.get(4)?,
    })
}

/// What is due in a pool, at most [`FIND`] of each kind, oldest first.
pub(super) fn due(sql: &Connection, id: PoolId, pool: &PoolRows, now: Timestamp) -> Result<Vec<Work>> {
    let mut work = Vec::new();
    batches(sql, id, pool, now, &mut work)?;
    let versions = results(sql, id)?;
    for (row, verdict) in versions.iter().zip(plan::results(pool, &versions, now)) {
        if verdict.is_due() && work.len() < 2 * FIND {
            let task = Task::Result { version: row.version, object: row.object };
            work.push(Work { task, verdict });
        }
    }
    let mut statement =
        sql.prepare_cached(&format!("{ROUND} AND r.ended <= ?2 ORDER BY r.ended LIMIT {FIND}"))?;
    for row in statement.query_map(params![id, now.as_millis()], round_of)? {
        let row = row?;
        let verdict = plan::story(pool, &row, now);
        if verdict.is_due() {
            work.push(Work { task: Task::Story { round: row.round }, verdict });
        }
    }
    let mut statement = sql.prepare_cached(&format!(
        "SELECT seq, received FROM uploads WHERE batch_id IS NULL AND seq > ?1 AND seq < ?2 AND received <= ?3 \
         ORDER BY seq LIMIT {FIND}"
    ))?;
    let mut rows =
        statement.query(params![row_id(id, 0), row_id(id + 1, 0), now.after(AHEAD).as_millis()])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        let verdict = plan::rejected(pool, Timestamp::clamped(row.get(1)?), now);
        // They lie in order of receipt, but for some hours of a grant.
        if !verdict.is_due() {
            break;
        }
        last = Some(Work { task: Task::Rejected { last: row.get(0)? }, verdict });
    }
    work.extend(last);
    Ok(work)
}

/// Batches whose bytes or whose uploads' rows are due, and those with which an earlier run was not done.
fn batches(
    sql: &Connection,
    pool: PoolId,
    rows: &PoolRows,
    now: Timestamp,
    work: &mut Vec<Work>,
) -> Result<()> {
    // `sealed` is before every end that counts, so this leaves out nothing that is due. A batch that is open is looked
    // at only where its pool is gone.
    let keeps = Duration::from_secs(rows.policy.keep_uploads_s);
    let before = now.before(keeps).as_millis();
    let which =
        if rows.removed.is_some() { "(b.sealed IS NULL OR b.sealed <= ?2)" } else { "b.sealed <= ?2" };
    let found = |stage: &str, which: &str, before: i64| -> Result<Vec<(i64, BatchRows, Stage)>> {
        let mut statement = sql.prepare_cached(&format!(
            "{BATCH} WHERE b.pool_id = ?1 AND b.retention = '{stage}' AND b.carried_into IS NULL AND {which} \
             ORDER BY b.sealed"
        ))?;
        let mut due = Vec::new();
        for row in statement.query_map(params![pool, before], batch_of)? {
            let row = row?;
            if verdict(rows, &row.1, row.2, now).is_some_and(|verdict| verdict.is_due()) {
                due.push(row);
            }
            if due.len() == FIND {
                break;
            }
        }
        Ok(due)
    };
    let mut all = found("expiring", "?2 = ?2", 0)?;
    all.extend(found("kept", which, before)?);
    all.extend(found("forgetting", "?2 = ?2", 0)?);
    all.extend(found(
        "expired",
        "b.expired <= ?2",
        now.before(millpond_protocol::limits::KEYS_KEPT_FOR).as_millis(),
    )?);
    for (id, batch, stage) in all {
        let Some(verdict) = verdict(rows, &batch, stage, now) else { continue };
        let batch = batch.batch;
        let task = match stage {
            Stage::Kept | Stage::Expiring(_) => Task::Expire { id, batch },
            Stage::Expired(_) | Stage::Forgetting(_) | Stage::Forgotten => Task::Forget { id, batch },
        };
        work.push(Work { task, verdict });
    }
    Ok(())
}

/// The verdict on what is left of a batch; none if nothing is. What was begun is finished, whatever the policy says now:
/// nobody can have what is half gone.
pub(super) fn verdict(pool: &PoolRows, batch: &BatchRows, stage: Stage, now: Timestamp) -> Option<Verdict> {
    match stage {
        Stage::Kept => Some(plan::uploads(pool, batch, now)),
        Stage::Expiring(since) => Some(Verdict::Due(plan::begun(batch.batch, since))),
        Stage::Expired(since) => Some(plan::keys(batch.batch, since, now)),
        Stage::Forgetting(since) => Some(Verdict::Due(plan::begun(batch.batch, since))),
        Stage::Forgotten => None,
    }
}

/// Moves a batch, and what was carried into it, on; how many bytes they counted.
pub(super) fn stage(tx: &Tx<'_>, id: i64, from: &str, to: &str) -> Result<u64> {
    let mut statement = tx.sql().prepare_cached(
        "UPDATE batches SET retention = ?3 WHERE (id = ?1 OR carried_into = ?1) AND retention = ?2 RETURNING bytes",
    )?;
    let bytes = statement.query_map(params![id, from, to], |row| row.get::<_, u64>(0))?;
    Ok(bytes.sum::<rusqlite::Result<_>>()?)
}

/// Dooms an object that counts; whether it did.
pub(super) fn doom(tx: &Tx<'_>, object: i64) -> Result<bool> {
    let changed = tx
        .sql()
        .prepare_cached("UPDATE objects SET state = 'doomed' WHERE id = ?1 AND state = 'live'")?
        .execute([object])?;
    Ok(changed == 1)
}

/// A batch and what was carried into it.
pub(super) fn parts(sql: &Connection, id: i64) -> Result<Vec<i64>> {
    let mut statement =
        sql.prepare_cached("SELECT id FROM batches WHERE id = ?1 OR carried_into = ?1 ORDER BY id")?;
    let rows = statement.query_map([id], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// What the ledger and storage still hold of an upload.
pub(super) struct Held {
    pub seq: i64,
    pub size: u64,
    pub payload: bool,
    pub object: Option<i64>,
}

/// A page of the uploads of one batch.
pub(super) fn held(sql: &Connection, batch: i64, after: i64) -> Result<Vec<Held>> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT seq, size, EXISTS (SELECT 1 FROM payloads p WHERE p.seq = u.seq), \
         (SELECT id FROM objects o WHERE o.id = u.object_id AND o.state = 'live') FROM uploads u WHERE batch_id = ?1 AND seq > ?2 ORDER BY seq LIMIT {SCAN}"
    ))?;
    let rows = statement.query_map(params![batch, after], |row| {
        Ok(Held { seq: row.get(0)?, size: row.get(1)?, payload: row.get(2)?, object: row.get(3)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// `+` keeps the index of all live objects out of it.
const PACKS_AND_MANIFEST: &str = "SELECT o.id, o.size FROM batches b JOIN packs p ON p.batch_id = b.id \
     JOIN objects o ON o.id = p.object_id WHERE (b.id = ?1 OR b.carried_into = ?1) AND +o.state = 'live' \
     UNION ALL SELECT o.id, o.size FROM batches b JOIN manifests m ON m.pool_id = ?2 AND m.seq = b.round \
     JOIN objects o ON o.id = m.object_id WHERE b.id = ?1 AND +o.state = 'live'";

/// A page of the packs that are not doomed yet, and the manifest.
pub(super) fn packs_and_manifest(sql: &Connection, pool: PoolId, id: i64) -> Result<Vec<(i64, u64)>> {
    let mut statement = sql.prepare_cached(&format!("{PACKS_AND_MANIFEST} LIMIT {ROWS}"))?;
    let rows = statement.query_map(params![id, pool], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The last of a page of old events and of those before them, and how many they are.
pub(super) fn old_events(
    sql: &Connection,
    pool: PoolId,
    before: Timestamp,
    now: Timestamp,
) -> Result<Option<(u64, usize)>> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT max(seq), count(*) FROM (SELECT seq FROM events WHERE pool_id = ?1 AND seq <= \
         (SELECT max(seq) FROM (SELECT seq, at FROM events WHERE pool_id = ?1 AND at <= ?3 ORDER BY seq LIMIT {ROWS}) \
         WHERE at <= ?2) ORDER BY seq LIMIT {ROWS})"
    ))?;
    let found = statement
        .query_row(params![pool, before.as_millis(), now.after(AHEAD).as_millis()], |row| {
            Ok((row.get::<_, Option<u64>>(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(found.and_then(|(last, count)| Some((last?, count))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_batch_has_in_storage_is_found_without_a_look_at_what_others_have() {
        let plan = crate::ledger::plan(PACKS_AND_MANIFEST);
        assert!(!plan.iter().any(|step| step.contains("SCAN") || step.contains("objects_live")), "{plan:?}");
    }
}

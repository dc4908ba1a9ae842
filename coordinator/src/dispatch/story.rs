//! `round.json`: the whole story of an ended round, for people and for whoever has to explain a result later.
//!
//! ```text
//! {"pool", "round", "batch", "cause", "sealed", "count", "bytes", "manifest_sha256", "params"?, "ref"?,
//!  "outcome": "committed" | "failed", "failed"?: {"cause", "at"},
//!  "attempts": [{"attempt", "member", "leased", "beat"?, "ended"?, "outcome"?, "error"?, "warnings"?, "progress"?}],
//!  "log": [{"attempt", "at", "text"}], "log_bytes_dropped",
//!  "result"?: {"version", "name", "size", "sha256", "content_type"?, "attempt", "member", "committed"}}
//! ```
//!
//! It is written when the round ends, and again after what changes it: an operator's retry, or a log that comes with
//! `done` after an inline result.

use millpond_protocol::{Sha256, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::object::{self, Kind};
use super::{Context, Trouble};
use crate::ledger::{PoolId, Result};
use crate::rounds::{FailCause, Round, RoundState};

#[derive(Serialize)]
struct Story {
    pool: String,
    round: u64,
    batch: u64,
    cause: Option<String>,
    sealed: Timestamp,
    count: u64,
    bytes: u64,
    manifest_sha256: Option<Sha256>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Value>,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    reference: Option<Value>,
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<Failed>,
    attempts: Vec<Attempt>,
    log: Vec<Line>,
    log_bytes_dropped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Returned>,
}

#[derive(Serialize)]
struct Failed {
    cause: FailCause,
    at: Timestamp,
}

#[derive(Serialize)]
struct Attempt {
    attempt: u32,
    member: String,
    leased: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    beat: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Value>,
}

#[derive(Serialize)]
struct Line {
    attempt: u32,
    at: Timestamp,
    text: String,
}

#[derive(Serialize)]
struct Returned {
    version: u64,
    name: String,
    size: u64,
    sha256: Sha256,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    attempt: u32,
    member: String,
    committed: Timestamp,
}

/// An ended round of the pool without a story.
pub(super) fn untold(sql: &Connection, pool: PoolId) -> Result<Option<u64>> {
    let round = sql
        .prepare_cached(
            "SELECT round FROM rounds INDEXED BY rounds_untold WHERE pool_id = ?1 AND story_object IS NULL \
             AND state IN ('committed', 'failed') LIMIT 1",
        )?
        .query_row([pool], |row| row.get(0))
        .optional()?;
    Ok(round)
}

/// Writes the story of an ended round.
pub(super) async fn write(context: &Context, pool: PoolId, round: u64) -> std::result::Result<(), Trouble> {
    let (told, rev) = context.ledger.read(move |sql| tell(sql, pool, round)).await?;
    let sha256 = Sha256::of(&told);
    object::write(context, pool, Kind::Story, told.into(), sha256, move |tx, object| {
        // If something that it tells changed while this was written, it is out of date already.
        let current = tx
            .sql()
            .prepare_cached(
                "UPDATE rounds SET story_object = ?3 WHERE pool_id = ?1 AND round = ?2 AND story_object IS NULL \
                 AND story_rev = ?4",
            )?
            .execute(params![pool, round, object, rev])?;
        if current == 0 {
            tx.doom_object(object)?;
        }
        Ok(())
    })
    .await
}

/// The story's bytes, and the round's revision that it tells.
fn tell(sql: &Connection, pool: PoolId, round: u64) -> Result<(Vec<u8>, u64)> {
    let (name, record, cause, params, reference, log_bytes, count, bytes, manifest, rev) = sql
        .prepare_cached(
            "SELECT p.name, r.record, b.cause, r.params, r.ref, r.log_bytes, \
             (SELECT sum(count) FROM batches WHERE id = b.id OR carried_into = b.id), \
             (SELECT sum(bytes) FROM batches WHERE id = b.id OR carried_into = b.id), m.sha256, r.story_rev \
             FROM rounds r JOIN pools p ON p.id = r.pool_id JOIN batches b ON b.id = r.batch_id \
             LEFT JOIN manifests m ON m.pool_id = r.pool_id AND m.seq = r.round \
             WHERE r.pool_id = ?1 AND r.round = ?2",
        )?
        .query_row(params![pool, round], |row| {
            let manifest: Option<[u8; 32]> = row.get(8)?;
            let record: String = row.get(1)?;
            Ok((
                row.get(0)?,
                record,
                row.get(2)?,
                json(row, 3)?,
                json(row, 4)?,
                row.get::<_, u64>(5)?,
                row.get(6)?,
                row.get(7)?,
                manifest.map(Sha256),
                row.get(9)?,
            ))
        })?;
    let record: Round = serde_json::from_str(&record)?;
    let (outcome, failed) = match record.state {
        RoundState::Committed { .. } => ("committed", None),
        RoundState::Failed { cause, at } => ("failed", Some(Failed { cause, at })),
        RoundState::Sealed { .. }
        | RoundState::Offered { .. }
        | RoundState::Leased(_)
        | RoundState::Pausing { .. } => ("live", None),
    };
    let log = log(sql, pool, round)?;
    let kept: u64 = log.iter().map(|line| line.text.len() as u64).sum();
    let story = Story {
        pool: name,
        round,
        batch: record.batch,
        cause,
        sealed: record.sealed,
        count,
        bytes,
        manifest_sha256: manifest,
        params,
        reference,
        outcome: outcome.to_owned(),
        failed,
        attempts: attempts(sql, pool, round)?,
        log,
        log_bytes_dropped: log_bytes.saturating_sub(kept),
        result: result(sql, pool, round)?,
    };
    Ok((serde_json::to_vec(&story)?, rev))
}

fn attempts(sql: &Connection, pool: PoolId, round: u64) -> Result<Vec<Attempt>> {
    let mut statement = sql.prepare_cached(
        "SELECT a.attempt, m.name, a.leased, a.beat, a.ended, a.outcome, a.error, a.warnings, a.progress \
         FROM attempts a JOIN members m ON m.id = a.member_id WHERE a.pool_id = ?1 AND a.round = ?2 ORDER BY a.attempt",
    )?;
    let rows = statement.query_map(params![pool, round], |row| {
        Ok(Attempt {
            attempt: row.get(0)?,
            member: row.get(1)?,
            leased: Timestamp::clamped(row.get(2)?),
            beat: row.get::<_, Option<i64>>(3)?.map(Timestamp::clamped),
            ended: row.get::<_, Option<i64>>(4)?.map(Timestamp::clamped),
            outcome: row.get(5)?,
            error: row.get(6)?,
            warnings: json(row, 7)?,
            progress: json(row, 8)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn log(sql: &Connection, pool: PoolId, round: u64) -> Result<Vec<Line>> {
    let mut statement = sql.prepare_cached(
        "SELECT attempt, at, text FROM round_logs WHERE pool_id = ?1 AND round = ?2 ORDER BY rowid",
    )?;
    let rows = statement.query_map(params![pool, round], |row| {
        Ok(Line { attempt: row.get(0)?, at: Timestamp::clamped(row.get(1)?), text: row.get(2)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn result(sql: &Connection, pool: PoolId, round: u64) -> Result<Option<Returned>> {
    let found = sql
        .prepare_cached(
            "SELECT r.version, r.name, r.size, r.sha256, r.content_type, r.attempt, m.name, r.committed FROM results r \
             JOIN members m ON m.id = r.member_id WHERE r.pool_id = ?1 AND r.round = ?2 AND r.of IS NULL",
        )?
        .query_row(params![pool, round], |row| {
            Ok(Returned {
                version: row.get(0)?,
                name: row.get(1)?,
                size: row.get(2)?,
                sha256: Sha256(row.get(3)?),
                content_type: row.get(4)?,
                attempt: row.get(5)?,
                member: row.get(6)?,
                committed: Timestamp::clamped(row.get(7)?),
            })
        })
        .optional()?;
    Ok(found)
}

/// A column of JSON. What does not read is shown as text.
fn json(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Value>> {
    let text: Option<String> = row.get(column)?;
    Ok(text.map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

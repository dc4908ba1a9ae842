//! A pool's core from its rows: at the start, and whenever a group could not be kept.

use millpond_protocol::Timestamp;
use rusqlite::{Connection, params};

use super::tx::{Counters, Entry};
use super::{PoolId, Result, number};
use crate::rounds::{Batch, Fact, Policy, Pool, Round, Snapshot};

/// Reads the pool; the facts are what the passing of time since the last write caused.
pub(super) fn pool(sql: &Connection, id: PoolId, now: Timestamp) -> Result<(Entry, Vec<Fact>)> {
    let (name, policy, policy_version, counters, aged_through) = sql
        .prepare_cached(
            "SELECT name, policy, policy_version, seq, batches, rounds, versions, newest_committed, pointer, \
             aged_through, kept_bytes FROM pools WHERE id = ?1",
        )?
        .query_row([id], |row| {
            let counters = Counters {
                seq: row.get(3)?,
                batches: row.get(4)?,
                rounds: row.get(5)?,
                versions: row.get(6)?,
                newest_committed: row.get(7)?,
                pointer: row.get(8)?,
                kept_bytes: row.get(10)?,
            };
            let aged_through = row.get::<_, Option<i64>>(9)?.map(Timestamp::clamped);
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?, counters, aged_through))
        })?;
    let policy: Policy = serde_json::from_str(&policy)?;
    let snapshot = Snapshot {
        batches: counters.batches,
        rounds: counters.rounds,
        versions: counters.versions,
        newest_committed: counters.newest_committed,
        pointer: counters.pointer,
        open: open(sql, id)?,
        closed_windows: closed_windows(sql, id, aged_through.max(policy.aged(now)))?,
        aged_through,
        policy,
        live: records::<Round>(
            sql,
            "SELECT record FROM rounds INDEXED BY rounds_live WHERE pool_id = ?1 AND state NOT IN ('committed', 'failed') ORDER BY round",
            params![id],
        )?,
        publishers: publishers(sql, id)?,
        completed_labels: completed_labels(sql, id)?,
    };
    let (core, facts) = Pool::restore(snapshot, now);
    let name = name.parse()?;
    Ok((Entry { name, core, due: None, counters, policy_version }, facts))
}

fn records<T: serde::de::DeserializeOwned>(
    sql: &Connection,
    query: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<T>> {
    let mut statement = sql.prepare_cached(query)?;
    let texts = statement.query_map(params, |row| row.get::<_, String>(0))?;
    texts.map(|text| Ok(serde_json::from_str(&text?)?)).collect()
}

/// Open batches, counting what was carried into them, with the members that are in each.
fn open(sql: &Connection, pool: PoolId) -> Result<Vec<(Batch, Vec<i64>)>> {
    let mut batches = sql.prepare_cached(
        "SELECT b.id, b.record, b.count + coalesce(sum(c.count), 0), b.bytes + coalesce(sum(c.bytes), 0) \
         FROM batches b LEFT JOIN batches c ON c.carried_into = b.id \
         WHERE b.pool_id = ?1 AND b.state = 'open' GROUP BY b.id ORDER BY b.id",
    )?;
    let mut members = sql.prepare_cached(
        "SELECT member_id FROM batch_members WHERE batch_id = ?1 AND uploaded = 1 ORDER BY member_id",
    )?;
    let rows = batches.query_map([pool], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, u64>(2)?, row.get::<_, u64>(3)?))
    })?;
    rows.map(|row| {
        let (id, record, count, bytes) = row?;
        let record: Batch = serde_json::from_str(&record)?;
        let in_it = members.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        Ok((Batch { count, bytes, ..record }, in_it))
    })
    .collect()
}

/// Windows that were sealed or carried away and ended after `aged`.
fn closed_windows(
    sql: &Connection,
    pool: PoolId,
    aged: Option<Timestamp>,
) -> Result<Vec<(Timestamp, Timestamp)>> {
    let mut statement = sql.prepare_cached(
        "SELECT window_from, window_to FROM batches WHERE pool_id = ?1 AND window_to > ?2 AND state <> 'open'",
    )?;
    let rows = statement.query_map(params![pool, aged.map_or(-1, Timestamp::as_millis)], |row| {
        Ok((Timestamp::clamped(row.get(0)?), Timestamp::clamped(row.get(1)?)))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn publishers(sql: &Connection, pool: PoolId) -> Result<Vec<(i64, Option<Timestamp>)>> {
    let mut statement = sql.prepare_cached(
        "SELECT id, complete_through FROM members \
         WHERE pool_id = ?1 AND role = 'publisher' AND revoked IS NULL ORDER BY id",
    )?;
    let rows = statement
        .query_map([pool], |row| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?.map(Timestamp::clamped))))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn completed_labels(sql: &Connection, pool: PoolId) -> Result<Vec<(u64, i64)>> {
    let mut statement = sql.prepare_cached(
        "SELECT m.batch_id, m.member_id FROM batch_members m JOIN batches b ON b.id = m.batch_id \
         WHERE b.pool_id = ?1 AND b.state = 'open' AND m.completed = 1 ORDER BY m.batch_id, m.member_id",
    )?;
    let rows = statement.query_map([pool], |row| Ok((number(row.get(0)?), row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

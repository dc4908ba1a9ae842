//! `/v1/pools/{pool}/rounds`.

use axum::Json;
use axum::extract::State;
use millpond_protocol::access::Action;
use millpond_protocol::{MemberName, PoolName, Refusal, Timestamp};
use rusqlite::{Connection, Row, params};
use serde_json::json;

use super::Api;
use super::api::{AttemptInfo, LogLine, RoundInfo, RoundStory, Rounds};
use super::auth::Caller;
use super::error::{Answer, Asked, Params};
use super::page::{self, Page};
use crate::ledger::{PoolId, Result, Tx, error::not_found, manage};
use crate::rounds::{Round, RoundState};

/// Bytes of the log in one answer.
const LOG_SHOWN: usize = 256 << 10;

const SELECT: &str = "SELECT r.record, r.state, (SELECT name FROM members m WHERE m.id = r.record ->> 'holder') \
     FROM rounds r WHERE r.pool_id = ?1";

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Asked(asked): Asked<Page>,
) -> Answer<Rounds> {
    caller.check(&pool, Action::Inspect)?;
    let (limit, before) = (asked.limit()?, asked.before()?);
    let rounds: Vec<RoundInfo> = api
        .0
        .ledger
        .read(move |sql| {
            let pool = manage::find_pool(sql, &pool)?;
            let text = format!("{SELECT} AND (?2 IS NULL OR r.round < ?2) ORDER BY r.round DESC LIMIT ?3");
            sql.prepare_cached(&text)?.query_and_then(params![pool, before, limit], info)?.collect()
        })
        .await?;
    let cursor = page::next(&rounds, limit, |round| round.round);
    Ok(Json(Rounds { rounds, cursor }))
}

pub(super) async fn show(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, round)): Params<(PoolName, u64)>,
) -> Answer<RoundStory> {
    caller.check(&pool, Action::Inspect)?;
    let story = api
        .0
        .ledger
        .read(move |sql| {
            let pool = manage::find_pool(sql, &pool)?;
            let (params, reference, log_bytes): (Option<String>, Option<String>, u64) = sql
                .prepare_cached(
                    "SELECT params, ref, log_bytes FROM rounds WHERE pool_id = ?1 AND round = ?2",
                )?
                .query_map(params![pool, round], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .next()
                .ok_or_else(|| not_found(format!("round {round}")))??;
            Ok(RoundStory {
                info: one(sql, pool, round)?,
                params: params.map(|text| serde_json::from_str(&text)).transpose()?,
                reference: reference.map(|text| serde_json::from_str(&text)).transpose()?,
                attempts: attempts(sql, pool, round)?,
                log: log(sql, pool, round)?,
                log_bytes,
            })
        })
        .await?;
    Ok(Json(story))
}

pub(super) async fn retry(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, round)): Params<(PoolName, u64)>,
) -> Answer<RoundInfo> {
    caller.check(&pool, Action::Manage)?;
    let job = move |tx: &mut Tx<'_>| {
        caller.still(tx)?;
        let id = tx.pool(&pool)?;
        // Who repeats the request because its answer was lost gets the round as it is now.
        if tx.retry_round(id, round)? {
            tx.audit(Some(&pool), &caller.name(), &caller.source, "round-retry", &json!({ "round": round }))?;
        }
        one(tx.sql(), id, round)
    };
    Ok(Json(api.0.ledger.write(job).await?))
}

fn one(sql: &Connection, pool: PoolId, round: u64) -> Result<RoundInfo> {
    let mut statement = sql.prepare_cached(&format!("{SELECT} AND r.round = ?2"))?;
    let found = statement.query_and_then(params![pool, round], info)?.next().transpose()?;
    found.ok_or_else(|| not_found(format!("round {round}")))
}

fn info(row: &Row<'_>) -> Result<RoundInfo> {
    let round: Round = serde_json::from_str(&row.get::<_, String>(0)?)?;
    let holder: Option<String> = row.get(2)?;
    let mut info = RoundInfo {
        round: round.round,
        batch: round.batch,
        state: row.get(1)?,
        ready: round.ready,
        sealed: round.sealed,
        attempt: round.attempt,
        spent: round.spent,
        holder: holder.map(|name| name.parse::<MemberName>()).transpose().map_err(Refusal::from)?,
        until: None,
        version: None,
        failed: None,
        failed_at: None,
    };
    match round.state {
        RoundState::Sealed { .. } | RoundState::Offered { .. } => {}
        RoundState::Leased(lease) => info.until = lease.until,
        RoundState::Pausing { until } => info.until = Some(until),
        RoundState::Committed { version } => info.version = Some(version),
        RoundState::Failed { cause, at } => (info.failed, info.failed_at) = (Some(cause), Some(at)),
    }
    Ok(info)
}

fn attempts(sql: &Connection, pool: PoolId, round: u64) -> Result<Vec<AttemptInfo>> {
    let mut statement = sql.prepare_cached(
        "SELECT a.attempt, m.name, a.leased, a.beat, a.progress, a.ended, a.outcome, a.error, a.warnings \
         FROM attempts a JOIN members m ON m.id = a.member_id WHERE a.pool_id = ?1 AND a.round = ?2 ORDER BY a.attempt",
    )?;
    let rows = statement.query_and_then(params![pool, round], |row| {
        let (progress, warnings): (Option<String>, Option<String>) = (row.get(4)?, row.get(8)?);
        Ok(AttemptInfo {
            attempt: row.get(0)?,
            member: row.get::<_, String>(1)?.parse().map_err(Refusal::from)?,
            leased: Timestamp::clamped(row.get(2)?),
            beat: row.get::<_, Option<i64>>(3)?.map(Timestamp::clamped),
            progress: progress.map(|text| serde_json::from_str(&text)).transpose()?,
            ended: row.get::<_, Option<i64>>(5)?.map(Timestamp::clamped),
            outcome: row.get(6)?,
            error: row.get(7)?,
            warnings: warnings.map(|text| serde_json::from_str(&text)).transpose()?.unwrap_or_default(),
        })
    })?;
    rows.collect()
}

/// The end of the log, as much as one answer takes.
fn log(sql: &Connection, pool: PoolId, round: u64) -> Result<Vec<LogLine>> {
    let mut statement = sql.prepare_cached(
        "SELECT at, attempt, text FROM round_logs WHERE pool_id = ?1 AND round = ?2 ORDER BY rowid DESC",
    )?;
    let mut rows = statement.query(params![pool, round])?;
    let (mut log, mut room) = (Vec::new(), LOG_SHOWN);
    while let Some(row) = rows.next()? {
        let text: String = row.get(2)?;
        let Some(left) = room.checked_sub(text.len()) else { break };
        room = left;
        log.push(LogLine { at: Timestamp::clamped(row.get(0)?), attempt: row.get(1)?, text });
    }
    log.reverse();
    Ok(log)
}

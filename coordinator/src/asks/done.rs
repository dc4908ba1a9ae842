//! `done`: commits a result that was PUT, or closes the log of one that was published.
//!
//! What is remembered of the ask is the version, or that it was `pending`: a repeat is answered from the rows as they are, and
//! has a result verified again that storage did not let be read the last time.

use std::time::Duration;

use millpond_failpoint::{Point, reach};
use millpond_protocol::message::ask;
use millpond_protocol::{Code, Principal, Refusal, limits};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Asks;
use super::rounds::{append_log, bounded, decide, fence, log_fits, text};
use super::wake::Wake;
use crate::grants::{Look, unavailable};
use crate::ledger::grants::{Grant, Target, grant_for};
use crate::ledger::manage::find_pool;
use crate::ledger::objects::differed;
use crate::ledger::transfer::Cause;
use crate::ledger::{PoolId, Result, Tx};

/// What is known of an attempt's result.
enum Found {
    Version(u64),
    Grant(Box<Grant>),
    Nothing,
}

pub(super) async fn done(
    asks: &Asks,
    who: &Principal,
    ask: ask::Done,
    head: &ask::Head,
) -> std::result::Result<Value, Refusal> {
    let (round, attempt) = (ask.round, ask.attempt);
    log_fits(ask.log.as_deref())?;
    let warnings = (!ask.warnings.is_empty()).then(|| json!(ask.warnings));
    bounded("warnings", warnings.as_ref(), limits::LOG_MESSAGE_MAX)?;
    let deadline = Instant::now() + Duration::from_secs(ask.wait_s).min(limits::ASK_TIMEOUT);

    // Storage is asked before the ledger's thread is, which waits for nobody.
    let (mut whole, mut data) = (None, None);
    let first = find(asks, who, round, attempt).await?;
    let object = if let Found::Grant(grant) = &first { Some(grant.object.id) } else { None };
    if let Found::Grant(grant) = first
        && grant.verifying.is_none()
    {
        match asks.grants.look(&grant).await.map_err(|error| unavailable(&error))? {
            Look::Good => {
                data = asks.grants.inline(&grant).await.map_err(|error| unavailable(&error))?;
                whole = Some((*grant, true));
                reach(Point::DoneLooked);
            }
            Look::Unread => whole = Some((*grant, false)),
            Look::Missing(why) => {
                let refusal = Refusal::new(Code::NotFound, format!("the result of round {round}: {why}"));
                return Err(refusal.hint("PUT it first, or give the round back with `fail`"));
            }
            Look::Differs(why) => {
                asks.grants.end(vec![*grant], Cause::Mismatch).await?;
                return Err(Refusal::new(Code::Mismatch, why).hint("ask `put` again"));
            }
        }
    }
    let again = whole.clone().map(|grant| (grant, data.clone()));
    let (pool, version) = decide(asks, who, "done", head, move |tx, pool, who| {
        fence(tx.sql(), pool, who, round, attempt)?;
        tx.sql()
            .prepare_cached(
                "UPDATE attempts SET warnings = coalesce(?4, warnings) \
                 WHERE pool_id = ?1 AND round = ?2 AND attempt = ?3",
            )?
            .execute(params![pool, round, attempt, text(warnings.as_ref())])?;
        append_log(tx, pool, round, attempt, ask.log.as_deref())?;
        commit(tx, pool, who, (round, attempt), whole, data)
    })
    .await?;
    if let (None, Some((grant, data))) = (version, again) {
        let who = who.clone();
        asks.ledger.write(move |tx| commit_again(tx, &who, (round, attempt), grant, data)).await?;
    }
    answer(asks, who, (round, attempt), object, Wake::new(asks.ledger.commits(), pool, deadline)).await
}

/// The version that the attempt's result is, with which the round is closed, or none if it has to be read first. `whole` is the
/// grant as it was looked at, and whether it is known to be good.
fn commit(
    tx: &mut Tx<'_>,
    pool: PoolId,
    who: &Principal,
    (round, attempt): (u64, u32),
    whole: Option<(Grant, bool)>,
    data: Option<bytes::Bytes>,
) -> Result<Option<u64>> {
    let version = count(tx, pool, who, (round, attempt), whole, data)?;
    if let Some(version) = version {
        tx.close_round(pool, round, attempt, version)?;
    }
    Ok(version)
}

/// The same for a repeat whose result did not count the last time.
fn commit_again(
    tx: &mut Tx<'_>,
    who: &Principal,
    (round, attempt): (u64, u32),
    whole: (Grant, bool),
    data: Option<bytes::Bytes>,
) -> Result<()> {
    let pool = tx.pool_of(who)?;
    match read(tx.sql(), pool, who.id, round, attempt)? {
        Found::Grant(grant) if grant.verifying.is_none() => {
            commit(tx, pool, who, (round, attempt), Some(whole), data).map(drop)
        }
        Found::Grant(_) | Found::Version(_) | Found::Nothing => Ok(()),
    }
}

fn count(
    tx: &mut Tx<'_>,
    pool: PoolId,
    who: &Principal,
    (round, attempt): (u64, u32),
    whole: Option<(Grant, bool)>,
    data: Option<bytes::Bytes>,
) -> Result<Option<u64>> {
    let (known, good) = match (read(tx.sql(), pool, who.id, round, attempt)?, whole) {
        (Found::Version(version), _) => return Ok(Some(version)),
        (Found::Grant(grant), _) if grant.verifying.is_some() => return Ok(None),
        (Found::Grant(grant), Some((known, good))) if grant.id == known.id => (grant, good),
        (Found::Grant(_), _) => {
            return Err(Refusal::unavailable("the result was granted just now: ask again").into());
        }
        (Found::Nothing, _) => return Err(no_result(round, attempt).into()),
    };
    if !good {
        tx.verify_grants(std::slice::from_ref(&known))?;
        return Ok(None);
    }
    Ok(tx.count_result(who, &known, data)?.map(|committed| committed.version))
}

fn no_result(round: u64, attempt: u32) -> Refusal {
    Refusal::new(Code::NotFound, format!("attempt {attempt} of round {round} has committed no result")).hint(
        format!(
            "publish the result to result/{round}/{attempt} or send it by `put` first, or give the round back with `fail`"
        ),
    )
}

/// The answer once it is known. `object` is that of the grant which the ask began with.
async fn answer(
    asks: &Asks,
    who: &Principal,
    (round, attempt): (u64, u32),
    object: Option<i64>,
    mut wake: Wake,
) -> std::result::Result<Value, Refusal> {
    loop {
        match find(asks, who, round, attempt).await? {
            Found::Version(version) => {
                return Ok(json!({"round": round, "attempt": attempt, "version": version}));
            }
            Found::Grant(grant) if grant.verifying.is_some() => {
                if !wake.wait().await? {
                    let verified = asks.grants.progress(&grant);
                    return Ok(json!({"round": round, "attempt": attempt, "outcome": "pending",
                        "verified": verified, "size": grant.object.size}));
                }
            }
            Found::Grant(grant) => {
                let problem = grant.problem.unwrap_or_else(|| Refusal::unavailable("it did not count"));
                return Err(match problem.code {
                    Code::NotFound => problem.hint("PUT what is missing, and ask `done` again"),
                    _ => problem.hint("the lease and what was PUT are as good as before: ask `done` again"),
                });
            }
            Found::Nothing => {
                let read = move |sql: &Connection| object.map_or(Ok(false), |object| differed(sql, object));
                return Err(match asks.ledger.read(read).await? {
                    false => no_result(round, attempt),
                    true => {
                        let what = format!("the result of round {round} is not the file that was declared");
                        Refusal::new(Code::Mismatch, what).hint("ask `put` again")
                    }
                });
            }
        }
    }
}

async fn find(asks: &Asks, who: &Principal, round: u64, attempt: u32) -> std::result::Result<Found, Refusal> {
    let who = who.clone();
    asks.ledger.read(move |sql| read(sql, find_pool(sql, &who.pool)?, who.id, round, attempt)).await
}

fn read(sql: &Connection, pool: PoolId, member: i64, round: u64, attempt: u32) -> Result<Found> {
    let version: Option<u64> = sql
        .prepare_cached(
            "SELECT version FROM results WHERE pool_id = ?1 AND round = ?2 AND attempt = ?3 AND member_id = ?4 \
             AND of IS NULL",
        )?
        .query_row(params![pool, round, attempt, member], |row| row.get(0))
        .optional()?;
    if let Some(version) = version {
        return Ok(Found::Version(version));
    }
    let grant = grant_for(sql, pool, member, &Target::Result { round, attempt })?;
    Ok(grant.map_or(Found::Nothing, |grant| Found::Grant(Box::new(grant))))
}

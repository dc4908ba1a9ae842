//! The ops of rounds: `trigger`, `claim`, `beat`, `files`, `done`, `fail`.
//!
//! What is remembered of an ask is what was decided: which round, which attempt. A repeat is answered from that, with
//! the lease as it is now and fresh URLs.

use millpond_failpoint::{Point, reach};
use millpond_protocol::message::answer::{FilesPage, Triggered};
use millpond_protocol::message::{Lease, ask};
use millpond_protocol::{Code, Principal, Refusal, Role, limits};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Asks, lease, room};
use crate::ledger::manage::find_pool;
use crate::ledger::{PoolId, Result, Tx};
use crate::rounds::{Event, Reply, Round, RoundState, Target};

/// Seals a batch; for a processor with `take` the round is leased too.
pub(super) async fn trigger(
    asks: &Asks,
    who: &Principal,
    source: &str,
    ask: ask::Trigger,
    head: &ask::Head,
) -> std::result::Result<Triggered, Refusal> {
    #[derive(Serialize, Deserialize)]
    struct Decision {
        round: u64,
        batch: u64,
        attempt: Option<u32>,
    }
    bounded("params", ask.params.as_ref(), limits::META_MAX)?;
    bounded("ref", ask.reference.as_ref(), limits::META_MAX)?;
    let target = target(&ask)?;
    let (wait_s, source) = (ask.wait_s, source.to_owned());
    let (pool, Decision { round, batch, attempt }) = decide(asks, who, "trigger", head, move |tx, pool, who| {
        let take = (ask.take && who.role == Role::Processor).then_some(who.id);
        let Reply::Triggered { round, batch, lease } = tx.apply(pool, Event::Trigger { target, take })? else {
            return Err(Refusal::unavailable("the pool did not say which round it is").into());
        };
        tx.sql()
            .prepare_cached("UPDATE rounds SET params = ?3, ref = ?4 WHERE pool_id = ?1 AND round = ?2")?
            .execute(params![pool, round, text(ask.params.as_ref()), text(ask.reference.as_ref())])?;
        let event = json!({"round": round, "batch": batch, "by": who.name, "params": ask.params, "ref": ask.reference});
        tx.event(pool, "round-triggered", &event)?;
        let (asker, detail) = (format!("{}/{}", who.pool, who.name), json!({"round": round, "batch": batch}));
        tx.audit(Some(&who.pool), &asker, &source, "trigger", &detail)?;
        Ok(Decision { round, batch, attempt: lease })
    })
    .await?;
    let lease = match attempt {
        // The lease stands inside the answer's own keys.
        Some(attempt) => {
            Some(leased(asks, pool, round, attempt, wait_s, room(head).saturating_sub(64)).await?)
        }
        None => None,
    };
    Ok(Triggered { round, batch, lease })
}

fn target(ask: &ask::Trigger) -> std::result::Result<Target, Refusal> {
    match (ask.window, &ask.label) {
        (Some(_), Some(_)) => Err(Refusal::new(Code::Malformed, "name a `window` or a `label`, not both")),
        (Some(window), None) => Ok(Target::Window(window)),
        (None, Some(label)) => Ok(Target::Label(label.clone())),
        (None, None) => Ok(match ask.which {
            ask::Which::Open => Target::Open,
            ask::Which::Oldest => Target::Oldest,
        }),
    }
}

/// Leases the oldest round on offer, or the one that is named; `{"round": null}` where there is none.
pub(super) async fn claim(
    asks: &Asks,
    who: &Principal,
    ask: ask::Claim,
    head: &ask::Head,
) -> std::result::Result<Value, Refusal> {
    let wanted = ask.round;
    let (pool, decision) = decide(asks, who, "claim", head, move |tx, pool, who| {
        match tx.apply(pool, Event::Claim { member: who.id, round: wanted })? {
            Reply::Claimed { lease } => Ok(lease),
            _ => Ok(None),
        }
    })
    .await?;
    match decision {
        Some((round, attempt)) => json_of(leased(asks, pool, round, attempt, ask.wait_s, room(head)).await?),
        None => Ok(json!({"round": null})),
    }
}

/// Extends a lease, and takes what the processor has to say.
pub(super) async fn beat(
    asks: &Asks,
    who: &Principal,
    ask: ask::Beat,
    head: &ask::Head,
) -> std::result::Result<Value, Refusal> {
    bounded("progress", ask.progress.as_ref(), limits::META_MAX)?;
    log_fits(ask.log.as_deref())?;
    let (round, attempt) = (ask.round, ask.attempt);
    let wait_s = ask.wait_s;
    let (pool, ()) = decide(asks, who, "beat", head, move |tx, pool, who| {
        tx.apply(pool, Event::Beat { member: who.id, round, attempt })?;
        // A sign of life, whether or not it extends the lease.
        tx.sql()
            .prepare_cached(
                "UPDATE attempts SET beat = ?4, progress = coalesce(?5, progress) \
                 WHERE pool_id = ?1 AND round = ?2 AND attempt = ?3",
            )?
            .execute(params![pool, round, attempt, tx.now().as_millis(), text(ask.progress.as_ref())])?;
        append_log(tx, pool, round, attempt, ask.log.as_deref())
    })
    .await?;
    json_of(leased(asks, pool, round, attempt, wait_s, room(head)).await?)
}

/// A page of the files of the asker's lease, also after its term has run out, until the round is leased again, given back,
/// or has failed.
pub(super) async fn files(
    asks: &Asks,
    who: &Principal,
    ask: ask::Files,
    head: &ask::Head,
) -> std::result::Result<FilesPage, Refusal> {
    let after = ask.cursor.as_deref().map_or(Ok(lease::Place::START), str::parse)?;
    let (reader, round, attempt) = (who.clone(), ask.round, ask.attempt);
    let (pool, record) = asks
        .ledger
        .read(move |sql| {
            let pool = find_pool(sql, &reader.pool)?;
            let record = fence(sql, pool, &reader, round, attempt)?;
            if record.holder != Some(reader.id) && !matches!(record.state, RoundState::Committed { .. }) {
                let message = format!("attempt {attempt} of round {round} has ended");
                return Err(Refusal::new(Code::Stale, message).hint("claim the round again").into());
            }
            Ok((pool, record))
        })
        .await?;
    if !record.ready {
        return Err(Refusal::unavailable(format!("the files of round {round} are not written yet"))
            .hint("`beat` with `wait_s` answers when they are"));
    }
    let (files, cursor) = lease::page(asks, pool, record.batch, after, room(head)).await?;
    Ok(FilesPage { files, cursor })
}

/// Gives a round back.
pub(super) async fn fail(
    asks: &Asks,
    who: &Principal,
    ask: ask::Fail,
    head: &ask::Head,
) -> std::result::Result<Value, Refusal> {
    let (round, attempt) = (ask.round, ask.attempt);
    log_fits(ask.log.as_deref())?;
    log_fits(Some(&ask.error))?;
    let (_, state) = decide(asks, who, "fail", head, move |tx, pool, who| {
        tx.apply(pool, Event::Fail { member: who.id, round, attempt, retryable: ask.retryable })?;
        tx.sql()
            .prepare_cached(
                "UPDATE attempts SET error = ?4 WHERE pool_id = ?1 AND round = ?2 AND attempt = ?3",
            )?
            .execute(params![pool, round, attempt, ask.error])?;
        append_log(tx, pool, round, attempt, ask.log.as_deref())?;
        let state: String = tx
            .sql()
            .prepare_cached("SELECT state FROM rounds WHERE pool_id = ?1 AND round = ?2")?
            .query_row(params![pool, round], |row| row.get(0))?;
        Ok(state)
    })
    .await?;
    Ok(json!({"round": round, "attempt": attempt, "state": state}))
}

/// Runs `decide` once for each (member, op, id) in one ledger job with its memory: a repeat gets the first decision.
pub(super) async fn decide<D, F>(
    asks: &Asks,
    who: &Principal,
    op: &'static str,
    head: &ask::Head,
    decide: F,
) -> std::result::Result<(PoolId, D), Refusal>
where
    D: Serialize + DeserializeOwned + Send + 'static,
    F: FnOnce(&mut Tx<'_>, PoolId, &Principal) -> Result<D> + Send + 'static,
{
    let id = head.id.clone().ok_or_else(|| Refusal::new(Code::Malformed, format!("{op} needs an id")))?;
    let who = who.clone();
    let decided = asks.ledger.write(move |tx| {
        let pool = tx.pool_of(&who)?;
        if let Some(first) = tx.remembered(&who, op, id.as_str())? {
            return Ok((pool, serde_json::from_value(first)?));
        }
        let decision = decide(tx, pool, &who)?;
        tx.remember(&who, op, id.as_str(), &serde_json::to_value(&decision)?)?;
        Ok((pool, decision))
    });
    let decided = decided.await?;
    reach(Point::AskDecided);
    Ok(decided)
}

/// The lease as an answer, after waiting for `ready`.
async fn leased(
    asks: &Asks,
    pool: PoolId,
    round: u64,
    attempt: u32,
    wait_s: u64,
    room: usize,
) -> std::result::Result<Lease, Refusal> {
    if wait_s > 0 {
        lease::wait_until_ready(asks, pool, round, attempt, wait_s).await?;
    }
    lease::answer(asks, pool, round, attempt, room).await
}

/// The round, if its newest attempt is this one and the asker's.
pub(super) fn fence(
    sql: &Connection,
    pool: PoolId,
    who: &Principal,
    round: u64,
    attempt: u32,
) -> Result<Round> {
    let found: Option<(String, Option<i64>)> = sql
        .prepare_cached(
            "SELECT r.record, a.member_id FROM rounds r \
             LEFT JOIN attempts a ON a.pool_id = r.pool_id AND a.round = r.round AND a.attempt = ?3 \
             WHERE r.pool_id = ?1 AND r.round = ?2",
        )?
        .query_row(params![pool, round, attempt], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((record, member)) = found else { return Err(lease::no_round(round).into()) };
    let record: Round = serde_json::from_str(&record)?;
    if record.attempt != attempt || member != Some(who.id) {
        let message =
            format!("attempt {attempt} of round {round} is not your lease; its newest is {}", record.attempt);
        return Err(Refusal::new(Code::Stale, message).hint("claim the round again").into());
    }
    Ok(record)
}

/// Adds to the round's log. What is over the round's limit is dropped, and counted in the round's row.
pub(super) fn append_log(
    tx: &mut Tx<'_>,
    pool: PoolId,
    round: u64,
    attempt: u32,
    log: Option<&str>,
) -> Result<()> {
    let Some(log) = log.filter(|log| !log.is_empty()) else { return Ok(()) };
    let came: u64 = tx
        .sql()
        .prepare_cached(
            "UPDATE rounds SET log_bytes = log_bytes + ?3 WHERE pool_id = ?1 AND round = ?2 RETURNING log_bytes",
        )?
        .query_row(params![pool, round, log.len()], |row| row.get(0))?;
    if came > limits::LOG_ROUND_MAX as u64 {
        metrics::counter!("millpond_log_bytes_dropped_total").increment(log.len() as u64);
        return Ok(());
    }
    tx.sql()
        .prepare_cached(
            "INSERT INTO round_logs (pool_id, round, attempt, at, text) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![pool, round, attempt, tx.now().as_millis(), log])?;
    Ok(())
}

/// Refuses a log or an error that is too long for one message.
pub(super) fn log_fits(log: Option<&str>) -> std::result::Result<(), Refusal> {
    match log {
        Some(log) if log.len() > limits::LOG_MESSAGE_MAX => {
            Err(Refusal::new(Code::TooLarge, format!("{} bytes of log in one message", log.len()))
                .limit(limits::LOG_MESSAGE_MAX as u64)
                .hint("send it in several beats"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses JSON that is too long.
pub(super) fn bounded(key: &str, value: Option<&Value>, max: usize) -> std::result::Result<(), Refusal> {
    let len = value.map_or(0, |value| value.to_string().len());
    if len > max {
        return Err(Refusal::new(Code::TooLarge, format!("{key} has {len} bytes of JSON")).limit(max as u64));
    }
    Ok(())
}

pub(super) fn text(value: Option<&Value>) -> Option<String> {
    value.map(Value::to_string)
}

fn json_of(lease: Lease) -> std::result::Result<Value, Refusal> {
    serde_json::to_value(lease).map_err(|error| Refusal::unavailable(error.to_string()))
}

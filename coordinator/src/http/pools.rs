//! `/v1/pools`: pools and their policies.

use axum::Json;
use axum::extract::State;
use millpond_protocol::access::Action;
use millpond_protocol::{Code, PoolName, Refusal, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Api;
use super::api::{Applied, Change, PoolInfo, PoolStatus, Pools};
use super::auth::Caller;
use super::error::{Answer, Asked, Body, Params};
use crate::dispatch::Troubles;
use crate::ledger::{PoolId, Result, Tx, manage, row_id};
use crate::rounds::Policy;

pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Answer<Pools> {
    let only = caller.scope()?;
    let troubles = api.0.troubles.borrow().clone();
    let pools = api.0.ledger.read(move |sql| statuses(sql, only.as_ref(), &troubles)).await?;
    Ok(Json(Pools { pools }))
}

pub(super) async fn show(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
) -> Answer<PoolInfo> {
    caller.check(&pool, Action::Inspect)?;
    let info = api
        .0
        .ledger
        .read(move |sql| {
            let id = manage::find_pool(sql, &pool)?;
            let (policy, policy_version, created): (String, u64, i64) = sql
                .prepare_cached("SELECT policy, policy_version, created FROM pools WHERE id = ?1")?
                .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(PoolInfo {
                status: status(sql, id, &pool)?,
                pool,
                policy: serde_json::from_str(&policy)?,
                policy_version,
                created: Timestamp::clamped(created),
            })
        })
        .await?;
    Ok(Json(info))
}

/// The query of `PUT`.
#[derive(Deserialize)]
pub(super) struct Apply {
    /// Refuse if there is such a pool already.
    #[serde(default)]
    new: bool,
}

pub(super) async fn apply(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Asked(Apply { new }): Asked<Apply>,
    Body(policy): Body<Policy>,
) -> Answer<Applied> {
    // An operator may change its pool; only the admin makes new ones.
    caller.check(&pool, Action::Manage)?;
    let admin = caller.check_admin();
    let job = move |tx: &mut Tx<'_>| {
        caller.still(tx)?;
        match tx.pool(&pool) {
            Ok(_) if new => {
                return Err(Refusal::new(Code::Conflict, format!("there is a pool {pool} already"))
                    .hint("change it with `pool set` or `pool apply`")
                    .into());
            }
            Ok(_) => {}
            Err(_) => admin?,
        }
        put(tx, &caller, &pool, &policy)
    };
    Ok(Json(api.0.ledger.write(job).await?))
}

pub(super) async fn set(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Body(patch): Body<Map<String, Value>>,
) -> Answer<Applied> {
    caller.check(&pool, Action::Manage)?;
    let job = move |tx: &mut Tx<'_>| {
        caller.still(tx)?;
        let id = tx.pool(&pool)?;
        let mut policy = json!(tx.core(id)?.policy());
        if let Value::Object(keys) = &mut policy {
            keys.extend(patch);
        }
        let policy: Policy = serde_json::from_value(policy)
            .map_err(|error| Refusal::new(Code::Malformed, format!("the policy does not read: {error}")))?;
        put(tx, &caller, &pool, &policy)
    };
    Ok(Json(api.0.ledger.write(job).await?))
}

/// Applies a policy, and says what that changed.
fn put(tx: &mut Tx<'_>, caller: &Caller, pool: &PoolName, policy: &Policy) -> Result<Applied> {
    let old = match tx.pool(pool) {
        Ok(id) => Some(tx.core(id)?.policy().clone()),
        Err(_) => None,
    };
    let (id, changed) = tx.apply_pool(pool, policy)?;
    let policy_version = tx
        .sql()
        .prepare_cached("SELECT policy_version FROM pools WHERE id = ?1")?
        .query_row([id], |row| row.get(0))?;
    let changes = differences(old.as_ref(), policy);
    if changed {
        tx.audit(Some(pool), &caller.name(), &caller.source, "pool-apply", &json!(changes))?;
    }
    Ok(Applied { pool: pool.clone(), created: old.is_none(), policy_version, changed: changes })
}

/// The keys of a policy that differ; for a new pool those that are not the default.
fn differences(old: Option<&Policy>, new: &Policy) -> Vec<Change> {
    let base = old.cloned().unwrap_or_default();
    let (Value::Object(base), Value::Object(new)) = (json!(base), json!(new)) else { return Vec::new() };
    new.into_iter()
        .filter(|(key, to)| base.get(key) != Some(to))
        .map(|(key, to)| Change { from: old.and_then(|_| base.get(&key).cloned()), key, to })
        .collect()
}

/// The query of `DELETE`.
#[derive(Deserialize)]
pub(super) struct Remove {
    /// Also while uploads wait in open batches.
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Asked(Remove { force }): Asked<Remove>,
) -> Answer<Value> {
    caller.check_admin()?;
    let job = move |tx: &mut Tx<'_>| {
        let id = tx.pool(&pool)?;
        tx.remove_pool(id, force)?;
        tx.audit(Some(&pool), &caller.name(), &caller.source, "pool-remove", &json!({ "force": force }))
    };
    api.0.ledger.write(job).await?;
    // The pool is gone. What this leaves over, the server ends by itself.
    while matches!(api.0.ledger.write(|tx| tx.end_members()).await, Ok(true)) {}
    Ok(Json(json!({})))
}

/// Every pool at a glance, or only that one.
pub(super) fn statuses(
    sql: &Connection,
    only: Option<&PoolName>,
    troubles: &Troubles,
) -> Result<Vec<PoolStatus>> {
    let mut statement = sql.prepare_cached(
        "SELECT id, name FROM pools WHERE removed IS NULL AND (?1 IS NULL OR name = ?1) ORDER BY name",
    )?;
    let rows = statement.query_map([only.map(PoolName::as_str)], |row| {
        Ok((row.get::<_, PoolId>(0)?, row.get::<_, String>(1)?))
    })?;
    rows.map(|row| {
        let (id, name) = row?;
        let status = status(sql, id, &name.parse()?)?;
        Ok(PoolStatus { trouble: troubles.get(&id).cloned(), ..status })
    })
    .collect()
}

fn status(sql: &Connection, id: PoolId, pool: &PoolName) -> Result<PoolStatus> {
    let (policy, versions, current): (String, u64, Option<u64>) = sql
        .prepare_cached("SELECT policy, versions, pointer FROM pools WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let policy: Policy = serde_json::from_str(&policy)?;
    let (members, publishers) = sql
        .prepare_cached(
            "SELECT count(*), count(*) FILTER (WHERE role = 'publisher') FROM members \
             WHERE pool_id = ?1 AND revoked IS NULL",
        )?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    // What was carried into an open batch counts with it.
    let (open_batches, open_uploads, open_bytes) = sql
        .prepare_cached(
            "SELECT count(DISTINCT o.id), coalesce(sum(b.count), 0), coalesce(sum(b.bytes), 0) FROM batches o \
             JOIN batches b ON b.id = o.id OR b.carried_into = o.id WHERE o.pool_id = ?1 AND o.state = 'open'",
        )?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut rounds = sql.prepare_cached("SELECT count(*) FROM rounds WHERE pool_id = ?1 AND state = ?2")?;
    let mut count = |state: &str| rounds.query_row(params![id, state], |row| row.get::<_, u64>(0));
    let committed: Option<i64> = sql
        .prepare_cached("SELECT committed FROM results WHERE pool_id = ?1 AND version = ?2")?
        .query_row(params![id, current], |row| row.get(0))
        .optional()?;
    let last_upload: Option<i64> = sql
        .prepare_cached("SELECT received FROM uploads WHERE seq > ?1 AND seq < ?2 ORDER BY seq DESC LIMIT 1")?
        .query_row([row_id(id, 0), row_id(id + 1, 0)], |row| row.get(0))
        .optional()?;
    Ok(PoolStatus {
        pool: pool.clone(),
        grouping: json!(policy.grouping).as_str().unwrap_or_default().to_owned(),
        members,
        publishers,
        open_batches,
        open_uploads,
        open_bytes,
        sealed: count("sealed")?,
        offered: count("offered")?,
        leased: count("leased")?,
        pausing: count("pausing")?,
        failed: count("failed")?,
        versions,
        current,
        committed: committed.map(Timestamp::clamped),
        last_upload: last_upload.map(Timestamp::clamped),
        trouble: None,
    })
}

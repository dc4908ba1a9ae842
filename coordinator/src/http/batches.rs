//! `/v1/pools/{pool}/batches`.

use axum::Json;
use axum::extract::State;
use millpond_protocol::PoolName;
use millpond_protocol::access::Action;
use millpond_protocol::{Sha256, Timestamp};
use rusqlite::{Row, params};

use super::Api;
use super::api::{BatchInfo, Batches};
use super::auth::Caller;
use super::error::{Answer, Asked, Params};
use super::page::{self, Page};
use crate::ledger::{Result, error::not_found, manage, number, row_id};
use crate::rounds::Batch;

/// What was carried into a batch counts with it.
const SELECT: &str = "SELECT b.record, b.state, b.deadline, b.carried_into, b.round, b.cause, b.runs, b.sealed, \
     b.count + coalesce((SELECT sum(c.count) FROM batches c WHERE c.carried_into = b.id), 0), \
     b.bytes + coalesce((SELECT sum(c.bytes) FROM batches c WHERE c.carried_into = b.id), 0), \
     (SELECT sha256 FROM manifests m WHERE m.pool_id = b.pool_id AND m.seq = b.round) \
     FROM batches b";

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Asked(asked): Asked<Page>,
) -> Answer<Batches> {
    caller.check(&pool, Action::Inspect)?;
    let (limit, before) = (asked.limit()?, asked.before()?);
    let batches: Vec<BatchInfo> = api
        .0
        .ledger
        .read(move |sql| {
            let pool = manage::find_pool(sql, &pool)?;
            let mut statement = sql.prepare_cached(&format!(
                "{SELECT} WHERE b.id > ?1 AND b.id < ?2 ORDER BY b.id DESC LIMIT ?3"
            ))?;
            let end = before.map_or_else(|| row_id(pool + 1, 0), |before| row_id(pool, before));
            statement.query_and_then(params![row_id(pool, 0), end, limit], info)?.collect()
        })
        .await?;
    let cursor = page::next(&batches, limit, |batch| batch.batch);
    Ok(Json(Batches { batches, cursor }))
}

pub(super) async fn show(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, batch)): Params<(PoolName, u64)>,
) -> Answer<BatchInfo> {
    caller.check(&pool, Action::Inspect)?;
    let found = api
        .0
        .ledger
        .read(move |sql| {
            let pool = manage::find_pool(sql, &pool)?;
            let mut statement = sql.prepare_cached(&format!("{SELECT} WHERE b.id = ?1"))?;
            let found = statement.query_and_then([row_id(pool, batch)], info)?.next().transpose()?;
            found.ok_or_else(|| not_found(format!("batch {batch}")))
        })
        .await?;
    Ok(Json(found))
}

fn info(row: &Row<'_>) -> Result<BatchInfo> {
    let record: Batch = serde_json::from_str(&row.get::<_, String>(0)?)?;
    let cause: Option<String> = row.get(5)?;
    Ok(BatchInfo {
        batch: record.batch,
        state: row.get(1)?,
        group: record.group,
        opened: record.opened,
        deadline: Timestamp::clamped(row.get(2)?),
        count: row.get(8)?,
        bytes: row.get(9)?,
        carries: record.carries,
        carried_into: row.get::<_, Option<i64>>(3)?.map(number),
        sealed: row.get::<_, Option<i64>>(7)?.map(Timestamp::clamped),
        cause: cause.map(|cause| serde_json::from_value(cause.into())).transpose()?,
        round: row.get(4)?,
        runs: row.get(6)?,
        manifest_sha256: row.get::<_, Option<[u8; 32]>>(10)?.map(Sha256),
    })
}

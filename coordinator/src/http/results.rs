//! `/v1/pools/{pool}/results`.

use axum::Json;
use axum::extract::State;
use millpond_protocol::PoolName;
use millpond_protocol::access::Action;
use rusqlite::params;
use serde_json::json;

use super::Api;
use super::api::{ResultStory, Results, RolledBack};
use super::auth::Caller;
use super::error::{Answer, Asked, Params};
use super::page::{self, Page};
use crate::ledger::{Tx, history, manage};

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Asked(asked): Asked<Page>,
) -> Answer<Results> {
    caller.check(&pool, Action::Inspect)?;
    let (limit, before) = (asked.limit()?, asked.before()?);
    let results: Vec<ResultStory> = api
        .0
        .ledger
        .read(move |sql| {
            let pool = manage::find_pool(sql, &pool)?;
            let pointer: Option<u64> = sql
                .prepare_cached("SELECT pointer FROM pools WHERE id = ?1")?
                .query_row([pool], |row| row.get(0))?;
            let mut said = sql.prepare_cached(
                "SELECT count(*) FILTER (WHERE state = 'fetched'), count(*) FILTER (WHERE state = 'verified'), \
                 count(*) FILTER (WHERE state = 'applied'), count(*) FILTER (WHERE state = 'failed') \
                 FROM deliveries WHERE pool_id = ?1 AND version = ?2",
            )?;
            let results = history::results(sql, pool, before, limit)?;
            let stories = results.into_iter().map(|info| {
                let (fetched, verified, applied, failed) = said.query_row(params![pool, info.version], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })?;
                let current = pointer == Some(info.version);
                Ok(ResultStory { info, current, fetched, verified, applied, failed })
            });
            stories.collect()
        })
        .await?;
    let cursor = page::next(&results, limit, |result| result.info.version);
    Ok(Json(Results { results, cursor }))
}

pub(super) async fn roll_back(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, of)): Params<(PoolName, u64)>,
) -> Answer<RolledBack> {
    caller.check(&pool, Action::Manage)?;
    let job = move |tx: &mut Tx<'_>| {
        caller.still(tx)?;
        let id = tx.pool(&pool)?;
        let (version, new) = tx.roll_back(id, of)?;
        if new {
            let detail = json!({ "version": version, "of": of });
            tx.audit(Some(&pool), &caller.name(), &caller.source, "result-rollback", &detail)?;
        }
        Ok(RolledBack { version, of })
    };
    Ok(Json(api.0.ledger.write(job).await?))
}

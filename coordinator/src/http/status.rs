//! `/v1/status`: the server and its pools at a glance.

use axum::Json;
use axum::extract::State;
use millpond_protocol::PoolName;
use millpond_protocol::access::Action;
use millpond_storage::Findings;
use serde::Deserialize;

use super::Api;
use super::api::Status;
use super::auth::Caller;
use super::error::{Answer, Asked};
use super::pools::statuses;
use crate::ledger::{manage, now};

/// The query.
#[derive(Deserialize)]
pub(super) struct Which {
    /// This pool only.
    pool: Option<PoolName>,
}

pub(super) async fn show(
    State(api): State<Api>,
    caller: Caller,
    Asked(Which { pool }): Asked<Which>,
) -> Answer<Status> {
    let only = match pool {
        Some(pool) => {
            caller.check(&pool, Action::Inspect)?;
            Some(pool)
        }
        None => caller.scope()?,
    };
    let troubles = api.0.troubles.borrow().clone();
    let pools = api
        .0
        .ledger
        .read(move |sql| {
            if let Some(pool) = &only {
                manage::find_pool(sql, pool)?;
            }
            statuses(sql, only.as_ref(), &troubles)
        })
        .await?;
    let Findings { problems, warnings } = api.0.readiness.look(&api.0.ledger, &api.0.asks.storage).await;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: now(),
        started: api.0.started,
        ready: problems.is_empty(),
        problems,
        warnings,
        mqtt: format!("{}:{}", api.0.mqtt.host, api.0.mqtt.port),
        storage: api.0.storage_url.clone(),
        pools,
    }))
}

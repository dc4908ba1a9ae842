//! `/v1/gc`: retention, explained and run.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use millpond_protocol::access::Action;
use millpond_protocol::{PoolName, Refusal};
use serde::Deserialize;
use serde_json::json;

use super::Api;
use super::api::{Collected, Gc};
use super::auth::Caller;
use super::error::{Answer, Asked};
use super::page::Page;
use crate::ledger::{Tx, manage, now};
use crate::retention::{clock, explain};

/// Longest run that a request waits for: less than any time-out on the way. What is left over is said.
const LONGEST: Duration = Duration::from_secs(8);

/// The query.
#[derive(Deserialize)]
pub(super) struct Which {
    pool: Option<PoolName>,
    limit: Option<String>,
    cursor: Option<String>,
    /// The clock is right, whatever the server thinks of it.
    #[serde(default)]
    trust_clock: bool,
}

/// The pool that the request is about: the one that it names, or the caller's own; none: all of them.
fn scope(caller: &Caller, named: Option<PoolName>, action: Action<'_>) -> Result<Option<PoolName>, Refusal> {
    let pool = match named {
        Some(pool) => Some(pool),
        None => caller.scope()?,
    };
    if let Some(pool) = &pool {
        caller.check(pool, action)?;
    }
    Ok(pool)
}

pub(super) async fn explain(
    State(api): State<Api>,
    caller: Caller,
    Asked(which): Asked<Which>,
) -> Answer<Gc> {
    let pool = scope(&caller, which.pool, Action::Inspect)?;
    let limit = Page::new(which.limit, None).limit()?;
    let page = api.0.ledger.read(move |sql| {
        if let Some(pool) = &pool {
            manage::find_pool(sql, pool)?;
        }
        let now = now();
        let doubt = clock::last(sql)?.and_then(|trust| trust.doubt).filter(|_| which.cursor.is_none());
        let due = match which.cursor {
            None => explain::due(sql, pool.as_ref(), now)?,
            Some(_) => Vec::new(),
        };
        let after = which.cursor.unwrap_or_default();
        let objects = explain::page(sql, pool.as_ref(), &after, limit, now)?;
        let cursor = objects.last().filter(|_| objects.len() >= limit).map(|last| last.key.clone());
        Ok(Gc { waits: doubt.map(|doubt| doubt.to_string()), due, objects, cursor })
    });
    Ok(Json(page.await?))
}

pub(super) async fn run(
    State(api): State<Api>,
    caller: Caller,
    Asked(which): Asked<Which>,
) -> Answer<Collected> {
    let pool = scope(&caller, which.pool, Action::Manage)?;
    if let Some(pool) = pool.clone() {
        api.0.ledger.read(move |sql| manage::find_pool(sql, &pool)).await?;
    }
    let collector = &api.0.collector;
    if which.trust_clock {
        caller.check_admin()?;
    } else {
        collector.believe().await?;
    }
    let turn = collector.try_turn()?;
    let begun = if which.trust_clock { json!({"trusted_clock": now()}) } else { json!({}) };
    // Before anything is deleted, or believed: whoever asked may hang up in the middle.
    let (about, by) = (pool.clone(), caller.clone());
    let job = move |tx: &mut Tx<'_>| {
        by.still(tx)?;
        tx.audit(about.as_ref(), &by.name(), &by.source, "gc", &begun)
    };
    api.0.ledger.write(job).await?;
    let now = if which.trust_clock { collector.confirm().await? } else { collector.believe().await? };
    let collected = collector.collect_in(turn, now, pool.as_ref(), LONGEST).await?;
    let detail = json!(collected);
    let job =
        move |tx: &mut Tx<'_>| tx.audit(pool.as_ref(), &caller.name(), &caller.source, "gc-done", &detail);
    api.0.ledger.write(job).await?;
    Ok(Json(collected))
}

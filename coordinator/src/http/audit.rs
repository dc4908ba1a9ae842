//! `/v1/audit`: who did what, from where, when.

use axum::Json;
use axum::extract::State;
use millpond_protocol::access::Action;
use millpond_protocol::{PoolName, Refusal, Timestamp};
use rusqlite::params;
use serde::Deserialize;

use super::Api;
use super::api::{Audit, AuditEntry};
use super::auth::Caller;
use super::error::{Answer, Asked};
use super::page::{self, Page};

/// The query.
#[derive(Deserialize)]
pub(super) struct Which {
    /// Only what is about this pool.
    pool: Option<PoolName>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// Operators see what is about their own pool, an admin everything.
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Asked(Which { pool, limit, cursor }): Asked<Which>,
) -> Answer<Audit> {
    if let Some(pool) = &pool {
        caller.check(pool, Action::Inspect)?;
    }
    let own = caller.scope()?;
    // A name outlives its pool: what was about an earlier one of that name is nothing to this one's operators.
    let since = if own.is_some() {
        "AND at >= (SELECT created FROM pools WHERE name = ?1 AND removed IS NULL)"
    } else {
        ""
    };
    let pool = own.or(pool);
    let page = Page::new(limit, cursor);
    let (limit, before) = (page.limit()?, page.before()?);
    let entries: Vec<AuditEntry> = api
        .0
        .ledger
        .read(move |sql| {
            // One statement each, so that each has its index.
            let which = if pool.is_some() { "pool = ?1" } else { "?1 IS NULL" };
            let mut statement = sql.prepare_cached(&format!(
                "SELECT id, at, pool, who, source, action, detail FROM audit \
                 WHERE {which} AND id < ?2 {since} ORDER BY id DESC LIMIT ?3"
            ))?;
            let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let pool = pool.as_ref().map(PoolName::as_str);
            let rows = statement.query_and_then(params![pool, before, limit], |row| {
                let pool: Option<String> = row.get(2)?;
                Ok(AuditEntry {
                    id: row.get(0)?,
                    at: Timestamp::clamped(row.get(1)?),
                    pool: pool.map(|pool| pool.parse()).transpose().map_err(Refusal::from)?,
                    who: row.get(3)?,
                    from: row.get(4)?,
                    action: row.get(5)?,
                    detail: serde_json::from_str(&row.get::<_, String>(6)?)?,
                })
            })?;
            rows.collect::<crate::ledger::Result<_>>()
        })
        .await?;
    let cursor = page::next(&entries, limit, |entry| entry.id);
    Ok(Json(Audit { entries, cursor }))
}

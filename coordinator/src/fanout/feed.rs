//! The event feed: rows of the ledger, with uploads summed between them.

use millpond_protocol::Timestamp;
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::ledger::{PoolId, Result, number, row_id};

/// One message of the feed.
#[derive(Debug, Clone)]
pub struct Event {
    pub seq: u64,
    pub kind: String,
    /// The whole message: the event's own keys beside `seq`, `type` and `at`.
    pub body: Value,
}

/// Events of a pool after `after`, oldest first, at most `max`; uploads between two events are summed.
pub fn after(sql: &Connection, pool: PoolId, after: u64, max: usize) -> Result<Vec<Event>> {
    let mut statement = sql.prepare_cached(
        "SELECT seq, type, at, body FROM events WHERE pool_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![pool, after, max], |row| {
        Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get::<_, String>(3)?))
    })?;
    let mut feed = Vec::new();
    let mut last = after;
    for row in rows {
        let (seq, kind, at, body) = row?;
        feed.extend(uploads(sql, pool, last, Some(seq))?);
        feed.push(event(seq, kind, at, serde_json::from_str(&body)?));
        last = seq;
    }
    if feed.len() < usize::try_from(max).unwrap_or(usize::MAX) {
        feed.extend(uploads(sql, pool, last, None)?);
    }
    Ok(feed)
}

/// The sum of the uploads strictly between two numbers of the pool's sequence.
fn uploads(sql: &Connection, pool: PoolId, after: u64, before: Option<u64>) -> Result<Option<Event>> {
    let end = before.map_or_else(|| row_id(pool + 1, 0), |before| row_id(pool, before));
    let (first, last, count, rejected, bytes, at) = sql
        .prepare_cached(
            "SELECT min(seq), max(seq), count(*), count(rule), coalesce(sum(size), 0), max(received) FROM uploads \
             WHERE seq > ?1 AND seq < ?2",
        )?
        .query_row(params![row_id(pool, after), end], |row| {
            Ok((
                row.get::<_, Option<i64>>(0)?,
                row.get::<_, Option<i64>>(1)?,
                row.get::<_, u64>(2)?,
                row.get::<_, u64>(3)?,
                row.get::<_, u64>(4)?,
                row.get::<_, Option<i64>>(5)?,
            ))
        })?;
    let (Some(first), Some(last), Some(at)) = (first, last, at) else { return Ok(None) };
    let body =
        json!({"first_seq": number(first), "stored": count - rejected, "rejected": rejected, "bytes": bytes});
    Ok(Some(event(number(last), "uploads".to_owned(), at, body)))
}

fn event(seq: u64, kind: String, at: i64, mut body: Value) -> Event {
    if let Value::Object(keys) = &mut body {
        keys.insert("seq".into(), json!(seq));
        keys.insert("type".into(), json!(kind));
        keys.insert("at".into(), json!(Timestamp::clamped(at)));
    }
    Event { seq, kind, body }
}

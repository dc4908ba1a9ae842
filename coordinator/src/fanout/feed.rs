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

/// Uploads that one page looks at, so that it takes milliseconds however long the feed is.
pub const UPLOADS: u64 = 50_000;

/// A part of the feed.
#[derive(Debug)]
pub struct Page {
    /// Oldest first.
    pub events: Vec<Event>,
    /// The feed goes on after the last of them.
    pub more: bool,
}

/// The feed of a pool after `after`: at most `max` events, with the uploads between them summed. The page ends early
/// after [`UPLOADS`]; the next one goes on with another sum.
///
/// On a connection without a transaction of its own a commit in between may be seen in part: see
/// [`Ledger::read`](crate::ledger::Ledger::read).
pub fn after(sql: &Connection, pool: PoolId, after: u64, max: usize) -> Result<Page> {
    let mut statement = sql.prepare_cached(
        "SELECT seq, type, at, body FROM events WHERE pool_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![pool, after, max], |row| {
        Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get::<_, String>(3)?))
    })?;
    let mut events = Vec::new();
    let (mut last, mut told, mut left) = (after, 0, UPLOADS);
    for row in rows {
        let (seq, kind, at, body) = row?;
        events.extend(uploads(sql, pool, last, Some(seq), &mut left)?);
        if left == 0 {
            return Ok(Page { events, more: true });
        }
        events.push(event(seq, kind, at, serde_json::from_str(&body)?));
        told += 1;
        last = seq;
    }
    if told == max {
        return Ok(Page { events, more: true });
    }
    events.extend(uploads(sql, pool, last, None, &mut left)?);
    Ok(Page { events, more: left == 0 })
}

/// The sum of the uploads strictly between two numbers of the pool's sequence, as far as there is anything `left` to
/// look at.
fn uploads(
    sql: &Connection,
    pool: PoolId,
    after: u64,
    before: Option<u64>,
    left: &mut u64,
) -> Result<Option<Event>> {
    let end = before.map_or_else(|| row_id(pool + 1, 0), |before| row_id(pool, before));
    let (first, last, count, rejected, bytes, at) = sql
        .prepare_cached(
            "SELECT min(seq), max(seq), count(*), count(rule), coalesce(sum(size), 0), max(received) FROM \
             (SELECT seq, rule, size, received FROM uploads WHERE seq > ?1 AND seq < ?2 ORDER BY seq LIMIT ?3)",
        )?
        .query_row(params![row_id(pool, after), end, *left], |row| {
            Ok((
                row.get::<_, Option<i64>>(0)?,
                row.get::<_, Option<i64>>(1)?,
                row.get::<_, u64>(2)?,
                row.get::<_, u64>(3)?,
                row.get::<_, u64>(4)?,
                row.get::<_, Option<i64>>(5)?,
            ))
        })?;
    *left -= count;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millpond_protocol::{Principal, Role, Sha256};

    use super::*;
    use crate::ledger::Ledger;
    use crate::ledger::tokens::find_token;
    use crate::ledger::uploads::{Body, NewUpload};
    use crate::rounds::Policy;
    use crate::rounds::policy::Grouping;

    /// A pool in which every upload fills a batch, and its publisher.
    async fn pool_of_ones(ledger: &Ledger) -> (PoolId, Principal) {
        let make = |tx: &mut crate::ledger::Tx<'_>| {
            let policy = Policy { grouping: Grouping::Count, count: 1, ..Policy::default() };
            let (pool, _) = tx.apply_pool(&"p".parse()?, &policy)?;
            let token = Sha256::of(b"token");
            tx.add_member(pool, &"m".parse()?, Role::Publisher, &token)?;
            Ok((pool, find_token(tx.sql(), &token, tx.now())?.unwrap()))
        };
        ledger.write(make).await.unwrap()
    }

    fn upload(id: usize) -> NewUpload {
        NewUpload {
            upload: format!("u{id}").parse().unwrap(),
            name: None,
            content_type: None,
            meta: None,
            label: None,
            event_time: None,
            sha256: Sha256::of(b"x"),
            sha256_declared: false,
            received: None,
            size: 1,
            bundle: None,
            body: Body::Inline(bytes::Bytes::from_static(b"x")),
        }
    }

    /// Every number of the pool's sequence is an event's or lies in a sum: what a reader goes by is whole.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_reads_while_the_ledger_commits_misses_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let (pool, who) = pool_of_ones(&ledger).await;
        let writer = tokio::spawn({
            let ledger = ledger.clone();
            async move {
                for id in 0..1_500 {
                    let who = who.clone();
                    ledger.write(move |tx| tx.store_upload(pool, &who, upload(id))).await.unwrap();
                }
            }
        });
        let (mut seen, mut last) = (BTreeSet::new(), 0);
        loop {
            let done = writer.is_finished();
            let page = ledger.read(move |sql| after(sql, pool, last, 500)).await.unwrap();
            last = page.events.last().map_or(last, |event| event.seq);
            seen.extend(page.events.iter().filter(|event| event.kind != "uploads").map(|event| event.seq));
            if done && !page.more {
                break;
            }
        }
        writer.await.unwrap();
        let all = ledger.read(|sql| {
            let mut all = sql.prepare("SELECT seq FROM events")?;
            let all =
                all.query_map([], |row| row.get::<_, u64>(0))?.collect::<rusqlite::Result<BTreeSet<_>>>()?;
            Ok(all)
        });
        let missed: Vec<u64> = all.await.unwrap().difference(&seen).copied().collect();
        assert!(missed.is_empty(), "{missed:?}");
    }

    #[tokio::test]
    async fn a_page_looks_at_so_many_uploads_and_the_next_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let (pool, who) = pool_of_ones(&ledger).await;
        let flood = move |tx: &mut crate::ledger::Tx<'_>| {
            tx.sql().execute(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?3) \
                 INSERT INTO uploads (seq, member_id, upload, size, sha256, event_time, received, flags) \
                 SELECT ?1 + 1000 + i, ?2, 'u' || i, 1, x'00', 0, 0, 0 FROM n",
                params![row_id(pool, 0), who.id, UPLOADS + 10],
            )?;
            Ok(())
        };
        ledger.write(flood).await.unwrap();
        let first = ledger.read(move |sql| after(sql, pool, 0, 500)).await.unwrap();
        let sum = first.events.last().unwrap();
        assert!(first.more);
        assert_eq!((&sum.body["bytes"], &sum.body["first_seq"]), (&json!(UPLOADS), &json!(1_001)));
        let from = sum.seq;
        let rest = ledger.read(move |sql| after(sql, pool, from, 500)).await.unwrap();
        assert!(!rest.more);
        assert_eq!(rest.events[0].body["bytes"], json!(10));
    }
}

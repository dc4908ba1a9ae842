//! Why each object is there, and what the next run would do: the plan in words, for `gc --dry-run` and whoever asks.

use std::collections::HashMap;

use millpond_protocol::{PoolName, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::plan::{self, PoolRows, Verdict};
use super::rows::{self, Stage, Task};
use crate::ledger::{PoolId, Result, number};

/// An object of storage, and why it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    pub key: String,
    pub size: u64,
    /// Whose it is; absent for a pool that is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// `live` (needed by what goes on), `kept` (by policy), `due` (the next run dooms it), `granted` (on its way), `doomed`
    /// (the sweep deletes it), or `unowned` (it counts and no row says for what: nothing deletes it, `check` reports it).
    pub verdict: String,
    /// What it is and why, in words.
    pub why: String,
    /// When the policy does not keep it any more, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Something that the next run would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    pub pool: PoolName,
    /// What is to be deleted.
    pub what: String,
    pub why: String,
}

/// What an object is for.
enum Owner {
    Batch { id: i64, what: String },
    Story { pool: PoolId, round: u64 },
    Result { pool: PoolId, version: u64 },
}

/// Explains objects one after the other, with a memory of what they share.
struct Explainer<'a> {
    sql: &'a Connection,
    now: Timestamp,
    pools: HashMap<PoolId, PoolRows>,
    batches: HashMap<i64, Option<Verdict>>,
    results: HashMap<PoolId, HashMap<u64, Verdict>>,
}

/// At most `max` objects that are not deleted yet, of one pool or of all, in order of their keys, which begin after
/// `after`.
pub fn page(
    sql: &Connection,
    only: Option<&PoolName>,
    after: &str,
    max: usize,
    now: Timestamp,
) -> Result<Vec<Explained>> {
    let pools: HashMap<_, _> = rows::pools(sql)?.into_iter().collect();
    let named = |rows: &PoolRows| only == Some(&rows.name) && rows.removed.is_none();
    let mut of = pools.iter().filter(|(_, rows)| named(rows)).map(|(id, _)| *id);
    // `0` is the character after `/`.
    let (from, to) = match (only, of.next()) {
        (None, _) => (String::new(), "~".to_owned()),
        (Some(_), Some(id)) => (format!("{id}/"), format!("{id}0")),
        (Some(_), None) => return Ok(Vec::new()),
    };
    let mut explainer = Explainer { sql, now, pools, batches: HashMap::new(), results: HashMap::new() };
    let mut statement = sql.prepare_cached(
        "SELECT id, key, size, state, created FROM objects WHERE key > max(?1, ?2) AND key < ?3 AND state <> 'gone' \
         ORDER BY key LIMIT ?4",
    )?;
    let mut rows = statement.query(params![after, from, to, max])?;
    let mut page = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, key): (i64, String) = (row.get(0)?, row.get(1)?);
        let state: String = row.get(3)?;
        let pool = key.split('/').next().and_then(|id| id.parse::<PoolId>().ok());
        let pool = pool.and_then(|id| explainer.pools.get(&id)).map(|rows| rows.name.clone());
        let (verdict, why, until) = explainer.object(id, &state, Timestamp::clamped(row.get(4)?))?;
        page.push(Explained { key, size: row.get(2)?, pool, verdict, why, until });
    }
    Ok(page)
}

type Words = (String, String, Option<Timestamp>);

impl Explainer<'_> {
    fn object(&mut self, id: i64, state: &str, created: Timestamp) -> Result<Words> {
        let owner = owner(self.sql, id)?;
        if state == "granted" {
            return self.granted(id, created);
        }
        let Some(owner) = owner else {
            let (verdict, why) = match state {
                "doomed" => ("doomed", "it never came to count, or something newer took its place"),
                _ => ("unowned", "it counts, and no row says for what"),
            };
            return Ok((verdict.to_owned(), why.to_owned(), None));
        };
        let (what, verdict) = match owner {
            Owner::Batch { id, what } => (what, self.batch(id)?),
            Owner::Story { pool, round } => {
                (format!("round.json of round {round}"), self.story(pool, round)?)
            }
            Owner::Result { pool, version } => (format!("version {version}"), self.result(pool, version)?),
        };
        Ok(match (state, verdict) {
            ("doomed", _) => ("doomed".to_owned(), format!("{what}: not kept any more"), None),
            (_, Some(verdict)) => (verdict.word().to_owned(), format!("{what}: {verdict}"), verdict.until()),
            (_, None) => ("unowned".to_owned(), format!("{what}: it should be gone"), None),
        })
    }

    fn granted(&self, id: i64, created: Timestamp) -> Result<Words> {
        let granted = self
            .sql
            .prepare_cached(
                "SELECT g.expires, m.name || '/' || coalesce(g.upload, 'result of round ' || g.round) FROM grants g \
                 JOIN members m ON m.id = g.member_id WHERE g.object_id = ?1",
            )?
            .query_row([id], |row| Ok((Timestamp::clamped(row.get(0)?), row.get::<_, String>(1)?)))
            .optional()?;
        let (why, until) = match granted {
            Some((expires, whose)) => (format!("granted to {whose}"), Some(expires)),
            None => (format!("the server is writing it since {created}"), None),
        };
        Ok(("granted".to_owned(), why, until))
    }

    fn pool(&self, id: PoolId) -> Result<PoolRows> {
        self.pools.get(&id).cloned().map_or_else(|| rows::pool(self.sql, id), Ok)
    }

    fn batch(&mut self, id: i64) -> Result<Option<Verdict>> {
        if let Some(known) = self.batches.get(&id) {
            return Ok(*known);
        }
        let verdict = bytes_of(self.sql, &self.pool(id >> 40)?, id, self.now)?;
        self.batches.insert(id, verdict);
        Ok(verdict)
    }

    fn story(&self, pool: PoolId, round: u64) -> Result<Option<Verdict>> {
        let rows = self.pool(pool)?;
        let found = rows::round(self.sql, pool, round)?;
        Ok(found.map(|found| plan::story(&rows, &found, self.now)))
    }

    fn result(&mut self, pool: PoolId, version: u64) -> Result<Option<Verdict>> {
        if !self.results.contains_key(&pool) {
            let versions = rows::results(self.sql, pool)?;
            let verdicts = plan::results(&self.pool(pool)?, &versions, self.now);
            let of_pool = versions.iter().map(|row| row.version).zip(verdicts).collect();
            self.results.insert(pool, of_pool);
        }
        Ok(self.results.get(&pool).and_then(|verdicts| verdicts.get(&version)).copied())
    }
}

/// The verdict on the bytes of a batch; none if they are gone.
fn bytes_of(sql: &Connection, pool: &PoolRows, id: i64, now: Timestamp) -> Result<Option<Verdict>> {
    Ok(match rows::batch(sql, id)? {
        Some((batch, stage @ (Stage::Kept | Stage::Expiring(_)))) => rows::verdict(pool, &batch, stage, now),
        Some((_, Stage::Expired(_) | Stage::Forgetting(_) | Stage::Forgotten)) | None => None,
    })
}

/// What the plan says of the bytes of the batch with this row id, or of that which it was carried into; none once they are
/// not kept any more.
pub fn batch(sql: &Connection, id: i64, now: Timestamp) -> Result<Option<Verdict>> {
    let root = sql
        .prepare_cached("SELECT coalesce(carried_into, id) FROM batches WHERE id = ?1")?
        .query_row([id], |row| row.get(0))?;
    bytes_of(sql, &rows::pool(sql, id >> 40)?, root, now)
}

fn owner(sql: &Connection, object: i64) -> Result<Option<Owner>> {
    let found = sql
        .prepare_cached(
            "SELECT 'pack', coalesce(b.carried_into, b.id), p.n, b.batch FROM packs p JOIN batches b ON b.id = p.batch_id \
             WHERE p.object_id = ?1 \
             UNION ALL SELECT 'manifest', b.id, m.seq, b.batch FROM manifests m \
             JOIN batches b ON b.pool_id = m.pool_id AND b.round = m.seq WHERE m.object_id = ?1 \
             UNION ALL SELECT 'upload', coalesce(b.carried_into, b.id), u.seq, b.batch FROM uploads u \
             JOIN batches b ON b.id = u.batch_id WHERE u.object_id = ?1 \
             UNION ALL SELECT 'story', pool_id, round, 0 FROM rounds WHERE story_object = ?1 \
             UNION ALL SELECT 'result', pool_id, version, 0 FROM results WHERE object_id = ?1 LIMIT 1",
        )?
        .query_row([object], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get::<_, u64>(3)?))
        })
        .optional()?;
    let Some((kind, id, n, batch)) = found else { return Ok(None) };
    let whole = u64::try_from(n).unwrap_or_default();
    Ok(Some(match kind.as_str() {
        "pack" => Owner::Batch { id, what: format!("pack {n} of batch {batch}") },
        "manifest" => Owner::Batch { id, what: format!("manifest {n}") },
        "upload" => Owner::Batch { id, what: upload(sql, n)? },
        "story" => Owner::Story { pool: id, round: whole },
        _ => Owner::Result { pool: id, version: whole },
    }))
}

fn upload(sql: &Connection, seq: i64) -> Result<String> {
    let words = sql
        .prepare_cached(
            "SELECT 'upload ' || m.name || '/' || u.upload || ' of batch ' || (u.batch_id & 1099511627775) \
             FROM uploads u JOIN members m ON m.id = u.member_id WHERE u.seq = ?1",
        )?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    Ok(words.unwrap_or_else(|| format!("upload {}", number(seq))))
}

/// What the next run would begin with, in one pool or in all.
pub fn due(sql: &Connection, only: Option<&PoolName>, now: Timestamp) -> Result<Vec<Due>> {
    let mut all = Vec::new();
    for (id, pool) in rows::pools(sql)? {
        if only.is_some_and(|only| *only != pool.name) {
            continue;
        }
        for work in rows::due(sql, id, &pool, now)? {
            let what = match work.task {
                Task::Expire { batch, .. } => format!("the bytes of batch {batch}"),
                Task::Forget { batch, .. } => format!("keys and hashes of the uploads of batch {batch}"),
                Task::Result { version, .. } => format!("the bytes of version {version}"),
                Task::Story { round } => format!("attempts, log, deliveries and round.json of round {round}"),
                Task::Rejected { .. } => "rows of rejected uploads".to_owned(),
            };
            all.push(Due { pool: pool.name.clone(), what, why: work.verdict.to_string() });
        }
        let keeps = std::time::Duration::from_secs(pool.policy.keep_events_s);
        let old: u64 = sql
            .prepare_cached(
                "SELECT count(*) FROM (SELECT at FROM events WHERE pool_id = ?1 ORDER BY seq LIMIT 1000) WHERE at <= ?2",
            )?
            .query_row(params![id, now.before(keeps).as_millis()], |row| row.get(0))?;
        if old > 0 {
            let more = if old == 1_000 { " or more" } else { "" };
            let why = format!("they are older than {} s", keeps.as_secs());
            all.push(Due { pool: pool.name.clone(), what: format!("{old}{more} events"), why });
        }
    }
    Ok(all)
}

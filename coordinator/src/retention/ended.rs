//! What is left of rounds that ended: results, their stories, and the feed of events.

use std::time::Duration;

use millpond_protocol::Timestamp;
use rusqlite::params;
use serde_json::json;

use super::apply::{Done, Hands, tell};
use super::plan::{self, PoolRows};
use super::rows::{self, ROWS};
use crate::ledger::{PoolId, Result, Tx};

impl Hands<'_> {
    /// The bytes of a result: every version of the object goes at once.
    pub(super) async fn result(&mut self, object: i64) -> Done<()> {
        let (pool, now) = (self.pool, self.now);
        let gone = self
            .write(1, move |tx| {
                let rows = rows::pool(tx.sql(), pool)?;
                let versions = rows::results(tx.sql(), pool)?;
                let verdicts = plan::results(&rows, &versions, now);
                let of_object = || versions.iter().zip(&verdicts).filter(|(row, _)| row.object == object);
                if of_object().next().is_none() || !of_object().all(|(_, verdict)| verdict.is_due()) {
                    return Ok(None);
                }
                for (row, _) in of_object() {
                    let kept: u64 = tx
                        .sql()
                        .prepare_cached(
                            "UPDATE results SET expired = ?3, data = NULL WHERE pool_id = ?1 AND version = ?2 \
                             RETURNING iif(of IS NULL, size, 0)",
                        )?
                        .query_row(params![pool, row.version, now.as_millis()], |row| row.get(0))?;
                    tx.drop_kept(pool, kept)?;
                    tell(tx, pool, &rows, "result-expired", &json!({"version": row.version}))?;
                }
                rows::doom(tx, object)?;
                let size: u64 = tx
                    .sql()
                    .prepare_cached("SELECT size FROM objects WHERE id = ?1")?
                    .query_row([object], |row| row.get(0))?;
                Ok(Some((of_object().count() as u64, size)))
            })
            .await?;
        if let Some((versions, size)) = gone {
            self.done.results += versions;
            self.done.objects += 1;
            self.done.bytes += size;
        }
        Ok(())
    }

    /// Attempts, log, deliveries and `round.json` of a round; `round.json` goes last.
    pub(super) async fn story(&mut self, round: u64) -> Done<()> {
        let (pool, now) = (self.pool, self.now);
        for (table, which) in [
            ("round_logs", "pool_id = ?1 AND round = ?2"),
            (
                "deliveries",
                "pool_id = ?1 AND version IN (SELECT version FROM results WHERE pool_id = ?1 AND round = ?2)",
            ),
        ] {
            // A piece of a log has up to 64 KiB.
            let (key, most) =
                if table == "round_logs" { ("rowid", 64) } else { ("(version, member_id)", ROWS) };
            let columns = key.trim_matches(['(', ')']);
            let delete = format!(
                "DELETE FROM {table} WHERE {which} AND {key} IN (SELECT {columns} FROM {table} WHERE {which} LIMIT {most})"
            );
            loop {
                let delete = delete.clone();
                let deleted = self
                    .write(most, move |tx| {
                        if !story_is_due(tx, pool, round, now)? {
                            return Ok(0);
                        }
                        Ok(tx.sql().prepare_cached(&delete)?.execute(params![pool, round])?)
                    })
                    .await?;
                if deleted < most {
                    break;
                }
                if self.spent() {
                    return Ok(());
                }
            }
        }
        let ended = self
            .write(1, move |tx| {
                if !story_is_due(tx, pool, round, now)? {
                    return Ok(None);
                }
                tx.sql()
                    .prepare_cached("DELETE FROM attempts WHERE pool_id = ?1 AND round = ?2")?
                    .execute(params![pool, round])?;
                let object: Option<i64> = tx
                    .sql()
                    .prepare_cached(
                        "UPDATE rounds SET expired = ?3, params = NULL, ref = NULL WHERE pool_id = ?1 AND round = ?2 \
                         RETURNING story_object",
                    )?
                    .query_row(params![pool, round, now.as_millis()], |row| row.get(0))?;
                let doomed = object.map(|object| rows::doom(tx, object)).transpose()?;
                Ok(Some(u64::from(doomed == Some(true))))
            })
            .await?;
        if let Some(objects) = ended {
            self.done.rounds += 1;
            self.done.objects += objects;
        }
        Ok(())
    }

    /// Events that are older than the policy keeps them.
    pub(super) async fn events(&mut self, rows: &PoolRows) -> Done<()> {
        let keeps = Duration::from_secs(rows.policy.keep_events_s);
        let (pool, before, now) = (self.pool, self.now.before(keeps), self.now);
        loop {
            let found = self.ledger.read(move |sql| rows::old_events(sql, pool, before, now)).await?;
            let Some((last, count)) = found else { return Ok(()) };
            self.done.events += count as u64;
            self.write(count, move |tx| {
                tx.sql()
                    .prepare_cached("DELETE FROM events WHERE pool_id = ?1 AND seq <= ?2")?
                    .execute(params![pool, last])?;
                Ok(())
            })
            .await?;
            if self.spent() {
                return Ok(());
            }
        }
    }
}

fn story_is_due(tx: &Tx<'_>, pool: PoolId, round: u64, now: Timestamp) -> Result<bool> {
    let Some(found) = rows::round(tx.sql(), pool, round)? else { return Ok(false) };
    Ok(plan::story(&rows::pool(tx.sql(), pool)?, &found, now).is_due())
}

//! What is to be done for a pool, found from its rows; the most urgent first.

use std::time::Duration;

use millpond_protocol::{Refusal, limits};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::pack::{self, Fill};
use super::seal::{self, Sealed};
use super::{Context, Trouble, story};
use crate::ledger::clock::Moment;
use crate::ledger::{Ledger, PoolId, Result, row_id};
use crate::rounds::Event;

/// The next thing to do.
enum Step {
    /// Packs and manifest of a sealed batch.
    Seal(Box<Sealed>),
    /// A round's manifest is there and its core does not know.
    Ready(u64),
    /// Payloads that are in a pack.
    Purge { batch: i64, n: u64 },
    /// A full pack of an open batch.
    Pack(i64),
    /// `round.json` of an ended round.
    Story(u64),
}

/// Time after which a pool that has more to do waits for its next turn, as long as the step that is under way takes.
const TURN: Duration = Duration::from_secs(1);

/// Takes one step after the other until nothing is left, or the turn is over: then there may be more.
pub(super) async fn work(context: Context, pool: PoolId) -> std::result::Result<bool, Trouble> {
    let begun = Moment::now();
    while let Some(step) = context.ledger.read(move |sql| next(sql, pool)).await? {
        match step {
            Step::Seal(sealed) => seal::finish(&context, pool, *sealed).await?,
            Step::Ready(round) => ready(&context, pool, round).await?,
            Step::Purge { batch, n } => pack::purge(&context, batch, n).await?,
            Step::Pack(batch) => {
                if !pack::write(&context, pool, batch, Fill::Full).await? {
                    return Err(Trouble::Corrupt(format!("batch {batch} counts more than it has")));
                }
            }
            Step::Story(round) => story::write(&context, pool, round).await?,
        }
        if begun.elapsed() >= TURN {
            return Ok(true);
        }
    }
    Ok(false)
}

fn next(sql: &Connection, pool: PoolId) -> Result<Option<Step>> {
    let removed: bool = sql
        .prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM pools WHERE id = ?1 AND removed IS NULL)")?
        .query_row([pool], |row| row.get(0))?;
    if removed {
        return Ok(None);
    }
    if let Some(sealed) = seal::next(sql, pool)? {
        return Ok(Some(Step::Seal(Box::new(sealed))));
    }
    let unready: Option<u64> = sql
        .prepare_cached(
            "SELECT r.round FROM rounds r JOIN manifests m ON m.pool_id = r.pool_id AND m.seq = r.round \
             WHERE r.pool_id = ?1 AND r.state NOT IN ('committed', 'failed') \
             AND NOT json_extract(r.record, '$.ready') LIMIT 1",
        )?
        .query_row([pool], |row| row.get(0))
        .optional()?;
    if let Some(round) = unready {
        return Ok(Some(Step::Ready(round)));
    }
    let unpurged = sql
        .prepare_cached(
            "SELECT batch_id, n FROM packs WHERE purged = 0 AND batch_id >= ?1 AND batch_id < ?2 \
             ORDER BY batch_id, n LIMIT 1",
        )?
        .query_row(params![row_id(pool, 0), row_id(pool + 1, 0)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((batch, n)) = unpurged {
        return Ok(Some(Step::Purge { batch, n }));
    }
    if let Some(batch) = full(sql, pool)? {
        return Ok(Some(Step::Pack(batch)));
    }
    Ok(story::untold(sql, pool)?.map(Step::Story))
}

/// An open batch with a pack's worth of small files, in which every file counts.
fn full(sql: &Connection, pool: PoolId) -> Result<Option<i64>> {
    let mut statement = sql.prepare_cached(
        "SELECT id, small_bytes - packed_bytes, packed_bytes FROM batches \
         WHERE pool_id = ?1 AND state = 'open' AND selected = 'all' AND small_bytes - packed_bytes >= ?2 ORDER BY id",
    )?;
    let mut rows = statement.query(params![pool, limits::PACK_MIN])?;
    while let Some(row) = rows.next()? {
        let (unpacked, packed): (u64, u64) = (row.get(1)?, row.get(2)?);
        if unpacked >= limits::pack_room(packed) {
            return Ok(Some(row.get(0)?));
        }
    }
    Ok(None)
}

async fn ready(context: &Context, pool: PoolId, round: u64) -> std::result::Result<(), Trouble> {
    let job = context.ledger.write(move |tx| {
        // It may have ended since it was read.
        if tx.core(pool)?.round(round).is_some_and(|live| !live.ready) {
            tx.apply(pool, Event::Ready { round })?;
        }
        Ok(tx.core(pool)?.round(round).is_none_or(|live| live.ready))
    });
    match job.await? {
        true => Ok(()),
        false => Err(Trouble::Corrupt(format!("round {round} does not take that it is ready"))),
    }
}

/// Every pool.
pub(super) async fn pools(ledger: &Ledger) -> std::result::Result<Vec<PoolId>, Refusal> {
    ledger
        .read(|sql| {
            let mut statement =
                sql.prepare_cached("SELECT id FROM pools WHERE removed IS NULL ORDER BY id")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

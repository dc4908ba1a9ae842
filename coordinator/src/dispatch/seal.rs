//! A sealed batch: its last packs, its manifest, and the word to the core that the round is ready.

use millpond_failpoint::{Point, reach};
use millpond_protocol::{PoolName, Sha256};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::object::{self, Kind};
use super::pack::{self, Fill};
use super::{Context, Trouble, manifest, select};
use crate::ledger::objects::Object;
use crate::ledger::{PoolId, Result};
use crate::rounds::policy::Select;
use crate::rounds::{Batch, Event};

/// A sealed batch without a manifest, from its rows.
#[derive(Debug, Clone)]
pub(super) struct Sealed {
    pub pool_name: PoolName,
    pub batch: Batch,
    /// The batch's id and those of the batches that were carried into it, in order.
    pub batches: Vec<i64>,
    /// The manifest's `seq`.
    pub round: u64,
    pub cause: String,
    pub runs: bool,
    pub select: Select,
    pub policy_version: u64,
    /// Uploads, about: what memory is made ready for.
    pub count: u64,
    /// The hash of the manifest before.
    pub prev: Option<Sha256>,
}

/// The sealed batch of a pool whose manifest is the next one.
pub(super) fn next(sql: &Connection, pool: PoolId) -> Result<Option<Sealed>> {
    let last: Option<(u64, [u8; 32])> = sql
        .prepare_cached("SELECT seq, sha256 FROM manifests WHERE pool_id = ?1 ORDER BY seq DESC LIMIT 1")?
        .query_row([pool], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let round = last.map_or(0, |(seq, _)| seq) + 1;
    of(sql, pool, round, last.map(|(_, sha256)| Sha256(sha256)))
}

/// The sealed batch of a pool with this manifest, whose one before it has the hash `prev`.
pub(super) fn of(sql: &Connection, pool: PoolId, round: u64, prev: Option<Sha256>) -> Result<Option<Sealed>> {
    let found = sql
        .prepare_cached(
            "SELECT b.id, b.record, b.cause, b.runs, b.selected, b.policy_version, p.name FROM batches b \
             JOIN pools p ON p.id = b.pool_id WHERE b.pool_id = ?1 AND b.round = ?2",
        )?
        .query_row(params![pool, round], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, String>(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get::<_, String>(4)?,
                row.get(5)?,
                row.get::<_, String>(6)?,
            ))
        })
        .optional()?;
    let Some((id, record, cause, runs, selected, policy_version, name)) = found else { return Ok(None) };
    let mut statement =
        sql.prepare_cached("SELECT id, count FROM batches WHERE id = ?1 OR carried_into = ?1 ORDER BY id")?;
    let parts: Vec<(i64, u64)> =
        statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    Ok(Some(Sealed {
        pool_name: name.parse().map_err(millpond_protocol::Refusal::from)?,
        batch: serde_json::from_str(&record)?,
        batches: parts.iter().map(|(id, _)| *id).collect(),
        round,
        cause,
        runs,
        select: serde_json::from_value(selected.into())?,
        policy_version,
        count: parts.iter().map(|(_, count)| count).sum(),
        prev,
    }))
}

/// Writes what is missing of the batch. The manifest's row and the core's `Ready` become true together.
pub(super) async fn finish(
    context: &Context,
    pool: PoolId,
    sealed: Sealed,
) -> std::result::Result<(), Trouble> {
    let started = std::time::Instant::now();
    reach(Point::SealBegun);
    select::mark(context, sealed.batches.clone(), sealed.select).await?;
    let (round, batches, runs) = (sealed.round, sealed.batches.clone(), sealed.runs);
    let tails = async {
        for batch in batches.into_iter().filter(|_| runs) {
            while pack::write(context, pool, batch, Fill::Tail).await? {}
        }
        Ok(())
    };
    // Neither is given up half-way when the other fails, or its object would stay granted.
    let (packed, written): (std::result::Result<(), Trouble>, _) =
        tokio::join!(tails, write_manifest(context, pool, sealed));
    let (header, object) = written?;
    reach(Point::ManifestWritten);
    let id = object.id;
    let told = match packed {
        Ok(()) => context.ledger.write(move |tx| {
            tx.live_object(id)?;
            tx.sql()
                .prepare_cached(
                    "INSERT INTO manifests (pool_id, seq, sha256, header, object_id) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![pool, round, object.sha256.0.as_slice(), header, id])?;
            // A round that failed meanwhile is told when it is offered anew.
            if tx.core(pool)?.round(round).is_some_and(|live| !live.ready) {
                tx.apply(pool, Event::Ready { round })?;
            }
            Ok(())
        }).await.map_err(Trouble::from),
        Err(trouble) => Err(trouble),
    };
    reach(Point::ManifestCounted);
    if told.is_err() {
        object::doom(&context.ledger, id).await?;
    }
    metrics::histogram!("millpond_dispatch_seal_seconds").record(started.elapsed().as_secs_f64());
    told
}

async fn write_manifest(
    context: &Context,
    pool: PoolId,
    sealed: Sealed,
) -> std::result::Result<(String, Object), Trouble> {
    let manifest = manifest::build(context, pool, sealed).await?;
    let header = manifest.header.clone();
    let (size, sha256) = (manifest.size, manifest.sha256);
    let object = object::stream(context, pool, Kind::Manifest, size, sha256, manifest.pieces()).await?;
    Ok((header, object))
}

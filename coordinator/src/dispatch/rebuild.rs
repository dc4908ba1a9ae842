//! A manifest made again from its rows, to compare it with the one that was written.

use std::sync::Arc;

use millpond_protocol::Sha256;
use millpond_storage::Storage;
use rusqlite::{OptionalExtension as _, params};
use tokio::sync::Semaphore;

use super::{Context, Trouble, manifest, seal};
use crate::ledger::{Ledger, PoolId};

/// Hash and header of the manifest that the rows of a sealed batch give today; none if no batch was sealed as it. The rows
/// of its uploads must still be there.
///
/// # Errors
/// The rows do not read.
pub async fn rebuild_manifest(
    ledger: &Ledger,
    storage: &Storage,
    pool: PoolId,
    seq: u64,
) -> Result<Option<(Sha256, String)>, Trouble> {
    let sealed = ledger
        .read(move |sql| {
            let prev: Option<[u8; 32]> = sql
                .prepare_cached("SELECT sha256 FROM manifests WHERE pool_id = ?1 AND seq = ?2 - 1")?
                .query_row(params![pool, seq], |row| row.get(0))
                .optional()?;
            seal::of(sql, pool, seq, prev.map(Sha256))
        })
        .await?;
    let Some(sealed) = sealed else { return Ok(None) };
    let reading = Arc::new(Semaphore::new(1));
    let context = Context { ledger: ledger.clone(), storage: storage.clone(), reading };
    let manifest = manifest::build(&context, pool, sealed).await?;
    Ok(Some((manifest.sha256, manifest.header)))
}

//! The bytes of a batch: payloads, packs, objects of its uploads and the body of its manifest.

use millpond_failpoint::{Point, reach};
use millpond_protocol::Timestamp;
use rusqlite::params;
use serde_json::json;

use super::apply::{Done, Hands, tell};
use super::plan;
use super::rows::{self, ROWS, Stage};
use crate::ledger::{PoolId, Result, Tx};

/// Bytes that one job deletes: what waits behind it waits some milliseconds.
const BYTES: u64 = 4 << 20;

impl Hands<'_> {
    /// Payloads and objects of a batch.
    pub(super) async fn expire(&mut self, id: i64) -> Done<()> {
        let (pool, now) = (self.pool, self.now);
        let begun = self.write(1, move |tx| begin_to_expire(tx, pool, id, now)).await?;
        if !begun {
            return Ok(());
        }
        reach(Point::ExpireMarked);
        let parts = self.ledger.read(move |sql| rows::parts(sql, id)).await?;
        for part in &parts {
            let (part, mut after) = (*part, 0);
            loop {
                let page = self.ledger.read(move |sql| rows::held(sql, part, after)).await?;
                let Some(last) = page.last() else { break };
                after = last.seq;
                let payloads: Vec<_> =
                    page.iter().filter(|held| held.payload).map(|held| (held.seq, held.size)).collect();
                let objects: Vec<_> =
                    page.iter().filter_map(|held| Some((held.object?, held.size))).collect();
                let looked_only = payloads.is_empty() && objects.is_empty();
                self.payloads(payloads).await?;
                self.objects(objects).await?;
                // The next run looks from the beginning: a run that only looked would not have got on.
                if !looked_only && self.spent() {
                    return Ok(());
                }
            }
        }
        loop {
            let objects = self.ledger.read(move |sql| rows::packs_and_manifest(sql, pool, id)).await?;
            if objects.is_empty() {
                break;
            }
            self.objects(objects).await?;
        }
        reach(Point::ExpireDoomed);
        self.done.batches += 1;
        self.write(1, move |tx| {
            let bytes = rows::stage(tx, id, "expiring", "expired")?;
            tx.drop_kept(pool, bytes)
        })
        .await
    }

    async fn payloads(&mut self, payloads: Vec<(i64, u64)>) -> Done<()> {
        for chunk in chunks(&payloads) {
            self.done.payloads += chunk.len() as u64;
            self.done.bytes += chunk.iter().map(|(_, size)| size).sum::<u64>();
            let chunk = chunk.to_vec();
            self.write(chunk.len(), move |tx| {
                let mut delete = tx.sql().prepare_cached("DELETE FROM payloads WHERE seq = ?1")?;
                chunk.iter().try_for_each(|(seq, _)| delete.execute([seq]).map(drop))?;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn objects(&mut self, objects: Vec<(i64, u64)>) -> Done<()> {
        for chunk in objects.chunks(ROWS) {
            let chunk = chunk.to_vec();
            let (count, bytes) = self
                .write(chunk.len(), move |tx| {
                    let (mut count, mut bytes) = (0, 0);
                    for (object, size) in chunk {
                        if rows::doom(tx, object)? {
                            (count, bytes) = (count + 1, bytes + size);
                        }
                    }
                    Ok((count, bytes))
                })
                .await?;
            self.done.objects += count;
            self.done.bytes += bytes;
        }
        Ok(())
    }
}

/// Marks a batch and what was carried into it, if its bytes are due or were begun.
fn begin_to_expire(tx: &mut Tx<'_>, pool: PoolId, id: i64, now: Timestamp) -> Result<bool> {
    let Some((batch, found)) = rows::batch(tx.sql(), id)? else { return Ok(false) };
    let rows = rows::pool(tx.sql(), pool)?;
    match found {
        Stage::Kept if plan::uploads(&rows, &batch, now).is_due() => {}
        Stage::Expiring(_) => return Ok(true),
        Stage::Kept | Stage::Expired(_) | Stage::Forgetting(_) | Stage::Forgotten => return Ok(false),
    }
    rows::stage(tx, id, "kept", "expiring")?;
    tx.sql()
        .prepare_cached("UPDATE batches SET expired = ?2 WHERE id = ?1 OR carried_into = ?1")?
        .execute(params![id, now.as_millis()])?;
    let round = batch.sealed.map(|sealed| sealed.round);
    tell(tx, pool, &rows, "batch-expired", &json!({"batch": batch.batch, "round": round}))?;
    Ok(true)
}

/// Runs of at most [`ROWS`] rows and about [`BYTES`] bytes.
fn chunks(rows: &[(i64, u64)]) -> Vec<&[(i64, u64)]> {
    let (mut chunks, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, (_, size)) in rows.iter().enumerate() {
        bytes += size;
        if bytes >= BYTES || at + 1 - from == ROWS || at + 1 == rows.len() {
            chunks.push(&rows[from..=at]);
            (from, bytes) = (at + 1, 0);
        }
    }
    chunks
}

//! Manifests: the chain of hashes of every pool, and whether the rows still give what was written.

use millpond_protocol::Sha256;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::Value;

use super::{Check, Done};
use crate::dispatch;
use crate::ledger::{PoolId, Result};

/// Manifests read in one go.
const PAGE: usize = 200;

/// A manifest's row, with what its batch says.
struct Row {
    seq: u64,
    sha256: Sha256,
    header: String,
    /// Cause, count, bytes and policy version of the batch; none if there is no such batch.
    batch: Option<(String, u64, u64, u64)>,
    retention: String,
}

impl Check {
    pub(super) async fn manifests(&mut self) -> Done<()> {
        let pools: Vec<(PoolId, String, u64)> = self
            .ledger
            .read(|sql| {
                let mut statement = sql.prepare(
                    "SELECT id, name, (SELECT count(*) FROM manifests m WHERE m.pool_id = p.id) FROM pools p ORDER BY id",
                )?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await?;
        let of = pools.iter().map(|(_, _, count)| count).sum();
        for (pool, name, _) in pools {
            let (mut seq, mut prev) = (0, None);
            loop {
                let page = self.ledger.read(move |sql| page(sql, pool, seq)).await?;
                if page.is_empty() {
                    break;
                }
                for row in page {
                    self.progress("manifests", self.end.manifests, Some(of)).await?;
                    let about = format!("{name} manifest {}", row.seq);
                    if row.seq != seq + 1 {
                        let what = format!("it follows manifest {seq}: what is between is missing");
                        self.differs("manifest-chain", &about, what).await?;
                        // The one before is not known.
                        prev = header_prev(&row.header);
                    }
                    self.manifest(pool, &name, &about, &row, prev).await?;
                    (seq, prev) = (row.seq, Some(row.sha256));
                    self.end.manifests += 1;
                }
            }
        }
        Ok(())
    }

    async fn manifest(
        &mut self,
        pool: PoolId,
        name: &str,
        about: &str,
        row: &Row,
        prev: Option<Sha256>,
    ) -> Done<()> {
        let header: Value = serde_json::from_str(&row.header).unwrap_or_default();
        let number = |key: &str| header[key].as_u64();
        if header_prev(&row.header) != prev {
            let hash = prev.map_or_else(|| "null".to_owned(), |prev| prev.to_string());
            let what = format!("its header names {} as the one before, which is {hash}", header["prev"]);
            self.differs("manifest-chain", about, what).await?;
        }
        if number("seq") != Some(row.seq) || header["pool"].as_str() != Some(name) {
            let what = format!("its header is that of manifest {} of pool {}", header["seq"], header["pool"]);
            self.differs("manifest-header", about, what).await?;
        }
        let Some((cause, count, bytes, policy)) = &row.batch else {
            return self.differs("manifest-header", about, "no batch was sealed as it").await;
        };
        let said = (number("count"), number("bytes"), number("policy_version"), header["cause"].as_str());
        if said != (Some(*count), Some(*bytes), Some(*policy), Some(cause)) {
            let what = format!(
                "its header counts {} uploads of {} bytes by {} under policy {}, its batch {count} of {bytes} by {cause} under {policy}",
                header["count"], header["bytes"], header["cause"], header["policy_version"]
            );
            self.differs("manifest-header", about, what).await?;
        }
        if !matches!(row.retention.as_str(), "kept" | "expiring" | "expired") {
            return Ok(());
        }
        let rebuilt = dispatch::rebuild_manifest(&self.ledger, &self.storage, pool, row.seq).await;
        if matches!(&rebuilt, Ok(Some(rebuilt)) if *rebuilt == (row.sha256, row.header.clone())) {
            self.end.rebuilt += 1;
            return Ok(());
        }
        // Retention may have begun to delete its rows meanwhile.
        let seq = row.seq;
        let retention = self.ledger.read(move |sql| retention(sql, pool, seq)).await?;
        if matches!(retention.as_deref(), Some("forgetting" | "forgotten")) {
            return Ok(());
        }
        let what = match rebuilt {
            Ok(Some((sha256, _))) if sha256 != row.sha256 => {
                format!(
                    "it was written with hash {}, and the rows of its uploads give {sha256} now",
                    row.sha256
                )
            }
            Ok(Some((_, header))) => format!("its header was {header}"),
            Ok(None) => "no batch was sealed as it".to_owned(),
            Err(trouble) => format!("it cannot be made again from its rows: {trouble}"),
        };
        self.differs("manifest-rows", about, what).await
    }
}

fn header_prev(header: &str) -> Option<Sha256> {
    let header: Value = serde_json::from_str(header).ok()?;
    header["prev"].as_str()?.parse().ok()
}

fn page(sql: &Connection, pool: PoolId, after: u64) -> Result<Vec<Row>> {
    let mut statement = sql.prepare_cached(
        "SELECT m.seq, m.sha256, m.header, b.cause, \
         (SELECT sum(count) FROM batches c WHERE c.id = b.id OR c.carried_into = b.id), \
         (SELECT sum(bytes) FROM batches c WHERE c.id = b.id OR c.carried_into = b.id), \
         b.policy_version, coalesce(b.retention, 'forgotten') FROM manifests m \
         LEFT JOIN batches b ON b.pool_id = m.pool_id AND b.round = m.seq \
         WHERE m.pool_id = ?1 AND m.seq > ?2 ORDER BY m.seq LIMIT ?3",
    )?;
    let rows = statement.query_map(params![pool, after, PAGE], |row| {
        let cause: Option<String> = row.get(3)?;
        let batch = match cause {
            Some(cause) => Some((cause, row.get(4)?, row.get(5)?, row.get(6)?)),
            None => None,
        };
        Ok(Row {
            seq: row.get(0)?,
            sha256: Sha256(row.get(1)?),
            header: row.get(2)?,
            batch,
            retention: row.get(7)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn retention(sql: &Connection, pool: PoolId, seq: u64) -> Result<Option<String>> {
    let found = sql
        .prepare_cached("SELECT retention FROM batches WHERE pool_id = ?1 AND round = ?2")?
        .query_row(params![pool, seq], |row| row.get(0))
        .optional()?;
    Ok(found)
}

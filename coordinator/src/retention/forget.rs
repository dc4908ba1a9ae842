//! The rows of uploads whose bytes are long gone, and of those that were rejected.

use rusqlite::OptionalExtension as _;

use super::apply::{Done, Hands};
use super::plan;
use super::rows::{self, ROWS, Stage};
use crate::ledger::quota::ROW_SQL;
use crate::ledger::row_id;

impl Hands<'_> {
    /// The rows of a batch's uploads, and what else was kept for them.
    pub(super) async fn forget(&mut self, id: i64) -> Done<()> {
        let now = self.now;
        let begun = self
            .write(1, move |tx| {
                let Some((batch, found)) = rows::batch(tx.sql(), id)? else { return Ok(false) };
                match found {
                    Stage::Expired(since) if plan::keys(batch.batch, since, now).is_due() => {
                        rows::stage(tx, id, "expired", "forgetting")?;
                        Ok(true)
                    }
                    Stage::Forgetting(_) => Ok(true),
                    Stage::Kept | Stage::Expiring(_) | Stage::Expired(_) | Stage::Forgotten => Ok(false),
                }
            })
            .await?;
        if !begun {
            return Ok(());
        }
        for part in self.ledger.read(move |sql| rows::parts(sql, id)).await? {
            let page = format!("SELECT seq FROM uploads WHERE batch_id = {part} ORDER BY seq LIMIT {ROWS}");
            if !self.forget_uploads(page).await? {
                return Ok(());
            }
            for table in ["batch_members", "packs"] {
                let key = if table == "packs" { "n" } else { "member_id" };
                let delete = format!(
                    "DELETE FROM {table} WHERE batch_id = ?1 AND {key} IN \
                     (SELECT {key} FROM {table} WHERE batch_id = ?1 LIMIT {ROWS})"
                );
                loop {
                    let delete = delete.clone();
                    let deleted =
                        self.write(ROWS, move |tx| Ok(tx.sql().prepare_cached(&delete)?.execute([part])?));
                    if deleted.await? < ROWS {
                        break;
                    }
                }
            }
        }
        self.write(1, move |tx| rows::stage(tx, id, "forgetting", "forgotten").map(drop)).await
    }

    /// Deletes uploads that `page` finds, until it finds none; false: the run ended before.
    async fn forget_uploads(&mut self, page: String) -> Done<bool> {
        loop {
            let query = page.clone();
            let seqs: Vec<i64> = self
                .ledger
                .read(move |sql| {
                    let mut statement = sql.prepare(&query)?;
                    let rows = statement.query_map([], |row| row.get(0))?;
                    Ok(rows.collect::<rusqlite::Result<_>>()?)
                })
                .await?;
            if seqs.is_empty() {
                return Ok(true);
            }
            self.done.uploads += seqs.len() as u64;
            let pool = self.pool;
            self.write(seqs.len(), move |tx| {
                let mut freed: u64 = 0;
                {
                    // Not RETURNING, which makes a table of its own for each row.
                    let counts = format!("SELECT {ROW_SQL} FROM uploads WHERE seq = ?1");
                    let mut counts = tx.sql().prepare_cached(&counts)?;
                    let mut superseded = tx.sql().prepare_cached("DELETE FROM superseded WHERE seq = ?1")?;
                    let mut uploads = tx.sql().prepare_cached("DELETE FROM uploads WHERE seq = ?1")?;
                    for seq in seqs {
                        freed += counts.query_row([seq], |row| row.get::<_, u64>(0)).optional()?.unwrap_or(0);
                        superseded.execute([seq])?;
                        uploads.execute([seq])?;
                    }
                }
                tx.drop_kept(pool, freed)
            })
            .await?;
            if self.spent() {
                return Ok(false);
            }
        }
    }

    /// The rows of rejected uploads up to `last`.
    pub(super) async fn rejected(&mut self, last: i64) -> Done<()> {
        let first = row_id(self.pool, 0);
        let page = format!(
            "SELECT seq FROM uploads WHERE batch_id IS NULL AND seq > {first} AND seq <= {last} ORDER BY seq LIMIT {ROWS}"
        );
        self.forget_uploads(page).await.map(drop)
    }
}

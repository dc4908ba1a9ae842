//! What is removed by and by: files without a row, and uploads in parts that nobody goes on with.

use std::sync::Arc;

use super::super::catalog::{CatalogError, Expired};
use super::{Store, StoreError, now_ms, run};
use crate::limits::embedded as limits;

impl Store {
    /// Removes files that no row names. Blocks; reads every directory and the name of every file in the catalogue.
    pub(in super::super) fn sweep(&self) -> Result<(), CatalogError> {
        let swept = self.blobs.sweep(|file| self.room.holds(file), |first| self.catalog.files(first))?;
        if swept.unfinished + swept.orphans > 0 {
            tracing::info!(swept.unfinished, swept.orphans, "removed bodies that no object has");
        }
        if swept.missing > 0 {
            tracing::error!(swept.missing, "objects have lost their bodies");
        }
        Ok(())
    }

    /// Ends uploads in parts to which nothing has come since `idle_ms`.
    pub(in super::super) async fn expire(self: Arc<Self>, idle_ms: i64) -> Result<(), StoreError> {
        run(self.room.freeing(), async move {
            let ended_ms = now_ms() - limits::REMEMBER_MS;
            loop {
                let expired = self.catalog.expire(idle_ms, ended_ms).await?;
                if expired == Expired::default() {
                    return Ok(());
                }
                if !expired.freed.is_empty() {
                    tracing::info!(
                        uploads = expired.freed.len(),
                        "ended uploads in parts that nobody went on with"
                    );
                }
                self.discard(expired.freed);
            }
        })
        .await
    }
}

//! Rows that go by and by: the memory of asks, and what is left of the members of removed pools.

use std::time::Duration;

use millpond_protocol::limits;
use rusqlite::params;
use tokio_util::sync::CancellationToken;

use super::tx::Tx;
use super::{Ledger, Result};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(600);
/// Rows deleted in one job, so that nobody waits long behind it.
const PAGE: usize = 1_000;

/// Forgets what is too old, now and every ten minutes, until `shutdown`.
pub async fn run(ledger: Ledger, shutdown: CancellationToken) {
    let mut every = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = every.tick() => {}
        }
        // What fails now is tried again at the next look.
        while matches!(ledger.write(|tx| tx.forget_asks()).await, Ok(PAGE)) {}
        while matches!(ledger.write(|tx| tx.end_members()).await, Ok(true)) {}
    }
}

impl Tx<'_> {
    /// Forgets a page of the asks that are older than their memory; how many.
    pub fn forget_asks(&mut self) -> Result<usize> {
        let before = self.now.before(limits::ASK_MEMORY).as_millis();
        Ok(self
            .sql
            .prepare_cached(
                "DELETE FROM asks WHERE (member_id, op, ask) IN \
                 (SELECT member_id, op, ask FROM asks WHERE at < ?1 LIMIT ?2)",
            )?
            .execute(params![before, PAGE as i64])?)
    }
}

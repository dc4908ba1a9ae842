//! Tokens and join tokens that hold for a time: what ends with them.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ledger::{Ledger, now, tokens};

/// Between two looks: sessions end that much after their token at the latest.
const EVERY: Duration = Duration::from_millis(500);

/// Ends the sessions of members whose token has expired, until `shutdown`.
pub async fn run(ledger: Ledger, shutdown: CancellationToken) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = every.tick() => {}
        }
        let due = ledger.look(|sql| tokens::is_any_expired(sql, now())).await;
        if matches!(due, Ok(true)) {
            // What fails now is tried again at the next look; an expired token opens nothing meanwhile.
            let _ = ledger.write(|tx| tx.expire_tokens()).await;
        }
    }
}

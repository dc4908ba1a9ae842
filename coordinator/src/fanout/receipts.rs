//! Receipts: one cursor a member over its upload rows, from its first subscription on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use millpond_broker::{GateHandle, MemberMessage, ReceiptRow};
use millpond_protocol::message::Receipt;
use millpond_protocol::{Principal, Refusal, limits, topic};
use rusqlite::params;

use crate::ledger::{Ledger, uploads};

/// How long acknowledgements are gathered before the cursors move. A crash in between repeats receipts, never loses one.
const GATHER: Duration = Duration::from_millis(200);

/// The `seq` after which `who` has receipts to come.
pub async fn cursor(ledger: &Ledger, who: &Principal) -> Result<i64, Refusal> {
    let id = who.id;
    let known = ledger
        .look(move |sql| {
            let cursor: Option<i64> = sql
                .prepare_cached("SELECT receipt_cursor FROM members WHERE id = ?1")?
                .query_row([id], |row| row.get(0))?;
            cursor.map(|cursor| uploads::replay_from(sql, id, cursor, crate::ledger::now())).transpose()
        })
        .await?;
    if let Some(cursor) = known {
        return Ok(cursor);
    }
    ledger
        .write(move |tx| {
            let newest: i64 = tx
                .sql()
                .prepare_cached("SELECT coalesce(max(seq), 0) FROM uploads WHERE member_id = ?1")?
                .query_row([id], |row| row.get(0))?;
            tx.sql()
                .prepare_cached(
                    "UPDATE members SET receipt_cursor = coalesce(receipt_cursor, ?2) WHERE id = ?1 \
                     RETURNING receipt_cursor",
                )?
                .query_row(params![id, newest], |row| row.get(0))
                .map_err(Into::into)
        })
        .await
}

/// Receipts after `after`, oldest first.
pub async fn after(
    ledger: &Ledger,
    who: &Principal,
    after: i64,
    max: usize,
) -> Result<Vec<ReceiptRow>, Refusal> {
    let id = who.id;
    let rows = ledger.look(move |sql| uploads::receipts_after(sql, id, after, max)).await?;
    Ok(rows.into_iter().map(|(seq, receipt)| ReceiptRow { seq, payload: payload(&receipt) }).collect())
}

/// Sends a receipt that is no row of its own: to live connections, once.
pub fn tell(gate: &GateHandle, who: &Principal, receipt: &Receipt) {
    let topic = topic::receipt(&who.pool, &who.name);
    let message = MemberMessage { topic, payload: payload(receipt), correlation_data: None };
    gate.to_member(&who.pool, &who.name, message);
}

/// A receipt's bytes, held under its limit by shortening its words.
pub fn payload(receipt: &Receipt) -> Bytes {
    let whole = serde_json::to_vec(receipt).unwrap_or_default();
    if whole.len() <= limits::RECEIPT_MAX {
        return whole.into();
    }
    let mut short = receipt.clone();
    if let Some(error) = &mut short.error {
        error.hint = None;
        error.message.truncate(error.message.floor_char_boundary(96));
    }
    short.upload.truncate(short.upload.floor_char_boundary(64));
    serde_json::to_vec(&short).unwrap_or_default().into()
}

/// Moves members' cursors, a batch of acknowledgements at a time.
#[derive(Debug, Clone, Default)]
pub struct Cursors(Arc<Mutex<HashMap<i64, i64>>>);

impl Cursors {
    /// Starts the task that writes them.
    pub fn start(ledger: Ledger) -> Self {
        let cursors = Self::default();
        let weak = Arc::downgrade(&cursors.0);
        tokio::spawn(async move {
            let mut every = tokio::time::interval(GATHER);
            loop {
                every.tick().await;
                let Some(gathered) = weak.upgrade() else { return };
                Self(gathered).advance(&ledger).await;
            }
        });
        cursors
    }

    /// Writes what has gathered.
    pub(crate) async fn advance(&self, ledger: &Ledger) {
        let moved = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if !moved.is_empty() {
            // What fails is sent again to whoever comes back.
            let _ = write(ledger, moved).await;
        }
    }

    /// A connection of the member acknowledged everything up to `seq`.
    pub fn acknowledged(&self, member: i64, seq: i64) {
        let mut gathered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = gathered.entry(member).or_insert(seq);
        *newest = seq.max(*newest);
    }
}

async fn write(ledger: &Ledger, moved: HashMap<i64, i64>) -> Result<(), Refusal> {
    ledger
        .write(move |tx| {
            let mut update = tx.sql().prepare_cached(
                "UPDATE members SET receipt_cursor = ?2 WHERE id = ?1 AND receipt_cursor < ?2",
            )?;
            for (member, seq) in moved {
                update.execute(params![member, seq])?;
            }
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond_protocol::message::Outcome;
    use millpond_protocol::{Code, Sha256, Timestamp};

    #[test]
    fn no_receipt_is_longer_than_its_limit() {
        let error = Refusal::new(Code::Rejected, "ü".repeat(2_000)).hint("h".repeat(2_000)).limit(u64::MAX);
        let receipt = Receipt {
            upload: "u".repeat(5_000),
            outcome: Outcome::Rejected,
            batch: Some(u64::MAX),
            event_time: Some(Timestamp::MAX),
            late: true,
            clamped: true,
            sha256: Some(Sha256::of(b"")),
            bundle: Some("b".repeat(64)),
            error: Some(error),
        };
        let bytes = payload(&receipt);
        assert!(bytes.len() <= limits::RECEIPT_MAX, "{}", bytes.len());
        assert!(serde_json::from_slice::<Receipt>(&bytes).unwrap().error.unwrap().message.starts_with("ü"));
    }
}

//! `delivery/{version}`: what a member says of a result. A message that comes again late takes nothing back: who has applied
//! a version has fetched it.

use futures_util::future::BoxFuture;
use millpond_broker::Incoming;
use millpond_protocol::message::{Delivery, DeliveryState};
use millpond_protocol::{Code, Principal, Refusal, Sha256};
use rusqlite::{OptionalExtension as _, params};
use serde_json::json;

use super::Ctx;

/// Longest reason that is kept, in bytes.
const REASON_MAX: usize = 1_024;

pub(super) fn take(
    ctx: &Ctx,
    who: Principal,
    version: u64,
    message: &Incoming,
) -> BoxFuture<'static, Result<(), Refusal>> {
    let delivery: Delivery = match serde_json::from_slice(&message.payload) {
        Ok(delivery) => delivery,
        Err(e) => {
            let refusal = Refusal::new(Code::Malformed, format!("the delivery does not read: {e}"))
                .hint(r#"{"state": "fetched" | "verified" | "applied" | "failed", "sha256"?, "reason"?}"#);
            return Box::pin(std::future::ready(Err(refusal)));
        }
    };
    Box::pin(ctx.ledger.write(move |tx| {
        let pool = tx.pool_of(&who)?;
        let sha256: Option<[u8; 32]> = tx
            .sql()
            .prepare_cached("SELECT sha256 FROM results WHERE pool_id = ?1 AND version = ?2")?
            .query_row(params![pool, version], |row| row.get(0))
            .optional()?;
        let Some(sha256) = sha256.map(Sha256) else {
            return Err(Refusal::new(Code::NotFound, format!("there is no version {version}")).into());
        };
        let whole = matches!(delivery.state, DeliveryState::Verified | DeliveryState::Applied);
        if whole && delivery.sha256.is_some_and(|named| named != sha256) {
            let message = format!("version {version} has the SHA-256 {sha256}");
            return Err(Refusal::new(Code::Mismatch, message).hint("fetch it again").into());
        }
        let reason = delivery.reason.map(|reason| clip(reason, REASON_MAX));
        let changed = tx
            .sql()
            .prepare_cached(
                "INSERT INTO deliveries (pool_id, version, member_id, state, sha256, reason, at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET \
                 state = excluded.state, sha256 = excluded.sha256, reason = excluded.reason, at = excluded.at \
                 WHERE (state, sha256, reason) IS NOT (excluded.state, excluded.sha256, excluded.reason) \
                 AND NOT (excluded.state = 'fetched' AND state IN ('verified', 'applied')) \
                 AND NOT (excluded.state = 'verified' AND state = 'applied')",
            )?
            .execute(params![
                pool,
                version,
                who.id,
                delivery.state.as_str(),
                delivery.sha256.map(|sha256| sha256.0),
                reason,
                tx.now().as_millis()
            ])?;
        if changed > 0 && delivery.state == DeliveryState::Failed {
            tx.event(pool, "delivery-failed", &json!({"member": who.name, "version": version, "reason": reason}))?;
        }
        metrics::counter!("millpond_deliveries_total", "state" => delivery.state.as_str()).increment(1);
        Ok(())
    }))
}

/// At most `max` bytes of a text, cut between characters.
fn clip(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
    }
    text
}

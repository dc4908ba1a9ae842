//! `result/{round}/{attempt}`: the one file that a round returns, inline.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use millpond_broker::Incoming;
use millpond_failpoint::{Point, reach};
use millpond_protocol::message::{Outcome, Receipt};
use millpond_protocol::{Code, Principal, Refusal, Sha256, limits};

use super::properties::{self, Properties};
use super::{Ctx, stage};
use crate::ledger::results::{Committed, NewResult};

pub(super) fn take(
    ctx: Ctx,
    who: Principal,
    round: u64,
    attempt: u32,
    message: Incoming,
) -> BoxFuture<'static, Result<(), Refusal>> {
    Box::pin(async move {
        let id = format!("result/{round}/{attempt}");
        match commit(&ctx, &who, round, attempt, &message).await {
            Ok((sha256, committed)) => {
                let receipt = Receipt {
                    upload: id,
                    outcome: Outcome::Stored,
                    batch: Some(committed.batch),
                    event_time: None,
                    late: false,
                    clamped: false,
                    sha256: Some(sha256),
                    bundle: None,
                    error: None,
                };
                ctx.tell(&who, &receipt);
                Ok(())
            }
            Err(refusal) => {
                ctx.tell_refusal(&who, id, None, &refusal);
                Err(refusal)
            }
        }
    })
}

async fn commit(
    ctx: &Ctx,
    who: &Principal,
    round: u64,
    attempt: u32,
    message: &Incoming,
) -> Result<(Sha256, Committed), Refusal> {
    let properties = Properties::of(message)?;
    let sha256 = Sha256::of(&message.payload);
    properties::matches(properties.sha256, sha256)?;
    if message.payload.is_empty() {
        return Err(Refusal::new(Code::Malformed, "a result has at least one byte")
            .hint("ask `fail` to give the round back without a result"));
    }
    // Who cannot commit is told so before anything is written.
    if let Some(repeat) = check(ctx, who, round, attempt, sha256).await? {
        return Ok((sha256, repeat));
    }
    let object = stage::object(ctx, who, stage::Kind::Result, sha256, message.payload.clone()).await?;
    let new = NewResult {
        round,
        attempt,
        name: properties.name,
        content_type: properties.content_type,
        size: object.size,
        sha256,
        object: object.id,
        data: inline(&message.payload),
    };
    let writer = who.clone();
    let committed = ctx
        .ledger
        .write(move |tx| {
            let pool = tx.pool_of(&writer)?;
            tx.commit_result(pool, &writer, new)
        })
        .await;
    reach(Point::ResultCommitted);
    if !matches!(&committed, Ok(committed) if !committed.repeated) {
        stage::doom(ctx, object.id);
    }
    Ok((sha256, committed?))
}

async fn check(
    ctx: &Ctx,
    who: &Principal,
    round: u64,
    attempt: u32,
    sha256: Sha256,
) -> Result<Option<Committed>, Refusal> {
    let who = who.clone();
    ctx.ledger
        .write(move |tx| {
            let pool = tx.pool_of(&who)?;
            tx.may_commit(pool, &who, round, attempt, sha256)
        })
        .await
}

/// The bytes that the pool's `result/data` will show, where they are small enough.
fn inline(payload: &Bytes) -> Option<Bytes> {
    (payload.len() <= limits::SMALL_MAX).then(|| payload.clone())
}

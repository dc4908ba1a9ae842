//! `up/{upload}[/{t}]`: one file.

use futures_util::future::BoxFuture;
use millpond_broker::Incoming;
use millpond_failpoint::{Point, reach};
use millpond_protocol::message::Outcome;
use millpond_protocol::{Principal, Refusal, Sha256, UploadId, limits};

use super::properties::{self, Properties};
use super::{Ctx, stage};
use crate::ledger::uploads::{Body, NewUpload, Stored};
use crate::rounds::policy::Grouping;

pub(super) fn take(
    ctx: Ctx,
    who: Principal,
    upload: UploadId,
    at: Option<String>,
    message: Incoming,
) -> BoxFuture<'static, Result<(), Refusal>> {
    let parsed = parse(upload.clone(), &message);
    // A small file takes its place in the queue in this call; only a large one waits for storage first.
    let small = match &parsed {
        Ok(new) if message.payload.len() <= limits::SMALL_MAX => {
            Some(store(&ctx, &who, new.clone(), at.clone()))
        }
        _ => None,
    };
    Box::pin(async move {
        let outcome = match (parsed, small) {
            (Err(refusal), _) => Err(refusal),
            (Ok(_), Some(stored)) => stored.await,
            (Ok(new), None) => {
                let result = stage::upload(&ctx, &who, new, at, message.payload).await;
                if let Err(refusal) = &result {
                    tracing::debug!(%refusal, upload = %upload, "large upload not stored");
                }
                result
            }
        };
        reach(Point::UploadCommitted);
        settle(&ctx, &who, upload.as_str(), outcome)
    })
}

fn parse(upload: UploadId, message: &Incoming) -> Result<NewUpload, Refusal> {
    let properties = Properties::of(message)?;
    let sha256 = Sha256::of(&message.payload);
    properties::matches(properties.sha256, sha256)?;
    Ok(NewUpload {
        upload,
        name: properties.name,
        content_type: properties.content_type,
        meta: properties.meta,
        label: properties.label,
        event_time: properties.event_time,
        received: None,
        sha256,
        sha256_declared: properties.sha256.is_some(),
        size: message.payload.len() as u64,
        bundle: None,
        body: Body::Inline(message.payload.clone()),
    })
}

/// Puts an upload in line. `at` is the topic's last level: a label in a pool that groups by label, else a time.
pub(super) fn store(
    ctx: &Ctx,
    who: &Principal,
    new: NewUpload,
    at: Option<String>,
) -> impl Future<Output = Result<Stored, Refusal>> + Send + use<> {
    let who = who.clone();
    ctx.ledger.write(move |tx| {
        let pool = tx.pool_of(&who)?;
        let new = with_last_level(new, at.as_deref(), tx.core(pool)?.policy().grouping)?;
        tx.store_upload(pool, &who, new)
    })
}

fn with_last_level(mut new: NewUpload, at: Option<&str>, grouping: Grouping) -> Result<NewUpload, Refusal> {
    match (at, grouping) {
        (Some(label), Grouping::Label) => new.label = Some(label.parse()?),
        (Some(time), Grouping::Window | Grouping::Count) => new.event_time = Some(time.parse()?),
        (None, _) => {}
    }
    Ok(new)
}

/// What the acknowledgement says, and the receipts that have no row of their own.
fn settle(ctx: &Ctx, who: &Principal, upload: &str, outcome: Result<Stored, Refusal>) -> Result<(), Refusal> {
    match outcome {
        Ok(stored) => {
            if stored.repeated {
                ctx.tell(who, &stored.receipt);
                ctx.feed(who, "repeated", &stored.receipt);
            }
            match (stored.receipt.outcome, stored.receipt.error) {
                (Outcome::Rejected, Some(refusal)) => Err(refusal),
                _ => Ok(()),
            }
        }
        Err(refusal) => {
            ctx.tell_refusal(who, upload.to_owned(), None, &refusal);
            Err(refusal)
        }
    }
}

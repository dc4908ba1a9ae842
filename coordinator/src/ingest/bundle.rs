//! `bundle/{id}`: several uploads in one message, and one transaction.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use millpond_broker::Incoming;
use millpond_failpoint::{Point, reach};
use millpond_protocol::message::{Outcome, Receipt};
use millpond_protocol::{BundleId, Code, Principal, Refusal, Sha256, Timestamp, bundle, limits};

use super::{Ctx, properties, stage};
use crate::ledger::Error;
use crate::ledger::uploads::{Body, NewUpload, Stored};
use crate::rounds::Event;

/// A bundle whose entries hold the rules that can be checked without the pool.
struct Parsed {
    entries: Vec<NewUpload>,
    complete_through: Option<Timestamp>,
}

/// What became of one entry.
enum Entry {
    Stored(Stored),
    /// A conflict, or against the rules while its grant is open: an outcome of this entry alone.
    Refused {
        upload: String,
        refusal: Refusal,
    },
}

pub(super) fn take(
    ctx: Ctx,
    who: Principal,
    id: BundleId,
    message: Incoming,
) -> BoxFuture<'static, Result<(), Refusal>> {
    let parsed = parse(&id, &message.payload);
    let large = |parsed: &Parsed| parsed.entries.iter().any(|entry| entry.size > limits::SMALL_MAX as u64);
    // Without a large entry the bundle takes its place in the queue in this call.
    let stored = match parsed {
        Err(refusal) => Err(refusal),
        Ok(parsed) if large(&parsed) => Ok(Err(parsed)),
        Ok(parsed) => Ok(Ok(store(&ctx, &who, parsed))),
    };
    Box::pin(async move {
        let outcome = match stored {
            Err(refusal) => Err(refusal),
            Ok(Ok(stored)) => stored.await,
            Ok(Err(parsed)) => store_staged(&ctx, &who, parsed).await,
        };
        match outcome {
            Ok(entries) => {
                reach(Point::BundleCommitted);
                tell_rowless(&ctx, &who, &id, entries);
                Ok(())
            }
            Err(refusal) => {
                ctx.tell_refusal(&who, id.to_string(), Some(id.to_string()), &refusal);
                Err(refusal)
            }
        }
    })
}

fn parse(id: &BundleId, payload: &Bytes) -> Result<Parsed, Refusal> {
    let decoded = bundle::decode(payload)?;
    let complete_through = decoded.complete_through_ms.map(Timestamp::from_millis).transpose()?;
    let entries = decoded.entries.iter().enumerate().map(|(index, entry)| {
        parse_entry(id, payload, entry)
            .map_err(|refusal| Refusal { message: format!("entry {index}: {}", refusal.message), ..refusal })
    });
    Ok(Parsed { entries: entries.collect::<Result<_, _>>()?, complete_through })
}

fn parse_entry(id: &BundleId, payload: &Bytes, entry: &bundle::Entry<'_>) -> Result<NewUpload, Refusal> {
    properties::content_type_fits(entry.content_type)?;
    let sha256 = Sha256::of(entry.data);
    properties::matches(entry.sha256.map(Sha256), sha256)?;
    Ok(NewUpload {
        upload: entry.upload.parse()?,
        name: if entry.name.is_empty() { None } else { Some(entry.name.parse()?) },
        content_type: entry.content_type.map(str::to_owned),
        meta: entry.meta.map(properties::meta).transpose()?,
        label: entry.label.map(str::parse).transpose()?,
        event_time: Some(Timestamp::from_millis(entry.event_time_ms)?),
        received: None,
        sha256,
        sha256_declared: entry.sha256.is_some(),
        size: entry.data.len() as u64,
        bundle: Some(id.to_string()),
        body: Body::Inline(payload.slice_ref(entry.data)),
    })
}

fn store(
    ctx: &Ctx,
    who: &Principal,
    parsed: Parsed,
) -> impl Future<Output = Result<Vec<Entry>, Refusal>> + Send + use<> {
    let who = who.clone();
    ctx.ledger.write(move |tx| {
        let pool = tx.pool_of(&who)?;
        let mut outcomes = Vec::with_capacity(parsed.entries.len());
        for entry in parsed.entries {
            let upload = entry.upload.to_string();
            outcomes.push(match tx.store_upload(pool, &who, entry) {
                Ok(stored) => Entry::Stored(stored),
                Err(Error::Refused(refusal)) if matches!(refusal.code, Code::Conflict | Code::Rejected) => {
                    Entry::Refused { upload, refusal }
                }
                Err(error) => return Err(error),
            });
        }
        if let Some(through) = parsed.complete_through {
            tx.apply(pool, Event::CompleteThrough { member: who.id, through })?;
        }
        Ok(outcomes)
    })
}

/// Large entries go to storage first, where they are new and the pool takes them.
async fn store_staged(ctx: &Ctx, who: &Principal, mut parsed: Parsed) -> Result<Vec<Entry>, Refusal> {
    let mut staged = Vec::new();
    let large = |entry: &&mut NewUpload| entry.size > limits::SMALL_MAX as u64;
    let asked = parsed.entries.iter_mut().filter(large);
    let asked = asked.map(|entry| stage::Asked::about(entry, entry.label.is_some())).collect();
    let mut worthwhile = stage::worthwhile(ctx, who, asked).await?.into_iter();
    for (index, entry) in parsed.entries.iter_mut().enumerate() {
        let Body::Inline(bytes) = &entry.body else { continue };
        if bytes.len() <= limits::SMALL_MAX {
            continue;
        }
        if worthwhile.next() != Some(true) {
            // A repeat or against the rules: its body is never looked at.
            entry.body = Body::Inline(Bytes::new());
            continue;
        }
        match stage::object(ctx, who, stage::Kind::Upload, entry.sha256, bytes.clone()).await {
            Ok(object) => {
                entry.body = Body::Object(object.id);
                staged.push((index, object.id));
            }
            Err(refusal) => {
                staged.iter().for_each(|(_, id)| stage::doom(ctx, *id));
                return Err(refusal);
            }
        }
    }
    let outcome = store(ctx, who, parsed).await;
    for (index, id) in staged {
        let counts = match &outcome {
            Ok(entries) => {
                matches!(&entries[index], Entry::Stored(s) if !s.repeated && s.receipt.batch.is_some())
            }
            Err(_) => false,
        };
        if !counts {
            stage::doom(ctx, id);
        }
    }
    outcome
}

/// Receipts of repeats and of what was refused by itself, which are no rows.
fn tell_rowless(ctx: &Ctx, who: &Principal, id: &BundleId, entries: Vec<Entry>) {
    for entry in entries {
        match entry {
            Entry::Stored(Stored { receipt, repeated: true }) => {
                let receipt = Receipt { bundle: Some(id.to_string()), ..receipt };
                ctx.tell(who, &receipt);
                ctx.feed(who, "repeated", &receipt);
            }
            Entry::Stored(Stored { receipt, repeated: false }) => {
                debug_assert!(receipt.outcome != Outcome::Refused, "a refusal is no row");
            }
            Entry::Refused { upload, refusal } => {
                ctx.tell_refusal(who, upload, Some(id.to_string()), &refusal);
            }
        }
    }
}

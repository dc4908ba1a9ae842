//! Bytes above 128 KiB that came over MQTT: into storage first, then in line for the ledger.
//!
//! The object's row stands before its bytes; an object that does not count in the end is doomed, and one whose process
//! died in between stays `granted` until the sweep at the next start.

use bytes::Bytes;
use millpond_failpoint::{Point, reach};
use millpond_protocol::{Principal, Refusal, Sha256, UploadId};

use super::{Ctx, up};
use crate::ledger::grants::{Target, grant_for};
use crate::ledger::objects::Object;
use crate::ledger::quota::ROW;
use crate::ledger::uploads::{Body, NewUpload, Stored, find_receipt};
use crate::ledger::{Ledger, Tx};
use crate::rounds::acceptance::{Candidate, accept};

/// What a staged object is, as its key says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Upload,
    Result,
}

impl Kind {
    fn segment(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Result => "result",
        }
    }
}

/// Dooms what an earlier run staged and never counted. To be called before anything is staged.
pub(crate) async fn recover(ledger: &Ledger) -> Result<(), Refusal> {
    let doom = |tx: &mut Tx<'_>| {
        [Kind::Upload, Kind::Result]
            .into_iter()
            .try_for_each(|kind| tx.doom_left_over(kind.segment()).map(drop))
    };
    ledger.write(doom).await?;
    reach(Point::LeftoversDoomed);
    Ok(())
}

/// Stages and stores an upload.
pub(super) async fn upload(
    ctx: &Ctx,
    who: &Principal,
    new: NewUpload,
    at: Option<String>,
    bytes: Bytes,
) -> Result<Stored, Refusal> {
    // The topic may still name a label; the rule is checked again with it.
    let staged = if worthwhile(ctx, who, vec![Asked::about(&new, true)]).await? == [true] {
        Some(object(ctx, who, Kind::Upload, new.sha256, bytes).await?)
    } else {
        None
    };
    // What is not worthwhile is a repeat or against the rules, and its body is never looked at.
    let body = staged.as_ref().map_or_else(|| Body::Inline(Bytes::new()), |object| Body::Object(object.id));
    let stored = up::store(ctx, who, NewUpload { body, ..new }, at).await;
    let counts = matches!(&stored, Ok(stored) if !stored.repeated && stored.receipt.batch.is_some());
    if let (Some(object), false) = (staged, counts) {
        doom(ctx, object.id);
    }
    stored
}

/// What the answer to [`worthwhile`] depends on.
pub(super) struct Asked {
    upload: UploadId,
    candidate: Candidate,
}

impl Asked {
    pub(super) fn about(new: &NewUpload, has_label: bool) -> Self {
        let candidate = Candidate { size: new.size, declares_sha256: new.sha256_declared, has_label };
        Self { upload: new.upload.clone(), candidate }
    }
}

/// Of each upload, whether it is new and the pool's rules take it: only then are its bytes written to storage.
pub(super) async fn worthwhile(ctx: &Ctx, who: &Principal, asked: Vec<Asked>) -> Result<Vec<bool>, Refusal> {
    let who = who.clone();
    ctx.ledger
        .write(move |tx| {
            let pool = tx.pool_of(&who)?;
            let worth = |asked: &Asked| {
                let known = find_receipt(tx.sql(), who.id, asked.upload.as_str())?.is_some();
                let is_worth = !known && accept(tx.core(pool)?.policy(), &asked.candidate).is_ok();
                // A file that was granted counts since then.
                let target = Target::Upload(asked.upload.clone());
                if is_worth && grant_for(tx.sql(), pool, who.id, &target)?.is_none() {
                    tx.check_kept(pool, asked.candidate.size.saturating_add(ROW))?;
                }
                Ok(is_worth)
            };
            asked.iter().map(worth).collect()
        })
        .await
}

/// Writes bytes to storage under a fresh row.
pub(super) async fn object(
    ctx: &Ctx,
    who: &Principal,
    kind: Kind,
    sha256: Sha256,
    bytes: Bytes,
) -> Result<Object, Refusal> {
    let (owner, size) = (who.clone(), bytes.len() as u64);
    let object = ctx
        .ledger
        .write(move |tx| {
            let pool = tx.pool_of(&owner)?;
            tx.grant_object(pool, kind.segment(), size, sha256)
        })
        .await?;
    reach(Point::StageGranted);
    match ctx.storage.put(&object.key, bytes, sha256).await {
        Ok(()) => {
            reach(Point::StageWritten);
            Ok(object)
        }
        Err(error) => {
            tracing::error!(%error, key = %object.key, "storage does not take an object");
            doom(ctx, object.id);
            Err(Refusal::unavailable("storage does not take the file now"))
        }
    }
}

/// The object is not needed after all; whoever sweeps deletes it.
pub(super) fn doom(ctx: &Ctx, id: i64) {
    drop(ctx.ledger.write(move |tx| tx.doom_object(id)));
}

//! Objects that dispatch writes: a row before the bytes, the bytes before they count.

use bytes::Bytes;
use millpond_failpoint::{Point, reach};
use millpond_protocol::{Refusal, Sha256};
use millpond_storage::{Writer, limits};
use tokio::sync::mpsc;

use super::{Context, Trouble};
use crate::ledger::objects::Object;
use crate::ledger::{Ledger, PoolId, Result, Tx};

/// What dispatch writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Pack,
    Manifest,
    Story,
}

impl Kind {
    /// The segment of the key after the pool's id.
    fn segment(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Manifest => "manifest",
            Self::Story => "round",
        }
    }
}

/// Writes the object and then runs `count`, which makes it live and says what it is for. Whatever fails dooms the object.
pub(super) async fn write<T, F>(
    context: &Context,
    pool: PoolId,
    kind: Kind,
    bytes: Bytes,
    sha256: Sha256,
    count: F,
) -> std::result::Result<T, Trouble>
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>, i64) -> Result<T> + Send + 'static,
{
    let object = put(context, pool, kind, bytes, sha256).await?;
    let id = object.id;
    match kind {
        Kind::Pack => reach(Point::PackWritten),
        Kind::Story => reach(Point::StoryWritten),
        Kind::Manifest => {}
    }
    let counted = context.ledger.write(move |tx| {
        tx.live_object(id)?;
        count(tx, id)
    });
    match counted.await {
        Ok(counted) => Ok(counted),
        Err(refusal) => {
            doom(&context.ledger, id).await?;
            Err(refusal.into())
        }
    }
}

/// Writes the object, which stays `granted`.
pub(super) async fn put(
    context: &Context,
    pool: PoolId,
    kind: Kind,
    bytes: Bytes,
    sha256: Sha256,
) -> std::result::Result<Object, Trouble> {
    let object = grant(context, pool, kind, bytes.len() as u64, sha256).await?;
    let put = context.storage.put(&object.key, bytes, sha256).await;
    settle(context, object, put.map_err(Trouble::from)).await
}

/// Writes an object of this size and SHA-256 piece by piece. It stays `granted`.
pub(super) async fn stream(
    context: &Context,
    pool: PoolId,
    kind: Kind,
    size: u64,
    sha256: Sha256,
    mut pieces: mpsc::Receiver<Bytes>,
) -> std::result::Result<Object, Trouble> {
    let object = grant(context, pool, kind, size, sha256).await?;
    let mut writer = context.storage.writer(&object.key);
    let mut written = Ok(());
    if size > limits::WRITER_PART as u64 {
        written = begin(context, &object, &mut writer).await;
    }
    while written.is_ok()
        && let Some(piece) = pieces.recv().await
    {
        written = writer.write(piece).await.map_err(Trouble::from);
    }
    let written = match written {
        Ok(()) if writer.written() == (size, sha256) => {
            writer.finish().await.map(drop).map_err(Trouble::from)
        }
        other => {
            // Also an upload that has no name in the row: nobody else would find it.
            writer.abort().await;
            Err(other
                .err()
                .unwrap_or_else(|| Trouble::Corrupt("an object's pieces are not its bytes".into())))
        }
    };
    settle(context, object, written).await
}

/// Has the row name the upload in parts before it has any: so the sweep gives up what a crash leaves of it.
async fn begin(context: &Context, object: &Object, writer: &mut Writer) -> std::result::Result<(), Trouble> {
    let upload = writer.begin().await?;
    let id = object.id;
    let named = context.ledger.write(move |tx| tx.name_multipart(id, None, &upload).map(drop));
    Ok(named.await?)
}

async fn grant(
    context: &Context,
    pool: PoolId,
    kind: Kind,
    size: u64,
    sha256: Sha256,
) -> std::result::Result<Object, Refusal> {
    let grant = context.ledger.write(move |tx| match kind {
        // A manifest's key begins with its hash, so that it can be found and checked without the ledger.
        Kind::Manifest => tx.grant_object(pool, &format!("{}/{sha256}", kind.segment()), size, sha256),
        Kind::Pack | Kind::Story => tx.grant_object(pool, kind.segment(), size, sha256),
    });
    grant.await
}

/// What was not written for certain may be there all the same: the sweep removes it.
async fn settle(
    context: &Context,
    object: Object,
    written: std::result::Result<(), Trouble>,
) -> std::result::Result<Object, Trouble> {
    if let Err(trouble) = written {
        doom(&context.ledger, object.id).await?;
        return Err(trouble);
    }
    Ok(object)
}

/// The object does not count.
pub(super) async fn doom(ledger: &Ledger, id: i64) -> std::result::Result<(), Refusal> {
    ledger.write(move |tx| tx.doom_object(id)).await
}

/// Dooms what an earlier run of this process was about to write.
pub(super) async fn doom_left_over(ledger: &Ledger) -> std::result::Result<usize, Refusal> {
    let job = |tx: &mut Tx<'_>| {
        let mut doomed = 0;
        for kind in [Kind::Pack, Kind::Manifest, Kind::Story] {
            doomed += tx.doom_left_over(kind.segment())?;
        }
        Ok(doomed)
    };
    ledger.write(job).await
}

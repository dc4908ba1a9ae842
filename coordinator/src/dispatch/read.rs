//! The bytes of a small upload, wherever they are.

use std::io::Read as _;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use millpond_protocol::{Code, Refusal, Sha256, limits};
use millpond_storage::{Error as StorageError, Storage};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::ledger::objects::{self, Object};
use crate::ledger::{Ledger, Result};

/// Bytes of a tar header.
const HEADER: u64 = 512;

/// Where they are.
enum Place {
    Ledger(Bytes),
    Pack(Box<InPack>),
}

struct InPack {
    pack: Object,
    /// Where the file's header begins, if the pack holds what the rows say.
    offset: u64,
    size: u64,
    sha256: Sha256,
    path: String,
}

/// The bytes of the upload with this seq, which is a small one: from the ledger or from its pack.
///
/// # Errors
/// `not_found` if there is no such upload or its bytes are not kept any more, `unavailable` while storage is away.
pub async fn read_small(ledger: &Ledger, storage: &Storage, seq: i64) -> std::result::Result<Bytes, Refusal> {
    match ledger.read(move |sql| place(sql, seq)).await? {
        Place::Ledger(bytes) => Ok(bytes),
        Place::Pack(place) => from_pack(storage, &place).await,
    }
}

fn place(sql: &Connection, seq: i64) -> Result<Place> {
    let not_kept = || Refusal::new(Code::NotFound, "the bytes of this upload are not kept any more");
    // The payload first: it is deleted only after its pack's row is there.
    let payload: Option<Vec<u8>> = sql
        .prepare_cached("SELECT data FROM payloads WHERE seq = ?1")?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    if let Some(payload) = payload {
        return Ok(Place::Ledger(payload.into()));
    }
    let upload = sql
        .prepare_cached(
            "SELECT u.batch_id, u.size, u.sha256, m.name || '/' || u.upload FROM uploads u \
             JOIN members m ON m.id = u.member_id \
             WHERE u.seq = ?1 AND u.object_id IS NULL AND u.batch_id IS NOT NULL",
        )?
        .query_row([seq], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?, Sha256(row.get(2)?), row.get(3)?)))
        .optional()?;
    let (batch, size, sha256, path) = upload.ok_or_else(not_kept)?;
    let pack: Option<(i64, i64)> = sql
        .prepare_cached(
            "SELECT object_id, coalesce((SELECT max(last_seq) FROM packs WHERE batch_id = ?1 AND last_seq < ?2), 0) \
             FROM packs WHERE batch_id = ?1 AND last_seq >= ?2 ORDER BY n LIMIT 1",
        )?
        .query_row(params![batch, seq], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (object, after) = pack.ok_or_else(not_kept)?;
    let offset = sql
        .prepare_cached(
            "SELECT coalesce(sum(512 + (size + 511) / 512 * 512), 0) FROM uploads u \
             WHERE batch_id = ?1 AND seq > ?2 AND seq < ?3 AND object_id IS NULL \
             AND NOT EXISTS (SELECT 1 FROM superseded s WHERE s.seq = u.seq)",
        )?
        .query_row(params![batch, after, seq], |row| row.get(0))?;
    Ok(Place::Pack(Box::new(InPack { pack: objects::object(sql, object)?, offset, size, sha256, path })))
}

async fn from_pack(storage: &Storage, place: &InPack) -> std::result::Result<Bytes, Refusal> {
    if place.size == 0 {
        return Ok(Bytes::new());
    }
    let start = place.offset + HEADER;
    let range = start..start + place.size;
    if range.end <= place.pack.size {
        let stream = storage.get_stream(&place.pack.key, Some(range)).await.map_err(refusal)?;
        let bytes = stream.try_collect::<BytesMut>().await.map_err(refusal)?.freeze();
        if Sha256::of(&bytes) == place.sha256 {
            return Ok(bytes);
        }
    }
    // The pack was written under another `select`: look for the path.
    let max = usize::try_from(limits::PACK_MAX).unwrap_or(usize::MAX);
    let pack = storage.get(&place.pack.key, max).await.map_err(refusal)?;
    find(&pack, place).ok_or_else(|| {
        tracing::error!(pack = %place.pack.key, path = place.path, "a pack does not hold what the ledger says");
        Refusal::unavailable("the pack does not hold the file")
    })
}

fn find(pack: &[u8], place: &InPack) -> Option<Bytes> {
    let mut archive = tar::Archive::new(pack);
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        if entry.path_bytes().as_ref() == place.path.as_bytes() {
            let mut bytes = Vec::with_capacity(usize::try_from(place.size).ok()?);
            entry.read_to_end(&mut bytes).ok()?;
            return (Sha256::of(&bytes) == place.sha256).then(|| bytes.into());
        }
    }
    None
}

fn refusal(error: StorageError) -> Refusal {
    match error {
        StorageError::NotFound => Refusal::new(Code::NotFound, "the bytes are not in storage any more"),
        StorageError::Unavailable(_)
        | StorageError::NoUpload
        | StorageError::Refused { .. }
        | StorageError::Mismatch(_) => {
            tracing::warn!(%error, "a pack cannot be read");
            Refusal::unavailable("storage cannot be read now")
        }
    }
}

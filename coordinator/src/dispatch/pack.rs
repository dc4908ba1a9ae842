//! Packs: tar files of a batch's small uploads.
//!
//! A pack takes the batch's small uploads in order of commit, superseded ones aside, and is closed when the next file
//! would bring it over [`limits::pack_room`], which grows with what is packed before it, or over [`limits::PACK_MAX`]
//! where only some of a member's uploads count. Entries are plain ustar: path `{member}/{upload}`, mode 0644, user, group
//! and time 0. So where a pack begins and ends and what its bytes are
//! depends on committed rows alone, not on when it was written.

use bytes::Bytes;
use millpond_failpoint::{Point, reach};
use millpond_protocol::{Sha256, limits};
use rusqlite::{Connection, params};

use super::object::{self, Kind};
use super::{Context, Trouble, buffer};
use crate::ledger::{Error, PoolId, Result};
use crate::ustar;

/// The two blocks of zeros that end a tar file.
const END: u64 = 1024;
/// Payloads that one job deletes: a delete costs what an insert does, and uploads wait behind it.
const PURGED: usize = 500;

/// A pack in memory.
pub(super) struct Pack {
    pub bytes: Bytes,
    pub sha256: Sha256,
    pub files: u64,
    /// The pack begins after this upload, and ends with that one.
    pub after: i64,
    pub last: i64,
    /// What [`limits::packed`] says of its files.
    pub packed: u64,
}

/// Whether a pack must be full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// The batch is open: a pack that could still grow is not written.
    Full,
    /// The batch is sealed: what is left is a pack.
    Tail,
}

/// Writes the next pack of a batch; false if there is none.
pub(super) async fn write(
    context: &Context,
    pool: PoolId,
    batch: i64,
    fill: Fill,
) -> std::result::Result<bool, Trouble> {
    let Some(pack) = context.read(move |sql| build(sql, batch, fill)).await? else { return Ok(false) };
    let Pack { bytes, sha256, files, after, last, packed } = pack;
    metrics::counter!("millpond_packs_total").increment(1);
    metrics::counter!("millpond_pack_bytes_total").increment(bytes.len() as u64);
    object::write(context, pool, Kind::Pack, bytes, sha256, move |tx, object| {
        let moved = tx
            .sql()
            .prepare_cached(
                "UPDATE batches SET packed_bytes = packed_bytes + ?3, packed_seq = ?4 \
                 WHERE id = ?1 AND packed_seq = ?2",
            )?
            .execute(params![batch, after, packed, last])?;
        if moved != 1 {
            return Err(corrupt(format!("batch {batch} was packed by somebody else")));
        }
        tx.sql()
            .prepare_cached(
                "INSERT INTO packs (batch_id, n, object_id, last_seq, files) \
                 SELECT ?1, coalesce(max(n), 0) + 1, ?2, ?3, ?4 FROM packs WHERE batch_id = ?1",
            )?
            .execute(params![batch, object, last, files])?;
        Ok(())
    })
    .await?;
    reach(Point::PackCounted);
    Ok(true)
}

/// The next pack of a batch from its rows.
pub(super) fn build(sql: &Connection, batch: i64, fill: Fill) -> Result<Option<Pack>> {
    let (after, unpacked, before, grows): (i64, u64, u64, bool) = sql
        .prepare_cached(
            "SELECT packed_seq, max(small_bytes - packed_bytes, 0), packed_bytes, selected = 'all' \
             FROM batches WHERE id = ?1",
        )?
        .query_row([batch], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    if unpacked == 0 {
        return Ok(None);
    }
    // What nobody can pack ahead is written at the seal, in as few packs as can be.
    let room = if grows { limits::pack_room(before) } else { limits::PACK_MAX };
    let capacity = usize::try_from((unpacked + END).min(room)).unwrap_or_default();
    let mut tar = tar::Builder::new(buffer::with_room(capacity));
    let (mut files, mut packed, mut last, mut full) = (0, 0, after, false);

    // LEFT JOIN: a payload that is missing must be noticed, not left out.
    let mut statement = sql.prepare_cached(
        "SELECT u.seq, m.name, u.upload, u.size, p.data FROM uploads u JOIN members m ON m.id = u.member_id \
         LEFT JOIN payloads p ON p.seq = u.seq \
         WHERE u.batch_id = ?1 AND u.seq > ?2 AND u.object_id IS NULL \
         AND NOT EXISTS (SELECT 1 FROM superseded s WHERE s.seq = u.seq) ORDER BY u.seq",
    )?;
    let mut rows = statement.query(params![batch, after])?;
    while let Some(row) = rows.next()? {
        let size: u64 = row.get(3)?;
        if packed + limits::packed(size) + END > room {
            full = true;
            break;
        }
        let (member, upload) = (row.get_ref(1)?.as_str(), row.get_ref(2)?.as_str());
        let (Ok(member), Ok(upload)) = (member, upload) else {
            return Err(corrupt(format!("names of batch {batch}")));
        };
        last = row.get(0)?;
        let data = match row.get_ref(4)?.as_blob_or_null() {
            Ok(Some(data)) if data.len() as u64 == size => data,
            _ => return Err(corrupt(format!("the bytes of {member}/{upload} are not in the ledger"))),
        };
        ustar::header(&format!("{member}/{upload}"), size, 0o644)
            .and_then(|header| tar.append(&header, data))
            .map_err(|error| corrupt(format!("{member}/{upload}: {error}")))?;
        files += 1;
        packed += limits::packed(size);
    }
    if files == 0 || (fill == Fill::Full && !full) {
        return Ok(None);
    }
    let bytes = tar.into_inner().map_err(|error| corrupt(format!("a pack of batch {batch}: {error}")))?;
    let sha256 = Sha256::of(&bytes);
    Ok(Some(Pack { bytes: bytes.into(), sha256, files, after, last, packed }))
}

/// Deletes from the ledger what is in a pack, in bounded jobs.
pub(super) async fn purge(context: &Context, batch: i64, n: u64) -> std::result::Result<(), Trouble> {
    let packed = context.ledger.read(move |sql| packed_files(sql, batch, n)).await?;
    let mut chunks: Vec<Vec<i64>> = packed.chunks(PURGED).map(<[i64]>::to_vec).collect();
    let last = chunks.pop().unwrap_or_default();
    for rows in chunks {
        context.ledger.write(move |tx| delete(tx.sql(), &rows)).await?;
    }
    reach(Point::PurgeBegun);
    let job = context.ledger.write(move |tx| {
        delete(tx.sql(), &last)?;
        tx.sql()
            .prepare_cached("UPDATE packs SET purged = 1 WHERE batch_id = ?1 AND n = ?2")?
            .execute(params![batch, n])?;
        Ok(())
    });
    job.await?;
    reach(Point::PurgeEnded);
    Ok(())
}

fn delete(sql: &Connection, rows: &[i64]) -> Result<()> {
    let mut statement = sql.prepare_cached("DELETE FROM payloads WHERE seq = ?1")?;
    rows.iter().try_for_each(|seq| statement.execute([seq]).map(drop))?;
    Ok(())
}

/// The uploads in a pack. None if the rows do not say so for certain (`select` was changed after the pack was written):
/// their payloads then stay until the uploads themselves are no longer kept.
fn packed_files(sql: &Connection, batch: i64, n: u64) -> Result<Vec<i64>> {
    let (files, after, last): (usize, i64, i64) = sql
        .prepare_cached(
            "SELECT files, coalesce((SELECT last_seq FROM packs WHERE batch_id = ?1 AND n = ?2 - 1), 0), last_seq \
             FROM packs WHERE batch_id = ?1 AND n = ?2",
        )?
        .query_row(params![batch, n], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut statement = sql.prepare_cached(
        "SELECT seq FROM uploads u WHERE batch_id = ?1 AND seq > ?2 AND seq <= ?3 AND object_id IS NULL \
         AND NOT EXISTS (SELECT 1 FROM superseded s WHERE s.seq = u.seq) ORDER BY seq",
    )?;
    let rows = statement.query_map(params![batch, after, last], |row| row.get(0))?;
    let found: Vec<i64> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(if found.len() == files { found } else { Vec::new() })
}

fn corrupt(what: String) -> Error {
    tracing::error!(what, "dispatch: the ledger's rows contradict each other");
    Error::Refused(millpond_protocol::Refusal::unavailable(format!("rows contradict each other: {what}")))
}

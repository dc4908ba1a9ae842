//! Manifests: JSON Lines; a header, then one line for each upload, sorted by member and upload id.
//!
//! ```text
//! {"pool", "seq", "prev", "cause", "from"?, "to"?, "label"?, "part"?, "count", "bytes", "policy_version"}
//! {"member", "upload", "name", "size", "sha256", "event_time", "label"?, "content_type"?, "meta"?, "late"?, "clamped"?, "superseded"?}
//! ```
//!
//! Keys stand in this order; those marked `?` are left out where they do not apply. `from` and `to` belong to windows,
//! `part` and the header's `label` to labels; an entry's `label` is what its member said, in any pool. `prev` is the
//! SHA-256 of the pool's manifest before this one, null in the first. Nothing in it depends on when an upload arrived
//! or when the manifest was written: the same rows always give the same bytes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use millpond_protocol::{Label, Sha256, Timestamp};
use rusqlite::{Connection, params};
use serde::Serialize;
use sha2::{Digest as _, Sha256 as Hasher};
use tokio::sync::mpsc;

use super::seal::Sealed;
use super::sorter::{Sorted, Sorter};
use super::{Context, Trouble};
use crate::ledger::uploads::{CLAMPED, LATE};
use crate::ledger::{Error, PoolId, Result};
use crate::rounds::Group;

/// Bytes that an entry takes in the sorter, about: what memory is made ready for.
const ENTRY: usize = 256;
/// Bytes of entries that are sorted in memory. About 110,000; with more, all of them go through files, and this is what
/// a manifest of any length takes.
const ROOM: usize = 32 << 20;
/// Rows read in one go, if [`ROOM`] is not full before: a reader of the ledger is held for some 30 ms.
const PAGE: usize = 20_000;
/// Entries that are sorted and hashed in a millisecond, mostly sooner than a thread of their own wakes.
const SHORT: u64 = 100;
/// Bytes that are handed on to storage at a time, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// A manifest whose bytes can be read.
pub(super) struct Manifest {
    pub size: u64,
    pub sha256: Sha256,
    /// The first line.
    pub header: String,
    entries: Sorted,
}

#[derive(Serialize)]
struct Header<'a> {
    pool: &'a str,
    seq: u64,
    prev: Option<Sha256>,
    cause: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<u32>,
    count: u64,
    bytes: u64,
    policy_version: u64,
}

#[derive(Serialize)]
struct Entry<'a> {
    member: &'a str,
    upload: &'a str,
    name: &'a str,
    size: u64,
    sha256: Sha256,
    event_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    clamped: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    superseded: bool,
}

/// The manifest of a sealed batch from its rows.
pub(super) async fn build(
    context: &Context,
    pool: PoolId,
    sealed: Sealed,
) -> std::result::Result<Manifest, Trouble> {
    let members = Arc::new(context.ledger.read(move |sql| members(sql, pool)).await?);
    let expected = usize::try_from(sealed.count).unwrap_or(usize::MAX).saturating_mul(ENTRY);
    let mut entries = Entries {
        sorter: Sorter::new(context.ledger.directory().to_owned(), ROOM, expected),
        count: 0,
        bytes: 0,
    };
    for batch in sealed.batches.clone() {
        let mut after = Some(0);
        while let Some(from) = after {
            let members = members.clone();
            // The sorter travels to the reader and back. A sealed batch's rows stay what they are from page to page.
            (entries, after) = context
                .read(move |sql| {
                    let after = page(sql, batch, from, &members, &mut entries)?;
                    Ok((entries, after))
                })
                .await?;
            if entries.sorter.is_full() {
                entries = blocking(move || entries.sorter.spill().map(|()| entries)).await?;
            }
        }
    }
    let is_short = entries.count <= SHORT;
    let finish = move || {
        let Entries { sorter, count, bytes } = entries;
        let header = header(&sealed, count, bytes)?;
        let entries = sorter.finish()?;
        let (mut hasher, mut size) = (Hasher::new(), 0);
        let mut manifest = Manifest { size, sha256: Sha256([0; 32]), header, entries };
        manifest.each(|bytes| {
            hasher.update(bytes);
            size += bytes.len() as u64;
            Ok(())
        })?;
        (manifest.size, manifest.sha256) = (size, Sha256(hasher.finalize().into()));
        Ok(manifest)
    };
    if is_short { finish().map_err(Trouble::Scratch) } else { blocking(finish).await }
}

impl Manifest {
    /// The bytes in pieces, made while they are taken. Whoever takes them compares their hash: pieces end early if the
    /// files cannot be read.
    pub(super) fn pieces(self) -> mpsc::Receiver<Bytes> {
        let (send, pieces) = mpsc::channel(PIECES);
        if self.size <= PIECE as u64 {
            // One piece needs no thread that waits until it is taken.
            let mut piece = BytesMut::new();
            let made = self.each(|bytes| {
                piece.extend_from_slice(bytes);
                Ok(())
            });
            // Lines that are this few are in memory, and the channel is empty: neither fails.
            if made.is_ok() {
                let _ = send.try_send(piece.freeze());
            }
            return pieces;
        }
        tokio::task::spawn_blocking(move || {
            let mut piece = BytesMut::with_capacity(PIECE);
            let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
            let made = self.each(|bytes| {
                if piece.len() + bytes.len() > PIECE {
                    let full = std::mem::replace(&mut piece, BytesMut::with_capacity(PIECE));
                    send.blocking_send(full.freeze()).map_err(|_| gone())?;
                }
                piece.extend_from_slice(bytes);
                Ok(())
            });
            match made {
                Ok(()) => drop(send.blocking_send(piece.freeze())),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) => tracing::error!(%error, "dispatch: a manifest's temporary file cannot be read"),
            }
        });
        pieces
    }

    /// Passes header and entries to `each`, line by line.
    fn each(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        each(self.header.as_bytes())?;
        each(b"\n")?;
        self.entries.each(each)
    }
}

/// The entries as they are read.
struct Entries {
    sorter: Sorter,
    count: u64,
    bytes: u64,
}

fn header(sealed: &Sealed, count: u64, bytes: u64) -> serde_json::Result<String> {
    let (from, to, label, part) = match &sealed.batch.group {
        Group::Window { from, to } => (Some(*from), Some(*to), None, None),
        Group::Label { label, part } => (None, None, Some(label), Some(*part)),
        Group::Count => (None, None, None, None),
    };
    serde_json::to_string(&Header {
        pool: sealed.pool_name.as_str(),
        seq: sealed.round,
        prev: sealed.prev,
        cause: &sealed.cause,
        from,
        to,
        label,
        part,
        count,
        bytes,
        policy_version: sealed.policy_version,
    })
}

/// The members of a pool in order of name, removed ones too.
struct Members {
    names: Vec<String>,
    places: HashMap<i64, u32>,
}

fn members(sql: &Connection, pool: PoolId) -> Result<Members> {
    let mut members = Members { names: Vec::new(), places: HashMap::new() };
    let mut statement =
        sql.prepare_cached("SELECT id, name FROM members WHERE pool_id = ?1 ORDER BY name, id")?;
    let mut rows = statement.query([pool])?;
    while let Some(row) = rows.next()? {
        members.places.insert(row.get(0)?, u32::try_from(members.names.len()).unwrap_or(u32::MAX));
        members.names.push(row.get(1)?);
    }
    Ok(members)
}

/// Reads the next page of a batch; the upload to go on behind, if there may be more.
fn page(
    sql: &Connection,
    batch: i64,
    after: i64,
    members: &Members,
    entries: &mut Entries,
) -> Result<Option<i64>> {
    let mut statement = sql.prepare_cached(
        "SELECT seq, member_id, upload, size, sha256, event_time, flags, name, content_type, label, meta, \
         EXISTS (SELECT 1 FROM superseded s WHERE s.seq = u.seq) FROM uploads u \
         WHERE batch_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let mut rows = statement.query(params![batch, after, PAGE])?;
    let (mut read, mut last) = (0, after);
    while let Some(row) = rows.next()? {
        (read, last) = (read + 1, row.get(0)?);
        let place = members.places.get(&row.get(1)?).copied();
        let member = place.and_then(|place| members.names.get(place as usize)).map_or("", String::as_str);
        let text = |i| row.get_ref(i).map(|value| value.as_str_or_null().ok().flatten());
        let upload = text(2)?.unwrap_or_default();
        // No upload may keep its pool from going on.
        let meta = text(10)?.map(|text| serde_json::from_str(text).unwrap_or_else(|_| text.into()));
        let flags: u32 = row.get(6)?;
        let entry = Entry {
            member,
            upload,
            name: text(7)?.unwrap_or(upload),
            size: row.get(3)?,
            sha256: Sha256(row.get(4)?),
            event_time: Timestamp::clamped(row.get(5)?),
            content_type: text(8)?,
            label: text(9)?,
            meta,
            late: flags & LATE != 0,
            clamped: flags & CLAMPED != 0,
            superseded: row.get(11)?,
        };
        entries.count += 1;
        entries.bytes += entry.size;
        entries.sorter.add(place.unwrap_or(u32::MAX), upload, |out| {
            serde_json::to_writer(&mut *out, &entry)?;
            out.push(b'\n');
            Ok::<_, Error>(())
        })?;
        if entries.sorter.is_full() {
            return Ok(Some(last));
        }
    }
    Ok((read == PAGE).then_some(last))
}

/// Runs what works with temporary files.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> std::result::Result<T, Trouble> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Trouble::Bug(error.to_string()))?.map_err(Trouble::Scratch)
}

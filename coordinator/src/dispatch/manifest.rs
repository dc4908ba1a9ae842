//! Manifests: JSON Lines; a header, then one line for each upload, sorted by member and upload id.
//!
//! ```text
//! {"pool", "seq", "prev", "cause", "from"?, "to"?, "label"?, "part"?, "count", "bytes", "policy_version"}
//! {"member", "upload", "name", "size", "sha256", "event_time", "label"?, "content_type"?, "meta"?, "late"?, "clamped"?, "superseded"?}
//! ```
//!
//! Keys stand in this order; those marked `?` are left out where they do not apply. `from` and `to` belong to windows,
//! `part` and the header's `label` to labels; an entry's `label` is what its member said, in any pool. `prev` is the SHA-256 of the pool's manifest before this one, null in the first. Nothing in
//! it depends on when an upload arrived or when the manifest was written: the same rows always give the same bytes.

use std::collections::HashMap;

use bytes::Bytes;
use millpond_protocol::{Label, Sha256, Timestamp};
use rusqlite::{Connection, types::ValueRef};
use serde::Serialize;

use super::buffer;
use super::seal::Sealed;
use crate::ledger::uploads::{CLAMPED, LATE};
use crate::ledger::{PoolId, Result};
use crate::rounds::Group;

/// Bytes that an entry takes, about: what the buffer is made for.
const ENTRY: usize = 256;

/// A manifest in memory.
pub(super) struct Manifest {
    pub bytes: Bytes,
    pub sha256: Sha256,
    /// The first line.
    pub header: String,
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

/// An upload's row, small: a hundred thousand of them wait in memory to be sorted.
struct Row {
    member: u32,
    flags: u32,
    superseded: bool,
    upload: Box<str>,
    size: u64,
    event_time: i64,
    sha256: [u8; 32],
    rest: Option<Box<Rest>>,
}

/// What few uploads have.
struct Rest {
    name: Option<String>,
    content_type: Option<String>,
    label: Option<String>,
    meta: Option<String>,
}

/// The manifest of a sealed batch from its rows.
pub(super) fn build(sql: &Connection, pool: PoolId, sealed: &Sealed) -> Result<Manifest> {
    let members = members(sql, pool)?;
    let mut rows = rows(sql, sealed, &members)?;
    rows.sort_unstable_by(|a, b| a.member.cmp(&b.member).then_with(|| a.upload.cmp(&b.upload)));

    let header = header(sealed, &rows)?;
    let mut out = buffer::with_room(header.len() + 1 + rows.len() * ENTRY);
    out.extend_from_slice(header.as_bytes());
    out.push(b'\n');
    for row in &rows {
        let member = members.names.get(row.member as usize).map_or("", String::as_str);
        serde_json::to_writer(&mut out, &entry(row, member)?)?;
        out.push(b'\n');
    }
    drop(rows);
    let sha256 = Sha256::of(&out);
    Ok(Manifest { bytes: out.into(), sha256, header })
}

fn header(sealed: &Sealed, rows: &[Row]) -> Result<String> {
    let (from, to, label, part) = match &sealed.batch.group {
        Group::Window { from, to } => (Some(*from), Some(*to), None, None),
        Group::Label { label, part } => (None, None, Some(label), Some(*part)),
        Group::Count => (None, None, None, None),
    };
    Ok(serde_json::to_string(&Header {
        pool: sealed.pool_name.as_str(),
        seq: sealed.round,
        prev: sealed.prev,
        cause: &sealed.cause,
        from,
        to,
        label,
        part,
        count: rows.len() as u64,
        bytes: rows.iter().map(|row| row.size).sum(),
        policy_version: sealed.policy_version,
    })?)
}

fn entry<'a>(row: &'a Row, member: &'a str) -> Result<Entry<'a>> {
    let rest = row.rest.as_deref();
    let meta = rest.and_then(|rest| rest.meta.as_deref()).map(serde_json::from_str).transpose()?;
    Ok(Entry {
        member,
        upload: &row.upload,
        name: rest.and_then(|rest| rest.name.as_deref()).unwrap_or(&row.upload),
        size: row.size,
        sha256: Sha256(row.sha256),
        event_time: Timestamp::clamped(row.event_time),
        label: rest.and_then(|rest| rest.label.as_deref()),
        content_type: rest.and_then(|rest| rest.content_type.as_deref()),
        meta,
        late: row.flags & LATE != 0,
        clamped: row.flags & CLAMPED != 0,
        superseded: row.superseded,
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

fn rows(sql: &Connection, sealed: &Sealed, members: &Members) -> Result<Vec<Row>> {
    let mut all = buffer::with_room(usize::try_from(sealed.count).unwrap_or_default());
    let mut statement = sql.prepare_cached(
        "SELECT member_id, upload, size, sha256, event_time, flags, name, content_type, label, meta, \
         EXISTS (SELECT 1 FROM superseded s WHERE s.seq = u.seq) FROM uploads u WHERE batch_id = ?1 ORDER BY seq",
    )?;
    for batch in &sealed.batches {
        let mut rows = statement.query([batch])?;
        while let Some(row) = rows.next()? {
            let member: i64 = row.get(0)?;
            let plain = (6..10).all(|i| matches!(row.get_ref(i), Ok(ValueRef::Null)));
            let rest = match plain {
                true => None,
                false => {
                    let (name, content_type, label, meta) =
                        (row.get(6)?, row.get(7)?, row.get(8)?, row.get(9)?);
                    Some(Box::new(Rest { name, content_type, label, meta }))
                }
            };
            all.push(Row {
                member: members.places.get(&member).copied().unwrap_or(u32::MAX),
                upload: row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?.into(),
                size: row.get(2)?,
                sha256: row.get(3)?,
                event_time: row.get(4)?,
                flags: row.get(5)?,
                superseded: row.get(10)?,
                rest,
            });
        }
    }
    Ok(all)
}

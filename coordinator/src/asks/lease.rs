//! Leases as answers: what a round holds, its files a page at a time, and waiting until they are written.
//!
//! URLs are minted when an answer is made, never kept. The cursor names the last file of a page by its place: packs
//! first, in order of batch and number, then large files in order of batch and commit.

use std::time::Duration;

use millpond_protocol::message::{Lease, LeaseFile, LeaseFileKind};
use millpond_protocol::{Code, MemberName, Refusal, Sha256, Timestamp, UploadId, limits};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::{AROUND, Asks};
use crate::ledger::error::not_kept;
use crate::ledger::objects::{self, Object};
use crate::ledger::{self, PoolId, Result, number, row_id};
use crate::rounds::{Policy, Round, RoundState};

/// Bytes that a file takes in an answer at least, with its URL: bounds what a page reads.
const FILE_MIN: usize = 256;

/// A page of files, and the cursor if there are more.
pub(super) type Page = (Vec<LeaseFile>, Option<String>);

/// The lease of that attempt as an answer of at most `room` bytes.
///
/// # Errors
/// `not_found` if there is no such round or its files are not kept any more, `too_large` if the lease without its files has no room.
pub(super) async fn answer(
    asks: &Asks,
    pool: PoolId,
    round: u64,
    attempt: u32,
    room: usize,
) -> std::result::Result<Lease, Refusal> {
    let found = asks.ledger.read(move |sql| read(sql, pool, round)).await?;
    let manifest = found.manifest.as_ref().filter(|_| found.record.ready);
    let url =
        |object: &Object| asks.storage.presign_get(&object.key, limits::URL_VALIDITY, ledger::now()).url;
    let mut lease = Lease {
        round,
        attempt,
        batch: found.record.batch,
        term_s: found.term_s,
        ready: found.record.ready,
        manifest_url: manifest.map(url),
        manifest_sha256: manifest.map(|object| object.sha256),
        files: Vec::new(),
        cursor: None,
        params: found.params,
        reference: found.reference,
    };
    let Some(room) = room.checked_sub(size(&lease) + AROUND) else {
        return Err(Refusal::new(Code::TooLarge, format!("an answer of {room} bytes cannot hold the lease"))
            .limit(room as u64)
            .hint("repeat the ask with the same id and a larger max_answer"));
    };
    if lease.ready {
        // A lease without room for a file still is one: the cursor leads to all of them.
        (lease.files, lease.cursor) = files(asks, pool, lease.batch, Place::START, room).await?;
    }
    Ok(lease)
}

/// As many files of a ready round from `after` on as fit into `room` bytes.
pub(super) async fn files(
    asks: &Asks,
    pool: PoolId,
    batch: u64,
    after: Place,
    room: usize,
) -> std::result::Result<Page, Refusal> {
    let max = room / FILE_MIN + 1;
    let found = asks.ledger.read(move |sql| read_files(sql, row_id(pool, batch), after, max)).await?;
    let now = ledger::now();
    let (mut files, mut left, mut last) = (Vec::new(), room, after);
    // One more was read than fits in any case, so running out of rows means running out of files.
    for found in found {
        let file = LeaseFile {
            kind: found.place.kind,
            url: asks.storage.presign_get(&found.object.key, limits::URL_VALIDITY, now).url,
            size: found.object.size,
            sha256: found.object.sha256,
            member: found.member,
            upload: found.upload,
        };
        let size = size(&file) + 1;
        if size > left {
            return Ok((files, Some(last.to_string())));
        }
        left -= size;
        last = found.place;
        files.push(file);
    }
    Ok((files, None))
}

/// The page that `files` answers.
///
/// # Errors
/// `too_large` if not one file fits.
pub(super) async fn page(
    asks: &Asks,
    pool: PoolId,
    batch: u64,
    after: Place,
    room: usize,
) -> std::result::Result<Page, Refusal> {
    let (files, cursor) = files(asks, pool, batch, after, room.saturating_sub(AROUND)).await?;
    if files.is_empty() && cursor.is_some() {
        return Err(Refusal::new(Code::TooLarge, format!("an answer of {room} bytes holds no file"))
            .limit(room as u64)
            .hint(format!("name a larger max_answer, up to {}", limits::ANSWER_MAX)));
    }
    Ok((files, cursor))
}

/// Waits until the round is ready, or that attempt does not hold it any more, or `wait_s` are over.
pub(super) async fn wait_until_ready(
    asks: &Asks,
    pool: PoolId,
    round: u64,
    attempt: u32,
    wait_s: u64,
) -> std::result::Result<(), Refusal> {
    let deadline = Instant::now() + Duration::from_secs(wait_s).min(limits::ASK_TIMEOUT);
    // Before the first look: what commits after it is in the channel.
    let mut commits = asks.ledger.commits();
    loop {
        let record = asks.ledger.read(move |sql| Ok(read(sql, pool, round)?.record)).await?;
        let waits =
            !record.ready && record.attempt == attempt && matches!(record.state, RoundState::Leased(_));
        if !waits {
            return Ok(());
        }
        loop {
            match tokio::time::timeout_at(deadline, commits.recv()).await {
                Err(_) => return Ok(()),
                Ok(Ok(commit)) if !commit.pools.get(&pool).is_some_and(|change| change.rounds) => {}
                Ok(Ok(_) | Err(RecvError::Lagged(_))) => break,
                Ok(Err(RecvError::Closed)) => return Err(Refusal::unavailable("the server is stopping")),
            }
        }
    }
}

/// A round's row and what belongs to it.
struct Found {
    record: Round,
    params: Option<Value>,
    reference: Option<Value>,
    term_s: u64,
    manifest: Option<Object>,
}

fn read(sql: &Connection, pool: PoolId, round: u64) -> Result<Found> {
    let found = sql
        .prepare_cached(
            "SELECT r.record, r.params, r.ref, p.policy, m.object_id FROM rounds r JOIN pools p ON p.id = r.pool_id \
             LEFT JOIN manifests m ON m.pool_id = r.pool_id AND m.seq = r.round WHERE r.pool_id = ?1 AND r.round = ?2",
        )?
        .query_row(params![pool, round], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, Option<String>>(1)?,
                row.get::<_, Option<String>>(2)?,
                row.get::<_, String>(3)?,
                row.get::<_, Option<i64>>(4)?,
            ))
        })
        .optional()?;
    let Some((record, params, reference, policy, manifest)) = found else {
        return Err(no_round(round).into());
    };
    let policy: Policy = serde_json::from_str(&policy)?;
    Ok(Found {
        record: serde_json::from_str(&record)?,
        params: params.map(|text| serde_json::from_str(&text)).transpose()?,
        reference: reference.map(|text| serde_json::from_str(&text)).transpose()?,
        term_s: policy.lease_term_s,
        manifest: manifest.map(|id| objects::object(sql, id)).transpose()?,
    })
}

/// The pool has no such round.
pub(super) fn no_round(round: u64) -> Refusal {
    Refusal::new(Code::NotFound, format!("the pool has no round {round}"))
}

/// Where a file stands in the order of a lease's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    kind: LeaseFileKind,
    batch: u64,
    /// The pack's number, or the upload's seq in its pool.
    n: u64,
}

impl Place {
    /// Before the first file.
    pub(super) const START: Self = Self { kind: LeaseFileKind::Pack, batch: 0, n: 0 };
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            LeaseFileKind::Pack => 'p',
            LeaseFileKind::Large => 'l',
        };
        write!(f, "{kind}.{}.{}", self.batch, self.n)
    }
}

impl std::str::FromStr for Place {
    type Err = Refusal;

    fn from_str(text: &str) -> std::result::Result<Self, Refusal> {
        let parse = || {
            let mut parts = text.split('.');
            let kind = match parts.next()? {
                "p" => LeaseFileKind::Pack,
                "l" => LeaseFileKind::Large,
                _ => return None,
            };
            let place = Self { kind, batch: parts.next()?.parse().ok()?, n: parts.next()?.parse().ok()? };
            parts.next().is_none().then_some(place)
        };
        parse().ok_or_else(|| Refusal::new(Code::Malformed, "the cursor is not one that an answer gave you"))
    }
}

struct FoundFile {
    place: Place,
    object: Object,
    member: Option<MemberName>,
    upload: Option<UploadId>,
}

fn read_files(sql: &Connection, batch: i64, after: Place, max: usize) -> Result<Vec<FoundFile>> {
    let (round, expired): (u64, Option<i64>) = sql
        .prepare_cached("SELECT coalesce(round, 0), expired FROM batches WHERE id = ?1")?
        .query_row([batch], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if let Some(expired) = expired {
        return Err(not_kept(format!("the files of round {round}"), Timestamp::clamped(expired)).into());
    }
    let mut files = Vec::new();
    let mut large_after = (0, 0);
    let pool = batch >> 40;
    let place = (row_id(pool, after.batch), after.n);
    match after.kind {
        LeaseFileKind::Pack => packs(sql, batch, place, max, &mut files)?,
        LeaseFileKind::Large => large_after = (place.0, row_id(pool, after.n)),
    }
    if files.len() < max {
        large(sql, batch, large_after, max - files.len(), &mut files)?;
    }
    Ok(files)
}

/// The batches that a sealed batch is made of.
const PARTS: &str = "(SELECT id FROM batches WHERE id = ?1 OR carried_into = ?1)";

fn packs(
    sql: &Connection,
    batch: i64,
    after: (i64, u64),
    max: usize,
    files: &mut Vec<FoundFile>,
) -> Result<()> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT p.batch_id, p.n, o.id, o.key, o.size, o.sha256 FROM packs p JOIN objects o ON o.id = p.object_id \
         WHERE p.batch_id IN {PARTS} AND (p.batch_id, p.n) > (?2, ?3) ORDER BY p.batch_id, p.n LIMIT ?4"
    ))?;
    let mut rows = statement.query(params![batch, after.0, after.1, max])?;
    while let Some(row) = rows.next()? {
        let place = Place { kind: LeaseFileKind::Pack, batch: number(row.get(0)?), n: row.get(1)? };
        files.push(FoundFile { place, object: object(row)?, member: None, upload: None });
    }
    Ok(())
}

fn large(
    sql: &Connection,
    batch: i64,
    after: (i64, i64),
    max: usize,
    files: &mut Vec<FoundFile>,
) -> Result<()> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT u.batch_id, u.seq, o.id, o.key, o.size, o.sha256, m.name, u.upload \
         FROM uploads u JOIN objects o ON o.id = u.object_id JOIN members m ON m.id = u.member_id \
         WHERE u.batch_id IN {PARTS} AND u.object_id IS NOT NULL AND (u.batch_id, u.seq) > (?2, ?3) \
         AND NOT EXISTS (SELECT 1 FROM superseded s WHERE s.seq = u.seq) ORDER BY u.batch_id, u.seq LIMIT ?4"
    ))?;
    let mut rows = statement.query(params![batch, after.0, after.1, max])?;
    while let Some(row) = rows.next()? {
        let place = Place { kind: LeaseFileKind::Large, batch: number(row.get(0)?), n: number(row.get(1)?) };
        let member: String = row.get(6)?;
        let upload: String = row.get(7)?;
        files.push(FoundFile {
            place,
            object: object(row)?,
            member: Some(member.parse().map_err(Refusal::from)?),
            upload: Some(upload.parse().map_err(Refusal::from)?),
        });
    }
    Ok(())
}

/// The object in columns 2 to 5.
fn object(row: &rusqlite::Row<'_>) -> Result<Object> {
    let key: String = row.get(3)?;
    let key = key.parse().map_err(|_| Refusal::unavailable("an object's key does not read"))?;
    Ok(Object { id: row.get(2)?, key, size: row.get(4)?, sha256: Sha256(row.get(5)?) })
}

/// Bytes of `value` as JSON.
fn size<T: serde::Serialize>(value: &T) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |json| json.len())
}

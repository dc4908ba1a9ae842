//! What became of uploads, and which results there were: reads for `status`, `history` and the HTTP API.

use millpond_protocol::message::Outcome;
use millpond_protocol::message::answer::{ResultInfo, UploadInfo};
use millpond_protocol::{FileName, Sha256, Timestamp, UploadId};
use rusqlite::{Connection, Row, params};

use super::uploads::{CLAMPED, LATE};
use super::{PoolId, Result, number, row_id};

/// Which uploads of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// All of them.
    Pool,
    /// Those of the member with this id.
    Member(i64),
    /// Those of this batch, with what was carried into it.
    Batch(u64),
    /// Those of this member in this batch.
    MemberInBatch(i64, u64),
}

/// Columns of an [`UploadInfo`]. `batches.carried_into` always names the last batch of a chain.
const SELECT: &str = "SELECT u.seq, m.name, u.upload, u.rule, u.name, u.size, u.sha256, u.event_time, u.received, u.flags, \
     u.label, b.batch, b.state, b.round, r.state, \
     (SELECT version FROM results s WHERE s.pool_id = b.pool_id AND s.round = b.round AND s.of IS NULL), \
     EXISTS (SELECT 1 FROM superseded x WHERE x.seq = u.seq), b.expired \
     FROM uploads u JOIN members m ON m.id = u.member_id \
     LEFT JOIN batches own ON own.id = u.batch_id \
     LEFT JOIN batches b ON b.id = coalesce(own.carried_into, own.id) \
     LEFT JOIN rounds r ON r.pool_id = b.pool_id AND r.round = b.round";

/// At most `max` uploads, newest first, each with its number; only those with a number below `before`, which is how to
/// get the next page.
pub fn uploads(
    sql: &Connection,
    pool: PoolId,
    of: Of,
    before: Option<u64>,
    max: usize,
) -> Result<Vec<(u64, UploadInfo)>> {
    let end = before.map_or_else(|| row_id(pool + 1, 0), |before| row_id(pool, before));
    const IN_BATCH: &str = "u.batch_id IN (SELECT id FROM batches WHERE id = ?5 OR carried_into = ?5)";
    let (filter, member, batch) = match of {
        Of::Pool => ("?4 = ?5".to_owned(), 0, 0),
        Of::Member(member) => ("u.member_id = ?4 AND ?5 = 0".to_owned(), member, 0),
        Of::Batch(batch) => (format!("{IN_BATCH} AND ?4 = 0"), 0, row_id(pool, batch)),
        Of::MemberInBatch(member, batch) => {
            (format!("{IN_BATCH} AND u.member_id = ?4"), member, row_id(pool, batch))
        }
    };
    let text = format!("{SELECT} WHERE u.seq > ?1 AND u.seq < ?2 AND {filter} ORDER BY u.seq DESC LIMIT ?3");
    let mut statement = sql.prepare_cached(&text)?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = statement.query_and_then(params![row_id(pool, 0), end, max, member, batch], upload_of)?;
    rows.collect()
}

/// One upload by its key, with its number.
pub fn upload(sql: &Connection, member: i64, upload: &UploadId) -> Result<Option<(u64, UploadInfo)>> {
    let mut statement = sql.prepare_cached(&format!("{SELECT} WHERE u.member_id = ?1 AND u.upload = ?2"))?;
    statement.query_and_then(params![member, upload.as_str()], upload_of)?.next().transpose()
}

fn upload_of(row: &Row<'_>) -> Result<(u64, UploadInfo)> {
    let upload: UploadId = row.get::<_, String>(2)?.parse()?;
    let name = match row.get::<_, Option<String>>(4)? {
        Some(name) => name.parse()?,
        None => FileName::from(&upload),
    };
    let rule: Option<String> = row.get(3)?;
    let flags: u32 = row.get(9)?;
    let info = UploadInfo {
        member: row.get::<_, String>(1)?.parse()?,
        upload,
        outcome: if rule.is_some() { Outcome::Rejected } else { Outcome::Stored },
        name,
        size: row.get(5)?,
        sha256: Sha256(row.get(6)?),
        event_time: Timestamp::clamped(row.get(7)?),
        label: row.get::<_, Option<String>>(10)?.map(|label| label.parse()).transpose()?,
        received: Timestamp::clamped(row.get(8)?),
        late: flags & LATE != 0,
        clamped: flags & CLAMPED != 0,
        batch: row.get(11)?,
        batch_state: row.get(12)?,
        round: row.get(13)?,
        round_state: row.get(14)?,
        version: row.get(15)?,
        superseded: row.get(16)?,
        rule,
        expired: row.get::<_, Option<i64>>(17)?.map(Timestamp::clamped),
        expires: None,
        verified: None,
        problem: None,
    };
    Ok((number(row.get(0)?), info))
}

/// At most `max` results, newest first, with versions below `before`.
pub fn results(sql: &Connection, pool: PoolId, before: Option<u64>, max: usize) -> Result<Vec<ResultInfo>> {
    let mut statement = sql.prepare_cached(
        "SELECT version, round, batch, of, name, size, sha256, committed, expired FROM results \
         WHERE pool_id = ?1 AND version < ?2 ORDER BY version DESC LIMIT ?3",
    )?;
    let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = statement.query_and_then(params![pool, before, max], |row| {
        Ok(ResultInfo {
            version: row.get(0)?,
            round: row.get(1)?,
            batch: row.get(2)?,
            of: row.get(3)?,
            name: row.get::<_, String>(4)?.parse()?,
            size: row.get(5)?,
            sha256: Sha256(row.get(6)?),
            committed: Timestamp::clamped(row.get(7)?),
            expired: row.get::<_, Option<i64>>(8)?.map(Timestamp::clamped),
        })
    })?;
    rows.collect()
}

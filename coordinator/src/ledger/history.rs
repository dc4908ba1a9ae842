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

/// Columns of an [`UploadInfo`]. Uploads are the outer loop, so that an index gives their order. `batches.carried_into`
/// always names the last batch of a chain.
const SELECT: &str = "SELECT u.seq, m.name, u.upload, u.rule, u.name, u.size, u.sha256, u.event_time, u.received, u.flags, \
     u.label, b.batch, b.state, b.round, r.state, \
     (SELECT version FROM results s WHERE s.pool_id = b.pool_id AND s.round = b.round AND s.of IS NULL), \
     EXISTS (SELECT 1 FROM superseded x WHERE x.seq = u.seq), b.expired \
     FROM uploads u CROSS JOIN members m ON m.id = u.member_id \
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
    let start = row_id(pool, 0);
    let end = before.map_or_else(|| row_id(pool + 1, 0), |before| row_id(pool, before));
    let page = |of: [&str; 2], ids: [i64; 2]| -> Result<Vec<(u64, UploadInfo)>> {
        let mut statement = sql.prepare_cached(&page_of(of))?;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        statement.query_and_then(params![start, end, max, ids[0], ids[1]], upload_of)?.collect()
    };
    let (batch, filter, member) = match of {
        Of::Pool => return page(ANY, [0, 0]),
        Of::Member(member) => return page(MEMBER, [member, 0]),
        Of::Batch(batch) => (batch, BATCH, 0),
        Of::MemberInBatch(member, batch) => (batch, MEMBER_IN_BATCH, member),
    };
    // A page of each part of the batch holds the page of the whole.
    let mut parts = sql.prepare_cached("SELECT id FROM batches WHERE id = ?1 OR carried_into = ?1")?;
    let parts = parts.query_map([row_id(pool, batch)], |row| row.get(0))?;
    let mut found = Vec::new();
    for part in parts {
        found.extend(page(filter, [part?, member])?);
    }
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.truncate(max);
    Ok(found)
}

/// What a page is of: the condition on ?4, and that on ?5.
const ANY: [&str; 2] = ["?4 = 0", "?5 = 0"];
const MEMBER: [&str; 2] = ["u.member_id = ?4", "?5 = 0"];
const BATCH: [&str; 2] = ["u.batch_id = ?4", "?5 = 0"];
// Found by the member's index, which is mostly the shorter way.
const MEMBER_IN_BATCH: [&str; 2] = ["+u.batch_id = ?4", "u.member_id = ?5"];

fn page_of([one, other]: [&str; 2]) -> String {
    format!("{SELECT} WHERE u.seq > ?1 AND u.seq < ?2 AND {one} AND {other} ORDER BY u.seq DESC LIMIT ?3")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_no_more_rows_than_it_shows() {
        for of in [ANY, MEMBER, BATCH, MEMBER_IN_BATCH] {
            let steps = crate::ledger::plan(&page_of(of));
            assert!(steps[0].starts_with("SEARCH u USING"), "{of:?}: {steps:?}");
            assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{of:?}: {steps:?}");
        }
    }
}

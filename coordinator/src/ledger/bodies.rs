//! Where the bytes of uploads and results are.

use millpond_protocol::{FileName, Sha256, Timestamp, UploadId};
use rusqlite::{Connection, OptionalExtension, params};

use super::error::not_kept;
use super::objects::{self, Object};
use super::{PoolId, Result};

/// Where the bytes of an upload are: an object, or payloads and packs under `seq`.
#[derive(Debug)]
pub struct UploadBody {
    pub seq: i64,
    pub name: FileName,
    pub size: u64,
    pub sha256: Sha256,
    pub object: Option<Object>,
}

/// Where an upload's bytes are; none if the member has no such upload or it was rejected.
///
/// # Errors
/// `not_found` if the bytes are not kept any more.
pub fn upload_body(sql: &Connection, member: i64, upload: &UploadId) -> Result<Option<UploadBody>> {
    let row = sql
        .prepare_cached(
            "SELECT u.seq, coalesce(u.name, u.upload), u.size, u.sha256, u.object_id, b.expired FROM uploads u \
             JOIN batches b ON b.id = u.batch_id WHERE u.member_id = ?1 AND u.upload = ?2",
        )?
        .query_row(params![member, upload.as_str()], |row| {
            Ok((
                row.get(0)?,
                row.get::<_, String>(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get::<_, Option<i64>>(4)?,
                row.get::<_, Option<i64>>(5)?,
            ))
        })
        .optional()?;
    let Some((seq, name, size, sha256, object, expired)) = row else { return Ok(None) };
    if let Some(expired) = expired {
        return Err(not_kept(format!("upload {upload}"), Timestamp::clamped(expired)).into());
    }
    Ok(Some(UploadBody {
        seq,
        name: name.parse()?,
        size,
        sha256: Sha256(sha256),
        object: object.map(|id| objects::object(sql, id)).transpose()?,
    }))
}

/// Where the bytes of a version are.
#[derive(Debug)]
pub struct ResultBody {
    pub name: FileName,
    pub size: u64,
    pub sha256: Sha256,
    pub object: Object,
    pub data: Option<Vec<u8>>,
}

/// Where the bytes of a version are; none if there is no such version.
///
/// # Errors
/// `not_found` if the bytes are not kept any more.
pub fn result_body(sql: &Connection, pool: PoolId, version: u64) -> Result<Option<ResultBody>> {
    let row = sql
        .prepare_cached(
            "SELECT name, size, sha256, object_id, data, expired FROM results WHERE pool_id = ?1 AND version = ?2",
        )?
        .query_row(params![pool, version], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get::<_, i64>(3)?,
                row.get(4)?,
                row.get::<_, Option<i64>>(5)?,
            ))
        })
        .optional()?;
    let Some((name, size, sha256, object, data, expired)) = row else { return Ok(None) };
    if let Some(expired) = expired {
        return Err(not_kept(format!("version {version}"), Timestamp::clamped(expired)).into());
    }
    Ok(Some(ResultBody {
        name: name.parse()?,
        size,
        sha256: Sha256(sha256),
        object: objects::object(sql, object)?,
        data,
    }))
}

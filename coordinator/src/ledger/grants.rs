//! Grants as rows: files that may come to storage by presigned PUT, until they count or are given up.
//!
//! A row is *open*, or it is *verified now* together with others that are to count in the same transaction. It ends as an
//! upload, as a result, or as nothing; then the row is deleted, and what it was for says the rest. The object's own row
//! was there before the first URL and outlives the grant.

use millpond_protocol::{
    Code, FileName, Label, MemberName, PoolName, Principal, Refusal, Role, Sha256, Timestamp, UploadId,
    limits,
};
use millpond_storage::MultipartId;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::objects::Object;
use super::tx::Tx;
use super::uploads::NewUpload;
use super::{PoolId, Result};

/// Internal id of a grant, never used again.
pub type GrantId = i64;

/// What a granted file becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Upload(UploadId),
    Result { round: u64, attempt: u32 },
}

impl std::fmt::Display for Target {
    /// The upload's id, or `result/{round}/{attempt}`: what receipts call it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Upload(upload) => write!(f, "{upload}"),
            Self::Result { round, attempt } => write!(f, "result/{round}/{attempt}"),
        }
    }
}

/// A file that is to be granted.
#[derive(Debug, Clone)]
pub struct NewGrant {
    pub target: Target,
    pub name: Option<FileName>,
    pub content_type: Option<String>,
    /// JSON.
    pub meta: Option<String>,
    pub label: Option<Label>,
    pub event_time: Option<Timestamp>,
    pub size: u64,
    pub sha256: Sha256,
    /// None: by one PUT.
    pub part_size: Option<u64>,
}

/// A file that may come.
#[derive(Debug, Clone)]
pub struct Grant {
    pub id: GrantId,
    pub pool: PoolId,
    pub who: Principal,
    pub target: Target,
    pub name: Option<FileName>,
    pub content_type: Option<String>,
    pub meta: Option<String>,
    pub label: Option<Label>,
    pub event_time: Option<Timestamp>,
    pub object: Object,
    pub part_size: Option<u64>,
    pub multipart: Option<MultipartId>,
    /// The time of receipt of what it becomes.
    pub received: Timestamp,
    pub expires: Timestamp,
    /// Which grants it is verified with now; none: it is open.
    pub verifying: Option<i64>,
    /// The object in storage is known to be what was declared.
    pub verified: bool,
    /// Why the last commit did not count it.
    pub problem: Option<Refusal>,
}

impl Grant {
    /// Parts of the file, of one in parts.
    pub fn part_count(&self) -> Option<u64> {
        self.part_size.map(|size| self.object.size.div_ceil(size.max(1)))
    }

    /// The upload that it becomes, received when it was granted.
    pub(super) fn upload(&self, upload: UploadId) -> NewUpload {
        NewUpload {
            upload,
            name: self.name.clone(),
            content_type: self.content_type.clone(),
            meta: self.meta.clone(),
            label: self.label.clone(),
            event_time: self.event_time,
            received: Some(self.received),
            sha256: self.object.sha256,
            sha256_declared: true,
            size: self.object.size,
            bundle: None,
            body: super::uploads::Body::Object(self.object.id),
        }
    }
}

impl Tx<'_> {
    /// Writes the rows of a new grant and of its object. The caller knows that there is none for it yet.
    pub(super) fn insert_grant(
        &mut self,
        pool: PoolId,
        who: &Principal,
        new: NewGrant,
        expires: Timestamp,
    ) -> Result<Grant> {
        let kind = match &new.target {
            Target::Upload(_) => "upload",
            Target::Result { .. } => "result",
        };
        // Embedded storage shares its turns among those whose keys begin alike: among members.
        let object = self.grant_object(pool, &format!("{kind}/{}", who.id), new.size, new.sha256)?;
        let (upload, round, attempt) = match &new.target {
            Target::Upload(upload) => (Some(upload.as_str()), None, None),
            Target::Result { round, attempt } => (None, Some(*round), Some(*attempt)),
        };
        self.sql
            .prepare_cached(
                "INSERT INTO grants (pool_id, member_id, upload, round, attempt, name, content_type, meta, label, event_time, \
                 object_id, part_size, received, expires) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?
            .execute(params![
                pool,
                who.id,
                upload,
                round,
                attempt,
                new.name.as_ref().map(FileName::as_str),
                new.content_type,
                new.meta,
                new.label.as_ref().map(Label::as_str),
                new.event_time.map(Timestamp::as_millis),
                object.id,
                new.part_size,
                self.now.as_millis(),
                expires.as_millis()
            ])?;
        let id = self.sql.last_insert_rowid();
        self.add_granted_bytes(pool, i64::try_from(new.size).unwrap_or(i64::MAX))?;
        self.change(pool)?.grants = true;
        grant(self.sql, id)?.ok_or_else(|| super::error::not_found("such grant"))
    }

    fn add_granted_bytes(&mut self, pool: PoolId, bytes: i64) -> Result<()> {
        self.sql
            .prepare_cached("UPDATE pools SET granted_bytes = granted_bytes + ?2 WHERE id = ?1")?
            .execute(params![pool, bytes])?;
        Ok(())
    }

    /// Lets a grant hold until `expires`, but no longer than [`limits::GRANT_LIFE`] in all.
    pub(super) fn renew_grant(&mut self, grant: &mut Grant, expires: Timestamp) -> Result<()> {
        grant.expires = grant.expires.max(expires.min(grant.received.after(limits::GRANT_LIFE)));
        self.sql
            .prepare_cached("UPDATE grants SET expires = ?2 WHERE id = ?1")?
            .execute(params![grant.id, grant.expires.as_millis()])?;
        self.change(grant.pool)?.grants = true;
        Ok(())
    }

    /// Notes until when a URL holds that lets somebody write the object.
    pub fn note_url(&mut self, object: i64, until: Timestamp) -> Result<()> {
        self.sql
            .prepare_cached("UPDATE objects SET url_until = max(coalesce(url_until, 0), ?2) WHERE id = ?1")?
            .execute(params![object, until.as_millis()])?;
        Ok(())
    }

    /// Keeps storage's name of the upload in parts that makes the object, in place of one that is `gone`; answers the
    /// one that stands, which somebody else may have put there.
    pub fn name_multipart(
        &mut self,
        object: i64,
        gone: Option<&MultipartId>,
        id: &MultipartId,
    ) -> Result<MultipartId> {
        let standing: String = self
            .sql
            .prepare_cached(
                "UPDATE objects SET multipart = CASE WHEN multipart IS ?2 THEN ?3 ELSE multipart END WHERE id = ?1 \
                 RETURNING multipart",
            )?
            .query_row(params![object, gone.map(MultipartId::as_str), id.as_str()], |row| row.get(0))?;
        multipart_id(standing)
    }

    /// Deletes the row: the grant has ended, as whatever.
    pub(super) fn delete_grant(&mut self, grant: &Grant) -> Result<()> {
        self.sql.prepare_cached("DELETE FROM grants WHERE id = ?1")?.execute([grant.id])?;
        self.add_granted_bytes(grant.pool, -i64::try_from(grant.object.size).unwrap_or(i64::MAX))?;
        self.change(grant.pool)?.grants = true;
        Ok(())
    }

    /// Has these grants verified, to count together; how many of them, for one may have ended, or be verified already.
    pub fn verify_grants(&mut self, grants: &[Grant]) -> Result<usize> {
        let Some(set) = grants.iter().map(|grant| grant.id).min() else { return Ok(0) };
        let mut marked = 0;
        for grant in grants {
            let newly = self
                .sql
                .prepare_cached(
                    "UPDATE grants SET verifying = ?2, problem = NULL, problem_code = NULL WHERE id = ?1 AND verifying IS NULL",
                )?
                .execute([grant.id, set])?;
            marked += newly;
            if newly > 0 {
                self.change(grant.pool)?.grants = true;
            }
        }
        Ok(marked)
    }

    /// The object in storage is what was declared.
    pub fn mark_verified(&mut self, id: GrantId) -> Result<()> {
        self.sql.prepare_cached("UPDATE grants SET verified = 1 WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// The object that was verified is not in storage any more.
    pub fn mark_unverified(&mut self, id: GrantId) -> Result<()> {
        self.sql.prepare_cached("UPDATE grants SET verified = 0 WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// Opens the grants of a set again, and says why.
    pub fn reopen_grants(&mut self, pool: PoolId, set: i64, why: &Refusal) -> Result<()> {
        self.sql
            .prepare_cached(
                "UPDATE grants SET verifying = NULL, problem = ?2, problem_code = ?3 WHERE verifying = ?1",
            )?
            .execute(params![set, why.message, why.code.as_str()])?;
        self.change(pool)?.grants = true;
        Ok(())
    }

    /// Grants of a member that did not count yet.
    pub(super) fn grants_of(&self, member: i64) -> Result<Vec<Grant>> {
        select(self.sql, "g.member_id = ?1", [member])
    }
}

/// The grant of that id.
pub fn grant(sql: &Connection, id: GrantId) -> Result<Option<Grant>> {
    Ok(select(sql, "g.id = ?1", [id])?.pop())
}

/// The grant for this target of that member.
pub fn grant_for(sql: &Connection, pool: PoolId, member: i64, target: &Target) -> Result<Option<Grant>> {
    let mut found = match target {
        Target::Upload(upload) => {
            select(sql, "g.member_id = ?1 AND g.upload = ?2", params![member, upload.as_str()])?
        }
        Target::Result { round, attempt } => select(
            sql,
            "g.pool_id = ?1 AND g.round = ?2 AND g.attempt = ?3 AND g.member_id = ?4",
            params![pool, round, attempt, member],
        )?,
    };
    Ok(found.pop())
}

/// The grants that are verified together under that number, in order.
pub fn grants_of_set(sql: &Connection, set: i64) -> Result<Vec<Grant>> {
    select(sql, "g.verifying = ?1", [set])
}

/// Grants of one member that are to be verified together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    pub id: i64,
    pub member: i64,
    /// It is a result's grant, which is always alone.
    pub result: bool,
    /// Some of them came in parts and have to be read.
    pub reads: bool,
}

/// Every set that is to be verified, oldest first. Those of removed pools only wait to be deleted.
pub fn sets(sql: &Connection) -> Result<Vec<Set>> {
    let mut statement = sql.prepare_cached(
        "SELECT g.verifying, g.member_id, max(g.round IS NOT NULL), max(g.part_size IS NOT NULL AND NOT g.verified) \
         FROM grants g JOIN pools p ON p.id = g.pool_id WHERE g.verifying IS NOT NULL AND p.removed IS NULL \
         GROUP BY g.verifying ORDER BY g.verifying",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Set { id: row.get(0)?, member: row.get(1)?, result: row.get(2)?, reads: row.get(3)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// At most `max` open grants that have ended by `now`.
pub fn ended(sql: &Connection, now: Timestamp, max: usize) -> Result<Vec<Grant>> {
    select(
        sql,
        "g.verifying IS NULL AND g.expires <= ?1 AND p.removed IS NULL LIMIT ?2",
        params![now.as_millis(), max],
    )
}

/// When the next open grant ends.
pub fn next_end(sql: &Connection) -> Result<Option<Timestamp>> {
    let next: Option<i64> = sql
        .prepare_cached(
            "SELECT g.expires FROM grants g CROSS JOIN pools p ON p.id = g.pool_id \
             WHERE g.verifying IS NULL AND p.removed IS NULL ORDER BY g.expires LIMIT 1",
        )?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(next.map(Timestamp::clamped))
}

fn select(sql: &Connection, filter: &str, params: impl rusqlite::Params) -> Result<Vec<Grant>> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT g.id, g.pool_id, p.name, g.member_id, m.name, m.role, g.upload, g.round, g.attempt, g.name, \
         g.content_type, g.meta, g.label, g.event_time, o.id, o.key, o.size, o.sha256, g.part_size, o.multipart, \
         g.received, g.expires, g.verifying, g.verified, g.problem, g.problem_code \
         FROM grants g JOIN objects o ON o.id = g.object_id JOIN members m ON m.id = g.member_id \
         JOIN pools p ON p.id = g.pool_id WHERE {filter}"
    ))?;
    statement.query_and_then(params, read)?.collect()
}

fn read(row: &Row<'_>) -> Result<Grant> {
    let text = |column: usize| row.get::<_, String>(column);
    let optional = |column: usize| row.get::<_, Option<String>>(column);
    let time = |column: usize| row.get::<_, i64>(column).map(Timestamp::clamped);
    let bad = |what: &str| Refusal::unavailable(format!("a grant's {what} does not read"));
    let target = match (optional(6)?, row.get::<_, Option<u64>>(7)?, row.get::<_, Option<u32>>(8)?) {
        (Some(upload), _, _) => Target::Upload(upload.parse::<UploadId>()?),
        (None, Some(round), Some(attempt)) => Target::Result { round, attempt },
        _ => return Err(bad("target").into()),
    };
    Ok(Grant {
        id: row.get(0)?,
        pool: row.get(1)?,
        who: Principal {
            pool: text(2)?.parse::<PoolName>()?,
            id: row.get(3)?,
            name: text(4)?.parse::<MemberName>()?,
            role: text(5)?.parse::<Role>().map_err(|e| Refusal::new(Code::Malformed, e))?,
        },
        target,
        name: optional(9)?.map(|name| name.parse()).transpose()?,
        content_type: optional(10)?,
        meta: optional(11)?,
        label: optional(12)?.map(|label| label.parse()).transpose()?,
        event_time: row.get::<_, Option<i64>>(13)?.map(Timestamp::clamped),
        object: Object {
            id: row.get(14)?,
            key: text(15)?.parse().map_err(|_| bad("key"))?,
            size: row.get(16)?,
            sha256: Sha256(row.get(17)?),
        },
        part_size: row.get(18)?,
        multipart: optional(19)?.map(multipart_id).transpose()?,
        received: time(20)?,
        expires: time(21)?,
        verifying: row.get(22)?,
        verified: row.get(23)?,
        problem: optional(24)?.zip(optional(25)?).map(|(why, code)| problem(why, code)).transpose()?,
    })
}

fn problem(why: String, code: String) -> Result<Refusal> {
    Ok(Refusal::new(serde_json::from_value(code.into())?, why))
}

fn multipart_id(text: String) -> Result<MultipartId> {
    text.parse().map_err(|_| Refusal::unavailable("a multipart upload's id does not read").into())
}

//! What happens to grants: a file is promised, comes to count, or is given up.

use std::time::Duration;

use millpond_protocol::message::Receipt;
use millpond_protocol::{Code, Principal, Refusal};
use rusqlite::{OptionalExtension as _, params};
use serde_json::json;

use super::grants::{self, Grant, NewGrant, Target};
use super::quota::ROW;
use super::results::{Committed, NewResult};
use super::tx::Tx;
use super::uploads::{NewUpload, Stored, find_receipt};
use super::{PoolId, Result};
use crate::rounds::acceptance::{Candidate, accept};

/// What an ask for a grant comes to.
#[derive(Debug)]
pub enum Granted {
    /// It may come; `new` if nobody had asked for it before.
    Open { grant: Box<Grant>, new: bool },
    /// The upload is there already.
    Upload(Receipt),
    /// The result is there already.
    Result(Committed),
}

/// Why a grant ended without counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its owner gave it back.
    Aborted,
    /// Its time was over and nothing whole was there.
    Expired,
    /// The bytes in storage are not those that were declared.
    Mismatch,
    /// Another attempt holds the round, or it has ended.
    Stale,
    /// Its owner was revoked.
    Revoked,
    /// The same bytes came by PUBLISH.
    Published,
}

impl Cause {
    /// The word in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Expired => "expired",
            Self::Mismatch => "mismatch",
            Self::Stale => "stale",
            Self::Revoked => "revoked",
            Self::Published => "published",
        }
    }
}

impl Tx<'_> {
    /// Promises to take a file, by the rules that hold for a PUBLISH. Who asks again for the same gets the same grant, for
    /// another `valid` from now.
    ///
    /// # Errors
    /// `conflict` for other bytes under the key of an upload or a grant; `rejected` against the pool's rules; `quota`; of
    /// a result as [`may_commit`](Self::may_commit).
    pub fn grant(&mut self, who: &Principal, new: NewGrant, valid: Duration) -> Result<Granted> {
        let pool = self.pool_of(who)?;
        match &new.target {
            Target::Upload(upload) => {
                if let Some(receipt) = find_receipt(self.sql, who.id, upload.as_str())? {
                    return if receipt.sha256 == Some(new.sha256) {
                        Ok(Granted::Upload(receipt))
                    } else {
                        Err(other_bytes(&new.target))
                    };
                }
            }
            Target::Result { round, attempt } => {
                if let Some(committed) = self.may_commit(pool, who, *round, *attempt, new.sha256)? {
                    return Ok(Granted::Result(committed));
                }
            }
        }
        let expires = self.now.after(valid);
        if let Some(mut grant) = grants::grant_for(self.sql, pool, who.id, &new.target)? {
            if (grant.object.sha256, grant.object.size) != (new.sha256, new.size) {
                return Err(other_bytes(&new.target));
            }
            self.renew_grant(&mut grant, expires)?;
            if grant.expires <= super::now() && grant.verifying.is_none() {
                // Its life is over by the clock that URLs have, and nobody has looked yet: none of it would hold. What is there
                // of it is looked at first.
                self.verify_grants(std::slice::from_ref(&grant))?;
                grant.verifying = Some(grant.id);
            }
            return Ok(Granted::Open { grant: Box::new(grant), new: false });
        }
        if let Target::Upload(_) = new.target {
            let candidate =
                Candidate { size: new.size, declares_sha256: true, has_label: new.label.is_some() };
            accept(self.core(pool)?.policy(), &candidate).map_err(Refusal::from)?;
            self.check_kept(pool, new.size.saturating_add(ROW))?;
        }
        self.check_grants(pool, who, new.size)?;
        let grant = self.insert_grant(pool, who, new, expires)?;
        Ok(Granted::Open { grant: Box::new(grant), new: true })
    }

    /// The member's open grant for an upload that now comes by PUBLISH, with the same bytes.
    ///
    /// # Errors
    /// `conflict` for other bytes.
    pub(super) fn granted(&self, pool: PoolId, who: &Principal, new: &NewUpload) -> Result<Option<Grant>> {
        let granted: bool = self
            .sql
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM grants WHERE member_id = ?1 AND upload = ?2)")?
            .query_row(params![who.id, new.upload.as_str()], |row| row.get(0))?;
        if !granted {
            return Ok(None);
        }
        let target = Target::Upload(new.upload.clone());
        let grant = grants::grant_for(self.sql, pool, who.id, &target)?;
        if grant.as_ref().is_some_and(|grant| grant.object.sha256 != new.sha256) {
            return Err(other_bytes(&target));
        }
        Ok(grant)
    }

    /// Counts granted uploads whose objects are verified, all of them or, on an error, none. What the pool's rules
    /// reject now, as it is late, is a row and no error.
    pub fn count_uploads(&mut self, who: &Principal, grants: &[Grant]) -> Result<Vec<Stored>> {
        let pool = self.pool_of(who)?;
        let mut stored = Vec::with_capacity(grants.len());
        for grant in grants {
            let Target::Upload(upload) = &grant.target else { continue };
            // First: the grant keeps others from the id, and its own file too.
            self.delete_grant(grant)?;
            let outcome = self.store_upload(pool, who, grant.upload(upload.clone()))?;
            if outcome.repeated || outcome.receipt.batch.is_none() {
                self.doom_object(grant.object.id)?;
            }
            stored.push(outcome);
        }
        Ok(stored)
    }

    /// Commits a granted result whose object is verified; `data` are its bytes where they are few.
    ///
    /// # Errors
    /// As [`commit_result`](Self::commit_result).
    pub fn count_result(
        &mut self,
        who: &Principal,
        grant: &Grant,
        data: Option<bytes::Bytes>,
    ) -> Result<Option<Committed>> {
        let Target::Result { round, attempt } = grant.target else { return Ok(None) };
        let pool = self.pool_of(who)?;
        self.delete_grant(grant)?;
        let committed = self.commit_result(
            pool,
            who,
            NewResult {
                round,
                attempt,
                name: grant.name.clone(),
                content_type: grant.content_type.clone(),
                size: grant.object.size,
                sha256: grant.object.sha256,
                object: grant.object.id,
                data,
            },
        )?;
        if committed.repeated {
            self.doom_object(grant.object.id)?;
        }
        Ok(Some(committed))
    }

    /// Gives a grant up; those that were to count with it are open again.
    pub fn end_grant(&mut self, grant: &Grant, cause: Cause) -> Result<()> {
        self.delete_grant(grant)?;
        self.doom_object(grant.object.id)?;
        if cause == Cause::Mismatch {
            self.object_differed(grant.object.id)?;
        }
        if let Some(set) = grant.verifying {
            // The others may be as good as they were.
            let why = format!("{} was to count with it and did not: {}", grant.target, cause.as_str());
            self.reopen_grants(grant.pool, set, &Refusal::unavailable(why))?;
        }
        let mut body = json!({"member": grant.who.name, "cause": cause.as_str(), "size": grant.object.size});
        match &grant.target {
            Target::Upload(upload) => body["upload"] = json!(upload),
            Target::Result { round, attempt } => {
                body["round"] = json!(round);
                body["attempt"] = json!(attempt);
            }
        }
        self.event(grant.pool, "grant-ended", &body)?;
        metrics::counter!("millpond_grants_ended_total", "cause" => cause.as_str()).increment(1);
        Ok(())
    }

    /// Gives up every grant of a member that is revoked.
    pub(super) fn end_grants_of(&mut self, member: i64) -> Result<()> {
        self.grants_of(member)?.iter().try_for_each(|grant| self.end_grant(grant, Cause::Revoked))
    }

    /// Gives up at most `most` grants of a member whose pool is removed, in silence: nobody is left to hear of it. How many
    /// there were.
    pub(super) fn forget_grants(&mut self, pool: PoolId, member: i64, most: usize) -> Result<usize> {
        let grants: Vec<(i64, i64)> = self
            .sql
            .prepare_cached("SELECT id, object_id FROM grants WHERE member_id = ?1 LIMIT ?2")?
            .query_map(params![member, most], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (grant, object) in &grants {
            self.sql
                .prepare_cached(
                    "UPDATE pools SET granted_bytes = granted_bytes - (SELECT size FROM objects WHERE id = ?2) WHERE id = ?1",
                )?
                .execute(params![pool, object])?;
            self.sql.prepare_cached("DELETE FROM grants WHERE id = ?1")?.execute([grant])?;
            self.doom_object(*object)?;
        }
        let cause = Cause::Revoked.as_str();
        metrics::counter!("millpond_grants_ended_total", "cause" => cause).increment(grants.len() as u64);
        Ok(grants.len())
    }

    /// Whether an upload or a version is there for a target.
    pub fn is_counted(&self, pool: PoolId, member: i64, target: &Target) -> Result<bool> {
        match target {
            Target::Upload(upload) => Ok(find_receipt(self.sql, member, upload.as_str())?.is_some()),
            Target::Result { round, attempt } => Ok(self
                .sql
                .prepare_cached(
                    "SELECT 1 FROM results WHERE pool_id = ?1 AND round = ?2 AND attempt = ?3 AND of IS NULL",
                )?
                .query_row(params![pool, round, attempt], |_| Ok(()))
                .optional()?
                .is_some()),
        }
    }
}

fn other_bytes(target: &Target) -> super::Error {
    Refusal::new(Code::Conflict, format!("{target} was granted or committed with other bytes"))
        .hint("use a new upload id for other bytes, or `abort` the grant first")
        .into()
}

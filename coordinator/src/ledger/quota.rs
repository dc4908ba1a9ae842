//! How much a pool and a member may have: bytes that are kept, and files that are granted and did not come yet.
//!
//! What a pool keeps stands in its row: it changes with the rows that it is the sum of, so an upload costs no sum, and what
//! retention frees is there at once. The row of an upload counts beside its bytes, for as long as there is one: also of an upload that
//! a rule rejected, or rejections would fill the disk of everybody.

use millpond_protocol::{Code, FileName, Principal, Refusal, limits};
use rusqlite::params;

use super::tx::Tx;
use super::uploads::NewUpload;
use super::{PoolId, Result};

/// When whoever was refused may ask again: retention may have freed something.
const AGAIN_MS: u64 = 60_000;

/// How many grants a member has.
const GRANTS: &str = "SELECT count(*) FROM grants WHERE member_id = ?1";
/// How many bytes they come to.
const GRANTED: &str = "SELECT coalesce(sum(o.size), 0) FROM grants g JOIN objects o ON o.id = g.object_id WHERE g.member_id = ?1";

/// What the row of an upload counts, beside what its member wrote into it: about what it takes with its indexes.
pub(crate) const ROW: u64 = 512;
/// The same of a row that is there.
pub(crate) const ROW_SQL: &str = "(512 + coalesce(octet_length(name), 0) + coalesce(octet_length(content_type), 0) + coalesce(octet_length(meta), 0))";

/// What the row of an upload counts.
pub(super) fn row_bytes(new: &NewUpload) -> u64 {
    let name = new.name.as_ref().map(FileName::as_str);
    let texts = [name, new.content_type.as_deref(), new.meta.as_deref()];
    ROW + texts.into_iter().flatten().map(|text| text.len() as u64).sum::<u64>()
}

impl Tx<'_> {
    /// Whether the pool may keep an upload of that size beside what it has, by its policy.
    ///
    /// # Errors
    /// `quota`.
    pub fn check_kept(&self, pool: PoolId, size: u64) -> Result<()> {
        let entry = self.entry(pool)?;
        let quota = entry.core.policy().quota_bytes;
        if quota == 0 {
            return Ok(());
        }
        let bytes = entry.counters.kept_bytes.saturating_add(self.granted_bytes(pool)?);
        if bytes.saturating_add(size) > quota {
            return Err(over("pool_bytes", format!("the pool keeps {bytes} bytes already"), quota)
                .hint("wait until older uploads are not kept any more, or let an operator raise quota_bytes")
                .retry_after_ms(AGAIN_MS)
                .into());
        }
        Ok(())
    }

    /// The pool keeps so many bytes more.
    pub(super) fn keep(&mut self, pool: PoolId, bytes: u64) {
        self.touch(pool);
        if let Some(entry) = self.state.pools.get_mut(&pool) {
            entry.counters.kept_bytes = entry.counters.kept_bytes.saturating_add(bytes);
        }
    }

    /// The pool, which may be removed, keeps so many bytes less.
    pub(crate) fn drop_kept(&mut self, pool: PoolId, bytes: u64) -> Result<()> {
        if self.state.pools.contains_key(&pool) {
            self.touch(pool);
        }
        if let Some(entry) = self.state.pools.get_mut(&pool) {
            entry.counters.kept_bytes = entry.counters.kept_bytes.saturating_sub(bytes);
            return Ok(());
        }
        self.sql
            .prepare_cached("UPDATE pools SET kept_bytes = max(kept_bytes - ?2, 0) WHERE id = ?1")?
            .execute(params![pool, bytes])?;
        Ok(())
    }

    fn granted_bytes(&self, pool: PoolId) -> Result<u64> {
        let mut statement = self.sql.prepare_cached("SELECT granted_bytes FROM pools WHERE id = ?1")?;
        Ok(statement.query_row([pool], |row| row.get(0))?)
    }

    /// Whether a member may have one more file granted, and its pool so many bytes more: half of what others leave is a member's
    /// at the most, so that nobody has all of it for the asking.
    ///
    /// # Errors
    /// `quota`.
    pub(super) fn check_grants(&self, pool: PoolId, who: &Principal, size: u64) -> Result<()> {
        let open: u64 = self.sql.prepare_cached(GRANTS)?.query_row([who.id], |row| row.get(0))?;
        if open >= limits::GRANTS_PER_MEMBER {
            let what = format!("{open} grants of {} are open", who.name);
            return Err(over("member_grants", what, limits::GRANTS_PER_MEMBER)
                .hint("commit or abort some first")
                .retry_after_ms(1_000)
                .into());
        }
        let mine: u64 = self.sql.prepare_cached(GRANTED)?.query_row([who.id], |row| row.get(0))?;
        let others = self.granted_bytes(pool)?.saturating_sub(mine);
        let entry = self.entry(pool)?;
        let quota = Some(entry.core.policy().quota_bytes).filter(|quota| *quota > 0);
        let kept = quota.map(|quota| ("pool_bytes", quota, entry.counters.kept_bytes));
        for (limit, max, taken) in
            [("pool_grants", limits::GRANTED_BYTES_PER_POOL, 0)].into_iter().chain(kept)
        {
            let left = max.saturating_sub(others.saturating_add(taken));
            if mine.saturating_add(size) > left / 2 {
                let what = format!(
                    "{} has grants of {mine} bytes, and half of what others leave is {}",
                    who.name,
                    left / 2
                );
                return Err(over(limit, what, max)
                    .hint("commit or abort some first")
                    .retry_after_ms(AGAIN_MS)
                    .into());
            }
        }
        Ok(())
    }
}

fn over(limit: &'static str, what: String, max: u64) -> Refusal {
    metrics::counter!("millpond_quota_refusals_total", "limit" => limit).increment(1);
    Refusal::new(Code::Quota, what).limit(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grants_of_a_member_are_counted_without_a_look_at_those_of_others() {
        for query in [GRANTS, GRANTED] {
            let plan = crate::ledger::plan(query);
            assert!(plan.iter().all(|step| step.starts_with("SEARCH")), "{plan:?}");
        }
    }
}

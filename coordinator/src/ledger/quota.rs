//! How much a pool and a member may have: bytes that are kept, and files that are granted and did not come yet.
//!
//! What a pool keeps is summed from the rows of its batches and results, and then counted on for [`FRESH`]: an upload costs no
//! sum, and a pool may have a little more than its quota for a moment. What retention frees is there as soon.

use std::time::Duration;

use millpond_protocol::{Code, Principal, Refusal, Timestamp, limits};

use super::tx::{State, Tx};
use super::{PoolId, Result};

/// How long a sum holds.
const FRESH: Duration = Duration::from_secs(5);
/// When whoever was refused may ask again: retention may have freed something.
const AGAIN_MS: u64 = 60_000;

/// What a pool keeps, as the writer knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    bytes: u64,
    until: Timestamp,
}

/// How many grants a member has.
const GRANTS: &str = "SELECT count(*) FROM grants WHERE member_id = ?1";

impl State {
    /// The job that counted these uploads is taken back.
    pub(super) fn take_back(&mut self, counted: &[(PoolId, u64)]) {
        for (pool, size) in counted {
            if let Some(kept) = self.kept.get_mut(pool) {
                kept.bytes = kept.bytes.saturating_sub(*size);
            }
        }
    }
}

impl Tx<'_> {
    /// Whether the pool may keep an upload of that size beside what it has, by its policy.
    ///
    /// # Errors
    /// `quota`.
    pub fn check_kept(&mut self, pool: PoolId, size: u64) -> Result<()> {
        let quota = self.core(pool)?.policy().quota_bytes;
        if quota == 0 {
            return Ok(());
        }
        let known = self.state.kept.get(&pool).copied().filter(|kept| self.now < kept.until);
        let kept = match known {
            Some(kept) => kept,
            None => Kept { bytes: self.sum_kept(pool)?, until: self.now.after(FRESH) },
        };
        self.state.kept.insert(pool, kept);
        if kept.bytes.saturating_add(size) > quota {
            return Err(over("pool_bytes", format!("the pool keeps {} bytes already", kept.bytes), quota)
                .hint("wait until older uploads are not kept any more, or let an operator raise quota_bytes")
                .retry_after_ms(AGAIN_MS)
                .into());
        }
        Ok(())
    }

    /// Counts an upload that is stored now.
    pub(super) fn count_kept(&mut self, pool: PoolId, size: u64) {
        if let Some(kept) = self.state.kept.get_mut(&pool) {
            kept.bytes = kept.bytes.saturating_add(size);
            self.effects.kept.push((pool, size));
        }
    }

    fn sum_kept(&self, pool: PoolId) -> Result<u64> {
        Ok(self
            .sql
            .prepare_cached(
                "SELECT (SELECT coalesce(sum(b.bytes + (SELECT coalesce(sum(c.bytes), 0) FROM batches c WHERE c.carried_into = b.id)), 0) \
                 FROM batches b WHERE b.pool_id = ?1 AND b.retention IN ('kept', 'expiring') AND b.carried_into IS NULL) \
                 + (SELECT coalesce(sum(size), 0) FROM results INDEXED BY results_kept WHERE pool_id = ?1 AND expired IS NULL AND of IS NULL) \
                 + (SELECT granted_bytes FROM pools WHERE id = ?1)",
            )?
            .query_row([pool], |row| row.get(0))?)
    }

    /// Whether a member may have one more file granted, and its pool so many bytes more.
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
        let bytes: u64 = self
            .sql
            .prepare_cached("SELECT granted_bytes FROM pools WHERE id = ?1")?
            .query_row([pool], |row| row.get(0))?;
        if bytes.saturating_add(size) > limits::GRANTED_BYTES_PER_POOL {
            let what = format!("{bytes} bytes are granted in the pool already");
            return Err(over("pool_grants", what, limits::GRANTED_BYTES_PER_POOL)
                .hint("commit or abort some first")
                .retry_after_ms(AGAIN_MS)
                .into());
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
        let plan = crate::ledger::plan(GRANTS);
        assert!(plan.iter().all(|step| step.starts_with("SEARCH")), "{plan:?}");
    }
}

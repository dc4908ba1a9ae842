//! Credentials of members: tokens, of which there is only the SHA-256, and certificates that name them.

use std::time::Duration;

use millpond_protocol::{Code, MemberName, PoolName, Principal, Refusal, Role, Sha256, Timestamp, limits};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;

use super::error::not_found;
use super::manage::find_member;
use super::tx::Tx;
use super::{PoolId, Result};

/// Tokens that end, or are deleted, in one job.
const PAGE: i64 = 1_000;

/// What happens to the tokens that a member has when it gets one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// They stay.
    Stay,
    /// They end after that time; at once if it is none. The member's sessions end with them.
    EndAfter(Duration),
}

impl Tx<'_> {
    /// The member whose token this is, also if the token has expired.
    fn token_holder(&self, token: &Sha256) -> Result<Option<i64>> {
        let holder = self
            .sql
            .prepare_cached("SELECT member_id FROM tokens WHERE hash = ?1")?
            .query_row([token.0.as_slice()], |row| row.get(0))
            .optional()?;
        Ok(holder)
    }

    /// Gives a member one more token.
    ///
    /// # Errors
    /// `conflict` if the token is in use.
    pub(super) fn add_token(&mut self, member: i64, token: &Sha256) -> Result<()> {
        if self.token_holder(token)?.is_some() {
            return Err(token_in_use().into());
        }
        self.sql
            .prepare_cached("INSERT INTO tokens (hash, member_id, created) VALUES (?1, ?2, ?3)")?
            .execute(params![token.0.as_slice(), member, self.now.as_millis()])?;
        Ok(())
    }

    /// Gives a member one more token. Returns its role, and whether anything changed. The same token again changes nothing
    /// but the end of the others.
    ///
    /// # Errors
    /// `not_found`; `conflict` if the token is somebody else's, or has an end already; `quota` if others stay, for however
    /// long, and are too many.
    pub fn give_token(
        &mut self,
        pool: PoolId,
        name: &MemberName,
        token: &Sha256,
        others: Others,
    ) -> Result<(Role, bool)> {
        let (id, role) =
            find_member(self.sql, pool, name)?.ok_or_else(|| not_found(format!("member {name}")))?;
        let holder = self.token_holder(token)?;
        if holder.is_some_and(|holder| holder != id) || self.ends(token)? {
            return Err(token_in_use().into());
        }
        if holder.is_none() && others != Others::EndAfter(Duration::ZERO) {
            self.check_tokens(id)?;
        }
        let changed = match others {
            Others::Stay => 0,
            Others::EndAfter(overlap) => self.end_others(id, token, overlap)?,
        };
        if holder.is_none() {
            self.add_token(id, token)?;
        }
        if others == Others::EndAfter(Duration::ZERO) && changed > 0 {
            // Whoever had the old token may have made those that are kept.
            self.end_sessions(pool, id, name, "token replaced")?;
        }
        let changes = holder.is_none() || changed > 0;
        if changes {
            self.event(pool, "token-added", &json!({"member": name, "replaced": changed}))?;
        }
        Ok((role, changes))
    }

    /// Checks that a member may have one more token beside those that it has.
    fn check_tokens(&self, member: i64) -> Result<()> {
        let valid: u32 = self
            .sql
            .prepare_cached("SELECT count(*) FROM tokens WHERE member_id = ?1 AND coalesce(expires > ?2, 1)")?
            .query_row(params![member, self.now.as_millis()], |row| row.get(0))?;
        if valid < limits::TOKENS_MAX {
            return Ok(());
        }
        Err(Refusal::new(Code::Quota, format!("a member has at most {} tokens", limits::TOKENS_MAX))
            .limit(limits::TOKENS_MAX.into())
            .hint("end the others: replace them without an overlap")
            .into())
    }

    /// Checks that a member may give itself the token `new` with the token `own`. One that has an end was replaced: whoever
    /// stole it shall not outlive it, so it opens nothing but the repeat of what replaced it.
    ///
    /// # Errors
    /// `unauthorized`.
    pub fn check_rotation(&self, own: &Sha256, new: &Sha256) -> Result<()> {
        let holder = self.token_holder(own)?;
        let is_repeat = self.token_holder(new)? == holder && !self.ends(new)?;
        if holder.is_some() && (is_repeat || !self.ends(own)?) {
            return Ok(());
        }
        let message = "the token was replaced and gives no other";
        Err(Refusal::new(Code::Unauthorized, message).hint("use the new one, or ask an operator").into())
    }

    fn ends(&self, token: &Sha256) -> Result<bool> {
        Ok(self
            .sql
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM tokens WHERE hash = ?1 AND expires IS NOT NULL)")?
            .query_row([token.0.as_slice()], |row| row.get(0))?)
    }

    /// Ends the tokens of a member but `kept`, after `overlap` or when they end already; how many.
    fn end_others(&mut self, member: i64, kept: &Sha256, overlap: Duration) -> Result<usize> {
        if overlap.is_zero() {
            return Ok(self
                .sql
                .prepare_cached("DELETE FROM tokens WHERE member_id = ?1 AND hash <> ?2")?
                .execute(params![member, kept.0.as_slice()])?);
        }
        let end = self.now.after(overlap).as_millis();
        Ok(self
            .sql
            .prepare_cached(
                "UPDATE tokens SET expires = ?3 \
                 WHERE member_id = ?1 AND hash <> ?2 AND coalesce(expires > ?3, 1)",
            )?
            .execute(params![member, kept.0.as_slice(), end])?)
    }

    /// Ends the sessions of members whose token has expired, a page of them: who has another token comes back with it. The
    /// token itself is deleted by retention, which does not believe every clock; one that a clock ended that was wrong holds
    /// again.
    pub fn expire_tokens(&mut self) -> Result<()> {
        let now = self.now.as_millis();
        let ended: Vec<(PoolId, i64, String)> = self
            .sql
            .prepare_cached(
                "SELECT DISTINCT m.pool_id, m.id, m.name FROM tokens t JOIN members m ON m.id = t.member_id \
                 JOIN pools p ON p.id = m.pool_id \
                 WHERE t.expires <= ?1 AND t.ended IS NULL AND m.revoked IS NULL AND p.removed IS NULL LIMIT ?2",
            )?
            .query_map([now, PAGE], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (pool, id, name) in ended {
            let name: MemberName = name.parse()?;
            self.sql
                .prepare_cached(
                    "UPDATE tokens SET ended = ?2 WHERE expires <= ?2 AND ended IS NULL AND member_id = ?1",
                )?
                .execute([id, now])?;
            self.event(pool, "token-expired", &json!({"member": name}))?;
            self.end_sessions(pool, id, &name, "token expired")?;
        }
        self.sql
            .prepare_cached("UPDATE tokens SET ended = NULL WHERE ended IS NOT NULL AND expires > ?1")?
            .execute([now])?;
        Ok(())
    }

    /// Deletes a page of the tokens and join tokens that had ended by `now`.
    pub fn forget_tokens(&mut self, now: Timestamp) -> Result<()> {
        for statement in [
            "DELETE FROM tokens WHERE hash IN \
             (SELECT hash FROM tokens WHERE ended IS NOT NULL AND expires <= ?1 LIMIT ?2)",
            "DELETE FROM joins WHERE hash IN (SELECT hash FROM joins WHERE expires <= ?1 LIMIT ?2)",
        ] {
            self.sql.prepare_cached(statement)?.execute(params![now.as_millis(), PAGE])?;
        }
        Ok(())
    }
}

/// Whether [`Tx::expire_tokens`] has anything to do.
pub fn is_any_expired(sql: &Connection, now: Timestamp) -> Result<bool> {
    Ok(sql
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM tokens WHERE expires <= ?1 AND ended IS NULL) \
             OR EXISTS (SELECT 1 FROM tokens WHERE ended IS NOT NULL AND expires > ?1)",
        )?
        .query_row([now.as_millis()], |row| row.get(0))?)
}

const CERTIFIED: &str = "SELECT m.id, m.role FROM members m JOIN pools p ON p.id = m.pool_id \
     WHERE p.name = ?1 AND p.removed IS NULL AND m.name = ?2 AND m.revoked IS NULL AND NOT EXISTS \
     (SELECT 1 FROM pools q JOIN members old ON old.pool_id = q.id \
      WHERE q.name = ?1 AND old.name = ?2 AND old.revoked >= ?3)";

/// The member of that name in that pool, for a certificate that holds from `issued` on. One from the time of an earlier
/// member of the same name, of this pool or of a removed one, was that member's: it names nobody any more.
pub fn find_certified(
    sql: &Connection,
    pool: &PoolName,
    member: &MemberName,
    issued: Timestamp,
) -> Result<Option<Principal>> {
    let found: Option<(i64, String)> = sql
        .prepare_cached(CERTIFIED)?
        .query_row(params![pool.as_str(), member.as_str(), issued.as_millis()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((id, role)) = found else { return Ok(None) };
    Ok(Some(Principal {
        pool: pool.clone(),
        name: member.clone(),
        role: role.parse().map_err(|e: String| Refusal::new(Code::Malformed, e))?,
        id,
    }))
}

/// Names a member in URLs that are made for it, with the role that they are made for.
pub fn holder(who: &Principal) -> String {
    format!("{}.{}", who.id, who.role)
}

/// Names all members of a pool, in URLs that are made for whoever is one.
pub fn holder_of_all(pool: PoolId) -> String {
    format!("{pool}.all")
}

/// Whether that [`holder`] is what it was: not revoked, nor in another role, nor of a removed pool; and so of all.
pub fn holds(sql: &Connection, holder: &str) -> Result<bool> {
    let Some((id, role)) = holder.split_once('.') else { return Ok(false) };
    let holds = sql
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM members m JOIN pools p ON p.id = m.pool_id \
             WHERE m.id = ?1 AND m.role = ?2 AND m.revoked IS NULL AND p.removed IS NULL) \
             OR EXISTS (SELECT 1 FROM pools WHERE id = ?1 AND ?2 = 'all' AND removed IS NULL)",
        )?
        // The id's column compares with a text that is a number as with that number.
        .query_row([id, role], |row| row.get(0))?;
    Ok(holds)
}

/// Who a token belongs to, if it is valid at `now` and its member not revoked.
pub fn find_token(sql: &Connection, token: &Sha256, now: Timestamp) -> Result<Option<Principal>> {
    let found: Option<(i64, String, String, String)> = sql
        .prepare_cached(
            "SELECT m.id, m.name, m.role, p.name FROM tokens t JOIN members m ON m.id = t.member_id \
             JOIN pools p ON p.id = m.pool_id WHERE t.hash = ?1 AND m.revoked IS NULL AND p.removed IS NULL \
             AND (t.expires IS NULL OR t.expires > ?2)",
        )?
        .query_row(params![token.0.as_slice(), now.as_millis()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((id, name, role, pool)) = found else { return Ok(None) };
    Ok(Some(Principal {
        pool: pool.parse()?,
        name: name.parse()?,
        role: role.parse().map_err(|e: String| Refusal::new(Code::Malformed, e))?,
        id,
    }))
}

pub(super) fn token_in_use() -> Refusal {
    Refusal::new(Code::Conflict, "the token is in use").hint("make a new random one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_certificate_is_found_without_a_look_at_every_member() {
        let plan = crate::ledger::plan(CERTIFIED);
        assert!(!plan.iter().any(|step| step.contains("SCAN old") || step.contains("SCAN m")), "{plan:?}");
    }
}

//! Pools and members: management inside a ledger job.

use millpond_protocol::{Code, MemberName, PoolName, Refusal, Role, Sha256, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;

use super::error::{not_found, not_kept};
use super::tx::Tx;
use super::writer::write_counters;
use super::{PoolId, Result};
use crate::rounds::{Event, Policy, Round, RoundState};

/// Members and grants of a removed pool that one job ends.
const ENDED: usize = 500;

impl Tx<'_> {
    /// Makes a pool, or gives an existing one another policy. Returns its id and whether anything changed.
    ///
    /// # Errors
    /// `malformed` with every problem of the policy.
    pub fn apply_pool(&mut self, name: &PoolName, policy: &Policy) -> Result<(PoolId, bool)> {
        let problems = policy.problems();
        if !problems.is_empty() {
            return Err(Refusal::new(
                Code::Malformed,
                format!("policy of pool {name}: {}", problems.join("; ")),
            )
            .into());
        }
        let Some(id) = self.state.names.get(name).copied() else {
            return Ok((self.create_pool(name, policy)?, true));
        };
        if self.core(id)?.policy() == policy {
            return Ok((id, false));
        }
        self.sql
            .prepare_cached(
                "UPDATE pools SET policy = ?2, policy_version = policy_version + 1 WHERE id = ?1",
            )?
            .execute(params![id, serde_json::to_string(policy)?])?;
        // Before the core is told: what the change itself seals names the new version. If the job fails, the pool is read
        // again.
        self.touch(id);
        self.effects.moved = true;
        if let Some(entry) = self.state.pools.get_mut(&id) {
            entry.policy_version += 1;
        }
        self.apply(id, Event::Policy(Box::new(policy.clone())))?;
        self.event(id, "policy", &json!(policy))?;
        self.change(id)?.card = true;
        Ok((id, true))
    }

    fn create_pool(&mut self, name: &PoolName, policy: &Policy) -> Result<PoolId> {
        self.sql
            .prepare_cached(
                "INSERT INTO pools (name, policy, policy_version, created) VALUES (?1, ?2, 1, ?3)",
            )?
            .execute(params![name.as_str(), serde_json::to_string(policy)?, self.now.as_millis()])?;
        let id = self.sql.last_insert_rowid();
        self.touch(id);
        self.effects.moved = true;
        self.effects.commit.renewed.push(name.clone());
        self.reload(id)?;
        self.event(id, "policy", &json!(policy))?;
        self.change(id)?.card = true;
        Ok(id)
    }

    /// Adds a member with the hash of its token.
    ///
    /// # Errors
    /// `conflict` if the name is taken, also by a removed member of whom something is in an open batch or a live round, or
    /// if the token is in use.
    pub fn add_member(&mut self, pool: PoolId, name: &MemberName, role: Role, token: &Sha256) -> Result<i64> {
        if find_member(self.sql, pool, name)?.is_some() {
            return Err(Refusal::new(Code::Conflict, format!("there is a member {name} already")).into());
        }
        if self.name_in_use(pool, name)? {
            let message =
                format!("a removed member {name} still has uploads in an open batch or a live round");
            return Err(Refusal::new(Code::Conflict, message).hint("use another name, or wait").into());
        }
        self.sql
            .prepare_cached("INSERT INTO members (pool_id, name, role, created) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![pool, name.as_str(), role.as_str(), self.now.as_millis()])?;
        let id = self.sql.last_insert_rowid();
        self.add_token(id, token)?;
        if role == Role::Publisher {
            self.apply(pool, Event::PublisherAdded { member: id })?;
        }
        self.event(pool, "member-added", &json!({"member": name, "role": role}))?;
        Ok(id)
    }

    fn name_in_use(&self, pool: PoolId, name: &MemberName) -> Result<bool> {
        let open: bool = self
            .sql
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM members m JOIN batch_members i ON i.member_id = m.id \
                 JOIN batches b ON b.id = i.batch_id \
                 LEFT JOIN rounds r ON r.pool_id = b.pool_id AND r.round = b.round \
                 WHERE m.pool_id = ?1 AND m.name = ?2 \
                 AND (b.state = 'open' OR (b.state = 'sealed' AND r.state NOT IN ('committed', 'failed'))))",
            )?
            .query_row(params![pool, name.as_str()], |row| row.get(0))?;
        Ok(open)
    }

    /// Offers a failed round again, for as many attempts as a new one has. False: that was done already, and the round is
    /// live since.
    ///
    /// # Errors
    /// `not_found`, also if its files are not kept any more; `stale` if the round has not failed.
    pub fn retry_round(&mut self, pool: PoolId, round: u64) -> Result<bool> {
        let found: Option<(String, Option<i64>, bool)> = self
            .sql
            .prepare_cached(
                "SELECT r.record, b.expired, r.retried IS NOT NULL AND r.ended IS NULL FROM rounds r \
                 JOIN batches b ON b.id = r.batch_id WHERE r.pool_id = ?1 AND r.round = ?2",
            )?
            .query_row(params![pool, round], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let (record, expired, retried) = found.ok_or_else(|| not_found(format!("round {round}")))?;
        if let Some(expired) = expired {
            return Err(not_kept(format!("the files of round {round}"), Timestamp::clamped(expired)).into());
        }
        if retried {
            return Ok(false);
        }
        let record: Round = serde_json::from_str(&record)?;
        if !matches!(record.state, RoundState::Failed { .. }) {
            return Err(Refusal::new(Code::Stale, format!("round {round} has not failed"))
                .hint("only a failed round can be offered again")
                .into());
        }
        self.apply(pool, Event::Retry { round: record })?;
        self.sql
            .prepare_cached("UPDATE rounds SET retried = ?3 WHERE pool_id = ?1 AND round = ?2")?
            .execute(params![pool, round, self.now.as_millis()])?;
        Ok(true)
    }

    /// Revokes a member: its tokens, sessions, leases and grants end with this commit; its name is free once nothing of it is
    /// in an open batch or a live round.
    ///
    /// # Errors
    /// `not_found`.
    pub fn revoke_member(&mut self, pool: PoolId, name: &MemberName) -> Result<()> {
        let (id, _) =
            find_member(self.sql, pool, name)?.ok_or_else(|| not_found(format!("member {name}")))?;
        self.sql
            .prepare_cached("UPDATE members SET revoked = ?2 WHERE id = ?1")?
            .execute(params![id, self.now.as_millis()])?;
        self.sql.prepare_cached("DELETE FROM tokens WHERE member_id = ?1")?.execute([id])?;
        self.apply(pool, Event::MemberRemoved { member: id })?;
        self.end_grants_of(id)?;
        self.effects.revoked.push(id);
        self.event(pool, "member-revoked", &json!({"member": name}))?;
        self.end_sessions(pool, id, name, "revoked")
    }

    /// Ends the sessions of a member with this commit, those too that are kept while it is away.
    pub(super) fn end_sessions(
        &mut self,
        pool: PoolId,
        id: i64,
        name: &MemberName,
        why: &'static str,
    ) -> Result<()> {
        self.sql.prepare_cached("DELETE FROM sessions WHERE member_id = ?1")?.execute([id])?;
        let pool_name = self.entry(pool)?.name.clone();
        self.effects.commit.ended.push((pool_name, name.clone(), why));
        Ok(())
    }

    /// Gives a member another role. What it holds by the old one ends with this commit: sessions, leases and grants.
    /// Returns the old one.
    ///
    /// # Errors
    /// `not_found`.
    pub fn set_role(&mut self, pool: PoolId, name: &MemberName, role: Role) -> Result<Role> {
        let (id, old) =
            find_member(self.sql, pool, name)?.ok_or_else(|| not_found(format!("member {name}")))?;
        if old == role {
            return Ok(old);
        }
        self.sql
            .prepare_cached("UPDATE members SET role = ?2, complete_through = NULL WHERE id = ?1")?
            .execute(params![id, role.as_str()])?;
        // What the core forgets of it with the next line.
        self.sql
            .prepare_cached(
                "UPDATE batch_members SET completed = 0 WHERE member_id = ?1 AND completed = 1 \
                 AND batch_id IN (SELECT id FROM batches WHERE pool_id = ?2 AND state = 'open')",
            )?
            .execute(params![id, pool])?;
        self.apply(pool, Event::MemberRemoved { member: id })?;
        self.end_grants_of(id)?;
        self.effects.roles.push((id, old, role));
        if role == Role::Publisher {
            self.apply(pool, Event::PublisherAdded { member: id })?;
        }
        self.event(pool, "member-role", &json!({"member": name, "role": role, "was": old}))?;
        self.end_sessions(pool, id, name, "role changed")?;
        Ok(old)
    }

    /// Removes a pool: its name is free, its rows stay. From this commit on nobody of it signs in and nothing of theirs that
    /// waits counts; [`end_members`](Self::end_members) does the rest. The core is not asked: nothing is sealed by it.
    ///
    /// # Errors
    /// `conflict` while a round is live and, unless `force` says that they may never be processed, while uploads wait in
    /// open batches.
    pub fn remove_pool(&mut self, pool: PoolId, force: bool) -> Result<()> {
        if self.core(pool)?.live_rounds().next().is_some() {
            return Err(Refusal::new(Code::Conflict, "a round of the pool is live")
                .hint("let it end, or let the processor `fail` it")
                .into());
        }
        let waiting: u64 = self.core(pool)?.open_batches().map(|batch| batch.count).sum();
        if waiting > 0 && !force {
            return Err(Refusal::new(Code::Conflict, format!("{waiting} uploads wait in open batches"))
                .hint("trigger them first, or remove the pool by force: they will never be processed")
                .into());
        }
        let members: Vec<(i64, String)> = self
            .sql
            .prepare_cached("SELECT id, name FROM members WHERE pool_id = ?1 AND revoked IS NULL")?
            .query_map([pool], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let pool_name = self.entry(pool)?.name.clone();
        for (id, name) in members {
            self.effects.revoked.push(id);
            self.effects.commit.ended.push((pool_name.clone(), name.parse()?, "pool removed"));
        }
        self.effects.commit.renewed.push(pool_name);
        // Nobody flushes the counters of a pool that is not in memory any more.
        write_counters(self.sql, pool, self.entry(pool)?)?;
        self.sql
            .prepare_cached("UPDATE pools SET removed = ?2 WHERE id = ?1")?
            .execute(params![pool, self.now.as_millis()])?;
        self.touch(pool);
        self.effects.moved = true;
        self.state.remove(pool);
        Ok(())
    }

    /// Revokes members of removed pools and ends their grants, as many as one job may; whether there is more.
    pub fn end_members(&mut self) -> Result<bool> {
        let mut room = ENDED;
        let members: Vec<(i64, PoolId, i64)> = self
            .sql
            .prepare_cached(
                "SELECT m.id, p.id, p.removed FROM pools p CROSS JOIN members m ON m.pool_id = p.id \
                 WHERE p.removed IS NOT NULL AND m.revoked IS NULL LIMIT ?1",
            )?
            .query_map([room], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let more = members.len() == room;
        for (member, pool, removed) in members {
            room -= self.forget_grants(pool, member, room)?;
            // It may have more of them.
            if room == 0 {
                return Ok(true);
            }
            self.sql
                .prepare_cached("UPDATE members SET revoked = ?2 WHERE id = ?1")?
                .execute([member, removed])?;
            self.sql.prepare_cached("DELETE FROM tokens WHERE member_id = ?1")?.execute([member])?;
            room -= 1;
        }
        Ok(more)
    }
}

/// Members of removed pools who are not revoked yet.
pub(super) fn members_to_end(sql: &Connection) -> rusqlite::Result<Vec<i64>> {
    sql.prepare_cached(
        "SELECT m.id FROM pools p CROSS JOIN members m ON m.pool_id = p.id \
         WHERE p.removed IS NOT NULL AND m.revoked IS NULL",
    )?
    .query_map([], |row| row.get(0))?
    .collect()
}

/// The id and role of a member that is not revoked.
pub fn find_member(sql: &Connection, pool: PoolId, name: &MemberName) -> Result<Option<(i64, Role)>> {
    let found = sql
        .prepare_cached("SELECT id, role FROM members WHERE pool_id = ?1 AND name = ?2 AND revoked IS NULL")?
        .query_row(params![pool, name.as_str()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    found
        .map(|(id, role)| Ok((id, role.parse().map_err(|e: String| Refusal::new(Code::Malformed, e))?)))
        .transpose()
}

/// The id of a pool by its name, on a reader.
///
/// # Errors
/// `not_found`.
pub fn find_pool(sql: &Connection, name: &PoolName) -> Result<PoolId> {
    sql.prepare_cached("SELECT id FROM pools WHERE name = ?1 AND removed IS NULL")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()?
        .ok_or_else(|| not_found(format!("pool {name}")))
}

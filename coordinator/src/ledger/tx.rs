//! What a job may do inside the group's transaction, and the writer's memory of the pools.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use millpond_protocol::{Code, PoolName, Principal, Refusal, Role, Timestamp, limits};
use rusqlite::{Connection, OptionalExtension, params};

use super::clock::Moment;
use super::error::not_found;
use super::notice::Commit;
use super::{PoolId, Result, load};
use crate::rounds::{Event, Fact, MemberId, Pool, Reply};

/// The writer's memory: every pool's core, and what is cheaper to keep than to ask SQLite for.
#[derive(Default)]
pub(super) struct State {
    pub pools: BTreeMap<PoolId, Entry>,
    pub names: HashMap<PoolName, PoolId>,
    /// When each pool's core wants a tick.
    pub due: BTreeSet<(Timestamp, PoolId)>,
    /// The time of the last job, and when that was.
    last: Option<(Timestamp, Moment)>,
    /// Members revoked since the start: what they had in the queue is refused.
    pub revoked: HashSet<MemberId>,
    /// The role of each member that was given another one since the start: what it had in the queue by the old one is
    /// refused.
    pub roles: HashMap<MemberId, Role>,
}

/// One pool.
pub(super) struct Entry {
    pub name: PoolName,
    pub core: Pool,
    pub due: Option<Timestamp>,
    /// Counters as they stand in the pool's row after the flush.
    pub counters: Counters,
    pub policy_version: u64,
}

/// The per-pool counters of the `pools` table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub seq: u64,
    pub batches: u64,
    pub rounds: u64,
    pub versions: u64,
    pub newest_committed: u64,
    pub pointer: Option<u64>,
    /// What `quota_bytes` is about, but for what is granted.
    pub kept_bytes: u64,
}

impl State {
    /// The cores' time: the wall's, but it never goes back and never stands still, whatever the wall's does.
    pub fn clock(&mut self) -> Timestamp {
        let wall = super::now();
        let now = self.last.map_or(wall, |(last, at)| wall.max(last.after(at.elapsed())));
        if self.last.is_none_or(|(last, _)| now > last) {
            self.last = Some((now, Moment::now()));
        }
        now
    }

    /// Lets a pool's next tick wait.
    pub fn postpone(&mut self, id: PoolId, until: Timestamp) {
        let Some(entry) = self.pools.get_mut(&id) else { return };
        if let Some(due) = entry.due.replace(until) {
            self.due.remove(&(due, id));
        }
        self.due.insert((until, id));
    }

    /// Puts a pool's core in place, new or read again.
    pub fn put(&mut self, id: PoolId, entry: Entry) {
        self.remove(id);
        self.names.insert(entry.name.clone(), id);
        self.pools.insert(id, entry);
        self.reschedule(id);
    }

    pub fn remove(&mut self, id: PoolId) {
        if let Some(old) = self.pools.remove(&id) {
            self.names.remove(&old.name);
            if let Some(due) = old.due {
                self.due.remove(&(due, id));
            }
        }
    }

    /// Takes the core's next instant into the calendar.
    pub fn reschedule(&mut self, id: PoolId) {
        let Some(entry) = self.pools.get_mut(&id) else { return };
        let next = entry.core.next_due();
        if next != entry.due {
            if let Some(due) = std::mem::replace(&mut entry.due, next) {
                self.due.remove(&(due, id));
            }
            if let Some(due) = next {
                self.due.insert((due, id));
            }
        }
    }
}

/// What one job changed beside rows: merged into the group if the job succeeds, dropped with its savepoint if not.
#[derive(Default)]
pub(super) struct Effects {
    pub commit: Commit,
    /// Pools whose core was fed: its row is written at the flush; its core is read again if the job fails.
    pub touched: BTreeSet<PoolId>,
    /// Counters of touched pools before the job.
    pub before: BTreeMap<PoolId, Counters>,
    /// Members that the job revoked.
    pub revoked: Vec<MemberId>,
    /// Members that the job gave another role: the old one, and the new one.
    pub roles: Vec<(MemberId, Role, Role)>,
    /// A core took an event: if the job fails, it is ahead of the rows.
    pub moved: bool,
    /// What uploads added to open batches: files, bytes, small bytes.
    pub batches: BTreeMap<i64, (u64, u64, u64)>,
    pub made: Made,
}

/// Rows that metrics count once they are committed.
#[derive(Debug, Default)]
pub(super) struct Made {
    stored: u64,
    rejected: u64,
    bytes: u64,
    pub results: u64,
}

impl Made {
    pub fn upload(&mut self, rejected: bool, size: u64) {
        self.bytes += size;
        *(if rejected { &mut self.rejected } else { &mut self.stored }) += 1;
    }

    pub fn add(&mut self, other: &Self) {
        self.stored += other.stored;
        self.rejected += other.rejected;
        self.bytes += other.bytes;
        self.results += other.results;
    }

    pub fn count(&self) {
        metrics::counter!("millpond_uploads_total", "outcome" => "stored").increment(self.stored);
        metrics::counter!("millpond_uploads_total", "outcome" => "rejected").increment(self.rejected);
        metrics::counter!("millpond_upload_bytes_total").increment(self.bytes);
        metrics::counter!("millpond_results_total").increment(self.results);
    }
}

/// The group's transaction as a job sees it.
pub struct Tx<'a> {
    pub(super) sql: &'a Connection,
    pub(super) now: Timestamp,
    pub(super) state: &'a mut State,
    pub(super) effects: Effects,
}

impl<'a> Tx<'a> {
    /// What a job does from now on.
    pub(super) fn begin(sql: &'a Connection, state: &'a mut State) -> Self {
        Self { sql, now: state.clock(), state, effects: Effects::default() }
    }
}

impl Tx<'_> {
    /// The time of this job.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// For statements of the job's own; prefer `prepare_cached`.
    pub fn sql(&self) -> &Connection {
        self.sql
    }

    /// Proves that the ledger can commit: a job that writes nothing would succeed on a disk that is full.
    ///
    /// # Errors
    /// SQLite's; the disk's come with the commit.
    pub fn prove(&self) -> Result<()> {
        self.sql.prepare_cached("UPDATE proof SET at = ?1")?.execute([self.now.as_millis()])?;
        Ok(())
    }

    /// The id that a pool's name stands for now.
    ///
    /// # Errors
    /// `not_found`.
    pub fn pool(&self, name: &PoolName) -> Result<PoolId> {
        self.state.names.get(name).copied().ok_or_else(|| not_found(format!("pool {name}")))
    }

    /// The pool of a member who is signed in.
    ///
    /// # Errors
    /// `unauthorized` if the member was revoked or got another role meanwhile, `not_found` if the pool was removed.
    pub fn pool_of(&self, who: &Principal) -> Result<PoolId> {
        if self.state.revoked.contains(&who.id) || self.effects.revoked.contains(&who.id) {
            let message = format!("{}/{} was revoked", who.pool, who.name);
            return Err(Refusal::new(Code::Unauthorized, message).into());
        }
        let role = self.effects.roles.iter().rev().find(|(id, ..)| *id == who.id).map(|(.., role)| role);
        if let Some(role) = role.or_else(|| self.state.roles.get(&who.id)).filter(|role| **role != who.role) {
            let message = format!("{}/{} is a {role} now", who.pool, who.name);
            return Err(Refusal::new(Code::Unauthorized, message).into());
        }
        self.pool(&who.pool)
    }

    /// The core of a pool, to look at.
    ///
    /// # Errors
    /// `not_found` if there is no such pool.
    pub fn core(&self, pool: PoolId) -> Result<&Pool> {
        Ok(&self.entry(pool)?.core)
    }

    /// Feeds the pool's core, writes what became true, and queues the messages for after the commit.
    ///
    /// # Errors
    /// The core's refusal, in words for the client.
    pub fn apply(&mut self, pool: PoolId, event: Event) -> Result<Reply> {
        let now = self.now;
        self.touch(pool);
        let mut facts = Vec::new();
        let entry = self.state.pools.get_mut(&pool).ok_or_else(|| not_found("such pool"))?;
        let reply = entry.core.apply(now, event, &mut facts);
        self.effects.moved |= reply.is_ok() || !facts.is_empty();
        self.record(pool, facts)?;
        Ok(reply?)
    }

    /// Adds an event to the pool's feed.
    pub fn event(&mut self, pool: PoolId, kind: &str, body: &serde_json::Value) -> Result<u64> {
        let seq = self.next_seq(pool)?;
        self.sql
            .prepare_cached("INSERT INTO events (pool_id, seq, type, at, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![pool, seq, kind, self.now.as_millis(), body.to_string()])?;
        self.change(pool)?.events = true;
        Ok(seq)
    }

    /// Adds to the audit trail: `who` did `action` from `source` (an address, or `local`).
    pub fn audit(
        &mut self,
        pool: Option<&PoolName>,
        who: &str,
        source: &str,
        action: &str,
        detail: &serde_json::Value,
    ) -> Result<()> {
        self.sql
            .prepare_cached(
                "INSERT INTO audit (at, pool, who, source, action, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                self.now.as_millis(),
                pool.map(PoolName::as_str),
                who,
                source,
                action,
                detail.to_string()
            ])?;
        Ok(())
    }

    /// The first answer to an ask that is remembered.
    pub fn remembered(&self, who: &Principal, op: &str, ask: &str) -> Result<Option<serde_json::Value>> {
        let text: Option<String> = self
            .sql
            .prepare_cached("SELECT answer FROM asks WHERE member_id = ?1 AND op = ?2 AND ask = ?3")?
            .query_row(params![who.id, op, ask], |row| row.get(0))
            .optional()?;
        Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
    }

    /// Remembers the answer to a state-changing ask.
    ///
    /// # Errors
    /// `quota` if the member has too many that are remembered: what the ask did is taken back with the job.
    pub fn remember(&self, who: &Principal, op: &str, ask: &str, answer: &serde_json::Value) -> Result<()> {
        let full = self
            .sql
            .prepare_cached("SELECT 1 FROM members WHERE id = ?1 AND asks >= ?2")?
            .exists(params![who.id, limits::ASKS_REMEMBERED])?;
        if full {
            let what = format!("{} has sent too many state-changing asks within a day", who.name);
            return Err(Refusal::new(Code::Quota, what)
                .hint("their answers are remembered for a day: send fewer, or wait")
                .limit(limits::ASKS_REMEMBERED as u64)
                .retry_after_ms(60_000)
                .into());
        }
        self.sql
            .prepare_cached("INSERT INTO asks (member_id, op, ask, at, answer) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![who.id, op, ask, self.now.as_millis(), answer.to_string()])?;
        Ok(())
    }

    /// The next number of the pool's sequence of uploads and events.
    pub(super) fn next_seq(&mut self, pool: PoolId) -> Result<u64> {
        self.touch(pool);
        let entry = self.state.pools.get_mut(&pool).ok_or_else(|| not_found("such pool"))?;
        entry.counters.seq += 1;
        Ok(entry.counters.seq)
    }

    /// Notes that the job changes the writer's memory of the pool.
    pub(super) fn touch(&mut self, pool: PoolId) {
        if self.effects.touched.insert(pool)
            && let Some(entry) = self.state.pools.get(&pool)
        {
            self.effects.before.insert(pool, entry.counters);
        }
    }

    pub(super) fn entry(&self, pool: PoolId) -> Result<&Entry> {
        self.state.pools.get(&pool).ok_or_else(|| not_found("such pool"))
    }

    /// What this job says of the pool to the world.
    pub(super) fn change(&mut self, pool: PoolId) -> Result<&mut super::PoolChange> {
        let entry = self.state.pools.get(&pool).ok_or_else(|| not_found("such pool"))?;
        Ok(self.effects.commit.pool(pool, &entry.name))
    }

    /// Reads a pool's core from its rows, new or again; a live lease gets a full term.
    pub(super) fn reload(&mut self, pool: PoolId) -> Result<()> {
        let (entry, facts) = load::pool(self.sql, pool, self.now)?;
        self.state.put(pool, entry);
        self.record(pool, facts)
    }

    fn record(&mut self, pool: PoolId, facts: Vec<Fact>) -> Result<()> {
        for fact in facts {
            self.write_fact(pool, fact)?;
        }
        Ok(())
    }
}

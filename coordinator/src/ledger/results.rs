//! Results as rows: one a round, fenced by (member, round, attempt).

use bytes::Bytes;
use millpond_protocol::{Code, FileName, Principal, Refusal, Sha256, Timestamp};
use rusqlite::{OptionalExtension, params};
use serde_json::json;

use super::error::{not_found, not_kept};
use super::tx::Tx;
use super::{PoolId, Result};
use crate::rounds::{Event, Reply};

/// A result whose object is in storage, verified.
#[derive(Debug)]
pub struct NewResult {
    pub round: u64,
    pub attempt: u32,
    pub name: Option<FileName>,
    pub content_type: Option<String>,
    pub size: u64,
    pub sha256: Sha256,
    pub object: i64,
    /// The bytes too, where they are small enough to be sent inline.
    pub data: Option<Bytes>,
}

/// What a commit, or its repeat, comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    pub version: u64,
    pub batch: u64,
    pub repeated: bool,
}

impl Tx<'_> {
    /// Whether this attempt may commit now: none says yes, a value is the answer to a repeat.
    ///
    /// # Errors
    /// `not_found` for a round that never was, `stale` if another attempt holds it or it has ended, `conflict` if this
    /// attempt committed other bytes.
    pub fn may_commit(
        &self,
        pool: PoolId,
        who: &Principal,
        round: u64,
        attempt: u32,
        sha256: Sha256,
    ) -> Result<Option<Committed>> {
        if let Some(committed) = self.committed(pool, round)? {
            if (committed.member, committed.attempt) != (who.id, attempt) {
                let message = format!("round {round} has its result, from attempt {}", committed.attempt);
                return Err(Refusal::new(Code::Stale, message).into());
            }
            if committed.sha256 != sha256 {
                let message = format!("attempt {attempt} of round {round} committed other bytes");
                return Err(Refusal::new(Code::Conflict, message).into());
            }
            return Ok(Some(Committed { repeated: true, ..committed.answer }));
        }
        let Some(live) = self.core(pool)?.round(round) else {
            let state: Option<String> = self
                .sql
                .prepare_cached("SELECT state FROM rounds WHERE pool_id = ?1 AND round = ?2")?
                .query_row(params![pool, round], |row| row.get(0))
                .optional()?;
            return Err(match state {
                Some(state) => Refusal::new(Code::Stale, format!("round {round} has ended: {state}")).into(),
                None => not_found(format!("round {round}")),
            });
        };
        if live.holder != Some(who.id) || live.attempt != attempt {
            let message =
                format!("round {round} is at attempt {}, and {attempt} may not commit", live.attempt);
            return Err(Refusal::new(Code::Stale, message).hint("claim the round again").into());
        }
        Ok(None)
    }

    /// Commits the result of a round once.
    ///
    /// # Errors
    /// As [`may_commit`](Self::may_commit).
    pub fn commit_result(&mut self, pool: PoolId, who: &Principal, new: NewResult) -> Result<Committed> {
        if let Some(repeat) = self.may_commit(pool, who, new.round, new.attempt, new.sha256)? {
            return Ok(repeat);
        }
        let batch = self.core(pool)?.round(new.round).map_or(0, |round| round.batch);
        let event = Event::Result { member: who.id, round: new.round, attempt: new.attempt };
        let Reply::Committed { version } = self.apply(pool, event)? else {
            return Err(
                Refusal::new(Code::Stale, format!("round {} does not take a result now", new.round)).into()
            );
        };
        let name = new.name.map_or_else(|| format!("round-{}", new.round), |name| name.to_string());
        self.sql
            .prepare_cached(
                "INSERT INTO results (pool_id, version, round, attempt, member_id, batch, name, content_type, size, \
                 sha256, object_id, data, committed) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?
            .execute(params![
                pool,
                version,
                new.round,
                new.attempt,
                who.id,
                batch,
                name,
                new.content_type,
                new.size,
                new.sha256.0.as_slice(),
                new.object,
                new.data.as_deref(),
                self.now.as_millis()
            ])?;
        self.live_object(new.object)?;
        self.keep(pool, new.size);
        self.effects.made.results += 1;
        Ok(Committed { version, batch, repeated: false })
    }

    /// A processor has closed its round: `round.json` is written anew with what it said.
    pub fn close_round(&mut self, pool: PoolId, round: u64, attempt: u32, version: u64) -> Result<()> {
        let warnings: Option<String> = self
            .sql
            .prepare_cached(
                "SELECT warnings FROM attempts WHERE pool_id = ?1 AND round = ?2 AND attempt = ?3",
            )?
            .query_row(params![pool, round, attempt], |row| row.get(0))
            .optional()?
            .flatten();
        let warnings: Option<serde_json::Value> =
            warnings.map(|text| serde_json::from_str(&text)).transpose()?;
        self.forget_story(pool, round)?;
        let body = json!({"round": round, "attempt": attempt, "version": version, "warnings": warnings});
        self.event(pool, "round-done", &body)?;
        Ok(())
    }

    /// Publishes the object of an old version as a new one: its number, and whether it was made now. While the pointer names
    /// such a one, a repeat gets it again.
    ///
    /// # Errors
    /// `not_found`, also if its bytes are not kept any more.
    pub fn roll_back(&mut self, pool: PoolId, of: u64) -> Result<(u64, bool)> {
        let expired: Option<Option<i64>> = self
            .sql
            .prepare_cached("SELECT expired FROM results WHERE pool_id = ?1 AND version = ?2")?
            .query_row(params![pool, of], |row| row.get(0))
            .optional()?;
        let expired = expired.ok_or_else(|| not_found(format!("version {of}")))?;
        if let Some(expired) = expired {
            return Err(not_kept(format!("version {of}"), Timestamp::clamped(expired)).into());
        }
        // The counters, not the pool's row: that is written at the end of the group.
        let pointer = self.entry(pool)?.counters.pointer;
        let stands: Option<u64> = self
            .sql
            .prepare_cached("SELECT version FROM results WHERE pool_id = ?1 AND version = ?2 AND of = ?3")?
            .query_row(params![pool, pointer, of], |row| row.get(0))
            .optional()?;
        if let Some(version) = stands {
            return Ok((version, false));
        }
        let Reply::RolledBack { version } = self.apply(pool, Event::Rollback { of })? else {
            return Err(not_found(format!("version {of}")));
        };
        self.sql
            .prepare_cached(
                "INSERT INTO results (pool_id, version, round, attempt, member_id, batch, of, name, content_type, size, \
                 sha256, object_id, data, committed) \
                 SELECT pool_id, ?3, round, attempt, member_id, batch, ?2, name, content_type, size, sha256, object_id, \
                 data, ?4 FROM results WHERE pool_id = ?1 AND version = ?2",
            )?
            .execute(params![pool, of, version, self.now.as_millis()])?;
        Ok((version, true))
    }

    fn committed(&self, pool: PoolId, round: u64) -> Result<Option<Row>> {
        Ok(self
            .sql
            .prepare_cached(
                "SELECT member_id, attempt, sha256, version, batch FROM results \
                 WHERE pool_id = ?1 AND round = ?2 AND of IS NULL",
            )?
            .query_row(params![pool, round], |row| {
                Ok(Row {
                    member: row.get(0)?,
                    attempt: row.get(1)?,
                    sha256: Sha256(row.get(2)?),
                    answer: Committed { version: row.get(3)?, batch: row.get(4)?, repeated: false },
                })
            })
            .optional()?)
    }
}

struct Row {
    member: i64,
    attempt: u32,
    sha256: Sha256,
    answer: Committed,
}

//! Facts of the core as rows and events: the only place where a batch's or round's row changes state.

use millpond_failpoint::{Point, reach};
use millpond_protocol::Timestamp;
use rusqlite::params;
use serde_json::json;

use super::tx::Tx;
use super::{PoolId, Result, row_id};
use crate::rounds::{Batch, BatchNo, Fact, Group, MemberId, Round, RoundState, RoundStep};

impl Tx<'_> {
    pub(super) fn write_fact(&mut self, pool: PoolId, fact: Fact) -> Result<()> {
        match fact {
            Fact::BatchOpened(batch) => self.batch_opened(pool, &batch),
            Fact::BatchSealed { batch, cause, runs } => self.batch_sealed(pool, &batch, word(&cause)?, runs),
            Fact::BatchCarried { batch, into } => self.batch_carried(pool, &batch, &into),
            Fact::WindowsAged { through } => self.windows_aged(pool, through),
            Fact::CompletedThrough { member, through } => self.completed_through(member, through),
            Fact::CompletedLabel { batch, member } => self.completed_label(pool, batch, member),
            Fact::Round { round, step } => self.round_changed(pool, &round, step),
            Fact::Pointer { version } => self.pointer_moved(pool, version),
        }
    }

    fn batch_opened(&mut self, pool: PoolId, batch: &Batch) -> Result<()> {
        let (label, window) = match &batch.group {
            Group::Window { from, to } => (None, Some((from.as_millis(), to.as_millis()))),
            Group::Label { label, .. } => (Some(label.as_str()), None),
            Group::Count => (None, None),
        };
        let (from, to) = window.unzip();
        let selected = word(&self.entry(pool)?.core.policy().select)?;
        self.sql
            .prepare_cached(
                "INSERT INTO batches (id, pool_id, batch, record, state, label, window_from, window_to, deadline, selected) \
                 VALUES (?1, ?2, ?3, ?4, 'open', ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                row_id(pool, batch.batch),
                pool,
                batch.batch,
                serde_json::to_string(batch)?,
                label,
                from,
                to,
                batch.deadline.as_millis(),
                selected
            ])?;
        if let Some(entry) = self.state.pools.get_mut(&pool) {
            entry.counters.batches = entry.counters.batches.max(batch.batch);
        }
        self.event(pool, "batch-opened", &json!({"batch": batch.batch, "group": batch.group}))?;
        Ok(())
    }

    fn batch_sealed(&mut self, pool: PoolId, batch: &Batch, cause: String, runs: bool) -> Result<()> {
        let policy_version = self.entry(pool)?.policy_version;
        self.sql
            .prepare_cached(
                "UPDATE batches SET state = 'sealed', record = ?2, deadline = ?3, round = ?4, cause = ?5, runs = ?6, \
                 sealed = ?7, policy_version = ?8 WHERE id = ?1",
            )?
            .execute(params![
                row_id(pool, batch.batch),
                serde_json::to_string(batch)?,
                batch.deadline.as_millis(),
                batch.round,
                cause,
                runs,
                self.now.as_millis(),
                policy_version
            ])?;
        if let Some(entry) = self.state.pools.get_mut(&pool) {
            entry.counters.rounds = entry.counters.rounds.max(batch.round.unwrap_or_default());
        }
        let body = json!({"batch": batch.batch, "round": batch.round, "cause": cause, "runs": runs,
            "count": batch.count, "bytes": batch.bytes, "group": batch.group});
        self.event(pool, "batch-sealed", &body)?;
        reach(Point::BatchSealing);
        self.change(pool)?.pack = true;
        Ok(())
    }

    fn batch_carried(&mut self, pool: PoolId, batch: &Batch, into: &Batch) -> Result<()> {
        let (id, target) = (row_id(pool, batch.batch), row_id(pool, into.batch));
        if id != target {
            self.sql
                .prepare_cached(
                    "UPDATE batches SET state = 'carried', record = ?2, carried_into = ?3 WHERE id = ?1",
                )?
                .execute(params![id, serde_json::to_string(batch)?, target])?;
            // What was carried into it earlier goes along.
            self.sql
                .prepare_cached("UPDATE batches SET carried_into = ?2 WHERE carried_into = ?1")?
                .execute(params![id, target])?;
            // Files of a batch in which all count may be packed already.
            self.sql
                .prepare_cached(
                    "UPDATE batches SET selected = 'all' WHERE id = ?2 \
                     AND EXISTS (SELECT 1 FROM batches WHERE id = ?1 AND selected = 'all')",
                )?
                .execute(params![id, target])?;
            self.sql
                .prepare_cached(
                    "INSERT INTO batch_members (batch_id, member_id, completed, uploaded) \
                     SELECT ?2, member_id, 0, uploaded FROM batch_members WHERE batch_id = ?1 \
                     ON CONFLICT DO UPDATE SET uploaded = max(uploaded, excluded.uploaded)",
                )?
                .execute(params![id, target])?;
        }
        self.sql
            .prepare_cached("UPDATE batches SET record = ?2, deadline = ?3 WHERE id = ?1")?
            .execute(params![target, serde_json::to_string(into)?, into.deadline.as_millis()])?;
        self.event(
            pool,
            "batch-carried",
            &json!({"batch": batch.batch, "into": into.batch, "carries": into.carries}),
        )?;
        self.change(pool)?.pack = true;
        Ok(())
    }

    fn windows_aged(&mut self, pool: PoolId, through: Timestamp) -> Result<()> {
        self.sql
            .prepare_cached("UPDATE pools SET aged_through = ?2 WHERE id = ?1")?
            .execute(params![pool, through.as_millis()])?;
        Ok(())
    }

    fn completed_through(&mut self, member: MemberId, through: Timestamp) -> Result<()> {
        self.sql
            .prepare_cached("UPDATE members SET complete_through = ?2 WHERE id = ?1")?
            .execute(params![member, through.as_millis()])?;
        Ok(())
    }

    fn completed_label(&mut self, pool: PoolId, batch: BatchNo, member: MemberId) -> Result<()> {
        self.sql
            .prepare_cached(
                "INSERT INTO batch_members (batch_id, member_id, completed) VALUES (?1, ?2, 1) \
                 ON CONFLICT DO UPDATE SET completed = 1",
            )?
            .execute(params![row_id(pool, batch), member])?;
        Ok(())
    }

    fn round_changed(&mut self, pool: PoolId, round: &Round, step: RoundStep) -> Result<()> {
        let state = match &round.state {
            RoundState::Sealed { .. } => "sealed",
            RoundState::Offered { .. } => "offered",
            RoundState::Leased(_) => "leased",
            RoundState::Pausing { .. } => "pausing",
            RoundState::Committed { .. } => "committed",
            RoundState::Failed { .. } => "failed",
        };
        let ended = match &round.state {
            RoundState::Committed { .. } => Some(self.now.as_millis()),
            RoundState::Failed { at, .. } => Some(at.as_millis()),
            RoundState::Sealed { .. }
            | RoundState::Offered { .. }
            | RoundState::Leased(_)
            | RoundState::Pausing { .. } => None,
        };
        let record = serde_json::to_string(round)?;
        let reference: Option<String> = self
            .sql
            .prepare_cached(
                "INSERT INTO rounds (pool_id, round, batch_id, state, record, ended) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                 ON CONFLICT (pool_id, round) DO UPDATE \
                 SET state = excluded.state, record = excluded.record, ended = excluded.ended, \
                 story_rev = story_rev + 1 RETURNING ref",
            )?
            .query_row(
                params![pool, round.round, row_id(pool, round.batch), state, record, ended],
                |row| row.get(0),
            )?;
        self.attempt_changed(pool, round, step)?;
        if step == RoundStep::Retried {
            self.forget_story(pool, round.round)?;
        }
        if let (RoundState::Committed { version }, Some(entry)) =
            (&round.state, self.state.pools.get_mut(&pool))
        {
            entry.counters.versions = entry.counters.versions.max(*version);
            entry.counters.newest_committed = entry.counters.newest_committed.max(round.round);
        }
        self.change(pool)?.rounds = true;
        if matches!(step, RoundStep::Sealed | RoundStep::Retried) {
            self.change(pool)?.pack = true;
        }
        if step != RoundStep::Extended {
            let mut body = json!({"round": round.round, "batch": round.batch, "attempt": round.attempt,
                "spent": round.spent, "ready": round.ready, "state": round.state});
            if let Some(reference) = reference {
                body["ref"] = serde_json::from_str(&reference)?;
            }
            self.event(pool, &format!("round-{}", word(&step)?), &body)?;
        }
        Ok(())
    }

    /// The round's `round.json` is out of date: dispatch writes it anew once the round has ended.
    pub(crate) fn forget_story(&mut self, pool: PoolId, round: u64) -> Result<()> {
        self.sql
            .prepare_cached(
                "UPDATE objects SET state = 'doomed' WHERE state <> 'gone' AND id = \
                 (SELECT story_object FROM rounds WHERE pool_id = ?1 AND round = ?2)",
            )?
            .execute(params![pool, round])?;
        self.sql
            .prepare_cached(
                "UPDATE rounds SET story_object = NULL, expired = NULL, story_rev = story_rev + 1 \
                 WHERE pool_id = ?1 AND round = ?2",
            )?
            .execute(params![pool, round])?;
        self.change(pool)?.rounds = true;
        Ok(())
    }

    fn attempt_changed(&mut self, pool: PoolId, round: &Round, step: RoundStep) -> Result<()> {
        let now = self.now.as_millis();
        let outcome = match step {
            RoundStep::Leased => {
                let RoundState::Leased(lease) = &round.state else { return Ok(()) };
                self.sql
                    .prepare_cached(
                        "INSERT INTO attempts (pool_id, round, attempt, member_id, leased) VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute(params![pool, round.round, round.attempt, lease.member, now])?;
                reach(Point::LeaseGranting);
                return Ok(());
            }
            RoundStep::Expired => "expired",
            RoundStep::Returned => "returned",
            RoundStep::Committed => "committed",
            RoundStep::Failed => "failed",
            RoundStep::Sealed
            | RoundStep::Extended
            | RoundStep::Ready
            | RoundStep::Offered
            | RoundStep::Unpacked
            | RoundStep::Retried => return Ok(()),
        };
        // An attempt that ran out may still commit; otherwise its first ending stands.
        self.sql
            .prepare_cached(
                "UPDATE attempts SET ended = ?4, outcome = ?5 WHERE pool_id = ?1 AND round = ?2 AND attempt = ?3 \
                 AND (outcome IS NULL OR ?5 = 'committed')",
            )?
            .execute(params![pool, round.round, round.attempt, now, outcome])?;
        Ok(())
    }

    fn pointer_moved(&mut self, pool: PoolId, version: u64) -> Result<()> {
        let Some(entry) = self.state.pools.get_mut(&pool) else { return Ok(()) };
        let old = entry.counters.pointer.replace(version);
        entry.counters.versions = entry.counters.versions.max(version);
        if let Some(old) = old {
            self.sql
                .prepare_cached("UPDATE results SET pointed_until = ?3 WHERE pool_id = ?1 AND version = ?2")?
                .execute(params![pool, old, self.now.as_millis()])?;
        }
        self.event(pool, "pointer", &json!({"version": version}))?;
        reach(Point::PointerMoving);
        self.change(pool)?.pointer = true;
        Ok(())
    }
}

/// The snake_case word of a unit variant.
fn word<T: serde::Serialize>(value: &T) -> Result<String> {
    Ok(serde_json::to_value(value)?.as_str().unwrap_or_default().replace('_', "-"))
}

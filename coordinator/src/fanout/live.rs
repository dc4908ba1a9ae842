//! The live half of fan-out: turns commits into messages to whoever is connected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millpond_broker::{EndReason, GateHandle};
use millpond_failpoint::{Point, reach};
use millpond_protocol::{Code, PoolName, Refusal, topic};
use rusqlite::Connection;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::feed;
use super::state::States;
use crate::ledger::{Commit, Ledger, PoolChange, PoolId, Result as LedgerResult};

/// Sums of uploads are told this often.
const SUM: Duration = Duration::from_secs(1);
/// Events of one pool told at a time.
const PAGE: usize = 500;

/// Tells the gate what commits until `shutdown`.
pub async fn run(ledger: Ledger, states: States, gate: GateHandle, shutdown: CancellationToken) {
    let mut commits = ledger.commits();
    let mut live = Live { ledger, states, gate, told: None, left: BTreeMap::new() };
    live.begin().await;
    let mut sums = tokio::time::interval(SUM);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = sums.tick() => live.tick().await,
            commit = commits.recv() => match commit {
                Ok(commit) => live.tell(&commit).await,
                Err(RecvError::Lagged(_)) => live.tell_all().await,
                Err(RecvError::Closed) => return,
            },
        }
    }
}

struct Live {
    ledger: Ledger,
    states: States,
    gate: GateHandle,
    /// Up to where each pool's feed was told; none until the first look at the ledger succeeded.
    told: Option<BTreeMap<PoolId, (PoolName, u64)>>,
    /// What is still to be told: uploads that wait for their sum, and what could not be read.
    left: BTreeMap<PoolId, PoolChange>,
}

impl Live {
    async fn begin(&mut self) {
        match self.ledger.look(pools).await {
            Ok(pools) => self.told = Some(pools),
            Err(refusal) => tracing::error!(%refusal, "fan-out: the pools do not read"),
        }
    }

    async fn tell(&mut self, commit: &Arc<Commit>) {
        for (pool, member) in &commit.receipts {
            self.gate.receipts_ready(pool, member);
        }
        for (pool, member, why) in &commit.ended {
            tracing::info!(%pool, %member, why, "sessions end");
            self.gate.disconnect_member(pool, member, EndReason::Revoked);
        }
        // Behind the end of those who could retain more.
        for pool in &commit.renewed {
            self.gate.forget_retained(pool);
        }
        for (id, change) in &commit.pools {
            self.tell_pool(*id, change).await;
        }
    }

    /// Tells what changed in a pool; what cannot be read now is told at the next tick. Uploads alone wait for it anyway.
    async fn tell_pool(&mut self, id: PoolId, change: &PoolChange) {
        let mut left = PoolChange::of(change.name.clone());
        left.uploads = change.uploads;
        if let Err(refusal) = self.tell_states(change).await {
            // A pool that was removed has no state any more.
            if refusal.code != Code::NotFound {
                tracing::warn!(%refusal, pool = %change.name, "fan-out: a state does not read and is told later");
                left.add(change);
            }
        }
        if change.events && self.tell_events(id, &change.name).await {
            left.uploads = false;
        } else {
            left.events = change.events;
        }
        if left.is_something() {
            self.left.entry(id).or_insert_with(|| PoolChange::of(change.name.clone())).add(&left);
        }
    }

    async fn tell_states(&self, change: &PoolChange) -> Result<(), Refusal> {
        if change.pointer {
            reach(Point::PointerTelling);
            for message in self.states.result(&change.name).await? {
                self.gate.publish_state(message);
            }
        }
        if change.rounds {
            self.gate.publish_state(self.states.offer(&change.name).await?);
        }
        if change.card {
            self.gate.publish_state(self.states.card(&change.name).await?);
        }
        Ok(())
    }

    /// Commits were missed: whose sessions should have ended is not known, so everybody signs in again, which brings
    /// state and receipts as they stand; the feed goes on from where it was.
    async fn tell_all(&mut self) {
        tracing::warn!("fan-out fell behind: every session ends and comes back");
        self.gate.disconnect_all();
        let Ok(pools) = self.ledger.look(pools).await else { return };
        self.forget_retained(&pools);
        for (id, (name, _)) in pools {
            let mut change = PoolChange::of(name);
            change.events = true;
            self.left.entry(id).or_insert_with(|| PoolChange::of(change.name.clone())).add(&change);
        }
    }

    /// Of the pools that came or went meanwhile.
    fn forget_retained(&self, pools: &BTreeMap<PoolId, (PoolName, u64)>) {
        let Some(told) = &self.told else { return };
        let names: BTreeSet<&PoolName> = pools.values().map(|(name, _)| name).collect();
        let gone = told.values().filter(|(name, _)| !names.contains(name));
        let new = pools.iter().filter(|(id, _)| !told.contains_key(id)).map(|(_, pool)| pool);
        for (name, _) in gone.chain(new) {
            self.gate.forget_retained(name);
        }
    }

    async fn tick(&mut self) {
        if self.told.is_none() {
            self.begin().await;
        }
        for (id, mut change) in std::mem::take(&mut self.left) {
            change.events |= change.uploads;
            change.uploads = false;
            self.tell_pool(id, &change).await;
        }
    }

    /// Tells the pool's feed to its end; whether that worked.
    async fn tell_events(&mut self, pool: PoolId, name: &PoolName) -> bool {
        let Some(told) = &mut self.told else { return false };
        let (_, told) = told.entry(pool).or_insert_with(|| (name.clone(), 0));
        loop {
            let after = *told;
            let Ok(page) = self.ledger.look(move |sql| feed::after(sql, pool, after, PAGE)).await else {
                return false;
            };
            for event in page.events {
                *told = event.seq;
                let payload = serde_json::to_vec(&event.body).unwrap_or_default();
                self.gate.publish_event(topic::event(name, &event.kind), Bytes::from(payload));
            }
            if !page.more {
                return true;
            }
        }
    }
}

fn pools(sql: &Connection) -> LedgerResult<BTreeMap<PoolId, (PoolName, u64)>> {
    let mut statement = sql.prepare_cached("SELECT id, name, seq FROM pools WHERE removed IS NULL")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?)))?;
    let mut pools = BTreeMap::new();
    for row in rows {
        let (id, name, seq) = row?;
        pools.insert(id, (name.parse()?, seq));
    }
    Ok(pools)
}

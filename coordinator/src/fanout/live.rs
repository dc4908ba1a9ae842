//! The live half of fan-out: turns commits into messages to whoever is connected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millpond_broker::{EndReason, GateHandle};
use millpond_protocol::{PoolName, Refusal, topic};
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
    let mut live = Live { ledger, states, gate, told: BTreeMap::new(), uploads: BTreeSet::new() };
    live.begin().await;
    let mut sums = tokio::time::interval(SUM);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = sums.tick() => live.sum().await,
            commit = commits.recv() => match commit {
                Ok(commit) => live.tell(&commit).await,
                // Whoever is connected may have missed something: tell everything as it stands.
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
    /// Up to where each pool's feed was told.
    told: BTreeMap<PoolId, (PoolName, u64)>,
    /// Pools with uploads that were not told yet.
    uploads: BTreeSet<PoolId>,
}

impl Live {
    async fn begin(&mut self) {
        match self.ledger.read(pools).await {
            Ok(pools) => self.told = pools,
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
        for (id, change) in &commit.pools {
            self.told.entry(*id).or_insert_with(|| (change.name.clone(), 0));
            if change.uploads {
                self.uploads.insert(*id);
            }
            if let Err(refusal) = self.tell_states(change).await {
                tracing::debug!(%refusal, pool = %change.name, "fan-out: a state does not read");
            }
            if change.events {
                self.tell_events(*id).await;
            }
        }
    }

    async fn tell_states(&self, change: &PoolChange) -> Result<(), Refusal> {
        if change.pointer {
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

    async fn tell_all(&mut self) {
        let Ok(pools) = self.ledger.read(pools).await else { return };
        for (id, (name, _)) in pools {
            self.told.entry(id).or_insert_with(|| (name.clone(), 0));
            let everything = PoolChange {
                name,
                uploads: true,
                events: true,
                pack: false,
                rounds: true,
                pointer: true,
                card: true,
            };
            if let Err(refusal) = self.tell_states(&everything).await {
                tracing::debug!(%refusal, "fan-out: a state does not read");
            }
            self.tell_events(id).await;
        }
    }

    async fn sum(&mut self) {
        for pool in std::mem::take(&mut self.uploads) {
            self.tell_events(pool).await;
        }
    }

    async fn tell_events(&mut self, pool: PoolId) {
        let Some((name, told)) = self.told.get_mut(&pool) else { return };
        let after = *told;
        // Uploads that wait for their sum keep waiting unless an event comes after them.
        let Ok(events) = self.ledger.read(move |sql| feed::after(sql, pool, after, PAGE)).await else {
            return;
        };
        for event in events {
            *told = event.seq;
            let payload = serde_json::to_vec(&event.body).unwrap_or_default();
            self.gate.publish_event(topic::event(name, &event.kind), Bytes::from(payload));
        }
        self.uploads.remove(&pool);
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

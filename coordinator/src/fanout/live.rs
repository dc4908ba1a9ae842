//! The live half of fan-out: turns commits into messages to whoever is connected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use millpond_broker::{EndReason, GateHandle};
use millpond_failpoint::{Point, reach};
use millpond_protocol::{Code, PoolName, Refusal, topic};
use rusqlite::Connection;
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
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
    let (commits, lost) = (ledger.commits(), Notify::new());
    let ends = end(commits.resubscribe(), &gate, &lost);
    let live = Live { ledger, states, gate: gate.clone(), told: None, left: BTreeMap::new(), behind: false };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = ends => {}
        () = live.run(commits, &lost) => {}
    }
}

/// Ends sessions, and says whose receipts are there: nothing that has to be read first keeps these waiting.
async fn end(mut commits: Receiver<Arc<Commit>>, gate: &GateHandle, lost: &Notify) {
    loop {
        match commits.recv().await {
            Ok(commit) => {
                for (pool, member) in &commit.receipts {
                    gate.receipts_ready(pool, member);
                }
                for (pool, member, why) in &commit.ended {
                    tracing::info!(%pool, %member, why, "sessions end");
                    gate.disconnect_member(pool, member, EndReason::Revoked);
                }
                // Behind the end of those who could retain more.
                for pool in &commit.renewed {
                    gate.forget_retained(pool);
                }
            }
            // Whose sessions should have ended is not known: everybody signs in again, which brings receipts as they stand.
            Err(RecvError::Lagged(_)) => {
                tracing::warn!("fan-out fell behind: every session ends and comes back");
                gate.disconnect_all();
                lost.notify_one();
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// States and events.
struct Live {
    ledger: Ledger,
    states: States,
    gate: GateHandle,
    /// Up to where each pool's feed was told; none until the first look at the ledger succeeded.
    told: Option<BTreeMap<PoolId, (PoolName, u64)>>,
    /// What is still to be told: uploads that wait for their sum, and what could not be read.
    left: BTreeMap<PoolId, PoolChange>,
    /// What stands is still to be told of all pools.
    behind: bool,
}

impl Live {
    async fn run(mut self, mut commits: Receiver<Arc<Commit>>, lost: &Notify) {
        self.begin().await;
        let mut sums = tokio::time::interval(SUM);
        loop {
            tokio::select! {
                _ = sums.tick() => self.tick().await,
                () = lost.notified() => self.forget_retained().await,
                commit = commits.recv() => {
                    let mut changes = BTreeMap::new();
                    let mut next = commit;
                    // However much was committed meanwhile, of each pool it is told once.
                    loop {
                        match next {
                            Ok(commit) => commit.pools.iter().for_each(|(id, change)| add(&mut changes, *id, change)),
                            Err(RecvError::Lagged(_)) => self.everything(&mut changes).await,
                            Err(RecvError::Closed) => return,
                        }
                        let Some(more) = commits.recv().now_or_never() else { break };
                        next = more;
                    }
                    for (id, change) in changes {
                        self.tell_pool(id, &change).await;
                    }
                }
            }
        }
    }

    async fn begin(&mut self) {
        match self.ledger.look(pools).await {
            Ok(pools) => self.told = Some(pools),
            Err(refusal) => tracing::error!(%refusal, "fan-out: the pools do not read"),
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
            add(&mut self.left, id, &left);
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

    /// Commits were missed: what stands is told of all pools.
    async fn everything(&mut self, changes: &mut BTreeMap<PoolId, PoolChange>) {
        let found = self.ledger.look(pools).await;
        // What cannot be read now is at the next tick.
        self.behind = found.is_err();
        let Ok(pools) = found else { return };
        for (id, (name, _)) in pools {
            let told =
                PoolChange { events: true, rounds: true, pointer: true, card: true, ..PoolChange::of(name) };
            add(changes, id, &told);
        }
    }

    /// Of the pools that may have come or gone while nobody listened.
    async fn forget_retained(&self) {
        let (Some(told), Ok(pools)) = (&self.told, self.ledger.look(pools).await) else { return };
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
        let mut left = std::mem::take(&mut self.left);
        if self.behind {
            self.everything(&mut left).await;
        }
        for (id, mut change) in left {
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

fn add(changes: &mut BTreeMap<PoolId, PoolChange>, id: PoolId, change: &PoolChange) {
    changes.entry(id).or_insert_with(|| PoolChange::of(change.name.clone())).add(change);
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

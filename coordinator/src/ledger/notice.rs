//! What a commit tells the rest of the process: hints to look, never the truth itself.

use std::collections::{BTreeMap, BTreeSet};

use millpond_protocol::{MemberName, PoolName};

use super::PoolId;

/// One group commit, seen from outside.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Members with new receipt rows.
    pub receipts: BTreeSet<(PoolName, MemberName)>,
    /// What changed in which pool.
    pub pools: BTreeMap<PoolId, PoolChange>,
    /// Members whose sessions must end, and why.
    pub ended: Vec<(PoolName, MemberName, &'static str)>,
    /// Names of pools that were removed or made: what is kept by that name alone is nobody's.
    pub renewed: Vec<PoolName>,
}

/// What changed in a pool.
#[derive(Debug, Clone)]
pub struct PoolChange {
    pub name: PoolName,
    /// New uploads were committed.
    pub uploads: bool,
    /// New event rows were committed.
    pub events: bool,
    /// An open batch has a pack's worth of small files, or a batch was sealed or carried.
    pub pack: bool,
    /// Something about rounds: offer, lease, readiness.
    pub rounds: bool,
    /// The pointer names another version.
    pub pointer: bool,
    /// The policy changed.
    pub card: bool,
    /// A grant was made, renewed, is to be verified, or has ended.
    pub grants: bool,
}

impl PoolChange {
    /// Nothing changed yet in the pool of that name.
    pub fn of(name: PoolName) -> Self {
        Self {
            name,
            uploads: false,
            events: false,
            pack: false,
            rounds: false,
            pointer: false,
            card: false,
            grants: false,
        }
    }

    /// Takes up what else changed.
    pub fn add(&mut self, other: &Self) {
        self.uploads |= other.uploads;
        self.events |= other.events;
        self.pack |= other.pack;
        self.rounds |= other.rounds;
        self.pointer |= other.pointer;
        self.card |= other.card;
        self.grants |= other.grants;
    }

    /// Whether anything changed.
    pub fn is_something(&self) -> bool {
        self.uploads || self.events || self.pack || self.rounds || self.pointer || self.card || self.grants
    }
}

impl Commit {
    pub(super) fn pool(&mut self, pool: PoolId, name: &PoolName) -> &mut PoolChange {
        self.pools.entry(pool).or_insert_with(|| PoolChange::of(name.clone()))
    }

    /// Takes up what another job of the same group did.
    pub(super) fn add(&mut self, other: Self) {
        self.receipts.extend(other.receipts);
        for (pool, change) in other.pools {
            self.pool(pool, &change.name).add(&change);
        }
        self.ended.extend(other.ended);
        self.renewed.extend(other.renewed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.receipts.is_empty() && self.pools.is_empty() && self.ended.is_empty() && self.renewed.is_empty()
    }
}

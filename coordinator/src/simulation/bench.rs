//! What schedules are played on.

use std::sync::Arc;

use millpond_storage::{Secret, Storage, StorageConfig};
use tokio::runtime::Runtime;

use super::stage::Stage;
use super::store::Store;
use super::world::World;
use crate::ledger::stepped::Stepped;

/// What is made once and used by one schedule after the other.
pub(super) struct Bench {
    pub(super) ledger: Stepped,
    store: Store,
    pub(super) storage: Storage,
    /// For what the shell does beside: nothing of it has a part in a schedule.
    runtime: Runtime,
}

impl Bench {
    pub(super) fn new() -> Self {
        let store = Store::default();
        let endpoint = "http://storage.invalid".parse().unwrap();
        let mut config =
            StorageConfig::new(endpoint, "millpond", "access", Secret::new("a-secret-of-the-tests"));
        // The scheduler says what fails, and what is tried again.
        (config.attempts, config.confirm) = (1, false);
        let storage = Storage::in_hands(&config, Arc::new(store.clone())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Self { ledger: Stepped::new(), store, storage, runtime }
    }

    /// Plays a world's schedules; what went wrong, and what happened if it is to be told.
    pub(super) fn play(&mut self, strings: &[Vec<u8>], diary: bool) -> (Result<(), String>, Vec<String>) {
        self.ledger.clear();
        self.store.clear();
        let stage = Stage::new(self.store.clone(), diary);
        let outcome = {
            let handle = self.runtime.handle().clone();
            let _context = handle.enter();
            World::play(self, stage.clone(), strings)
        };
        self.runtime.block_on(tokio::task::yield_now());
        (outcome, stage.diary())
    }
}

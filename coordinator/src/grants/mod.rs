//! Files that go to storage by themselves: from the grant to the commit.
//!
//! | step | file |
//! |---|---|
//! | what storage has of a granted file: nothing, some parts, all of it, something else | `look` |
//! | all of it, and it is what was declared: it counts, in one ledger job with what was to count with it | `count` |
//! | what takes time (hashing an object that came in parts) or has no asker (a grant that ends), found from rows | `worker` |
//!
//! A plain PUT carries its SHA-256 as a signed header, so storage has compared it and one call tells; an object in parts
//! has no hash of its own and is read once. The row says `verifying` meanwhile, so that a restart goes on with it.

mod count;
mod look;
mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millpond_protocol::Refusal;
use millpond_protocol::message::{Outcome, Receipt};
use millpond_storage::{Error as StorageError, Storage};

use crate::ledger::Ledger;
use crate::ledger::grants::{Grant, GrantId};

pub use look::{Look, is_wanted, part_len, runs};
pub use worker::run;

/// What grants work with.
#[derive(Clone)]
pub struct Grants {
    ledger: Ledger,
    storage: Storage,
    /// How long a grant holds.
    pub valid: Duration,
    /// Bytes hashed so far of what is hashed now: for people, and lost with the process.
    progress: Arc<Mutex<HashMap<GrantId, u64>>>,
}

impl Grants {
    /// Grants hold for `valid` from the ask that made or renewed them.
    pub fn new(ledger: Ledger, storage: Storage, valid: Duration) -> Self {
        Self { ledger, storage, valid, progress: Arc::default() }
    }

    /// Bytes of a granted file that were verified so far.
    pub fn progress(&self, grant: &Grant) -> u64 {
        if grant.verified {
            return grant.object.size;
        }
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.get(&grant.id).copied().unwrap_or_default()
    }
}

/// What an asker is told of a granted file that does not count yet.
pub fn receipt(grant: &Grant, outcome: Outcome, error: Option<Refusal>) -> Receipt {
    Receipt {
        upload: grant.target.to_string(),
        outcome,
        batch: None,
        event_time: grant.event_time,
        late: false,
        clamped: false,
        sha256: Some(grant.object.sha256),
        bundle: None,
        error,
    }
}

/// A failure of storage in words for whoever waits for it.
pub fn unavailable(error: &StorageError) -> Refusal {
    if !error.is_temporary() {
        tracing::error!(%error, "storage does not do what a granted file needs");
    }
    Refusal::unavailable("storage cannot be used now")
}

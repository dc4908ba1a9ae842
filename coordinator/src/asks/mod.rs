//! The ops of `ask/{op}`, over MQTT and HTTP alike: one function an op, each with a typed request.

use millpond_storage::Storage;

use crate::ledger::Ledger;

/// What an op works with.
#[derive(Clone)]
pub struct Asks {
    pub ledger: Ledger,
    pub storage: Storage,
}

//! Backups: everything that a server needs to go on elsewhere, in one file, made while it works.
//!
//! A backup is a tar archive (POSIX ustar; sizes of 8 GiB and more as GNU writes them) of these entries, in this order:
//!
//! | entry | content |
//! |---|---|
//! | `backup.json` | a [`Header`] |
//! | `ledger.db` | the ledger, an SQLite file, as it was at `made` |
//! | `objects/{key}` | each object that the ledger needs, in the order in which they were made; none if `objects` is null |
//! | `end.json` | an [`End`]: without it, or with an error in it, the archive is no backup |
//!
//! It holds every byte that was acknowledged before it was asked for, as the ledger of one moment says it; while it is
//! made, nothing is deleted from storage. Not in it are what the ledger does not need: parts and files of grants that were
//! not counted yet (their clients send them again), and sessions' messages in memory; the secrets that lie beside the
//! ledger (`admin.token`, `storage.secret`), which a new server makes for itself; the configuration, and certificates.
//!
//! `make` writes it, [`restore()`] reads it and checks every byte by its SHA-256.

mod make;
mod read;
mod restore;

use millpond_protocol::{Refusal, Sha256, Timestamp};
use serde::{Deserialize, Serialize};

pub(crate) use make::make;
pub use read::read_through;
pub use restore::{Restored, restore};

/// The version of the format that this program writes and reads.
pub const FORMAT: u32 = 1;

const HEADER: &str = "backup.json";
const LEDGER: &str = "ledger.db";
const OBJECTS: &str = "objects/";
const END: &str = "end.json";

/// The first entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    /// The program that wrote it.
    pub millpond: String,
    /// What was acknowledged by then is in it.
    pub made: Timestamp,
    /// The ledger's schema.
    pub schema: u32,
    pub ledger: Sum,
    /// The objects that follow. None: the ledger alone was asked for.
    pub objects: Option<Count>,
}

/// A file's size in bytes and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    pub size: u64,
    pub sha256: Sha256,
}

/// How many objects, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub count: u64,
    pub bytes: u64,
}

/// The last entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Everything that the header promises is in the archive.
    Whole,
    /// It could not be finished.
    Error(Refusal),
}

//! An S3 server on local disk.
//!
//! It offers what Millpond needs of S3 and nothing that it cannot keep: one bucket; PUT, GET with ranges and conditions,
//! HEAD, DELETE and listing; requests signed by header or by URL (SigV4); SHA-256 checksums that are compared before
//! anything is kept. A request that it refuses gets an S3 error code, leaves the old object as it was and leaves no
//! trace of the new one.
//!
//! # Layout on disk, format 1
//!
//! ```text
//! DIR/                      0700; one process at a time
//!   lock                    locked (flock) while a server has the directory open
//!   catalog.sqlite          which object is which file; SQLite, WAL, synchronous=FULL, user_version 1
//!   incoming/BLOB           bodies that are being received
//!   blobs/XX/BLOB           bodies that are complete; XX = the first two digits of BLOB
//! ```
//!
//! `BLOB` is 32 lower-case hex digits of randomness. A file under `blobs/` is the object's bytes and nothing else, is
//! never written again, and belongs to at most one object. The catalogue has one table:
//!
//! ```sql
//! object(key TEXT PRIMARY KEY,        -- the object's key, as S3 clients see it
//!        blob BLOB UNIQUE,            -- 16 bytes: the name of its file
//!        size INTEGER,                -- bytes
//!        sha256 BLOB,                 -- 32 bytes, of the whole object
//!        modified_ms INTEGER)         -- when it was stored, milliseconds since 1970
//! ```
//!
//! The bucket's name is configuration: the directory is one bucket. An object's `ETag` is its SHA-256 in hex and `-1`,
//! so that no client takes it for an MD5.
//!
//! # Life of an object
//!
//! A body is written to `incoming/` while it is hashed; then length and checksums are compared; then `fdatasync`, rename
//! into `blobs/`, `fsync` of that directory; then one transaction writes the row, and that makes it visible. The answer
//! goes out after the commit. Replacing and deleting change the row first and remove the old file afterwards; whoever
//! has it open reads on.
//!
//! A crash at any point leaves the old object or the new one, and at most files that no row names: opening the directory
//! removes those, and everything in `incoming/`. Rows whose file is gone are kept and reported: that is damage, not a
//! crash. Files that are not named like a blob are left alone.
//!
//! A disk that is full refuses uploads (507) and keeps what it has. Uploads stop a little earlier than that, because
//! deleting an object also needs room for a moment, in the catalogue.
//!
//! # Where things are
//!
//! `serve` accepts connections and keeps their limits; `service` speaks S3; `conditions`, `list` and `errors` are its
//! rules; `receive` and `send` move bodies; `store` ties `blobs` (files) and `catalog` (rows) together.

mod blobs;
mod catalog;
mod conditions;
mod config;
mod drain;
mod errors;
mod io;
mod list;
mod receive;
mod send;
mod serve;
mod service;
mod store;

use std::path::Path;
use std::sync::Arc;

pub use catalog::CatalogError;
pub use config::EmbeddedConfig;
pub use store::OpenError;

use store::Store;

/// An open directory of objects, ready to be served.
#[derive(Clone)]
pub struct Embedded {
    store: Arc<Store>,
    config: Arc<EmbeddedConfig>,
}

/// Opens `dir`, making it if it is not there, and removes what an earlier crash left behind. Blocks; the time grows with
/// the number of objects (one directory entry each).
///
/// # Errors
///
/// A bad configuration, a directory that another process has open or that a newer program wrote, or trouble with the disk.
pub fn open(dir: &Path, config: EmbeddedConfig) -> Result<Embedded, OpenError> {
    config.validate().map_err(OpenError::Config)?;
    Ok(Embedded { store: Arc::new(Store::open(dir, config.min_free)?), config: Arc::new(config) })
}

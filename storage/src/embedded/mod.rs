//! An S3 server on local disk.
//!
//! It offers what Millpond needs of S3 and nothing that it cannot keep: one bucket; PUT, GET with ranges and conditions,
//! HEAD, DELETE, listing and uploads in parts; requests signed by header or by URL (SigV4); checksums that are compared
//! before anything is kept. A request that it refuses gets an S3 error code, leaves the old object as it was and leaves
//! no trace of the new one. `docs/storage.md` says what is offered, to clients.
//!
//! # Layout on disk, format 1
//!
//! ```text
//! DIR/                      0700; one process at a time
//!   lock                    locked (flock) while a server has the directory open
//!   catalog.sqlite          which object is which file; SQLite, WAL, synchronous=FULL, user_version 1
//!   incoming/FILE           bodies that are being received
//!   blobs/XX/FILE           bodies that are complete; XX = the first two digits of FILE
//! ```
//!
//! `FILE` is 32 lower-case hex digits of randomness. A file under `blobs/` is the bytes of an object or of a part and
//! nothing else, is never written again, and belongs to one row at most. The catalogue has these tables; the bucket's name
//! is configuration, the directory is one bucket.
//!
//! ```text
#![doc = include_str!("catalog/schema.sql")]
//! ```
//!
//! - `object`: `id` is the file's name where `parts` is 0; else it is the upload whose `parts` rows of `part` are the
//!   object's bytes, in order. `sha256` is that of the bytes or, in parts, of the parts' SHA-256s one after the other, and
//!   is the entity tag, as hex with `-` and the number of parts (1 for one file), so that no client takes it for an MD5.
//!   `checksum` is an `ALGORITHM VALUE` that the client of an upload in parts asked for. `meta` is JSON.
//! - `upload`, `part`: what has been begun, and the parts of that and of objects. Parts are stored once: completing an
//!   upload writes rows and copies nothing, so that 4 GiB take as long as 4 MiB.
//! - `completed`: uploads that became objects, for a week, so that a repeated request gets the answer of the first.
//!
//! # Life of an object
//!
//! A body is written to `incoming/` while it is hashed; then length and checksums are compared; then `fdatasync`, rename
//! into `blobs/`, `fsync` of that directory; then one transaction writes the row, and that makes it visible, as an object
//! or as a part. One transaction makes parts an object. The answer goes out after the commit. Replacing and deleting
//! change the rows first and remove old files afterwards; whoever has the object open reads on: one file stays readable
//! by itself, and those of parts wait for the last reader.
//!
//! A crash at any point leaves the old object or the new one, and at most files that no row names: opening the directory
//! removes those, and everything in `incoming/`, and so does a sweep every hour, which also ends uploads in parts that
//! nobody went on with. Rows whose file is gone are kept and reported: that is damage, not a crash. Files that are not
//! named like ours are left alone.
//!
//! A disk that is full refuses uploads (507) and keeps what it has, and so does a quota. Uploads stop a little earlier
//! than the disk, because deleting an object also needs room for a moment, in the catalogue.
//!
//! # Where things are
//!
//! `serve` hands requests on, `cors` speaks to browsers; `service` speaks S3; `conditions`, `list`, `parts`, `checksum`
//! and `errors` are its rules; `receive` and `send` move bodies; `store` ties `blobs` (files), `catalog` (rows) and
//! `room` (what is taken without a row) together.

mod blobs;
mod catalog;
mod checksum;
mod chunks;
mod conditions;
mod config;
mod cors;
mod drain;
mod errors;
mod list;
mod parts;
mod receive;
mod room;
mod send;
mod serve;
mod service;
mod store;
mod turns;

use std::path::Path;
use std::sync::Arc;

pub use catalog::CatalogError;
pub use config::EmbeddedConfig;
pub use store::OpenError;

use futures_util::future::BoxFuture;
use store::Store;

/// An open directory of objects, ready to be served.
#[derive(Clone)]
pub struct Embedded {
    store: Arc<Store>,
    config: Arc<EmbeddedConfig>,
    /// Held by the one listener that sweeps for all.
    sweeper: Arc<tokio::sync::Mutex<()>>,
    holders: Option<Holders>,
}

/// Tells whether a holder, by the name that [`Storage::held_by`](crate::Storage::held_by) was given, may still use its URLs;
/// `None`: nobody knows now.
pub type Holders = Arc<dyn Fn(String) -> BoxFuture<'static, Option<bool>> + Send + Sync>;

impl Embedded {
    /// The same server, which asks about whoever stands in a URL before it does what the URL is for. What has begun goes on.
    #[must_use]
    pub fn asking(self, holders: Holders) -> Self {
        Self { holders: Some(holders), ..self }
    }
}

/// Opens `dir`, making it if it is not there, and removes what an earlier crash left behind. Blocks; the time grows with
/// the number of objects (one directory entry each).
///
/// # Errors
///
/// A bad configuration, a directory that another process has open or that a newer program wrote, or trouble with the disk.
pub fn open(dir: &Path, config: EmbeddedConfig) -> Result<Embedded, OpenError> {
    config.validate().map_err(OpenError::Config)?;
    let store = Arc::new(Store::open(dir, &config)?);
    Ok(Embedded { store, config: Arc::new(config), sweeper: Arc::default(), holders: None })
}

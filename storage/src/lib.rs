//! Object storage: S3 and nothing but S3.
//!
//! Everything that is too large for the ledger (packs, manifests, files, results) is an S3 object. The server speaks to
//! storage through [`Storage`]; clients and processors only ever see the URLs and headers that it signs. Which S3 it is
//! makes no difference: [`embedded`] is a server on local disk that comes with Millpond, any other endpoint is a change
//! of [`StorageConfig`].
//!
//! | module | its one concern |
//! |---|---|
//! | `handle` | [`Storage`]: time-outs, retries and metrics around each call |
//! | `client` | the operations of S3 that the server uses |
//! | `http`, `sigv4`, `xml` | what those are over the network; the only users of `reqwest` and `quick-xml` |
//! | `multipart` | objects that arrive in parts |
//! | `writer` | an object that is written piece by piece |
//! | `hash` | the SHA-256 of an object that storage holds |
//! | `presign` | URLs for others; the only user of the `rusty-s3` crate |
//! | `probe` | what is wrong with a storage that does not work |
//! | [`embedded`] | the server on local disk; the only user of the `s3s` crate |
//!
//! Keys are random and known to the ledger before a URL for them exists, so nothing here lists a bucket to learn what
//! there is, and a call that fails half-way may simply be made again: every method of [`Storage`] is idempotent.

mod client;
mod config;
pub mod embedded;
mod error;
mod handle;
mod hash;
mod http;
mod key;
pub mod limits;
mod listing;
mod multipart;
mod presign;
mod probe;
mod secret;
mod sigv4;
mod writer;
mod xml;

pub use client::{ObjectStream, Stat};
pub use config::{BadConfig, Secret, StorageConfig};
pub use error::{Error, Fault};
pub use handle::Storage;
pub use key::{BadKey, ObjectKey};
pub use listing::Listed;
pub use multipart::{BadMultipartId, MultipartId, Part};
pub use presign::{Presigned, PresignedPut};
pub use probe::Findings;
pub use writer::Writer;

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
//! | `http`, `xml` | what those are over the network; `quick-xml` is named in the latter alone |
//! | `multipart` | objects that arrive in parts |
//! | `writer` | an object that is written piece by piece |
//! | [`directory`] | directories whose names survive a power cut |
//! | `hash` | the SHA-256 of an object that storage holds |
//! | `presign` | URLs for others |
//! | `probe` | what is wrong with a storage that does not work |
//! | [`embedded`] | the server on local disk; the only user of the `s3s` crate |
//!
//! `rusty-s3` signs everything, the server's own calls as well as URLs for others. It is not the `minio` crate, which is
//! played against the embedded server in tests, because its version 0.4 has no call that lists parts (an upload is
//! resumed and completed by that list), always hashes a body itself although its hash is known, builds its HTTP client
//! without time-outs and so that the proxies of the environment hold for it, and takes a CA by the path of a file alone.
//! The answers of `rusty-s3` have no checksums of parts and no error codes, so those are read here, with `quick-xml`
//! and `serde`.
//!
//! Keys are random and known to the ledger before a URL for them exists, so nothing here lists a bucket to learn what
//! there is, and a call that fails half-way may simply be made again: every method of [`Storage`] is idempotent.

mod client;
mod config;
pub mod directory;
pub mod embedded;
mod error;
mod handle;
#[cfg(feature = "simulated")]
pub mod hands;
mod hash;
mod http;
mod key;
pub mod limits;
mod listing;
mod multipart;
mod presign;
mod probe;
mod secret;
mod writer;
mod xml;

pub use client::{ObjectStream, Stat};
pub use config::{BadConfig, Secret, StorageConfig};
pub use error::{Error, Fault};
pub use handle::Storage;
pub use key::{BadKey, ObjectKey};
pub use listing::{Begun, Listed};
pub use multipart::{BadMultipartId, MultipartId, Part};
pub use presign::{Presigned, PresignedPut};
pub use probe::Findings;
pub use writer::Writer;

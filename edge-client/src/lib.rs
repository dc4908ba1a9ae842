//! The client of Millpond for devices.
//!
//! [`transfer`] moves large files by presigned URL, up and down. It guarantees that a download is shown only when its
//! size and SHA-256 are the promised ones and it is on disk; that memory is bounded whatever the size of a file; and that
//! a transfer never fails while its bytes advance. It does not keep bytes that nobody has kept yet: an upload whose
//! process dies is begun again (by parts: from the first missing part) by whoever still has the file.
//!
//! There is no global state, and nothing starts threads or tasks of its own behind the caller's back.

pub mod backoff;
pub mod cli;
pub mod clock;
pub mod exec;
pub mod large;
pub mod listen;
pub mod process;
pub mod sender;
pub mod session;
pub mod spool;
pub mod transfer;

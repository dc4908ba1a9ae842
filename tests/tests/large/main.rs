//! Files that go to storage by presigned URL, over the real binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod client;
mod hostile;
mod parts;
mod single;

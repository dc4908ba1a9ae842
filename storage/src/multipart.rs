//! Objects that arrive in parts.
//!
//! Somebody with the server's credentials begins an upload and ends it; in between each part may come from anybody who
//! was given a URL for it, in any order and again as often as need be.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use millpond_protocol::Sha256;

use crate::error::Error;
use crate::handle::Storage;
use crate::key::ObjectKey;
use crate::limits;

/// What storage calls an upload in parts: text of its own choosing, 1–1024 visible ASCII characters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MultipartId(String);

/// The text is no id of an upload in parts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the id of a multipart upload is 1–{} visible ASCII characters", limits::MULTIPART_ID_MAX)]
pub struct BadMultipartId;

impl MultipartId {
    /// The text as it stands in URLs and rows.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MultipartId {
    type Err = BadMultipartId;

    fn from_str(text: &str) -> Result<Self, BadMultipartId> {
        let good = (1..=limits::MULTIPART_ID_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(Self(text.to_owned())) } else { Err(BadMultipartId) }
    }
}

impl fmt::Display for MultipartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MultipartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A part that storage has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 1 to 10,000: the object is its parts in this order.
    pub n: u16,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256, where storage says it: not every server keeps those of parts.
    pub sha256: Option<Sha256>,
    /// What storage calls these bytes, quotes included where it gave some; needed to complete the upload.
    pub etag: String,
}

impl Storage {
    /// Begins an upload in parts. Nothing of it can be read before it is completed.
    ///
    /// Unlike every other call this one is not idempotent: an attempt whose answer was lost leaves an empty upload behind,
    /// which storage gives up by its own rules.
    pub async fn create_multipart(&self, key: &ObjectKey) -> Result<MultipartId, Error> {
        self.call("create_multipart", || self.client().create_multipart(key)).await
    }

    /// Stores one part; storage compares it with `sha256` before it says yes.
    pub(crate) async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &MultipartId,
        n: u16,
        bytes: Bytes,
        sha256: Sha256,
    ) -> Result<Part, Error> {
        self.call("put_part", || self.client().put_part(key, upload, n, bytes.clone(), sha256)).await
    }

    /// The parts that storage has, in order of their numbers.
    ///
    /// # Errors
    ///
    /// [`Error::NoUpload`] if storage does not know the upload: it was completed, aborted, or never begun.
    pub async fn list_parts(&self, key: &ObjectKey, upload: &MultipartId) -> Result<Vec<Part>, Error> {
        self.call("list_parts", || self.client().list_parts(key, upload)).await
    }

    /// Makes the object out of `parts`, in order of their numbers: at least one, and all but the last of 5 MiB or more.
    ///
    /// To complete what is completed is success: where the upload is gone and an object of this size is there, it is this
    /// one, for keys are random and never used twice.
    ///
    /// # Errors
    ///
    /// [`Error::NoUpload`] if there is neither upload nor object; [`Error::Mismatch`] if storage does not have these
    /// parts.
    pub async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &MultipartId,
        parts: &[Part],
    ) -> Result<(), Error> {
        self.call("complete_multipart", || self.client().complete_multipart(key, upload, parts)).await
    }

    /// Gives an upload up and frees its parts; that there is none is fine. A part that is still under way may come to
    /// life again on some servers: abort once more when its URL has expired.
    pub async fn abort_multipart(&self, key: &ObjectKey, upload: &MultipartId) -> Result<(), Error> {
        self.call("abort_multipart", || self.client().abort_multipart(key, upload)).await
    }
}

//! Answers: the payloads of `mp/{p}/d/{m}/answer/{op}` and the bodies of their HTTP twins. Every answer echoes the ask's
//! `id` beside the keys given here; an error has the shape of [`crate::error::ErrorBody`].

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::hash::Sha256;
use crate::ids::{FileName, Label, MemberName, UploadId};
use crate::message::receipt::Outcome;
use crate::time::Timestamp;

/// A lease of a round, from `claim`, `trigger` with `take`, and `beat`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    pub round: u64,
    /// The fencing token: name it in everything that concerns this lease.
    pub attempt: u32,
    pub batch: u64,
    /// Seconds for which the lease holds from `ready` or from the last beat.
    pub term_s: u64,
    /// Whether manifest and packs are written; until then the files are absent and the term has not begun.
    pub ready: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<Sha256>,
    #[serde(default)]
    pub files: Vec<LeaseFile>,
    /// Present while there are more files: hand it to `files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Value>,
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<Value>,
}

/// One object of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseFile {
    pub kind: LeaseFileKind,
    pub url: String,
    pub size: u64,
    pub sha256: Sha256,
    /// Of a large file: whose it is and how it is called. Those of a pack stand in the tar and in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
}

/// What an object of a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseFileKind {
    /// A tar of small files with paths `{member}/{upload}`.
    Pack,
    /// One upload by itself.
    Large,
}

/// Answer to `trigger`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Triggered {
    pub round: u64,
    pub batch: u64,
    /// Absent without `take`, and while the pool has no lease free.
    pub lease: Option<Lease>,
}

/// Answer to `files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesPage {
    pub files: Vec<LeaseFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Answer to `time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    pub time: Timestamp,
}

/// What became of one upload: the answer to `status`, and an item of `history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadInfo {
    pub member: MemberName,
    pub upload: UploadId,
    pub outcome: Outcome,
    pub name: FileName,
    pub size: u64,
    pub sha256: Sha256,
    pub event_time: Timestamp,
    /// As the member gave it; it groups only in a pool that groups by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    pub received: Timestamp,
    pub late: bool,
    pub clamped: bool,
    /// The batch that it is in now, carries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// State of that batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u64>,
    /// State of that round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_state: Option<String>,
    /// The version that came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whether another upload of the member took its place in the batch; known once the batch is sealed.
    #[serde(default)]
    pub superseded: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// One version of a pool's results, an item of `history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultInfo {
    pub version: u64,
    pub round: u64,
    pub batch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    pub name: FileName,
    pub size: u64,
    pub sha256: Sha256,
    pub committed: Timestamp,
}

/// The bytes of `get`: inline up to 128 KiB, a URL above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    pub name: FileName,
    pub size: u64,
    pub sha256: Sha256,
    /// Base64 (standard alphabet, padded).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_expires: Option<Timestamp>,
}

//! Answers: the payloads of `mp/{p}/d/{m}/answer/{op}` and the bodies of their HTTP twins. Every answer echoes the ask's
//! `id` beside the keys given here; an error has the shape of [`crate::error::ErrorBody`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::hash::Sha256;
use crate::ids::{FileName, Label, MemberName, UploadId};
use crate::message::receipt::{Outcome, Receipt};
use crate::message::unsigned::shown_unsigned;
use crate::time::Timestamp;

shown_unsigned!(Lease, LeaseFile, PutTo, Bytes);

/// A lease of a round, from `claim`, `trigger` with `take`, and `beat`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Answer to `put`: how to send the file, or what became of it if it is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// `granted`; `pending` while it is verified; `stored` or `rejected` if it was committed before.
    pub outcome: Outcome,
    /// Of an upload that was committed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
    /// Of a result that was committed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// When the grant ends. What is whole by then counts, the rest is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Where the whole file goes by one PUT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<PutTo>,
    /// Bytes of every part but the last, of a file in parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_count: Option<u32>,
    /// The parts that storage has, as runs from the first number to the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub there: Vec<(u32, u32)>,
    /// Of the parts that were wanted as many as fit, in the order in which they were wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PutPart>,
}

/// One part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutPart {
    /// From 1.
    pub n: u32,
    /// Where it goes; absent if storage has it, with this SHA-256 or, where storage lists no hashes of parts, of this length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<PutTo>,
}

/// A URL to which exactly one body may be PUT.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutTo {
    pub url: String,
    /// To be sent verbatim, and no other `x-amz-*` header beside them.
    pub headers: BTreeMap<String, String>,
    pub url_expires: Timestamp,
    /// The same as a command line for a POSIX shell, run where the file is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curl: Option<String>,
}

/// Answer to `commit`: a receipt for each upload, in the order of the ask. All are `pending`, or none is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub uploads: Vec<Receipt>,
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
    /// Since when its bytes are not kept any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<Timestamp>,
    /// When the grant ends, of one that is `granted` or `pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Bytes that were verified so far, of one that is `pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<u64>,
    /// Why the last commit of a grant did not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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
    /// Since when its bytes are not kept any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<Timestamp>,
}

/// The bytes of `get`: inline up to 128 KiB, a URL above.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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

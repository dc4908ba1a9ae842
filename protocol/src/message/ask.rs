//! Requests: the payloads of `mp/{p}/c/{m}/ask/{op}` and the bodies of their HTTP twins.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::hash::Sha256;
use crate::ids::{AskId, FileName, Label, MemberName, UploadId};
use crate::time::Timestamp;

/// What every ask may carry beside its own keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Needed by ops that change state; echoed in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<AskId>,
    /// Longest answer that the client can read, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_answer: Option<usize>,
}

/// `complete`: "I have nothing more up to `through`", or nothing more for `label`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
}

/// Which batch a trigger seals where neither window nor label says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The batch that the current moment's uploads join.
    Open,
    /// The oldest open batch.
    #[default]
    Oldest,
}

/// `trigger`: seal now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    /// Start of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    #[serde(default)]
    pub which: Which,
    /// Handed on in the lease, at most [`crate::limits::META_MAX`] bytes of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Value>,
    /// The caller's own reference, echoed in lease and events, at most [`crate::limits::META_MAX`] bytes of JSON.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<Value>,
    /// For a processor: lease the round just sealed.
    #[serde(default)]
    pub take: bool,
    /// Seconds that the answer may wait until the lease is `ready`.
    #[serde(default)]
    pub wait_s: u64,
}

/// `claim`: lease the oldest offered round, or that one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u64>,
    #[serde(default)]
    pub wait_s: u64,
}

/// `beat`: still working; extends the lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    pub round: u64,
    pub attempt: u32,
    /// From 0 to 1, or whatever the processor calls progress; shown to the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    #[serde(default)]
    pub wait_s: u64,
}

/// `files`: a page of the lease's files with fresh URLs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    pub round: u64,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// `put`: a URL for a file that goes to storage by itself. Names an `upload`, or the `round` and `attempt` whose result it
/// is. The same again resumes or renews; its metadata is then that of the first time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Put {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<FileName>,
    /// Bytes of the whole file.
    pub size: u64,
    /// Of the whole file.
    pub sha256: Sha256,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_time: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Handed on in the manifest, at most [`crate::limits::META_MAX`] bytes of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<Value>,
    /// Bytes of every part but the last; the server chooses where it is absent, and above 64 MiB it always goes in parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_size: Option<u64>,
    /// The parts whose URLs are wanted now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<WantedPart>,
    /// Adds the command lines that send the file with curl.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub curl: bool,
}

/// One part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPart {
    /// From 1.
    pub n: u32,
    pub sha256: Sha256,
}

/// `commit`: the file is there; verify and count it. Several count together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uploads: Vec<UploadId>,
    /// Seconds that the answer may wait until what is verified in the background is verified.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wait_s: u64,
}

/// `abort`: gives the grant of an `upload`, or of a result, back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abort {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// `done`: commits a result that was PUT, or closes the log of an inline one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub round: u64,
    pub attempt: u32,
    /// Seconds that the answer may wait until a result in parts is verified.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wait_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `fail`: gives the round back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fail {
    pub round: u64,
    pub attempt: u32,
    pub error: String,
    /// Whether another attempt can help; without it the round is failed at once.
    pub retryable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// `status`: what became of one upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub upload: UploadId,
    /// Whose upload; only operators may name another member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberName>,
}

/// What `history` lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryOf {
    #[default]
    Uploads,
    Results,
}

/// `history`: uploads (one's own; all for operators) or results, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    #[serde(default)]
    pub of: HistoryOf,
    /// Uploads of one batch only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// `get`: the bytes of an upload or of a result's version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
    /// Whose upload; only operators may name another member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

//! Requests: the payloads of `mp/{p}/c/{m}/ask/{op}` and the bodies of their HTTP twins.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{AskId, Label, MemberName, UploadId};
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

/// `done`: commits a result that was PUT, or closes the log of an inline one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub round: u64,
    pub attempt: u32,
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

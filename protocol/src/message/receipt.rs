//! Receipts: what became of an upload.

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::hash::Sha256;
use crate::time::Timestamp;

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Durable, and in a batch.
    Stored,
    /// Against the pool's rules; kept as a row, so a repeat gets the same answer.
    Rejected,
    /// Refused without a row: the id is still free.
    Refused,
    /// In answers only: a URL was given for it, and nothing was committed.
    Granted,
    /// In answers only: committed, and being verified.
    Pending,
}

impl Outcome {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Rejected => "rejected",
            Self::Refused => "refused",
            Self::Granted => "granted",
            Self::Pending => "pending",
        }
    }
}

/// The payload of `mp/{p}/d/{m}/receipt`, at most [`crate::limits::RECEIPT_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The upload id as the client sent it, also where it is no valid id; of a refused bundle or result, its own id.
    pub upload: String,
    pub outcome: Outcome,
    /// The batch that the upload first joined; a batch may be carried into a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_time: Option<Timestamp>,
    /// Its own window or label was closed already.
    #[serde(default)]
    pub late: bool,
    /// Its event time lay in the future and became the time of receipt.
    #[serde(default)]
    pub clamped: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// The bundle that carried it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
}

//! The JSON messages of protocol version 1. UTF-8, snake_case, RFC 3339 UTC with milliseconds, lower-case hex SHA-256,
//! sizes in bytes. Unknown keys in requests are ignored; absent optional keys are left out of what is sent.

pub mod answer;
pub mod ask;
pub mod receipt;
pub mod state;
mod unsigned;

pub use answer::{Lease, LeaseFile, LeaseFileKind};
pub use receipt::{Outcome, Receipt};
pub use state::{Card, Offer, Pointer};
pub use unsigned::unsigned;

use serde::{Deserialize, Serialize};

use crate::hash::Sha256;

/// What a member says of a result: the payload of `mp/{p}/c/{m}/delivery/{version}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub state: DeliveryState,
    /// The hash that the member found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a result has come at a member. The order is the order of progress; `failed` may follow any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Fetched,
    Verified,
    Applied,
    Failed,
}

impl DeliveryState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::Verified => "verified",
            Self::Applied => "applied",
            Self::Failed => "failed",
        }
    }
}

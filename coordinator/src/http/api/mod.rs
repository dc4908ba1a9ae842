//! The JSON of `/v1`: what the server answers and what the command line reads. Errors have the shape of
//! [`millpond_protocol::error::ErrorBody`]. Lists come in pages: hand `cursor` back for the next one.

mod members;

use millpond_protocol::message::answer::{ResultInfo, UploadInfo};
use millpond_protocol::{MemberName, PoolName, Sha256, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::retention::explain::{Due, Explained};
use crate::rounds::{Cause, FailCause, Group, Policy};

pub use self::members::*;
pub use crate::check::{Difference, End, Line, Progress};
pub use crate::retention::Collected;

/// `GET /v1/pools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pools {
    pub pools: Vec<PoolStatus>,
}

/// One pool at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub pool: PoolName,
    pub grouping: String,
    /// Members that are not revoked, of whom so many publish.
    pub members: u64,
    pub publishers: u64,
    /// Batches that take uploads.
    pub open_batches: u64,
    /// Uploads in them, and their bytes.
    pub open_uploads: u64,
    pub open_bytes: u64,
    /// Rounds by what they wait for: to be packed, for a processor, for its result, for another attempt.
    pub sealed: u64,
    pub offered: u64,
    pub leased: u64,
    pub pausing: u64,
    /// Rounds that ended without a result.
    pub failed: u64,
    /// Results so far.
    pub versions: u64,
    /// The version that members are told to fetch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// When that version was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<Timestamp>,
    /// When the newest upload came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_upload: Option<Timestamp>,
    /// Why packing does not get on, while it does not; it is tried again for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// `GET /v1/pools/{pool}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolInfo {
    pub pool: PoolName,
    pub policy: Policy,
    /// Grows with every change of the policy.
    pub policy_version: u64,
    pub created: Timestamp,
    pub status: PoolStatus,
}

/// `PUT` and `PATCH /v1/pools/{pool}`: what changed; nothing if it was so already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    pub pool: PoolName,
    pub created: bool,
    pub policy_version: u64,
    pub changed: Vec<Change>,
}

/// A key of the policy with its value before (absent where the pool is new) and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    pub to: Value,
}

/// `GET /v1/pools/{pool}/uploads`, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploads {
    pub uploads: Vec<UploadInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// `GET /v1/pools/{pool}/uploads/{member}/{upload}`: where it is and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadStory {
    #[serde(flatten)]
    pub info: UploadInfo,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// What happened to it, in words, in order.
    pub story: Vec<String>,
}

/// `GET /v1/pools/{pool}/batches`, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batches {
    pub batches: Vec<BatchInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchInfo {
    pub batch: u64,
    /// `open`, `carried` or `sealed`.
    pub state: String,
    pub group: Group,
    pub opened: Timestamp,
    pub deadline: Timestamp,
    /// Uploads and bytes, those carried into it included.
    pub count: u64,
    pub bytes: u64,
    /// How often it was carried on below its minimum.
    pub carries: u32,
    /// The batch that its uploads belong to now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried_into: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The manifest's `seq`, once sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u64>,
    /// False: sealed with a manifest, but below its minimum, so that no processor gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<bool>,
    /// The hash of the manifest, once it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<Sha256>,
}

/// `GET /v1/pools/{pool}/rounds`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    pub rounds: Vec<RoundInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A round at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundInfo {
    pub round: u64,
    pub batch: u64,
    /// `sealed`, `offered`, `leased`, `pausing`, `committed` or `failed`.
    pub state: String,
    /// Whether manifest and packs are written.
    pub ready: bool,
    pub sealed: Timestamp,
    /// The number of the newest attempt; 0: none yet.
    pub attempt: u32,
    /// Attempts that were spent since the seal or the last retry.
    pub spent: u32,
    /// Who holds, or held, the newest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<MemberName>,
    /// When the lease runs out, or the pause ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why it failed, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailCause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Timestamp>,
}

/// `GET /v1/pools/{pool}/rounds/{round}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundStory {
    #[serde(flatten)]
    pub info: RoundInfo,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Value>,
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<Value>,
    pub attempts: Vec<AttemptInfo>,
    /// The log that processors sent, newest lines last, cut at the front to 256 KiB.
    pub log: Vec<LogLine>,
    /// Bytes of the log in all.
    pub log_bytes: u64,
}

/// One lease of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptInfo {
    pub attempt: u32,
    pub member: MemberName,
    pub leased: Timestamp,
    /// The last sign of life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beat: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// `expired`, `returned`, `committed` or `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A piece of a processor's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub at: Timestamp,
    pub attempt: u32,
    pub text: String,
}

/// `GET /v1/pools/{pool}/results`, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Results {
    pub results: Vec<ResultStory>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A result and what members say of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultStory {
    #[serde(flatten)]
    pub info: ResultInfo,
    /// Whether members are told to fetch this one.
    pub current: bool,
    /// Members by the last they said of it.
    pub fetched: u64,
    pub verified: u64,
    pub applied: u64,
    pub failed: u64,
}

/// `POST /v1/pools/{pool}/results/{version}/rollback`: the version that publishes the old one again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    pub version: u64,
    pub of: u64,
}

/// One event of a pool's feed; over SSE the data of an event whose id is `seq`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    pub seq: u64,
    #[serde(rename = "type")]
    pub kind: String,
    pub at: Timestamp,
    /// The event's own keys.
    #[serde(flatten)]
    pub body: Map<String, Value>,
}

/// `GET /v1/pools/{pool}/events` without `text/event-stream`: a page, oldest first; go on from `next`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Events {
    pub events: Vec<EventRow>,
    /// Hand this back as `since`.
    pub next: u64,
    /// There is more already.
    pub more: bool,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub now: Timestamp,
    pub started: Timestamp,
    /// Whether the ledger and storage answer.
    pub ready: bool,
    /// What does not, in words.
    pub problems: Vec<String>,
    /// What does not keep it from being ready and wants an operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    pub mqtt: String,
    pub storage: String,
    /// The pools that the caller may see.
    pub pools: Vec<PoolStatus>,
}

/// `GET /v1/gc`: what the next run of retention would do, and why each object is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gc {
    /// Why nothing is deleted now, whatever is due; on the first page only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// What is due now, oldest first, at most some thousands of it; on the first page only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub due: Vec<Due>,
    /// Objects in order of their keys.
    pub objects: Vec<Explained>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

//! A pool's policy: how its uploads are grouped, when a batch seals, what is accepted, how rounds run.

use millpond_protocol::{Timestamp, limits};
use serde::{Deserialize, Serialize};

/// The policy of a pool. Every key has a default, so `{}` is a policy: hourly windows, sealed by trigger, completion or age.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub grouping: Grouping,
    /// Length of a window in seconds, a minute to 30 days; windows are anchored at 1970-01-01T00:00:00Z. `grouping = "window"`.
    pub window_s: u64,
    /// Uploads that fill a batch. `grouping = "count"`.
    pub count: u64,
    /// Several uploads of one member in a batch.
    pub select: Select,
    pub late: Late,
    /// Publishers in the batch that are enough, from `end + grace_s` on; 0: no quorum by count.
    pub quorum: u64,
    /// The same as a share of all publishers, 0.0–1.0; 0: no quorum by share.
    pub quorum_share: f64,
    /// Seconds after the end before a quorum seals.
    pub grace_s: u64,
    /// Seconds after the end (label, count: after the first receipt) when the batch is sealed whatever is there; 0: `max_age_s`.
    pub deadline_s: u64,
    /// What `deadline_s` is where it is 0.
    pub max_age_s: u64,
    /// Uploads below which `below_minimum` decides; 0: no minimum.
    pub min_uploads: u64,
    /// Members below which `below_minimum` decides; 0: no minimum.
    pub min_members: u64,
    pub below_minimum: BelowMinimum,
    /// Largest file in bytes; 0: no limit of the pool's own.
    pub max_size: u64,
    pub allow_empty: bool,
    /// Uploads must declare their SHA-256.
    pub require_sha256: bool,
    /// Seconds that a lease holds without a beat.
    pub lease_term_s: u64,
    /// Seconds that beats can keep one attempt alive.
    pub round_max_s: u64,
    /// Rounds of the pool that may be leased at once.
    pub parallel_rounds: u32,
    /// Seconds over which members spread their downloads.
    pub spread_s: u64,
    /// Days that uploads and manifest bodies are kept after their round ended.
    pub keep_uploads_days: u64,
    /// Results that are kept, beside those pointed to in the last 24 hours.
    pub keep_results: u64,
}

/// What the uploads of a batch have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    Window,
    Label,
    Count,
}

/// Which of several uploads of one member count, by (event time, upload id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    All,
    Latest,
    First,
}

/// What becomes of an upload whose window or label is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Late {
    /// The first window not closed, or a further part of the label.
    Next,
    /// Rejected with rule `late`.
    Reject,
}

/// What becomes of a batch that seals below the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BelowMinimum {
    Carry,
    Run,
    Skip,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            grouping: Grouping::Window,
            window_s: 3_600,
            count: 100,
            select: Select::All,
            late: Late::Next,
            quorum: 0,
            quorum_share: 0.0,
            grace_s: 0,
            deadline_s: 0,
            max_age_s: limits::MAX_AGE.as_secs(),
            min_uploads: 0,
            min_members: 0,
            below_minimum: BelowMinimum::Run,
            max_size: 0,
            allow_empty: false,
            require_sha256: false,
            lease_term_s: limits::LEASE_TERM.as_secs(),
            round_max_s: limits::ROUND_MAX.as_secs(),
            parallel_rounds: 1,
            spread_s: 0,
            keep_uploads_days: 7,
            keep_results: 10,
        }
    }
}

impl Policy {
    /// Every problem of the policy at once; empty means valid.
    pub fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    /// The window that holds this time, where windows group: its start and its end, which is not in it.
    pub fn window(&self, time: Timestamp) -> (Timestamp, Timestamp) {
        let length = i64::try_from(self.window_s.saturating_mul(1_000)).unwrap_or(i64::MAX).max(1);
        let from = time.as_millis() - time.as_millis() % length;
        (Timestamp::clamped(from), Timestamp::clamped(from.saturating_add(length)))
    }
}

//! A pool's policy: how its uploads are grouped, when a batch seals, what is accepted, how rounds run.

use std::time::Duration;

use millpond_protocol::{Timestamp, limits};
use serde::{Deserialize, Serialize};

/// The policy of a pool. Every key has a default, so `{}` is a policy: hourly windows, sealed by trigger, completion or age.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What the uploads of a batch have in common: `window` (their event time), `label` (the client names the round) or
    /// `count` (the order in which they came).
    pub grouping: Grouping,
    /// Length of a window in seconds, a minute to 30 days; windows are anchored at 1970-01-01T00:00:00Z. Longer windows
    /// make fewer and larger batches. Where `grouping` is `window`.
    pub window_s: u64,
    /// Uploads that fill a batch. Where `grouping` is `count`.
    pub count: u64,
    /// Several uploads of one member in a batch: `all`, or only the `latest` or `first` by (event time, upload id); the
    /// others stay in the batch, marked, and out of the packs.
    pub select: Select,
    /// An upload whose window or label is closed: into the `next` batch, or `reject`.
    pub late: Late,
    /// Publishers in the batch that are enough, from `end + grace_s` on; 0: no quorum by count. Beside `quorum_share`,
    /// either is enough.
    pub quorum: u64,
    /// The same as a share of all publishers, 0.0–1.0; 0: no quorum by share.
    pub quorum_share: f64,
    /// Seconds after the end (label, count: after the first receipt) before a quorum seals; more lets stragglers in.
    pub grace_s: u64,
    /// Seconds after the end (label, count: after the first receipt) when the batch is sealed whatever is there, and the
    /// window closed; more lets offline members in, and makes others wait where nothing else seals. 0: `max_age_s`.
    pub deadline_s: u64,
    /// What `deadline_s` is where it is 0.
    pub max_age_s: u64,
    /// Uploads below which `below_minimum` decides; 0: no minimum. A trigger ignores it.
    pub min_uploads: u64,
    /// Members below which `below_minimum` decides; 0: no minimum. A trigger ignores it.
    pub min_members: u64,
    /// A batch below its minimum: `carry` (into the next window, or on with a new deadline, three times, then `run`),
    /// `run`, or `skip` (a manifest, but no round).
    pub below_minimum: BelowMinimum,
    /// Largest file in bytes; 0: no limit of the pool's own.
    pub max_size: u64,
    /// Bytes of uploads and results that the pool may keep, those granted included, and of the rows of its uploads (512 each,
    /// with name, type and `meta` as they are), rejected ones too; what would be more is told `quota` and waits with its
    /// member. 0: as many as storage holds. Results are never refused.
    pub quota_bytes: u64,
    /// Takes files of 0 bytes, which are rejected otherwise.
    pub allow_empty: bool,
    /// Uploads must declare their SHA-256.
    pub require_sha256: bool,
    /// Seconds that a lease holds without a beat; more spares processors the beats, and finds a dead one later.
    pub lease_term_s: u64,
    /// Seconds that beats can keep one attempt alive.
    pub round_max_s: u64,
    /// Rounds of the pool that may be leased at once; more than one lets results come out of order.
    pub parallel_rounds: u32,
    /// Seconds over which members spread their downloads of a result; more is gentler on the network.
    pub spread_s: u64,
    /// Seconds that the bytes of uploads, their packs and the body of the manifest are kept after the round ended, or was
    /// skipped; more takes more disk. Keys and hashes stay 180 days longer, the manifest's header for ever.
    pub keep_uploads_s: u64,
    /// Results that are kept whatever their age: the newest so many versions, for roll-backs.
    pub keep_results: u64,
    /// Seconds that a result is kept after it was last the current one, a day at least.
    pub keep_results_s: u64,
    /// Seconds that attempts, log, deliveries and `round.json` are kept after the round ended, and not less than its result.
    pub keep_rounds_s: u64,
    /// Seconds that events are kept, so that whoever resumes a feed misses nothing.
    pub keep_events_s: u64,
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
            quota_bytes: 0,
            allow_empty: false,
            require_sha256: false,
            lease_term_s: limits::LEASE_TERM.as_secs(),
            round_max_s: limits::ROUND_MAX.as_secs(),
            parallel_rounds: 1,
            spread_s: 0,
            keep_uploads_s: limits::KEEP_UPLOADS.as_secs(),
            keep_results: limits::KEEP_RESULTS,
            keep_results_s: limits::KEEP_RESULT_MIN.as_secs(),
            keep_rounds_s: limits::KEEP_ROUNDS.as_secs(),
            keep_events_s: limits::KEEP_EVENTS.as_secs(),
        }
    }
}

impl Policy {
    /// Every problem of the policy at once, each beginning with the key that it is about; empty means valid.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut range = |key: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                problems.push(format!("{key} = {value} is not from {least} to {most}"));
            }
        };
        let longest = limits::DEADLINE_MAX.as_secs();
        range("window_s", self.window_s, limits::WINDOW_MIN.as_secs(), limits::WINDOW_MAX.as_secs());
        range("count", self.count, 1, limits::BATCH_COUNT_MAX);
        range("quorum", self.quorum, 0, limits::BATCH_COUNT_MAX);
        range("grace_s", self.grace_s, 0, longest);
        range("deadline_s", self.deadline_s, 0, longest);
        range("max_age_s", self.max_age_s, 1, longest);
        range("min_uploads", self.min_uploads, 0, limits::BATCH_COUNT_MAX);
        range("min_members", self.min_members, 0, limits::BATCH_COUNT_MAX);
        range("lease_term_s", self.lease_term_s, 1, limits::LEASE_MAX.as_secs());
        range("round_max_s", self.round_max_s, 1, limits::LEASE_MAX.as_secs());
        range("parallel_rounds", self.parallel_rounds.into(), 1, limits::PARALLEL_ROUNDS_MAX.into());
        range("spread_s", self.spread_s, 0, limits::SPREAD_MAX.as_secs());
        let ever = limits::KEEP_MAX.as_secs();
        range("keep_uploads_s", self.keep_uploads_s, 0, ever);
        range("keep_results", self.keep_results, 1, limits::KEEP_RESULTS_MAX);
        range("keep_results_s", self.keep_results_s, limits::KEEP_RESULT_MIN.as_secs(), ever);
        range("keep_rounds_s", self.keep_rounds_s, 0, ever);
        range("keep_events_s", self.keep_events_s, 0, ever);
        if !(0.0..=1.0).contains(&self.quorum_share) {
            problems.push(format!("quorum_share = {} is not from 0.0 to 1.0", self.quorum_share));
        }
        if self.round_max_s < self.lease_term_s {
            problems.push(format!(
                "round_max_s = {} is shorter than lease_term_s = {}: no lease could last its term",
                self.round_max_s, self.lease_term_s
            ));
        }
        if (self.quorum > 0 || self.quorum_share > 0.0) && self.grace() >= self.deadline() {
            problems.push(format!(
                "grace_s = {} is not shorter than the deadline of {} s: no quorum could seal a batch",
                self.grace_s,
                self.deadline().as_secs()
            ));
        }
        if self.grouping == Grouping::Count && self.min_uploads > self.count {
            problems.push(format!(
                "min_uploads = {} is more than count = {}: every full batch would be below its minimum",
                self.min_uploads, self.count
            ));
        }
        problems
    }

    /// D: how long after its end a batch is sealed whatever is there.
    pub(super) fn deadline(&self) -> Duration {
        let seconds = if self.deadline_s == 0 { self.max_age_s } else { self.deadline_s };
        Duration::from_secs(seconds.max(1))
    }

    /// Windows that end by then are closed at `now` by their age; none where something else groups.
    pub fn aged(&self, now: Timestamp) -> Option<Timestamp> {
        (self.grouping == Grouping::Window).then(|| now.before(self.deadline()))
    }

    /// How long after the end a quorum waits.
    pub(super) fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_s)
    }

    /// How long a lease holds without a beat.
    pub(super) fn lease_term(&self) -> Duration {
        Duration::from_secs(self.lease_term_s.max(1))
    }

    /// How long beats keep one attempt alive.
    pub(super) fn round_max(&self) -> Duration {
        Duration::from_secs(self.round_max_s.max(1))
    }

    /// The window that holds this time, where windows group: its start and its end, which is not in it.
    pub fn window(&self, time: Timestamp) -> (Timestamp, Timestamp) {
        let length = i64::try_from(self.window_s.saturating_mul(1_000)).unwrap_or(i64::MAX).max(1);
        let from = time.as_millis() - time.as_millis() % length;
        (Timestamp::clamped(from), Timestamp::clamped(from.saturating_add(length)))
    }
}

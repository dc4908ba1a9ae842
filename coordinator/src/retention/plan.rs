//! What may go and why the rest stays: pure functions of rows, policy and time. Nothing else decides.
//!
//! | what | is needed by | then kept |
//! |---|---|---|
//! | bytes of uploads, packs, a manifest's body | the open batch, the live round, packing | `keep_uploads_s` from the round's end |
//! | rows of its uploads: key and hash | their bytes | 180 days after the bytes |
//! | a result | the pointer; the `keep_results` newest; a kept version of the same object | `keep_results_s` after it was the current one |
//! | attempts, log, deliveries, `round.json` | the live round, a result of it that is kept | `keep_rounds_s` from the end of the round |
//! | rows of rejected uploads | | `keep_uploads_s` and 180 days from receipt |
//! | events | | `keep_events_s` |
//!
//! The policy is the pool's of today. A pool that was removed needs nothing any more: what had not ended, ended then.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use millpond_protocol::{PoolName, Timestamp, limits};

use crate::rounds::{BatchNo, Policy, RoundNo, Version};

/// What of a pool decides.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolRows {
    pub name: PoolName,
    pub policy: Policy,
    pub removed: Option<Timestamp>,
    /// The version that the pointer names.
    pub pointer: Option<Version>,
    /// Versions so far.
    pub versions: Version,
}

/// What of a batch decides; of one that was carried into no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRows {
    pub batch: BatchNo,
    /// None while it is open.
    pub sealed: Option<SealedRows>,
}

/// What of a sealed batch decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedRows {
    pub round: RoundNo,
    pub at: Timestamp,
    /// Manifest and packs are written, and what is in packs is deleted from the ledger.
    pub written: bool,
    pub outcome: Outcome,
}

/// What came of a sealed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was below its minimum: a manifest and no round.
    Skipped,
    /// Its round has not ended.
    Live,
    Committed(Timestamp),
    Failed(Timestamp),
}

/// What of an ended round decides about its story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundRows {
    pub round: RoundNo,
    pub ended: Timestamp,
    pub committed: bool,
    /// `round.json` is written.
    pub told: bool,
    /// A version of its result whose bytes are kept.
    pub result: Option<Version>,
}

/// A version whose bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultRows {
    pub version: Version,
    /// Versions that a roll-back made share one.
    pub object: i64,
    pub committed: Timestamp,
    /// When the pointer left it; none if it never named it, or still does.
    pub pointed_until: Option<Timestamp>,
}

/// What is to become of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Something that goes on needs it.
    Live(Need),
    /// The policy keeps it until the term's end.
    Kept(Term),
    /// Its term has ended.
    Due(Term),
}

/// What needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    OpenBatch(BatchNo),
    /// Manifest or packs of the round are not written yet.
    Packing(RoundNo),
    LiveRound(RoundNo),
    /// `round.json` is not written yet.
    Untold(RoundNo),
    Pointer(Version),
    /// It is one of the newest so many versions.
    Newest(Version, u64),
    /// The round has a result that is kept.
    Result(Version),
}

/// From when it is kept and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    pub since: Since,
    pub at: Timestamp,
    pub keeps: Duration,
}

/// What the term begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    Committed(RoundNo),
    Failed(RoundNo),
    Skipped(RoundNo),
    PoolRemoved,
    /// The pointer left the version, or the version was committed and never pointed to.
    Pointed(Version),
    Expired(BatchNo),
    Rejected,
}

impl Term {
    /// The end of the term.
    pub fn until(&self) -> Timestamp {
        self.at.after(self.keeps)
    }

    fn judge(self, now: Timestamp) -> Verdict {
        if self.until() <= now { Verdict::Due(self) } else { Verdict::Kept(self) }
    }
}

impl Verdict {
    /// Whether it may go.
    pub fn is_due(&self) -> bool {
        matches!(self, Self::Due(_))
    }

    /// When it may go, if that is known.
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Live(_) => None,
            Self::Kept(term) | Self::Due(term) => Some(term.until()),
        }
    }

    /// The word of it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Live(_) => "live",
            Self::Kept(_) => "kept",
            Self::Due(_) => "due",
        }
    }
}

/// The bytes of a batch's uploads, its packs and the body of its manifest.
pub fn uploads(pool: &PoolRows, batch: &BatchRows, now: Timestamp) -> Verdict {
    let (since, at) = match (batch.sealed, pool.removed) {
        (None, None) => return Verdict::Live(Need::OpenBatch(batch.batch)),
        (None, Some(removed)) => (Since::PoolRemoved, removed),
        (Some(sealed), removed) => {
            let round = sealed.round;
            match (sealed.outcome, removed) {
                (Outcome::Live, None) => return Verdict::Live(Need::LiveRound(round)),
                (Outcome::Live, Some(removed)) => (Since::PoolRemoved, removed),
                (_, None) if !sealed.written => return Verdict::Live(Need::Packing(round)),
                (Outcome::Skipped, _) => (Since::Skipped(round), sealed.at),
                (Outcome::Committed(at), _) => (Since::Committed(round), at),
                (Outcome::Failed(at), _) => (Since::Failed(round), at),
            }
        }
    };
    Term { since, at, keeps: Duration::from_secs(pool.policy.keep_uploads_s) }.judge(now)
}

/// The rows of a batch's uploads, whose bytes are not kept since `expired`.
pub fn keys(batch: BatchNo, expired: Timestamp, now: Timestamp) -> Verdict {
    Term { since: Since::Expired(batch), at: expired, keeps: limits::KEYS_KEPT_FOR }.judge(now)
}

/// What was begun: nothing keeps it any more.
pub fn begun(batch: BatchNo, expired: Timestamp) -> Term {
    Term { since: Since::Expired(batch), at: expired, keeps: Duration::ZERO }
}

/// The row of an upload that was rejected.
pub fn rejected(pool: &PoolRows, received: Timestamp, now: Timestamp) -> Verdict {
    let keeps = Duration::from_secs(pool.policy.keep_uploads_s).saturating_add(limits::KEYS_KEPT_FOR);
    Term { since: Since::Rejected, at: received, keeps }.judge(now)
}

/// Attempts, log, deliveries and `round.json` of an ended round.
pub fn story(pool: &PoolRows, round: &RoundRows, now: Timestamp) -> Verdict {
    if !round.told && pool.removed.is_none() {
        return Verdict::Live(Need::Untold(round.round));
    }
    if let Some(version) = round.result {
        return Verdict::Live(Need::Result(version));
    }
    let since = if round.committed { Since::Committed(round.round) } else { Since::Failed(round.round) };
    Term { since, at: round.ended, keeps: Duration::from_secs(pool.policy.keep_rounds_s) }.judge(now)
}

/// The versions of a pool whose bytes are kept, each with its verdict; all of them are needed at once, for versions that
/// share an object go together.
pub fn results(pool: &PoolRows, versions: &[ResultRows], now: Timestamp) -> Vec<Verdict> {
    let own: Vec<Verdict> = versions.iter().map(|row| result(pool, row, now)).collect();
    let mut strongest: BTreeMap<i64, Verdict> = BTreeMap::new();
    for (row, verdict) in versions.iter().zip(&own) {
        let best = strongest.entry(row.object).or_insert(*verdict);
        if strength(verdict) > strength(best) {
            *best = *verdict;
        }
    }
    versions.iter().zip(own).map(|(row, own)| strongest.get(&row.object).copied().unwrap_or(own)).collect()
}

fn result(pool: &PoolRows, row: &ResultRows, now: Timestamp) -> Verdict {
    let version = row.version;
    let keeps = Duration::from_secs(pool.policy.keep_results_s);
    let pointed = pool.pointer == Some(version);
    let (since, at) = match pool.removed {
        None if pointed => return Verdict::Live(Need::Pointer(version)),
        None if version > pool.versions.saturating_sub(pool.policy.keep_results) => {
            return Verdict::Live(Need::Newest(version, pool.policy.keep_results));
        }
        // What was current until the pool went was pointed to until then.
        Some(removed) if pointed => (Since::PoolRemoved, removed),
        None | Some(_) => (Since::Pointed(version), row.pointed_until.unwrap_or(row.committed)),
    };
    Term { since, at, keeps }.judge(now)
}

/// What outweighs what among versions of one object.
fn strength(verdict: &Verdict) -> (u8, Option<Timestamp>) {
    match verdict {
        Verdict::Live(_) => (2, None),
        Verdict::Kept(term) => (1, Some(term.until())),
        Verdict::Due(term) => (0, Some(term.until())),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live(need) => need.fmt(f),
            Self::Kept(term) => write!(f, "{term}, kept for {}", Span(term.keeps)),
            Self::Due(term) => write!(f, "{term}, which is longer ago than {}", Span(term.keeps)),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenBatch(batch) => write!(f, "batch {batch} is open"),
            Self::Packing(round) => write!(f, "packs and manifest of round {round} are not written yet"),
            Self::LiveRound(round) => write!(f, "round {round} is live"),
            Self::Untold(round) => write!(f, "round.json of round {round} is not written yet"),
            Self::Pointer(version) => write!(f, "version {version} is the current one"),
            Self::Newest(version, of) => write!(f, "version {version} is one of the newest {of}"),
            Self::Result(version) => write!(f, "its result, version {version}, is kept"),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at;
        match self.since {
            Since::Committed(round) => write!(f, "round {round} was committed {at}"),
            Since::Failed(round) => write!(f, "round {round} failed {at}"),
            Since::Skipped(round) => write!(f, "the batch of manifest {round} was skipped {at}"),
            Since::PoolRemoved => write!(f, "the pool was removed {at}"),
            Since::Pointed(version) => {
                write!(f, "version {version} was last the current one, or committed, {at}")
            }
            Since::Expired(batch) => write!(f, "the bytes of batch {batch} are not kept since {at}"),
            Since::Rejected => write!(f, "it was rejected {at}"),
        }
    }
}

/// A duration for people: exact in its largest unit.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "min")] {
            if seconds >= unit && seconds.is_multiple_of(unit) {
                return write!(f, "{} {name}", seconds / unit);
            }
        }
        write!(f, "{seconds} s")
    }
}

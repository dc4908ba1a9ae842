//! What has become true: the core's output, and at the same time the rows of batches and rounds.

use millpond_protocol::{Label, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Attempt, BatchNo, MemberId, RoundNo, Version};

/// A change of state. The shell writes the record that it carries and tells those concerned after the commit.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    BatchOpened(Batch),
    /// Sealed: the manifest's `seq` is `batch.round`; without `runs` there is a manifest but no round.
    BatchSealed {
        batch: Batch,
        cause: Cause,
        runs: bool,
    },
    /// Below its minimum: what is in it belongs to `into` from now on. A batch of a label or count stays open and is
    /// carried into itself, with a new deadline; a window's batch has ended.
    BatchCarried {
        batch: Batch,
        into: Batch,
    },
    /// Windows that end by then stay closed under the policy of now too.
    WindowsAged {
        through: Timestamp,
    },
    /// The publisher has nothing more before this time; never less than it said before.
    CompletedThrough {
        member: MemberId,
        through: Timestamp,
    },
    /// The publisher has nothing more for this batch of a label.
    CompletedLabel {
        batch: BatchNo,
        member: MemberId,
    },
    /// The round's record after that step.
    Round {
        round: Round,
        step: RoundStep,
    },
    /// The pool's pointer names this version now.
    Pointer {
        version: Version,
    },
}

/// A batch as a row: what identifies it and what it counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub batch: BatchNo,
    pub group: Group,
    /// Whose upload opened it.
    pub opener: MemberId,
    pub opened: Timestamp,
    /// When the deadline seals it.
    pub deadline: Timestamp,
    pub count: u64,
    pub bytes: u64,
    pub carries: u32,
    /// The manifest's `seq`, once sealed.
    pub round: Option<RoundNo>,
}

/// What the uploads of a batch have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Event times from `from` to before `to`.
    Window { from: Timestamp, to: Timestamp },
    /// Part 1, 2, 3 … of a label.
    Label { label: Label, part: u32 },
    /// The next N in ledger order.
    Count,
}

/// Why a batch was sealed. Of causes that come at the same instant the first in this order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Trigger,
    Full,
    Quorum,
    Complete,
    Deadline,
}

/// A round as a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    pub round: RoundNo,
    pub batch: BatchNo,
    pub sealed: Timestamp,
    /// Packs and manifest are written; stands beside the state.
    pub ready: bool,
    pub state: RoundState,
    /// The number of the last lease; grows for ever.
    pub attempt: Attempt,
    /// Attempts spent since the seal or the last retry by an operator.
    pub spent: u32,
    /// Who may still commit: the holder of the newest lease, though it may have run out.
    pub holder: Option<MemberId>,
}

/// Where a round is. `Committed` is terminal; `Failed` ends only by an operator's retry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum RoundState {
    /// Waits to be packed, since the seal or since the last attempt at packing was spent.
    Sealed {
        since: Timestamp,
    },
    /// Waits for a processor.
    Offered {
        since: Timestamp,
    },
    Leased(Lease),
    /// An attempt failed; offered again at `until`.
    Pausing {
        until: Timestamp,
    },
    Committed {
        version: Version,
    },
    Failed {
        cause: FailCause,
        at: Timestamp,
    },
}

/// The lease in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub member: MemberId,
    /// When it was granted, or its term began by `ready`.
    pub since: Timestamp,
    /// None until the round is ready: the term has not begun.
    pub until: Option<Timestamp>,
}

/// Why a round failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailCause {
    /// The processor said that no retry can help.
    Refused,
    /// Every attempt was spent.
    Attempts,
    /// Nobody claimed it in time.
    Unclaimed,
}

/// What happened to a round; the name of the event in the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundStep {
    Sealed,
    Ready,
    Offered,
    Leased,
    Extended,
    /// The lease ran out.
    Expired,
    /// The processor gave it back, or was revoked.
    Returned,
    /// Packing took too long and an attempt was spent.
    Unpacked,
    Committed,
    Failed,
    Retried,
}

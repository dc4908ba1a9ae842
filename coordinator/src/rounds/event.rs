//! What the shell feeds the core, and what it answers.

use millpond_protocol::{Label, Timestamp};

use super::{Attempt, BatchNo, MemberId, Policy, Rejection, RoundNo, Version};

/// Something happened. Every event carries all that the core needs to know of the outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new upload (repeats never get here), already accepted by the pool's rules.
    Upload(Upload),
    /// `complete {through}`: the member has nothing more before this time.
    CompleteThrough { member: MemberId, through: Timestamp },
    /// `complete {label}`: nothing more for the part of the label that is open now; `not_found` if none is.
    CompleteLabel { member: MemberId, label: Label },
    /// Seal now; `take` leases the round to this member.
    Trigger { target: Target, take: Option<MemberId> },
    /// Lease that round, or the oldest on offer. Who asks for a round that it holds gets the lease it has.
    Claim { member: MemberId, round: Option<RoundNo> },
    /// Extend the lease, unless it has run out.
    Beat { member: MemberId, round: RoundNo, attempt: Attempt },
    /// The result is durable: commit it. A repeat is `stale` here, for the round has ended: the shell knows the first answer.
    Result { member: MemberId, round: RoundNo, attempt: Attempt },
    /// Give the round back.
    Fail { member: MemberId, round: RoundNo, attempt: Attempt, retryable: bool },
    /// Manifest and packs of the round are written and verified.
    Ready { round: RoundNo },
    /// An operator offers a failed round again. The shell hands in its last state, for failed rounds are not kept here.
    Retry { round: super::Round },
    /// An operator publishes an old version again.
    Rollback { of: Version },
    /// A publisher joined: `complete` and `quorum` count it from now on.
    PublisherAdded { member: MemberId },
    /// A member was revoked or removed, or its role changed: its leases end, it counts no more, and what it said by
    /// `complete` is void.
    MemberRemoved { member: MemberId },
    /// The policy changed; open batches keep the bounds and deadlines they opened with. Windows that a shorter deadline
    /// has closed stay closed. A policy with problems is `malformed`.
    Policy(Box<Policy>),
    /// Time has passed. Also implied by every other event.
    Tick,
}

/// A new upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub member: MemberId,
    /// As the client said it; none is the time of receipt.
    pub event_time: Option<Timestamp>,
    /// When it was received, if that was before now: a file that was granted then and is counted now.
    pub received: Option<Timestamp>,
    /// Needed in a pool that groups by label, ignored elsewhere.
    pub label: Option<Label>,
    /// How many parts of that label were opened so far (the shell knows; the core does not keep closed labels). Needed where
    /// labels group, unless a part [is open](super::Pool::has_open_part).
    pub parts: u32,
    pub size: u64,
}

/// Which batch a trigger means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The window that starts then.
    Window(Timestamp),
    Label(Label),
    /// The batch that the present moment's uploads join; where labels group, the one opened last.
    Open,
    /// The open batch that ends first: of the earliest window, or with the earliest first receipt.
    Oldest,
}

/// The core's answer to an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The upload is in this batch.
    Placed {
        batch: BatchNo,
        event_time: Timestamp,
        late: bool,
        clamped: bool,
        /// The member had nothing in this batch before.
        first_of_member: bool,
    },
    /// The upload is against a rule that only the core can check: `late` or `open_batches`.
    Rejected {
        rejection: Rejection,
        event_time: Timestamp,
        clamped: bool,
    },
    Triggered {
        round: RoundNo,
        batch: BatchNo,
        lease: Option<Attempt>,
    },
    /// The lease, or none while nothing is on offer.
    Claimed {
        lease: Option<(RoundNo, Attempt)>,
    },
    Committed {
        version: Version,
    },
    RolledBack {
        version: Version,
    },
    /// Nothing to say beyond "done".
    Done,
}

//! The pure core: which batch an upload belongs to, when a batch seals, who holds a round's lease, and what happens when
//! nothing comes back.
//!
//! One [`Pool`] value for each pool. The shell feeds it an [`Event`] and the time, and gets a [`Reply`] and [`Fact`]s:
//! what has become true, to be written in the same transaction and told to the world after the commit. Nothing here
//! does I/O, reads a clock, draws a random number or knows the database; nothing depends on the order of a hash map.
//! State per open batch is O(members): uploads are rows of the shell, and what has ended is forgotten here.
//!
//! # A batch
//!
//! ```text
//!                        ┌────┐ upload; a label or count below its minimum: carried into itself, D starts again
//!                        │    ▼
//!    first upload ──▶ ┌──────────┐  trigger · full · quorum · complete · deadline   ┌────────┐
//!    or a carry       │   open   │ ───────────────────────────────────────────────▶ │ sealed │──▶ round, or none: skip
//!                     └──────────┘                                                  └────────┘
//!                          │  a window below its minimum                            ┌─────────┐
//!                          └──────────────────────────────────────────────────────▶ │ carried │──▶ first window not closed
//!                                                                                   └─────────┘
//! ```
//!
//! An open batch is never empty. Sealed and carried batches never change. `grouping` decides where an upload goes,
//! `sealing` when and how a batch ends.
//!
//! # A round
//!
//! ```text
//!           no packs after 30 min (attempt spent)
//!                  ┌────┐
//!                  │    ▼          ready
//!    batch  ──▶ ┌──────────┐ ─────────────────▶ ┌─────────┐  7 d unclaimed  ┌────────┐
//!    sealed     │  sealed  │                    │ offered │ ──────────────▶ │ failed │ ──▶ retry by an operator:
//!               └──────────┘       ┌──────────▶ └─────────┘                 └────────┘     offered (sealed if not ready)
//!                 │      ▲         │ 5 s, 30 s      │ claim                     ▲
//!   trigger, take │      │    ┌─────────┐           │                           │
//!                 │      │    │ pausing │           │      third attempt spent, │
//!                 │      │    └─────────┘           │           not retryable   │
//!                 │      │         ▲ ran out, given │                           │
//!                 ▼      │         │ back, revoked  ▼                           │
//!               ┌──────────────────────────────────────┐                        │
//!        beat ⟲ │                leased                │ ───────────────────────┘
//!               └──────────────────────────────────────┘        result         ┌───────────┐
//!                  └─────────────────────────────────────────────────────────▶ │ committed │
//!                                                                              └───────────┘
//! ```
//!
//! `ready` (packs and manifest are written) stands beside the state: a round taken by its trigger is leased before it is
//! ready, and its term starts then; if it loses that lease it is sealed again. Whoever held the newest lease may commit
//! after it has run out, until the round is leased again or has failed. `transition` is the table.
//!
//! # Where what is
//!
//! | file | rules |
//! |---|---|
//! | `acceptance` | what a pool takes at all |
//! | `grouping` | event times, windows, labels, lateness: the batch of an upload |
//! | `sealing` | causes, their order, the minimum and carrying |
//! | `transition`, `leases` | the life of a round; who may take, extend, commit and give back |
//! | `publishers` | who counts, and what they said by `complete` |
//! | `results` | versions and the pointer |
//! | `pool` | the value itself: an event in, facts out; start from rows |
//! | `batches`, `closed`, `agenda` | what the rules look things up in |

#![deny(clippy::wildcard_enum_match_arm)]

pub mod acceptance;
mod agenda;
mod batches;
mod closed;
pub mod event;
pub mod fact;
mod grouping;
mod leases;
pub mod policy;
pub mod pool;
mod publishers;
mod results;
mod sealing;
mod transition;

pub use acceptance::{Candidate, Rejection, Rule, accept};
pub use event::{Event, Reply, Target, Upload};
pub use fact::{Batch, Cause, Fact, FailCause, Group, Lease, Round, RoundState, RoundStep};
pub use policy::Policy;
pub use pool::{Pool, Snapshot};

/// The internal id of a member, never used again.
pub type MemberId = i64;
/// Number of a batch in its pool, in order of opening, from 1.
pub type BatchNo = u64;
/// Number of a round in its pool, which is its manifest's `seq`, from 1.
pub type RoundNo = u64;
/// Number of a result in its pool, in order of commit, from 1.
pub type Version = u64;
/// Number of a lease of a round, from 1; the fencing token.
pub type Attempt = u32;

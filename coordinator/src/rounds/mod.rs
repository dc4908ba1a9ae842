//! The pure core: which batch an upload belongs to, when a batch seals, who holds a round's lease, and what happens when
//! nothing comes back.
//!
//! One [`Pool`] value for each pool. The shell feeds it an [`Event`] and the time, and gets a [`Reply`] and [`Fact`]s:
//! what has become true, to be written in the same transaction and told to the world after the commit. Nothing here
//! does I/O, reads a clock, draws a random number or knows the database. State per open batch is O(members).

pub mod acceptance;
pub mod event;
pub mod fact;
pub mod policy;
pub mod pool;

pub use acceptance::{Candidate, Rejection, Rule};
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

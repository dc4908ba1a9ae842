//! The life of a round, as one table.

use millpond_protocol::{Timestamp, limits};

use super::{FailCause, Lease, MemberId, Policy, Round, RoundState, RoundStep, Version};

/// What moves a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Move {
    /// Packs and manifest are written.
    Packed,
    Lease(MemberId),
    Beat,
    /// The holder gives it back, or is revoked.
    GiveBack {
        retryable: bool,
    },
    Commit(Version),
    /// What [`due`] said has come.
    Due,
    /// The server has started: nobody shall suffer for its absence, nor for a clock that was ahead before.
    Restart,
    /// An operator offers a failed round again.
    Retry,
}

/// The round after that move and what to call it; none where the move changes nothing.
pub(super) fn transition(
    round: &Round,
    by: Move,
    now: Timestamp,
    policy: &Policy,
) -> Option<(Round, RoundStep)> {
    use Move as M;
    use RoundState as S;
    let mut next = round.clone();
    let step = match (&round.state, by) {
        (S::Sealed { .. }, M::Packed) => {
            next.ready = true;
            next.state = S::Offered { since: now };
            RoundStep::Ready
        }
        (S::Leased(lease), M::Packed) if !round.ready => {
            next.ready = true;
            next.state = S::Leased(granted(lease.member, true, now, policy));
            RoundStep::Ready
        }
        (S::Leased(_) | S::Offered { .. } | S::Pausing { .. }, M::Packed) => return None,

        (S::Sealed { .. } | S::Offered { .. }, M::Lease(member)) => {
            next.attempt += 1;
            next.holder = Some(member);
            next.state = S::Leased(granted(member, round.ready, now, policy));
            RoundStep::Leased
        }
        (S::Leased(_) | S::Pausing { .. }, M::Lease(_)) => return None,

        (S::Leased(lease), M::Beat) => {
            let until = lease.until?.max(limit(lease.since, now, policy));
            if lease.until == Some(until) {
                return None;
            }
            next.state = S::Leased(Lease { until: Some(until), ..lease.clone() });
            RoundStep::Extended
        }
        (S::Sealed { .. } | S::Offered { .. } | S::Pausing { .. }, M::Beat) => return None,

        (S::Leased(lease), M::GiveBack { retryable: true }) => {
            let pause = if round.ready { pause(round, now) } else { S::Sealed { since: lease.since } };
            spend(&mut next, pause, now, RoundStep::Returned, Holder::Released)
        }
        (S::Sealed { .. } | S::Offered { .. } | S::Pausing { .. }, M::GiveBack { retryable: true }) => {
            next.holder = None;
            RoundStep::Returned
        }
        (
            S::Sealed { .. } | S::Offered { .. } | S::Leased(_) | S::Pausing { .. },
            M::GiveBack { retryable: false },
        ) => fail(&mut next, FailCause::Refused, now),

        (S::Sealed { .. } | S::Offered { .. } | S::Leased(_) | S::Pausing { .. }, M::Commit(version)) => {
            next.state = S::Committed { version };
            RoundStep::Committed
        }

        (S::Sealed { .. }, M::Due) => {
            spend(&mut next, S::Sealed { since: now }, now, RoundStep::Unpacked, Holder::Kept)
        }
        (S::Leased(_), M::Due) if !round.ready => {
            spend(&mut next, S::Sealed { since: now }, now, RoundStep::Unpacked, Holder::Kept)
        }
        (S::Leased(_), M::Due) => spend(&mut next, pause(round, now), now, RoundStep::Expired, Holder::Kept),
        (S::Offered { .. }, M::Due) => fail(&mut next, FailCause::Unclaimed, now),
        (S::Pausing { .. }, M::Due) => {
            next.state = S::Offered { since: now };
            RoundStep::Offered
        }

        (S::Sealed { .. }, M::Restart) => {
            next.state = S::Sealed { since: now };
            RoundStep::Extended
        }
        (S::Leased(lease), M::Restart) => {
            let until = lease.until.map(|_| now.after(policy.lease_term()));
            let since = if until.is_some() { lease.since.min(now) } else { now };
            next.state = S::Leased(Lease { since, until, ..lease.clone() });
            RoundStep::Extended
        }
        (S::Offered { since }, M::Restart) if *since > now => {
            next.state = S::Offered { since: now };
            RoundStep::Extended
        }
        (S::Pausing { until }, M::Restart) if *until > longest_pause(now) => {
            next.state = S::Pausing { until: longest_pause(now) };
            RoundStep::Extended
        }
        (S::Offered { .. } | S::Pausing { .. }, M::Restart) => return None,

        (S::Failed { .. }, M::Retry) => {
            next.spent = 0;
            next.state = if round.ready { S::Offered { since: now } } else { S::Sealed { since: now } };
            RoundStep::Retried
        }
        (S::Sealed { .. } | S::Offered { .. } | S::Leased(_) | S::Pausing { .. }, M::Retry) => return None,

        (
            S::Failed { .. },
            M::Packed | M::Lease(_) | M::Beat | M::GiveBack { .. } | M::Commit(_) | M::Due | M::Restart,
        ) => return None,
        (
            S::Committed { .. },
            M::Packed
            | M::Lease(_)
            | M::Beat
            | M::GiveBack { .. }
            | M::Commit(_)
            | M::Due
            | M::Restart
            | M::Retry,
        ) => return None,
    };
    (next != *round).then_some((next, step))
}

/// When time alone moves the round; never once it has ended.
pub(super) fn due(round: &Round) -> Option<Timestamp> {
    match &round.state {
        RoundState::Sealed { since } => Some(since.after(limits::PACKING_MAX)),
        RoundState::Offered { since } => Some(since.after(limits::UNCLAIMED_MAX)),
        RoundState::Leased(lease) => Some(lease.until.unwrap_or(lease.since.after(limits::PACKING_MAX))),
        RoundState::Pausing { until } => Some(*until),
        RoundState::Committed { .. } | RoundState::Failed { .. } => None,
    }
}

/// A lease from now on; its term begins once the round is ready.
fn granted(member: MemberId, ready: bool, now: Timestamp, policy: &Policy) -> Lease {
    Lease { member, since: now, until: ready.then(|| limit(now, now, policy)) }
}

/// A term from now on, within what one attempt may take.
fn limit(since: Timestamp, now: Timestamp, policy: &Policy) -> Timestamp {
    now.after(policy.lease_term()).min(since.after(policy.round_max()))
}

/// The end of the longest pause that begins now.
fn longest_pause(now: Timestamp) -> Timestamp {
    let [_, longest] = limits::RETRY_PAUSES;
    now.after(longest)
}

fn pause(round: &Round, now: Timestamp) -> RoundState {
    let [first, later] = limits::RETRY_PAUSES;
    RoundState::Pausing { until: now.after(if round.spent == 0 { first } else { later }) }
}

/// Whether who held the lease may still commit.
#[derive(PartialEq)]
enum Holder {
    Kept,
    Released,
}

/// An attempt is spent: the round goes on in `otherwise`, or fails if it was the last.
fn spend(
    next: &mut Round,
    otherwise: RoundState,
    now: Timestamp,
    step: RoundStep,
    holder: Holder,
) -> RoundStep {
    next.spent += 1;
    if next.spent >= limits::ATTEMPTS_MAX {
        return fail(next, FailCause::Attempts, now);
    }
    if holder == Holder::Released {
        next.holder = None;
    }
    next.state = otherwise;
    step
}

fn fail(next: &mut Round, cause: FailCause, now: Timestamp) -> RoundStep {
    next.holder = None;
    next.state = RoundState::Failed { cause, at: now };
    RoundStep::Failed
}

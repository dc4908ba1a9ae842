//! The live rounds of a pool: who may take one, who holds it, and the fence before a commit.

use std::collections::BTreeMap;

use millpond_protocol::{Code, Refusal, Timestamp};

use super::agenda::Agenda;
use super::pool::Pool;
use super::transition::{Move, due, transition};
use super::{Attempt, BatchNo, Fact, MemberId, Policy, Reply, Round, RoundNo, RoundState, RoundStep};

/// Every round that has neither committed nor failed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rounds {
    numbered: RoundNo,
    live: BTreeMap<RoundNo, Round>,
    due: Agenda<RoundNo>,
}

impl Rounds {
    pub(super) fn restore(
        numbered: RoundNo,
        live: Vec<Round>,
        now: Timestamp,
        policy: &Policy,
        facts: &mut Vec<Fact>,
    ) -> Self {
        let mut rounds = Self { numbered, ..Self::default() };
        for round in live {
            let no = round.round;
            rounds.keep(round);
            rounds.go(no, Move::Restart, now, policy, facts);
        }
        rounds
    }

    /// The number that the next sealed batch gets.
    pub(super) fn next_number(&self) -> RoundNo {
        self.numbered + 1
    }

    /// Numbers a sealed batch, also one that is skipped.
    pub(super) fn number(&mut self) -> RoundNo {
        self.numbered += 1;
        self.numbered
    }

    /// The round of a batch that was due `sealed`; it waits to be packed from `now` on.
    pub(super) fn begin(
        &mut self,
        round: RoundNo,
        batch: BatchNo,
        sealed: Timestamp,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) {
        let state = RoundState::Sealed { since: now };
        let round = Round { round, batch, sealed, ready: false, state, attempt: 0, spent: 0, holder: None };
        facts.push(Fact::Round { round: round.clone(), step: RoundStep::Sealed });
        self.keep(round);
    }

    pub(super) fn get(&self, round: RoundNo) -> Option<&Round> {
        self.live.get(&round)
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Round> {
        self.live.values()
    }

    /// The oldest round on offer.
    pub(super) fn offer(&self) -> Option<&Round> {
        self.iter().find(|round| matches!(round.state, RoundState::Offered { .. }))
    }

    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.first()
    }

    /// What time alone brings: leases run out, pauses end, patience ends.
    pub(super) fn run_due(&mut self, now: Timestamp, policy: &Policy, facts: &mut Vec<Fact>) {
        while let Some((_, no)) = self.due.pop_due(now) {
            self.go(no, Move::Due, now, policy, facts);
        }
    }

    /// Leases a round to a member if the pool has a lease free.
    pub(super) fn take(
        &mut self,
        no: RoundNo,
        member: MemberId,
        now: Timestamp,
        policy: &Policy,
        facts: &mut Vec<Fact>,
    ) -> Option<Attempt> {
        let leased = self.iter().filter(|round| matches!(round.state, RoundState::Leased(_))).count();
        if leased >= policy.parallel_rounds as usize {
            return None;
        }
        self.go(no, Move::Lease(member), now, policy, facts)?;
        self.get(no).map(|round| round.attempt)
    }

    /// Ends every lease of a member, live or run out.
    pub(super) fn evict(&mut self, member: MemberId, now: Timestamp, policy: &Policy, facts: &mut Vec<Fact>) {
        let held: Vec<RoundNo> =
            self.iter().filter(|round| round.holder == Some(member)).map(|round| round.round).collect();
        for no in held {
            self.go(no, Move::GiveBack { retryable: true }, now, policy, facts);
        }
    }

    /// Moves a live round through the table; what it became, unless the move changed nothing.
    fn go(
        &mut self,
        no: RoundNo,
        by: Move,
        now: Timestamp,
        policy: &Policy,
        facts: &mut Vec<Fact>,
    ) -> Option<RoundStep> {
        let (round, step) = transition(self.live.get(&no)?, by, now, policy)?;
        facts.push(Fact::Round { round: round.clone(), step });
        self.keep(round);
        Some(step)
    }

    /// Keeps a round while it lives.
    fn keep(&mut self, round: Round) {
        match due(&round) {
            Some(at) => {
                self.due.set(round.round, at);
                self.live.insert(round.round, round);
            }
            None => {
                self.due.remove(&round.round);
                self.live.remove(&round.round);
            }
        }
    }

    fn live(&self, no: RoundNo) -> Result<&Round, Refusal> {
        self.get(no).ok_or_else(|| {
            if (1..=self.numbered).contains(&no) {
                Refusal::new(
                    Code::Stale,
                    format!("round {no} has ended, or never was for its batch was skipped"),
                )
            } else {
                Refusal::new(Code::NotFound, format!("the pool has no round {no}"))
            }
        })
    }

    /// The fence: the round, if this member holds it with this attempt.
    fn held(&self, member: MemberId, no: RoundNo, attempt: Attempt) -> Result<&Round, Refusal> {
        let round = self.live(no)?;
        if round.holder == Some(member) && round.attempt == attempt {
            return Ok(round);
        }
        let newest = round.attempt;
        Err(Refusal::new(
            Code::Stale,
            format!("attempt {attempt} does not hold round {no}; its newest is {newest}"),
        )
        .hint("claim the round again"))
    }
}

impl Pool {
    /// Leases the round asked for, or the oldest on offer. Who asks for a round that it holds gets the lease it has, so
    /// that a processor that lost its memory finds its work again.
    pub(super) fn claim(
        &mut self,
        member: MemberId,
        asked: Option<RoundNo>,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        let wanted = match asked {
            Some(no) => Some(self.rounds.live(no)?),
            None => self.rounds.offer(),
        };
        let Some(round) = wanted else { return Ok(Reply::Claimed { lease: None }) };
        let no = round.round;
        let attempt = match &round.state {
            RoundState::Leased(lease) if lease.member == member => Some(round.attempt),
            RoundState::Offered { .. } => self.rounds.take(no, member, now, &self.policy, facts),
            RoundState::Sealed { .. }
            | RoundState::Leased(_)
            | RoundState::Pausing { .. }
            | RoundState::Committed { .. }
            | RoundState::Failed { .. } => None,
        };
        Ok(Reply::Claimed { lease: attempt.map(|attempt| (no, attempt)) })
    }

    /// Extends a lease that has not run out.
    pub(super) fn beat(
        &mut self,
        member: MemberId,
        no: RoundNo,
        attempt: Attempt,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        let round = self.rounds.held(member, no, attempt)?;
        if !matches!(round.state, RoundState::Leased(_)) {
            return Err(Refusal::new(Code::Stale, format!("the lease of round {no} has run out"))
                .hint("a result still counts until the round is leased again; or claim it again"));
        }
        self.rounds.go(no, Move::Beat, now, &self.policy, facts);
        Ok(Reply::Done)
    }

    /// Commits the one result of a round.
    pub(super) fn result(
        &mut self,
        member: MemberId,
        no: RoundNo,
        attempt: Attempt,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        self.rounds.held(member, no, attempt)?;
        let version = self.results.next_version();
        self.rounds.go(no, Move::Commit(version), now, &self.policy, facts);
        self.results.commit(no, facts);
        Ok(Reply::Committed { version })
    }

    /// Gives a round back.
    pub(super) fn fail(
        &mut self,
        member: MemberId,
        no: RoundNo,
        attempt: Attempt,
        retryable: bool,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        self.rounds.held(member, no, attempt)?;
        self.rounds.go(no, Move::GiveBack { retryable }, now, &self.policy, facts);
        Ok(Reply::Done)
    }

    /// Packs and manifest are written: the term of a lease begins, or the round is offered.
    pub(super) fn ready(
        &mut self,
        no: RoundNo,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        self.rounds.live(no)?;
        self.rounds.go(no, Move::Packed, now, &self.policy, facts);
        if let Some(Fact::Round { round, step: RoundStep::Ready }) = facts.last()
            && matches!(round.state, RoundState::Offered { .. })
        {
            facts.push(Fact::Round { round: round.clone(), step: RoundStep::Offered });
        }
        Ok(Reply::Done)
    }

    /// An operator offers a failed round again, for as many attempts as at first.
    pub(super) fn retry(
        &mut self,
        failed: Round,
        now: Timestamp,
        facts: &mut Vec<Fact>,
    ) -> Result<Reply, Refusal> {
        let no = failed.round;
        let known = (1..self.rounds.next_number()).contains(&no) && self.rounds.get(no).is_none();
        match transition(&failed, Move::Retry, now, &self.policy) {
            Some((round, step)) if known => {
                facts.push(Fact::Round { round: round.clone(), step });
                self.rounds.keep(round);
                Ok(Reply::Done)
            }
            Some(_) | None => Err(Refusal::new(Code::NotFound, format!("round {no} is not a failed round"))),
        }
    }
}

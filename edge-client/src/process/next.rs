//! How a processor comes to its next round, and what it does about the last one of a process before it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use millpond_protocol::Code;
use millpond_protocol::access::Op;
use millpond_protocol::message::answer::Triggered;
use millpond_protocol::message::{Lease, ask};
use serde_json::Value;
use tokio::time::Instant;

use super::error::ProcessError;
use super::traces::{Note, noted};
use super::trigger::{self, Moment, Trigger};
use super::{ASK, LOOK, Processor};
use crate::backoff::{Backoff, random};
use crate::clock::Stamp;
use crate::session::{Cause, SessionError};

/// How long an ask may take at the least, however little patience there is.
const LEAST: Duration = Duration::from_secs(1);

/// Pauses before the server is told again of a round that it did not take back.
fn again() -> Backoff {
    Backoff::new(Duration::from_secs(2), Duration::from_secs(60))
}

/// What came of asking for a round.
pub(super) enum Begun {
    Leased(Box<Lease>),
    /// The server said that there is none.
    NothingLeft,
    Later,
}

impl Processor<'_> {
    /// Asks for a round.
    pub(super) async fn begin(&mut self) -> Result<Begun, ProcessError> {
        let now = Instant::now();
        self.look = now + LOOK;
        let (op, id) = self.unheard.take().unwrap_or_else(|| {
            let due = self.trigger.is_some_and(|at| at <= now);
            (if due { Op::Trigger } else { Op::Claim }, format!("round-{:016x}", random()))
        });
        let asked = match (op, self.options.trigger) {
            (Op::Trigger, Trigger::Every(every)) => self.seal(&id, now, every).await,
            _ => {
                let asked =
                    self.session.ask_as::<Value>(&id, op, &ask::Claim::default(), self.within()).await;
                asked.and_then(|answer| match &answer["round"] {
                    Value::Null => Ok(None),
                    _ => serde_json::from_value(answer)
                        .map(Some)
                        .map_err(|error| SessionError::Strange(op, error.to_string())),
                })
            }
        };
        if let Err(SessionError::Offline(Cause::Lost(_)) | SessionError::Unanswered(_)) = &asked {
            self.unheard = Some((op, id));
        }
        let nothing_left = matches!(asked, Ok(None));
        let is_job = self.options.trigger == Trigger::Never;
        let lease = asked.or_else(|error| refused(error, is_job))?;
        Ok(match lease {
            Some(lease) => Begun::Leased(Box::new(lease)),
            None if nothing_left => Begun::NothingLeft,
            None => Begun::Later,
        })
    }

    /// How long an ask may take.
    pub(super) fn within(&self) -> Duration {
        if self.options.trigger == Trigger::Never { self.options.patience.clamp(LEAST, ASK) } else { ASK }
    }

    /// This moment, as far as the server has told its time.
    pub(super) fn moment(&self) -> Moment {
        let Stamp { wall_ms, boot } = Stamp::now();
        Moment { server_ms: self.session.server_ms().unwrap_or(wall_ms), boot }
    }

    /// Seals the oldest open batch.
    async fn seal(&mut self, id: &str, now: Instant, every: Duration) -> Result<Option<Lease>, SessionError> {
        let trigger = ask::Trigger { take: true, ..ask::Trigger::default() };
        let asked_at = self.moment();
        let asked = self.session.ask_as::<Triggered>(id, Op::Trigger, &trigger, ASK).await;
        match &asked {
            Ok(_) => {}
            Err(SessionError::Answer(refusal)) if !refusal.code.is_temporary() => {}
            Err(_) => {
                self.trigger = Some(now + every.min(LOOK));
                return asked.map(|triggered| triggered.lease);
            }
        }
        self.trigger = Some(now + every);
        // Without it the next process seals sooner than it should, and a lease that came with the answer is not lost.
        self.unless_noted(trigger::note(&self.options.directory, &asked_at));
        // Without a lease there may be one to claim: a round that was sealed earlier, or this one, offered.
        self.look = Instant::now();
        asked.map(|triggered| triggered.lease)
    }

    /// Gives back what a process before this one held when it died; none: it held nothing.
    pub(super) fn abandoned(&self) -> Option<BoxFuture<'static, Result<(), SessionError>>> {
        let Note { round, attempt } = noted(&self.options.directory)?;
        let error = "the processor died while it worked on the round".to_owned();
        let fail = ask::Fail { round, attempt, error, retryable: true, log: None };
        let (session, within) = (self.session.clone(), self.within());
        let is_job = self.options.trigger == Trigger::Never;
        Some(Box::pin(
            async move { given_back(|| session.ask(Op::Fail, &fail, within), is_job, again()).await },
        ))
    }
}

/// Asks until the server has taken a round back, or has none to take. A job that takes what is there asks once.
async fn given_back<F: Future<Output = Result<Value, SessionError>>>(
    ask: impl Fn() -> F,
    is_job: bool,
    mut backoff: Backoff,
) -> Result<(), SessionError> {
    loop {
        match ask().await {
            Ok(_) => return Ok(()),
            // It was returned, or somebody else's, long ago.
            Err(SessionError::Answer(refusal))
                if matches!(refusal.code, Code::Stale | Code::NotFound | Code::Conflict) =>
            {
                return Ok(());
            }
            Err(error) if is_job || !error.is_temporary() => return Err(error),
            Err(_) => backoff.pause().await,
        }
    }
}

/// An ask for a round that brought none: nothing to do, or later, or never. A job that takes what is there asks once.
fn refused(error: SessionError, is_job: bool) -> Result<Option<Lease>, ProcessError> {
    match error {
        SessionError::Offline(cause) if is_job => Err(ProcessError::Offline(cause)),
        error if is_job => Err(error.into()),
        SessionError::Answer(refusal) if refusal.code != Code::Unauthorized => Ok(None),
        SessionError::Offline(Cause::Lost(_))
        | SessionError::Unanswered(_)
        | SessionError::Cut
        | SessionError::Later(_) => Ok(None),
        SessionError::Offline(cause) => Err(ProcessError::Offline(cause)),
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use millpond_protocol::Refusal;

    use super::*;

    #[test]
    fn a_processor_waits_for_its_network_and_a_job_that_takes_what_is_there_does_not() {
        let lost = || SessionError::Offline(Cause::Lost("gone".into()));
        let unanswered = || SessionError::Unanswered(Duration::from_secs(1));
        let busy = || SessionError::Answer(Refusal::new(Code::Unavailable, "later"));
        for error in [lost(), unanswered(), busy()] {
            assert!(matches!(refused(error, false), Ok(None)));
        }
        assert!(matches!(refused(lost(), true), Err(ProcessError::Offline(Cause::Lost(_)))));
        for error in [unanswered(), busy()] {
            assert!(matches!(refused(error, true), Err(ProcessError::Session(_))));
        }
    }

    #[tokio::test]
    async fn a_round_is_given_back_until_the_server_has_heard_it_and_a_job_asks_once() {
        let refusal = |code| Err(SessionError::Answer(Refusal::new(code, "why")));
        let answer = |n| match n {
            0 => Err(SessionError::Offline(Cause::Lost("gone".into()))),
            1 => Err(SessionError::Unanswered(Duration::from_secs(120))),
            2 => refusal(Code::Unavailable),
            _ => Ok(Value::Null),
        };
        let soon = || Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let asked = Cell::new(0);
        let next = || std::future::ready(answer(asked.replace(asked.get() + 1)));
        given_back(next, false, soon()).await.unwrap();
        assert_eq!(asked.get(), 4);
        asked.set(0);
        assert!(given_back(next, true, soon()).await.is_err());
        assert_eq!(asked.get(), 1);
        for (code, is_settled) in [(Code::Stale, true), (Code::Conflict, true), (Code::Unauthorized, false)] {
            let ended = given_back(|| std::future::ready(refusal(code)), false, soon()).await;
            assert_eq!(ended.is_ok(), is_settled, "{code}");
        }
    }
}

//! Makes any program the external processor of a pool.
//!
//! A round is claimed when one is on offer (and triggered, if it was asked for), its files are fetched to disk and proven, the command runs,
//! and the one file that it leaves is the result. While it runs the lease is kept alive by beats, which carry what the command
//! writes; when the lease is lost the command is killed with its children.
//!
//! | variable | holds |
//! |---|---|
//! | `MILLPOND_INPUT` | a directory with the round's files, `{member}/{upload}` |
//! | `MILLPOND_MANIFEST` | the manifest, JSON Lines |
//! | `MILLPOND_OUTPUT` | where the command leaves the result |
//! | `MILLPOND_ROUND`, `MILLPOND_ATTEMPT`, `MILLPOND_BATCH` | numbers |
//! | `MILLPOND_PARAMS`, `MILLPOND_REF` | the trigger's, as JSON; `null` without |
//!
//! The command runs in a directory of its own, which is removed afterwards. Its standard output and error are the log; a line `progress 0.4` states progress.
//! Exit 0 with an output that is not empty: done. 75: the round is given back for another attempt. Anything else: the round has failed.
//!
//! A process that dies leaves a note of its lease; the next one gives that round back before it claims another.

mod input;
mod job;
mod log;
mod traces;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use millpond_failpoint::{Point, reach};
use millpond_protocol::Code;
use millpond_protocol::access::Op;
use millpond_protocol::message::answer::Triggered;
use millpond_protocol::message::{Lease, ask};
use serde_json::Value;
use tokio::time::Instant;

use self::log::Log;
use self::traces::{NOTE, Note, clear, forget, give_back};
use crate::backoff::random;
use crate::large::LargeError;
use crate::session::{Cause, Event, Inbox, Session, SessionError, Topic};
use crate::transfer::{Transfer, TransferError};

/// The topics that a session for [`process`] needs.
pub const TOPICS: [Topic; 2] = [Topic::Offer, Topic::Card];

/// How long one ask may take, over all connections.
const ASK: Duration = Duration::from_secs(120);
/// How often to ask for a round that no offer told of: offers are hints.
const LOOK: Duration = Duration::from_secs(60);
/// How long this machine leaves rounds to others after it failed one for a reason of its own; doubles, up to 32 times.
const REST: Duration = Duration::from_secs(20);
/// How long giving a round back may take when this process is to end.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// How rounds are processed.
#[derive(Debug, Clone)]
pub struct Options {
    /// A line for the shell.
    pub exec: String,
    /// Where inputs and outputs are while a command runs; nothing else may use it.
    pub directory: PathBuf,
    /// Bytes of a round's files that may be there.
    pub disk_max: u64,
    /// Besides claiming what is on offer: seals the oldest open batch every so often.
    pub trigger_every: Option<Duration>,
    /// Returns after one round.
    pub once: bool,
    /// Media type of results.
    pub content_type: Option<String>,
}

/// What happened.
#[derive(Debug)]
pub enum Report<'a> {
    Leased(&'a Lease),
    /// The result is committed.
    Done {
        round: u64,
    },
    /// The round was given back, or has failed, or the lease was lost.
    Ended {
        round: u64,
        why: &'a AttemptError,
    },
}

/// Why processing ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("no connection to the server: {0}")]
    Offline(Cause),
    #[error("{}: {source}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    /// This member may not do it.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// With `once`: the round did not come to a result.
    #[error("round {round}: {why}")]
    Ended { round: u64, why: String },
}

/// Why an attempt brought no result.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The server has given the round to somebody else, or ended it.
    #[error("the lease is lost: {0}")]
    Lost(String),
    /// The command asked for another attempt (exit 75).
    #[error("the command asks for another attempt")]
    Retry,
    #[error("{0}")]
    Command(String),
    /// The server does not take the result: it is too large for the pool, say.
    #[error("{0}")]
    Refused(String),
    /// The round's files are not what they should be.
    #[error("{0}")]
    Input(String),
    /// They do not fit here; another machine may have the room.
    #[error("{0}")]
    Room(String),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Large(#[from] LargeError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Io(#[from] io::Error),
    /// This process is to end.
    #[error("the processor was stopped")]
    Stopped,
}

impl AttemptError {
    /// Whether another attempt can help.
    fn is_retryable(&self) -> bool {
        !matches!(self, Self::Command(_) | Self::Refused(_))
    }

    /// Whether another machine may do better: this one would only use up the round's attempts.
    fn is_of_this_machine(&self) -> bool {
        match self {
            Self::Room(_) | Self::Transfer(_) | Self::Large(_) | Self::Session(_) | Self::Io(_) => true,
            Self::Lost(_)
            | Self::Retry
            | Self::Command(_)
            | Self::Refused(_)
            | Self::Input(_)
            | Self::Stopped => false,
        }
    }
}

/// What a run does at the moment.
struct Processor<'a> {
    session: &'a Session,
    transfer: &'a Arc<Transfer>,
    options: &'a Options,
    report: &'a mut (dyn FnMut(Report<'_>) + Send),
    /// When to ask for a round.
    look: Instant,
    /// This machine's attempts in a row that failed for reasons of its own, and until when it leaves rounds to others.
    failures: u32,
    rest: Instant,
    /// When to seal the oldest batch.
    trigger: Option<Instant>,
    /// An ask for a round that was not answered, and its id: the same again hears of the lease that it may have brought.
    unheard: Option<(Op, String)>,
    job: Option<Job>,
}

/// An attempt on its way.
struct Job {
    lease: Lease,
    log: Log,
    work: BoxFuture<'static, Result<(), AttemptError>>,
}

/// Processes rounds until `stop` is ready, or the session ends.
///
/// # Errors
/// As [`ProcessError`] says. Networks that are gone for a while are no error, and neither are rounds that fail.
pub async fn process(
    session: &Session,
    inbox: &mut Inbox,
    transfer: &Arc<Transfer>,
    options: &Options,
    report: &mut (dyn FnMut(Report<'_>) + Send),
    stop: impl Future<Output = ()>,
) -> Result<(), ProcessError> {
    let at = |source| ProcessError::Directory { path: options.directory.clone(), source };
    crate::spool::directories(&options.directory).map_err(at)?;
    let lock = crate::spool::open_private(&options.directory.join("lock")).map_err(at)?;
    if lock.try_lock().is_err() {
        return Err(at(io::Error::new(io::ErrorKind::WouldBlock, "another processor uses this directory")));
    }
    let mut processor = Processor {
        session,
        transfer,
        options,
        report,
        look: Instant::now(),
        failures: 0,
        rest: Instant::now(),
        trigger: options.trigger_every.map(|_| Instant::now()),
        unheard: None,
        job: None,
    };
    tokio::pin!(stop);
    let ended = processor.run(inbox, &mut stop).await;
    if let Some(Job { lease, log, work }) = processor.job.take() {
        // Kills the command.
        drop(work);
        give_back(options, session, (&lease, &log), &AttemptError::Stopped, GIVE_BACK).await.map_err(at)?;
    }
    clear(&options.directory).map_err(at)?;
    ended
}

impl Processor<'_> {
    async fn run(
        &mut self,
        inbox: &mut Inbox,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<(), ProcessError> {
        self.abandoned().await?;
        loop {
            // The card says what may be returned over MQTT: no round before it is there.
            let idle = self.job.is_none() && self.session.card().is_some();
            let next = self.trigger.map_or(self.look, |trigger| trigger.min(self.look)).max(self.rest);
            let mut job = self.job.take();
            tokio::select! {
                event = inbox.next() => {
                    self.job = job;
                    self.told(event.unwrap_or(Event::Offline(Cause::Closed)))?;
                }
                ended = async { match &mut job { Some(job) => (&mut job.work).await, None => std::future::pending().await } } => {
                    if let Some(Job { lease, log, .. }) = job {
                        self.ended(&lease, &log, ended).await?;
                        if self.options.once {
                            return Ok(());
                        }
                    }
                }
                () = tokio::time::sleep_until(next), if idle => {
                    // A lease that is granted while this is given up runs out.
                    tokio::select! {
                        begun = self.begin() => begun?,
                        () = &mut *stop => return Ok(()),
                    }
                }
                () = &mut *stop => {
                    self.job = job;
                    return Ok(());
                }
            }
        }
    }

    fn told(&mut self, event: Event) -> Result<(), ProcessError> {
        match event {
            Event::Offline(cause @ (Cause::Refused(_) | Cause::Closed)) => {
                return Err(ProcessError::Offline(cause));
            }
            Event::Offer(Some(_)) => self.look = Instant::now(),
            Event::Online
            | Event::Offline(Cause::Lost(_))
            | Event::Offer(None)
            | Event::Card(_)
            | Event::Receipt(..)
            | Event::Result(_)
            | Event::ResultData { .. } => {}
        }
        Ok(())
    }

    /// Asks for a round.
    async fn begin(&mut self) -> Result<(), ProcessError> {
        let now = Instant::now();
        self.look = now + LOOK;
        let (op, id) = self.unheard.take().unwrap_or_else(|| {
            let due = self.trigger.is_some_and(|at| at <= now);
            (if due { Op::Trigger } else { Op::Claim }, format!("round-{:016x}", random()))
        });
        let asked = match (op, self.options.trigger_every) {
            (Op::Trigger, Some(every)) => {
                self.trigger = Some(now + every);
                let trigger = ask::Trigger { take: true, ..ask::Trigger::default() };
                let asked = self.session.ask_as::<Triggered>(&id, op, &trigger, ASK).await;
                // Without one the round is offered.
                asked.map(|triggered| triggered.lease)
            }
            _ => {
                let asked = self.session.ask_as::<Value>(&id, op, &ask::Claim::default(), ASK).await;
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
        let lease = asked.or_else(refused)?;
        if let Some(lease) = lease {
            self.take(lease)?;
        }
        Ok(())
    }

    fn take(&mut self, lease: Lease) -> Result<(), ProcessError> {
        let root = self.options.directory.clone();
        let at = |source| ProcessError::Directory { path: root.clone(), source };
        clear(&root).map_err(at)?;
        reach(Point::ProcessLeased);
        let note = Note { round: lease.round, attempt: lease.attempt };
        std::fs::write(root.join(NOTE), serde_json::to_vec(&note).unwrap_or_default()).map_err(at)?;
        reach(Point::ProcessNoted);
        (self.report)(Report::Leased(&lease));
        let work = job::Work {
            session: self.session.clone(),
            transfer: Arc::clone(self.transfer),
            options: self.options.clone(),
        };
        let log = Log::default();
        self.job = Some(Job {
            lease: lease.clone(),
            log: log.clone(),
            work: Box::pin(job::attempt(work, lease, log)),
        });
        Ok(())
    }

    async fn ended(
        &mut self,
        lease: &Lease,
        log: &Log,
        ended: Result<(), AttemptError>,
    ) -> Result<(), ProcessError> {
        self.look = Instant::now();
        let (round, directory) = (lease.round, &self.options.directory);
        let at = |source| ProcessError::Directory { path: directory.clone(), source };
        match &ended {
            Ok(()) => {
                reach(Point::ProcessClosed);
                self.failures = 0;
                forget(directory).map_err(at)?;
                (self.report)(Report::Done { round });
            }
            Err(why) => {
                if why.is_of_this_machine() {
                    self.failures = (self.failures + 1).min(6);
                    self.rest = Instant::now() + REST * 2_u32.pow(self.failures - 1);
                } else {
                    self.failures = 0;
                }
                give_back(self.options, self.session, (lease, log), why, ASK).await.map_err(at)?;
                (self.report)(Report::Ended { round, why });
            }
        }
        clear(directory).map_err(at)?;
        match ended {
            Err(why) if self.options.once => Err(ProcessError::Ended { round, why: why.to_string() }),
            _ => Ok(()),
        }
    }

    /// Gives back what a process before this one held when it died.
    async fn abandoned(&mut self) -> Result<(), ProcessError> {
        let path = self.options.directory.join(NOTE);
        let note = std::fs::read(&path).ok().and_then(|json| serde_json::from_slice::<Note>(&json).ok());
        let Some(Note { round, attempt }) = note else { return Ok(()) };
        let error = "the processor died while it worked on the round".to_owned();
        let fail = ask::Fail { round, attempt, error, retryable: true, log: None };
        match self.session.ask::<Value>(Op::Fail, &fail, ASK).await {
            Ok(_) => {}
            // It was returned, or somebody else's, long ago.
            Err(SessionError::Answer(refusal))
                if matches!(refusal.code, Code::Stale | Code::NotFound | Code::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
        forget(&self.options.directory).map_err(|source| ProcessError::Directory { path, source })
    }
}

/// An ask for a round that brought none: nothing to do, or later, or never.
fn refused(error: SessionError) -> Result<Option<Lease>, ProcessError> {
    match error {
        SessionError::Answer(refusal) if refusal.code != Code::Unauthorized => Ok(None),
        SessionError::Offline(Cause::Lost(_)) | SessionError::Unanswered(_) | SessionError::Cut => Ok(None),
        SessionError::Offline(cause) => Err(ProcessError::Offline(cause)),
        error => Err(error.into()),
    }
}

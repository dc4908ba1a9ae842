//! Makes any program the external processor of a pool.
//!
//! A round is claimed when one is on offer (and triggered, if it was asked for), its files are fetched to disk and proven, the
//! command runs, and the one file that it leaves is the result. While it runs the lease is kept alive by beats, which carry what
//! the command writes; when the lease is lost the command is killed with its children.
//!
//! | variable | holds |
//! |---|---|
//! | `MILLPOND_INPUT` | a directory with the round's files, `{member}/{upload}` |
//! | `MILLPOND_MANIFEST` | the manifest, JSON Lines |
//! | `MILLPOND_OUTPUT` | where the command leaves the result |
//! | `MILLPOND_ROUND`, `MILLPOND_ATTEMPT`, `MILLPOND_BATCH` | numbers |
//! | `MILLPOND_PARAMS`, `MILLPOND_REF` | the trigger's, as JSON; `null` without |
//!
//! The command runs in a directory of its own, which is removed afterwards. Its standard output and error are the log; a line
//! `progress 0.4` states progress. Exit 0 with an output that is not empty: done. 75: the round is given back for another attempt.
//! Anything else: the round has failed.
//!
//! A process that dies leaves a note of its lease; the next one gives that round back before it claims another, whenever it has a
//! network.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use millpond_edge::process::{self, Options, Report, Trigger, process};
//! use millpond_edge::session::{self, Config, Token};
//! use millpond_edge::transfer::{self, Transfer};
//!
//! # let stage = millpond::demo::Stage::start().await?;
//! # let who = stage.member("mill", millpond_protocol::Role::Processor).await?;
//! # let (host, port, token) = (who.mqtt.ip().to_string(), who.mqtt.port(), who.token);
//! # let device = stage.member("edge-7", millpond_protocol::Role::Publisher).await?;
//! # let device = Config::new(&host, port, "demo".parse()?, "edge-7".parse()?, Token::new(device.token));
//! # let (device, _inbox) = session::open(device);
//! # device.connected(std::time::Duration::from_secs(30)).await?;
//! # device.upload(&"hello-1".parse()?, &b"hello"[..], Default::default()).await?;
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let exec = r#"cat "$MILLPOND_INPUT"/*/* > "$MILLPOND_OUTPUT""#;
//! let trigger = Trigger::Every(Duration::from_secs(900));
//! let options = Options { trigger, once: true, ..Options::new(exec, directory.join("work")) };
//! let config = Config::new(host, port, "demo".parse()?, "mill".parse()?, Token::new(token));
//! let (session, mut inbox) = session::open(config.topics(process::TOPICS));
//! let transfer = Arc::new(Transfer::new(transfer::Options::default()));
//! let mut report = |report: Report<'_>| println!("{report:?}");
//! let never = std::future::pending();
//! process(&session, &mut inbox, &transfer, &options, &mut report, never).await?;
//! # Ok(()) }
//! ```

mod error;
mod hold;
mod input;
mod job;
mod log;
mod next;
mod room;
mod traces;
mod trigger;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use millpond_protocol::access::Op;
use millpond_protocol::message::Lease;
use tokio::time::Instant;

use self::log::Log;
use self::next::Begun;
use self::traces::forget;
use crate::backoff::Backoff;
use crate::session::{Cause, Event, Inbox, Session, Topic};
use crate::transfer::Transfer;

pub use self::error::{AttemptError, ProcessError};
pub use self::trigger::Trigger;

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
    /// Bytes of a round's files and of its manifest that may be there; what the command writes is its own affair.
    pub disk_max: u64,
    pub trigger: Trigger,
    /// With [`Trigger::Never`]: how long it goes without the server.
    pub patience: Duration,
    /// Returns after one round.
    pub once: bool,
    /// Media type of results.
    pub content_type: Option<String>,
    /// When it is to end and a command has just done its work: how long the result may take to get to the server.
    pub grace: Duration,
}

impl Options {
    /// Runs that line for every round on offer, in that directory: up to 10 GiB, and a minute for a result at the end.
    pub fn new(exec: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        Self {
            exec: exec.into(),
            directory: directory.into(),
            disk_max: 10 << 30,
            trigger: Trigger::OnOffer,
            patience: Duration::from_secs(30),
            once: false,
            content_type: None,
            grace: Duration::from_secs(60),
        }
    }
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
    /// There is no connection, for this reason, and another attempt follows. Said when the reason is another one than before.
    Offline(&'a Cause),
    /// Something of this machine is in the way, and the processor goes on: the disk has no room, or a directory cannot be removed.
    Trouble {
        path: &'a Path,
        why: &'a io::Error,
    },
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
    /// How long to wait for room on the disk.
    room: Backoff,
    /// When to seal the oldest batch; not known before the server's time is.
    trigger: Option<Instant>,
    /// An ask for a round that was not answered, and its id: the same again hears of the lease that it may have brought.
    unheard: Option<(Op, String)>,
    job: Option<Job>,
    /// Why there is no connection, as far as that was said.
    offline: Option<Cause>,
    /// The first round that came to no result, where that is told at the end.
    failed: Option<ProcessError>,
}

/// An attempt on its way.
struct Job {
    lease: Lease,
    log: Log,
    /// The command has ended: what is left is to tell the server.
    is_over: Arc<AtomicBool>,
    work: BoxFuture<'static, Result<(), AttemptError>>,
}

/// The wish that this ends.
struct Stop<F> {
    wish: F,
    asked: bool,
}

impl<F: Future<Output = ()> + Unpin> Stop<F> {
    /// Returns when it was said, at any later time too.
    async fn asked(&mut self) {
        if !self.asked {
            (&mut self.wish).await;
            self.asked = true;
        }
    }
}

/// Processes rounds until `stop` is ready, or the session ends.
///
/// # Errors
/// As [`ProcessError`] says. Networks that are gone for a while are no error, except with [`Trigger::Never`], and neither are
/// rounds that fail.
pub async fn process(
    session: &Session,
    inbox: &mut Inbox,
    transfer: &Arc<Transfer>,
    options: &Options,
    report: &mut (dyn FnMut(Report<'_>) + Send),
    stop: impl Future<Output = ()>,
) -> Result<(), ProcessError> {
    let at = |source| ProcessError::Directory { path: options.directory.clone(), source };
    crate::spool::private_directories(&options.directory).map_err(at)?;
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
        room: room::backoff(),
        trigger: None,
        unheard: None,
        job: None,
        offline: None,
        failed: None,
    };
    tokio::pin!(stop);
    let mut stop = Stop { wish: stop, asked: false };
    let ended = processor.run(inbox, &mut stop).await;
    let Some(Job { lease, log, is_over, mut work }) = processor.job.take() else {
        processor.clear();
        return ended;
    };
    // A result that is made gets the time that it needs to arrive; a command that runs is killed.
    let outcome = if is_over.load(Ordering::Relaxed) && ended.is_ok() {
        tokio::time::timeout(options.grace, &mut work).await.unwrap_or(Err(AttemptError::Stopped))
    } else {
        Err(AttemptError::Stopped)
    };
    drop(work);
    processor.ended(&lease, &log, outcome, GIVE_BACK.min(options.grace), &mut stop).await.and(ended)
}

impl Processor<'_> {
    async fn run(
        &mut self,
        inbox: &mut Inbox,
        stop: &mut Stop<impl Future<Output = ()> + Unpin>,
    ) -> Result<(), ProcessError> {
        let mut abandoned = self.abandoned();
        let card_by = Instant::now() + self.within();
        loop {
            // The card says what may be returned over MQTT, and what time it is: no round before it is there.
            let has_card = self.session.card().is_some();
            if let (Trigger::Every(every), None, true) = (self.options.trigger, self.trigger, has_card) {
                let wait = trigger::first(&self.options.directory, &self.moment(), every);
                self.trigger = Some(Instant::now() + wait);
            }
            let idle = self.job.is_none() && has_card && abandoned.is_none();
            let waits_in_vain = self.options.trigger == Trigger::Never && !has_card;
            let next = self.trigger.map_or(self.look, |trigger| trigger.min(self.look)).max(self.rest);
            let mut job = self.job.take();
            tokio::select! {
                event = inbox.next() => {
                    self.job = job;
                    self.told(event.unwrap_or(Event::Offline(Cause::Closed)))?;
                }
                ended = async { match &mut job { Some(job) => (&mut job.work).await, None => std::future::pending().await } } => {
                    if let Some(Job { lease, log, .. }) = job {
                        self.ended(&lease, &log, ended, ASK, stop).await?;
                        if self.options.once || stop.asked {
                            return Ok(());
                        }
                    }
                }
                given_back = async { match &mut abandoned { Some(asking) => asking.await, None => std::future::pending().await } } => {
                    self.job = job;
                    given_back?;
                    abandoned = None;
                    self.unless_noted(forget(&self.options.directory));
                }
                () = tokio::time::sleep_until(card_by), if waits_in_vain => {
                    return Err(ProcessError::Offline(Cause::Lost("the server does not say what it takes".into())));
                }
                () = tokio::time::sleep_until(next), if idle => {
                    if !self.has_room()? {
                        continue;
                    }
                    // A lease that is granted while this is given up runs out.
                    let begun = tokio::select! {
                        begun = self.begin() => begun?,
                        () = stop.asked() => return Ok(()),
                    };
                    match begun {
                        Begun::Leased(lease) => {
                            self.take(*lease, stop).await?;
                            if self.job.is_none() && (self.options.once || stop.asked) {
                                return Ok(());
                            }
                        }
                        Begun::NothingLeft if self.options.trigger == Trigger::Never => {
                            return self.failed.take().map_or(Ok(()), Err);
                        }
                        Begun::NothingLeft | Begun::Later => {}
                    }
                }
                () = stop.asked() => {
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
            Event::Offline(cause @ Cause::Lost(_)) => {
                if self.offline.as_ref() != Some(&cause) {
                    (self.report)(Report::Offline(&cause));
                    self.offline = Some(cause);
                }
            }
            Event::Online => self.offline = None,
            Event::Offer(Some(_)) => self.look = Instant::now(),
            Event::Card(_)
            | Event::Offer(None)
            | Event::Receipt(..)
            | Event::Result(_)
            | Event::ResultData { .. } => {}
        }
        Ok(())
    }
}

//! Keeps the newest result of a pool in a directory.
//!
//! A pointer leads to a download (after a random part of its `spread_s`, so that a fleet does not fetch all at once; small results
//! come over MQTT), which goes on by range where it was cut, also by the death of the process. What does not have the promised size
//! and SHA-256 is never shown. Then [`Shelf`] shows it, the command runs, and the server learns how far it is: `fetched`,
//! `verified`, and `applied` or `failed`; the last of these also after a time without a network, or a restart.
//!
//! A result that was overtaken before it was shown is skipped. The command runs at least once for each version that was shown: if
//! the process dies while it runs, it runs again.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use millpond_edge::listen::{self, Options, Shelf, listen};
//! use millpond_edge::session::{self, Config, Token};
//! use millpond_edge::transfer::{self, Transfer};
//! # use millpond_edge::process::{self, Trigger, process};
//!
//! # let stage = millpond::demo::Stage::start().await?;
//! # let who = stage.member("lobby", millpond_protocol::Role::Listener).await?;
//! # let (host, port, token) = (who.mqtt.ip().to_string(), who.mqtt.port(), who.token);
//! # let device = stage.member("edge-7", millpond_protocol::Role::Publisher).await?;
//! # let device = Config::new(&host, port, "demo".parse()?, "edge-7".parse()?, Token::new(device.token));
//! # let (device, _inbox) = session::open(device);
//! # device.connected(std::time::Duration::from_secs(30)).await?;
//! # device.upload(&"hello-1".parse()?, &b"hello"[..], Default::default()).await?;
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let transfer = Arc::new(Transfer::new(transfer::Options::default()));
//! # let mill = stage.member("mill", millpond_protocol::Role::Processor).await?;
//! # let mill = Config::new(&host, port, "demo".parse()?, "mill".parse()?, Token::new(mill.token));
//! # let (mill, mut offers) = session::open(mill.topics(process::TOPICS));
//! # let options = process::Options {
//! #     trigger: Trigger::Every(Duration::from_secs(900)),
//! #     once: true,
//! #     ..process::Options::new(r#"cat "$MILLPOND_INPUT"/*/* > "$MILLPOND_OUTPUT""#, directory.join("work"))
//! # };
//! # process(&mill, &mut offers, &transfer, &options, &mut |_| {}, std::future::pending()).await?;
//! let mut shelf = Shelf::open(&directory.join("model"))?;
//! let config = Config::new(host, port, "demo".parse()?, "lobby".parse()?, Token::new(token));
//! let (session, mut inbox) = session::open(config.topics(listen::TOPICS));
//! let exec_timeout = Duration::from_secs(60);
//! let options = Options { exec_timeout, once: true, ..Options::default() };
//! listen(&mut shelf, &session, &mut inbox, &transfer, &options, &mut |report| println!("{report:?}")).await?;
//! assert_eq!(std::fs::read(directory.join("model/current"))?, b"hello");
//! # Ok(()) }
//! ```

mod apply;
mod disk;
mod error;
mod fetch;
mod shelf;
mod wait;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use millpond_failpoint::{Point, reach};
use millpond_protocol::message::{DeliveryState, Pointer};
use millpond_protocol::{Sha256, limits};
use tokio::time::Instant;

pub use error::ListenError;
pub use shelf::{Shelf, Stage, State};

use disk::at;
use fetch::{Fetched, fetch, write};

use crate::backoff::{Backoff, fraction, random};
use crate::exec::Running;
use crate::session::{Cause, Event, Inbox, Session, Topic, arriving};
use crate::transfer::{Meters, Transfer, is_full};

/// The topics that a session for [`listen`] has. Without [`Topic::ResultData`] small results come by URL too, and so no faster than the
/// limit of the rate.
pub const TOPICS: [Topic; 2] = [Topic::Result, Topic::ResultData];

/// How long the bytes of a small result may take after its pointer, beside the time that they are on their way, before they are
/// fetched by URL.
const DATA: Duration = Duration::from_secs(3);
/// How results are kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Versions that stay.
    pub keep: usize,
    /// A line for the shell that runs for each result: `MILLPOND_FILE`, `_VERSION`, `_NAME`, `_SIZE`, `_SHA256` and `_CONTENT_TYPE`
    /// say what it is.
    pub exec: Option<String>,
    /// How long that may take; then it is killed, and the version has failed.
    pub exec_timeout: Duration,
    /// Returns when one result was shown and its command has ended, or is there already.
    pub once: bool,
    /// With `once`: how long it goes without the server, or without a result that it can have.
    pub patience: Duration,
    /// Shows how far a download is.
    pub meters: Meters,
}

impl Default for Options {
    /// The last three versions, no command (one may take an hour), 30 s of patience.
    fn default() -> Self {
        Self {
            keep: 3,
            exec: None,
            exec_timeout: Duration::from_secs(3_600),
            once: false,
            patience: Duration::from_secs(30),
            meters: Meters::default(),
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Report<'a> {
    Shown(&'a State),
    Applied(&'a State),
    Failed(&'a State, &'a str),
    /// A version could not be fetched now; it is tried again.
    NotFetched(&'a Pointer, &'a str),
    /// There is no connection, for this reason, and another attempt follows. Said when the reason is another one than before.
    Offline(&'a Cause),
    /// The directory of an old version cannot be removed. It is tried again with the next version.
    Trouble {
        path: &'a Path,
        why: &'a io::Error,
    },
}

/// Whether its bytes come over MQTT too.
fn is_small(pointer: &Pointer) -> bool {
    pointer.size <= limits::SMALL_MAX as u64
}

struct Listener<'a> {
    shelf: &'a mut Shelf,
    session: &'a Session,
    transfer: &'a Arc<Transfer>,
    options: &'a Options,
    report: &'a mut (dyn FnMut(Report<'_>) + Send),
    /// Whether the server has said which result is the newest.
    pointed: bool,
    /// What is newer than what is shown.
    wanted: Option<Pointer>,
    /// When to begin with it.
    begin: Option<Instant>,
    data: Option<(u64, Bytes)>,
    download: Option<(PathBuf, BoxFuture<'static, Result<Fetched, String>>)>,
    command: Option<(Running, Instant)>,
    /// When to write again what the disk had no room for.
    save: Option<Instant>,
    backoff: Backoff,
    /// Why there is no connection, as far as that was said.
    offline: Option<Cause>,
    /// Since when the server has to do something.
    since: Instant,
    /// What is in the way of the newest result.
    trouble: Option<String>,
}

/// Keeps `shelf` at the newest result until the session ends.
///
/// # Errors
/// As [`ListenError`] says. Networks that are gone for a while are no error.
pub async fn listen(
    shelf: &mut Shelf,
    session: &Session,
    inbox: &mut Inbox,
    transfer: &Arc<Transfer>,
    options: &Options,
    report: &mut (dyn FnMut(Report<'_>) + Send),
) -> Result<(), ListenError> {
    let mut listener = Listener {
        shelf,
        session,
        transfer,
        options,
        report,
        pointed: false,
        wanted: None,
        begin: None,
        data: None,
        download: None,
        command: None,
        save: None,
        backoff: Backoff::new(Duration::from_secs(2), Duration::from_secs(300)),
        offline: None,
        since: Instant::now(),
        trouble: None,
    };
    // An earlier process showed it and did not live to see the command's end.
    if listener.shelf.state().is_some_and(|state| state.stage == Stage::Shown) {
        listener.apply().await?;
    }
    loop {
        let (begin, save, deadline) = (listener.begin, listener.save, listener.deadline());
        let (mut download, mut command) = (listener.download.take(), listener.command.take());
        tokio::select! {
            event = inbox.next() => {
                (listener.download, listener.command) = (download, command);
                listener.told(event.unwrap_or(Event::Offline(Cause::Closed))).await?;
            }
            fetched = async { match &mut download { Some((_, job)) => job.await, None => std::future::pending().await } } => {
                listener.command = command;
                let partial = download.map(|(partial, _)| partial).unwrap_or_default();
                listener.fetched(&partial, fetched).await?;
            }
            ended = async { match &mut command { Some((running, until)) => ended(running, *until).await, None => std::future::pending().await } } => {
                (listener.download, listener.command) = (download, None);
                listener.applied(ended).await?;
            }
            () = async { match begin { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                (listener.download, listener.command) = (download, command);
                listener.begin().await?;
            }
            () = async { match save { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                (listener.download, listener.command) = (download, command);
                listener.save_again()?;
            }
            () = async { match deadline { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                return Err(listener.in_vain());
            }
        }
        if options.once && listener.is_done()? {
            return Ok(());
        }
    }
}

/// Waits for a command; why it failed, if it did.
async fn ended(running: &mut Running, until: Instant) -> Option<String> {
    match tokio::time::timeout_at(until, running.wait()).await {
        Ok(Ok(status)) if status.success() => None,
        Ok(Ok(status)) => Some(format!("the command ended with {status}")),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => {
            running.stop().await;
            Some("the command took too long and was killed".to_owned())
        }
    }
}

impl Listener<'_> {
    /// Something came from the server.
    async fn told(&mut self, event: Event) -> Result<(), ListenError> {
        match event {
            Event::Online => {
                self.offline = None;
                self.tell().await?;
            }
            Event::Offline(cause @ (Cause::Refused(_) | Cause::Closed)) => {
                return Err(ListenError::Offline(cause));
            }
            Event::Offline(cause @ Cause::Lost(_)) => {
                // By URL what was cut off goes on where it ended.
                if self.wanted.as_ref().is_some_and(is_small) {
                    self.begin = self.begin.map(|begin| begin.min(Instant::now() + DATA));
                }
                self.offline(cause);
            }
            Event::Result(Some(pointer)) => self.pointed(pointer),
            Event::ResultData { version, bytes, .. } => {
                self.data = Some((version, bytes));
                if self.wanted.as_ref().is_some_and(|wanted| wanted.version == version)
                    && self.begin.is_some()
                {
                    self.begin = Some(Instant::now());
                }
            }
            Event::Result(None) | Event::Receipt(..) | Event::Card(_) | Event::Offer(_) => {}
        }
        Ok(())
    }

    fn pointed(&mut self, pointer: Pointer) {
        self.pointed = true;
        // A server that was restored from an older backup gives versions out again: the number alone says nothing.
        let is = |version: u64, sha256: Sha256| version == pointer.version && sha256 == pointer.sha256;
        if self.shelf.state().is_some_and(|state| is(state.version, state.sha256)) {
            (self.wanted, self.begin, self.download, self.trouble) = (None, None, None, None);
            return;
        }
        if self.wanted.as_ref().is_some_and(|wanted| is(wanted.version, wanted.sha256)) {
            // The same, with a fresh URL.
            self.wanted = Some(pointer);
            return;
        }
        let here = self.data.as_ref().is_some_and(|(version, _)| *version == pointer.version);
        let comes = is_small(&pointer) && self.session.config().topics.contains(&Topic::ResultData);
        let wait = match (comes, here) {
            (true, true) => Duration::ZERO,
            (true, false) => DATA + arriving(usize::try_from(pointer.size).unwrap_or(limits::SMALL_MAX)),
            (false, _) => fraction(Duration::from_secs(pointer.spread_s), random()),
        };
        self.backoff.reset();
        self.download = None;
        let begin = Instant::now() + wait;
        (self.wanted, self.begin) = (Some(pointer), Some(begin));
        (self.since, self.trouble) = (begin, None);
    }

    /// Begins with what is wanted, unless the command of the one before still runs.
    async fn begin(&mut self) -> Result<(), ListenError> {
        let Some(pointer) = self.wanted.clone() else {
            self.begin = None;
            return Ok(());
        };
        if self.command.is_some() {
            // Its end is looked for anyway; this is only when to ask again.
            self.begin = Some(Instant::now() + Duration::from_millis(100));
            return Ok(());
        }
        self.begin = None;
        let partial = at(self.shelf.partial(pointer.sha256), self.shelf.own())?;
        let inline = self.data.take().filter(|(version, bytes)| {
            *version == pointer.version
                && bytes.len() as u64 == pointer.size
                && Sha256::of(bytes) == pointer.sha256
        });
        if let Some((_, bytes)) = inline {
            let written = match write(&partial, &bytes) {
                Err(error) if is_full(&error) => Err(error.to_string()),
                written => at(written.map(|()| Ok(Fetched::Whole)), &partial)?,
            };
            // It did not come by URL, and will not be sent again.
            self.data = written.is_err().then_some((pointer.version, bytes));
            return self.fetched(&partial, written).await;
        }
        if self.is_placed(&pointer, &partial).await {
            return self.fetched(&partial, Ok(Fetched::Whole)).await;
        }
        let (session, transfer) = (self.session.clone(), Arc::clone(self.transfer));
        let meter = self.options.meters.meter(pointer.name.as_str(), pointer.size);
        let (path, job) =
            (partial.clone(), async move { fetch(&session, &transfer, pointer, &partial, &meter).await });
        self.download = Some((path, Box::pin(job)));
        Ok(())
    }

    async fn fetched(&mut self, partial: &Path, fetched: Result<Fetched, String>) -> Result<(), ListenError> {
        let Some(pointer) = self.wanted.clone() else { return Ok(()) };
        match fetched {
            Ok(Fetched::Whole) => {
                match self.shelf.show(&pointer, partial) {
                    Err(error) if is_full(&error) => return self.trouble(&pointer, error.to_string()).await,
                    shown => at(shown, self.shelf.directory(pointer.version))?,
                }
                reach(Point::ResultShown);
                (self.wanted, self.since, self.trouble) = (None, Instant::now(), None);
                if let Some(state) = self.shelf.state() {
                    (self.report)(Report::Shown(state));
                }
                self.say(pointer.version, DeliveryState::Fetched, pointer.sha256, None).await.ok();
                self.say(pointer.version, DeliveryState::Verified, pointer.sha256, None).await.ok();
                self.apply().await
            }
            // The pointer to it is on its way.
            Ok(Fetched::Overtaken) => {
                self.begin = Some(Instant::now() + self.backoff.next(random()));
                Ok(())
            }
            Err(why) => self.trouble(&pointer, why).await,
        }
    }

    /// It did not work now, for whatever reason: another time.
    async fn trouble(&mut self, pointer: &Pointer, why: String) -> Result<(), ListenError> {
        (self.report)(Report::NotFetched(pointer, &why));
        self.trouble = Some(format!("version {} could not be fetched: {why}", pointer.version));
        self.say(pointer.version, DeliveryState::Failed, pointer.sha256, Some(why)).await.ok();
        self.begin = Some(Instant::now() + self.backoff.next(random()));
        Ok(())
    }

    /// With `once`: whether a result is shown, applied, and told.
    fn is_done(&self) -> Result<bool, ListenError> {
        let idle = self.pointed && self.wanted.is_none() && self.command.is_none();
        match self.shelf.state().filter(|state| idle && state.told) {
            Some(State { version, stage: Stage::Failed(reason), .. }) => {
                Err(ListenError::Failed { version: *version, reason: reason.clone() })
            }
            state => Ok(state.is_some()),
        }
    }
}

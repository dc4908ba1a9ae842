//! The loop: wait for anything, then change the queue and the spool. One owner, nothing shared.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use millpond_protocol::message::answer::UploadInfo;
use millpond_protocol::message::{Card, Receipt};
use millpond_protocol::{Sha256, Timestamp, UploadId};
use tokio::time::Instant;

use super::awaited::Awaited;
use super::complete::{Found, Statements};
use super::pace::Pacer;
use super::queue::Queue;
use super::ship::Clock;
use super::shipment::Shipment;
use super::watch::{Hearing, Watch};
use super::{Options, Report, SendError, Summary};
use crate::clock::wall_ms;
use crate::large::LargeError;
use crate::session::{Ack, Cause, Event, Inbox, Session, SessionError};
use crate::spool::{Document, Entry, Removal, Spool, SpoolError, Statement, Unread};
use crate::transfer::Meter;

/// Messages on their way at once, that which is read included: the next one is there when the server has taken one.
pub(super) const SHIPMENTS: usize = 2;
/// How often to look whether something came meanwhile, while nothing else happens and more could be sent.
const LOOK: Duration = Duration::from_millis(200);
/// The least that is waited for anything, however little patience there is.
pub(super) const LEAST: Duration = Duration::from_secs(1);
/// Bytes of a file that is not sent before it is known how fast the line is.
const LONG: u64 = 64 << 10;
/// What was read of a shipment.
pub(super) type Read = Vec<(Entry, Result<(Document, Vec<u8>), Unread>)>;

/// Something that was waited for.
pub(super) enum Done {
    /// These have left the spool.
    Removed(Vec<(Entry, Receipt)>, Result<Removal, SpoolError>),
    /// Its files are in memory.
    Loaded(Result<Read, SpoolError>),
    /// `complete`: until when it said that nothing more comes.
    Shipped {
        shipment: Shipment,
        complete: Option<Timestamp>,
        result: Result<(), SessionError>,
    },
    Asked(Entry, Result<UploadInfo, SessionError>),
    Put(Entry, Sha256, Result<Receipt, LargeError>),
    Complete(Statement, Result<(), SessionError>),
    /// Which files statements speak of.
    Searched(Result<Found, SpoolError>),
    /// The server was asked whether it is there; what it said was heard by the session.
    There,
}

/// A run of [`flush`].
pub(super) struct Run<'a> {
    pub(super) spool: &'a mut Spool,
    pub(super) session: &'a Session,
    pub(super) options: &'a Options,
    pub(super) report: &'a mut (dyn FnMut(Report<'_>) + Send),
    pub(super) clock: Clock,
    pub(super) queue: Queue,
    /// From which key on files are of today.
    today: u64,
    /// What of the spool is known: how often it was read, and which statements lay there.
    read: (u64, Option<(u64, i64, i64)>),
    pub(super) card: Option<Card>,
    pub(super) work: FuturesUnordered<BoxFuture<'static, Done>>,
    pub(super) shipments: usize,
    /// The files of one are read.
    pub(super) loading: bool,
    pub(super) asks: usize,
    /// How far the large file is that is on its way.
    pub(super) large: Option<Arc<Meter>>,
    /// Large files that were granted before: perhaps their commits alone are missing.
    pub(super) begun: HashSet<UploadId>,
    /// Large files that did not get through: not tried again by this run.
    pub(super) left: HashSet<UploadId>,
    /// Bytes of the largest file that may still be asked for by URL, and why: there was no room for another one.
    pub(super) no_room: Option<(u64, LargeError)>,
    /// Stored, and not to be removed: they are asked for by the next run.
    pub(super) stays: Vec<Entry>,
    /// Entries that this run leaves alone and that an earlier process may have sent.
    others: Vec<Entry>,
    pub(super) statements: Statements,
    /// SHA-256 of what is on its way.
    pub(super) digests: HashMap<UploadId, Sha256>,
    /// Acknowledged, and without a receipt.
    pub(super) awaited: Awaited,
    /// Receipts that were read and not acted on yet, with their acknowledgements, in order;
    /// without an entry they are of something else, or of long ago.
    pub(super) settled: Vec<(Option<Entry>, Receipt, Option<Ack>)>,
    /// Stored, and still in the spool.
    pub(super) leaving: Vec<(Entry, Receipt)>,
    /// Some of them are being removed.
    pub(super) removing: bool,
    pub(super) online: bool,
    pub(super) offline_since: Instant,
    /// Files that have left the spool since that was synced last.
    pub(super) unsynced: usize,
    /// What the server refuses for now, and how much is sent because of that.
    pub(super) pacer: Pacer,
    pub(super) watch: Watch,
    pub(super) hearing: Hearing,
    pub(super) summary: Summary,
}

/// Sends the spool until it is empty, also of what others put there meanwhile, which takes its place in the order at once, or the
/// first ones are settled. The session needs the topics [`super::TOPICS`]. Only one process may do it at a time: hold
/// [`Spool::sending`].
///
/// # Errors
/// As [`SendError`] says; what is not settled waits in the spool.
pub async fn flush(
    spool: &mut Spool,
    session: &Session,
    inbox: &mut Inbox,
    options: &Options,
    report: &mut (dyn FnMut(Report<'_>) + Send),
) -> Result<Summary, SendError> {
    session.connected(options.patience).await.map_err(offline)?;
    let patience = options.patience.max(LEAST);
    let (offset, anchor) = session.clock_offset(patience).await.map_err(offline)?;
    let now = Timestamp::clamped(wall_ms().saturating_add(offset.ms));
    if let Some(anchor) = anchor {
        // Without it, times of this boot are as good as the wall clock.
        let _ = spool.set_anchor(&anchor);
    }
    let is_ours = |entry: &Entry| !options.only_first || options.first.contains(&entry.upload);
    let is_long = |entry: &Entry| entry.size > LONG && is_ours(entry);
    if !session.is_measured() && spool.entries()?.any(is_long) {
        session.measure(patience).await.map_err(offline)?;
    }
    let clock = Clock { offset_ms: offset.ms, anchors: spool.anchors(), now };
    let day = 86_400_000;
    let today = u64::try_from(now.as_millis()).unwrap_or(0) / day * day;
    let doubtful: HashSet<Entry> = spool.in_flight().into_iter().collect();
    let pacer = pacer(spool, session);
    let mut run = Run {
        spool,
        session,
        options,
        report,
        clock,
        queue: Queue::default(),
        today,
        read: (0, None),
        card: session.card(),
        work: FuturesUnordered::new(),
        shipments: 0,
        loading: false,
        asks: 0,
        large: None,
        begun: HashSet::new(),
        left: options.alone.clone(),
        no_room: None,
        stays: Vec::new(),
        others: Vec::new(),
        statements: Statements::default(),
        digests: HashMap::new(),
        awaited: Awaited::default(),
        settled: Vec::new(),
        leaving: Vec::new(),
        removing: false,
        online: session.is_connected(),
        offline_since: Instant::now(),
        unsynced: 0,
        pacer,
        watch: Watch::begin(),
        hearing: Hearing::new(patience, Instant::now()),
        summary: Summary::default(),
    };
    let sent = run.send_all(inbox, doubtful).await;
    // Also of what was sent before it failed.
    let cleared = run.clear_all().await;
    let summary = sent?;
    cleared?;
    Ok(summary)
}

/// Goes on with the pause that was noted, if it was for this member.
fn pacer(spool: &Spool, session: &Session) -> Pacer {
    let rest = spool.rest().filter(|rest| rest.who == who(session));
    rest.map_or_else(Pacer::default, |rest| {
        // One that is over already is over: a file is tried.
        Pacer::resume(&rest, rest.left(wall_ms()), Instant::now())
    })
}

/// Whose refusals are noted.
pub(super) fn who(session: &Session) -> String {
    format!("{}/{}", session.config().pool, session.config().member)
}

fn offline(error: SessionError) -> SendError {
    match error {
        SessionError::Offline(cause) => SendError::Offline(cause),
        SessionError::Unanswered(_) => SendError::Offline(Cause::Lost(error.to_string())),
        error => error.into(),
    }
}

impl Run<'_> {
    /// Sends until nothing is left.
    async fn send_all(
        &mut self,
        inbox: &mut Inbox,
        mut doubtful: HashSet<Entry>,
    ) -> Result<Summary, SendError> {
        let options = self.options;
        let run = self;
        loop {
            // Before the entries: what was spooled before a statement is among them.
            let mark = run.spool.statements_mark();
            run.statements.read(run.spool, &run.clock)?;
            let (left, mut others) = (&run.left, 0);
            let entries = run.spool.entries()?.filter(|entry| {
                let is_other = options.only_first && !options.first.contains(&entry.upload);
                others += u64::from(is_other);
                !is_other && !left.contains(&entry.upload)
            });
            run.queue = Queue::new(entries, &options.first, run.today, &doubtful);
            run.read = (run.spool.readings(), mark);
            run.statements.keep(|upload| run.spool.waits(upload));
            // In doubt they stay, for the run that sends them.
            doubtful.retain(|entry| options.only_first && !options.first.contains(&entry.upload));
            run.others = doubtful.iter().cloned().collect();
            if run.finished() {
                run.summary.left = (run.queue.len() + run.left.len()) as u64 + others;
                // The receipt of a large file can be faster than the answer to its commit.
                run.summary.bytes += run.large.take().map_or(0, |meter| meter.done());
                run.note_in_flight();
                return Ok(run.summary);
            }
            run.drain(inbox).await?;
        }
    }

    fn finished(&self) -> bool {
        self.queue.len() == 0 && !self.statements.is_due()
    }

    /// Notes what may have been sent. A hint: without it bytes may go twice after a crash.
    pub(super) fn note_in_flight(&self) {
        let _ = self.spool.set_in_flight(self.queue.on_the_way().chain(&self.others).chain(&self.stays));
    }

    /// Works until the queue holds nothing more.
    async fn drain(&mut self, inbox: &mut Inbox) -> Result<(), SendError> {
        while !self.finished() {
            self.look()?;
            self.begin()?;
            self.clear();
            self.unless_it_rests()?;
            let deadline = self.deadline();
            tokio::select! {
                event = inbox.next() => {
                    self.told(event.unwrap_or(Event::Offline(Cause::Closed)))?;
                    // What else has come is settled with it: one change of the directory for all.
                    while let Some(event) = inbox.try_next() {
                        self.told(event)?;
                    }
                    self.settle().await?;
                }
                Some(done) = self.work.next(), if !self.work.is_empty() => self.done(done).await?,
                () = tokio::time::sleep_until(deadline) => self.overdue()?,
            }
        }
        Ok(())
    }

    /// Takes in what came meanwhile, files and statements.
    fn look(&mut self) -> Result<(), SendError> {
        if self.removing {
            // It would be taken for a change by others. It is over soon.
            return Ok(());
        }
        self.search()?;
        let Self { spool, queue, statements, clock, options, left, today, read, .. } = self;
        // Before the entries: what was spooled before a statement is among them.
        let mark = spool.statements_mark();
        if read.1 != mark {
            statements.read(spool, clock)?;
            read.1 = mark;
        }
        drop(spool.entries()?);
        if read.0 != spool.readings() {
            read.0 = spool.readings();
            let is_ours = |entry: &&Entry| {
                (!options.only_first || options.first.contains(&entry.upload))
                    && !left.contains(&entry.upload)
            };
            queue.take_in(spool.entries()?.filter(is_ours), *today);
        }
        Ok(())
    }

    fn deadline(&self) -> Instant {
        let receipts = self.awaited.until();
        let offline = (!self.online).then(|| self.offline_since + self.options.patience);
        let silence = self.online.then(|| {
            let (heard, gone) = self.silence();
            self.hearing.deadline(heard, gone)
        });
        let look = (self.online && self.shipments < SHIPMENTS).then(|| Instant::now() + LOOK);
        let rest = self.pacer.until(Instant::now());
        receipts
            .into_iter()
            .chain(offline)
            .chain(silence)
            .chain(look)
            .chain(rest)
            .fold(self.watch.deadline(), Instant::min)
    }
}

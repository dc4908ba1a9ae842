//! The loop: wait for anything, then change the queue and the spool. One owner, nothing shared.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use millpond_protocol::access::Op;
use millpond_protocol::message::answer::UploadInfo;
use millpond_protocol::message::{Card, Receipt};
use millpond_protocol::{Sha256, Timestamp, UploadId};
use serde_json::json;
use tokio::time::Instant;

use super::complete::Statements;
use super::queue::{Queue, Shipment, Sizes};
use super::ship::{self, Clock, Loaded, Message};
use super::watch::{Hearing, Watch};
use super::{Options, Report, SendError, Summary};
use crate::clock::wall_ms;
use crate::large::{self, LargeError};
use crate::session::{Ack, Cause, Event, Inbox, Session, SessionError};
use crate::spool::{Entry, Spool, SpoolError, Statement};
use crate::transfer::Meter;

/// Messages on their way at once: the next one is there when the server has taken one.
const SHIPMENTS: usize = 2;
/// How often to look whether something came meanwhile, while nothing else happens and more could be sent.
const LOOK: Duration = Duration::from_millis(200);
/// Questions on their way at once.
const ASKS: usize = 16;
/// How long one answer may take.
const ASK: Duration = Duration::from_secs(30);
/// The least that is waited for anything, however little patience there is.
pub(super) const LEAST: Duration = Duration::from_secs(1);
/// Bytes of a file that is not sent before it is known how fast the line is.
const LONG: u64 = 64 << 10;
/// Something that was waited for.
pub(super) enum Done {
    /// `complete`: until when it said that nothing more comes.
    Shipped {
        shipment: Shipment,
        complete: Option<Timestamp>,
        result: Result<(), SessionError>,
    },
    Asked(Entry, Result<UploadInfo, SessionError>),
    Put(Entry, Sha256, Result<Receipt, LargeError>),
    Complete(Statement, Result<(), SessionError>),
    /// The server was asked whether it is there; what it said was heard by the session.
    There,
}

/// Until when the receipts of these have time; with the reason code if they were refused.
pub(super) type Awaited = (Instant, Vec<Entry>, Option<u8>);

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
    pub(super) asks: usize,
    /// How far the large file is that is on its way.
    pub(super) large: Option<Arc<Meter>>,
    /// Large files that did not get through: not tried again by this run.
    pub(super) left: HashSet<UploadId>,
    /// Entries that this run leaves alone and that an earlier process may have sent.
    others: Vec<Entry>,
    pub(super) statements: Statements,
    /// SHA-256 of what is on its way.
    pub(super) digests: HashMap<UploadId, Sha256>,
    /// Acknowledged, and until when their receipts have time; with the reason code if they were refused.
    pub(super) awaited: Vec<Awaited>,
    /// Receipts that were read and not acted on yet, with their acknowledgements, in order;
    /// without an entry they are of something else, or of long ago.
    pub(super) settled: Vec<(Option<Entry>, Receipt, Option<Ack>)>,
    pub(super) online: bool,
    pub(super) offline_since: Instant,
    /// Files that have left the spool since that was synced last.
    pub(super) unsynced: usize,
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
        asks: 0,
        large: None,
        left: HashSet::new(),
        others: Vec::new(),
        statements: Statements::default(),
        digests: HashMap::new(),
        awaited: Vec::new(),
        settled: Vec::new(),
        online: session.is_connected(),
        offline_since: Instant::now(),
        unsynced: 0,
        watch: Watch::begin(),
        hearing: Hearing::new(patience, Instant::now()),
        summary: Summary::default(),
    };
    let sent = run.send_all(inbox, doubtful).await;
    // Also of what was sent before it failed.
    run.spool.sync_removed()?;
    sent
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
            run.statements = Statements::read(run.spool, &run.clock)?;
            let (left, mut others) = (&run.left, 0);
            let entries = run.spool.entries()?.filter(|entry| {
                let is_other = options.only_first && !options.first.contains(&entry.upload);
                others += u64::from(is_other);
                !is_other && !left.contains(&entry.upload)
            });
            run.queue = Queue::new(entries, &options.first, run.today, &doubtful);
            run.read = (run.spool.readings(), mark);
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
    fn note_in_flight(&self) {
        let _ = self.spool.set_in_flight(self.queue.on_the_way().chain(&self.others));
    }

    /// Works until the queue holds nothing more.
    async fn drain(&mut self, inbox: &mut Inbox) -> Result<(), SendError> {
        while !self.finished() {
            self.look()?;
            self.begin()?;
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
        let Self { spool, queue, statements, clock, options, left, today, read, .. } = self;
        // Before the entries: what was spooled before a statement is among them.
        let mark = spool.statements_mark();
        if read.1 != mark {
            statements.read_on(spool, clock)?;
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

    /// Begins whatever can begin now.
    fn begin(&mut self) -> Result<(), SendError> {
        let Some(card) = self.card.as_ref().filter(|_| self.online) else { return Ok(()) };
        let sizes = Sizes {
            publish_max: card.limits.publish_max,
            inline: self.session.inline(),
            bundle: self.options.bundle.min(card.limits.bundle_max / 2).min(self.session.message()),
        };
        let bundle_max = usize::try_from(card.limits.bundle_max).unwrap_or(usize::MAX);
        self.tell();
        for entry in self.queue.doubtful(ASKS.saturating_sub(self.asks)) {
            self.ask(entry);
        }
        while self.shipments < SHIPMENTS {
            match self.queue.next(&sizes, self.large.is_none()) {
                Some(Shipment::Large(entry)) => self.put(entry)?,
                Some(shipment) => self.ship(shipment, bundle_max)?,
                None => break,
            }
        }
        Ok(())
    }

    fn ask(&mut self, entry: Entry) {
        self.asks += 1;
        let session = self.session.clone();
        self.work.push(Box::pin(async move {
            let answer = session.ask(Op::Status, &json!({ "upload": entry.upload }), ASK).await;
            Done::Asked(entry, answer)
        }));
    }

    fn ship(&mut self, shipment: Shipment, bundle_max: usize) -> Result<(), SendError> {
        let mut files = Vec::new();
        for entry in shipment.entries() {
            match self.spool.load(entry) {
                Ok((document, bytes)) => files.push(Loaded { entry: entry.clone(), document, bytes }),
                Err(SpoolError::Gone(_)) => self.let_go(&entry.upload),
                Err(SpoolError::Damaged { why, .. }) => self.damaged(entry, &why),
                Err(error) => return Err(error.into()),
            }
        }
        let mut complete = None;
        let message = loop {
            let message = match files.len() {
                0 => return Ok(()),
                1 => {
                    let Some(file) = files.first_mut() else { return Ok(()) };
                    let bytes = std::mem::take(&mut file.bytes);
                    let file = Loaded { entry: file.entry.clone(), document: file.document.clone(), bytes };
                    break Message::single(file, &self.clock);
                }
                _ => {
                    complete = self.statements.with_bundle(&files);
                    Message::bundle(&files, complete, &self.clock)
                }
            };
            match message {
                Ok(message) if message.len() <= bundle_max => break message,
                // Long descriptions: half of it will fit sooner.
                _ => {
                    if let Some(through) = complete.take() {
                        self.statements.not_with_bundle(through);
                    }
                    let rest: Vec<Entry> = files.drain(files.len() / 2..).map(|file| file.entry).collect();
                    self.queue.again(&rest);
                }
            }
        };
        for file in &files {
            self.digests.insert(file.entry.upload.clone(), file.document.sha256);
            self.summary.bytes += file.entry.size;
        }
        let mut entries: Vec<Entry> = files.into_iter().map(|file| file.entry).collect();
        self.summary.bundles += u64::from(entries.len() > 1);
        let shipment = match (entries.len(), entries.pop()) {
            (1, Some(entry)) => Shipment::Single(entry),
            (_, last) => Shipment::Bundle(entries.into_iter().chain(last).collect()),
        };
        // Before the first byte leaves.
        self.note_in_flight();
        self.shipments += 1;
        let (session, throttle) = (self.session.clone(), Arc::clone(self.options.transfer.throttle()));
        self.work.push(Box::pin(async move {
            throttle.pass(message.len()).await;
            let result = message.send(&session).await;
            Done::Shipped { shipment, complete, result }
        }));
        Ok(())
    }

    /// Begins a large file, straight from the spool's copy.
    fn put(&mut self, entry: Entry) -> Result<(), SendError> {
        let document = match self.spool.describe(&entry) {
            Ok(document) => document,
            Err(SpoolError::Gone(_)) => {
                self.let_go(&entry.upload);
                return Ok(());
            }
            Err(SpoolError::Damaged { why, .. }) => {
                self.damaged(&entry, &why);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.note_in_flight();
        let (put, sha256) = (ship::put(&document, &self.clock), document.sha256);
        let (path, upload) = (self.spool.path(&entry), entry.upload.clone());
        let (session, transfer) = (self.session.clone(), Arc::clone(&self.options.transfer));
        let meter = Arc::new(self.options.meters.meter(document.about.name.as_str(), document.size));
        self.large = Some(Arc::clone(&meter));
        self.work.push(Box::pin(async move {
            let sent = large::upload(&session, &transfer, &path, &upload, put, &meter).await;
            Done::Put(entry, sha256, sent)
        }));
        Ok(())
    }

    fn damaged(&mut self, entry: &Entry, why: &str) {
        self.let_go(&entry.upload);
        self.summary.damaged += 1;
        (self.report)(Report::Damaged(entry, why));
    }

    fn deadline(&self) -> Instant {
        let receipts = self.awaited.iter().map(|(until, ..)| *until);
        let offline = (!self.online).then(|| self.offline_since + self.options.patience);
        let silence = self.online.then(|| {
            let (heard, gone) = self.silence();
            self.hearing.deadline(heard, gone)
        });
        let look = (self.online && self.shipments < SHIPMENTS).then(|| Instant::now() + LOOK);
        receipts.chain(offline).chain(silence).chain(look).fold(self.watch.deadline(), Instant::min)
    }
}

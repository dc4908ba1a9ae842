//! The loop: wait for anything, then change the queue and the spool. One owner, nothing shared.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use millpond_protocol::access::Op;
use millpond_protocol::message::answer::UploadInfo;
use millpond_protocol::message::{Card, Outcome, Receipt};
use millpond_protocol::{Code, Refusal, Sha256, UploadId};
use serde_json::json;
use tokio::time::Instant;

use super::queue::{Queue, Shipment, Sizes};
use super::ship::{Clock, Loaded, Message};
use super::{Options, Report, SendError, Summary};
use crate::clock::Stamp;
use crate::session::{Ack, Cause, Event, Inbox, Session, SessionError};
use crate::spool::{Entry, Spool, SpoolError};

/// Messages on their way at once: the next one is there when the server has taken one.
const SHIPMENTS: usize = 2;
/// Questions on their way at once.
const ASKS: usize = 16;
/// How long one answer may take.
const ASK: Duration = Duration::from_secs(30);
/// How long a receipt may take after the acknowledgement, before it is asked for.
const RECEIPT: Duration = Duration::from_secs(20);
/// How long nothing may be settled: longer than the largest message takes on the slowest link.
const STUCK: Duration = Duration::from_secs(2_400);

/// Something that was waited for.
enum Done {
    Shipped(Shipment, Result<(), SessionError>),
    Asked(Entry, Result<UploadInfo, SessionError>),
}

struct Run<'a> {
    spool: &'a mut Spool,
    session: &'a Session,
    options: &'a Options,
    report: &'a mut (dyn FnMut(Report<'_>) + Send),
    clock: Clock,
    queue: Queue,
    card: Option<Card>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    shipments: usize,
    asks: usize,
    /// SHA-256 of what is on its way.
    digests: HashMap<UploadId, Sha256>,
    /// Acknowledged, and until when their receipts have time; with the reason code if they were refused.
    awaited: Vec<(Instant, Vec<Entry>, Option<u8>)>,
    /// Receipts that were read and not acted on yet, with their acknowledgements, in order;
    /// without an entry they are of something else, or of long ago.
    settled: Vec<(Option<Entry>, Receipt, Option<Ack>)>,
    online: bool,
    offline_since: Instant,
    progress: Instant,
    summary: Summary,
}

/// Sends the spool until it is empty (also of what others put there meanwhile), or the first ones are settled. The session needs the topics [`super::TOPICS`].
/// Only one process may do it at a time: hold [`Spool::sending`].
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
    let offset = session.clock_offset(ASK).await?;
    let now = Stamp::now();
    if let Some(anchor) = now.anchor(offset.ms) {
        // Without it, times of this boot are as good as the wall clock.
        let _ = spool.set_anchor(&anchor);
    }
    let clock = Clock { offset_ms: offset.ms, anchors: spool.anchors() };
    let day = 86_400_000;
    let today = u64::try_from(now.wall_ms.saturating_add(offset.ms)).unwrap_or(0) / day * day;
    let mut doubtful: HashSet<Entry> = spool.in_flight().into_iter().collect();
    let mut run = Run {
        spool,
        session,
        options,
        report,
        clock,
        queue: Queue::default(),
        card: None,
        work: FuturesUnordered::new(),
        shipments: 0,
        asks: 0,
        digests: HashMap::new(),
        awaited: Vec::new(),
        settled: Vec::new(),
        online: true,
        offline_since: Instant::now(),
        progress: Instant::now(),
        summary: Summary::default(),
    };
    loop {
        run.queue = Queue::new(run.spool.entries()?, &options.first, today, &doubtful);
        doubtful.clear();
        if run.finished() {
            run.summary.left = run.queue.len() as u64;
            let _ = run.spool.set_in_flight(run.queue.on_the_way());
            return Ok(run.summary);
        }
        run.drain(inbox).await?;
    }
}

fn offline(error: SessionError) -> SendError {
    match error {
        SessionError::Offline(cause) => SendError::Offline(cause),
        error => error.into(),
    }
}

impl Run<'_> {
    fn finished(&self) -> bool {
        self.queue.len() == 0 || (self.options.only_first && !self.queue.holds(&self.options.first))
    }

    /// Works until the queue holds nothing more.
    async fn drain(&mut self, inbox: &mut Inbox) -> Result<(), SendError> {
        while !self.finished() {
            self.begin()?;
            let deadline = self.deadline();
            tokio::select! {
                event = inbox.next() => {
                    self.told(event.unwrap_or(Event::Offline(Cause::Closed)))?;
                    // What else has come is settled with it: one sync of the directory for all.
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

    /// Begins whatever can begin now.
    fn begin(&mut self) -> Result<(), SendError> {
        let Some(card) = self.card.as_ref().filter(|_| self.online) else { return Ok(()) };
        let sizes = Sizes {
            publish_max: card.limits.publish_max,
            bundle: self.options.bundle.min(card.limits.bundle_max / 2),
        };
        let bundle_max = usize::try_from(card.limits.bundle_max).unwrap_or(usize::MAX);
        for entry in self.queue.doubtful(ASKS.saturating_sub(self.asks)) {
            self.ask(entry);
        }
        while self.shipments < SHIPMENTS {
            let Some(shipment) = self.queue.next(&sizes, false) else { break };
            self.ship(shipment, bundle_max)?;
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
                Err(SpoolError::Gone(_)) => self.queue.settled(&entry.upload),
                Err(SpoolError::Damaged { why, .. }) => {
                    self.queue.settled(&entry.upload);
                    self.summary.damaged += 1;
                    (self.report)(Report::Damaged(entry, &why));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let message = loop {
            let message = match files.len() {
                0 => return Ok(()),
                1 => {
                    let Some(file) = files.first_mut() else { return Ok(()) };
                    let bytes = std::mem::take(&mut file.bytes);
                    let file = Loaded { entry: file.entry.clone(), document: file.document.clone(), bytes };
                    break Message::single(file, &self.clock);
                }
                _ => Message::bundle(&files, &self.clock),
            };
            match message {
                Ok(message) if message.len() <= bundle_max => break message,
                // Long descriptions: half of it will fit sooner.
                _ => {
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
        // Before the first byte leaves. A hint: without it bytes may go twice after a crash.
        let _ = self.spool.set_in_flight(self.queue.on_the_way());
        self.shipments += 1;
        let (session, throttle) = (self.session.clone(), Arc::clone(&self.options.throttle));
        self.work.push(Box::pin(async move {
            throttle.pass(message.len()).await;
            let sent = message.send(&session).await;
            Done::Shipped(shipment, sent)
        }));
        Ok(())
    }

    /// Something came from the server.
    fn told(&mut self, event: Event) -> Result<(), SendError> {
        match event {
            Event::Online => self.online = true,
            Event::Offline(cause @ (Cause::Refused(_) | Cause::Closed)) => {
                return Err(SendError::Offline(cause));
            }
            Event::Offline(Cause::Lost(_)) => {
                if std::mem::replace(&mut self.online, false) {
                    self.offline_since = Instant::now();
                }
            }
            Event::Card(card) => self.card = Some(card),
            Event::Receipt(receipt, ack) => {
                let entry = self.queue.sent(&receipt.upload).cloned();
                self.settled.push((entry, receipt, Some(ack)));
            }
            Event::Result(_) | Event::ResultData { .. } | Event::Offer(_) => {}
        }
        Ok(())
    }

    /// Acts on the receipts that were read, and only then acknowledges them.
    async fn settle(&mut self) -> Result<(), SendError> {
        let (mut acks, mut stored) = (Vec::new(), Vec::new());
        for (entry, receipt, ack) in std::mem::take(&mut self.settled) {
            let Some(entry) = entry else {
                acks.extend(ack);
                continue;
            };
            let digest = self.digests.get(&entry.upload).copied();
            let refusal = match receipt.outcome {
                Outcome::Stored if receipt.sha256 == digest => None,
                // The receipt of other bytes that were there before; the refusal of these comes too.
                Outcome::Stored => {
                    acks.extend(ack);
                    continue;
                }
                _ => Some(
                    receipt
                        .error
                        .clone()
                        .unwrap_or_else(|| Refusal::new(Code::Rejected, "no reason was given")),
                ),
            };
            match refusal {
                None => stored.push((entry, receipt)),
                Some(refusal) => self.refuse(&entry, refusal)?,
            }
            acks.extend(ack);
        }
        let entries: Vec<Entry> = stored.iter().map(|(entry, _)| entry.clone()).collect();
        if !entries.is_empty() {
            self.spool.remove(&entries)?;
            self.progress = Instant::now();
        }
        for (entry, receipt) in &stored {
            self.let_go(&entry.upload);
            self.summary.stored += 1;
            (self.report)(Report::Stored(entry, receipt));
        }
        for ack in acks {
            ack.done().await;
        }
        Ok(())
    }

    fn refuse(&mut self, entry: &Entry, refusal: Refusal) -> Result<(), SendError> {
        if refusal.code == Code::Unauthorized {
            return Err(SendError::NotAllowed(refusal));
        }
        self.spool.refuse(entry, &refusal)?;
        self.let_go(&entry.upload);
        self.progress = Instant::now();
        self.summary.refused += 1;
        (self.report)(Report::Refused(entry, &refusal));
        Ok(())
    }

    fn let_go(&mut self, upload: &UploadId) {
        self.queue.settled(upload);
        self.digests.remove(upload);
    }

    async fn done(&mut self, done: Done) -> Result<(), SendError> {
        match done {
            Done::Shipped(shipment, result) => {
                self.shipments -= 1;
                let until = Instant::now() + RECEIPT;
                match (result, shipment) {
                    (Ok(()), shipment) => {
                        self.progress = Instant::now();
                        self.awaited.push((until, shipment.entries().to_vec(), None));
                    }
                    // A bundle is refused as a whole for the fault of one.
                    (Err(SessionError::Refused(_)), Shipment::Bundle(entries)) => self.queue.alone(&entries),
                    // The receipt says why.
                    (Err(SessionError::Refused(code)), shipment) => {
                        self.awaited.push((until, shipment.entries().to_vec(), Some(code)));
                    }
                    (Err(_), shipment) => self.queue.doubt(shipment.entries()),
                }
                Ok(())
            }
            Done::Asked(entry, answer) => {
                self.asks -= 1;
                self.asked(entry, answer).await
            }
        }
    }

    async fn asked(
        &mut self,
        entry: Entry,
        answer: Result<UploadInfo, SessionError>,
    ) -> Result<(), SendError> {
        if self.queue.sent(entry.upload.as_str()).is_none() {
            // Its receipt was faster.
            return Ok(());
        }
        let info = match answer {
            Ok(info) => info,
            Err(SessionError::Answer(refusal)) if !refusal.code.is_temporary() => {
                // Nothing of ours has that id.
                self.queue.again(std::slice::from_ref(&entry));
                return Ok(());
            }
            Err(_) => {
                self.queue.doubt(std::slice::from_ref(&entry));
                return Ok(());
            }
        };
        let digest = match self.spool.describe(&entry) {
            Ok(document) => document.sha256,
            Err(SpoolError::Gone(_) | SpoolError::Damaged { .. }) => {
                self.let_go(&entry.upload);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.digests.insert(entry.upload.clone(), digest);
        if info.sha256 != digest {
            let refusal =
                Refusal::new(Code::Conflict, format!("upload {} exists with other bytes", entry.upload));
            return self.refuse(&entry, refusal);
        }
        let receipt = Receipt {
            upload: info.upload.to_string(),
            outcome: info.outcome,
            batch: info.batch,
            event_time: Some(info.event_time),
            late: info.late,
            clamped: info.clamped,
            sha256: Some(info.sha256),
            bundle: None,
            error: info
                .rule
                .map(|rule| Refusal::new(Code::Rejected, format!("against the pool's rule {rule}"))),
        };
        self.settled.push((Some(entry), receipt, None));
        self.settle().await
    }

    fn deadline(&self) -> Instant {
        let receipts = self.awaited.iter().map(|(until, ..)| *until);
        let stuck = self.progress + STUCK;
        let offline = (!self.online).then(|| self.offline_since + self.options.patience);
        receipts.chain(offline).fold(stuck, Instant::min)
    }

    /// Some deadline has passed.
    fn overdue(&mut self) -> Result<(), SendError> {
        let now = Instant::now();
        if !self.online && now >= self.offline_since + self.options.patience {
            return Err(SendError::Offline(Cause::Lost(
                "the connection was lost and did not come back".into(),
            )));
        }
        if now >= self.progress + STUCK {
            return Err(SendError::Stuck(STUCK));
        }
        let (due, waiting) =
            std::mem::take(&mut self.awaited).into_iter().partition(|(until, ..)| *until <= now);
        self.awaited = waiting;
        let due: Vec<(Instant, Vec<Entry>, Option<u8>)> = due;
        for (_, entries, refused) in due {
            let Some(code) = refused else {
                self.queue.doubt(&entries);
                continue;
            };
            for entry in entries {
                if self.queue.sent(entry.upload.as_str()).is_some() {
                    let code_name = if code == 0x87 { Code::Unauthorized } else { Code::Rejected };
                    let what = format!("refused with MQTT reason 0x{code:02x}, and no receipt said why");
                    self.refuse(&entry, Refusal::new(code_name, what))?;
                }
            }
        }
        Ok(())
    }
}

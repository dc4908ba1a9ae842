//! What leaves: files are read, and go as messages, or by URL.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use millpond_failpoint::{Point, reach};
use millpond_protocol::access::Op;
use serde_json::json;
use tokio::time::Instant;

use super::pace::Pace;
use super::run::{Done, Read, Run, SHIPMENTS};
use super::ship::{Loaded, Message};
use super::shipment::{Shipment, Sizes};
use super::{Report, SendError};
use crate::spool::{Entry, SpoolError};
use crate::transfer::TransferError;

/// Questions on their way at once.
const ASKS: usize = 16;
/// Files that are stored and not removed yet, about, above which no more are sent: of those a crash leaves to be asked for.
const LEAVING: usize = 2_000;
/// How long one answer may take.
const ASK: Duration = Duration::from_secs(30);

impl Run<'_> {
    /// Begins whatever can begin now.
    pub(super) fn begin(&mut self) -> Result<(), SendError> {
        let Some(card) = self.card.as_ref().filter(|_| self.online) else { return Ok(()) };
        let at_once = self.options.transfer.throttle().message();
        let bundle = self.options.bundle.min(card.limits.bundle_max / 2).min(self.session.message());
        let sizes = Sizes {
            publish_max: card.limits.publish_max,
            inline: self.session.inline().min(at_once),
            bundle: bundle.min(at_once),
        };
        self.tell();
        for entry in self.queue.doubtful(ASKS.saturating_sub(self.asks)) {
            self.ask(entry);
        }
        let (at_once, files) = match self.pacer.pace(Instant::now()) {
            Pace::Free => (SHIPMENTS, usize::MAX),
            Pace::Nothing => return Ok(()),
            Pace::Few(files) => (1, files),
        };
        // One after the other, so that they leave in order.
        while self.shipments < at_once && !self.loading && self.leaving.len() < LEAVING {
            match self.queue.next_few(&sizes, self.large.is_none(), files) {
                Some(Shipment::Large(entry)) => self.put(entry)?,
                Some(shipment) => self.load(shipment),
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

    /// Reads the files of a shipment, beside everything else: receipts are acted on meanwhile.
    fn load(&mut self, shipment: Shipment) {
        self.shipments += 1;
        self.loading = true;
        let (reader, entries) = (self.spool.reader(), shipment.into_entries());
        let reading = tokio::task::spawn_blocking(move || {
            let read = |entry: Entry| {
                let loaded = reader.load(&entry);
                (entry, loaded)
            };
            entries.into_iter().map(read).collect()
        });
        let path = self.spool.path_of_waiting();
        self.work.push(Box::pin(async move {
            let read =
                reading.await.map_err(|error| SpoolError::Io { path, source: io::Error::other(error) });
            Done::Loaded(read)
        }));
    }

    /// Sends what was read.
    pub(super) fn ship(&mut self, read: Read) -> Result<(), SendError> {
        self.shipments -= 1;
        self.loading = false;
        let Some(card) = self.card.as_ref().filter(|_| self.online) else {
            // Nothing of it has left.
            let entries: Vec<Entry> = read.into_iter().map(|(entry, _)| entry).collect();
            self.queue.again(&entries);
            return Ok(());
        };
        let bundle_max = usize::try_from(card.limits.bundle_max).unwrap_or(usize::MAX);
        let mut files = Vec::new();
        for (entry, loaded) in read {
            if self.queue.sent(entry.upload.as_str()).is_none() {
                // Its receipt was faster.
                continue;
            }
            match loaded.map_err(|unread| self.spool.unread(&entry, unread)) {
                Ok((document, bytes)) => files.push(Loaded { entry, document, bytes }),
                Err(SpoolError::Gone(_)) => self.let_go(&entry.upload),
                Err(SpoolError::Damaged { why, .. }) => self.damaged(&entry, &why),
                Err(error) => self.unread(entry, error)?,
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
        reach(Point::FlushNoted);
        self.shipments += 1;
        let (session, throttle) = (self.session.clone(), Arc::clone(self.options.transfer.throttle()));
        self.work.push(Box::pin(async move {
            throttle.pass(message.len()).await;
            let result = message.send(&session).await;
            Done::Shipped { shipment, complete, result }
        }));
        Ok(())
    }

    /// One that the disk does not give now keeps no other from being sent.
    pub(super) fn unread(&mut self, entry: Entry, error: SpoolError) -> Result<(), SendError> {
        let SpoolError::Io { path, source } = error else { return Err(error.into()) };
        self.leave(entry, &TransferError::Local { path, source }.into());
        Ok(())
    }

    pub(super) fn damaged(&mut self, entry: &Entry, why: &str) {
        self.let_go(&entry.upload);
        if self.spool.holds(entry) {
            // It could not be put aside, and would be read again and again.
            self.left.insert(entry.upload.clone());
        }
        self.summary.damaged += 1;
        (self.report)(Report::Damaged(entry, why));
    }
}

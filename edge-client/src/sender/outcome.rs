//! What becomes of files: receipts, answers and refusals.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use millpond_failpoint::{Point, reach};
use millpond_protocol::message::answer::UploadInfo;
use millpond_protocol::message::{Outcome, Receipt};
use millpond_protocol::{Code, Refusal, Sha256, UploadId};
use tokio::time::Instant;

use super::run::{Done, Run};
use super::shipment::Shipment;
use super::{Report, SendError};
use crate::session::{Cause, Event, SessionError};
use crate::spool::{Entry, Removal, SpoolError};
use crate::transfer::TransferError;

/// Files that may have left the spool without a sync, about.
const UNSYNCED: usize = 1_000;

/// Files that are removed at a time, at the most.
const REMOVED: usize = 256;

/// What a receipt says of the file that lies in the spool.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stored,
    Refused(Refusal),
    /// It is not taken now, and is good for another time.
    Later(Refusal),
    /// It stays as it is.
    Nothing,
}

fn verdict(receipt: &Receipt, digest: Option<&Sha256>) -> Verdict {
    if receipt.outcome == Outcome::Stored {
        // Of other bytes that were there before: the refusal of these comes too.
        return if receipt.sha256.as_ref() == digest { Verdict::Stored } else { Verdict::Nothing };
    }
    match &receipt.error {
        // A grant has ended: the file is as good as before, and who sends it learns what to do.
        Some(refusal) if refusal.code == Code::NotFound => Verdict::Nothing,
        // That of a PUBLISH names no hash.
        Some(refusal) if refusal.code == Code::Mismatch && receipt.sha256.is_some() => Verdict::Nothing,
        Some(refusal) if refusal.code.is_temporary() => Verdict::Later(refusal.clone()),
        Some(refusal) => Verdict::Refused(refusal.clone()),
        None => Verdict::Refused(Refusal::new(Code::Rejected, "no reason was given")),
    }
}

impl Run<'_> {
    /// Something came from the server.
    pub(super) fn told(&mut self, event: Event) -> Result<(), SendError> {
        match event {
            Event::Online => {
                self.online = true;
                self.hearing.answered();
            }
            Event::Offline(cause @ (Cause::Refused(_) | Cause::Closed)) => {
                return Err(SendError::Offline(cause));
            }
            Event::Offline(Cause::Lost(_)) => {
                self.hearing.answered();
                if std::mem::replace(&mut self.online, false) {
                    // Of a server that was silent at the end, that counts too.
                    let now = Instant::now();
                    let half = self.options.patience / 2;
                    self.offline_since =
                        now.checked_sub(half).map_or(now, |then| self.session.heard().max(then)).min(now);
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

    /// Acts on the receipts that were read, and acknowledges them. What is stored leaves the spool beside that: should this process
    /// die before, it is noted as one that may have been sent, and its fate is asked for.
    pub(super) async fn settle(&mut self) -> Result<(), SendError> {
        let (mut acks, mut refused, before) = (Vec::new(), Vec::new(), self.leaving.len());
        for (entry, receipt, ack) in std::mem::take(&mut self.settled) {
            acks.extend(ack);
            let Some(entry) = entry else { continue };
            match verdict(&receipt, self.digests.get(&entry.upload)) {
                Verdict::Stored => {
                    self.queue.leaves(&entry.upload);
                    self.statements.settled(&entry.upload);
                    self.leaving.push((entry, receipt));
                }
                Verdict::Refused(refusal) => refused.push((entry, refusal)),
                Verdict::Later(refusal) => {
                    self.queue.not_now(std::slice::from_ref(&entry));
                    self.rest(&refusal);
                }
                Verdict::Nothing => {}
            }
        }
        self.forget_receipted();
        if self.leaving.len() > before {
            reach(Point::FlushReceipted);
            self.watch.progress();
        }
        for (entry, refusal) in refused {
            self.refuse(&entry, refusal)?;
        }
        for ack in acks {
            ack.done().await;
        }
        Ok(())
    }

    /// Has what is stored removed, some at a time: the lock of the spool is not held for long.
    pub(super) fn clear(&mut self) {
        if self.removing || self.leaving.is_empty() {
            return;
        }
        self.removing = true;
        let stored: Vec<_> = self.leaving.drain(..self.leaving.len().min(REMOVED)).collect();
        self.unsynced += stored.len();
        // Not synced each time: what a power cut brings back is sent again, which costs less than thousands of syncs.
        let sync = self.unsynced >= UNSYNCED;
        if sync {
            self.unsynced = 0;
        }
        let (remover, path) = (self.spool.remover(), self.spool.path_of_waiting());
        let entries: Vec<Entry> = stored.iter().map(|(entry, _)| entry.clone()).collect();
        let removing = tokio::task::spawn_blocking(move || remover.remove(&entries, sync));
        self.work.push(Box::pin(async move {
            let removal = removing
                .await
                .unwrap_or_else(|error| Err(SpoolError::Io { path, source: std::io::Error::other(error) }));
            Done::Removed(stored, removal)
        }));
    }

    /// Removes all that is stored, and syncs what was removed.
    pub(super) async fn clear_all(&mut self) -> Result<(), SpoolError> {
        while self.removing
            && let Some(done) = self.work.next().await
        {
            // What fails is tried below, once more.
            if let Done::Removed(stored, removal) = done {
                let _ = self.removed(stored, removal);
            }
        }
        let left = std::mem::take(&mut self.leaving);
        if left.is_empty() {
            return self.spool.sync_removed();
        }
        let entries: Vec<Entry> = left.iter().map(|(entry, _)| entry.clone()).collect();
        self.spool.remove(&entries)?;
        for (entry, receipt) in &left {
            (self.report)(Report::Stored(entry, receipt));
        }
        Ok(())
    }

    /// What was stored has left the spool. What could not be removed is stored all the same: it is still to be removed.
    fn removed(
        &mut self,
        stored: Vec<(Entry, Receipt)>,
        removal: Result<Removal, SpoolError>,
    ) -> Result<(), SendError> {
        self.removing = false;
        let removal = match removal {
            Ok(removal) => removal,
            Err(error) => {
                self.leaving.splice(..0, stored);
                return Err(error.into());
            }
        };
        reach(Point::FlushRemoved);
        self.spool.removed(stored.iter().map(|(entry, _)| entry), &removal);
        let mut stays: HashMap<Entry, SpoolError> = removal.stays.into_iter().collect();
        for (entry, receipt) in &stored {
            self.let_go(&entry.upload);
            if let Some(why) = stays.remove(entry) {
                self.stays(entry, why)?;
                continue;
            }
            self.summary.stored += 1;
            (self.report)(Report::Stored(entry, receipt));
        }
        self.watch.progress();
        Ok(())
    }

    /// The server has it, and the disk does not let it go: the next run asks for its fate, and tries again.
    fn stays(&mut self, entry: &Entry, why: SpoolError) -> Result<(), SendError> {
        let SpoolError::Io { path, source } = why else { return Err(why.into()) };
        let what = format!("it is stored, and cannot be removed from the spool: {source}");
        let why = TransferError::Local { path, source: std::io::Error::new(source.kind(), what) };
        self.stays.push(entry.clone());
        self.leave(entry.clone(), &why.into());
        Ok(())
    }

    pub(super) fn refuse(&mut self, entry: &Entry, refusal: Refusal) -> Result<(), SendError> {
        if refusal.code == Code::Unauthorized {
            return Err(SendError::NotAllowed(refusal));
        }
        self.spool.refuse(entry, &refusal)?;
        self.let_go(&entry.upload);
        self.watch.progress();
        self.summary.refused += 1;
        (self.report)(Report::Refused(entry, &refusal));
        Ok(())
    }

    /// A file has left the spool.
    pub(super) fn let_go(&mut self, upload: &UploadId) {
        self.queue.settled(upload);
        self.statements.settled(upload);
        self.digests.remove(upload);
    }

    fn await_receipts(&mut self, shipment: Shipment, refused: Option<u8>) {
        self.awaited.push(Instant::now(), shipment.into_entries(), refused);
        // A receipt may be faster than the acknowledgement.
        self.forget_receipted();
    }

    fn forget_receipted(&mut self) {
        self.awaited.receipted(|upload| self.queue.is_sent(upload));
    }

    pub(super) async fn done(&mut self, done: Done) -> Result<(), SendError> {
        match done {
            Done::Removed(stored, removal) => self.removed(stored, removal),
            Done::Loaded(read) => self.ship(read?),
            Done::Shipped { shipment, complete, result } => {
                self.shipments -= 1;
                match (complete, &result) {
                    (Some(through), Ok(())) => self.told_with_bundle(through)?,
                    (Some(through), Err(_)) => self.statements.not_with_bundle(through),
                    (None, _) => {}
                }
                match (result, shipment) {
                    (Ok(()), shipment) => {
                        reach(Point::FlushShipped);
                        self.watch.progress();
                        self.taken();
                        self.await_receipts(shipment, None);
                    }
                    // A bundle is refused as a whole for the fault of one.
                    (Err(SessionError::Refused(_)), Shipment::Bundle(entries)) => self.queue.alone(&entries),
                    // The receipt says why.
                    (Err(SessionError::Refused(code)), shipment) => {
                        self.await_receipts(shipment, Some(code));
                    }
                    (Err(SessionError::Later(why)), shipment) => {
                        self.queue.not_now(shipment.entries());
                        self.rest(&why);
                    }
                    (Err(_), shipment) => self.queue.doubt(shipment.entries()),
                }
                Ok(())
            }
            Done::Asked(entry, answer) => {
                self.asks -= 1;
                self.asked(entry, answer).await
            }
            Done::Complete(statement, told) => self.told_complete(&statement, told),
            Done::Searched(found) => {
                self.searched(found?);
                Ok(())
            }
            Done::There => {
                self.hearing.answered();
                Ok(())
            }
            Done::Put(entry, sha256, sent) => {
                // Only what this run has sent: of a resumed file the missing parts.
                let sent_bytes = self.large.take().map_or(0, |meter| meter.done());
                self.summary.bytes += sent_bytes;
                if sent_bytes > 0 {
                    self.watch.progress();
                }
                self.sent_large(entry, sha256, sent).await
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
            Err(error) => return self.unread(entry, error),
        };
        self.digests.insert(entry.upload.clone(), digest);
        if matches!(info.outcome, Outcome::Granted | Outcome::Pending) {
            // Begun, and not counted: its way goes on where it was.
            if info.sha256 == digest {
                self.begun.insert(entry.upload.clone());
            }
            self.queue.again(std::slice::from_ref(&entry));
            return Ok(());
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_receipt_that_speaks_of_these_bytes_and_for_good_settles_a_file() {
        let (ours, other) = (Sha256::of(b"ours"), Sha256::of(b"other"));
        let receipt = |outcome, error: Option<Code>| Receipt {
            upload: "u".into(),
            outcome,
            batch: None,
            event_time: None,
            late: false,
            clamped: false,
            sha256: Some(ours),
            bundle: None,
            error: error.map(|code| Refusal::new(code, "why")),
        };
        let stored = receipt(Outcome::Stored, None);
        assert_eq!(verdict(&stored, Some(&ours)), Verdict::Stored);
        assert_eq!(verdict(&stored, Some(&other)), Verdict::Nothing);
        let ended = receipt(Outcome::Refused, Some(Code::NotFound));
        assert_eq!(verdict(&ended, Some(&ours)), Verdict::Nothing);
        for code in [Code::Unavailable, Code::Quota] {
            let later = verdict(&receipt(Outcome::Refused, Some(code)), Some(&ours));
            assert_eq!(later, Verdict::Later(Refusal::new(code, "why")));
        }
        let differs = receipt(Outcome::Refused, Some(Code::Mismatch));
        assert_eq!(verdict(&differs, Some(&ours)), Verdict::Nothing, "of a grant");
        let published = Receipt { sha256: None, ..differs };
        for (receipt, code) in
            [(published, Code::Mismatch), (receipt(Outcome::Rejected, Some(Code::Rejected)), Code::Rejected)]
        {
            let refused = verdict(&receipt, Some(&ours));
            assert_eq!(refused, Verdict::Refused(Refusal::new(code, "why")));
        }
    }
}

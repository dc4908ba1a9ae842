//! Large files: by URL, and what follows when one does not get through.

use std::sync::Arc;

use millpond_protocol::message::Receipt;
use millpond_protocol::{Code, Refusal, Sha256};

use super::run::{Done, LEAST, Run};
use super::{Report, SendError, ship};
use crate::large::{self, LargeError};
use crate::session::SessionError;
use crate::spool::{Entry, SpoolError};
use crate::transfer::TransferError;

/// What follows from a large file that did not get through.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It never will.
    Refuse(Refusal),
    /// What was written into the spool is not what is read.
    PutAside,
    /// As a message it may.
    Inline,
    /// Whether it did is to be asked.
    Ask,
    /// Another time. With `most`, there was no room for it, and this run begins no file that is larger than that.
    Leave { most: Option<u64> },
}

/// `is_inline`: a message may be as large as the file, which was not sent as one yet.
fn next(error: &LargeError, size: u64, is_inline: bool) -> Next {
    if let Some(refusal) = error.refusal() {
        return Next::Refuse(refusal.clone());
    }
    match error {
        LargeError::Changed(_) => Next::PutAside,
        // A pool without room for this one may have some for those of half its size: an ask costs no more than that.
        LargeError::Session(SessionError::Answer(refusal)) if refusal.code == Code::Quota => {
            Next::Leave { most: Some(size / 2) }
        }
        LargeError::Session(SessionError::Answer(_)) | LargeError::Transfer(TransferError::Full { .. }) => {
            Next::Leave { most: Some(0) }
        }
        LargeError::Session(error) if error.is_temporary() => Next::Ask,
        error if is_inline && error.is_of_the_way() => Next::Inline,
        LargeError::Session(_) | LargeError::Transfer(_) | LargeError::Lost(_) => Next::Leave { most: None },
    }
}

/// What came of the commit of a file that was begun before; none: something of it is to be sent.
fn counted(committed: Result<Receipt, SessionError>) -> Option<Result<Receipt, LargeError>> {
    match committed {
        Err(SessionError::Answer(refusal)) if matches!(refusal.code, Code::NotFound | Code::Mismatch) => None,
        committed => Some(committed.map_err(LargeError::from)),
    }
}

impl Run<'_> {
    /// Begins a large file, straight from the spool's copy, unless there was no room for one like it.
    pub(super) fn put(&mut self, entry: Entry) -> Result<(), SendError> {
        if let Some((most, why)) = self.no_room.take_if(|(most, _)| entry.size > *most) {
            self.leave(entry, &why);
            self.no_room = Some((most, why));
            return Ok(());
        }
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
            Err(error) => return self.unread(entry, error),
        };
        self.note_in_flight();
        let (put, sha256) = (ship::put(&document, &self.clock), document.sha256);
        let (path, upload) = (self.spool.path(&entry), entry.upload.clone());
        let (session, transfer) = (self.session.clone(), Arc::clone(&self.options.transfer));
        let meter = Arc::new(self.options.meters.meter(document.about.name.as_str(), document.size));
        self.large = Some(Arc::clone(&meter));
        let patience = self.options.patience.max(LEAST);
        let is_begun = self.begun.remove(&upload);
        self.work.push(Box::pin(async move {
            let counted =
                if is_begun { counted(large::commit(&session, &upload, patience).await) } else { None };
            let sent = match counted {
                Some(counted) => counted,
                None => large::upload(&session, &transfer, &path, &upload, put, &meter, patience).await,
            };
            Done::Put(entry, sha256, sent)
        }));
        Ok(())
    }

    /// A large file's way has ended.
    pub(super) async fn sent_large(
        &mut self,
        entry: Entry,
        sha256: Sha256,
        sent: Result<Receipt, LargeError>,
    ) -> Result<(), SendError> {
        if self.queue.sent(entry.upload.as_str()).is_none() {
            // Its receipt was faster.
            return Ok(());
        }
        let error = match sent {
            Ok(receipt) => {
                self.watch.progress();
                self.taken();
                self.digests.insert(entry.upload.clone(), sha256);
                self.settled.push((Some(entry), receipt, None));
                return self.settle().await;
            }
            Err(error) => error,
        };
        let publish_max = self.card.as_ref().map_or(0, |card| card.limits.publish_max);
        let is_inline = entry.size <= publish_max && !self.queue.is_inline(&entry.upload);
        match next(&error, entry.size, is_inline) {
            Next::Refuse(refusal) => return self.refuse(&entry, refusal),
            Next::PutAside => {
                let why = "its bytes are not what was written";
                self.spool.put_aside(&entry, why.to_owned());
                self.damaged(&entry, why);
            }
            Next::Inline => self.queue.inline(&entry),
            Next::Ask => self.queue.not_now(std::slice::from_ref(&entry)),
            Next::Leave { most } => {
                // Its bytes may be there, and their commit be refused for now: the next run asks first.
                if matches!(error, LargeError::Session(SessionError::Answer(_))) {
                    self.stays.push(entry.clone());
                }
                self.leave(entry, &error);
                self.no_room = most.map(|most| (most, error)).or(self.no_room.take());
            }
        }
        Ok(())
    }

    /// It waits for another time, and is not tried again by this run.
    pub(super) fn leave(&mut self, entry: Entry, why: &LargeError) {
        self.watch.progress();
        self.queue.settled(&entry.upload);
        (self.report)(Report::Left(&entry, why));
        self.left.insert(entry.upload);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::Cause;

    #[test]
    fn only_where_the_way_by_url_leads_nowhere_is_a_file_sent_as_a_message() {
        let refused = |code| LargeError::Session(SessionError::Answer(Refusal::new(code, "why")));
        let session = LargeError::Session;
        let transfer = LargeError::Transfer;
        let why = crate::transfer::Why::default;
        let stuck = || transfer(TransferError::Stuck { attempts: 3, last: "no route".into() });
        let full = || transfer(TransferError::Full { why: "HTTP 507".into() });
        let leave = |most| Next::Leave { most };
        for (error, expected) in [
            (stuck(), Next::Inline),
            (transfer(TransferError::Expired { status: 403, why: why() }), Next::Inline),
            (transfer(TransferError::Refused { status: 404, why: why() }), Next::Inline),
            (LargeError::Lost("u".into()), Next::Inline),
            (full(), leave(Some(0))),
            (refused(Code::Quota), leave(Some(500))),
            (refused(Code::Unavailable), leave(Some(0))),
            (refused(Code::Rejected), Next::Refuse(Refusal::new(Code::Rejected, "why"))),
            (session(SessionError::Unanswered(Duration::ZERO)), Next::Ask),
            (session(SessionError::Offline(Cause::Lost(String::new()))), Next::Ask),
            (session(SessionError::Refused(0x97)), leave(None)),
            (
                transfer(TransferError::Local { path: "u".into(), source: std::io::Error::other("EIO") }),
                leave(None),
            ),
        ] {
            assert_eq!(next(&error, 1_000, true), expected, "{error}");
        }
        assert_eq!(next(&LargeError::Changed("u".into()), 1_000, true), Next::PutAside);
        for error in [stuck(), LargeError::Lost("u".into())] {
            assert_eq!(next(&error, 1_000, false), leave(None), "too large, or tried: {error}");
        }
    }
}

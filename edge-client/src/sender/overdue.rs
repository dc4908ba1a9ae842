//! What does not go, or did not come, in time: what the server refuses for now, the connection, the server's voice, a receipt, or any progress at all.

use millpond_protocol::access::Op;
use millpond_protocol::{Code, Refusal};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::awaited::Shipped;
use super::run::{Done, LEAST, Run, who};
use super::watch::{STUCK, Silence};
use super::{Report, SendError};
use crate::backoff::random;
use crate::clock::Stamp;
use crate::session::Cause;

impl Run<'_> {
    /// When the server was heard last, and until when it may be silent.
    pub(super) fn silence(&self) -> (Instant, Instant) {
        (self.session.heard(), self.session.silent_until(self.options.patience.max(LEAST)))
    }

    /// Asks whether the server is there.
    pub(super) fn ask_whether_it_is_there(&mut self) {
        let (session, within) = (self.session.clone(), self.options.patience.max(LEAST));
        self.work.push(Box::pin(async move {
            let _ = session.ask::<Value>(Op::Time, &json!({}), within).await;
            Done::There
        }));
    }

    /// The server refused something for now: nothing is sent for a while, also by the process after this one.
    pub(super) fn rest(&mut self, why: &Refusal) {
        let Some(pause) = self.pacer.refused(why, Instant::now(), random()) else { return };
        if let Some(rest) = self.pacer.noted(who(self.session), Stamp::now(), pause) {
            let _ = self.spool.set_rest(Some(&rest));
        }
        // It waits because it was told to.
        self.watch.progress();
        (self.report)(Report::Resting(why, pause));
    }

    /// The server took something.
    pub(super) fn taken(&mut self) {
        if self.pacer.taken(Instant::now()) {
            let _ = self.spool.set_rest(None);
        }
    }

    /// Gives up if nothing may be sent for longer than anybody wants to wait, once the fate of everything that was sent is known.
    pub(super) fn unless_it_rests(&self) -> Result<(), SendError> {
        let is_quiet =
            self.online && self.work.is_empty() && self.leaving.is_empty() && self.queue.is_certain();
        if is_quiet { self.rests_too_long().map_or(Ok(()), Err) } else { Ok(()) }
    }

    fn rests_too_long(&self) -> Option<SendError> {
        let (why, pause) = self.pacer.is_too_long(Instant::now(), self.options.patience)?;
        Some(SendError::Resting { why: why.clone(), pause })
    }

    /// Some deadline has passed.
    pub(super) fn overdue(&mut self) -> Result<(), SendError> {
        let now = Instant::now();
        if !self.online && now >= self.offline_since + self.options.patience {
            if let Some(rests) = self.rests_too_long() {
                return Err(rests);
            }
            return Err(SendError::Offline(Cause::Lost(
                "the connection was lost and did not come back".into(),
            )));
        }
        let moved = self.large.as_ref().map_or(0, |meter| meter.moved());
        if self.online {
            let (heard, gone) = self.silence();
            match self.hearing.look(now, heard, gone, moved) {
                Silence::Gone => {
                    let what = format!("the server has said nothing for {:?}", heard.elapsed());
                    return Err(SendError::Offline(Cause::Lost(what)));
                }
                Silence::Ask => self.ask_whether_it_is_there(),
                Silence::Bear => {}
            }
        }
        if self.watch.is_stuck(now, moved) {
            return Err(SendError::Stuck(STUCK));
        }
        while let Some(Shipped { entries, refused, .. }) = self.awaited.overdue(now) {
            let Some(code) = refused else {
                self.queue.doubt(&entries);
                continue;
            };
            for entry in entries {
                if self.queue.is_sent(&entry.upload) {
                    let code_name = if code == 0x87 { Code::Unauthorized } else { Code::Rejected };
                    let what = format!("refused with MQTT reason 0x{code:02x}, and no receipt said why");
                    self.refuse(&entry, Refusal::new(code_name, what))?;
                }
            }
        }
        Ok(())
    }
}

//! What did not come in time: the connection, the server's voice, a receipt, or any progress at all.

use millpond_protocol::access::Op;
use millpond_protocol::{Code, Refusal};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::SendError;
use super::run::{Awaited, Done, LEAST, Run};
use super::watch::{STUCK, Silence};
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

    /// Some deadline has passed.
    pub(super) fn overdue(&mut self) -> Result<(), SendError> {
        let now = Instant::now();
        if !self.online && now >= self.offline_since + self.options.patience {
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
        let (due, waiting) =
            std::mem::take(&mut self.awaited).into_iter().partition(|(until, ..)| *until <= now);
        self.awaited = waiting;
        let due: Vec<Awaited> = due;
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

//! What is due of a connection, and whether its client is late with it.

use std::time::{Duration, Instant};

use bytes::Buf;

use super::Connection;

/// When a connection of which nothing is due is looked at again.
const NOTHING_DUE: Duration = Duration::from_secs(3_600);

impl Connection {
    /// When [`Connection::is_late`] is to be asked, at the latest.
    pub(super) fn deadline(&mut self) -> Instant {
        let session = self.session.deadline();
        if self.subscribing.waits() {
            return session.unwrap_or_else(|| Instant::now() + NOTHING_DUE);
        }
        let write_by = self.write_by.follow(self.session.out.has_remaining(), self.gate.config.stall_timeout);
        let due = [session, self.intake.deadline(&self.session), write_by];
        due.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + NOTHING_DUE)
    }

    /// Whether what the client says is read: nobody is blamed for silence otherwise.
    pub(super) fn listens(&self) -> bool {
        !self.subscribing.waits() && self.intake.listens(&self.session)
    }

    /// Whether the connection has stalled. A client that is silent altogether is told by the session.
    pub(super) fn is_late(&mut self) -> bool {
        let (now, listens) = (Instant::now(), self.listens());
        self.session.timer(now, listens);
        !self.subscribing.waits() && (self.intake.is_late(&self.session, now) || self.write_by.is_over(now))
    }

    /// It has waited for its turn: for what the client did not get across meanwhile it is not to blame.
    pub(super) fn was_held_up(&mut self) {
        let now = Instant::now();
        self.session.heard(now);
        self.intake.was_held_up(now);
        self.write_by.moved();
    }
}

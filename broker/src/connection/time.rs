//! What is due of a connection, and whether its client is late with it.

use std::time::{Duration, Instant};

use bytes::Buf;

use super::Connection;

/// When a connection of which nothing is due is looked at again.
const NOTHING_DUE: Duration = Duration::from_secs(3_600);

impl Connection {
    /// When [`Connection::is_late`] is to be asked, at the latest.
    pub(super) fn deadline(&mut self) -> Instant {
        let write_by = self.write_by.follow(self.session.out.has_remaining(), self.gate.config.stall_timeout);
        let due = [self.session.deadline(), self.intake.deadline(&self.session), write_by];
        due.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + NOTHING_DUE)
    }

    /// Whether the connection has stalled. A client that is silent altogether is told by the session.
    pub(super) fn is_late(&mut self) -> bool {
        let now = Instant::now();
        // Nobody is blamed for silence who is not read.
        self.session.timer(now, self.intake.listens(&self.session));
        self.intake.is_late(&self.session, now) || self.write_by.is_over(now)
    }
}

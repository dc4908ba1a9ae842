//! Notices that nothing moves.

use std::time::Duration;

use tokio::time::Instant;

/// How long nothing may move: longer than the largest message takes on the slowest link.
pub(super) const STUCK: Duration = Duration::from_secs(2_400);

/// When something moved last: a file was settled or acknowledged, or bytes of a large one were sent.
#[derive(Debug)]
pub(super) struct Watch {
    last: Instant,
    bytes: u64,
}

impl Watch {
    pub(super) fn begin() -> Self {
        Self { last: Instant::now(), bytes: 0 }
    }

    /// Something moved.
    pub(super) fn progress(&mut self) {
        self.last = Instant::now();
    }

    /// When to look.
    pub(super) fn deadline(&self) -> Instant {
        self.last + STUCK
    }

    /// Whether nothing has moved for too long; `bytes` are those of the large file that is on its way.
    pub(super) fn is_stuck(&mut self, now: Instant, bytes: u64) -> bool {
        if now < self.deadline() {
            return false;
        }
        if bytes == self.bytes {
            return true;
        }
        (self.last, self.bytes) = (now, bytes);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_that_moves_is_not_stuck_and_one_that_stands_still_is() {
        let mut watch = Watch::begin();
        let mut now = watch.deadline();
        for sent in 1..10 {
            assert!(!watch.is_stuck(now, sent), "{sent} bytes");
            now += STUCK;
        }
        assert!(watch.is_stuck(now, 9));
        watch.progress();
        assert!(!watch.is_stuck(Instant::now(), 9));
    }
}

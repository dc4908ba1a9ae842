//! Notices that nothing moves, or that nobody is there.

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

/// Whether a server that has to say something is heard: while one is there, it is asked whenever it has been silent for half of
/// the time after which it counts as gone.
#[derive(Debug)]
pub(super) struct Hearing {
    patience: Duration,
    /// When it was asked, if it has not answered.
    asked: Option<Instant>,
    /// How far the large file was, and when that was seen to have changed.
    moved: u64,
    moved_at: Instant,
}

/// What is to be done about a silence.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Silence {
    Bear,
    Ask,
    Gone,
}

impl Hearing {
    pub(super) fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, asked: None, moved: 0, moved_at: now }
    }

    /// The question was answered, or given up.
    pub(super) fn answered(&mut self) {
        self.asked = None;
    }

    /// When to look again, if it was heard then and may be silent until `gone`.
    pub(super) fn deadline(&self, heard: Instant, gone: Instant) -> Instant {
        match self.asked {
            // Who was asked late, because this process did something else meanwhile, has time for the answer all the same.
            Some(at) => gone.max(self.moved_at + self.patience).max(at + self.patience / 2),
            None => heard + self.patience / 2,
        }
    }

    /// What now; `moved` bytes of the large file that is on its way have been taken by the network so far.
    pub(super) fn look(&mut self, now: Instant, heard: Instant, gone: Instant, moved: u64) -> Silence {
        if moved != self.moved {
            (self.moved, self.moved_at) = (moved, now);
        }
        match self.asked {
            _ if now < self.deadline(heard, gone) => Silence::Bear,
            Some(_) => Silence::Gone,
            None => {
                self.asked = Some(now);
                Silence::Ask
            }
        }
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

    #[test]
    fn a_silent_server_is_asked_once_and_gone_when_the_time_is_over_unless_other_bytes_move() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut hearing = Hearing::new(10 * second, begin);
        let gone = begin + 12 * second;
        assert_eq!(hearing.deadline(begin, gone), begin + 5 * second);
        assert_eq!(hearing.look(begin + 4 * second, begin, gone, 0), Silence::Bear);
        assert_eq!(hearing.look(begin + 5 * second, begin, gone, 0), Silence::Ask);
        assert_eq!(hearing.look(begin + 6 * second, begin, gone, 0), Silence::Bear);
        assert_eq!(hearing.deadline(begin, gone), gone);
        assert_eq!(hearing.look(gone, begin, gone, 7), Silence::Bear);
        assert_eq!(hearing.look(gone + 9 * second, begin, gone, 7), Silence::Bear);
        assert_eq!(hearing.look(gone + 10 * second, begin, gone, 7), Silence::Gone);
        hearing.answered();
        let heard = gone + 10 * second;
        assert_eq!(hearing.look(heard + 5 * second, heard, heard + 10 * second, 7), Silence::Ask);
    }

    #[test]
    fn nobody_is_gone_who_was_not_asked_however_late_that_is_noticed_and_the_question_has_half_the_time() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut hearing = Hearing::new(10 * second, begin);
        let gone = begin + 10 * second;
        let late = begin + 60 * second;
        assert_eq!(hearing.look(late, begin, gone, 0), Silence::Ask);
        assert_eq!(hearing.deadline(begin, gone), late + 5 * second);
        assert_eq!(hearing.look(late + 4 * second, begin, gone, 0), Silence::Bear);
        assert_eq!(hearing.look(late + 5 * second, begin, gone, 0), Silence::Gone);
        // A question that a new connection makes void is put again.
        hearing.answered();
        assert_eq!(hearing.look(late + 5 * second, begin, gone, 0), Silence::Ask);
    }
}

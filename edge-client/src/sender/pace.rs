//! How much is sent at a time after the server refused something for now: nothing for a while, then one file, and twice as many
//! each time that is taken. Pure.
//!
//! ```text
//!   free ──refused──▶ resting ──time──▶ few (1) ──taken──▶ few (2) ──taken──▶ few (4) … ──▶ free
//!                        ▲                 └────────── refused ──┴──────────────┘
//!                        └────────────── longer each time ◀──────┘
//! ```

use std::time::Duration;

use millpond_protocol::{Code, Refusal, limits};
use tokio::time::Instant;

use crate::backoff::fraction;
use crate::clock::Stamp;
use crate::spool::Rest;

/// The first pause where the server names none: a quota is there for long, a storage that is away may be back at once.
const QUOTA: Duration = Duration::from_secs(15);
const OTHER: Duration = Duration::from_secs(1);
/// Pauses double up to this.
const LONGEST: Duration = Duration::from_secs(300);
/// What a server may ask for.
const STATED_MAX: Duration = Duration::from_secs(3_600);

/// How much may be sent now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Free,
    Nothing,
    /// One message of so many files, and the next when it was taken.
    Few(usize),
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Free,
    /// `since`: when it was refused first, with nothing taken in between.
    Resting {
        since: Instant,
        until: Instant,
        why: Refusal,
    },
    Few {
        since: Instant,
        files: usize,
    },
}

/// What the server refused for now, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    state: State,
    /// Pauses in a row.
    times: u32,
}

impl Pacer {
    /// Goes on with a pause that an earlier process began.
    pub(super) fn resume(rest: &Rest, left: Duration, now: Instant) -> Self {
        let (until, why) = (now + left, rest.why.clone());
        Self { state: State::Resting { since: now, until, why }, times: rest.times }
    }

    /// Something was refused. Answers how long nothing is sent from now on; none: that was known, one end of a connection refuses
    /// all that was on its way. A longer time that the server names counts all the same.
    pub(super) fn refused(&mut self, why: &Refusal, now: Instant, random: u64) -> Option<Duration> {
        let stated = why.retry_after_ms.map_or(Duration::ZERO, Duration::from_millis).min(STATED_MAX);
        let is_resting = self.until(now).is_some();
        let since = match &self.state {
            State::Free => now,
            State::Resting { until, .. } if is_resting && now + stated <= *until => return None,
            State::Resting { since, .. } | State::Few { since, .. } => *since,
        };
        let first = if why.code == Code::Quota { QUOTA } else { OTHER };
        let own = first.saturating_mul(1 << self.times.min(20)).min(LONGEST);
        let pause = if is_resting { stated } else { own.max(stated) };
        // A fleet that was refused together does not come back together.
        let pause = pause + fraction(pause / 4, random);
        self.times = self.times.saturating_add(u32::from(!is_resting));
        self.state = State::Resting { since, until: now + pause, why: why.clone() };
        Some(pause)
    }

    /// Something was taken. Answers whether that ends a pause.
    pub(super) fn taken(&mut self, now: Instant) -> bool {
        let (files, since) = match self.state {
            State::Free => return false,
            // It was on its way before the refusal.
            State::Resting { until, .. } if now < until => return false,
            State::Resting { .. } => (2, now),
            State::Few { files, .. } => (files * 2, now),
        };
        let was_resting = matches!(self.state, State::Resting { .. });
        self.state = State::Few { since, files };
        if files >= limits::BUNDLE_ENTRIES_MAX {
            *self = Self::default();
        }
        was_resting
    }

    pub(super) fn pace(&self, now: Instant) -> Pace {
        match &self.state {
            State::Free => Pace::Free,
            State::Resting { until, .. } if now < *until => Pace::Nothing,
            State::Resting { .. } => Pace::Few(1),
            State::Few { files, .. } => Pace::Few(*files),
        }
    }

    /// When something may be sent again.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Resting { until, .. } if now < until => Some(until),
            State::Free | State::Resting { .. } | State::Few { .. } => None,
        }
    }

    /// Why it is not worth waiting, and for how long that would be, for somebody who has so much patience.
    pub(super) fn is_too_long(&self, now: Instant, patience: Duration) -> Option<(&Refusal, Duration)> {
        match &self.state {
            State::Resting { since, until, why } if now < *until && *until > *since + patience => {
                Some((why, *until - now))
            }
            State::Free | State::Resting { .. } | State::Few { .. } => None,
        }
    }

    /// As it is noted for the next process.
    pub(super) fn noted(&self, who: String, now: Stamp, pause: Duration) -> Option<Rest> {
        let State::Resting { why, .. } = &self.state else { return None };
        let pause = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
        let (from_ms, boot) = (now.wall_ms, now.boot.map(|boot| boot.id));
        let until_ms = from_ms.saturating_add(pause);
        Some(Rest { who, from_ms, until_ms, boot, times: self.times, why: why.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota() -> Refusal {
        Refusal::new(Code::Quota, "the pool is full")
    }

    #[test]
    fn pauses_double_up_to_a_longest_and_last_as_long_as_the_server_says_at_the_least() {
        let (mut pacer, mut now) = (Pacer::default(), Instant::now());
        for seconds in [15, 30, 60, 120, 240, 300, 300] {
            let pause = pacer.refused(&quota(), now, 0).unwrap();
            assert_eq!(pause, Duration::from_secs(seconds));
            // The other messages of the same connection.
            assert_eq!(pacer.refused(&quota(), now, 0), None);
            assert_eq!((pacer.pace(now), pacer.until(now)), (Pace::Nothing, Some(now + pause)));
            assert!(!pacer.taken(now), "it was on its way before");
            now += pause;
            assert_eq!((pacer.pace(now), pacer.until(now)), (Pace::Few(1), None));
        }
        let mut pacer = Pacer::default();
        let stated = quota().retry_after_ms(60_000);
        let pause = pacer.refused(&stated, now, u64::MAX).unwrap();
        assert!((Duration::from_secs(60)..=Duration::from_secs(75)).contains(&pause), "{pause:?}");
        // It comes to be known that it takes longer.
        assert_eq!(pacer.refused(&stated, now, 0), None);
        let longer = quota().retry_after_ms(120_000);
        assert_eq!(pacer.refused(&longer, now, 0), Some(Duration::from_secs(120)));
        assert_eq!(pacer.until(now), Some(now + Duration::from_secs(120)));
        assert_eq!(pacer.refused(&quota(), now + Duration::from_secs(120), 0), Some(2 * QUOTA), "one pause");
        let away = Refusal::unavailable("storage is away");
        assert_eq!(Pacer::default().refused(&away, now, 0), Some(OTHER));
        let for_ever = quota().retry_after_ms(u64::MAX);
        assert_eq!(Pacer::default().refused(&for_ever, now, 0), Some(STATED_MAX));
    }

    #[test]
    fn after_a_pause_one_file_goes_and_then_twice_as_many_each_time() {
        let (mut pacer, now) = (Pacer::default(), Instant::now());
        let later = now + pacer.refused(&quota(), now, 0).unwrap();
        let mut files = 1;
        while pacer.pace(later) != Pace::Free {
            assert_eq!(pacer.pace(later), Pace::Few(files));
            assert_eq!(pacer.taken(later), files == 1);
            files *= 2;
        }
        assert!(files >= limits::BUNDLE_ENTRIES_MAX);
        assert_eq!(pacer.refused(&quota(), later, 0), Some(QUOTA), "all is forgotten");
    }

    #[test]
    fn a_refusal_of_a_few_makes_the_next_pause_longer() {
        let (mut pacer, now) = (Pacer::default(), Instant::now());
        let later = now + pacer.refused(&quota(), now, 0).unwrap();
        assert!(pacer.taken(later));
        assert_eq!(pacer.refused(&quota(), later, 0), Some(2 * QUOTA));
        assert_eq!(pacer.pace(later + 2 * QUOTA), Pace::Few(1));
    }

    #[test]
    fn nobody_waits_for_a_pause_that_is_longer_than_his_patience() {
        let (mut pacer, now) = (Pacer::default(), Instant::now());
        let patience = 2 * QUOTA;
        let later = now + pacer.refused(&quota(), now, 0).unwrap();
        assert_eq!(pacer.is_too_long(now, patience), None);
        assert_eq!(pacer.is_too_long(now, QUOTA / 2), Some((&quota(), QUOTA)));
        let pause = pacer.refused(&quota(), later, 0).unwrap();
        assert_eq!(pacer.is_too_long(later, patience), Some((&quota(), pause)));
        // What is taken meanwhile begins his patience anew.
        assert!(pacer.taken(later + pause));
        assert!(pacer.refused(&quota(), later + pause, 0).is_some());
        assert_eq!(pacer.is_too_long(later + pause, 5 * QUOTA), None);
    }

    #[test]
    fn what_one_process_notes_the_next_one_goes_on_with() {
        let (mut pacer, now) = (Pacer::default(), Instant::now());
        let pause = pacer.refused(&quota(), now, 0).unwrap();
        let rest = pacer.noted("demo/edge-1".into(), Stamp { wall_ms: 1_000, boot: None }, pause).unwrap();
        assert_eq!(rest.left(1_000), QUOTA);
        assert_eq!((rest.left(999), rest.left(16_000)), (Duration::ZERO, Duration::ZERO));
        let mut next = Pacer::resume(&rest, rest.left(6_000), now);
        assert_eq!(next.until(now), Some(now + QUOTA - Duration::from_secs(5)));
        assert_eq!(next.refused(&quota(), now + QUOTA, 0), Some(2 * QUOTA));
    }
}

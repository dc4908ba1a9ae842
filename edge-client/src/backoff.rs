//! Exponential back-off with full jitter: a fleet that lost its server together does not come back together.
//!
//! ```
//! use std::time::Duration;
//! use millpond_edge::backoff::{Backoff, random};
//!
//! let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
//! assert!(backoff.next(random()) <= Duration::from_millis(500));
//! assert!(backoff.next(random()) <= Duration::from_secs(1));
//! backoff.reset();
//! ```

use std::time::Duration;

/// Pauses between attempts: each is a random time from zero to a ceiling that doubles.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// `first` is the ceiling of the first pause, `longest` that of all.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The pause before the next attempt, from a uniformly random number.
    pub fn next(&mut self, random: u64) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1).min(31);
        fraction(doubled.min(self.longest), random)
    }

    /// After a success, or after bytes moved: the next pause is short again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits for the next pause.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next(random())).await;
    }
}

/// A random part of `whole`.
pub fn fraction(whole: Duration, random: u64) -> Duration {
    let micros = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random % micros.saturating_add(1).max(1))
}

/// A random number from the system; the same one each time if it has none, which costs jitter and nothing else.
pub fn random() -> u64 {
    getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_lie_below_a_ceiling_that_doubles_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        for ceiling in [1, 2, 4, 8, 10, 10] {
            let before = backoff.clone();
            assert_eq!(before.clone().next(ceiling * 1_000_000), Duration::from_secs(ceiling));
            assert_eq!(before.clone().next(0), Duration::ZERO);
            assert!(backoff.next(u64::MAX) <= Duration::from_secs(ceiling));
        }
        backoff.reset();
        assert!(backoff.next(u64::MAX) <= Duration::from_secs(1));
    }

    #[test]
    fn it_never_overflows() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX);
        for _ in 0..100 {
            backoff.next(u64::MAX);
        }
        assert_eq!(fraction(Duration::ZERO, 7), Duration::ZERO);
    }
}

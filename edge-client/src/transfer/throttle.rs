//! A limit on bytes per second that transfers share.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The largest piece that is read or written at once.
const PIECE_MAX: u64 = 64 << 10;
/// The smallest, however low the rate: else the system calls would be the work.
const PIECE_MIN: u64 = 1 << 10;
/// Bytes that may go as one message, however low the rate: below that a grant and its requests would be the most of what is sent.
const MESSAGE_MIN: u64 = 16 << 10;

/// A rate in bytes per second, or none. One value shared by several transfers limits their sum.
#[derive(Debug)]
pub struct Throttle {
    rate: Option<NonZeroU64>,
    /// When everything that was let through so far will have passed at the rate.
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// A limit in bytes per second.
    pub fn new(rate: NonZeroU64) -> Self {
        Self { rate: Some(rate), free_at: Mutex::new(Instant::now()) }
    }

    /// No limit.
    pub fn unlimited() -> Self {
        Self { rate: None, free_at: Mutex::new(Instant::now()) }
    }

    /// Bytes to move at once: about a quarter of a second's worth.
    pub(super) fn piece(&self) -> usize {
        let piece = self.rate.map_or(PIECE_MAX, |rate| (rate.get() / 4).clamp(PIECE_MIN, PIECE_MAX));
        usize::try_from(piece).unwrap_or(usize::MAX)
    }

    /// Bytes that may go as one message, which is not slowed down once it is begun: a second's worth.
    pub(crate) fn message(&self) -> u64 {
        self.rate.map_or(u64::MAX, |rate| rate.get().max(MESSAGE_MIN))
    }

    /// Waits until `bytes` may pass.
    pub async fn pass(&self, bytes: usize) {
        if let Some(rate) = self.rate {
            tokio::time::sleep(self.turn(bytes as u64, rate, Instant::now())).await;
        }
    }

    /// How long so many bytes that come now have to wait for those before them.
    fn turn(&self, bytes: u64, rate: NonZeroU64, now: Instant) -> Duration {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        // Time that nobody used is lost: no bursts above the rate.
        let begin = (*free_at).max(now);
        *free_at = begin + cost(bytes, rate);
        begin - now
    }
}

/// How long so many bytes take.
fn cost(bytes: u64, rate: NonZeroU64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn several_users_together_keep_the_rate() {
        let throttle = Throttle::new(NonZeroU64::new(1 << 20).unwrap());
        let begin = Instant::now();
        let one = async {
            for _ in 0..4 {
                throttle.pass(32 << 10).await;
            }
        };
        let two = async {
            for _ in 0..4 {
                throttle.pass(32 << 10).await;
            }
        };
        tokio::join!(one, two);
        // The first piece passes at once, the other seven have waited for those before them.
        assert!(begin.elapsed() >= Duration::from_micros(7 * 31_250), "{:?}", begin.elapsed());
    }

    #[test]
    fn time_that_nobody_used_is_lost_so_that_no_burst_makes_up_for_it() {
        let rate = NonZeroU64::new(1_000).unwrap();
        let throttle = Throttle::new(rate);
        let mut now = Instant::now();
        for idle in [0, 10, 3_600] {
            // Beyond what passes still.
            now += Duration::from_secs(3 + idle);
            let turns = [1_000, 1_000, 1_000].map(|bytes| throttle.turn(bytes, rate, now));
            assert_eq!(turns, [0, 1, 2].map(Duration::from_secs), "after {idle} s");
        }
    }

    #[test]
    fn pieces_are_small_where_the_rate_is_low() {
        assert_eq!(Throttle::unlimited().piece(), 64 << 10);
        assert_eq!(Throttle::new(NonZeroU64::new(8_192).unwrap()).piece(), 2_048);
        assert_eq!(Throttle::new(NonZeroU64::MIN).piece(), 1_024);
    }

    #[test]
    fn a_message_is_a_second_of_the_rate_or_as_short_as_one_may_be() {
        assert_eq!(Throttle::unlimited().message(), u64::MAX);
        assert_eq!(Throttle::new(NonZeroU64::new(100_000).unwrap()).message(), 100_000);
        assert_eq!(Throttle::new(NonZeroU64::MIN).message(), 16_384);
    }
}

//! How fast messages get through, as their acknowledgements tell, and so how large the next one may be. Pure.
//!
//! MQTT can say nothing between the bytes of a message: while one is on its way, neither a ping nor the answer to it passes, and a
//! message that is cut off is sent again from its beginning. So messages are as large as the line carries in a few seconds.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes per second below which this client does not work.
pub(crate) const RATE_MIN: u64 = 2 << 10;
/// How long one of several messages is to take.
const MESSAGE: Duration = Duration::from_secs(4);
/// How long a single file may take as one message; what takes longer is better off by URL.
const INLINE: Duration = Duration::from_secs(30);
/// Bytes of a message before anything is known.
const FIRST: u64 = 16 << 10;
/// The least that a message is made for: below that its head and its answer are the work.
const LEAST: u64 = 8 << 10;
/// The largest message.
const MOST: u64 = 4 << 20;
/// Acknowledgements of fewer bytes tell of the way's length, not of its width.
const SAMPLE: u64 = 4 << 10;
/// By how much slower than measured the line may become before what it carries counts as lost.
const DOUBT: u64 = 4;

/// What is known of the way to the server. It outlives connections.
#[derive(Debug)]
pub(super) struct Uplink {
    /// Bytes per second.
    rate: Option<u64>,
    /// Of a message that is next to nothing.
    round_trip: Option<Duration>,
    /// Bytes of a message that is likely not to be cut off.
    whole: u64,
    /// Handed over and not acknowledged.
    outstanding: u64,
    /// When the last one was acknowledged.
    acknowledged: Option<Instant>,
}

impl Default for Uplink {
    fn default() -> Self {
        Self { rate: None, round_trip: None, whole: MOST, outstanding: 0, acknowledged: None }
    }
}

impl Uplink {
    /// A message was handed over.
    pub(super) fn handed_over(&mut self, bytes: u64) {
        self.outstanding += bytes;
    }

    /// It was not, after all.
    pub(super) fn taken_back(&mut self, bytes: u64) {
        self.outstanding = self.outstanding.saturating_sub(bytes);
    }

    /// A message that was handed over then is acknowledged.
    pub(super) fn acknowledged(&mut self, bytes: u64, then: Instant, now: Instant) {
        self.taken_back(bytes);
        // Before that, the line was busy with others.
        let begun = self.acknowledged.map_or(then, |last| last.max(then));
        self.acknowledged = Some(now);
        let took = now.saturating_duration_since(begun);
        if bytes < SAMPLE {
            self.round_trip = Some(self.round_trip.map_or(took, |least| least.min(took)));
            return;
        }
        let on_the_line = took.saturating_sub(self.round_trip.unwrap_or_default()).max(took / 8);
        let sample = rate(bytes, on_the_line);
        self.rate = Some(self.rate.map_or(sample, |rate| rate.midpoint(sample)));
        if bytes >= self.whole / 2 {
            self.whole = (self.whole * 2).min(MOST);
        }
    }

    /// The connection has ended; `idle` is how long no acknowledgement, and nothing else, had come.
    pub(super) fn cut(&mut self, idle: Duration) {
        let outstanding = self.outstanding;
        self.ended();
        if outstanding < SAMPLE {
            return;
        }
        // They did not get through in that time.
        let at_most = rate(outstanding, idle);
        self.rate = match self.rate {
            Some(rate) => Some(rate.min(at_most)),
            None => Some(at_most).filter(|rate| *rate < MOST),
        };
        self.whole = (self.whole.min(outstanding) / 2).max(FIRST);
    }

    /// The connection has ended for a reason that says nothing about the line.
    pub(super) fn ended(&mut self) {
        self.outstanding = 0;
        self.acknowledged = None;
    }

    /// Whether anything is known.
    pub(super) fn is_known(&self) -> bool {
        self.rate.is_some()
    }

    /// Bytes that a message of several files should have.
    pub(super) fn message(&self) -> u64 {
        self.rate.map_or(FIRST, |rate| carried(rate, MESSAGE)).min(self.whole).clamp(LEAST, MOST)
    }

    /// Bytes above which a file should not go as one message.
    pub(super) fn inline(&self) -> u64 {
        self.rate.map_or(u64::MAX, |rate| carried(rate, INLINE).max(FIRST))
    }

    /// How long what is on its way may keep the server from saying anything.
    pub(super) fn busy(&self) -> Duration {
        let slowest = self.rate.map_or(RATE_MIN, |rate| (rate / DOUBT).max(RATE_MIN / DOUBT));
        Duration::from_millis(self.outstanding.saturating_mul(1_000) / slowest)
    }
}

fn rate(bytes: u64, took: Duration) -> u64 {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    (bytes.saturating_mul(1_000_000) / micros).max(1)
}

fn carried(rate: u64, within: Duration) -> u64 {
    rate.saturating_mul(within.as_secs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(uplink: &mut Uplink, at: Instant, bytes: u64, took: Duration) -> Instant {
        uplink.handed_over(bytes);
        uplink.acknowledged(bytes, at, at + took);
        at + took
    }

    #[test]
    fn messages_become_as_large_as_the_line_carries_in_a_few_seconds() {
        let (mut slow, mut fast, begin) = (Uplink::default(), Uplink::default(), Instant::now());
        assert_eq!((slow.message(), slow.inline()), (FIRST, u64::MAX));
        sent(&mut slow, begin, FIRST, Duration::from_secs(8));
        assert_eq!((slow.message(), slow.inline()), (8 << 10, 60 << 10));
        sent(&mut fast, begin, FIRST, Duration::from_millis(1));
        assert_eq!(fast.message(), MOST);
        assert!(fast.inline() > MOST);
    }

    #[test]
    fn a_long_way_is_not_a_narrow_one() {
        let (mut uplink, begin) = (Uplink::default(), Instant::now());
        let now = sent(&mut uplink, begin, 100, Duration::from_millis(600));
        sent(&mut uplink, now, FIRST, Duration::from_millis(650));
        assert!(uplink.message() > 512 << 10, "{uplink:?}");
    }

    #[test]
    fn of_messages_behind_one_another_each_has_its_own_time() {
        let (mut uplink, begin) = (Uplink::default(), Instant::now());
        for _ in 0..10 {
            uplink.handed_over(10_000);
        }
        for n in 1..=10 {
            uplink.acknowledged(10_000, begin, begin + Duration::from_secs(n));
            assert_eq!(uplink.rate, Some(10_000));
        }
    }

    #[test]
    fn what_is_cut_off_is_tried_in_smaller_pieces_and_what_gets_through_in_larger_ones_again() {
        let (mut uplink, begin) = (Uplink::default(), Instant::now());
        let now = sent(&mut uplink, begin, FIRST, Duration::from_millis(10));
        uplink.handed_over(1 << 20);
        uplink.cut(Duration::from_millis(100));
        assert_eq!(uplink.message(), 512 << 10);
        sent(&mut uplink, now, 512 << 10, Duration::from_millis(100));
        assert_eq!(uplink.message(), 1 << 20);
        uplink.handed_over(1 << 20);
        uplink.cut(Duration::from_secs(512));
        assert_eq!((uplink.message(), uplink.inline()), (8 << 10, 60 << 10));
    }

    #[test]
    fn the_server_is_waited_for_as_long_as_what_is_on_its_way_may_take() {
        let (mut uplink, begin) = (Uplink::default(), Instant::now());
        uplink.handed_over(32 << 10);
        assert_eq!(uplink.busy(), Duration::from_secs(16));
        uplink.acknowledged(32 << 10, begin, begin + Duration::from_millis(10));
        uplink.handed_over(2 << 20);
        assert!(uplink.busy() < Duration::from_secs(10), "{uplink:?}");
        uplink.cut(Duration::ZERO);
        assert_eq!(uplink.busy(), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn whatever_happens_something_is_sent_and_waited_for(steps in proptest::collection::vec((0..5_000_000_u64, 0..3_000_000_u64, 0..3_u8), 0..50)) {
            let (mut uplink, mut now) = (Uplink::default(), Instant::now());
            for (bytes, millis, what) in steps {
                uplink.handed_over(bytes);
                prop_assert!(uplink.busy() <= Duration::from_secs(50 * 5_000_000 / (RATE_MIN / DOUBT)));
                let then = now;
                now += Duration::from_millis(millis);
                match what {
                    0 => uplink.cut(now - then),
                    1 => uplink.taken_back(bytes),
                    _ => uplink.acknowledged(bytes, then, now),
                }
                prop_assert!((LEAST..=MOST).contains(&uplink.message()) && uplink.inline() >= FIRST);
            }
        }
    }
}

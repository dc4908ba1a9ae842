//! The messages on app topics that wait for one session, in order.
//!
//! Pure, and bounded: a session with a connection that has too much waiting is ended, one without loses what comes then,
//! and QoS 0 is dropped first. What is sent because the client subscribed (retained messages) is counted by itself: it
//! shares its bytes with the store, until something else is retained in its place.

use std::collections::VecDeque;
use std::time::Instant;

use millpond_protocol::limits;

use super::message::Mail;

/// Copies of retained messages that may wait: all that a pool has, twice.
const REPLAYS_MAX: usize = 2 * limits::RETAINED_PER_POOL;
/// Bytes of those.
const REPLAY_BYTES_MAX: usize = 2 * limits::RETAINED_BYTES_PER_POOL;
/// A session with more waiting than one part in so many is behind: see `Hub::publish`.
const BEHIND: usize = 4;
/// The same in messages: more gains nothing, and each takes a place in every queue.
const BEHIND_MESSAGES: usize = 256;

/// What became of a copy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It waits.
    Kept,
    /// It waits, behind more than the client has taken for a while.
    Behind,
    /// It was dropped: QoS 0, or nobody is connected.
    Dropped,
    /// There is no room, and the client is connected: it is to be ended.
    Full,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    copies: VecDeque<Mail>,
    bytes: usize,
    replays: usize,
    replay_bytes: usize,
    bytes_max: usize,
    messages_max: usize,
}

impl Queue {
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { copies: VecDeque::new(), bytes: 0, replays: 0, replay_bytes: 0, bytes_max, messages_max }
    }

    pub(crate) fn put(&mut self, copy: Mail, is_online: bool) -> Put {
        let bytes = copy.message.bytes();
        if copy.replay {
            if self.replays >= REPLAYS_MAX || self.replay_bytes + bytes > REPLAY_BYTES_MAX {
                return Put::Full;
            }
            self.count(&copy);
            self.copies.push_back(copy);
            return Put::Kept;
        }
        if copy.qos == 0 && (!is_online || self.is_behind()) {
            return Put::Dropped;
        }
        let is_full = self.copies.len() - self.replays >= self.messages_max
            || (self.bytes + bytes > self.bytes_max && self.bytes > 0);
        if is_full {
            return if is_online { Put::Full } else { Put::Dropped };
        }
        self.count(&copy);
        self.copies.push_back(copy);
        if self.is_behind() { Put::Behind } else { Put::Kept }
    }

    /// The next copy that has not expired.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Mail> {
        loop {
            let copy = self.copies.pop_front()?;
            self.discount(&copy);
            if !copy.message.is_expired(now) {
                return Some(copy);
            }
        }
    }

    /// The connection has gone: QoS 0 goes with it.
    pub(crate) fn leave(&mut self) {
        let copies = std::mem::take(&mut self.copies);
        (self.bytes, self.replays, self.replay_bytes) = (0, 0, 0);
        for copy in copies.into_iter().filter(|copy| copy.qos > 0) {
            self.count(&copy);
            self.copies.push_back(copy);
        }
    }

    /// Drops what came last until it weighs no more than that; how many.
    pub(crate) fn shorten(&mut self, weight_max: usize) -> u64 {
        let mut dropped = 0;
        while self.weight() > weight_max
            && let Some(copy) = self.copies.pop_back()
        {
            self.discount(&copy);
            dropped += 1;
        }
        dropped
    }

    fn count(&mut self, copy: &Mail) {
        if copy.replay {
            self.replays += 1;
            self.replay_bytes += copy.message.bytes();
        } else {
            self.bytes += copy.message.bytes();
        }
    }

    fn discount(&mut self, copy: &Mail) {
        if copy.replay {
            self.replays -= 1;
            self.replay_bytes -= copy.message.bytes();
        } else {
            self.bytes -= copy.message.bytes();
        }
    }

    /// Bytes that it keeps in memory, were each message only here.
    pub(crate) fn weight(&self) -> usize {
        self.bytes + self.replay_bytes + self.copies.len() * Mail::AROUND
    }

    pub(crate) fn len(&self) -> u64 {
        self.copies.len() as u64
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.messages_max, self.bytes_max);
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.copies.len() - self.replays > BEHIND_MESSAGES.min(self.messages_max / BEHIND)
            || self.bytes > self.bytes_max / BEHIND
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::message::Message;
    use super::*;

    fn copy(qos: u8, payload: usize, replay: bool, expires: Option<Instant>) -> Mail {
        let message = Message::event("t".into(), Bytes::from(vec![0; payload]));
        Mail { message: Arc::new(Message { expires, ..message }), qos, retain: replay, replay, tags: vec![] }
    }

    #[test]
    fn too_much_ends_who_is_connected_and_is_lost_to_who_is_not() {
        let mut queue = Queue::new(8, 1_000);
        for _ in 0..8 {
            queue.put(copy(1, 10, false, None), true);
        }
        assert_eq!(queue.put(copy(1, 10, false, None), true), Put::Full);
        assert_eq!(queue.put(copy(1, 10, false, None), false), Put::Dropped);
        assert_eq!(queue.put(copy(0, 10, false, None), true), Put::Dropped, "QoS 0 is never worth an end");
        let mut queue = Queue::new(8, 1_000);
        assert_eq!(queue.put(copy(1, 5_000, false, None), true), Put::Behind, "one always fits");
        assert_eq!(queue.put(copy(1, 10, false, None), true), Put::Full);
    }

    #[test]
    fn what_expired_is_never_taken_and_holds_up_nothing() {
        let (now, mut queue) = (Instant::now(), Queue::new(1_000, 1 << 20));
        for _ in 0..150 {
            queue.put(copy(1, 10, false, Some(now + Duration::from_secs(1))), false);
        }
        queue.put(copy(2, 10, false, None), false);
        let later = now + Duration::from_secs(1);
        assert_eq!(queue.take(later).map(|copy| copy.qos), Some(2));
        assert!(queue.take(later).is_none() && queue.bytes == 0);
    }

    #[test]
    fn what_is_sent_because_of_a_subscription_is_bounded_by_its_bytes_too() {
        let mut queue = Queue::new(8, 1_000);
        let half = limits::RETAINED_BYTES_PER_POOL / 2;
        // Two subscriptions that match everything that a pool retains, and what took its place meanwhile is none of it.
        for _ in 0..4 {
            assert_eq!(queue.put(copy(1, half - 10, true, None), true), Put::Kept);
        }
        assert_eq!(queue.put(copy(1, half, true, None), true), Put::Full);
        queue.leave();
        assert_eq!(queue.put(copy(1, half, true, None), true), Put::Full);
        queue.take(Instant::now());
        assert_eq!(queue.put(copy(1, half, true, None), true), Put::Kept);
    }

    proptest! {
        #[test]
        fn its_bounds_hold_and_order_is_kept(
            steps in proptest::collection::vec((0_u8..3, 0_usize..400, any::<bool>(), any::<bool>(), 0_u8..10), 0..80),
        ) {
            let (now, mut queue, mut model) = (Instant::now(), Queue::new(8, 1_000), Vec::new());
            for (qos, payload, replay, online, step) in steps {
                match step {
                    0 => {
                        queue.leave();
                        model.retain(|copy: &Mail| copy.qos > 0);
                    }
                    1..4 => {
                        let expected = (!model.is_empty()).then(|| model.remove(0));
                        let found = queue.take(now);
                        prop_assert_eq!(found.map(|copy| copy.message), expected.map(|copy| copy.message));
                    }
                    _ => {
                        let copy = copy(qos, payload, replay, None);
                        match queue.put(copy.clone(), online) {
                            Put::Kept | Put::Behind => model.push(copy),
                            Put::Dropped => prop_assert!(qos == 0 || !online),
                            Put::Full => prop_assert!(online && qos > 0),
                        }
                    }
                }
                let counted: Vec<&Mail> = model.iter().filter(|copy| !copy.replay).collect();
                prop_assert_eq!(queue.bytes, counted.iter().map(|copy| copy.message.bytes()).sum::<usize>());
                prop_assert_eq!(queue.replays, model.len() - counted.len());
                let all = model.iter().map(|copy| copy.message.bytes()).sum::<usize>();
                prop_assert_eq!(queue.replay_bytes, all - queue.bytes);
                prop_assert!(counted.len() <= 8 && (queue.bytes <= 1_000 || counted.len() == 1));
            }
        }
    }
}

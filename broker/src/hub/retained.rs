//! The retained messages of one pool's app topics: the newest one that was published to each with RETAIN.
//!
//! Pure. They are in memory, so their number and bytes are limited, a member's share of the number too. An empty payload
//! removes one, and so does its expiry.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use millpond_protocol::{Code, Refusal, limits, topic};

use super::message::Message;

/// Topics that are looked at in no time worth speaking of.
const FEW: usize = limits::RETAINED_PER_MEMBER;

/// The store.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    /// By topic, so that those with the same first levels lie together.
    messages: BTreeMap<String, Arc<Message>>,
    bytes: usize,
    /// How many each member has set.
    members: HashMap<i64, usize>,
}

impl Retained {
    /// Keeps a message that was published with RETAIN, or removes what its topic has.
    ///
    /// # Errors
    /// `too_large`: the pool or the member has as many as may be. What the topic had stays.
    pub(crate) fn set(&mut self, message: &Arc<Message>, now: Instant) -> Result<(), Refusal> {
        if message.payload.is_empty() || message.is_expired(now) {
            self.remove(&message.topic);
            return Ok(());
        }
        if self.room_for(message).is_err() {
            let expired: Vec<String> = self
                .messages
                .values()
                .filter(|held| held.is_expired(now))
                .map(|held| held.topic.clone())
                .collect();
            expired.iter().for_each(|topic| self.remove(topic));
            self.room_for(message)?;
        }
        self.remove(&message.topic);
        self.bytes += message.bytes();
        *self.members.entry(message.member).or_default() += 1;
        self.messages.insert(message.topic.clone(), message.clone());
        Ok(())
    }

    fn room_for(&self, message: &Message) -> Result<(), Refusal> {
        let held = self.messages.get(&message.topic);
        let freed = |is: bool| usize::from(held.is_some() && is);
        let own = self.members.get(&message.member).map_or(0, |n| *n)
            - freed(held.is_some_and(|held| held.member == message.member));
        let bytes = self.bytes - held.map_or(0, |held| held.bytes()) + message.bytes();
        for (what, is_over, limit) in [
            ("a member has", own >= limits::RETAINED_PER_MEMBER, limits::RETAINED_PER_MEMBER),
            (
                "a pool has",
                self.messages.len() - freed(true) >= limits::RETAINED_PER_POOL,
                limits::RETAINED_PER_POOL,
            ),
            (
                "a pool has bytes for",
                bytes > limits::RETAINED_BYTES_PER_POOL,
                limits::RETAINED_BYTES_PER_POOL,
            ),
        ] {
            if is_over {
                let refusal =
                    Refusal::new(Code::TooLarge, format!("{what} at most {limit} of retained messages"));
                return Err(refusal
                    .hint("remove one with an empty payload, or publish without RETAIN")
                    .limit(limit as u64));
            }
        }
        Ok(())
    }

    fn remove(&mut self, topic: &str) {
        if let Some(held) = self.messages.remove(topic) {
            self.bytes -= held.bytes();
            if let Some(n) = self.members.get_mut(&held.member) {
                *n -= 1;
                if *n == 0 {
                    self.members.remove(&held.member);
                }
            }
        }
    }

    /// Those whose topic `filter` matches, in order of topic.
    pub(crate) fn matching<'a>(
        &'a self,
        filter: &'a str,
        now: Instant,
    ) -> impl Iterator<Item = &'a Arc<Message>> {
        self.candidates(filter)
            .filter(move |message| topic::matches(filter, &message.topic) && !message.is_expired(now))
    }

    /// Whether few topics come into question for `filter`.
    pub(crate) fn finds_soon(&self, filter: &str) -> bool {
        self.candidates(filter).nth(FEW).is_none()
    }

    fn candidates<'a>(&'a self, filter: &'a str) -> impl Iterator<Item = &'a Arc<Message>> {
        // No topic that matches is outside what begins with the levels ahead of the first wildcard.
        let prefix = filter.split(['+', '#']).next().unwrap_or_default();
        let (prefix, to) = if prefix.len() == filter.len() {
            // It has no wildcard, and is the one topic that it matches.
            (prefix, Bound::Included(prefix))
        } else {
            (prefix.trim_end_matches('/'), Bound::Unbounded)
        };
        self.messages
            .range::<str, _>((Bound::Included(prefix), to))
            .map(|(_, message)| message)
            .take_while(move |message| message.topic.starts_with(prefix))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.messages.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn message(topic: &str, payload: usize, member: i64) -> Arc<Message> {
        let mut message = Message::event(topic.to_owned(), Bytes::from(vec![0; payload]));
        message.member = member;
        Arc::new(message)
    }

    #[test]
    fn a_member_and_a_pool_keep_so_many_and_replacing_one_is_none_more() {
        let (now, mut retained) = (Instant::now(), Retained::default());
        for member in 0..(limits::RETAINED_PER_POOL / limits::RETAINED_PER_MEMBER) as i64 {
            for n in 0..limits::RETAINED_PER_MEMBER {
                retained.set(&message(&format!("{member}/{n}"), 1, member), now).unwrap();
            }
            let more = retained.set(&message(&format!("{member}/more"), 1, member), now);
            assert_eq!(more.map_err(|refusal| refusal.code), Err(Code::TooLarge));
            retained.set(&message(&format!("{member}/0"), 2, member), now).unwrap();
        }
        assert!(retained.set(&message("x", 1, -1), now).is_err(), "the pool is full");
        retained.set(&message("0/0", 0, 0), now).unwrap();
        retained.set(&message("x", 1, -1), now).unwrap();
        assert_eq!(retained.len(), limits::RETAINED_PER_POOL);
    }

    #[test]
    fn their_bytes_are_limited_and_what_expired_makes_room() {
        let (now, mut retained) = (Instant::now(), Retained::default());
        let mut large = Message::clone(&message("a", limits::RETAINED_BYTES_PER_POOL - 100, 1));
        large.expires = Some(now + Duration::from_secs(1));
        retained.set(&Arc::new(large), now).unwrap();
        assert!(retained.set(&message("b", 200, 1), now).is_err());
        let later = now + Duration::from_secs(1);
        assert_eq!(retained.matching("#", later).count(), 0);
        retained.set(&message("b", 200, 1), later).unwrap();
        assert_eq!(retained.len(), 1);
    }

    #[test]
    fn it_says_soon_whether_few_topics_come_into_question() {
        let (now, mut retained) = (Instant::now(), Retained::default());
        for n in 0..=FEW {
            retained.set(&message(&format!("many/{n}"), 1, n as i64), now).unwrap();
        }
        retained.set(&message("few/x", 1, -1), now).unwrap();
        for (filter, finds_soon) in
            [("many/+", false), ("many/+/none", false), ("#", false), ("many/0", true), ("few/#", true)]
        {
            assert_eq!(retained.finds_soon(filter), finds_soon, "{filter}");
        }
        retained.set(&message("many/0", 0, 0), now).unwrap();
        assert!(retained.finds_soon("many/+"));
    }

    proptest! {
        #[test]
        fn it_finds_what_the_filter_matches_and_counts_what_it_has(
            sets in proptest::collection::vec(("[ab](/[ab]?){0,3}", 0_usize..3, 0_i64..3), 0..40),
            filter in "([ab+](/[ab+]){0,2}(/#)?|#)",
        ) {
            let (now, mut retained, mut model) = (Instant::now(), Retained::default(), BTreeMap::new());
            for (topic, payload, member) in sets {
                retained.set(&message(&topic, payload, member), now).unwrap();
                model.insert(topic, payload);
            }
            model.retain(|_, payload| *payload > 0);
            let found: Vec<&str> = retained.matching(&filter, now).map(|message| &*message.topic).collect();
            let expected: Vec<&str> = model.keys().map(|topic| &**topic).filter(|topic| topic::matches(&filter, topic)).collect();
            prop_assert_eq!(found, expected);
            let bytes: usize = model.iter().map(|(topic, payload)| topic.len() + payload).sum();
            prop_assert_eq!((retained.len(), retained.bytes), (model.len(), bytes));
            prop_assert_eq!(retained.members.values().sum::<usize>(), model.len());
        }
    }
}

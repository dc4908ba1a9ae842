//! What a mailbox holds, under its lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use millpond_protocol::limits;

use super::mailbox::{Taken, Wants};
use super::message::Mail;
use super::queue::Queue;
use crate::backend::MemberMessage;
use crate::registry::EndReason;

/// Events that may wait for one connection; older ones are dropped, for the feed over HTTP to bring.
const EVENTS_MAX: usize = 1_000;
/// Bytes of messages on app topics that a connection takes at once, and one message more.
const TAKEN_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) messages: VecDeque<MemberMessage>,
    pub(super) bytes: usize,
    pub(super) receipts: bool,
    pub(super) end: Option<EndReason>,
    /// Its connection is ended to make room: what waits for it goes, too.
    pub(super) gives_way: bool,
    /// The newest of each state topic.
    pub(super) states: HashMap<String, Mail>,
    pub(super) events: VecDeque<Mail>,
    pub(super) queue: Queue,
    /// Bytes that were on their way to the connection which has gone, and are kept with the session.
    pub(super) unsent: usize,
    /// How much of both stands in [`AwayBytes`]: nothing while there is a connection.
    pub(super) counted: usize,
    /// Filters that the hub knows this session by.
    pub(super) filters: HashSet<String>,
    /// What the connection wanted when it last looked.
    pub(super) wants: Wants,
    /// Something that it wants came since then, and it was told or will be.
    pub(super) is_told: bool,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            bytes: 0,
            receipts: false,
            end: None,
            gives_way: false,
            states: HashMap::new(),
            events: VecDeque::new(),
            queue: Queue::new(limits::SESSION_QUEUE_MAX, limits::SESSION_QUEUE_BYTES),
            unsent: 0,
            counted: 0,
            filters: HashSet::new(),
            wants: Wants { live: true, copies: 0 },
            is_told: false,
        }
    }

    pub(super) fn take(&mut self, wants: Wants) -> Option<Taken> {
        (self.wants, self.is_told) = (wants, false);
        let has_live = wants.live && !(self.states.is_empty() && self.events.is_empty());
        let has_copies = wants.copies > 0 && !self.queue.is_empty();
        if !(has_live || has_copies || self.receipts || self.end.is_some() || !self.messages.is_empty()) {
            return None;
        }
        let mut taken = Taken {
            messages: std::mem::take(&mut self.messages),
            receipts: std::mem::take(&mut self.receipts),
            end: self.end.take(),
            ..Taken::default()
        };
        self.bytes = 0;
        if has_live {
            taken.live.extend(self.states.drain().map(|(_, copy)| copy));
            taken.live.extend(self.events.drain(..));
        }
        if has_copies {
            let now = Instant::now();
            let mut bytes = 0;
            while taken.copies.len() < wants.copies
                && bytes < TAKEN_BYTES
                && let Some(copy) = self.queue.take(now)
            {
                bytes += copy.message.bytes();
                taken.copies.push(copy);
            }
        }
        Some(taken)
    }

    /// Nothing waits any more but copies on app topics.
    pub(super) fn empty(&mut self) {
        self.messages.clear();
        self.bytes = 0;
        self.states.clear();
        self.events.clear();
    }

    pub(super) fn put_live(&mut self, copy: Mail) {
        if copy.message.is_event() {
            if self.events.len() >= EVENTS_MAX {
                self.events.pop_front();
                metrics::counter!("millpond_gate_events_dropped_total").increment(1);
            }
            self.events.push_back(copy);
            return;
        }
        match self.states.get_mut(&copy.message.topic) {
            Some(held) if held.message.rank > copy.message.rank => {}
            Some(held) => *held = copy,
            None => {
                self.states.insert(copy.message.topic.clone(), copy);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::message::Message;
    use super::*;

    #[test]
    fn of_too_many_events_the_oldest_are_dropped() {
        let mut waiting = Waiting::new();
        for n in 0..EVENTS_MAX + 2 {
            let event = Message::event("mp/p/event/x".into(), Bytes::from(n.to_string()));
            let message = Arc::new(event);
            waiting.put_live(Mail { message, qos: 1, retain: false, replay: false, tags: vec![] });
        }
        let taken = waiting.take(Wants { live: true, copies: 0 }).unwrap().live;
        let ends = [taken.first(), taken.last()].map(|mail| mail.unwrap().message.payload.clone());
        assert_eq!((taken.len(), ends), (EVENTS_MAX, [Bytes::from("2"), Bytes::from("1001")]));
    }
}

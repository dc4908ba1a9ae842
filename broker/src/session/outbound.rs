//! What is on its way to a client: as far as its window and its packet size permit, and never an older state after a
//! newer one.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, Bytes};

use super::{OUT_HIGH, Session};
use crate::backend::{MemberMessage, StateMessage};
use crate::codec::write::Delivery;
use crate::router::Live;

/// Queues and window of one connection.
#[derive(Debug)]
pub(super) struct Outbound {
    /// Messages that the client may leave unacknowledged.
    window: usize,
    /// By packet id: the sequence number, if it is a receipt.
    in_flight: HashMap<u16, Option<i64>>,
    last_id: u16,
    messages: VecDeque<Message>,
    /// Bytes of `messages`.
    bytes: usize,
    states: HashMap<String, State>,
}

/// A message that is sent once, in order.
#[derive(Debug)]
pub(super) struct Message {
    topic: String,
    payload: Bytes,
    correlation_data: Option<Bytes>,
}

/// A state topic: only its newest message is ever sent.
#[derive(Debug, Default)]
struct State {
    /// The highest rank that was offered.
    rank: Option<u64>,
    waiting: Option<(StateMessage, bool)>,
}

/// What became of an attempt to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is in the output, at QoS 0 or 1.
    Yes { qos: u8 },
    /// Nobody subscribes to it any more, or the client cannot take it.
    Dropped,
    /// Not now.
    Later,
}

impl From<MemberMessage> for Message {
    fn from(message: MemberMessage) -> Self {
        Self { topic: message.topic, payload: message.payload, correlation_data: message.correlation_data }
    }
}

impl From<Live> for Message {
    fn from(live: Live) -> Self {
        Self { topic: live.topic, payload: live.payload, correlation_data: None }
    }
}

impl From<Live> for StateMessage {
    fn from(live: Live) -> Self {
        Self {
            topic: live.topic,
            payload: live.payload,
            rank: live.rank,
            user_properties: live.user_properties,
            content_type: live.content_type,
        }
    }
}

impl Message {
    fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + self.correlation_data.as_ref().map_or(0, Bytes::len)
    }
}

impl Outbound {
    pub(super) fn new(window: usize) -> Self {
        Self {
            window,
            in_flight: HashMap::new(),
            last_id: 0,
            messages: VecDeque::new(),
            bytes: 0,
            states: HashMap::new(),
        }
    }

    /// Bytes of the messages that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, message: Message) {
        self.bytes += message.bytes();
        self.messages.push_back(message);
    }

    /// Takes a state message unless a newer one was offered before. `replay`: the client asked for the current one, so
    /// the same one again is wanted.
    pub(super) fn offer(&mut self, message: StateMessage, replay: bool) {
        let state = self.states.entry(message.topic.clone()).or_default();
        let is_news =
            state.rank.is_none_or(|rank| if replay { message.rank >= rank } else { message.rank > rank });
        if is_news {
            state.rank = Some(message.rank);
            state.waiting = Some((message, replay));
        }
    }

    fn is_window_full(&self) -> bool {
        self.in_flight.len() >= self.window
    }

    fn take_id(&mut self, receipt: Option<i64>) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if let std::collections::hash_map::Entry::Vacant(free) = self.in_flight.entry(self.last_id) {
                free.insert(receipt);
                return self.last_id;
            }
        }
    }
}

impl Session {
    /// Sends one message if it may be sent now.
    pub(super) fn send(&mut self, delivery: Delivery<'_>, receipt: Option<i64>) -> Sent {
        let Some(found) = self.subscriptions.of(delivery.topic) else {
            return Sent::Dropped;
        };
        if self.out.remaining() >= OUT_HIGH || (found.qos > 0 && self.outbound.is_window_full()) {
            return Sent::Later;
        }
        // Any id is as long as the one that it will get.
        let id = (found.qos > 0).then_some(u16::MAX);
        let mut delivery = Delivery { tags: &found.tags, id, ..delivery };
        if !delivery.fits() || delivery.packet_len(self.version) > self.packet_max {
            return Sent::Dropped;
        }
        if found.qos > 0 {
            delivery.id = Some(self.outbound.take_id(receipt));
        }
        self.out.publish(self.version, &delivery);
        Sent::Yes { qos: found.qos }
    }

    pub(super) fn send_messages(&mut self) {
        while let Some(message) = self.outbound.messages.pop_front() {
            let delivery = Delivery {
                topic: &message.topic,
                payload: &message.payload,
                id: None,
                retain: false,
                content_type: None,
                correlation_data: message.correlation_data.as_ref(),
                user_properties: &[],
                tags: &[],
            };
            if self.send(delivery, None) == Sent::Later {
                self.outbound.messages.push_front(message);
                return;
            }
            self.outbound.bytes -= message.bytes();
        }
    }

    pub(super) fn send_states(&mut self) {
        // At most one state message a topic is waiting, and there are four such topics.
        let mut states = std::mem::take(&mut self.outbound.states);
        for state in states.values_mut() {
            if let Some((message, replay)) = state.waiting.take() {
                let delivery = Delivery {
                    topic: &message.topic,
                    payload: &message.payload,
                    id: None,
                    retain: replay,
                    content_type: message.content_type.as_deref(),
                    correlation_data: None,
                    user_properties: &message.user_properties,
                    tags: &[],
                };
                if self.send(delivery, None) == Sent::Later {
                    state.waiting = Some((message, replay));
                }
            }
        }
        self.outbound.states = states;
    }

    pub(super) fn on_puback(&mut self, id: u16) {
        // An id that nothing was sent under is a client's mistake: harmless.
        if let Some(Some(seq)) = self.outbound.in_flight.remove(&id) {
            self.receipts.acknowledged(seq);
        }
    }
}

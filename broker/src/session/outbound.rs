//! What is on its way to a client: as far as its window and its packet size permit, and never an older state after a
//! newer one.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};
use millpond_protocol::limits;

use super::unsent::Unsent;
use super::{OUT_HIGH, Session};
use crate::codec::packet::{Details, Version};
use crate::codec::reason;
use crate::codec::write::{Delivery, Kind};
use crate::hub::message::{Mail, Message};

/// Copies that are taken out of the mailbox at once.
const COPIES: usize = 64;

/// Queues and window of one connection.
#[derive(Debug)]
pub(super) struct Outbound {
    /// Messages that the client may leave unacknowledged.
    window: usize,
    /// By packet id.
    in_flight: HashMap<u16, Flight>,
    /// Bytes of those of app topics.
    in_flight_bytes: usize,
    /// Sent by the connection before, and to be sent again, in order.
    again: VecDeque<(u16, Flight)>,
    last_id: u16,
    /// Counts what was sent.
    sent: u64,
    messages: VecDeque<Arc<Message>>,
    /// Bytes of `messages`.
    bytes: usize,
    /// Of app topics.
    copies: VecDeque<Mail>,
    /// In the order in which they are sent: a pointer goes before the bytes that it points to, so that who waits knows of them.
    states: BTreeMap<String, State>,
    /// Topics that the client knows by a number.
    aliases: HashMap<String, u16>,
    alias_max: usize,
}

/// A message that the client has not acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    qos: u8,
    /// In which order it was sent.
    order: u64,
    pub(super) what: What,
}

/// What was sent, as far as it matters later.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// Nothing that is sent again: who asks again gets it.
    Once,
    /// A receipt: its sequence number.
    Receipt(i64),
    /// A state message: its topic and rank.
    State(String, u64),
    /// A message on an app topic.
    App(Mail),
    /// Of an app topic, at QoS 2: the client has it, and was told to release its id.
    Released,
}

/// A state topic: only its newest message is ever sent.
#[derive(Debug, Default)]
struct State {
    /// The highest rank that was offered.
    rank: Option<u64>,
    /// The highest rank that the client has, of this connection or one before.
    acknowledged: Option<u64>,
    waiting: Option<(Arc<Message>, bool)>,
}

/// What became of an attempt to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is in the output, at QoS 0, 1 or 2.
    Yes { qos: u8 },
    /// Nobody subscribes to it any more, or the client cannot take it.
    Dropped,
    /// Not now.
    Later,
}

/// What is to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parcel<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a Bytes,
    pub(super) details: &'a Details,
    /// Seconds until it expires.
    pub(super) expiry: Option<u32>,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) tags: &'a [u32],
}

impl Outbound {
    pub(super) fn new(window: usize, alias_max: usize, unsent: Unsent) -> Self {
        let acknowledged = |(topic, rank)| (topic, State { acknowledged: Some(rank), ..State::default() });
        Self {
            window,
            in_flight: HashMap::new(),
            in_flight_bytes: 0,
            again: unsent.again,
            last_id: unsent.last_id,
            sent: 0,
            messages: VecDeque::new(),
            bytes: 0,
            copies: unsent.copies,
            states: unsent.ranks.into_iter().map(acknowledged).collect(),
            aliases: HashMap::new(),
            alias_max,
        }
    }

    /// Bytes of the messages that wait, those of app topics aside.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the messages on app topics that are on their way.
    pub(super) fn app_bytes(&self) -> usize {
        let again = self.again.iter().map(|(_, flight)| flight.what.bytes());
        self.in_flight_bytes + self.copies.iter().map(|copy| copy.message.bytes()).chain(again).sum::<usize>()
    }

    /// Messages on app topics that there is room for.
    pub(super) fn room(&self) -> usize {
        if !self.again.is_empty() || self.app_bytes() >= limits::IN_FLIGHT_BYTES {
            return 0;
        }
        let taken = self.in_flight.len() + self.copies.len();
        self.window.saturating_sub(taken).min(COPIES)
    }

    pub(super) fn push(&mut self, message: Arc<Message>) {
        self.bytes += message.footprint();
        self.messages.push_back(message);
    }

    /// Takes a state message unless a newer one was offered before. `replay`: the client asked for the current one, so
    /// the same one again is wanted.
    pub(super) fn offer(&mut self, message: Arc<Message>, replay: bool) {
        let state = self.states.entry(message.topic.clone()).or_default();
        let is_news =
            state.rank.is_none_or(|rank| if replay { message.rank >= rank } else { message.rank > rank });
        if is_news {
            state.rank = Some(message.rank);
            state.waiting = Some((message, replay));
        }
    }

    /// The same for a client that comes back and did not ask: only what it has not acknowledged is wanted.
    pub(super) fn offer_news(&mut self, message: Arc<Message>) {
        let state = self.states.get(&message.topic);
        if state.and_then(|state| state.acknowledged).is_none_or(|rank| message.rank > rank) {
            self.offer(message, true);
        }
    }

    /// What outlives the connection: messages on app topics above QoS 0, and what the client has of state.
    pub(super) fn into_unsent(self) -> Unsent {
        let mut again: Vec<(u16, Flight)> = self.in_flight.into_iter().collect();
        again.sort_by_key(|(_, flight)| flight.order);
        again.extend(self.again);
        again.retain(|(_, flight)| matches!(flight.what, What::App(_) | What::Released));
        let ranks = self.states.into_iter();
        Unsent {
            again: again.into(),
            last_id: self.last_id,
            copies: self.copies.into_iter().filter(|copy| copy.qos > 0).collect(),
            ranks: ranks.filter_map(|(topic, state)| Some((topic, state.acknowledged?))).collect(),
        }
    }

    fn is_window_full(&self) -> bool {
        self.in_flight.len() >= self.window
    }

    fn take_id(&mut self) -> u16 {
        let reserved: HashSet<u16> = self.again.iter().map(|(id, _)| *id).collect();
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains_key(&self.last_id) && !reserved.contains(&self.last_id) {
                return self.last_id;
            }
        }
    }

    fn depart(&mut self, id: u16, qos: u8, what: What) {
        self.sent += 1;
        self.in_flight_bytes += what.bytes();
        self.in_flight.insert(id, Flight { qos, order: self.sent, what });
    }

    /// The client has it.
    fn land(&mut self, id: u16) -> Option<What> {
        let flight = self.in_flight.remove(&id)?;
        self.in_flight_bytes -= flight.what.bytes();
        Some(flight.what)
    }
}

impl Session {
    /// Messages on app topics.
    pub(crate) fn copies(&mut self, copies: Vec<Mail>, now: Instant) {
        self.now = now;
        self.outbound.copies.extend(copies);
    }

    /// Sends one message if it may be sent now.
    pub(super) fn send(&mut self, parcel: Parcel<'_>, what: impl FnOnce() -> What) -> Sent {
        if self.out.remaining() >= OUT_HIGH || (parcel.qos > 0 && self.outbound.is_window_full()) {
            return Sent::Later;
        }
        // Any id is as long as the one that it will get.
        let mut delivery = self.delivery(parcel, u16::MAX, false);
        if !delivery.fits() || delivery.packet_len(self.version) > self.packet_max {
            return Sent::Dropped;
        }
        if parcel.qos > 0 {
            delivery.id = self.outbound.take_id();
            self.outbound.depart(delivery.id, parcel.qos, what());
        }
        self.write(&delivery, parcel.topic);
        Sent::Yes { qos: parcel.qos }
    }

    /// As it is to be written: with the number that the client knows the topic by, or is to know it by from now on.
    fn delivery<'a>(&self, parcel: Parcel<'a>, id: u16, again: bool) -> Delivery<'a> {
        let known = self.outbound.aliases.get(parcel.topic).copied();
        let count = self.outbound.aliases.len();
        let next = (count < self.outbound.alias_max).then(|| count as u16 + 1);
        Delivery {
            topic: if known.is_some() { "" } else { parcel.topic },
            payload: parcel.payload,
            qos: parcel.qos,
            id,
            again,
            retain: parcel.retain,
            alias: known.or(next).filter(|_| self.version == Version::V5),
            details: parcel.details,
            expiry: parcel.expiry,
            tags: parcel.tags,
        }
    }

    fn write(&mut self, delivery: &Delivery<'_>, topic: &str) {
        if let (Some(alias), false) = (delivery.alias, delivery.topic.is_empty()) {
            self.outbound.aliases.insert(topic.to_owned(), alias);
        }
        self.out.publish(self.version, delivery);
    }

    /// Sends a message of the server at the QoS of the subscriptions that it matches.
    pub(super) fn send_own(&mut self, message: &Message, retain: bool, what: impl FnOnce() -> What) -> Sent {
        let Some(found) = self.subscriptions.of(&message.topic) else {
            return Sent::Dropped;
        };
        let parcel = Parcel {
            topic: &message.topic,
            payload: &message.payload,
            details: &message.details,
            expiry: None,
            qos: found.qos,
            retain,
            tags: &found.tags,
        };
        self.send(parcel, what)
    }

    pub(super) fn send_messages(&mut self) {
        while let Some(message) = self.outbound.messages.pop_front() {
            if self.send_own(&message, false, || What::Once) == Sent::Later {
                self.outbound.messages.push_front(message);
                return;
            }
            self.outbound.bytes -= message.footprint();
        }
    }

    pub(super) fn send_states(&mut self) {
        // At most one state message a topic is waiting, and there are four such topics.
        let mut states = std::mem::take(&mut self.outbound.states);
        for (topic, state) in &mut states {
            if let Some((message, replay)) = state.waiting.take() {
                match self.send_own(&message, replay, || What::State(topic.clone(), message.rank)) {
                    Sent::Later => state.waiting = Some((message, replay)),
                    Sent::Yes { qos: 0 } => state.acknowledged = state.acknowledged.max(Some(message.rank)),
                    Sent::Yes { .. } | Sent::Dropped => {}
                }
            }
        }
        self.outbound.states = states;
    }

    /// Sends again what the connection before had sent, be it expired: the client may have received half of an exchange.
    pub(super) fn send_again(&mut self) {
        while !self.outbound.is_window_full()
            && self.out.remaining() < OUT_HIGH
            && let Some((id, flight)) = self.outbound.again.pop_front()
        {
            match &flight.what {
                What::App(copy) => {
                    let parcel = parcel_of(copy, self.now);
                    let delivery = self.delivery(parcel, id, true);
                    if delivery.packet_len(self.version) > self.packet_max {
                        continue;
                    }
                    self.write(&delivery, parcel.topic);
                }
                What::Released => self.out.ack(self.version, Kind::Rel, id, reason::SUCCESS, None),
                What::Once | What::Receipt(_) | What::State(..) => continue,
            }
            self.outbound.depart(id, flight.qos, flight.what);
        }
    }

    pub(super) fn send_copies(&mut self) {
        if !self.outbound.again.is_empty() {
            return;
        }
        while let Some(copy) = self.outbound.copies.pop_front() {
            if copy.message.is_expired(self.now) {
                continue;
            }
            if self.send(parcel_of(&copy, self.now), || What::App(copy.clone())) == Sent::Later {
                self.outbound.copies.push_front(copy);
                return;
            }
        }
    }

    pub(super) fn on_puback(&mut self, id: u16) {
        // An id that nothing was sent under is a client's mistake: harmless.
        if self.outbound.in_flight.get(&id).is_none_or(|flight| flight.qos != 1) {
            return;
        }
        match self.outbound.land(id) {
            Some(What::Receipt(seq)) => self.receipts.acknowledged(seq),
            Some(What::State(topic, rank)) => {
                let state = self.outbound.states.entry(topic).or_default();
                state.acknowledged = state.acknowledged.max(Some(rank));
            }
            Some(What::Once | What::App(_) | What::Released) | None => {}
        }
    }

    pub(super) fn on_pubrec(&mut self, id: u16, code: u8) {
        match self.outbound.in_flight.get_mut(&id).filter(|flight| flight.qos == 2) {
            Some(_) if code >= 0x80 => drop(self.outbound.land(id)),
            Some(flight) => {
                let sent = std::mem::replace(&mut flight.what, What::Released);
                self.outbound.in_flight_bytes -= sent.bytes();
                self.out.ack(self.version, Kind::Rel, id, reason::SUCCESS, None);
            }
            // Of a session that is over, perhaps: the client is to forget it.
            None => self.out.ack(self.version, Kind::Rel, id, reason::PACKET_ID_NOT_FOUND, None),
        }
    }

    pub(super) fn on_pubcomp(&mut self, id: u16) {
        if matches!(self.outbound.in_flight.get(&id), Some(Flight { what: What::Released, .. })) {
            self.outbound.land(id);
        }
    }
}

impl What {
    fn bytes(&self) -> usize {
        if let Self::App(copy) = self { copy.message.bytes() } else { 0 }
    }
}

/// A copy, with the time that is left of it.
fn parcel_of(copy: &Mail, now: Instant) -> Parcel<'_> {
    let message = &copy.message;
    let left = message.expires.map(|at| at.saturating_duration_since(now));
    Parcel {
        topic: &message.topic,
        payload: &message.payload,
        details: &message.details,
        expiry: left.map(|left| left.as_millis().div_ceil(1_000) as u32),
        qos: copy.qos,
        retain: copy.retain,
        tags: &copy.tags,
    }
}

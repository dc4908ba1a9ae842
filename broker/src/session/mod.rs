//! One connection after its CONNECT, without I/O: packets, outcomes and messages in; packets to write and [`Effect`]s out.
//!
//! The owner (the connection's task) feeds every event to one method, then calls [`Session::pump`], carries out the
//! effects in order, and writes what is in [`Session::out`]. Nothing here reads a clock: the time comes with the event.
//!
//! ```text
//!  PUBLISH ──▶ inbound ──Take (backend), Publish (hub)──outcome──▶ inbound ──▶ PUBACK/PUBREC, in order of receipt
//!  SUBSCRIBE ─▶ subscriptions ─▶ Keep, Cursor (backend), Subscribe (hub) ─▶ SUBACK, State (backend)
//!  member messages, live messages, state, receipts ──▶ outbound ──▶ PUBLISH, as far as the client's window permits
//! ```
//!
//! What outlives the connection of a session that is kept is its [`Kept`].

#[cfg(test)]
mod answers;
#[cfg(test)]
mod any_order;
mod app;
mod effect;
#[cfg(test)]
mod fuzz;
mod inbound;
mod leaving;
mod outbound;
mod receipts;
#[cfg(test)]
mod resumption;
mod subscriptions;
#[cfg(test)]
mod tests;
mod unsent;

pub(crate) use self::app::check_will;
pub(crate) use self::effect::{Effect, End, Question};
pub(crate) use self::leaving::{Kept, expiry_of};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond_protocol::{Principal, Refusal, limits, topic};

use crate::backend::{MemberMessage, ReceiptRow, StateMessage};
use crate::budget::Held;
use crate::codec::packet::{Connect, Details, Head, Packet, Will};
use crate::codec::write::{Kind, Out, clipped};
use crate::codec::{Bad, Version, reason};
use crate::config::GateConfig;
use crate::hub::mailbox::Wants;
use crate::hub::message::Message;
use crate::hub::weight::{Sum, Weight};
use crate::registry::EndReason;

/// Bytes that may wait to be written before nothing more is encoded or read.
const OUT_HIGH: usize = 256 << 10;
/// Bytes of answers that may wait for a connection whatever waits for others.
const ANSWERS_MIN: usize = 256 << 10;
/// Bytes of short packets that one connection may have undecided: much more than a commit takes at once.
const SHORT_MAX: usize = 1 << 20;
/// SUBACKs and UNSUBACKs that may wait for the backend.
const SUBACKS_MAX: usize = 8;
/// Bytes of a reason string.
const REASON_MAX: usize = 512;

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    who: Principal,
    version: Version,
    config: Arc<GateConfig>,
    /// Whether reason strings are welcome.
    explains: bool,
    /// Bytes of the largest packet that the client accepts.
    packet_max: usize,
    /// One and a half keep-alive intervals.
    silence_max: Option<Duration>,
    /// How long it is kept without a connection.
    expiry: Duration,
    will: Option<Box<Will>>,
    /// What names it in what it publishes.
    id: u64,
    heard: Instant,
    /// The time of the last event.
    now: Instant,
    end: Option<End>,
    /// Whether its member's right ended, before it or after.
    is_revoked: bool,
    is_resumed: bool,
    inbound: inbound::Inbound,
    subscriptions: subscriptions::Subscriptions,
    outbound: outbound::Outbound,
    receipts: receipts::Receipts,
    /// The answers that wait for all connections.
    answers: Arc<Sum>,
    /// What is to be written.
    pub(crate) out: Out,
    /// What is to be done, in order.
    pub(crate) effects: VecDeque<Effect>,
    /// When the messages that were acknowledged since the owner last looked had been received.
    pub(crate) acked: Vec<Instant>,
}

impl Session {
    /// A session for a client that has signed in as `who`, with what was kept of an earlier connection.
    pub(crate) fn new(
        who: Principal,
        connect: &Connect,
        config: Arc<GateConfig>,
        now: Instant,
        (id, kept): (u64, Option<Kept>),
    ) -> Self {
        let window = usize::from(connect.receive_max.unwrap_or(u16::MAX)).min(config.in_flight_out);
        let is_resumed = kept.is_some();
        let Kept { subscriptions, unreleased, unsent } = kept.unwrap_or_default();
        let aliases = usize::from(connect.alias_max.min(limits::TOPIC_ALIASES));
        let mut session = Self {
            inbound: inbound::Inbound::new(&who, unreleased),
            receipts: receipts::Receipts::new(topic::receipt(&who.pool, &who.name), window),
            outbound: outbound::Outbound::new(window, aliases, unsent),
            subscriptions: subscriptions::Subscriptions::new(subscriptions),
            expiry: expiry_of(connect),
            will: connect.will.clone(),
            id,
            now,
            is_revoked: false,
            is_resumed,
            who,
            version: connect.version,
            config,
            explains: connect.wants_problem_information,
            packet_max: connect.packet_max.map_or(usize::MAX, |max| max as usize),
            silence_max: None,
            answers: Arc::default(),
            heard: now,
            end: None,
            out: Out::default(),
            effects: VecDeque::new(),
            acked: Vec::new(),
        };
        let keep_alive = session.config.keep_alive_of(connect).unwrap_or(connect.keep_alive);
        session.silence_max = (keep_alive > 0).then(|| Duration::from_millis(u64::from(keep_alive) * 1_500));
        if is_resumed {
            session.resume();
        }
        session
    }

    /// Counts the answers that wait for it among those that wait for all.
    pub(crate) fn count_answers_in(&mut self, sum: Arc<Sum>) {
        self.answers = sum;
    }

    /// Who it is.
    pub(crate) fn who(&self) -> &Principal {
        &self.who
    }

    /// How it ended, once it has.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether there is room for the next packet.
    pub(crate) fn has_room(&self) -> bool {
        use bytes::Buf;
        let held = self.held();
        self.end.is_none()
            && self.inbound.uncommitted() < self.config.uncommitted_per_connection
            // Long messages are stored one at a time: one more than is being stored gains nothing.
            && held.long < self.config.packet_max()
            && held.short < SHORT_MAX
            && self.out.remaining() < OUT_HIGH
            && self.subscriptions.waiting() < SUBACKS_MAX
            && self.subscriptions.on_their_way() <= self.config.subscriptions_max
    }

    /// What should be taken out of the mailbox. What stays there waits: state is replaced by newer state, of too many
    /// events the oldest are dropped, and of too many messages on app topics the connection ends.
    pub(crate) fn wants(&self) -> Wants {
        use bytes::Buf;
        let is_open = self.end.is_none();
        let has_room = is_open && self.out.remaining() < OUT_HIGH;
        Wants {
            live: is_open && self.outbound.bytes() < self.config.out_queue_max / 4,
            copies: if has_room { self.outbound.room() } else { 0 },
        }
    }

    /// Messages that have no outcome yet.
    pub(crate) fn uncommitted(&self) -> usize {
        self.inbound.uncommitted()
    }

    /// Bytes of the messages on app topics that it has taken and the client has not acknowledged.
    pub(crate) fn app_bytes(&self) -> usize {
        self.outbound.app_bytes()
    }

    /// Bytes of the packets whose messages have no outcome yet.
    pub(crate) fn held(&self) -> Held {
        self.inbound.held()
    }

    /// A packet arrived.
    pub(crate) fn packet(&mut self, packet: Packet, now: Instant) {
        if self.end.is_some() {
            return;
        }
        self.now = now;
        match packet {
            Packet::Publish(publish) => self.on_publish(publish, now),
            Packet::PubAck(id) => self.on_puback(id),
            Packet::PubRel(id) => self.on_pubrel(id),
            Packet::PubRec(id, code) => self.on_pubrec(id, code),
            Packet::PubComp(id) => self.on_pubcomp(id),
            Packet::Subscribe(subscribe) => self.on_subscribe(subscribe),
            Packet::Unsubscribe(unsubscribe) => self.on_unsubscribe(&unsubscribe),
            Packet::PingReq => self.out.pingresp(),
            Packet::Disconnect(said) => self.on_disconnect(said),
        }
    }

    /// Judges a long PUBLISH by its head.
    pub(crate) fn judge(&self, head: &Head, payload: usize) -> Result<(), Refusal> {
        self.inbound.check(&self.who, &self.config, self.inbound.topic(head), head, payload).map(|_| ())
    }

    /// Bytes arrived.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// When [`Session::timer`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.silence_max.map(|max| self.heard + max)
    }

    /// Whether so many bytes are more than the client accepts in one packet.
    pub(crate) fn is_too_long(&self, bytes: usize) -> bool {
        bytes > self.packet_max
    }

    /// The time has come: a client that could have spoken and did not is gone. `listens`: it could have.
    pub(crate) fn timer(&mut self, now: Instant, listens: bool) {
        self.now = now;
        if !listens {
            self.heard = now;
        } else if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.fail(Bad { code: reason::KEEP_ALIVE, what: "nothing was heard for 1.5 × keep alive" });
        }
    }

    /// Somebody ended the connection from outside, or what remains of it.
    pub(crate) fn kick(&mut self, reason: EndReason) {
        let (code, what) = match reason {
            EndReason::Revoked => (reason::NOT_AUTHORIZED, "the credentials are no longer valid"),
            EndReason::TakenOver => (reason::TAKEN_OVER, "the same client id connected again"),
            EndReason::Behind => (reason::SERVER_BUSY, "the server fell behind: connect again"),
            EndReason::QueueFull => (reason::QUOTA, "too much was waiting for this connection"),
        };
        if reason == EndReason::Revoked {
            self.is_revoked = true;
            self.inbound.forget_held(true);
        }
        if reason == EndReason::QueueFull {
            metrics::counter!("millpond_gate_overflows_total").increment(1);
        }
        self.fail(Bad { code, what });
    }

    /// Ends the session for the client to see.
    pub(crate) fn fail(&mut self, bad: Bad) {
        self.close(bad.code, bad.what);
    }

    fn close(&mut self, code: u8, why: &str) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(End::Gate(code));
        if self.version == Version::V5 {
            self.out.disconnect(code, self.reason(why, 9).as_deref());
        }
    }

    fn refuse_for_now(&mut self, refusal: &Refusal) {
        self.close(refusal.code.mqtt5(), &refusal.message);
    }

    fn ack(&mut self, kind: Kind, id: u16, refusal: Option<&Refusal>) {
        let (code, text) = match refusal {
            None => (reason::SUCCESS, None),
            Some(refusal) => (
                refusal.code.mqtt5(),
                match &refusal.hint {
                    Some(hint) => self.reason(&format!("{}: {hint}", refusal.message), 16),
                    None => self.reason(&refusal.message, 16),
                },
            ),
        };
        self.out.ack(self.version, kind, id, code, text.as_deref());
    }

    /// A reason string, where the client wants one and its packets hold it beside `others` bytes.
    fn reason(&self, text: &str, others: usize) -> Option<String> {
        let max = REASON_MAX.min(self.packet_max.saturating_sub(others));
        (self.explains && max > 0).then(|| clipped(text, max))
    }

    /// The current messages of the state topics that were asked for.
    pub(crate) fn states(&mut self, result: Result<Vec<StateMessage>, Refusal>) {
        match result {
            Ok(messages) => {
                let is_asked = self.subscriptions.is_asked();
                for message in messages.into_iter().map(|message| Arc::new(message.into())) {
                    if is_asked {
                        self.outbound.offer(message, true)
                    } else {
                        self.outbound.offer_news(message)
                    }
                }
            }
            Err(refusal) => self.refuse_for_now(&refusal),
        }
        self.on_states();
    }

    /// A message to the member.
    pub(crate) fn member_message(&mut self, message: MemberMessage) {
        if self.subscriptions.of(&message.topic).is_some() {
            let details = Details { correlation_data: message.correlation_data, ..Details::default() };
            let mut message = Message { details, ..Message::event(message.topic, message.payload) };
            message.weight = Weight::new(&self.answers, message.footprint());
            self.outbound.push(Arc::new(message));
            let share =
                if self.answers.bytes() > limits::ANSWERS_WAITING_MAX { ANSWERS_MIN } else { usize::MAX };
            if self.outbound.bytes() > self.config.out_queue_max.min(share) {
                self.kick(EndReason::QueueFull);
            }
        }
    }

    /// A live pool-wide message.
    pub(crate) fn live(&mut self, message: Arc<Message>) {
        if self.subscriptions.of(&message.topic).is_none() {
            return;
        }
        if message.is_event() {
            self.outbound.push(message);
        } else {
            self.outbound.offer(message, false);
        }
    }

    /// There are new receipt rows.
    pub(crate) fn receipts_ready(&mut self) {
        self.receipts.ready();
    }

    /// Where the receipts begin.
    pub(crate) fn cursor(&mut self, result: Result<i64, Refusal>) {
        match result {
            Ok(cursor) => {
                self.receipts.start(cursor);
                self.settle_subacks();
            }
            Err(refusal) => self.refuse_for_now(&refusal),
        }
    }

    /// The page of receipts above `after`.
    pub(crate) fn receipts(&mut self, after: i64, result: Result<Vec<ReceiptRow>, Refusal>) {
        match result {
            Ok(rows) => self.receipts.page(after, rows),
            Err(refusal) => self.refuse_for_now(&refusal),
        }
    }

    /// Encodes what may be sent now, and asks for what is missing.
    pub(crate) fn pump(&mut self) {
        if self.end.is_none() {
            // First, and four at most: a flood of events must not hold up what is current.
            self.send_states();
            self.send_messages();
            self.send_again();
            self.send_copies();
            self.send_receipts();
        }
        // What was acknowledged right before the end counts.
        self.report_receipts();
    }
}

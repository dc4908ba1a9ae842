//! One connection after its CONNECT, without I/O: packets, outcomes and messages in; packets to write and [`Effect`]s out.
//!
//! The owner (the connection's task) feeds every event to one method, then calls [`Session::pump`], carries out the
//! effects in order, and writes what is in [`Session::out`]. Nothing here reads a clock: the time comes with the event.
//!
//! ```text
//!  PUBLISH ──▶ inbound ──Take──▶ backend ──outcome──▶ inbound ──▶ PUBACK/PUBREC, in order of receipt
//!  SUBSCRIBE ─▶ subscriptions ─▶ SUBACK, then Attach (router), State and Cursor (backend)
//!  member messages, live messages, state, receipts ──▶ outbound ──▶ PUBLISH, as far as the client's window permits
//! ```

#[cfg(test)]
mod any_order;
mod inbound;
mod outbound;
mod receipts;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond_protocol::{Principal, Refusal, topic};

use crate::backend::{Incoming, MemberMessage, ReceiptRow, RefusedPublish, StateMessage};
use crate::budget::Held;
use crate::codec::packet::{Connect, Head, Packet};
use crate::codec::write::{Kind, Out, clipped};
use crate::codec::{Bad, Version, reason};
use crate::config::GateConfig;
use crate::registry::EndReason;
use crate::router::{Live, NoLink};

/// Bytes that may wait to be written before nothing more is encoded or read.
const OUT_HIGH: usize = 256 << 10;
/// Bytes of short packets that one connection may have undecided: much more than a commit takes at once.
const SHORT_MAX: usize = 1 << 20;
/// SUBACKs that may wait for the beginning of the receipts.
const SUBACKS_MAX: usize = 8;
/// Bytes of a reason string.
const REASON_MAX: usize = 512;

/// Something that the owner does for the session.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Hand the message to the backend. Outcomes come back by [`Session::outcome`] in the order of these.
    Take(Incoming),
    /// Tell the backend that the gate refused a PUBLISH.
    Refused(RefusedPublish),
    /// Find something out.
    Ask(Question),
    /// The client has every receipt up to here.
    ReceiptsAcknowledged(i64),
}

/// Something that the session wants to know. Of each kind one is asked at a time.
#[derive(Debug)]
pub(crate) enum Question {
    /// Subscribe to fixed filters of the router; answered by [`Session::attached`].
    Attach(Vec<String>),
    /// Ask for the current messages of state topics; answered by [`Session::states`].
    States(Vec<String>),
    /// Ask where the receipts begin; answered by [`Session::cursor`].
    Cursor,
    /// Ask for a page of receipts; answered by [`Session::receipts`].
    Receipts { after: i64, max: usize },
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client said goodbye: what it sent before counts.
    Client,
    /// The gate ended it; over MQTT 5 a DISCONNECT is in the output.
    Gate(u8),
}

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
    heard: Instant,
    end: Option<End>,
    inbound: inbound::Inbound,
    subscriptions: subscriptions::Subscriptions,
    outbound: outbound::Outbound,
    receipts: receipts::Receipts,
    /// What is to be written.
    pub(crate) out: Out,
    /// What is to be done, in order.
    pub(crate) effects: VecDeque<Effect>,
    /// When the messages that were acknowledged since the owner last looked had been received.
    pub(crate) acked: Vec<Instant>,
}

impl Session {
    /// A session for a client that has signed in as `who`.
    pub(crate) fn new(who: Principal, connect: &Connect, config: Arc<GateConfig>, now: Instant) -> Self {
        let window = usize::from(connect.receive_max.unwrap_or(u16::MAX)).min(config.in_flight_out);
        Self {
            inbound: inbound::Inbound::new(&who),
            receipts: receipts::Receipts::new(topic::receipt(&who.pool, &who.name), window),
            outbound: outbound::Outbound::new(window),
            subscriptions: subscriptions::Subscriptions::default(),
            who,
            version: connect.version,
            config,
            explains: connect.wants_problem_information,
            packet_max: connect.packet_max.map_or(usize::MAX, |max| max as usize),
            silence_max: (connect.keep_alive > 0)
                .then(|| Duration::from_millis(u64::from(connect.keep_alive) * 1_500)),
            heard: now,
            end: None,
            out: Out::default(),
            effects: VecDeque::new(),
            acked: Vec::new(),
        }
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
            && self.receipts.subacks.len() < SUBACKS_MAX
    }

    /// Whether live messages of the router should be handed over: of what it drops meanwhile, state is replaced by newer
    /// state, and events are lost.
    pub(crate) fn has_room_for_live(&self) -> bool {
        self.end.is_none() && self.outbound.bytes() < self.config.out_queue_max / 4
    }

    /// Messages that have no outcome yet.
    pub(crate) fn uncommitted(&self) -> usize {
        self.inbound.uncommitted()
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
        match packet {
            Packet::Publish(publish) => self.on_publish(publish, now),
            Packet::PubAck(id) => self.on_puback(id),
            Packet::PubRel(id) => self.on_pubrel(id),
            Packet::PubRec(_) | Packet::PubComp(_) => {
                self.fail(Bad::protocol("nothing was sent at QoS 2"));
            }
            Packet::Subscribe(subscribe) => self.on_subscribe(subscribe),
            Packet::Unsubscribe(unsubscribe) => self.on_unsubscribe(&unsubscribe),
            Packet::PingReq => self.out.pingresp(),
            Packet::Disconnect => self.end = Some(End::Client),
        }
    }

    /// Judges a long PUBLISH by its head.
    pub(crate) fn judge(&self, head: &Head, payload: usize) -> Result<(), Refusal> {
        self.inbound.check(&self.who, &self.config, head, payload).map(|_| ())
    }

    /// Bytes arrived.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// When [`Session::timer`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.silence_max.map(|max| self.heard + max)
    }

    /// The time has come: a client that could have spoken and did not is gone. `listens`: it could have.
    pub(crate) fn timer(&mut self, now: Instant, listens: bool) {
        if !listens {
            self.heard = now;
        } else if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.fail(Bad { code: reason::KEEP_ALIVE, what: "nothing was heard for 1.5 × keep alive" });
        }
    }

    /// Somebody ended the connection from outside.
    pub(crate) fn kick(&mut self, reason: EndReason) {
        let (code, what) = match reason {
            EndReason::Revoked => (reason::NOT_AUTHORIZED, "the credentials are no longer valid"),
            EndReason::TakenOver => (reason::TAKEN_OVER, "the same client id connected again"),
            EndReason::Behind => (reason::SERVER_BUSY, "the server fell behind: connect again"),
            EndReason::QueueFull => (reason::QUOTA, "too much was waiting for this connection"),
        };
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

    /// The router subscribed, or could not.
    pub(crate) fn attached(&mut self, result: Result<(), NoLink>) {
        match result {
            Ok(()) => self.on_attached(),
            Err(NoLink::Full) => self.close(reason::QUOTA, "too many connections listen to pools"),
            Err(NoLink::Dead) => self.close(reason::SHUTTING_DOWN, "the server is about to restart"),
        }
    }

    /// The current messages of the state topics that were asked for.
    pub(crate) fn states(&mut self, result: Result<Vec<StateMessage>, Refusal>) {
        match result {
            Ok(messages) => messages.into_iter().for_each(|message| self.outbound.offer(message, true)),
            Err(refusal) => self.refuse_for_now(&refusal),
        }
        self.on_states();
    }

    /// A message to the member.
    pub(crate) fn member_message(&mut self, message: MemberMessage) {
        if self.subscriptions.of(&message.topic).is_some() {
            self.outbound.push(message.into());
            if self.outbound.bytes() > self.config.out_queue_max {
                self.kick(EndReason::QueueFull);
            }
        }
    }

    /// A live pool-wide message.
    pub(crate) fn live(&mut self, live: Live) {
        if self.subscriptions.of(&live.topic).is_none() {
            return;
        }
        if subscriptions::is_event(&self.who.pool, &live.topic) {
            self.outbound.push(live.into());
        } else {
            self.outbound.offer(live.into(), false);
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
                for (id, codes) in std::mem::take(&mut self.receipts.subacks) {
                    self.out.suback(self.version, 0x90, id, &codes);
                }
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
            self.send_receipts();
        }
        // What was acknowledged right before the end counts.
        self.report_receipts();
    }
}

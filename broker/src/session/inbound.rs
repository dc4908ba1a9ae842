//! What a client publishes: checked, handed to the backend, and acknowledged in order of receipt.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use millpond_protocol::access::may;
use millpond_protocol::topic::{Inbound as Message, is_own_response};
use millpond_protocol::{Action, Code, Principal, Refusal, limits};

use super::app::check_app;
use super::{Effect, Session};
use crate::backend::{Incoming, RefusedPublish};
use crate::budget::Held;
use crate::codec::packet::{Head, Publish};
use crate::codec::write::Kind;
use crate::codec::{Bad, Version, reason};
use crate::config::GateConfig;
use crate::hub::message::Message as Live;

/// Messages that were received and have no acknowledgement yet.
#[derive(Debug)]
pub(super) struct Inbound {
    /// `mp/{p}/c/{m}/`.
    own: String,
    /// In order of receipt. None in front is [`Stage::Settled`].
    pending: VecDeque<Pending>,
    held: Held,
    /// A message above `SMALL_MAX` is in line: later ones wait for its outcome.
    large_in_line: bool,
    /// Packet ids of QoS 2 messages whose PUBREC was sent, and that were not released.
    unreleased: HashSet<u16>,
    /// Topics that the client sends a number for.
    aliases: HashMap<u16, String>,
}

/// Whom a PUBLISH is for.
#[derive(Debug)]
pub(super) enum To {
    Coordinator(Message),
    /// The members that subscribe.
    App,
}

#[derive(Debug)]
struct Pending {
    ack: Option<(Kind, u16)>,
    /// It is on its way to other members: received, whatever becomes of this connection.
    is_app: bool,
    /// Bytes of the packet; 0 when nothing of it is held.
    packet: usize,
    received: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// With the backend, which has not answered.
    InLine { large: bool },
    /// Behind a large message.
    Held(Box<Ready>),
    /// Decided here; behind messages that are not settled. `None`: it was received before.
    Settled(Option<Refusal>),
}

/// What is put in line.
#[derive(Debug)]
enum Ready {
    Take(Incoming),
    Publish(Box<Live>),
}

impl Inbound {
    pub(super) fn new(who: &Principal, unreleased: HashSet<u16>) -> Self {
        Self {
            own: format!("mp/{}/c/{}/", who.pool, who.name),
            pending: VecDeque::new(),
            held: Held::default(),
            large_in_line: false,
            unreleased,
            aliases: HashMap::new(),
        }
    }

    /// Packet ids of QoS 2 messages that the client must not have taken again, whatever it knows of them.
    pub(super) fn received(&self) -> HashSet<u16> {
        let under_way = self.pending.iter().filter(|pending| pending.is_app);
        let ids = under_way.filter_map(|pending| pending.ack).filter(|(kind, _)| *kind == Kind::Rec);
        self.unreleased.iter().copied().chain(ids.map(|(_, id)| id)).collect()
    }

    /// Forgets messages for other members that wait behind a large one: those that the client sends again when it comes
    /// back, or all.
    pub(super) fn forget_held(&mut self, all: bool) {
        let is_meant = |one: &Pending| one.is_app && (all || one.ack.is_some());
        self.pending.retain(|one| !(is_meant(one) && matches!(one.stage, Stage::Held(_))));
        self.count_held();
    }

    fn count_held(&mut self) {
        self.held = Held::default();
        self.pending.iter().for_each(|pending| self.held.add(pending.packet));
    }

    /// The topic of a PUBLISH, where a number may stand for it.
    pub(super) fn topic<'a>(&'a self, head: &'a Head) -> &'a str {
        match head.alias {
            Some(alias) if head.topic.is_empty() => self.aliases.get(&alias).map_or("", |topic| topic),
            _ => &head.topic,
        }
    }

    /// Puts the topic in the place of its number, or remembers the number.
    fn resolve(&mut self, head: &mut Head) -> Result<(), Bad> {
        let Some(alias) = head.alias.take() else { return Ok(()) };
        if alias > limits::TOPIC_ALIASES {
            return Err(Bad { code: reason::ALIAS_INVALID, what: "a topic alias above the maximum" });
        }
        if !head.topic.is_empty() {
            if head.topic.len() > limits::APP_TOPIC_BYTES {
                return Err(Bad {
                    code: reason::TOPIC_INVALID,
                    what: "a topic that is too long for an alias",
                });
            }
            self.aliases.insert(alias, head.topic.clone());
            return Ok(());
        }
        match self.aliases.get(&alias) {
            Some(topic) => head.topic.clone_from(topic),
            None => return Err(Bad::protocol("a topic alias that stands for nothing")),
        }
        Ok(())
    }

    /// Messages above QoS 0 that the client waits for.
    fn unacknowledged(&self) -> usize {
        let is_new = |(_, id): &(Kind, u16)| !self.unreleased.contains(id);
        self.pending.iter().filter_map(|pending| pending.ack).filter(is_new).count() + self.unreleased.len()
    }

    pub(super) fn uncommitted(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn held(&self) -> Held {
        self.held
    }

    /// Everything that can be told of a PUBLISH without its payload.
    pub(super) fn check(
        &self,
        who: &Principal,
        config: &GateConfig,
        topic: &str,
        head: &Head,
        payload: usize,
    ) -> Result<To, Refusal> {
        let is_own = topic.starts_with(&self.own);
        if !is_own && !may(who, Action::Publish(topic, &config.app_topics)) {
            return Err(Refusal::new(Code::Unauthorized, "the topic is not yours to publish to")
                .hint(format!("publish to {}…", self.own)));
        }
        if head.has_too_many_properties {
            let max = limits::USER_PROPERTIES_MAX;
            return Err(Refusal::new(Code::TooLarge, format!("a message has at most {max} user properties"))
                .limit(max as u64));
        }
        if !is_own {
            let response = head.details.response_topic.as_deref();
            return check_app(config, topic, payload, response).map(|()| To::App);
        }
        let (_, _, message) = Message::parse(topic)?;
        if !may(who, Action::Publish(topic, &config.app_topics)) {
            return Err(Refusal::new(Code::Unauthorized, format!("a {} may not send this", who.role)));
        }
        let (what, max, instead) = match &message {
            Message::Up { .. } => {
                ("a file in one message", config.publish_max, "send larger files by ask/put")
            }
            Message::Result { .. } => {
                ("a result in one message", config.publish_max, "send larger results by ask/put")
            }
            Message::Bundle { .. } => ("a bundle", config.bundle_max, "send several bundles"),
            Message::Ask(_) => ("an ask", config.ask_max, "ask for less at a time"),
            Message::Delivery { .. } => ("a delivery", config.ask_max, "shorten the reason"),
        };
        if payload > max {
            return Err(Refusal::new(
                Code::TooLarge,
                format!("{what} has at most {max} bytes, not {payload}"),
            )
            .hint(instead)
            .limit(max as u64));
        }
        if let (Message::Ask(_), Some(answer)) = (&message, &head.details.response_topic)
            && !is_own_response(&who.pool, &who.name, answer)
        {
            return Err(Refusal::new(Code::Unauthorized, "the response topic is not yours")
                .hint(format!("use one inside mp/{}/d/{}/", who.pool, who.name)));
        }
        Ok(To::Coordinator(message))
    }
}

impl Session {
    pub(super) fn on_publish(&mut self, publish: Publish, now: Instant) {
        let Publish { mut head, payload, packet } = publish;
        if let Err(bad) = self.inbound.resolve(&mut head) {
            return self.fail(bad);
        }
        // Sent again, because the client has not seen that it was received. What is for the coordinator has a key of its own.
        let is_known = head.qos == 2 && self.inbound.unreleased.contains(&head.id);
        if is_known && !head.topic.starts_with(&self.inbound.own) {
            let stage = Stage::Settled(None);
            let ack = ack_of(&head);
            self.inbound.pending.push_back(Pending { ack, is_app: false, packet: 0, received: now, stage });
            return self.settle_front();
        }
        let is_over = !is_known && self.inbound.unacknowledged() >= self.config.uncommitted_per_connection;
        if head.qos > 0 && is_over && self.version == Version::V5 {
            let what = "more is unacknowledged than Receive Maximum permits";
            return self.fail(Bad { code: reason::RECEIVE_MAX_EXCEEDED, what });
        }
        let checked = self.inbound.check(&self.who, &self.config, &head.topic, &head, payload.len());
        match checked.and_then(|to| self.has_room_for_answer(to)) {
            Err(refusal) => self.refuse(head, refusal, now),
            Ok(to) => {
                let ack = ack_of(&head);
                let is_app = matches!(to, To::App);
                let what = match to {
                    To::Coordinator(to) => {
                        let is_ask = matches!(to, Message::Ask(_));
                        let details = head.details;
                        Ready::Take(Incoming {
                            to,
                            payload,
                            user_properties: details.user_properties,
                            content_type: details.content_type,
                            response_topic: details.response_topic.filter(|_| is_ask),
                            correlation_data: details.correlation_data,
                        })
                    }
                    To::App => {
                        Ready::Publish(Box::new(Live::new(head, payload, (self.id, self.who.id), now)))
                    }
                };
                let stage = if self.inbound.large_in_line {
                    Stage::Held(Box::new(what))
                } else {
                    self.put_in_line(what)
                };
                self.inbound.held.add(packet);
                self.inbound.pending.push_back(Pending { ack, is_app, packet, received: now, stage });
            }
        }
    }

    /// A client that does not take its answers is not asked for more of them: what is queued to it would end it.
    fn has_room_for_answer(&self, to: To) -> Result<To, Refusal> {
        let left = limits::ANSWERS_WAITING_MAX.saturating_sub(self.answers.bytes());
        if matches!(to, To::Coordinator(Message::Ask(_)))
            && self.outbound.bytes() > (self.config.out_queue_max / 3).min(left / 2)
        {
            return Err(Refusal::new(Code::Quota, "too many answers wait for this connection")
                .hint("take them, then ask again")
                .retry_after_ms(1_000));
        }
        Ok(to)
    }

    /// A PUBLISH was refused by its head, and its payload has been read past.
    pub(crate) fn read_past(&mut self, mut head: Head, refusal: Refusal, now: Instant) {
        match self.inbound.resolve(&mut head) {
            Ok(()) => self.refuse(head, refusal, now),
            Err(bad) => self.fail(bad),
        }
    }

    fn refuse(&mut self, head: Head, refusal: Refusal, now: Instant) {
        let ack = ack_of(&head);
        let (pool, name) = (&self.who.pool, &self.who.name);
        self.effects.push_back(Effect::Refused(RefusedPublish {
            topic: head.topic,
            response_topic: head.details.response_topic.filter(|topic| is_own_response(pool, name, topic)),
            correlation_data: head.details.correlation_data,
            refusal: refusal.clone(),
        }));
        self.inbound.pending.push_back(Pending {
            ack,
            is_app: false,
            packet: 0,
            received: now,
            stage: Stage::Settled(Some(refusal)),
        });
        self.settle_front();
    }

    /// The backend decided on the oldest message that it holds.
    pub(crate) fn outcome(&mut self, outcome: Result<(), Refusal>) {
        let Some(pending) = self.inbound.pending.pop_front() else {
            return;
        };
        self.inbound.held.subtract(pending.packet);
        match outcome {
            Err(refusal) if refusal.code.is_temporary() => {
                // Neither this one nor what follows is acknowledged: the client sends all of it again, in order.
                self.refuse_for_now(&refusal);
                self.inbound.pending.retain(|pending| matches!(pending.stage, Stage::InLine { .. }));
                self.inbound.count_held();
                return;
            }
            outcome => self.acknowledge(&pending, outcome.err().as_ref()),
        }
        if matches!(pending.stage, Stage::InLine { large: true }) {
            self.inbound.large_in_line = false;
            self.release_held();
        }
        self.settle_front();
    }

    /// PUBREL: the packet id is free again.
    pub(super) fn on_pubrel(&mut self, id: u16) {
        let known = self.inbound.unreleased.remove(&id);
        let code = if known { reason::SUCCESS } else { reason::PACKET_ID_NOT_FOUND };
        self.out.ack(self.version, Kind::Comp, id, code, None);
    }

    fn put_in_line(&mut self, what: Ready) -> Stage {
        let (bytes, effect) = match what {
            Ready::Take(incoming) => (incoming.payload.len(), Effect::Take(incoming)),
            Ready::Publish(message) => (message.payload.len(), Effect::Publish(message)),
        };
        let large = bytes > limits::SMALL_MAX;
        self.inbound.large_in_line |= large;
        self.effects.push_back(effect);
        Stage::InLine { large }
    }

    /// Puts held messages in line, up to and including the next large one.
    fn release_held(&mut self) {
        for at in 0..self.inbound.pending.len() {
            if self.inbound.large_in_line {
                return;
            }
            let stage = &mut self.inbound.pending[at].stage;
            if matches!(stage, Stage::Held(_)) {
                let held = std::mem::replace(stage, Stage::InLine { large: false });
                if let Stage::Held(what) = held {
                    self.inbound.pending[at].stage = self.put_in_line(*what);
                }
            }
        }
    }

    fn settle_front(&mut self) {
        while let Some(Pending { stage: Stage::Settled(_), .. }) = self.inbound.pending.front() {
            if let Some(pending) = self.inbound.pending.pop_front()
                && let Stage::Settled(refusal) = &pending.stage
            {
                self.acknowledge(&pending, refusal.as_ref());
            }
        }
    }

    fn acknowledge(&mut self, pending: &Pending, refusal: Option<&Refusal>) {
        // After the end nobody listens.
        let Some((ack, id)) = pending.ack.filter(|_| self.end.is_none()) else {
            return;
        };
        self.ack(ack, id, refusal);
        self.acked.push(pending.received);
        // An error in a PUBREC of MQTT 5 ends the exchange.
        if ack == Kind::Rec && (refusal.is_none() || self.version == Version::V4) {
            self.inbound.unreleased.insert(id);
        }
    }
}

fn ack_of(head: &Head) -> Option<(Kind, u16)> {
    match head.qos {
        0 => None,
        1 => Some((Kind::Ack, head.id)),
        _ => Some((Kind::Rec, head.id)),
    }
}

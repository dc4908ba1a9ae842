//! A message on its way from one publisher to many sessions: in memory once, whoever waits for it.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use millpond_protocol::topic;

use super::weight::Weight;
use crate::backend::StateMessage;
use crate::codec::packet::{Details, Head, Publish, Version};
use crate::codec::write::{Delivery as Written, Out};
use crate::codec::{self, packet::Packet};

/// What the allocator and a place in a queue add to a message.
const ALLOCATIONS: usize = 96;

/// A message that is fanned out: of a pool-wide topic, or of an app topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: u8,
    /// As it was published: of an app topic, it is to be retained.
    pub(crate) retain: bool,
    pub(crate) details: Details,
    /// When it expires.
    pub(crate) expires: Option<Instant>,
    /// Of a state topic: grows with every change.
    pub(crate) rank: u64,
    /// The session that published it; 0 is the server.
    pub(crate) session: u64,
    /// The member that published it; 0 is the server.
    pub(crate) member: i64,
    /// What it counts for while somebody holds it.
    pub(crate) weight: Weight,
}

/// One copy of a message, for one session.
#[derive(Debug, Clone)]
pub(crate) struct Mail {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: u8,
    /// The flag that the client sees.
    pub(crate) retain: bool,
    /// It was retained before the subscription, or is the current state: sent because the client subscribed.
    pub(crate) replay: bool,
    /// Identifiers of the subscriptions that it matched.
    pub(crate) tags: Vec<u32>,
}

impl Mail {
    /// What one takes in memory beside the bytes of its message.
    pub(crate) const AROUND: usize = size_of::<Self>() + size_of::<Message>() + ALLOCATIONS;

    /// What it takes in memory, were its message only here.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.message.footprint()
    }
}

impl Message {
    /// What a member publishes to an app topic.
    pub(crate) fn new(head: Head, payload: Bytes, from: (u64, i64), now: Instant) -> Self {
        let expires = head.details.expiry.map(|seconds| now + std::time::Duration::from_secs(seconds.into()));
        Self {
            topic: head.topic,
            payload,
            qos: head.qos,
            retain: head.retain,
            details: head.details,
            expires,
            rank: 0,
            session: from.0,
            member: from.1,
            weight: Weight::default(),
        }
    }

    /// A live event of the server.
    pub(crate) fn event(topic: String, payload: Bytes) -> Self {
        Self {
            topic,
            payload,
            qos: 1,
            retain: false,
            details: Details::default(),
            expires: None,
            rank: 0,
            session: 0,
            member: 0,
            weight: Weight::default(),
        }
    }

    /// Whether it is of the server's own topics: fanned out live, never queued for who is away.
    pub(crate) fn is_pool_wide(&self) -> bool {
        self.topic.starts_with("mp/")
    }

    /// Whether it is of the event feed.
    pub(crate) fn is_event(&self) -> bool {
        is_event(&self.topic)
    }

    /// The second level: whose it is.
    pub(crate) fn pool(&self) -> &str {
        self.topic.split('/').nth(1).unwrap_or_default()
    }

    /// Bytes that it counts for where bytes are limited.
    pub(crate) fn bytes(&self) -> usize {
        let details = &self.details;
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let pair = |(key, value): &(String, String)| size_of::<(String, String)>() + key.len() + value.len();
        let user: usize = details.user_properties.iter().map(pair).sum();
        let data = details.correlation_data.as_ref().map_or(0, Bytes::len);
        let texts = text(&details.content_type) + text(&details.response_topic);
        self.topic.len() + self.payload.len() + user + data + texts
    }

    /// Bytes that it takes in memory: of a short one, most are not its own.
    pub(crate) fn footprint(&self) -> usize {
        self.bytes() + size_of::<Self>() + ALLOCATIONS
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

impl From<StateMessage> for Message {
    fn from(state: StateMessage) -> Self {
        let details = Details {
            user_properties: state.user_properties,
            content_type: state.content_type,
            ..Details::default()
        };
        Self { rank: state.rank, details, ..Self::event(state.topic, state.payload) }
    }
}

/// Whether `topic` is of a pool's event feed.
pub(crate) fn is_event(topic: &str) -> bool {
    topic::matches("mp/+/event/#", topic)
}

/// On the bus: a number, who it is from, its rank and expiry, and then the message as a PUBLISH of MQTT 5, which is as much
/// as any broker between two processes could carry.
pub(crate) fn to_bus(message: &Message, seq: u64, epoch: Instant) -> Bytes {
    let publish = Written {
        topic: &message.topic,
        payload: &message.payload,
        qos: message.qos,
        id: 1,
        again: false,
        retain: message.retain,
        alias: None,
        details: &message.details,
        expiry: message.details.expiry,
        tags: &[],
    };
    let mut into = BytesMut::with_capacity(48 + publish.packet_len(Version::V5));
    into.put_u64(seq);
    into.put_u64(message.session);
    into.put_i64(message.member);
    into.put_u64(message.rank);
    // Nanoseconds since the gate began, or 0: expiry does not survive a restart, and neither does the message.
    let nanos = message.expires.map_or(0, |at| at.saturating_duration_since(epoch).as_nanos().max(1) as u64);
    into.put_u64(nanos);
    let mut out = Out::default();
    out.publish(Version::V5, &publish);
    into.put(out);
    into.freeze()
}

/// The reverse of [`to_bus`]. `None`: it is nothing that the gate sent.
pub(crate) fn from_bus(mut bytes: Bytes, epoch: Instant) -> Option<(u64, Message)> {
    let (seq, session, member) =
        (bytes.try_get_u64().ok()?, bytes.try_get_u64().ok()?, bytes.try_get_i64().ok()?);
    let (rank, nanos) = (bytes.try_get_u64().ok()?, bytes.try_get_u64().ok()?);
    let (first, header, body) = codec::frame::fixed_header(&bytes, Version::V5).ok()??;
    if bytes.len() != header + body {
        return None;
    }
    let body = bytes.split_off(header);
    let Ok(Packet::Publish(Publish { head, payload, .. })) = codec::read::packet(Version::V5, first, body)
    else {
        return None;
    };
    let message = Message {
        expires: (nanos > 0).then(|| epoch + std::time::Duration::from_nanos(nanos)),
        rank,
        ..Message::new(head, payload, (session, member), epoch)
    };
    Some((seq, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_message_carries_counts_wherever_it_stands() {
        let event = Message::event("app/p/x".into(), Bytes::new());
        let counted = |details: Details| Message { details, ..event.clone() }.bytes();
        let (long, plain) = ("x".repeat(60_000), Details::default());
        assert!(counted(Details { content_type: Some(long.clone()), ..plain.clone() }) >= 60_000);
        assert!(counted(Details { response_topic: Some(long), ..plain.clone() }) >= 60_000);
        let pairs = vec![(String::new(), String::new()); 256];
        assert!(counted(Details { user_properties: pairs, ..plain }) >= 256 * size_of::<(String, String)>());
    }

    proptest! {
        #[test]
        fn a_message_comes_off_the_bus_as_it_went_on(
            topic in "[a-zé]{1,9}(/[a-z$]{0,9}){0,4}",
            payload in proptest::collection::vec(any::<u8>(), 0..20_000),
            (qos, retain, is_text) in (0_u8..3, any::<bool>(), any::<bool>()),
            (seq, session, member, rank) in any::<(u64, u64, i64, u64)>(),
            expiry in proptest::option::of(0_u32..1_000_000),
            user_properties in proptest::collection::vec(("[a-z]{0,9}", "[a-z]{0,9}"), 0..4),
        ) {
            let (epoch, now) = (Instant::now(), Instant::now());
            let details = Details { is_text, expiry, user_properties, ..Details::default() };
            let head = Head { topic, qos, retain, details, ..Head::default() };
            let message = Message { rank, ..Message::new(head, payload.into(), (session, member), now) };
            let bus = to_bus(&message, seq, epoch);
            let found = from_bus(bus.clone(), epoch);
            prop_assert_eq!(found, Some((seq, message)));
            for cut in [0, 8, 39, 40, bus.len() - 1] {
                prop_assert!(from_bus(bus.slice(..cut), epoch).is_none());
            }
        }
    }
}

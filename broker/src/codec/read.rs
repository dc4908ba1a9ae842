//! What clients send, from bytes that may be anything.

use bytes::{Buf, Bytes};

use super::packet::{
    Bad, Connect, Disconnect, Filter, Head, Packet, Publish, Replay, Subscribe, Unsubscribe, Version, Will,
};
use super::properties::{self, Properties};
use super::reason;

/// Payloads from this size on are not copied out of what was read: it is at most a few times larger.
const SHARED_FROM: usize = 16 << 10;

/// Why a CONNECT was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadConnect {
    /// No MQTT at all: nothing is answered.
    NotMqtt,
    /// A version that the gate does not speak.
    Level(u8),
    /// A mistake in a version that it speaks.
    Bad(Version, Bad),
}

/// The version of a CONNECT of which only the beginning is there; `None` if that is too little, or no version of ours.
pub(crate) fn version_of(begun: &[u8]) -> Option<Version> {
    match begun {
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => Some(Version::V4),
        [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => Some(Version::V5),
        _ => None,
    }
}

/// Reads a CONNECT from what follows its fixed header.
pub(crate) fn connect(first: u8, body: Bytes) -> Result<Connect, BadConnect> {
    let mut from = Reader(body);
    let (Ok(name), Ok(level)) = (from.binary(), from.u8()) else {
        return Err(BadConnect::NotMqtt);
    };
    let version = match (&name[..], level) {
        (b"MQTT", 4) => Version::V4,
        (b"MQTT", 5) => Version::V5,
        (b"MQTT" | b"MQIsdp", level) => return Err(BadConnect::Level(level)),
        _ => return Err(BadConnect::NotMqtt),
    };
    let rest = connect_fields(first, version, &mut from);
    rest.map_err(|bad| BadConnect::Bad(version, bad))
}

fn connect_fields(first: u8, version: Version, from: &mut Reader) -> Result<Connect, Bad> {
    let flags = from.u8()?;
    let is = |bit: u8| flags & (1 << bit) != 0;
    if first & 0x0F != 0 || is(0) {
        return Err(Bad::malformed("reserved bits of CONNECT are set"));
    }
    let has_will = is(2);
    let will_qos = (flags >> 3) & 3;
    if will_qos == 3 || (!has_will && (will_qos != 0 || is(5))) {
        return Err(Bad::malformed("will flags contradict each other"));
    }
    if version == Version::V4 && is(6) && !is(7) {
        return Err(Bad::malformed("a password without a user name"));
    }
    let keep_alive = from.u16()?;
    let mut found = Properties::default();
    if version == Version::V5 {
        found = Properties::read(from, properties::CONNECT)?;
    }
    if found.has_auth_data && found.auth_method.is_none() {
        return Err(Bad::protocol("authentication data without a method"));
    }
    let client_id = from.text()?;
    let mut will = None;
    if has_will {
        let mut said = Properties::default();
        if version == Version::V5 {
            said = Properties::read(from, properties::WILL)?;
        }
        let topic = from.text()?;
        if topic.is_empty() || topic.contains(['+', '#']) {
            return Err(Bad { code: reason::TOPIC_INVALID, what: "the will's topic is none" });
        }
        // A copy: a slice would keep all of CONNECT, the token too, for as long as the connection.
        let payload = Bytes::copy_from_slice(&from.binary()?);
        will = Some(Box::new(Will {
            topic,
            payload,
            qos: will_qos,
            retain: is(5),
            delay: said.will_delay.unwrap_or(0),
            details: said.details,
            has_too_many_properties: said.has_too_many,
        }));
    }
    let user = if is(7) { Some(from.text()?) } else { None };
    let password = if is(6) { Some(from.binary()?) } else { None };
    from.end()?;
    Ok(Connect {
        version,
        clean: is(1),
        keep_alive,
        client_id,
        will,
        user,
        password,
        session_expiry: found.session_expiry.unwrap_or(0),
        receive_max: found.receive_max,
        packet_max: found.packet_max,
        alias_max: found.alias_max.unwrap_or(0),
        wants_response_information: found.request_response.unwrap_or(false),
        wants_problem_information: found.request_problem.unwrap_or(true),
        auth_method: found.auth_method.is_some(),
    })
}

/// Reads a packet after CONNECT from what follows its fixed header.
pub(crate) fn packet(version: Version, first: u8, body: Bytes) -> Result<Packet, Bad> {
    let (kind, flags) = (first >> 4, first & 0x0F);
    let expected = match kind {
        3 => flags,
        6 | 8 | 10 => 0b0010,
        _ => 0,
    };
    if flags != expected {
        return Err(Bad::malformed("reserved bits of the fixed header"));
    }
    let mut from = Reader(body);
    match kind {
        1 => Err(Bad::protocol("a second CONNECT")),
        3 => publish(version, flags, from).map(Packet::Publish),
        4 => ack(version, &mut from).map(|(id, _)| Packet::PubAck(id)),
        5 => ack(version, &mut from).map(|(id, code)| Packet::PubRec(id, code)),
        6 => ack(version, &mut from).map(|(id, _)| Packet::PubRel(id)),
        7 => ack(version, &mut from).map(|(id, _)| Packet::PubComp(id)),
        8 => subscribe(version, &mut from).map(Packet::Subscribe),
        10 => unsubscribe(version, &mut from).map(Packet::Unsubscribe),
        12 => from.end().map(|()| Packet::PingReq),
        14 => disconnect(version, &mut from).map(Packet::Disconnect),
        15 if version == Version::V5 => Err(Bad::protocol("no authentication method was agreed")),
        0 | 15 => Err(Bad::malformed("no such packet type")),
        _ => Err(Bad::protocol("a packet that only servers send")),
    }
}

fn publish(version: Version, flags: u8, mut from: Reader) -> Result<Publish, Bad> {
    let packet = from.0.len();
    let head = head(version, flags, &mut from)?;
    let payload = if from.0.len() < SHARED_FROM { Bytes::copy_from_slice(&from.0) } else { from.0 };
    Ok(Publish { head, payload, packet })
}

/// Reads what stands before the payload of a PUBLISH.
pub(super) fn head(version: Version, flags: u8, from: &mut Reader) -> Result<Head, Bad> {
    let qos = (flags >> 1) & 3;
    if qos == 3 {
        return Err(Bad::malformed("QoS 3"));
    }
    if qos == 0 && flags & 0b1000 != 0 {
        return Err(Bad::malformed("DUP at QoS 0"));
    }
    let topic = from.text()?;
    let id = if qos > 0 { from.packet_id()? } else { 0 };
    let mut found = Properties::default();
    if version == Version::V5 {
        found = Properties::read(from, properties::PUBLISH)?;
    }
    if found.topic_alias == Some(0) {
        return Err(Bad { code: reason::ALIAS_INVALID, what: "topic alias 0" });
    }
    if topic.is_empty() && found.topic_alias.is_none() {
        return Err(Bad::protocol("an empty topic"));
    }
    if topic.contains(['+', '#']) {
        return Err(Bad { code: reason::TOPIC_INVALID, what: "a topic with wildcards" });
    }
    Ok(Head {
        qos,
        id,
        retain: flags & 1 == 1,
        topic,
        alias: found.topic_alias,
        details: found.details,
        has_too_many_properties: found.has_too_many,
    })
}

/// Packet id and reason code.
fn ack(version: Version, from: &mut Reader) -> Result<(u16, u8), Bad> {
    let id = from.packet_id()?;
    let mut code = reason::SUCCESS;
    if version == Version::V5 && !from.is_empty() {
        code = from.u8()?;
        if !from.is_empty() {
            Properties::read(from, properties::ACK)?;
        }
    }
    from.end()?;
    Ok((id, code))
}

fn subscribe(version: Version, from: &mut Reader) -> Result<Subscribe, Bad> {
    let id = from.packet_id()?;
    let mut tag = None;
    if version == Version::V5 {
        tag = Properties::read(from, properties::SUBSCRIBE)?.subscription_identifier;
    }
    let mut filters = Vec::new();
    while !from.is_empty() {
        let filter = from.text()?;
        let options = from.u8()?;
        let reserved = if version == Version::V5 { 0xC0 } else { 0xFC };
        if options & reserved != 0 || options & 3 == 3 {
            return Err(Bad::malformed("subscription options"));
        }
        let replay = match options >> 4 {
            0 => Replay::Always,
            1 => Replay::IfNew,
            2 => Replay::Never,
            _ => return Err(Bad::protocol("retain handling 3")),
        };
        let (no_local, as_published) = (options & 4 != 0, options & 8 != 0);
        if no_local && filter.starts_with("$share/") {
            return Err(Bad::protocol("a shared subscription with No Local"));
        }
        filters.push(Filter { filter, qos: options & 3, no_local, as_published, replay });
    }
    if filters.is_empty() {
        return Err(Bad::protocol("SUBSCRIBE without a filter"));
    }
    Ok(Subscribe { id, filters, tag })
}

fn unsubscribe(version: Version, from: &mut Reader) -> Result<Unsubscribe, Bad> {
    let id = from.packet_id()?;
    if version == Version::V5 {
        Properties::read(from, properties::UNSUBSCRIBE)?;
    }
    let mut filters = Vec::new();
    while !from.is_empty() {
        filters.push(from.text()?);
    }
    if filters.is_empty() {
        return Err(Bad::protocol("UNSUBSCRIBE without a filter"));
    }
    Ok(Unsubscribe { id, filters })
}

fn disconnect(version: Version, from: &mut Reader) -> Result<Disconnect, Bad> {
    let mut said = Disconnect::default();
    if version == Version::V5 && !from.is_empty() {
        said.code = from.u8()?;
        if !from.is_empty() {
            said.session_expiry = Properties::read(from, properties::DISCONNECT)?.session_expiry;
        }
    }
    from.end()?;
    Ok(said)
}

/// A cursor over bytes of which nothing is known.
#[derive(Debug)]
pub(super) struct Reader(pub(super) Bytes);

const SHORT: Bad = Bad { code: reason::MALFORMED, what: "the packet ends too early" };

impl Reader {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn end(&self) -> Result<(), Bad> {
        if self.is_empty() { Ok(()) } else { Err(Bad::malformed("bytes after the end of the packet")) }
    }

    pub(super) fn u8(&mut self) -> Result<u8, Bad> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Bad> {
        self.0.try_get_u16().map_err(|_| SHORT)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Bad> {
        self.0.try_get_u32().map_err(|_| SHORT)
    }

    pub(super) fn packet_id(&mut self) -> Result<u16, Bad> {
        match self.u16()? {
            0 => Err(Bad::protocol("packet identifier 0")),
            id => Ok(id),
        }
    }

    /// A variable byte integer, in as few bytes as it needs (OASIS MQTT 5, 1.5.5).
    pub(super) fn varint(&mut self) -> Result<usize, Bad> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(Bad::malformed("an overlong integer"));
                }
                return Ok(value);
            }
        }
        Err(Bad::malformed("an integer of more than four bytes"))
    }

    pub(super) fn varint_nonzero(&mut self) -> Result<u32, Bad> {
        match u32::try_from(self.varint()?) {
            Ok(value) if value > 0 => Ok(value),
            _ => Err(Bad::protocol("subscription identifier 0")),
        }
    }

    pub(super) fn part(&mut self, length: usize) -> Result<Reader, Bad> {
        if length > self.0.len() {
            return Err(SHORT);
        }
        Ok(Reader(self.0.split_to(length)))
    }

    pub(super) fn binary(&mut self) -> Result<Bytes, Bad> {
        let length = self.u16()?;
        Ok(self.part(usize::from(length))?.0)
    }

    /// UTF-8 without NUL (OASIS MQTT 5, 1.5.4).
    pub(super) fn text(&mut self) -> Result<String, Bad> {
        let bytes = self.binary()?;
        match std::str::from_utf8(&bytes) {
            Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
            _ => Err(Bad::malformed("text that is not UTF-8, or with NUL")),
        }
    }
}

//! What the gate sends, and the queue of bytes that it is written from.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::packet::{Details, Version};

/// Payloads from this size on are not copied into the queue.
const SHARED_FROM: usize = 4 << 10;
/// An idle connection keeps no larger buffer.
const KEPT: usize = 4 << 10;

/// Acknowledgements, by the first byte of PUBACK, PUBREC, PUBREL and PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ack = 0x40,
    Rec = 0x50,
    Rel = 0x62,
    Comp = 0x70,
}

/// A PUBLISH to a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery<'a> {
    /// Empty where `alias` stands for it.
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a Bytes,
    pub(crate) qos: u8,
    /// Not written at QoS 0.
    pub(crate) id: u16,
    /// It was sent before.
    pub(crate) again: bool,
    pub(crate) retain: bool,
    /// What follows is written over MQTT 5 only.
    pub(crate) alias: Option<u16>,
    pub(crate) details: &'a Details,
    /// Seconds until it expires, in place of what `details` say.
    pub(crate) expiry: Option<u32>,
    pub(crate) tags: &'a [u32],
}

/// What a CONNACK over MQTT 5 announces.
#[derive(Debug, Default)]
pub(crate) struct Announced<'a> {
    pub(crate) receive_max: Option<u16>,
    pub(crate) packet_max: Option<u32>,
    pub(crate) alias_max: Option<u16>,
    pub(crate) keep_alive: Option<u16>,
    pub(crate) client_id: Option<&'a str>,
    pub(crate) session_expiry: Option<u32>,
    pub(crate) response_information: Option<&'a str>,
    pub(crate) reason: Option<&'a str>,
}

/// Bytes on their way to a client: small packets gathered, large payloads shared.
#[derive(Debug, Default)]
pub(crate) struct Out {
    done: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
    queued: u64,
}

impl Out {
    /// Bytes queued since the beginning; less [`Buf::remaining`], those written.
    pub(crate) fn queued(&self) -> u64 {
        self.queued
    }

    /// Bytes written since the beginning.
    pub(crate) fn written(&self) -> u64 {
        self.queued - self.len as u64
    }

    fn packet(&mut self, first: u8, body: usize) -> &mut BytesMut {
        self.tail.reserve(body.min(SHARED_FROM) + 5);
        self.tail.put_u8(first);
        let header = 1 + put_varint(&mut self.tail, body);
        self.len += header + body;
        self.queued += (header + body) as u64;
        &mut self.tail
    }

    /// CONNACK. `code` is a return code of 3.1.1 or a reason code of 5.
    pub(crate) fn connack(&mut self, version: Version, code: u8, present: bool, announced: &Announced<'_>) {
        if version == Version::V4 {
            self.packet(0x20, 2).put_slice(&[u8::from(present), code]);
            return;
        }
        let mut p = BytesMut::new();
        for (id, value) in [(34, announced.alias_max), (19, announced.keep_alive)] {
            if let Some(value) = value {
                p.put_u8(id);
                p.put_u16(value);
            }
        }
        if let Some(max) = announced.receive_max {
            p.put_u8(33);
            p.put_u16(max);
        }
        if let Some(max) = announced.packet_max {
            p.put_u8(39);
            p.put_u32(max);
        }
        if let Some(expiry) = announced.session_expiry {
            p.put_u8(17);
            p.put_u32(expiry);
        }
        for (id, text) in
            [(18, announced.client_id), (26, announced.response_information), (31, announced.reason)]
        {
            if let Some(text) = text {
                p.put_u8(id);
                put_text(&mut p, text);
            }
        }
        let body = self.packet(0x20, 2 + varint_len(p.len()) + p.len());
        body.put_slice(&[u8::from(present), code]);
        put_varint(body, p.len());
        body.put_slice(&p);
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP. Over 3.1.1 there is no code.
    pub(crate) fn ack(&mut self, version: Version, kind: Kind, id: u16, code: u8, reason: Option<&str>) {
        if version == Version::V4 || code == 0 {
            self.packet(kind as u8, 2).put_u16(id);
            return;
        }
        let Some(reason) = reason else {
            let body = self.packet(kind as u8, 3);
            body.put_u16(id);
            body.put_u8(code);
            return;
        };
        let properties = 3 + reason.len();
        let body = self.packet(kind as u8, 3 + varint_len(properties) + properties);
        body.put_u16(id);
        body.put_u8(code);
        put_varint(body, properties);
        body.put_u8(31);
        put_text(body, reason);
    }

    /// SUBACK or UNSUBACK (which carries no codes over 3.1.1).
    pub(crate) fn suback(&mut self, version: Version, first: u8, id: u16, codes: &[u8]) {
        let extra = usize::from(version == Version::V5);
        let body = self.packet(first, 2 + extra + codes.len());
        body.put_u16(id);
        if extra == 1 {
            body.put_u8(0);
        }
        body.put_slice(codes);
    }

    /// PINGRESP.
    pub(crate) fn pingresp(&mut self) {
        self.packet(0xD0, 0);
    }

    /// DISCONNECT: MQTT 5 only.
    pub(crate) fn disconnect(&mut self, code: u8, reason: Option<&str>) {
        let reason = reason.unwrap_or_default();
        let properties = if reason.is_empty() { 0 } else { 3 + reason.len() };
        let body = self.packet(0xE0, 1 + varint_len(properties) + properties);
        body.put_u8(code);
        put_varint(body, properties);
        if properties > 0 {
            body.put_u8(31);
            put_text(body, reason);
        }
    }

    /// PUBLISH.
    pub(crate) fn publish(&mut self, version: Version, delivery: &Delivery<'_>) {
        let (head, properties) = delivery.sizes(version);
        let flags = u8::from(delivery.again) << 3 | delivery.qos << 1 | u8::from(delivery.retain);
        let body = self.packet(0x30 | flags, head + delivery.payload.len());
        put_text(body, delivery.topic);
        if delivery.qos > 0 {
            body.put_u16(delivery.id);
        }
        if version == Version::V5 {
            put_varint(body, properties);
            delivery.put_properties(body);
        }
        if delivery.payload.len() < SHARED_FROM {
            body.put_slice(delivery.payload);
        } else {
            self.done.push_back(self.tail.split().freeze());
            self.done.push_back(delivery.payload.clone());
        }
    }

    /// Gives memory back when everything is written.
    pub(crate) fn shrink(&mut self) {
        if self.len == 0 && self.tail.capacity() > KEPT {
            self.tail = BytesMut::new();
            self.done = VecDeque::new();
        }
    }
}

impl Delivery<'_> {
    /// Bytes of the whole packet.
    pub(crate) fn packet_len(&self, version: Version) -> usize {
        let body = self.sizes(version).0 + self.payload.len();
        1 + varint_len(body) + body
    }

    /// Whether every part fits the two bytes of its length.
    pub(crate) fn fits(&self) -> bool {
        let short = |text: &str| u16::try_from(text.len()).is_ok();
        short(self.topic)
            && self.details.content_type.as_deref().is_none_or(short)
            && self.details.response_topic.as_deref().is_none_or(short)
            && self.details.correlation_data.as_ref().is_none_or(|data| u16::try_from(data.len()).is_ok())
            && self.details.user_properties.iter().all(|(key, value)| short(key) && short(value))
    }

    /// Bytes of the head after the fixed header, and of the properties alone.
    fn sizes(&self, version: Version) -> (usize, usize) {
        let head = 2 + self.topic.len() + if self.qos > 0 { 2 } else { 0 };
        if version == Version::V4 {
            return (head, 0);
        }
        let of = |text: &Option<String>| text.as_ref().map_or(0, |text| 3 + text.len());
        let details = self.details;
        let properties = if details.is_text { 2 } else { 0 }
            + self.expiry.map_or(0, |_| 5)
            + self.alias.map_or(0, |_| 3)
            + of(&details.content_type)
            + of(&details.response_topic)
            + details.correlation_data.as_ref().map_or(0, |data| 3 + data.len())
            + self.tags.iter().map(|tag| 1 + varint_len(*tag as usize)).sum::<usize>()
            + details.user_properties.iter().map(|(key, value)| 5 + key.len() + value.len()).sum::<usize>();
        (head + varint_len(properties) + properties, properties)
    }

    fn put_properties(&self, body: &mut BytesMut) {
        let details = self.details;
        if details.is_text {
            body.put_slice(&[1, 1]);
        }
        if let Some(seconds) = self.expiry {
            body.put_u8(2);
            body.put_u32(seconds);
        }
        if let Some(alias) = self.alias {
            body.put_u8(35);
            body.put_u16(alias);
        }
        for (id, text) in [(3, &details.content_type), (8, &details.response_topic)] {
            if let Some(text) = text {
                body.put_u8(id);
                put_text(body, text);
            }
        }
        if let Some(data) = &details.correlation_data {
            body.put_u8(9);
            body.put_u16(data.len() as u16);
            body.put_slice(data);
        }
        for tag in self.tags {
            body.put_u8(11);
            put_varint(body, *tag as usize);
        }
        for (key, value) in &details.user_properties {
            body.put_u8(38);
            put_text(body, key);
            put_text(body, value);
        }
    }
}

impl Buf for Out {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.done.front().map_or(&self.tail[..], |first| first)
    }

    fn advance(&mut self, mut n: usize) {
        self.len -= n;
        while let Some(first) = self.done.front_mut() {
            if n < first.len() {
                first.advance(n);
                return;
            }
            n -= first.len();
            self.done.pop_front();
        }
        self.tail.advance(n);
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let chunks = self.done.iter().map(|bytes| &bytes[..]).chain([&self.tail[..]]);
        let mut n = 0;
        for (slot, chunk) in into.iter_mut().zip(chunks.filter(|chunk| !chunk.is_empty())) {
            *slot = IoSlice::new(chunk);
            n += 1;
        }
        n
    }
}

/// The longest beginning of `text` that fits `max` bytes and may stand in a packet.
pub(crate) fn clipped(text: &str, max: usize) -> String {
    let mut clipped = String::with_capacity(text.len().min(max));
    for c in text.chars().filter(|c| *c != '\0') {
        if clipped.len() + c.len_utf8() > max {
            break;
        }
        clipped.push(c);
    }
    clipped
}

fn put_text(into: &mut BytesMut, text: &str) {
    into.put_u16(text.len() as u16);
    into.put_slice(text.as_bytes());
}

fn put_varint(into: &mut BytesMut, mut value: usize) -> usize {
    let mut written = 0;
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        written += 1;
        if value == 0 {
            into.put_u8(byte);
            return written;
        }
        into.put_u8(byte | 0x80);
    }
}

fn varint_len(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

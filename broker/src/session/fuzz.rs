//! Fuzz targets of the gate: a connection's packets and whatever else happens to a session, and the CONNECT before it.

use bytes::Bytes;
use millpond_fuzz::{Target, run};
use millpond_protocol::Code;

use super::any_order::{self, Event};
use crate::codec::{Version, read};

/// What clients say.
const WORDS: &[&[u8]] = &[
    b"MQTT",
    b"MQIsdp",
    b"mp/p/c/m/up/u1",
    b"mp/p/c/m/ask/time",
    b"mp/p/c/m/bundle/b",
    b"mp/p/c/m/result/1/1",
    b"mp/p/c/m/delivery/1",
    b"mp/p/d/m/#",
    b"mp/p/d/m/receipt",
    b"mp/p/result",
    b"mp/p/result/#",
    b"mp/p/pool",
    b"app/p/x",
    b"app/p/#",
    b"$share/g/app/p/#",
    b"#",
    b"+",
    b"\xc3\xa9/x",
    b"\x00\x00",
    b"\xff\xff\xff\x7f",
    b"F\x32",
    b"F\x34",
    b"F\x62",
    b"F\x82",
    b"F\xa2",
    b"F\x40",
    b"F\x50",
    b"F\x70",
    b"F\xc0\x00",
    b"F\xe0",
    b"w\xff\xff",
    b"o\xff",
    b"k",
    b"u",
    b"r\x05",
    b"y",
];

/// The first byte is version and window. Then each event is a letter and what belongs to it; other bytes mean nothing.
fn script(bytes: &[u8]) -> (Version, Option<u16>, Vec<Event>) {
    let (first, mut rest) = bytes.split_first().unwrap_or((&0, &[]));
    let version = if first & 1 == 1 { Version::V5 } else { Version::V4 };
    let window = Some(u16::from(first >> 1 & 7)).filter(|window| *window > 0);
    let mut events = Vec::new();
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n.min(rest.len()));
        rest = tail;
        head
    };
    let byte = |bytes: &[u8]| bytes.first().copied().unwrap_or(0);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
    while let [letter] = take(1) {
        let event = match letter {
            // Bytes as they are.
            b'B' => {
                let length = number(take(2));
                Event::Bytes(take(length).to_vec())
            }
            // A packet whose length is right.
            b'F' => {
                let first = byte(take(1));
                let body = usize::from(byte(take(1)) & 0x7F);
                let body = take(body).to_vec();
                Event::Bytes([vec![first, body.len() as u8], body].concat())
            }
            // A PUBLISH that is long: as many times 256 bytes, after what is given of it.
            b'L' => {
                let (first, length) = (byte(take(1)), number(take(2)) << 8);
                let head = usize::from(byte(take(1)));
                let mut body = take(head).to_vec();
                body.resize(length.max(head), b'x');
                let mut left = body.len();
                let mut packet = vec![first];
                while left >= 0x80 {
                    packet.push((left & 0x7F) as u8 | 0x80);
                    left >>= 7;
                }
                packet.push(left as u8);
                Event::Bytes([packet, body].concat())
            }
            b'o' => Event::Outcome(Some(usize::from(byte(take(1)))).filter(|code| *code < Code::ALL.len())),
            b'k' => Event::Kept,
            b'c' => Event::Copies(byte(take(1)) % 3, byte(take(1)) % 16),
            b's' => Event::State(u64::from(byte(take(1)))),
            b'u' => Event::Cursor,
            b'r' => Event::Receipts(byte(take(1)) % 100),
            b'y' => Event::Ready,
            b'l' => Event::Live(u64::from(byte(take(1)))),
            b'm' => Event::Member(number(take(2)) << 1),
            b't' => Event::Timer(u64::from(byte(take(1)) % 32), byte(take(1)) & 1 == 1),
            b'w' => Event::Write(number(take(2))),
            _ => continue,
        };
        events.push(event);
    }
    (version, window, events)
}

#[test]
fn fuzz_session() {
    run(&Target { name: "session", words: WORDS, max: 4_096 }, |bytes, seen| {
        let (version, window, events) = script(bytes);
        seen.note(any_order::run(version, window, events));
    });
}

#[test]
fn fuzz_connect() {
    run(&Target { name: "connect", words: WORDS, max: 2_048 }, |bytes, seen| {
        let Some((first, body)) = bytes.split_first() else { return };
        let connect = match read::connect(*first, Bytes::copy_from_slice(body)) {
            Ok(connect) => connect,
            Err(bad) => return seen.note(format!("{bad:?}")),
        };
        let texts =
            [Some(&connect.client_id), connect.user.as_ref(), connect.will.as_ref().map(|will| &will.topic)];
        let length: usize = texts.into_iter().flatten().map(String::len).sum();
        assert!(length <= body.len(), "texts of {length} bytes out of {}", body.len());
        assert!(texts.iter().flatten().all(|text| !text.contains('\0')));
        assert!(connect.will.as_ref().is_none_or(|will| !will.topic.contains(['+', '#']) && will.qos < 3));
        assert!(connect.version == Version::V5 || (connect.session_expiry, connect.receive_max) == (0, None));
        assert!(connect.receive_max != Some(0) && connect.packet_max != Some(0));
        // It is exactly these bytes: no more and no less.
        assert!(read::connect(*first, [body, &[0]].concat().into()).is_err(), "a byte more");
        let shorter = Bytes::copy_from_slice(&body[..body.len() - 1]);
        assert!(read::connect(*first, shorter).is_err(), "a byte less");
        seen.note((
            connect.version == Version::V5,
            connect.clean,
            connect.auth_method,
            connect.password.is_some(),
        ));
        seen.note((
            connect.will.is_some(),
            connect.user.is_some(),
            connect.session_expiry > 0,
            connect.packet_max,
        ));
    });
}

use bytes::{Buf, Bytes, BytesMut};
use millpond_protocol::{Code, Refusal};
use proptest::prelude::*;

use super::frame::{Framer, LONG, Next};
use super::packet::{Details, Head, Packet, Version};
use super::read;
use super::write::{Delivery, Out};

const LIMIT: usize = 32 << 20;

fn drain(out: &mut Out) -> BytesMut {
    let mut all = BytesMut::new();
    while out.has_remaining() {
        all.extend_from_slice(out.chunk());
        let n = out.chunk().len();
        out.advance(n);
    }
    all
}

/// Cuts `stream` into packets as the connection does, with every budget there is.
fn packets(version: Version, stream: &mut BytesMut) -> Vec<(u8, Bytes)> {
    let mut framer = Framer::new(version, LIMIT);
    let mut found = Vec::new();
    loop {
        match framer.next(stream, |_, _| Ok(())) {
            Ok(Next::Packet(first, body)) => found.push((first, body)),
            Ok(Next::Budget(_)) => framer.grant(),
            Ok(Next::Bytes | Next::ReadPast(..)) | Err(_) => return found,
        }
    }
}

fn long_publish(topic: &str, payload: usize) -> (BytesMut, usize) {
    let mut body = Vec::new();
    body.extend((topic.len() as u16).to_be_bytes());
    body.extend(topic.as_bytes());
    body.extend([0, 9, 0]);
    let head = body.len();
    body.resize(head + payload, 7);
    let mut stream = BytesMut::from(&[0x32][..]);
    let mut len = body.len();
    while len >= 0x80 {
        stream.extend_from_slice(&[(len & 0x7F) as u8 | 0x80]);
        len >>= 7;
    }
    stream.extend_from_slice(&[len as u8]);
    stream.extend_from_slice(&body);
    (stream, head)
}

#[test]
fn a_long_publish_is_judged_before_its_payload_arrives() {
    let (stream, _) = long_publish("mp/p/c/m/up/u", 1 << 20);
    let mut framer = Framer::new(Version::V5, LIMIT);
    let mut arrived = BytesMut::from(&stream[..40]);
    let mut judged = None;
    let next = framer.next(&mut arrived, |head, payload| {
        judged = Some((head.topic.clone(), head.id, payload));
        Ok(())
    });
    assert!(matches!(next, Ok(Next::Budget(_))), "{next:?}");
    assert_eq!(judged, Some(("mp/p/c/m/up/u".to_owned(), 9, 1 << 20)));
}

#[test]
fn a_refused_publish_is_read_past_without_being_held() {
    let (stream, _) = long_publish("mp/p/c/m/up/u", 1 << 20);
    let mut framer = Framer::new(Version::V5, LIMIT);
    let mut arrived = BytesMut::new();
    let mut done = None;
    for chunk in stream.chunks(1_000).chain([&[0xC0, 0][..]]) {
        arrived.extend_from_slice(chunk);
        match framer.next(&mut arrived, |_, _| Err(Refusal::new(Code::TooLarge, "no"))) {
            Ok(Next::ReadPast(refused)) => done = Some((refused.0.id, refused.1.code)),
            Ok(Next::Bytes) => assert!(arrived.is_empty() || done.is_none() && arrived.len() < 2_000),
            Ok(Next::Packet(0xC0, body)) if body.is_empty() => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(done, Some((9, Code::TooLarge)));
}

#[test]
fn nothing_of_a_publish_is_taken_before_its_budget_is_granted() {
    let mut stream = BytesMut::from(&b"\x30\x05\x00\x01at!"[..]);
    let mut framer = Framer::new(Version::V4, LIMIT);
    for _ in 0..3 {
        assert_eq!(framer.next(&mut stream, |_, _| Ok(())), Ok(Next::Budget(5)));
    }
    framer.grant();
    assert_eq!(
        framer.next(&mut stream, |_, _| Ok(())),
        Ok(Next::Packet(0x30, Bytes::from_static(b"\x00\x01at!")))
    );
}

#[test]
fn a_small_payload_does_not_keep_the_packet_that_it_came_in() {
    let mut body = b"\x00\x01a\x00\x09\xF3\x03\x09\x01\xF0".to_vec();
    body.resize(body.len() + 0x1F0 + 2, 7);
    let body = Bytes::from(body);
    let packet = read::packet(Version::V5, 0x32, body.clone());
    let Ok(Packet::Publish(publish)) = packet else { panic!("{packet:?}") };
    assert_eq!((publish.payload.len(), publish.packet), (2, body.len()));
    assert!(publish.head.details.correlation_data.is_some_and(|data| data.len() == 0x1F0));
    assert!(body.is_unique());
}

#[test]
fn an_overlong_length_of_3_1_1_is_accepted_as_its_clients_send_it() {
    let mut stream = BytesMut::from(&[0xC0, 0x80, 0x80, 0x00][..]);
    assert_eq!(packets(Version::V4, &mut stream), [(0xC0, Bytes::new())]);
}

proptest! {
    #[test]
    fn a_delivery_reads_back_as_it_was_written(
        v5 in any::<bool>(),
        topic in "[a-z/é]{1,40}",
        payload in proptest::collection::vec(any::<u8>(), 0..10_000),
        (qos, id) in (0_u8..3, 1_u16..),
        (again, retain, is_text) in any::<(bool, bool, bool)>(),
        (expiry, alias) in any::<(Option<u32>, Option<u16>)>(),
        content_type in proptest::option::of("[a-z]{0,9}"),
        correlation in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..30)),
        user in proptest::collection::vec(("[a-z]{0,9}", "[a-z]{0,9}"), 0..4),
    ) {
        let version = if v5 { Version::V5 } else { Version::V4 };
        let (payload, correlation) = (Bytes::from(payload), correlation.map(Bytes::from));
        let details = Details {
            is_text, expiry, content_type, response_topic: None, correlation_data: correlation, user_properties: user,
        };
        let alias = alias.filter(|alias| *alias > 0);
        let delivery = Delivery {
            topic: &topic, payload: &payload, qos, id, again: again && qos > 0, retain, alias, details: &details,
            expiry, tags: &[],
        };
        let mut out = Out::default();
        out.publish(version, &delivery);
        prop_assert_eq!(out.remaining(), delivery.packet_len(version));
        prop_assert_eq!(out.queued(), out.remaining() as u64);
        let mut stream = drain(&mut out);
        prop_assert_eq!(out.written(), out.queued());
        let found = packets(version, &mut stream);
        prop_assert_eq!(found.len(), 1);
        let packet = read::packet(version, found[0].0, found[0].1.clone());
        let Ok(Packet::Publish(publish)) = packet else { panic!("{packet:?}") };
        let expected = Head {
            qos,
            id: if qos > 0 { id } else { 0 },
            retain,
            topic: topic.clone(),
            alias: alias.filter(|_| v5),
            details: if v5 { details.clone() } else { Details::default() },
            has_too_many_properties: false,
        };
        prop_assert_eq!(publish.head, expected);
        prop_assert_eq!(publish.payload, payload);
    }

    #[test]
    fn where_a_stream_is_cut_does_not_change_its_packets(
        payloads in proptest::collection::vec(0_usize..100_000, 1..5),
        cuts in proptest::collection::vec(1_usize..50_000, 1..20),
    ) {
        let mut stream = BytesMut::new();
        for payload in &payloads {
            stream.extend_from_slice(&long_publish("mp/p/c/m/up/u", *payload).0);
        }
        let whole = packets(Version::V5, &mut stream.clone());
        prop_assert_eq!(whole.len(), payloads.len());
        let mut framer = Framer::new(Version::V5, LIMIT);
        let (mut found, mut arrived, mut cuts) = (Vec::new(), BytesMut::new(), cuts.into_iter().cycle());
        while !stream.is_empty() {
            let n = cuts.next().unwrap_or(1).min(stream.len());
            arrived.extend_from_slice(&stream.split_to(n));
            loop {
                match framer.next(&mut arrived, |_, _| Ok(())) {
                    Ok(Next::Packet(first, body)) => found.push((first, body)),
                    Ok(Next::Budget(_)) => framer.grant(),
                    other => {
                        prop_assert_eq!(other, Ok(Next::Bytes));
                        break;
                    }
                }
            }
        }
        prop_assert_eq!(found, whole);
    }

    #[test]
    fn a_publish_that_is_all_there_never_waits_for_more_bytes(
        v5 in any::<bool>(),
        first in 0x30_u8..0x36,
        body in prop_oneof![65_530_usize..65_550, 131_066_usize..131_080, 65_530_usize..140_000],
        topic in prop_oneof![any::<u16>(), 65_500_u16..],
        properties in proptest::collection::vec(any::<u8>(), 0..6),
    ) {
        let version = if v5 { Version::V5 } else { Version::V4 };
        let mut packet = topic.to_be_bytes().to_vec();
        packet.resize(2 + usize::from(topic), b'x');
        packet.extend([0, 9]);
        packet.extend(properties);
        packet.resize(body, 0);
        let mut stream = BytesMut::from(&[first, body as u8 | 0x80, (body >> 7) as u8 | 0x80, (body >> 14) as u8][..]);
        stream.extend_from_slice(&packet);
        let mut framer = Framer::new(version, LIMIT);
        let mut arrived = BytesMut::new();
        while !stream.is_empty() {
            let n = stream.len().min(1_000);
            arrived.extend_from_slice(&stream.split_to(n));
            match framer.next(&mut arrived, |_, _| Ok(())) {
                // Of what no budget was asked for, no more is held than the head may have.
                Ok(Next::Bytes) => prop_assert!(!stream.is_empty() && arrived.len() < 4 + LONG + 1_000),
                _ => return Ok(()),
            }
        }
        prop_assert!(false, "it waits for bytes of the next packet");
    }

    #[test]
    fn any_bytes_as_connect_are_an_answer_and_no_panic(first in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut named = b"\x00\x04MQTT\x05".to_vec();
        named.extend(&body);
        let _ = read::connect(first, Bytes::from(named));
        let _ = read::connect(first, Bytes::from(body));
    }
}

//! Input that no honest client sends: it ends its own connection with the right code, and nothing else.

use crate::support::{LEVELS, Raw, packet, publish, server, subscribe, text};

/// Sends `bytes` on a connection of its own and returns how it ended; then sees that the gate still works.
async fn ends(level: u8, bytes: &[u8]) -> u8 {
    let server = server().await;
    let mut witness = server.client(5, "operator").await;
    assert_eq!(witness.subscribe("mp/p/event/#", 1).await, 1);
    let mut raw = server.client(level, "publisher").await;
    raw.send(bytes).await;
    let code = raw.end().await;
    witness.ping().await;
    let mut next = server.client(level, "publisher").await;
    next.publish(1, 1, "mp/p/c/publisher/up/after", b"").await;
    assert_eq!(next.packet().await, (0x40, vec![0, 1]));
    code
}

#[tokio::test]
async fn a_malformed_packet_ends_its_connection_alone() {
    let topic = "mp/p/c/publisher/up/u1";
    for level in LEVELS {
        let props: &[u8] = if level == 5 { &[0] } else { &[] };
        let bad_utf8 = packet(0x30, &[&[0, 2, 0xC3, 0x28], props].concat());
        let surrogate = packet(0x30, &[&[0, 3, 0xED, 0xA0, 0x80], props].concat());
        let nul = packet(0x30, &[&text("a\0b")[..], props].concat());
        let longer_than_packet = packet(0x30, &[&[0xFF, 0xFF, b'a'], props].concat());
        for (what, bytes) in [
            ("remaining length of five bytes", vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1]),
            ("packet type 0", vec![0x00, 0]),
            ("DUP at QoS 0", packet(0x38, &[&text(topic)[..], props].concat())),
            ("QoS 3", packet(0x36, &[&text(topic)[..], &[0, 1], props].concat())),
            ("topic of bad UTF-8", bad_utf8),
            ("topic with a surrogate", surrogate),
            ("topic with NUL", nul),
            ("topic longer than the packet", longer_than_packet),
            ("PUBLISH without packet id", packet(0x32, &text(topic))),
            ("empty PUBLISH", vec![0x30, 0]),
            ("empty PUBACK", vec![0x40, 0]),
            ("SUBSCRIBE with reserved bits", packet(0x80, &subscribe(level, 1, &[("a", 0)])[2..])),
            ("UNSUBSCRIBE with reserved bits", packet(0xA0, &[&[0, 1], props, &text("a")].concat())),
            ("PUBREL with reserved bits", vec![0x60, 2, 0, 1]),
            ("PINGREQ with reserved bits", vec![0xC1, 0]),
            ("PINGREQ with a body", vec![0xC0, 1, 0]),
            ("subscription QoS 3", subscribe(level, 1, &[("a", 3)])),
            ("reserved subscription options", subscribe(level, 1, &[("a", 0xC0)])),
            ("SUBSCRIBE cut off", packet(0x82, &[&[0, 1], props, &[0, 9, b'a']].concat())),
        ] {
            assert_eq!(ends(level, &bytes).await, if level == 5 { 0x81 } else { 0 }, "{what}, {level}");
        }
    }
}

#[tokio::test]
async fn a_breach_of_the_protocol_ends_its_connection_alone() {
    let topic = "mp/p/c/publisher/up/u1";
    for level in LEVELS {
        let props: &[u8] = if level == 5 { &[0] } else { &[] };
        for (what, bytes) in [
            ("second CONNECT", packet(0x10, b"anything")),
            ("CONNACK", vec![0x20, 2, 0, 0]),
            ("SUBACK", vec![0x90, 3, 0, 1, 0]),
            ("UNSUBACK", vec![0xB0, 2, 0, 1]),
            ("PINGRESP", vec![0xD0, 0]),
            ("packet id 0", publish(level, 1, 0, topic, &[], b"")),
            ("SUBSCRIBE with packet id 0", subscribe(level, 0, &[("a", 0)])),
            ("SUBSCRIBE without filters", packet(0x82, &[&[0, 1], props].concat())),
            ("UNSUBSCRIBE without filters", packet(0xA2, &[&[0, 1], props].concat())),
            ("empty topic", publish(level, 0, 0, "", &[], b"")),
        ] {
            assert_eq!(ends(level, &bytes).await, if level == 5 { 0x82 } else { 0 }, "{what}, {level}");
        }
    }
}

#[tokio::test]
async fn mistakes_that_have_a_code_of_their_own_get_it() {
    let topic = "mp/p/c/publisher/up/u1";
    for (what, bytes, code) in [
        ("wildcard in a topic", publish(5, 0, 0, "mp/p/c/publisher/up/+", &[], b""), 0x90),
        ("topic alias 0", publish(5, 0, 0, topic, &[35, 0, 0], b""), 0x94),
        ("topic alias above the maximum", publish(5, 0, 0, topic, &[35, 0, 17], b""), 0x94),
        ("topic alias that stands for nothing", publish(5, 0, 0, "", &[35, 0, 1], b""), 0x82),
        ("shared subscription with No Local", subscribe(5, 1, &[("$share/g/app/p/x", 4)]), 0x82),
        ("subscription identifier from a client", publish(5, 0, 0, topic, &[11, 1], b""), 0x82),
        ("unknown property", publish(5, 0, 0, topic, &[0x7F], b""), 0x81),
        ("property twice", publish(5, 0, 0, topic, &[1, 0, 1, 0], b""), 0x82),
        ("payload format 2", publish(5, 0, 0, topic, &[1, 2], b""), 0x82),
        ("overlong remaining length", vec![0xC0, 0x80, 0x00], 0x81),
        ("overlong property length", packet(0x30, &[&text(topic)[..], &[0x80, 0]].concat()), 0x81),
        ("properties longer than the packet", packet(0x30, &[&text(topic)[..], &[9]].concat()), 0x81),
        ("AUTH", vec![0xF0, 0], 0x82),
        ("retain handling 3", subscribe(5, 1, &[("a", 0x30)]), 0x82),
        (
            "subscription identifier 0",
            packet(0x82, &[&[0, 1, 2, 11, 0], &text("a")[..], &[0]].concat()),
            0x82,
        ),
        ("SUBSCRIBE beyond 64 KiB", vec![0x82, 0x81, 0x80, 0x04], 0x95),
    ] {
        assert_eq!(ends(5, &bytes).await, code, "{what}");
    }
    assert_eq!(ends(4, &[0xF0, 0]).await, 0);
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let mut head = text("mp/p/c/publisher/up/u1");
    // Properties of 2 MB ahead of the payload.
    head.extend([0xFF, 0xFF, 0x7F]);
    let mut bytes = packet(0x30, &[&head[..], &vec![0; 3 << 20]].concat());
    bytes.truncate(200 << 10);
    assert_eq!(ends(5, &bytes).await, 0x95);
}

/// Publishes at QoS 1, and returns the code of the ack.
async fn refused(raw: &mut Raw, topic: &str) -> u8 {
    raw.publish(1, 1, topic, b"x").await;
    let (first, body) = raw.packet().await;
    assert_eq!(first, 0x40);
    body.get(2).copied().unwrap_or(0)
}

#[tokio::test]
async fn what_ends_a_stock_rumqttd_is_only_refused() {
    let server = server().await;
    // All of these connect with a keep-alive of 0, which its listeners refuse.
    // A topic that begins outside ASCII panics its router.
    let mut raw = server.client(5, "publisher").await;
    assert_eq!(refused(&mut raw, "é/x").await, 0x87);
    // A shared subscription that ends with an unacknowledged message does, too.
    assert_eq!(raw.subscribe("$share/g/mp/p/result", 1).await, 0x87);
    assert_eq!(server.client(4, "listener").await.subscribe("$share/g/mp/p/result", 1).await, 0x80);
    // Two client ids with a slash poison a mutex.
    let mut first = server.client_as(4, "listener", "a/b").await;
    let mut second = server.client_as(4, "listener", "a/b").await;
    assert_eq!(first.packet_or_end().await, None);
    second.subscribe("mp/p/result", 1).await;
    // So does a user property on its way to a 3.1.1 client.
    let mut state = crate::support::state("mp/p/result", 1, "v1");
    state.user_properties.push(("version".into(), "1".into()));
    let mut fifth = server.client_as(5, "listener", "v5").await;
    fifth.subscribe("mp/p/result", 1).await;
    server.backend.states.lock().unwrap().push(crate::support::state("mp/p/pool", 1, "card"));
    for raw in [&mut second, &mut fifth] {
        raw.subscribe("mp/p/pool", 0).await;
        assert_eq!(raw.message().await.text(), "card");
    }
    server.handle.publish_state(state);
    assert_eq!(second.message().await.text(), "v1");
    let message = fifth.message().await;
    assert_eq!(message.properties, [&[38][..], &text("version"), &text("1")].concat());
    // A link that vanishes with messages in flight, many times over.
    for n in 0..20 {
        let mut raw = server.client_as(4, "listener-2", &format!("gone-{n}")).await;
        raw.subscribe("mp/p/result", 1).await;
        server.handle.publish_state(crate::support::state("mp/p/result", 10 + n, "more"));
    }
    // Every message reaches those that stayed, up to the last: the links of those that went took none with them.
    server.handle.publish_state(crate::support::state("mp/p/result", 100, "last"));
    for raw in [&mut second, &mut fifth] {
        while raw.message().await.text() != "last" {}
    }
    let mut next = server.client_as(5, "listener-2", "next").await;
    next.subscribe("mp/p/result", 1).await;
    server.handle.publish_state(crate::support::state("mp/p/result", 101, "after"));
    for raw in [&mut second, &mut fifth, &mut next] {
        while raw.message().await.text() != "after" {}
    }
}

#[tokio::test]
async fn wildcards_over_the_whole_broker_and_foreign_spaces_are_refused_in_the_suback() {
    let server = server().await;
    for level in LEVELS {
        let mut raw = server.client(level, "publisher").await;
        for filter in [
            "#",
            "+/+/pool",
            "mp/#",
            "mp/p/#",
            "mp/+/pool",
            "mp/p/d/+/receipt",
            "mp/p/d/listener/#",
            "mp/p/c/publisher/#",
            "mp/p/offer",
            "mp/p/event/#",
            "mp/q/pool",
            "$SYS/#",
            "é/x",
        ] {
            assert_eq!(raw.subscribe(filter, 1).await, if level == 5 { 0x87 } else { 0x80 }, "{filter}");
        }
        for filter in ["", "mp/p/result#", "mp/p/re+", "mp/#/x"] {
            assert_eq!(raw.subscribe(filter, 1).await, if level == 5 { 0x8F } else { 0x80 }, "{filter}");
        }
        let both = subscribe(level, 3, &[("mp/p/pool", 1), ("mp/p/offer", 1), ("mp/p/result", 2)]);
        raw.send(&both).await;
        let (_, body) = raw.packet().await;
        assert_eq!(body[body.len() - 3..], [1, if level == 5 { 0x87 } else { 0x80 }, 1], "one code a filter");
    }
}

#[tokio::test]
async fn a_publish_outside_ones_space_is_refused_alike_whether_the_place_exists_or_not() {
    let server = server().await;
    let mut raw = server.client(5, "publisher").await;
    for topic in [
        "x",
        "mp/p/result",
        "mp/p/pool",
        "mp/q/c/publisher/up/u",
        "mp/p/c/listener/up/u",
        "mp/p/c/nobody/nonsense",
        "mp/p/d/publisher/receipt",
        "$SYS/x",
        "mp/p/c/publisher",
        "mp/p/c/publisher/result/1/1",
        "mp/p/c/publisher/ask/claim",
    ] {
        assert_eq!(refused(&mut raw, topic).await, 0x87, "{topic}");
    }
    for topic in
        ["mp/p/c/publisher/", "mp/p/c/publisher/up/-", "mp/p/c/publisher/up/u/1/2", "mp/p/c/publisher/ask/x"]
    {
        assert_eq!(refused(&mut raw, topic).await, 0x99, "{topic}");
    }
    assert!(server.backend.taken_ids().is_empty());
}

#[tokio::test]
async fn subscriptions_beyond_the_limit_are_refused_and_those_held_can_be_renewed() {
    for level in LEVELS {
        let server = server().await;
        let mut raw = server.client(level, "publisher").await;
        for n in 0..64 {
            assert_eq!(raw.subscribe(&format!("mp/p/d/publisher/x{n}"), 1).await, 1);
        }
        let code = raw.subscribe("mp/p/d/publisher/x64", 1).await;
        assert_eq!(code, if level == 5 { 0x97 } else { 0x80 });
        assert_eq!(raw.subscribe("mp/p/d/publisher/x0", 0).await, 0);
    }
}

#[tokio::test]
async fn a_filter_of_very_many_levels_is_refused_whatever_it_is_of() {
    let server = server().await;
    for (level, refused) in [(4, 0x80), (5, 0x8F)] {
        let mut raw = server.client(level, "operator").await;
        for front in ["mp/p/result", "mp/p/event", "mp/p/d/operator"] {
            let filter = format!("{front}{}#", "/".repeat(65_000));
            assert_eq!(raw.subscribe(&filter, 1).await, refused, "{front}");
            let props: &[u8] = if level == 5 { &[0] } else { &[] };
            raw.send(&packet(0xA2, &[&[0, 3], props, &text(&filter)].concat())).await;
            assert_eq!(raw.packet().await.0, 0xB0);
        }
        raw.ping().await;
    }
}

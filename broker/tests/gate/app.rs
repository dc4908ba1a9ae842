//! App topics: what members publish to each other.

use std::time::Duration;

use millpond_broker::GateConfig;
use millpond_protocol::limits;

use crate::support::{
    LEVELS, Message, Raw, Server, app_config, app_server, connect, packet, publish, server_with, subscribe,
    text,
};

/// QoS of a PUBLISH by its first byte, with the message. Nothing is acknowledged.
async fn next(raw: &mut Raw) -> (u8, Message) {
    let (first, body) = raw.packet().await;
    assert_eq!(first >> 4, 3, "packet {first:#x} {body:?}");
    ((first >> 1) & 3, Message::parse(raw.level, first, &body))
}

/// Publishes and takes the whole exchange through.
async fn put(raw: &mut Raw, qos: u8, topic: &str, payload: &[u8], retain: bool, properties: &[u8]) {
    let mut bytes = publish(raw.level, qos, 77, topic, properties, payload);
    bytes[0] |= u8::from(retain);
    raw.send(&bytes).await;
    match qos {
        0 => raw.ping().await,
        1 => assert_eq!(raw.packet().await, (0x40, vec![0, 77])),
        _ => {
            assert_eq!(raw.packet().await, (0x50, vec![0, 77]));
            raw.send(&[0x62, 2, 0, 77]).await;
            assert_eq!(raw.packet().await, (0x70, vec![0, 77]));
        }
    }
}

async fn pair(server: &Server, level: u8) -> (Raw, Raw) {
    (server.client(level, "publisher").await, server.client(level, "listener").await)
}

#[tokio::test]
async fn a_message_comes_at_the_lower_qos_of_publish_and_subscription() {
    for level in LEVELS {
        let server = app_server().await;
        let (mut from, mut to) = pair(&server, level).await;
        for subscribed in 0..3 {
            assert_eq!(to.subscribe("app/p/+", subscribed).await, subscribed);
            for published in 0..3 {
                put(&mut from, published, "app/p/x", b"hello", false, &[]).await;
                let (qos, message) = next(&mut to).await;
                assert_eq!(
                    (qos, message.text(), message.retain),
                    (published.min(subscribed), "hello", false)
                );
                let id = message.id.unwrap_or_default() as u8;
                match qos {
                    0 => {}
                    1 => to.send(&[0x40, 2, 0, id]).await,
                    _ => {
                        to.send(&[0x50, 2, 0, id]).await;
                        assert_eq!(to.packet().await, (0x62, vec![0, id]));
                        to.send(&[0x70, 2, 0, id]).await;
                    }
                }
            }
        }
        to.ping().await;
    }
}

#[tokio::test]
async fn nothing_of_one_pool_is_seen_from_another() {
    let server = app_server().await;
    let mut other = server.raw().await;
    other.level = 5;
    other.send(&connect(5, "x", "q/publisher", &[])).await;
    other.packet().await;
    for filter in ["app/p/#", "app/+/x", "app/#", "+/p/x", "#", "$share/g/app/p/#"] {
        assert_eq!(other.subscribe(filter, 1).await, 0x87, "{filter}");
    }
    assert_eq!(other.subscribe("app/q/#", 1).await, 1);
    let mut from = server.client(5, "publisher").await;
    put(&mut from, 1, "app/p/x", b"hello", true, &[]).await;
    from.publish(1, 1, "app/q/x", b"hello").await;
    assert_eq!(from.packet().await.1[2], 0x87);
    let mut trigger = server.client(5, "trigger").await;
    assert_eq!(trigger.subscribe("app/p/#", 1).await, 0x87);
    other.ping().await;
}

#[tokio::test]
async fn of_a_pool_that_was_removed_nothing_is_retained_for_another_of_its_name() {
    let server = app_server().await;
    let (mut from, mut to) = pair(&server, 5).await;
    put(&mut from, 1, "app/p/old", b"old", true, &[]).await;
    server.handle.forget_retained(&"q".parse().unwrap());
    assert_eq!(to.subscribe("app/p/#", 1).await, 1);
    assert_eq!(to.message().await.text(), "old", "that was another pool");
    server.handle.forget_retained(&"p".parse().unwrap());
    put(&mut from, 1, "app/p/new", b"new", false, &[]).await;
    assert_eq!(to.message().await.text(), "new", "subscriptions stay");
    to.subscribe("app/p/#", 1).await;
    to.ping().await;
}

#[tokio::test]
async fn overlapping_subscriptions_bring_one_copy_with_the_highest_qos_and_every_identifier() {
    let server = app_server().await;
    let (mut from, mut to) = pair(&server, 5).await;
    for (filter, qos, tag) in [("app/p/#", 0, 7), ("app/p/+", 2, 9), ("app/p/x", 1, 8)] {
        let body = [&[0, 1, 2, 11, tag][..], &text(filter), &[qos]].concat();
        to.send(&packet(0x82, &body)).await;
        to.packet().await;
    }
    put(&mut from, 2, "app/p/x", b"once", false, &[]).await;
    let (qos, message) = next(&mut to).await;
    assert_eq!((qos, message.properties.len()), (2, 6));
    for tag in [7, 8, 9] {
        assert!(message.properties.chunks(2).any(|property| property == [11, tag]), "{tag}");
    }
    to.ping().await;
}

#[tokio::test]
async fn no_local_and_retain_as_published_are_kept_to() {
    let server = app_server().await;
    let (mut from, mut to) = pair(&server, 5).await;
    from.subscribe("app/p/x", 1 | 4).await;
    to.subscribe("app/p/x", 1 | 8 | 4).await;
    put(&mut from, 1, "app/p/x", b"kept", true, &[]).await;
    assert!(to.message().await.retain, "as published");
    put(&mut from, 1, "app/p/x", b"not", false, &[]).await;
    assert!(!to.message().await.retain);
    from.ping().await;
}

#[tokio::test]
async fn retained_messages_come_at_subscribe_as_retain_handling_says_and_an_empty_one_removes_them() {
    for level in LEVELS {
        let server = app_server().await;
        let (mut from, mut to) = pair(&server, level).await;
        for (qos, topic) in ["app/p/a", "app/p/b/c", "app/p/d"].into_iter().enumerate() {
            put(&mut from, qos as u8, topic, topic.as_bytes(), true, &[]).await;
        }
        put(&mut from, 1, "app/p/d", b"", true, &[]).await;
        let handling: &[(u8, bool)] = if level == 5 {
            &[(0, true), (0, true), (0x10, false), (0x20, false)]
        } else {
            &[(0, true), (0, true)]
        };
        for (options, comes) in handling {
            assert_eq!(to.subscribe("app/p/#", 1 | options).await, 1);
            if *comes {
                for (qos, topic) in [(0, "app/p/a"), (1, "app/p/b/c")] {
                    let (found, message) = next(&mut to).await;
                    assert_eq!((found, message.text(), message.retain), (qos, topic, true));
                }
            }
            to.ping().await;
        }
    }
}

#[tokio::test]
async fn more_retained_messages_than_a_member_may_have_are_refused_and_nothing_is_sent() {
    let server = app_server().await;
    let (mut from, mut to) = pair(&server, 5).await;
    for n in 0..limits::RETAINED_PER_MEMBER {
        put(&mut from, 1, &format!("app/p/{n}"), b"x", true, &[]).await;
    }
    to.subscribe("app/p/more", 1).await;
    let mut more = publish(5, 1, 5, "app/p/more", &[], b"x");
    more[0] |= 1;
    from.send(&more).await;
    assert_eq!(from.packet().await.1[2], 0x97);
    put(&mut from, 1, "app/p/more", b"not retained", false, &[]).await;
    assert_eq!(to.message().await.text(), "not retained");
}

#[tokio::test]
async fn what_a_message_says_beside_its_payload_is_handed_on() {
    let server = app_server().await;
    let (mut from, mut to) = pair(&server, 5).await;
    let mut plain = server.client_as(4, "listener", "plain").await;
    to.subscribe("app/p/x", 1).await;
    plain.subscribe("app/p/x", 1).await;
    let properties = [
        &[1, 1][..],
        &[3, 0, 1, b't'],
        &[8, 0, 4, b'a', b'p', b'p', b'x'],
        &[9, 0, 2, b'c', b'7'],
        &[38, 0, 1, b'k', 0, 1, b'v'],
        &[38, 0, 1, b'k', 0, 1, b'w'],
    ];
    put(&mut from, 1, "app/p/x", b"hello", false, &properties.concat()).await;
    assert_eq!(to.message().await.properties, properties.concat());
    assert_eq!(plain.message().await.text(), "hello");
    // One that the client says it cannot take is not sent, and nothing waits for it.
    let mut small = server.raw().await;
    small.level = 5;
    small.send(&connect(5, "small", "p/listener", &[39, 0, 0, 0, 60])).await;
    small.packet().await;
    small.subscribe("app/p/x", 1).await;
    put(&mut from, 1, "app/p/x", &[b'x'; 60], false, &[]).await;
    put(&mut from, 1, "app/p/x", b"fits", false, &[]).await;
    assert_eq!(small.message().await.text(), "fits");
}

#[tokio::test]
async fn a_message_that_expired_is_not_sent_and_one_that_did_not_says_how_long_it_has() {
    let server = app_server().await;
    let (mut from, mut to) = pair(&server, 5).await;
    put(&mut from, 1, "app/p/gone", b"gone", true, &[2, 0, 0, 0, 0]).await;
    put(&mut from, 1, "app/p/stays", b"stays", true, &[2, 0, 0, 0, 100]).await;
    to.subscribe("app/p/#", 1).await;
    let message = to.message().await;
    assert_eq!(message.text(), "stays");
    assert!(
        message.properties[..4] == [2, 0, 0, 0] && message.properties[4] <= 100,
        "{:?}",
        message.properties
    );
    to.ping().await;
}

#[tokio::test]
async fn a_number_stands_for_a_topic_in_both_directions() {
    let server = app_server().await;
    let mut from = server.client(5, "publisher").await;
    let mut to = server.raw().await;
    to.level = 5;
    to.send(&connect(5, "x", "p/listener", &[34, 0, 1])).await;
    to.packet().await;
    to.subscribe("app/p/#", 1).await;
    put(&mut from, 1, "app/p/x", b"1", false, &[35, 0, 3]).await;
    put(&mut from, 1, "", b"2", false, &[35, 0, 3]).await;
    put(&mut from, 1, "app/p/other", b"3", false, &[]).await;
    // A long payload is judged by its head alone, so the number must be known there.
    put(&mut from, 1, "", &vec![b'4'; 100_000], false, &[35, 0, 3]).await;
    for (topic, payload, properties) in [
        ("app/p/x", "1", &[35, 0, 1][..]),
        ("", "2", &[35, 0, 1]),
        ("app/p/other", "3", &[]),
        ("", &"4".repeat(100_000), &[35, 0, 1]),
    ] {
        let message = to.message().await;
        assert_eq!((message.topic.as_str(), message.text()), (topic, payload));
        assert_eq!(message.properties, properties);
    }
}

#[tokio::test]
async fn a_shared_subscription_gives_each_message_to_one_and_goes_on_when_one_vanishes() {
    let server = app_server().await;
    let mut from = server.client(5, "publisher").await;
    let mut first = server.client_as(5, "listener", "first").await;
    let mut second = server.client_as(4, "listener", "second").await;
    for raw in [&mut first, &mut second] {
        assert_eq!(raw.subscribe("$share/g/app/p/#", 1).await, 1);
    }
    for n in 0..4 {
        put(&mut from, 1, "app/p/x", n.to_string().as_bytes(), false, &[]).await;
    }
    // Nothing is acknowledged when the first one goes, which is what ends a stock rumqttd.
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        firsts.push(next(&mut first).await.1.text().to_owned());
        seconds.push(next(&mut second).await.1.text().to_owned());
    }
    firsts.append(&mut seconds);
    firsts.sort();
    assert_eq!(firsts, ["0", "1", "2", "3"]);
    first.send(&[0xE0, 0]).await;
    assert_eq!(first.packet_or_end().await, None);
    for n in 4..6 {
        put(&mut from, 1, "app/p/x", n.to_string().as_bytes(), false, &[]).await;
        assert_eq!(next(&mut second).await.1.text(), n.to_string());
    }
}

#[tokio::test]
async fn a_message_sent_again_at_qos_2_is_delivered_once() {
    let server = app_server().await;
    let (mut from, mut to) = pair(&server, 4).await;
    to.subscribe("app/p/x", 2).await;
    for first in [0x34, 0x3C] {
        let mut bytes = publish(4, 2, 5, "app/p/x", &[], b"once");
        bytes[0] = first;
        from.send(&bytes).await;
        assert_eq!(from.packet().await, (0x50, vec![0, 5]));
    }
    from.send(&[0x62, 2, 0, 5]).await;
    assert_eq!(from.packet().await, (0x70, vec![0, 5]));
    assert_eq!(next(&mut to).await.1.text(), "once");
    put(&mut from, 2, "app/p/x", b"next", false, &[]).await;
    assert_eq!(next(&mut to).await.1.text(), "next");
}

#[tokio::test]
async fn more_unreleased_than_receive_maximum_permits_ends_the_connection() {
    let server = app_server().await;
    let mut from = server.client(5, "publisher").await;
    for id in 1..=64_u16 {
        from.publish(2, id, "app/p/x", b"x").await;
        assert_eq!(from.packet().await.0, 0x50);
    }
    from.publish(2, 65, "app/p/x", b"x").await;
    assert_eq!(from.end().await, 0x93);
}

#[tokio::test]
async fn topics_and_filters_beyond_the_limits_are_refused() {
    let server = app_server().await;
    let mut raw = server.client(5, "publisher").await;
    let deep = format!("app/p{}", "/x".repeat(limits::APP_TOPIC_LEVELS - 1));
    let long = format!("app/p/{}", "x".repeat(limits::APP_TOPIC_BYTES));
    for topic in [&deep, &long] {
        raw.publish(1, 1, topic, b"").await;
        assert_eq!(raw.packet().await.1[2], 0x97);
        assert_eq!(raw.subscribe(topic, 1).await, 0x8F);
    }
    for filter in ["$share/g", "$share//app/p/x", "$share/+/app/p/x"] {
        assert_eq!(raw.subscribe(filter, 1).await, 0x8F, "{filter}");
    }
    let bad = [&[8, 0, 3][..], b"a/+"].concat();
    raw.send(&publish(5, 1, 1, "app/p/x", &bad, b"")).await;
    assert_eq!(raw.packet().await.1[2], 0x99, "a response topic with wildcards");
    raw.publish(1, 1, "app/p/é", "ü".as_bytes()).await;
    assert_eq!(raw.packet().await, (0x40, vec![0, 1]));
}

#[tokio::test]
async fn one_that_takes_nothing_is_ended_and_the_others_get_everything_in_order() {
    let server = app_server().await;
    let mut from = server.client(4, "publisher").await;
    let mut lazy = server.client_as(5, "listener", "lazy").await;
    lazy.subscribe("app/p/#", 1).await;
    let mut keen = Vec::new();
    for n in 0..3 {
        let mut raw = server.client_as(4, "listener", &format!("keen{n}")).await;
        raw.subscribe("app/p/#", 1).await;
        keen.push(raw);
    }
    let filler = "x".repeat(100 << 10);
    let mut n = 0;
    while server.handle.connections() == 5 {
        put(&mut from, 1, "app/p/x", format!("{n} {filler}").as_bytes(), false, &[]).await;
        for raw in &mut keen {
            assert!(raw.message().await.text().starts_with(&format!("{n} ")));
        }
        n += 1;
        assert!(n < 2_000, "it stays");
    }
    assert_eq!(lazy.end().await, 0x97);
    put(&mut from, 1, "app/p/x", b"last", false, &[]).await;
    for raw in &mut keen {
        assert_eq!(raw.message().await.text(), "last");
    }
}

#[tokio::test]
async fn a_longer_keep_alive_than_may_be_is_replaced_and_the_client_told() {
    let server = server_with(GateConfig { keep_alive_max: 60, ..app_config() }).await;
    let login = [text("p/publisher"), text("secret")].concat();
    for (asked, told) in [(0, true), (120, true), (30, false)] {
        let mut raw = server.raw().await;
        raw.send(&crate::support::connect_with(5, 0xC2, asked, "x", &[], &login)).await;
        let body = raw.packet().await.1;
        assert_eq!(body.windows(3).any(|w| w == [19, 0, 60]), told, "{asked}");
    }
}

#[tokio::test]
async fn a_suback_that_the_client_cannot_take_ends_the_connection() {
    let server = app_server().await;
    let mut raw = server.raw().await;
    raw.level = 5;
    raw.send(&connect(5, "x", "p/listener", &[39, 0, 0, 0, 40])).await;
    raw.packet().await;
    let filters: Vec<String> = (0..40).map(|n| format!("app/p/{n}")).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (&**filter, 0)).collect();
    raw.send(&subscribe(5, 1, &filters)).await;
    let end = tokio::time::timeout(Duration::from_secs(10), raw.end()).await.unwrap();
    assert_eq!(end, 0x95);
}

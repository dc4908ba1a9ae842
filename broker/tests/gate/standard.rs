//! What of the two standards is seen with app topics, where `app` and `sessions` do not show it already.

use std::time::{Duration, Instant};

use millpond_broker::GateConfig;
use millpond_protocol::limits;

use crate::support::{
    LEVELS, Message, Raw, SOON, Server, app_config, app_server, connect, connect_with, packet, publish,
    server_with, text,
};

const HOUR: [u8; 5] = [17, 0, 0, 14, 16];

/// Signs in with these properties of CONNECT, and returns the body of CONNACK too.
async fn with(server: &Server, member: &str, properties: &[u8]) -> (Raw, Vec<u8>) {
    let mut raw = server.raw().await;
    raw.level = 5;
    raw.send(&connect(5, member, &format!("p/{member}"), properties)).await;
    let (first, body) = raw.packet().await;
    assert_eq!((first, body[1]), (0x20, 0), "{body:?}");
    (raw, body)
}

/// Publishes at QoS 1, and waits for the acknowledgement.
async fn put(raw: &mut Raw, topic: &str, payload: &str, retain: bool, properties: &[u8]) {
    let mut bytes = publish(raw.level, 1, 77, topic, properties, payload.as_bytes());
    bytes[0] |= u8::from(retain);
    raw.send(&bytes).await;
    assert_eq!(raw.packet().await, (0x40, vec![0, 77]));
}

/// The next PUBLISH as it comes: first byte and message. Nothing is acknowledged.
async fn next(raw: &mut Raw) -> (u8, Message) {
    let (first, body) = raw.packet().await;
    (first, Message::parse(raw.level, first, &body))
}

#[tokio::test]
async fn a_client_without_a_keep_alive_may_be_silent_for_ever_unless_the_server_says_otherwise() {
    let login = [text("p/publisher"), text("secret")].concat();
    for level in LEVELS {
        let free = app_server().await;
        let mut silent = free.client(level, "publisher").await;
        let strict = server_with(GateConfig { keep_alive_max: 1, ..app_config() }).await;
        let begun = Instant::now();
        let mut raw = strict.raw().await;
        raw.send(&connect_with(level, 0xC2, 0, "x", &[], &login)).await;
        let (_, connack) = raw.packet().await;
        if level == 5 {
            assert!(connack.windows(3).any(|part| part == [19, 0, 1]), "{connack:?}");
            assert_eq!(raw.end().await, 0x8D);
            assert!(begun.elapsed() >= Duration::from_millis(1_500), "{:?}", begun.elapsed());
        } else {
            // Which cannot be told, so it does not hold.
            raw.ping().await;
        }
        silent.ping().await;
    }
}

#[tokio::test]
async fn connack_says_what_the_session_gets_and_answers_what_was_asked_for_alone() {
    let server = app_server().await;
    let granted = |properties: &'static [u8]| async {
        let (raw, connack) = with(&server, "publisher", properties).await;
        drop(raw);
        connack
    };
    let kept = u32::try_from(limits::SESSION_EXPIRY_MAX.as_secs()).unwrap();
    let expiry = [&[17][..], &kept.to_be_bytes()].concat();
    let says = |connack: &[u8], what: &[u8]| connack.windows(what.len()).any(|part| part == what);
    assert!(says(&granted(&[17, 255, 255, 255, 255]).await, &expiry), "less than was asked for");
    for (asked, told) in [(&[25, 1][..], true), (&[25, 0], false), (&[], false)] {
        let connack = granted(asked).await;
        assert_eq!(says(&connack, b"mp/p/d/publisher/"), told, "{asked:?}");
        assert!(!says(&connack, b"assigned-"));
    }
}

#[tokio::test]
async fn reasons_are_put_in_words_unless_the_client_wants_none() {
    let server = app_server().await;
    for (properties, is_told) in [(&[][..], true), (&[23, 1], true), (&[23, 0], false)] {
        let (mut raw, _) = with(&server, "publisher", properties).await;
        raw.publish(1, 1, "app/q/x", b"").await;
        let (first, body) = raw.packet().await;
        assert_eq!((first, body[2], body.len() > 4), (0x40, 0x87, is_told), "{properties:?}: {body:?}");
    }
}

#[tokio::test]
async fn a_client_gets_no_more_than_its_receive_maximum_on_app_topics_and_qos_0_beside_it() {
    for qos in [1, 2] {
        let server = app_server().await;
        let mut from = server.client(4, "publisher").await;
        let (mut to, _) = with(&server, "listener", &[33, 0, 2]).await;
        assert_eq!(to.subscribe("app/p/#", qos).await, qos);
        for payload in ["one", "two", "three"] {
            from.publish(2, 7, "app/p/x", payload.as_bytes()).await;
            from.packet().await;
            from.send(&[0x62, 2, 0, 7]).await;
            from.packet().await;
        }
        let mut ids = Vec::new();
        for payload in ["one", "two"] {
            let message = next(&mut to).await.1;
            assert_eq!(message.text(), payload);
            ids.push(message.id.unwrap() as u8);
        }
        to.ping().await;
        if qos == 2 {
            // Received is not complete.
            to.send(&[0x50, 2, 0, ids[0]]).await;
            assert_eq!(to.packet().await, (0x62, vec![0, ids[0]]));
            to.ping().await;
        }
        to.send(&[if qos == 1 { 0x40 } else { 0x70 }, 2, 0, ids[0]]).await;
        assert_eq!(next(&mut to).await.1.text(), "three");
        to.ping().await;
    }
}

#[tokio::test]
async fn what_was_published_to_be_retained_comes_without_that_flag_to_who_was_there() {
    for level in LEVELS {
        let server = app_server().await;
        let mut from = server.client(5, "publisher").await;
        let mut to = server.client(level, "listener").await;
        to.subscribe("app/p/x", 1).await;
        put(&mut from, "app/p/x", "now", true, &[]).await;
        let message = to.message().await;
        assert_eq!((message.text(), message.retain), ("now", false));
        to.subscribe("app/p/+", 1).await;
        let message = to.message().await;
        assert_eq!((message.text(), message.retain), ("now", true));
    }
}

#[tokio::test]
async fn a_new_subscription_brings_what_is_retained_as_its_retain_handling_says_and_a_shared_one_nothing() {
    let server = app_server().await;
    let mut from = server.client(5, "publisher").await;
    let mut to = server.client(5, "listener").await;
    put(&mut from, "app/p/x", "kept", true, &[]).await;
    for (filter, options, comes) in [
        ("app/p/x", 0, true),
        ("app/p/+", 0x10, true),
        ("app/p/#", 0x20, false),
        ("$share/g/app/p/x", 0, false),
    ] {
        assert_eq!(to.subscribe(filter, 1 | options).await, 1);
        if comes {
            assert_eq!(to.message().await.text(), "kept", "{filter}");
        }
        to.ping().await;
    }
}

#[tokio::test]
async fn overlapping_subscriptions_bring_one_copy_over_3_1_1_too() {
    let server = app_server().await;
    let mut from = server.client(5, "publisher").await;
    let mut to = server.client(4, "listener").await;
    for (filter, qos) in [("app/p/#", 0), ("app/p/x", 1), ("app/p/+", 0)] {
        assert_eq!(to.subscribe(filter, qos).await, qos);
    }
    put(&mut from, "app/p/x", "once", false, &[]).await;
    let message = to.message().await;
    assert_eq!((message.text(), message.id.is_some()), ("once", true));
    to.ping().await;
}

#[tokio::test]
async fn a_dollar_below_the_first_level_means_nothing_and_one_at_the_beginning_is_nobodys() {
    let server = app_server().await;
    let mut from = server.client(5, "publisher").await;
    let mut to = server.client(5, "listener").await;
    assert_eq!(to.subscribe("app/p/+/#", 1).await, 1);
    put(&mut from, "app/p/$SYS/x", "plain", false, &[]).await;
    assert_eq!(to.message().await.text(), "plain");
    for topic in ["$SYS/x", "$app/p/x", "$share/g/app/p/x"] {
        from.publish(1, 1, topic, b"").await;
        assert_eq!(from.packet().await.1[2], 0x87, "{topic}");
    }
    for filter in ["$SYS/#", "$app/p/#"] {
        assert_eq!(to.subscribe(filter, 1).await, 0x87, "{filter}");
    }
}

#[tokio::test]
async fn a_message_that_waits_for_who_is_away_expires_meanwhile_or_says_what_is_left() {
    let server = app_server().await;
    let mut from = server.client(5, "publisher").await;
    let login = [text("p/listener"), text("secret")].concat();
    let come = async || {
        let mut raw = server.raw().await;
        raw.level = 5;
        raw.send(&connect_with(5, 0xC0, 0, "x", &HOUR, &login)).await;
        assert_eq!(raw.packet().await.1[1], 0);
        raw
    };
    let mut to = come().await;
    to.subscribe("app/p/#", 1).await;
    to.send(&[0xE0, 0]).await;
    assert_eq!(to.packet_or_end().await, None);
    put(&mut from, "app/p/x", "short", false, &[2, 0, 0, 0, 1]).await;
    put(&mut from, "app/p/x", "long", false, &[2, 0, 0, 0, 100]).await;
    put(&mut from, "app/p/x", "for ever", false, &[]).await;
    // The time that it has.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut to = come().await;
    let message = to.message().await;
    assert_eq!((message.text(), &message.properties[..4]), ("long", &[2, 0, 0, 0][..]));
    assert!(message.properties[4] < 100, "{:?}", message.properties);
    let message = to.message().await;
    assert_eq!((message.text(), &message.properties[..]), ("for ever", &[][..]));
    to.ping().await;
}

#[tokio::test]
async fn a_will_is_published_as_it_was_left_and_retained_where_it_says_so() {
    let server = app_server().await;
    let mut heir = server.client(5, "listener").await;
    assert_eq!(heir.subscribe("app/p/#", 2).await, 2);
    let details = [&[3][..], &text("text/plain"), &[8], &text("app/p/answers"), &[9], &text("c")].concat();
    let pairs = [&[38][..], &text("k"), &text("v"), &[38], &text("k"), &text("w")].concat();
    let said = [&[1, 1, 2, 0, 0, 0, 100][..], &details, &pairs].concat();
    let login = [text("p/publisher"), text("secret")].concat();
    let rest = [&[said.len() as u8][..], &said, &text("app/p/will"), &text("gone"), &login].concat();
    let mut mortal = server.raw().await;
    // QoS 2, RETAIN.
    mortal.send(&connect_with(5, 0xC2 | 0x04 | 0x10 | 0x20, 0, "mortal", &[], &rest)).await;
    assert_eq!(mortal.packet().await.1[1], 0);
    drop(mortal);
    let (first, body) = tokio::time::timeout(SOON, heir.packet()).await.unwrap();
    let will = Message::parse(5, first, &body);
    assert_eq!((first, will.topic.as_str(), will.text()), (0x34, "app/p/will", "gone"));
    let has = |part: &[u8]| will.properties.windows(part.len()).any(|found| found == part);
    assert!(has(&[1, 1, 2, 0, 0, 0]) && has(&details) && has(&pairs), "{:?}", will.properties);
    let mut late = server.client_as(5, "listener", "late").await;
    late.send(&packet(0x82, &[&[0, 1, 0][..], &text("app/p/will"), &[1]].concat())).await;
    late.packet().await;
    let will = late.message().await;
    assert_eq!((will.text(), will.retain), ("gone", true));
}

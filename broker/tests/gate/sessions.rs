//! What of a session outlives its connection, and wills.

use std::sync::Arc;
use std::time::Duration;

use millpond_broker::{Backend, EndReason, KeptSession};
use millpond_protocol::{Principal, Role};

use crate::support::{
    LEVELS, Memory, Message, Raw, SOON, Server, app_config, app_server, connect_with, packet, publish,
    server_over, text,
};

/// A session that is kept for an hour.
const HOUR: &[u8] = &[17, 0, 0, 14, 16];

/// Connects `member` with the client id `same`. Returns whether the session was there.
async fn connect(server: &Server, level: u8, member: &str, clean: bool, properties: &[u8]) -> (Raw, bool) {
    let login = [text(&format!("p/{member}")), text("secret")].concat();
    let flags = 0xC0 | u8::from(clean) << 1;
    let mut raw = server.raw().await;
    raw.level = level;
    raw.send(&connect_with(level, flags, 0, "same", if level == 5 { properties } else { &[] }, &login)).await;
    let (first, body) = raw.packet().await;
    assert_eq!((first, body[1]), (0x20, 0), "{body:?}");
    (raw, body[0] == 1)
}

/// Says goodbye and waits until the gate has seen it.
async fn leave(mut raw: Raw) {
    raw.send(&[0xE0, 0]).await;
    assert_eq!(raw.packet_or_end().await, None);
}

async fn put(raw: &mut Raw, qos: u8, payload: &str) {
    raw.publish(qos, 5, "app/p/x", payload.as_bytes()).await;
    match qos {
        0 => raw.ping().await,
        1 => assert_eq!(raw.packet().await, (0x40, vec![0, 5])),
        _ => {
            assert_eq!(raw.packet().await, (0x50, vec![0, 5]));
            raw.send(&[0x62, 2, 0, 5]).await;
            raw.packet().await;
        }
    }
}

#[tokio::test]
async fn what_came_while_its_client_was_away_waits_for_it_in_order() {
    for level in LEVELS {
        let server = app_server().await;
        let mut from = server.client(4, "publisher").await;
        let (mut to, present) = connect(&server, level, "listener", false, HOUR).await;
        assert!(!present);
        assert_eq!(to.subscribe("app/p/#", 2).await, 2);
        leave(to).await;
        for (qos, payload) in [(0, "lost"), (1, "one"), (2, "two"), (1, "three")] {
            put(&mut from, qos, payload).await;
        }
        let (mut to, present) = connect(&server, level, "listener", false, HOUR).await;
        assert!(present);
        for (first, payload) in [(0x32, "one"), (0x34, "two"), (0x32, "three")] {
            let (found, body) = to.packet().await;
            assert_eq!((found, Message::parse(level, found, &body).text()), (first, payload));
        }
        leave(to).await;
        // A clean start forgets all of it, in the backend too.
        let (mut to, present) = connect(&server, level, "listener", true, &[]).await;
        assert!(!present);
        put(&mut from, 1, "four").await;
        to.ping().await;
        server.backend.until(|backend| backend.sessions.lock().unwrap().is_empty()).await;
    }
}

#[tokio::test]
async fn what_waits_for_a_client_outlasts_a_connack_that_does_not_reach_it() {
    let server = app_server().await;
    let mut from = server.client(4, "publisher").await;
    let (mut to, _) = connect(&server, 5, "listener", false, HOUR).await;
    to.subscribe("app/p/#", 1).await;
    leave(to).await;
    put(&mut from, 1, "one").await;
    let login = [text("p/listener"), text("secret")].concat();
    // Longer than the client accepts.
    let mut raw = server.raw().await;
    raw.send(&connect_with(5, 0xC0, 0, "same", &[HOUR, &[39, 0, 0, 0, 4]].concat(), &login)).await;
    assert_eq!(raw.packet_or_end().await, None, "nothing may come that is longer");
    // Reset before the answer is written.
    let (reached, go_on) = server.backend.hold_sign_in();
    let mut raw = server.raw().await;
    raw.send(&connect_with(5, 0xC0, 0, "same", HOUR, &login)).await;
    reached.await.unwrap();
    raw.io.set_zero_linger().unwrap();
    drop(raw);
    go_on.send(()).unwrap();
    let (mut to, present) = connect(&server, 5, "listener", false, HOUR).await;
    assert!(present);
    assert_eq!(to.message().await.text(), "one");
    assert_eq!(server.backend.sessions.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_under_the_same_id_and_what_was_is_released() {
    let server = app_server().await;
    let mut from = server.client(4, "publisher").await;
    let (mut to, _) = connect(&server, 5, "listener", false, HOUR).await;
    to.subscribe("app/p/#", 2).await;
    let mut ids = Vec::new();
    for (qos, payload) in [(1, "one"), (2, "two"), (2, "three"), (1, "four")] {
        put(&mut from, qos, payload).await;
        let (first, body) = to.packet().await;
        ids.push(Message::parse(5, first, &body).id.unwrap() as u8);
    }
    // The third was received, and its release is on the way; the fourth is done.
    to.send(&[0x50, 2, 0, ids[2]]).await;
    assert_eq!(to.packet().await, (0x62, vec![0, ids[2]]));
    to.send(&[0x40, 2, 0, ids[3]]).await;
    to.ping().await;
    drop(to);
    // A connection that just breaks.
    let (mut to, present) = connect(&server, 5, "listener", false, HOUR).await;
    assert!(present);
    for (first, payload, id) in [(0x3A, "one", ids[0]), (0x3C, "two", ids[1])] {
        let (found, body) = to.packet().await;
        let message = Message::parse(5, found, &body);
        assert_eq!((found, message.text(), message.id), (first, payload, Some(id.into())));
    }
    assert_eq!(to.packet().await, (0x62, vec![0, ids[2]]));
    to.send(&[0x40, 2, 0, ids[0]]).await;
    // Another takes the session over, and the one before learns why.
    let (mut next, present) = connect(&server, 5, "listener", false, HOUR).await;
    assert!(present);
    assert_eq!(to.end().await, 0x8E);
    assert_eq!(next.packet().await.0, 0x3C);
    assert_eq!(next.packet().await, (0x62, vec![0, ids[2]]));
    next.send(&[0x70, 2, 0, ids[2]]).await;
    put(&mut from, 1, "five").await;
    let (first, body) = next.packet().await;
    assert_eq!((first, Message::parse(5, first, &body).text()), (0x32, "five"));
}

#[tokio::test]
async fn a_message_that_was_received_at_qos_2_is_known_to_the_next_connection() {
    let server = app_server().await;
    let mut to = server.client(4, "listener").await;
    to.subscribe("app/p/#", 1).await;
    let (mut from, _) = connect(&server, 4, "publisher", false, HOUR).await;
    from.publish(2, 9, "app/p/x", b"once").await;
    from.packet().await;
    drop(from);
    let (mut from, present) = connect(&server, 4, "publisher", false, HOUR).await;
    assert!(present);
    let mut again = publish(4, 2, 9, "app/p/x", &[], b"once");
    again[0] |= 8;
    from.send(&again).await;
    assert_eq!(from.packet().await, (0x50, vec![0, 9]));
    put(&mut from, 1, "next").await;
    assert_eq!(to.message().await.text(), "once");
    assert_eq!(to.message().await.text(), "next");
}

#[tokio::test]
async fn subscriptions_survive_a_restart_and_are_kept_before_they_are_acknowledged() {
    let backend = Arc::new(Memory::default());
    let first = server_over(app_config(), backend.clone()).await;
    let (mut to, _) = connect(&first, 5, "listener", false, HOUR).await;
    let body = [&[0, 1, 2, 11, 77][..], &text("app/p/+"), &[2 | 8]].concat();
    to.send(&packet(0x82, &body)).await;
    to.packet().await;
    let kept = backend.sessions.lock().unwrap().values().next().unwrap().1.clone();
    assert_eq!((kept.subscriptions.len(), kept.subscriptions[0].tag), (1, Some(77)));
    to.subscribe("mp/p/result", 1).await;
    first.shutdown.cancel();
    first.ended.await.unwrap().unwrap();
    drop(to);

    let server = server_over(app_config(), backend.clone()).await;
    let mut from = server.client(4, "publisher").await;
    put(&mut from, 1, "while away").await;
    backend.states.lock().unwrap().push(crate::support::state("mp/p/result", 3, "three"));
    let (mut to, present) = connect(&server, 5, "listener", false, HOUR).await;
    assert!(present);
    let (mut one, mut two) = (to.message().await, to.message().await);
    if one.topic != "app/p/x" {
        std::mem::swap(&mut one, &mut two);
    }
    assert_eq!((one.text(), &one.properties[..]), ("while away", &[11, 77][..]));
    assert_eq!(two.text(), "three");
    // Unsubscribed is so after the next restart, too.
    to.send(&packet(0xA2, &[&[0, 2, 0][..], &text("app/p/+")].concat())).await;
    assert_eq!(to.packet().await.0, 0xB0);
    assert_eq!(backend.sessions.lock().unwrap().values().next().unwrap().1.subscriptions.len(), 1);
}

#[tokio::test]
async fn state_comes_again_at_resume_only_where_it_is_newer_than_what_was_acknowledged() {
    let server = app_server().await;
    server.backend.states.lock().unwrap().push(crate::support::state("mp/p/result", 3, "three"));
    let (mut to, _) = connect(&server, 5, "listener", false, HOUR).await;
    to.subscribe("mp/p/result", 1).await;
    assert_eq!(to.message().await.text(), "three");
    to.ping().await;
    leave(to).await;
    let (mut to, _) = connect(&server, 5, "listener", false, HOUR).await;
    to.ping().await;
    server.handle.publish_state(crate::support::state("mp/p/result", 4, "four"));
    assert_eq!(to.message().await.text(), "four");
    to.ping().await;
    leave(to).await;
    server.backend.states.lock().unwrap()[0] = crate::support::state("mp/p/result", 5, "five");
    let (mut to, _) = connect(&server, 5, "listener", false, HOUR).await;
    let message = to.message().await;
    assert_eq!((message.text(), message.retain), ("five", true));
}

#[tokio::test]
async fn a_session_of_the_run_before_ends_with_its_time_though_nothing_else_happens() {
    let backend = Arc::new(Memory::default());
    let who = Principal {
        pool: "p".parse().unwrap(),
        name: "listener".parse().unwrap(),
        role: Role::Listener,
        id: 1,
    };
    let expiry = Duration::from_millis(100);
    let session = KeptSession { client_id: "same".into(), expiry, subscriptions: vec![], certificates: None };
    backend.keep_session(&who, session).await.unwrap();
    let _server = server_over(app_config(), backend.clone()).await;
    backend.until(|backend| backend.sessions.lock().unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_client_id_that_the_server_gave_is_given_to_nobody_else_after_a_restart() {
    let mut given = Vec::new();
    for _ in 0..2 {
        let server = app_server().await;
        let login = [text("p/listener"), text("secret")].concat();
        let mut raw = server.raw().await;
        raw.send(&connect_with(5, 0xC0, 0, "", HOUR, &login)).await;
        let (_, body) = raw.packet().await;
        let at = body.windows(9).position(|part| part == b"assigned-").unwrap();
        let len = usize::from(u16::from_be_bytes([body[at - 2], body[at - 1]]));
        given.push(body[at..at + len].to_vec());
    }
    assert_ne!(given[0], given[1]);
}

#[tokio::test]
async fn a_session_ends_with_its_time_with_its_member_and_where_disconnect_says_so() {
    let server = app_server().await;
    let second = [17, 0, 0, 0, 1];
    let (mut to, _) = connect(&server, 5, "listener", false, &second).await;
    to.subscribe("app/p/x", 1).await;
    leave(to).await;
    server.backend.until(|backend| backend.sessions.lock().unwrap().is_empty()).await;
    assert!(!connect(&server, 5, "listener", false, &second).await.1);

    let (mut to, _) = connect(&server, 5, "listener", false, HOUR).await;
    to.send(&[0xE0, 7, 0, 5, 17, 0, 0, 0, 0]).await;
    assert_eq!(to.packet_or_end().await, None);
    let (to, present) = connect(&server, 5, "listener", false, HOUR).await;
    assert!(!present, "DISCONNECT made an end of it");
    leave(to).await;
    server.handle.disconnect_member(&"p".parse().unwrap(), &"listener".parse().unwrap(), EndReason::Revoked);
    let (mut to, present) = connect(&server, 5, "listener", false, &[]).await;
    assert!(!present, "it was another member's");
    to.send(&[0xE0, 7, 0, 5, 17, 0, 0, 0, 9]).await;
    assert_eq!(to.end().await, 0x82, "what was to end cannot be kept after all");
}

/// CONNECT with a will of QoS 1 on `topic`.
fn with_will(level: u8, topic: &str, delay: u8, properties: &[u8]) -> Vec<u8> {
    let will = if level == 5 { vec![5, 24, 0, 0, 0, delay] } else { vec![] };
    let login = [text("p/publisher"), text("secret")].concat();
    let rest = [will, text(topic), text("the will"), login].concat();
    connect_with(level, 0xCE, 0, "mortal", if level == 5 { properties } else { &[] }, &rest)
}

async fn mortal(server: &Server, level: u8, delay: u8, properties: &[u8]) -> Raw {
    let mut raw = server.raw().await;
    raw.level = level;
    raw.send(&with_will(level, "app/p/will", delay, properties)).await;
    assert_eq!(raw.packet().await.1[1], 0);
    raw
}

#[tokio::test]
async fn a_will_is_published_for_who_vanishes_and_not_for_who_says_goodbye() {
    for level in LEVELS {
        let server = app_server().await;
        let mut heir = server.client(5, "listener").await;
        heir.subscribe("app/p/will", 1).await;
        leave(mortal(&server, level, 0, &[]).await).await;
        let raw = mortal(&server, level, 0, &[]).await;
        heir.ping().await;
        drop(raw);
        assert_eq!(heir.message().await.text(), "the will");
        heir.ping().await;
        if level == 5 {
            let mut raw = mortal(&server, 5, 0, &[]).await;
            raw.send(&[0xE0, 1, 4]).await;
            assert_eq!(heir.message().await.text(), "the will", "it asked for it");
            // Taken over: that connection has gone, too.
            let raw = mortal(&server, 5, 0, &[]).await;
            let next = mortal(&server, 5, 0, &[]).await;
            assert_eq!(heir.message().await.text(), "the will");
            leave(next).await;
            drop(raw);
        }
    }
}

#[tokio::test]
async fn a_will_waits_for_its_delay_and_the_end_of_the_session_is_the_latest_time_for_it() {
    let server = app_server().await;
    let mut heir = server.client(5, "listener").await;
    heir.subscribe("app/p/will", 1).await;
    // An hour of delay, but the session has a second.
    let begun = std::time::Instant::now();
    drop(mortal(&server, 5, 255, &[17, 0, 0, 0, 1]).await);
    assert_eq!(heir.message().await.text(), "the will");
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
    drop(mortal(&server, 5, 1, HOUR).await);
    assert_eq!(heir.message().await.text(), "the will");
    // Who comes back in time is not dead; a clean start is another life.
    let login = [text("p/publisher"), text("secret")].concat();
    for (clean, is_published) in [(false, false), (true, true)] {
        drop(mortal(&server, 5, 255, HOUR).await);
        let mut raw = server.raw().await;
        raw.level = 5;
        raw.send(&connect_with(5, 0xC0 | u8::from(clean) << 1, 0, "mortal", HOUR, &login)).await;
        assert_eq!(raw.packet().await.1[1], 0);
        if is_published {
            assert_eq!(heir.message().await.text(), "the will");
        }
        raw.ping().await;
        heir.ping().await;
        leave(raw).await;
    }
}

#[tokio::test]
async fn a_will_elsewhere_than_on_ones_app_topics_refuses_the_connect() {
    let server = app_server().await;
    for (level, code) in [(4, 5), (5, 0x90)] {
        for topic in ["mp/p/c/publisher/up/u1", "mp/p/result", "app/q/x", "other/p/x", "$SYS/x"] {
            let mut raw = server.raw().await;
            raw.send(&with_will(level, topic, 0, &[])).await;
            assert_eq!(raw.packet().await.1[1], code, "{topic}");
        }
    }
}

#[tokio::test]
async fn a_revoked_member_leaves_no_will() {
    let server = app_server().await;
    let mut heir = server.client(5, "listener").await;
    heir.subscribe("app/p/will", 1).await;
    let mut raw = mortal(&server, 5, 0, &[]).await;
    server.handle.disconnect_member(&"p".parse().unwrap(), &"publisher".parse().unwrap(), EndReason::Revoked);
    assert_eq!(tokio::time::timeout(SOON, raw.end()).await.unwrap(), 0x87);
    let mut next = server.client(4, "publisher").await;
    next.publish(1, 1, "app/p/will", b"alive").await;
    assert_eq!(heir.message().await.text(), "alive");
}

//! How connections begin and end.

use std::time::Duration;

use millpond_broker::{EndReason, GateConfig, SignInError};
use tokio::io::AsyncWriteExt;

use crate::support::{SOON, Verdict, connect, connect_with, packet, server, server_with, text};

#[tokio::test]
async fn the_same_client_id_takes_over_and_another_member_with_it_does_not() {
    let server = server().await;
    let mut old = server.client_as(5, "publisher", "x").await;
    let mut other = server.client_as(5, "listener", "x").await;
    let mut new = server.client_as(5, "publisher", "x").await;
    assert_eq!(old.end().await, 0x8E);
    new.ping().await;
    other.ping().await;
}

#[tokio::test]
async fn shutdown_drains_what_is_pending_and_says_so() {
    let server = server().await;
    server.backend.verdicts.lock().unwrap().insert("u1".into(), Verdict::Wait);
    let mut client = server.client(5, "publisher").await;
    client.publish(1, 1, "mp/p/c/publisher/up/u1", b"").await;
    server.backend.until(|backend| backend.taken_ids() == ["u1"]).await;
    let mut idle = server.client(5, "listener").await;
    server.shutdown.cancel();
    assert_eq!(idle.end().await, 0x8B);
    server.backend.decide("u1", Ok(()));
    assert_eq!(client.packet().await, (0x40, vec![0, 1]));
    let (first, body) = client.packet().await;
    assert_eq!((first, body[0]), (0xE0, 0x8B));
    drop((client, idle));
    server.ended.await.unwrap().unwrap();
}

/// A CONNECT, and the CONNACK's code in each version; `None`: nothing is answered.
async fn connack(bytes: &[u8]) -> Option<u8> {
    let server = server().await;
    let mut raw = server.raw().await;
    raw.send(bytes).await;
    let (first, body) = raw.packet_or_end().await?;
    assert_eq!((first, body[0]), (0x20, 0));
    if body[1] != 0 {
        assert_eq!(raw.packet_or_end().await, None, "a refused connection ends");
    }
    Some(body[1])
}

#[tokio::test]
async fn a_connect_with_wrong_credentials_is_refused_alike_whatever_is_wrong() {
    let login = |user: &str, token: &str| [text(user), text(token)].concat();
    for (level, code) in [(4, 4), (5, 0x86)] {
        for rest in [
            login("p/publisher", "wrong"),
            login("p/nobody", "secret"),
            login("P/publisher", "secret"),
            login("publisher", "secret"),
            login("p/publisher/x", "secret"),
            login("", ""),
        ] {
            assert_eq!(connack(&connect_with(level, 0xC2, 0, "x", &[], &rest)).await, Some(code), "{rest:?}");
        }
        assert_eq!(connack(&connect_with(level, 0x02, 0, "x", &[], &[])).await, Some(code), "no credentials");
        let user = text("p/publisher");
        assert_eq!(connack(&connect_with(level, 0x82, 0, "x", &[], &user)).await, Some(code), "no password");
    }
}

#[tokio::test]
async fn a_sign_in_that_cannot_be_checked_is_told_apart_from_a_wrong_one() {
    for (error, v4, v5) in [(SignInError::Quota, 3, 0x97), (SignInError::Unavailable, 3, 0x88)] {
        for (level, code) in [(4, v4), (5, v5)] {
            let server = server().await;
            *server.backend.sign_in.lock().unwrap() = Some(error);
            let mut raw = server.raw().await;
            raw.send(&connect(level, "x", "p/publisher", &[])).await;
            assert_eq!(raw.packet().await.1[1], code);
        }
    }
}

#[tokio::test]
async fn other_versions_are_refused_with_the_code_for_it() {
    let mut old = text("MQIsdp");
    old.extend([3, 2, 0, 0]);
    old.extend(text("x"));
    assert_eq!(connack(&packet(0x10, &old)).await, Some(1));
    assert_eq!(connack(&connect(3, "x", "p/publisher", &[])).await, Some(1));
    assert_eq!(connack(&connect(6, "x", "p/publisher", &[])).await, Some(0x84));
    // A bridge of mosquitto, which tries again as 3.1.1 proper when told so.
    assert_eq!(connack(&connect(0x84, "x", "p/publisher", &[])).await, Some(1));
    let mut other = text("HTTP");
    other.extend([4, 2, 0, 0]);
    assert_eq!(connack(&packet(0x10, &other)).await, None);
}

#[tokio::test]
async fn a_malformed_connect_ends_the_connection() {
    let login = [text("p/publisher"), text("secret")].concat();
    let good = |level: u8| connect(level, "x", "p/publisher", &[]);
    for (what, v4, v5) in [
        (
            "reserved flag",
            connect_with(4, 0xC3, 0, "x", &[], &login),
            connect_with(5, 0xC3, 0, "x", &[], &login),
        ),
        (
            "will QoS alone",
            connect_with(4, 0xCA, 0, "x", &[], &login),
            connect_with(5, 0xCA, 0, "x", &[], &login),
        ),
        (
            "will retain alone",
            connect_with(4, 0xE2, 0, "x", &[], &login),
            connect_with(5, 0xE2, 0, "x", &[], &login),
        ),
        (
            "bytes behind",
            packet(0x10, &[&good(4)[2..], &[0]].concat()),
            packet(0x10, &[&good(5)[2..], &[0]].concat()),
        ),
        ("reserved header bits", [&[0x11], &good(4)[1..]].concat(), [&[0x11], &good(5)[1..]].concat()),
        ("truncated", packet(0x10, &good(4)[2..20]), packet(0x10, &good(5)[2..20])),
    ] {
        assert_eq!(connack(&v4).await, None, "{what}");
        assert_eq!(connack(&v5).await, Some(0x81), "{what}");
    }
}

#[tokio::test]
async fn a_property_given_twice_or_not_allowed_in_connect_is_a_protocol_error() {
    for properties in
        [&[33, 0, 1, 33, 0, 1][..], &[35, 0, 1], &[33, 0, 0], &[39, 0, 0, 0, 0], &[25, 2], &[22, 0, 1, 7]]
    {
        assert_eq!(connack(&connect(5, "x", "p/publisher", properties)).await, Some(0x82), "{properties:?}");
    }
    assert_eq!(connack(&connect(5, "x", "p/publisher", &[99])).await, Some(0x81));
}

#[tokio::test]
async fn a_will_refuses_the_connect() {
    let rest = [text("mp/p/c/publisher/up/u1"), text("bye"), text("p/publisher"), text("secret")].concat();
    assert_eq!(connack(&connect_with(4, 0xC6, 0, "x", &[], &rest)).await, Some(5));
    let rest = [&[0][..], &rest].concat();
    assert_eq!(connack(&connect_with(5, 0xC6, 0, "x", &[], &rest)).await, Some(0x90));
}

#[tokio::test]
async fn an_authentication_method_is_refused() {
    assert_eq!(connack(&connect(5, "x", "p/publisher", &[21, 0, 1, b'x'])).await, Some(0x8C));
}

#[tokio::test]
async fn an_empty_client_id_is_assigned_where_the_version_permits() {
    assert_eq!(connack(&connect(4, "", "p/publisher", &[])).await, Some(0));
    let login = [text("p/publisher"), text("secret")].concat();
    assert_eq!(
        connack(&connect_with(4, 0xC0, 0, "", &[], &login)).await,
        Some(2),
        "not without a clean session"
    );
    let server = server().await;
    let mut assigned = Vec::new();
    for _ in 0..2 {
        let mut raw = server.raw().await;
        raw.send(&connect(5, "", "p/publisher", &[])).await;
        let body = raw.packet().await.1;
        let at = body.windows(9).position(|part| part == b"assigned-").unwrap();
        assert_eq!(body[at - 3..at], [18, 0, 9 + 32], "{body:?}");
        assigned.push(body[at + 9..at + 9 + 32].to_vec());
    }
    // Neither says how many came between the two: half of the digits differ, not the last few.
    let [one, two] = &assigned[..] else { panic!() };
    assert!(one[..16] != two[..16] && one.iter().all(u8::is_ascii_hexdigit), "{assigned:?}");
}

#[tokio::test]
async fn connack_announces_what_the_gate_can_do() {
    let server = server().await;
    let mut raw = server.raw().await;
    // Session expiry of an hour; response information wanted.
    raw.send(&connect(5, "x", "p/publisher", &[17, 0, 0, 14, 16, 25, 1])).await;
    let body = raw.packet().await.1;
    for (what, bytes) in [
        ("receive maximum", &[33, 0, 64][..]),
        ("maximum packet size", &[39, 0, 0x41, 0, 0]),
        ("topic aliases", &[34, 0, 16]),
        ("response information", b"mp/p/d/publisher/"),
    ] {
        assert!(body.windows(bytes.len()).any(|w| w == bytes), "{what}: {body:?}");
    }
}

#[tokio::test]
async fn a_member_has_eight_connections_and_the_ninth_is_refused() {
    let server = server().await;
    let mut held = Vec::new();
    for n in 0..8 {
        held.push(server.client_as(4, "publisher", &format!("c{n}")).await);
    }
    let _other = server.client_as(4, "listener", "c9").await;
    for (level, code) in [(4, 3), (5, 0x97)] {
        let mut raw = server.raw().await;
        raw.send(&connect(level, "c9", "p/publisher", &[])).await;
        assert_eq!(raw.packet().await.1[1], code);
    }
    // Taking one over is no further connection.
    let _again = server.client_as(4, "publisher", "c3").await;
    assert_eq!(held[3].packet_or_end().await, None);
    assert_eq!(server.handle.connections(), 9);
}

#[tokio::test]
async fn a_revoked_member_is_disconnected_and_others_are_not() {
    let server = server().await;
    let mut revoked = server.client(5, "publisher").await;
    let mut other = server.client(5, "publisher-2").await;
    server.handle.disconnect_member(&"p".parse().unwrap(), &"publisher".parse().unwrap(), EndReason::Revoked);
    assert_eq!(revoked.end().await, 0x87);
    other.ping().await;
}

#[tokio::test]
async fn a_stranger_that_says_nothing_is_closed() {
    let config = GateConfig { connect_timeout: Duration::from_millis(50), ..GateConfig::default() };
    let server = server_with(config).await;
    let mut silent = server.raw().await;
    assert_eq!(silent.packet_or_end().await, None);
    let mut slow = server.raw().await;
    slow.send(&connect(4, "x", "p/publisher", &[])[..10]).await;
    assert_eq!(slow.packet_or_end().await, None);
}

#[tokio::test]
async fn a_connect_longer_than_its_limit_is_closed_at_its_header() {
    let server = server().await;
    let mut raw = server.raw().await;
    raw.send(&[0x10, 0xFF, 0xFF, 0x7F]).await;
    assert_eq!(raw.packet_or_end().await, None);
    // Who has said its version by then is told, where that version has a code for it.
    let id = "x".repeat(16 << 10);
    assert_eq!(connack(&connect(4, &id, "p/publisher", &[])).await, None);
    assert_eq!(connack(&connect(5, &id, "p/publisher", &[])).await, Some(0x95));
}

#[tokio::test]
async fn a_packet_before_connect_closes() {
    for bytes in [&[0xC0, 0][..], &[0x30, 3, 0, 1, b'a'], b"GET / HTTP/1.1\r\n\r\n"] {
        assert_eq!(connack(bytes).await, None);
    }
}

#[tokio::test]
async fn a_client_that_is_silent_beyond_its_keep_alive_is_closed() {
    let login = [text("p/publisher"), text("secret")].concat();
    for (level, code) in [(4, 0), (5, 0x8D)] {
        let server = server().await;
        let mut raw = server.raw().await;
        raw.send(&connect_with(level, 0xC2, 1, "x", &[], &login)).await;
        raw.packet().await;
        let begun = std::time::Instant::now();
        assert_eq!(raw.end().await, code);
        assert!(begun.elapsed() > Duration::from_millis(1_400), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_sign_in_that_takes_too_long_gives_its_place_to_another() {
    let config =
        GateConfig { strangers_max: 1, sign_in_timeout: Duration::from_millis(300), ..GateConfig::default() };
    let server = server_with(config).await;
    let (reached, go_on) = server.backend.hold_sign_in();
    let mut raw = server.raw().await;
    raw.send(&connect(5, "x", "p/publisher", &[])).await;
    reached.await.unwrap();
    assert_eq!(raw.packet().await.1[1], 0x88);
    assert_eq!(raw.packet_or_end().await, None);
    drop((raw, go_on));
    let next = async {
        loop {
            let mut raw = server.raw().await;
            // Turned away while the first one is still being closed.
            let sent = raw.io.write_all(&connect(4, "x", "p/listener", &[])).await;
            if sent.is_ok() && raw.packet_or_end().await.is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, next).await.expect("its place is never free");
}

#[tokio::test]
async fn a_revocation_during_sign_in_is_not_missed() {
    let server = server().await;
    let (reached, go_on) = server.backend.hold_sign_in();
    let mut raw = server.raw().await;
    raw.send(&connect(5, "x", "p/publisher", &[])).await;
    reached.await.unwrap();
    // Checked, not yet registered.
    *server.backend.sign_in.lock().unwrap() = Some(SignInError::BadCredentials);
    server.handle.disconnect_member(&"p".parse().unwrap(), &"publisher".parse().unwrap(), EndReason::Revoked);
    go_on.send(()).unwrap();
    assert_eq!(raw.packet().await.1[1], 0x86);
}

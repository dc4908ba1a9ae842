//! The gate over real sockets: the behaviour that members and the coordinator rely on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, unreachable_pub, reason = "the support module serves several test crates")]

mod support;

use bytes::Bytes;
use millpond_broker::MemberMessage;
use millpond_protocol::{Code, Refusal};
use support::{Verdict, receipt, server, state};

const LEVELS: [u8; 2] = [4, 5];

fn answer(topic: &str, payload: &str) -> MemberMessage {
    MemberMessage {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        correlation_data: None,
    }
}

#[tokio::test]
async fn a_publish_at_qos_1_is_acknowledged_after_the_backend_took_it() {
    for level in LEVELS {
        let server = server().await;
        server.backend.verdicts.lock().unwrap().insert("u1".into(), Verdict::Wait);
        let mut client = server.client(level, "publisher").await;
        client.publish(1, 7, "mp/p/c/publisher/up/u1", b"bytes").await;
        server.backend.until(|backend| !backend.taken.lock().unwrap().is_empty()).await;
        client.ping().await;
        server.backend.decide("u1", Ok(()));
        assert_eq!(client.packet().await, (0x40, vec![0, 7]));
        assert_eq!(&server.backend.taken.lock().unwrap()[0].message.payload[..], b"bytes");
    }
}

#[tokio::test]
async fn a_publish_at_qos_2_is_decided_before_pubrec() {
    for level in LEVELS {
        let server = server().await;
        server.backend.verdicts.lock().unwrap().insert("u1".into(), Verdict::Wait);
        let mut client = server.client(level, "publisher").await;
        client.publish(2, 7, "mp/p/c/publisher/up/u1", b"bytes").await;
        server.backend.until(|backend| !backend.taken.lock().unwrap().is_empty()).await;
        client.ping().await;
        server.backend.decide("u1", Ok(()));
        assert_eq!(client.packet().await, (0x50, vec![0, 7]));
        client.send(&[0x62, 2, 0, 7]).await;
        assert_eq!(client.packet().await, (0x70, vec![0, 7]));
    }
}

#[tokio::test]
async fn a_publish_at_qos_0_right_before_disconnect_still_reaches_the_backend() {
    for level in LEVELS {
        let server = server().await;
        let mut client = server.client(level, "publisher").await;
        client.publish(0, 0, "mp/p/c/publisher/up/u1", b"bytes").await;
        client.send(&[0xE0, 0]).await;
        drop(client);
        server.backend.until(|backend| backend.taken_ids() == ["u1"]).await;
    }
}

#[tokio::test]
async fn acks_keep_the_order_of_receipt_when_outcomes_do_not() {
    for level in LEVELS {
        let server = server().await;
        for id in ["a", "b"] {
            server.backend.verdicts.lock().unwrap().insert(id.into(), Verdict::Wait);
        }
        let mut client = server.client(level, "publisher").await;
        client.publish(1, 1, "mp/p/c/publisher/up/a", b"").await;
        client.publish(1, 2, "mp/p/c/publisher/up/b", b"").await;
        client.publish(1, 3, "mp/p/c/publisher/up/a+b", b"").await;
        assert_eq!(client.end().await, if level == 5 { 0x90 } else { 0 });

        let mut client = server.client(level, "publisher").await;
        client.publish(1, 1, "mp/p/c/publisher/up/a", b"").await;
        client.publish(1, 2, "mp/p/c/publisher/up/b", b"").await;
        client.publish(1, 3, "mp/p/c/publisher/nonsense", b"").await;
        server.backend.until(|backend| backend.taken.lock().unwrap().len() == 4).await;
        server.backend.decide("b", Ok(()));
        client.ping().await;
        server.backend.decide("a", Ok(()));
        for id in 1..=3 {
            let (first, body) = client.packet().await;
            assert_eq!((first, body[1]), (0x40, id));
        }
    }
}

#[tokio::test]
async fn a_permanent_refusal_is_acknowledged_with_its_code_and_reported() {
    let server = server().await;
    let conflict = Refusal::new(Code::Conflict, "other bytes under the same id");
    server.backend.verdicts.lock().unwrap().insert("u1".into(), Verdict::Refuse(conflict));
    let mut client = server.client(5, "publisher").await;
    client.publish(1, 1, "mp/p/c/publisher/up/u1", b"").await;
    let (first, body) = client.packet().await;
    assert_eq!((first, body[2]), (0x40, 0x83));
    assert!(String::from_utf8_lossy(&body).contains("other bytes"));
    client.publish(1, 2, "mp/p/c/other/up/u1", b"").await;
    let (first, body) = client.packet().await;
    assert_eq!((first, body[2]), (0x40, 0x87));
    let refused = server.backend.refused.lock().unwrap();
    assert_eq!(refused.len(), 1, "the backend knows of its own refusals: {refused:?}");
    assert_eq!((refused[0].0.as_str(), refused[0].1.code), ("mp/p/c/other/up/u1", Code::Unauthorized));
}

#[tokio::test]
async fn a_permanent_refusal_is_acknowledged_plainly_over_3_1_1() {
    let server = server().await;
    let mut client = server.client(4, "publisher").await;
    client.publish(1, 1, "mp/p/c/other/up/u1", b"").await;
    assert_eq!(client.packet().await, (0x40, vec![0, 1]));
    client.publish(2, 2, "mp/p/c/other/up/u1", b"").await;
    assert_eq!(client.packet().await, (0x50, vec![0, 2]));
    client.send(&[0x62, 2, 0, 2]).await;
    assert_eq!(client.packet().await, (0x70, vec![0, 2]));
}

#[tokio::test]
async fn a_temporary_refusal_closes_without_an_ack() {
    for (refusal, code) in
        [(Refusal::unavailable("disk full"), 0x89), (Refusal::new(Code::Quota, "slow down"), 0x97)]
    {
        for level in LEVELS {
            let server = server().await;
            server.backend.verdicts.lock().unwrap().insert("u1".into(), Verdict::Refuse(refusal.clone()));
            let mut client = server.client(level, "publisher").await;
            client.publish(1, 1, "mp/p/c/publisher/up/u1", b"").await;
            client.publish(1, 2, "mp/p/c/publisher/up/u2", b"").await;
            if level == 5 {
                let (first, body) = client.packet().await;
                assert_eq!((first, body[0]), (0xE0, code));
            }
            assert_eq!(client.packet_or_end().await, None);
        }
    }
}

#[tokio::test]
async fn messages_behind_a_large_one_wait_for_its_verdict() {
    let server = server().await;
    server.backend.verdicts.lock().unwrap().insert("large".into(), Verdict::Wait);
    let mut client = server.client(4, "publisher").await;
    client.publish(1, 1, "mp/p/c/publisher/up/small", b"").await;
    client.publish(1, 2, "mp/p/c/publisher/up/large", &vec![7; 200 << 10]).await;
    client.publish(1, 3, "mp/p/c/publisher/up/behind", b"").await;
    assert_eq!(client.packet().await, (0x40, vec![0, 1]));
    client.ping().await;
    assert_eq!(server.backend.taken_ids(), ["small", "large"]);
    server.backend.decide("large", Ok(()));
    assert_eq!(client.packet().await, (0x40, vec![0, 2]));
    assert_eq!(client.packet().await, (0x40, vec![0, 3]));
    assert_eq!(server.backend.taken_ids(), ["small", "large", "behind"]);
}

#[tokio::test]
async fn an_oversize_publish_is_read_past_and_acknowledged_as_too_large() {
    for level in LEVELS {
        let server = server().await;
        let mut client = server.client(level, "publisher").await;
        client.publish(1, 1, "mp/p/c/publisher/up/u1", &vec![7; (1 << 20) + 1]).await;
        let (first, body) = client.packet().await;
        assert_eq!((first, &body[..2]), (0x40, &[0, 1][..]));
        if level == 5 {
            assert_eq!(body[2], 0x97);
        }
        client.publish(1, 2, "mp/p/c/publisher/up/u1", &vec![7; 1 << 20]).await;
        assert_eq!(client.packet().await, (0x40, vec![0, 2]));
        assert_eq!(server.backend.refused.lock().unwrap()[0].1.limit, Some(1 << 20));
    }
}

#[tokio::test]
async fn a_publish_beyond_what_is_read_past_closes() {
    let server = server().await;
    let mut client = server.client(5, "publisher").await;
    client.send(&[0x32, 0xFF, 0xFF, 0xFF, 0x7F]).await;
    assert_eq!(client.end().await, 0x95);
}

#[tokio::test]
async fn the_current_state_comes_after_suback_and_live_changes_follow() {
    for level in LEVELS {
        let server = server().await;
        server.backend.states.lock().unwrap().push(state("mp/p/result", 1, "one"));
        let mut client = server.client(level, "listener").await;
        assert_eq!(client.subscribe("mp/p/result", 1).await, 1);
        let message = client.message().await;
        assert_eq!((message.text(), message.retain, message.id.is_some()), ("one", true, true));
        server.handle.publish_state(state("mp/p/result", 2, "two"));
        let message = client.message().await;
        assert_eq!((message.text(), message.retain), ("two", false));
        server.handle.publish_state(state("mp/p/result", 3, ""));
        assert_eq!(client.message().await.text(), "");
    }
}

#[tokio::test]
async fn a_lower_rank_never_follows_a_higher_one() {
    let server = server().await;
    server.backend.states.lock().unwrap().push(state("mp/p/result", 5, "five"));
    let mut client = server.client(4, "listener").await;
    client.subscribe("mp/p/#", 0).await;
    client.subscribe("mp/p/result/#", 0).await;
    assert_eq!(client.message().await.text(), "five");
    server.handle.publish_state(state("mp/p/result", 4, "four"));
    // The router keeps the order of one publisher: what comes next proves that `four` was passed over.
    server.handle.publish_state(state("mp/p/result/data", 1, "data"));
    assert_eq!(client.message().await.text(), "data");
    server.handle.publish_state(state("mp/p/result", 6, "six"));
    assert_eq!(client.message().await.text(), "six");
}

#[tokio::test]
async fn events_reach_operators_that_subscribe() {
    let server = server().await;
    let mut client = server.client(5, "operator").await;
    assert_eq!(client.subscribe("mp/p/event/+", 1).await, 1);
    client.ping().await;
    // The subscription is in the router when the next one of the same link has been answered with its state.
    server.backend.states.lock().unwrap().push(state("mp/p/pool", 1, "card"));
    client.subscribe("mp/p/pool", 0).await;
    assert_eq!(client.message().await.text(), "card");
    server.handle.publish_event("mp/p/event/sealed", "{}");
    let message = client.message().await;
    assert_eq!((message.topic.as_str(), message.text()), ("mp/p/event/sealed", "{}"));
}

#[tokio::test]
async fn a_message_to_a_member_reaches_each_of_its_connections_that_subscribes() {
    let server = server().await;
    let mut first = server.client_as(4, "publisher", "a").await;
    let mut second = server.client_as(5, "publisher", "b").await;
    let mut other = server.client_as(5, "publisher-2", "b").await;
    first.subscribe("mp/p/d/publisher/answer/+", 1).await;
    second.subscribe("mp/p/d/publisher/#", 0).await;
    other.subscribe("mp/p/d/publisher-2/#", 0).await;
    let (pool, member) = ("p".parse().unwrap(), "publisher".parse().unwrap());
    let mut message = answer("mp/p/d/publisher/answer/time", "now");
    message.correlation_data = Some(Bytes::from_static(b"c7"));
    server.handle.to_member(&pool, &member, message);
    let got = first.message().await;
    assert_eq!((got.text(), got.id.is_some()), ("now", true));
    let got = second.message().await;
    assert_eq!((got.text(), got.id.is_some()), ("now", false));
    assert_eq!(got.properties, [9, 0, 2, b'c', b'7']);
    server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/other", "x"));
    assert_eq!(second.message().await.text(), "x");
    first.ping().await;
    other.ping().await;
}

#[tokio::test]
async fn receipts_come_in_order_and_the_cursor_moves_with_the_acks() {
    for (level, qos) in [(4, 0), (4, 1), (5, 1)] {
        let server = server().await;
        server.backend.receipts.lock().unwrap().extend((1..=200).map(receipt));
        *server.backend.cursor.lock().unwrap() = 10;
        let mut client = server.client(level, "publisher").await;
        client.subscribe("mp/p/d/publisher/receipt", qos).await;
        for seq in 11..=200 {
            assert_eq!(client.message().await.text(), format!("receipt {seq}"));
        }
        server.backend.until(|backend| *backend.cursor.lock().unwrap() == 200).await;
        server.backend.receipts.lock().unwrap().push(receipt(201));
        server.handle.receipts_ready(&"p".parse().unwrap(), &"publisher".parse().unwrap());
        assert_eq!(client.message().await.text(), "receipt 201");
    }
}

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
    server.shutdown.cancel();
    server.backend.decide("u1", Ok(()));
    assert_eq!(client.packet().await, (0x40, vec![0, 1]));
    let (first, body) = client.packet().await;
    assert_eq!((first, body[0]), (0xE0, 0x8B));
    drop(client);
    server.ended.await.unwrap().unwrap();
}

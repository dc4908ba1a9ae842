//! What a client publishes: taken, decided, acknowledged.

use millpond_protocol::{Code, Refusal};

use crate::support::{LEVELS, Verdict, publish, server, text};

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
async fn what_is_held_behind_a_large_message_is_taken_after_the_client_has_gone() {
    for level in LEVELS {
        let server = server().await;
        server.backend.verdicts.lock().unwrap().insert("large".into(), Verdict::Wait);
        let mut client = server.client(level, "publisher").await;
        client.publish(0, 0, "mp/p/c/publisher/up/large", &vec![7; 200 << 10]).await;
        client.publish(0, 0, "mp/p/c/publisher/up/held", b"").await;
        client.send(&[0xE0, 0]).await;
        assert_eq!(client.packet_or_end().await, None);
        server.backend.decide("large", Ok(()));
        server.backend.until(|backend| backend.taken_ids() == ["large", "held"]).await;
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
        client.publish(1, 3, "mp/p/c/publisher/nonsense", b"").await;
        server.backend.until(|backend| backend.taken_ids() == ["a", "b"]).await;
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
    assert_eq!(
        (refused[0].topic.as_str(), refused[0].refusal.code),
        ("mp/p/c/other/up/u1", Code::Unauthorized)
    );
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
        assert_eq!(server.backend.refused.lock().unwrap()[0].refusal.limit, Some(1 << 20));
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
async fn sixty_four_messages_may_be_undecided_and_then_the_gate_stops_reading() {
    let server = server().await;
    for n in 0..70 {
        server.backend.verdicts.lock().unwrap().insert(format!("u{n}"), Verdict::Wait);
    }
    let mut client = server.client(4, "publisher").await;
    for n in 0..70 {
        client.publish(1, n + 1, &format!("mp/p/c/publisher/up/u{n}"), b"").await;
    }
    server.backend.until(|backend| backend.taken.lock().unwrap().len() == 64).await;
    let mut other = server.client(4, "publisher-2").await;
    other.publish(1, 1, "mp/p/c/publisher-2/up/free", b"").await;
    assert_eq!(other.packet().await, (0x40, vec![0, 1]), "others are not held up");
    assert_eq!(server.backend.taken.lock().unwrap().len(), 65);
    for n in 0..70 {
        let id = format!("u{n}");
        server.backend.until(|backend| backend.waiting.lock().unwrap().contains_key(&id)).await;
        server.backend.decide(&id, Ok(()));
        assert_eq!(client.packet().await, (0x40, vec![0, n + 1]));
    }
}

#[tokio::test]
async fn a_resent_publish_is_taken_and_acknowledged_again() {
    for level in LEVELS {
        let server = server().await;
        let mut client = server.client(level, "publisher").await;
        for first in [0x32, 0x3A, 0x34, 0x3C] {
            let mut bytes = publish(level, 1, 5, "mp/p/c/publisher/up/u1", &[], b"");
            bytes[0] = first;
            client.send(&bytes).await;
            let ack = if first & 6 == 2 { 0x40 } else { 0x50 };
            assert_eq!(client.packet().await, (ack, vec![0, 5]));
        }
        assert_eq!(server.backend.taken_ids(), ["u1"; 4]);
        client.send(&[0x62, 2, 0, 5]).await;
        assert_eq!(client.packet().await, (0x70, vec![0, 5]));
        client.send(&[0x62, 2, 0, 5]).await;
        let (first, body) = client.packet().await;
        assert_eq!((first, body.get(2).copied()), (0x70, (level == 5).then_some(0x92)));
    }
}

#[tokio::test]
async fn retain_is_ignored() {
    for level in LEVELS {
        let server = server().await;
        let mut client = server.client(level, "publisher").await;
        let mut bytes = publish(level, 1, 5, "mp/p/c/publisher/up/u1", &[], b"");
        bytes[0] |= 1;
        client.send(&bytes).await;
        assert_eq!(client.packet().await, (0x40, vec![0, 5]));
        assert_eq!(server.backend.taken_ids(), ["u1"]);
    }
}

#[tokio::test]
async fn properties_of_mqtt_5_reach_the_backend() {
    let server = server().await;
    let mut client = server.client(5, "publisher").await;
    let properties = [
        &[3][..],
        &text("image/png"),
        &[8],
        &text("mp/p/d/publisher/mine"),
        &[9],
        &text("c7"),
        &[38],
        &text("name"),
        &text("ü.png"),
        &[38],
        &text("name"),
        &text("again"),
    ]
    .concat();
    client.send(&publish(5, 1, 1, "mp/p/c/publisher/ask/status", &properties, b"{}")).await;
    client.packet().await;
    let taken = server.backend.taken.lock().unwrap()[0].clone();
    assert_eq!(taken.from, "publisher");
    assert_eq!(taken.message.content_type.as_deref(), Some("image/png"));
    assert_eq!(taken.message.response_topic.as_deref(), Some("mp/p/d/publisher/mine"));
    assert_eq!(taken.message.correlation_data.as_deref(), Some(&b"c7"[..]));
    let pairs = [("name", "ü.png"), ("name", "again")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(taken.message.user_properties, pairs);
}

#[tokio::test]
async fn a_foreign_response_topic_is_unauthorized_and_nothing_is_taken() {
    let server = server().await;
    let mut client = server.client(5, "publisher").await;
    for topic in ["mp/p/d/listener/x", "mp/p/result", "mp/p/d/publisher/", "mp/p/d/publisher/+", "x"] {
        let properties = [&[8][..], &text(topic)].concat();
        client.send(&publish(5, 1, 1, "mp/p/c/publisher/ask/status", &properties, b"{}")).await;
        assert_eq!(client.packet().await.1[2], 0x87, "{topic}");
    }
    assert!(server.backend.taken_ids().is_empty());
}

#[tokio::test]
async fn a_long_publish_is_refused_by_its_head_and_its_payload_never_held() {
    let server = server().await;
    let mut client = server.client(5, "listener").await;
    client.publish(1, 1, "mp/p/c/listener/up/u1", &vec![7; 3 << 20]).await;
    assert_eq!(client.packet().await.1[2], 0x87);
    client.publish(2, 2, "mp/p/c/listener/ask/time", &vec![7; (256 << 10) + 1]).await;
    let (first, body) = client.packet().await;
    assert_eq!((first, body[2]), (0x50, 0x97));
    client.publish(1, 3, "mp/p/c/listener/ask/time", b"{}").await;
    assert_eq!(client.packet().await, (0x40, vec![0, 3]));
}

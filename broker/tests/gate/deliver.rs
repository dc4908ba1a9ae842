//! What reaches a client: current state and its changes, events, answers and receipts.

use std::time::Duration;

use bytes::Bytes;
use millpond_broker::{GateConfig, MemberMessage};
use millpond_protocol::{MemberName, PoolName};
use tokio::io::AsyncWriteExt;

use crate::support::{LEVELS, Message, SOON, connect, packet, receipt, server, server_with, state, text};

fn answer(topic: &str, payload: &str) -> MemberMessage {
    MemberMessage {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        correlation_data: None,
    }
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

fn ids() -> (PoolName, MemberName) {
    ("p".parse().unwrap(), "publisher".parse().unwrap())
}

#[tokio::test]
async fn overlapping_subscriptions_deliver_once_at_the_highest_qos() {
    let server = server().await;
    let mut client = server.client(5, "publisher").await;
    let (pool, member) = ids();
    let mut tagged = vec![0, 1, 2, 11, 77];
    tagged.extend(text("mp/p/d/publisher/#"));
    tagged.push(0);
    client.send(&packet(0x82, &tagged)).await;
    client.packet().await;
    client.subscribe("mp/p/d/publisher/answer/time", 1).await;
    server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/answer/time", "now"));
    let message = client.message().await;
    assert_eq!((message.text(), message.id.is_some()), ("now", true));
    assert_eq!(message.properties, [11, 77], "the identifier of the subscription that has one");
    client.ping().await;
}

#[tokio::test]
async fn unsubscribe_ends_delivery_and_tells_what_existed() {
    for level in LEVELS {
        let server = server().await;
        let mut client = server.client(level, "publisher").await;
        let (pool, member) = ids();
        client.subscribe("mp/p/d/publisher/#", 1).await;
        client.subscribe("mp/p/pool", 1).await;
        let props: &[u8] = if level == 5 { &[0] } else { &[] };
        let filters = [text("mp/p/d/publisher/#"), text("mp/p/pool"), text("mp/p/never")].concat();
        client.send(&packet(0xA2, &[&[0, 4], props, &filters].concat())).await;
        let (first, body) = client.packet().await;
        let codes: &[u8] = if level == 5 { &[0, 0, 0x11] } else { &[] };
        assert_eq!((first, &body[..]), (0xB0, &[&[0, 4], props, codes].concat()[..]));
        server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/answer/time", "now"));
        server.handle.publish_state(state("mp/p/pool", 9, "card"));
        server.backend.receipts.lock().unwrap().push(receipt(1));
        server.handle.receipts_ready(&pool, &member);
        client.ping().await;
        server.backend.states.lock().unwrap().push(state("mp/p/result", 1, "result"));
        client.subscribe("mp/p/result", 0).await;
        assert_eq!(client.message().await.text(), "result", "nothing else came before");
    }
}

#[tokio::test]
async fn subscribing_again_brings_the_current_state_again() {
    let server = server().await;
    server.backend.states.lock().unwrap().push(state("mp/p/result", 3, "three"));
    let mut client = server.client(5, "listener").await;
    for (options, comes) in [(0, true), (0, true), (0x10, false), (0x20, false)] {
        client.subscribe("mp/p/result", options).await;
        if comes {
            assert_eq!(client.message().await.text(), "three");
        }
        client.ping().await;
    }
}

#[tokio::test]
async fn the_receive_maximum_of_a_client_is_kept_to() {
    let server = server().await;
    let mut client = server.raw().await;
    client.level = 5;
    client.send(&connect(5, "x", "p/publisher", &[33, 0, 2])).await;
    client.packet().await;
    client.subscribe("mp/p/d/publisher/#", 1).await;
    let (pool, member) = ids();
    for n in 0..4 {
        server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/x", &n.to_string()));
    }
    let mut held = Vec::new();
    for n in 0..2 {
        let (first, body) = client.packet().await;
        let message = Message::parse(5, first, &body);
        assert_eq!(message.text(), n.to_string());
        held.push(message.id.unwrap());
    }
    client.ping().await;
    // Acknowledged out of order: each makes room for one.
    client.send(&[0x40, 2, 0, held[1] as u8]).await;
    assert_eq!(client.message().await.text(), "2");
    assert_eq!(client.message().await.text(), "3");
    client.send(&[0x40, 2, 0, held[0] as u8]).await;
    client.ping().await;
}

#[tokio::test]
async fn a_message_larger_than_the_client_accepts_is_not_sent() {
    let server = server().await;
    server.backend.receipts.lock().unwrap().extend([1, 2].map(receipt));
    server.backend.receipts.lock().unwrap()[0].payload = vec![b'x'; 200].into();
    let mut client = server.raw().await;
    client.level = 5;
    client.send(&connect(5, "x", "p/publisher", &[39, 0, 0, 0, 100])).await;
    client.packet().await;
    client.subscribe("mp/p/d/publisher/#", 1).await;
    assert_eq!(client.message().await.text(), "receipt 2", "the stream goes on behind it");
    server.backend.until(|backend| *backend.cursor.lock().unwrap() == 2).await;
    let (pool, member) = ids();
    server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/x", &"x".repeat(200)));
    server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/x", "fits"));
    assert_eq!(client.message().await.text(), "fits");
}

#[tokio::test]
async fn a_backlog_of_receipts_does_not_hold_up_an_answer() {
    let server = server().await;
    server.backend.receipts.lock().unwrap().extend((1..=1_000).map(receipt));
    let mut client = server.client(4, "publisher").await;
    client.subscribe("mp/p/d/publisher/#", 1).await;
    // Nothing is acknowledged: the receipts take half of the window and wait.
    for n in 1..=50 {
        let (first, body) = client.packet().await;
        assert_eq!(Message::parse(4, first, &body).text(), format!("receipt {n}"));
    }
    let (pool, member) = ids();
    server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/answer/time", "now"));
    assert_eq!(client.message().await.text(), "now");
}

#[tokio::test]
async fn a_receipt_that_is_not_acknowledged_comes_again_on_the_next_connection() {
    let server = server().await;
    server.backend.receipts.lock().unwrap().extend((1..=3).map(receipt));
    let mut client = server.client(4, "publisher").await;
    client.subscribe("mp/p/d/publisher/receipt", 1).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (first, body) = client.packet().await;
        ids.push(Message::parse(4, first, &body).id.unwrap() as u8);
    }
    // The second is missing, so the cursor stays behind it.
    client.send(&[0x40, 2, 0, ids[0], 0x40, 2, 0, ids[2]]).await;
    client.ping().await;
    drop(client);
    let mut client = server.client(4, "publisher").await;
    client.subscribe("mp/p/d/publisher/receipt", 1).await;
    assert_eq!(client.message().await.text(), "receipt 2");
    assert_eq!(client.message().await.text(), "receipt 3");
    server.backend.until(|backend| *backend.cursor.lock().unwrap() == 3).await;
}

#[tokio::test]
async fn receipts_that_are_acknowledged_right_before_disconnect_count() {
    for (level, qos) in [(4, 1), (5, 1), (4, 0)] {
        let server = server().await;
        server.backend.receipts.lock().unwrap().extend((1..=3).map(receipt));
        let mut client = server.client(level, "publisher").await;
        client.subscribe("mp/p/d/publisher/receipt", qos).await;
        let mut bytes = Vec::new();
        for _ in 0..3 {
            let (first, body) = client.packet().await;
            if let Some(id) = Message::parse(level, first, &body).id {
                bytes.extend([0x40, 2, 0, id as u8]);
            }
        }
        bytes.extend([0xE0, 0]);
        client.send(&bytes).await;
        assert_eq!(client.packet_or_end().await, None);
        server.backend.until(|backend| *backend.cursor.lock().unwrap() == 3).await;
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_ended_and_holds_up_nobody() {
    let server = server().await;
    let mut lazy = server.client_as(5, "publisher", "lazy").await;
    let mut keen = server.client_as(5, "publisher", "keen").await;
    lazy.subscribe("mp/p/d/publisher/#", 1).await;
    keen.subscribe("mp/p/d/publisher/#", 1).await;
    let (pool, member) = ids();
    let payload = "x".repeat(100 << 10);
    // More than the sockets' buffers and its queue together hold.
    let ended = async {
        while server.handle.connections() == 2 {
            server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/x", &payload));
            keen.message().await;
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("it stays");
    assert_eq!(lazy.end().await, 0x97);
    keen.ping().await;
}

#[tokio::test]
async fn a_client_that_takes_no_byte_for_too_long_is_closed() {
    let config = GateConfig {
        stall_timeout: Duration::from_millis(300),
        out_queue_max: 1 << 30,
        ..GateConfig::default()
    };
    let server = server_with(config).await;
    let mut client = server.client(4, "publisher").await;
    client.subscribe("mp/p/d/publisher/#", 0).await;
    let (pool, member) = ids();
    // More than the sockets' buffers hold, and far less than the queue does: only the time ends it.
    let payload = "x".repeat(1 << 20);
    for _ in 0..32 {
        server.handle.to_member(&pool, &member, answer("mp/p/d/publisher/x", &payload));
    }
    let gone = async {
        while server.handle.connections() == 1 {
            // It says something, which is no excuse.
            tokio::time::sleep(Duration::from_millis(50)).await;
            if client.io.write_all(&[0xC0, 0]).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("it stays");
}

#[tokio::test]
async fn a_listener_that_fell_behind_the_router_ends_with_the_newest_state() {
    let server = server().await;
    let mut client = server.client(4, "listener").await;
    server.backend.states.lock().unwrap().push(state("mp/p/result/data", 1, "first"));
    client.subscribe("mp/p/result/data", 1).await;
    assert_eq!(client.message().await.text(), "first");
    let filler = "x".repeat(100 << 10);
    for rank in 2..100 {
        let message = state("mp/p/result/data", rank, &filler);
        server.backend.states.lock().unwrap()[0] = message.clone();
        server.handle.publish_state(message);
        tokio::task::yield_now().await;
    }
    let last = state("mp/p/result/data", 100, "last");
    server.backend.states.lock().unwrap()[0] = last.clone();
    server.handle.publish_state(last);
    while client.message().await.text() != "last" {}
}

#[tokio::test]
async fn one_change_reaches_five_hundred_listeners() {
    let server = server().await;
    let mut clients = Vec::new();
    server.backend.states.lock().unwrap().push(state("mp/p/result", 1, "one"));
    for n in 0..500_u16 {
        let odd = (n % 2) as u8;
        let mut client = server.client_as(4 + odd, &format!("listener-{n}"), "x").await;
        client.subscribe("mp/p/result/#", odd).await;
        assert_eq!(client.message().await.text(), "one");
        clients.push(client);
    }
    // Links that go and come while messages flow.
    for rank in 2..20 {
        // As the coordinator does it: committed first, then published.
        server.backend.states.lock().unwrap()[0] = state("mp/p/result", rank, &rank.to_string());
        server.handle.publish_state(state("mp/p/result", rank, &rank.to_string()));
        for n in 0..10 {
            drop(clients.swap_remove(n * 7));
        }
        for n in 0..10 {
            let mut client = server.client_as(4, &format!("listener-{rank}-{n}"), "x").await;
            client.subscribe("mp/p/result/#", 1).await;
            clients.push(client);
        }
    }
    server.backend.states.lock().unwrap()[0] = state("mp/p/result", 20, "last");
    server.handle.publish_state(state("mp/p/result", 20, "last"));
    for client in &mut clients {
        while client.message().await.text() != "last" {}
    }
}

//! What reaches a client: current state and its changes, events, answers and receipts.

use bytes::Bytes;
use millpond_broker::MemberMessage;

use crate::support::{LEVELS, receipt, server, state};

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

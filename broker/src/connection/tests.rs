//! Connections whose subscriptions wait for their turn.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use millpond_protocol::{PoolName, limits};

use super::parting::PATIENCE;
use crate::codec::packet::Head;
use crate::hub::Hub;
use crate::hub::message::Message;
use crate::hub::turns::Work;
use crate::support::{Raw, SOON, Server, Verdict, app_server, connect_with, packet, subscribe, text};

/// A session that is kept for an hour.
const HOUR: &[u8] = &[17, 0, 0, 14, 16];

fn pool() -> PoolName {
    "p".parse().unwrap()
}

fn hub(server: &Server) -> Arc<Hub> {
    server.handle.hub().clone()
}

/// A gate whose pool retains more than is free to look at where somebody has the turn.
async fn retaining() -> Server {
    let server = app_server().await;
    for n in 0..2 * limits::RETAINED_PER_MEMBER {
        let head = Head { topic: format!("app/p/kept/{n}"), retain: true, ..Head::default() };
        let member = (n / limits::RETAINED_PER_MEMBER) as i64;
        let message = Message::new(head, Bytes::from_static(b"x"), (0, member), Instant::now());
        hub(&server).deliver(message, Instant::now(), &mut Vec::new()).unwrap();
    }
    server
}

/// Somebody else of the pool whose turn it is, for as long as it is held.
async fn turn(server: &Server) -> Work {
    let mut work = hub(server).in_line(&pool());
    work.turn().await;
    work
}

/// Signs a publisher in. What its session is by these properties it goes on with.
async fn client(server: &Server, properties: &[u8]) -> Raw {
    let mut raw = server.raw().await;
    raw.level = 5;
    let login = [text("p/publisher"), text("secret")].concat();
    raw.send(&connect_with(5, 0xC0, 0, "x", properties, &login)).await;
    assert_eq!(raw.packet().await.1[1], 0);
    raw
}

/// A SUBSCRIBE to almost as many filters as there may be, for each of which all that is retained comes into question.
fn much() -> Vec<u8> {
    let filters: Vec<String> = (0..63).map(|n| format!("app/p/+/{n}/none")).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (&**filter, 1)).collect();
    subscribe(5, 9, &filters)
}

/// Subscribes to it, and answers when that waits for its turn.
async fn subscribe_to_much(raw: &mut Raw) {
    raw.send(&much()).await;
    raw.ping().await;
}

/// Waits until everybody's session has left its connection.
async fn nobody(server: &Server) {
    let left = async {
        while server.handle.connections() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE + SOON, left).await.expect("the connection does not leave");
}

#[tokio::test]
async fn a_subscription_that_waits_for_its_turn_is_not_acknowledged_and_holds_nothing_else_up() {
    let server = retaining().await;
    let mut raw = client(&server, &[]).await;
    assert_eq!(raw.subscribe("app/p/own", 1).await, 1);
    let others = turn(&server).await;
    subscribe_to_much(&mut raw).await;
    // What it sends is taken, and what comes is handed on.
    raw.publish(1, 3, "mp/p/c/publisher/up/u1", b"").await;
    assert_eq!(raw.packet().await.0, 0x40);
    let mut other = server.client(4, "publisher-2").await;
    other.publish(0, 0, "app/p/own", b"comes").await;
    assert_eq!(raw.message().await.text(), "comes");
    // What it does not want any more is not subscribed to behind its back.
    raw.send(&packet(0xA2, &[&[0, 8, 0][..], &text("app/p/+/61/none")].concat())).await;
    assert_eq!(raw.packet().await.0, 0xB0);
    raw.ping().await;
    drop(others);
    let (first, body) = raw.packet().await;
    assert_eq!((first, &body[..3], &body[3..]), (0x90, &[0, 9, 0][..], &[1; 63][..]));
    for n in [61, 62] {
        other.publish(0, 0, &format!("app/p/x/{n}/none"), n.to_string().as_bytes()).await;
    }
    assert_eq!(raw.message().await.text(), "62");
}

#[tokio::test]
async fn the_first_look_waits_for_its_turn_too_but_not_for_nobody_and_not_where_little_comes_into_question() {
    let server = retaining().await;
    let mut alone = client(&server, &[]).await;
    assert_eq!(alone.subscribe("app/p/+/0/none", 1).await, 1);
    let others = turn(&server).await;
    // Each by somebody who has used up nothing yet: how long a look takes is the machine's affair.
    for filter in ["app/p/own/+", "$share/g/app/p/#", "app/p/kept/0"] {
        let mut raw = client(&server, &[]).await;
        assert_eq!(raw.subscribe(filter, 0).await, 0, "{filter}");
        if filter == "app/p/kept/0" {
            assert_eq!(raw.message().await.topic, filter);
        }
    }
    let mut raw = server.client(4, "publisher-2").await;
    raw.send(&subscribe(4, 9, &[("app/p/+/0/none", 0)])).await;
    raw.ping().await;
    drop(others);
    assert_eq!(raw.packet().await.0, 0x90);
}

#[tokio::test]
async fn who_subscribes_to_more_than_it_may_have_before_its_turn_is_not_read_until_then() {
    let server = retaining().await;
    let mut raw = client(&server, &[]).await;
    let others = turn(&server).await;
    subscribe_to_much(&mut raw).await;
    raw.send(&[&much()[..], &[0xC0, 0]].concat()).await;
    // It would be answered long before this one, which comes in anew.
    server.client(4, "publisher-2").await.ping().await;
    assert!(raw.packet().now_or_never().is_none());
    drop(others);
    assert_eq!(raw.packet().await.0, 0x90);
    // Whichever of them comes first.
    let mut kinds = [raw.packet().await.0, raw.packet().await.0];
    kinds.sort_unstable();
    assert_eq!(kinds, [0x90, 0xD0]);
}

#[tokio::test]
async fn who_ends_while_it_waits_for_its_turn_keeps_nobody_from_it_while_it_is_seen_through() {
    let server = retaining().await;
    server.backend.verdicts.lock().unwrap().insert("u1".into(), Verdict::Wait);
    let mut raw = client(&server, &[]).await;
    raw.publish(1, 3, "mp/p/c/publisher/up/u1", b"").await;
    let first = turn(&server).await;
    subscribe_to_much(&mut raw).await;
    let mut next = hub(&server).in_line(&pool());
    assert!(next.turn().now_or_never().is_none());
    drop(raw);
    nobody(&server).await;
    drop(first);
    tokio::time::timeout(SOON, next.turn()).await.expect("its turn never comes");
    server.backend.decide("u1", Ok(()));
}

#[tokio::test]
async fn what_a_kept_session_subscribed_to_is_there_though_its_turn_never_came() {
    let server = retaining().await;
    let mut raw = client(&server, HOUR).await;
    let first = turn(&server).await;
    subscribe_to_much(&mut raw).await;
    let mut next = hub(&server).in_line(&pool());
    assert!(next.turn().now_or_never().is_none());
    drop(raw);
    nobody(&server).await;
    let mut other = server.client(4, "publisher-2").await;
    other.publish(1, 3, "app/p/x/62/none", b"waits").await;
    assert_eq!(other.packet().await.0, 0x40);
    let mut raw = client(&server, HOUR).await;
    assert_eq!(raw.message().await.text(), "waits");
    drop(first);
    tokio::time::timeout(SOON, next.turn()).await.expect("its turn never comes");
}

#[tokio::test]
async fn a_client_that_has_gone_leaves_in_its_turn_and_at_once_where_somebody_takes_its_session_over() {
    let server = app_server().await;
    let others = server.handle.registry().parting.lock().await;
    drop((client(&server, HOUR).await, server.client(5, "publisher-2").await));
    let mut next = server.raw().await;
    let login = [text("p/publisher"), text("secret")].concat();
    next.send(&connect_with(5, 0xC0, 0, "x", HOUR, &login)).await;
    assert_eq!(next.packet().await.1[..2], [1, 0], "its session is there, which was not taken by force");
    server.client(5, "publisher-3").await.ping().await;
    assert_eq!(server.handle.connections(), 3, "the other one waits for its turn");
    drop((others, next));
    nobody(&server).await;
}

#[tokio::test]
async fn who_waits_until_others_have_left_keeps_nobody_from_a_turn() {
    let server = retaining().await;
    let _others = server.handle.registry().parting.lock().await;
    let mut raw = client(&server, &[]).await;
    let first = turn(&server).await;
    subscribe_to_much(&mut raw).await;
    let mut next = hub(&server).in_line(&pool());
    assert!(next.turn().now_or_never().is_none());
    drop(raw);
    // By now the server has seen that.
    server.client(5, "publisher-2").await.ping().await;
    drop(first);
    tokio::time::timeout(SOON, next.turn()).await.expect("its turn never comes");
}

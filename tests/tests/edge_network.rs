//! Networks as devices have them: one that vanishes without a word, and lines so slow that a message takes longer than a keep-alive.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::{Duration, Instant};

use millpond_edge::backoff::Backoff;
use millpond_edge::session::{self, Config, Event, Inbox, Properties, Token, Topic};
use millpond_protocol::Role;
use millpond_protocol::access::Op;
use millpond_tests::{Edge, Link, Mill, Process, Server, Shape};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(120);
/// What takes seconds where it works, and minutes where it does not.
const SOON: Duration = Duration::from_secs(40);

fn slow(rate: u64) -> Shape {
    Shape { rate: Some(rate), ..Shape::default() }
}

async fn told(inbox: &mut Inbox, is_it: impl Fn(&Event) -> bool) {
    while !is_it(&tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap()) {}
}

#[tokio::test]
async fn a_push_on_a_network_that_vanishes_in_mid_file_returns_when_its_patience_ends_and_the_file_waits() {
    let (server, edge) = Edge::device().await;
    // Not so large that the line would be measured before; what is on its way may take ten seconds on the slowest one then.
    edge.file("one", &[7; 20_000]);
    edge.relay.vanish_after(10_000);
    let begin = Instant::now();
    let out = edge.done(&["--patience", "3", "push", "one"]).await;
    let took = begin.elapsed();
    assert!(out.starts_with("spooled"), "{out}");
    assert!(took >= Duration::from_secs(3) && took < SOON, "{took:?}");
    edge.relay.has_vanished().await;
    // Nor does a network keep anybody waiting that takes connections and nothing else.
    let begin = Instant::now();
    assert_eq!(edge.run(&["--patience", "2", "spool", "flush"]).await.status.code(), Some(75));
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    edge.relay.come_back();
    edge.done(&["spool", "flush"]).await;
    let uploads = server.uploads("demo").await;
    assert_eq!((uploads.len(), uploads[0]["name"].as_str()), (1, Some("one")));
}

#[tokio::test]
async fn a_session_notices_after_one_and_a_half_keep_alives_that_nobody_is_there_and_connects_again() {
    let (server, edge) = Edge::device().await;
    let who = server.member("demo", "edge-2", Role::Publisher).await;
    let at = edge.relay.address();
    let config = Config::new(at.ip().to_string(), at.port(), who.pool, who.member, Token::new(&who.token));
    let backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));
    let keep_alive = Duration::from_secs(5);
    let (session, mut inbox) = session::open(Config { keep_alive, backoff, ..config });
    told(&mut inbox, |event| matches!(event, Event::Online)).await;
    // As long as somebody is there, that nothing is said means nothing.
    tokio::time::sleep(keep_alive * 2).await;
    assert!(session.is_connected() && inbox.try_next().is_none());
    edge.relay.vanish();
    edge.relay.come_back();
    let begin = Instant::now();
    told(&mut inbox, |event| matches!(event, Event::Offline(_))).await;
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    told(&mut inbox, |event| matches!(event, Event::Online)).await;
    session.connected(PATIENCE).await.unwrap();
    session.upload(&"u1".parse().unwrap(), &b"one"[..], Properties::default()).await.unwrap();
}

/// Waits until the listener shows that.
async fn shows(listen: &mut Process, current: &Path, what: &str) {
    let begin = Instant::now();
    while std::fs::read(current).ok().as_deref() != Some(what.as_bytes()) {
        assert!(begin.elapsed() < PATIENCE && listen.status().is_none(), "{what}: {}", listen.stderr());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_listener_whose_network_vanished_has_the_result_soon_after_it_is_back() {
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "count", "count": 1_000, "spread_s": 0 })).await;
    let edge = Edge::new(&server, server.member("demo", "listener", Role::Listener).await).await;
    let link = Link::open(server.member("demo", "edge-1", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let round = async |upload: &str| {
        link.publish(&format!("mp/demo/c/edge-1/up/{upload}"), vec![1], Default::default()).await.unwrap();
        let lease = mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
        mill.answer(&lease, upload.as_bytes().to_vec()).await.unwrap();
    };
    round("u1").await;
    let current = edge.directory().join("shelf/current");
    let mut listen = edge.start("listen", &["--keep-alive", "5", "listen", "--dir", "shelf"]);
    shows(&mut listen, &current, "u1").await;
    edge.relay.vanish();
    round("u2").await;
    edge.relay.come_back();
    let begin = Instant::now();
    shows(&mut listen, &current, "u2").await;
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    listen.signal("TERM");
    assert!(listen.wait(PATIENCE).await.success());
}

#[tokio::test]
async fn a_file_that_takes_longer_than_a_keep_alive_gets_through_a_slow_line_and_no_byte_of_it_twice() {
    let (server, edge) = Edge::device().await;
    edge.file("one", &[7; 100_000]);
    edge.relay.shape(slow(8_000));
    let out = edge.done(&["--keep-alive", "5", "push", "one"]).await;
    assert!(out.starts_with("stored"), "{out}");
    assert_eq!(server.uploads("demo").await.len(), 1);
    // Beside it: that by which the line is measured.
    assert!(edge.relay.upward() < 100_000 + 16_384 + 5_000, "{} bytes", edge.relay.upward());
}

#[tokio::test]
async fn small_files_go_over_a_slow_line_in_bundles_of_a_few_seconds() {
    let (server, edge) = Edge::device().await;
    edge.spooled(40, 2_000).await;
    edge.relay.shape(slow(8_000));
    let out = edge.done(&["--keep-alive", "5", "--json", "spool", "flush"]).await;
    let summary: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(summary["stored"], 40);
    assert!(summary["bundles"].as_u64().unwrap() >= 3, "{summary}");
    assert_eq!(server.uploads("demo").await.len(), 40);
    assert!(edge.relay.upward() < 80_000 + 40 * 400, "{} bytes", edge.relay.upward());
}

#[tokio::test]
async fn what_would_hold_up_a_slow_line_for_a_minute_goes_by_url() {
    let (server, edge) = Edge::device().await;
    edge.file("one", &[7; 200_000]);
    // Of MQTT alone: storage is reached by another way here.
    edge.relay.shape(slow(3_000));
    let out = edge.done(&["push", "one"]).await;
    assert!(out.starts_with("stored"), "{out}");
    assert_eq!(server.uploads("demo").await.len(), 1);
    assert!(edge.relay.upward() < 40_000, "{} bytes", edge.relay.upward());
}

#[tokio::test]
async fn a_long_message_on_its_way_over_a_slow_line_is_no_silence() {
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "count", "count": 1_000, "spread_s": 0 })).await;
    let link = Link::open(server.member("demo", "edge-1", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    link.publish("mp/demo/c/edge-1/up/u1", vec![1], Default::default()).await.unwrap();
    let lease = mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
    let bytes = vec![7; 80_000];
    mill.answer(&lease, bytes.clone()).await.unwrap();
    // At 8,000 bytes a second each of the two takes longer than seven and a half seconds, after which the server would be gone.
    let open = async |name: &str, topics: &[Topic]| {
        let edge = Edge::new(&server, server.member("demo", name, Role::Listener).await).await;
        edge.relay.shape(slow(8_000));
        let (who, at) = (edge.who(), edge.relay.address());
        let (pool, member) = (who.pool.clone(), who.member.clone());
        let config = Config::new(at.ip().to_string(), at.port(), pool, member, Token::new(&who.token));
        let keep_alive = Duration::from_secs(5);
        let (session, inbox) = session::open(Config { keep_alive, ..config }.topics(topics));
        (edge, session, inbox)
    };
    let told = async {
        let (edge, _session, mut inbox) = open("told", &[Topic::Result, Topic::ResultData]).await;
        told(&mut inbox, |event| match event {
            Event::Offline(cause) => panic!("{cause}"),
            Event::ResultData { bytes: came, .. } => *came == bytes,
            _ => false,
        })
        .await;
        edge.relay.begun()
    };
    let asks = async {
        let (edge, session, _inbox) = open("asks", &[]).await;
        session.connected(PATIENCE).await.unwrap();
        let get = json!({ "version": 1, "max_answer": 256 << 10 });
        let answer: serde_json::Value = session.ask(Op::Get, &get, PATIENCE).await.unwrap();
        assert!(answer["data"].as_str().unwrap().len() > bytes.len());
        edge.relay.begun()
    };
    assert_eq!(tokio::join!(told, asks), (1, 1), "connections");
}

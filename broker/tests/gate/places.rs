//! How many connections there may be, and that one address leaves room for the others.

use std::time::{Duration, Instant};

use millpond_broker::GateConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{LEVELS, Raw, SOON, Server, connect, server_with};

/// Nobody is closed for its silence meanwhile, on whatever machine.
const LONG: Duration = Duration::from_secs(300);

async fn silent(server: &Server, source: &str, count: usize) -> Vec<Raw> {
    let mut silent = Vec::new();
    for _ in 0..count {
        silent.push(server.raw_from(source).await);
    }
    silent
}

#[tokio::test]
async fn silent_strangers_of_one_address_keep_nobody_else_out() {
    let config = GateConfig {
        strangers_max: 4,
        strangers_per_address: 3,
        connect_timeout: LONG,
        ..GateConfig::default()
    };
    let server = server_with(config).await;
    // Three have places; of sixteen that may wait, half may be of one address.
    let mut held = silent(&server, "127.0.0.2", 3 + 8).await;
    let mut over = server.raw_from("127.0.0.2").await;
    assert!(matches!(over.io.read(&mut [0; 1]).await, Ok(0) | Err(_)), "it is closed without a word");
    for n in 0..10 {
        let raw = server.raw_from("127.0.0.3").await;
        raw.sign_in(4, "listener", &format!("n{n}")).await.ping().await;
    }
    // Those inside go on, and make room for those who wait.
    let mut waits = held.split_off(3);
    held.swap_remove(0).sign_in(4, "publisher", "first").await.ping().await;
    waits.swap_remove(0).sign_in(4, "publisher", "waited").await.ping().await;
}

#[tokio::test]
async fn those_who_are_told_what_is_wrong_and_stay_keep_nobody_from_a_turn() {
    let server = server_with(GateConfig { connect_timeout: LONG, ..GateConfig::default() }).await;
    // The server waits for each to close for a second, which a busy machine may take for the rest.
    for attempt in 0..10 {
        let (mut told, mut first) = (Vec::new(), None);
        // As many as there are turns, and each address has its share of them.
        for source in ["127.0.0.2", "127.0.0.3"] {
            for mut raw in silent(&server, source, 16).await {
                raw.send(&connect(7, "x", "p/listener", &[])).await;
                raw.packet().await;
                first.get_or_insert_with(Instant::now);
                told.push(raw);
            }
        }
        server
            .raw_from("127.0.0.4")
            .await
            .sign_in(4, "listener", &format!("alone{attempt}"))
            .await
            .ping()
            .await;
        if first.is_some_and(|first| first.elapsed() < Duration::from_millis(900)) {
            return;
        }
    }
    panic!("whoever comes alone waits until one of them has gone");
}

#[tokio::test]
async fn who_waits_for_a_place_for_too_long_is_closed_and_the_places_are_free_again() {
    let config = GateConfig {
        strangers_max: 2,
        strangers_per_address: 1,
        connect_timeout: Duration::from_millis(100),
        ..GateConfig::default()
    };
    let server = server_with(config).await;
    for mut raw in silent(&server, "127.0.0.2", 4).await {
        assert_eq!(raw.packet_or_end().await, None);
    }
    let signed_in = async {
        loop {
            let mut raw = server.raw_from("127.0.0.2").await;
            // A busy machine may not be fast enough the first time.
            let sent = raw.io.write_all(&connect(4, "x", "p/listener", &[])).await;
            if sent.is_ok() && raw.packet_or_end().await.is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, signed_in).await.expect("the places are never free");
}

/// The code that a CONNECT gets.
async fn connack(mut raw: Raw, level: u8, client_id: &str) -> u8 {
    raw.send(&connect(level, client_id, "p/listener", &[])).await;
    raw.packet().await.1[1]
}

#[tokio::test]
async fn connections_over_the_limit_of_an_address_are_refused_and_others_are_not() {
    for level in LEVELS {
        let config = GateConfig { connections_max: 3, connections_per_address: 2, ..GateConfig::default() };
        let server = server_with(config).await;
        let quota = if level == 5 { 0x97 } else { 3 };
        let here = async |id| server.raw_from("127.0.0.2").await.sign_in(level, "publisher", id).await;
        let (first, mut second) = (here("a").await, here("b").await);
        assert_eq!(connack(server.raw_from("127.0.0.2").await, level, "c").await, quota);
        // Whoever takes its own session over needs no further place.
        let mut again = here("a").await;
        drop(first);
        let mut other = server.raw_from("127.0.0.3").await.sign_in(level, "listener", "d").await;
        assert_eq!(connack(server.raw_from("127.0.0.3").await, level, "e").await, quota, "all are full");
        for raw in [&mut second, &mut again, &mut other] {
            raw.ping().await;
        }
        // A place is free as soon as its connection has gone.
        again.send(&[0xE0, 0]).await;
        assert_eq!(again.packet_or_end().await, None);
        let free = async { while connack(server.raw_from("127.0.0.3").await, level, "f").await != 0 {} };
        tokio::time::timeout(SOON, free).await.expect("its place is never free");
    }
}

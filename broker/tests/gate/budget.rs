//! What connections may hold of the memory that all share, and what becomes of those that wait for it.

use std::time::Duration;

use millpond_broker::GateConfig;
use tokio::io::AsyncWriteExt;

use crate::support::{LEVELS, Raw, Server, Verdict, connect_with, publish, server_with, text};

/// A gate whose budget holds two bundles of 4 MiB, beside what is set aside for short packets.
async fn two_bundles() -> Server {
    server_with(GateConfig { uncommitted_bytes_max: 11 << 20, ..GateConfig::default() }).await
}

/// Two connections that announced a bundle of 4 MiB each, and sent only its beginning.
async fn two_slow(server: &Server) -> [Raw; 2] {
    let mut slow = [server.client_as(4, "publisher", "a").await, server.client_as(4, "publisher", "b").await];
    for raw in &mut slow {
        begin(raw, "publisher", 4 << 20).await;
    }
    slow
}

/// Sends the beginning of a bundle, and waits until it has been read.
async fn begin(raw: &mut Raw, member: &str, bytes: usize) {
    let bytes = publish(raw.level, 1, 9, &format!("mp/p/c/{member}/bundle/slow"), &[], &vec![7; bytes]);
    // A ping that comes first is answered when the gate has seen what came with it.
    raw.send(&[&[0xC0, 0], &bytes[..1_000]].concat()).await;
    assert_eq!(raw.packet().await, (0xD0, vec![]));
}

#[tokio::test]
async fn bytes_beyond_the_budget_of_all_connections_wait_their_turn() {
    let server = two_bundles().await;
    let large = vec![7; 4 << 20];
    for id in ["a", "b"] {
        server.backend.verdicts.lock().unwrap().insert(id.into(), Verdict::Wait);
    }
    let mut clients = Vec::new();
    for id in ["a", "b"] {
        let mut client = server.client_as(4, "publisher", id).await;
        client.publish(1, 1, &format!("mp/p/c/publisher/bundle/{id}"), &large).await;
        server.backend.until(|backend| backend.taken_ids().iter().any(|taken| taken == id)).await;
        clients.push(client);
    }
    let mut third = server.client_as(4, "publisher", "c").await;
    let bytes = publish(4, 1, 1, "mp/p/c/publisher/bundle/c", &[], &large);
    let sent = tokio::spawn(async move {
        third.send(&bytes).await;
        assert_eq!(third.packet().await, (0x40, vec![0, 1]));
    });
    let mut small = server.client_as(4, "publisher", "d").await;
    for _ in 0..500 {
        small.ping().await;
    }
    assert!(!server.backend.taken_ids().contains(&"c".to_owned()), "there is no room");
    server.backend.decide("a", Ok(()));
    sent.await.unwrap();
    assert_eq!(clients[0].packet().await, (0x40, vec![0, 1]));
    server.backend.decide("b", Ok(()));
    assert_eq!(clients[1].packet().await, (0x40, vec![0, 1]));
}

#[tokio::test]
async fn a_long_publish_that_trickles_in_is_closed() {
    let config =
        GateConfig { stall_timeout: Duration::from_millis(500), rate_min: 1 << 20, ..GateConfig::default() };
    let server = server_with(config).await;
    let mut client = server.client(4, "publisher").await;
    let bytes = publish(4, 1, 1, "mp/p/c/publisher/up/u1", &[], &vec![7; 200 << 10]);
    let mut pieces = bytes.chunks(100);
    // Each piece comes in time, and all of them would take a minute.
    while server.handle.connections() == 1 {
        if client.io.write_all(pieces.next().unwrap()).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(server.backend.taken_ids().is_empty());
}

#[tokio::test]
async fn a_client_that_the_gate_did_not_read_for_a_while_is_not_late_with_a_long_publish() {
    // What the sockets hold of it, all or less than half, and how long it may take.
    for bytes in [200 << 10, 4 << 20] {
        let stall_timeout = Duration::from_millis(500);
        let server =
            server_with(GateConfig { stall_timeout, rate_min: 64 << 20, ..GateConfig::default() }).await;
        let mut client = server.client(4, "publisher").await;
        begin(&mut client, "publisher", bytes).await;
        let whole = publish(4, 1, 9, "mp/p/c/publisher/bundle/slow", &[], &vec![7; bytes]);
        let sending = tokio::spawn(async move {
            client.send(&whole[1_000..]).await;
            client.packet().await
        });
        tokio::task::yield_now().await;
        // Everything stands still here, client and gate.
        std::thread::sleep(3 * stall_timeout);
        assert_eq!(sending.await.unwrap(), (0x40, vec![0, 9]), "{bytes} bytes");
    }
}

#[tokio::test]
async fn short_messages_do_not_wait_behind_long_ones_that_come_in_slowly() {
    for level in LEVELS {
        let server = two_bundles().await;
        let _slow = two_slow(&server).await;
        let mut third = server.client_as(level, "publisher-2", "c").await;
        begin(&mut third, "publisher-2", 4 << 20).await;
        let mut processor = server.client(level, "processor").await;
        processor.publish(1, 1, "mp/p/c/processor/ask/time", b"{}").await;
        assert_eq!(processor.packet().await, (0x40, vec![0, 1]));
        let mut small = server.client(level, "publisher-3").await;
        small.publish(1, 1, "mp/p/c/publisher-3/up/u", &[7; 60_000]).await;
        assert_eq!(small.packet().await, (0x40, vec![0, 1]));
    }
}

/// A connection with a keep-alive of one second.
async fn hasty(server: &Server, level: u8, member: &str) -> Raw {
    let login = [text(&format!("p/{member}")), text("secret")].concat();
    let mut raw = server.raw().await;
    raw.level = level;
    raw.send(&connect_with(level, 0xC2, 1, "hasty", &[], &login)).await;
    assert_eq!(raw.packet().await.1[1], 0);
    raw
}

#[tokio::test]
async fn a_client_that_waits_for_the_budget_is_not_blamed_for_its_silence() {
    let server = two_bundles().await;
    let slow = two_slow(&server).await;
    let mut hasty = hasty(&server, 5, "publisher-2").await;
    let bundle = publish(5, 1, 1, "mp/p/c/publisher-2/bundle/b", &[], &vec![7; 300 << 10]);
    hasty.send(&bundle).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    drop(slow);
    assert_eq!(hasty.packet().await, (0x40, vec![0, 1]));
}

#[tokio::test]
async fn a_client_that_is_drained_is_not_blamed_for_its_silence() {
    let server = two_bundles().await;
    server.backend.verdicts.lock().unwrap().insert("u1".into(), Verdict::Wait);
    let mut hasty = hasty(&server, 5, "publisher").await;
    hasty.publish(1, 1, "mp/p/c/publisher/up/u1", b"").await;
    server.backend.until(|backend| backend.taken_ids() == ["u1"]).await;
    server.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    server.backend.decide("u1", Ok(()));
    assert_eq!(hasty.packet().await, (0x40, vec![0, 1]));
    assert_eq!(hasty.end().await, 0x8B);
}

#[tokio::test]
async fn a_connection_that_has_ended_leaves_the_queue_for_the_budget() {
    let server = two_bundles().await;
    server.backend.verdicts.lock().unwrap().insert("w".into(), Verdict::Wait);
    let _slow = two_slow(&server).await;
    // It waits for 4 MiB, and when it is taken over, for a decision.
    let mut ghost = server.client_as(4, "publisher-2", "x").await;
    ghost.publish(1, 1, "mp/p/c/publisher-2/up/w", b"").await;
    begin(&mut ghost, "publisher-2", 4 << 20).await;
    server.client_as(4, "publisher-2", "x").await.ping().await;
    // There is room for a little one that came later.
    let mut later = server.client(4, "publisher-3").await;
    later.publish(1, 1, "mp/p/c/publisher-3/up/u", &[7; 100_000]).await;
    assert_eq!(later.packet().await, (0x40, vec![0, 1]));
}

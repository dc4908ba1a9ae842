//! What all connections of a pool hold together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millpond_broker::GateConfig;
use millpond_protocol::limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Raw, app_config, connect, publish, server_with, subscribe};

async fn put(raw: &mut Raw, topic: &str, payload: &[u8]) {
    raw.publish(1, 7, topic, payload).await;
    assert_eq!(raw.packet().await, (0x40, vec![0, 7]));
}

#[tokio::test]
async fn a_pool_with_too_much_in_memory_loses_who_holds_most_and_nobody_else_is_harmed() {
    let server = server_with(GateConfig { pool_bytes_max: 4 << 20, ..app_config() }).await;
    let mut publisher = server.client(4, "publisher").await;
    let mut holders = Vec::new();
    for n in 0..4 {
        let mut holder = server.client_as(5, "listener", &format!("h{n}")).await;
        holder.subscribe(&format!("app/p/{n}"), 1).await;
        holders.push(holder);
    }
    let mut elsewhere = server.raw().await;
    elsewhere.level = 4;
    elsewhere.send(&connect(4, "elsewhere", "q/listener", &[])).await;
    assert_eq!(elsewhere.packet().await.0, 0x20);
    elsewhere.subscribe("app/q/x", 1).await;

    // None of them acknowledges anything, and none has as much as one session may.
    let payload = vec![7; 512 << 10];
    for topic in ["app/p/1", "app/p/2", "app/p/3"] {
        put(&mut publisher, topic, &payload).await;
    }
    for _ in 0..6 {
        put(&mut publisher, "app/p/0", &payload).await;
    }
    assert_eq!(holders.remove(0).end().await, 0x97);
    put(&mut publisher, "app/p/1", b"more").await;
    let first = holders[0].message().await;
    assert_eq!((first.payload.len(), holders[0].message().await.text()), (payload.len(), "more"));
    put(&mut publisher, "app/p/read", b"nobody").await;
    elsewhere.publish(1, 7, "app/q/x", b"here").await;
    let mut kinds = [elsewhere.packet().await.0, elsewhere.packet().await.0];
    kinds.sort_unstable();
    assert_eq!(kinds, [0x32, 0x40], "its message, and the acknowledgement");
    assert_eq!(server.handle.connections(), 5);
}

#[tokio::test]
async fn a_flood_of_subscriptions_leaves_everybody_else_a_turn_in_between() {
    const PACKETS: usize = 128;
    let server = server_with(app_config()).await;
    let mut raw = server.client(4, "publisher").await;
    for n in 0..limits::RETAINED_PER_MEMBER {
        let mut bytes = publish(4, 1, 7, &format!("app/p/kept/{n}"), &[], b"x");
        bytes[0] |= 1;
        raw.send(&bytes).await;
        assert_eq!(raw.packet().await, (0x40, vec![0, 7]));
    }
    let filters: Vec<String> = (0..64).map(|n| format!("app/p/+/{n}/none")).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (&**filter, 1)).collect();
    // On the one thread of the gate and of this test, somebody who always has something to do.
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            tokio::task::yield_now().await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (mut read, mut write) = raw.io.split();
    let packets = subscribe(4, 1, &filters).repeat(PACKETS);
    let mut codes = vec![0; PACKETS * (2 + 2 + 64)];
    let (written, all) = tokio::join!(write.write_all(&packets), read.read_exact(&mut codes));
    written.unwrap();
    all.unwrap();
    other.abort();
    let turns = turns.load(Ordering::Relaxed);
    assert!(
        turns >= PACKETS,
        "others had {turns} turns while {PACKETS} packets of 64 filters were worked on"
    );
}

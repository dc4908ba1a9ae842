//! What only shows under load: run it with `cargo test -p millpond-broker --release --test gate -- --ignored`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Message, Raw, Server, server, state, subscribe};

/// A member that connects, listens for a while and vanishes, until `end`.
async fn come_and_go(server: Arc<Server>, n: u64, end: Instant) {
    let mut random = n * 7_919 + 1;
    while Instant::now() < end {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let level = 4 + (random >> 33) as u8 % 2;
        let mut client = server.client_as(level, &format!("operator-{n}"), "x").await;
        client.subscribe("mp/p/result", (random >> 40) as u8 % 2).await;
        client.send(&subscribe(level, 3, &[("mp/p/event/#", (random >> 41) as u8 % 2)])).await;
        if random.is_multiple_of(5) {
            // Falls behind.
            tokio::time::sleep(Duration::from_millis(random % 2_000)).await;
        }
        listen(&mut client, (random >> 50) as usize % 2_000).await;
    }
}

/// Reads `count` messages. The ranks of results only grow.
async fn listen(client: &mut Raw, count: usize) {
    let mut last = 0;
    for _ in 0..count {
        let (first, body) = client.packet().await;
        if first >> 4 != 3 {
            continue;
        }
        let message = Message::parse(client.level, first, &body);
        if let Some(id) = message.id {
            client.send(&[0x40, 2, (id >> 8) as u8, id as u8]).await;
        }
        if message.topic == "mp/p/result" {
            let rank: u64 = message.text().parse().unwrap();
            assert!(rank >= last, "{rank} after {last}");
            last = rank;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "takes half a minute"]
async fn listeners_that_come_go_and_fall_behind_never_keep_a_result_from_one_that_stays() {
    let server = Arc::new(server().await);
    server.backend.states.lock().unwrap().push(state("mp/p/result", 1, "1"));
    let end = Instant::now() + Duration::from_secs(20);
    let others: Vec<_> = (0..50).map(|n| tokio::spawn(come_and_go(server.clone(), n, end))).collect();
    let mut watcher = server.client(4, "listener").await;
    watcher.subscribe("mp/p/result", 1).await;
    let (mut rank, mut worst) = (1, Duration::ZERO);
    while others.iter().any(|other| !other.is_finished()) {
        rank += 1;
        let begun = Instant::now();
        server.backend.states.lock().unwrap()[0] = state("mp/p/result", rank, &rank.to_string());
        server.handle.publish_state(state("mp/p/result", rank, &rank.to_string()));
        for _ in 0..100 {
            server.handle.publish_event("mp/p/event/x", vec![b'x'; 1_000]);
        }
        while watcher.message().await.text() != rank.to_string() {}
        worst = worst.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for other in others {
        other.await.unwrap();
    }
    assert!(worst < Duration::from_secs(2), "a result took {worst:?}");
}

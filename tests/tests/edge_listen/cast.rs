//! A pool with a processor, and a machine on which `millpond-edge listen` runs, whose storage is behind a relay.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_tests::{Credentials, Edge, Link, Mill, Process, Relay, Server};
use serde_json::json;

pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Cast {
    pub server: Server,
    pub edge: Edge,
    pub storage: Relay,
    mill: Mill,
    publisher: Credentials,
}

impl Cast {
    pub async fn new() -> Self {
        let storage = Relay::to("127.0.0.1:1".parse().unwrap()).await;
        let public = format!("http://{}", storage.address());
        let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
        storage.mend(server.ports().storage.unwrap());
        server.pool("demo", json!({ "grouping": "count", "count": 1_000, "spread_s": 1 })).await;
        let publisher = server.member("demo", "edge-1", Role::Publisher).await;
        let listener = server.member("demo", "listener", Role::Listener).await;
        let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
        let edge = Edge::new(&server, listener).await;
        Self { server, edge, storage, mill, publisher }
    }

    /// A round with this result: the next version.
    pub async fn result(&self, n: usize, bytes: &[u8]) {
        let link = Link::open(self.publisher.clone()).await.unwrap();
        link.publish(&format!("mp/demo/c/edge-1/up/u{n}"), vec![1], Default::default()).await.unwrap();
        let lease = self.mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
        self.mill.answer(&lease, bytes.to_vec()).await.unwrap();
        link.close().await;
    }

    pub fn current(&self) -> PathBuf {
        self.edge.directory().join("results/current")
    }

    /// Waits until the listener said that line.
    pub async fn said(&self, listener: &mut Process, line: &str) {
        let begin = Instant::now();
        while !listener.stdout().lines().any(|said| said.starts_with(line)) {
            assert!(
                begin.elapsed() < PATIENCE && listener.status().is_none(),
                "{line}: {}",
                listener.stderr()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub fn content(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|n| (n / 1_000 + n % 251) as u8 ^ seed).collect()
}

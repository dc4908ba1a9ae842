//! `millpond-edge listen` against the real server: what is shown is whole, and the server knows what became of it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use millpond_edge::transfer;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Credentials, Edge, Link, Mill, Process, Relay, Server, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

struct Cast {
    server: Server,
    edge: Edge,
    storage: Relay,
    mill: Mill,
    publisher: Credentials,
}

impl Cast {
    async fn new() -> Self {
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
    async fn result(&self, n: usize, bytes: &[u8]) {
        let link = Link::open(self.publisher.clone()).await.unwrap();
        link.publish(&format!("mp/demo/c/edge-1/up/u{n}"), vec![1], Default::default()).await.unwrap();
        let lease = self.mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
        self.mill.answer(&lease, bytes.to_vec()).await.unwrap();
        link.close().await;
    }

    fn current(&self) -> PathBuf {
        self.edge.directory().join("results/current")
    }

    /// Waits until the listener said that line.
    async fn said(&self, listener: &mut Process, line: &str) {
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

fn content(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|n| (n / 1_000 + n % 251) as u8 ^ seed).collect()
}

#[tokio::test]
async fn every_result_becomes_current_is_applied_and_the_server_knows() {
    let cast = Cast::new().await;
    let exec = r#"cp "$MILLPOND_FILE" applied; echo "$MILLPOND_VERSION $MILLPOND_NAME $MILLPOND_SHA256" > facts
        test -z "$MILLPOND_MQTT_TOKEN""#;
    let mut listener = cast.edge.start("listen", &["listen", "--keep", "2", "--exec", exec]);
    for (n, size) in [(1, 10), (2, 600_000), (3, 1_000), (4, 200_000)] {
        let bytes = content(size, n as u8);
        cast.result(n, &bytes).await;
        cast.said(&mut listener, &format!("version {n} applied")).await;
        assert!(std::fs::read(cast.current()).unwrap() == bytes, "version {n}");
        assert!(std::fs::read(cast.edge.directory().join("applied")).unwrap() == bytes, "version {n}");
        let facts = std::fs::read_to_string(cast.edge.directory().join("facts")).unwrap();
        assert_eq!(facts.trim(), format!("{n} round-{n} {}", Sha256::of(&bytes)));
    }
    let kept = |version: u32| cast.edge.directory().join(format!("results/{version}")).exists();
    assert_eq!([kept(1), kept(2), kept(3), kept(4)], [false, false, true, true]);
    until("the server counts the newest result as applied", async || {
        let results = cast.server.api().get("/v1/pools/demo/results").await;
        results["results"][0]["applied"] == 1
    })
    .await;
    listener.signal("TERM");
    assert!(listener.wait(PATIENCE).await.success());
}

#[tokio::test]
async fn who_comes_later_or_comes_back_has_the_newest_and_runs_nothing_twice() {
    let cast = Cast::new().await;
    cast.result(1, b"one").await;
    cast.result(2, b"two").await;
    let once = ["listen", "--once", "--exec", "echo ran >> runs"];
    let out = cast.edge.done(&once).await;
    assert_eq!(out, "version 2 shown\nversion 2 applied\n");
    assert_eq!(cast.edge.done(&once).await, "");
    assert_eq!(std::fs::read_to_string(cast.edge.directory().join("runs")).unwrap(), "ran\n");
}

#[tokio::test]
async fn a_command_that_fails_is_told_and_one_that_hangs_is_killed_with_its_children() {
    let cast = Cast::new().await;
    cast.result(1, b"one").await;
    let failed = cast.edge.run(&["listen", "--once", "--exec", "exit 3"]).await;
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8(failed.stderr).unwrap().contains("exit status: 3"));
    cast.result(2, b"two").await;
    let hangs = "sleep 1000 & echo $! > child; wait";
    let hung = cast.edge.run(&["listen", "--once", "--exec-timeout", "1", "--exec", hangs]).await;
    assert_eq!(hung.status.code(), Some(1));
    let child = std::fs::read_to_string(cast.edge.directory().join("child")).unwrap();
    let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "the child lives: {state}");
    let events = cast.server.api().get("/v1/pools/demo/events").await;
    let told = |event: &&Value| event["type"] == "delivery-failed";
    assert_eq!(events["events"].as_array().unwrap().iter().filter(told).count(), 2, "{events}");
}

#[tokio::test]
async fn a_download_that_is_killed_or_cut_goes_on_where_it_was_and_shows_nothing_half() {
    let cast = Cast::new().await;
    let (old, new) = (content(150_000, 1), content(1_000_000, 2));
    cast.result(1, &old).await;
    cast.edge.done(&["listen", "--once"]).await;
    cast.result(2, &new).await;
    let partial = cast.edge.directory().join(format!("results/.millpond/partial-{}", Sha256::of(&new)));
    let size = || std::fs::metadata(&partial).map_or(0, |metadata| metadata.len());
    let mut listener = cast.edge.start("listen", &["--rate", "400000", "listen", "--once"]);
    while size() < 500_000 {
        assert!(listener.status().is_none(), "{}", listener.stderr());
        assert!(std::fs::read(cast.current()).unwrap() == old, "nothing is shown before it is whole");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    listener.kill();
    let had = size();
    assert!(had < 1_000_000);
    assert!(std::fs::read(cast.current()).unwrap() == old);
    let mut listener = cast.edge.start("again", &["--rate", "400000", "listen", "--once"]);
    while size() < had + 50_000 {
        assert!(listener.status().is_none(), "{}", listener.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(size() >= had, "it was not begun anew");
    cast.storage.cut();
    cast.storage.mend(cast.server.ports().storage.unwrap());
    assert!(listener.wait(PATIENCE).await.success(), "{}", listener.stderr());
    assert!(std::fs::read(cast.current()).unwrap() == new);
    assert_eq!(transfer::digest(&cast.current(), 1_000_000, None).unwrap().sha256, Sha256::of(&new));
}

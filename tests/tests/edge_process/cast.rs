//! A pool whose batches are full with three files, and a machine on which `millpond-edge process` runs.

use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_tests::{Api, Credentials, Edge, Link, Process, Server};
use serde_json::{Value, json};

pub const PATIENCE: Duration = Duration::from_secs(120);
/// Everything of the round in one file, in order.
pub const CONCATENATE: &str = r#"cat "$MILLPOND_INPUT"/*/* > "$MILLPOND_OUTPUT""#;

pub struct Cast {
    pub server: Server,
    /// The machine of the processor.
    pub edge: Edge,
    pub mill: Credentials,
    pub publisher: Credentials,
    pub listener: Credentials,
}

impl Cast {
    pub async fn new(policy: Value) -> Self {
        let server = Server::start().await;
        let mut whole = json!({ "grouping": "count", "count": 3 });
        whole.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        server.pool("demo", whole).await;
        let publisher = server.member("demo", "edge-1", Role::Publisher).await;
        let mill = server.member("demo", "mill", Role::Processor).await;
        let edge = Edge::new(&server, mill.clone()).await;
        let listener = server.member("demo", "listener", Role::Listener).await;
        Self { server, edge, mill, publisher, listener }
    }

    pub fn api(&self) -> Api {
        self.server.api()
    }

    /// Publishes files; the third fills a batch, which becomes a round.
    pub async fn publish(&self, files: &[(&str, Vec<u8>)]) {
        let link = Link::open(self.publisher.clone()).await.unwrap();
        for (id, bytes) in files {
            link.publish(&format!("mp/demo/c/edge-1/up/{id}"), bytes.clone(), Default::default())
                .await
                .unwrap();
        }
        link.close().await;
    }

    pub async fn three(&self) {
        self.publish(&[("a", b"1\n".to_vec()), ("b", b"2\n".to_vec()), ("c", b"3\n".to_vec())]).await;
    }

    pub fn process(&self, arguments: &[&str]) -> Process {
        let mut all = vec!["process"];
        all.extend_from_slice(arguments);
        self.edge.start("process", &all)
    }

    /// The newest result's bytes.
    pub async fn result(&self) -> Vec<u8> {
        let link = Link::open(self.listener.clone()).await.unwrap();
        let latest: Value = link.ask(millpond_protocol::access::Op::Latest, &json!({})).await.unwrap();
        self.api().fetch(latest["result"]["url"].as_str().unwrap()).await.to_vec()
    }

    pub async fn round(&self, round: u32) -> Value {
        self.api().get(&format!("/v1/pools/demo/rounds/{round}")).await
    }

    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.edge.directory().join(name)
    }
}

pub async fn until(what: &str, process: &mut Process, mut holds: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < PATIENCE, "{what}: {}{}", process.stdout(), process.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the line in the file is whole: the shell makes a file before it writes to it.
pub fn written(file: &std::path::Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|line| line.ends_with('\n'))
}

pub fn lives(id: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

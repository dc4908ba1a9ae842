//! A pool over its quota, and a device that has more for it: nothing is sent in vain, and everything when there is room.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_tests::{Edge, Process, Server};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

/// A pool that may keep one byte, and its member's device.
async fn full() -> (Server, Edge) {
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "window", "window_s": 86_400, "quota_bytes": 1 })).await;
    let who = server.member("demo", "edge-1", Role::Publisher).await;
    let edge = Edge::new(&server, who).await;
    (server, edge)
}

fn make_room(server: &Server) {
    let set = server.cli().args(["pool", "set", "demo", "quota_bytes=0"]).output().unwrap();
    assert!(set.status.success(), "{set:?}");
}

/// What `spool list` says of a pause.
async fn pause(edge: &Edge) -> Option<Value> {
    let list = edge.done(&["--json", "spool", "list"]).await;
    let mut lines = list.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.find(|line| line["state"] == "resting")
}

async fn rests(edge: &Edge, process: &mut Process) -> Value {
    let begin = Instant::now();
    loop {
        if let Some(pause) = pause(edge).await {
            return pause;
        }
        assert!(begin.elapsed() < PATIENCE && process.status().is_none(), "{}", process.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_pool_over_its_quota_is_left_alone_for_a_while_and_gets_each_file_once_when_there_is_room() {
    let (server, edge) = full().await;
    edge.spooled(40, 10_000).await;
    let mut flush = edge.start("flush", &["--json", "--patience", "600", "spool", "flush"]);
    let resting = rests(&edge, &mut flush).await;
    assert_eq!((&resting["error"]["code"], &resting["user"]), (&json!("quota"), &json!("demo/edge-1")));
    make_room(&server);
    assert!(flush.wait(PATIENCE).await.success(), "{}", flush.stderr());
    let summary: Value = serde_json::from_str(flush.stdout().trim()).unwrap();
    assert_eq!((&summary["stored"], &summary["left"]), (&json!(40), &json!(0)));
    // Beside the files what was on its way when the first of them was refused: two messages of 16 KiB at the most.
    let sent = summary["bytes"].as_u64().unwrap();
    assert!(sent <= 440_000, "{sent} bytes were sent of 400000");
    assert!(flush.stderr().contains("nothing is sent for"), "{}", flush.stderr());
    assert_eq!(pause(&edge).await, None);
    assert_eq!(server.uploads("demo").await.len(), 40);
}

#[tokio::test]
async fn a_push_does_not_wait_for_a_quota_beyond_its_patience_and_the_next_process_keeps_to_the_pause() {
    let (server, edge) = full().await;
    edge.file("one", &[1; 50_000]);
    edge.file("two", &[2; 50_000]);
    let push = edge.run(&["--patience", "3", "push", "one"]).await;
    let (out, err) = (String::from_utf8_lossy(&push.stdout), String::from_utf8_lossy(&push.stderr));
    assert_eq!(push.status.code(), Some(75), "{out}{err}");
    assert!(out.starts_with("spooled  one") && out.contains("quota: the pool keeps"), "{out}{err}");
    let list = edge.done(&["spool", "list"]).await;
    assert!(list.contains("nothing is sent for demo/edge-1 before") && list.contains("1 files"), "{list}");

    let before = edge.relay.upward();
    assert_eq!(edge.run(&["--patience", "3", "push", "two"]).await.status.code(), Some(75));
    let upward = edge.relay.upward() - before;
    assert!(upward < 10_000, "{upward} bytes were sent during the pause");
    assert_eq!(edge.run(&["--patience", "3", "spool", "flush"]).await.status.code(), Some(75));

    // Another member of the spool's owner was refused nothing.
    make_room(&server);
    let other = server.member("demo", "edge-2", Role::Publisher).await;
    let mut flush = edge.start_as(&other, "flush", &["--patience", "3", "spool", "flush"]);
    assert!(flush.wait(PATIENCE).await.success(), "{}", flush.stderr());
    assert_eq!(server.uploads("demo").await.len(), 2);
}

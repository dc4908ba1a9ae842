//! Retention over the real binary: what a pool does not keep is deleted when an operator asks, and members are told so.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use millpond_protocol::Role;
use millpond_protocol::access::Op;
use millpond_tests::{Beside, Link, Mill, Server, recent_hour};
use serde_json::{Value, json};

fn run(mut command: Command, args: &[&str]) -> String {
    let done = command.args(args).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Files of the embedded storage's objects.
fn blobs(server: &Server) -> usize {
    let shards = std::fs::read_dir(server.data().join("objects/blobs")).unwrap();
    shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test]
async fn what_a_pool_does_not_keep_is_explained_then_deleted_and_members_are_told() {
    let server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600, "keep_uploads_s": 86_400 })).await;
    let edge = server.member("demo", "edge", Role::Publisher).await;
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let operator = server.member("demo", "boss", Role::Operator).await;
    let link = Link::open(edge).await.unwrap();
    for (upload, size) in [("small", 1_000), ("large", 200_000)] {
        let topic = format!("mp/demo/c/edge/up/{upload}/{}", recent_hour());
        link.publish(&topic, vec![b'x'; size], Beside::default()).await.unwrap();
    }
    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, "flour").await.unwrap();
    // The story of the round is written after its end.
    let api = server.api();
    while !api.get("/v1/gc?limit=1000").await.to_string().contains("round.json of round 1") {}

    let dry = run(server.cli(), &["gc", "--dry-run"]);
    assert!(
        dry.contains("kept: ") && dry.contains("upload edge/large of batch 1: round 1 was committed"),
        "{dry}"
    );
    assert!(dry.contains("live: ") && dry.contains("version 1 is the current one"), "{dry}");
    run(server.cli(), &["gc"]);
    assert_eq!(blobs(&server), 5, "a day has not gone by");

    run(server.cli(), &["pool", "set", "demo", "keep_uploads_s=0"]);
    let dry = run(server.cli(), &["gc", "demo", "--dry-run"]);
    assert!(dry.contains("due: demo: the bytes of batch 1"), "{dry}");
    // An operator may, in its own pool.
    let boss = |args: &[&str]| {
        let mut command = server.cli();
        command.env("MILLPOND_TOKEN", &operator.token);
        command.args(args).output().unwrap()
    };
    assert!(!boss(&["gc", "other"]).status.success());
    let done = boss(&["gc", "--json"]);
    let done: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (&done["batches"], &done["objects"], &done["deleted"]),
        (&json!(1), &json!(3), &json!(3)),
        "{done}"
    );
    assert_eq!(blobs(&server), 2, "the result and round.json");

    let gone = link.ask::<Value>(Op::Get, &json!({ "upload": "large" })).await.unwrap_err();
    let gone = format!("{gone:#}");
    assert!(gone.contains("not_found") && gone.contains("not kept any more"), "{gone}");
    let status: Value = link.ask(Op::Status, &json!({ "upload": "small" })).await.unwrap();
    assert!(status["expired"].is_string(), "{status}");
    let shown = run(server.cli(), &["upload", "show", "demo", "edge", "small"]);
    assert!(shown.contains("its bytes are not kept any more since"), "{shown}");
    let files = json!({ "round": lease.round, "attempt": lease.attempt });
    let gone = mill.link.ask::<Value>(Op::Files, &files).await.unwrap_err();
    let gone = format!("{gone:#}");
    assert!(gone.contains("the files of round 1: the bytes are not kept any more"), "{gone}");
    let events = run(server.cli(), &["events", "demo", "--since", "0", "--json"]);
    assert!(events.contains("batch-expired"), "{events}");
    let metrics = server.api().get("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("millpond_retention_total{what=\"batch\"} 1"), "{metrics}");
}

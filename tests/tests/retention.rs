//! Retention over the real binary: what a pool does not keep is deleted when an operator asks, and members are told so.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use millpond_protocol::Role;
use millpond_protocol::access::Op;
use millpond_tests::{Beside, Link, Mill, Place, SeaweedFs, Server, listed, recent_hour};
use serde_json::{Value, json};

fn run(mut command: Command, args: &[&str]) -> String {
    let done = command.args(args).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// How many objects there are.
async fn objects(on: &Place, server: &Server) -> usize {
    listed(&on.storage(server)).await.len()
}

#[tokio::test]
async fn what_a_pool_does_not_keep_is_explained_then_deleted_and_members_are_told() {
    what_is_not_kept_goes(&Place::Here).await;
}

#[tokio::test]
async fn what_a_pool_does_not_keep_is_deleted_on_seaweedfs_too() {
    let Some(storage) = SeaweedFs::start() else { return };
    storage.ready().await;
    what_is_not_kept_goes(&Place::SeaweedFs(storage)).await;
}

async fn what_is_not_kept_goes(on: &Place) {
    let server = on.server(&[]).await;
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
    assert_eq!(objects(on, &server).await, 5, "a day has not gone by");

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
    assert_eq!(objects(on, &server).await, 2, "the result and round.json");

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

#[tokio::test]
async fn a_server_that_starts_with_its_clock_a_year_ahead_deletes_nothing_until_an_admin_says_that_it_is_right()
 {
    let mut server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600, "keep_uploads_s": 86_400 })).await;
    let edge = server.member("demo", "edge", Role::Publisher).await;
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let boss = server.member("demo", "boss", Role::Operator).await;
    let link = Link::open(edge).await.unwrap();
    let topic = format!("mp/demo/c/edge/up/large/{}", recent_hour());
    link.publish(&topic, vec![b'x'; 200_000], Beside::default()).await.unwrap();
    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, "flour").await.unwrap();
    let api = server.api();
    while !api.get("/v1/gc?limit=1000").await.to_string().contains("round.json of round 1") {}
    let kept = objects(&Place::Here, &server).await;
    assert!(server.terminate().await.success());

    // As a clock that is a year ahead finds the rows: all of them a year old.
    {
        let ledger = rusqlite::Connection::open(server.data().join("ledger.db")).unwrap();
        let year = 365 * 86_400_000_i64;
        for what in [
            "clock SET believed = believed",
            "batches SET sealed = sealed",
            "rounds SET ended = ended",
            "events SET at = at",
        ] {
            assert!(ledger.execute(&format!("UPDATE {what} - {year}"), []).unwrap() > 0, "{what}");
        }
    }
    server.launch().await;
    let dry = run(server.cli(), &["gc", "--dry-run"]);
    assert!(dry.contains("waits: the clock says") && dry.contains("365 days later than it can be"), "{dry}");
    assert!(dry.contains("due: demo: the bytes of batch 1"), "{dry}");
    let status = run(server.cli(), &["status"]);
    assert!(status.contains("confirm it by `millpond gc --trust-clock`"), "{status}");
    let metrics = server.api().get("/metrics").await;
    let ahead =
        metrics.as_str().unwrap().lines().find(|line| line.starts_with("millpond_clock_doubted_seconds"));
    assert!(ahead.is_some_and(|line| !line.ends_with(" 0")), "{ahead:?}");
    for args in [&["gc"][..], &["gc", "demo"]] {
        let refused = server.cli().args(args).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("later than it can be"), "{said}");
    }
    assert_eq!(objects(&Place::Here, &server).await, kept);

    // It is the server's clock, not a pool's.
    let by_boss =
        server.cli().env("MILLPOND_TOKEN", &boss.token).args(["gc", "--trust-clock"]).output().unwrap();
    assert!(!by_boss.status.success());
    assert_eq!(objects(&Place::Here, &server).await, kept);
    run(server.cli(), &["gc", "--trust-clock"]);
    assert_eq!(objects(&Place::Here, &server).await, kept - 2, "the large file and the manifest");
    let dry = run(server.cli(), &["gc", "--dry-run"]);
    assert!(!dry.contains("waits: "), "{dry}");
    let events = run(server.cli(), &["events", "demo", "--since", "0", "--json"]);
    assert!(events.contains("clock-doubted") && events.contains("clock-believed"), "{events}");
}

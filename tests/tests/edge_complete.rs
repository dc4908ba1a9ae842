//! Statements that nothing more comes: told when all that they speak of is there, and not before.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_tests::{Edge, Server, recent_hour};
use serde_json::{Value, json};

const HOUR_MS: i64 = 3_600_000;
const PATIENCE: Duration = Duration::from_secs(120);

async fn device(policy: Value) -> (Server, Edge) {
    let server = Server::start().await;
    server.pool("demo", policy).await;
    let who = server.member("demo", "edge-1", Role::Publisher).await;
    let edge = Edge::new(&server, who).await;
    (server, edge)
}

/// Spools that many files of the window that begins there.
async fn spool_files(edge: &Edge, window: i64, count: usize) {
    let names: Vec<String> = (0..count).map(|n| format!("{window}-{n}")).collect();
    for name in &names {
        edge.file(name, &name.bytes().cycle().take(5_000).collect::<Vec<_>>());
    }
    let time = (window + 1_000).to_string();
    let mut push = vec!["push", "--offline", "--event-time", &time];
    push.extend(names.iter().map(String::as_str));
    edge.done(&push).await;
}

/// State, cause, count of the pool's batches, oldest first.
async fn batches(server: &Server) -> Vec<(String, Option<String>, u64)> {
    let page = server.api().get("/v1/pools/demo/batches").await;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut batches: Vec<_> = page["batches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|batch| {
            (
                batch["batch"].as_u64().unwrap(),
                text(&batch["state"]).unwrap(),
                text(&batch["cause"]),
                batch["count"].as_u64().unwrap(),
            )
        })
        .collect();
    batches.sort_unstable();
    batches.into_iter().map(|(_, state, cause, count)| (state, cause, count)).collect()
}

#[tokio::test]
async fn a_push_that_says_so_seals_its_window() {
    let (server, edge) = device(json!({ "grouping": "window", "window_s": 3_600 })).await;
    edge.file("reading", b"21.5");
    let (time, end) = ((recent_hour() + 1).to_string(), (recent_hour() + HOUR_MS).to_string());
    let out = edge.done(&["push", "--event-time", &time, "--complete-through", &end, "reading"]).await;
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("stored") && lines[1].starts_with("told  complete through 20"), "{out}");
    let batches = batches(&server).await;
    assert_eq!(
        (batches.len(), batches[0].1.as_deref(), batches[0].2),
        (1, Some("complete"), 1),
        "{batches:?}"
    );
    assert_eq!(edge.done(&["spool", "list"]).await, "0 files with 0 bytes wait\n");
}

#[tokio::test]
async fn a_statement_survives_a_kill_and_is_told_when_all_files_up_to_then_are_there_whatever_comes_later() {
    let (server, edge) = device(json!({ "grouping": "window", "window_s": 3_600 })).await;
    let (first, second) = (recent_hour(), recent_hour() + HOUR_MS);
    spool_files(&edge, first, 300).await;
    let end = (first + HOUR_MS).to_string();
    let out = edge.done(&["complete", "--offline", "--through", &end]).await;
    assert!(out.starts_with("spooled  complete through"), "{out}");
    spool_files(&edge, second, 100).await;
    // The newest go first, so the statement's files are the last, and the flush dies before it has them all.
    let mut flush = edge.start("flush", &["--rate", "300000", "spool", "flush"]);
    while server.uploads("demo").await.len() < 150 {
        assert!(flush.status().is_none(), "{}", flush.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    flush.kill();
    assert!(edge.done(&["spool", "list"]).await.contains("waiting  complete through"));
    assert!(batches(&server).await.iter().all(|(_, cause, _)| cause.is_none()), "nothing is sealed");
    let out = edge.done(&["--json", "spool", "flush"]).await;
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["left"], 0);
    let batches = batches(&server).await;
    let told: Vec<_> = batches.iter().map(|(_, cause, count)| (cause.as_deref(), *count)).collect();
    assert!(told.contains(&(Some("complete"), 300)) && told.contains(&(None, 100)), "{batches:?}");
    assert!(
        server.uploads("demo").await.iter().all(|upload| upload["late"] != true),
        "it was not told too early"
    );
    assert_eq!(edge.done(&["spool", "list"]).await, "0 files with 0 bytes wait\n");
}

#[tokio::test]
async fn a_disk_that_does_not_say_for_long_what_a_statement_speaks_of_keeps_nothing_from_being_sent() {
    let (server, edge) = device(json!({ "grouping": "window", "window_s": 3_600 })).await;
    let window = recent_hour();
    spool_files(&edge, window, 20).await;
    let end = (window + HOUR_MS).to_string();
    edge.done(&["complete", "--offline", "--through", &end]).await;
    // The oldest of all, and so the last to be sent: whoever opens it waits until somebody writes there.
    let slow = edge.spool().join("ready/000000000000001.200000.slow");
    assert!(Command::new("mkfifo").arg(slow).status().unwrap().success());
    let mut flush = edge.start("flush", &["spool", "flush"]);
    let begin = Instant::now();
    while server.uploads("demo").await.len() < 20 {
        assert!(flush.status().is_none() && begin.elapsed() < PATIENCE, "{}", flush.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    flush.kill();
    assert!(edge.done(&["spool", "list"]).await.contains("waiting  complete through"), "it is not told");
}

#[tokio::test]
async fn this_moment_is_a_time_too_and_waits_for_the_network() {
    let (server, edge) = device(json!({ "grouping": "window", "window_s": 3_600 })).await;
    spool_files(&edge, recent_hour(), 1).await;
    edge.relay.cut();
    let out = edge.done(&["--patience", "1", "complete"]).await;
    assert!(out.starts_with("spooled  complete through"), "{out}");
    edge.relay.mend(server.mqtt());
    let out = edge.done(&["complete"]).await;
    assert!(out.starts_with("told"), "{out}");
    assert_eq!(batches(&server).await[0].1.as_deref(), Some("complete"));
}

#[tokio::test]
async fn a_label_is_completed_and_one_that_nobody_knows_is_refused() {
    let (server, edge) = device(json!({ "grouping": "label" })).await;
    edge.file("weights", b"0.5");
    edge.file("others", b"0.7");
    edge.done(&["push", "--label", "epoch-2", "others"]).await;
    let out = edge.done(&["push", "--label", "epoch-1", "--complete-label", "weights"]).await;
    assert!(out.ends_with("told  complete for epoch-1\n"), "{out}");
    let mut causes: Vec<_> = batches(&server).await.into_iter().map(|(_, cause, _)| cause).collect();
    causes.sort();
    assert_eq!(causes, [None, Some("complete".to_owned())]);
    let refused = edge.run(&["complete", "--label", "nobody"]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8(refused.stdout).unwrap().starts_with("refused  complete for nobody"));
    assert_eq!(edge.done(&["spool", "list"]).await, "0 files with 0 bytes wait\n", "it is not tried again");
}

//! `spool flush --follow`: a device whose files go by themselves, whenever there is a network.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use millpond_tests::{Edge, Process, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// What it said that it stored, a number a run.
fn stored(process: &Process) -> u64 {
    let count =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["stored"].as_u64().unwrap();
    process.stdout().lines().map(count).sum()
}

#[tokio::test]
async fn what_is_spooled_goes_when_there_is_a_network_also_later_and_others_may_send_meanwhile() {
    let (server, edge) = Edge::device().await;
    edge.relay.vanish();
    edge.spooled(3, 100).await;
    let mut follower = edge
        .start("follow", &["--json", "--patience", "3", "--keep-alive", "5", "spool", "flush", "--follow"]);
    until("it says that there is no network", async || !follower.stderr().is_empty()).await;
    edge.relay.come_back();
    until("the backlog is stored", async || stored(&follower) == 3).await;

    edge.file("later", b"later");
    edge.done(&["push", "--offline", "later"]).await;
    until("what came later is stored", async || stored(&follower) == 4).await;
    edge.done(&["complete", "--offline"]).await;
    until("a statement is told", async || {
        !edge.done(&["--json", "spool", "list"]).await.contains("complete")
    })
    .await;

    edge.file("own", b"own");
    assert!(edge.done(&["push", "own"]).await.starts_with("stored"));
    assert_eq!(server.uploads("demo").await.len(), 5);
    let connections = edge.relay.begun();
    edge.file("last", b"last");
    edge.done(&["push", "--offline", "last"]).await;
    until("the last is stored", async || server.uploads("demo").await.len() == 6).await;
    assert!(edge.relay.begun() <= connections + 4, "with nothing to send there is no connection");
    assert!(follower.status().is_none(), "{}", follower.stderr());
    follower.signal("TERM");
    assert!(follower.wait(PATIENCE).await.success(), "{}", follower.stderr());
}

#[tokio::test]
async fn credentials_that_nobody_takes_end_it() {
    let (_server, mut edge) = Edge::device().await;
    edge.set_environment([("MILLPOND_MQTT_TOKEN", "mpd_nobody".to_owned())]);
    edge.file("one", b"1");
    edge.done(&["push", "--offline", "one"]).await;
    let mut follower = edge.start("follow", &["spool", "flush", "--follow"]);
    assert_eq!(follower.wait(PATIENCE).await.code(), Some(1), "{}", follower.stderr());
}

#[tokio::test]
async fn a_statement_that_is_damaged_while_it_runs_is_told_by_the_next_run() {
    let (_server, edge) = Edge::device().await;
    edge.relay.cut();
    edge.done(&["complete", "--offline", "--through", "2026-01-01T00:00:00Z"]).await;
    let mut follower = edge.start("follow", &["--patience", "1", "spool", "flush", "--follow"]);
    until("it says that there is no network", async || !follower.stderr().is_empty()).await;
    let (note, beside) = (edge.spool().join("complete"), edge.directory().join("complete"));
    std::fs::write(&beside, std::fs::read_to_string(&note).unwrap().replace("2026", "2027")).unwrap();
    std::fs::rename(beside, &note).unwrap();
    until("it tells of it", async || follower.stderr().contains("complete: 1 lines are damaged: ")).await;
    let list = edge.done(&["spool", "list"]).await;
    assert!(list.starts_with("damaged  complete: ") && list.contains("2027-01-01"), "{list}");
    follower.signal("TERM");
    assert!(follower.wait(PATIENCE).await.success(), "{}", follower.stderr());
}

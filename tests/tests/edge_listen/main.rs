//! `millpond-edge listen` against the real server: what is shown is whole, and the server knows what became of it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cast;
mod offline;
mod removal;
mod spread;
mod told;

use std::time::Duration;

use millpond_edge::transfer;
use millpond_protocol::Sha256;
use millpond_tests::{Shape, until};
use serde_json::Value;

use crate::cast::{Cast, PATIENCE, content};

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
    until("the server counts the newest result as applied", async || {
        let results = cast.server.api().get("/v1/pools/demo/results").await;
        results["results"][0]["applied"] == 1
    })
    .await;
    let kept = |version: u32| cast.edge.directory().join(format!("results/{version}")).exists();
    until("the last two stay", async || [kept(1), kept(2), kept(3), kept(4)] == [false, false, true, true])
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

/// From which byte on a request asks for the file; none: all of it.
fn begins(request: &[u8]) -> Option<u64> {
    let head = String::from_utf8_lossy(request).to_ascii_lowercase();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="))?;
    range.strip_suffix('-').unwrap().parse().ok()
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
    while size() < 300_000 {
        assert!(listener.status().is_none(), "{}", listener.stderr());
        assert!(std::fs::read(cast.current()).unwrap() == old, "nothing is shown before it is whole");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    listener.kill();
    let had = size();
    assert!(had < 900_000);
    assert!(std::fs::read(cast.current()).unwrap() == old);
    cast.storage.listen_in();
    // The line is slow, not the client: what it has not read is not there to be read after the cut.
    cast.storage.shape(Shape { rate: Some(200_000), ..Shape::default() });
    let mut listener = cast.edge.start("again", &["listen", "--once"]);
    while size() < had + 50_000 {
        assert!(listener.status().is_none(), "{}", listener.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cast.storage.cut();
    cast.storage.shape(Shape::default());
    cast.storage.mend(cast.server.ports().storage.unwrap());
    assert!(listener.wait(PATIENCE).await.success(), "{}", listener.stderr());
    assert!(std::fs::read(cast.current()).unwrap() == new);
    let asked: Vec<_> = cast.storage.said().iter().map(|said| begins(said)).collect();
    assert_eq!(asked[0], Some(had), "after the kill");
    assert!(asked.len() > 1 && asked[1..].iter().all(|at| *at > asked[0]), "after the cut: {asked:?}");
    assert_eq!(transfer::digest(&cast.current(), 1_000_000, None).unwrap().sha256, Sha256::of(&new));
}

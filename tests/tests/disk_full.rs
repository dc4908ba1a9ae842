//! A disk that is full refuses uploads for the time being, loses nothing, and is no trap: room made is room used.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use millpond_protocol::Role;
use millpond_tests::{Beside, Link, Server, recent_hour, skip};
use serde_json::json;

/// Whether this test may mount a file system that only its server sees.
fn may_mount() -> bool {
    let allowed = Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|o| o.status.success());
    allowed || skip("unshare -m needs root")
}

/// Leaves little room, until the file is removed.
fn fill(inside: &Path) -> PathBuf {
    let ballast = inside.join("ballast");
    let mut fill = Command::new("sh");
    fill.args(["-c", r#"cat /dev/zero > "$1" 2>/dev/null; truncate -s -1500K "$1""#, "sh"]).arg(&ballast);
    fill.status().unwrap();
    ballast
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_that_it_cannot_keep_and_recovers() {
    if !may_mount() {
        return;
    }
    let mut server = Server::prepare(&[]);
    let inside = server.launch_on_small_disk(96).await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let edge = server.member("demo", "edge", Role::Publisher).await;
    let ballast = fill(&inside);

    let topic = |n: usize| format!("mp/demo/c/edge/up/u{n}/{}", recent_hour());
    let mut acknowledged = 0;
    let mut refused = 0;
    while refused < 3 {
        let link = Link::connect(edge.clone()).await.unwrap();
        while link.publish(&topic(acknowledged), vec![b'x'; 60_000], Beside::default()).await.is_ok() {
            acknowledged += 1;
            assert!(acknowledged < 1_000, "the disk does not fill");
        }
        refused += 1;
    }
    assert!(server.process().status().is_none(), "the server gave up");
    assert_eq!(server.uploads("demo").await.len(), acknowledged);

    std::fs::remove_file(ballast).unwrap();
    let link = Link::connect(edge).await.unwrap();
    link.publish(&topic(acknowledged), vec![b'x'; 60_000], Beside::default()).await.unwrap();
    assert_eq!(server.uploads("demo").await.len(), acknowledged + 1);
}

#[tokio::test]
async fn a_backup_does_not_fill_the_disk_under_the_ledger() {
    if !may_mount() {
        return;
    }
    let mut server = Server::prepare(&[]);
    fill(&server.launch_on_small_disk(96).await);
    let archive = server.directory().join("mill.tar");
    let backup = server.cli().arg("backup").arg(&archive).output().unwrap();
    let said = String::from_utf8_lossy(&backup.stderr);
    assert!(!backup.status.success() && said.contains("MiB free in the data directory"), "{said}");
    assert!(!archive.exists());
}

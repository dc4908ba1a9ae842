//! A disk without room under the embedded storage. `disk_full` has the ledger, `edge_push` the spool, `edge_slow` a listener's
//! directory.

use std::process::Command;

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, answer};
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::{Link, Server, recent_hour, skip};
use serde_json::json;

use super::{check, publish};

#[tokio::test]
async fn embedded_storage_on_a_full_disk_refuses_files_keeps_those_it_has_and_recovers() {
    let may = Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|done| done.status.success());
    if !may {
        skip("unshare -m needs root");
        return;
    }
    let mut server = Server::prepare(&[]);
    let inside = server.launch_on_small_disk(96).await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let who = server.member("demo", "edge", Role::Publisher).await;
    let large = vec![5; limits::SMALL_MAX + 1];
    let link = Link::open(who.clone()).await.unwrap();
    publish(&link, "before", large.clone()).await.unwrap();
    let film = vec![6; 900_000];
    let ask = json!({ "id": "p", "upload": "film", "size": film.len(), "sha256": Sha256::of(&film), "event_time": recent_hour() });
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    let to = put.to.unwrap();

    let ballast = inside.join("ballast");
    let fill = r#"cat /dev/zero > "$1" 2>/dev/null; truncate -s -600K "$1""#;
    Command::new("sh").args(["-c", fill, "sh"]).arg(&ballast).status().unwrap();
    assert!(publish(&link, "large", large.clone()).await.is_err(), "acknowledged without room");
    let status = server.api().send(&to, film.clone()).await;
    assert_eq!(status, 507, "a URL without room");
    assert!(server.process().status().is_none(), "the server gave up");

    std::fs::remove_file(ballast).unwrap();
    let link = Link::open(who).await.unwrap();
    publish(&link, "large", large).await.unwrap();
    assert_eq!(server.api().send(&to, film).await, 200);
    let commit = json!({ "id": "c", "uploads": ["film"], "wait_s": 30 });
    let done: answer::Commit = link.ask(Op::Commit, &commit).await.unwrap();
    assert_eq!(done.uploads[0].outcome, Outcome::Stored);
    assert_eq!(server.uploads("demo").await.len(), 3);
    check(&server).await;
}

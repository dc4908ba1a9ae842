//! A clock that jumps, both ways, while the server runs and while it does not.

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, answer};
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::{Beside, Link, Mill, Server, Shim};
use serde_json::{Value, json};

use super::check;

const DAYS: i64 = 86_400_000;

#[tokio::test]
async fn a_clock_that_jumps_both_ways_loses_no_upload_and_deletes_nothing() {
    let Some(shim) = Shim::new() else { return };
    let mut server = Server::prepare(&[]);
    server.set_environment(shim.clocked());
    server.launch().await;
    server.pool("demo", json!({ "grouping": "count", "count": 1_000 })).await;
    let who = server.member("demo", "edge", Role::Publisher).await;
    let mill = server.member("demo", "mill", Role::Processor).await;
    let mut sent = Vec::new();
    for (step, ahead) in [0, 400, 0, -400, 3, -3, 0].into_iter().enumerate() {
        // Half of the jumps happen under a running server.
        shim.set_clock(ahead * DAYS);
        if step % 2 == 0 {
            server.kill();
            server.launch().await;
        }
        let link = Link::open(server.here(&who)).await.unwrap();
        for (kind, size) in [("small", 1_000), ("large", limits::SMALL_MAX + 1)] {
            let upload = format!("{kind}-{step}");
            let topic = format!("mp/demo/c/edge/up/{upload}");
            link.publish(&topic, vec![step as u8; size], Beside::default()).await.unwrap();
            sent.push(upload);
        }
        // A URL that was signed a moment ago holds, whatever the clock said before.
        let (upload, bytes) = (format!("by-url-{step}"), vec![9; 2_000]);
        let ask = json!({ "id": format!("p{step}"), "upload": upload, "size": bytes.len(), "sha256": Sha256::of(&bytes) });
        let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
        assert_eq!(server.api().send(&put.to.unwrap(), bytes).await, 200, "{ahead} days ahead");
        let commit = json!({ "id": format!("c{step}"), "uploads": [upload], "wait_s": 30 });
        let done: answer::Commit = link.ask(Op::Commit, &commit).await.unwrap();
        assert_eq!(done.uploads[0].outcome, Outcome::Stored);
        sent.push(upload);
        let gc = server.cli().arg("gc").output().unwrap();
        assert!(gc.status.success() || String::from_utf8_lossy(&gc.stderr).contains("clock"), "{gc:?}");
    }

    // The jump ahead has sealed what was open by its deadline: every upload is in one batch, and every byte is there.
    let listed = server.uploads("demo").await;
    let names: Vec<_> = listed.iter().map(|upload| upload["upload"].as_str().unwrap()).collect();
    assert_eq!(names, sent, "each of them once");
    let link = Link::open(server.here(&who)).await.unwrap();
    for upload in &sent {
        let got: Value = link.ask(Op::Get, &json!({ "upload": upload })).await.unwrap();
        assert!(got["data"].is_string() || got["url"].is_string(), "{upload}: {got}");
    }
    let mill = Mill::join(server.here(&mill), server.api()).await;
    let mut ground = 0;
    while ground < sent.len() {
        let lease = match mill.claim().await.unwrap() {
            Some(lease) => lease,
            None => mill.trigger(&json!({})).await.unwrap(),
        };
        let leased = mill.fetch(lease).await.unwrap();
        ground += leased.files.len();
        mill.answer(&leased.lease, "ground").await.unwrap();
    }
    assert_eq!(ground, sent.len());
    check(&server).await;
}

//! A clock that jumps, both ways, while the server runs and while it does not.

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Pointer, answer};
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::{Beside, Credentials, Link, Mill, Server, Shim, until};
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
    let shown = show_a_result(&server).await;
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
        // So does the one that listeners get of a result that came before.
        let listener = Link::open(server.here(&shown)).await.unwrap();
        let latest: Value = listener.ask(Op::Latest, &json!({ "id": format!("l{step}") })).await.unwrap();
        let pointer: Pointer = serde_json::from_value(latest["result"].clone()).unwrap();
        assert_eq!(Sha256::of(&server.api().fetch(&pointer.url).await), pointer.sha256, "{ahead} days ahead");
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

/// A pool with a result that is larger than a message, and the listener who may fetch it.
async fn show_a_result(server: &Server) -> Credentials {
    server.pool("shown", json!({})).await;
    let edge = server.member("shown", "edge", Role::Publisher).await;
    let link = Link::open(server.here(&edge)).await.unwrap();
    link.publish("mp/shown/c/edge/up/u", "x", Beside::default()).await.unwrap();
    let mill = server.member("shown", "mill", Role::Processor).await;
    let mill = Mill::join(server.here(&mill), server.api()).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, vec![7; limits::SMALL_MAX + 1]).await.unwrap();
    server.member("shown", "listener", Role::Listener).await
}

/// The clock of a server that was off for longer than any grant or upload in parts is kept, or that is wrong by as much.
#[tokio::test]
async fn a_file_in_parts_that_was_whole_counts_after_a_long_time_down() {
    const PART: usize = 5 << 20;
    let Some(shim) = Shim::new() else { return };
    let mut server = Server::prepare(&[]);
    server.set_environment(shim.clocked());
    server.launch().await;
    server.pool("demo", json!({})).await;
    let who = server.member("demo", "edge", Role::Publisher).await;
    let file = vec![1; PART + 1_000];
    let parts = file.chunks(PART).zip(1..).map(|(part, n)| json!({ "n": n, "sha256": Sha256::of(part) }));
    let ask = json!({ "id": "p", "upload": "film", "size": file.len(), "sha256": Sha256::of(&file), "part_size": PART,
        "parts": parts.collect::<Vec<_>>() });
    let link = Link::open(server.here(&who)).await.unwrap();
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    for (part, bytes) in put.parts.iter().zip(file.chunks(PART)) {
        assert_eq!(server.api().send(part.to.as_ref().unwrap(), bytes.to_vec()).await, 200);
    }
    server.kill();
    shim.set_clock(40 * DAYS);
    server.launch().await;
    let link = Link::open(server.here(&who)).await.unwrap();
    until("the file counts", async || {
        let status: answer::UploadInfo = link.ask(Op::Status, &json!({ "upload": "film" })).await.unwrap();
        assert!(
            matches!(status.outcome, Outcome::Granted | Outcome::Pending | Outcome::Stored),
            "{status:?}"
        );
        status.outcome == Outcome::Stored
    })
    .await;
    check(&server).await;
}

/// Who sends a file in parts goes on where it was, as long as its grant lasts by the clock; after that, anew. The file counts once.
#[tokio::test]
async fn a_file_in_parts_is_gone_on_with_whatever_the_clock_does_between_its_parts() {
    const PART: usize = 5 << 20;
    const HOUR: i64 = 3_600_000;
    let Some(shim) = Shim::new() else { return };
    let mut server = Server::prepare(&[]);
    server.set_environment(shim.clocked());
    server.launch().await;
    server.pool("demo", json!({ "grouping": "count", "count": 1_000 })).await;
    let who = server.member("demo", "edge", Role::Publisher).await;
    let file: Vec<u8> = (0..6 * PART + 1_000).map(|at| (at / PART + at % 251) as u8).collect();
    let parts = file.chunks(PART).zip(1..).map(|(part, n)| json!({ "n": n, "sha256": Sha256::of(part) }));
    let mut ask = json!({ "upload": "film", "size": file.len(), "sha256": Sha256::of(&file), "part_size": PART,
        "parts": parts.collect::<Vec<_>>() });
    let leaps = [(0, 0), (1, 3 * HOUR), (2, -3 * HOUR), (3, 0), (0, 40 * DAYS), (0, -40 * DAYS), (0, 0)];
    for (step, (there, ahead)) in leaps.into_iter().enumerate() {
        shim.set_clock(ahead);
        if step % 2 == 1 {
            server.kill();
            server.launch().await;
        }
        let link = Link::open(server.here(&who)).await.unwrap();
        let mut n = 0;
        let put = loop {
            ask["id"] = json!(format!("p{step}-{n}"));
            let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
            if put.outcome != Outcome::Pending {
                break put;
            }
            // The grant has ended, and what is there of the file is looked at first.
            assert!(step == 4 && n < 10_000, "the clock is {ahead} ms ahead");
            n += 1;
        };
        assert_eq!(put.outcome, Outcome::Granted);
        let had: u32 = put.there.iter().map(|(from, to)| to - from + 1).sum();
        assert!(had >= there, "{had} parts are there with the clock {ahead} ms ahead, and {there} were sent");
        // One more, and in the end all that are missing.
        let missing = put.parts.iter().filter_map(|part| Some((part.n as usize, part.to.as_ref()?)));
        let now = if step + 1 == leaps.len() { usize::MAX } else { 1 };
        for (n, to) in missing.take(now) {
            let bytes = file.chunks(PART).nth(n - 1).unwrap().to_vec();
            assert_eq!(server.api().send(to, bytes).await, 200, "part {n} with the clock {ahead} ms ahead");
        }
    }
    let link = Link::open(server.here(&who)).await.unwrap();
    let commit = json!({ "id": "c", "uploads": ["film"], "wait_s": 30 });
    let done: answer::Commit = link.ask(Op::Commit, &commit).await.unwrap();
    assert_eq!(done.uploads[0].outcome, Outcome::Stored, "{done:?}");
    let got: Value = link.ask(Op::Get, &json!({ "upload": "film" })).await.unwrap();
    assert!(server.api().fetch(got["url"].as_str().unwrap()).await == file);
    assert_eq!(server.uploads("demo").await.len(), 1);
    check(&server).await;
}

//! A restart, orderly or not, keeps what was decided: open batches, leases, results, the pointer.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use millpond_protocol::Role;
use millpond_protocol::access::Op;
use millpond_protocol::message::Pointer;
use millpond_tests::{Beside, Credentials, Link, Mill, Plain, Server, recent_hour};
use serde_json::{Value, json};

async fn stage() -> (Server, Credentials, Credentials) {
    let server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let edge = server.member("demo", "edge", Role::Publisher).await;
    let mill = server.member("demo", "mill", Role::Processor).await;
    (server, edge, mill)
}

async fn publish(link: &Link, upload: &str) {
    let topic = format!("mp/demo/c/edge/up/{upload}/{}", recent_hour());
    link.publish(&topic, upload.to_owned(), Beside::default()).await.unwrap();
}

async fn restart(server: &mut Server, kill: bool) {
    if kill {
        server.kill();
    } else {
        assert!(server.terminate().await.success());
    }
    server.launch().await;
}

#[tokio::test]
async fn the_newest_result_is_there_after_an_orderly_stop() {
    the_newest_result_is_there(false).await;
}

#[tokio::test]
async fn the_newest_result_is_there_after_kill_9() {
    the_newest_result_is_there(true).await;
}

async fn the_newest_result_is_there(kill: bool) {
    let (mut server, edge, mill) = stage().await;
    let publisher = Link::open(edge.clone()).await.unwrap();
    publish(&publisher, "u1").await;
    let first = Mill::join(mill.clone(), server.api()).await;
    let lease = first.trigger(&json!({})).await.unwrap();
    first.answer(&lease, "the result").await.unwrap();

    restart(&mut server, kill).await;
    let mut plain = Plain::connect(server.here(&edge)).await.unwrap();
    assert!(plain.subscribe("mp/demo/result/data").await.unwrap());
    assert_eq!(plain.next_on("mp/demo/result/data").await.unwrap(), "the result");
    let link = Link::open(Credentials { client_id: "again".into(), ..server.here(&edge) }).await.unwrap();
    let latest: Value = link.ask(Op::Latest, &json!({})).await.unwrap();
    let latest: Pointer = serde_json::from_value(latest["result"].clone()).unwrap();
    assert_eq!((latest.version, latest.round), (1, 1));
    assert_eq!(server.api().fetch(&latest.url).await, "the result", "the URL leads to where storage is now");

    // The next batch goes on counting, and its manifest names the one before it.
    publish(&link, "u2").await;
    let second = Mill::join(server.here(&mill), server.api()).await;
    let leased = second.trigger(&json!({})).await.unwrap();
    let leased = second.fetch(leased).await.unwrap();
    assert_eq!((leased.lease.round, leased.lease.batch), (2, 2));
    assert_eq!(leased.header["prev"], json!(lease.manifest_sha256));
}

#[tokio::test]
async fn an_open_batch_and_its_uploads_survive_kill_9() {
    let (mut server, edge, mill) = stage().await;
    let publisher = Link::open(edge.clone()).await.unwrap();
    publish(&publisher, "u1").await;
    restart(&mut server, true).await;
    let publisher = Link::open(server.here(&edge)).await.unwrap();
    publish(&publisher, "u2").await;
    let mill = Mill::join(server.here(&mill), server.api()).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    let leased = mill.fetch(lease).await.unwrap();
    let files: Vec<_> = leased.files.keys().collect();
    assert_eq!(files, ["edge/u1", "edge/u2"]);
}

#[tokio::test]
async fn a_lease_survives_kill_9_and_its_holder_commits() {
    let (mut server, edge, mill) = stage().await;
    let publisher = Link::open(edge.clone()).await.unwrap();
    publish(&publisher, "u1").await;
    let before = Mill::join(mill.clone(), server.api()).await;
    let lease = before.trigger(&json!({ "ref": "job" })).await.unwrap();
    restart(&mut server, true).await;

    let after = Mill::join(server.here(&mill), server.api()).await;
    let beat = json!({ "id": "b1", "round": lease.round, "attempt": lease.attempt, "wait_s": 30 });
    let renewed: Value = after.link.ask(Op::Beat, &beat).await.unwrap();
    assert_eq!((&renewed["ready"], &renewed["ref"]), (&json!(true), &json!("job")));
    let leased = after.fetch(serde_json::from_value(renewed).unwrap()).await.unwrap();
    assert_eq!(leased.lease.manifest_sha256, lease.manifest_sha256, "a crash rebuilds the same bytes");
    after.answer(&lease, "done").await.unwrap();
    let results = server.api().get("/v1/pools/demo/results").await;
    assert_eq!(results["results"][0]["version"], json!(1));
}

#[tokio::test]
async fn receipts_that_a_member_did_not_get_come_after_the_restart() {
    let (mut server, edge, _) = stage().await;
    // The first subscription makes the member one that wants receipts.
    let mut reader = Link::open(edge.clone()).await.unwrap();
    publish(&reader, "u1").await;
    assert!(String::from_utf8_lossy(&reader.next().await.unwrap().payload).contains("\"u1\""));
    reader.close().await;
    let deaf = Link::connect(edge.clone()).await.unwrap();
    publish(&deaf, "u2").await;
    publish(&deaf, "u3").await;
    restart(&mut server, true).await;
    let mut back = Link::open(server.here(&edge)).await.unwrap();
    // Whether the first receipt's acknowledgement was kept is open; the order is not.
    let mut uploads = Vec::new();
    while uploads.last().is_none_or(|upload| upload != "u3") {
        let message = back.next().await.unwrap();
        let receipt: Value = serde_json::from_slice(&message.payload).unwrap();
        uploads.push(receipt["upload"].as_str().unwrap().to_owned());
    }
    assert!(uploads.ends_with(&["u2".to_owned(), "u3".to_owned()]), "{uploads:?}");
}

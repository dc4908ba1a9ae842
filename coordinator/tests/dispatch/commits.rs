//! Commits of several files, of which one has to be read.

use millpond::ledger::grants::{Target, grant_for};
use millpond::ledger::transfer::Cause;
use millpond_protocol::access::Op;
use millpond_protocol::{Code, Principal, Role, Sha256};
use serde_json::json;

use crate::world::{World, window};

/// The shortest part that S3 takes.
const PART: usize = 5 << 20;

/// PUTs a file in two parts.
async fn send(world: &World, who: &Principal, upload: &str) {
    let file = vec![7; PART + 1];
    let parts: Vec<_> = file
        .chunks(PART)
        .enumerate()
        .map(|(i, part)| json!({"n": i + 1, "sha256": Sha256::of(part)}))
        .collect();
    let ask = json!({"id": upload, "upload": upload, "size": file.len(), "sha256": Sha256::of(&file),
        "event_time": window(), "part_size": PART, "parts": parts});
    let put = world.ask(who, Op::Put, ask).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (part, bytes) in put["parts"].as_array().unwrap().iter().zip(file.chunks(PART)) {
        let mut request = client.put(part["to"]["url"].as_str().unwrap()).body(bytes.to_vec());
        for (name, value) in part["to"]["headers"].as_object().unwrap() {
            request = request.header(name, value.as_str().unwrap());
        }
        request.send().await.unwrap().error_for_status().unwrap();
    }
}

#[tokio::test]
async fn a_commit_of_several_begins_with_all_or_none_though_one_ends_under_way() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    for upload in ["one", "two"] {
        send(&world, &edge, upload).await;
    }
    // The ledger stands still until both were found whole; first in line then is the end of one.
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (begin, begun) = tokio::sync::oneshot::channel();
    let held = tokio::spawn(world.ledger.write(move |_| {
        let _ = begin.send(());
        let _ = wait.recv();
        Ok(())
    }));
    begun.await.unwrap();
    let (pool, who) = (world.pool, edge.clone());
    let ended = tokio::spawn(world.ledger.write(move |tx| {
        let target = Target::Upload("two".parse().unwrap());
        let two = grant_for(tx.sql(), pool, who.id, &target)?.unwrap();
        tx.end_grant(&two, Cause::Aborted)
    }));
    let (asks, ask) = (world.asks.clone(), json!({"id": "c", "uploads": ["one", "two"]}));
    let in_line = world.ledger.queued();
    let commit =
        tokio::spawn(async move { asks.answer(&edge, "test", Op::Commit, ask.to_string().as_bytes()).await });
    while world.ledger.queued() <= in_line && !commit.is_finished() {
        tokio::task::yield_now().await;
    }
    drop(go_on);
    held.await.unwrap().unwrap();
    ended.await.unwrap().unwrap();
    assert_eq!(commit.await.unwrap().unwrap_err().error.code, Code::NotFound);
    assert_eq!(world.number("SELECT count(*) FROM grants WHERE verifying IS NULL").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM grants").await, 1);
}

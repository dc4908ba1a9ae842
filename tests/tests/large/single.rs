//! Files by one PUT.

use std::process::Command;

use millpond_protocol::access::Op;
use millpond_protocol::message::{LeaseFileKind, Outcome, answer};
use millpond_protocol::{Code, Role, Sha256};
use millpond_tests::{Beside, Mill, tool};
use serde_json::{Value, json};

use crate::client::{Client, Place, bytes, refused};

pub async fn a_file_that_was_put_counts_at_its_commit_and_reaches_the_processor_as_it_is(on: &Place) {
    let server = on.server(&[]).await;
    let mut edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, 3 << 20);
    let put = edge.put_with("map", &file, json!({ "name": "map.bin", "meta": { "a": 1 } })).await.unwrap();
    assert_eq!((put.outcome, put.part_size), (Outcome::Granted, None));
    assert_eq!(edge.status("map").await.unwrap().outcome, Outcome::Granted);
    let story = server.api().get("/v1/pools/demo/uploads/edge/map").await;
    assert!(story["outcome"] == "granted" && story.to_string().contains("nothing counts it yet"), "{story}");
    assert_eq!(edge.api.send(&put.to.unwrap(), file.clone()).await, 200);
    assert!(server.uploads("demo").await.is_empty(), "it counts before its commit");

    let committed = edge.commit(&["map"]).await.unwrap();
    assert_eq!(
        (committed[0].outcome, committed[0].batch, committed[0].late),
        (Outcome::Stored, Some(1), false)
    );
    assert_eq!(edge.receipt("map").await, committed[0], "receipt and answer differ");
    assert_eq!(edge.commit(&["map"]).await.unwrap(), committed, "twice is not once");
    let again = edge.put("map", &file).await.unwrap();
    assert_eq!(
        (again.outcome, again.receipt.as_ref(), again.to),
        (Outcome::Stored, Some(&committed[0]), None)
    );

    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    assert_eq!(lease.files[0].kind, LeaseFileKind::Large);
    let leased = mill.fetch(lease).await.unwrap();
    assert_eq!(leased.files["edge/map"], file);
    assert_eq!((&leased.lines[0]["name"], &leased.lines[0]["meta"]), (&json!("map.bin"), &json!({ "a": 1 })));

    let get: answer::Bytes = edge.ask(Op::Get, json!({ "upload": "map" })).await.unwrap();
    assert_eq!(edge.api.fetch(&get.url.unwrap()).await, file);
}

pub async fn files_that_are_committed_together_count_together_or_not_at_all(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let (a, b) = (bytes(1, 200_000), bytes(2, 300_000));
    edge.send("a", &a).await;
    let b_to = edge.put("b", &b).await.unwrap().to.unwrap();
    let refusal = refused(edge.commit(&["a", "b"]).await, Code::NotFound);
    assert!(
        refusal.message.contains("b: nothing has been PUT") && !refusal.message.contains("a:"),
        "{refusal}"
    );
    assert!(server.uploads("demo").await.is_empty(), "one counted without the other");
    let refusal = refused(edge.commit(&["a", "c"]).await, Code::NotFound);
    assert!(refusal.message.contains("c: there is neither"), "{refusal}");

    assert_eq!(edge.api.send(&b_to, b).await, 200);
    let committed = edge.commit(&["b", "a"]).await.unwrap();
    let ids: Vec<_> = committed.iter().map(|receipt| (receipt.upload.as_str(), receipt.outcome)).collect();
    assert_eq!(ids, [("b", Outcome::Stored), ("a", Outcome::Stored)]);
    assert_eq!(server.uploads("demo").await.len(), 2);
    // With one that is there already it is the same.
    edge.send("c", &a).await;
    assert_eq!(edge.commit(&["a", "c"]).await.unwrap().len(), 2);
}

pub async fn what_lies_there_in_place_of_a_file_never_counts_and_the_file_is_asked_for_anew(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let (file, other) = (bytes(1, 200_000), bytes(2, 100_000));
    let url = edge.put("map", &file).await.unwrap().to.unwrap().url;
    let key = url.split('?').next().unwrap().split_once("/millpond/").unwrap().1.parse().unwrap();
    // Somebody who has the storage's own credentials writes it.
    on.storage(&server).put(&key, other.clone().into(), Sha256::of(&other)).await.unwrap();
    let refusal = refused(edge.commit(&["map"]).await, Code::Mismatch);
    assert!(refusal.hint.unwrap().contains("ask `put` again"));
    edge.send("map", &file).await;
    assert_eq!(edge.commit(&["map"]).await.unwrap()[0].sha256, Some(Sha256::of(&file)));
}

pub async fn a_grant_that_ends_counts_what_is_whole_and_forgets_the_rest(on: &Place) {
    let server = on.server(&[("MILLPOND__LIMITS__GRANT_S", "5")]).await;
    let mut edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, 200_000);
    edge.send("whole", &file).await;
    edge.put("nothing", &file).await.unwrap();
    // They end at the same time, in any order.
    let receipt = edge.receipt("nothing").await;
    assert_eq!(edge.settled("whole").await, Outcome::Stored);
    assert_eq!((receipt.outcome, receipt.error.unwrap().code), (Outcome::Refused, Code::NotFound));
    refused(edge.status("nothing").await, Code::NotFound);
    // The id is free again, for other bytes too.
    edge.send("nothing", &bytes(2, 200_000)).await;
    edge.commit(&["nothing"]).await.unwrap();
}

pub async fn an_aborted_grant_frees_its_id(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    edge.send("a", &bytes(1, 200_000)).await;
    refused(edge.put("a", &bytes(2, 200_000)).await, Code::Conflict);
    edge.ask::<Value>(Op::Abort, json!({ "upload": "a" })).await.unwrap();
    refused(edge.ask::<Value>(Op::Abort, json!({ "upload": "a" })).await, Code::NotFound);
    refused(edge.commit(&["a"]).await, Code::NotFound);
    edge.send("a", &bytes(2, 200_000)).await;
    edge.commit(&["a"]).await.unwrap();
    refused(edge.ask::<Value>(Op::Abort, json!({ "upload": "a" })).await, Code::Conflict);
}

pub async fn the_command_line_of_a_grant_works_as_pasted(on: &Place) {
    if !tool("curl") {
        return;
    }
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let (file, name) = (bytes(1, 2 << 20), "-it's {a,b} $(x).bin");
    std::fs::write(server.directory().join(name), &file).unwrap();
    let put = edge.put_with("a", &file, json!({ "name": name, "curl": true })).await.unwrap();
    let line = put.to.unwrap().curl.unwrap();
    let ran = Command::new("sh").args(["-c", &line]).current_dir(server.directory()).status().unwrap();
    assert!(ran.success(), "{line}");
    edge.commit(&["a"]).await.unwrap();
}

pub async fn a_result_that_was_put_is_committed_by_done(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    edge.send("a", &bytes(1, 200_000)).await;
    edge.commit(&["a"]).await.unwrap();
    let mill = Client::join(&server, "mill", Role::Processor).await;
    let triggered: answer::Triggered =
        mill.ask(Op::Trigger, json!({ "take": true, "wait_s": 30 })).await.unwrap();
    let lease = triggered.lease.unwrap();
    let result = bytes(7, 3 << 20);
    let this = json!({ "round": lease.round, "attempt": lease.attempt });
    let put = json!({ "round": lease.round, "attempt": lease.attempt, "name": "model.bin", "size": result.len(),
        "sha256": Sha256::of(&result), "content_type": "application/x-model" });
    let other = json!({ "round": lease.round, "attempt": 9, "size": 1, "sha256": Sha256::of(b"x") });
    refused(mill.ask::<answer::Put>(Op::Put, other).await, Code::Stale);

    let granted: answer::Put = mill.ask(Op::Put, put.clone()).await.unwrap();
    refused(mill.ask::<Value>(Op::Done, this.clone()).await, Code::NotFound);
    assert_eq!(mill.api.send(&granted.to.unwrap(), result.clone()).await, 200);
    let mut done = this.clone();
    done["log"] = json!("done well\n");
    done["warnings"] = json!(["one"]);
    let answer: Value = mill.ask(Op::Done, done).await.unwrap();
    assert_eq!(answer["version"], 1);
    let again: Value = mill.ask(Op::Done, this).await.unwrap();
    assert_eq!(again["version"], 1);
    let granted: answer::Put = mill.ask(Op::Put, put).await.unwrap();
    assert_eq!((granted.outcome, granted.version), (Outcome::Stored, Some(1)));

    let latest: Value = edge.ask(Op::Latest, json!({})).await.unwrap();
    let pointer = &latest["result"];
    assert_eq!(
        (&pointer["name"], &pointer["content_type"]),
        (&json!("model.bin"), &json!("application/x-model"))
    );
    let url = pointer["url"].as_str().unwrap();
    assert_eq!(edge.api.fetch(url).await, result);
    let ranged = reqwest::Client::builder().no_proxy().build().unwrap().get(url);
    let ranged = ranged.header("range", "bytes=1000000-1000099").send().await.unwrap();
    assert_eq!(ranged.status().as_u16(), 206, "an interrupted download cannot go on");
    assert_eq!(ranged.bytes().await.unwrap(), result[1_000_000..1_000_100]);
    let round = server.api().get("/v1/pools/demo/rounds/1").await;
    assert!(round.to_string().contains("done well") && round.to_string().contains("one"), "{round}");
}

pub async fn a_small_result_that_was_put_is_sent_inline_too(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    edge.send("a", &bytes(1, 1_000)).await;
    edge.commit(&["a"]).await.unwrap();
    let mill = Client::join(&server, "mill", Role::Processor).await;
    mill.ask::<Value>(Op::Trigger, json!({ "take": true, "wait_s": 30 })).await.unwrap();
    let put = json!({ "round": 1, "attempt": 1, "size": 5, "sha256": Sha256::of(b"hello") });
    let granted: answer::Put = mill.ask(Op::Put, put).await.unwrap();
    assert_eq!(mill.api.send(&granted.to.unwrap(), "hello").await, 200);
    mill.ask::<Value>(Op::Done, json!({ "round": 1, "attempt": 1 })).await.unwrap();
    let mut listener = Client::join(&server, "ear", Role::Listener).await;
    listener.link.subscribe("mp/demo/result/data").await.unwrap();
    assert_eq!(listener.link.next().await.unwrap().payload, "hello");
}

pub async fn a_result_that_is_whole_when_its_grant_ends_is_committed_without_done(on: &Place) {
    let server = on.server(&[("MILLPOND__LIMITS__GRANT_S", "5")]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    edge.send("a", &bytes(1, 1_000)).await;
    edge.commit(&["a"]).await.unwrap();
    let mut mill = Client::join(&server, "mill", Role::Processor).await;
    mill.ask::<Value>(Op::Trigger, json!({ "take": true, "wait_s": 30 })).await.unwrap();
    let result = bytes(7, 3 << 20);
    let put = json!({ "round": 1, "attempt": 1, "size": result.len(), "sha256": Sha256::of(&result) });
    let granted: answer::Put = mill.ask(Op::Put, put).await.unwrap();
    assert_eq!(mill.api.send(&granted.to.unwrap(), result.clone()).await, 200);
    // It says no word more.
    assert_eq!(mill.receipt("result/1/1").await.outcome, Outcome::Stored);
    let latest: Value = edge.ask(Op::Latest, json!({})).await.unwrap();
    assert_eq!(latest["result"]["version"], 1);
    assert_eq!(edge.api.fetch(latest["result"]["url"].as_str().unwrap()).await, result);
}

pub async fn the_grant_of_a_result_ends_although_its_round_committed_other_bytes(on: &Place) {
    let server = on.server(&[("MILLPOND__LIMITS__GRANT_S", "5")]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    edge.send("a", &bytes(1, 1_000)).await;
    edge.commit(&["a"]).await.unwrap();
    let mut mill = Client::join(&server, "mill", Role::Processor).await;
    mill.ask::<Value>(Op::Trigger, json!({ "take": true, "wait_s": 30 })).await.unwrap();
    let put = json!({ "round": 1, "attempt": 1, "size": 5, "sha256": Sha256::of(b"hello") });
    let granted: answer::Put = mill.ask(Op::Put, put).await.unwrap();
    assert_eq!(mill.api.send(&granted.to.unwrap(), "hello").await, 200);
    mill.link.publish("mp/demo/c/mill/result/1/1", "other", Beside::default()).await.unwrap();
    assert_eq!(mill.receipt("result/1/1").await.outcome, Outcome::Stored);
    let ended = mill.receipt("result/1/1").await;
    assert_eq!((ended.outcome, ended.error.unwrap().code), (Outcome::Refused, Code::Conflict));
}

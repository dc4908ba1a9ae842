//! `check` over the real binary: it has nothing to say of a server that has lived, and finds what was planted.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod rules;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use millpond_protocol::access::Op;
use millpond_protocol::{Role, Sha256};
use millpond_storage::{Secret, Storage, StorageConfig};
use millpond_tests::{Api, Beside, Link, Mill, Server, recent_hour};
use serde_json::{Value, json};

/// The lines of a check, and whether it said that all is well.
fn check(server: &Server, more: &[&str]) -> (Vec<Value>, bool) {
    let done = server.cli().args(["check", "--json"]).args(more).output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&done.stderr)));
    assert!(last["end"].is_object(), "{lines:#?}");
    assert_eq!(done.status.code(), Some(i32::from(last["end"]["differences"] != 0)));
    (lines, done.status.success())
}

async fn until(api: &Api, path: &str, text: &str) {
    while !api.get(path).await.to_string().contains(text) {}
}

/// A server with most of what can happen to it behind it: every select, seals of many causes, a failed round, a batch that
/// was skipped, a rejected upload, a roll-back, a revoked member, a removed pool, and a retention run.
async fn lived() -> Server {
    let server = Server::start().await;
    let api = server.api();
    server.pool("demo", json!({ "select": "latest" })).await;
    server
        .pool("sets", json!({ "grouping": "count", "count": 2, "max_size": 10, "keep_uploads_s": 0 }))
        .await;
    let skip = json!({ "grouping": "count", "count": 9, "deadline_s": 1, "min_uploads": 9, "below_minimum": "skip" });
    server.pool("skips", skip).await;
    server.pool("gone", json!({ "grouping": "count", "count": 9 })).await;
    let publish = async |pool: &str, upload: &str, size: usize| {
        let edge = server.member(pool, &format!("edge-{upload}"), Role::Publisher).await;
        let link = Link::open(edge).await.unwrap();
        let when = if pool == "demo" { format!("/{}", recent_hour()) } else { String::new() };
        for upload in [format!("{upload}-1"), format!("{upload}-2")] {
            let topic = format!("mp/{pool}/c/{}/up/{upload}{when}", link.who.member);
            // What the pool's rules reject is a row too.
            let published = link.publish(&topic, vec![b'x'; size], Beside::default()).await;
            assert_eq!(published.is_err(), pool == "sets" && size > 10);
        }
        link
    };

    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, api.clone()).await;
    for (round, size) in [(1, 1_000), (2, 200_000)] {
        let link = publish("demo", &format!("round-{round}"), size).await;
        let lease = mill.trigger(&json!({})).await.unwrap();
        mill.answer(&lease, vec![b'f'; 3_000 + round]).await.unwrap();
        let done =
            json!({ "id": mill.id(), "round": lease.round, "attempt": lease.attempt, "log": "ground" });
        let _: Value = mill.link.ask(Op::Done, &done).await.unwrap();
        let delivery = format!("mp/demo/c/{}/delivery/{round}", link.who.member);
        link.publish(&delivery, r#"{"state":"verified"}"#, Beside::default()).await.unwrap();
    }
    api.post("/v1/pools/demo/results/1/rollback", &json!({})).await;
    publish("demo", "open", 500).await;

    let sets = Mill::join(server.member("sets", "mill", Role::Processor).await, api.clone()).await;
    publish("sets", "big", 11).await;
    publish("sets", "set", 10).await;
    let lease = loop {
        if let Some(lease) = sets.claim().await.unwrap() {
            break lease;
        }
    };
    let fail =
        json!({ "id": sets.id(), "round": lease.round, "attempt": 1, "error": "no", "retryable": false });
    let _: Value = sets.link.ask(Op::Fail, &fail).await.unwrap();
    publish("skips", "few", 100).await;
    publish("gone", "never", 100).await;
    api.delete("/v1/pools/gone?force=true").await;
    api.delete("/v1/pools/demo/members/edge-round-1").await;
    until(&api, "/v1/pools/skips/batches", "manifest_sha256").await;
    for (pool, rounds) in [("demo", 1..=2), ("sets", 1..=1)] {
        for round in rounds {
            let path = format!("/v1/gc?limit=1000&pool={pool}");
            until(&api, &path, &format!("round.json of round {round}")).await;
        }
    }
    let collected = api.post("/v1/gc", &json!({})).await;
    assert_eq!(collected["batches"], 1, "{collected}");
    server
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

/// The file of the embedded storage that has this many bytes.
fn blob(server: &Server, size: u64) -> PathBuf {
    let shards = std::fs::read_dir(server.data().join("objects/blobs")).unwrap();
    let mut files =
        shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap()).map(Result::unwrap);
    files.find(|file| file.metadata().unwrap().len() == size).unwrap().path()
}

#[tokio::test]
async fn a_server_that_has_lived_differs_in_nothing_and_what_is_planted_is_found() {
    let mut server = lived().await;
    let (lines, well) = check(&server, &["--deep"]);
    assert!(well, "{lines:#?}");
    let end = &lines.last().unwrap()["end"];
    assert_eq!((&end["manifests"], &end["rebuilt"]), (&json!(4), &json!(4)), "{end}");
    // Two rounds of a pack or two large files, a manifest, a story and a result each; then the story of the failed round
    // and the manifest of the skipped batch.
    assert!(end["objects"].as_u64().unwrap() >= 8 && end["read"].as_u64() > end["objects"].as_u64(), "{end}");

    assert!(server.terminate().await.success());
    let ledger = rusqlite::Connection::open(server.data().join("ledger.db")).unwrap();
    let plant = |sql: &str| assert_eq!(ledger.execute(sql, []).unwrap(), 1, "{sql}");
    plant("UPDATE uploads SET event_time = event_time + 1 WHERE upload = 'round-1-2'");
    plant(
        "UPDATE batches SET count = count + 1 WHERE pool_id = (SELECT id FROM pools WHERE name = 'sets') AND batch = 1",
    );
    plant("DELETE FROM payloads WHERE seq = (SELECT seq FROM uploads WHERE upload = 'open-1')");
    plant(
        "UPDATE payloads SET data = zeroblob(500) WHERE seq = (SELECT seq FROM uploads WHERE upload = 'open-2')",
    );
    plant("UPDATE pools SET versions = versions + 1 WHERE name = 'skips'");
    plant(
        "UPDATE manifests SET sha256 = zeroblob(32) WHERE seq = 1 AND pool_id = (SELECT id FROM pools WHERE name = 'demo')",
    );
    plant(
        "UPDATE objects SET state = 'gone' WHERE id = (SELECT story_object FROM rounds WHERE state = 'failed')",
    );
    plant("UPDATE rounds SET state = 'offered' WHERE state = 'failed'");
    drop(ledger);
    let large = blob(&server, 200_000);
    let mut bytes = std::fs::read(&large).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&large, bytes).unwrap();
    std::fs::remove_file(blob(&server, 3_002)).unwrap();
    server.launch().await;
    let endpoint = format!("http://{}", server.ports().storage.unwrap()).parse().unwrap();
    let secret = std::fs::read_to_string(server.data().join("storage.secret")).unwrap();
    let secret = Secret::new(secret.trim());
    let storage = Storage::new(&StorageConfig::new(endpoint, "millpond", "millpond", secret)).unwrap();
    let extra = Bytes::from_static(b"extra");
    storage.put(&"9/pack/extra".parse().unwrap(), extra.clone(), Sha256::of(&extra)).await.unwrap();

    let objects = server.api().get("/v1/gc?limit=1000&pool=demo").await;
    let pack = objects["objects"].as_array().unwrap().iter().find(|object| {
        let key = object["key"].as_str().unwrap();
        key.contains("/pack/")
    });
    storage.delete(&pack.unwrap()["key"].as_str().unwrap().parse().unwrap()).await.unwrap();

    // Two uploads in parts that no row names: one has a part.
    let begun = |key: &str| key.parse().unwrap();
    storage.create_multipart(&begun("9/upload/empty")).await.unwrap();
    let (key, part) = (begun("9/upload/orphan"), vec![b'p'; 7]);
    let orphan = storage.create_multipart(&key).await.unwrap();
    let (hour, now) =
        (std::time::Duration::from_secs(3_600), millpond_protocol::Timestamp::clamped(now_ms()));
    let put = storage.presign_part(&key, &orphan, 1, 7, Sha256::of(&part), hour, now);
    let headers = put.headers.iter();
    let sent =
        headers.fold(reqwest::Client::new().put(put.url.clone()), |r, (name, value)| r.header(*name, value));
    assert_eq!(sent.body(part).send().await.unwrap().status(), 200);

    let (lines, well) = check(&server, &["--deep"]);
    assert!(!well);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in &lines {
        if let Some(kind) = line["difference"]["kind"].as_str() {
            let about = line["difference"]["about"].as_str().unwrap().to_owned();
            found.entry(kind.to_owned()).or_default().push(about);
        }
    }
    for (kind, about) in [
        ("manifest-rows", "demo manifest 1"),
        ("batch-uploads", "sets batch 1"),
        ("upload-bytes", "edge-open/open-1"),
        ("payload-hash", "edge-open/open-2"),
        ("pool-versions", "skips"),
        ("manifest-chain", "demo manifest 2"),
        ("manifest-object", "demo manifest 1"),
        ("story-object", "sets round 1"),
        ("object-again", "/round/"),
        ("round-record", "sets round 1"),
        ("object-hash", "/upload/"),
        ("object-unreadable", "/result/"),
        ("object-missing", "/pack/"),
        ("object-unknown", "9/pack/extra"),
        ("upload-unknown", "9/upload/orphan"),
    ] {
        let found = found.get(kind).unwrap_or_else(|| panic!("{kind}: {lines:#?}"));
        assert!(found.iter().any(|found| found.contains(about)), "{kind}: {found:?}");
    }
    assert_eq!(found["upload-unknown"].len(), 1, "one that is empty may just have been begun");
}

#[tokio::test]
async fn a_check_is_the_admins_and_says_that_nothing_differs() {
    let server = Server::start().await;
    server.pool("demo", json!({})).await;
    let operator = server.member("demo", "boss", Role::Operator).await;
    let mut command = server.cli();
    let refused = command.env("MILLPOND_TOKEN", &operator.token).arg("check").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("admin token"));
    let done = server.cli().arg("check").output().unwrap();
    assert!(String::from_utf8_lossy(&done.stdout).contains("no difference"), "{done:?}");
}

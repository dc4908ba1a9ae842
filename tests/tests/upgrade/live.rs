//! A life that leaves something in every table: what a fixture is made of.

use std::collections::BTreeMap;

use millpond_protocol::access::Op;
use millpond_protocol::bundle::{self, Bundle, Entry};
use millpond_protocol::message::{Lease, Outcome, answer};
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Beside, Credentials, Edge, Link, Mill, Server, until};
use serde_json::{Value, json};

/// The shortest part that S3 takes.
pub const PART: usize = 5 << 20;
/// Too large to stand in the ledger.
pub const STAGED: usize = 140_000;
pub const FIRST: &str = "the first result\n";

/// A file in two parts, of one byte so often that it is a line in the fixture.
pub fn film() -> Vec<u8> {
    vec![b'f'; PART + 1_000]
}

/// The keys of a `put` in parts.
pub fn parts(file: &[u8]) -> Value {
    let parts: Vec<_> =
        file.chunks(PART).zip(1..).map(|(part, n)| json!({ "n": n, "sha256": Sha256::of(part) })).collect();
    json!({ "part_size": PART, "parts": parts })
}

/// Asks for a grant at that time.
pub async fn put(link: &Link, upload: &str, file: &[u8], at: i64, more: Value) -> answer::Put {
    let mut ask = json!({ "id": format!("put-{upload}-{}", link.who.client_id), "upload": upload, "size": file.len(),
        "sha256": Sha256::of(file), "event_time": at });
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    link.ask(Op::Put, &ask).await.unwrap()
}

pub async fn commit(link: &Link, uploads: &[&str]) {
    let id = format!("commit-{}", uploads.join("-"));
    let done: answer::Commit =
        link.ask(Op::Commit, &json!({ "id": id, "uploads": uploads, "wait_s": 60 })).await.unwrap();
    assert!(done.uploads.iter().all(|receipt| receipt.outcome == Outcome::Stored), "{done:?}");
}

async fn publish(link: &Link, upload: &str, bytes: Vec<u8>, at: &str) {
    let (pool, member) = (&link.who.pool, &link.who.member);
    link.publish(&format!("mp/{pool}/c/{member}/up/{upload}{at}"), bytes, Beside::default()).await.unwrap();
}

async fn end(mill: &Mill, op: Op, lease: &Lease, more: Value) {
    let mut ask =
        json!({ "id": mill.id(), "round": lease.round, "attempt": lease.attempt, "log": "ground\n" });
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let _: Value = mill.link.ask(op, &ask).await.unwrap();
}

/// The round that will be on offer.
async fn claim(mill: &Mill) -> Lease {
    loop {
        if let Some(lease) = mill.claim().await.unwrap() {
            return lease;
        }
    }
}

/// Lives. Answers who may sign in, by `pool/member`.
pub async fn live(server: &Server, hour: i64) -> BTreeMap<String, Credentials> {
    let mut members = BTreeMap::new();
    server.pool("windows", json!({ "window_s": 3_600, "select": "latest", "spread_s": 0 })).await;
    server.pool("labels", json!({ "grouping": "label", "spread_s": 0, "parallel_rounds": 2 })).await;
    server.pool("counts", json!({ "grouping": "count", "count": 2, "max_size": 10 })).await;
    server.pool("gone", json!({ "grouping": "count", "count": 9 })).await;
    for (pool, name, role) in [
        ("windows", "edge-1", Role::Publisher),
        ("windows", "edge-2", Role::Publisher),
        ("windows", "spooler", Role::Publisher),
        ("windows", "listener", Role::Listener),
        ("windows", "left", Role::Listener),
        ("windows", "boss", Role::Operator),
        ("windows", "mill", Role::Processor),
        ("labels", "edge-3", Role::Publisher),
        ("labels", "mill", Role::Processor),
        ("counts", "edge-4", Role::Publisher),
        ("counts", "mill", Role::Processor),
        ("gone", "edge-5", Role::Publisher),
    ] {
        members.insert(format!("{pool}/{name}"), server.member(pool, name, role).await);
    }
    windows(server, &members, hour).await;
    labels(server, &members).await;
    counts(server, &members).await;
    let link = Link::open(members["gone/edge-5"].clone()).await.unwrap();
    publish(&link, "never", vec![1], "").await;
    let api = server.api();
    api.delete("/v1/pools/gone?force=true").await;
    api.delete("/v1/pools/windows/members/left").await;
    let join = json!({ "name": "batch-7", "role": "publisher", "uses": 5, "expires_s": 86_400 });
    api.post("/v1/pools/windows/joins", &join).await;
    for (pool, rounds) in [("windows", 1..=2), ("counts", 1..=1)] {
        for round in rounds {
            until("the rounds that ended have their stories", async || {
                let objects = api.get(&format!("/v1/gc?limit=1000&pool={pool}")).await;
                objects.to_string().contains(&format!("round.json of round {round}"))
            })
            .await;
        }
    }
    members
}

/// Two rounds, the second one rolled back, and an open batch with files of every way in.
async fn windows(server: &Server, members: &BTreeMap<String, Credentials>, hour: i64) {
    let at = |ms: i64| format!("/{}", hour + ms);
    let one = Link::open(members["windows/edge-1"].clone()).await.unwrap();
    let two = Link::open(members["windows/edge-2"].clone()).await.unwrap();
    let listener = Link::open(members["windows/listener"].clone()).await.unwrap();
    let mill = Mill::join(members["windows/mill"].clone(), server.api()).await;
    publish(&one, "draft", b"superseded\n".to_vec(), &at(1)).await;
    publish(&one, "final", b"of the first round\n".to_vec(), &at(2)).await;
    publish(&two, "staged", vec![b's'; STAGED], &at(3)).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, FIRST).await.unwrap();
    end(&mill, Op::Done, &lease, json!({ "warnings": ["a warning"] })).await;
    listener
        .publish("mp/windows/c/listener/delivery/1", r#"{"state":"verified"}"#, Beside::default())
        .await
        .unwrap();

    let entries = ["in-bundle-1", "in-bundle-2"].map(|upload| Entry {
        upload,
        event_time_ms: hour + 3_600_004,
        name: "name.txt",
        content_type: Some("text/plain"),
        label: Some("a-label"),
        sha256: None,
        meta: Some(r#"{"sensor":7}"#),
        data: upload.as_bytes(),
    });
    let bundle = bundle::encode(&Bundle { entries: entries.to_vec(), ..Bundle::default() }).unwrap();
    two.publish("mp/windows/c/edge-2/bundle/b1", bundle, Beside::default()).await.unwrap();
    let lease = mill.trigger(&json!({ "window": hour + 3_600_000 })).await.unwrap();
    mill.answer(&lease, vec![b'r'; STAGED]).await.unwrap();
    end(&mill, Op::Done, &lease, json!({})).await;
    server.api().post("/v1/pools/windows/results/1/rollback", &json!({})).await;

    server.pool("windows", json!({ "window_s": 3_600, "spread_s": 0 })).await;
    let later = hour + 2 * 3_600_000;
    publish(&one, "open", b"of the open batch\n".to_vec(), &format!("/{later}")).await;
    let (whole, film) = (vec![b'w'; STAGED], film());
    let granted = put(&two, "whole", &whole, later, json!({})).await;
    assert_eq!(server.api().send(&granted.to.unwrap(), whole).await, 200);
    commit(&two, &["whole"]).await;
    for (link, upload, sent) in [(&one, "film", 2), (&two, "half", 1)] {
        let granted = put(link, upload, &film, later, parts(&film)).await;
        for (part, bytes) in granted.parts.iter().zip(film.chunks(PART)).take(sent) {
            assert_eq!(server.api().send(part.to.as_ref().unwrap(), bytes.to_vec()).await, 200);
        }
    }
    commit(&one, &["film"]).await;
    put(&two, "granted", b"nothing of it came", later, json!({})).await;
}

/// A round that is leased.
async fn labels(server: &Server, members: &BTreeMap<String, Credentials>) {
    let link = Link::open(members["labels/edge-3"].clone()).await.unwrap();
    let mill = Mill::join(members["labels/mill"].clone(), server.api()).await;
    publish(&link, "of-night", b"night\n".to_vec(), "/night").await;
    publish(&link, "of-day", b"day\n".to_vec(), "/day").await;
    let _: Value = link.ask(Op::Complete, &json!({ "id": "night", "label": "night" })).await.unwrap();
    assert_eq!(claim(&mill).await.round, 1);
}

/// An upload that was rejected, and a round that has failed.
async fn counts(server: &Server, members: &BTreeMap<String, Credentials>) {
    let link = Link::open(members["counts/edge-4"].clone()).await.unwrap();
    let mill = Mill::join(members["counts/mill"].clone(), server.api()).await;
    let too_long = link.publish("mp/counts/c/edge-4/up/long", vec![b'x'; 11], Beside::default()).await;
    assert!(too_long.is_err());
    for upload in ["one", "two", "three"] {
        publish(&link, upload, upload.into(), "").await;
    }
    let lease = claim(&mill).await;
    end(&mill, Op::Fail, &lease, json!({ "error": "it does not grind", "retryable": false })).await;
}

/// A spool with files and a statement that wait, and one that was refused. The network is cut when it returns.
pub async fn spool(edge: &Edge, hour: i64) {
    edge.file("empty", b"");
    assert_eq!(edge.run(&["push", "empty"]).await.status.code(), Some(1), "an empty file is refused");
    edge.relay.cut();
    let at = (hour + 2 * 3_600_000 + 5).to_string();
    edge.file("words.txt", b"two words\n");
    let words =
        ["--label", "a-label", "--content-type", "text/plain", "--meta", r#"{"sensor":7}"#, "words.txt"];
    edge.file("bytes.bin", &(0..=255).collect::<Vec<u8>>());
    edge.file("large.bin", &vec![b'l'; STAGED]);
    for files in [&words[..], &["bytes.bin", "large.bin"]] {
        edge.done(&[&["push", "--offline", "--event-time", &at][..], files].concat()).await;
    }
    edge.done(&["complete", "--offline", "--through", &(hour + 3_600_000).to_string()]).await;
}

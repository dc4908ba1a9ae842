//! docs/protocol.md shows an example of every message: what the server really sends has the same keys. SECURITY.md says of every
//! limit what counts it and which tests show it: there are such.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use millpond_protocol::access::Op;
use millpond_protocol::message::answer::PutTo;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Beside, Link, Mill, Server, recent_hour, repository};
use serde_json::{Value, json};

/// The keys of an object, those of objects inside as `outer.inner`; of a list, those of its items.
fn keys(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                // What the client chose itself has any shape.
                let opaque = matches!(key.as_str(), "params" | "ref" | "meta");
                into.insert(path.clone());
                if !opaque {
                    keys(value, &path, into);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, at, into)),
        _ => {}
    }
}

fn example(name: &str) -> Vec<Value> {
    let path = repository().join("docs/golden").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect()
}

/// Every key that is sent is in one of the examples, and those that are always sent are sent.
#[track_caller]
fn documented(what: &str, sent: &[Value], examples: &[&str], optional: &[&str]) {
    let (mut shown, mut real) = (BTreeSet::new(), BTreeSet::new());
    examples.iter().flat_map(|name| example(name)).for_each(|value| keys(&value, "", &mut shown));
    sent.iter().for_each(|value| keys(value, "", &mut real));
    let unknown: Vec<_> = real.difference(&shown).collect();
    assert!(unknown.is_empty(), "{what}: {unknown:?} stand in no example: {sent:?}");
    let missing: Vec<_> = shown.difference(&real).filter(|key| !optional.contains(&key.as_str())).collect();
    assert!(missing.is_empty(), "{what}: {missing:?} are not sent: {sent:?}");
}

async fn next(link: &mut Link, topic: &str) -> Value {
    loop {
        let message = link.next().await.unwrap();
        if message.topic == topic {
            return serde_json::from_slice(&message.payload).unwrap();
        }
    }
}

#[tokio::test]
async fn messages_have_the_keys_that_the_document_shows() {
    let server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600, "deadline_s": 7_200 })).await;
    let mut edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;

    edge.subscribe("mp/demo/pool").await.unwrap();
    documented("the card", &[next(&mut edge, "mp/demo/pool").await], &["message/card.json"], &[]);

    let receipt = "mp/demo/d/edge/receipt";
    let topic = format!("mp/demo/c/edge/up/u1/{}", recent_hour() + 3 * 3_600_000);
    let beside = Beside {
        user_properties: vec![
            ("meta".into(), "{\"sensor\":7}".into()),
            ("label".into(), "night-shift".into()),
        ],
        content_type: Some("text/csv".into()),
    };
    edge.publish(&topic, "bytes", beside.clone()).await.unwrap();
    documented("a receipt", &[next(&mut edge, receipt).await], &["message/receipt-stored.json"], &[]);
    edge.offer(&topic, "other", beside.clone()).await.unwrap();
    let refused = ["message/receipt-refused.json"];
    documented("a refusal's receipt", &[next(&mut edge, receipt).await], &refused, &["sha256", "error.hint"]);
    edge.offer("mp/demo/c/edge/up/u2", "", beside.clone()).await.unwrap();
    let rejected = ["message/receipt-rejected.json"];
    let rejection = next(&mut edge, receipt).await;
    assert_eq!(rejection["error"], example(rejected[0])[0]["error"], "in other words than the document's");
    documented("a rejection's receipt", &[rejection], &rejected, &["error.hint"]);
    let late = format!("mp/demo/c/edge/up/large/{}", recent_hour());
    edge.publish(&late, vec![b'x'; 200_000], beside).await.unwrap();
    next(&mut edge, receipt).await;

    let lease = mill.trigger(&json!({ "which": "oldest", "params": 1, "ref": 2 })).await.unwrap();
    let manifest = server.api().fetch(lease.manifest_url.as_deref().unwrap()).await;
    let lines: Vec<Value> =
        serde_json::Deserializer::from_slice(&manifest).into_iter().map(Result::unwrap).collect();
    documented("a manifest", &lines, &["manifest.jsonl"], &["late"]);

    let answer = |op, ask: Value| {
        let link = &mill.link;
        async move { link.ask::<Value>(op, &ask).await.unwrap() }
    };
    let this = json!({ "round": lease.round, "attempt": lease.attempt });
    let with = |more: Value| {
        let mut ask = this.clone();
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask
    };
    let large = ["cursor", "files.member", "files.upload"];
    let beat = answer(Op::Beat, with(json!({ "id": "b1" }))).await;
    documented("a lease", &[beat], &["message/answer-lease.json"], &large);
    let files = answer(Op::Files, this.clone()).await;
    documented("files", &[files], &["message/answer-files.json"], &large);
    documented("time", &[answer(Op::Time, json!({ "id": "t" })).await], &["message/answer-time.json"], &[]);

    let give_back = with(json!({ "id": "f1", "error": "x", "retryable": true }));
    let fail = answer(Op::Fail, give_back).await;
    documented("fail", &[fail], &["message/answer-fail.json"], &[]);
    let stale = with(json!({ "id": "beat-1", "attempt": 2 })).to_string();
    let stale = mill.link.ask_raw(Op::Beat, stale).await.unwrap();
    documented("an error", &[serde_json::from_slice(&stale).unwrap()], &["message/answer-error.json"], &[]);
    // The late one's round, as the first is pausing.
    let lease = mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
    mill.answer(&lease, "result").await.unwrap();
    let done = json!({ "id": "d1", "round": lease.round, "attempt": lease.attempt });
    documented("done", &[answer(Op::Done, done).await], &["message/answer-done.json"], &[]);
    let ask = async |op, ask: Value| edge.ask::<Value>(op, &ask).await.unwrap();
    let status = ask(Op::Status, json!({ "id": "s", "upload": "large" })).await;
    documented("status", &[status], &["message/answer-status.json"], &[]);
    let status = ask(Op::Status, json!({ "id": "s", "upload": "u2" })).await;
    let rejected = ["message/answer-status-rejected.json"];
    documented(
        "a rejected one's status",
        &[status],
        &["message/answer-status.json", rejected[0]],
        &["batch", "batch_state", "round", "round_state", "version"],
    );
    let history = ask(Op::History, json!({ "id": "h", "batch": lease.batch })).await;
    documented("history", &[history], &["message/answer-history.json"], &["cursor"]);
    let get = ask(Op::Get, json!({ "id": "g", "version": 1 })).await;
    documented("get", &[get], &["message/answer-get.json"], &[]);
    let complete = ask(Op::Complete, json!({ "id": "c", "through": 1 })).await;
    documented("complete", &[complete], &["message/answer-complete.json"], &[]);
    let latest = ask(Op::Latest, json!({ "id": "l" })).await;
    documented("latest", &[latest], &["message/answer-latest.json"], &["result.content_type"]);
    edge.subscribe("mp/demo/result").await.unwrap();
    let pointer = next(&mut edge, "mp/demo/result").await;
    documented("the pointer", &[pointer], &["message/pointer.json"], &["content_type"]);
}

#[tokio::test]
async fn events_and_rarer_answers_have_the_keys_that_the_document_shows() {
    let server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600, "deadline_s": 7_200 })).await;
    let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let mut boss = Link::open(server.member("demo", "boss", Role::Operator).await).await.unwrap();
    let mut mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    boss.subscribe("mp/demo/event/#").await.unwrap();

    let nothing: Value = mill.link.ask(Op::Claim, &json!({ "id": "c" })).await.unwrap();
    documented("no lease", &[nothing], &["message/answer-claim-nothing.json"], &[]);

    let topic = format!("mp/demo/c/edge/up/u1/{}", recent_hour());
    edge.publish(&topic, "bytes", Beside::default()).await.unwrap();
    let lease = mill.trigger(&json!({ "ref": 2 })).await.unwrap();
    let uploads = next(&mut boss, "mp/demo/event/uploads").await;
    documented("a sum of uploads", &[uploads], &["message/event-uploads.json"], &[]);
    mill.answer(&lease, vec![b'r'; 200_000]).await.unwrap();
    let committed = next(&mut boss, "mp/demo/event/round-committed").await;
    documented("a round's event", &[committed], &["message/event-round.json"], &[]);

    let topic = format!("mp/demo/c/mill/result/{}/9", lease.round);
    mill.link.offer(&topic, "other", Beside::default()).await.unwrap();
    let refused = loop {
        let receipt = next(&mut mill.link, "mp/demo/d/mill/receipt").await;
        if receipt["outcome"] == "refused" {
            break receipt;
        }
    };
    let example = "message/receipt-refused-result.json";
    documented("a refused result's receipt", &[refused], &[example], &["error.hint"]);

    let results = edge.ask(Op::History, &json!({ "id": "h", "of": "results" })).await.unwrap();
    let example = "message/answer-history-results.json";
    documented("results", &[results], &[example], &["cursor", "results.of"]);
    let get = edge.ask(Op::Get, &json!({ "id": "g", "version": 1 })).await.unwrap();
    documented("a file's URL", &[get], &["message/answer-get-url.json"], &[]);
}

#[tokio::test]
async fn the_answers_about_large_files_have_the_keys_that_the_document_shows() {
    let server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600, "deadline_s": 7_200 })).await;
    let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let ask = async |op, ask: Value| edge.ask::<Value>(op, &ask).await.unwrap();

    let file = vec![b'x'; 200_000];
    let sha256 = Sha256::of(&file);
    let put = json!({ "id": "p", "upload": "map", "size": file.len(), "sha256": sha256,
        "event_time": recent_hour(), "curl": true });
    let granted = ask(Op::Put, put.clone()).await;
    documented("a grant", std::slice::from_ref(&granted), &["message/answer-put.json"], &[]);
    let to: PutTo = serde_json::from_value(granted["to"].clone()).unwrap();
    assert_eq!(server.api().send(&to, file.clone()).await, 200);
    let committed = ask(Op::Commit, json!({ "id": "c", "upload": "map" })).await;
    documented("a commit", &[committed], &["message/answer-commit.json"], &[]);
    let stored = ask(Op::Put, put).await;
    documented("a put of what is there", &[stored], &["message/answer-put-stored.json"], &[]);

    let parts = json!({ "id": "p2", "upload": "film", "size": 6 << 20, "sha256": sha256, "part_size": 5 << 20,
        "event_time": recent_hour(), "parts": [{ "n": 1, "sha256": sha256 }] });
    let granted = ask(Op::Put, parts).await;
    documented("a grant in parts", &[granted], &["message/answer-put-parts.json"], &["there"]);
    let status = ask(Op::Status, json!({ "id": "s", "upload": "film" })).await;
    documented("a grant's status", &[status], &["message/answer-status-pending.json"], &["verified"]);
    let abort = ask(Op::Abort, json!({ "id": "x", "upload": "film" })).await;
    documented("abort", &[abort], &["message/answer-abort.json"], &[]);

    let lease = mill.trigger(&json!({})).await.unwrap();
    let put = json!({ "id": "p3", "round": lease.round, "attempt": lease.attempt, "size": file.len(), "sha256": sha256 });
    let granted: Value = mill.link.ask(Op::Put, &put).await.unwrap();
    documented("a result's grant", &[granted], &["message/answer-put-result.json"], &[]);
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The Rust files below a directory, but for what was built there.
fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_limit_is_counted_and_shown_as_the_table_says() {
    let text = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let (security, metrics) = (text("SECURITY.md"), text("coordinator/src/http/metrics.rs"));
    let mut files = Vec::new();
    sources(&repository(), &mut files);
    let table = security.lines().skip_while(|line| !line.starts_with("| what | default")).skip(2);
    let rows: Vec<&str> = table.take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        let ["", what, _, _, counted, shown, ""] = cells[..] else { panic!("not five cells: {row}") };
        for name in quoted(counted).filter(|name| name.starts_with("millpond_")) {
            let name = name.split('{').next().unwrap();
            assert!(metrics.contains(&format!("\"{name}\"")), "{what}: {name} is not served");
        }
        let mut file = String::new();
        for name in quoted(shown) {
            if name.ends_with(".rs") {
                let path = files.iter().find(|path| path.ends_with(name));
                file = std::fs::read_to_string(path.expect(name)).unwrap();
            } else {
                let names = [format!("fn {name}"), format!("Limit::{name},")];
                assert!(names.iter().any(|name| file.contains(name)), "{what}: there is no test {name}");
            }
        }
        assert!(!file.is_empty(), "{what}: no test is named");
    }
}

//! The table of event types in docs/protocol.md and the feed say the same: every type comes, with the keys of its row.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millpond::rounds::Policy;
use millpond_protocol::access::Op;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Beside, Link, Mill, Server, recent_hour, repository, until};
use reqwest::Method;
use serde_json::{Value, json};

/// Comes only where packing takes half an hour; the core's own tests wait that long in their own time.
const NOT_DRIVEN: &str = "round-unpacked";

/// Keys of an event; those that may be left out are marked.
type Keys = BTreeMap<String, Presence>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Presence {
    Always,
    Sometimes,
}

/// The words in backticks of a cell; `?` behind one says that it may be left out.
fn words(cell: &str) -> Keys {
    let mut parts = cell.split('`');
    let mut words = Keys::new();
    parts.next();
    while let (Some(word), Some(behind)) = (parts.next(), parts.next()) {
        let presence = if behind.starts_with('?') { Presence::Sometimes } else { Presence::Always };
        words.insert(word.to_owned(), presence);
    }
    words
}

/// The table, with its row of all that happens to rounds written out.
fn table() -> BTreeMap<String, Keys> {
    let document = std::fs::read_to_string(repository().join("docs/protocol.md")).unwrap();
    let mut types = BTreeMap::new();
    let rows = document.lines().skip_while(|line| *line != "| type | when | keys |").skip(2);
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, when, keys, _] = cells[..] else { panic!("not a row: {row}") };
        let name = name.trim_matches('`');
        let keys = match keys {
            "the policy's" => words_of(&serde_json::to_value(Policy::default()).unwrap()),
            keys => words(keys),
        };
        match name.strip_suffix('…') {
            Some(stem) => {
                for step in words(when).into_keys() {
                    types.insert(format!("{stem}{step}"), keys.clone());
                }
            }
            None => {
                types.insert(name.to_owned(), keys);
            }
        }
    }
    types
}

fn words_of(value: &Value) -> Keys {
    value.as_object().unwrap().keys().map(|key| (key.clone(), Presence::Always)).collect()
}

/// Every event of the pool so far.
async fn feed(server: &Server, pool: &str) -> Vec<Value> {
    let (mut events, mut since) = (Vec::new(), 0);
    loop {
        let page = server.api().get(&format!("/v1/pools/{pool}/events?since={since}")).await;
        let rows = page["events"].as_array().unwrap();
        if rows.is_empty() {
            return events;
        }
        events.extend(rows.iter().cloned());
        since = page["next"].as_u64().unwrap();
    }
}

fn kinds(events: &[Value]) -> BTreeSet<String> {
    events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

/// Waits for an event that time brings.
async fn comes(server: &Server, pool: &str, kind: &str) {
    until(&format!("{kind} comes"), async || kinds(&feed(server, pool).await).contains(kind)).await;
}

/// Lets retention find something: a day is a long time, so the older result becomes one of long ago.
async fn expire(server: &Server) {
    let keep_little =
        json!({ "lease_term_s": 1, "parallel_rounds": 9, "keep_uploads_s": 0, "keep_results": 1 });
    server.pool("demo", keep_little).await;
    let sql = rusqlite::Connection::open(server.data().join("ledger.db")).unwrap();
    sql.busy_timeout(Duration::from_secs(10)).unwrap();
    sql.execute("UPDATE results SET committed = 0, pointed_until = 0 WHERE version = 1", []).unwrap();
    until("retention deletes", async || {
        server.api().post("/v1/gc", &json!({})).await;
        let kinds = kinds(&feed(server, "demo").await);
        kinds.contains("batch-expired") && kinds.contains("result-expired")
    })
    .await;
    // As if the clock had leapt since.
    sql.execute("UPDATE clock SET believed = 0", []).unwrap();
    let refused = server.api().call(Method::POST, "/v1/gc", None).await;
    assert_eq!(refused.0, 409, "{refused:?}");
    server.api().post("/v1/gc?trust_clock=true", &json!({})).await;
}

#[tokio::test]
async fn every_type_of_the_table_comes_with_the_keys_of_its_row_and_no_other_does() {
    let server = Server::start().await;
    server.pool("demo", json!({ "lease_term_s": 1, "parallel_rounds": 9 })).await;
    server
        .pool(
            "tiny",
            json!({ "grouping": "count", "min_uploads": 9, "below_minimum": "carry", "deadline_s": 1 }),
        )
        .await;
    let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let other = Link::open(server.member("tiny", "edge", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    server.member("demo", "gone", Role::Listener).await;
    server.api().patch("/v1/pools/demo/members/gone", &json!({ "role": "trigger" })).await;
    let join = json!({ "name": "j", "role": "listener", "uses": 1, "expires_s": 60 });
    server.api().post("/v1/pools/demo/joins", &join).await;
    server.api().delete("/v1/pools/demo/joins/j").await;
    server.member("demo", "worn", Role::Listener).await;
    let rotate = json!({ "replace": true, "overlap_s": 1 });
    server.api().post("/v1/pools/demo/members/worn/tokens", &rotate).await;
    server.api().post("/v1/pools/demo/members/gone/tokens", &json!({})).await;
    server.api().delete("/v1/pools/demo/members/gone").await;

    let publish = async |hour: i64, payload: &'static str| {
        let topic = format!("mp/demo/c/edge/up/u{hour}/{}", recent_hour() - hour * 3_600_000);
        edge.offer(&topic, payload, Beside::default()).await.unwrap();
    };
    // Alone, and due in a second.
    other.publish("mp/tiny/c/edge/up/u1", "x", Beside::default()).await.unwrap();
    for (hour, payload) in
        [(1, "one"), (1, "one"), (1, "another"), (2, "two"), (3, "three"), (4, "four"), (5, "five")]
    {
        publish(hour, payload).await;
    }
    // The oldest window's round is sealed without a lease, and offered.
    let ask = json!({ "id": "t", "which": "oldest", "take": false, "ref": 1, "params": 2 });
    let _: Value = mill.link.ask(Op::Trigger, &ask).await.unwrap();
    comes(&server, "demo", "round-offered").await;

    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, "older").await.unwrap();
    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, "newer").await.unwrap();
    let done = json!({ "id": "d", "round": lease.round, "attempt": lease.attempt });
    let _: Value = mill.link.ask(Op::Done, &done).await.unwrap();
    for (id, retryable) in [("back", true), ("failed", false)] {
        let lease = mill.trigger(&json!({})).await.unwrap();
        let fail = json!({ "id": id, "round": lease.round, "attempt": lease.attempt, "error": "x",
            "retryable": retryable });
        let _: Value = mill.link.ask(Op::Fail, &fail).await.unwrap();
        if !retryable {
            server.api().post(&format!("/v1/pools/demo/rounds/{}/retry", lease.round), &json!({})).await;
        }
    }
    let failed = json!({ "state": "failed", "reason": "no room" }).to_string();
    edge.publish("mp/demo/c/edge/delivery/1", failed, Beside::default()).await.unwrap();
    let put = json!({ "id": "p", "upload": "large", "name": "large", "size": 200_000,
        "sha256": Sha256::of(b"large") });
    let _: Value = edge.ask(Op::Put, &put).await.unwrap();
    let _: Value = edge.ask(Op::Abort, &json!({ "id": "a", "upload": "large" })).await.unwrap();
    // One that nobody beats.
    assert!(mill.claim().await.unwrap().is_some());
    comes(&server, "demo", "round-expired").await;
    comes(&server, "demo", "token-expired").await;
    comes(&server, "tiny", "batch-carried").await;
    expire(&server).await;

    let table = table();
    let events = [feed(&server, "demo").await, feed(&server, "tiny").await].concat();
    for event in &events {
        let kind = event["type"].as_str().unwrap();
        let keys = table.get(kind).unwrap_or_else(|| panic!("{kind} stands in no row: {event}"));
        let own = ["seq", "type", "at"].map(str::to_owned);
        let sent: BTreeSet<_> = words_of(event).into_keys().filter(|key| !own.contains(key)).collect();
        let unknown: Vec<_> = sent.iter().filter(|key| !keys.contains_key(*key)).collect();
        assert!(unknown.is_empty(), "{unknown:?} of {kind} stand in no row");
        let always = keys.iter().filter(|(_, presence)| **presence == Presence::Always);
        let missing: Vec<_> = always.filter(|(key, _)| !sent.contains(*key)).collect();
        assert!(missing.is_empty(), "{kind} has no {missing:?}: {event}");
    }
    let mut documented: BTreeSet<String> = table.into_keys().collect();
    assert!(documented.remove(NOT_DRIVEN), "{NOT_DRIVEN} is not documented");
    assert_eq!(kinds(&events), documented);
}

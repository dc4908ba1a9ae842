//! Asks: bad ones, and such as come again.

use millpond_protocol::access::Op;
use millpond_protocol::{Code, Role, limits};
use millpond_tests::{Link, Mill};
use serde_json::{Value, json};

use super::Stage;

#[tokio::test]
async fn every_bad_ask_is_answered_with_its_code() {
    use Code::{Malformed, NotFound, TooLarge};
    let mut stage = Stage::set().await;
    let edge = Link::open(stage.edge.clone()).await.unwrap();
    let mill = Link::open(stage.server.member("demo", "mill", Role::Processor).await).await.unwrap();
    for (link, op, ask, code) in [
        (&edge, Op::Status, "", Malformed),
        (&edge, Op::Status, "{", Malformed),
        (&edge, Op::Status, "[]", Malformed),
        (&edge, Op::Status, "{}", Malformed),
        (&edge, Op::Status, r#"{"upload":"a/b"}"#, Malformed),
        // Counted as one that wants little, it would get much.
        (&edge, Op::Latest, r#"{"max_answer":1024,"max_answer":1048576}"#, Malformed),
        (&edge, Op::Status, r#"{"upload":"unknown"}"#, NotFound),
        (&edge, Op::Get, r#"{"version":7}"#, NotFound),
        (&edge, Op::Complete, r#"{"through":"2026-01-01T00:00:00Z"}"#, Malformed),
        (&edge, Op::Complete, r#"{"id":"c1","through":"soon"}"#, Malformed),
        (&edge, Op::Complete, r#"{"id":"a b","through":"2026-01-01T00:00:00Z"}"#, Malformed),
        (&edge, Op::Complete, r#"{"id":"c2"}"#, Malformed),
        (&edge, Op::History, r#"{"cursor":"garbage"}"#, Malformed),
        (&mill, Op::Trigger, r#"{"id":"t1","window":"2020-01-01T00:00:00Z"}"#, NotFound),
        (&mill, Op::Trigger, r#"{"id":"t2","which":"newest"}"#, Malformed),
        (&mill, Op::Claim, r#"{"id":"k1","round":9}"#, NotFound),
        (&mill, Op::Beat, r#"{"id":"b1","round":9,"attempt":1}"#, NotFound),
        (&mill, Op::Files, r#"{"round":9,"attempt":1}"#, NotFound),
        (&mill, Op::Fail, r#"{"id":"f1","round":9,"attempt":1,"error":"x","retryable":true}"#, NotFound),
    ] {
        let answer: Value = serde_json::from_slice(&link.ask_raw(op, ask).await.unwrap()).unwrap();
        assert_eq!(answer["error"]["code"], json!(code), "{op} {ask}: {answer}");
        stage.unharmed(ask).await;
    }
    let params = "x".repeat(limits::META_MAX);
    let ask = json!({ "id": "t3", "params": params }).to_string();
    let answer: Value = serde_json::from_slice(&mill.ask_raw(Op::Trigger, ask).await.unwrap()).unwrap();
    assert_eq!(answer["error"]["code"], json!(TooLarge), "{answer}");
}

#[tokio::test]
async fn a_repeated_ask_gets_the_first_answer_and_does_nothing_twice() {
    let mut stage = Stage::set().await;
    stage.unharmed("nothing").await;
    let mill =
        Mill::join(stage.server.member("demo", "mill", Role::Processor).await, stage.server.api()).await;
    let ask = json!({ "id": "once", "take": true }).to_string();
    let first: Value =
        serde_json::from_slice(&mill.link.ask_raw(Op::Trigger, ask.clone()).await.unwrap()).unwrap();
    assert_eq!((&first["round"], &first["lease"]["attempt"]), (&json!(1), &json!(1)), "{first}");
    stage.unharmed("a trigger").await;
    let again: Value = serde_json::from_slice(&mill.link.ask_raw(Op::Trigger, ask).await.unwrap()).unwrap();
    assert_eq!((&again["round"], &again["lease"]["attempt"]), (&json!(1), &json!(1)), "{again}");
    // Only a new id seals the next batch.
    let lease = mill.claim().await.unwrap();
    assert!(lease.is_none(), "the repeated trigger sealed another batch: {lease:?}");
}

#[tokio::test]
async fn asks_that_change_something_are_remembered_whatever_they_are() {
    let mut stage = Stage::set().await;
    stage.unharmed("nothing").await;
    let edge = Link::open(stage.edge.clone()).await.unwrap();
    let mill =
        Mill::join(stage.server.member("demo", "mill", Role::Processor).await, stage.server.api()).await;
    let twice = async |link: &Link, op, ask: Value| {
        let first = link.ask_raw(op, ask.to_string()).await.unwrap();
        assert_eq!(link.ask_raw(op, ask.to_string()).await.unwrap(), first, "{op}");
        serde_json::from_slice::<Value>(&first).unwrap()
    };
    twice(&edge, Op::Complete, json!({ "id": "c", "through": 1 })).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    let fail = json!({ "id": "f", "round": 1, "attempt": 1, "error": "no", "retryable": true });
    let failed = twice(&mill.link, Op::Fail, fail).await;
    assert!(failed.get("error").is_none(), "the second one would be stale: {failed}");
    let story = stage.server.api().get("/v1/pools/demo/rounds/1").await;
    assert_eq!(story["attempts"].as_array().map(Vec::len), Some(lease.attempt as usize), "{story}");
}

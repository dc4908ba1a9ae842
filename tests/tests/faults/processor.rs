//! A processor that hangs, and answers when nobody waits for it any more. One that answers twice, or garbage, is in `bad_input`.

use millpond_protocol::access::Op;
use millpond_protocol::{Code, Refusal, Role};
use millpond_tests::{Beside, Link, Mill, Server, until};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::{Value, json};

use super::{check, publish};

#[tokio::test]
async fn the_round_of_a_processor_that_hangs_goes_to_another_one_and_what_it_says_late_is_stale() {
    let server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600, "lease_term_s": 1 })).await;
    let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let hangs = Mill::join(server.member("demo", "hangs", Role::Processor).await, server.api()).await;
    let works = Mill::join(server.member("demo", "works", Role::Processor).await, server.api()).await;
    publish(&edge, "one", vec![1]).await.unwrap();
    let first = hangs.trigger(&json!({})).await.unwrap();

    // Its lease runs out, and after a pause of 5 s the round is on offer again.
    let mut second = None;
    while second.is_none() {
        second = works.claim().await.unwrap();
    }
    let second = works.fetch(second.unwrap()).await.unwrap();
    assert_eq!((second.lease.round, second.lease.attempt), (first.round, 2));
    assert_eq!(second.files.keys().collect::<Vec<_>>(), ["edge/one"], "the same files");
    works.answer(&second.lease, "in time").await.unwrap();

    let topic = format!("mp/demo/c/hangs/result/{}/{}", first.round, first.attempt);
    let late = hangs.link.offer(&topic, "late", Beside::default()).await.unwrap();
    assert_eq!(late, PubAckReason::ImplementationSpecificError, "stale");
    let ask = json!({ "id": "d", "round": first.round, "attempt": first.attempt });
    for op in [Op::Done, Op::Beat, Op::Fail] {
        let mut ask = ask.clone();
        ask["error"] = json!("late");
        ask["retryable"] = json!(true);
        let late = hangs.link.ask::<Value>(op, &ask).await.unwrap_err();
        assert_eq!(
            late.downcast_ref::<Refusal>().map(|refusal| refusal.code),
            Some(Code::Stale),
            "{op}: {late}"
        );
    }
    let api = server.api();
    let results = api.get("/v1/pools/demo/results").await;
    assert_eq!(results["results"].as_array().unwrap().len(), 1, "{results}");
    until("the round says which attempt ran out", async || {
        let round = api.get("/v1/pools/demo/rounds/1").await.to_string();
        round.contains("expired") && round.contains("committed")
    })
    .await;
    check(&server).await;
}

#[tokio::test]
async fn a_result_that_is_late_counts_as_long_as_nobody_else_has_the_round() {
    let server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600, "lease_term_s": 1 })).await;
    let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    publish(&edge, "one", vec![1]).await.unwrap();
    let lease = mill.trigger(&json!({})).await.unwrap();
    let api = server.api();
    until("the lease has run out", async || {
        api.get("/v1/pools/demo/rounds/1").await.to_string().contains("expired")
    })
    .await;
    mill.answer(&lease, "late").await.unwrap();
    let results = api.get("/v1/pools/demo/results").await;
    assert_eq!(results["results"].as_array().unwrap().len(), 1, "{results}");
    check(&server).await;
}

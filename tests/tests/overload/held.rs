//! What the server holds for those who do not take it, or do not end: at the limit they are told where that is possible, it is
//! counted, and those beside them go on.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use millpond_protocol::message::answer::PutTo;
use millpond_protocol::{Sha256, limits};
use millpond_tests::overload::others;
use millpond_tests::{Api, until};
use reqwest::Method;
use rusqlite::Connection;
use serde_json::json;
use tokio::time::timeout;

use super::client::{CONNACK, Client, DISCONNECT, PATIENCE, publish};
use super::told::member;
use super::{Duration, SMALL, Stage};

const COPIES: &str = "millpond_gate_copies_dropped_total";
const OF_POOL: &str = r#"limit="pool""#;

#[tokio::test]
async fn what_waits_for_all_of_a_pool_who_are_away_is_bounded_and_who_is_there_goes_on() {
    let stage = Stage::set(&SMALL[..1]).await;
    // None of these members has as much waiting as one may have.
    for n in 0..9 {
        let who = member(&stage.server, "demo", &format!("away{n}")).await;
        for session in ["a", "b"] {
            let mut kept = Client::open(&stage.server, &who, session, 3_600).await;
            assert_eq!(kept.answer(CONNACK).await, "0x00");
            assert_eq!(kept.subscribe("app/demo/away").await, "0x01");
            kept.end().await;
        }
    }
    let mut client = Client::sign_in(&stage.server, &stage.field.bad[0], "x").await;
    let mut sent = 0;
    while stage.metric(COPIES, OF_POOL).await == 0.0 {
        assert_eq!(client.publish("app/demo/away", &[], &vec![0; limits::PUBLISH_MAX]).await, "0x00");
        sent += 1;
        assert!(sent < 20, "nothing is dropped");
    }
    assert_eq!(sent, limits::AWAY_BYTES_PER_POOL / (9 * 2 * limits::PUBLISH_MAX) + 1);
    assert_eq!(stage.metric(COPIES, "").await, stage.metric(COPIES, OF_POOL).await);
    others(&stage.field, "beside", Duration::ZERO, 5).await.unwrap();
}

#[tokio::test]
async fn of_a_pool_that_has_too_much_in_memory_who_holds_most_is_told_so_and_others_go_on() {
    const HOLDERS: usize = 32;
    let stage = Stage::set(&SMALL[..1]).await;
    let mut holders = Vec::new();
    for n in 0..HOLDERS {
        let mut holder = Client::sign_in(&stage.server, &stage.field.bad[n % 8], &format!("h{n}")).await;
        assert_eq!(holder.subscribe(&format!("app/demo/h{n}")).await, "0x01");
        holders.push(holder);
    }
    let feeder = member(&stage.server, "demo", "feeder").await;
    let mut feeder = Client::sign_in(&stage.server, &feeder, "x").await;
    let (payload, mut sent) = (vec![0; limits::PUBLISH_MAX], 0);
    let all = limits::APP_BYTES_PER_POOL / payload.len();
    // Nobody takes anything, and nobody holds as much as one session may.
    while sent < all || stage.metric(COPIES, OF_POOL).await == 0.0 {
        let told = feeder.publish(&format!("app/demo/h{}", sent % HOLDERS), &[], &payload).await;
        assert_eq!(told, "0x00");
        sent += 1;
        assert!(sent < all + 2 * HOLDERS, "nobody is ended");
    }
    assert_eq!(stage.metric(COPIES, "").await, stage.metric(COPIES, OF_POOL).await);
    let mut told: FuturesUnordered<_> = holders.iter_mut().map(|holder| holder.answer(DISCONNECT)).collect();
    assert_eq!(told.next().await.unwrap(), "0x97");
    assert!(stage.metric("millpond_gate_overflows_total", "").await >= 1.0);
    others(&stage.field, "beside", Duration::ZERO, 5).await.unwrap();
}

#[tokio::test]
async fn who_falls_silent_inside_a_packet_is_ended_and_others_go_on() {
    let stage = Stage::set(&SMALL[..1]).await;
    let mut client = Client::sign_in(&stage.server, &stage.field.bad[0], "x").await;
    client.send(&publish("app/demo/x", 1, &[], b"the rest")[..7]).await;
    let ended = timeout(2 * PATIENCE, client.packet());
    let (ended, fared) = tokio::join!(ended, others(&stage.field, "beside", Duration::ZERO, 5));
    assert_eq!(ended.unwrap(), (0, Vec::new()), "nothing is said to it");
    fared.unwrap();
    assert_eq!(stage.metric("millpond_gate_stalled_total", "").await, 1.0);
}

#[tokio::test]
async fn a_member_that_has_used_up_a_days_asks_is_told_so_and_others_ask_on() {
    let stage = Stage::set(&SMALL[..1]).await;
    let who = member(&stage.server, "demo", "asks").await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let ledger = Connection::open(stage.server.data().join("ledger.db")).unwrap();
    ledger.busy_timeout(PATIENCE).unwrap();
    let filled = ledger.execute(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1) \
         INSERT INTO asks SELECT members.id, 'complete', 'old-' || n, ?2, '{}' FROM n, members WHERE name = 'asks'",
        (limits::ASKS_REMEMBERED as i64, now),
    );
    assert_eq!(filled.unwrap(), limits::ASKS_REMEMBERED);
    let answer = async |who: &millpond_tests::wire::Who| {
        let mut client = Client::sign_in(&stage.server, who, "x").await;
        assert_eq!(client.subscribe(&format!("mp/demo/d/{}/answer/#", who.member)).await, "0x01");
        let topic = format!("mp/demo/c/{}/ask/complete", who.member);
        assert_eq!(client.publish(&topic, &[], br#"{"id": "new", "through": 1}"#).await, "0x00");
        let (first, body) = timeout(PATIENCE, client.packet()).await.unwrap();
        assert_eq!(first & 0xF0, 0x30);
        String::from_utf8_lossy(&body).into_owned()
    };
    assert!(answer(&who).await.contains(r#""code":"quota""#));
    assert!(!answer(&stage.field.bad[0]).await.contains("error"));
    assert_eq!(stage.metric("millpond_ask_errors_total", r#"code="quota""#).await, 1.0);
    others(&stage.field, "beside", Duration::ZERO, 5).await.unwrap();
}

#[tokio::test]
async fn what_does_not_fit_into_storage_is_refused_and_what_does_is_taken() {
    let stage = Stage::set(&[SMALL[0], ("MILLPOND__STORAGE__QUOTA_BYTES", "6000000")]).await;
    let who = &stage.field.bad[0];
    let api = Api::new(format!("http://{}", stage.field.http), who.token.clone());
    let mut told = Vec::new();
    for upload in ["fits", "does-not"] {
        let file = vec![0; 3_500_000];
        let ask = json!({"id": upload, "upload": upload, "size": file.len(), "sha256": Sha256::of(&file)});
        let (_, answer) = api.call(Method::POST, "/v1/pools/demo/ask/put", Some(&ask)).await;
        let to: PutTo = serde_json::from_value(answer["to"].clone()).unwrap();
        told.push(api.send(&to, file).await);
    }
    assert_eq!(told, [200, 507]);
    until("it is counted", async || {
        stage.metric("millpond_s3_requests_total", r#"status="507""#).await == 1.0
    })
    .await;
    others(&stage.field, "beside", Duration::ZERO, 5).await.unwrap();
}

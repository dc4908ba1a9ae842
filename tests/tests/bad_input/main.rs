//! Bad input gets its code, and leaves everything else alone: a bystander publishes before and after each case.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod asks;
mod bundles;

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Receipt};
use millpond_protocol::{Code, Role, limits};
use millpond_tests::{Beside, Credentials, Link, Mill, Plain, Server};
use rumqttc::QoS;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::{Value, json};

const GOOD_TIME: &str = "1767225600000";

/// A message that a publisher should not send, and what it is told.
struct Bad {
    topic: &'static str,
    payload: Vec<u8>,
    properties: Vec<(&'static str, String)>,
    code: Code,
    /// What the receipt calls the upload; none where nothing of the member's is named.
    receipt: Option<&'static str>,
}

fn bad(topic: &'static str, payload: impl Into<Vec<u8>>, code: Code, receipt: &'static str) -> Bad {
    let receipt = (!receipt.is_empty()).then_some(receipt);
    Bad { topic, payload: payload.into(), properties: Vec::new(), code, receipt }
}

impl Bad {
    fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.properties.push((key, value.into()));
        self
    }
}

/// A bundle with one entry whose data claims to have this many bytes.
fn bundle_claiming(length: u64) -> Vec<u8> {
    let mut bytes = b"MPB1\0\0\x01\x02u1\x00\x00\0\0\0\0\xfd".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes
}

fn publishes() -> Vec<Bad> {
    use Code::{Conflict, Malformed, Mismatch, NotFound, Rejected, TooLarge, Unauthorized};
    let up = "mp/demo/c/edge/up/u1";
    vec![
        // Topics.
        bad("demo/temperature", "x", Unauthorized, ""),
        bad("mp/demo/result", "x", Unauthorized, ""),
        bad("mp/demo/result/data", "x", Unauthorized, ""),
        bad("mp/demo/d/edge/receipt", "x", Unauthorized, ""),
        bad("mp/other/c/edge/up/u1", "x", Unauthorized, ""),
        bad("mp/demo/c/bystander/up/u1", "x", Unauthorized, ""),
        bad("mp/demo/c/nobody/up/u1", "x", Unauthorized, ""),
        bad("mp/demo/c/edge/result/1/1", "x", Unauthorized, ""),
        bad("mp/demo/c/edge/ask/claim", "{}", Unauthorized, ""),
        bad("mp/demo/c/edge/down/u1", "x", Malformed, ""),
        bad("mp/demo/c/edge/ask/nothing", "{}", Malformed, ""),
        bad("mp/demo/c/edge/up/-u1", "x", Malformed, "-u1"),
        bad("mp/demo/c/edge/up/u1/1/2", "x", Malformed, ""),
        // Times.
        bad("mp/demo/c/edge/up/u1/soon", "x", Malformed, "u1"),
        bad("mp/demo/c/edge/up/u1/-1", "x", Malformed, "u1"),
        bad("mp/demo/c/edge/up/u1/99999999999999999999", "x", Malformed, "u1"),
        bad(up, "x", Malformed, "u1").with("event-time", "1969-12-31T23:59:59Z"),
        bad(up, "x", Malformed, "u1").with("event-time", "yesterday"),
        // The year 9999.
        bad("mp/demo/c/edge/up/u1/253402300799000", "x", Malformed, "u1"),
        // Properties.
        bad(up, "x", Malformed, "u1").with("label", "night shift"),
        bad(up, "x", Malformed, "u1").with("name", "n".repeat(256)),
        bad(up, "x", Malformed, "u1").with("name", "a/b"),
        bad(up, "x", Malformed, "u1").with("name", ".."),
        bad(up, "x", Malformed, "u1").with("sha256", "abc"),
        bad(up, "x", Mismatch, "u1").with("sha256", "0".repeat(64)),
        bad(up, "x", Malformed, "u1").with("meta", "{not json"),
        bad(up, "x", Malformed, "u1").with("meta", r#""\ud800""#),
        bad(up, "x", Malformed, "u1").with("meta", "1e999"),
        bad(up, "x", Malformed, "u1").with("meta", format!("{}{}", "[".repeat(200), "]".repeat(200))),
        bad(up, "x", TooLarge, "u1").with("meta", format!("\"{}\"", "x".repeat(limits::META_MAX))),
        // Payloads.
        bad(up, vec![0; limits::PUBLISH_MAX + 1], TooLarge, "u1"),
        bad("mp/demo/c/edge/up/taken/1767225600000", "other bytes", Conflict, "taken"),
        bad("mp/demo/c/edge/up/empty/1767225600000", "", Rejected, "empty"),
        // The same again: the row answers.
        bad("mp/demo/c/edge/up/empty/1767225600000", "", Rejected, "empty"),
        // Bundles.
        bad("mp/demo/c/edge/bundle/b1", "", Malformed, "b1"),
        bad("mp/demo/c/edge/bundle/b1", "MPB0", Malformed, "b1"),
        bad("mp/demo/c/edge/bundle/b1", "MPB1", Malformed, "b1"),
        bad("mp/demo/c/edge/bundle/b1", bundle_claiming(1 << 40), Malformed, "b1"),
        bad("mp/demo/c/edge/bundle/b1", bundle_claiming(u64::MAX), Malformed, "b1"),
        bad("mp/demo/c/edge/bundle/b1", b"MPB1\0\0\xfd\0\0\0\0\0\x01\0\0".to_vec(), TooLarge, "b1"),
        // Deliveries.
        bad("mp/demo/c/edge/delivery/1", "{}", Malformed, ""),
        bad("mp/demo/c/edge/delivery/1", "applied", Malformed, ""),
        bad("mp/demo/c/edge/delivery/0", r#"{"state":"applied"}"#, Malformed, ""),
        bad("mp/demo/c/edge/delivery/99", r#"{"state":"applied"}"#, NotFound, ""),
    ]
}

struct Stage {
    server: Server,
    edge: Credentials,
    bystander: Link,
    good: u32,
}

impl Stage {
    async fn set() -> Self {
        let server = Server::start().await;
        server.pool("demo", json!({ "window_s": 3_600 })).await;
        server.pool("other", json!({})).await;
        server.member("other", "edge", Role::Publisher).await;
        let edge = server.member("demo", "edge", Role::Publisher).await;
        let bystander = Link::open(server.member("demo", "bystander", Role::Publisher).await).await.unwrap();
        Self { server, edge, bystander, good: 0 }
    }

    /// The bystander publishes one more file, and it is stored.
    async fn unharmed(&mut self, after: &str) {
        self.good += 1;
        let id = format!("good-{}", self.good);
        let topic = format!("mp/demo/c/bystander/up/{id}/{GOOD_TIME}");
        let sent = self.bystander.publish(&topic, "good", Beside::default()).await;
        sent.unwrap_or_else(|error| panic!("the bystander was harmed by {after}: {error}"));
        let receipt: Receipt = serde_json::from_slice(&self.bystander.next().await.unwrap().payload).unwrap();
        assert_eq!((receipt.upload, receipt.outcome), (id, Outcome::Stored), "after {after}");
    }
}

fn reason(code: Code) -> PubAckReason {
    match code.mqtt5() {
        0x83 => PubAckReason::ImplementationSpecificError,
        0x87 => PubAckReason::NotAuthorized,
        0x97 => PubAckReason::QuotaExceeded,
        0x99 => PubAckReason::PayloadFormatInvalid,
        other => panic!("{other:#x} is no reason of a PUBACK"),
    }
}

#[tokio::test]
async fn every_bad_publish_gets_its_reason_code_and_receipt() {
    let mut stage = Stage::set().await;
    let mut edge = Link::open(stage.edge.clone()).await.unwrap();
    let taken = format!("mp/demo/c/edge/up/taken/{GOOD_TIME}");
    edge.publish(&taken, "bytes", Beside::default()).await.unwrap();
    edge.next().await.unwrap();
    stage.unharmed("nothing").await;
    for case in publishes() {
        let about = format!("{} {:?} ({} bytes)", case.topic, case.properties, case.payload.len());
        let user_properties = case.properties.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        let beside = Beside { user_properties, content_type: None };
        let got = edge.offer(case.topic, case.payload, beside).await;
        let got = got.unwrap_or_else(|error| panic!("{about}: {error:#}"));
        assert_eq!(got, reason(case.code), "{about}");
        if let Some(named) = case.receipt {
            let receipt = loop {
                let message = edge.next().await.unwrap();
                let receipt: Receipt = serde_json::from_slice(&message.payload).unwrap();
                if receipt.upload == named {
                    break receipt;
                }
            };
            let expected = if case.code == Code::Rejected { Outcome::Rejected } else { Outcome::Refused };
            assert_eq!(receipt.outcome, expected, "{about}");
            assert_eq!(receipt.error.unwrap().code, case.code, "{about}");
        }
        stage.unharmed(&about).await;
    }
    let stored = stage.server.uploads("demo").await;
    let of_edge: Vec<_> = stored.iter().filter(|u| u["member"] == "edge").map(|u| &u["upload"]).collect();
    assert_eq!(of_edge, ["taken", "empty"], "only the good one and the rejected one have rows");
    assert_eq!(stored.len() as u32, stage.good + 2);
}

#[tokio::test]
async fn over_3_1_1_a_permanent_refusal_is_acknowledged_and_the_receipt_says_why() {
    let mut stage = Stage::set().await;
    let mut edge = Plain::connect(stage.edge.clone()).await.unwrap();
    assert!(edge.subscribe("mp/demo/d/edge/#").await.unwrap());
    for (topic, payload, code) in [
        ("mp/demo/c/edge/up/u1/soon", vec![b'x'], Code::Malformed),
        ("mp/demo/c/edge/up/u2/1767225600000", vec![0; 5 << 20], Code::TooLarge),
        ("mp/demo/c/edge/bundle/b1", vec![0; 6 << 20], Code::TooLarge),
    ] {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            edge.send(topic, payload.clone(), qos, false).await.unwrap();
            let receipt = edge.next_on("mp/demo/d/edge/receipt").await.unwrap();
            let receipt: Receipt = serde_json::from_slice(&receipt).unwrap();
            assert_eq!((receipt.outcome, receipt.error.unwrap().code), (Outcome::Refused, code), "{topic}");
        }
        stage.unharmed(topic).await;
    }
}

#[tokio::test]
async fn what_is_longer_than_the_gate_reads_past_ends_the_connection_alone() {
    let mut stage = Stage::set().await;
    let mut edge = Plain::connect(stage.edge.clone()).await.unwrap();
    let huge = vec![0; limits::READ_PAST_MAX + (1 << 20)];
    edge.publish("mp/demo/c/edge/up/huge", huge).await.unwrap_err();
    stage.unharmed("a message of 33 MiB").await;
    let mut edge = Plain::connect(stage.edge.clone()).await.unwrap();
    edge.publish(&format!("mp/demo/c/edge/up/after/{GOOD_TIME}"), "x").await.unwrap();
}

#[tokio::test]
async fn a_content_type_that_is_too_long_is_refused() {
    let mut stage = Stage::set().await;
    let edge = Link::open(stage.edge.clone()).await.unwrap();
    let content_type = Some("x".repeat(limits::CONTENT_TYPE_MAX + 1));
    let beside = Beside { content_type, ..Beside::default() };
    let got = edge.offer(&format!("mp/demo/c/edge/up/u1/{GOOD_TIME}"), "x", beside).await.unwrap();
    assert_eq!(got, reason(Code::TooLarge));
    stage.unharmed("a long content type").await;
}

#[tokio::test]
async fn results_of_stale_attempts_and_unknown_rounds_are_refused() {
    let mut stage = Stage::set().await;
    stage.unharmed("nothing").await;
    let mill =
        Mill::join(stage.server.member("demo", "mill", Role::Processor).await, stage.server.api()).await;
    let other = Link::open(stage.server.member("demo", "other-mill", Role::Processor).await).await.unwrap();
    let lease = mill.trigger(&json!({})).await.unwrap();
    for (link, topic, payload, code) in [
        (&mill.link, "mp/demo/c/mill/result/9/1", "x", Code::NotFound),
        (&mill.link, "mp/demo/c/mill/result/1/2", "x", Code::Stale),
        (&other, "mp/demo/c/other-mill/result/1/1", "x", Code::Stale),
        (&mill.link, "mp/demo/c/mill/result/1/1", "", Code::Malformed),
        (&mill.link, "mp/demo/c/mill/result/0/1", "x", Code::Malformed),
    ] {
        let got = link.offer(topic, payload, Beside::default()).await.unwrap();
        assert_eq!(got, reason(code), "{topic} {payload:?}");
    }
    mill.answer(&lease, "good").await.unwrap();
    // A repeat gets the committed answer; other bytes do not.
    mill.answer(&lease, "good").await.unwrap();
    let other = mill.link.offer("mp/demo/c/mill/result/1/1", "other", Beside::default()).await.unwrap();
    assert_eq!(other, reason(Code::Conflict));
    let beat = json!({ "id": "b1", "round": 1, "attempt": 1 }).to_string();
    let late: Value = serde_json::from_slice(&mill.link.ask_raw(Op::Beat, beat).await.unwrap()).unwrap();
    assert_eq!(late["error"]["code"], json!("stale"), "{late}");
    let results = stage.server.api().get("/v1/pools/demo/results").await;
    assert_eq!(results["results"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn filters_that_reach_beyond_what_a_member_may_read_are_refused() {
    let mut stage = Stage::set().await;
    let edge = Link::open(stage.edge.clone()).await.unwrap();
    for filter in [
        "#",
        "+/demo/#",
        "mp/demo/#",
        "mp/+/result",
        "mp/demo/d/bystander/#",
        "mp/demo/d/+/receipt",
        "mp/demo/c/edge/#",
        "mp/demo/offer",
        "mp/demo/event/#",
        "mp/other/result",
        "$SYS/#",
        "$share/g/mp/demo/result",
        "mp/demo/result/da#",
    ] {
        assert!(edge.subscribe(filter).await.is_err(), "{filter} was granted");
        stage.unharmed(filter).await;
    }
    edge.subscribe("mp/demo/result/#").await.unwrap();
}

#[tokio::test]
async fn a_connect_with_wrong_credentials_or_a_will_is_refused() {
    let mut stage = Stage::set().await;
    let right = stage.edge.clone();
    for (about, wrong) in [
        ("token", Credentials { token: "mpd_wrong".into(), ..right.clone() }),
        ("member", Credentials { member: "nobody".parse().unwrap(), ..right.clone() }),
        ("pool", Credentials { pool: "other".parse().unwrap(), ..right.clone() }),
        ("unknown pool", Credentials { pool: "none".parse().unwrap(), ..right.clone() }),
    ] {
        assert!(Plain::connect(wrong).await.is_err(), "a wrong {about} was accepted");
        stage.unharmed(about).await;
    }
    for topic in ["mp/demo/c/edge/up/will", "mp/demo/result", "demo/gone"] {
        assert!(Plain::connect_with_will(right.clone(), topic).await.is_err(), "a will to {topic}");
    }
    Plain::connect(right).await.unwrap();
}

#[tokio::test]
async fn retain_is_ignored_where_it_does_not_belong() {
    let mut stage = Stage::set().await;
    let mut edge = Plain::connect(stage.edge.clone()).await.unwrap();
    let topic = format!("mp/demo/c/edge/up/kept/{GOOD_TIME}");
    edge.send(&topic, "x", QoS::AtLeastOnce, true).await.unwrap();
    stage.unharmed("RETAIN").await;
    let uploads = stage.server.uploads("demo").await;
    assert!(uploads.iter().any(|upload| upload["upload"] == "kept" && upload["outcome"] == "stored"));
}

#[tokio::test]
async fn a_foreign_response_topic_is_refused_and_nothing_is_sent_there() {
    use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};

    let mut stage = Stage::set().await;
    let edge = &stage.edge;
    let mut options = MqttOptions::new("raw", edge.mqtt.ip().to_string(), edge.mqtt.port());
    options.set_credentials("demo/edge", &edge.token);
    let (client, mut events) = AsyncClient::new(options, 8);
    for foreign in ["mp/demo/d/bystander/receipt", "mp/demo/result", "elsewhere"] {
        let properties =
            PublishProperties { response_topic: Some(foreign.into()), ..PublishProperties::default() };
        client
            .publish_with_properties(
                "mp/demo/c/edge/ask/time",
                rumqttc::v5::mqttbytes::QoS::AtLeastOnce,
                false,
                "{}",
                properties,
            )
            .await
            .unwrap();
        let got = loop {
            if let Event::Incoming(Packet::PubAck(ack)) = events.poll().await.unwrap() {
                break ack.reason;
            }
        };
        assert_eq!(got, PubAckReason::NotAuthorized, "{foreign}");
        // The bystander's next message is its own receipt.
        stage.unharmed(foreign).await;
    }
}

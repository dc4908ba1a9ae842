//! The main job: members publish, a batch forms, the external server triggers and leases it, fetches the files by URL,
//! returns one file, and every member has it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Pointer, Receipt};
use millpond_protocol::{Role, Sha256, Timestamp, limits};
use millpond_tests::{Beside, Credentials, Link, Mill, Plain, Server, recent_hour};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::{Value, json};

struct Cast {
    server: Server,
    one: Credentials,
    two: Credentials,
    listener: Credentials,
    mill: Credentials,
}

async fn cast() -> Cast {
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "window", "window_s": 3_600 })).await;
    Cast {
        one: server.member("demo", "edge-1", Role::Publisher).await,
        two: server.member("demo", "edge-2", Role::Publisher).await,
        listener: server.member("demo", "listener", Role::Listener).await,
        mill: server.member("demo", "mill", Role::Processor).await,
        server,
    }
}

/// Asks over 3.1.1: ids in the payload, the answer on the op's topic.
async fn ask(plain: &mut Plain, op: Op, ask: &Value) -> Value {
    let who = plain.who.clone();
    let topic = format!("mp/{}/c/{}/ask/{op}", who.pool, who.member);
    plain.publish(&topic, ask.to_string()).await.unwrap();
    let answer = plain.next_on(&format!("mp/{}/d/{}/answer/{op}", who.pool, who.member)).await.unwrap();
    serde_json::from_slice(&answer).unwrap()
}

#[tokio::test]
async fn the_main_job_works_over_mqtt_3_1_1_alone() {
    let (window, cast) = (recent_hour(), cast().await);
    let mut listener = Plain::connect(cast.listener).await.unwrap();
    assert!(listener.subscribe("mp/demo/result/data").await.unwrap());

    for (who, text) in [(cast.one, "one"), (cast.two, "two")] {
        let member = who.member.clone();
        let mut publisher = Plain::connect(who).await.unwrap();
        assert!(publisher.subscribe(&format!("mp/demo/d/{member}/receipt")).await.unwrap());
        publisher.publish(&format!("mp/demo/c/{member}/up/u1/{window}"), text).await.unwrap();
        let receipt = publisher.next_on(&format!("mp/demo/d/{member}/receipt")).await.unwrap();
        let receipt: Receipt = serde_json::from_slice(&receipt).unwrap();
        assert_eq!((receipt.outcome, receipt.batch, receipt.late), (Outcome::Stored, Some(1), false));
        assert_eq!(receipt.event_time.unwrap().as_millis(), window);
        assert_eq!(receipt.sha256, Some(Sha256::of(text.as_bytes())));
        publisher.close().await;
    }

    let mut mill = Plain::connect(cast.mill.clone()).await.unwrap();
    assert!(mill.subscribe("mp/demo/d/mill/#").await.unwrap());
    let trigger = json!({ "id": "t1", "take": true, "wait_s": 30, "params": { "rate": 3 }, "ref": "job-7" });
    let triggered = ask(&mut mill, Op::Trigger, &trigger).await;
    assert_eq!(
        (&triggered["id"], &triggered["round"], &triggered["batch"]),
        (&json!("t1"), &json!(1), &json!(1))
    );
    let lease = &triggered["lease"];
    assert_eq!((&lease["ready"], &lease["attempt"]), (&json!(true), &json!(1)));
    assert_eq!((&lease["params"], &lease["ref"]), (&json!({ "rate": 3 }), &json!("job-7")));

    // The other connection only reads what the lease names.
    let reader =
        Mill::join(Credentials { client_id: "reader".into(), ..cast.mill.clone() }, cast.server.api()).await;
    let leased = reader.fetch(serde_json::from_value(lease.clone()).unwrap()).await.unwrap();
    assert_eq!(leased.header["count"], json!(2));
    assert_eq!(leased.header["cause"], json!("trigger"));
    assert_eq!(leased.header["prev"], Value::Null);
    let files: Vec<_> = leased.files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    assert_eq!(files, [("edge-1/u1", &b"one"[..]), ("edge-2/u1", b"two")]);

    mill.publish("mp/demo/c/mill/result/1/1", "onetwo").await.unwrap();
    assert_eq!(listener.next_on("mp/demo/result/data").await.unwrap(), "onetwo");
}

#[tokio::test]
async fn the_main_job_works_over_mqtt_5_with_files_and_a_result_above_128_kib() {
    let cast = cast().await;
    let mut listener = Link::open(cast.listener).await.unwrap();
    listener.subscribe("mp/demo/result/#").await.unwrap();

    let window = recent_hour();
    // The end of the window is exclusive.
    let last = Timestamp::from_millis(window + 3_599_999).unwrap();
    let large = vec![b'x'; limits::SMALL_MAX + 1];
    let mut publisher = Link::open(cast.one).await.unwrap();
    let beside = Beside {
        user_properties: vec![
            ("event-time".into(), last.to_string()),
            ("name".into(), "Messwerte ü.bin".into()),
            ("sha256".into(), Sha256::of(&large).to_string()),
            ("meta".into(), r#"{"sensor":7}"#.into()),
        ],
        content_type: Some("application/x-test".into()),
    };
    publisher.publish("mp/demo/c/edge-1/up/large", large.clone(), beside).await.unwrap();
    let receipt: Receipt = serde_json::from_slice(&publisher.next().await.unwrap().payload).unwrap();
    assert_eq!((receipt.outcome, receipt.batch), (Outcome::Stored, Some(1)));

    let mill = Mill::join(cast.mill, cast.server.api()).await;
    let lease = mill.trigger(&json!({ "window": window })).await.unwrap();
    let leased = mill.fetch(lease).await.unwrap();
    assert_eq!(leased.files["edge-1/large"], large);
    let line = &leased.lines[0];
    assert_eq!((&line["name"], &line["size"]), (&json!("Messwerte ü.bin"), &json!(large.len())));
    assert_eq!(line["event_time"], json!(last));
    assert_eq!((&line["meta"]["sensor"], &line["content_type"]), (&json!(7), &json!("application/x-test")));

    let result = vec![b'r'; limits::SMALL_MAX + 7];
    mill.answer(&leased.lease, result.clone()).await.unwrap();
    let pointer: Pointer = loop {
        let message = listener.next().await.unwrap();
        if message.topic == "mp/demo/result" {
            break serde_json::from_slice(&message.payload).unwrap();
        }
    };
    assert_eq!((pointer.version, pointer.round, pointer.batch), (1, 1, 1));
    assert_eq!((pointer.size, pointer.sha256), (result.len() as u64, Sha256::of(&result)));
    assert_eq!(cast.server.api().fetch(&pointer.url).await, result);

    let say = async |delivery: Value| {
        listener
            .offer("mp/demo/c/listener/delivery/1", delivery.to_string(), Beside::default())
            .await
            .unwrap()
    };
    let of_other_bytes = say(json!({ "state": "applied", "sha256": Sha256::of(b"other") })).await;
    assert_eq!(of_other_bytes, PubAckReason::PayloadFormatInvalid);
    say(json!({ "state": "applied", "sha256": pointer.sha256 })).await;
    // One that comes again, late.
    say(json!({ "state": "fetched" })).await;
    let results = cast.server.api().get("/v1/pools/demo/results").await;
    assert_eq!(results["results"][0]["applied"], json!(1));
    assert_metrics(&cast.server, large.len()).await;
}

/// What the one upload, round and result of a test left in metrics.
async fn assert_metrics(server: &Server, bytes: usize) {
    let text = server.api().get("/metrics").await;
    let text = text.as_str().unwrap();
    let value = |line: &str| -> f64 {
        let line = text
            .lines()
            .find_map(|found| found.strip_prefix(line))
            .unwrap_or_else(|| panic!("{line}: {text}"));
        line.trim().parse().unwrap()
    };
    assert_eq!(value("millpond_uploads_total{outcome=\"stored\"} "), 1.0);
    assert_eq!(value("millpond_upload_bytes_total "), bytes as f64);
    assert_eq!(value("millpond_results_total "), 1.0);
    assert_eq!(value("millpond_batches{state=\"sealed\"} "), 1.0);
    assert_eq!(value("millpond_rounds{state=\"committed\"} "), 1.0);
    assert_eq!(value("millpond_deliveries_total{state=\"applied\"} "), 1.0);
    for at_least_one in
        ["millpond_gate_connections ", "millpond_commit_jobs_count ", "millpond_commit_seconds_count "]
    {
        assert!(value(at_least_one) >= 1.0, "{at_least_one}");
    }
    for family in ["millpond_gate_ack_seconds_count", "millpond_storage_calls_total", "millpond_ledger_queue"]
    {
        assert!(text.contains(family), "{family}: {text}");
    }
}

#[tokio::test]
async fn a_listener_that_comes_later_has_the_newest_result_at_once() {
    let cast = cast().await;
    let publisher = Link::open(cast.one).await.unwrap();
    let mill = Mill::join(cast.mill, cast.server.api()).await;
    for round in 1..=2 {
        let topic = format!("mp/demo/c/edge-1/up/u{round}/{}", recent_hour() + round * 3_600_000);
        publisher.publish(&topic, "x", Beside::default()).await.unwrap();
        let lease = mill.trigger(&json!({})).await.unwrap();
        mill.answer(&lease, format!("result {round}")).await.unwrap();
    }
    let mut plain = Plain::connect(cast.listener.clone()).await.unwrap();
    assert!(plain.subscribe("mp/demo/result/data").await.unwrap());
    assert_eq!(plain.next_on("mp/demo/result/data").await.unwrap(), "result 2");

    let mut link = Link::open(Credentials { client_id: "five".into(), ..cast.listener }).await.unwrap();
    link.subscribe("mp/demo/result").await.unwrap();
    let pointer: Pointer = serde_json::from_slice(&link.next().await.unwrap().payload).unwrap();
    assert_eq!(pointer.version, 2);
    assert_eq!(cast.server.api().fetch(&pointer.url).await, "result 2");
    let latest: Value = link.ask(Op::Latest, &json!({})).await.unwrap();
    let latest: Pointer = serde_json::from_value(latest["result"].clone()).unwrap();
    assert_eq!((latest.version, latest.sha256), (2, pointer.sha256));
}

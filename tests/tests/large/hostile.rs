//! What must not get through, and what must survive.

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, answer};
use millpond_protocol::{Code, Role, Sha256, limits};
use millpond_tests::{Beside, Link, Relay, Shape, until};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Client, Place, bytes, refused};

pub async fn only_the_declared_bytes_get_through_a_grants_url(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, 200_000);
    let to = edge.put("a", &file).await.unwrap().to.unwrap();
    refused(edge.commit(&["a"]).await, Code::NotFound);
    for other in [bytes(2, 200_000), bytes(1, 199_999), bytes(1, 200_001), Vec::new()] {
        let mut lying = to.clone();
        lying.headers.remove("content-length");
        assert!(edge.api.send(&lying, other.clone()).await >= 400, "{} other bytes", other.len());
        // With its own hash the signature does not fit.
        let hash = data_encoding(&Sha256::of(&other));
        lying.headers.insert("x-amz-checksum-sha256".into(), hash);
        assert!(edge.api.send(&lying, other).await >= 400, "other bytes with their own hash");
    }
    refused(edge.commit(&["a"]).await, Code::NotFound);
    assert_eq!(edge.api.send(&to, file).await, 200);
    edge.commit(&["a"]).await.unwrap();
}

/// Base64, as the header has it.
fn data_encoding(sha256: &Sha256) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in sha256.0.chunks(3) {
        let n = chunk.iter().fold(0_u32, |n, byte| n << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digits = (0..4).map(|i| ALPHABET[(n >> (18 - 6 * i)) as usize & 63] as char);
        text.extend(digits.take(chunk.len() + 1));
    }
    text + "="
}

pub async fn what_the_pool_does_not_take_is_refused_before_anything_is_stored(on: &Place) {
    let server = on.server(&[]).await;
    server.pool("demo", json!({ "window_s": 3_600, "max_size": 1_000_000 })).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let refusal = refused(edge.put("a", &bytes(1, 1_000_001)).await, Code::Rejected);
    assert!(refusal.message.contains("max_size"), "{refusal}");
    refused(edge.put("a", &[]).await, Code::Rejected);
    let ask = |more: Value| {
        let mut ask = json!({ "upload": "a", "size": 1, "sha256": Sha256::of(b"x") });
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        edge.ask::<answer::Put>(Op::Put, ask)
    };
    for (more, code) in [
        (json!({ "size": limits::UPLOAD_MAX + 1 }), Code::TooLarge),
        (json!({ "size": u64::MAX }), Code::TooLarge),
        (json!({ "size": -1 }), Code::Malformed),
        (json!({ "sha256": "xyz" }), Code::Malformed),
        (json!({ "upload": "../a" }), Code::Malformed),
        (json!({ "name": "a/b" }), Code::Malformed),
        (json!({ "part_size": 1 }), Code::Malformed),
        (json!({ "round": 1, "attempt": 1 }), Code::Malformed),
        (json!({ "upload": null, "round": 1, "attempt": 1 }), Code::Malformed),
        (json!({ "meta": "m".repeat(5_000) }), Code::TooLarge),
        (json!({ "content_type": "t".repeat(300) }), Code::TooLarge),
        (json!({ "event_time": "yesterday" }), Code::Malformed),
    ] {
        refused(ask(more.clone()).await, code);
    }
    for (ask, code) in [
        (json!({}), Code::Malformed),
        (json!({ "upload": "a", "uploads": ["b"] }), Code::Malformed),
        (json!({ "uploads": (0..1_000).map(|i| format!("u{i}")).collect::<Vec<_>>() }), Code::TooLarge),
    ] {
        refused(edge.ask::<Value>(Op::Commit, ask).await, code);
    }
    let (_, objects) = server.api().call(Method::GET, "/metrics", None).await;
    assert!(objects.as_str().unwrap().contains("millpond_objects{state=\"granted\"} 0"));
}

pub async fn a_grant_is_its_owners_alone(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let other = Client::join(&server, "other", Role::Publisher).await;
    let ear = Client::join(&server, "ear", Role::Listener).await;
    let boss = Client::join(&server, "boss", Role::Operator).await;
    let file = bytes(1, 200_000);
    edge.send("a", &file).await;
    refused(other.commit(&["a"]).await, Code::NotFound);
    refused(other.status("a").await, Code::NotFound);
    refused(other.ask::<Value>(Op::Abort, json!({ "upload": "a" })).await, Code::NotFound);
    refused(ear.put("b", &file).await, Code::Unauthorized);
    refused(ear.commit(&["a"]).await, Code::Unauthorized);
    refused(boss.ask::<Value>(Op::Abort, json!({ "upload": "a" })).await, Code::Unauthorized);
    let status = json!({ "upload": "a", "member": "edge" });
    let seen: answer::UploadInfo = boss.ask(Op::Status, status).await.unwrap();
    assert_eq!((seen.outcome, seen.size), (Outcome::Granted, 200_000));
    // The same id of another member is another upload.
    other.send("a", &bytes(2, 200_000)).await;
    other.commit(&["a"]).await.unwrap();
    edge.commit(&["a"]).await.unwrap();
    assert_eq!(server.uploads("demo").await.len(), 2);
}

pub async fn a_publish_under_the_id_of_an_open_grant_takes_its_place_or_is_a_conflict(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    for (upload, len) in [("small", 1_000), ("large", 200_000)] {
        let (file, topic) = (bytes(1, len), format!("mp/demo/c/edge/up/{upload}"));
        edge.put(upload, &file).await.unwrap();
        let other = edge.link.offer(&topic, bytes(2, len), Beside::default()).await.unwrap();
        assert_ne!(other as u8, 0, "other bytes under the id of a grant");
        edge.link.publish(&topic, file.clone(), Beside::default()).await.unwrap();
        assert_eq!(edge.commit(&[upload]).await.unwrap()[0].outcome, Outcome::Stored);
    }
    assert_eq!(server.uploads("demo").await.len(), 2);
    let (_, metrics) = server.api().call(Method::GET, "/metrics", None).await;
    assert!(metrics.as_str().unwrap().contains("millpond_grants{state=\"open\"} 0"));
}

pub async fn two_connections_that_race_for_one_id_make_one_upload(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let second = edge.second(&server).await;
    let file = bytes(1, 200_000);
    let (one, two) = tokio::join!(edge.put("a", &file), second.put("a", &file));
    let (one, two) = (one.unwrap().to.unwrap(), two.unwrap().to.unwrap());
    let key = |url: &str| url.split('?').next().unwrap().to_owned();
    assert_eq!(key(&one.url), key(&two.url), "two objects for one id");
    tokio::join!(edge.api.send(&one, file.clone()), second.api.send(&two, file.clone()));
    let (one, two) = tokio::join!(edge.commit(&["a"]), second.commit(&["a"]));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(server.uploads("demo").await.len(), 1);
}

pub async fn what_was_put_survives_a_kill_before_its_commit(on: &Place) {
    let mut server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let who = edge.link.who.clone();
    let file = bytes(1, 200_000);
    edge.send("a", &file).await;
    edge.put("b", &file).await.unwrap();
    server.kill();
    server.launch().await;
    let edge = Client { link: Link::open(server.here(&who)).await.unwrap(), api: server.api() };
    assert_eq!(edge.commit(&["a"]).await.unwrap()[0].outcome, Outcome::Stored);
    edge.send("b", &file).await;
    edge.commit(&["b"]).await.unwrap();
    server.kill();
    server.launch().await;
    let stored = server.uploads("demo").await;
    assert_eq!(stored.len(), 2, "{stored:?}");
}

pub async fn a_revoked_members_grants_end_with_it(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let to = edge.put("a", &bytes(1, 200_000)).await.unwrap().to.unwrap();
    server.api().delete("/v1/pools/demo/members/edge").await;
    edge.api.send(&to, bytes(1, 200_000)).await;
    let again = Client::join(&server, "edge", Role::Publisher).await;
    refused(again.status("a").await, Code::NotFound);
    refused(again.commit(&["a"]).await, Code::NotFound);
    let (_, metrics) = server.api().call(Method::GET, "/metrics", None).await;
    assert!(metrics.as_str().unwrap().contains("millpond_grants{state=\"open\"} 0"));
}

pub async fn while_storage_is_away_a_commit_is_told_to_come_again_and_a_verification_waits_for_it(
    on: &Place,
) {
    let mut storage = on.apart().await;
    // The server reads what clients sent over a line that would take minutes for it.
    let line = Relay::to(storage.address()).await;
    line.shape(Shape { rate: Some(128 << 10), ..Shape::default() });
    let endpoint = format!("http://{}", line.address());
    let mut settings = storage.settings();
    settings.push(("MILLPOND__STORAGE__ENDPOINT", &endpoint));
    settings.push(("MILLPOND__STORAGE__PUBLIC_URL", storage.endpoint()));
    settings.push(("MILLPOND__STORAGE__CALL_TIMEOUT_S", "2"));
    let server = on.server(&settings).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    edge.send("a", &bytes(1, 200_000)).await;
    let film = bytes(2, 30 << 20);
    edge.send_parts("film", &film, &[1, 2, 3, 4, 5, 6]).await;
    let begun: answer::Commit = edge.ask(Op::Commit, json!({ "upload": "film" })).await.unwrap();
    assert_eq!(begun.uploads[0].outcome, Outcome::Pending);
    until("it is read", async || edge.status("film").await.unwrap().verified > Some(0)).await;
    storage.leave();
    line.cut();
    line.mend(storage.address());
    refused(edge.commit(&["a"]).await, Code::Unavailable);
    // So many calls without an answer one after the other end a reading.
    until("the reading fails", async || {
        let (_, metrics) = server.api().call(Method::GET, "/metrics", None).await;
        metrics.as_str().unwrap().lines().any(|line| {
            let calls =
                line.strip_prefix(r#"millpond_storage_calls_total{op="get_stream",outcome="unavailable"} "#);
            calls.is_some_and(|calls| calls.parse::<u32>().unwrap() >= 3)
        })
    })
    .await;
    line.shape(Shape::default());
    storage.come_back().await;
    edge.commit(&["a"]).await.unwrap();
    assert_eq!(edge.settled("film").await, Outcome::Stored);
}

//! Storage that is away refuses what needs it, for the time being, and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use millpond_protocol::{Role, limits};
use millpond_tests::{Beside, Credentials, Liar, Lie, Link, Mill, Server, recent_hour, until};
use reqwest::Method;
use serde_json::json;

/// A server whose only job is its embedded S3, on a port that it keeps over a restart.
async fn s3() -> Server {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    Server::with(&[
        ("MILLPOND__STORAGE__LISTEN", &format!("127.0.0.1:{port}")),
        ("MILLPOND__STORAGE__ACCESS_KEY", "key"),
        ("MILLPOND__STORAGE__SECRET_KEY", "secret-of-the-test"),
    ])
    .await
}

/// A server whose storage that is.
async fn over(s3: &Server) -> Server {
    let endpoint = format!("http://{}", s3.ports().storage.unwrap());
    Server::with(&[
        ("MILLPOND__STORAGE__MODE", "external"),
        ("MILLPOND__STORAGE__ENDPOINT", &endpoint),
        ("MILLPOND__STORAGE__ACCESS_KEY", "key"),
        ("MILLPOND__STORAGE__SECRET_KEY", "secret-of-the-test"),
        ("MILLPOND__STORAGE__CALL_TIMEOUT_S", "2"),
    ])
    .await
}

#[tokio::test]
async fn small_uploads_go_on_while_storage_is_away_and_large_ones_come_through_when_it_is_back() {
    let mut s3 = s3().await;
    let server = over(&s3).await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let edge = server.member("demo", "edge", Role::Publisher).await;
    let mill = server.member("demo", "mill", Role::Processor).await;
    let topic = |upload: &str| format!("mp/demo/c/edge/up/{upload}/{}", recent_hour());
    let large = vec![b'x'; limits::SMALL_MAX + 1];

    s3.kill();
    let link = Link::connect(edge.clone()).await.unwrap();
    link.publish(&topic("small"), "small", Beside::default()).await.unwrap();
    // Never acknowledged: the gate closes, and the client sends again.
    let refused = link.publish(&topic("large"), large.clone(), Beside::default()).await;
    assert!(refused.is_err(), "an upload was acknowledged that is nowhere");
    let link = Link::connect(Credentials { client_id: "again".into(), ..edge }).await.unwrap();
    link.publish(&topic("small-2"), "small", Beside::default()).await.unwrap();

    s3.launch().await;
    link.publish(&topic("large"), large.clone(), Beside::default()).await.unwrap();
    let mill = Mill::join(mill, server.api()).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    let leased = mill.fetch(lease).await.unwrap();
    assert_eq!(leased.files.keys().collect::<Vec<_>>(), ["edge/large", "edge/small", "edge/small-2"]);
    assert_eq!(leased.files["edge/large"], large);
}

#[tokio::test]
async fn a_round_that_was_sealed_while_storage_is_away_becomes_ready_when_it_is_back() {
    let mut s3 = s3().await;
    let endpoint = format!("http://{}", s3.ports().storage.unwrap());
    let server = Server::with(&[
        ("MILLPOND__STORAGE__MODE", "external"),
        ("MILLPOND__STORAGE__ENDPOINT", &endpoint),
        ("MILLPOND__STORAGE__ACCESS_KEY", "key"),
        ("MILLPOND__STORAGE__SECRET_KEY", "secret-of-the-test"),
        ("MILLPOND__STORAGE__CALL_TIMEOUT_S", "1"),
    ])
    .await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let topic = format!("mp/demo/c/edge/up/u1/{}", recent_hour());
    edge.publish(&topic, "file", Beside::default()).await.unwrap();
    s3.kill();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let lease = mill.trigger(&json!({ "wait_s": 0 })).await.unwrap();
    assert!(!lease.ready, "ready without storage");
    s3.launch().await;
    let ask = json!({ "id": "b1", "round": 1, "attempt": 1, "wait_s": 60 });
    let lease = mill.link.ask(millpond_protocol::access::Op::Beat, &ask).await.unwrap();
    let leased = mill.fetch(lease).await.unwrap();
    assert_eq!(leased.files["edge/u1"], "file");
}

#[tokio::test]
async fn a_storage_that_changes_its_key_or_its_bucket_keeps_the_server_from_being_ready_and_is_named() {
    let mut s3 = s3().await;
    let server = over(&s3).await;
    let api = server.api();
    for (key, other, right, said) in [
        (
            "MILLPOND__STORAGE__SECRET_KEY",
            "another-secret-of-the-test",
            "secret-of-the-test",
            "SignatureDoesNotMatch",
        ),
        ("MILLPOND__STORAGE__BUCKET", "another-bucket", "millpond", "NoSuchBucket"),
    ] {
        s3.kill();
        s3.set_environment([(key, other.to_owned())]);
        s3.launch().await;
        until("what is wrong with storage is said", async || {
            let (status, found) = api.call(Method::GET, "/readyz", None).await;
            // It may still be away, or good, by what was found some seconds ago.
            let problems = found["problems"].to_string();
            problems.contains(said) && status == 503 && found["ready"] == false
        })
        .await;
        s3.kill();
        s3.set_environment([(key, right.to_owned())]);
        s3.launch().await;
        until("it is ready again", async || server.is_ready().await).await;
    }
}

#[tokio::test]
async fn a_storage_whose_clock_is_wrong_keeps_the_server_from_being_ready_and_both_clocks_are_named() {
    let s3 = s3().await;
    let line = Liar::before(s3.ports().storage.unwrap()).await;
    let server = Server::with(&[
        ("MILLPOND__STORAGE__MODE", "external"),
        ("MILLPOND__STORAGE__ENDPOINT", &line.endpoint()),
        ("MILLPOND__STORAGE__ACCESS_KEY", "key"),
        ("MILLPOND__STORAGE__SECRET_KEY", "secret-of-the-test"),
    ])
    .await;
    let api = server.api();
    line.tell(Lie::LongAgo);
    until("the clocks are said to differ", async || {
        let (status, found) = api.call(Method::GET, "/readyz", None).await;
        let said = found["problems"].to_string();
        let clocks = "the clocks of this machine and of storage differ";
        status == 503 && said.contains(clocks) && said.contains("s behind the one of this machine")
    })
    .await;
    line.tell(Lie::None);
    until("it is ready again", async || server.is_ready().await).await;
}

#[tokio::test]
async fn a_public_url_that_does_not_answer_the_server_itself_is_a_warning() {
    let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", "http://127.0.0.1:9")]).await;
    let ready: serde_json::Value =
        serde_json::from_slice(&server.api().fetch(&format!("http://{}/readyz", server.ports().http)).await)
            .unwrap();
    assert_eq!((&ready["ready"], &ready["problems"]), (&json!(true), &json!([])));
    assert!(ready["warnings"][0].as_str().unwrap().contains("http://127.0.0.1:9 does not answer"), "{ready}");
}

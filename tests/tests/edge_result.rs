//! A processor's finished result against servers with other limits and networks that fail: it is returned all the same.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millpond_edge::process::{self, Options, Report};
use millpond_edge::session::{self, Config, Token};
use millpond_edge::transfer::{self, Transfer};
use millpond_protocol::Role;
use millpond_tests::{Edge, Link, Relay, Server, until};
use serde_json::json;
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(120);

async fn round(server: &Server) {
    server.pool("demo", json!({ "grouping": "count", "count": 1 })).await;
    let link = Link::open(server.member("demo", "edge-1", Role::Publisher).await).await.unwrap();
    link.publish("mp/demo/c/edge-1/up/u1", vec![1], Default::default()).await.unwrap();
    link.close().await;
}

async fn committed(server: &Server) -> bool {
    server.api().get("/v1/pools/demo/rounds/1").await.to_string().contains("committed")
}

#[tokio::test]
async fn the_first_round_already_knows_what_the_server_takes_over_mqtt() {
    let server = Server::with(&[("MILLPOND__MQTT__PUBLISH_MAX", "100000")]).await;
    round(&server).await;
    let edge = Edge::new(&server, server.member("demo", "mill", Role::Processor).await).await;
    let exec = r#"head -c 300000 /dev/zero > "$MILLPOND_OUTPUT""#;
    let mut process = edge.start("process", &["process", "--once", "--exec", exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}{}", process.stdout(), process.stderr());
    assert!(committed(&server).await);
}

#[tokio::test]
async fn a_result_that_storage_does_not_take_now_is_offered_until_it_does() {
    let storage = Relay::to("127.0.0.1:1".parse().unwrap()).await;
    let public = format!("http://{}", storage.address());
    let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
    storage.mend(server.ports().storage.unwrap());
    round(&server).await;
    // What answers in storage's place closes every connection, and counts.
    let broken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let broken_at = broken.local_addr().unwrap();
    let refused = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&refused);
    let refusing = tokio::spawn(async move {
        while broken.accept().await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mill = server.member("demo", "mill", Role::Processor).await;
    let at = server.mqtt();
    let config = Config::new(at.ip().to_string(), at.port(), mill.pool, mill.member, Token::new(&mill.token));
    let directory = tempfile::tempdir().unwrap();
    let (made, go) = (directory.path().join("made"), directory.path().join("go"));
    let exec = format!(
        "touch '{}'; while ! test -e '{}'; do sleep 0.02; done; head -c 3000000 /dev/zero > \"$MILLPOND_OUTPUT\"",
        made.display(),
        go.display()
    );
    let options = Options { once: true, ..Options::new(exec, directory.path().join("work")) };
    let working = tokio::spawn(async move {
        let (session, mut inbox) = session::open(config.topics(process::TOPICS));
        // One attempt is what a transfer makes; another one is for the processor to make.
        let transfer = transfer::Options { attempts: 1, ..transfer::Options::default() };
        let (transfer, mut quiet) = (Arc::new(Transfer::new(transfer)), |_: Report<'_>| {});
        let never = Box::pin(std::future::pending());
        process::process(&session, &mut inbox, &transfer, &options, &mut quiet, never).await
    });
    until("the command runs", async || made.exists()).await;
    storage.cut();
    storage.mend(broken_at);
    std::fs::write(&go, "").unwrap();
    until("refused attempts", async || {
        assert!(!working.is_finished(), "it gave up");
        refused.load(Ordering::Relaxed) >= 2
    })
    .await;
    storage.mend(server.ports().storage.unwrap());
    working.await.unwrap().unwrap();
    refusing.abort();
    assert!(committed(&server).await);
}

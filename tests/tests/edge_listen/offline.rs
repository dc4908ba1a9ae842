//! A server that is not there, or has nothing: a listener says so, and one that is to end does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use millpond_protocol::Role;
use millpond_tests::{Edge, Process, Server, until};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::cast::{Cast, PATIENCE};

/// How often it said that there is no connection.
fn complaints(listener: &Process) -> usize {
    listener.stderr().lines().filter(|line| line.contains("no connection to the server")).count()
}

#[tokio::test]
async fn a_listener_without_a_server_goes_on_and_says_why_when_the_reason_is_another_one() {
    let cast = Cast::new().await;
    cast.result(1, b"one").await;
    let closes = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, closed) = (closes.local_addr().unwrap().port(), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&closed);
    let closing = tokio::spawn(async move {
        while let Ok((mut line, _)) = closes.accept().await {
            // With its CONNECT unread it would be told something else now and then.
            let _ = line.read(&mut [0; 1_024]).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut listener = cast.edge.start("listen", &["--port", &port.to_string(), "listen"]);
    until("some attempts", async || closed.load(Ordering::Relaxed) >= 5).await;
    assert_eq!(complaints(&listener), 1, "{}", listener.stderr());
    closing.abort();
    until("another reason", async || listener.stderr().contains("refused")).await;
    assert!(complaints(&listener) >= 2 && listener.status().is_none(), "{}", listener.stderr());
    listener.signal("TERM");
    assert!(listener.wait(PATIENCE).await.success());
}

#[tokio::test]
async fn a_listener_that_is_to_end_has_no_more_patience_with_a_network_than_it_was_told() {
    let cast = Cast::new().await;
    cast.result(1, b"one").await;
    let once = ["--port", "1", "--patience", "5", "listen", "--once"];
    let mut listener = cast.edge.start("once", &once);
    assert_eq!(listener.wait(PATIENCE).await.code(), Some(75), "{}", listener.stderr());
    assert!(listener.stderr().contains("refused"), "{}", listener.stderr());
    cast.edge.relay.vanish();
    let mut listener = cast.edge.start("vanished", &["--patience", "1", "listen", "--once"]);
    assert_eq!(listener.wait(PATIENCE).await.code(), Some(75), "{}", listener.stderr());
    cast.edge.relay.come_back();
    assert_eq!(cast.edge.done(&["listen", "--once"]).await, "version 1 shown\nversion 1 applied\n");
}

#[tokio::test]
async fn a_listener_of_a_server_that_it_does_not_trust_says_so() {
    let server = Server::secure(&[]).await;
    server.pool("demo", serde_json::json!({})).await;
    let edge = Edge::new(&server, server.member("demo", "listener", Role::Listener).await).await;
    let url = format!("mqtts://{}", server.mqtts());
    let mut listener = edge.start("listen", &["--url", &url, "listen"]);
    until("the reason", async || listener.stderr().contains("UnknownIssuer")).await;
    assert!(listener.status().is_none(), "it goes on");
    let once = ["--url", &url, "--patience", "5", "listen", "--dir", "once", "--once"];
    let mut once = edge.start("once", &once);
    assert_eq!(once.wait(PATIENCE).await.code(), Some(75), "{}", once.stderr());
    assert!(once.stderr().contains("UnknownIssuer"), "{}", once.stderr());
}

#[tokio::test]
async fn a_listener_that_is_to_end_does_not_wait_for_the_first_result_of_a_pool() {
    let cast = Cast::new().await;
    let once = ["--patience", "5", "listen", "--once"];
    let mut listener = cast.edge.start("once", &once);
    assert_eq!(listener.wait(PATIENCE).await.code(), Some(75), "{}", listener.stderr());
    assert!(listener.stderr().contains("the server names no result"), "{}", listener.stderr());
}

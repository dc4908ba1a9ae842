//! SIGTERM drains: what was begun is finished, clients are told, and the exit code is 0.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millpond_protocol::Role;
use millpond_tests::{Beside, Link, Plain, Server, until};
use serde_json::json;

#[tokio::test]
async fn sigterm_ends_the_server_with_0_while_clients_are_connected() {
    let mut server = Server::start().await;
    server.pool("demo", json!({})).await;
    let mut idle = Plain::connect(server.member("demo", "idle", Role::Listener).await).await.unwrap();
    let busy = server.member("demo", "busy", Role::Publisher).await;
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&acknowledged);
    let pouring = tokio::spawn(async move {
        let link = Link::connect(busy).await.unwrap();
        let mut n = 0;
        loop {
            let topic = format!("mp/demo/c/busy/up/u{n}");
            if link.publish(&topic, "x", Beside::default()).await.is_err() {
                break n;
            }
            n += 1;
            count.store(n, Ordering::Relaxed);
        }
    });
    until("uploads are acknowledged", async || acknowledged.load(Ordering::Relaxed) >= 20).await;
    let status = server.terminate().await;
    assert_eq!(status.code(), Some(0), "{status}");
    idle.ended().await;
    let acknowledged = pouring.await.unwrap();
    assert!(!server.data().join("ports.json").exists(), "the ports of a server that is gone");

    server.launch().await;
    let uploads = server.uploads("demo").await;
    assert!((acknowledged..=acknowledged + 1).contains(&uploads.len()), "{acknowledged} were acknowledged");
}

#[tokio::test]
async fn a_second_server_on_the_same_data_is_refused_and_the_first_goes_on() {
    let mut server = Server::start().await;
    let second = server.command().output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).to_lowercase();
    assert!(said.contains("lock") || said.contains("another") || said.contains("in use"), "{said}");
    assert!(server.is_ready().await);
    assert!(server.terminate().await.success());
}

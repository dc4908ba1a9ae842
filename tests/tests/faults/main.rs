//! What goes wrong around Millpond, and what its users see of it: docs/proof.md has the table.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod clock;
mod damage;
mod disk;
mod loss;
mod processor;
mod storage;
mod syncs;

use millpond_tests::{Beside, Link, Server, recent_hour};

/// Publishes a file to pool `demo`.
async fn publish(link: &Link, upload: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
    let topic = format!("mp/demo/c/{}/up/{upload}/{}", link.who.member, recent_hour());
    link.publish(&topic, bytes, Beside::default()).await
}

/// `millpond check --deep` finds nothing.
async fn check(server: &Server) {
    let mut check = server.cli();
    // What this thread serves goes on meanwhile.
    let done = tokio::task::spawn_blocking(move || check.args(["check", "--deep"]).output().unwrap());
    let done = done.await.unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
}

/// Whether the variants that take long are asked for.
fn slow() -> bool {
    std::env::var_os("MILLPOND_SLOW").is_some()
}

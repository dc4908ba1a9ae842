//! What an operator can do about rounds and results, and what the members see of it; over pools that group by label and
//! by count.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use millpond_protocol::Role;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Pointer, Receipt};
use millpond_tests::{Credentials, Mill, Plain, Server};
use serde_json::{Value, json};

/// Publishes and answers the receipt.
async fn upload(who: &Credentials, rest: &str, bytes: &'static str) -> Receipt {
    let mut publisher = Plain::connect(who.clone()).await.unwrap();
    let receipts = format!("mp/{}/d/{}/receipt", who.pool, who.member);
    assert!(publisher.subscribe(&receipts).await.unwrap());
    publisher.publish(&format!("mp/{}/c/{}/up/{rest}", who.pool, who.member), bytes).await.unwrap();
    // The cursor over receipts moves a moment after they are acknowledged: an earlier one may come again.
    let id = rest.split('/').next().unwrap();
    let receipt = loop {
        let receipt: Receipt = serde_json::from_slice(&publisher.next_on(&receipts).await.unwrap()).unwrap();
        if receipt.upload == id {
            break receipt;
        }
    };
    publisher.close().await;
    receipt
}

fn run(mut command: Command, args: &[&str]) -> Value {
    let done = command.args(args).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

#[tokio::test]
async fn a_rollback_reaches_listeners_as_a_new_version_until_a_newer_batch_commits() {
    let server = Server::start().await;
    server.pool("maps", json!({ "grouping": "label" })).await;
    let publisher = server.member("maps", "edge", Role::Publisher).await;
    let listener = server.member("maps", "listener", Role::Listener).await;
    let mill = Mill::join(server.member("maps", "mill", Role::Processor).await, server.api()).await;
    let mut listener = Plain::connect(listener).await.unwrap();
    assert!(listener.subscribe("mp/maps/result").await.unwrap());
    let mut next = async || -> Pointer {
        serde_json::from_slice(&listener.next_on("mp/maps/result").await.unwrap()).unwrap()
    };

    for (label, result) in [("one", "first"), ("two", "second")] {
        upload(&publisher, &format!("{label}/{label}"), "tile").await;
        let lease = mill.trigger(&json!({ "label": label })).await.unwrap();
        mill.answer(&lease, result).await.unwrap();
        next().await;
    }
    run(server.cli(), &["--json", "result", "rollback", "maps", "1"]);
    let rolled_back = next().await;
    assert_eq!((rolled_back.version, rolled_back.of), (3, Some(1)));
    assert_eq!(&server.api().fetch(&rolled_back.url).await[..], b"first");

    upload(&publisher, "three/three", "tile").await;
    let lease = mill.trigger(&json!({ "label": "three" })).await.unwrap();
    mill.answer(&lease, "third").await.unwrap();
    let newest = next().await;
    assert_eq!((newest.version, newest.of), (4, None));
}

#[tokio::test]
async fn a_failed_round_that_is_retried_commits_with_its_next_attempt() {
    let server = Server::start().await;
    server.pool("sets", json!({ "grouping": "count", "count": 2 })).await;
    let publisher = server.member("sets", "edge", Role::Publisher).await;
    let mill = Mill::join(server.member("sets", "mill", Role::Processor).await, server.api()).await;
    assert_eq!(upload(&publisher, "a", "a").await.batch, Some(1));
    assert_eq!(upload(&publisher, "b", "b").await.batch, Some(1));

    // The second upload filled the batch; the offer comes once it is packed.
    let lease = loop {
        if let Some(lease) = mill.claim().await.unwrap() {
            break lease;
        }
    };
    assert_eq!((lease.round, lease.attempt), (1, 1));
    let fail = json!({ "id": mill.id(), "round": 1, "attempt": 1, "error": "no disk", "retryable": false });
    let failed: Value = mill.link.ask(Op::Fail, &fail).await.unwrap();
    assert_eq!(failed["state"], "failed");
    assert!(mill.answer(&lease, "too late").await.is_err());

    // Also twice, as one who did not get the first answer.
    for _ in 0..2 {
        let retried = run(server.cli(), &["--json", "round", "retry", "sets", "1"]);
        assert_eq!((&retried["state"], &retried["spent"]), (&json!("offered"), &json!(0)), "{retried}");
    }
    let lease = mill.claim().await.unwrap().expect("a retried round that is packed is on offer");
    assert_eq!((lease.round, lease.attempt), (1, 2));
    let fetched = mill.fetch(lease).await.unwrap();
    assert_eq!(fetched.files.len(), 2);
    mill.answer(&fetched.lease, "done").await.unwrap();
    let shown = run(server.cli(), &["--json", "round", "show", "sets", "1"]);
    assert_eq!(shown["state"], "committed", "{shown}");
}

#[tokio::test]
async fn a_label_that_is_sealed_takes_late_uploads_into_a_further_part_or_rejects_them() {
    let server = Server::start().await;
    for (pool, late) in [("next", "next"), ("reject", "reject")] {
        server.pool(pool, json!({ "grouping": "label", "late": late })).await;
        let publisher = server.member(pool, "edge", Role::Publisher).await;
        let mill = Mill::join(server.member(pool, "mill", Role::Processor).await, server.api()).await;
        upload(&publisher, "u1/red", "one").await;
        let lease = mill.trigger(&json!({ "label": "red" })).await.unwrap();
        mill.answer(&lease, "done").await.unwrap();
        let receipt = upload(&publisher, "u2/red", "two").await;
        if late == "next" {
            assert_eq!((receipt.outcome, receipt.batch, receipt.late), (Outcome::Stored, Some(2), true));
        } else {
            assert_eq!((receipt.outcome, receipt.batch), (Outcome::Rejected, None));
            assert!(receipt.error.unwrap().message.starts_with("late: "));
        }
    }
}

//! What sets a processor to work: the clock, offers, or nothing.

use std::time::{Duration, Instant};

use millpond_edge::clock::Stamp;
use millpond_protocol::Role;
use millpond_protocol::access::Op;
use millpond_tests::Mill;
use serde_json::{Value, json};

use crate::cast::{CONCATENATE, Cast, PATIENCE, until};

#[tokio::test]
async fn params_of_a_trigger_reach_the_command_and_batches_are_sealed_by_the_clock() {
    let cast = Cast::new(json!({ "count": 1_000 })).await;
    cast.three().await;
    let exec = r#"echo "$MILLPOND_PARAMS $MILLPOND_REF" > "$MILLPOND_OUTPUT""#;
    let mut process = cast.process(&["--trigger", "every", "1h", "--once", "--exec", exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert!(cast.result().await == b"null null\n");
    cast.publish(&[("d", vec![4])]).await;
    let mill = Mill::join(cast.server.member("demo", "other", Role::Trigger).await, cast.api()).await;
    let ask = json!({ "id": "t", "params": { "rate": 0.5 }, "ref": "job" });
    let _: Value = mill.link.ask(Op::Trigger, &ask).await.unwrap();
    let mut process = cast.process(&["--once", "--exec", exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert!(cast.result().await == b"{\"rate\":0.5} \"job\"\n");
}

#[tokio::test]
async fn a_processor_that_starts_often_triggers_as_often_as_it_was_told() {
    let cast = Cast::new(json!({ "count": 1_000 })).await;
    cast.three().await;
    let arguments = ["--trigger", "every 1h", "--once", "--exec", CONCATENATE];
    let mut process = cast.process(&arguments);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    let note = cast.file("work/triggered");
    let noted: Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    let Stamp { wall_ms, boot } = Stamp::now();
    assert!((0..120_000).contains(&(wall_ms - noted["server_ms"].as_i64().unwrap())), "{noted}");
    assert_eq!(noted["boot"]["id"], boot.unwrap().id);
    // As if that had been almost an hour ago: by this boot's clock, then by the server's in another boot.
    for (content, same_boot) in [(4, true), (5, false)] {
        let (begin, left, ago) = (Instant::now(), Duration::from_secs(4), 3_600_000 - 4_000);
        let Stamp { wall_ms, boot } = Stamp::now();
        let boot = boot.unwrap();
        let noted = if same_boot {
            json!({ "server_ms": 0, "boot": { "id": boot.id, "ms": boot.ms - ago } })
        } else {
            json!({ "server_ms": wall_ms - ago, "boot": { "id": "another", "ms": 1 } })
        };
        std::fs::write(&note, noted.to_string()).unwrap();
        cast.publish(&[(if same_boot { "d" } else { "e" }, vec![content])]).await;
        let mut process = cast.process(&arguments);
        assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
        assert!(begin.elapsed() >= left, "not at its start, but when the hour was over");
        assert_eq!(cast.result().await, [content]);
    }
}

#[tokio::test]
async fn a_processor_that_works_on_offer_seals_nothing_and_takes_what_others_sealed() {
    let cast = Cast::new(json!({ "count": 1_000 })).await;
    cast.three().await;
    let mut process = cast.process(&["--trigger", "on-offer", "--exec", CONCATENATE]);
    let other = Mill::join(cast.server.member("demo", "other", Role::Trigger).await, cast.api()).await;
    for (id, files) in [("first", "1\n2\n3\n"), ("second", "4\n")] {
        let _: Value = other.link.ask(Op::Trigger, &json!({ "id": id, "ref": id })).await.unwrap();
        let round = if id == "first" { 1 } else { 2 };
        until("the result", &mut process, async || cast.round(round).await.to_string().contains("committed"))
            .await;
        assert_eq!(cast.result().await, files.as_bytes());
        let told = cast.round(round).await.to_string();
        assert!(told.contains(id), "sealed by the other one: {told}");
        cast.publish(&[("d", b"4\n".to_vec())]).await;
    }
    assert!(process.status().is_none(), "it waits for the next offer");
}

/// Waits until the round is one that a claim brings: its files are written then.
pub async fn offered(cast: &Cast, round: u32) {
    let begin = Instant::now();
    while cast.round(round).await["state"] != "offered" {
        assert!(begin.elapsed() < PATIENCE, "{}", cast.round(round).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_processor_that_nothing_sets_to_work_takes_what_is_on_offer_and_ends() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    cast.publish(&[("d", vec![b'4']), ("e", vec![b'5']), ("f", vec![b'6']), ("g", vec![b'7'])]).await;
    offered(&cast, 1).await;
    offered(&cast, 2).await;
    let arguments = ["--trigger", "never", "--exec", CONCATENATE];
    let mut process = cast.process(&arguments);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert_eq!(process.stdout(), "round 1 leased\nround 1 done\nround 2 leased\nround 2 done\n");
    assert_eq!(cast.result().await, b"456");
    let batch = cast.api().get("/v1/pools/demo/batches/3").await;
    assert_eq!(batch["state"], "open", "{batch}");

    cast.publish(&[("h", vec![8]), ("i", vec![9])]).await;
    offered(&cast, 3).await;
    let mut failing = cast.process(&["--trigger", "never", "--exec", "exit 3"]);
    assert_eq!(failing.wait(PATIENCE).await.code(), Some(1));
    assert!(failing.stderr().contains("round 3"), "{}", failing.stderr());
    cast.edge.relay.cut();
    let mut offline = cast.process(&["--patience", "1", "--trigger", "never", "--exec", CONCATENATE]);
    assert_eq!(offline.wait(PATIENCE).await.code(), Some(75), "{}", offline.stderr());
}

#[tokio::test]
async fn a_processor_that_nothing_sets_to_work_ends_when_the_network_goes_after_it_was_there() {
    let cast = Cast::new(json!({})).await;
    let arguments = ["--patience", "3", "--trigger", "never", "--exec", CONCATENATE];
    // How many bytes it says before it knows that there is nothing: the ask for a round is the last of them, but for a goodbye.
    let before = cast.edge.relay.upward();
    let mut process = cast.process(&arguments);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    cast.edge.relay.vanish_after(cast.edge.relay.upward() - before - 40);
    let mut process = cast.process(&arguments);
    assert_eq!(process.wait(PATIENCE).await.code(), Some(75), "{}", process.stderr());
}

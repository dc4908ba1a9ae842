//! What a listener tells the server of each result, and in which order.

use std::path::PathBuf;

use millpond_protocol::message::{Delivery, DeliveryState};
use millpond_protocol::{Sha256, limits};
use millpond_tests::{until, wire};
use serde_json::{Value, json};

use crate::cast::{Cast, PATIENCE, content};

/// By URL, as nobody has it over MQTT.
const LARGE: usize = limits::SMALL_MAX + 1;

/// What the listener has said of a version, as it left the device.
fn told(cast: &Cast, version: usize) -> Vec<Delivery> {
    let topic = format!("mp/demo/c/listener/delivery/{version}");
    let said = cast.edge.relay.said();
    let published = said.iter().flat_map(|said| wire::published(said));
    let deliveries = published.filter(|(to, _)| *to == topic);
    deliveries.map(|(_, payload)| serde_json::from_slice(&payload).unwrap()).collect()
}

fn states(told: &[Delivery]) -> Vec<DeliveryState> {
    told.iter().map(|delivery| delivery.state).collect()
}

/// How many members the server counts by what they said last of the newest version.
async fn counted(cast: &Cast) -> Value {
    let results = cast.server.api().get("/v1/pools/demo/results").await;
    let newest = &results["results"][0];
    json!(["fetched", "verified", "applied", "failed"].map(|state| newest[state].clone()))
}

#[tokio::test]
async fn a_result_is_told_as_fetched_then_verified_then_as_its_command_ended() {
    let cast = Cast::new().await;
    cast.edge.relay.listen_in();
    let exec =
        r#"while ! test -e "go-$MILLPOND_VERSION"; do sleep 0.02; done; test "$MILLPOND_VERSION" != 2"#;
    let mut listener = cast.edge.start("listen", &["listen", "--exec", exec]);
    for (version, size) in [(1, 10), (2, LARGE), (3, LARGE)] {
        let bytes = content(size, version as u8);
        cast.result(version, &bytes).await;
        until("it is verified while the command runs", async || counted(&cast).await == json!([0, 1, 0, 0]))
            .await;
        assert_eq!(states(&told(&cast, version)), [DeliveryState::Fetched, DeliveryState::Verified]);
        std::fs::write(cast.edge.directory().join(format!("go-{version}")), "").unwrap();
        let (end, count) = match version {
            2 => (DeliveryState::Failed, json!([0, 0, 0, 1])),
            _ => (DeliveryState::Applied, json!([0, 0, 1, 0])),
        };
        until("how the command ended is known", async || counted(&cast).await == count).await;
        let told = told(&cast, version);
        assert_eq!(states(&told), [DeliveryState::Fetched, DeliveryState::Verified, end]);
        assert!(told.iter().all(|delivery| delivery.sha256 == Some(Sha256::of(&bytes))), "{told:?}");
        let why = told[2].reason.as_deref();
        assert_eq!(why, (version == 2).then_some("the command ended with exit status: 1"));
    }
    listener.signal("TERM");
    assert!(listener.wait(PATIENCE).await.success());
}

/// The file in storage that is so long.
fn blob(cast: &Cast, size: usize) -> PathBuf {
    let shards = std::fs::read_dir(cast.server.data().join("objects/blobs")).unwrap();
    let mut blobs = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    let found = blobs.find(|blob| blob.as_ref().unwrap().metadata().unwrap().len() == size as u64);
    found.unwrap().unwrap().path()
}

#[tokio::test]
async fn of_bytes_with_another_hash_nothing_is_told_but_that_it_failed() {
    let cast = Cast::new().await;
    let bytes = content(LARGE, 1);
    cast.result(1, &bytes).await;
    let blob = blob(&cast, LARGE);
    let mut damaged = bytes.clone();
    damaged[LARGE / 2] ^= 1;
    std::fs::write(&blob, damaged).unwrap();
    cast.edge.relay.listen_in();
    let mut listener = cast.edge.start("listen", &["listen", "--exec", "echo ran >> runs"]);
    until("the server knows that it failed", async || counted(&cast).await == json!([0, 0, 0, 1])).await;
    let first = told(&cast, 1);
    assert!(first.iter().all(|delivery| delivery.state == DeliveryState::Failed), "{first:?}");
    assert!(first[0].reason.as_deref().is_some_and(|why| why.contains("SHA-256")), "{first:?}");
    assert!(!cast.current().exists() && !cast.edge.directory().join("runs").exists());
    // It goes on trying, and what is whole then counts.
    std::fs::write(&blob, &bytes).unwrap();
    cast.said(&mut listener, "version 1 applied").await;
    until("it is applied", async || counted(&cast).await == json!([0, 0, 1, 0])).await;
    let mut all = states(&told(&cast, 1));
    all.retain(|state| *state != DeliveryState::Failed);
    assert_eq!(all, [DeliveryState::Fetched, DeliveryState::Verified, DeliveryState::Applied]);
    assert!(std::fs::read(cast.current()).unwrap() == bytes);
}

#[tokio::test]
async fn a_listener_that_is_to_end_does_not_wait_until_bytes_are_right() {
    let cast = Cast::new().await;
    cast.result(1, &content(LARGE, 1)).await;
    std::fs::write(blob(&cast, LARGE), content(LARGE, 2)).unwrap();
    let mut listener = cast.edge.start("once", &["--patience", "5", "listen", "--once"]);
    assert_eq!(listener.wait(PATIENCE).await.code(), Some(75), "{}", listener.stderr());
    assert!(listener.stderr().contains("version 1 could not be fetched"), "{}", listener.stderr());
    assert!(!cast.current().exists());
}

#[tokio::test]
async fn bytes_with_another_hash_that_come_over_mqtt_are_fetched_by_url_instead() {
    let mut cast = Cast::new().await;
    cast.result(1, b"flour").await;
    assert!(cast.server.terminate().await.success());
    let sql = rusqlite::Connection::open(cast.server.data().join("ledger.db")).unwrap();
    assert_eq!(sql.execute("UPDATE results SET data = ?1", [b"sand!"]).unwrap(), 1);
    drop(sql);
    cast.server.launch().await;
    cast.edge.relay.mend(cast.server.mqtt());
    cast.storage.mend(cast.server.ports().storage.unwrap());
    cast.edge.relay.listen_in();
    cast.storage.listen_in();
    cast.edge.done(&["listen", "--once"]).await;
    assert_eq!(std::fs::read(cast.current()).unwrap(), b"flour");
    let asked = cast.storage.said();
    assert!(asked.len() == 1 && asked[0].starts_with(b"GET "), "it came by URL");
    let states = states(&told(&cast, 1));
    assert_eq!(states, [DeliveryState::Fetched, DeliveryState::Verified, DeliveryState::Applied]);
}

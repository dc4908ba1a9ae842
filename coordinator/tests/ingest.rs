//! Messages of real MQTT clients through gate and ingest into the ledger, and back as receipts and state.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::collections::VecDeque;
use std::time::Duration;

use millpond::config::{Config, Secret, StorageMode};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond::rounds::policy::Grouping;
use millpond::server;
use millpond_protocol::bundle::{self, Bundle};
use millpond_protocol::message::{Outcome, Receipt};
use millpond_protocol::{Code, Role, Sha256};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

struct Server {
    addresses: server::Addresses,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<anyhow::Result<()>>,
    dir: tempfile::TempDir,
}

/// A server with a pool `p` and one member of each role, named like its role, its token too.
async fn server(policy: Policy) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, ended) = Ledger::open(dir.path()).unwrap();
    ledger
        .write(move |tx| {
            let (pool, _) = tx.apply_pool(&"p".parse().unwrap(), &policy)?;
            for role in Role::ALL {
                let token = Sha256::of(role.as_str().as_bytes());
                tx.add_member(pool, &role.as_str().parse().unwrap(), role, &token)?;
            }
            Ok(())
        })
        .await
        .unwrap();
    drop(ledger);
    let _ = ended.await;
    let mut config = Config::default();
    config.server.data_dir = dir.path().to_owned();
    for listen in [&mut config.mqtt.listen, &mut config.http.listen, &mut config.storage.listen] {
        listen.set_port(0);
    }
    let (ready, addresses) = oneshot::channel();
    let stop = CancellationToken::new();
    let done = tokio::spawn(server::run(config, stop.clone(), ready));
    Server { addresses: addresses.await.unwrap(), stop, done, dir }
}

impl Server {
    async fn stop(self) {
        self.stop.cancel();
        self.done.await.unwrap().unwrap();
    }

    /// Signs a member in.
    async fn client(&self, role: Role) -> Client {
        let mut options = MqttOptions::new(role.as_str(), "127.0.0.1", self.addresses.mqtt.port());
        options.set_credentials(format!("p/{role}"), role.as_str());
        options.set_max_packet_size(Some(1 << 21));
        let (client, events) = AsyncClient::new(options, 64);
        let mut client = Client { client, events, messages: VecDeque::new() };
        client.until(|packet| matches!(packet, Packet::ConnAck(_)).then_some(())).await;
        client
    }
}

struct Client {
    client: AsyncClient,
    events: EventLoop,
    /// Messages that came while something else was awaited.
    messages: VecDeque<(String, Vec<u8>)>,
}

impl Client {
    /// Reads until something wanted comes; messages are kept for later.
    async fn until<T>(&mut self, wanted: impl Fn(&Packet) -> Option<T>) -> T {
        loop {
            let packet = self.packet().await;
            if let Packet::Publish(publish) = &packet {
                let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
                self.messages.push_back((topic, publish.payload.to_vec()));
            }
            if let Some(found) = wanted(&packet) {
                return found;
            }
        }
    }

    async fn packet(&mut self) -> Packet {
        let next = async {
            loop {
                if let Event::Incoming(packet) = self.events.poll().await.unwrap() {
                    return packet;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), next).await.expect("what was awaited never came")
    }

    async fn subscribe(&mut self, filter: &str) {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        self.until(|packet| matches!(packet, Packet::SubAck(_)).then_some(())).await;
    }

    async fn publish(&mut self, topic: &str, payload: &[u8]) -> PubAckReason {
        self.publish_with(topic, payload, PublishProperties::default()).await
    }

    async fn publish_with(
        &mut self,
        topic: &str,
        payload: &[u8],
        properties: PublishProperties,
    ) -> PubAckReason {
        self.client
            .publish_with_properties(topic, QoS::AtLeastOnce, false, payload.to_vec(), properties)
            .await
            .unwrap();
        self.until(|packet| match packet {
            Packet::PubAck(ack) => Some(ack.reason),
            _ => None,
        })
        .await
    }

    /// The next message whose topic ends like that.
    async fn message(&mut self, end: &str) -> Vec<u8> {
        loop {
            if let Some(at) = self.messages.iter().position(|(topic, _)| topic.ends_with(end)) {
                return self.messages.remove(at).unwrap().1;
            }
            self.until(|packet| matches!(packet, Packet::Publish(_)).then_some(())).await;
        }
    }

    async fn receipt(&mut self) -> Receipt {
        serde_json::from_slice(&self.message("/receipt").await).unwrap()
    }

    async fn ask(&mut self, op: &str, ask: Value) -> Value {
        let topic = format!("mp/p/c/{}/ask/{op}", self.events.options.client_id());
        self.client.publish(topic, QoS::AtMostOnce, false, ask.to_string()).await.unwrap();
        serde_json::from_slice(&self.message(&format!("/answer/{op}")).await).unwrap()
    }
}

fn properties(user: &[(&str, &str)]) -> PublishProperties {
    let user_properties = user.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    PublishProperties { user_properties, ..PublishProperties::default() }
}

fn by_count() -> Policy {
    Policy { grouping: Grouping::Count, count: 100, ..Policy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_acknowledged_receipted_and_found() {
    let server = server(by_count()).await;
    let mut publisher = server.client(Role::Publisher).await;
    publisher.subscribe("mp/p/d/publisher/#").await;
    let large = vec![7; 200 << 10];
    for (id, bytes) in [("small", &b"hello"[..]), ("large", &large)] {
        assert_eq!(
            publisher.publish(&format!("mp/p/c/publisher/up/{id}"), bytes).await,
            PubAckReason::Success
        );
        let receipt = publisher.receipt().await;
        assert_eq!((receipt.upload.as_str(), receipt.outcome), (id, Outcome::Stored));
        assert_eq!(receipt.sha256, Some(Sha256::of(bytes)));
        let status = publisher.ask("status", json!({"upload": id})).await;
        assert_eq!((&status["batch"], &status["size"]), (&json!(1), &json!(bytes.len())));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_that_were_missed_come_in_order_at_the_next_subscription() {
    let server = server(by_count()).await;
    let mut publisher = server.client(Role::Publisher).await;
    publisher.subscribe("mp/p/d/publisher/receipt").await;
    publisher.publish("mp/p/c/publisher/up/first", b"1").await;
    publisher.receipt().await;
    publisher.client.unsubscribe("mp/p/d/publisher/receipt").await.unwrap();
    publisher.until(|packet| matches!(packet, Packet::UnsubAck(_)).then_some(())).await;
    for id in ["a", "b", "c"] {
        publisher.publish(&format!("mp/p/c/publisher/up/{id}"), id.as_bytes()).await;
    }
    publisher.subscribe("mp/p/d/publisher/receipt").await;
    // The cursor moves a moment after the acknowledgement: the first one may come again, the others must come.
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let receipt = publisher.receipt().await;
        if receipt.upload != "first" {
            seen.push(receipt.upload);
        }
    }
    assert_eq!(seen, ["a", "b", "c"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_carry_their_code_and_leave_the_id_free() {
    let server = server(by_count()).await;
    let mut publisher = server.client(Role::Publisher).await;
    publisher.subscribe("mp/p/d/publisher/receipt").await;
    let wrong = properties(&[("sha256", &"0".repeat(64))]);
    let reason = publisher.publish_with("mp/p/c/publisher/up/u", b"bytes", wrong).await;
    assert_eq!(reason, PubAckReason::PayloadFormatInvalid);
    let receipt = publisher.receipt().await;
    assert_eq!((receipt.outcome, receipt.error.unwrap().code), (Outcome::Refused, Code::Mismatch));
    assert_eq!(publisher.publish("mp/p/c/publisher/up/u", b"bytes").await, PubAckReason::Success);
    assert_eq!(publisher.receipt().await.outcome, Outcome::Stored);
    assert_ne!(publisher.publish("mp/p/c/publisher/up/u", b"other").await, PubAckReason::Success);
    assert_eq!(publisher.receipt().await.error.unwrap().code, Code::Conflict);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_granted_and_rejected_is_refused_without_the_bundle_that_it_came_in() {
    let server = server(Policy { require_sha256: true, ..by_count() }).await;
    let mut publisher = server.client(Role::Publisher).await;
    publisher.subscribe("mp/p/d/publisher/#").await;
    let sha256 = Sha256::of(b"a");
    publisher.ask("put", json!({"id": "g", "upload": "granted", "size": 1, "sha256": sha256})).await;
    let entry = |upload, sha256| bundle::Entry { upload, sha256, data: b"a", ..bundle::Entry::default() };
    let entries = vec![entry("granted", None), entry("other", Some(sha256.0))];
    let bytes = Bundle { clock_offset_ms: None, complete_through_ms: None, entries };
    let bytes = bundle::encode(&bytes).unwrap();
    assert_eq!(publisher.publish("mp/p/c/publisher/bundle/b", &bytes).await, PubAckReason::Success);
    let mut receipts = [publisher.receipt().await, publisher.receipt().await];
    receipts.sort_by(|a, b| a.upload.cmp(&b.upload));
    let [granted, other] = receipts;
    assert_eq!((granted.outcome, granted.error.unwrap().code), (Outcome::Refused, Code::Rejected));
    assert_eq!((other.upload.as_str(), other.outcome), ("other", Outcome::Stored));
    let status = publisher.ask("status", json!({"upload": "granted"})).await;
    assert_eq!(status["outcome"], "granted");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_entries_that_do_not_count_never_reach_storage() {
    let server = server(Policy { max_size: 200_000, ..by_count() }).await;
    let mut publisher = server.client(Role::Publisher).await;
    publisher.subscribe("mp/p/d/publisher/answer/+").await;
    let (fits, too_large) = (vec![1; 150_000], vec![2; 250_000]);
    let entry = |upload, data| bundle::Entry { upload, data, ..bundle::Entry::default() };
    for n in 0..2 {
        let entries = vec![entry("small", b"x".as_slice()), entry("fits", &fits), entry("big", &too_large)];
        let bytes = Bundle { clock_offset_ms: None, complete_through_ms: None, entries };
        let topic = format!("mp/p/c/publisher/bundle/b{n}");
        let reason = publisher.publish(&topic, &bundle::encode(&bytes).unwrap()).await;
        assert_eq!(reason, PubAckReason::Success);
    }
    for (upload, outcome) in [("small", "stored"), ("fits", "stored"), ("big", "rejected")] {
        assert_eq!(
            publisher.ask("status", json!({ "upload": upload })).await["outcome"],
            outcome,
            "{upload}"
        );
    }
    let ledger = server.dir.path().join("ledger.db");
    server.stop.cancel();
    server.done.await.unwrap().unwrap();
    let ledger = rusqlite::Connection::open(ledger).unwrap();
    let objects: u64 = ledger
        .query_row("SELECT count(*) FROM objects WHERE key LIKE '%/upload/%'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(objects, 1, "neither the repeat nor what is too large was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_card_comes_at_subscribe_and_an_operator_hears_of_uploads() {
    let server = server(by_count()).await;
    let mut operator = server.client(Role::Operator).await;
    operator.subscribe("mp/p/pool").await;
    let card: Value = serde_json::from_slice(&operator.message("/pool").await).unwrap();
    assert_eq!((&card["pool"], &card["grouping"]), (&json!("p"), &json!("count")));
    operator.subscribe("mp/p/event/#").await;
    let mut publisher = server.client(Role::Publisher).await;
    publisher.publish("mp/p/c/publisher/up/u", b"bytes").await;
    let event: Value = serde_json::from_slice(&operator.message("/event/uploads").await).unwrap();
    assert_eq!((&event["stored"], &event["bytes"]), (&json!(1), &json!(5)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_storage_does_not_answer_never_serves() {
    let dir = tempfile::tempdir().unwrap();
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut config = Config::default();
    config.server.data_dir = dir.path().to_owned();
    config.mqtt.listen.set_port(0);
    config.http.listen.set_port(0);
    config.storage.mode = StorageMode::External;
    config.storage.endpoint = Some(format!("http://{closed}").parse().unwrap());
    config.storage.access_key = "key".into();
    config.storage.secret_key = Secret::new("sixteen-characters");
    config.storage.call_timeout_s = 1;
    let (ready, addresses) = oneshot::channel();
    let refused = server::run(config, CancellationToken::new(), ready).await.unwrap_err();
    assert!(format!("{refused:#}").contains("storage.endpoint"), "{refused:#}");
    assert!(addresses.await.is_err());
    assert!(!dir.path().join("ports.json").exists());
}

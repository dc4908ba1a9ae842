//! Fan-out that cannot follow the ledger: whoever is connected ends with what holds.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::sync::Arc;
use std::time::Duration;

use millpond::asks::Asks;
use millpond::fanout::live;
use millpond::fanout::state::{Shown, States};
use millpond::grants::Grants;
use millpond::identity::Identity;
use millpond::ingest::Ingest;
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond::rounds::policy::Late;
use millpond_broker::{Gate, GateConfig, GateHandle};
use millpond_protocol::{Role, Sha256};
use millpond_storage::{Secret, Storage, StorageConfig};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// More than the notices that are kept for who is slow.
const COMMITS: usize = 4_200;
const PATIENCE: Duration = Duration::from_secs(30);

/// A member with a connection; it comes back as often as the connection ends.
struct Member {
    client: AsyncClient,
    events: EventLoop,
}

impl Member {
    fn new(name: &str, port: u16) -> Self {
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_credentials(format!("p/{name}"), name);
        let (client, events) = AsyncClient::new(options, 64);
        Self { client, events }
    }

    /// Subscribes to the card with each connection, and waits for one with this `late`.
    async fn card(&mut self, late: &str) {
        let converges = async {
            loop {
                match self.events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        self.client.subscribe("mp/p/pool", QoS::AtLeastOnce).await.unwrap();
                    }
                    Ok(Event::Incoming(Packet::Publish(card))) => {
                        let card: Value = serde_json::from_slice(&card.payload).unwrap();
                        if card["late"] == late {
                            return;
                        }
                    }
                    // A connection that ended: the next poll opens another.
                    Ok(_) | Err(_) => {}
                }
            }
        };
        let converged = tokio::time::timeout(PATIENCE, converges).await;
        assert!(converged.is_ok(), "the card with late = {late} never comes");
    }

    /// Waits until the gate refuses its credentials.
    async fn refused(&mut self) {
        let refused = async {
            while !matches!(self.events.poll().await, Err(rumqttc::v5::ConnectionError::ConnectionRefused(_)))
            {
            }
        };
        let refused = tokio::time::timeout(PATIENCE, refused).await;
        assert!(refused.is_ok(), "a member that was revoked stays connected");
    }
}

async fn apply(ledger: &Ledger, policy: Policy) {
    ledger.write(move |tx| tx.apply_pool(&"p".parse().unwrap(), &policy).map(drop)).await.unwrap();
}

/// Runs on one thread, so that fan-out stands still while the test does not await.
#[tokio::test]
async fn members_converge_and_revoked_ones_are_gone_after_fan_out_missed_commits() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = Ledger::open(dir.path()).unwrap();
    apply(&ledger, Policy::default()).await;
    for name in ["stays", "goes"] {
        let add = move |tx: &mut millpond::ledger::Tx<'_>| {
            let pool = tx.pool(&"p".parse().unwrap())?;
            tx.add_member(pool, &name.parse().unwrap(), Role::Listener, &Sha256::of(name.as_bytes()))
        };
        ledger.write(add).await.unwrap();
    }
    // Nobody calls it.
    let endpoint = "http://127.0.0.1:9".parse().unwrap();
    let storage =
        Storage::new(&StorageConfig::new(endpoint, "millpond", "key", Secret::new("secret"))).unwrap();
    let shown = Shown { publish_max: 1, bundle_max: 1, upload_max: 1, storage_host: String::new() };
    let states = States::new(ledger.clone(), storage.clone(), shown);
    let grants = Grants::new(ledger.clone(), storage.clone(), PATIENCE);
    let asks = Asks { ledger: ledger.clone(), storage, states: states.clone(), grants };
    let (handle, stop) = (GateHandle::new(), CancellationToken::new());
    let ingest = Ingest::start(asks, Identity::new(ledger.clone(), 10, 10), handle.clone(), states.clone())
        .await
        .unwrap();
    let gate = Gate::start(GateConfig::default(), handle.clone(), Arc::new(ingest)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stopped = stop.clone();
    tokio::spawn(async move { gate.serve(listener, stopped).await.unwrap() });
    tokio::spawn(live::run(ledger.clone(), states, handle, stop.clone()));
    let (mut stays, mut goes) = (Member::new("stays", port), Member::new("goes", port));
    stays.card("next").await;
    goes.card("next").await;

    std::thread::scope(|scope| {
        let elsewhere = || {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                apply(&ledger, Policy { late: Late::Reject, ..Policy::default() }).await;
                let revoke = |tx: &mut millpond::ledger::Tx<'_>| {
                    let pool = tx.pool(&"p".parse().unwrap())?;
                    tx.revoke_member(pool, &"goes".parse().unwrap())
                };
                ledger.write(revoke).await.unwrap();
                for n in 0..COMMITS {
                    let tell = move |tx: &mut millpond::ledger::Tx<'_>| {
                        let pool = tx.pool(&"p".parse().unwrap())?;
                        tx.event(pool, "test", &json!({ "n": n }))
                    };
                    ledger.write(tell).await.unwrap();
                }
            });
        };
        scope.spawn(elsewhere).join().unwrap();
    });

    stays.card("reject").await;
    goes.refused().await;
    stop.cancel();
}

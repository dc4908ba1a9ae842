//! Who takes results with a plain MQTT client, and the operator who clears up.

use std::time::Duration;

use anyhow::ensure;
use millpond_protocol::Sha256;
use millpond_protocol::message::Pointer;
use millpond_tests::{Credentials, Plain};
use reqwest::Method;
use rumqttc::QoS;
use serde_json::json;

use super::book::Book;
use super::home::{Client, Here, Home, Wrong};

/// Between two requests of the operator.
const PAUSE: Duration = Duration::from_millis(150);

/// Listens with an MQTT 3.1.1 client that is not ours.
pub struct Listener {
    pub who: Credentials,
    pub book: Book,
    /// The newest version that it was shown.
    pub version: u64,
}

impl Listener {
    /// The newest result by what the server shows whoever connects, proven.
    pub async fn look(&mut self, plain: &mut Plain, here: &Here) -> anyhow::Result<Pointer> {
        let topic = format!("mp/{}/result", self.who.pool);
        let message = plain.next_on(&topic).await?;
        let pointer: Pointer = serde_json::from_slice(&message)?;
        if pointer.version < self.version {
            return Err(Wrong(format!("version {} after {}", pointer.version, self.version)).into());
        }
        self.version = pointer.version;
        let bytes = here.api.try_fetch(&pointer.url).await?;
        if Sha256::of(&bytes) != pointer.sha256 {
            return Err(Wrong(format!("version {} is not what the pointer says", pointer.version)).into());
        }
        Ok(pointer)
    }
}

impl Client for Listener {
    async fn work(&mut self, here: Here, home: &Home) -> anyhow::Result<()> {
        let mut plain = Plain::connect(here.of(&self.who)).await?;
        let (pool, member) = (self.who.pool.clone(), self.who.member.clone());
        ensure!(plain.subscribe(&format!("mp/{pool}/result")).await?, "not subscribed");
        loop {
            tokio::select! {
                pointer = self.look(&mut plain, &here) => {
                    let pointer = pointer?;
                    let said = json!({ "state": "verified", "sha256": pointer.sha256 }).to_string();
                    let topic = format!("mp/{pool}/c/{member}/delivery/{}", pointer.version);
                    plain.send(&topic, said, QoS::AtLeastOnce, false).await?;
                    self.book.delivered(pool.as_str(), pointer.sha256, "verified");
                }
                () = home.until_last() => return Ok(()),
            }
        }
    }
}

/// Runs retention now and then.
pub struct Operator;

impl Client for Operator {
    async fn work(&mut self, here: Here, home: &Home) -> anyhow::Result<()> {
        while !home.is_last() {
            let (status, said) = here.api.try_send(Method::POST, "/v1/gc", Some(&json!({}))).await?;
            if status != 200 && status != 503 {
                return Err(Wrong(format!("gc: {status} {said}")).into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

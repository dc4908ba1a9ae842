//! What publishers and listeners have in common: receipts, the newest result, and the proof that it is whole.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Delivery, DeliveryState, Outcome, Pointer, Receipt};
use millpond_protocol::{Sha256, Timestamp, UploadId, limits, topic};
use serde_json::json;

use super::link::{Beside, Credentials, Link};
use super::url;

/// A connected member and what it was told so far.
pub(super) struct Member {
    pub(super) link: Link,
    pub(super) receipts: Vec<Receipt>,
    /// Its uploads, of which the server said that they are stored.
    pub(super) sent: BTreeMap<UploadId, Sha256>,
    pointer: Option<Pointer>,
    /// Newest payload of `result/data` with the version that it says it is.
    data: Option<(u64, Bytes)>,
}

impl Member {
    /// Connects and subscribes to what concerns the member: its receipts, the pointer, and the bytes of small results.
    pub(super) async fn join(who: Credentials) -> anyhow::Result<Self> {
        let link = Link::open(who).await?;
        link.subscribe(&format!("mp/{}/result/#", link.who.pool)).await?;
        Ok(Self { link, receipts: Vec::new(), sent: BTreeMap::new(), pointer: None, data: None })
    }

    /// Reads messages until this holds of what was told.
    pub(super) async fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        while !holds(self) {
            let message = self.link.next().await.with_context(|| format!("waiting for {what}"))?;
            let pool = &self.link.who.pool;
            if message.topic == topic::receipt(pool, &self.link.who.member) {
                self.receipts.push(serde_json::from_slice(&message.payload)?);
            } else if message.topic == topic::result(pool) {
                self.pointer = Some(serde_json::from_slice(&message.payload)?);
            } else if message.topic == topic::result_data(pool) && !message.payload.is_empty() {
                let version = message.user_properties.iter().find(|(key, _)| key == "version");
                let version = version.context("result/data without a version")?.1.parse()?;
                self.data = Some((version, message.payload));
            }
        }
        Ok(())
    }

    /// Waits for the receipts of an upload, which say `stored` with these bytes.
    pub(super) async fn stored(&mut self, upload: &UploadId, sha256: Sha256) -> anyhow::Result<()> {
        let of = |receipt: &&Receipt| receipt.upload == upload.as_str();
        let has = |member: &Self| member.receipts.iter().any(|receipt| of(&receipt));
        self.wait(&format!("the receipt of {upload}"), has).await?;
        let good = |receipt: &Receipt| receipt.outcome == Outcome::Stored && receipt.sha256 == Some(sha256);
        ensure!(
            self.receipts.iter().filter(of).all(good),
            "{}: {upload} was not stored as it was sent",
            self.link.who.member
        );
        self.sent.insert(upload.clone(), sha256);
        Ok(())
    }

    /// Says that nothing more comes up to that time.
    pub(super) async fn complete(&self, through: Timestamp) -> anyhow::Result<()> {
        let ask = json!({ "id": format!("complete-{through}").replace(':', "."), "through": through });
        self.link.ask::<serde_json::Value>(Op::Complete, &ask).await.map(drop)
    }

    /// Waits for that version, gets its bytes (from MQTT where they are small, else from the URL by range), checks them against
    /// the pointer, and tells the server.
    pub(super) async fn verify(&mut self, version: u64, http: &reqwest::Client) -> anyhow::Result<Sha256> {
        let new = |pointer: &Pointer| pointer.version >= version;
        self.wait("the result", |member| member.pointer.as_ref().is_some_and(new)).await?;
        let pointer = self.pointer.clone().context("a pointer was told")?;
        let found = if pointer.size <= limits::SMALL_MAX as u64 {
            let this = |(at, _): &(u64, Bytes)| *at >= pointer.version;
            self.wait("the result's bytes", |member| member.data.as_ref().is_some_and(this)).await?;
            Sha256::of(&self.data.as_ref().context("bytes were told")?.1)
        } else {
            url::get_by_range(http, &pointer.url, pointer.size, async || Ok(())).await?
        };
        ensure!(
            found == pointer.sha256,
            "{}: version {} is not what the pointer says",
            self.link.who.member,
            pointer.version
        );
        let delivery = Delivery { state: DeliveryState::Verified, sha256: Some(found), reason: None };
        let topic =
            format!("mp/{}/c/{}/delivery/{}", self.link.who.pool, self.link.who.member, pointer.version);
        self.link.publish(&topic, serde_json::to_vec(&delivery)?, Beside::default()).await?;
        Ok(found)
    }
}

//! A processor in a few calls, over MQTT 5.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::ensure;
use bytes::Bytes;
use millpond_protocol::Sha256;
use millpond_protocol::access::Op;
use millpond_protocol::message::answer::Triggered;
use millpond_protocol::message::{Lease, LeaseFileKind};
use serde_json::{Value, json};

use crate::{Api, Beside, Credentials, Link};

/// A connected processor.
pub struct Mill {
    pub link: Link,
    api: Api,
}

/// A lease with everything that belongs to it.
pub struct Leased {
    pub lease: Lease,
    /// The manifest's first line.
    pub header: Value,
    /// Its other lines.
    pub lines: Vec<Value>,
    /// The bytes of each upload by `member/upload`, each checked against the manifest.
    pub files: BTreeMap<String, Bytes>,
}

impl Mill {
    /// Connects.
    pub async fn join(who: Credentials, api: Api) -> Self {
        Self::over(Link::open(who).await.unwrap(), api)
    }

    /// Over a connection that there is.
    pub fn over(link: Link, api: Api) -> Self {
        Self { link, api }
    }

    /// An id for an ask that no mill of this test had before: they are remembered by member.
    pub fn id(&self) -> String {
        static ASKS: AtomicU64 = AtomicU64::new(0);
        format!("ask-{}", ASKS.fetch_add(1, Ordering::Relaxed))
    }

    /// Seals what `target` (keys of a trigger) names and takes the round.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn trigger(&self, target: &Value) -> anyhow::Result<Lease> {
        let mut ask = json!({ "id": self.id(), "take": true, "wait_s": 30 });
        for (key, value) in target.as_object().into_iter().flatten() {
            ask[key] = value.clone();
        }
        let triggered: Triggered = self.link.ask(Op::Trigger, &ask).await?;
        Ok(triggered.lease.expect("the pool has a lease free"))
    }

    /// Takes the oldest round on offer, which has to be there.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn claim(&self) -> anyhow::Result<Option<Lease>> {
        let ask = json!({ "id": self.id(), "wait_s": 30 });
        let answer: Value = self.link.ask(Op::Claim, &ask).await?;
        Ok(if answer["round"].is_null() { None } else { Some(serde_json::from_value(answer)?) })
    }

    /// Fetches manifest and files and checks every hash.
    ///
    /// # Errors
    /// What does not match.
    pub async fn fetch(&self, lease: Lease) -> anyhow::Result<Leased> {
        ensure!(lease.ready && lease.cursor.is_none(), "not ready, or more than one page: {lease:?}");
        let manifest = self.api.try_fetch(lease.manifest_url.as_deref().unwrap()).await?;
        ensure!(lease.manifest_sha256 == Some(Sha256::of(&manifest)), "another manifest");
        let mut lines = manifest
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(serde_json::from_slice::<Value>)
            .collect::<Result<Vec<_>, _>>()?;
        let header = lines.remove(0);
        let mut files = BTreeMap::new();
        for file in &lease.files {
            let bytes = self.api.try_fetch(&file.url).await?;
            ensure!(file.size == bytes.len() as u64 && file.sha256 == Sha256::of(&bytes), "another file");
            match file.kind {
                LeaseFileKind::Large => {
                    let (member, upload) = (file.member.as_ref().unwrap(), file.upload.as_ref().unwrap());
                    files.insert(format!("{member}/{upload}"), bytes);
                }
                LeaseFileKind::Pack => {
                    for entry in tar::Archive::new(bytes.as_ref()).entries()? {
                        let mut entry = entry?;
                        let mut content = Vec::new();
                        entry.read_to_end(&mut content)?;
                        files.insert(entry.path()?.to_str().unwrap().to_owned(), content.into());
                    }
                }
            }
        }
        for line in &lines {
            let key = format!("{}/{}", line["member"].as_str().unwrap(), line["upload"].as_str().unwrap());
            let found = files.get(&key).map(|bytes| Sha256::of(bytes).to_string());
            ensure!(found.as_deref() == line["sha256"].as_str(), "{key} is not what the manifest lists");
        }
        ensure!(files.len() == lines.len(), "{} files, and the manifest lists {}", files.len(), lines.len());
        Ok(Leased { lease, header, lines, files })
    }

    /// Returns the result.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn answer(&self, lease: &Lease, result: impl Into<Bytes>) -> anyhow::Result<()> {
        let (pool, member) = (&self.link.who.pool, &self.link.who.member);
        let topic = format!("mp/{pool}/c/{member}/result/{}/{}", lease.round, lease.attempt);
        self.link.publish(&topic, result, Beside::default()).await
    }
}

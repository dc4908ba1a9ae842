//! Who sends: small files, large ones through MQTT, bundles, by URL, in parts; and everything again that was not acknowledged.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use futures_util::future::join_all;
use millpond_protocol::access::Op;
use millpond_protocol::bundle::{self, Bundle, Entry};
use millpond_protocol::message::{Outcome, answer};
use millpond_protocol::{Code, Refusal, Sha256, limits};
use millpond_tests::{Beside, Credentials, Link, Plain};
use rumqttc::QoS;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::json;

use super::book::Book;
use super::home::{Client, Here, Home, Wrong};

/// Between what a publisher sends at once: it is a load, not a flood.
const PAUSE: Duration = Duration::from_millis(50);
/// The same for a file in parts, of more than 5 MiB.
const LONG_PAUSE: Duration = Duration::from_millis(300);
/// Messages on their way at once.
const BURST: usize = 4;
/// Bytes of a part.
const PART: usize = 5 << 20;

/// Bytes that are nobody else's.
pub fn content(key: &str, size: usize) -> Vec<u8> {
    format!("{key} ").into_bytes().into_iter().cycle().take(size).collect()
}

/// Sends over MQTT 5.
pub struct Publisher {
    pub who: Credentials,
    pub book: Book,
    /// The first message that is not acknowledged.
    pub next: usize,
}

/// A message with the uploads that it is.
struct Message {
    topic: String,
    payload: Vec<u8>,
    keys: Vec<String>,
}

impl Publisher {
    /// The `n`-th message: mostly one small file, sometimes one that the ledger does not keep, sometimes a bundle.
    fn message(&self, n: usize) -> Message {
        let (pool, member) = (&self.who.pool, &self.who.member);
        let size = |n: usize, large: bool| if large { limits::SMALL_MAX + 1_000 } else { 200 + n % 700 };
        if n % 10 != 3 {
            let key = format!("{pool}/{member}/u{n}");
            let payload = content(&key, size(n, n % 25 == 24));
            self.book.sends(&key, &payload);
            return Message { topic: format!("mp/{pool}/c/{member}/up/u{n}"), payload, keys: vec![key] };
        }
        let ids: Vec<String> = (0..3).map(|entry| format!("b{n}-{entry}")).collect();
        let keys: Vec<String> = ids.iter().map(|id| format!("{pool}/{member}/{id}")).collect();
        let files: Vec<Vec<u8>> = (0_usize..)
            .zip(&keys)
            .map(|(entry, key)| content(key, size(n + entry, n % 50 == 33 && entry == 1)))
            .collect();
        let entry = |(id, data)| Entry {
            upload: id,
            event_time_ms: millpond_tests::recent_hour(),
            data,
            ..Entry::default()
        };
        let entries = ids.iter().map(String::as_str).zip(files.iter().map(Vec::as_slice)).map(entry);
        let payload = bundle::encode(&Bundle { entries: entries.collect(), ..Bundle::default() }).unwrap();
        keys.iter().zip(&files).for_each(|(key, file)| self.book.sends(key, file));
        Message { topic: format!("mp/{pool}/c/{member}/bundle/b{n}"), payload, keys }
    }

    async fn send(&self, link: &Link, n: usize) -> anyhow::Result<()> {
        let Message { topic, payload, keys } = self.message(n);
        match link.offer(&topic, payload, Beside::default()).await? {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {}
            reason => return Err(Wrong(format!("{topic} was refused: {reason:?}")).into()),
        }
        keys.iter().for_each(|key| self.book.has(key));
        Ok(())
    }
}

impl Client for Publisher {
    async fn work(&mut self, here: Here, home: &Home) -> anyhow::Result<()> {
        let link = Link::connect(here.of(&self.who)).await?;
        if let Some(last) = self.next.checked_sub(1) {
            // What was acknowledged once is acknowledged again, and counts once.
            self.send(&link, last).await?;
        }
        while !home.is_last() {
            let burst = (self.next..self.next + BURST).map(|n| self.send(&link, n));
            join_all(burst).await.into_iter().collect::<anyhow::Result<()>>()?;
            self.next += BURST;
            tokio::time::sleep(PAUSE).await;
        }
        // Those of a burst that was cut off are sent again.
        let rest = (self.next..self.next + BURST).map(|n| self.send(&link, n));
        join_all(rest).await.into_iter().collect()
    }
}

/// Sends over MQTT 3.1.1, at QoS 1 and 2, with a client that is not ours.
pub struct Plainly {
    pub who: Credentials,
    pub book: Book,
    pub next: usize,
}

impl Client for Plainly {
    async fn work(&mut self, here: Here, home: &Home) -> anyhow::Result<()> {
        let mut plain = Plain::connect(here.of(&self.who)).await?;
        loop {
            let (pool, member, n) = (&self.who.pool, &self.who.member, self.next);
            let key = format!("{pool}/{member}/u{n}");
            let payload = content(&key, 300 + n % 500);
            self.book.sends(&key, &payload);
            let qos = if n.is_multiple_of(2) { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
            plain.send(&format!("mp/{pool}/c/{member}/up/u{n}"), payload, qos, false).await?;
            self.book.has(&key);
            self.next += 1;
            if home.is_last() {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Sends files by URL: a single PUT, or two parts.
pub struct ByUrl {
    pub who: Credentials,
    pub book: Book,
    pub next: usize,
    pub parts: bool,
}

impl ByUrl {
    async fn file(&self, link: &Link, here: &Here, n: usize) -> anyhow::Result<()> {
        let key = format!("{}/{}/l{n}", self.who.pool, self.who.member);
        let bytes = content(&key, if self.parts { PART + 1_000 + n } else { 200_000 + n });
        self.book.sends(&key, &bytes);
        let mut ask = json!({ "id": format!("put-{n}"), "upload": format!("l{n}"), "size": bytes.len(),
            "sha256": Sha256::of(&bytes) });
        if self.parts {
            let parts = (1_usize..).zip(bytes.chunks(PART));
            let parts: Vec<_> =
                parts.map(|(n, part)| json!({ "n": n, "sha256": Sha256::of(part) })).collect();
            ask["part_size"] = json!(PART);
            ask["parts"] = json!(parts);
        }
        let put: answer::Put = link.ask(Op::Put, &ask).await?;
        if put.outcome == Outcome::Stored {
            self.book.has(&key);
            return Ok(());
        }
        if let Some(to) = &put.to {
            ensure!(here.api.try_put(to, bytes.clone()).await? == 200, "storage refuses {key}");
        }
        for part in &put.parts {
            let chunk = bytes.chunks(PART).nth(part.n as usize - 1).unwrap();
            if let Some(to) = &part.to {
                ensure!(
                    here.api.try_put(to, chunk.to_vec()).await? == 200,
                    "storage refuses a part of {key}"
                );
            }
        }
        let ask = json!({ "id": format!("commit-{n}"), "uploads": [format!("l{n}")], "wait_s": 30 });
        let committed: anyhow::Result<answer::Commit> = link.ask(Op::Commit, &ask).await;
        let committed = match committed {
            Err(error) if error.downcast_ref::<Refusal>().is_some_and(|r| r.code == Code::NotFound) => {
                // What was PUT is not there: its PUT was not acknowledged, or this would be a loss.
                return Err(Wrong(format!("{key} was PUT and is not there: {error:#}")).into());
            }
            committed => committed?,
        };
        let [receipt] = &committed.uploads[..] else { return Err(anyhow!("one file, one receipt")) };
        ensure!(receipt.outcome != Outcome::Pending, "{key} is being verified");
        if receipt.outcome != Outcome::Stored {
            return Err(Wrong(format!("{key}: {receipt:?}")).into());
        }
        self.book.has(&key);
        Ok(())
    }
}

impl Client for ByUrl {
    async fn work(&mut self, here: Here, home: &Home) -> anyhow::Result<()> {
        let link = Link::open(here.of(&self.who)).await?;
        loop {
            self.file(&link, &here, self.next).await?;
            self.next += 1;
            if home.is_last() {
                return Ok(());
            }
            tokio::time::sleep(if self.parts { LONG_PAUSE } else { PAUSE }).await;
        }
    }
}

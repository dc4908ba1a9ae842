//! The external server: takes a round, fetches and checks every file, and returns one.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use millpond_protocol::access::Op;
use millpond_protocol::message::answer::{self, FilesPage, Triggered};
use millpond_protocol::message::{Lease, LeaseFile, LeaseFileKind};
use millpond_protocol::{Code, MemberName, Refusal, Sha256, UploadId, limits};
use serde::Deserialize;
use serde_json::json;

use super::content::Content;
use super::link::{Beside, Credentials, Link};
use super::progress::Step;
use super::url;

/// Which file of which member.
pub(super) type Key = (MemberName, UploadId);

/// A sealed batch as its manifest lists it.
pub(super) struct Manifest {
    pub(super) header: Header,
    pub(super) sha256: Sha256,
    pub(super) entries: BTreeMap<Key, Sha256>,
}

/// The manifest's first line.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    pub(super) seq: u64,
    pub(super) prev: Option<Sha256>,
    pub(super) cause: String,
    pub(super) count: u64,
    pub(super) bytes: u64,
}

#[derive(Deserialize)]
struct Line {
    member: MemberName,
    upload: UploadId,
    sha256: Sha256,
}

/// A round that was worked through.
pub(super) struct Done {
    pub(super) batch: u64,
    pub(super) attempt: u32,
    pub(super) manifest: Manifest,
    pub(super) result_bytes: u64,
    pub(super) result_sha256: Sha256,
}

/// What a processor makes of a batch.
#[derive(Clone, Copy)]
pub(super) enum Product {
    /// The list of its files, filled up to so many bytes at the least; by PUBLISH.
    List(usize),
    /// So many bytes; by presigned PUT.
    Large(u64),
}

pub(super) struct Processor {
    link: Link,
    http: reqwest::Client,
    asks: u64,
}

impl Processor {
    pub(super) async fn join(who: Credentials, http: reqwest::Client) -> anyhow::Result<Self> {
        let link = Link::open(who).await?;
        link.subscribe(&format!("mp/{}/offer", link.who.pool)).await?;
        Ok(Self { link, http, asks: 0 })
    }

    /// Seals the oldest open batch and takes its round; none if nothing is open.
    pub(super) async fn trigger(&mut self) -> anyhow::Result<Option<Lease>> {
        let ask = json!({
            "id": self.id("trigger"), "which": "oldest", "take": true, "wait_s": 30,
            "params": { "demo": true }, "ref": "millpond-demo",
        });
        match self.link.ask::<Triggered>(Op::Trigger, &ask).await {
            Ok(triggered) => {
                let lease = triggered.lease.context("the pool has no lease free")?;
                Ok(Some(self.when_ready(lease).await?))
            }
            Err(error) if error.downcast_ref::<Refusal>().is_some_and(|r| r.code == Code::NotFound) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the oldest round on offer, waiting for one as long as it takes.
    pub(super) async fn claim(&mut self) -> anyhow::Result<Lease> {
        loop {
            let ask = json!({ "id": self.id("claim"), "wait_s": 30 });
            let answer: serde_json::Value = self.link.ask(Op::Claim, &ask).await?;
            if !answer["round"].is_null() {
                let lease = serde_json::from_value(answer)?;
                return self.when_ready(lease).await;
            }
            // The offer is a hint; whether it came before or after the claim, it leads to another one.
            self.link.next().await.context("waiting for an offer")?;
        }
    }

    async fn when_ready(&mut self, mut lease: Lease) -> anyhow::Result<Lease> {
        while !lease.ready {
            lease = self.beat(&lease, 30).await?;
        }
        Ok(lease)
    }

    async fn beat(&mut self, lease: &Lease, wait_s: u64) -> anyhow::Result<Lease> {
        let ask = json!({
            "id": self.id("beat"), "round": lease.round, "attempt": lease.attempt, "wait_s": wait_s,
        });
        self.link.ask(Op::Beat, &ask).await
    }

    /// Begins like any other, fetches the first file, and is gone without a word.
    pub(super) async fn die_working(self, lease: &Lease) -> anyhow::Result<()> {
        let file = lease.files.first().context("a lease without files")?;
        url::get_by_range(&self.http, &file.url, file.size, async || Ok(())).await?;
        drop(self.link);
        Ok(())
    }

    /// Fetches everything, checks it against the manifest, and returns a result. `progress` advances with each file.
    pub(super) async fn work(
        &mut self,
        lease: &Lease,
        product: Product,
        progress: &Step,
    ) -> anyhow::Result<Done> {
        let manifest = self.manifest(lease).await?;
        let mut missing = manifest.entries.clone();
        progress.expect(missing.len() as u64);
        let mut files = lease.files.clone();
        let mut cursor = lease.cursor.clone();
        loop {
            for file in &files {
                for (key, found) in self.read(file, lease).await? {
                    let listed = missing.remove(&key);
                    ensure!(listed == Some(found), "{}/{} is not what the manifest lists", key.0, key.1);
                    progress.advance();
                }
                self.beat(lease, 0).await?;
            }
            let Some(at) = cursor else { break };
            let ask = json!({ "round": lease.round, "attempt": lease.attempt, "cursor": at });
            let page: FilesPage = self.link.ask(Op::Files, &ask).await?;
            (files, cursor) = (page.files, page.cursor);
        }
        ensure!(missing.is_empty(), "{} files of the manifest were not in the lease", missing.len());
        let (result_bytes, result_sha256) = match product {
            Product::List(at_least) => self.publish(lease, merge(&manifest, at_least)).await?,
            Product::Large(size) => self.put(lease, Content::new(&manifest.sha256.to_string(), size)).await?,
        };
        let log = format!("merged {} files\n", manifest.entries.len());
        let ask = json!({
            "id": self.id("done"), "round": lease.round, "attempt": lease.attempt, "log": log, "wait_s": 30,
        });
        let done: serde_json::Value = self.link.ask(Op::Done, &ask).await?;
        ensure!(!done["version"].is_null(), "a result by one PUT is there at once: {done}");
        Ok(Done { batch: lease.batch, attempt: lease.attempt, manifest, result_bytes, result_sha256 })
    }

    /// Returns a result by PUBLISH.
    async fn publish(&self, lease: &Lease, result: Bytes) -> anyhow::Result<(u64, Sha256)> {
        let (pool, member) = (&self.link.who.pool, &self.link.who.member);
        let topic = format!("mp/{pool}/c/{member}/result/{}/{}", lease.round, lease.attempt);
        let beside = Beside {
            user_properties: vec![("name".to_owned(), format!("merged-{}.txt", lease.round))],
            content_type: Some("text/plain".to_owned()),
        };
        let what = (result.len() as u64, Sha256::of(&result));
        self.link.publish(&topic, result, beside).await.context("returning the result")?;
        Ok(what)
    }

    /// Brings a result to storage; `done` commits it.
    async fn put(&mut self, lease: &Lease, result: Content) -> anyhow::Result<(u64, Sha256)> {
        let sha256 = result.digests(None).await?.sha256;
        let ask = json!({
            "id": self.id("put"), "round": lease.round, "attempt": lease.attempt, "size": result.size(),
            "sha256": sha256, "name": format!("merged-{}.bin", lease.round),
        });
        let granted: answer::Put = self.link.ask(Op::Put, &ask).await?;
        let to = granted.to.context("a grant without a URL")?;
        url::put(&self.http, &to, result.pieces(0..result.size()).map(Ok)).await?;
        Ok((result.size(), sha256))
    }

    async fn manifest(&self, lease: &Lease) -> anyhow::Result<Manifest> {
        let url = lease.manifest_url.as_deref().context("a ready lease without a manifest")?;
        let bytes = url::get(&self.http, url).await?;
        let sha256 = Sha256::of(&bytes);
        ensure!(lease.manifest_sha256 == Some(sha256), "the manifest is not what the lease says");
        let text = std::str::from_utf8(&bytes)?;
        let mut lines = text.lines();
        let header: Header = serde_json::from_str(lines.next().context("an empty manifest")?)?;
        let mut entries = BTreeMap::new();
        for line in lines {
            let line: Line = serde_json::from_str(line)?;
            let twice = entries.insert((line.member, line.upload), line.sha256);
            ensure!(twice.is_none(), "the manifest lists an upload twice");
        }
        ensure!(header.count == entries.len() as u64, "the manifest's count is not that of its lines");
        ensure!(header.seq == lease.round, "the manifest is another round's");
        Ok(Manifest { header, sha256, entries })
    }

    /// The uploads in one file of the lease, with their hashes.
    async fn read(&mut self, file: &LeaseFile, lease: &Lease) -> anyhow::Result<Vec<(Key, Sha256)>> {
        let wrong = "a file of the lease is not what the lease says";
        match file.kind {
            LeaseFileKind::Large => {
                let member = file.member.clone().context("a large file without member")?;
                let upload = file.upload.clone().context("a large file without upload")?;
                let (http, url) = (self.http.clone(), &file.url);
                let beat = async || self.beat(lease, 0).await.map(drop);
                let found = url::get_by_range(&http, url, file.size, beat).await?;
                ensure!(found == file.sha256, wrong);
                Ok(vec![((member, upload), found)])
            }
            LeaseFileKind::Pack => {
                let bytes = url::get(&self.http, &file.url).await?;
                ensure!(bytes.len() as u64 == file.size && Sha256::of(&bytes) == file.sha256, wrong);
                let mut found = Vec::new();
                for entry in tar::Archive::new(bytes.as_ref()).entries()? {
                    let mut entry = entry?;
                    let path = entry.path()?.to_string_lossy().into_owned();
                    let (member, upload) = path.split_once('/').context("a path in a pack")?;
                    let mut content = Vec::with_capacity(limits::SMALL_MAX);
                    entry.read_to_end(&mut content)?;
                    found.push(((member.parse()?, upload.parse()?), Sha256::of(&content)));
                }
                Ok(found)
            }
        }
    }

    /// A fresh id: a repeated one would get the first answer again.
    fn id(&mut self, op: &str) -> String {
        self.asks += 1;
        format!("{op}-{}", self.asks)
    }
}

/// The list of a batch's files, filled up to the size wanted.
fn merge(manifest: &Manifest, at_least: usize) -> Bytes {
    let mut text = format!("round {}\n", manifest.header.seq);
    for ((member, upload), sha256) in &manifest.entries {
        text.push_str(&format!("{sha256}  {member}/{upload}\n"));
    }
    while text.len() < at_least {
        text.push_str("and so on\n");
    }
    text.into()
}

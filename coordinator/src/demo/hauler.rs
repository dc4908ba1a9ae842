//! Publishers of large files: a grant over MQTT, the bytes over HTTP, and `commit`. Any language can do what they do.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use millpond_edge::transfer::Digests;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, answer, ask};
use millpond_protocol::{Sha256, Timestamp, UploadId};
use serde_json::json;

use super::content::Content;
use super::link::{Credentials, Link};
use super::member::Member;
use super::report::Resumed;
use super::url;

/// Bytes of a part.
pub(super) const PART: u64 = millpond_edge::large::PART;

/// A large file.
pub(super) struct Freight {
    pub(super) upload: UploadId,
    pub(super) event_time: Timestamp,
    pub(super) content: Content,
}

/// Sends a file by one PUT.
pub(super) async fn whole(
    who: Credentials,
    http: &reqwest::Client,
    file: &Freight,
) -> anyhow::Result<Member> {
    let mut member = Member::join(who).await?;
    let digests = file.content.digests(None).await?;
    let granted = grant(&member.link, file, &digests, None, Vec::new()).await?;
    let to = granted.to.context("a grant without a URL")?;
    url::put(http, &to, file.content.pieces(0..file.content.size()).map(Ok)).await?;
    commit(&mut member, file, digests.sha256).await?;
    Ok(member)
}

/// Sends a file in parts, is cut off in the middle of one, and comes back to send the others.
pub(super) async fn interrupted(
    who: Credentials,
    http: &reqwest::Client,
    file: &Freight,
) -> anyhow::Result<(Member, Resumed)> {
    let digests = file.content.digests(Some(PART)).await?;
    let count = u32::try_from(digests.parts.len())?;
    let sent = Arc::new(AtomicU64::new(0));

    let link = Link::open(who.clone()).await?;
    let through = count / 2;
    let granted = grant(&link, file, &digests, Some(PART), (1..=through + 1).collect()).await?;
    for part in &granted.parts {
        let to = part.to.as_ref().context("a part that nobody sent is there")?;
        let range = range(part.n, file.content.size());
        if part.n <= through {
            url::put(http, to, counted(file.content, range, &sent).map(Ok)).await?;
            continue;
        }
        let half = range.start..range.start.midpoint(range.end);
        let cut = std::iter::once_with(|| Err(std::io::Error::other("cut off")));
        let put = url::put(http, to, counted(file.content, half, &sent).map(Ok).chain(cut)).await;
        ensure!(put.is_err(), "half a part was taken for a whole one");
    }
    // Without a word: only the server knows how far it was.
    drop(link);

    let mut member = Member::join(who).await?;
    let mut missing: Vec<u32> = (1..=count).collect();
    let mut kept = None;
    while !missing.is_empty() {
        let granted = grant(&member.link, file, &digests, Some(PART), missing.clone()).await?;
        let there = |n: &u32| granted.there.iter().any(|(first, last)| (first..=last).contains(&n));
        kept.get_or_insert(missing.iter().filter(|n| there(n)).count());
        missing.retain(|n| !there(n));
        for part in &granted.parts {
            let Some(to) = &part.to else { continue };
            let pieces = counted(file.content, range(part.n, file.content.size()), &sent);
            url::put(http, to, pieces.map(Ok)).await?;
            missing.retain(|n| *n != part.n);
        }
    }
    let kept = u32::try_from(kept.unwrap_or_default())?;
    ensure!(kept == through, "{through} parts were sent before the cut, and {kept} are there");
    commit(&mut member, file, digests.sha256).await?;
    let twice = sent.load(Ordering::Relaxed) - file.content.size();
    let resumed = Resumed {
        bytes: file.content.size(),
        parts: count,
        kept,
        sent: count - kept,
        bytes_twice: Some(twice),
    };
    Ok((member, resumed))
}

/// Pieces of a range, counted as they are taken.
fn counted(
    content: Content,
    range: Range<u64>,
    sent: &Arc<AtomicU64>,
) -> impl Iterator<Item = Bytes> + Send + 'static {
    let sent = Arc::clone(sent);
    content.pieces(range).inspect(move |piece| {
        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
    })
}

/// The bytes of a part.
fn range(n: u32, size: u64) -> Range<u64> {
    let start = u64::from(n - 1) * PART;
    start..size.min(start + PART)
}

/// Asks where the file goes, or where those of its parts go.
pub(super) async fn grant(
    link: &Link,
    file: &Freight,
    digests: &Digests,
    part_size: Option<u64>,
    wanted: Vec<u32>,
) -> anyhow::Result<answer::Put> {
    let parts: Vec<ask::WantedPart> = (1..)
        .zip(&digests.parts)
        .filter(|(n, _)| wanted.contains(n))
        .map(|(n, sha256)| ask::WantedPart { n, sha256: *sha256 })
        .collect();
    let ask = json!({
        "id": format!("put-{}", file.upload), "upload": file.upload, "name": format!("{}.bin", file.upload),
        "size": digests.size, "sha256": digests.sha256, "event_time": file.event_time,
        "content_type": "application/octet-stream", "part_size": part_size, "parts": parts,
    });
    let granted: answer::Put = link.ask(Op::Put, &ask).await?;
    ensure!(granted.outcome == Outcome::Granted, "{} is {:?}", file.upload, granted.outcome);
    Ok(granted)
}

/// Has the file counted, and sees that it is.
async fn commit(member: &mut Member, file: &Freight, sha256: Sha256) -> anyhow::Result<()> {
    let ask = json!({ "id": format!("commit-{}", file.upload), "upload": file.upload, "wait_s": 30 });
    loop {
        let committed: answer::Commit = member.link.ask(Op::Commit, &ask).await?;
        let receipt = committed.uploads.first().context("a commit without a receipt")?;
        // Parts are read once more before the whole counts.
        if receipt.outcome != Outcome::Pending {
            break;
        }
    }
    member.stored(&file.upload, sha256).await
}

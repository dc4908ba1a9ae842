//! Presigned URLs: nothing but HTTP. Bytes go and come in pieces, whatever the size of the file.

use std::io;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::stream;
use millpond_edge::transfer::Hasher;
use millpond_protocol::Sha256;
use millpond_protocol::message::answer::PutTo;
use reqwest::{Body, StatusCode, header};

/// Bytes asked for at once.
const RANGE: u64 = 8 << 20;

/// Sends pieces to where a grant says; an error among them cuts the connection.
pub(super) async fn put(
    http: &reqwest::Client,
    to: &PutTo,
    pieces: impl Iterator<Item = io::Result<Bytes>> + Send + 'static,
) -> anyhow::Result<()> {
    let mut request = http.put(&to.url).body(Body::wrap_stream(stream::iter(pieces)));
    for (name, value) in to.headers.iter().filter(|(name, _)| *name != "host") {
        request = request.header(name, value);
    }
    request.send().await?.error_for_status()?;
    Ok(())
}

/// Reads something small.
pub(super) async fn get(http: &reqwest::Client, url: &str) -> anyhow::Result<Bytes> {
    let response = http.get(url).send().await?.error_for_status()?;
    Ok(response.bytes().await?)
}

/// Reads `size` bytes range by range; their SHA-256. After each range `between` is called.
pub(super) async fn get_by_range(
    http: &reqwest::Client,
    url: &str,
    size: u64,
    mut between: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Sha256> {
    let mut hasher = Hasher::default();
    let mut from = 0;
    while from < size {
        let end = size.min(from + RANGE);
        let (first, last) = (from, end - 1);
        let request = http.get(url).header(header::RANGE, format!("bytes={first}-{last}"));
        let mut response = request.send().await?.error_for_status()?;
        let range = response.headers().get(header::CONTENT_RANGE).context("no range in the answer")?;
        ensure!(
            response.status() == StatusCode::PARTIAL_CONTENT
                && range.to_str()? == format!("bytes {first}-{last}/{size}"),
            "another range was answered: {range:?}"
        );
        while let Some(chunk) = response.chunk().await? {
            hasher.add(&chunk);
            from += chunk.len() as u64;
        }
        ensure!(from == end, "the answer has {from} bytes, not {end}");
        between().await?;
    }
    Ok(hasher.finish())
}

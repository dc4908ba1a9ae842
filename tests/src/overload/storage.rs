//! What is done to embedded storage: by others as they should, by attackers as they should not.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millpond_protocol::Sha256;
use millpond_protocol::message::answer::PutTo;
use reqwest::{Method, Url};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

use super::{Field, from};
use crate::Api;
use crate::wire::Who;

/// Bytes of a file of the others: one that goes by URL both ways.
pub(super) const FILE: usize = 200_000;
/// Bytes of a file that trickles in.
const SLOW: usize = 4 << 20;

/// Asks something of a pool.
pub(super) async fn ask(api: &Api, pool: &str, op: &str, ask: &Value) -> Result<Value> {
    let path = format!("/v1/pools/{pool}/ask/{op}");
    let (status, answer) = api.try_send(Method::POST, &path, Some(ask)).await?;
    ensure!(status == 200, "{op}: {status} {answer}");
    Ok(answer)
}

/// Where a member may put a file of zeros.
pub(super) async fn granted(api: &Api, who: &Who, upload: &str, size: usize) -> Result<PutTo> {
    let sha256 = Sha256::of(&vec![0; size]);
    let put = json!({"id": upload, "upload": upload, "size": size, "sha256": sha256});
    let answer = ask(api, &who.pool, "put", &put).await?;
    serde_json::from_value(answer["to"].clone()).with_context(|| format!("no URL: {answer}"))
}

/// The head of a PUT to that URL.
fn head(to: &PutTo) -> Result<String> {
    let url: Url = to.url.parse()?;
    let (path, query) = (url.path(), url.query().unwrap_or_default());
    let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(80));
    let headers: String = to.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    Ok(format!("PUT {path}?{query} HTTP/1.1\r\nhost: {host}:{port}\r\n{headers}\r\n"))
}

/// Sends the same request again and again.
async fn flood(field: &Field, request: &[u8]) -> Result<()> {
    let mut io = from("127.0.0.2", field.storage).await?;
    let mut scrap = vec![0; 16 << 10];
    loop {
        io.write_all(request).await?;
        ensure!(io.read(&mut scrap).await? > 0, "it was closed");
    }
}

pub(super) async fn unsigned(field: &Field) -> Result<()> {
    flood(field, b"PUT /millpond/x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nfile").await
}

pub(super) async fn wrongly_signed(field: &Field, n: usize) -> Result<()> {
    let who = &field.bad[n % field.bad.len()];
    let mut to = granted(&field.api(who, [127, 0, 0, 2]), who, &format!("wrong-{n}"), FILE).await?;
    let (url, _) = to.url.split_once("X-Amz-Signature=").context("no signature")?;
    to.url = format!("{url}X-Amz-Signature={}", "0".repeat(64));
    // The body does not come: it is refused by its head.
    flood(field, head(&to)?.as_bytes()).await
}

pub(super) async fn slow_body(field: &Field, n: usize, pause: Duration) -> Result<()> {
    let who = &field.bad[n % field.bad.len()];
    let to = granted(&field.api(who, [127, 0, 0, 2]), who, &format!("slow-{n}"), SLOW).await?;
    let mut io = from("127.0.0.2", field.storage).await?;
    io.write_all(head(&to)?.as_bytes()).await?;
    for _ in 0..SLOW / 512 {
        io.write_all(&[0; 512]).await?;
        sleep(pause).await;
    }
    Ok(())
}

//! Bodies on their way in: from the connection to a settled file, or to nothing at all.
//!
//! The body is gathered into batches of 256 KiB. One batch is hashed and written on a blocking thread while the next is
//! gathered, so no thread waits for a slow client, and an upload holds two batches of memory at most.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use millpond_protocol::Sha256;
use s3s::dto::{PutObjectInput, StreamingBlob};
use s3s::{S3Request, TrailingHeaders};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};

use super::blobs::Incoming;
use super::store::{Settled, Store};
use crate::limits::embedded as limits;

/// Why a body is not kept.
#[derive(Debug)]
pub(super) enum Refused {
    NoLength,
    TooLarge {
        max: u64,
    },
    Length {
        declared: u64,
        got: u64,
    },
    Digest {
        declared: Sha256,
        got: Sha256,
    },
    BadChecksum,
    OtherChecksum,
    Stalled,
    Busy,
    /// The connection or its encoding failed; the text says how.
    Body(String),
    Disk(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// What the client said about a body before it sent it, or will have said at its end.
pub(super) struct Declared {
    size: u64,
    sha256: Option<Sha256>,
    /// Checksums behind the body, if it has any.
    trailers: Option<TrailingHeaders>,
}

impl Declared {
    pub(super) fn of(request: &S3Request<PutObjectInput>, max: u64) -> Result<Self, Refused> {
        let input = &request.input;
        let size = input.content_length.and_then(|size| u64::try_from(size).ok()).ok_or(Refused::NoLength)?;
        if size > max {
            return Err(Refused::TooLarge { max });
        }
        let others = [
            &input.content_md5,
            &input.checksum_crc32,
            &input.checksum_crc32c,
            &input.checksum_crc64nvme,
            &input.checksum_sha1,
        ];
        // What cannot be compared must not seem to have been.
        if others.iter().any(|checksum| checksum.is_some()) {
            return Err(Refused::OtherChecksum);
        }
        let sha256 = input.checksum_sha256.as_deref().map(parse).transpose()?;
        Ok(Self { size, sha256, trailers: request.trailing_headers.clone() })
    }

    /// The checksum that came behind the body. To be asked once the body has been read.
    fn trailing(&self) -> Result<Option<Sha256>, Refused> {
        let Some(trailers) = self.trailers.as_ref().and_then(TrailingHeaders::take) else { return Ok(None) };
        let mut found = None;
        for (name, value) in &trailers {
            match name.as_str() {
                "x-amz-checksum-sha256" => {
                    found = Some(parse(value.to_str().map_err(|_| Refused::BadChecksum)?)?);
                }
                name if name.starts_with("x-amz-checksum-") => return Err(Refused::OtherChecksum),
                _ => {}
            }
        }
        Ok(found)
    }
}

fn parse(checksum: &str) -> Result<Sha256, Refused> {
    let bytes = STANDARD.decode(checksum).map_err(|_| Refused::BadChecksum)?;
    bytes.try_into().map(Sha256).map_err(|_| Refused::BadChecksum)
}

/// Receives a body, compares it with what was declared and puts it on disk for good. If that fails, or whoever waits
/// for it goes away, nothing of it stays.
pub(super) async fn receive(
    store: &Arc<Store>,
    turns: &Semaphore,
    body: Option<StreamingBlob>,
    declared: Declared,
    stall: Duration,
) -> Result<Settled, Refused> {
    let turn = tokio::time::timeout(limits::UPLOAD_WAIT, turns.acquire());
    let Ok(Ok(_turn)) = turn.await else { return Err(Refused::Busy) };
    let mut body = Gather { body, stall, received: 0, declared: declared.size };
    let mut writing: Option<JoinHandle<io::Result<Incoming>>> = None;
    loop {
        let (batch, last) = body.batch().await?;
        let begun = match writing.take() {
            Some(writing) => Some(join(writing).await?),
            None => None,
        };
        let (store, size) = (Arc::clone(store), declared.size);
        let write = move || {
            let mut incoming = begun.map_or_else(|| store.create(size), Ok)?;
            incoming.write(&batch)?;
            Ok((store, incoming))
        };
        if !last {
            writing = Some(spawn_blocking(move || write().map(|(_, incoming)| incoming)));
            continue;
        }
        if body.received != declared.size {
            return Err(Refused::Length { declared: declared.size, got: body.received });
        }
        let expected = [declared.sha256, declared.trailing()?];
        return join(spawn_blocking(move || {
            let (store, incoming) = write()?;
            let got = incoming.sha256();
            match expected.into_iter().flatten().find(|declared| *declared != got) {
                Some(declared) => Ok(Err(Refused::Digest { declared, got })),
                None => store.settle(incoming).map(Ok),
            }
        }))
        .await?;
    }
}

async fn join<T>(task: JoinHandle<io::Result<T>>) -> io::Result<T> {
    task.await.map_err(io::Error::other)?
}

/// Gathers the chunks of a body into batches.
struct Gather {
    body: Option<StreamingBlob>,
    stall: Duration,
    received: u64,
    declared: u64,
}

impl Gather {
    /// The next batch, and whether it is the last.
    async fn batch(&mut self) -> Result<(Vec<Bytes>, bool), Refused> {
        let (mut chunks, mut size) = (Vec::new(), 0);
        let Some(body) = &mut self.body else { return Ok((chunks, true)) };
        while size < limits::CHUNK {
            let chunk = match tokio::time::timeout(self.stall, body.next()).await {
                Err(_) => return Err(Refused::Stalled),
                Ok(None) => return Ok((chunks, true)),
                Ok(Some(Err(error))) => return Err(Refused::Body(error.to_string())),
                Ok(Some(Ok(chunk))) => chunk,
            };
            size += chunk.len();
            self.received += chunk.len() as u64;
            if self.received > self.declared {
                return Err(Refused::Length { declared: self.declared, got: self.received });
            }
            chunks.push(chunk);
        }
        Ok((chunks, false))
    }
}

//! Bodies on their way in: from the connection to a settled file, or to nothing at all.
//!
//! The body is gathered into batches of 256 KiB. One batch is hashed and written on a blocking thread while the next is
//! gathered, so no thread waits for a slow client, and an upload holds two batches of memory at most.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use s3s::dto::StreamingBlob;
use s3s::{S3Request, TrailingHeaders};
use tokio::task::{JoinHandle, spawn_blocking};

use super::blobs::Incoming;
use super::checksum::Algorithm;
use super::store::{Settled, Store, StoreError};
use super::turns::Turns;
use crate::limits::embedded as limits;

/// Why a body is not kept.
#[derive(Debug)]
pub(super) enum Refused {
    NoLength,
    TooLarge {
        max: u64,
    },
    Quota {
        quota: u64,
    },
    Length {
        declared: u64,
        got: u64,
    },
    Digest {
        algorithm: Algorithm,
        got: String,
    },
    BadChecksum(Algorithm),
    /// A checksum behind the body that was not announced before it.
    Unannounced(Algorithm),
    /// A checksum was announced for behind the body, and none came.
    NoTrailer(Algorithm),
    Busy,
    /// Too many bodies for one key.
    Crowded,
    /// The connection or its encoding failed; the text says how.
    Body(String),
    Store(StoreError),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The checksums in the headers of a request that has a body.
macro_rules! said_checksums {
    ($input:expr) => {
        [
            (Algorithm::Sha256, $input.checksum_sha256.as_deref()),
            (Algorithm::Sha1, $input.checksum_sha1.as_deref()),
            (Algorithm::Crc32, $input.checksum_crc32.as_deref()),
            (Algorithm::Crc32c, $input.checksum_crc32c.as_deref()),
            (Algorithm::Crc64Nvme, $input.checksum_crc64nvme.as_deref()),
        ]
    };
}
pub(super) use said_checksums;

/// What the client said about a body before it sent it, or will have said at its end.
pub(super) struct Declared {
    size: u64,
    sums: Vec<(Algorithm, Vec<u8>)>,
    /// What the body is hashed by, beside SHA-256.
    algorithms: Vec<Algorithm>,
    /// Checksums that are to come behind the body.
    announced: Vec<Algorithm>,
    /// Checksums behind the body, if it has any.
    trailers: Option<TrailingHeaders>,
}

impl Declared {
    pub(super) fn of<T>(
        request: &S3Request<T>,
        length: Option<i64>,
        checksums: [(Algorithm, Option<&str>); 5],
        md5: Option<&str>,
        max: u64,
    ) -> Result<Self, Refused> {
        let size = length.and_then(|size| u64::try_from(size).ok()).ok_or(Refused::NoLength)?;
        if size > max {
            return Err(Refused::TooLarge { max });
        }
        let mut sums = Vec::new();
        for (algorithm, value) in checksums.into_iter().chain([(Algorithm::Md5, md5)]) {
            if let Some(value) = value {
                sums.push((algorithm, algorithm.parse(value).ok_or(Refused::BadChecksum(algorithm))?));
            }
        }
        let announced =
            request.headers.get_all("x-amz-trailer").iter().filter_map(|names| names.to_str().ok());
        let announced: Vec<Algorithm> = announced
            .flat_map(|names| names.split(','))
            .filter_map(|name| Algorithm::of_header(&name.trim().to_ascii_lowercase()))
            .collect();
        let algorithms = sums.iter().map(|(algorithm, _)| *algorithm).chain(announced.iter().copied());
        let (algorithms, trailers) = (algorithms.collect(), request.trailing_headers.clone());
        Ok(Self { size, sums, algorithms, announced, trailers })
    }

    /// Whether the client says a checksum of this algorithm, before or behind the body.
    pub(super) fn compares(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Has the body hashed by one algorithm more.
    pub(super) fn also(mut self, algorithm: Option<Algorithm>) -> Self {
        self.algorithms.extend(algorithm);
        self
    }

    /// What the body's checksums must be. To be asked once the body has been read.
    fn expected(mut self) -> Result<Vec<(Algorithm, Vec<u8>)>, Refused> {
        let trailers = self.trailers.as_ref().and_then(TrailingHeaders::take).unwrap_or_default();
        for (name, value) in &trailers {
            let Some(algorithm) = Algorithm::of_header(name.as_str()) else { continue };
            if !self.algorithms.contains(&algorithm) {
                return Err(Refused::Unannounced(algorithm));
            }
            self.announced.retain(|announced| *announced != algorithm);
            let sum = value.to_str().ok().and_then(|value| algorithm.parse(value));
            self.sums.push((algorithm, sum.ok_or(Refused::BadChecksum(algorithm))?));
        }
        match self.announced.first() {
            Some(missing) => Err(Refused::NoTrailer(*missing)),
            None => Ok(self.sums),
        }
    }
}

/// Receives a body, compares it with what was declared and puts it on disk for good. If that fails, or whoever waits
/// for it goes away, nothing of it stays. Of its key there may be `most` bodies at once.
pub(super) async fn receive(
    store: &Arc<Store>,
    (turns, key, most): (&Turns, &str, usize),
    body: Option<StreamingBlob>,
    declared: Declared,
) -> Result<Settled, Refused> {
    let _turn = turns.turn(key, most).await?;
    let claim = store
        .claim(declared.size)
        .map_err(Refused::Store)?
        .map_err(|over| Refused::Quota { quota: over.quota })?;
    let mut begin = Some((claim, declared.algorithms.clone()));
    let mut body = Gather { body, declared: declared.size, received: 0 };
    let mut writing: Option<JoinHandle<io::Result<Incoming>>> = None;
    loop {
        let (batch, last) = body.batch().await?;
        let begun = match writing.take() {
            Some(writing) => Some(join(writing).await?),
            None => None,
        };
        let (store, begin) = (Arc::clone(store), begin.take());
        let write = move || {
            let mut incoming = match (begun, begin) {
                (Some(incoming), _) => incoming,
                (None, Some((claim, algorithms))) => store.create(claim, &algorithms)?,
                (None, None) => return Err(io::ErrorKind::BrokenPipe.into()),
            };
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
        let expected = declared.expected()?;
        return join(spawn_blocking(move || {
            let (store, mut incoming) = write()?;
            let got = incoming.sums();
            let wrong = expected.iter().find(|(algorithm, sum)| got.get(*algorithm) != Some(sum.as_slice()));
            match wrong {
                Some((algorithm, _)) => {
                    let got = got.text(*algorithm).unwrap_or_default();
                    Ok(Err(Refused::Digest { algorithm: *algorithm, got }))
                }
                None => store.settle(incoming, got).map(Ok),
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
    declared: u64,
    received: u64,
}

impl Gather {
    /// The next batch, and whether it is the last.
    async fn batch(&mut self) -> Result<(Vec<Bytes>, bool), Refused> {
        let (mut chunks, mut size) = (Vec::new(), 0);
        let Some(body) = &mut self.body else { return Ok((chunks, true)) };
        while size < limits::CHUNK {
            let chunk = match body.next().await {
                None => return Ok((chunks, true)),
                Some(Err(error)) => return Err(Refused::Body(error.to_string())),
                Some(Ok(chunk)) => chunk,
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

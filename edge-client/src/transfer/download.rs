//! GET by range into a partial file, and its proof.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use millpond_failpoint::{Point, reach};
use millpond_protocol::Sha256;
use reqwest::{Response, StatusCode, Url, header};

use super::attempt::{Failure, Patience, refusal, told};
use super::digest::Hasher;
use super::{Meter, Transfer, TransferError};

/// What a download must turn out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub size: u64,
    pub sha256: Sha256,
}

impl Transfer {
    /// Fetches into the file `partial` what the URL stands for, going on from what an earlier call left there. When it returns, the
    /// file has the promised size and SHA-256 and is synced; [`place`] shows it under its name. After an error the file holds what
    /// came so far, or nothing if that was wrong.
    ///
    /// # Errors
    /// As [`TransferError`] says. With `Expired`, call again with a fresh URL.
    pub async fn fetch(
        &self,
        url: &str,
        partial: &Path,
        expected: &Expected,
        meter: &Meter,
    ) -> Result<(), TransferError> {
        self.download(url, partial, *expected, true, meter).await
    }

    /// The same of what is known by its SHA-256 alone, and has at most so many bytes.
    ///
    /// # Errors
    /// As [`Transfer::fetch`]; `TooLong` if it has more.
    pub async fn fetch_whole(
        &self,
        url: &str,
        partial: &Path,
        sha256: Sha256,
        at_most: u64,
    ) -> Result<(), TransferError> {
        self.download(url, partial, Expected { size: at_most, sha256 }, false, &Meter::silent()).await
    }

    /// Where the size is not known, it is whole when an answer is: one that was cut is an error of the HTTP client.
    async fn download(
        &self,
        url: &str,
        partial: &Path,
        expected: Expected,
        is_size_known: bool,
        meter: &Meter,
    ) -> Result<(), TransferError> {
        let mut sink = Sink::open(partial, expected).await?;
        meter.add(sink.have);
        let mut inherited = sink.have > 0;
        let mut patience = Patience::new(&self.options);
        loop {
            let mut is_whole = is_size_known && sink.have >= expected.size;
            while !is_whole {
                match self.read(url, &mut sink, meter).await {
                    Ok(is_all) if is_all || !is_size_known => is_whole = true,
                    Ok(_) => {
                        let ended = format!("the answer ended after {} bytes", sink.have);
                        patience.after(Failure::Again(ended), sink.have).await?;
                    }
                    Err(failure) => patience.after(failure, sink.have).await?,
                }
            }
            reach(Point::DownloadWhole);
            match sink.prove().await {
                Err(TransferError::Mismatch { .. }) if inherited => {
                    // What an earlier process left was not the beginning of this file.
                    inherited = false;
                    meter.take_back(sink.have);
                    sink.clear()?;
                }
                Err(error @ TransferError::Mismatch { .. }) => {
                    sink.clear()?;
                    return Err(error);
                }
                proof => return proof,
            }
        }
    }

    /// One GET from where the sink stands to the end of the answer; whether the promised size is reached.
    async fn read(&self, url: &str, sink: &mut Sink, meter: &Meter) -> Result<bool, Failure> {
        let stall = self.options.stall;
        let url: Url = url.parse().map_err(|_| Failure::Again("that is no URL".into()))?;
        let mut request = self.client(&url)?.get(url);
        if sink.have > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", sink.have));
        }
        let still = || Failure::Again(format!("no byte moved for {stall:?}"));
        let answer = tokio::time::timeout(stall, request.send()).await.map_err(|_| still())?;
        let mut response = answer.map_err(|error| Failure::Again(told(error)))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(&response) == Some(sink.have) => {}
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                meter.take_back(sink.have);
                sink.clear()?;
                if response.status() != StatusCode::OK {
                    return Err(Failure::Again("storage does not give the rest of the file".into()));
                }
            }
            _ => return Err(refusal(response, stall).await),
        }
        loop {
            let chunk = tokio::time::timeout(stall, response.chunk()).await.map_err(|_| still())?;
            let Some(chunk) = chunk.map_err(|error| Failure::Again(told(error)))? else { break };
            self.options.throttle.pass(chunk.len()).await;
            sink.write(&chunk)?;
            meter.add(chunk.len() as u64);
        }
        Ok(sink.have >= sink.expected.size)
    }
}

/// The first byte that a partial answer holds.
fn begins_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// A partial file, and the digest of what is in it.
struct Sink {
    path: PathBuf,
    file: File,
    have: u64,
    digest: Hasher,
    expected: Expected,
}

impl Sink {
    /// Reads what is there: of a large file for minutes.
    async fn open(path: &Path, expected: Expected) -> Result<Self, TransferError> {
        let owned = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || Self::read(owned, expected)).await;
        opened.unwrap_or_else(|error| Err(TransferError::local(path, io::Error::other(error))))
    }

    fn read(path: PathBuf, expected: Expected) -> Result<Self, TransferError> {
        let local = |error| TransferError::local(&path, error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(local)?;
        let mut sink = Self { path: path.clone(), file, have: 0, digest: Hasher::default(), expected };
        if sink.file.metadata().map_err(local)?.len() > expected.size {
            sink.clear()?;
        }
        let mut buffer = vec![0; 128 << 10];
        loop {
            match sink.file.read(&mut buffer).map_err(local)? {
                0 => break,
                n => {
                    sink.digest.add(&buffer[..n]);
                    sink.have += n as u64;
                }
            }
        }
        Ok(sink)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        if self.have + bytes.len() as u64 > self.expected.size {
            return Err(TransferError::TooLong { expected: self.expected.size });
        }
        self.file.write_all(bytes).map_err(|error| TransferError::local(&self.path, error))?;
        self.digest.add(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), TransferError> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared.map_err(|error| TransferError::local(&self.path, error))?;
        (self.have, self.digest) = (0, Hasher::default());
        Ok(())
    }

    /// Whether the bytes are the promised ones; then they are synced.
    async fn prove(&self) -> Result<(), TransferError> {
        let found = self.digest.clone().finish();
        if found != self.expected.sha256 {
            let (path, expected) = (self.path.clone(), self.expected.sha256);
            return Err(TransferError::Mismatch { path, expected, found });
        }
        let file = self.file.try_clone().map_err(|error| TransferError::local(&self.path, error))?;
        let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
        let synced = synced.unwrap_or_else(|error| Err(io::Error::other(error)));
        synced.map_err(|error| TransferError::local(&self.path, error))
    }
}

/// Shows a proven file under its name, in place of what was there: after this, also after a power cut, the name has the
/// whole file or still the one before. Both names must be on one file system.
///
/// # Errors
/// What the system says of the rename, or of the sync of the directory.
pub fn place(partial: &Path, name: &Path) -> Result<(), TransferError> {
    std::fs::rename(partial, name).map_err(|error| TransferError::local(name, error))?;
    let directory = parent(name);
    sync_directory(directory).map_err(|error| TransferError::local(directory, error))
}

/// The directory that a name is in.
pub(crate) fn parent(name: &Path) -> &Path {
    name.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes what was renamed, made or removed in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

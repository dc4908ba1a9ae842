//! An object that is written piece by piece, in bounded memory.

use bytes::{Bytes, BytesMut};
use millpond_protocol::Sha256;
use sha2::{Digest as _, Sha256 as Hasher};
use tokio_util::task::AbortOnDropHandle;

use crate::error::Error;
use crate::handle::Storage;
use crate::key::ObjectKey;
use crate::limits;
use crate::multipart::{MultipartId, Part};

/// An object that is written piece by piece; there is none before [`Writer::finish`].
///
/// What fits one part is a plain PUT; more goes up in parts of [`limits::WRITER_PART`] (or larger ones, where
/// [`Storage::writer_of`] was told that they would be too many) while the next one fills, so that two of them are in memory at
/// most. Storage compares each with its SHA-256. After an error the writer is good for
/// [`Writer::abort`] alone. Dropped unfinished, it leaves its parts to the sweep of storage.
pub struct Writer {
    storage: Storage,
    key: ObjectKey,
    /// Bytes of each part but the last.
    step: usize,
    /// Of everything, and of the part that is being filled. Hashing as the bytes come keeps each step short.
    whole: Hasher,
    part: Hasher,
    size: u64,
    buffer: BytesMut,
    upload: Option<MultipartId>,
    parts: Vec<Part>,
    under_way: Option<AbortOnDropHandle<Result<Part, Error>>>,
}

impl Storage {
    /// Begins an object that is written piece by piece, of a size that is not known yet: up to 78 GiB. Nothing is sent yet.
    pub fn writer(&self, key: &ObjectKey) -> Writer {
        self.writer_of(key, 0)
    }

    /// Begins an object that is written piece by piece and will have `size` bytes, more or less: its parts are as large as
    /// that asks for (105 MiB for 1 TiB), two of them are in memory, and each has the time of one call to go up. Nothing is sent yet.
    pub fn writer_of(&self, key: &ObjectKey, size: u64) -> Writer {
        Writer {
            storage: self.clone(),
            key: key.clone(),
            step: step(size),
            whole: Hasher::new(),
            part: Hasher::new(),
            size: 0,
            buffer: BytesMut::new(),
            upload: None,
            parts: Vec::new(),
            under_way: None,
        }
    }
}

impl Writer {
    /// Has the object go up in parts, however large it is, and says what storage calls that: a caller that notes it before it
    /// writes anything can give up what a crash leaves.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn begin(&mut self) -> Result<MultipartId, Error> {
        let begun = match self.upload.take() {
            Some(upload) => upload,
            None => self.storage.create_multipart(&self.key).await?,
        };
        Ok(self.upload.insert(begun).clone())
    }

    /// Appends `bytes`, and waits where storage is slower than they come.
    ///
    /// # Errors
    ///
    /// Those of the calls that it comes to; [`Error::Mismatch`] beyond 10,000 parts.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            if self.buffer.len() == self.step {
                self.send().await?;
            }
            if self.buffer.is_empty() && self.upload.is_some() {
                self.buffer.reserve(self.step);
            }
            let piece = bytes.split_to(bytes.len().min(self.step - self.buffer.len()));
            self.whole.update(&piece);
            self.part.update(&piece);
            self.size += piece.len() as u64;
            self.buffer.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// Length and SHA-256 of what was written so far.
    pub fn written(&self) -> (u64, Sha256) {
        (self.size, Sha256(self.whole.clone().finalize().into()))
    }

    /// Makes the object out of what was written: its length and SHA-256.
    ///
    /// # Errors
    ///
    /// Those of the calls that it comes to; the object is then not there, or is complete.
    pub async fn finish(mut self) -> Result<(u64, Sha256), Error> {
        let (size, sha256) = self.written();
        if self.upload.is_none() {
            self.storage.put(&self.key, self.buffer.split().freeze(), sha256).await?;
        } else if let Err(error) = self.complete().await {
            self.abort().await;
            return Err(error);
        } else {
            self.storage.call("confirm", || self.storage.confirm(&self.key, size, sha256)).await?;
        }
        Ok((size, sha256))
    }

    /// Gives the object up and frees its parts. What storage does not free now it frees by its own sweep.
    pub async fn abort(mut self) {
        drop(self.under_way.take());
        if let Some(upload) = &self.upload
            && let Err(error) = self.storage.abort_multipart(&self.key, upload).await
        {
            tracing::warn!(%error, "an unfinished object's parts stay in storage until its own sweep");
        }
    }

    async fn complete(&mut self) -> Result<(), Error> {
        self.send().await?;
        self.settle().await?;
        match &self.upload {
            Some(upload) => self.storage.complete_multipart(&self.key, upload, &self.parts).await,
            None => Ok(()),
        }
    }

    /// Sends the buffer as a part, as soon as the part before it is there.
    async fn send(&mut self) -> Result<(), Error> {
        self.settle().await?;
        let upload = self.begin().await?;
        let n = u16::try_from(self.parts.len() + 1).ok().filter(|n| *n <= limits::PARTS_MAX).ok_or_else(
            || Error::Mismatch(format!("the object has more than {} parts", limits::PARTS_MAX)),
        )?;
        let bytes = self.buffer.split().freeze();
        let sha256 = Sha256(self.part.finalize_reset().into());
        let (storage, key) = (self.storage.clone(), self.key.clone());
        self.under_way = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            storage.put_part(&key, &upload, n, bytes, sha256).await
        })));
        Ok(())
    }

    /// Waits for the part that is under way.
    async fn settle(&mut self) -> Result<(), Error> {
        if let Some(task) = &mut self.under_way {
            let part = task.await.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())));
            self.under_way = None;
            self.parts.push(part?);
        }
        Ok(())
    }
}

/// Bytes of each part of an object of `size` bytes: whole MiB, and no more parts than S3 allows.
fn step(size: u64) -> usize {
    let least = size.div_ceil(u64::from(limits::PARTS_MAX)).next_multiple_of(1 << 20);
    usize::try_from(least).unwrap_or(usize::MAX).max(limits::WRITER_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_with_an_object_that_would_have_too_many() {
        let parts = u64::from(limits::PARTS_MAX);
        let usual = limits::WRITER_PART as u64 * parts;
        for size in [0, 1, usual] {
            assert_eq!(step(size), limits::WRITER_PART);
        }
        assert_eq!(step(usual + 1), 9 << 20);
        for size in [100 << 30, 1 << 40, 5 << 40, (5 << 40) - 1] {
            let step = step(size) as u64;
            assert!(step * parts >= size && (step - (1 << 20)) * parts < size, "{size}: {step}");
        }
    }
}

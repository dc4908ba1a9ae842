//! The SHA-256 of an object that storage holds.

use std::time::Duration;

use futures_util::StreamExt as _;
use millpond_protocol::Sha256;
use sha2::{Digest as _, Sha256 as Hasher};

use crate::client::ObjectStream;
use crate::error::Error;
use crate::handle::Storage;
use crate::key::ObjectKey;
use crate::limits;

impl Storage {
    /// Reads an object once, in bounded memory: its length and SHA-256. `progress` hears how many bytes have been read so
    /// far, some times a second or more often.
    ///
    /// It may take as long as bytes come. A broken connection is resumed where it broke, if the object is still the same;
    /// only when attempts one after the other bring not a single byte it fails.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if storage stands still; [`Error::Mismatch`] if the object was replaced meanwhile.
    pub async fn hash(&self, key: &ObjectKey, mut progress: impl FnMut(u64)) -> Result<(u64, Sha256), Error> {
        let mut hasher = Hasher::new();
        let mut read: u64 = 0;
        let mut known: Option<Known> = None;
        let mut in_vain = 0;
        loop {
            let before = read;
            let failed = match self.open(key, read, known.as_ref()).await {
                Ok(mut object) => {
                    let size = known.get_or_insert_with(|| Known::of(&object)).size;
                    loop {
                        if read == size {
                            return Ok((size, Sha256(hasher.finalize().into())));
                        }
                        match object.next().await {
                            Some(Ok(chunk)) => {
                                hasher.update(&chunk);
                                read += chunk.len() as u64;
                                progress(read);
                            }
                            Some(Err(error)) => break error,
                            None => break Error::Unavailable(format!("{read} of {size} bytes came")),
                        }
                    }
                }
                Err(error) => error,
            };
            in_vain = if read > before { 0 } else { in_vain + 1 };
            if !failed.is_temporary() || in_vain >= limits::ATTEMPTS {
                return Err(failed);
            }
            tokio::time::sleep(pause(in_vain)).await;
        }
    }

    /// Opens what is left of the object behind `read` bytes, if it is the one that is known.
    async fn open(&self, key: &ObjectKey, read: u64, known: Option<&Known>) -> Result<ObjectStream, Error> {
        let Some(known) = known else { return self.get_stream(key, None).await };
        let object = self.get_stream(key, Some(read..known.size)).await?;
        if object.size == known.size - read && object.etag == known.etag {
            Ok(object)
        } else {
            Err(Error::Mismatch("the object was replaced while it was read".into()))
        }
    }
}

/// What tells one object from another of the same key.
struct Known {
    size: u64,
    etag: Option<String>,
}

impl Known {
    fn of(object: &ObjectStream) -> Self {
        Self { size: object.size, etag: object.etag.clone() }
    }
}

fn pause(in_vain: u32) -> Duration {
    limits::BACKOFF * 4_u32.pow(in_vain.min(4))
}

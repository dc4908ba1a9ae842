//! Whether storage works, tried with an object of its own.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use millpond_protocol::Sha256;

use crate::error::Error;
use crate::handle::Storage;
use crate::key::ObjectKey;

impl Storage {
    /// Stores a small object, reads it back and removes it.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if nobody answers; [`Error::Refused`] says by its fault whether the clock, the
    /// credentials or the bucket are wrong; [`Error::Mismatch`] if what comes back is not what was stored.
    pub async fn probe(&self) -> Result<(), Error> {
        let key = fresh_key()?;
        let bytes = Bytes::copy_from_slice(key.as_str().as_bytes());
        self.put(&key, bytes.clone(), Sha256::of(&bytes)).await?;
        let read = self.get(&key, bytes.len()).await;
        let removed = self.delete(&key).await;
        match read {
            Ok(read) if read == bytes => removed,
            Ok(_) => Err(Error::Mismatch("what was stored came back changed".into())),
            Err(Error::NotFound) => Err(Error::Mismatch("what was just stored is not there".into())),
            Err(error) => Err(error),
        }
    }
}

/// A key for something that is only tried.
pub(crate) fn fresh_key() -> Result<ObjectKey, Error> {
    let mut name = [0; 16];
    getrandom::fill(&mut name).map_err(|error| Error::Unavailable(format!("no randomness: {error}")))?;
    format!("probe/{}", HEXLOWER.encode(&name))
        .parse()
        .map_err(|error: crate::BadKey| Error::Mismatch(error.to_string()))
}

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
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|error| Error::Unavailable(format!("no randomness: {error}")))?;
        let key: ObjectKey = format!("probe/{}", HEXLOWER.encode(&name))
            .parse()
            .map_err(|error: crate::BadKey| Error::Mismatch(error.to_string()))?;
        let bytes = Bytes::copy_from_slice(&name);
        self.put(&key, bytes.clone(), Sha256::of(&bytes))
            .await
            .map_err(|error| with_hint(error, proxied()))?;
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

/// Calls go through the proxy of the environment even if storage is on this very machine. Nobody suspects that.
fn with_hint(error: Error, proxied: bool) -> Error {
    match error {
        Error::Unavailable(detail) if proxied => Error::Unavailable(format!(
            "{detail} (the environment names a proxy; if storage is not behind it, name its host in NO_PROXY)"
        )),
        other => other,
    }
}

fn proxied() -> bool {
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_behind_a_forgotten_proxy_is_told_so() {
        let away = || Error::Unavailable("connection refused".into());
        assert!(with_hint(away(), true).to_string().contains("NO_PROXY"));
        assert_eq!(with_hint(away(), false), away());
        assert_eq!(with_hint(Error::NotFound, true), Error::NotFound);
    }
}

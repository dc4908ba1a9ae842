//! Whether storage works, tried with objects of its own.

use std::sync::OnceLock;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::Timestamp as Clock;
use millpond_protocol::{Sha256, Timestamp};

use crate::config::{BadConfig, StorageConfig};
use crate::error::{Error, Fault};
use crate::handle::Storage;
use crate::http;
use crate::key::ObjectKey;
use crate::limits;
use crate::presign::PresignedPut;

/// Begins the key of everything that is only tried.
pub(crate) const PROBES: &str = "probe/";

/// What a thorough look at storage found, each in a sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What keeps Millpond or its clients from working.
    pub problems: Vec<String>,
    /// What works, and not as well as it should, or cannot be told from this machine.
    pub warnings: Vec<String>,
}

/// Plays a client: uses URLs, with no credentials.
pub(crate) struct Outsider {
    http: reqwest::Client,
    /// What URLs are signed for, for people.
    public_url: String,
}

impl Outsider {
    pub(crate) fn new(config: &StorageConfig) -> Result<Self, BadConfig> {
        let http = http::builder(config)?
            .timeout(limits::PUBLIC)
            .build()
            .map_err(|error| BadConfig(vec![error.to_string()]))?;
        Ok(Self { http, public_url: config.public_url.as_str().trim_end_matches('/').to_owned() })
    }

    async fn put(&self, put: &PresignedPut, body: Bytes) -> Result<(), Error> {
        let request = put
            .headers
            .iter()
            .fold(self.http.put(&put.url), |request, (name, value)| request.header(*name, value));
        self.send(request.body(body)).await.map(|_| ()).map_err(no_s3)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Error> {
        let answer = request.send().await.map_err(|error| http::unsent(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(http::refused(answer, false, Clock::now()).await)
    }
}

impl Storage {
    /// Asks for the bucket, stores a small object in it, reads it back whole and in part, and removes it.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if nobody answers; [`Error::Refused`] says by its fault whether the clock, the
    /// credentials, the permissions, the bucket or the certificate are wrong; [`Error::Mismatch`] if what comes back is
    /// not what was stored.
    pub async fn probe(&self) -> Result<(), Error> {
        // A PUT would not tell: it makes the bucket where the credentials are good for that, and else they may be at fault.
        match self.call("head_bucket", || self.client().bucket()).await {
            // Anything that speaks HTTP says 404 of what it does not know, and to HEAD nobody can say more.
            Err(Error::NotFound) => {
                self.call("list", || self.client().list_one()).await.map_err(no_s3)?;
            }
            Err(error) if error.is_temporary() => return Err(error),
            // Of an answer without a body less is known than the PUT will say.
            Ok(()) | Err(_) => {}
        }
        let key = probe_key()?;
        let bytes = Bytes::copy_from_slice(key.as_str().as_bytes());
        self.put(&key, bytes.clone(), Sha256::of(&bytes)).await.map_err(no_s3)?;
        let read = self.read_back(&key, &bytes).await;
        let removed = self.delete(&key).await;
        read?;
        removed?;
        match self.stat(&key).await? {
            None => Ok(()),
            Some(_) => Err(Error::Mismatch("what was just deleted is still there".into())),
        }
    }

    /// Removes what processes left behind that died while they tried storage: no row knows it. For whoever has storage to
    /// itself; a thousand at a time.
    ///
    /// # Errors
    ///
    /// As [`Storage::list`] and [`Storage::delete`].
    pub async fn forget_probes(&self) -> Result<(), Error> {
        for left in self.list(PROBES).await?.into_iter().take_while(|found| found.key.starts_with(PROBES)) {
            if let Ok(key) = left.key.parse() {
                self.delete(&key).await?;
            }
        }
        Ok(())
    }

    /// Everything that Millpond asks of storage: [`Storage::probe`], then [`Storage::check_more`].
    pub async fn check(&self) -> Findings {
        match self.probe().await {
            Ok(()) => self.check_more().await,
            Err(error) => Findings { problems: vec![error.to_string()], warnings: Vec::new() },
        }
    }

    /// What a probe leaves out, in some twelve calls: an object in parts, and URLs as a client uses them.
    ///
    /// Whether others can reach `public_url` cannot be told from here; that this machine cannot is a warning.
    pub async fn check_more(&self) -> Findings {
        let mut found = Findings::default();
        if let Err(error) = self.check_parts().await {
            found.problems.push(format!("an object cannot be made of parts: {error}"));
        }
        if let Err(error) = self.check_urls(&mut found).await {
            found.problems.push(format!("URLs cannot be tried: {error}"));
        }
        found
    }

    async fn read_back(&self, key: &ObjectKey, bytes: &Bytes) -> Result<(), Error> {
        let gone = |error| match error {
            Error::NotFound => Error::Mismatch("what was just stored is not there".into()),
            other => other,
        };
        if self.get(key, bytes.len()).await.map_err(gone)? != bytes {
            return Err(Error::Mismatch("what was stored came back changed".into()));
        }
        let mut part = self.get_stream(key, Some(1..4)).await?;
        let mut read = Vec::new();
        while let Some(chunk) = futures_util::StreamExt::next(&mut part).await {
            read.extend_from_slice(&chunk?);
        }
        if read != bytes[1..4] {
            return Err(Error::Mismatch("a range of an object is not that range".into()));
        }
        Ok(())
    }

    async fn check_parts(&self) -> Result<(), Error> {
        let key = fresh_key()?;
        let bytes = Bytes::copy_from_slice(key.as_str().as_bytes());
        let upload = self.create_multipart(&key).await?;
        let made = async {
            self.put_part(&key, &upload, 1, bytes.clone(), Sha256::of(&bytes)).await?;
            let parts = self.list_parts(&key, &upload).await?;
            self.complete_multipart(&key, &upload, &parts).await?;
            self.read_back(&key, &bytes).await
        };
        let made = made.await;
        if made.is_err() {
            // What is wrong is known already.
            let _ = self.abort_multipart(&key, &upload).await;
        }
        let removed = self.delete(&key).await;
        made.and(removed)
    }

    /// Uses URLs as a client does: a PUT of other bytes than declared, one of the declared bytes, and a GET.
    async fn check_urls(&self, found: &mut Findings) -> Result<(), Error> {
        let key = fresh_key()?;
        let bytes = Bytes::copy_from_slice(key.as_str().as_bytes());
        let now = Timestamp::clamped(Clock::now().as_millisecond());
        let put = self.presign_put(&key, bytes.len() as u64, Sha256::of(&bytes), limits::OWN_URL, now);
        let outsider = self.outsider();
        let tried = async {
            match outsider.put(&put, bytes.slice(1..).iter().chain(b"?").copied().collect()).await {
                Err(Error::Mismatch(_)) => {}
                Ok(()) => found.warnings.push(
                    "storage takes other bytes than a URL was signed for: it does not compare \
                     x-amz-checksum-sha256, and a wrong file is found out only when it is committed"
                        .into(),
                ),
                Err(error) => return Err(error),
            }
            outsider.put(&put, bytes.clone()).await?;
            self.read_back(&key, &bytes).await.map_err(|error| {
                Error::refused(Fault::Endpoint, format!("what was PUT there is not in the bucket: {error}"))
            })?;
            let get = self.presign_get(&key, limits::OWN_URL, now);
            let read = outsider.send(outsider.http.get(get.url)).await?;
            let read = read.bytes().await.map_err(|error| http::unsent(&error))?;
            if read == bytes { Ok(()) } else { Err(Error::Mismatch("other bytes come from there".into())) }
        };
        let tried = tried.await;
        let url = &outsider.public_url;
        match tried {
            Ok(()) => {}
            Err(Error::Unavailable(detail)) => found.warnings.push(format!(
                "public_url {url} does not answer this machine ({detail}); clients need to reach it"
            )),
            Err(Error::Refused { fault: Fault::Tls, detail }) => found.warnings.push(format!(
                "public_url {url} has a certificate that this machine does not trust ({detail}); clients need to"
            )),
            Err(Error::Refused { fault: Fault::Credentials | Fault::Denied, detail }) => {
                found.problems.push(format!(
                    "public_url {url} refuses URLs that were signed for it ({detail}): signatures hold for this very \
                     host and port, so whatever stands before storage must hand the host header on as it came, and \
                     storage must take it as its own"
                ));
            }
            Err(error) => found.problems.push(format!("public_url {url} does not lead to the bucket: {error}")),
        }
        self.delete(&key).await
    }
}

/// A 404 to what S3 answers otherwise or with a code, `NoSuchBucket`.
fn no_s3(error: Error) -> Error {
    match error {
        Error::NotFound => Error::refused(
            Fault::Endpoint,
            "HTTP 404 without a code of S3: what answers there is no S3 server (another host or port?), or has the \
             bucket at another place (path_style?)",
        ),
        other => other,
    }
}

/// The key of every probe of this process: what one left behind, because it was given up, the next one overwrites and
/// removes. No row of the ledger knows it.
fn probe_key() -> Result<ObjectKey, Error> {
    static KEY: OnceLock<ObjectKey> = OnceLock::new();
    if let Some(key) = KEY.get() {
        return Ok(key.clone());
    }
    let key = fresh_key()?;
    Ok(KEY.get_or_init(|| key).clone())
}

/// A key for something that is only tried.
pub(crate) fn fresh_key() -> Result<ObjectKey, Error> {
    let mut name = [0; 16];
    getrandom::fill(&mut name).map_err(|error| Error::Unavailable(format!("no randomness: {error}")))?;
    format!("{PROBES}{}", HEXLOWER.encode(&name))
        .parse()
        .map_err(|error: crate::BadKey| Error::Mismatch(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_probe_left_behind_is_what_the_next_one_removes() {
        assert_eq!(probe_key().unwrap(), probe_key().unwrap());
        assert_ne!(fresh_key().unwrap(), fresh_key().unwrap());
    }
}

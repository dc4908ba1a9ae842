//! URLs that let others read or write one object without credentials of their own.
//!
//! A URL for writing carries the length and the SHA-256 of the one body that it is good for as *signed headers*: the
//! client sends them verbatim, and storage refuses any other body. What stands in the query instead of a header binds
//! nobody on most servers.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millpond_protocol::message::unsigned;
use millpond_protocol::{Sha256, Timestamp};
use rusty_s3::actions::S3Action;
use rusty_s3::{Bucket, Credentials};

use crate::config::{BadConfig, StorageConfig};
use crate::handle::Storage;
use crate::key::ObjectKey;
use crate::limits;
use crate::multipart::MultipartId;

/// The key in the query under which a URL says whom it was made for. It is signed with the rest, and other servers ignore it.
pub(crate) const HOLDER: &str = "x-holder";

/// A URL that anybody may use until it expires.
#[derive(Clone, PartialEq, Eq)]
pub struct Presigned {
    /// The whole URL; it contains a signature, so it is as secret as what it opens.
    pub url: String,
    /// When it stops working.
    pub expires_at: Timestamp,
}

/// A URL to which one body may be PUT until it expires.
#[derive(Clone, PartialEq, Eq)]
pub struct PresignedPut {
    /// The whole URL.
    pub url: String,
    /// The headers to send verbatim, and no other `x-amz-*` header beside them.
    pub headers: Vec<(&'static str, String)>,
    /// When it stops working. An upload that has begun by then may go on.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Presigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} until {}", unsigned(&self.url), self.expires_at)
    }
}

impl fmt::Debug for PresignedPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} until {}, with {:?}", unsigned(&self.url), self.expires_at, self.headers)
    }
}

/// What URLs for others are made of.
pub(crate) struct Presigner {
    bucket: Bucket,
    credentials: Credentials,
}

impl Presigner {
    pub(crate) fn new(config: &StorageConfig) -> Result<Self, BadConfig> {
        let bucket = crate::http::bucket(config, "public_url", &config.public_url)?;
        Ok(Self { bucket, credentials: crate::http::credentials(config) })
    }
}

impl Storage {
    /// A URL from which anybody can fetch the object until `expires` (1 s to 7 d) from `now` on. Asks nobody whether
    /// there is such an object.
    pub fn presign_get(&self, key: &ObjectKey, expires: Duration, now: Timestamp) -> Presigned {
        let Presigner { bucket, credentials } = self.presigner();
        let life = Life::new(expires, now);
        let mut action = bucket.get_object(Some(credentials), key.as_str());
        self.name_holder(&mut action);
        // Whatever whoever stored it called it: no browser shows it, least of all as a page of storage's own host.
        action.query_mut().insert("response-content-disposition", "attachment");
        action.query_mut().insert("response-content-type", "application/octet-stream");
        let url = action.sign_with_time(life.length, &life.start);
        Presigned { url: url.into(), expires_at: life.end }
    }

    /// A URL, with headers to send verbatim, to which anybody can PUT exactly the bytes of this size and SHA-256 until
    /// `expires` (1 s to 7 d) from `now` on.
    pub fn presign_put(
        &self,
        key: &ObjectKey,
        size: u64,
        sha256: Sha256,
        expires: Duration,
        now: Timestamp,
    ) -> PresignedPut {
        let Presigner { bucket, credentials } = self.presigner();
        let mut action = bucket.put_object(Some(credentials), key.as_str());
        self.name_holder(&mut action);
        body(action, size, sha256, Life::new(expires, now))
    }

    /// A URL, with headers to send verbatim, to which anybody can PUT exactly the bytes of this size and SHA-256 as part
    /// `n` (1 to 10,000) until `expires` (1 s to 7 d) from `now` on. A part that comes again replaces the earlier one.
    #[allow(clippy::too_many_arguments, reason = "each of them is signed")]
    pub fn presign_part(
        &self,
        key: &ObjectKey,
        upload: &MultipartId,
        n: u16,
        size: u64,
        sha256: Sha256,
        expires: Duration,
        now: Timestamp,
    ) -> PresignedPut {
        let Presigner { bucket, credentials } = self.presigner();
        let mut action = bucket.upload_part(Some(credentials), key.as_str(), n, upload.as_str());
        self.name_holder(&mut action);
        body(action, size, sha256, Life::new(expires, now))
    }

    fn name_holder<'a>(&self, action: &mut impl S3Action<'a>) {
        if let Some(holder) = self.holder() {
            action.query_mut().insert(HOLDER, holder.to_owned());
        }
    }
}

/// Signs a PUT for one body.
fn body<'a>(mut action: impl S3Action<'a>, size: u64, sha256: Sha256, life: Life) -> PresignedPut {
    let headers =
        vec![("content-length", size.to_string()), ("x-amz-checksum-sha256", checksum_header(sha256))];
    for (name, value) in &headers {
        action.headers_mut().insert(*name, value.clone());
    }
    let url = action.sign_with_time(life.length, &life.start);
    PresignedPut { url: url.into(), headers, expires_at: life.end }
}

/// A SHA-256 as S3 writes it in headers: base64.
pub(crate) fn checksum_header(sha256: Sha256) -> String {
    STANDARD.encode(sha256.0)
}

/// The life of a URL: whole seconds from a whole second on, as a signature can say it.
struct Life {
    start: jiff::Timestamp,
    length: Duration,
    end: Timestamp,
}

impl Life {
    fn new(expires: Duration, now: Timestamp) -> Self {
        let length = Duration::from_secs(expires.clamp(Duration::from_secs(1), limits::URL_MAX).as_secs());
        let seconds = now.as_millis() / 1000;
        let start = jiff::Timestamp::from_second(seconds).unwrap_or_default();
        Self { start, length, end: Timestamp::clamped(seconds * 1000).after(length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn storage() -> Storage {
        let url = url::Url::parse("https://files.example:9443").unwrap();
        Storage::new(&StorageConfig::new(url, "bucket", "AKID", Secret::new("hush"))).unwrap()
    }

    #[test]
    fn a_url_says_when_it_expires_to_the_second() {
        let now = Timestamp::from_millis(1_700_000_000_999).unwrap();
        let key = "pools/1/x".parse().unwrap();
        let got = storage().presign_get(&key, Duration::from_millis(60_900), now);
        assert!(got.url.starts_with("https://files.example:9443/bucket/pools/1/x?"), "{}", got.url);
        assert!(got.url.contains("X-Amz-Date=20231114T221320Z&X-Amz-Expires=60&"), "{}", got.url);
        assert_eq!(got.expires_at, Timestamp::from_millis(1_700_000_060_000).unwrap());
        assert_eq!(got, storage().presign_get(&key, Duration::from_millis(60_900), now));
    }

    #[test]
    fn the_bucket_may_stand_in_the_host_name_and_a_session_token_in_the_url() {
        let url = url::Url::parse("https://s3.eu-central-1.amazonaws.com").unwrap();
        let mut config = StorageConfig::new(url, "bucket", "AKID", Secret::new("hush"));
        (config.path_style, config.session_token) = (false, Some(Secret::new("to/ken")));
        let storage = Storage::new(&config).unwrap();
        let got = storage.presign_get(&"k".parse().unwrap(), Duration::from_secs(60), Timestamp::EPOCH);
        assert!(got.url.starts_with("https://bucket.s3.eu-central-1.amazonaws.com/k?"), "{}", got.url);
        assert!(got.url.contains("X-Amz-Security-Token=to%2Fken&"), "{}", got.url);
        config.public_url = url::Url::parse("https://192.0.2.1").unwrap();
        assert!(Presigner::new(&config).is_err());
    }

    #[test]
    fn a_life_is_held_between_a_second_and_a_week() {
        let now = Timestamp::EPOCH;
        assert_eq!(Life::new(Duration::ZERO, now).length, Duration::from_secs(1));
        assert_eq!(Life::new(Duration::MAX, now).length, limits::URL_MAX);
    }

    #[test]
    fn a_url_for_writing_signs_length_and_checksum() {
        let key = "k".parse().unwrap();
        let put =
            storage().presign_put(&key, 3, Sha256::of(b"abc"), Duration::from_secs(60), Timestamp::EPOCH);
        assert!(
            put.url.contains("SignedHeaders=content-length%3Bhost%3Bx-amz-checksum-sha256"),
            "{}",
            put.url
        );
        let expected = [
            ("content-length", "3".to_owned()),
            ("x-amz-checksum-sha256", "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=".to_owned()),
        ];
        assert_eq!(put.headers, expected);
    }
}

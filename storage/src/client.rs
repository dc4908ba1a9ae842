//! Calls to S3 over the network, one attempt each.
//!
//! This is the only file that knows the `minio` crate. It has neither time-outs nor retries of its own; `handle` adds
//! both.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use millpond_protocol::Sha256;
use minio::s3::builders::UploadPart;
use minio::s3::creds::{Credentials, Provider};
use minio::s3::error::{Error as Raw, NetworkError, S3ServerError, ValidationErr};
use minio::s3::http::BaseUrl;
use minio::s3::multimap_ext::{Multimap, MultimapExt as _};
use minio::s3::response_traits::HasChecksumHeaders;
use minio::s3::segmented_bytes::SegmentedBytes;
use minio::s3::types::{BucketName, ObjectKey as RawKey, Region, S3Api as _};
use minio::s3::utils::ChecksumAlgorithm;
use minio::s3::{ConnectionPoolConfig, MinioClient, MinioClientBuilder};

use crate::config::{BadConfig, Secret, StorageConfig};
use crate::error::{Error, Fault};
use crate::key::ObjectKey;
use crate::limits;
use crate::multipart::{MultipartId, Part};
use crate::presign::checksum_header;

/// What storage knows of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256, where storage keeps one of the whole object (not of a multipart one).
    pub sha256: Option<Sha256>,
}

/// The bytes of an object, or of a range of it, as they come in. Ends with an error if they stop early.
pub struct ObjectStream {
    /// How many bytes will come.
    pub size: u64,
    /// What storage calls these bytes of the object, if it does.
    pub(crate) etag: Option<String>,
    inner: Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>,
}

impl Stream for ObjectStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }
}

pub(crate) struct Client {
    inner: MinioClient,
    bucket: BucketName,
}

/// The credentials, in a shape that `minio` can ask for and `Debug` cannot show.
#[derive(Debug)]
struct Keys {
    access_key: String,
    secret_key: Secret,
}

impl Provider for Keys {
    fn fetch(&self) -> Credentials {
        Credentials {
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.expose().to_owned(),
            session_token: None,
        }
    }
}

impl Client {
    pub(crate) fn new(config: &StorageConfig) -> Result<Self, BadConfig> {
        let bad = |error: &dyn fmt::Display| BadConfig(vec![error.to_string()]);
        let mut base: BaseUrl = config.endpoint.as_str().parse().map_err(|e: ValidationErr| bad(&e))?;
        base.region = Region::new(config.region.as_str()).map_err(|e| bad(&e))?;
        base.virtual_style = !config.path_style;
        let keys = Keys { access_key: config.access_key.clone(), secret_key: config.secret_key.clone() };
        let inner = MinioClientBuilder::new(base)
            .provider(Some(keys))
            .connection_pool_config(ConnectionPoolConfig::default().idle_timeout(limits::POOL_IDLE))
            .app_info(Some(("millpond".into(), env!("CARGO_PKG_VERSION").into())))
            .build()
            .map_err(|e| bad(&e))?;
        let bucket = BucketName::new(config.bucket.as_str()).map_err(|e| bad(&e))?;
        Ok(Self { inner, bucket })
    }

    /// Stores `bytes`; storage compares them with `sha256` before it says yes.
    pub(crate) async fn put(&self, key: &ObjectKey, bytes: Bytes, sha256: Sha256) -> Result<(), Error> {
        let expected = checksum_header(sha256);
        let mut headers = Multimap::new();
        headers.add("x-amz-checksum-sha256", expected.clone());
        // `UploadPart` without an upload id is a plain PUT, and unlike `put_object` it takes headers.
        let answer = UploadPart::builder()
            .client(self.inner.clone())
            .bucket(&self.bucket)
            .object(raw(key)?)
            .data(Arc::new(SegmentedBytes::from(bytes)))
            .extra_headers(Some(headers))
            .build()
            .send()
            .await
            .map_err(translate)?;
        match answer.get_checksum(ChecksumAlgorithm::SHA256) {
            Some(stored) if stored != expected => {
                Err(Error::Mismatch(format!("storage kept {stored} where {expected} was sent")))
            }
            _ => Ok(()),
        }
    }

    /// Opens an object, or a range of it that is not empty.
    pub(crate) async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<ObjectStream, Error> {
        let (offset, length) = match range {
            Some(range) => (Some(range.start), Some(range.end.saturating_sub(range.start).max(1))),
            None => (None, None),
        };
        let answer = self
            .inner
            .get_object(&self.bucket, raw(key)?)
            .map_err(invalid)?
            .offset(offset)
            .length(length)
            .build()
            .send()
            .await
            .map_err(translate)?;
        let (stream, size) = answer.into_boxed_stream().map_err(translate)?;
        let inner = stream.map(|chunk| chunk.map_err(|error| Error::Unavailable(chain(&error))));
        Ok(ObjectStream { size, etag: None, inner: Box::pin(inner) })
    }

    pub(crate) async fn stat(&self, key: &ObjectKey) -> Result<Stat, Error> {
        let mut headers = Multimap::new();
        headers.add("x-amz-checksum-mode", "ENABLED");
        let answer = self
            .inner
            .stat_object(&self.bucket, raw(key)?)
            .map_err(invalid)?
            .extra_headers(Some(headers))
            .build()
            .send()
            .await
            .map_err(translate)?;
        // A composite checksum (of a multipart object) ends in `-N` and is no base64 of 32 bytes.
        let sha256 = answer
            .get_checksum(ChecksumAlgorithm::SHA256)
            .and_then(|text| STANDARD.decode(text).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Sha256);
        Ok(Stat { size: answer.size().map_err(invalid)?, sha256 })
    }

    /// Removes an object; that there is none is fine.
    pub(crate) async fn delete(&self, key: &ObjectKey) -> Result<(), Error> {
        let removed = self
            .inner
            .delete_object(&self.bucket, key.as_str())
            .map_err(invalid)?
            .build()
            .send()
            .await
            .map_err(translate);
        match removed {
            Ok(_) | Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Not wired to storage yet: they refuse.
impl Client {
    pub(crate) async fn create_multipart(&self, _: &ObjectKey) -> Result<MultipartId, Error> {
        Err(Error::Unavailable("multipart is not wired yet".into()))
    }
    pub(crate) async fn put_part(
        &self,
        _: &ObjectKey,
        _: &MultipartId,
        _: u16,
        _: Bytes,
        _: Sha256,
    ) -> Result<Part, Error> {
        Err(Error::Unavailable("multipart is not wired yet".into()))
    }
    pub(crate) async fn list_parts(&self, _: &ObjectKey, _: &MultipartId) -> Result<Vec<Part>, Error> {
        Err(Error::Unavailable("multipart is not wired yet".into()))
    }
    pub(crate) async fn complete_multipart(
        &self,
        _: &ObjectKey,
        _: &MultipartId,
        _: &[Part],
    ) -> Result<(), Error> {
        Err(Error::Unavailable("multipart is not wired yet".into()))
    }
    pub(crate) async fn abort_multipart(&self, _: &ObjectKey, _: &MultipartId) -> Result<(), Error> {
        Err(Error::Unavailable("multipart is not wired yet".into()))
    }
}

impl ObjectStream {
    /// The same stream with its chunks passed through `wrap`.
    pub(crate) fn wrap<S>(self, wrap: impl FnOnce(Self) -> S) -> Self
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + 'static,
    {
        Self { size: self.size, etag: self.etag.clone(), inner: Box::pin(wrap(self)) }
    }
}

fn raw(key: &ObjectKey) -> Result<RawKey, Error> {
    RawKey::new(key.as_str()).map_err(invalid)
}

/// What `minio` refused before it sent anything, or could not read.
fn invalid(error: ValidationErr) -> Error {
    translate(Raw::Validation(error))
}

fn translate(error: Raw) -> Error {
    match error {
        Raw::S3Server(S3ServerError::S3Error(answer)) => {
            let code = answer.code().to_string();
            let detail = match answer.message() {
                Some(message) => format!("{code}: {message}"),
                None => code.clone(),
            };
            by_code(&code, detail)
        }
        Raw::S3Server(S3ServerError::InvalidServerResponse { message, http_status_code, .. }) => {
            by_status(http_status_code, message)
        }
        Raw::S3Server(S3ServerError::HttpError(status, message)) => by_status(status, message),
        Raw::Network(NetworkError::ServerError(status)) => by_status(status, format!("HTTP {status}")),
        Raw::Network(NetworkError::ReqwestError(error))
        | Raw::Validation(ValidationErr::HttpError(error)) => Error::Unavailable(chain(&error)),
        Raw::Validation(error @ ValidationErr::ChecksumMismatch { .. }) => Error::Mismatch(error.to_string()),
        Raw::DriveIo(error) => Error::Unavailable(error.to_string()),
        Raw::Validation(error) => Error::refused(Fault::Endpoint, chain(&error)),
        #[allow(unreachable_patterns, reason = "the enum grows with features of the crate")]
        other => Error::Unavailable(other.to_string()),
    }
}

/// By the error code of S3, in any case. A code that nobody here knows is rather a passing trouble than a wrong setting.
fn by_code(code: &str, detail: String) -> Error {
    match code.to_ascii_lowercase().as_str() {
        "nosuchkey" | "resourcenotfound" => Error::NotFound,
        "nosuchbucket" | "invalidbucketname" => Error::refused(Fault::Bucket, detail),
        "requesttimetooskewed" => Error::refused(Fault::Clock, detail),
        "accessdenied"
        | "allaccessdisabled"
        | "authorizationheadermalformed"
        | "expiredtoken"
        | "invalidaccesskeyid"
        | "invalidtoken"
        | "notsignedup"
        | "signaturedoesnotmatch" => Error::refused(Fault::Credentials, detail),
        "baddigest"
        | "entitytoolarge"
        | "incompletebody"
        | "invaliddigest"
        | "invalidrange"
        | "xamzcontentsha256mismatch"
        | "xamzcontentchecksummismatch" => Error::Mismatch(detail),
        "badrequest" | "invalidargument" | "invalidrequest" | "malformedxml" | "methodnotallowed"
        | "notimplemented" | "notsupported" | "permanentredirect" | "redirect" => {
            Error::refused(Fault::Endpoint, detail)
        }
        _ => Error::Unavailable(detail),
    }
}

fn by_status(status: u16, detail: String) -> Error {
    match status {
        404 => Error::NotFound,
        401 | 403 => Error::refused(Fault::Credentials, detail),
        408 | 429 | 500.. => Error::Unavailable(detail),
        _ => Error::refused(Fault::Endpoint, detail),
    }
}

/// An error with all its causes; the outermost alone says little more than "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_can_tell_a_passing_trouble_from_a_wrong_setting() {
        let code = |code: &str| by_code(code, String::new());
        assert_eq!(code("NoSuchKey"), Error::NotFound);
        assert!(code("SlowDown").is_temporary() && code("InsufficientStorage").is_temporary());
        assert!(code("SomethingNew").is_temporary());
        assert!(matches!(code("NoSuchBucket"), Error::Refused { fault: Fault::Bucket, .. }));
        assert!(matches!(code("RequestTimeTooSkewed"), Error::Refused { fault: Fault::Clock, .. }));
        assert!(matches!(code("SignatureDoesNotMatch"), Error::Refused { fault: Fault::Credentials, .. }));
        assert!(matches!(code("BadDigest"), Error::Mismatch(_)));
        let status = |status| by_status(status, String::new());
        assert!(status(503).is_temporary() && status(429).is_temporary());
        assert!(matches!(status(301), Error::Refused { fault: Fault::Endpoint, .. }));
    }

    #[test]
    fn the_secret_key_shows_in_no_debug_output() {
        let endpoint = url::Url::parse("http://127.0.0.1:1").unwrap();
        let config = StorageConfig::new(endpoint, "bucket", "AKID", Secret::new("hush-hush"));
        assert!(!format!("{:?}", Client::new(&config).unwrap().inner).contains("hush"));
    }
}

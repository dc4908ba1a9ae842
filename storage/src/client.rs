//! The operations of S3 that the server uses, one attempt each.
//!
//! Time-outs over the whole call and further attempts are added by `handle`.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use millpond_protocol::Sha256;
use reqwest::Response;
use rusty_s3::Method;
use tokio::sync::OnceCell;

use crate::config::{BadConfig, StorageConfig};
use crate::error::{Error, Fault};
use crate::http::{Http, Request, text, unsent};
use crate::key::ObjectKey;
use crate::multipart::{MultipartId, Part};
use crate::presign::checksum_header;
use crate::xml;

const CHECKSUM: &str = "x-amz-checksum-sha256";

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

impl ObjectStream {
    /// The same stream with its chunks passed through `wrap`.
    pub(crate) fn wrap<S>(self, wrap: impl FnOnce(Self) -> S) -> Self
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + 'static,
    {
        Self { size: self.size, etag: self.etag.clone(), inner: Box::pin(wrap(self)) }
    }
}

pub(crate) struct Client {
    pub(crate) http: Http,
    /// Whether storage keeps and lists the checksums of parts; asked once, before the first upload in parts.
    ///
    /// S3 wants to be told the algorithm when an upload begins, and every checksum again when it is completed. A server
    /// that wants the second without listing them could never complete what others sent; there the upload begins without
    /// an algorithm. Each part is compared with the checksum of its own request either way.
    lists_checksums: OnceCell<bool>,
}

impl Client {
    pub(crate) fn new(config: &StorageConfig) -> Result<Self, BadConfig> {
        Ok(Self { http: Http::new(config)?, lists_checksums: OnceCell::new() })
    }

    /// Stores `bytes`; storage compares them with `sha256` before it says yes.
    pub(crate) async fn put(&self, key: &ObjectKey, bytes: Bytes, sha256: Sha256) -> Result<(), Error> {
        self.put_body(key, &[], bytes, sha256).await.map(|_| ())
    }

    /// Opens an object, or a range of it that is not empty.
    pub(crate) async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<ObjectStream, Error> {
        let mut request = Request::new(Method::Get, key.as_str());
        if let Some(range) = range {
            let last = range.end.saturating_sub(1).max(range.start);
            request.headers.push(("range", format!("bytes={}-{last}", range.start)));
        }
        let answer = self.http.send(request).await?;
        let size = answer
            .content_length()
            .ok_or_else(|| Error::refused(Fault::Endpoint, "an object came without its length"))?;
        let etag = header(&answer, "etag");
        let inner = answer.bytes_stream().map(|chunk| chunk.map_err(|error| unsent(&error)));
        Ok(ObjectStream { size, etag, inner: Box::pin(inner) })
    }

    pub(crate) async fn stat(&self, key: &ObjectKey) -> Result<Stat, Error> {
        let mut request = Request::new(Method::Head, key.as_str());
        request.headers.push(("x-amz-checksum-mode", "ENABLED".into()));
        let answer = self.http.send(request).await?;
        // By `content_length()` an answer without body has none.
        let size = header(&answer, "content-length").and_then(|size| size.parse().ok());
        let composite = header(&answer, "x-amz-checksum-type").is_some_and(|kind| kind == "COMPOSITE");
        Ok(Stat {
            size: size.ok_or_else(|| {
                Error::refused(Fault::Endpoint, "an object was described without its length")
            })?,
            sha256: header(&answer, CHECKSUM).filter(|_| !composite).and_then(|text| checksum(&text)),
        })
    }

    /// Asks for the bucket. Whether it exists is told to whoever may list it, by some servers to nobody else.
    pub(crate) async fn bucket(&self) -> Result<(), Error> {
        self.http.send(Request::new(Method::Head, "")).await.map(drop)
    }

    /// Removes an object; that there is none is fine.
    pub(crate) async fn delete(&self, key: &ObjectKey) -> Result<(), Error> {
        match self.http.send(Request::new(Method::Delete, key.as_str())).await {
            Ok(_) | Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn create_multipart(&self, key: &ObjectKey) -> Result<MultipartId, Error> {
        let checksums = *self.lists_checksums.get_or_try_init(|| self.try_checksums()).await?;
        self.begin(key, checksums).await
    }

    async fn begin(&self, key: &ObjectKey, checksums: bool) -> Result<MultipartId, Error> {
        let mut request = Request::new(Method::Post, key.as_str());
        request.query = &[("uploads", "")];
        request.headers.push(("content-type", OCTETS.into()));
        if checksums {
            request.headers.push(("x-amz-checksum-algorithm", "SHA256".into()));
        }
        let answer = text(self.http.send(request).await?).await?;
        let created: xml::Created = xml::parse(&answer)?;
        created.upload_id.parse().map_err(|error| Error::refused(Fault::Endpoint, format!("{error}")))
    }

    /// Finds out by an upload of its own whether checksums of parts are listed.
    async fn try_checksums(&self) -> Result<bool, Error> {
        let key = crate::probe::fresh_key()?;
        let upload = match self.begin(&key, true).await {
            Ok(upload) => upload,
            Err(Error::Refused { fault: Fault::Endpoint, .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let bytes = Bytes::from_static(b"?");
        let sha256 = Sha256::of(&bytes);
        let listed = match self.put_part(&key, &upload, 1, bytes, sha256).await {
            Ok(_) => self.list_parts(&key, &upload).await,
            Err(error) => Err(error),
        };
        self.abort_multipart(&key, &upload).await?;
        Ok(listed?.first().is_some_and(|part| part.sha256 == Some(sha256)))
    }

    /// Stores one part; storage compares it with `sha256` before it says yes.
    pub(crate) async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &MultipartId,
        n: u16,
        bytes: Bytes,
        sha256: Sha256,
    ) -> Result<Part, Error> {
        let size = bytes.len() as u64;
        let number = n.to_string();
        let query = [("partNumber", &*number), ("uploadId", upload.as_str())];
        let answer = self.put_body(key, &query, bytes, sha256).await.map_err(no_upload)?;
        let etag = header(&answer, "etag")
            .ok_or_else(|| Error::refused(Fault::Endpoint, "a part was taken without an etag"))?;
        Ok(Part {
            n,
            size,
            sha256: self.lists_checksums.get().and_then(|listed| listed.then_some(sha256)),
            etag,
        })
    }

    pub(crate) async fn list_parts(&self, key: &ObjectKey, upload: &MultipartId) -> Result<Vec<Part>, Error> {
        let mut parts: Vec<Part> = Vec::new();
        loop {
            let marker = parts.last().map_or(0, |part| part.n);
            let after = marker.to_string();
            let mut request = Request::new(Method::Get, key.as_str());
            let query = [("uploadId", upload.as_str()), ("part-number-marker", &after)];
            request.query = if marker == 0 { &query[..1] } else { &query };
            let answer = text(self.http.send(request).await.map_err(no_upload)?).await?;
            let mut page: xml::Page = xml::parse(&answer)?;
            // Some servers keep every version of a part that came more than once; the latest counts.
            page.parts
                .sort_by(|a, b| (a.part_number, &a.last_modified).cmp(&(b.part_number, &b.last_modified)));
            for listed in page.parts {
                if parts.last().is_some_and(|last| last.n == listed.part_number) {
                    parts.pop();
                } else if parts.last().is_some_and(|last| last.n > listed.part_number) {
                    return Err(Error::refused(Fault::Endpoint, "parts are not listed in order"));
                }
                parts.push(Part {
                    n: listed.part_number,
                    size: listed.size,
                    sha256: listed.sha256.and_then(|text| checksum(&text)),
                    etag: listed.etag,
                });
            }
            let more = page.is_truncated && parts.last().is_some_and(|part| part.n > marker);
            if !more {
                return Ok(parts);
            }
        }
    }

    pub(crate) async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload: &MultipartId,
        parts: &[Part],
    ) -> Result<(), Error> {
        let body = Bytes::from(xml::complete(parts)?);
        let query = [("uploadId", upload.as_str())];
        let mut request = Request { body, ..Request::new(Method::Post, key.as_str()) };
        request.query = &query;
        request.headers.push(("content-type", "application/xml".into()));
        let done = match self.http.send(request).await.map_err(no_upload) {
            // It may take long, so S3 says 200 at once and what it came to in the body.
            Ok(answer) => match xml::refusal(&text(answer).await?) {
                None => Ok(()),
                Some(said) => {
                    Err(crate::http::by_code(&said.code, format!("{}: {}", said.code, said.message)))
                }
            },
            Err(error) => Err(error),
        };
        match done {
            Err(Error::NoUpload) => {
                let size = parts.iter().map(|part| part.size).sum::<u64>();
                match self.stat(key).await {
                    Ok(stat) if stat.size == size => Ok(()),
                    Ok(_) | Err(Error::NotFound) => Err(Error::NoUpload),
                    Err(error) => Err(error),
                }
            }
            done => done,
        }
    }

    pub(crate) async fn abort_multipart(&self, key: &ObjectKey, upload: &MultipartId) -> Result<(), Error> {
        let mut request = Request::new(Method::Delete, key.as_str());
        let query = [("uploadId", upload.as_str())];
        request.query = &query;
        match self.http.send(request).await {
            Ok(_) | Err(Error::NotFound | Error::NoUpload) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn put_body(
        &self,
        key: &ObjectKey,
        query: &[(&str, &str)],
        body: Bytes,
        sha256: Sha256,
    ) -> Result<Response, Error> {
        let expected = checksum_header(sha256);
        let mut request = Request { body, ..Request::new(Method::Put, key.as_str()) };
        request.query = query;
        request.headers.push((CHECKSUM, expected.clone()));
        request.headers.push(("content-type", OCTETS.into()));
        let answer = self.http.send(request).await?;
        match header(&answer, CHECKSUM) {
            Some(stored) if stored != expected => {
                Err(Error::Mismatch(format!("storage kept {stored} where {expected} was sent")))
            }
            _ => Ok(answer),
        }
    }
}

const OCTETS: &str = "application/octet-stream";

/// Some servers say of an upload that they do not know no more than 404.
fn no_upload(error: Error) -> Error {
    if error == Error::NotFound { Error::NoUpload } else { error }
}

fn header(answer: &Response, name: &str) -> Option<String> {
    Some(answer.headers().get(name)?.to_str().ok()?.to_owned())
}

/// The SHA-256 that a checksum in base64 is. One that is composed of those of parts ends in `-N` and is none.
fn checksum(text: &str) -> Option<Sha256> {
    STANDARD.decode(text).ok()?.try_into().ok().map(Sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;
    use crate::embedded::{self, EmbeddedConfig};

    #[tokio::test]
    async fn clocks_that_differ_are_named_whatever_storage_says_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let secret = Secret::new("a-secret-of-the-tests");
        let server =
            embedded::open(dir.path(), EmbeddedConfig::new("millpond", "access", secret.clone())).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { server.serve(listener, Default::default()).await });
        let mut client = Client::new(&StorageConfig::new(endpoint, "millpond", "access", secret)).unwrap();
        client.http.now = || jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
        let bytes = Bytes::from_static(b"abc");
        match client.put(&"k".parse().unwrap(), bytes.clone(), Sha256::of(&bytes)).await {
            Err(Error::Refused { fault: Fault::Clock, detail }) => {
                assert!(detail.contains("s ahead of"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_composite_checksum_is_no_sha256() {
        let whole = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        assert_eq!(checksum(whole), Some(Sha256::of(b"abc")));
        assert_eq!(checksum(&format!("{whole}-1")), None);
    }
}

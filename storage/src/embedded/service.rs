//! S3 as clients speak it: the operations, each a few lines between the protocol and the store.

use std::sync::Arc;

use s3s::access::{S3Access, S3AccessContext};
use s3s::dto::{
    ChecksumMode, ChecksumType, DeleteObjectInput, DeleteObjectOutput, GetBucketLocationInput,
    GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
    HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput,
    PutObjectOutput, StreamingBlob,
};
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::catalog::Object;
use super::conditions::{Wanted, before_put, etag, modified, span};
use super::config::EmbeddedConfig;
use super::errors::said;
use super::receive::{Declared, receive};
use super::send::Outgoing;
use super::store::{Store, StoreError};
use crate::limits::embedded as limits;
use crate::presign::checksum_header;

/// What every object is served as: nothing that a browser would run or show.
const CONTENT_TYPE: &str = "application/octet-stream";
const CONTENT_DISPOSITION: &str = "attachment";

pub(super) struct Service {
    store: Arc<Store>,
    config: Arc<EmbeddedConfig>,
    uploads: Semaphore,
}

impl Service {
    pub(super) fn new(store: Arc<Store>, config: Arc<EmbeddedConfig>) -> Self {
        let uploads = Semaphore::new(config.max_uploads);
        Self { store, config, uploads }
    }

    /// Lets a request through that is for this bucket and was signed for this region.
    fn admit<T>(&self, request: &S3Request<T>, bucket: &str) -> S3Result<()> {
        if let Some(region) = &request.region
            && region.as_str() != self.config.region
        {
            let message =
                format!("The region '{}' is wrong; expecting '{}'.", region.as_str(), self.config.region);
            return Err(said(S3ErrorCode::AuthorizationHeaderMalformed, message));
        }
        if bucket == self.config.bucket {
            Ok(())
        } else {
            Err(said(S3ErrorCode::NoSuchBucket, "There is no such bucket."))
        }
    }

    /// Runs what blocks where blocking is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let store = Arc::clone(&self.store);
        match spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Disk(std::io::Error::other(error)).into()),
        }
    }
}

/// A key that means the same on every server and in every file system that objects may be copied to.
fn check_key(key: &str) -> S3Result<()> {
    let bad = key.is_empty()
        || key.len() > limits::KEY
        || key.starts_with('/')
        || key.chars().any(char::is_control)
        || key.split('/').any(|segment| matches!(segment, "." | ".."));
    if bad {
        Err(said(S3ErrorCode::InvalidArgument, "The key is not one that this storage keeps."))
    } else {
        Ok(())
    }
}

fn no_such_key() -> s3s::S3Error {
    said(S3ErrorCode::NoSuchKey, "There is no such object.")
}

/// The checksum of an object, where the client asked for it and gets all of the object.
fn checksum(
    object: &Object,
    mode: Option<&ChecksumMode>,
    whole: bool,
) -> (Option<String>, Option<ChecksumType>) {
    if whole && mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED) {
        (Some(checksum_header(object.sha256)), Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)))
    } else {
        (None, None)
    }
}

fn length(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        check_key(&request.input.key)?;
        let declared = Declared::of(&request, self.config.max_object)?;
        let body = request.input.body.take();
        let settled = receive(&self.store, &self.uploads, body, declared, self.config.stall_timeout).await?;
        let PutObjectInput { key, if_match, if_none_match, checksum_sha256, .. } = request.input;
        let check = before_put(if_match, if_none_match);
        let object = Arc::clone(&self.store)
            .publish(key, settled, check)
            .await?
            .ok_or_else(|| said(S3ErrorCode::PreconditionFailed, "Another object is there, or none."))?;
        let checksum_type = ChecksumType::from_static(ChecksumType::FULL_OBJECT);
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(etag(&object)),
            checksum_type: checksum_sha256.is_some().then_some(checksum_type),
            checksum_sha256,
            ..Default::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        check_key(&request.input.key)?;
        let if_range = request.headers.get(hyper::header::IF_RANGE).cloned();
        let input = request.input;
        self.blocking(move |store| {
            let (object, file) = store.open_object(&input.key)?.ok_or_else(no_such_key)?;
            Wanted::from(&input).check(&object)?;
            let tag = etag(&object);
            // A client that continues an object which has changed since gets all of the new one.
            let same = if_range.is_none_or(|had| tag.to_http_header().is_ok_and(|tag| tag == had));
            let part = span(input.range.as_ref().filter(|_| same), object.size)?;
            let content_range =
                part.as_ref().map(|part| format!("bytes {}-{}/{}", part.start, part.end - 1, object.size));
            let (checksum_sha256, checksum_type) =
                checksum(&object, input.checksum_mode.as_ref(), content_range.is_none());
            let part = part.unwrap_or(0..object.size);
            let size = part.end - part.start;
            let body = Outgoing::open(file, part).map_err(StoreError::Disk)?;
            Ok(S3Response::new(GetObjectOutput {
                body: Some(StreamingBlob::new(body)),
                content_length: length(size),
                content_range,
                accept_ranges: Some("bytes".into()),
                e_tag: Some(tag),
                last_modified: Some(modified(&object)),
                content_type: Some(CONTENT_TYPE.into()),
                content_disposition: Some(CONTENT_DISPOSITION.into()),
                checksum_sha256,
                checksum_type,
                ..Default::default()
            }))
        })
        .await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        check_key(&request.input.key)?;
        let input = request.input;
        self.blocking(move |store| {
            let object = store.find(&input.key)?.ok_or_else(no_such_key)?;
            Wanted::from(&input).check(&object)?;
            let (checksum_sha256, checksum_type) = checksum(&object, input.checksum_mode.as_ref(), true);
            Ok(S3Response::new(HeadObjectOutput {
                content_length: length(object.size),
                accept_ranges: Some("bytes".into()),
                e_tag: Some(etag(&object)),
                last_modified: Some(modified(&object)),
                content_type: Some(CONTENT_TYPE.into()),
                content_disposition: Some(CONTENT_DISPOSITION.into()),
                checksum_sha256,
                checksum_type,
                ..Default::default()
            }))
        })
        .await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        check_key(&request.input.key)?;
        if request.input.if_match.is_some() {
            return Err(said(S3ErrorCode::NotImplemented, "Deleting knows no conditions here."));
        }
        Arc::clone(&self.store).delete(request.input.key).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let bucket_region = Some(self.config.region.clone());
        Ok(S3Response::new(HeadBucketOutput { bucket_region, ..Default::default() }))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.admit(&request, &request.input.bucket)?;
        // By the protocol, `us-east-1` is said by saying nothing.
        let region = Some(self.config.region.clone()).filter(|region| region != "us-east-1");
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint: region.map(Into::into) }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        self.blocking(move |store| super::list::page(store, input).map(S3Response::new)).await
    }
}

/// Who may do what: whoever has the key, with a SigV4 signature that covers every `x-amz-*` header.
///
/// A header that changes what a request means must not be the choice of whoever was given a URL.
pub(super) struct Signed;

#[async_trait::async_trait]
impl S3Access for Signed {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        let denied = |message: &'static str| Err(said(S3ErrorCode::AccessDenied, message));
        if request.credentials().is_none() {
            return denied("Requests are signed.");
        }
        let header = request.headers().get(hyper::header::AUTHORIZATION);
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let mut in_query =
            url::form_urlencoded::parse(query).filter(|(name, _)| name == "X-Amz-SignedHeaders");
        let signed = match (header, in_query.next(), in_query.next()) {
            (Some(header), None, None) => header
                .to_str()
                .ok()
                .and_then(|header| header.split_once("SignedHeaders="))
                .map(|(_, rest)| rest.split(',').next().unwrap_or(rest).to_owned()),
            (None, Some((_, signed)), None) => Some(signed.into_owned()),
            // Of two signatures it would not be clear whose list of headers holds.
            _ => None,
        };
        let Some(signed) = signed else { return denied("Requests have one signature, of version 4.") };
        let covered = |name: &str| signed.split(';').any(|signed| signed.trim() == name);
        let stray = request
            .headers()
            .keys()
            .any(|name| name.as_str().starts_with("x-amz-") && !covered(name.as_str()));
        if stray {
            denied("There were headers present in the request which were not signed.")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_climb_or_hide_are_refused() {
        let long = "x".repeat(1025);
        for bad in ["", "/a", "..", "a/../b", "a/..", "./a", "a/./b", "a\0", "a\nb", &long] {
            assert_eq!(check_key(bad).unwrap_err().code(), &S3ErrorCode::InvalidArgument, "{bad:?}");
        }
        for good in ["a", "a/", "a//b", "..a", "a..", "ä b+%", &long[1..]] {
            assert!(check_key(good).is_ok(), "{good:?}");
        }
    }
}

//! S3 as clients speak it: the operations, each a few lines between the protocol and the store.

mod access;
mod bucket;
mod meta;
mod options;
mod uploads;

use std::sync::Arc;

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumMode, ChecksumType,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
    DeleteObjectsOutput, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput,
    ListBucketsOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput,
    ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput,
    PutObjectInput, PutObjectOutput, StreamingBlob, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result};
use tokio::task::spawn_blocking;

pub(super) use self::access::{KeyPair, Signed, covers, signed_headers};
use self::options::heeded;
use super::catalog::{LAST, Object};
use super::checksum::{Algorithm, Cover};
use super::conditions::{Wanted, before_put, etag, modified, span, unmet};
use super::config::EmbeddedConfig;
use super::errors::said;
use super::list;
use super::receive::{Declared, receive, said_checksums};
use super::send::Outgoing;
use super::store::{Store, StoreError};
use super::turns::Turns;
use crate::limits::embedded as limits;
use crate::presign::checksum_header;

/// What every object is served as: nothing that a browser would run or show.
const CONTENT_TYPE: &str = "application/octet-stream";
const CONTENT_DISPOSITION: &str = "attachment";

pub(super) struct Service {
    store: Arc<Store>,
    config: Arc<EmbeddedConfig>,
    uploads: Turns,
}

impl Service {
    pub(super) fn new(store: Arc<Store>, config: Arc<EmbeddedConfig>) -> Self {
        let uploads = Turns::new(config.max_uploads);
        Self { store, config, uploads }
    }

    /// Lets a request through that is for this bucket and was signed for this region.
    fn admit<T>(&self, request: &S3Request<T>, bucket: &str) -> S3Result<()> {
        self.in_region(request)?;
        if bucket == self.config.bucket {
            Ok(())
        } else {
            Err(said(S3ErrorCode::NoSuchBucket, "There is no such bucket."))
        }
    }

    fn in_region<T>(&self, request: &S3Request<T>) -> S3Result<()> {
        match &request.region {
            Some(region) if region.as_str() != self.config.region => {
                let (is, region) = (region.as_str(), &self.config.region);
                let message = format!("The region '{is}' is wrong; expecting '{region}'.");
                Err(said(S3ErrorCode::AuthorizationHeaderMalformed, message))
            }
            _ => Ok(()),
        }
    }

    /// Runs what blocks where blocking is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Store>) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let store = Arc::clone(&self.store);
        match spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Disk(std::io::Error::other(error)).into()),
        }
    }
}

/// A key that means the same on every server and in every file system that objects may be copied to, and that listings find.
fn check_key(key: &str) -> S3Result<()> {
    let bad = key.is_empty()
        || key.len() > limits::KEY
        || key.starts_with('/')
        || key.chars().any(|char| char.is_control() || char == LAST)
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

/// Puts a checksum into the field of an output that is its algorithm's.
macro_rules! say_checksum {
    ($output:expr, $algorithm:expr, $value:expr) => {{
        let value = Some($value);
        match $algorithm {
            Algorithm::Sha256 => $output.checksum_sha256 = value,
            Algorithm::Sha1 => $output.checksum_sha1 = value,
            Algorithm::Crc32 => $output.checksum_crc32 = value,
            Algorithm::Crc32c => $output.checksum_crc32c = value,
            Algorithm::Crc64Nvme => $output.checksum_crc64nvme = value,
            Algorithm::Md5 => {}
        }
    }};
}
use say_checksum;

pub(super) fn checksum_type(cover: Cover) -> ChecksumType {
    ChecksumType::from_static(match cover {
        Cover::FullObject => ChecksumType::FULL_OBJECT,
        Cover::Composite => ChecksumType::COMPOSITE,
    })
}

/// Says the checksum of an object, where the client asked for it and gets all of the object.
macro_rules! say_object_checksum {
    ($output:expr, $object:expr, $mode:expr, $whole:expr) => {
        if $whole && $mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED) {
            let object: &Object = $object;
            if let Some(checksum) = &object.checksum {
                say_checksum!($output, checksum.algorithm, checksum.value.clone());
                $output.checksum_type = Some(checksum_type(checksum.cover()));
            } else if object.parts == 0 {
                $output.checksum_sha256 = Some(checksum_header(object.sha256));
                $output.checksum_type = Some(checksum_type(Cover::FullObject));
            }
        }
    };
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
        heeded(&request.input)?;
        let (input, max) = (&request.input, self.config.max_object);
        let checksums = said_checksums!(input);
        let declared =
            Declared::of(&request, input.content_length, checksums, input.content_md5.as_deref(), max)?;
        let meta = meta::keep(input.metadata.as_ref())?;
        let named: Vec<Algorithm> =
            Algorithm::ALL.into_iter().filter(|algorithm| declared.compares(*algorithm)).collect();
        let body = request.input.body.take();
        let turns = (&self.uploads, request.input.key.as_str(), limits::BODIES_OF_PUT);
        let settled = receive(&self.store, turns, body, declared).await?;
        let sums = settled.sums.clone();
        let PutObjectInput { key, if_match, if_none_match, .. } = request.input;
        let check = before_put(if_match, if_none_match);
        let object = Arc::clone(&self.store).publish(key, meta, settled, check).await?.map_err(unmet)?;
        let mut output = PutObjectOutput { e_tag: Some(etag(&object)), ..Default::default() };
        for algorithm in named {
            if let Some(value) = sums.text(algorithm) {
                say_checksum!(output, algorithm, value);
                output.checksum_type = Some(checksum_type(Cover::FullObject));
            }
        }
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        check_key(&request.input.key)?;
        heeded(&request.input)?;
        let if_range = request.headers.get(hyper::header::IF_RANGE).cloned();
        let input = request.input;
        self.blocking(move |store| {
            let (object, body) = store.open_object(&input.key)?.ok_or_else(no_such_key)?;
            Wanted::from(&input).check(&object)?;
            let tag = etag(&object);
            // A client that continues an object which has changed since gets all of the new one.
            let same = if_range.is_none_or(|had| tag.to_http_header().is_ok_and(|tag| tag == had));
            let part = span(input.range.as_ref().filter(|_| same), object.size)?;
            let content_range =
                part.as_ref().map(|part| format!("bytes {}-{}/{}", part.start, part.end - 1, object.size));
            let whole = content_range.is_none();
            let part = part.unwrap_or(0..object.size);
            let size = part.end - part.start;
            let body = Outgoing::open(body, part).map_err(StoreError::Disk)?;
            let mut output = GetObjectOutput {
                body: Some(StreamingBlob::new(body)),
                content_length: length(size),
                content_range,
                accept_ranges: Some("bytes".into()),
                e_tag: Some(tag),
                last_modified: Some(modified(&object)),
                content_type: Some(CONTENT_TYPE.into()),
                content_disposition: Some(CONTENT_DISPOSITION.into()),
                metadata: meta::kept(object.meta.as_deref()),
                ..Default::default()
            };
            say_object_checksum!(output, &object, input.checksum_mode.as_ref(), whole);
            Ok(S3Response::new(output))
        })
        .await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        check_key(&request.input.key)?;
        heeded(&request.input)?;
        let input = request.input;
        self.blocking(move |store| {
            let object =
                store.catalog().find(&input.key).map_err(StoreError::from)?.ok_or_else(no_such_key)?;
            Wanted::from(&input).check(&object)?;
            let mut output = HeadObjectOutput {
                content_length: length(object.size),
                accept_ranges: Some("bytes".into()),
                e_tag: Some(etag(&object)),
                last_modified: Some(modified(&object)),
                content_type: Some(CONTENT_TYPE.into()),
                content_disposition: Some(CONTENT_DISPOSITION.into()),
                metadata: meta::kept(object.meta.as_deref()),
                ..Default::default()
            };
            say_object_checksum!(output, &object, input.checksum_mode.as_ref(), true);
            Ok(S3Response::new(output))
        })
        .await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        check_key(&request.input.key)?;
        heeded(&request.input)?;
        Arc::clone(&self.store).delete(vec![request.input.key]).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.delete_many(request).await
    }

    async fn list_buckets(
        &self,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.buckets(&request)
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

    async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        self.blocking(move |store| list::objects_v1(store, input).map(S3Response::new)).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        self.blocking(move |store| list::objects(store, input).map(S3Response::new)).await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.begin(request).await
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.part(request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.complete(request).await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.abort(request).await
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        self.parts(request).await
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        self.blocking(move |store| list::uploads(store, input).map(S3Response::new)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_climb_or_hide_are_refused() {
        let long = "x".repeat(1025);
        for bad in ["", "/a", "..", "a/../b", "a/..", "./a", "a/./b", "a\0", "a\nb", "a\u{10ffff}b", &long] {
            assert_eq!(check_key(bad).unwrap_err().code(), &S3ErrorCode::InvalidArgument, "{bad:?}");
        }
        for good in ["a", "a/", "a//b", "..a", "a..", "ä b+%", &long[1..]] {
            assert!(check_key(good).is_ok(), "{good:?}");
        }
    }
}

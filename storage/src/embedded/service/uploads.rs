//! Uploads in parts: begun, filled part by part, completed or aborted.

use std::sync::Arc;

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, ListPartsInput, ListPartsOutput, Part, UploadPartInput, UploadPartOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::super::blobs::BlobId;
use super::super::catalog::{Ended, Upload};
use super::super::checksum::{Algorithm, Checksum, Cover, Plan};
use super::super::conditions::{before_put, modified_at, tag, unmet};
use super::super::errors::said;
use super::super::parts::{Listed, Wish, part_tag};
use super::super::receive::{Declared, receive, said_checksums};
use super::super::store::StoreError;
use super::options::heeded;
use super::{Service, check_key, checksum_type, length, meta, say_checksum};
use crate::limits::embedded as limits;

impl Service {
    pub(super) async fn begin(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        check_key(&input.key)?;
        heeded(&input)?;
        let plan = plan(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?;
        let meta = meta::keep(input.metadata.as_ref())?;
        let most = self.config.max_open;
        let id = self.store.begin(input.key.clone(), plan, meta, most).await?;
        let id = id.ok_or_else(|| {
            let message = format!("{most} uploads in parts have not ended whose keys begin like this one.");
            said(S3ErrorCode::SlowDown, message)
        })?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id.name()),
            checksum_algorithm: plan.map(|plan| ChecksumAlgorithm::from_static(plan.algorithm.name())),
            checksum_type: plan.map(|plan| checksum_type(plan.cover)),
            ..Default::default()
        }))
    }

    pub(super) async fn part(
        &self,
        mut request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = &request.input;
        check_key(&input.key)?;
        heeded(input)?;
        let n = u32::try_from(input.part_number).ok().filter(|n| (1..=limits::PARTS).contains(n));
        let n = n.ok_or_else(|| {
            said(S3ErrorCode::InvalidArgument, format!("Parts have numbers from 1 to {}.", limits::PARTS))
        })?;
        let (max, checksums) = (self.config.max_object, said_checksums!(input));
        let declared =
            Declared::of(&request, input.content_length, checksums, input.content_md5.as_deref(), max)?;
        let upload = self.find_upload(&input.upload_id, &input.key).await?;
        let algorithm = upload.plan.map(|plan| plan.algorithm);
        let named: Vec<Algorithm> = Algorithm::ALL
            .into_iter()
            .filter(|known| declared.compares(*known) || algorithm == Some(*known))
            .collect();
        let (body, declared) = (request.input.body.take(), declared.also(algorithm));
        let turns = (&self.uploads, request.input.key.as_str(), limits::BODIES_OF_PARTS);
        let settled = receive(&self.store, turns, body, declared).await?;
        let sums = settled.sums.clone();
        let part = Arc::clone(&self.store)
            .add_part(upload.id, upload.key, n, upload.plan, settled)
            .await?
            .ok_or_else(no_such_upload)?;
        let mut output = UploadPartOutput { e_tag: Some(part_tag(part.sha256)), ..Default::default() };
        for algorithm in named {
            if let Some(value) = sums.text(algorithm) {
                say_checksum!(output, algorithm, value);
            }
        }
        Ok(S3Response::new(output))
    }

    pub(super) async fn complete(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        check_key(&input.key)?;
        let id = BlobId::parse(&input.upload_id).ok_or_else(no_such_upload)?;
        let wish = wish(&input, self.config.min_part)?;
        let check = before_put(input.if_match, input.if_none_match);
        let done = match Arc::clone(&self.store).complete(id, input.key.clone(), wish, check).await? {
            Ended::Done(done, _) => done,
            Ended::Unmet(there) => return Err(unmet(there)),
            Ended::Unfit(unfit) => return Err(unfit.into()),
            Ended::Unknown => return Err(no_such_upload()),
        };
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(tag(done.sha256, done.parts)),
            ..Default::default()
        };
        if let Some(checksum) = done.checksum {
            output.checksum_type = Some(checksum_type(checksum.cover()));
            say_checksum!(output, checksum.algorithm, checksum.value);
        }
        Ok(S3Response::new(output))
    }

    pub(super) async fn abort(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        let id = BlobId::parse(&input.upload_id).ok_or_else(no_such_upload)?;
        if input.if_match_initiated_time.is_some() {
            return Err(said(S3ErrorCode::NotImplemented, "Aborting knows no conditions here."));
        }
        if Arc::clone(&self.store).abort(id, input.key).await? {
            Ok(S3Response::new(AbortMultipartUploadOutput::default()))
        } else {
            Err(no_such_upload())
        }
    }

    pub(super) async fn parts(
        &self,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        let after = u32::try_from(input.part_number_marker.unwrap_or(0)).unwrap_or(0);
        let most = usize::try_from(input.max_parts.unwrap_or(i32::MAX)).unwrap_or(0).min(limits::PAGE);
        let upload = self.find_upload(&input.upload_id, &input.key).await?;
        let id = upload.id;
        let mut parts = self
            .blocking(move |store| {
                Ok(store.catalog().parts(id, after, most + 1).map_err(StoreError::from)?)
            })
            .await?;
        // A page of nothing has no end to go on from.
        let more = parts.len() > most && most > 0;
        parts.truncate(most);
        let algorithm = upload.plan.map(|plan| plan.algorithm);
        Ok(S3Response::new(ListPartsOutput {
            next_part_number_marker: parts
                .last()
                .filter(|_| more)
                .and_then(|part| i32::try_from(part.n).ok()),
            parts: Some(parts.into_iter().map(|part| listed(part, algorithm)).collect()),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            part_number_marker: i32::try_from(after).ok(),
            max_parts: i32::try_from(most).ok(),
            is_truncated: Some(more),
            checksum_algorithm: algorithm.map(|algorithm| ChecksumAlgorithm::from_static(algorithm.name())),
            checksum_type: upload.plan.map(|plan| checksum_type(plan.cover)),
            ..Default::default()
        }))
    }

    async fn find_upload(&self, id: &str, key: &str) -> S3Result<Upload> {
        let (id, key) = (BlobId::parse(id).ok_or_else(no_such_upload)?, key.to_owned());
        self.blocking(move |store| {
            store.catalog().upload(id, &key).map_err(StoreError::from)?.ok_or_else(no_such_upload)
        })
        .await
    }
}

fn no_such_upload() -> S3Error {
    said(S3ErrorCode::NoSuchUpload, "There is no such upload, or it has been completed or aborted.")
}

fn listed(part: super::super::catalog::Part, algorithm: Option<Algorithm>) -> Part {
    let mut shown = Part {
        part_number: i32::try_from(part.n).ok(),
        e_tag: Some(part_tag(part.sha256)),
        size: length(part.size),
        last_modified: Some(modified_at(part.modified_ms)),
        ..Default::default()
    };
    if let (Some(algorithm), Some(sum)) = (algorithm, &part.checksum) {
        say_checksum!(shown, algorithm, algorithm.text(sum));
    }
    shown
}

fn plan(algorithm: Option<&ChecksumAlgorithm>, cover: Option<&ChecksumType>) -> S3Result<Option<Plan>> {
    let bad = || said(S3ErrorCode::InvalidRequest, "S3 knows no such checksum of an object in parts.");
    let cover = cover.map(cover_of).transpose()?;
    match (algorithm, cover) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(bad()),
        (Some(algorithm), cover) => {
            let algorithm = Algorithm::named(algorithm.as_str()).ok_or_else(bad)?;
            Plan::new(algorithm, cover).map(Some).ok_or_else(bad)
        }
    }
}

fn cover_of(kind: &ChecksumType) -> S3Result<Cover> {
    match kind.as_str() {
        ChecksumType::FULL_OBJECT => Ok(Cover::FullObject),
        ChecksumType::COMPOSITE => Ok(Cover::Composite),
        _ => Err(said(S3ErrorCode::InvalidRequest, "A checksum's type is COMPOSITE or FULL_OBJECT.")),
    }
}

fn wish(input: &CompleteMultipartUploadInput, min_part: u64) -> S3Result<Wish> {
    let malformed = |message: &'static str| said(S3ErrorCode::MalformedXML, message);
    let parts =
        input.multipart_upload.as_ref().and_then(|upload| upload.parts.as_deref()).unwrap_or_default();
    if parts.is_empty() || parts.len() > limits::PARTS as usize {
        return Err(malformed("The parts are listed, one at least."));
    }
    let parts = parts.iter().map(part_of).collect::<Option<Vec<_>>>();
    let parts = parts.ok_or_else(|| malformed("A part has a number, and checksums are base64."))?;
    let size = input.mpu_object_size.and_then(|size| u64::try_from(size).ok());
    let mut checksum = None;
    for (algorithm, value) in said_checksums!(input) {
        if let Some(value) = value {
            let value = value.to_owned();
            if checksum.replace(Checksum { algorithm, value }).is_some() {
                return Err(said(S3ErrorCode::InvalidRequest, "An object has one checksum."));
            }
        }
    }
    Ok(Wish { parts, size, checksum, min_part })
}

fn part_of(part: &CompletedPart) -> Option<Listed> {
    let n = u32::try_from(part.part_number?).ok()?;
    let mut sums = Vec::new();
    for (algorithm, value) in said_checksums!(part) {
        if let Some(value) = value {
            sums.push((algorithm, algorithm.parse(value)?));
        }
    }
    Some(Listed::new(n, part.e_tag.as_ref(), sums))
}

//! Pages of listings: of objects, and of uploads in parts.

use s3s::dto::{
    ChecksumAlgorithm, CommonPrefix, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListObjectsV2Input, ListObjectsV2Output, MultipartUpload, Object as Listed,
};
use s3s::{S3Error, S3ErrorCode};

use super::blobs::BlobId;
use super::catalog::{CatalogError, LAST, Object, Upload};
use super::conditions::{etag, modified, modified_at};
use super::errors::said;
use super::store::{Store, StoreError};
use crate::limits::embedded as limits;

/// Lists objects in order of their keys, those below a delimiter as one prefix. Blocks.
pub(super) fn page(store: &Store, input: ListObjectsV2Input) -> Result<ListObjectsV2Output, S3Error> {
    if input.encoding_type.is_some() {
        return Err(said(S3ErrorCode::NotImplemented, "Listings are not URL-encoded here."));
    }
    let prefix = input.prefix.clone().unwrap_or_default();
    let max = most(input.max_keys);
    let start = input.continuation_token.as_ref().or(input.start_after.as_ref());
    let page = collect(
        |after: &String, limit| store.catalog().page(&prefix, after, limit),
        &prefix,
        input.delimiter.as_deref(),
        start.cloned().unwrap_or_default(),
        max,
    )?;
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: input.prefix,
        delimiter: input.delimiter,
        start_after: input.start_after,
        continuation_token: input.continuation_token,
        max_keys: i32::try_from(max).ok(),
        key_count: i32::try_from(page.rows.len() + page.prefixes.len()).ok(),
        is_truncated: Some(page.next.is_some()),
        next_continuation_token: page.next,
        contents: Some(page.rows.into_iter().map(listed).collect()),
        common_prefixes: Some(page.prefixes),
        ..Default::default()
    })
}

fn listed(object: Object) -> Listed {
    Listed {
        e_tag: Some(etag(&object)),
        last_modified: Some(modified(&object)),
        size: i64::try_from(object.size).ok(),
        key: Some(object.key),
        ..Default::default()
    }
}

/// Lists uploads that have not ended, in order of their keys and ids. Blocks.
pub(super) fn uploads(
    store: &Store,
    input: ListMultipartUploadsInput,
) -> Result<ListMultipartUploadsOutput, S3Error> {
    if input.encoding_type.is_some() {
        return Err(said(S3ErrorCode::NotImplemented, "Listings are not URL-encoded here."));
    }
    let prefix = input.prefix.clone().unwrap_or_default();
    let max = most(input.max_uploads);
    let key = input.key_marker.clone().unwrap_or_default();
    // Without a key the other marker means nothing.
    let id = input.upload_id_marker.as_deref().filter(|_| !key.is_empty()).and_then(BlobId::parse);
    let page = collect(
        |(key, id): &(String, Option<BlobId>), limit| store.catalog().uploads(&prefix, (key, *id), limit),
        &prefix,
        input.delimiter.as_deref(),
        (key, id),
        max,
    )?;
    let more = page.next.is_some();
    let (next_key, next_id) = page.next.unzip();
    Ok(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: input.prefix,
        delimiter: input.delimiter,
        key_marker: input.key_marker,
        upload_id_marker: input.upload_id_marker,
        max_uploads: i32::try_from(max).ok(),
        is_truncated: Some(more),
        next_key_marker: next_key,
        next_upload_id_marker: next_id.flatten().map(BlobId::name),
        uploads: Some(page.rows.into_iter().map(open).collect()),
        common_prefixes: Some(page.prefixes),
        ..Default::default()
    })
}

fn open(upload: Upload) -> MultipartUpload {
    MultipartUpload {
        key: Some(upload.key),
        upload_id: Some(upload.id.name()),
        initiated: Some(modified_at(upload.started_ms)),
        checksum_algorithm: upload.plan.map(|plan| ChecksumAlgorithm::from_static(plan.algorithm.name())),
        checksum_type: upload.plan.map(|plan| super::service::checksum_type(plan.cover)),
        ..Default::default()
    }
}

fn most(asked: Option<i32>) -> usize {
    usize::try_from(asked.unwrap_or(i32::MAX)).unwrap_or(0).min(limits::PAGE)
}

/// What is listed: rows in an order in which a place can be named.
trait Row {
    /// A place between rows.
    type Place: Clone;

    fn key(&self) -> &str;

    /// Behind this row.
    fn place(&self) -> Self::Place;

    /// Behind all rows up to this key.
    fn behind(key: String) -> Self::Place;
}

impl Row for Object {
    type Place = String;

    fn key(&self) -> &str {
        &self.key
    }

    fn place(&self) -> String {
        self.key.clone()
    }

    fn behind(key: String) -> String {
        key
    }
}

impl Row for Upload {
    type Place = (String, Option<BlobId>);

    fn key(&self) -> &str {
        &self.key
    }

    fn place(&self) -> Self::Place {
        (self.key.clone(), Some(self.id))
    }

    fn behind(key: String) -> Self::Place {
        (key, None)
    }
}

struct Page<R: Row> {
    rows: Vec<R>,
    prefixes: Vec<CommonPrefix>,
    /// Where the next page starts, if there is more.
    next: Option<R::Place>,
}

/// Up to `max` entries behind `start`. `fetch` gets rows behind a place.
fn collect<R: Row>(
    fetch: impl Fn(&R::Place, usize) -> Result<Vec<R>, CatalogError>,
    prefix: &str,
    delimiter: Option<&str>,
    start: R::Place,
    max: usize,
) -> Result<Page<R>, StoreError> {
    let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty());
    let mut page = Page { rows: Vec::new(), prefixes: Vec::new(), next: None };
    let mut after = start;
    if max == 0 {
        return Ok(page);
    }
    loop {
        let wanted = max - page.rows.len() - page.prefixes.len() + 1;
        let rows = fetch(&after, wanted)?;
        let exhausted = rows.len() < wanted;
        let mut jumped = false;
        for row in rows {
            if page.rows.len() + page.prefixes.len() == max {
                page.next = Some(after);
                return Ok(page);
            }
            let below = delimiter.and_then(|delimiter| {
                let rest = row.key().get(prefix.len()..)?;
                rest.find(delimiter).map(|at| row.key()[..prefix.len() + at + delimiter.len()].to_owned())
            });
            match below {
                Some(below) => {
                    after = R::behind(format!("{below}{LAST}"));
                    page.prefixes.push(CommonPrefix { prefix: Some(below) });
                    // The rest of these rows may lie below it too: fetch again, behind them.
                    jumped = true;
                    break;
                }
                None => {
                    after = row.place();
                    page.rows.push(row);
                }
            }
        }
        if exhausted && !jumped {
            return Ok(page);
        }
    }
}

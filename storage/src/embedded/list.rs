//! Pages of listings: of objects, and of uploads in parts.

use data_encoding::BASE64URL_NOPAD;
use s3s::dto::{
    ChecksumAlgorithm, CommonPrefix, EncodingType, ListMultipartUploadsInput, ListMultipartUploadsOutput,
    ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, MultipartUpload,
    Object as Listed, ObjectStorageClass,
};
use s3s::{S3Error, S3ErrorCode};

use super::blobs::BlobId;
use super::catalog::{CatalogError, LAST, Object, Upload};
use super::conditions::{etag, modified, modified_at};
use super::errors::said;
use super::service::checksum_type;
use super::store::{Store, StoreError};
use crate::limits::embedded as limits;

/// Lists objects in order of their keys, those below a delimiter as one prefix. Blocks.
pub(super) fn objects(store: &Store, input: ListObjectsV2Input) -> Result<ListObjectsV2Output, S3Error> {
    let said = Said::of(input.encoding_type.as_ref());
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.as_deref();
    let max = most(input.max_keys);
    let start = match &input.continuation_token {
        Some(token) => untoken(token)?,
        None => input.start_after.clone().unwrap_or_default(),
    };
    let fetch = |after: &String, limit| store.catalog().page(&prefix, after, limit);
    let page = collect(fetch, &prefix, delimiter, start, max)?;
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        key_count: i32::try_from(page.rows.len() + page.prefixes.len()).ok(),
        is_truncated: Some(page.next.is_some()),
        next_continuation_token: page.next.as_deref().map(token),
        contents: Some(page.rows.into_iter().map(|object| said.object(object)).collect()),
        common_prefixes: Some(said.prefixes(page.prefixes)),
        prefix: said.opt(input.prefix),
        delimiter: said.opt(input.delimiter),
        start_after: said.opt(input.start_after),
        continuation_token: input.continuation_token,
        max_keys: i32::try_from(max).ok(),
        encoding_type: input.encoding_type,
        ..Default::default()
    })
}

/// The same in the older form. Blocks.
pub(super) fn objects_v1(store: &Store, input: ListObjectsInput) -> Result<ListObjectsOutput, S3Error> {
    let said = Said::of(input.encoding_type.as_ref());
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.as_deref();
    let max = most(input.max_keys);
    let start = behind_marker(input.marker.clone().unwrap_or_default(), &prefix, delimiter);
    let fetch = |after: &String, limit| store.catalog().page(&prefix, after, limit);
    let page = collect(fetch, &prefix, delimiter, start, max)?;
    Ok(ListObjectsOutput {
        name: Some(input.bucket),
        is_truncated: Some(page.next.is_some()),
        next_marker: said.opt(page.next.map(marker)),
        contents: Some(page.rows.into_iter().map(|object| said.object(object)).collect()),
        common_prefixes: Some(said.prefixes(page.prefixes)),
        prefix: said.opt(input.prefix),
        delimiter: said.opt(input.delimiter),
        marker: said.opt(input.marker),
        max_keys: i32::try_from(max).ok(),
        encoding_type: input.encoding_type,
        ..Default::default()
    })
}

/// Lists uploads that have not ended, in order of their keys and ids. Blocks.
pub(super) fn uploads(
    store: &Store,
    input: ListMultipartUploadsInput,
) -> Result<ListMultipartUploadsOutput, S3Error> {
    let said = Said::of(input.encoding_type.as_ref());
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.as_deref();
    let max = most(input.max_uploads);
    let key = input.key_marker.clone().unwrap_or_default();
    // Without a key the other marker means nothing.
    let id = input.upload_id_marker.as_deref().filter(|_| !key.is_empty()).and_then(BlobId::parse);
    let start = match id {
        Some(id) => (key, Some(id)),
        None => (behind_marker(key, &prefix, delimiter), None),
    };
    let fetch =
        |(key, id): &(String, Option<BlobId>), limit| store.catalog().uploads(&prefix, (key, *id), limit);
    let page = collect(fetch, &prefix, delimiter, start, max)?;
    let more = page.next.is_some();
    let (next_key, next_id) = page.next.unzip();
    Ok(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        is_truncated: Some(more),
        next_key_marker: said.opt(next_key.map(marker)),
        next_upload_id_marker: next_id.flatten().map(BlobId::name),
        uploads: Some(page.rows.into_iter().map(|upload| said.upload(upload)).collect()),
        common_prefixes: Some(said.prefixes(page.prefixes)),
        prefix: said.opt(input.prefix),
        delimiter: said.opt(input.delimiter),
        key_marker: said.opt(input.key_marker),
        upload_id_marker: input.upload_id_marker,
        max_uploads: i32::try_from(max).ok(),
        encoding_type: input.encoding_type,
        ..Default::default()
    })
}

/// How keys are written in an answer: as they are, or as in the query of a URL.
#[derive(Clone, Copy)]
struct Said {
    encoded: bool,
}

impl Said {
    fn of(encoding: Option<&EncodingType>) -> Self {
        Self { encoded: encoding.is_some_and(|encoding| encoding.as_str() == EncodingType::URL) }
    }

    fn text(self, text: String) -> String {
        if self.encoded { url::form_urlencoded::byte_serialize(text.as_bytes()).collect() } else { text }
    }

    fn opt(self, text: Option<String>) -> Option<String> {
        text.map(|text| self.text(text))
    }

    fn prefixes(self, prefixes: Vec<String>) -> Vec<CommonPrefix> {
        prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(self.text(prefix)) }).collect()
    }

    fn object(self, object: Object) -> Listed {
        Listed {
            e_tag: Some(etag(&object)),
            last_modified: Some(modified(&object)),
            size: i64::try_from(object.size).ok(),
            key: Some(self.text(object.key)),
            storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
            ..Default::default()
        }
    }

    fn upload(self, upload: Upload) -> MultipartUpload {
        MultipartUpload {
            key: Some(self.text(upload.key)),
            upload_id: Some(upload.id.name()),
            initiated: Some(modified_at(upload.started_ms)),
            checksum_algorithm: upload.plan.map(|plan| ChecksumAlgorithm::from_static(plan.algorithm.name())),
            checksum_type: upload.plan.map(|plan| checksum_type(plan.cover)),
            ..Default::default()
        }
    }
}

fn most(asked: Option<i32>) -> usize {
    usize::try_from(asked.unwrap_or(i32::MAX)).unwrap_or(0).min(limits::PAGE)
}

/// A place in a listing as clients hand it back: nothing that they could read anything into.
fn token(place: impl AsRef<str>) -> String {
    BASE64URL_NOPAD.encode(place.as_ref().as_bytes())
}

fn untoken(token: &str) -> Result<String, S3Error> {
    BASE64URL_NOPAD
        .decode(token.as_bytes())
        .ok()
        .and_then(|place| String::from_utf8(place).ok())
        .ok_or_else(|| said(S3ErrorCode::InvalidArgument, "The continuation token is none of this storage."))
}

/// A place as a marker says it: behind a key, or behind all that a common prefix stands for.
fn marker(place: String) -> String {
    place.strip_suffix(LAST).map(str::to_owned).unwrap_or(place)
}

fn behind_marker(marker: String, prefix: &str, delimiter: Option<&str>) -> String {
    let stands_for_many = delimiter.is_some_and(|delimiter| {
        !delimiter.is_empty() && marker.len() > prefix.len() && marker.ends_with(delimiter)
    });
    if stands_for_many { format!("{marker}{LAST}") } else { marker }
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
    prefixes: Vec<String>,
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
                    page.prefixes.push(below);
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

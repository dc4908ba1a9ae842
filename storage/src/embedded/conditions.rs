//! Conditions and ranges of a request, against the object that is there.

use std::ops::Range as Span;
use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use hyper::header::{CONTENT_RANGE, ETAG, HeaderValue, LAST_MODIFIED};
use millpond_protocol::Sha256;
use s3s::dto::{ETag, ETagCondition, GetObjectInput, HeadObjectInput, Range, Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode};

use super::catalog::{Check, Object};
use super::errors::{said, with_header};

/// The entity tag of an object. It ends in a hyphen and the number of parts, also without parts: clients take other tags
/// for an MD5.
pub(super) fn etag(object: &Object) -> ETag {
    tag(object.sha256, object.parts)
}

/// The entity tag of an object with that SHA-256 and so many parts.
pub(super) fn tag(sha256: Sha256, parts: u32) -> ETag {
    ETag::Strong(format!("{sha256}-{}", parts.max(1)))
}

/// When an object was stored, to the second, as HTTP can say it.
pub(super) fn modified(object: &Object) -> Timestamp {
    modified_at(object.modified_ms)
}

/// A time in milliseconds since 1970, to the second.
pub(super) fn modified_at(ms: i64) -> Timestamp {
    let seconds = u64::try_from(ms / 1000).unwrap_or_default();
    Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// What a reader wants to be true of an object.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
    if_modified_since: Option<Timestamp>,
    if_unmodified_since: Option<Timestamp>,
}

macro_rules! wanted {
    ($input:expr) => {
        Wanted {
            if_match: $input.if_match.clone(),
            if_none_match: $input.if_none_match.clone(),
            if_modified_since: $input.if_modified_since.clone(),
            if_unmodified_since: $input.if_unmodified_since.clone(),
        }
    };
}

impl From<&GetObjectInput> for Wanted {
    fn from(input: &GetObjectInput) -> Self {
        wanted!(input)
    }
}

impl From<&HeadObjectInput> for Wanted {
    fn from(input: &HeadObjectInput) -> Self {
        wanted!(input)
    }
}

impl Wanted {
    /// Checks the conditions in the order of RFC 9110, 13.2.2.
    pub(super) fn check(&self, object: &Object) -> Result<(), S3Error> {
        let failed = || Err(S3Error::new(S3ErrorCode::PreconditionFailed));
        let (tag, modified) = (etag(object), modified(object));
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) if !matches(condition, &tag, ETag::strong_cmp) => return failed(),
            (None, Some(since)) if modified > *since => return failed(),
            _ => {}
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) if matches(condition, &tag, ETag::weak_cmp) => Err(unchanged(object)),
            (None, Some(since)) if modified <= *since => Err(unchanged(object)),
            _ => Ok(()),
        }
    }
}

/// The object is what the reader has: its tag and time, for the reader's cache.
fn unchanged(object: &Object) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    let mut headers = HeaderMap::new();
    if let Ok(tag) = etag(object).to_http_header() {
        headers.insert(ETAG, tag);
    }
    let mut time = Vec::new();
    if modified(object).format(TimestampFormat::HttpDate, &mut time).is_ok()
        && let Ok(time) = HeaderValue::from_bytes(&time)
    {
        headers.insert(LAST_MODIFIED, time);
    }
    error.set_headers(headers);
    error
}

fn matches(condition: &ETagCondition, tag: &ETag, same: fn(&ETag, &ETag) -> bool) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(wanted) => same(wanted, tag),
    }
}

/// What a writer wants to be true of the object that it replaces, or of its absence.
pub(super) fn before_put(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
) -> Option<Check> {
    if if_match.is_none() && if_none_match.is_none() {
        return None;
    }
    Some(Box::new(move |old| {
        let same = |condition: &ETagCondition| {
            old.is_some_and(|old| matches(condition, &etag(old), ETag::strong_cmp))
        };
        if_match.as_ref().is_none_or(same) && !if_none_match.as_ref().is_some_and(same)
    }))
}

/// Why a write was refused whose condition did not hold: `there` says whether there is an object. S3 answers `If-Match` for a
/// key that has none as it answers a GET of it.
pub(super) fn unmet(there: bool) -> S3Error {
    if there {
        said(S3ErrorCode::PreconditionFailed, "Another object is there.")
    } else {
        said(S3ErrorCode::NoSuchKey, "There is no object that it could be.")
    }
}

/// The bytes that a range means in an object of this size; `None` for all of them.
///
/// # Errors
///
/// A range that begins beyond the end, with the size, so that the client can ask again. Of nothing there is no last byte
/// either.
pub(super) fn span(range: Option<&Range>, size: u64) -> Result<Option<Span<u64>>, S3Error> {
    let Some(range) = range else { return Ok(None) };
    let span = range.check(size).ok().filter(|span| !span.is_empty());
    span.map(Some).ok_or_else(|| {
        let error = said(S3ErrorCode::InvalidRange, format!("The object has {size} bytes."));
        match format!("bytes */{size}").parse() {
            Ok(value) => with_header(error, CONTENT_RANGE, value),
            Err(_) => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::blobs::BlobId;
    use super::*;

    fn object() -> Object {
        let sha256 = Sha256::of(b"abc");
        Object {
            key: "k".into(),
            id: BlobId([0; 16]),
            parts: 0,
            size: 3,
            sha256,
            checksum: None,
            meta: None,
            modified_ms: 5_900,
        }
    }

    fn at(seconds: u64) -> Option<Timestamp> {
        Some(Timestamp::from(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    fn is(value: &str) -> Option<ETagCondition> {
        Some(ETagCondition::ETag(ETag::Strong(value.into())))
    }

    #[test]
    fn a_tag_decides_before_a_time_does() {
        let object = object();
        let tag = etag(&object).into_value();
        let code = |wanted: Wanted| wanted.check(&object).map_err(|error| error.code().as_str().to_owned());
        let (failed, unchanged) = (Err("PreconditionFailed".to_owned()), Err("NotModified".to_owned()));
        let none = Wanted::default;
        assert_eq!(code(none()), Ok(()));
        assert_eq!(code(Wanted { if_match: is(&tag), if_unmodified_since: at(1), ..none() }), Ok(()));
        assert_eq!(code(Wanted { if_match: is("x"), if_unmodified_since: at(9), ..none() }), failed);
        assert_eq!(code(Wanted { if_unmodified_since: at(5), ..none() }), Ok(()));
        assert_eq!(code(Wanted { if_unmodified_since: at(4), ..none() }), failed);
        assert_eq!(code(Wanted { if_none_match: is(&tag), if_modified_since: at(1), ..none() }), unchanged);
        assert_eq!(code(Wanted { if_none_match: is("x"), if_modified_since: at(9), ..none() }), Ok(()));
        assert_eq!(code(Wanted { if_modified_since: at(5), ..none() }), unchanged);
        assert_eq!(code(Wanted { if_modified_since: at(4), ..none() }), Ok(()));
    }

    #[test]
    fn a_writer_can_insist_on_what_it_replaces() {
        let object = object();
        let tag = etag(&object).into_value();
        let any = || Some(ETagCondition::Any);
        let holds = |check: Option<Check>, old: Option<&Object>| check.is_none_or(|check| check(old));
        assert!(before_put(None, None).is_none());
        assert!(holds(before_put(None, any()), None));
        assert!(!holds(before_put(None, any()), Some(&object)));
        assert!(holds(before_put(is(&tag), None), Some(&object)));
        assert!(!holds(before_put(is(&tag), None), None));
        assert!(!holds(before_put(is("x"), None), Some(&object)));
    }
}

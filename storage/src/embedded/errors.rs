//! What clients are told: one place where failures become S3 error codes.

use std::borrow::Cow;
use std::io;

use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use s3s::{S3Error, S3ErrorCode};

use super::catalog::CatalogError;
use super::parts::Unfit;
use super::receive::Refused;
use super::store::StoreError;
use crate::directory;

/// An S3 error with a message for people.
pub(super) fn said(code: S3ErrorCode, message: impl Into<Cow<'static, str>>) -> S3Error {
    S3Error::with_message(code, message)
}

/// An error code that `s3s` does not know, with its status.
fn custom(code: &'static str, status: u16, message: impl Into<Cow<'static, str>>) -> S3Error {
    let mut error = said(S3ErrorCode::Custom(code.into()), message);
    if let Ok(status) = hyper::StatusCode::from_u16(status) {
        error.set_status_code(status);
    }
    error
}

/// Headers for an error; `s3s` then sets none of its own.
pub(super) fn with_header(mut error: S3Error, name: HeaderName, value: HeaderValue) -> S3Error {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/xml")), (name, value)];
    error.set_headers(headers.into_iter().collect());
    error
}

/// A body came too slowly. The rest of it is not waited for.
pub(super) fn too_slow() -> S3Error {
    let error = said(S3ErrorCode::RequestTimeout, "The body stood still for too long, or crawled.");
    with_header(error, CONNECTION, HeaderValue::from_static("close"))
}

fn full() -> S3Error {
    custom("InsufficientStorage", 507, "The disk of this storage is full.")
}

/// A disk that fails is the operator's business: the client learns that it failed, the log says how.
fn disk(error: io::Error) -> S3Error {
    if directory::is_full(&error) {
        return full();
    }
    tracing::error!(%error, "the disk of the embedded storage failed");
    said(S3ErrorCode::InternalError, "The disk of this storage failed.")
}

impl From<StoreError> for S3Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Disk(error) => disk(error),
            StoreError::Catalog(CatalogError::Full) => full(),
            StoreError::Catalog(
                error @ (CatalogError::Newer(_)
                | CatalogError::Lost
                | CatalogError::Undone(_)
                | CatalogError::Failed(_)),
            ) => {
                tracing::error!(%error, "the catalogue of the embedded storage failed");
                said(S3ErrorCode::InternalError, "The catalogue of this storage failed.")
            }
        }
    }
}

impl From<Refused> for S3Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoLength => {
                said(S3ErrorCode::MissingContentLength, "Content-Length says how long the body is.")
            }
            Refused::TooLarge { max } => said(
                S3ErrorCode::EntityTooLarge,
                format!("One PUT stores up to {max} bytes; use a multipart upload."),
            ),
            Refused::Length { declared, got } => {
                said(S3ErrorCode::IncompleteBody, format!("{declared} bytes were declared and {got} came."))
            }
            Refused::Quota { quota } => {
                let message = format!("The bucket's objects and parts may have {quota} bytes in all.");
                custom("QuotaExceeded", 507, message)
            }
            Refused::Digest { algorithm, got } => said(
                S3ErrorCode::BadDigest,
                format!("The body's {} is {got}, and not what was declared.", algorithm.name()),
            ),
            Refused::BadChecksum(algorithm) => said(
                S3ErrorCode::InvalidDigest,
                format!("A checksum is base64 of all bytes of its {}.", algorithm.name()),
            ),
            Refused::Unannounced(algorithm) => said(
                S3ErrorCode::InvalidRequest,
                format!("x-amz-trailer does not name the {} behind the body.", algorithm.name()),
            ),
            Refused::NoTrailer(algorithm) => custom(
                "MalformedTrailerError",
                400,
                format!("The {} that x-amz-trailer names did not come behind the body.", algorithm.name()),
            ),
            Refused::Busy => said(S3ErrorCode::SlowDown, "Too many uploads at once."),
            Refused::Crowded => said(S3ErrorCode::SlowDown, "Too many uploads to one key at once."),
            Refused::Body(error) if error.contains("Sha256Mismatch") => custom(
                "XAmzContentSHA256Mismatch",
                400,
                "The body's SHA-256 is not the one in x-amz-content-sha256.",
            ),
            // Of a chunk, or of the checksums behind the last one.
            Refused::Body(error) if error.contains("SignatureMismatch") => {
                said(S3ErrorCode::SignatureDoesNotMatch, "The signature of a piece of the body is wrong.")
            }
            Refused::Body(error) => said(S3ErrorCode::IncompleteBody, error),
            Refused::Store(error) => error.into(),
        }
    }
}

impl From<Unfit> for S3Error {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Order => said(S3ErrorCode::InvalidPartOrder, "Parts are listed by ascending number."),
            Unfit::Part(0) => {
                said(S3ErrorCode::InvalidPart, "The upload has been completed with other parts.")
            }
            Unfit::Part(n) => {
                said(S3ErrorCode::InvalidPart, format!("Part {n} is not there, or another than listed."))
            }
            Unfit::TooSmall { n, size, min } => said(
                S3ErrorCode::EntityTooSmall,
                format!("Part {n} has {size} bytes, and all but the last have {min} at least."),
            ),
            Unfit::Size(size) => {
                said(S3ErrorCode::InvalidRequest, format!("The listed parts have {size} bytes in all."))
            }
            Unfit::Checksum(got) => {
                let (name, value) = (got.algorithm.name(), got.value);
                said(S3ErrorCode::BadDigest, format!("The object's {name} is {value}."))
            }
            Unfit::Unplanned(algorithm) => said(
                S3ErrorCode::InvalidRequest,
                format!("The upload was begun without {} checksums.", algorithm.name()),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_from_a_broken_one() {
        let status = |error: S3Error| error.status_code().unwrap().as_u16();
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            let no_room = || io::Error::from(errno);
            assert_eq!(status(StoreError::Disk(no_room()).into()), 507, "{errno}");
            assert_eq!(status(StoreError::Catalog(no_room().into()).into()), 507, "{errno}");
            assert_eq!(status(Refused::from(no_room()).into()), 507, "{errno}");
        }
        let denied = || io::Error::from(Errno::ACCESS);
        assert_eq!(status(StoreError::Disk(denied()).into()), 500);
        assert_eq!(status(StoreError::Catalog(denied().into()).into()), 500);
    }
}

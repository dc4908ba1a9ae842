//! What clients keep with an object: `x-amz-meta-…`, as JSON in the catalogue.

use s3s::dto::Metadata;
use s3s::{S3ErrorCode, S3Result};

use super::super::errors::said;
use crate::limits::embedded as limits;

/// As it is kept, if there is any.
pub(super) fn keep(meta: Option<&Metadata>) -> S3Result<Option<String>> {
    let Some(meta) = meta.filter(|meta| !meta.is_empty()) else { return Ok(None) };
    let size: usize = meta.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > limits::META {
        let message = format!("Metadata has up to {} bytes, names and values.", limits::META);
        return Err(said(S3ErrorCode::MetadataTooLarge, message));
    }
    serde_json::to_string(meta)
        .map(Some)
        .map_err(|error| said(S3ErrorCode::InvalidRequest, error.to_string()))
}

/// As it is handed out.
pub(super) fn kept(meta: Option<&str>) -> Option<Metadata> {
    serde_json::from_str(meta?).ok()
}

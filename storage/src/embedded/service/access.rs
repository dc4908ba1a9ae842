//! Who may do what.

use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, Uri};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3ErrorCode, S3Result};

use super::super::Holders;
use super::super::errors::said;
use crate::presign::HOLDER;

/// The one key pair.
pub(in super::super) struct KeyPair {
    pub(in super::super) access_key: String,
    pub(in super::super) secret_key: SecretKey,
}

#[async_trait::async_trait]
impl S3Auth for KeyPair {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.access_key {
            Ok(self.secret_key.clone())
        } else {
            Err(said(S3ErrorCode::InvalidAccessKeyId, "There is no such access key."))
        }
    }
}

/// Whoever has the key may do everything, with a SigV4 signature that covers every `x-amz-*` header.
///
/// A header that changes what a request means must not be the choice of whoever was given a URL.
///
/// Where a URL says whom it was made for, that one has to be somebody who may still use it.
pub(in super::super) struct Signed(pub(in super::super) Option<Holders>);

/// The names of the headers that a request's one signature covers, with `;` between them; `None` where it has none, or more.
pub(in super::super) fn signed_headers(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let query = uri.query().unwrap_or_default().as_bytes();
    let mut in_query = url::form_urlencoded::parse(query).filter(|(name, _)| name == "X-Amz-SignedHeaders");
    match (headers.get(AUTHORIZATION), in_query.next(), in_query.next()) {
        (Some(header), None, None) => header
            .to_str()
            .ok()
            .and_then(|header| header.split_once("SignedHeaders="))
            .map(|(_, rest)| rest.split(',').next().unwrap_or(rest).to_owned()),
        (None, Some((_, signed)), None) => Some(signed.into_owned()),
        // Of two signatures it would not be clear whose list of headers holds.
        _ => None,
    }
}

/// Whether such a list has a header.
pub(in super::super) fn covers(signed: &str, name: &str) -> bool {
    signed.split(';').any(|signed| signed.trim() == name)
}

#[async_trait::async_trait]
impl S3Access for Signed {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        let denied = |message: &'static str| Err(said(S3ErrorCode::AccessDenied, message));
        if request.credentials().is_none() {
            return denied("Requests are signed.");
        }
        let Some(signed) = signed_headers(request.headers(), request.uri()) else {
            return denied("Requests have one signature, of version 4.");
        };
        let stray = request
            .headers()
            .keys()
            .any(|name| name.as_str().starts_with("x-amz-") && !covers(&signed, name.as_str()));
        if stray {
            return denied("There were headers present in the request which were not signed.");
        }
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let holder = url::form_urlencoded::parse(query).find(|(name, _)| name == HOLDER);
        let Some((holders, (_, holder))) = self.0.as_ref().zip(holder) else { return Ok(()) };
        match holders(holder.into_owned()).await {
            Some(true) => Ok(()),
            Some(false) => denied("Whoever this URL was made for may not use it any more."),
            None => Err(said(S3ErrorCode::ServiceUnavailable, "Nobody knows now whether the URL holds.")),
        }
    }
}

//! Browsers: which pages may use the storage with the URLs that they were given.
//!
//! A page of another origin may send a presigned request if its origin is configured. Nothing else changes: the request is
//! signed or refused like any other, and cookies mean nothing here.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use hyper::{Method, StatusCode};
use s3s::{Body, HttpResponse, S3Error, S3ErrorCode};

use super::errors::said;

const METHODS: [Method; 5] = [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE];

/// What a page may see of an answer beside its body.
const EXPOSED: &str = "ETag, Content-Length, Content-Range, Accept-Ranges, Last-Modified, x-amz-checksum-sha256, \
                       x-amz-checksum-type, x-amz-request-id";

/// Seconds for which a browser need not ask again.
const MAX_AGE: &str = "3600";

/// The origins that may use the storage, of one request.
#[derive(Debug, Clone)]
pub(super) struct Cors {
    origin: Option<HeaderValue>,
    /// Whether an answer depends on who asks.
    varies: bool,
}

impl Cors {
    /// What holds for a request with these headers; `allowed` are origins such as `https://app.example.org`, or `*`.
    pub(super) fn of(headers: &HeaderMap, allowed: &[String]) -> Self {
        let origin = headers.get(ORIGIN).filter(|origin| {
            allowed.iter().any(|allowed| allowed == "*" || origin.as_bytes() == allowed.as_bytes())
        });
        Self { origin: origin.cloned(), varies: !allowed.is_empty() }
    }

    /// The answer to a browser that asks before it sends, if this request is such a question.
    pub(super) fn preflight(
        &self,
        method: &Method,
        headers: &HeaderMap,
    ) -> Option<Result<HttpResponse, S3Error>> {
        if method != Method::OPTIONS {
            return None;
        }
        let wanted = headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        let wanted = wanted.and_then(|wanted| Method::from_bytes(wanted.as_bytes()).ok());
        let may = self.origin.is_some() && wanted.is_some_and(|wanted| METHODS.contains(&wanted));
        if !may {
            let message = "This origin may not use the storage, or not with this method.";
            return Some(Err(said(S3ErrorCode::AccessDenied, message)));
        }
        let mut answer = HttpResponse::new(Body::empty());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let said = answer.headers_mut();
        said.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE"));
        said.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        // A header that was not signed is refused with the request itself.
        if let Some(names) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            said.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        Some(Ok(answer))
    }

    /// Lets the page read an answer. A cache is told that another page may not, also by the answer to one that may not.
    pub(super) fn allow(self, headers: &mut HeaderMap) {
        if self.varies {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = self.origin else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
}

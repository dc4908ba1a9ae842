//! Refusals as HTTP answers, and extractors that refuse in the same shape. The only place where a code becomes a status.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use millpond_protocol::error::ErrorBody;
use millpond_protocol::{Code, Refusal};
use serde::de::DeserializeOwned;

/// What a handler answers.
pub(super) type Answer<T> = Result<Json<T>, Failed>;

/// A refusal on its way out.
#[derive(Debug)]
pub(super) struct Failed(pub ErrorBody);

impl From<Refusal> for Failed {
    fn from(error: Refusal) -> Self {
        Self(ErrorBody { id: None, error })
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let Self(body) = self;
        let status =
            StatusCode::from_u16(body.error.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        metrics::counter!("millpond_http_refusals_total", "code" => body.error.code.as_str()).increment(1);
        let retry_after = body.error.retry_after_ms.map(|ms| ms.div_ceil(1_000));
        let mut response = (status, Json(body)).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// No such path, for everything that no route takes.
pub(super) async fn no_such_path(request: Request) -> Failed {
    Refusal::new(Code::NotFound, format!("there is no {} {}", request.method(), request.uri().path())).into()
}

/// The variables of a route, parsed.
pub(super) struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Params<T> {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failed> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(params)) => Ok(Self(params)),
            Err(error) => Err(malformed(format!("the path does not read: {}", error.body_text()))),
        }
    }
}

/// The query of a request, parsed.
pub(super) struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failed> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => Err(malformed(format!("the query does not read: {}", error.body_text()))),
        }
    }
}

/// A JSON body; an empty one reads as `{}`.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failed;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failed> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // serde would read a struct from an array too, its keys by position.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(malformed("the body is no JSON object".to_owned()));
        }
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| malformed(format!("the body does not read: {error}")))
    }
}

/// Bytes that the body of a request may have.
#[derive(Clone, Copy)]
pub(super) struct BodyMax(pub usize);

/// A body as it is.
pub(super) struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Failed;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failed> {
        let most = request.extensions().get().map_or(super::BODY_MAX, |BodyMax(bytes)| *bytes);
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(BytesRejection::FailedToBufferBody(error))
                if error.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Err(Refusal::new(Code::TooLarge, "the body is too long").limit(most as u64).into())
            }
            Err(error) => Err(malformed(format!("the body broke off: {}", error.body_text()))),
        }
    }
}

pub(super) fn malformed(message: String) -> Failed {
    Refusal::new(Code::Malformed, message).into()
}

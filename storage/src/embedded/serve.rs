//! Requests on their way in and answers on their way out.

use std::sync::Arc;
use std::time::Duration;
use std::{io, mem};

use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, EXPECT, HeaderValue, RANGE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use millpond_net::{Connections, Listener};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::dto::Range;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, S3Error, S3ErrorCode};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::Embedded;
use super::config::EmbeddedConfig;
use super::cors::Cors;
use super::drain::Shared;
use super::errors::{said, too_slow};
use super::service::{KeyPair, Service, Signed, covers, signed_headers};
use super::store::now_ms;
use crate::limits::embedded as limits;

/// A client may keep what it got, for itself, and has to ask whether it may still have it before it uses it again.
const CACHING: &str = "private, no-cache";

impl Embedded {
    /// Answers requests on `listener` until `shutdown`, then lets those that are under way go on for
    /// [`EmbeddedConfig::grace`](super::EmbeddedConfig::grace).
    ///
    /// May run on several listeners at once, each with limits of its own: a listener that only the server itself knows
    /// stays reachable however many clients are on the public one.
    ///
    /// # Errors
    ///
    /// None today; a listener that stops working for a moment is tried again.
    pub async fn serve(&self, listener: impl Into<Listener>, shutdown: CancellationToken) -> io::Result<()> {
        let service = self.service();
        let connections = Connections {
            of: "the embedded storage",
            name: "storage",
            max: self.config.max_connections,
            per_address: self.config.max_connections_per_address,
            idle: self.config.idle_timeout,
            stall: self.config.stall_timeout,
            grace: self.config.grace,
        };
        let answering = connections.serve(listener, shutdown, |_| {
            let (service, config) = (service.clone(), Arc::clone(&self.config));
            service_fn(move |request| answer(service.clone(), Arc::clone(&config), request))
        });
        let sweeping = async {
            // One of several listeners does it for all, and the next one when that has ended.
            let _turn = self.sweeper.lock().await;
            // Files were swept when the directory was opened. What is abandoned is judged by the clock of the last sweep, or
            // of the start: after a long time down, or a leap of the clock, whoever keeps books of uploads has so long to
            // complete what is whole.
            let mut clock = now_ms();
            // A server that is restarted again and again comes to this one alone: by the clock of when it last kept something,
            // what was abandoned already is, and what only grew old while it was down is not.
            sleep(soon(self.config.sweep)).await;
            tokio::spawn(self.clone().sweep(self.store.worked_ms()));
            let mut sweep = interval_at(Instant::now() + self.config.sweep, self.config.sweep);
            sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                sweep.tick().await;
                tokio::spawn(self.clone().sweep(mem::replace(&mut clock, now_ms())));
            }
        };
        tokio::select! {
            () = answering => Ok(()),
            () = sweeping => Ok(()),
        }
    }

    /// Ends uploads that were abandoned at `clock`, and removes files without a row. What fails is tried again with the next
    /// sweep.
    async fn sweep(self, clock: i64) {
        let idle_ms = i64::try_from(self.config.abandoned.as_millis()).unwrap_or(i64::MAX);
        // A clock that was ahead and is right again would make everything old.
        let clock = clock.min(now_ms());
        let store = Arc::clone(&self.store);
        if let Err(error) = Arc::clone(&store).expire(clock.saturating_sub(idle_ms)).await {
            tracing::warn!(%error, "abandoned uploads stay until the next sweep");
        }
        if let Ok(Err(error)) = spawn_blocking(move || store.sweep()).await {
            tracing::warn!(%error, "files without a row stay until the next sweep");
        }
    }

    fn service(&self) -> S3Service {
        let mut s3 = S3Config::default();
        s3.xml_max_body_size = limits::XML;
        let mut builder =
            S3ServiceBuilder::new(Service::new(Arc::clone(&self.store), Arc::clone(&self.config)));
        builder.set_auth(KeyPair {
            access_key: self.config.access_key.clone(),
            secret_key: self.config.secret_key.expose().into(),
        });
        builder.set_access(Signed(self.holders.clone()));
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(s3))));
        builder.build()
    }
}

/// How long after a start the first sweep runs: between a sixtieth and a sixth of the time between sweeps, so that many
/// servers that start together do not all read their disks together.
fn soon(sweep: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness all wait as long.
    let _ = getrandom::fill(&mut random);
    sweep / 60 + sweep * u32::from(random[0]) / 1_800
}

async fn answer(
    service: S3Service,
    config: Arc<EmbeddedConfig>,
    request: Request<Incoming>,
) -> Result<Response<Body>, HttpError> {
    let cors = Cors::of(request.headers(), &config.cors_origins);
    let held_back = request.headers().contains_key(EXPECT);
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    };
    let (mut head, body) = request.into_parts();
    let encoding = head.headers.get("x-amz-content-sha256");
    let chunked = encoding.is_some_and(|encoding| encoding.as_bytes().starts_with(b"STREAMING-"));
    let body = Shared::new(body, held_back, chunked, config.stall_timeout);
    ignore_range(&mut head);
    let mut response = if let Some(answer) = cors.preflight(&head.method, &head.headers) {
        answer.or_else(refusal)?
    } else if let Some(error) = unread(&head) {
        refusal(error)?
    } else {
        service.call(Request::from_parts(head, Body::http_body(body.clone()))).await?
    };
    if body.stalled() && !response.status().is_success() {
        // Whatever its reader made of that.
        response = refusal(too_slow())?;
    } else if body.oversized() && !response.status().is_success() {
        let message = format!("A signed chunk has {} bytes at most.", limits::SIGNED_CHUNK);
        response = refusal(said(S3ErrorCode::EntityTooLarge, message))?;
    } else if body.broken() && response.status().is_server_error() {
        // What `s3s` reads by itself and what breaks off would be an error of ours.
        response = refusal(said(S3ErrorCode::IncompleteBody, "The body breaks off."))?;
    }
    cors.allow(response.headers_mut());
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Who may have it is asked here each time: no cache between answers for that.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(CACHING));
    let status = response.status().as_u16().to_string();
    metrics::counter!("millpond_s3_requests_total", "method" => method, "status" => status).increment(1);
    // An answer that closes the connection by itself is for a client that does not send.
    let keeps = response.headers().get(CONNECTION).is_none();
    if keeps && !body.drain(config.drain_bytes, config.drain_time).await {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Why a request is refused before `s3s` sees it, which would read its body before it knows who sends it.
fn unread(head: &Parts) -> Option<S3Error> {
    let mut kinds = head.headers.get_all(CONTENT_TYPE).iter();
    let is_form = kinds.any(|kind| kind.as_bytes().to_ascii_lowercase().starts_with(b"multipart/"));
    if head.method == Method::POST && is_form {
        return Some(said(S3ErrorCode::NotImplemented, "Uploads by form are not offered."));
    }
    if head.headers.contains_key(AUTHORIZATION) && !head.headers.contains_key("x-amz-content-sha256") {
        return Some(match signed_headers(&head.headers, &head.uri) {
            Some(_) => said(S3ErrorCode::InvalidRequest, "x-amz-content-sha256 is missing."),
            None => said(S3ErrorCode::AccessDenied, "Requests have one signature, of version 4."),
        });
    }
    None
}

/// Drops a range that means nothing here, as HTTP has it: several, of other units, or from behind to before. One that is
/// signed has to stay.
fn ignore_range(head: &mut Parts) {
    let ranges: Vec<_> = head.headers.get_all(RANGE).iter().collect();
    let known = |range: &&HeaderValue| range.to_str().is_ok_and(|range| Range::parse(range).is_ok());
    if ranges.is_empty() || (ranges.len() == 1 && ranges.iter().all(known)) {
        return;
    }
    let signed = signed_headers(&head.headers, &head.uri);
    if !signed.is_some_and(|signed| covers(&signed, RANGE.as_str())) {
        head.headers.remove(RANGE);
    }
}

fn refusal(error: S3Error) -> Result<Response<Body>, HttpError> {
    error.to_http_response().map_err(|error| HttpError::new(Box::new(error)))
}

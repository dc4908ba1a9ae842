//! Requests on their way in and answers on their way out.

use std::io;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, EXPECT, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use millpond_net::{Connections, Listener};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, S3Error, S3ErrorCode};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::Embedded;
use super::config::EmbeddedConfig;
use super::cors::Cors;
use super::drain::{Broken, Shared};
use super::errors::said;
use super::receive::Refused;
use super::service::{KeyPair, Service, Signed};
use crate::limits::embedded as limits;

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
            // What nobody went on with while the server was down. Files were swept when the directory was opened.
            tokio::spawn(self.clone().expire());
            let mut sweep = interval_at(Instant::now() + self.config.sweep, self.config.sweep);
            sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                sweep.tick().await;
                tokio::spawn(self.clone().sweep());
            }
        };
        tokio::select! {
            () = answering => Ok(()),
            () = sweeping => Ok(()),
        }
    }

    /// Ends abandoned uploads. What fails is tried again with the next sweep.
    async fn expire(self) {
        let idle_ms = i64::try_from(self.config.abandoned.as_millis()).unwrap_or(i64::MAX);
        if let Err(error) = Arc::clone(&self.store).expire(idle_ms).await {
            tracing::warn!(%error, "abandoned uploads stay until the next sweep");
        }
    }

    /// Ends abandoned uploads and removes files without a row.
    async fn sweep(self) {
        self.clone().expire().await;
        let store = Arc::clone(&self.store);
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
        builder.set_access(Signed);
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(s3))));
        builder.build()
    }
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
    let (head, body) = request.into_parts();
    let body = Shared::new(body, held_back, config.stall_timeout);
    // `s3s` collects a form in memory before it looks at who sends it.
    let mut kinds = head.headers.get_all(CONTENT_TYPE).iter();
    let is_form = kinds.any(|kind| kind.as_bytes().to_ascii_lowercase().starts_with(b"multipart/"));
    let mut response = if let Some(answer) = cors.preflight(&head.method, &head.headers) {
        answer.or_else(refusal)?
    } else if is_form {
        refusal(said(S3ErrorCode::NotImplemented, "Uploads by form are not offered."))?
    } else {
        service.call(Request::from_parts(head, Body::http_body(body.clone()))).await?
    };
    // What `s3s` reads by itself and what breaks off would be an error of ours.
    let broken = body.broken().filter(|_| response.status().is_server_error() || response.status() == 400);
    match broken {
        Some(Broken::Stalled) => response = refusal(Refused::Stalled.into())?,
        Some(Broken::Off) if response.status().is_server_error() => {
            response = refusal(said(S3ErrorCode::IncompleteBody, "The body breaks off."))?;
        }
        Some(Broken::Off) | None => {}
    }
    cors.allow(response.headers_mut());
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let status = response.status().as_u16().to_string();
    metrics::counter!("millpond_s3_requests_total", "method" => method, "status" => status).increment(1);
    // An answer that closes the connection by itself is for a client that does not send.
    if !response.headers().contains_key(CONNECTION) && !body.drain().await {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

fn refusal(error: S3Error) -> Result<Response<Body>, HttpError> {
    error.to_http_response().map_err(|error| HttpError::new(Box::new(error)))
}

//! The HTTP API: `/v1` for the command line and for operators' programs, health, metrics, the event stream, and the door
//! to MQTT over WebSocket.
//!
//! One file a resource, each with its routes, the checks and the SQL of its reads; changes are jobs of the ledger. Who
//! may do what is [`millpond_protocol::access::may`], as over MQTT; an admin stands above it. [`api`] is the JSON.

pub mod api;
mod asks;
mod audit;
mod auth;
mod backup;
mod batches;
mod check;
mod error;
mod events;
mod gc;
mod health;
mod joins;
mod members;
mod metrics;
mod page;
mod pools;
mod results;
mod rounds;
mod serve;
mod status;
mod streams;
mod uploads;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use millpond_net::{Handover, Listener};
use millpond_protocol::{Refusal, Sha256, Timestamp, limits};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::Authority;
use crate::asks::Asks;
use crate::dispatch::Troubles;
use crate::identity::Identity;
use crate::ledger::Ledger;
use crate::retention::Collector;
use error::Failed;

pub use metrics::install as install_metrics;
pub use serve::Room;

/// Bytes of a request's body: what the longest ask has.
const BODY_MAX: usize = limits::ASK_MAX;
/// The same of an enrolment, which strangers may send: whether their token is one is known behind the body.
const ENROL_MAX: usize = 4 << 10;

/// What the API needs of the rest of the server.
pub struct Parts {
    /// Ledger, storage and the ops.
    pub asks: Asks,
    /// Members and their tokens.
    pub identity: Identity,
    /// Pools whose packing does not get on.
    pub troubles: watch::Receiver<Troubles>,
    /// Deletes what is not kept any more.
    pub collector: Collector,
    /// The hash of the admin token.
    pub admin: Sha256,
    /// The hash of the token that `/metrics` asks for, if it does.
    pub metrics: Option<Sha256>,
    /// What clients are told to connect to over MQTT.
    pub mqtt: Reached,
    /// The URL that clients and processors reach storage by.
    pub storage_url: String,
    /// Longest time for a request; event streams are exempt.
    pub request_timeout: Duration,
    /// Event streams at once.
    pub event_streams_max: usize,
    /// Connections at once.
    pub room: Room,
    /// How long requests may go on after the shutdown began.
    pub grace: Duration,
    /// Where MQTT over WebSocket goes on.
    pub gate: Handover,
    /// Ends the server.
    pub shutdown: CancellationToken,
}

/// What clients are told to connect to over MQTT.
#[derive(Debug, Clone)]
pub struct Reached {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// Whom they need to trust, where that is no public authority.
    pub authority: Option<Authority>,
}

impl Reached {
    fn url(&self) -> String {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}", self.port)
    }
}

/// What handlers work with; clones share it.
#[derive(Clone)]
struct Api(Arc<Shared>);

struct Shared {
    ledger: Ledger,
    asks: Asks,
    identity: Identity,
    troubles: watch::Receiver<Troubles>,
    collector: Collector,
    admin: Sha256,
    metrics: Option<Sha256>,
    mqtt: Reached,
    storage_url: String,
    request_timeout: Duration,
    streams: Arc<streams::Streams>,
    /// One check at a time.
    checks: Arc<Semaphore>,
    /// One backup at a time.
    backups: Arc<Semaphore>,
    gate: Handover,
    shutdown: CancellationToken,
    started: Timestamp,
    readiness: health::Readiness,
    gauges: metrics::Gauges,
}

/// Answers on `listener` until the shutdown, then drains.
pub async fn run(listener: Listener, parts: Parts) {
    let (shutdown, room, grace) = (parts.shutdown.clone(), parts.room, parts.grace);
    metrics::install();
    let upkeep = tokio::spawn(metrics::upkeep(shutdown.clone()));
    serve::serve(listener, router(Api::new(parts)), shutdown, room, grace).await;
    upkeep.abort();
}

impl Api {
    fn new(parts: Parts) -> Self {
        Self(Arc::new(Shared {
            ledger: parts.asks.ledger.clone(),
            asks: parts.asks,
            identity: parts.identity,
            troubles: parts.troubles,
            collector: parts.collector,
            admin: parts.admin,
            metrics: parts.metrics,
            mqtt: parts.mqtt,
            storage_url: parts.storage_url,
            request_timeout: parts.request_timeout,
            streams: streams::Streams::new(parts.event_streams_max),
            checks: Arc::new(Semaphore::new(1)),
            backups: Arc::new(Semaphore::new(1)),
            gate: parts.gate,
            shutdown: parts.shutdown,
            started: crate::ledger::now(),
            readiness: health::Readiness::default(),
            gauges: metrics::Gauges::default(),
        }))
    }
}

fn router(api: Api) -> Router {
    let pool = Router::new()
        .route("/", get(pools::show).put(pools::apply).patch(pools::set).delete(pools::remove))
        .route("/members", get(members::list).post(members::add))
        .route("/members/{member}", delete(members::revoke).patch(members::set_role))
        .route("/members/{member}/tokens", post(members::token))
        .route("/joins", get(joins::list).post(joins::add))
        .route("/joins/{name}", delete(joins::remove))
        .route("/enrol", post(joins::enrol).layer(at_most(ENROL_MAX)))
        .route("/uploads", get(uploads::list))
        .route("/uploads/{member}/{upload}", get(uploads::show))
        .route("/batches", get(batches::list))
        .route("/batches/{batch}", get(batches::show))
        .route("/rounds", get(rounds::list))
        .route("/rounds/{round}", get(rounds::show))
        .route("/rounds/{round}/retry", post(rounds::retry))
        .route("/results", get(results::list))
        .route("/results/{version}/rollback", post(results::roll_back))
        .route("/events", get(events::feed));
    // Asks may wait: their time is their own.
    let asks = Router::new()
        .route("/v1/pools/{pool}/ask/{op}", post(asks::ask))
        .layer(middleware::from_fn_with_state(api.clone(), ask_in_time));
    Router::new()
        .route("/v1/status", get(status::show))
        .route("/v1/audit", get(audit::list))
        .route("/v1/check", get(check::run))
        .route("/v1/backup", get(backup::run))
        .route("/v1/gc", get(gc::explain).post(gc::run))
        .route("/v1/pools", get(pools::list))
        .nest("/v1/pools/{pool}", pool)
        .route("/metrics", get(metrics::show))
        .route("/readyz", get(health::ready))
        .layer(middleware::from_fn_with_state(api.clone(), in_time))
        .merge(asks)
        .route("/healthz", get(health::alive))
        .route("/mqtt", get(websocket::enter))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_path)
        .layer(at_most(BODY_MAX))
        .layer(middleware::from_fn(metrics::observe))
        .with_state(api)
}

/// Bodies of at most so many bytes.
fn at_most(bytes: usize) -> (DefaultBodyLimit, Extension<error::BodyMax>) {
    (DefaultBodyLimit::max(bytes), Extension(error::BodyMax(bytes)))
}

/// Gives a request up after its time. What a job of the ledger was asked for may still become true: a repeat changes
/// nothing more.
async fn in_time(State(api): State<Api>, request: Request, next: Next) -> Response {
    within(api.0.request_timeout, request, next).await
}

/// The same for an ask, which may wait for [`limits::ASK_TIMEOUT`] by itself.
async fn ask_in_time(State(api): State<Api>, request: Request, next: Next) -> Response {
    within(limits::ASK_TIMEOUT + api.0.request_timeout, request, next).await
}

async fn within(limit: Duration, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failed::from(Refusal::unavailable(format!("no answer within {limit:?}"))).into_response(),
    }
}

#[cfg(test)]
mod tests;

//! Connections of the HTTP API: how many and how long.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::service::TowerToHyperService;
use millpond_net::{Connections, Listener};
use tokio_util::sync::CancellationToken;

/// How long a request's head may take, and a connection stay idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may stand still because its client takes no byte of it.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The address that a request came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub SocketAddr);

/// Connections at once; who comes later waits.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub max: usize,
    /// Of one address.
    pub per_address: usize,
}

/// Answers on `listener` until `shutdown`, then lets what is under way go on for `grace`.
pub(super) async fn serve(
    listener: Listener,
    router: Router,
    shutdown: CancellationToken,
    Room { max, per_address }: Room,
    grace: Duration,
) {
    let (of, name, idle, stall) = ("the HTTP API", "http", HEAD_TIMEOUT, STALL_TIMEOUT);
    let connections = Connections { of, name, max, per_address, idle, stall, grace };
    let service = |peer| {
        let router = TowerToHyperService::new(router.clone());
        service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            router.call(request)
        })
    };
    connections.serve(listener, shutdown, service).await;
}

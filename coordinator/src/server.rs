//! The wiring: gate → ingest → rounds → dispatch → fan-out, in that order, around one ledger.
//!
//! Nothing listens to the outside before the ledger has recovered and storage has answered a test object. Stop means:
//! no new connections, what was begun is finished within the grace, then the process ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use millpond_broker::{Gate, GateConfig, GateHandle, Rate};
use millpond_failpoint::{Point, reach};
use millpond_net::Listener;
use millpond_protocol::{AppTopics, Sha256, limits};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::asks::Asks;
use crate::config::Config;
use crate::descriptors;
use crate::dispatch::Dispatch;
use crate::doors::Doors;
use crate::fanout::live;
use crate::fanout::state::{Shown, States};
use crate::grants::{self, Grants};
use crate::http;
use crate::identity::{Identity, expiry};
use crate::ingest::Ingest;
use crate::ledger::{Ledger, prune};
use crate::retention::Collector;
use crate::secrets;
use crate::store::{self, listen};

/// Where a running server listens.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    pub mqtt: SocketAddr,
    /// MQTT over TLS, if it is spoken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtts: Option<SocketAddr>,
    pub http: SocketAddr,
    /// The embedded storage server, if there is one.
    pub storage: Option<SocketAddr>,
}

/// Sockets that a thread hears of at once. Its own line holds 256 tasks: more are put into one of all threads, which is looked at
/// rarely, and a fleet whose connections break would keep whoever is in there waiting.
const EVENTS: usize = 128;

/// What a server runs on.
///
/// # Errors
/// There are no threads to be had.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().max_io_events_per_tick(EVENTS).enable_all().build()
}

/// Runs a server until `shutdown`, or until it cannot go on. `ready` gets the addresses once it serves; they also stand
/// in `DATA/ports.json`.
///
/// # Errors
/// What kept it from starting or going on, and what to do about it.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
    ready: oneshot::Sender<Addresses>,
) -> anyhow::Result<()> {
    // First of all: what counts before it is lost.
    http::install_metrics();
    descriptors::prepare(&config);
    let dir = config.server.data_dir.clone();
    secrets::private_dir(&dir)
        .with_context(|| format!("{} cannot be made: change server.data_dir", dir.display()))?;
    let doors = Doors::open(&config)?;
    let (ledger, ledger_ended) = Ledger::open(&dir)?;
    reach(Point::LedgerOpened);
    // Of a run that was killed.
    let _ = std::fs::remove_file(dir.join("ports.json"));
    let mut tasks = JoinSet::new();
    // The parts stop from the outside inwards: storage serves until the last of the others has ended.
    let (front, inner) = (shutdown.child_token(), CancellationToken::new());

    let (storage, storage_address) = store::open(&config, &doors, &ledger, &mut tasks, &inner).await?;
    let mqtt = listen("mqtt.listen", config.mqtt.listen)?;
    let mqtts = match config.mqtt_tls() {
        Some(address) => Some(listen("mqtt.tls_listen", address)?),
        None => None,
    };
    let http_listener = listen("http.listen", config.http.listen)?;
    let addresses = Addresses {
        mqtt: mqtt.local_addr()?,
        mqtts: mqtts.as_ref().map(TcpListener::local_addr).transpose()?,
        http: http_listener.local_addr()?,
        storage: storage_address,
    };

    let gate_handle = GateHandle::new();
    let shown = Shown {
        publish_max: config.mqtt.publish_max as u64,
        bundle_max: config.mqtt.bundle_max as u64,
        upload_max: limits::UPLOAD_MAX,
        storage_host: storage.host.clone(),
    };
    let states = States::new(ledger.clone(), storage.handle.clone(), shown);
    let grants =
        Grants::new(ledger.clone(), storage.handle.clone(), Duration::from_secs(config.limits.grant_s));
    let asks = Asks {
        ledger: ledger.clone(),
        storage: storage.handle.clone(),
        states: states.clone(),
        grants: grants.clone(),
    };
    let identity = Identity::new(
        ledger.clone(),
        config.limits.sign_in_failures_per_name,
        config.limits.sign_in_failures_per_address,
    );
    let ingest = Ingest::start(asks.clone(), identity.clone(), gate_handle.clone(), states.clone()).await?;
    let gate = Arc::new(Gate::start(gate_config(&config)?, gate_handle.clone(), Arc::new(ingest))?);
    gate.restore(doors.tls()).await?;

    let dispatch = Dispatch::new(ledger.clone(), storage.handle.clone());
    let troubles = dispatch.troubles();
    tasks.spawn(part("dispatch", dispatch.run(inner.clone())));
    tasks.spawn(part("prune", prune::run(ledger.clone(), inner.clone())));
    tasks.spawn(part("grants", grants::run(grants, gate_handle.clone(), inner.clone())));
    tasks.spawn(part("identity", identity.clone().run(inner.clone())));
    tasks.spawn(part("expiry", expiry::run(ledger.clone(), inner.clone())));
    let collector = Collector::new(ledger.clone(), storage.handle.clone());
    // From the start on everybody is told what is believed of the clock.
    if let Err(refusal) = collector.believe().await {
        tracing::warn!(%refusal, "retention does not run now");
    }
    tasks.spawn(part("retention", collector.clone().run(inner.clone())));
    tasks.spawn(part("fan-out", live::run(ledger.clone(), states, gate_handle, inner.clone())));
    let mut fronts = JoinSet::new();
    let mqtts = mqtts.map(|mqtts| Listener::new(mqtts, doors.mqtts()));
    let (visitors, handed) = Listener::handed(config.limits.strangers_max);
    for listener in [Some(Listener::from(mqtt)), mqtts, Some(handed)].into_iter().flatten() {
        let (gate, stop) = (gate.clone(), front.clone());
        fronts.spawn(async move { gate.serve(listener, stop).await.context("the gate") });
    }
    tasks.spawn(part("certificates", doors.watch(ledger.clone(), inner.clone())));
    let api = http::Parts {
        asks,
        identity,
        troubles,
        collector,
        admin: Sha256::of(secrets::load_or_create(&dir.join("admin.token"), "mpa_")?.as_bytes()),
        metrics: config
            .http
            .metrics_token_file
            .as_ref()
            .map(|_| Sha256::of(config.http.metrics_token.expose().as_bytes())),
        mqtt: reached(&config, &addresses, &doors, &storage.public_url),
        storage_url: storage.public_url.to_string(),
        request_timeout: Duration::from_secs(config.http.request_timeout_s),
        event_streams_max: config.http.event_streams_max,
        room: http::Room {
            max: config.http.connections_max,
            per_address: config.http.connections_per_address,
        },
        grace: Duration::from_secs(config.server.shutdown_grace_s),
        gate: visitors,
        shutdown: front.clone(),
    };
    fronts.spawn(part("HTTP", http::run(Listener::new(http_listener, doors.http()), api)));

    reach(Point::ServerListens);
    write_ports(&dir, &addresses)?;
    tracing::info!(
        mqtt = %addresses.mqtt, mqtts = addresses.mqtts.map(tracing::field::display), http = %addresses.http,
        "millpond serves"
    );
    // Whoever waited may have given up.
    let _ = ready.send(addresses);

    let outcome = tokio::select! {
        ended = fronts.join_next() => flatten(ended),
        ended = tasks.join_next() => flatten(ended).and_then(|()| if shutdown.is_cancelled() { Ok(()) } else { bail!("a part of the server ended") }),
        _ = ledger_ended => Err(anyhow::anyhow!("the ledger's writer ended: see the log, then start again to recover")),
    };
    front.cancel();
    let drained = drain(fronts).await;
    inner.cancel();
    let ended = drain(tasks).await;
    // What was committed is on disk; what is not had no acknowledgement.
    let _ = std::fs::remove_file(dir.join("ports.json"));
    outcome.and(drained).and(ended)
}

async fn part(name: &'static str, run: impl Future<Output = ()>) -> anyhow::Result<()> {
    run.await;
    tracing::debug!(name, "a part ended");
    Ok(())
}

fn flatten(ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>) -> anyhow::Result<()> {
    match ended {
        None => Ok(()),
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(error.into()),
    }
}

async fn drain(mut tasks: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(flatten(Some(ended)));
    }
    outcome
}

/// What clients are told to connect to over MQTT: with TLS, if there is any.
fn reached(config: &Config, addresses: &Addresses, doors: &Doors, storage: &Url) -> http::Reached {
    let listens = addresses.mqtts.unwrap_or(addresses.mqtt);
    let host = match config.mqtt.public_host.as_str() {
        "" if listens.ip().is_unspecified() => storage.host_str().unwrap_or("localhost").to_owned(),
        "" => listens.ip().to_string(),
        host => host.to_owned(),
    };
    let tls = addresses.mqtts.is_some();
    http::Reached { host, port: listens.port(), tls, authority: doors.authority().cloned() }
}

fn gate_config(config: &Config) -> anyhow::Result<GateConfig> {
    Ok(GateConfig {
        app_topics: AppTopics::new(&config.mqtt.app_topics).context("mqtt.app_topics")?,
        keep_alive_max: config.mqtt.keep_alive_max_s,
        publish_max: config.mqtt.publish_max,
        bundle_max: config.mqtt.bundle_max,
        connect_timeout: Duration::from_secs(config.limits.connect_timeout_s),
        strangers_max: config.limits.strangers_max,
        strangers_per_address: config.limits.strangers_per_address,
        connections_max: config.limits.connections_max,
        connections_per_address: config.limits.connections_per_address,
        connections_per_member: config.limits.connections_per_member,
        member_rate: Rate {
            messages: config.limits.messages_per_member_s,
            bytes: config.limits.bytes_per_member_s,
        },
        pool_rate: Rate {
            messages: config.limits.messages_per_pool_s,
            bytes: config.limits.bytes_per_pool_s,
        },
        uncommitted_bytes_max: config.limits.uncommitted_bytes_max,
        uncommitted_per_connection: config.limits.uncommitted_per_connection,
        shutdown_grace: Duration::from_secs(config.server.shutdown_grace_s),
        ..GateConfig::default()
    })
}

/// Where programs on the same machine find the ports, while the server runs.
fn write_ports(dir: &std::path::Path, addresses: &Addresses) -> anyhow::Result<()> {
    let new = dir.join("ports.json.new");
    std::fs::write(&new, serde_json::to_vec(addresses)?)?;
    std::fs::rename(&new, dir.join("ports.json"))?;
    Ok(())
}

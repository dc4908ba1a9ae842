//! `/metrics`: what the process counts, in the Prometheus text format, and gauges that are read from the ledger.
//!
//! Nothing is labelled by pool or member: there may be thousands. What one pool does is in `/v1/status`.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use millpond_protocol::Refusal;
use rusqlite::Connection;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::auth::{Bearer, Origin};
use super::error::Failed;
use crate::ledger::{Ledger, Result};

/// How long gauges hold that cost a query.
const FRESH: Duration = Duration::from_secs(5);
/// How often the recorder folds its samples, so that they take no memory where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(15);
/// Upper bounds in seconds, from a fast disk's sync to a time-out.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// Upper bounds of the number of jobs in one commit.
const JOBS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 500.0, 1_000.0];

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Makes this process keep its metrics. Call it before anything else starts: what counts earlier is lost. A second call
/// does nothing.
pub fn install() {
    let _ = handle();
}

fn handle() -> Option<&'static PrometheusHandle> {
    HANDLE
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
                .and_then(|builder| {
                    builder.set_buckets_for_metric(Matcher::Full("millpond_commit_jobs".into()), &JOBS)
                })
                .ok()?
                .build_recorder();
            let handle = recorder.handle();
            // Somebody else's recorder is in place only where the server is a part of a larger program.
            metrics::set_global_recorder(recorder).ok()?;
            describe();
            Some(handle)
        })
        .as_ref()
}

/// Keeps the recorder's memory bounded until the shutdown.
pub(super) async fn upkeep(shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => if let Some(handle) = handle() { handle.run_upkeep() },
        }
    }
}

/// Counts requests and their time by route.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method(request.method());
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    counter!("millpond_http_requests_total", "method" => method, "path" => path.clone(), "status" => status)
        .increment(1);
    histogram!("millpond_http_request_seconds", "path" => path).record(started.elapsed().as_secs_f64());
    response
}

/// A series of its own for each method that there is; what strangers make up is one.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

pub(super) async fn show(
    State(api): State<Api>,
    origin: Origin,
    bearer: std::result::Result<Bearer, Failed>,
) -> std::result::Result<Response, Failed> {
    // They are sums over all pools, of which nobody sees the others.
    if api.0.metrics.is_some() || !origin.is_local() {
        bearer?.may_watch(&api)?;
    }
    let Some(handle) = handle() else {
        return Err(Refusal::unavailable("the metrics of this process are kept elsewhere").into());
    };
    api.0.gauges.refresh(&api.0.ledger).await?;
    let text = handle.render();
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// Gauges that are read from the ledger when somebody scrapes.
#[derive(Default)]
pub(super) struct Gauges(Mutex<Option<Instant>>);

impl Gauges {
    async fn refresh(&self, ledger: &Ledger) -> std::result::Result<(), Refusal> {
        let mut read = self.0.lock().await;
        gauge!("millpond_ledger_queue").set(ledger.queued() as f64);
        if read.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        for (name, state, value) in ledger.read(counts).await? {
            gauge!(name, "state" => state).set(value as f64);
        }
        *read = Some(Instant::now());
        Ok(())
    }
}

type Gauge = (&'static str, String, i64);

fn counts(sql: &Connection) -> Result<Vec<Gauge>> {
    let mut gauges: Vec<Gauge> = Vec::new();
    // A state that nothing is in any more must fall to 0, so each is named.
    for (name, states, text) in COUNTS {
        let counted: BTreeMap<String, i64> = sql
            .prepare_cached(text)?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let value = |state: &str| counted.get(state).copied().unwrap_or_default();
        gauges.extend(states.iter().map(|state| (name, (*state).to_owned(), value(state))));
    }
    let page: i64 = sql.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let pages: i64 = sql.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let free: i64 = sql.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    gauges.push(("millpond_ledger_bytes", "used".to_owned(), (pages - free) * page));
    gauges.push(("millpond_ledger_bytes", "free".to_owned(), free * page));
    Ok(gauges)
}

/// What is counted: the gauge, every state, and how many there are of each, found by index.
const COUNTS: [(&str, &[&str], &str); 6] = [
    (
        "millpond_batches",
        &["open", "carried", "sealed"],
        "SELECT b.state, count(*) FROM pools p CROSS JOIN batches b ON b.pool_id = p.id \
             WHERE p.removed IS NULL GROUP BY b.state",
    ),
    (
        "millpond_rounds",
        &["sealed", "offered", "leased", "pausing", "committed", "failed"],
        "SELECT r.state, count(*) FROM pools p CROSS JOIN rounds r ON r.pool_id = p.id \
             WHERE p.removed IS NULL GROUP BY r.state",
    ),
    (
        "millpond_members",
        &["publisher", "listener", "processor", "trigger", "operator"],
        "SELECT role, count(*) FROM members WHERE revoked IS NULL GROUP BY role",
    ),
    (
        "millpond_deliveries",
        &["fetched", "verified", "applied", "failed"],
        "SELECT d.state, count(*) FROM pools p CROSS JOIN deliveries d ON d.pool_id = p.id AND d.version = p.pointer \
             WHERE p.removed IS NULL GROUP BY d.state",
    ),
    (
        "millpond_grants",
        &["open", "verifying"],
        "SELECT 'open', count(*) FROM grants WHERE verifying IS NULL \
             UNION ALL SELECT 'verifying', count(*) FROM grants WHERE verifying IS NOT NULL",
    ),
    (
        "millpond_objects",
        &["granted", "live", "doomed"],
        // One partial index each: rows of what is gone are not looked at.
        "SELECT 'granted', count(*) FROM objects WHERE state = 'granted' AND state IN ('granted', 'doomed') \
             UNION ALL SELECT 'doomed', count(*) FROM objects WHERE state = 'doomed' AND state IN ('granted', 'doomed') \
             UNION ALL SELECT 'live', count(*) FROM objects WHERE state = 'live'",
    ),
];

/// Every metric with its meaning; docs/operate.md has the same table.
fn describe() {
    for (name, meaning) in COUNTERS {
        describe_counter!(name, meaning);
    }
    for (name, meaning) in GAUGES {
        describe_gauge!(name, meaning);
    }
    for (name, meaning) in HISTOGRAMS {
        describe_histogram!(name, meaning);
    }
}

pub(super) const COUNTERS: [(&str, &str); 41] = [
    ("millpond_uploads_total", "Uploads with a row, by outcome"),
    ("millpond_upload_bytes_total", "Bytes of uploads with a row"),
    ("millpond_results_total", "Results that were committed"),
    (
        "millpond_feed_dropped_total",
        "Refusals and repeats that did not become events, because there were too many",
    ),
    ("millpond_deliveries_total", "What members said of results, by state"),
    ("millpond_refusals_total", "Messages refused behind the gate, by code"),
    ("millpond_quota_refusals_total", "Uploads and grants over a quota of their member or pool, by limit"),
    ("millpond_ask_errors_total", "Asks over MQTT answered with an error, by code"),
    ("millpond_tls_handshakes_total", "TLS handshakes, by listener and outcome"),
    ("millpond_tls_reloads_total", "Renewed certificates, by outcome"),
    ("millpond_gate_bytes_in_total", "Bytes read from MQTT clients"),
    ("millpond_gate_bytes_out_total", "Bytes written to MQTT clients"),
    ("millpond_gate_publishes_total", "PUBLISH packets taken"),
    ("millpond_gate_refusals_total", "PUBLISH packets refused by the gate, by code"),
    ("millpond_gate_sign_ins_refused_total", "CONNECTs with wrong credentials or over a limit"),
    (
        "millpond_gate_throttled_total",
        "Times that a connection was not read for a while because its member or its pool was over its rate, by limit",
    ),
    ("millpond_gate_subscriptions_refused_total", "Filters refused, by limit: their number or their length"),
    ("millpond_gate_ended_total", "Connections that the gate ended for a reason of MQTT 5, by its code"),
    ("millpond_gate_overflows_total", "Connections ended because too much waited for them"),
    ("millpond_gate_stalled_total", "Connections ended because they took no byte for too long"),
    (
        "millpond_turned_away_total",
        "Connections closed unheard because there was no place to listen to them, by listener and limit",
    ),
    (
        "millpond_full_total",
        "Times that a connection was to be accepted and every place of the listener was taken",
    ),
    ("millpond_gate_connections_refused_total", "CONNECTs over a limit, by limit"),
    ("millpond_gate_events_dropped_total", "Live events that there was no room for"),
    (
        "millpond_gate_copies_dropped_total",
        "Messages on app topics that a session had no room for, or did not get while it was away, by limit",
    ),
    ("millpond_gate_wills_total", "Wills that were published"),
    (
        "millpond_gate_bus_lost_total",
        "Live messages that the router lost, whose publishers were told to send again",
    ),
    ("millpond_grants_ended_total", "Grants that ended without a commit, by cause"),
    ("millpond_verified_bytes_total", "Bytes of objects in parts that were read to verify them"),
    ("millpond_packs_total", "Packs written"),
    ("millpond_pack_bytes_total", "Bytes of packs written"),
    ("millpond_dispatch_failures_total", "Attempts at packing that failed and are repeated, by cause"),
    ("millpond_log_bytes_dropped_total", "Bytes of processors' logs over the limit of a round"),
    ("millpond_objects_swept_total", "Objects removed from storage that nothing needs"),
    (
        "millpond_retention_total",
        "Batches, results, rounds, uploads, payloads, events and objects that were not kept any more, by what",
    ),
    ("millpond_retention_bytes_total", "Bytes of objects and payloads that were not kept any more"),
    ("millpond_storage_calls_total", "Calls to storage, by op and outcome"),
    ("millpond_s3_requests_total", "Requests to the embedded storage, by method and status"),
    ("millpond_http_requests_total", "Requests to the HTTP API, by method, path and status"),
    ("millpond_http_refusals_total", "HTTP requests that were refused, by code"),
    ("millpond_http_sign_in_failures_total", "HTTP requests with a token that is not valid"),
];

pub(super) const GAUGES: [(&str, &str); 18] = [
    ("millpond_batches", "Batches, by state"),
    ("millpond_rounds", "Rounds, by state"),
    ("millpond_members", "Members that are not revoked, by role"),
    ("millpond_deliveries", "Members by what they last said of the current result of their pool"),
    ("millpond_grants", "Granted files that do not count yet, by state"),
    ("millpond_objects", "Objects in storage, by state"),
    ("millpond_objects_refused", "Objects that storage refuses to delete whenever it is asked"),
    ("millpond_ledger_bytes", "Bytes of the ledger's file, by state: used, or free for what comes"),
    (
        "millpond_clock_doubted_seconds",
        "How far the clock is ahead of what retention believes; 0: it is believed",
    ),
    ("millpond_ledger_queue", "Jobs that wait for the ledger's writer"),
    ("millpond_tls_certificate_expires_seconds", "When the certificate in use ends, in Unix time"),
    (
        "millpond_tls_revocations_due_seconds",
        "When the first list of revocations in use is to be replaced by a newer one, in Unix time; 0: there is none",
    ),
    ("millpond_gate_connections", "MQTT connections"),
    ("millpond_gate_strangers", "Connections that have not signed in yet"),
    ("millpond_gate_waiting", "Connections that wait for a place to sign in"),
    ("millpond_gate_uncommitted_bytes", "Bytes that were read from MQTT clients and are not committed"),
    ("millpond_gate_router_queue", "Live messages that wait for the router"),
    (
        "millpond_gate_router_queue_peak",
        "The most live messages that waited for the router at a time since the start",
    ),
];

pub(super) const HISTOGRAMS: [(&str, &str); 7] = [
    ("millpond_gate_ack_seconds", "From the last byte of a PUBLISH to its acknowledgement"),
    ("millpond_commit_seconds", "One commit of the ledger, sync included"),
    (
        "millpond_checkpoint_seconds",
        "Copying the ledger's log back into its file, by part: the bulk beside the writer, the rest by the writer",
    ),
    ("millpond_commit_jobs", "Jobs that share one commit"),
    (
        "millpond_dispatch_seal_seconds",
        "From the begin of packing a sealed batch to its packs and manifest being written",
    ),
    ("millpond_storage_call_seconds", "One call to storage, retries included, by op"),
    ("millpond_http_request_seconds", "One request to the HTTP API, by path"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn described() -> BTreeSet<String> {
        let all = COUNTERS.iter().chain(&GAUGES).chain(&HISTOGRAMS);
        all.map(|(name, _)| (*name).to_owned()).collect()
    }

    fn is_metric(text: &str) -> bool {
        let rest = text.strip_prefix("millpond_").unwrap_or_default();
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    }

    fn collect(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(text.split('"').filter(|text| is_metric(text)).map(str::to_owned));
            }
        }
    }

    #[test]
    fn a_scrape_reads_no_large_table_row_by_row() {
        let sql = Connection::open_in_memory().unwrap();
        sql.execute_batch(include_str!("../ledger/schema/0001.sql")).unwrap();
        for (name, _, text) in COUNTS {
            let mut plan = sql.prepare(&format!("EXPLAIN QUERY PLAN {text}")).unwrap();
            let steps = plan.query_map([], |row| row.get::<_, String>(3)).unwrap();
            for step in steps.map(|step| step.unwrap()).filter(|step| step.starts_with("SCAN")) {
                let small = ["SCAN p", "SCAN members"].contains(&step.as_str());
                assert!(small || step.contains("INDEX"), "{name}: {step}");
            }
        }
    }

    #[test]
    fn every_metric_of_the_code_is_described_here_and_in_the_operators_manual() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut used = BTreeSet::new();
        for part in ["net/src", "broker/src", "coordinator/src", "storage/src"] {
            collect(&root.join(part), &mut used);
        }
        assert_eq!(used, described());
        let manual = std::fs::read_to_string(root.join("docs/operate.md")).unwrap();
        let rows = manual.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let listed: BTreeSet<String> = rows.filter(|name| is_metric(name)).map(str::to_owned).collect();
        assert_eq!(listed, described());
    }
}

//! `/healthz` and `/readyz`.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use millpond_storage::Storage;
use serde_json::json;
use tokio::sync::Mutex;

use super::Api;
use crate::ledger::Ledger;

/// How long what was found holds: a probe writes, reads and deletes an object.
const FRESH: Duration = Duration::from_secs(5);
/// How long one probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The process runs and answers.
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Ledger and storage answer, so that what clients send can be acknowledged.
pub(super) async fn ready(State(api): State<Api>) -> Response {
    let problems = api.0.readiness.problems(&api.0.ledger, &api.0.asks.storage).await;
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": problems.is_empty(), "problems": problems }))).into_response()
}

/// What was found last, so that many probes cost as much as one.
#[derive(Default)]
pub(super) struct Readiness(Mutex<Option<(Instant, Vec<String>)>>);

impl Readiness {
    /// What does not work, in words; empty if everything does.
    pub(super) async fn problems(&self, ledger: &Ledger, storage: &Storage) -> Vec<String> {
        // Whoever comes meanwhile waits for the one probe.
        let mut found = self.0.lock().await;
        if let Some((_, problems)) = found.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return problems.clone();
        }
        let problems = look(ledger, storage).await;
        *found = Some((Instant::now(), problems.clone()));
        problems
    }
}

async fn look(ledger: &Ledger, storage: &Storage) -> Vec<String> {
    // An empty job goes through the writer, so a ledger that cannot commit is found too.
    let ledger = tokio::time::timeout(PROBE_TIMEOUT, ledger.write(|_| Ok(())));
    let storage = tokio::time::timeout(PROBE_TIMEOUT, storage.probe());
    let (ledger, storage) = tokio::join!(ledger, storage);
    let mut problems = Vec::new();
    match ledger {
        Ok(Ok(())) => {}
        Ok(Err(refusal)) => problems.push(format!("ledger: {}", refusal.message)),
        Err(_) => problems.push(format!("ledger: no answer within {PROBE_TIMEOUT:?}")),
    }
    match storage {
        Ok(Ok(())) => {}
        Ok(Err(error)) => problems.push(format!("storage: {error}")),
        Err(_) => problems.push(format!("storage: no answer within {PROBE_TIMEOUT:?}")),
    }
    problems
}

//! `/healthz` and `/readyz`.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use millpond_storage::{Findings, Storage};
use serde_json::json;
use tokio::sync::Mutex;

use super::Api;
use super::auth::{Bearer, Origin};
use super::error::Failed;
use crate::ledger::Ledger;
use crate::retention::clock::{self, Trust};

/// How long what was found holds: a probe writes, reads and deletes an object.
const FRESH: Duration = Duration::from_secs(5);
/// How long it holds that URLs and objects in parts work too, which takes a dozen calls.
const CHECKED: Duration = Duration::from_secs(300);
/// How long one probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The process runs and answers.
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Ledger and storage answer, so that what clients send can be acknowledged. What is wrong is nothing for strangers.
pub(super) async fn ready(
    State(api): State<Api>,
    origin: Origin,
    bearer: Result<Bearer, Failed>,
) -> Result<Response, Failed> {
    let told = match bearer {
        Ok(bearer) => bearer.may_watch(&api).map(|()| true)?,
        Err(_) => origin.is_local(),
    };
    let Findings { problems, warnings } = api.0.readiness.look(&api.0.ledger, &api.0.asks.storage).await;
    let ready = problems.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = match told {
        true => json!({ "ready": ready, "problems": problems, "warnings": warnings }),
        false => {
            json!({ "ready": ready, "hint": "to this machine, and with the admin's token or that for metrics, it says more" })
        }
    };
    Ok((status, Json(body)).into_response())
}

/// What was found last, so that many probes cost as much as one.
#[derive(Default)]
pub(super) struct Readiness(Mutex<Found>);

#[derive(Default)]
struct Found {
    last: Option<(Instant, Findings)>,
    /// When storage was checked thoroughly, and the warnings then.
    checked: Option<(Instant, Vec<String>)>,
}

impl Readiness {
    /// What does not work, in words, and what wants an operator.
    pub(super) async fn look(&self, ledger: &Ledger, storage: &Storage) -> Findings {
        // Whoever comes meanwhile waits for the one probe.
        let mut found = self.0.lock().await;
        if let Some((_, last)) = found.last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return last.clone();
        }
        let mut last = Findings::default();
        if let Ok(Some(Trust { doubt: Some(doubt), .. })) = ledger.look(clock::last).await {
            last.warnings.push(format!("{doubt}; {}", clock::ADVICE));
        }
        let ledger = tokio::time::timeout(PROBE_TIMEOUT, ledger.write(|tx| tx.prove()));
        let probe = tokio::time::timeout(PROBE_TIMEOUT, storage.probe());
        let (ledger, probe) = tokio::join!(ledger, probe);
        match ledger {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => last.problems.push(format!("ledger: {}", refusal.message)),
            Err(_) => last.problems.push(format!("ledger: no answer within {PROBE_TIMEOUT:?}")),
        }
        match probe {
            Ok(Ok(())) => {
                let more = found.more(storage).await;
                last.problems.extend(more.problems.into_iter().map(|what| format!("storage: {what}")));
                last.warnings.extend(more.warnings.into_iter().map(|what| format!("storage: {what}")));
            }
            Ok(Err(error)) => last.problems.push(format!("storage: {error}")),
            Err(_) => last.problems.push(format!("storage: no answer within {PROBE_TIMEOUT:?}")),
        }
        found.last = Some((Instant::now(), last.clone()));
        last
    }
}

impl Found {
    /// What a thorough check of storage says, or said not long ago if it was good.
    async fn more(&mut self, storage: &Storage) -> Findings {
        if let Some((_, warnings)) = self.checked.as_ref().filter(|(at, _)| at.elapsed() < CHECKED) {
            return Findings { problems: Vec::new(), warnings: warnings.clone() };
        }
        let found = match tokio::time::timeout(PROBE_TIMEOUT, storage.check_more()).await {
            Ok(found) => found,
            Err(_) => Findings {
                problems: Vec::new(),
                warnings: vec![format!("URLs and parts could not be tried within {PROBE_TIMEOUT:?}")],
            },
        };
        self.checked = Some((Instant::now(), found.warnings.clone())).filter(|_| found.problems.is_empty());
        found
    }
}

//! `/v1/check`: whether what the ledger says is so, told line by line while it is looked at.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use millpond_protocol::{Code, Refusal};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Api;
use super::auth::Caller;
use super::error::{Asked, Failed};
use crate::check;

/// Lines between the check and a client that does not read.
const QUEUE: usize = 64;

/// The query.
#[derive(Deserialize)]
pub(super) struct How {
    #[serde(default)]
    deep: bool,
}

/// Answers at once; the lines come while the check runs, and the last one is its end or why it has none. A client that
/// goes ends the check.
pub(super) async fn run(
    State(api): State<Api>,
    caller: Caller,
    Asked(How { deep }): Asked<How>,
) -> Result<Response, Failed> {
    caller.check_admin()?;
    let Ok(turn) = api.0.checks.clone().try_acquire_owned() else {
        return Err(Refusal::new(Code::Quota, "another check is under way").retry_after_ms(60_000).into());
    };
    let (tell, lines) = mpsc::channel(QUEUE);
    let (ledger, storage) = (api.0.ledger.clone(), api.0.asks.storage.clone());
    tokio::spawn(async move {
        let _turn = turn;
        let run = check::run(ledger, storage, deep, tell);
        // Cut short by the shutdown: the client misses the last line, and knows.
        api.0.shutdown.run_until_cancelled(run).await;
    });
    let body = futures_util::stream::unfold(lines, |mut lines| async {
        let mut line = serde_json::to_vec(&lines.recv().await?).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), lines))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

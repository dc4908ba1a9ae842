//! `/v1/backup`: everything in one archive, written while it is fetched.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use millpond_protocol::{Code, Refusal};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::Api;
use super::auth::Caller;
use super::error::{Asked, Failed};
use crate::backup;

/// Pieces between the backup and a client that does not read.
const QUEUE: usize = 4;

/// The query.
#[derive(Deserialize)]
pub(super) struct What {
    #[serde(default = "yes")]
    objects: bool,
}

fn yes() -> bool {
    true
}

/// Answers at once; the archive comes as it is made. A client that goes, or stops reading, ends it.
pub(super) async fn run(
    State(api): State<Api>,
    caller: Caller,
    Asked(What { objects }): Asked<What>,
) -> Result<Response, Failed> {
    caller.check_admin()?;
    let Ok(turn) = api.0.backups.clone().try_acquire_owned() else {
        return Err(Refusal::new(Code::Quota, "another backup is under way").retry_after_ms(60_000).into());
    };
    let (out, pieces) = mpsc::channel(QUEUE);
    let (ledger, storage) = (api.0.ledger.clone(), api.0.asks.storage.clone());
    let detail = json!({ "objects": objects });
    ledger.write(move |tx| tx.audit(None, &caller.name(), &caller.source, "backup", &detail)).await?;
    tokio::spawn(async move {
        let _turn = turn;
        // Cut short by the shutdown: the client misses the last entry, and knows.
        api.0.shutdown.run_until_cancelled(backup::make(ledger, storage, objects, out)).await;
    });
    let body = stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
    let kind =
        [(CONTENT_TYPE, "application/x-tar"), (CONTENT_DISPOSITION, "attachment; filename=\"millpond.tar\"")];
    Ok((kind, Body::from_stream(body)).into_response())
}

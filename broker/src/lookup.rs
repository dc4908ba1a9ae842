//! The questions of a session, put to the backend.

use std::time::Duration;

use futures_util::future::BoxFuture;
use millpond_protocol::{Principal, Refusal, limits};

use crate::backend::{KeptSession, ReceiptRow, StateMessage};
use crate::gate::Shared;
use crate::session::Question;

/// Answers to questions of the session.
pub(crate) enum Found {
    Kept(Result<(), Refusal>),
    States(Result<Vec<StateMessage>, Refusal>),
    Cursor(Result<i64, Refusal>),
    Receipts { after: i64, result: Result<Vec<ReceiptRow>, Refusal> },
}

/// Asks. `session`: its client id, and how long it is kept.
pub(crate) fn lookup(
    question: Question,
    gate: &Shared,
    who: &Principal,
    (client_id, expiry): (&str, Duration),
) -> BoxFuture<'static, Found> {
    let (backend, who) = (gate.backend.clone(), who.clone());
    match question {
        Question::Keep(subscriptions) => {
            let session = KeptSession { client_id: client_id.to_owned(), expiry, subscriptions };
            Box::pin(async move { Found::Kept(in_time(backend.keep_session(&who, session)).await) })
        }
        Question::States(topics) => {
            Box::pin(async move { Found::States(in_time(backend.states(&who, &topics)).await) })
        }
        Question::Cursor => {
            Box::pin(async move { Found::Cursor(in_time(backend.receipt_cursor(&who)).await) })
        }
        Question::Receipts { after, max } => Box::pin(async move {
            Found::Receipts { after, result: in_time(backend.receipts(&who, after, max)).await }
        }),
    }
}

/// Nothing waits for ever: the client is closed and asks again.
async fn in_time<T>(answer: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    match tokio::time::timeout(limits::STORAGE_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Refusal::unavailable("the server does not answer in time")),
    }
}

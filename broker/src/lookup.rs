//! The questions of a session, put to the backend and the router.

use futures_util::future::BoxFuture;
use millpond_protocol::{Principal, Refusal, limits};

use crate::backend::{ReceiptRow, StateMessage};
use crate::gate::Shared;
use crate::router::{Attached, NoLink};
use crate::session::Question;

/// Answers to questions of the session.
pub(crate) enum Found {
    Attached(Result<Attached, NoLink>),
    States(Result<Vec<StateMessage>, Refusal>),
    Cursor(Result<i64, Refusal>),
    Receipts { after: i64, result: Result<Vec<ReceiptRow>, Refusal> },
}

/// Asks. `slot`: the router's link that the connection already has.
pub(crate) fn lookup(
    question: Question,
    gate: &Shared,
    who: &Principal,
    slot: Option<usize>,
) -> BoxFuture<'static, Found> {
    let (backend, who) = (gate.backend.clone(), who.clone());
    match question {
        Question::Attach(filters) => {
            let attach = gate.handle.outbox().clone().attach(slot, filters);
            Box::pin(async move { Found::Attached(attach.await) })
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

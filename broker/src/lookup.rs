//! The questions of a session, put to the backend.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use millpond_net::Standing;
use millpond_protocol::{Principal, Refusal, limits};

use crate::backend::{KeptSession, ReceiptRow, StateMessage};
use crate::gate::Shared;
use crate::registry::Registration;
use crate::session::Question;

/// Answers to questions of the session.
pub(crate) enum Found {
    Kept(Result<(), Refusal>),
    States(Result<Vec<StateMessage>, Refusal>),
    Cursor(Result<i64, Refusal>),
    Receipts { after: i64, result: Result<Vec<ReceiptRow>, Refusal> },
}

/// By what a session is known for as long as it is kept.
pub(crate) struct Identity {
    pub(crate) client_id: String,
    pub(crate) certificates: Option<Bytes>,
}

impl Identity {
    /// `standing`: of the certificates that alone signed it in.
    pub(crate) fn of(registration: &Registration, standing: Option<&Standing>) -> Self {
        let certificates = standing.map(|standing| standing.certificates().into());
        Self { client_id: registration.client_id.clone(), certificates }
    }
}

/// Asks. `session`: which, and how long it is kept.
pub(crate) fn lookup(
    question: Question,
    gate: &Shared,
    who: &Principal,
    (session, expiry): (&Identity, Duration),
) -> BoxFuture<'static, Found> {
    let (backend, who) = (gate.backend.clone(), who.clone());
    match question {
        Question::Keep(subscriptions) => {
            let (client_id, certificates) = (session.client_id.clone(), session.certificates.clone());
            let session = KeptSession { client_id, expiry, subscriptions, certificates };
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

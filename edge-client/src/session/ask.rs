//! Asks: repeated with their id until they are answered, but for the server's time, which is measured.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use millpond_protocol::access::Op;
use millpond_protocol::error::ErrorBody;
use millpond_protocol::message::answer;
use millpond_protocol::{limits, topic};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::mqtt::Beside;
use super::{Online, RATE_MIN, Session, SessionError, Shared};
use crate::backoff::random;
use crate::clock::{self, Anchor, ClockOffset, Stamp};

/// The shortest pause before an ask is repeated.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Bytes by which the line is measured: eight seconds of the slowest one.
const MEASURE: usize = 16 << 10;
/// Bytes of the server's time.
const TIME_MAX: usize = 1 << 10;

impl Session {
    /// Asks, and waits for the answer as long as `within`, over as many connections as it takes. The ask gets an id of its own;
    /// temporary refusals are waited out.
    ///
    /// # Errors
    /// `Answer` with the server's refusal, `Offline` or `Unanswered` when the time is over.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        op: Op,
        ask: &impl Serialize,
        within: Duration,
    ) -> Result<T, SessionError> {
        self.ask_as(&self.next_id(), op, ask, within).await
    }

    /// The same, but temporary refusals are waited out no longer than `patience`: an answer may take its time on a slow line all the same.
    pub(crate) async fn ask_patiently<T: DeserializeOwned>(
        &self,
        op: Op,
        ask: &impl Serialize,
        within: Duration,
        patience: Duration,
    ) -> Result<T, SessionError> {
        self.repeat(&self.next_id(), op, ask, (within, patience)).await
    }

    fn next_id(&self) -> String {
        format!("e-{:016x}-{}", random(), self.shared.asks.fetch_add(1, Ordering::Relaxed))
    }

    /// The same with an id of the caller's, so that another process can repeat the ask and gets the first answer.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub async fn ask_as<T: DeserializeOwned>(
        &self,
        id: &str,
        op: Op,
        ask: &impl Serialize,
        within: Duration,
    ) -> Result<T, SessionError> {
        self.repeat(id, op, ask, (within, within)).await
    }

    async fn repeat<T: DeserializeOwned>(
        &self,
        id: &str,
        op: Op,
        ask: &impl Serialize,
        (within, patience): (Duration, Duration),
    ) -> Result<T, SessionError> {
        let strange = |error: serde_json::Error| SessionError::Strange(op, error.to_string());
        let mut body = serde_json::to_value(ask).map_err(strange)?;
        if let Value::Object(keys) = &mut body {
            keys.insert("id".to_owned(), id.into());
        }
        let named = body["max_answer"].as_u64().and_then(|most| usize::try_from(most).ok());
        let most = named.map_or(limits::ANSWER_DEFAULT, |most| most.min(limits::ANSWER_MAX));
        let (payload, begin) = (Bytes::from(body.to_string()), Instant::now());
        let (deadline, until) = (begin + within, begin + patience.min(within));
        loop {
            let online = self.online(deadline).await?;
            let asked = self.ask_once(&online, op, payload.clone(), most);
            if let Some(answer) = waited_out(asked, within, (deadline, until)).await? {
                return serde_json::from_slice(&answer).map_err(strange);
            }
        }
    }

    /// `most`: bytes that the answer may have.
    async fn ask_once(
        &self,
        online: &Online,
        op: Op,
        payload: Bytes,
        most: usize,
    ) -> Result<Bytes, SessionError> {
        let correlation = Bytes::from(format!("{:016x}", random()));
        let asked = self.shared.book().ask(online.connection, correlation.clone(), most);
        let wait = asked.ok_or(SessionError::Cut)?;
        // Whoever stops waiting leaves nothing behind.
        let _forget = Forget { shared: &self.shared, correlation: &correlation };
        let response = (topic::answer(&self.config.pool, &self.config.member, op), correlation.clone());
        let beside = Beside { response: Some(response), ..Beside::default() };
        self.publish_on(online, &format!("ask/{op}"), payload, beside).await?;
        wait.await.map_err(|_| SessionError::Cut)
    }

    /// Learns how fast the line is, by an ask of some length, before something long is sent that could be sent in another way. It
    /// may take the time that the slowest line needs beside `within`.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub(crate) async fn measure(&self, within: Duration) -> Result<(), SessionError> {
        let ask = json!({ "padding": "x".repeat(MEASURE) });
        let slowest = Duration::from_secs(MEASURE as u64 / RATE_MIN);
        self.ask::<answer::Time>(Op::Time, &ask, within + slowest).await.map(drop)
    }

    /// Measures how far this machine's clock is from the server's, and how they lie to the clock that counts since boot. An attempt
    /// that was cut, or in which the clock was set, says nothing; then there is another one.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub async fn clock_offset(
        &self,
        within: Duration,
    ) -> Result<(ClockOffset, Option<Anchor>), SessionError> {
        let deadline = Instant::now() + within;
        loop {
            let online = self.online(deadline).await?;
            let before = Stamp::now();
            let asked = self.ask_once(&online, Op::Time, Bytes::from_static(b"{}"), TIME_MAX);
            let Some(answer) = waited_out(asked, within, (deadline, deadline)).await? else { continue };
            let after = Stamp::now();
            let server: answer::Time = serde_json::from_slice(&answer)
                .map_err(|error| SessionError::Strange(Op::Time, error.to_string()))?;
            if let Some(measured) = clock::measured(&before, server.time.as_millis(), &after) {
                return Ok(measured);
            }
        }
    }
}

/// Waits for an answer until the deadline, `within` after the beginning. None: there is time for another attempt, and reason, a
/// connection that was cut or a temporary refusal, whose pause is over. One that is not over by `until` is the answer.
async fn waited_out(
    asked: impl Future<Output = Result<Bytes, SessionError>>,
    within: Duration,
    (deadline, until): (Instant, Instant),
) -> Result<Option<Bytes>, SessionError> {
    let answer = match tokio::time::timeout_at(deadline, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(SessionError::Cut | SessionError::Later(_))) => return Ok(None),
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(SessionError::Unanswered(within)),
    };
    let Ok(ErrorBody { error, .. }) = serde_json::from_slice(&answer) else { return Ok(Some(answer)) };
    let pause = error.retry_after_ms.map_or(ASK_AGAIN, Duration::from_millis).max(ASK_AGAIN);
    if !error.code.is_temporary() || Instant::now() + pause >= until {
        return Err(error.into());
    }
    tokio::time::sleep(pause).await;
    Ok(None)
}

struct Forget<'a> {
    shared: &'a Shared,
    correlation: &'a Bytes,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.book().forget(self.correlation);
    }
}

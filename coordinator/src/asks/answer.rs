//! From an ask's bytes to its answer: decode, authorise, run, envelope.

use std::time::Duration;

use millpond_protocol::access::{Action, Op, may};
use millpond_protocol::error::ErrorBody;
use millpond_protocol::message::ask;
use millpond_protocol::{Code, Principal, Refusal, limits};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Asks, commit, done, put, reads, rounds};
use crate::ledger::tokens::holder;

/// Bytes of a refusal's message: what it quotes of the ask may be as long as that.
const MESSAGE_MAX: usize = 1_024;

/// How long an ask may take in all: what it may wait for, and as long as one call to storage may take.
const TIMEOUT: Duration = limits::ASK_TIMEOUT.saturating_add(limits::STORAGE_TIMEOUT);

impl Asks {
    /// Answers one ask that came from `source`, for the audit trail. The answer is the op's own keys beside the ask's `id`.
    ///
    /// # Errors
    /// The refusal in its wire shape, with the ask's `id` where it could be read.
    pub async fn answer(
        &self,
        who: &Principal,
        source: &str,
        op: Op,
        payload: &[u8],
    ) -> Result<Value, ErrorBody> {
        let refused = |id, error| ErrorBody { id, error: clipped(error) };
        let (value, head) = decode(op, payload).map_err(|error| refused(id_of(payload), error))?;
        let id = head.id.as_ref().map(ToString::to_string);
        let answer = if may(who, Action::Op(op)) {
            let late = |_| Err(Refusal::unavailable(format!("no answer within {TIMEOUT:?}")));
            // What it makes URLs of says whom they are for.
            let asks = Self { storage: self.storage.held_by(&holder(who)), ..self.clone() };
            tokio::time::timeout(TIMEOUT, asks.run(who, source, op, value, &head)).await.unwrap_or_else(late)
        } else {
            Err(Refusal::new(Code::Unauthorized, format!("a {} may not ask {op}", who.role)))
        };
        match answer {
            Ok(mut answer) => {
                if let (Value::Object(keys), Some(id)) = (&mut answer, id) {
                    keys.insert("id".into(), Value::String(id));
                }
                Ok(answer)
            }
            Err(error) => Err(refused(id, error)),
        }
    }

    async fn run(
        &self,
        who: &Principal,
        source: &str,
        op: Op,
        value: Value,
        head: &ask::Head,
    ) -> Result<Value, Refusal> {
        match op {
            Op::Time => encode(reads::time()),
            Op::Status => whole(encode(reads::status(self, who, parse(value)?).await?)?, head),
            Op::History => reads::history(self, who, parse(value)?, head).await,
            Op::Get => encode(reads::get(self, who, parse(value)?, head).await?),
            Op::Latest => whole(reads::latest(self, who).await?, head),
            Op::Complete => reads::complete(self, who, parse(value)?, head).await,
            Op::Trigger => encode(rounds::trigger(self, who, source, parse(value)?, head).await?),
            Op::Claim => encode(rounds::claim(self, who, parse(value)?, head).await?),
            Op::Beat => encode(rounds::beat(self, who, parse(value)?, head).await?),
            Op::Files => encode(rounds::files(self, who, parse(value)?, head).await?),
            Op::Done => done::done(self, who, parse(value)?, head).await,
            Op::Fail => encode(rounds::fail(self, who, parse(value)?, head).await?),
            Op::Put => encode(put::put(self, who, parse(value)?, head).await?),
            Op::Commit => encode(commit::commit(self, who, parse(value)?, head).await?),
            Op::Abort => commit::abort(self, who, parse(value)?, head).await,
        }
    }
}

fn decode(op: Op, payload: &[u8]) -> Result<(Value, ask::Head), Refusal> {
    if payload.len() > limits::ASK_MAX {
        let message = format!("the ask has {} bytes", payload.len());
        return Err(Refusal::new(Code::TooLarge, message).limit(limits::ASK_MAX as u64));
    }
    // An ask without keys may be empty.
    let value: Value = match payload {
        [] => Value::Object(serde_json::Map::new()),
        payload => serde_json::from_slice(payload)
            .map_err(|e| Refusal::new(Code::Malformed, format!("the ask is not JSON: {e}")))?,
    };
    if !value.is_object() {
        return Err(Refusal::new(Code::Malformed, "an ask is a JSON object"));
    }
    // Of the bytes, as its weight was: a key that stands there twice would be another one to each reader.
    let head: ask::Head = match payload {
        [] => ask::Head::default(),
        payload => serde_json::from_slice(payload).map_err(malformed)?,
    };
    if op.changes_state() && head.id.is_none() {
        return Err(Refusal::new(Code::Malformed, format!("{op} needs an id"))
            .hint("a repeat with the same id gets the first answer"));
    }
    Ok((value, head))
}

/// The same with a message that fits any answer.
fn clipped(mut error: Refusal) -> Refusal {
    if error.message.len() > MESSAGE_MAX {
        error.message.truncate(error.message.floor_char_boundary(MESSAGE_MAX));
        error.message.push('…');
    }
    error
}

/// The `id` of an ask that is otherwise wrong, if it is a text.
fn id_of(payload: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(payload).ok()?;
    let id = value.get("id")?.as_str()?;
    (id.len() <= 64).then(|| id.to_owned())
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    serde_json::from_value(value).map_err(malformed)
}

fn malformed(error: serde_json::Error) -> Refusal {
    Refusal::new(Code::Malformed, format!("the ask does not read: {error}"))
}

/// An answer that cannot be cut, if it fits.
fn whole(answer: Value, head: &ask::Head) -> Result<Value, Refusal> {
    let (size, room) = (answer.to_string().len() + super::AROUND, super::room(head));
    if size <= room {
        return Ok(answer);
    }
    Err(Refusal::new(Code::TooLarge, format!("the answer has {size} bytes and does not fit"))
        .limit(room as u64)
        .hint(format!("name a larger max_answer, up to {}", limits::ANSWER_MAX)))
}

fn encode<T: Serialize>(answer: T) -> Result<Value, Refusal> {
    serde_json::to_value(answer).map_err(|e| Refusal::unavailable(e.to_string()))
}

//! The ops of `ask/{op}`, over MQTT and HTTP alike: one function an op, each with a typed request.

pub mod answer;
mod commit;
mod done;
mod lease;
pub mod over_mqtt;
mod put;
mod reads;
mod rounds;
mod wake;

pub(crate) use reads::granted;

use millpond_protocol::message::ask;
use millpond_protocol::{Code, Refusal, limits};
use millpond_storage::Storage;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::fanout::state::States;
use crate::grants::Grants;
use crate::ledger::Ledger;

/// What an op works with.
#[derive(Clone)]
pub struct Asks {
    pub ledger: Ledger,
    pub storage: Storage,
    pub states: States,
    pub grants: Grants,
}

/// Bytes of an answer that are kept free for the ask's id and what stands around a list or a lease.
const AROUND: usize = 256;

/// Bytes that the asker can read in one answer.
fn room(head: &ask::Head) -> usize {
    head.max_answer.unwrap_or(limits::ANSWER_DEFAULT).clamp(1_024, limits::ANSWER_MAX)
}

/// Bytes that an ask and its answer may take while it is under way.
fn weight(payload: &[u8]) -> usize {
    // What is no ask is answered with a few words.
    let head = serde_json::from_slice::<ask::Head>(payload).ok();
    payload.len() + head.map_or(1_024, |head| room(&head))
}

/// The number in a list's cursor.
fn cursor(text: Option<&str>) -> Result<Option<u64>, Refusal> {
    text.map(|text| {
        text.parse()
            .map_err(|_| Refusal::new(Code::Malformed, "the cursor is not one that an answer gave you"))
    })
    .transpose()
}

/// A list cut to fit: as many items as `room` takes, and a cursor if there are more.
///
/// # Errors
/// `too_large` if not even the first item fits.
fn fitting<T: Serialize>(key: &str, items: Vec<(u64, T)>, room: usize) -> Result<Value, Refusal> {
    let mut left = room.saturating_sub(AROUND);
    let mut fitting = Vec::new();
    let mut answer = Map::new();
    let mut last = 0;
    for (number, item) in items {
        let item = serde_json::to_value(item).unwrap_or_default();
        let size = item.to_string().len() + 1;
        if size > left && fitting.is_empty() {
            return Err(Refusal::new(
                Code::TooLarge,
                format!("an item of {size} bytes does not fit the answer"),
            )
            .limit(room as u64)
            .hint(format!("name a larger max_answer, up to {}", limits::ANSWER_MAX)));
        }
        if size > left {
            answer.insert("cursor".into(), last.to_string().into());
            break;
        }
        left -= size;
        last = number;
        fitting.push(item);
    }
    answer.insert(key.into(), fitting.into());
    Ok(Value::Object(answer))
}

//! Asks over MQTT: the answer goes to the ask's own topic, or to the response topic that it names.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use millpond_broker::{GateHandle, Incoming, MemberMessage, RefusedPublish};
use millpond_protocol::access::Op;
use millpond_protocol::error::ErrorBody;
use millpond_protocol::{Code, Principal, Refusal, limits, topic};

use super::Asks;

/// Asks of one member that may be under way at once: more wait for nobody.
const PER_MEMBER: usize = 16;

/// Starts asks and sends their answers.
pub struct MqttAsks {
    asks: Asks,
    gate: GateHandle,
    under_way: Arc<Mutex<HashMap<i64, usize>>>,
}

/// Where an answer goes.
struct ReplyTo {
    who: Principal,
    topic: String,
    correlation_data: Option<Bytes>,
}

impl MqttAsks {
    /// Answers go out through `gate`.
    pub fn new(asks: Asks, gate: GateHandle) -> Self {
        Self { asks, gate, under_way: Arc::default() }
    }

    /// Begins an ask; its acknowledgement promises nothing, only the answer counts.
    pub fn start(&self, who: Principal, at: SocketAddr, op: Op, message: Incoming) -> Result<(), Refusal> {
        let topic = message.response_topic.unwrap_or_else(|| topic::answer(&who.pool, &who.name, op));
        let to = ReplyTo { who, topic, correlation_data: message.correlation_data };
        let Some(slot) = Slot::take(&self.under_way, to.who.id) else {
            let refusal = Refusal::new(Code::Quota, "too many asks of this member are under way")
                .limit(PER_MEMBER as u64)
                .retry_after_ms(1_000);
            send(&self.gate, to, &ErrorBody { id: None, error: refusal });
            return Ok(());
        };
        let (asks, gate) = (self.asks.clone(), self.gate.clone());
        tokio::spawn(async move {
            match asks.answer(&to.who, &at.to_string(), op, &message.payload).await {
                Ok(answer) => send(&gate, to, &answer),
                Err(error) => {
                    metrics::counter!("millpond_ask_errors_total", "code" => error.error.code.as_str())
                        .increment(1);
                    send(&gate, to, &error);
                }
            }
            drop(slot);
        });
        Ok(())
    }

    /// Answers an ask that the gate itself refused.
    pub fn refuse(&self, who: &Principal, op: Op, refused: RefusedPublish) {
        // A foreign response topic gets nothing at all.
        if refused.refusal.code == Code::Unauthorized {
            return;
        }
        let topic = refused.response_topic.unwrap_or_else(|| topic::answer(&who.pool, &who.name, op));
        let to = ReplyTo { who: who.clone(), topic, correlation_data: refused.correlation_data };
        send(&self.gate, to, &ErrorBody { id: None, error: refused.refusal });
    }
}

fn send<T: serde::Serialize>(gate: &GateHandle, to: ReplyTo, answer: &T) {
    let payload: Bytes = serde_json::to_vec(answer).unwrap_or_default().into();
    debug_assert!(payload.len() <= limits::ANSWER_MAX, "answers are cut to fit");
    let message = MemberMessage { topic: to.topic, payload, correlation_data: to.correlation_data };
    gate.to_member(&to.who.pool, &to.who.name, message);
}

/// One of a member's asks under way.
struct Slot {
    under_way: Arc<Mutex<HashMap<i64, usize>>>,
    member: i64,
}

impl Slot {
    fn take(under_way: &Arc<Mutex<HashMap<i64, usize>>>, member: i64) -> Option<Self> {
        let mut counts = under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(member).or_insert(0);
        if *count >= PER_MEMBER {
            return None;
        }
        *count += 1;
        Some(Self { under_way: under_way.clone(), member })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.member) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.member);
            }
        }
    }
}

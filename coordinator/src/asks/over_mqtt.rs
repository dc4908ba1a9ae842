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
/// Bytes that all asks under way may take, with their answers. A member may have half of what is left, so that one that asks
/// for little always can.
const BYTES_MAX: usize = 128 << 20;

/// Starts asks and sends their answers.
pub struct MqttAsks {
    asks: Asks,
    gate: GateHandle,
    under_way: Arc<Mutex<UnderWay>>,
}

/// The asks that have no answer yet.
#[derive(Debug, Default)]
struct UnderWay {
    bytes: usize,
    /// Number and bytes of those of a member.
    members: HashMap<i64, (usize, usize)>,
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
        let slot = match Slot::take(&self.under_way, to.who.id, super::weight(&message.payload)) {
            Ok(slot) => slot,
            Err(refusal) => {
                count_error(&refusal);
                send(&self.gate, to, &ErrorBody { id: None, error: refusal });
                return Ok(());
            }
        };
        let (asks, gate) = (self.asks.clone(), self.gate.clone());
        tokio::spawn(async move {
            match asks.answer(&to.who, &at.to_string(), op, &message.payload).await {
                Ok(answer) => send(&gate, to, &answer),
                Err(error) => {
                    count_error(&error.error);
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

fn count_error(refusal: &Refusal) {
    metrics::counter!("millpond_ask_errors_total", "code" => refusal.code.as_str()).increment(1);
}

fn send<T: serde::Serialize>(gate: &GateHandle, to: ReplyTo, answer: &T) {
    let payload: Bytes = serde_json::to_vec(answer).unwrap_or_default().into();
    debug_assert!(payload.len() <= limits::ANSWER_MAX, "answers are cut to fit");
    let message = MemberMessage { topic: to.topic, payload, correlation_data: to.correlation_data };
    gate.to_member(&to.who.pool, &to.who.name, message);
}

/// One of a member's asks under way.
#[derive(Debug)]
struct Slot {
    under_way: Arc<Mutex<UnderWay>>,
    member: i64,
    bytes: usize,
}

impl Slot {
    fn take(under_way: &Arc<Mutex<UnderWay>>, member: i64, bytes: usize) -> Result<Self, Refusal> {
        let mut all = under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, held) = all.members.get(&member).copied().unwrap_or_default();
        let refused = |what: &str| Refusal::new(Code::Quota, what).retry_after_ms(1_000);
        if count >= PER_MEMBER {
            return Err(refused("too many asks of this member are under way").limit(PER_MEMBER as u64));
        }
        if held + bytes > BYTES_MAX.saturating_sub(all.bytes) / 2 {
            return Err(refused("too many asks are under way"));
        }
        all.bytes += bytes;
        all.members.insert(member, (count + 1, held + bytes));
        Ok(Self { under_way: under_way.clone(), member, bytes })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        all.bytes -= self.bytes;
        if let Some((count, bytes)) = all.members.get_mut(&self.member) {
            (*count, *bytes) = (*count - 1, *bytes - self.bytes);
            if *count == 0 {
                all.members.remove(&self.member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_ask_for_all_there_is_leave_room_for_one_that_asks_for_little() {
        let under_way = Arc::default();
        let (large, small) = (limits::ASK_MAX + limits::ANSWER_MAX, super::super::weight(b"{}"));
        let take = |member: i64, bytes: usize| Slot::take(&under_way, member, bytes);
        let held: Vec<Slot> = (0..1_000).flat_map(|n| take(n / 20, large).ok()).collect();
        assert_eq!(held.iter().filter(|slot| slot.member == 0).count(), PER_MEMBER);
        assert!(held.len() * large <= BYTES_MAX && held.len() * large > BYTES_MAX / 2);
        let others: Vec<Slot> = (1_000..1_020).map(|n| take(n, small).unwrap()).collect();
        assert_eq!(take(2_000, large).unwrap_err().code, Code::Quota);
        drop((held, others));
        let left = under_way.lock().unwrap();
        assert!(left.bytes == 0 && left.members.is_empty());
    }
}

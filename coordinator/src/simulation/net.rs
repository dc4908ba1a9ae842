//! Messages between clients and the server: each waits until the scheduler delivers it, loses it or sends it twice.

use std::collections::BTreeMap;
use std::time::Duration;

use millpond_broker::{Incoming, ReceiptRow, StateMessage};
use millpond_protocol::access::Op;
use millpond_protocol::error::ErrorBody;
use millpond_protocol::topic::Inbound;
use millpond_protocol::{Principal, Refusal};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

/// What a client wants of the server.
#[derive(Debug, Clone)]
pub(super) enum Wish {
    Publish(Box<Incoming>),
    Ask(Op, Value),
    /// SUBSCRIBE to the pool's result.
    Listen,
    /// Receipts after that one, or from where the member's cursor is.
    Receipts(Option<i64>),
    /// A connection has acknowledged them up to there.
    Acknowledge(i64),
}

/// What the server says.
#[derive(Debug)]
pub(super) enum Said {
    /// PUBACK, or none and the connection ends.
    Acked(Result<(), Refusal>),
    Answered(Result<Value, ErrorBody>),
    States(Vec<StateMessage>),
    /// Where they begin, and the first of them.
    Receipts(i64, Vec<ReceiptRow>),
    Noted,
}

/// A message to the server.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) from: Principal,
    pub(super) wish: Wish,
}

/// Everything under way.
#[derive(Default)]
pub(super) struct Net {
    next: u64,
    pub(super) requests: Vec<Request>,
    pub(super) answers: Vec<(u64, Said)>,
    /// State messages to listeners that are connected.
    pub(super) pushes: Vec<(usize, StateMessage)>,
    /// Who waits for an answer, and how long at most.
    waiting: BTreeMap<u64, (Duration, oneshot::Sender<Said>)>,
    /// Connections of listeners.
    listeners: BTreeMap<usize, mpsc::UnboundedSender<StateMessage>>,
}

impl Net {
    /// Puts a message under way; the answer comes where it says, or nothing if the client gives up.
    pub(super) fn send(
        &mut self,
        from: Principal,
        wish: Wish,
        patience: Duration,
    ) -> oneshot::Receiver<Said> {
        let (answer, answered) = oneshot::channel();
        self.next += 1;
        self.waiting.insert(self.next, (patience, answer));
        self.requests.push(Request { id: self.next, from, wish });
        answered
    }

    /// How many results are on their way.
    pub(super) fn results(&self) -> usize {
        let is_result = |request: &&Request| matches!(&request.wish, Wish::Publish(message) if matches!(message.to, Inbound::Result { .. }));
        self.requests.iter().filter(is_result).count()
    }

    /// The connection of a listener from now on; it ends with the receiver's last message.
    pub(super) fn connect(&mut self, listener: usize) -> mpsc::UnboundedReceiver<StateMessage> {
        let (push, pushed) = mpsc::unbounded_channel();
        self.pushes.retain(|(to, _)| *to != listener);
        self.listeners.insert(listener, push);
        pushed
    }

    /// A state message on its way to whoever is connected.
    pub(super) fn push(&mut self, message: &StateMessage) {
        let connected = self.listeners.keys();
        self.pushes.extend(connected.map(|listener| (*listener, message.clone())));
    }

    /// An answer on its way, if anybody still waits for it.
    pub(super) fn answer(&mut self, id: u64, said: Said) {
        if self.waiting.contains_key(&id) {
            self.answers.push((id, said));
        }
    }

    /// What happens if the n-th answer or push under way arrives.
    pub(super) fn words(&self, nth: usize) -> String {
        match self.answers.get(nth) {
            Some((id, said)) => format!("answer {id} arrives: {}", said.word()),
            None => format!("a push arrives at listener {}", self.pushes[nth - self.answers.len()].0),
        }
    }

    /// The n-th answer or push under way arrives.
    pub(super) fn arrive(&mut self, nth: usize) {
        if nth < self.answers.len() {
            let (id, said) = self.answers.remove(nth);
            if let Some((_, answer)) = self.waiting.remove(&id) {
                // The client may have ended.
                drop(answer.send(said));
            }
            return;
        }
        let (listener, message) = self.pushes.remove(nth - self.answers.len());
        if let Some(push) = self.listeners.get(&listener) {
            drop(push.send(message));
        }
    }

    /// How many wait for answers.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The n-th of those who wait gives up: its connection has ended. What is under way of it may arrive all the same.
    pub(super) fn give_up(&mut self, nth: usize) -> Option<u64> {
        let id = *self.waiting.keys().nth(nth)?;
        self.waiting.remove(&id);
        self.answers.retain(|(answered, _)| *answered != id);
        Some(id)
    }

    /// Those give up whose patience has ended.
    pub(super) fn lose_patience(&mut self, now: Duration) {
        self.waiting.retain(|_, (patience, _)| *patience > now);
        let Self { answers, waiting, .. } = self;
        answers.retain(|(id, _)| waiting.contains_key(id));
    }

    /// When the next one loses patience.
    pub(super) fn next_patience(&self) -> Option<Duration> {
        self.waiting.values().map(|(patience, _)| *patience).min()
    }

    /// Every listener's connection ends.
    pub(super) fn disconnect_listeners(&mut self) {
        self.listeners.clear();
        self.pushes.clear();
    }

    /// Every connection ends, and what was on its way with it.
    pub(super) fn cut(&mut self) {
        self.requests.clear();
        self.answers.clear();
        self.waiting.clear();
        self.disconnect_listeners();
    }
}

impl Request {
    /// In a few words.
    pub(super) fn words(&self) -> String {
        let what = match &self.wish {
            Wish::Publish(message) => format!("{:?}", message.to),
            Wish::Ask(op, ask) => format!("ask {op} {ask}"),
            Wish::Listen => "subscribe".to_owned(),
            Wish::Receipts(after) => format!("receipts after {after:?}"),
            Wish::Acknowledge(seq) => format!("acknowledges receipt {}", seq & 0xff_ffff_ffff),
        };
        format!("message {} of {}: {what}", self.id, self.from.name)
    }
}

impl Said {
    fn word(&self) -> String {
        match self {
            Self::Acked(Ok(())) => "acknowledged".to_owned(),
            Self::Acked(Err(refusal)) => format!("refused: {refusal}"),
            Self::Answered(Ok(answer)) => answer.to_string().chars().take(80).collect(),
            Self::Answered(Err(refused)) => format!("refused: {}", refused.error),
            Self::States(states) => format!("{} states", states.len()),
            Self::Receipts(_, receipts) => format!("{} receipts", receipts.len()),
            Self::Noted => "noted".to_owned(),
        }
    }
}

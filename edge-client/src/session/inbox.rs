//! What the server tells, in the order in which it came.

use bytes::Bytes;
use millpond_protocol::Sha256;
use millpond_protocol::message::{Card, Offer, Pointer, Receipt};
use tokio::sync::{mpsc, watch};

use super::Status;
use super::mqtt::{Pipe, Token};

/// Something the server told, or what became of the connection.
#[derive(Debug)]
pub enum Event {
    /// Connected and subscribed; the state topics follow.
    Online,
    /// The connection ended, or an attempt failed; the next one follows by itself.
    Offline(super::Cause),
    /// What became of an upload, with what tells the server that it was understood.
    Receipt(Receipt, Ack),
    /// Where the newest result is; none if the pool has none.
    Result(Option<Pointer>),
    /// Its bytes where they are small, with the version and SHA-256 that the server names.
    ResultData { version: u64, sha256: Option<Sha256>, bytes: Bytes },
    /// The pool's card.
    Card(Card),
    /// The oldest round that waits for a processor; none if none waits.
    Offer(Option<Offer>),
}

/// Acknowledges one receipt. Dropped, it acknowledges nothing: the receipt comes again on the next connection.
pub struct Ack {
    pipe: Pipe,
    token: Token,
}

impl Ack {
    pub(super) fn new(pipe: Pipe, token: Token) -> Self {
        Self { pipe, token }
    }

    /// The server need not tell it again.
    pub async fn done(self) {
        self.pipe.acknowledge(self.token).await;
    }
}

impl std::fmt::Debug for Ack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ack")
    }
}

/// Reads what the server tells.
pub struct Inbox {
    events: mpsc::Receiver<(Event, Option<Ack>)>,
    /// Keeps the connection's task alive while only the inbox is.
    _status: watch::Receiver<Status>,
}

impl Inbox {
    pub(super) fn new(events: mpsc::Receiver<(Event, Option<Ack>)>, status: watch::Receiver<Status>) -> Self {
        Self { events, _status: status }
    }

    /// The next event; none when the session is closed. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Option<Event> {
        let (event, ack) = self.events.recv().await?;
        if let Some(ack) = ack {
            ack.done().await;
        }
        Some(event)
    }

    /// An event that is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        let (event, ack) = self.events.try_recv().ok()?;
        if let Some(ack) = ack {
            tokio::spawn(ack.done());
        }
        Some(event)
    }
}

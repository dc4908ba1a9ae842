//! What the server tells, in the order in which it came.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use millpond_protocol::message::{Card, Offer, Pointer, Receipt};
use millpond_protocol::{Sha256, limits};
use tokio::sync::{Notify, watch};

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
    /// The connection that it came on.
    connection: u64,
}

impl Ack {
    pub(super) fn new(pipe: Pipe, token: Token, connection: u64) -> Self {
        Self { pipe, token, connection }
    }

    /// The server need not tell it again.
    pub async fn done(self) {
        self.pipe.acknowledge(self.token).await;
    }

    /// The same without waiting: nobody is dropped half-way, and the socket's owner does not wait for itself.
    pub(super) fn later(self) {
        tokio::spawn(self.done());
    }
}

impl std::fmt::Debug for Ack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ack")
    }
}

/// Events that wait to be read: what one connection may bring unread, and some room for the rest.
const WAITING: usize = limits::IN_FLIGHT_OUT + 28;

/// What waits to be read. A newer event takes an older one's place where only the newest counts, so that a session that nobody reads
/// for a while, over any number of connections, holds no more than one connection brings.
#[derive(Default)]
struct Waiting {
    events: VecDeque<(Event, Option<Ack>)>,
    /// The connection's task has ended.
    closed: bool,
}

impl Waiting {
    fn put(&mut self, event: Event, ack: Option<Ack>) -> Result<(), ()> {
        self.events.retain_mut(|(older, ack)| {
            let stays = !replaces(&event, older);
            if !stays && let Some(ack) = ack.take() {
                ack.later();
            }
            stays
        });
        if self.events.len() >= WAITING {
            return Err(());
        }
        self.events.push_back((event, ack));
        Ok(())
    }
}

/// Whether nobody needs the older one any more.
fn replaces(newer: &Event, older: &Event) -> bool {
    match (newer, older) {
        (Event::Online | Event::Offline(_), Event::Online | Event::Offline(_))
        | (Event::Result(_), Event::Result(_))
        | (Event::ResultData { .. }, Event::ResultData { .. })
        | (Event::Card(_), Event::Card(_))
        | (Event::Offer(_), Event::Offer(_)) => true,
        // It came on an earlier connection, and again. On the same one each has an acknowledgement of its own.
        (Event::Receipt(newer, now), Event::Receipt(older, then)) => {
            newer == older && now.connection != then.connection
        }
        (
            Event::Online
            | Event::Offline(_)
            | Event::Receipt(..)
            | Event::Result(_)
            | Event::ResultData { .. }
            | Event::Card(_)
            | Event::Offer(_),
            _,
        ) => false,
    }
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    news: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end of an inbox. Dropped, it closes it.
pub(super) struct Deliver(Arc<Shared>);

impl Deliver {
    /// Puts an event there; an error if nobody reads and there is no room.
    pub(super) fn put(&self, event: Event, ack: Option<Ack>) -> Result<(), ()> {
        let put = self.0.lock().put(event, ack);
        self.0.news.notify_one();
        put
    }
}

impl Drop for Deliver {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.news.notify_one();
    }
}

/// Both ends of an inbox.
pub(super) fn channel(status: watch::Receiver<Status>) -> (Deliver, Inbox) {
    let shared = Arc::new(Shared::default());
    (Deliver(Arc::clone(&shared)), Inbox { shared, _status: status })
}

/// Reads what the server tells.
pub struct Inbox {
    shared: Arc<Shared>,
    /// Keeps the connection's task alive while only the inbox is.
    _status: watch::Receiver<Status>,
}

impl Inbox {
    /// The next event; none when the session is closed. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            // First: what was put there before it is found then.
            let closed = self.shared.lock().closed;
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if closed {
                return None;
            }
            self.shared.news.notified().await;
        }
    }

    /// An event that is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        let (event, ack) = self.shared.lock().events.pop_front()?;
        if let Some(ack) = ack {
            ack.later();
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use millpond_protocol::message::Pointer;
    use millpond_protocol::{Sha256, Timestamp};

    use super::super::Cause;
    use super::*;

    fn inbox() -> (Deliver, Inbox) {
        let (_, status) = watch::channel(Status::Offline(Cause::Closed));
        channel(status)
    }

    fn pointer(version: u64) -> Event {
        let pointer = Pointer {
            version,
            batch: 1,
            round: 1,
            of: None,
            name: "m".parse().unwrap(),
            size: 0,
            sha256: Sha256::of(b""),
            content_type: None,
            url: String::new(),
            url_expires: Timestamp::EPOCH,
            spread_s: 0,
        };
        Event::Result(Some(pointer))
    }

    #[tokio::test]
    async fn a_session_that_nobody_reads_connects_again_as_often_as_it_likes() {
        let (deliver, mut inbox) = inbox();
        for version in 0..1_000 {
            deliver.put(Event::Offline(Cause::Lost("again".into())), None).unwrap();
            deliver.put(Event::Online, None).unwrap();
            deliver.put(Event::Offer(None), None).unwrap();
            deliver.put(pointer(version), None).unwrap();
        }
        assert!(matches!(inbox.next().await, Some(Event::Online)));
        assert!(matches!(inbox.next().await, Some(Event::Offer(None))));
        assert!(matches!(inbox.next().await, Some(Event::Result(Some(pointer))) if pointer.version == 999));
        assert!(inbox.try_next().is_none());
        deliver.put(Event::Offline(Cause::Closed), None).unwrap();
        drop(deliver);
        assert!(matches!(inbox.next().await, Some(Event::Offline(Cause::Closed))));
        assert!(inbox.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken_and_one_that_gives_up_loses_nothing() {
        let (deliver, mut inbox) = inbox();
        let given_up = tokio::time::timeout(std::time::Duration::ZERO, inbox.next()).await;
        assert!(given_up.is_err());
        let (event, ()) = tokio::join!(inbox.next(), async { deliver.put(Event::Online, None).unwrap() });
        assert!(matches!(event, Some(Event::Online)));
    }
}

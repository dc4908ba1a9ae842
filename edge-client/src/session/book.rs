//! What waits for a packet of the connection that is open now.

use std::collections::{HashMap, VecDeque};

use std::time::Duration;

use bytes::Bytes;
use millpond_protocol::Refusal;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::uplink::{RATE_MIN, Uplink};

/// What became of a publish.
pub(super) type Verdict = Result<(), Refused>;

/// It was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// It was acknowledged with this MQTT 5 reason code.
    Code(u8),
    /// The server closed the connection, because of this or of another one.
    Later(Refusal),
}

/// A publish that is not acknowledged.
#[derive(Debug)]
struct Publish {
    waiter: oneshot::Sender<Verdict>,
    bytes: u64,
    handed_over: Instant,
}

/// An answer that is waited for.
#[derive(Debug)]
struct Answer {
    waiter: oneshot::Sender<Bytes>,
    /// Bytes that it may have.
    most: usize,
}

/// Waiters of one connection. Forgotten when it ends, which tells each of them so.
#[derive(Debug)]
pub(super) struct Book {
    /// Counts connections; what was meant for an earlier one does not enter.
    pub(super) connection: u64,
    pub(super) uplink: Uplink,
    /// When the server was heard last, or the connection begun.
    heard: Instant,
    /// Until when a message may be on its way here that the server has announced.
    announced: Option<Instant>,
    unsent: VecDeque<Publish>,
    sent: HashMap<u16, Publish>,
    answers: HashMap<Bytes, Answer>,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            connection: 0,
            uplink: Uplink::default(),
            heard: Instant::now(),
            announced: None,
            unsent: VecDeque::new(),
            sent: HashMap::new(),
            answers: HashMap::new(),
        }
    }
}

impl Book {
    /// The server has said something, or a connection to it begins.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Until when a server may be silent that says something every so often. It cannot while what was handed over is on its way
    /// to it, nor, for this side, while a long message is on its way here: of that nothing is seen before its last byte.
    pub(super) fn silent_until(&self, every: Duration) -> Instant {
        let answer = self.answers.values().map(|answer| arriving(answer.most)).max().unwrap_or_default();
        let heard = self.announced.map_or(self.heard, |until| until.max(self.heard));
        heard + answer + every + self.uplink.busy()
    }

    /// The server's next message has so many bytes.
    pub(super) fn announced(&mut self, bytes: usize) {
        self.announced = Some(Instant::now() + arriving(bytes));
    }

    /// It is here.
    pub(super) fn arrived(&mut self) {
        self.announced = None;
    }

    /// When the server was heard last.
    pub(super) fn last_heard(&self) -> Instant {
        self.heard
    }

    /// The connection has ended; with what the server refused for now, if that is why.
    pub(super) fn turn_over(&mut self, later: Option<Refusal>) {
        let is_refused = later.is_some();
        if let Some(refusal) = later {
            for publish in self.unsent.drain(..).chain(self.sent.drain().map(|(_, publish)| publish)) {
                let _ = publish.waiter.send(Err(Refused::Later(refusal.clone())));
            }
        }
        let mut uplink = std::mem::take(&mut self.uplink);
        match is_refused {
            // The server has heard all of it: that says nothing about the line.
            true => uplink.ended(),
            false => uplink.cut(self.heard.elapsed()),
        }
        let (connection, heard) = (self.connection + 1, self.heard);
        *self = Self { connection, uplink, heard, ..Self::default() };
    }

    /// A publish of so many bytes is about to be handed over on that connection; none if it has ended.
    pub(super) fn publish(&mut self, connection: u64, bytes: usize) -> Option<oneshot::Receiver<Verdict>> {
        if self.connection != connection {
            return None;
        }
        let (waiter, wait) = oneshot::channel();
        let bytes = bytes as u64;
        self.unsent.push_back(Publish { waiter, bytes, handed_over: Instant::now() });
        self.uplink.handed_over(bytes);
        Some(wait)
    }

    /// It was not handed over after all.
    pub(super) fn publish_failed(&mut self, connection: u64) {
        if self.connection == connection
            && let Some(publish) = self.unsent.pop_back()
        {
            self.uplink.taken_back(publish.bytes);
        }
    }

    pub(super) fn published(&mut self, id: u16) {
        if let Some(publish) = self.unsent.pop_front() {
            self.sent.insert(id, publish);
        }
    }

    pub(super) fn acknowledged(&mut self, id: u16, verdict: Verdict) {
        if let Some(publish) = self.sent.remove(&id) {
            self.uplink.acknowledged(publish.bytes, publish.handed_over, Instant::now());
            // Who waited may have gone.
            let _ = publish.waiter.send(verdict);
        }
    }

    /// An answer of at most so many bytes with that correlation will be waited for.
    pub(super) fn ask(
        &mut self,
        connection: u64,
        correlation: Bytes,
        most: usize,
    ) -> Option<oneshot::Receiver<Bytes>> {
        let (waiter, wait) = oneshot::channel();
        (self.connection == connection).then(|| self.answers.insert(correlation, Answer { waiter, most }))?;
        Some(wait)
    }

    pub(super) fn forget(&mut self, correlation: &Bytes) {
        self.answers.remove(correlation);
    }

    /// Whether a message with that correlation was an answer that somebody asked for; then it is handed over.
    pub(super) fn answered(&mut self, correlation: &Bytes, payload: &Bytes) -> bool {
        self.answers.remove(correlation).map(|answer| answer.waiter.send(payload.clone())).is_some()
    }
}

/// How long a message of so many bytes is on its way here on the slowest line.
pub(crate) fn arriving(bytes: usize) -> Duration {
    Duration::from_millis((bytes as u64).saturating_mul(1_000) / RATE_MIN)
}

#[cfg(test)]
mod tests {
    use millpond_protocol::Code;

    use super::*;

    #[test]
    fn packet_ids_belong_to_publishes_in_the_order_in_which_they_were_handed_over() {
        let mut book = Book::default();
        let (mut one, mut two) = (book.publish(0, 10).unwrap(), book.publish(0, 10).unwrap());
        book.published(7);
        book.published(8);
        book.acknowledged(8, Err(Refused::Code(0x97)));
        assert_eq!(two.try_recv(), Ok(Err(Refused::Code(0x97))));
        assert!(one.try_recv().is_err());
        book.acknowledged(7, Ok(()));
        assert_eq!(one.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn when_the_connection_ends_every_waiter_learns_it_and_nothing_enters_the_next_one() {
        let mut book = Book::default();
        let mut publish = book.publish(0, 10).unwrap();
        let mut answer = book.ask(0, "a".into(), 1).unwrap();
        book.turn_over(None);
        assert_eq!(publish.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(book.publish(0, 10).is_none() && book.ask(0, "b".into(), 1).is_none());
        // A publish of the connection before must not take away one of this one.
        let mut fresh = book.publish(1, 10).unwrap();
        book.publish_failed(0);
        book.published(1);
        book.acknowledged(1, Ok(()));
        assert_eq!(fresh.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn who_waits_when_the_server_refuses_something_for_now_learns_why_the_connection_ended() {
        let mut book = Book::default();
        let (mut sent, mut unsent) = (book.publish(0, 10).unwrap(), book.publish(0, 10).unwrap());
        book.published(7);
        let why = Refusal::new(Code::Quota, "the pool keeps 9 bytes already");
        book.turn_over(Some(why.clone()));
        for publish in [&mut sent, &mut unsent] {
            assert_eq!(publish.try_recv(), Ok(Err(Refused::Later(why.clone()))));
        }
    }

    #[test]
    fn a_server_may_be_silent_while_what_it_has_announced_or_was_asked_for_can_be_on_its_way() {
        let (mut book, every) = (Book::default(), Duration::from_secs(5));
        let usual = book.heard + every;
        assert_eq!(book.silent_until(every), usual);
        let _answer = book.ask(0, "a".into(), 16 << 10).unwrap();
        let _another = book.ask(0, "b".into(), 64 << 10).unwrap();
        assert_eq!(book.silent_until(every), usual + Duration::from_secs(32));
        book.forget(&"b".into());
        assert!(book.answered(&"a".into(), &"{}".into()));
        assert_eq!(book.silent_until(every), usual);
        book.announced(128 << 10);
        assert!(book.silent_until(every) >= usual + Duration::from_secs(64));
        // What is said meanwhile does not make it longer.
        let until = book.silent_until(every);
        book.heard();
        assert_eq!(book.silent_until(every), until);
        book.arrived();
        assert_eq!(book.silent_until(every), book.heard + every);
        book.announced(128 << 10);
        book.turn_over(None);
        assert_eq!(book.silent_until(every), book.heard + every);
    }
}

//! What waits for one session, whether it has a connection or not.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::away::{Away, AwayBytes};
use super::message::Mail;
use super::queue::Put;
use super::trie::Subscriber;
use super::waiting::Waiting;
use crate::backend::MemberMessage;
use crate::registry::EndReason;

/// The one place where others leave something for a session. Bounded: by bytes, by number, or to the newest of its kind.
#[derive(Debug)]
pub(crate) struct Mailbox {
    id: u64,
    is_online: AtomicBool,
    /// Its member was revoked: nothing that the session says goes out any more.
    is_revoked: AtomicBool,
    /// Counts the times that something was taken, and the count at which somebody waited for more in vain.
    taken: AtomicU64,
    given_up: AtomicU64,
    /// Bytes of messages on app topics that its connection has taken and its client has not acknowledged.
    held: AtomicUsize,
    inner: Mutex<Waiting>,
    notify: Notify,
    away: Away,
}

/// What ending a session's connection would free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holding {
    Online(usize),
    /// It is ended for that already.
    Leaving(usize),
    /// It has none.
    Away,
}

/// What a connection can take now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wants {
    /// Pool-wide messages.
    pub(crate) live: bool,
    /// Messages on app topics.
    pub(crate) copies: usize,
}

/// What a connection takes out.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) messages: VecDeque<MemberMessage>,
    pub(crate) receipts: bool,
    pub(crate) end: Option<EndReason>,
    /// Pool-wide messages: state, and then events.
    pub(crate) live: Vec<Mail>,
    /// Messages on app topics.
    pub(crate) copies: Vec<Mail>,
}

impl Mailbox {
    pub(crate) fn new(id: u64, away: Away) -> Self {
        Self {
            id,
            is_online: AtomicBool::new(true),
            is_revoked: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            given_up: AtomicU64::new(u64::MAX),
            held: AtomicUsize::new(0),
            inner: Mutex::new(Waiting::new()),
            notify: Notify::new(),
            away,
        }
    }

    /// Brings what stands in [`AwayBytes`] up to date.
    fn count(&self, waiting: &mut Waiting) {
        let weight = if self.is_online() { 0 } else { waiting.unsent + waiting.queue.weight() };
        let before = std::mem::replace(&mut waiting.counted, weight);
        self.away.change(before, weight);
    }

    /// What its member's sessions that are away count for.
    pub(crate) fn away_of_member(&self) -> Arc<AwayBytes> {
        self.away.member.clone()
    }

    /// Waits until there is something that is wanted, and takes it. Safe to cancel.
    pub(crate) async fn take(&self, wants: Wants) -> Taken {
        loop {
            let notified = self.notify.notified();
            let taken = self.lock().take(wants);
            if let Some(taken) = taken {
                self.taken.fetch_add(u64::from(!taken.copies.is_empty()), Ordering::Relaxed);
                return taken;
            }
            notified.await;
        }
    }

    /// Waits until its connection is to end, but not for a queue that overflows. Safe to cancel.
    pub(crate) async fn ended(&self) {
        loop {
            let notified = self.notify.notified();
            if self.lock().end.is_some() {
                return;
            }
            notified.await;
        }
    }

    /// Leaves a message to the member.
    pub(crate) fn push(&self, message: MemberMessage, bytes_max: usize) {
        let mut waiting = self.lock();
        let correlation_data = message.correlation_data.as_ref().map_or(0, |data| data.len());
        waiting.bytes += message.payload.len() + message.topic.len() + correlation_data;
        if waiting.bytes > bytes_max {
            waiting.end.get_or_insert(EndReason::QueueFull);
        } else {
            waiting.messages.push_back(message);
        }
        drop(waiting);
        self.notify.notify_one();
    }

    pub(crate) fn receipts_ready(&self) {
        self.lock().receipts = true;
        self.notify.notify_one();
    }

    pub(crate) fn end(&self, reason: EndReason) {
        let mut waiting = self.lock();
        // A revocation ends the session too, whatever else has ended the connection.
        if reason == EndReason::Revoked {
            waiting.end = Some(reason);
            self.is_revoked.store(true, Ordering::SeqCst);
        }
        waiting.end.get_or_insert(reason);
        drop(waiting);
        self.notify.notify_one();
    }

    /// Whether the member was revoked, for ever: nobody takes up such a session.
    pub(crate) fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::SeqCst)
    }

    /// Its connection holds so many bytes of messages on app topics.
    pub(crate) fn holds(&self, bytes: usize) {
        self.held.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that it holds, were each message only here.
    pub(super) fn holding(&self) -> Holding {
        let waiting = self.lock();
        let weight = waiting.queue.weight() + self.held.load(Ordering::Relaxed);
        match (self.is_online(), waiting.gives_way) {
            (false, _) => Holding::Away,
            (true, true) => Holding::Leaving(weight),
            (true, false) => Holding::Online(weight),
        }
    }

    /// Ends its connection, which holds too much of what its pool may have.
    pub(super) fn overflow(&self) {
        let mut waiting = self.lock();
        waiting.end.get_or_insert(EndReason::QueueFull);
        waiting.gives_way = true;
    }

    /// Its session is over: nobody takes what waits, though its connection may be there for a while.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        self.is_online.store(false, Ordering::SeqCst);
        self.holds(0);
        waiting.unsent = 0;
        waiting.empty();
        if waiting.gives_way {
            count_dropped("pool", waiting.queue.len());
        }
        waiting.queue.clear();
        self.count(&mut waiting);
    }

    /// [`Mailbox::put`] while the pool has too much in memory: at QoS 0 who has something waiting gets nothing more.
    pub(super) fn put_under(&self, copy: Mail, is_pressed: bool) -> (Put, bool) {
        if is_pressed && copy.qos == 0 && !copy.message.is_pool_wide() && !self.lock().queue.is_empty() {
            count_dropped("pool", 1);
            return (Put::Dropped, false);
        }
        self.put(copy)
    }

    /// Leaves a copy. Tells whether the connection is to be woken: [`Mailbox::wake`] then, once a batch.
    pub(super) fn put(&self, copy: Mail) -> (Put, bool) {
        let mut waiting = self.lock();
        let is_online = self.is_online();
        let mut is_wanted = waiting.wants.live;
        let put = if copy.message.is_pool_wide() {
            if is_online {
                waiting.put_live(copy);
            }
            Put::Kept
        } else {
            let weight = copy.weight();
            let (room, limit) = if is_online { (weight, "session") } else { self.away.room() };
            let (put, limit) = if weight <= room {
                (waiting.queue.put(copy, is_online), "session")
            } else {
                (Put::Dropped, limit)
            };
            if !is_online {
                self.count(&mut waiting);
            }
            is_wanted = waiting.wants.copies > 0 || put == Put::Full;
            let put = if put == Put::Behind && self.is_given_up() { Put::Kept } else { put };
            if put == Put::Full {
                waiting.end.get_or_insert(EndReason::QueueFull);
            }
            // Whoever is ended loses this one as well.
            if matches!(put, Put::Full | Put::Dropped) {
                count_dropped(limit, 1);
            }
            put
        };
        let wakes = is_online && is_wanted && !std::mem::replace(&mut waiting.is_told, true);
        (put, wakes)
    }

    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Whether it was woken since this was asked last.
    #[cfg(test)]
    pub(crate) fn is_woken(&self) -> bool {
        futures_util::FutureExt::now_or_never(self.notify.notified()).is_some()
    }

    /// Whether its client is behind, and somebody may wait for it.
    pub(super) fn is_behind(&self) -> bool {
        self.is_online() && !self.is_given_up() && self.lock().queue.is_behind()
    }

    /// How often something was taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Somebody waited, and nothing was taken since `taken`: nobody else waits until something is.
    pub(super) fn give_up(&self, taken: u64) {
        if self.taken() == taken {
            self.given_up.store(taken, Ordering::Relaxed);
        }
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) == self.taken()
    }

    /// Whether it is the first.
    pub(super) fn add_filter(&self, filter: &str) -> bool {
        let mut waiting = self.lock();
        let is_first = waiting.filters.is_empty();
        if !waiting.filters.contains(filter) {
            waiting.filters.insert(filter.to_owned());
        }
        is_first
    }

    pub(super) fn remove_filter(&self, filter: &str) {
        self.lock().filters.remove(filter);
    }

    pub(super) fn take_filters(&self) -> HashSet<String> {
        std::mem::take(&mut self.lock().filters)
    }

    /// A connection holds the session from now on.
    pub(crate) fn go_online(&self) {
        let mut waiting = self.lock();
        (waiting.end, waiting.receipts, waiting.is_told, waiting.unsent) = (None, false, false, 0);
        waiting.gives_way = false;
        self.is_online.store(true, Ordering::SeqCst);
        self.count(&mut waiting);
    }

    /// Its connection has gone. What is not queued for who is away goes with it. `unsent` is told for how many bytes there
    /// is room, and answers how many it keeps of what was on its way, and how many copies it drops.
    pub(crate) fn go_offline(&self, unsent: impl FnOnce(usize) -> (usize, u64)) {
        let mut waiting = self.lock();
        self.is_online.store(false, Ordering::SeqCst);
        self.holds(0);
        waiting.empty();
        waiting.queue.leave();
        let (room, limit) = if waiting.gives_way { (0, "pool") } else { self.away.room() };
        let (kept, dropped) = unsent(room);
        waiting.unsent = kept;
        count_dropped(limit, dropped + waiting.queue.shorten(room.saturating_sub(kept)));
        self.count(&mut waiting);
    }

    /// Nothing panics under this lock, so a poisoned one still holds a consistent value.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count_dropped(limit: &'static str, copies: u64) {
    if copies > 0 {
        metrics::counter!("millpond_gate_copies_dropped_total", "limit" => limit).increment(copies);
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.go_online();
    }
}

impl Subscriber for std::sync::Arc<Mailbox> {
    fn id(&self) -> u64 {
        self.id
    }

    fn is_online(&self) -> bool {
        self.is_online.load(Ordering::SeqCst)
    }
}

impl Mailbox {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    fn is_online(&self) -> bool {
        self.is_online.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::message::Message;
    use super::*;

    fn filled() -> Mailbox {
        let mailbox = Mailbox::new(1, Away::default());
        for _ in 0..3 {
            let message = Message::event("app/p/t".into(), Bytes::from_static(b"text"));
            let message = Arc::new(message);
            let copy = Mail { message, qos: 1, retain: false, replay: false, tags: vec![] };
            mailbox.put(copy);
        }
        mailbox.holds(100);
        mailbox
    }

    #[test]
    fn who_is_ended_to_make_room_leaves_nothing_behind_and_is_not_ended_twice() {
        let mailbox = filled();
        let held = 100 + mailbox.lock().queue.weight();
        assert_eq!(mailbox.holding(), Holding::Online(held));
        mailbox.overflow();
        assert_eq!(mailbox.holding(), Holding::Leaving(held));
        let mut room = None;
        mailbox.go_offline(|given| {
            room = Some(given);
            (0, 0)
        });
        assert_eq!((room, mailbox.holding()), (Some(0), Holding::Away));
        assert!(mailbox.lock().queue.is_empty());
        mailbox.go_online();
        assert_eq!(mailbox.holding(), Holding::Online(0));
    }

    #[test]
    fn a_session_that_is_over_holds_nothing_while_its_connection_says_goodbye() {
        let mailbox = filled();
        mailbox.end(EndReason::QueueFull);
        mailbox.close();
        assert_eq!(mailbox.holding(), Holding::Away);
        let waiting = mailbox.lock();
        assert_eq!((waiting.queue.len(), waiting.end), (0, Some(EndReason::QueueFull)));
    }
}

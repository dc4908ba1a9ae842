//! The hub: who gets which live message. State topics and events of the server, and the app topics of members, go one way.
//!
//! ```text
//!  connection ── PUBLISH ──▶ bus (rumqttd: one link in, one out) ──▶ fan-out ──▶ mailboxes ──▶ connections
//!  GateHandle ── state, event ──▶                                     │ trie, share groups, retained: of each pool
//!  connection ── SUBSCRIBE ───────────────────────────────────────────┘
//! ```
//!
//! **What is rumqttd's, and what is not.** rumqttd's router is the [bus](crate::bus): it puts the messages of all publishers
//! into one order and hands them to one reader, which is all that another broker in its place would have to do. Whom a
//! message goes to is decided here, because the router cannot say it as the standard does: it sends one copy for each
//! overlapping filter, at the subscription's QoS rather than the lower of both; knows no No Local, Retain As Published,
//! identifiers or `$share`; stalls on messages that expired; keeps 100 retained messages; never frees a topic, a filter or a
//! client id; and takes 27 KiB and more for each link, with a log that loses messages where a link is slow. So there is one
//! link for everybody, one fixed topic on it, and the subscriptions are a [`trie`].
//!
//! **What is never lost.** A publisher is acknowledged when its message is in the mailbox of every session that it is for.
//! The bus holds no more than the router's log keeps (`bus::IN_FLIGHT`), each message has a number, and should one be
//! missing all the same, its publisher is told to send again.
//!
//! **Who waits for whom.** Nobody waits for a subscriber: what it does not take waits in its [`queue`], and too much of it
//! ends its connection (0x97), or is dropped at QoS 0. But where more than half of those who get a message are behind, it
//! is the publisher that is faster than the machine, and its acknowledgements wait for them: [`PACE_MAX`] at most, and not
//! again for one that took nothing meanwhile.
//!
//! **Memory.** A message is in memory once, its payload shared by all who wait for it, and counts for its pool until the last
//! of them has it. A pool that has too much in memory loses those of its sessions that hold most: see `Pool::relieve`. A copy
//! is 48 bytes in a queue of at most `SESSION_QUEUE_MAX`. Nothing is kept of a topic or a filter that nobody holds.

mod away;
pub(crate) mod mailbox;
pub(crate) mod message;
mod pool;
mod pools;
mod queue;
mod retained;
pub(crate) mod trie;
pub(crate) mod turns;
mod waiting;
pub(crate) mod weight;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond_protocol::{PoolName, Refusal, app_topics, limits};
use tokio::sync::oneshot;

use self::away::{Away, AwayBytes};
use self::mailbox::Mailbox;
use self::message::Message;
use self::pools::Pools;
use self::retained::Retained;
use self::trie::Options;
use self::turns::{Turns, Work};
use self::weight::Sum;
use crate::bus::{Outbox, Publisher};
use crate::codec::packet::Replay;

/// How long a publisher waits for subscribers that are behind.
const PACE_MAX: Duration = Duration::from_millis(250);
/// How often it looks.
const PACE_STEP: Duration = Duration::from_millis(2);

/// Subscriptions and retained messages of all pools, and the way onto the bus.
#[derive(Debug)]
pub(crate) struct Hub {
    pools: Pools,
    ids: AtomicU64,
    /// Of every pool that had a session. Pools are made by who runs the server, so they are few.
    away: Mutex<HashMap<PoolName, Arc<AwayBytes>>>,
    outbox: Outbox,
    /// Bytes of messages on app topics that a pool may have in memory: configuration, known when the gate starts.
    pool_bytes_max: AtomicUsize,
    /// The answers that wait for all connections.
    answers: Arc<Sum>,
    turns: Turns,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            pools: Pools::default(),
            ids: AtomicU64::default(),
            away: Mutex::default(),
            outbox: Outbox::default(),
            pool_bytes_max: AtomicUsize::new(limits::APP_BYTES_PER_POOL),
            answers: Arc::default(),
            turns: Turns::default(),
        }
    }
}

/// What became of a message.
#[derive(Debug, Default)]
pub(crate) struct Fanned {
    /// Sessions that it is for.
    pub(crate) receivers: usize,
    /// Some of those who are behind, if most of those who got it are.
    pub(crate) behind: Vec<Arc<Mailbox>>,
}

impl Hub {
    /// A mailbox for a new session; `other` is one of another session of its member, if it has any.
    pub(crate) fn mailbox(&self, pool: &PoolName, other: Option<&Mailbox>) -> Arc<Mailbox> {
        let pool = lock(&self.away).entry(pool.clone()).or_default().clone();
        let member = other.map(Mailbox::away_of_member).unwrap_or_default();
        let id = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Mailbox::new(id, Away { pool, member }))
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub(crate) fn answers(&self) -> &Arc<Sum> {
        &self.answers
    }

    pub(crate) fn set_pool_bytes_max(&self, bytes_max: usize) {
        self.pool_bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Whether a connection to `pool` may subscribe to `filter` now; if not, it is to wait for its turn.
    pub(crate) fn may_subscribe(
        &self,
        pool: &PoolName,
        (filter, replay): (&str, Replay),
        work: &mut Work,
    ) -> bool {
        let (group, inner) = split(filter);
        let looks = replay != Replay::Never && group.is_none() && inner.contains(['+', '#']);
        let finds_soon = || self.pools.with(pool.as_str(), |pool| pool.retained.finds_soon(inner));
        work.may_go_on(&self.turns, pool, || !looks || finds_soon())
    }

    /// Somebody of `pool` who has used up what is free, and has a place in line.
    #[cfg(test)]
    pub(crate) fn in_line(&self, pool: &PoolName) -> Work {
        let mut work = Work::default();
        work.has_spent(Duration::from_secs(1));
        assert!(!self.may_subscribe(pool, ("x", Replay::Never), &mut work));
        work
    }

    /// Adds or replaces a subscription, and leaves the retained messages that are wanted in the mailbox.
    pub(crate) fn subscribe(
        &self,
        pool: &PoolName,
        mailbox: &Arc<Mailbox>,
        filter: &str,
        options: Options,
        replay: Replay,
        work: &mut Work,
    ) {
        let is_first = mailbox.add_filter(filter);
        // The wait for the pool is nobody's work.
        let (wakes, spent) = self.pools.with(pool.as_str(), |pool| {
            let begun = Instant::now();
            (pool.subscribe(mailbox, is_first, split(filter), options, replay), begun.elapsed())
        });
        work.has_spent(spent);
        if wakes {
            mailbox.wake();
        }
    }

    pub(crate) fn unsubscribe(&self, pool: &PoolName, mailbox: &Arc<Mailbox>, filter: &str) {
        mailbox.remove_filter(filter);
        self.remove(pool, mailbox.id(), std::iter::once(filter));
    }

    /// The session is over.
    pub(crate) fn forget(&self, pool: &PoolName, mailbox: &Mailbox) {
        mailbox.close();
        let filters = mailbox.take_filters();
        if !filters.is_empty() {
            self.remove(pool, mailbox.id(), filters.iter().map(|filter| &**filter));
        }
    }

    fn remove<'a>(&self, pool: &PoolName, mailbox: u64, filters: impl Iterator<Item = &'a str>) {
        self.pools.lessen(pool.as_str(), |pool| {
            for filter in filters {
                let (group, inner) = split(filter);
                pool.trie.remove(group, inner, mailbox);
            }
        });
    }

    /// Forgets what a pool retains.
    pub(crate) fn forget_retained(&self, pool: &PoolName) {
        self.pools.lessen(pool.as_str(), |pool| pool.retained = Retained::default());
    }

    /// Puts a message of the session with that mailbox in line. The call takes the place; the future resolves when it is in
    /// the mailbox of everybody whom it is for, and they are not behind.
    pub(crate) fn publish(
        &self,
        message: Message,
        from: &Arc<Mailbox>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        let (told, fanned) = oneshot::channel();
        self.outbox.message(message, Some(Publisher { mailbox: from.clone(), told }));
        async move {
            let gone = || Refusal::unavailable("the server is about to restart");
            let fanned: Fanned = fanned.await.map_err(|_| gone())??;
            pace(&fanned.behind).await;
            Ok(())
        }
    }

    /// Fans a message out that came off the bus. `woken` gathers who is to be woken.
    pub(crate) fn deliver(
        &self,
        message: Message,
        now: Instant,
        woken: &mut Vec<Arc<Mailbox>>,
    ) -> Result<Fanned, Refusal> {
        let (name, bytes_max) = (message.pool().to_owned(), self.pool_bytes_max.load(Ordering::Relaxed));
        self.pools.with(&name, |pool| pool.deliver(message, bytes_max, now, woken))
    }
}

/// Waits until half of them are not behind any more, for a while.
async fn pace(behind: &[Arc<Mailbox>]) {
    let begun: Vec<u64> = behind.iter().map(|mailbox| mailbox.taken()).collect();
    let until = Instant::now() + PACE_MAX;
    while behind.iter().filter(|mailbox| mailbox.is_behind()).count() * 2 > behind.len() {
        if Instant::now() >= until {
            behind.iter().zip(begun).for_each(|(mailbox, taken)| mailbox.give_up(taken));
            return;
        }
        tokio::time::sleep(PACE_STEP).await;
    }
}

/// The share group, if it is a shared subscription, and the filter.
fn split(filter: &str) -> (Option<&str>, &str) {
    match app_topics::shared(filter) {
        Some((group, inner)) => (Some(group), inner),
        None => (None, filter),
    }
}

/// Nothing panics under these locks, so a poisoned one still holds a consistent value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes everybody in `woken`.
pub(crate) fn wake(woken: &mut Vec<Arc<Mailbox>>) {
    for mailbox in woken.drain(..) {
        mailbox.wake();
    }
}

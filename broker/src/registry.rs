//! Sessions: who is connected, and what of those who are not is kept until they come back or their time is over.
//!
//! A session is (pool, member, client id). It holds its mailbox for as long as it lives; its connection, if it has one,
//! holds the rest, and hands it back when it leaves. A connection with the id of another ends that one and waits until it
//! has left: two never write for one session.
//!
//! ```text
//!        register ──▶ connected ──leave, expiry 0──▶ (gone)
//!            ▲            │ leave
//!            └── away ◀───┘
//!                 └── its time is over, revoked, or a clean start ──▶ (gone)
//! ```

mod away;
mod drain;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond_net::{Full, Place, Places};
use millpond_protocol::{MemberName, PoolName, Principal, limits};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::backend::MemberMessage;
use crate::hub::Hub;
use crate::hub::mailbox::Mailbox;
use crate::hub::message::Message;
use crate::session::Kept;

use self::away::{Due, Judged};

/// Why the gate ends a connection from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The member was revoked or removed, or its role changed.
    Revoked,
    /// The same client id signed in again.
    TakenOver,
    /// More was queued to it than it may hold.
    QueueFull,
    /// The coordinator lost sight of what this session was told: signing in again makes that good.
    Behind,
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    hub: Arc<Hub>,
    members: Mutex<Members>,
    next: AtomicU64,
    count: AtomicUsize,
    endings: AtomicU64,
    /// Held by the one connection that leaves, of those whose clients have gone.
    pub(crate) parting: tokio::sync::Mutex<()>,
    /// Something is due earlier than before.
    earlier: Notify,
}

type Key = (PoolName, MemberName);

#[derive(Debug, Default)]
struct Members {
    entries: HashMap<Key, Vec<Entry>>,
    /// Of the connections that have ended and see through what their clients had sent.
    draining: HashMap<Key, Vec<Arc<Mailbox>>>,
    /// When something of a session that is away is due.
    due: Due,
}

#[derive(Debug)]
struct Entry {
    client_id: String,
    who: Principal,
    mailbox: Arc<Mailbox>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Held by the connection of that number, which cancels the token when it has left.
    Connected(u64, CancellationToken),
    /// Waiting for its client since the connection of that number left. `_judged`: where a certificate signed it in.
    Away {
        id: u64,
        kept: Box<Kept>,
        expires: Instant,
        will: Option<(Instant, Box<Message>)>,
        _judged: Option<Judged>,
    },
}

/// How a client wants its session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) client_id: &'a str,
    /// Nothing of an earlier session.
    pub(crate) clean: bool,
    /// Connections that the member may have.
    pub(crate) connections_max: usize,
    /// Those that all may have, and where this one comes from.
    pub(crate) places: &'a Places,
    pub(crate) from: IpAddr,
    /// What [`Registry::endings`] said before its credentials were checked.
    pub(crate) endings: u64,
    /// The connection that held it did not leave in time: do without what it holds.
    pub(crate) force: bool,
}

/// Why a connection could not be registered.
#[derive(Debug, Clone)]
pub(crate) enum NotRegistered {
    /// The member has as many connections, or sessions, as it may have.
    TooMany,
    /// All, or those of its address, have as many connections as they may have.
    Full(Full),
    /// Members were ended since the credentials were checked: check them again.
    CheckAgain,
    /// Another connection holds the session, and was ended: try again when it has left.
    Held(CancellationToken),
}

/// What a session was when its connection left.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// How long it is kept; zero: it is over.
    pub(crate) expiry: Duration,
    pub(crate) kept: Kept,
    /// The will, and after how long it is published.
    pub(crate) will: Option<(Duration, Box<Message>)>,
}

/// A session that a connection has taken.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) registration: Registration,
    /// What was kept of it.
    pub(crate) kept: Option<Kept>,
    /// Whose session of that client id has ended by it.
    pub(crate) discarded: Option<Principal>,
}

/// A session that a connection holds; given up when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    key: Key,
    id: u64,
    left: CancellationToken,
    pub(crate) client_id: String,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Given up before others hear that it has left: one of them may need it.
    place: Option<Place>,
}

impl Registry {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub, ..Self::default() }
    }

    /// Counts the calls that ended members. A sign-in that saw a lower number before its check must check again.
    pub(crate) fn endings(&self) -> u64 {
        self.endings.load(Ordering::SeqCst)
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes the session of (pool, member, client id), with what was kept of it, or begins one.
    pub(crate) fn register(
        self: &Arc<Self>,
        who: &Principal,
        wish: Wish<'_>,
    ) -> Result<Registered, NotRegistered> {
        let key = (who.pool.clone(), who.name.clone());
        let mut members = lock(&self.members);
        if self.endings() != wish.endings {
            return Err(NotRegistered::CheckAgain);
        }
        let Members { entries: all, due, .. } = &mut *members;
        let entries = all.entry(key.clone()).or_default();
        let held = entries.iter().position(|entry| entry.client_id == wish.client_id);
        if let Some(at) = held
            && let State::Connected(_, left) = &entries[at].state
        {
            entries[at].mailbox.end(EndReason::TakenOver);
            if !wish.force {
                return Err(NotRegistered::Held(left.clone()));
            }
        }
        let is_connected = |entry: &&Entry| matches!(entry.state, State::Connected(..));
        let others = entries.iter().filter(|entry| entry.client_id != wish.client_id);
        if others.clone().filter(is_connected).count() >= wish.connections_max
            || others.count() >= limits::SESSIONS_PER_MEMBER.max(wish.connections_max)
        {
            return Err(NotRegistered::TooMany);
        }
        let place = match wish.places.try_take(wish.from) {
            Ok(place) => place,
            Err(full) => {
                if entries.is_empty() {
                    all.remove(&key);
                }
                return Err(NotRegistered::Full(full));
            }
        };
        let (mut resumed, mut discarded) = (None, None);
        if let Some(at) = held {
            let entry = entries.swap_remove(at);
            entry.is_not_due(&key, due);
            if let State::Away { kept, expires, will, .. } = entry.state {
                let is_over = wish.clean || entry.who != *who || expires <= Instant::now();
                if is_over {
                    // Its session ends here, and with it the delay of its will.
                    if let Some((_, will)) = will {
                        self.publish(*will);
                    }
                    self.hub.forget(&key.0, &entry.mailbox);
                    discarded = Some(entry.who);
                } else {
                    resumed = Some((entry.mailbox, *kept));
                }
            } else {
                self.hub.forget(&key.0, &entry.mailbox);
                discarded = Some(entry.who);
            }
        }
        let (mailbox, kept) = match resumed {
            Some((mailbox, kept)) => (mailbox, Some(kept)),
            None => {
                let other = entries.first().map(|entry| &*entry.mailbox);
                (self.hub.mailbox(&key.0, other), None)
            }
        };
        mailbox.go_online();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (client_id, left) = (wish.client_id.to_owned(), CancellationToken::new());
        let state = State::Connected(id, left.clone());
        entries.push(Entry {
            client_id: client_id.clone(),
            who: who.clone(),
            mailbox: mailbox.clone(),
            state,
        });
        drop(members);
        self.count.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!("millpond_gate_connections").increment(1);
        let registration =
            Registration { registry: self.clone(), key, id, left, client_id, mailbox, place: Some(place) };
        Ok(Registered { registration, kept, discarded })
    }

    pub(crate) fn send(
        &self,
        pool: &PoolName,
        member: &MemberName,
        message: &MemberMessage,
        bytes_max: usize,
    ) {
        self.each(pool, member, |mailbox| mailbox.push(message.clone(), bytes_max));
    }

    pub(crate) fn receipts_ready(&self, pool: &PoolName, member: &MemberName) {
        self.each(pool, member, Mailbox::receipts_ready);
    }

    /// Ends the connections of a member, and its sessions if it was revoked.
    pub(crate) fn end(&self, pool: &PoolName, member: &MemberName, reason: EndReason) {
        let key = (pool.clone(), member.clone());
        // Under the lock: whoever registers afterwards sees the new number.
        let mut members = lock(&self.members);
        self.endings.fetch_add(1, Ordering::SeqCst);
        let Members { entries: all, due, draining } = &mut *members;
        if reason == EndReason::Revoked {
            draining.get(&key).into_iter().flatten().for_each(|mailbox| mailbox.end(reason));
        }
        let Some(entries) = all.get_mut(&key) else { return };
        for entry in entries.iter() {
            entry.mailbox.end(reason);
        }
        if reason == EndReason::Revoked {
            entries.retain(|entry| {
                let stays = matches!(entry.state, State::Connected(..));
                if !stays {
                    entry.is_not_due(&key, due);
                    self.hub.forget(pool, &entry.mailbox);
                }
                stays
            });
            if entries.is_empty() {
                all.remove(&key);
            }
        }
    }

    pub(crate) fn end_all(&self, reason: EndReason) {
        let members = lock(&self.members);
        self.endings.fetch_add(1, Ordering::SeqCst);
        for entry in members.entries.values().flatten() {
            entry.mailbox.end(reason);
        }
    }

    fn each(&self, pool: &PoolName, member: &MemberName, apply: impl Fn(&Mailbox)) {
        let members = lock(&self.members);
        for entry in members.entries.get(&(pool.clone(), member.clone())).into_iter().flatten() {
            if matches!(entry.state, State::Connected(..)) {
                apply(&entry.mailbox);
            }
        }
    }

    fn publish(&self, will: Message) {
        metrics::counter!("millpond_gate_wills_total").increment(1);
        self.hub.outbox().message(will, None);
    }
}

impl Registration {
    /// The connection has ended. `judged`: what judges the session if it is kept. `tell` hears whether it is, before anybody
    /// else can take it: what its next connection says of it comes after that. Nobody hears of one that is another's by now.
    pub(crate) fn leave(self, leaving: Leaving, judged: &mut Option<Judged>, tell: impl FnOnce(bool)) {
        let now = Instant::now();
        let mut members = lock(&self.registry.members);
        let Members { entries, due, .. } = &mut *members;
        let is_own = |entry: &&mut Entry| matches!(entry.state, State::Connected(id, _) if id == self.id);
        let entry = entries.get_mut(&self.key).and_then(|entries| entries.iter_mut().find(is_own));
        let Some(entry) = entry else { return };
        let Leaving { mut expiry, mut kept, mut will } = leaving;
        // Perhaps after the connection listened last.
        if self.mailbox.is_revoked() {
            (expiry, will) = (Duration::ZERO, None);
        }
        let will = will.and_then(|(delay, will)| {
            if delay.is_zero() || expiry.is_zero() {
                self.registry.publish(*will);
                return None;
            }
            Some((now + delay.min(expiry), will))
        });
        tell(!expiry.is_zero());
        // Otherwise the drop does the rest.
        if expiry.is_zero() {
            return;
        }
        entry.mailbox.go_offline(|room| kept.shorten(room));
        let (id, _judged) = (self.id, judged.take());
        entry.state = State::Away { id, kept: Box::new(kept), expires: now + expiry, will, _judged };
        due.extend(entry.due().map(|at| (at, self.key.clone(), self.client_id.clone())));
        drop(members);
        self.registry.earlier.notify_one();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut members = lock(&self.registry.members);
        if let Some(entries) = members.entries.get_mut(&self.key) {
            let is_own = |entry: &Entry| matches!(entry.state, State::Connected(id, _) if id == self.id);
            if let Some(at) = entries.iter().position(is_own) {
                let entry = entries.swap_remove(at);
                self.registry.hub.forget(&self.key.0, &entry.mailbox);
            }
            if entries.is_empty() {
                members.entries.remove(&self.key);
            }
        }
        drop(members);
        self.place = None;
        self.left.cancel();
        self.registry.count.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("millpond_gate_connections").decrement(1);
    }
}

/// Nothing panics while it holds this lock, so a poisoned one still holds a consistent value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

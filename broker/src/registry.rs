//! Who is connected: the one place that knows the mailbox of every connection, by member.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millpond_protocol::{MemberName, PoolName};
use tokio::sync::Notify;

use crate::backend::MemberMessage;

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

/// What waits for one connection's task. Bounded by bytes; what does not fit ends the connection.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    inner: Mutex<Waiting>,
    notify: Notify,
}

/// The content of a [`Mailbox`].
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) messages: VecDeque<MemberMessage>,
    pub(crate) receipts: bool,
    pub(crate) end: Option<EndReason>,
    bytes: usize,
}

impl Mailbox {
    /// Waits until there is something, and takes all of it. Safe to cancel.
    pub(crate) async fn take(&self) -> Waiting {
        loop {
            let notified = self.notify.notified();
            {
                let mut waiting = lock(&self.inner);
                if !waiting.messages.is_empty() || waiting.receipts || waiting.end.is_some() {
                    return std::mem::take(&mut waiting);
                }
            }
            notified.await;
        }
    }

    fn push(&self, message: MemberMessage, bytes_max: usize) {
        let mut waiting = lock(&self.inner);
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

    fn receipts_ready(&self) {
        lock(&self.inner).receipts = true;
        self.notify.notify_one();
    }

    fn end(&self, reason: EndReason) {
        lock(&self.inner).end.get_or_insert(reason);
        self.notify.notify_one();
    }
}

/// All connections that have signed in.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    members: Mutex<HashMap<(PoolName, MemberName), Vec<Entry>>>,
    next: AtomicU64,
    count: AtomicUsize,
    endings: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    client_id: String,
    mailbox: Arc<Mailbox>,
}

/// Why a connection could not be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotRegistered {
    /// The member has as many connections as it may have.
    TooMany,
    /// Members were ended since the credentials were checked: check them again.
    CheckAgain,
}

/// A place in the [`Registry`], given up when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    key: (PoolName, MemberName),
    id: u64,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Registry {
    /// Changes whenever members are ended. Read before credentials are checked and handed to [`Registry::register`], it
    /// keeps a revocation from slipping between the two.
    pub(crate) fn endings(&self) -> u64 {
        self.endings.load(Ordering::SeqCst)
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes the place of (pool, member, client id), and ends whoever held it.
    pub(crate) fn register(
        self: &Arc<Self>,
        pool: &PoolName,
        member: &MemberName,
        client_id: &str,
        endings: u64,
        max: usize,
    ) -> Result<Registration, NotRegistered> {
        let key = (pool.clone(), member.clone());
        let mut members = lock(&self.members);
        if self.endings() != endings {
            return Err(NotRegistered::CheckAgain);
        }
        let entries = members.entry(key.clone()).or_default();
        if let Some(at) = entries.iter().position(|entry| entry.client_id == client_id) {
            entries.swap_remove(at).mailbox.end(EndReason::TakenOver);
        } else if entries.len() >= max {
            return Err(NotRegistered::TooMany);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::<Mailbox>::default();
        entries.push(Entry { id, client_id: client_id.to_owned(), mailbox: mailbox.clone() });
        drop(members);
        self.count.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!("millpond_gate_connections").increment(1);
        Ok(Registration { registry: self.clone(), key, id, mailbox })
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

    pub(crate) fn end(&self, pool: &PoolName, member: &MemberName, reason: EndReason) {
        // Under the lock: whoever registers afterwards sees the new number.
        let members = lock(&self.members);
        self.endings.fetch_add(1, Ordering::SeqCst);
        for entry in members.get(&(pool.clone(), member.clone())).into_iter().flatten() {
            entry.mailbox.end(reason);
        }
    }

    pub(crate) fn end_all(&self, reason: EndReason) {
        let members = lock(&self.members);
        self.endings.fetch_add(1, Ordering::SeqCst);
        for entry in members.values().flatten() {
            entry.mailbox.end(reason);
        }
    }

    fn each(&self, pool: &PoolName, member: &MemberName, apply: impl Fn(&Mailbox)) {
        let members = lock(&self.members);
        for entry in members.get(&(pool.clone(), member.clone())).into_iter().flatten() {
            apply(&entry.mailbox);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut members = lock(&self.registry.members);
        if let Some(entries) = members.get_mut(&self.key) {
            entries.retain(|entry| entry.id != self.id);
            if entries.is_empty() {
                members.remove(&self.key);
            }
        }
        drop(members);
        self.registry.count.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("millpond_gate_connections").decrement(1);
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one still holds a consistent value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

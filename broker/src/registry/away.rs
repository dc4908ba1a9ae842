//! Sessions without a connection: how they come back after a restart, what is due of them, and the certificates that
//! signed them in.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::future::BoxFuture;
use millpond_protocol::Principal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{EndReason, Entry, Key, Members, Registration, Registry, State, lock};
use crate::backend::KeptSession;
use crate::codec::packet::Replay;
use crate::hub::mailbox::Mailbox;
use crate::hub::trie::Options;
use crate::hub::turns::Work;
use crate::session::Kept;

/// The task that waits for the certificate of a session to be taken back.
pub(crate) type Judged = AbortOnDropHandle<()>;

/// When something of a session that is away is due.
pub(super) type Due = BTreeSet<(Instant, Key, String)>;

impl Entry {
    /// When something of it is due: its end, and its will before that.
    pub(super) fn due(&self) -> impl Iterator<Item = Instant> + use<> {
        let (will, end) = match &self.state {
            State::Connected(..) => (None, None),
            State::Away { expires, will, .. } => (will.as_ref().map(|(at, _)| *at), Some(*expires)),
        };
        will.into_iter().chain(end)
    }

    /// Nothing of it is due any more.
    pub(super) fn is_not_due(&self, key: &Key, due: &mut Due) {
        for at in self.due() {
            due.remove(&(at, key.clone(), self.client_id.clone()));
        }
    }
}

impl Registration {
    /// Ends the session when `lost` resolves, also behind [`Registration::leave`], for as long as the answer is held.
    pub(crate) fn judge(&self, lost: BoxFuture<'static, ()>) -> Judged {
        self.registry.judge(self.key.clone(), self.mailbox.clone(), self.id, lost)
    }
}

impl Registry {
    /// Brings back a session of an earlier run. `lost`: when the certificate that signed it in was taken back.
    pub(crate) fn restore(
        self: &Arc<Self>,
        who: &Principal,
        session: KeptSession,
        lost: Option<BoxFuture<'static, ()>>,
    ) {
        let key = (who.pool.clone(), who.name.clone());
        let KeptSession { client_id, expiry, subscriptions, .. } = session;
        let members = lock(&self.members);
        let other = members.entries.get(&key).and_then(|entries| entries.first());
        let mailbox = self.hub.mailbox(&key.0, other.map(|entry| &*entry.mailbox));
        drop(members);
        mailbox.go_offline(|_| (0, 0));
        for held in &subscriptions {
            let options = Options::of(held);
            self.hub.subscribe(&key.0, &mailbox, &held.filter, options, Replay::Never, &mut Work::default());
        }
        let expires = Instant::now() + expiry;
        let kept = Box::new(Kept::of(subscriptions));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        // Under the lock, so that the session is there when it is judged.
        let mut members = lock(&self.members);
        let _judged = lost.map(|lost| self.judge(key.clone(), mailbox.clone(), id, lost));
        let state = State::Away { id, kept, expires, will: None, _judged };
        members.due.insert((expires, key.clone(), client_id.clone()));
        members.entries.entry(key).or_default().push(Entry { client_id, who: who.clone(), mailbox, state });
        drop(members);
        self.earlier.notify_one();
    }

    /// Ends the session that the connection of that number began or left when `lost` resolves, while the answer is held.
    fn judge(
        self: &Arc<Self>,
        key: Key,
        mailbox: Arc<Mailbox>,
        id: u64,
        lost: BoxFuture<'static, ()>,
    ) -> Judged {
        let registry = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            lost.await;
            registry.lose(&key, &mailbox, id);
        }))
    }

    /// The certificate of the connection of that number was taken back: ends the session, if it is still its.
    pub(super) fn lose(&self, key: &Key, mailbox: &Arc<Mailbox>, id: u64) {
        let mut members = lock(&self.members);
        let Members { entries, due, .. } = &mut *members;
        let mut entries = entries.get_mut(key).into_iter().flatten();
        let entry = entries.find(|entry| Arc::ptr_eq(&entry.mailbox, mailbox));
        if let Some(entry) = entry {
            let (State::Connected(of, _) | State::Away { id: of, .. }) = &entry.state;
            // Somebody has taken it up with another credential.
            if *of != id {
                return;
            }
            entry.is_not_due(key, due);
            if let State::Away { expires, will, .. } = &mut entry.state {
                (*expires, *will) = (Instant::now(), None);
            }
            due.extend(entry.due().map(|at| (at, key.clone(), entry.client_id.clone())));
        }
        // Also of a session that is over: what its client had sent may be undecided.
        mailbox.end(EndReason::Revoked);
        drop(members);
        self.earlier.notify_one();
    }

    /// Publishes wills and ends sessions when they are due. `ended` hears of each session that is over.
    pub(crate) async fn run(&self, stop: &CancellationToken, ended: impl Fn(&Principal, &str)) {
        loop {
            let earlier = self.earlier.notified();
            let next = lock(&self.members).due.first().map(|(at, ..)| *at);
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = earlier => {}
                () = due => self.turn(Instant::now(), &ended),
            }
        }
    }

    fn turn(&self, now: Instant, ended: &impl Fn(&Principal, &str)) {
        let mut members = lock(&self.members);
        while let Some((at, key, client_id)) = members.due.pop_first() {
            if at > now {
                members.due.insert((at, key, client_id));
                return;
            }
            let Some(entries) = members.entries.get_mut(&key) else { continue };
            let Some(n) = entries.iter().position(|entry| entry.client_id == client_id) else { continue };
            let State::Away { expires, will, .. } = &mut entries[n].state else { continue };
            let expires = *expires;
            if let Some((_, will)) = will.take_if(|(at, _)| *at <= now) {
                self.publish(*will);
            }
            if expires <= now {
                let entry = entries.swap_remove(n);
                self.hub.forget(&key.0, &entry.mailbox);
                ended(&entry.who, &entry.client_id);
                if entries.is_empty() {
                    members.entries.remove(&key);
                }
            }
        }
    }
}

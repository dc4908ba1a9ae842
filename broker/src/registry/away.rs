//! Sessions without a connection: how they come back after a restart, and what is due of them.

use std::collections::BTreeSet;
use std::time::Instant;

use millpond_protocol::Principal;
use tokio_util::sync::CancellationToken;

use super::{Entry, Key, Registry, State, lock};
use crate::backend::KeptSession;
use crate::codec::packet::Replay;
use crate::hub::trie::Options;
use crate::hub::turns::Work;
use crate::session::Kept;

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

impl Registry {
    /// Brings back a session of an earlier run.
    pub(crate) fn restore(&self, who: &Principal, session: KeptSession) {
        let key = (who.pool.clone(), who.name.clone());
        let KeptSession { client_id, expiry, subscriptions } = session;
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
        let state = State::Away { kept, expires, will: None };
        let mut members = lock(&self.members);
        members.due.insert((expires, key.clone(), client_id.clone()));
        members.entries.entry(key).or_default().push(Entry { client_id, who: who.clone(), mailbox, state });
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

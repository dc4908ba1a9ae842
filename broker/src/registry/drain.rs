//! What a client had sent when its connection ended is seen through, but not beyond a revocation.

use std::sync::Arc;

use super::{Key, Registration, Registry, lock};
use crate::hub::mailbox::Mailbox;

/// Held by a connection that has ended, and for as long as something that its client sent is undecided: it hears of a
/// revocation, though its session may be over, or another connection's.
#[derive(Debug)]
pub(crate) struct Drain {
    registry: Arc<Registry>,
    key: Key,
    mailbox: Arc<Mailbox>,
}

impl Registration {
    /// To be called before it leaves, so that no revocation comes in between.
    pub(crate) fn drain(&self) -> Drain {
        let (registry, key, mailbox) = (self.registry.clone(), self.key.clone(), self.mailbox.clone());
        lock(&registry.members).draining.entry(key.clone()).or_default().push(mailbox.clone());
        Drain { registry, key, mailbox }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let mut members = lock(&self.registry.members);
        if let Some(draining) = members.draining.get_mut(&self.key) {
            // One, where several connections of a session have ended one after the other.
            if let Some(at) = draining.iter().position(|held| Arc::ptr_eq(held, &self.mailbox)) {
                draining.swap_remove(at);
            }
            if draining.is_empty() {
                members.draining.remove(&self.key);
            }
        }
    }
}

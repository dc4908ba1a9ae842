//! All pools, each under a lock of its own: whoever waits for one keeps nobody from another.
//!
//! The map is locked for a look-up alone. So a pool may be found that is given up before it is locked: it says so then, and
//! who found it begins another in its place.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::pool::Pool;

/// The pools, by name.
#[derive(Debug, Default)]
pub(super) struct Pools(Mutex<HashMap<String, Arc<Slot>>>);

/// `None`: it was given up.
type Slot = Mutex<Option<Pool>>;

impl Pools {
    /// Works on a pool, which begins with that if it is not there.
    pub(super) fn with<R>(&self, name: &str, work: impl FnOnce(&mut Pool) -> R) -> R {
        loop {
            let slot = self.find(name).unwrap_or_else(|| self.begin(name));
            let mut held = slot.lock();
            if let Some(pool) = &mut *held {
                let worked = work(pool);
                // To whoever waits longest: a flood of subscriptions could keep the fan-out from it otherwise.
                MutexGuard::unlock_fair(held);
                return worked;
            }
            drop(held);
            self.take_out(name, &slot);
        }
    }

    /// Takes something away from a pool that is there, and gives it up if nothing is left.
    pub(super) fn lessen(&self, name: &str, work: impl FnOnce(&mut Pool)) {
        while let Some(slot) = self.find(name) {
            let mut held = slot.lock();
            if let Some(pool) = &mut *held {
                work(pool);
                if !pool.is_empty() {
                    return MutexGuard::unlock_fair(held);
                }
                *held = None;
                drop(held);
                return self.take_out(name, &slot);
            }
            drop(held);
            self.take_out(name, &slot);
        }
    }

    fn find(&self, name: &str) -> Option<Arc<Slot>> {
        self.0.lock().get(name).cloned()
    }

    fn begin(&self, name: &str) -> Arc<Slot> {
        self.0
            .lock()
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Mutex::new(Some(Pool::default()))))
            .clone()
    }

    /// Takes one out that was given up, unless another has its name by now.
    fn take_out(&self, name: &str, slot: &Arc<Slot>) {
        let mut pools = self.0.lock();
        if pools.get(name).is_some_and(|held| Arc::ptr_eq(held, slot)) {
            pools.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::super::trie::Options;
    use super::*;
    use crate::hub::away::Away;
    use crate::hub::mailbox::Mailbox;

    fn subscribe(pool: &mut Pool) {
        let mailbox = Arc::new(Mailbox::new(1, Away::default()));
        pool.trie.insert(None, "app/p/x", mailbox, Options::default());
    }

    #[test]
    fn whoever_waits_for_one_pool_keeps_nobody_from_another() {
        let pools = Pools::default();
        std::thread::scope(|scope| {
            let (finish, finished) = mpsc::channel::<()>();
            let (begin, begun) = mpsc::channel();
            let pools = &pools;
            scope.spawn(move || pools.with("busy", |_| (begin.send(()).unwrap(), finished.recv())));
            begun.recv().unwrap();
            let slot = pools.find("busy").unwrap();
            let holders = Arc::strong_count(&slot);
            scope.spawn(|| pools.with("busy", |_| ()));
            // It has found the pool, and has nothing left to do but to wait.
            while Arc::strong_count(&slot) == holders {
                std::thread::yield_now();
            }
            let (done, is_done) = mpsc::channel();
            scope.spawn(move || pools.with("other", |_| done.send(())));
            let other = is_done.recv_timeout(Duration::from_secs(5));
            finish.send(()).unwrap();
            other.expect("who works on one pool waits for another");
        });
    }

    #[test]
    fn a_pool_that_nothing_is_left_of_is_given_up_and_who_had_found_it_begins_another() {
        let pools = Pools::default();
        pools.with("p", subscribe);
        let found = pools.find("p").unwrap();
        pools.lessen("p", |pool| pool.trie.remove(None, "app/p/x", 1));
        assert!(pools.find("p").is_none() && found.lock().is_none());
        // As if it had been found before and is there still.
        pools.0.lock().insert("p".into(), found);
        pools.with("p", subscribe);
        assert!(!pools.find("p").unwrap().lock().as_ref().unwrap().is_empty());
        pools.lessen("p", |_| ());
        assert!(pools.find("p").is_some(), "somebody subscribes there");
    }
}

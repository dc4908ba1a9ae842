//! Places for event streams, shared out among pools: nobody's operators shut out those of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ledger::PoolId;

/// The event streams that are open, by pool.
pub(super) struct Streams {
    max: usize,
    open: Mutex<HashMap<PoolId, usize>>,
}

/// A place that is taken; dropping it gives it back.
pub(super) struct Place {
    streams: Arc<Streams>,
    pool: PoolId,
}

impl Streams {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, open: Mutex::default() })
    }

    /// A place, while the pool has fewer than are free: so one pool has half of them at the most, and another finds some.
    pub(super) fn place(self: &Arc<Self>, pool: PoolId) -> Option<Place> {
        let mut open = self.open();
        let free = self.max.saturating_sub(open.values().sum());
        let of_pool = open.get(&pool).copied().unwrap_or_default();
        if of_pool >= free {
            return None;
        }
        open.insert(pool, of_pool + 1);
        Some(Place { streams: self.clone(), pool })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<PoolId, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open();
        if let Some(of_pool) = open.get_mut(&self.pool) {
            *of_pool -= 1;
            if *of_pool == 0 {
                open.remove(&self.pool);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_opens_what_it_can_leaves_places_to_others() {
        let streams = Streams::new(100);
        let all = |pool| std::iter::from_fn(|| streams.place(pool)).collect::<Vec<_>>();
        let (first, second, third) = (all(1), all(2), all(3));
        assert_eq!([first.len(), second.len(), third.len()], [50, 25, 13]);
        drop((first, second));
        assert_eq!(all(4).len(), 44);
        drop(third);
        assert!(streams.open().keys().all(|pool| *pool == 4) && Streams::new(1).place(1).is_some());
    }
}

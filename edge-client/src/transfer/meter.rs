//! What shows how far a transfer is.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Show = Box<dyn Fn(u64, u64) + Send + Sync>;
type Make = Arc<dyn Fn(&str, u64) -> Meter + Send + Sync>;

/// Counts the bytes of one transfer and tells somebody. A repeated attempt takes back what it sends again.
pub struct Meter {
    done: AtomicU64,
    moved: AtomicU64,
    total: u64,
    show: Option<Show>,
}

impl Meter {
    /// Calls `show(done, total)` as bytes move. It runs on the transfer's task: it must be quick.
    pub fn new(total: u64, show: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self { done: AtomicU64::new(0), moved: AtomicU64::new(0), total, show: Some(Box::new(show)) }
    }

    /// Tells nobody.
    pub fn silent() -> Self {
        Self { done: AtomicU64::new(0), moved: AtomicU64::new(0), total: 0, show: None }
    }

    /// Bytes so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Counts whatever moves, also what has to be sent again: it only says that something does.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub(super) fn moves(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.show(done);
    }

    pub(crate) fn take_back(&self, bytes: u64) {
        let before = self.done.fetch_sub(bytes, Ordering::Relaxed);
        self.show(before.saturating_sub(bytes));
    }

    fn show(&self, done: u64) {
        if let Some(show) = &self.show {
            show(done, self.total);
        }
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("done", &self.done).field("total", &self.total).finish_non_exhaustive()
    }
}

/// Makes the meter of each transfer, from the name and the size of its file.
#[derive(Clone)]
pub struct Meters(Make);

impl Meters {
    /// Calls `meter(name, size)` when a transfer begins.
    pub fn new(meter: impl Fn(&str, u64) -> Meter + Send + Sync + 'static) -> Self {
        Self(Arc::new(meter))
    }

    pub(crate) fn meter(&self, name: &str, size: u64) -> Meter {
        (self.0)(name, size)
    }
}

impl Default for Meters {
    /// Tells nobody.
    fn default() -> Self {
        Self::new(|_, _| Meter::silent())
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meters")
    }
}

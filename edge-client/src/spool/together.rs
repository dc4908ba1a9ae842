//! The same for many files, by several threads: what the disk takes its time for goes on side by side.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::SpoolError;

/// Files that are worked on at the same time. A file system with a journal commits once for all that wait to be synced, so that
/// thousands of files take hundreds of commits; one that tells its disk of every block that becomes free does so for several files
/// that are removed, and on a busy machine each waits for milliseconds.
const AT_ONCE: usize = 32;

/// Does it to each. After an error some others are done still.
pub(super) fn each<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), SpoolError> + Sync,
) -> Result<(), SpoolError> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        // This thread is one of them; where the system gives no more, it does it alone.
        let others = 1..items.len().min(AT_ONCE);
        let others: Vec<_> =
            others.map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let ours = work();
        let others = others.into_iter().map(|other| other.join().expect("work on a file does not panic"));
        others.fold(ours, Result::and)
    })
}

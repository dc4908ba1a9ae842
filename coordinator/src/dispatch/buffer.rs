//! Large buffers that go back to the system when they are dropped.
//!
//! glibc's allocator keeps freed memory of up to 32 MiB for the thread's next request, and packs are built on whichever
//! blocking thread is free: after an hour a dozen threads would each sit on a pack's worth of it. A request above that bound
//! is always a mapping of its own. Only what is written of it becomes memory.

/// Just above the bound (`DEFAULT_MMAP_THRESHOLD_MAX`).
const MAPPED: usize = (32 << 20) + 4_096;
/// Buffers smaller than this may stay with the allocator.
const LARGE: usize = 1 << 20;

/// An empty vector with room for `count` items.
pub(super) fn with_room<T>(count: usize) -> Vec<T> {
    let item = size_of::<T>().max(1);
    let count = if count.saturating_mul(item) < LARGE { count } else { count.max(MAPPED / item) };
    Vec::with_capacity(count)
}

//! Bytes in memory, counted once: from when something is made until the last of those who hold it lets it go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all of one kind takes.
#[derive(Debug, Default)]
pub(crate) struct Sum(AtomicUsize);

impl Sum {
    /// Bytes now.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The part of one thing in a [`Sum`]; nothing by default. A clone is another thing of the same size.
#[derive(Debug, Default)]
pub(crate) struct Weight(Option<(Arc<Sum>, usize)>);

impl Weight {
    pub(crate) fn new(of: &Arc<Sum>, bytes: usize) -> Self {
        of.0.fetch_add(bytes, Ordering::Relaxed);
        Self(Some((of.clone(), bytes)))
    }
}

impl Clone for Weight {
    fn clone(&self) -> Self {
        self.0.as_ref().map(|(of, bytes)| Self::new(of, *bytes)).unwrap_or_default()
    }
}

/// Where it is counted says nothing of what it is.
impl PartialEq for Weight {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Weight {}

impl Drop for Weight {
    fn drop(&mut self) {
        if let Some((of, bytes)) = &self.0 {
            of.0.fetch_sub(*bytes, Ordering::Relaxed);
        }
    }
}

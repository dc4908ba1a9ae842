//! Whose receipts are to come: files that the server has acknowledged. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use millpond_protocol::UploadId;
use tokio::time::Instant;

use crate::spool::Entry;

/// How long a receipt may take after the acknowledgement, before it is asked for.
const RECEIPT: Duration = Duration::from_secs(20);

/// Files that went together, until when their receipts have time, and the reason code if they were refused.
#[derive(Debug)]
pub(super) struct Shipped {
    until: Instant,
    pub(super) entries: Vec<Entry>,
    pub(super) refused: Option<u8>,
}

/// In the order in which they were acknowledged, which is that of their time, too.
#[derive(Debug, Default)]
pub(super) struct Awaited(VecDeque<Shipped>);

impl Awaited {
    /// These were acknowledged now.
    pub(super) fn push(&mut self, now: Instant, entries: Vec<Entry>, refused: Option<u8>) {
        self.0.push_back(Shipped { until: now + RECEIPT, entries, refused });
    }

    /// When the first of the receipts is overdue.
    pub(super) fn until(&self) -> Option<Instant> {
        self.0.front().map(|shipped| shipped.until)
    }

    /// Forgets those whose receipts have come: they are not `sent` any more. What was acknowledged before them and has none yet
    /// keeps them a little longer.
    pub(super) fn receipted(&mut self, sent: impl Fn(&UploadId) -> bool) {
        while let Some(Shipped { entries, .. }) = self.0.front_mut() {
            while entries.pop_if(|entry| !sent(&entry.upload)).is_some() {}
            if !entries.is_empty() {
                break;
            }
            self.0.pop_front();
        }
    }

    /// Those whose receipts have not come in time. They are waited for no more.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Shipped> {
        if self.until()? <= now { self.0.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn entry(upload: &str) -> Entry {
        Entry { key: 1, size: 1, upload: upload.parse().unwrap() }
    }

    #[test]
    fn what_has_its_receipt_is_kept_no_longer_and_the_rest_until_its_time_is_over() {
        let (mut awaited, now) = (Awaited::default(), Instant::now());
        awaited.push(now, vec![entry("a"), entry("b")], None);
        awaited.push(now + RECEIPT / 2, vec![entry("c")], Some(0x97));
        let mut sent = HashSet::from(["a", "c"]);
        awaited.receipted(|upload| sent.contains(upload.as_str()));
        assert_eq!(awaited.0[0].entries, [entry("a")]);
        assert_eq!(awaited.until(), Some(now + RECEIPT));
        sent.remove("a");
        awaited.receipted(|upload| sent.contains(upload.as_str()));
        assert_eq!((awaited.0.len(), awaited.until()), (1, Some(now + RECEIPT / 2 + RECEIPT)));
        assert!(awaited.overdue(now + RECEIPT).is_none());
        let late = awaited.overdue(now + RECEIPT * 2).unwrap();
        assert_eq!((late.entries, late.refused), (vec![entry("c")], Some(0x97)));
        assert!(awaited.overdue(now + RECEIPT * 2).is_none() && awaited.until().is_none());
    }
}

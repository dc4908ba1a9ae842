//! What is to be sent, in which order, and what each file waits for. Pure: no clock, no disk, no network.
//!
//! ```text
//!            ┌────────────── unknown to the server ◀─────────────┐
//!            ▼                                                    │
//!   waiting ──ship──▶ sent ──receipt──▶ settled        doubtful ──status──▶ settled
//!            ▲          └──── cut, or no receipt in time ──▶ doubtful
//!            └── its bundle was refused (from then on it goes alone)
//! ```
//!
//! What is stored is `leaving` between its receipt and its removal from the spool, and settled then.

use std::collections::{HashMap, HashSet, VecDeque};

use millpond_protocol::{UploadId, limits};

use super::shipment::{Shipment, Sizes};
use crate::spool::Entry;

/// Bytes that a small file's description takes in a bundle, about.
const OVERHEAD: u64 = 160;

/// Files and their state.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Of the current day, oldest first.
    today: VecDeque<Entry>,
    /// Of earlier days, newest first.
    backlog: VecDeque<Entry>,
    doubtful: VecDeque<Entry>,
    /// On their way, or acknowledged and without receipt.
    sent: HashMap<UploadId, Entry>,
    /// Stored, and to be removed from the spool.
    leaving: HashMap<UploadId, Entry>,
    /// All of those.
    known: HashSet<UploadId>,
    alone: HashSet<UploadId>,
    /// No URL leads anywhere for these.
    inline: HashSet<UploadId>,
    /// Refused for now, alone: others may be taken that are smaller.
    behind: HashSet<UploadId>,
}

impl Queue {
    /// Everything that waits. What is `first` goes before the rest; entries from `today` on go before older ones, and of
    /// those the newest first: a backlog of days must not keep today's waiting. `doubtful` ones may have been sent by an earlier process.
    pub(super) fn new<'a>(
        entries: impl DoubleEndedIterator<Item = &'a Entry>,
        first: &HashSet<UploadId>,
        today: u64,
        doubtful: &HashSet<Entry>,
    ) -> Self {
        let mut queue = Self::default();
        let mut ahead = VecDeque::new();
        for entry in entries.rev() {
            queue.known.insert(entry.upload.clone());
            if doubtful.contains(entry) {
                queue.doubtful.push_back(entry.clone());
            } else if first.contains(&entry.upload) {
                ahead.push_front(entry.clone());
            } else if entry.key >= today {
                queue.today.push_front(entry.clone());
            } else {
                queue.backlog.push_back(entry.clone());
            }
        }
        ahead.append(&mut queue.today);
        queue.today = ahead;
        queue
    }

    /// Takes in what came meanwhile, oldest first, where it would be if it had been there from the beginning.
    pub(super) fn take_in<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>, today: u64) {
        let before = self.backlog.len();
        for entry in entries {
            if !self.known.insert(entry.upload.clone()) {
                continue;
            }
            if entry.key >= today {
                self.today.push_back(entry.clone());
            } else {
                self.backlog.push_back(entry.clone());
            }
        }
        if self.backlog.len() > before {
            self.backlog.make_contiguous().sort_by(|one, other| other.cmp(one));
        }
    }

    /// The next shipment: files that fit together, so many at the most, or the one that goes by itself. `large` says whether one of
    /// those may begin now.
    pub(super) fn next_few(&mut self, sizes: &Sizes, large: bool, at_most: usize) -> Option<Shipment> {
        let mut bundle = Vec::new();
        let (mut bytes, mut passed_over) = (0, Vec::new());
        while bundle.len() < at_most.min(limits::BUNDLE_ENTRIES_MAX) {
            let of_today = !self.today.is_empty();
            let Some(entry) = self.line(of_today).pop_front() else { break };
            let is_large = self.is_large(&entry, sizes);
            let by_itself =
                is_large || entry.size > limits::SMALL_MAX as u64 || self.alone.contains(&entry.upload);
            if is_large && !large {
                // The way of large files is taken; small ones need not wait for it.
                passed_over.push((of_today, entry));
                continue;
            }
            if by_itself && bundle.is_empty() {
                bundle.push(entry);
                break;
            }
            if by_itself || (bytes + entry.size + OVERHEAD > sizes.bundle && !bundle.is_empty()) {
                self.line(of_today).push_front(entry);
                break;
            }
            bytes += entry.size + OVERHEAD;
            bundle.push(entry);
        }
        for (of_today, entry) in passed_over.into_iter().rev() {
            self.line(of_today).push_front(entry);
        }
        for entry in &bundle {
            self.sent.insert(entry.upload.clone(), entry.clone());
        }
        match bundle.len() {
            0 => None,
            1 => {
                let entry = bundle.pop()?;
                Some(if self.is_large(&entry, sizes) {
                    Shipment::Large(entry)
                } else {
                    Shipment::Single(entry)
                })
            }
            _ => Some(Shipment::Bundle(bundle)),
        }
    }

    fn line(&mut self, of_today: bool) -> &mut VecDeque<Entry> {
        if of_today { &mut self.today } else { &mut self.backlog }
    }

    fn is_large(&self, entry: &Entry, sizes: &Sizes) -> bool {
        entry.size > sizes.publish_max || (entry.size > sizes.inline && !self.inline.contains(&entry.upload))
    }

    /// A file that was too long for this line did not get there by URL: it goes as a message all the same.
    pub(super) fn inline(&mut self, entry: &Entry) {
        self.inline.insert(entry.upload.clone());
        self.again(std::slice::from_ref(entry));
    }

    /// Whether that was tried.
    pub(super) fn is_inline(&self, upload: &UploadId) -> bool {
        self.inline.contains(upload)
    }

    /// Up to so many files whose fate is to be asked for.
    pub(super) fn doubtful(&mut self, at_most: usize) -> Vec<Entry> {
        let n = at_most.min(self.doubtful.len());
        let entries: Vec<Entry> = self.doubtful.drain(..n).collect();
        self.sent.extend(entries.iter().map(|entry| (entry.upload.clone(), entry.clone())));
        entries
    }

    /// The entry of that id that is on its way.
    pub(super) fn sent(&self, upload: &str) -> Option<&Entry> {
        self.sent.get(&upload.parse().ok()?)
    }

    /// Whether an entry of that id is on its way.
    pub(super) fn is_sent(&self, upload: &UploadId) -> bool {
        self.sent.contains_key(upload)
    }

    /// The server has it; what is left is to remove it from the spool. Nobody asks for it any more.
    pub(super) fn leaves(&mut self, upload: &UploadId) {
        self.leaving.extend(self.sent.remove_entry(upload));
    }

    /// The server has decided, and the file is no longer this queue's.
    pub(super) fn settled(&mut self, upload: &UploadId) {
        self.known.remove(upload);
        self.behind.remove(upload);
        self.sent.remove(upload);
        self.leaving.remove(upload);
    }

    /// It is not known whether these arrived. Those that were settled meanwhile are not asked for.
    pub(super) fn doubt(&mut self, entries: &[Entry]) {
        for entry in entries {
            if self.sent.remove(&entry.upload).is_some() {
                self.doubtful.push_back(entry.clone());
            }
        }
    }

    /// These did not arrive: they are sent again, before others, or after them if they were refused for now.
    pub(super) fn again(&mut self, entries: &[Entry]) {
        for entry in entries.iter().rev() {
            if self.sent.remove(&entry.upload).is_none() {
                continue;
            }
            if self.behind.remove(&entry.upload) {
                self.backlog.push_back(entry.clone());
            } else {
                self.today.push_front(entry.clone());
            }
        }
    }

    /// The server does not take these now. One that was alone does not keep others from being tried.
    pub(super) fn not_now(&mut self, entries: &[Entry]) {
        if let [entry] = entries {
            self.behind.insert(entry.upload.clone());
        }
        self.doubt(entries);
    }

    /// Whether the fate of every file that was sent is known.
    pub(super) fn is_certain(&self) -> bool {
        self.sent.is_empty() && self.doubtful.is_empty()
    }

    /// A bundle was refused as a whole: one of these is at fault, and the others must not suffer for it.
    pub(super) fn alone(&mut self, entries: &[Entry]) {
        self.alone.extend(entries.iter().map(|entry| entry.upload.clone()));
        self.again(entries);
    }

    /// Files that are not settled.
    pub(super) fn len(&self) -> usize {
        self.today.len() + self.backlog.len() + self.doubtful.len() + self.sent.len() + self.leaving.len()
    }

    /// Those on their way, those that have arrived and are not removed yet, and those in doubt.
    pub(super) fn on_the_way(&self) -> impl Iterator<Item = &Entry> {
        self.sent.values().chain(self.leaving.values()).chain(&self.doubtful)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { publish_max: 1 << 20, inline: u64::MAX, bundle: 1_000 };

    fn entry(upload: &str, key: u64, size: u64) -> Entry {
        Entry { key, size, upload: upload.parse().unwrap() }
    }

    fn queue(entries: &[Entry], first: &[&str], today: u64) -> Queue {
        let first = first.iter().map(|id| id.parse().unwrap()).collect();
        Queue::new(entries.iter(), &first, today, &HashSet::new())
    }

    impl Queue {
        fn next(&mut self, sizes: &Sizes, large: bool) -> Option<Shipment> {
            self.next_few(sizes, large, usize::MAX)
        }
    }

    fn ids(shipment: Option<Shipment>) -> Vec<String> {
        shipment.map_or(Vec::new(), |s| s.entries().iter().map(|e| e.upload.to_string()).collect())
    }

    #[test]
    fn todays_go_before_the_backlog_whose_newest_go_first() {
        let entries = ["a", "b", "c", "d", "e"].iter().zip(1..).map(|(id, key)| entry(id, key, 700));
        let mut queue = queue(&entries.collect::<Vec<_>>(), &["b"], 4);
        let order: Vec<_> = std::iter::from_fn(|| queue.next(&SIZES, true)).map(|s| ids(Some(s))).collect();
        assert_eq!(order, [["b"], ["d"], ["e"], ["c"], ["a"]]);
    }

    #[test]
    fn what_comes_meanwhile_takes_its_place_among_the_others_and_what_was_settled_may_come_again() {
        let entries = ["a", "b", "e"].iter().zip([10, 20, 50]).map(|(id, key)| entry(id, key, 700));
        let mut queue = queue(&entries.collect::<Vec<_>>(), &[], 40);
        assert_eq!(ids(queue.next(&SIZES, true)), ["e"]);
        let all = ["a", "c", "b", "d", "e", "f"].iter().zip([10, 15, 20, 45, 50, 60]);
        let all: Vec<_> = all.map(|(id, key)| entry(id, key, 700)).collect();
        queue.take_in(all.iter(), 40);
        let order: Vec<_> = std::iter::from_fn(|| queue.next(&SIZES, true)).map(|s| ids(Some(s))).collect();
        assert_eq!(order, [["d"], ["f"], ["b"], ["c"], ["a"]]);
        queue.take_in(all.iter(), 40);
        assert_eq!(queue.next(&SIZES, true), None);
        queue.settled(&all[0].upload);
        queue.take_in(all.iter(), 40);
        assert_eq!(ids(queue.next(&SIZES, true)), ["a"]);
    }

    #[test]
    fn a_large_file_of_today_that_comes_while_another_is_on_its_way_goes_before_large_ones_of_the_backlog() {
        let large = SIZES.publish_max + 1;
        let entries = [entry("a", 10, large), entry("b", 20, large), entry("c", 30, large)];
        let mut queue = queue(&entries, &[], 40);
        assert_eq!(ids(queue.next(&SIZES, true)), ["c"]);
        assert_eq!(queue.next(&SIZES, false), None);
        queue.take_in([entry("d", 50, large)].iter(), 40);
        let order: Vec<_> = std::iter::from_fn(|| queue.next(&SIZES, true)).map(|s| ids(Some(s))).collect();
        assert_eq!(order, [["d"], ["b"], ["a"]]);
    }

    #[test]
    fn small_files_go_together_up_to_the_size_of_a_bundle_and_larger_ones_by_themselves() {
        let entries = [
            entry("a", 1, 100),
            entry("b", 2, 100),
            entry("c", 3, 600),
            entry("d", 4, 200_000),
            entry("e", 5, 2 << 20),
            entry("f", 6, 5_000),
        ];
        let mut queue = queue(&entries, &[], 0);
        assert_eq!(queue.next(&SIZES, true), Some(Shipment::Bundle(entries[..2].to_vec())));
        assert_eq!(queue.next(&SIZES, true), Some(Shipment::Single(entries[2].clone())));
        assert_eq!(queue.next(&SIZES, true), Some(Shipment::Single(entries[3].clone())));
        assert_eq!(queue.next(&SIZES, false), Some(Shipment::Single(entries[5].clone())));
        assert_eq!(queue.next(&SIZES, false), None);
        assert_eq!(queue.next(&SIZES, true), Some(Shipment::Large(entries[4].clone())));
        assert_eq!(queue.len(), 6);
    }

    #[test]
    fn on_a_slow_line_longer_files_go_by_url_unless_that_leads_nowhere() {
        let entries = [entry("a", 1, 50_000), entry("b", 2, 70_000)];
        let mut queue = queue(&entries, &[], 0);
        let slow = Sizes { inline: 60_000, ..SIZES };
        assert_eq!(queue.next(&slow, true), Some(Shipment::Single(entries[0].clone())));
        assert_eq!(queue.next(&slow, true), Some(Shipment::Large(entries[1].clone())));
        assert!(!queue.is_inline(&entries[1].upload));
        queue.inline(&entries[1]);
        assert!(queue.is_inline(&entries[1].upload));
        assert_eq!(queue.next(&slow, true), Some(Shipment::Single(entries[1].clone())));
    }

    #[test]
    fn what_was_cut_is_asked_for_and_what_is_unknown_goes_again_ahead() {
        let entries = [entry("a", 1, 10), entry("b", 2, 10), entry("c", 3, 900)];
        let mut queue = queue(&entries, &[], 0);
        let shipment = queue.next(&SIZES, true).unwrap();
        assert_eq!(queue.sent("a"), Some(&entries[0]));
        queue.settled(&entries[0].upload);
        queue.doubt(shipment.entries());
        assert_eq!(queue.doubtful(10), entries[1..2]);
        queue.again(&entries[1..2]);
        assert_eq!(ids(queue.next(&SIZES, true)), ["b"]);
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn what_is_stored_is_asked_for_no_more_and_is_the_queues_until_it_is_removed() {
        let entries = [entry("a", 1, 10), entry("b", 2, 10)];
        let mut queue = queue(&entries, &[], 0);
        let shipment = queue.next(&SIZES, true).unwrap();
        queue.leaves(&entries[0].upload);
        assert_eq!(queue.sent("a"), None);
        queue.doubt(shipment.entries());
        assert_eq!(queue.doubtful(10), entries[1..]);
        queue.take_in(entries.iter(), 0);
        assert_eq!((queue.len(), queue.on_the_way().count(), queue.next(&SIZES, true)), (2, 2, None));
        queue.settled(&entries[0].upload);
        assert_eq!((queue.len(), queue.on_the_way().count()), (1, 1));
    }

    #[test]
    fn the_files_of_a_refused_bundle_go_alone() {
        let entries = [entry("a", 1, 10), entry("b", 2, 10)];
        let mut queue = queue(&entries, &[], 0);
        let shipment = queue.next(&SIZES, true).unwrap();
        queue.alone(shipment.entries());
        assert_eq!(ids(queue.next(&SIZES, true)), ["a"]);
        assert_eq!(ids(queue.next(&SIZES, true)), ["b"]);
        queue.settled(&entries[1].upload);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn one_that_is_refused_for_now_alone_goes_after_the_others_and_a_few_are_no_more_than_that() {
        let entries = ["a", "b", "c", "d"].iter().zip(1..).map(|(id, key)| entry(id, key, 10));
        let mut queue = queue(&entries.collect::<Vec<_>>(), &[], 0);
        let probe = queue.next_few(&SIZES, true, 1).unwrap();
        queue.not_now(probe.entries());
        assert!(!queue.is_certain());
        let asked = queue.doubtful(10);
        queue.again(&asked);
        assert!(queue.is_certain());
        assert_eq!(ids(queue.next_few(&SIZES, true, 2)), ["b", "c"]);
        assert_eq!(ids(queue.next(&SIZES, true)), ["d", "a"]);
    }

    #[test]
    fn what_an_earlier_process_may_have_sent_is_asked_for_before_it_is_sent() {
        let entries = [entry("a", 1, 10), entry("b", 2, 10)];
        let doubtful = HashSet::from([entries[1].clone()]);
        let mut queue = Queue::new(entries.iter(), &HashSet::new(), 0, &doubtful);
        assert_eq!(ids(queue.next(&SIZES, true)), ["a"]);
        assert_eq!(queue.next(&SIZES, true), None);
        assert_eq!(queue.doubtful(10), entries[1..]);
    }
}

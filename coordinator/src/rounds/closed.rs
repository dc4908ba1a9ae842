//! The windows that a seal or a carry closed, as runs of windows that touch.
//!
//! A pool that is triggered often closes one window after the other, far into the future: that is one run, however long it
//! becomes, and who looks for a window that is not closed passes it in one step.

use std::collections::BTreeMap;

use millpond_protocol::Timestamp;

/// Closed windows: by their length in milliseconds, each run's start and its end.
///
/// Windows of one length that touch are one run, and windows are anchored at the epoch, so runs of one length never
/// overlap, and equal sets of windows are equal values.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Closed(BTreeMap<i64, BTreeMap<Timestamp, Timestamp>>);

impl Closed {
    /// Closes the window from `from` to before `to`.
    pub(super) fn insert(&mut self, from: Timestamp, to: Timestamp) {
        if self.run_end(from, to).is_some() {
            return;
        }
        let runs = self.0.entry(length(from, to)).or_default();
        let end = runs.remove(&to).unwrap_or(to);
        match runs.range_mut(..from).next_back() {
            Some((_, before)) if *before == from => *before = end,
            _ => drop(runs.insert(from, end)),
        }
    }

    /// Where the run ends that this window is in; none if the window is not closed.
    pub(super) fn run_end(&self, from: Timestamp, to: Timestamp) -> Option<Timestamp> {
        let length = length(from, to);
        let (start, end) = self.0.get(&length)?.range(..=from).next_back()?;
        let is_in = to <= *end && (from.as_millis() - start.as_millis()) % length.max(1) == 0;
        is_in.then_some(*end)
    }

    /// Forgets every window that ends by `aged`.
    pub(super) fn forget(&mut self, aged: Timestamp) {
        self.0.retain(|length, runs| {
            while let Some((start, end)) = runs.first_key_value().map(|(start, end)| (*start, *end)) {
                let windows = (aged.as_millis() - start.as_millis()) / (*length).max(1);
                if windows <= 0 {
                    break;
                }
                runs.pop_first();
                if end > aged {
                    let left = start.as_millis().saturating_add(windows.saturating_mul(*length));
                    runs.insert(Timestamp::clamped(left), end);
                }
            }
            !runs.is_empty()
        });
    }
}

fn length(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millis() - from.as_millis()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The `n`th window of that many minutes.
    fn window(minutes: i64, n: i64) -> (Timestamp, Timestamp) {
        let at = |n: i64| Timestamp::from_millis(n * minutes * 60_000).unwrap();
        (at(n), at(n + 1))
    }

    #[derive(Debug, Clone)]
    enum Step {
        Close(i64, i64),
        Forget(i64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (1..4_i64, 0..24_i64).prop_map(|(minutes, n)| Step::Close(minutes, n)),
            1 => (0..4_000_i64).prop_map(|seconds| Step::Forget(seconds * 1_000)),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn runs_answer_as_a_plain_set_of_windows_does(steps in steps()) {
            let (mut runs, mut set) = (Closed::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Close(minutes, n) => {
                        let (from, to) = window(minutes, n);
                        runs.insert(from, to);
                        set.insert((from, to));
                    }
                    Step::Forget(aged) => {
                        let aged = Timestamp::from_millis(aged).unwrap();
                        runs.forget(aged);
                        set.retain(|(_, to)| *to > aged);
                    }
                }
                for (minutes, n) in (1..5).flat_map(|minutes| (0..26).map(move |n| (minutes, n))) {
                    let mut end = None;
                    for next in n.. {
                        let Some((_, to)) = set.get(&window(minutes, next)) else { break };
                        end = Some(*to);
                    }
                    let (from, to) = window(minutes, n);
                    prop_assert_eq!(runs.run_end(from, to), end, "window {} of {} minutes", n, minutes);
                }
                // As after a restart, whatever the order of its rows.
                let mut restored = Closed::default();
                set.iter().rev().for_each(|(from, to)| restored.insert(*from, *to));
                prop_assert_eq!(&restored, &runs);
            }
        }
    }

    #[test]
    fn windows_that_touch_take_the_place_of_one() {
        let mut closed = Closed::default();
        for n in (0..10_000).rev() {
            let (from, to) = window(60, n);
            closed.insert(from, to);
        }
        let (start, end) = (window(60, 0).0, window(60, 9_999).1);
        assert_eq!(closed, Closed(BTreeMap::from([(3_600_000, BTreeMap::from([(start, end)]))])));
        closed.forget(end);
        assert_eq!(closed, Closed::default());
    }

    #[test]
    fn the_last_window_of_the_calendar_is_shorter_and_closes_like_any_other() {
        let mut closed = Closed::default();
        let from = Timestamp::clamped(Timestamp::MAX.as_millis() - 999);
        closed.insert(from, Timestamp::MAX);
        assert_eq!(closed.run_end(from, Timestamp::MAX), Some(Timestamp::MAX));
        closed.forget(Timestamp::MAX);
        assert_eq!(closed, Closed::default());
    }
}

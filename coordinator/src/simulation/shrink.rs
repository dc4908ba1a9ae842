//! A failing world made shorter and simpler, as long as it fails.

use std::time::{Duration, Instant};

/// Time after which what was found is good enough.
const TIME: Duration = Duration::from_secs(60);

/// The simplest strings found for which `fails` holds, as it does for `strings`.
pub(super) fn shrink(strings: Vec<Vec<u8>>, fails: impl FnMut(&[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
    let mut shrinking = Shrinking { best: strings, fails, started: Instant::now() };
    loop {
        let before = shrinking.best.clone();
        shrinking.leave_out();
        (0..shrinking.best.len()).for_each(|nth| shrinking.simplify(nth));
        if shrinking.best == before || shrinking.is_late() {
            return shrinking.best;
        }
    }
}

struct Shrinking<F> {
    best: Vec<Vec<u8>>,
    fails: F,
    started: Instant,
}

impl<F: FnMut(&[Vec<u8>]) -> bool> Shrinking<F> {
    fn is_late(&self) -> bool {
        self.started.elapsed() >= TIME
    }

    /// Takes other strings for the best ones, if they fail too.
    fn take(&mut self, strings: Vec<Vec<u8>>) -> bool {
        let simpler = !self.is_late() && strings != self.best && (self.fails)(&strings);
        if simpler {
            self.best = strings;
        }
        simpler
    }

    /// Whole schedules, the last one first: what comes after the failure has no part in it.
    fn leave_out(&mut self) {
        for nth in (0..self.best.len()).rev() {
            let mut fewer = self.best.clone();
            fewer.remove(nth);
            if !fewer.is_empty() {
                self.take(fewer);
            }
        }
    }

    fn take_one(&mut self, nth: usize, string: Vec<u8>) -> bool {
        let mut strings = self.best.clone();
        strings[nth] = string;
        self.take(strings)
    }

    /// Pieces are left out, large ones first; then they are made 0; then single bytes smaller.
    fn simplify(&mut self, nth: usize) {
        let mut size = self.best[nth].len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.best[nth].len() {
                let string = &self.best[nth];
                let end = (at + size).min(string.len());
                let without = [&string[..at], &string[end..]].concat();
                let mut zeroed = string.clone();
                zeroed[at..end].fill(0);
                if !self.take_one(nth, without) {
                    self.take_one(nth, zeroed);
                    at = end;
                }
            }
            size /= 2;
        }
        for at in 0..self.best[nth].len() {
            let byte = self.best[nth][at];
            for smaller in [byte / 2, byte.saturating_sub(1)] {
                let mut string = self.best[nth].clone();
                string[at] = smaller;
                self.take_one(nth, string);
            }
        }
    }
}

#[test]
fn what_is_left_of_a_failing_world_is_what_makes_it_fail() {
    let high = |string: &Vec<u8>| string.iter().filter(|byte| **byte >= 100).count();
    let fails = |strings: &[Vec<u8>]| strings.iter().map(high).sum::<usize>() >= 2;
    let long: Vec<u8> = (0..=255).collect();
    assert_eq!(shrink(vec![long; 3], fails), [[100, 100]]);
}

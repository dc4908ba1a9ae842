//! A failing schedule made shorter and simpler, as long as it fails.

use std::time::{Duration, Instant};

/// Time after which what was found is good enough.
const TIME: Duration = Duration::from_secs(60);

/// The simplest string found for which `fails` holds, as it does for `bytes`.
pub(super) fn shrink(bytes: Vec<u8>, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut best = bytes;
    let started = Instant::now();
    loop {
        let before = best.clone();
        let mut attempt = |candidate: Vec<u8>, best: &mut Vec<u8>| {
            let simpler = started.elapsed() < TIME && candidate != *best && fails(&candidate);
            if simpler {
                *best = candidate;
            }
            simpler
        };
        // Pieces are left out, large ones first; then they are made 0; then single bytes smaller.
        let mut size = best.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < best.len() {
                let end = (at + size).min(best.len());
                let without = [&best[..at], &best[end..]].concat();
                let mut zeroed = best.clone();
                zeroed[at..end].fill(0);
                if !attempt(without, &mut best) {
                    attempt(zeroed, &mut best);
                    at = end;
                }
            }
            size /= 2;
        }
        for at in 0..best.len() {
            for smaller in [best[at] / 2, best[at].saturating_sub(1)] {
                let mut candidate = best.clone();
                candidate[at] = smaller;
                attempt(candidate, &mut best);
            }
        }
        if best == before || started.elapsed() >= TIME {
            return best;
        }
    }
}

#[test]
fn what_is_left_of_a_failing_schedule_is_what_makes_it_fail() {
    let fails = |bytes: &[u8]| bytes.iter().filter(|byte| **byte >= 100).count() >= 2;
    let long: Vec<u8> = (0..=255).collect();
    assert_eq!(shrink(long, fails), [100, 100]);
}

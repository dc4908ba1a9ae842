//! The simulation: the coordinator on one thread, under a clock, a network, a storage and a disk that a scheduler holds.
//!
//! What runs is the coordinator's: the gate's backend with every kind of message, asks, dispatch, sweep, state messages, and
//! the ledger with its writer's groups, savepoints and start, over SQLite in memory. What the scheduler decides:
//!
//! | | |
//! |---|---|
//! | tasks | which one goes on, so what is seen between any two steps of another |
//! | messages | delivered in any order, twice, or lost, with the answer or without it |
//! | commits | which jobs are one group, and whether it commits |
//! | storage | when it answers; that it refuses, or does what it was told and is not heard, or does it late |
//! | the process | dies between any two steps, and starts from its rows |
//! | notices | when a commit is noticed, and that some are missed |
//! | time | how much goes by, and that somebody sets the clock |
//!
//! A schedule goes from rest to rest. Every decision is read from a string of bytes ([`choices`]); when it ends no more harm is done:
//! everything has to come to its end then, and the [`oracle`] looks at what is there. Three schedules in four begin with a time without
//! harm ([`schedule`]), in which a round may come as far as its result.
//!
//! A world is made once for several schedules, which follow on each other with what the ones before have left; a seed stands for
//! the strings of a world. What fails is made shorter ([`shrink`]), and told in words. `docs/proof.md` has the commands.

mod bench;
mod book;
mod choices;
mod listener;
mod net;
mod oracle;
mod policies;
mod processor;
mod publisher;
mod schedule;
mod server;
mod shrink;
mod stage;
mod store;
mod tasks;
mod world;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bench::Bench;
use choices::{Choices, WORLD};

/// Worlds that every run of the tests plays.
const WORLDS: u64 = 40;
/// Worlds beyond those that find what few do; every run plays them too: files that are carried on and not counted.
const PAST: [u64; 1] = [53];

/// Plays one world; a panic is a failure too, and takes the bench with it.
fn play(bench: &mut Bench, strings: &[Vec<u8>], diary: bool) -> (Result<(), String>, Vec<String>) {
    match catch_unwind(AssertUnwindSafe(|| bench.play(strings, diary))) {
        Ok(played) => played,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            *bench = Bench::new();
            (Err(format!("a panic: {}", text.unwrap_or_default())), Vec::new())
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn whatever_is_lost_late_or_twice_what_was_acknowledged_counts_once_and_everybody_converges() {
    let worlds = number("MILLPOND_SCHEDULES").map(|schedules| schedules.div_ceil(WORLD as u64));
    let seeds: Vec<u64> = match (number("MILLPOND_SEED"), worlds) {
        (Some(seed), worlds) => (seed..seed + worlds.unwrap_or(1)).collect(),
        (None, Some(worlds)) => {
            let now = crate::ledger::now().as_millis().unsigned_abs();
            (now..now + worlds).collect()
        }
        (None, None) => (1..=WORLDS).chain(PAST).collect(),
    };
    let started = Instant::now();
    let (next, groups) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failed = Mutex::new(BTreeMap::new());
    // Each core has a bench of its own; a world is played on one thread.
    let work = || {
        let mut bench = Bench::new();
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let (Err(failure), _) = play(&mut bench, &Choices::of_seed(*seed), false) {
                failed.lock().unwrap().insert(*seed, failure);
                next.store(seeds.len(), Ordering::Relaxed);
            }
        }
        groups.fetch_add(bench.ledger.groups, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(seeds.len());
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    if let Some((seed, failure)) = failed.into_inner().unwrap().pop_first() {
        tell(seed, &failure);
    }
    let (count, groups) = ((seeds.len() * WORLD) as f64, groups.into_inner() as f64);
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "simulation: {count} schedules in {seconds:.1} s, {:.0} a second, with {:.0} transactions",
        count / seconds,
        groups / seconds
    );
}

/// What two failures of the same sort have in common: how they begin, numbers aside.
fn kind(failure: &str) -> String {
    failure.chars().filter(|char| char.is_alphabetic()).take(24).collect()
}

/// Tells a failing world in its simplest form.
fn tell(seed: u64, failure: &str) -> ! {
    let (bench, strings) = (&mut Bench::new(), Choices::of_seed(seed));
    eprintln!("world {seed} fails: {failure}");
    eprintln!("again: MILLPOND_SEED={seed} cargo test -p millpond --lib simulation");
    let decisions = |strings: &[Vec<u8>]| strings.iter().map(Vec::len).sum::<usize>();
    let length = decisions(&strings);
    // Each try that panics would say so at length.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let same = |other: &str| kind(other) == kind(failure);
    let strings =
        shrink::shrink(strings, |strings| play(bench, strings, false).0.is_err_and(|other| same(&other)));
    std::panic::set_hook(hook);
    let (outcome, diary) = play(bench, &strings, true);
    eprintln!("of its {length} decisions {} are enough: {strings:?}", decisions(&strings));
    diary.iter().for_each(|line| eprintln!("{line}"));
    panic!("world {seed}: {failure}; the simplest form: {}", outcome.err().unwrap_or_default());
}

#[test]
fn a_world_that_is_played_again_is_the_same() {
    let mut bench = Bench::new();
    for seed in 1..=10 {
        let strings = Choices::of_seed(seed);
        let mut again = || play(&mut bench, &strings, true);
        assert_eq!(again(), again(), "world {seed}");
    }
}

//! Fuzz targets as ordinary tests, on stable Rust and without a dependency.
//!
//! A target is a `#[test]` beside the code that it attacks: it gives [`run`] a function that takes any bytes, panics where something
//! does not hold that always has to, and answers what it saw. `cargo test` replays the target's corpus, `fuzz/corpus/NAME/*.seed`, and a
//! fixed number of mutants of it, always the same ones. The long run is the same tests with a time:
//!
//! ```text
//! MILLPOND_FUZZ_SECONDS=600 cargo test --workspace --release fuzz_ -- --nocapture --test-threads 1
//! ```
//!
//! It mutates the corpus for so many seconds a target. There is no instrumentation to guide it; what a target answers does: an
//! input of which something new was seen joins those that are mutated, for the rest of the run. An input that fails is made
//! shorter as long as it fails the same way and is written to the corpus as `found-….seed`, so that `cargo test` fails from then on
//! until the defect is mended.
//!
//! # A seed
//!
//! Text, so that a reader sees what it is: each line is its bytes and a line feed; a backslash before the end of a line takes the line feed
//! back; `\\`, `\r`, `\n`, `\t` and `\xNN` are what they are in Rust.

mod mutate;
mod seed;

use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use mutate::Mutator;

/// Mutants in a run without a time.
const MUTANTS: u32 = 100;
/// Inputs that are mutated at the most; then a new one takes the place of another.
const POOL_MAX: usize = 4_096;
/// How long an input that fails is made shorter.
const SHRINK: Duration = Duration::from_secs(20);
/// How long one input may take.
const STUCK: Duration = Duration::from_secs(60);

/// What a target looks like.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its directory in the corpus.
    pub name: &'static str,
    /// What means something to the code: mutants hold such words more often than chance would have it.
    pub words: &'static [&'static [u8]],
    /// Bytes of the longest mutant.
    pub max: usize,
}

/// What an input brought about: a few words of a target's own. Two inputs of which the same was seen are the same to it.
#[derive(Debug, Default)]
pub struct Seen(DefaultHasher);

impl Seen {
    /// This was seen too.
    pub fn note(&mut self, what: impl Hash) {
        what.hash(&mut self.0);
    }
}

/// Replays the target's corpus, then mutates it: for as long as `MILLPOND_FUZZ_SECONDS` says, else a little and always the
/// same.
///
/// # Panics
/// When an input fails. A mutant that fails is in the corpus then.
pub fn run(target: &Target, mut check: impl FnMut(&[u8], &mut Seen)) {
    let time = std::env::var("MILLPOND_FUZZ_SECONDS").ok();
    let time = time
        .map(|text| Duration::from_secs(text.parse().expect("MILLPOND_FUZZ_SECONDS is a number of seconds")));
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    campaign(target, &directory, time, &mut check);
}

/// How a campaign went.
#[derive(Debug)]
struct Tally {
    inputs: u64,
    new: u64,
}

fn campaign(
    target: &Target,
    directory: &Path,
    time: Option<Duration>,
    check: &mut dyn FnMut(&[u8], &mut Seen),
) -> Tally {
    let seeds = seed::read_all(directory);
    assert!(!seeds.is_empty(), "{} holds no seeds", directory.display());
    let watched = Watched::new(directory, time.is_some());
    let (mut seen, mut pool) = (HashSet::new(), Vec::new());
    for (path, bytes) in seeds {
        match watched.check(check, &bytes) {
            Ok(what) => drop(seen.insert(what)),
            Err(why) => panic!("{}: {why}", path.display()),
        }
        pool.push(bytes);
    }
    let random = time.map_or(1, |_| clock());
    let mut mutator = Mutator::new(target, random);
    let (begin, mut tally) = (Instant::now(), Tally { inputs: 0, new: 0 });
    while time.map_or(tally.inputs < u64::from(MUTANTS), |time| begin.elapsed() < time) {
        let input = mutator.mutant(&pool);
        tally.inputs += 1;
        match watched.check(check, &input) {
            // Without a time the mutants are always the same, whatever the machine's mood let a target see.
            Ok(what) if seen.insert(what) && time.is_some() => {
                tally.new += 1;
                match pool.len() < POOL_MAX {
                    true => pool.push(input),
                    false => *mutator.one_of(&mut pool) = input,
                }
            }
            Ok(_) => {}
            Err(why) => {
                let shortest = shrink(&input, &why, &mut |bytes| watched.check(check, bytes).err());
                let path = found(directory, &shortest);
                panic!("{}: {why}\nThe input is in {}", target.name, path.display());
            }
        }
    }
    if time.is_some() {
        let took = begin.elapsed().as_secs_f64();
        let (rate, Tally { inputs, new }) = (tally.inputs as f64 / took, &tally);
        println!(
            "{}: {inputs} inputs in {took:.0} s ({rate:.0}/s), {new} of which something new was seen",
            target.name
        );
    }
    tally
}

/// A number that is another one each time.
fn clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos() % u128::from(u64::MAX)).unwrap_or(1)
}

/// Writes an input where the replay finds it.
fn found(directory: &Path, bytes: &[u8]) -> PathBuf {
    let mut hash = DefaultHasher::new();
    bytes.hash(&mut hash);
    let path = directory.join(format!("found-{:016x}.seed", hash.finish()));
    if let Err(error) = std::fs::write(&path, seed::write(bytes)) {
        eprintln!("{}: {error}; the input is\n{}", path.display(), seed::write(bytes));
    }
    path
}

/// Leaves out what is not needed to fail in the same place.
fn shrink(input: &[u8], why: &str, fails: &mut dyn FnMut(&[u8]) -> Option<String>) -> Vec<u8> {
    // The words may be of the input: where it fails is not.
    let place = |why: &str| why.split(": ").next().unwrap_or_default().to_owned();
    let (mut best, until) = (input.to_vec(), Instant::now() + SHRINK);
    let mut piece = best.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < best.len() && Instant::now() < until {
            let shorter = [&best[..at], &best[best.len().min(at + piece)..]].concat();
            match fails(&shorter) {
                Some(other) if place(&other) == place(why) => best = shorter,
                _ => at += piece,
            }
        }
        piece /= 2;
    }
    best
}

thread_local! {
    /// Where and why this thread panicked last, while it tries an input.
    static WHY: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics of inputs noted rather than shown.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let at = info.location().map_or_else(String::new, |at| format!("{}:{}", at.file(), at.line()));
            let what = info.payload_as_str().unwrap_or("a panic without words");
            let is_noted = WHY.with_borrow_mut(|why| why.as_mut().map(|why| *why = format!("{at}: {what}")));
            if is_noted.is_none() {
                others(info);
            }
        }));
    });
}

/// What is being tried, and since when.
type Now = Mutex<Option<(Instant, Vec<u8>)>>;

/// Calls the target, and watches how it ends.
struct Watched {
    /// None: nobody watches.
    now: Option<Arc<Now>>,
}

impl Watched {
    /// `time`: whether somebody waits for the end of it: an input that never ends is written to the directory then, and the process ends.
    fn new(directory: &Path, time: bool) -> Self {
        note_panics();
        let now: Option<Arc<Now>> = time.then(Arc::default);
        if let Some(now) = &now {
            let (now, directory) = (Arc::downgrade(now), directory.to_owned());
            std::thread::spawn(move || {
                while let Some(now) = now.upgrade() {
                    let stuck = now.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    drop(now);
                    if let Some((_, bytes)) =
                        stuck.filter(|(since, _): &(Instant, _)| since.elapsed() > STUCK)
                    {
                        let path = found(&directory, &bytes);
                        eprintln!("an input takes more than {STUCK:?}: it is in {}", path.display());
                        std::process::exit(101);
                    }
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
        }
        Self { now }
    }

    fn watch(&self, input: Option<&[u8]>) {
        if let Some(now) = &self.now {
            let input = input.map(|bytes| (Instant::now(), bytes.to_vec()));
            *now.lock().unwrap_or_else(PoisonError::into_inner) = input;
        }
    }

    /// What was seen, as one number, or where and why it failed.
    fn check(&self, check: &mut dyn FnMut(&[u8], &mut Seen), input: &[u8]) -> Result<u64, String> {
        self.watch(Some(input));
        WHY.set(Some(String::new()));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let mut seen = Seen::default();
            check(input, &mut seen);
            seen.0.finish()
        }));
        let why = WHY.take().unwrap_or_default();
        self.watch(None);
        ended.map_err(|_| why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { name: "own", words: &[b"key"], max: 100 };

    /// Fails of one input in many: three conditions, each of which shows in what is seen.
    fn hides_a_defect(bytes: &[u8], seen: &mut Seen) {
        let is_begun = bytes.first() == Some(&b'{');
        let has_key = is_begun && bytes.windows(3).any(|word| word == b"key");
        seen.note((is_begun, has_key));
        assert!(!has_key || bytes.last() != Some(&0xFF), "the defect");
    }

    fn campaign_in(directory: &Path, time: Option<Duration>) -> Result<Tally, String> {
        let ended =
            catch_unwind(AssertUnwindSafe(|| campaign(&TARGET, directory, time, &mut hides_a_defect)));
        ended.map_err(|payload| payload.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    #[test]
    fn a_defect_is_found_made_short_and_replayed_until_it_is_mended() {
        let corpus = tempfile::tempdir().unwrap();
        std::fs::write(corpus.path().join("plain.seed"), "{ \"a\": [1, 2, 3] }\\\n").unwrap();
        let why = campaign_in(corpus.path(), Some(Duration::from_secs(60))).unwrap_err();
        assert!(why.contains("the defect") && why.contains("The input is in"), "{why}");
        let found = seed::read_all(corpus.path());
        let (path, bytes) = found.iter().find(|(path, _)| path.to_string_lossy().contains("found-")).unwrap();
        assert_eq!(bytes, b"{key\xff", "nothing of it can be left out");
        let why = campaign_in(corpus.path(), None).unwrap_err();
        assert!(why.contains("the defect") && why.contains(&path.display().to_string()), "{why}");
        // Mended.
        campaign(&TARGET, corpus.path(), None, &mut |_, _| {});
    }

    #[test]
    fn without_a_time_a_run_is_short_and_always_the_same() {
        let corpus = tempfile::tempdir().unwrap();
        std::fs::write(corpus.path().join("plain.seed"), "plain").unwrap();
        let inputs = || {
            let mut inputs = Vec::new();
            campaign(&TARGET, corpus.path(), None, &mut |bytes, _| inputs.push(bytes.to_vec()));
            inputs
        };
        assert_eq!(inputs().len(), 1 + MUTANTS as usize);
        assert_eq!(inputs(), inputs());
        assert!(inputs().iter().all(|input| input.len() <= TARGET.max));
    }

    #[test]
    #[should_panic(expected = "holds no seeds")]
    fn a_corpus_that_is_gone_is_no_run_without_defects() {
        let corpus = tempfile::tempdir().unwrap();
        campaign(&TARGET, corpus.path(), None, &mut |_, _| {});
    }
}

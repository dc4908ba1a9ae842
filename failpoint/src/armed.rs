//! What a point does in a program under test.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::{NEXT_SCHEMA, Point, VARIABLE};

/// The file that names a point; none until [`arm`] was called, or if nobody set the variable.
static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
/// What the file said last, and how often that point was passed since.
static PASSED: Mutex<(String, u64)> = Mutex::new((String::new(), 0));

/// Lets the environment choose a point. For the `main` of programs under test.
pub fn arm() {
    FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from));
}

/// The migration after the last one, in SQL, that the environment gives to a program whose `main` has called [`arm`].
pub fn next_schema() -> Option<String> {
    FILE.get().and_then(|_| std::env::var(NEXT_SCHEMA).ok())
}

/// The process is here: if this point was chosen, it ends.
pub fn reach(point: Point) {
    let Some(Some(file)) = FILE.get() else { return };
    let Ok(chosen) = std::fs::read_to_string(file) else { return };
    let Some((name, nth)) = chosen.trim().split_once(':') else { return };
    if name != point.name() {
        return;
    }
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    if passed.0 != chosen {
        *passed = (chosen.clone(), 0);
    }
    passed.1 += 1;
    if Ok(passed.1) == nth.parse() {
        let myself = rustix::process::getpid();
        // It cannot fail, and if it did the end would still be one without any clearing up.
        let _ = rustix::process::kill_process(myself, rustix::process::Signal::KILL);
        std::process::abort();
    }
}

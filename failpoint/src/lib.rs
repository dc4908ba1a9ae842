//! Fail-points: places where a program under test kills itself, as kill -9 would at that instant.
//!
//! [`reach`] stands between two steps whose order matters after a crash. In what users run it is an empty function: the
//! feature `armed` is off there, and with it neither code nor names are in the binary (a test reads the static binary for
//! them). The tests' package turns the feature on. Cargo may then compile it into other binaries of the same build, so there
//! is a second lock: only a program whose `main` calls `arm` looks at the environment, and those are
//! `millpond-under-test` and `millpond-edge-under-test`.
//!
//! `MILLPOND_FAILPOINT` names a file. While it holds `NAME:N`, the process that reaches the point of that name for the N-th
//! time since the file says so ends by SIGKILL. The file is read at every passage: so a test lets a server start, looks at
//! it in peace, and arms it then.
//!
//! The `fail` crate has actions, probabilities and callbacks, but none that can be chosen from outside and ends a process
//! without a trace; and with a catalogue as an enum a point cannot be misspelt, nor be forgotten by the test that
//! goes through all of them.

mod catalogue;

pub use catalogue::Point;
#[cfg(feature = "armed")]
pub use catalogue::Program;

#[cfg(feature = "armed")]
mod armed;

#[cfg(feature = "armed")]
pub use armed::{arm, next_schema, reach};

/// The process is here. Nothing happens.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub const fn reach(_: Point) {}

/// The migration after the last one, in SQL, that a program under test was given: none.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub const fn next_schema() -> Option<String> {
    None
}

/// The variable that names the file.
pub const VARIABLE: &str = "MILLPOND_FAILPOINT";
/// The variable with the SQL of a migration after the last one: so that there is an older ledger to migrate from.
pub const NEXT_SCHEMA: &str = "MILLPOND_NEXT_SCHEMA";

//! Time: the wall clock's, and how long the process runs. In simulations both are what the schedule says.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millpond_protocol::Timestamp;

/// The wall clock.
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(time) = simulated::time() {
        return time.wall;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::clamped(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A moment of a clock that nobody sets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Moment {
    Real(Instant),
    #[cfg(test)]
    Simulated(Duration),
}

impl Moment {
    pub(crate) fn now() -> Self {
        #[cfg(test)]
        if let Some(time) = simulated::time() {
            return Self::Simulated(time.running);
        }
        Self::Real(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        match self {
            Self::Real(then) => then.elapsed(),
            #[cfg(test)]
            Self::Simulated(then) => {
                simulated::time().map_or(Duration::ZERO, |time| time.running.saturating_sub(then))
            }
        }
    }
}

/// The time of the simulation that runs on this thread.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;
    use std::time::Duration;

    use millpond_protocol::Timestamp;

    /// What clocks show.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Time {
        /// On the wall, where somebody may set it.
        pub(crate) wall: Timestamp,
        /// Since the beginning, which only grows.
        pub(crate) running: Duration,
    }

    thread_local! {
        static TIME: Cell<Option<Time>> = const { Cell::new(None) };
    }

    /// What clocks show on this thread, if a simulation has set them.
    pub(crate) fn time() -> Option<Time> {
        TIME.get()
    }

    /// From now on clocks of this thread show this.
    pub(crate) fn set(time: Time) {
        TIME.set(Some(time));
    }
}

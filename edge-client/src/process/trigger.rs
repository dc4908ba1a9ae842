//! What sets a processor to work, and when it seals batches by the clock: every so often, however often the process starts.
//!
//! The clock is the server's, which is heard whenever there is a connection, and nothing is sealed without one: a machine that boots
//! in 1970, and again before its interval is over, would begin anew each time by its own.

use std::io;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use millpond_protocol::Span;
use serde::{Deserialize, Serialize};

use crate::clock::Boot;

/// Where a processor notes when it sealed last.
const NOTE: &str = "triggered";
/// Between two batches that are sealed by the clock.
const EVERY: std::ops::RangeInclusive<u64> = 1..=366 * 86_400;

/// What sets a processor to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The clock: it seals the oldest open batch every so often. What is on offer meanwhile is taken too.
    Every(Duration),
    /// A round on offer, whoever sealed it.
    OnOffer,
    /// Nothing: it takes what is on offer when it starts, one round after the other, and ends when there is no more.
    Never,
}

impl FromStr for Trigger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "on-offer" => Ok(Self::OnOffer),
            "never" => Ok(Self::Never),
            other => {
                let every = other.strip_prefix("every ");
                let every =
                    every.ok_or_else(|| format!("{text:?} is none of: every 15m, on-offer, never"))?;
                let Span(every) = every.trim().parse()?;
                if EVERY.contains(&every.as_secs()) {
                    return Ok(Self::Every(every));
                }
                Err(format!("{text:?} is not between a second and a year"))
            }
        }
    }
}

/// A moment, in the server's time and by the clock that counts since boot and is never set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moment {
    pub(super) server_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) boot: Option<Boot>,
}

/// How long to wait before the next batch is sealed. What the clocks cannot tell counts as no time at all, so that a clock
/// that was set back costs one interval at the most.
fn pause(last: &Moment, now: &Moment, every: Duration) -> Duration {
    let passed = match (&last.boot, &now.boot) {
        (Some(last), Some(now)) if last.id == now.id => now.ms.saturating_sub(last.ms),
        _ => now.server_ms.saturating_sub(last.server_ms),
    };
    every.saturating_sub(Duration::from_millis(u64::try_from(passed).unwrap_or(0)))
}

/// How long this processor waits before it seals: not at all where none did before it.
pub(super) fn first(directory: &Path, now: &Moment, every: Duration) -> Duration {
    let noted = std::fs::read(directory.join(NOTE)).ok();
    let last = noted.and_then(|json| serde_json::from_slice::<Moment>(&json).ok());
    last.map_or(Duration::ZERO, |last| pause(&last, now, every))
}

/// Notes when the server was asked to seal, and has answered.
pub(super) fn note(directory: &Path, asked: &Moment) -> io::Result<()> {
    let json = serde_json::to_vec(asked).unwrap_or_default();
    // After a power cut an empty one would have a batch sealed at once.
    crate::spool::write_synced(&directory.join(NOTE), &directory.join("scratch"), &json, || {})
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moment(server_ms: i64, boot: &str, ms: i64) -> Moment {
        Moment { server_ms, boot: Some(Boot { id: boot.into(), ms }) }
    }

    #[test]
    fn a_trigger_is_a_word_or_an_interval() {
        assert_eq!("every 15m".parse(), Ok(Trigger::Every(Duration::from_secs(900))));
        assert_eq!("every 1h 30m".parse(), Ok(Trigger::Every(Duration::from_secs(5_400))));
        assert_eq!("on-offer".parse(), Ok(Trigger::OnOffer));
        assert_eq!("never".parse(), Ok(Trigger::Never));
        for wrong in [
            "",
            "15m",
            "every",
            "every 15",
            "every 0s",
            "every -1s",
            "every 99999999999999999999d",
            "every 1ü",
        ] {
            assert!(wrong.parse::<Trigger>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_interval_counts_over_restarts_and_boots_by_no_clock_that_somebody_sets() {
        let every = Duration::from_secs(900);
        let last = moment(1_000_000, "a", 50_000);
        let pause = |now| pause(&last, &now, every).as_secs();
        assert_eq!(pause(moment(1_600_000, "a", 650_000)), 300);
        assert_eq!(pause(moment(9_999_000_000, "a", 650_000)), 300, "the server's clock was set, no more");
        assert_eq!(pause(moment(1_600_000, "b", 1)), 300, "another boot");
        assert_eq!(pause(moment(3_000_000, "b", 1)), 0);
        assert_eq!(pause(moment(0, "b", 1)), 900, "another boot, and the server's clock was set back");
        let bare = |server_ms| Moment { server_ms, boot: None };
        assert_eq!(pause(bare(1_600_000)), 300, "a system that does not tell its boots");
    }

    #[test]
    fn who_sealed_is_noted_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let (every, then, now) =
            (Duration::from_secs(900), moment(1_000_000, "a", 5), moment(1_600_000, "b", 5));
        assert_eq!(first(directory.path(), &now, every), Duration::ZERO);
        note(directory.path(), &then).unwrap();
        assert_eq!(first(directory.path(), &now, every), Duration::from_secs(300));
        std::fs::write(directory.path().join(NOTE), "damaged").unwrap();
        assert_eq!(first(directory.path(), &now, every), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn nobody_waits_longer_than_the_interval(last: (i64, i64), now: (i64, i64), same: bool, every in 1..10_000_u64) {
            let every = Duration::from_secs(every);
            let now_boot = if same { "a" } else { "b" };
            let pause = pause(&moment(last.0, "a", last.1), &moment(now.0, now_boot, now.1), every);
            prop_assert!(pause <= every);
        }
    }
}

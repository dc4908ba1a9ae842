//! When something happened, on machines whose clock is stepped, wrong, or starts in 1970.
//!
//! A [`Stamp`] is taken from two clocks: the wall clock, and the one that counts since boot and is never set. A later measurement
//! of the server's time in the same boot (an [`Anchor`]) tells when the stamp was taken, whatever was done to the wall clock in between.
//!
//! ```
//! use millpond_edge::clock::{Boot, Stamp, measured};
//! use millpond_protocol::Timestamp;
//!
//! // As `Stamp::now()` takes it on a device that booted in 1970, a minute ago.
//! let at = |wall_ms, ms| Stamp { wall_ms, boot: Some(Boot { id: "this boot".to_owned(), ms }) };
//! let captured = at(60_000, 60_000);
//! // Later its clock is right, and the server says what time it is.
//! let (before, after) = (at(1_795_302_000_000, 90_000), at(1_795_302_000_010, 90_010));
//! let (offset, anchor) = measured(&before, 1_795_302_000_005, &after).expect("no clock was set meanwhile");
//! let time = captured.in_server_time(anchor.as_slice(), offset.ms, Timestamp::clamped(after.wall_ms));
//! assert_eq!(time.as_millis(), 1_795_302_000_000 - 30_000);
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millpond_protocol::Timestamp;
use serde::{Deserialize, Serialize};

/// Milliseconds by which two clocks may differ over a reading of the server's time; more is a step of one of them.
const STEP_MS: u64 = 50;

/// Server time less this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// Milliseconds to add to the local clock.
    pub ms: i64,
    /// The true offset is at most so far off.
    pub within: Duration,
}

/// A moment as this machine's clocks show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Wall clock, in milliseconds since 1970.
    pub wall_ms: i64,
    /// Milliseconds since boot, sleep included, and which boot; absent where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
}

/// A reading of the clock that counts since boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Random for each boot.
    pub id: String,
    pub ms: i64,
}

/// One moment in both the machine's and the server's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    pub boot: Boot,
    pub server_ms: i64,
    /// Milliseconds that it may be off, at most.
    pub within_ms: i64,
}

/// The wall clock, in milliseconds since 1970; negative before.
pub fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

impl Stamp {
    /// This moment.
    pub fn now() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| {
            let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            let ms = since.tv_sec.saturating_mul(1_000).saturating_add(since.tv_nsec / 1_000_000);
            Boot { id: id.trim().to_owned(), ms }
        });
        Self { wall_ms: wall_ms(), boot }
    }

    /// When it was taken, in server time: exactly, with an anchor of its boot; else by its wall clock and the offset of today,
    /// as if the clock had been as wrong then as it is now. Where that lies after `now`, the server's time of today, and the wall
    /// clock alone does not, it was right then: a device that is in 1970 today need not have been there before.
    pub fn in_server_time(&self, anchors: &[Anchor], offset_ms: i64, now: Timestamp) -> Timestamp {
        self.anchored(anchors).unwrap_or_else(|| {
            let (corrected, now) = (self.wall_ms.saturating_add(offset_ms), now.as_millis());
            let was_right = corrected > now && self.wall_ms <= now;
            Timestamp::clamped(if was_right { self.wall_ms } else { corrected })
        })
    }

    /// When it was taken, in server time, if there is an anchor of its boot.
    pub fn anchored(&self, anchors: &[Anchor]) -> Option<Timestamp> {
        let boot = self.boot.as_ref()?;
        let anchor = anchors.iter().rev().find(|anchor| anchor.boot.id == boot.id)?;
        let since = boot.ms.saturating_sub(anchor.boot.ms);
        Some(Timestamp::clamped(anchor.server_ms.saturating_add(since)))
    }
}

/// What the server's time says about this machine's clocks: it was read between two stamps.
/// None if the wall clock was set in between, or the machine went down: then only another reading can tell.
pub fn measured(before: &Stamp, server_ms: i64, after: &Stamp) -> Option<(ClockOffset, Option<Anchor>)> {
    let by_wall = after.wall_ms.saturating_sub(before.wall_ms);
    let took = match (&before.boot, &after.boot) {
        (Some(before), Some(after)) if before.id == after.id => {
            let took = after.ms.saturating_sub(before.ms);
            if took < 0 || by_wall.abs_diff(took) > STEP_MS {
                return None;
            }
            took
        }
        _ if by_wall < 0 => return None,
        _ => by_wall,
    };
    // The times were cut to whole milliseconds.
    let within_ms = took / 2 + 2;
    let offset = ClockOffset {
        ms: server_ms.saturating_add(took / 2).saturating_sub(after.wall_ms),
        within: Duration::from_millis(within_ms.unsigned_abs()),
    };
    let anchor = after.boot.clone().map(|boot| Anchor { boot, server_ms: server_ms + took / 2, within_ms });
    Some((offset, anchor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(id: &str, ms: i64) -> Option<Boot> {
        Some(Boot { id: id.into(), ms })
    }

    const NOW: Timestamp = Timestamp::EPOCH;

    fn stamp(wall_ms: i64, boot_ms: i64) -> Stamp {
        Stamp { wall_ms, boot: boot("b", boot_ms) }
    }

    fn anchor(id: &str, ms: i64, server_ms: i64) -> Anchor {
        Anchor { boot: Boot { id: id.into(), ms }, server_ms, within_ms: 5 }
    }

    #[test]
    fn a_step_of_the_wall_clock_between_capture_and_sending_does_not_move_the_capture() {
        // The device booted in 1970, captured, and then learnt the time.
        let captured = stamp(60_000, 60_000);
        let (before, after) = (stamp(1_795_302_000_000, 100_000), stamp(1_795_302_000_100, 100_100));
        let (offset, anchor) = measured(&before, 1_795_301_999_550, &after).unwrap();
        assert_eq!((offset.ms, offset.within), (-500, Duration::from_millis(52)));
        let then = captured.in_server_time(&[anchor.unwrap()], offset.ms, NOW);
        assert_eq!(then.as_millis(), 1_795_302_000_000 - 500 - 40_000);
    }

    #[test]
    fn a_step_of_the_wall_clock_while_the_time_is_asked_for_makes_no_anchor() {
        for step in [-3_600_000, -100, 100, 1_795_302_000_000] {
            assert_eq!(measured(&stamp(1_000, 10), 5_000, &stamp(1_020 + step, 30)), None, "{step}");
        }
        assert!(measured(&stamp(1_000, 10), 5_000, &stamp(1_020, 30)).is_some());
        let rebooted = Stamp { wall_ms: 900, boot: boot("c", 1) };
        assert_eq!(measured(&stamp(1_000, 10), 5_000, &rebooted), None);
    }

    #[test]
    fn a_device_that_is_in_1970_today_leaves_the_files_of_an_earlier_boot_where_they_were() {
        let now = 1_795_302_000_000;
        let captured = Stamp { wall_ms: now - 86_400_000, boot: boot("before", 5_000) };
        let today = anchor("now", 30_000, now);
        let offset = now - 30_000;
        let time = captured.in_server_time(&[today], offset, Timestamp::clamped(now));
        assert_eq!(time.as_millis(), now - 86_400_000);
    }

    #[test]
    fn an_anchor_of_another_boot_says_nothing() {
        let captured = Stamp { wall_ms: 1_000_000, boot: boot("before", 5_000) };
        let (anchor, now) = (anchor("now", 1, 9_000_000), Timestamp::clamped(9_000_000));
        assert_eq!(captured.in_server_time(&[anchor], 2_000, now).as_millis(), 1_002_000);
        let unknown = Stamp { wall_ms: 1_000_000, boot: None };
        assert_eq!(unknown.in_server_time(&[], -2_000, now).as_millis(), 998_000);
    }

    #[test]
    fn a_boot_that_ended_is_still_known_by_its_anchor() {
        let captured = Stamp { wall_ms: 0, boot: boot("before", 5_000) };
        let anchors = [anchor("before", 4_000, 7_000_000), anchor("now", 1, 9_000_000)];
        assert_eq!(captured.in_server_time(&anchors, 0, NOW).as_millis(), 7_001_000);
    }

    #[test]
    fn this_machine_tells_both_clocks() {
        let (one, two) = (Stamp::now(), Stamp::now());
        assert!(two.wall_ms >= one.wall_ms && one.wall_ms > 1_700_000_000_000);
        assert_eq!(one.boot.unwrap().id, two.boot.unwrap().id);
    }
}

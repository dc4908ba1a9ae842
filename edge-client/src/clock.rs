//! When something happened, on machines whose clock is stepped, wrong, or starts in 1970.
//!
//! A [`Stamp`] is taken from two clocks: the wall clock, and the one that counts since boot and is never set. A later measurement
//! of the server's time in the same boot (an [`Anchor`]) tells when the stamp was taken, whatever was done to the wall clock in between.

use std::time::{SystemTime, UNIX_EPOCH};

use millpond_protocol::Timestamp;
use serde::{Deserialize, Serialize};

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

    /// This moment as an anchor, given how far the wall clock is from the server's now.
    pub fn anchor(&self, offset_ms: i64) -> Option<Anchor> {
        let boot = self.boot.clone()?;
        Some(Anchor { boot, server_ms: self.wall_ms.saturating_add(offset_ms) })
    }

    /// When it was taken, in server time: exactly, with an anchor of its boot; else by its wall clock and the offset of today,
    /// as if the clock had been as wrong then as it is now.
    pub fn in_server_time(&self, anchors: &[Anchor], offset_ms: i64) -> Timestamp {
        let same = |anchor: &&Anchor| self.boot.as_ref().is_some_and(|boot| boot.id == anchor.boot.id);
        let ms = match (anchors.iter().rev().find(same), &self.boot) {
            (Some(anchor), Some(boot)) => {
                anchor.server_ms.saturating_add(boot.ms.saturating_sub(anchor.boot.ms))
            }
            _ => self.wall_ms.saturating_add(offset_ms),
        };
        Timestamp::clamped(ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(id: &str, ms: i64) -> Option<Boot> {
        Some(Boot { id: id.into(), ms })
    }

    #[test]
    fn a_step_of_the_wall_clock_between_capture_and_sending_does_not_move_the_capture() {
        // The device booted in 1970, captured, and then learnt the time.
        let captured = Stamp { wall_ms: 60_000, boot: boot("b", 60_000) };
        let later = Stamp { wall_ms: 1_795_302_000_000, boot: boot("b", 100_000) };
        let anchor = later.anchor(-500).unwrap();
        assert_eq!(captured.in_server_time(&[anchor], -500).as_millis(), 1_795_302_000_000 - 500 - 40_000);
    }

    #[test]
    fn an_anchor_of_another_boot_says_nothing() {
        let captured = Stamp { wall_ms: 1_000_000, boot: boot("before", 5_000) };
        let anchor = Anchor { boot: Boot { id: "now".into(), ms: 1 }, server_ms: 9_000_000 };
        assert_eq!(captured.in_server_time(&[anchor], 2_000).as_millis(), 1_002_000);
        let unknown = Stamp { wall_ms: 1_000_000, boot: None };
        assert_eq!(unknown.in_server_time(&[], -2_000).as_millis(), 998_000);
    }

    #[test]
    fn a_boot_that_ended_is_still_known_by_its_anchor() {
        let captured = Stamp { wall_ms: 0, boot: boot("before", 5_000) };
        let anchors = [
            Anchor { boot: Boot { id: "before".into(), ms: 4_000 }, server_ms: 7_000_000 },
            Anchor { boot: Boot { id: "now".into(), ms: 1 }, server_ms: 9_000_000 },
        ];
        assert_eq!(captured.in_server_time(&anchors, 0).as_millis(), 7_001_000);
    }

    #[test]
    fn this_machine_tells_both_clocks() {
        let (one, two) = (Stamp::now(), Stamp::now());
        assert!(two.wall_ms >= one.wall_ms && one.wall_ms > 1_700_000_000_000);
        assert_eq!(one.boot.unwrap().id, two.boot.unwrap().id);
    }
}

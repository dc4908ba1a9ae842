//! Instants as milliseconds since the Unix epoch, UTC; RFC 3339 with milliseconds on every JSON wire.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 9998-12-31T23:59:59.999Z: the calendar library ends within 9999, and nobody waits for it.
const LAST_MS: i64 = 253_370_764_799_999;

/// An instant in milliseconds since 1970-01-01T00:00:00Z, from then to the end of the year 9998.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(i64);

/// The text or number is no instant that Millpond keeps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a time is RFC 3339 or milliseconds since 1970, in the years 1970 to 9998")]
pub struct BadTime;

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);
    /// 9998-12-31T23:59:59.999Z.
    pub const MAX: Self = Self(LAST_MS);

    /// From milliseconds since the epoch; refuses what lies before 1970 or after 9998.
    pub fn from_millis(ms: i64) -> Result<Self, BadTime> {
        if (0..=LAST_MS).contains(&ms) { Ok(Self(ms)) } else { Err(BadTime) }
    }

    /// From milliseconds since the epoch, held inside 1970–9998.
    pub fn clamped(ms: i64) -> Self {
        Self(ms.clamp(0, LAST_MS))
    }

    /// Milliseconds since the epoch.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// The instant `by` later, at most the end of the year 9998.
    pub fn after(self, by: Duration) -> Self {
        Self::clamped(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The instant `by` earlier, at least the epoch.
    pub fn before(self, by: Duration) -> Self {
        Self::clamped(self.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long it is from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instant = jiff::Timestamp::from_millisecond(self.0).unwrap_or_default();
        write!(f, "{instant:.3}")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = BadTime;

    /// Reads RFC 3339, or a whole number of milliseconds.
    fn from_str(text: &str) -> Result<Self, BadTime> {
        let ms = match text.parse::<i64>() {
            Ok(ms) => ms,
            Err(_) => text.parse::<jiff::Timestamp>().map_err(|_| BadTime)?.as_millisecond(),
        };
        Self::from_millis(ms)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Millis(i64),
            Text(String),
        }
        let time = match Form::deserialize(deserializer)? {
            Form::Millis(ms) => Self::from_millis(ms),
            Form::Text(text) => text.parse(),
        };
        time.map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_as_utc_with_milliseconds_and_read_back() {
        let t = Timestamp::from_millis(1_700_000_000_120).unwrap();
        assert_eq!(t.to_string(), "2023-11-14T22:13:20.120Z");
        for text in ["2023-11-14T22:13:20.120Z", "2023-11-14T23:13:20.12+01:00", "1700000000120"] {
            assert_eq!(text.parse(), Ok(t), "{text}");
        }
        assert_eq!(serde_json::from_str::<Timestamp>("1700000000120").unwrap(), t);
        assert_eq!(serde_json::to_string(&t).unwrap(), "\"2023-11-14T22:13:20.120Z\"");
    }

    #[test]
    fn absurd_times_are_refused() {
        for text in
            ["", "soon", "-1", "253370764800000", "9223372036854775807", "2023-11-14", "1969-12-31T23:59:59Z"]
        {
            assert_eq!(text.parse::<Timestamp>(), Err(BadTime), "{text}");
        }
        assert_eq!(Timestamp::MAX.to_string(), "9998-12-31T23:59:59.999Z");
    }

    #[test]
    fn arithmetic_stays_inside_the_calendar() {
        assert_eq!(Timestamp::MAX.after(Duration::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::EPOCH.before(Duration::from_secs(1)), Timestamp::EPOCH);
        assert_eq!(Timestamp::EPOCH.since(Timestamp::MAX), Duration::ZERO);
    }
}

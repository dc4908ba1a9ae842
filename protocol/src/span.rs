//! Lengths of time as people write them.

use std::str::FromStr;
use std::time::Duration;

/// A length of time such as `90s`, `1h 30m` or `7d`; a day has 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span: jiff::Span =
            text.parse().map_err(|_| format!("{text:?} is no time such as 90s, 12h or 7d"))?;
        let signed = span
            .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
            .map_err(|error| format!("{text:?}: {error}"))?;
        Duration::try_from(signed).map(Self).map_err(|_| format!("{text:?} is negative"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_hours_and_seconds_are_read_and_nonsense_is_refused() {
        let read = |text: &str| text.parse::<Span>().map(|Span(span)| span.as_secs());
        assert_eq!(read("90s"), Ok(90));
        assert_eq!(read("7d"), Ok(7 * 86_400));
        assert_eq!(read("1h 30m"), Ok(5_400));
        for nonsense in ["", "7", "m", "-1h", "soon", "1 month", "1ü", "99999999999999999999d"] {
            assert!(read(nonsense).is_err(), "{nonsense:?}");
        }
    }
}

//! Whether retention believes the clock: what a wrong one deletes is gone.
//!
//! The ledger keeps the latest time that was believed. Time that the server ran since then is believed too, and a clock
//! that is a little further; at a start, when nobody knows how long the server was down, a day further. A clock that is
//! ahead of that is doubted: nothing is deleted until an operator confirms it, it is set back, or the server has run with
//! it for as long as it leapt, a week at most: so long waits a server that was switched off for a month.

use std::fmt;
use std::time::Duration;

use millpond_protocol::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::ledger::Result;

/// How far a clock may leap while the server runs.
const LEAP: Duration = Duration::from_secs(3_600);
/// How far it may be ahead at a start.
const LEAP_AT_START: Duration = Duration::from_secs(86_400);
/// Longest time that a clock is doubted while the server runs with it.
const PROVEN: Duration = Duration::from_secs(7 * 86_400);

/// What is believed of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trust {
    /// The latest time that was believed.
    pub believed: Timestamp,
    /// The clock is further than that can be.
    pub doubt: Option<Doubt>,
}

/// A clock that is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    /// What it said last.
    pub seen: Timestamp,
    /// How far it was ahead when the doubt began.
    pub ahead: Duration,
    /// How long the server has run with it since.
    pub ran: Duration,
}

impl Doubt {
    /// How long the server has to run with it until it is believed.
    pub fn left(&self) -> Duration {
        self.ahead.min(PROVEN).saturating_sub(self.ran)
    }
}

impl Trust {
    /// A clock that is believed.
    pub fn in_clock(wall: Timestamp) -> Self {
        Self { believed: wall, doubt: None }
    }

    /// What is believed when the clock says `wall`, `since` the last look; none: the server was down in between.
    #[must_use]
    pub fn look(self, wall: Timestamp, since: Option<Duration>) -> Self {
        let ran = since.unwrap_or_default();
        let leap = since.map_or(LEAP_AT_START, |_| LEAP);
        let believed = self.believed.after(ran);
        if wall <= believed.after(leap) {
            // It does not go back with the clock: a host that starts in 1970 and asks for the time is no leap.
            return Self::in_clock(believed.max(wall));
        }
        let same = |doubt: &Doubt| {
            let expected = doubt.seen.after(ran);
            wall <= expected.after(leap) && expected <= wall.after(leap)
        };
        let doubt = match self.doubt.filter(same) {
            Some(doubt) => Doubt { seen: wall, ran: doubt.ran + ran, ..doubt },
            None => Doubt { seen: wall, ahead: wall.since(believed), ran: Duration::ZERO },
        };
        if doubt.left().is_zero() { Self::in_clock(wall) } else { Self { believed, doubt: Some(doubt) } }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the clock says {}, {} later than it can be: nothing is deleted before the server has run with it for \
             another {}",
            self.seen,
            About(self.ahead),
            About(self.left())
        )
    }
}

/// What an operator does about a doubted clock.
pub const ADVICE: &str = "set the clock right, or confirm it by `millpond gc --trust-clock`";

/// A duration for people, rounded.
struct About(Duration);

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (unit, name) in [(86_400, "days"), (3_600, "hours")] {
            if seconds >= 2 * unit {
                return write!(f, "{} {name}", seconds / unit);
            }
        }
        write!(f, "{} minutes", seconds.div_ceil(60))
    }
}

/// What was believed at the last look; none before the first one.
///
/// # Errors
/// SQLite's.
pub fn last(sql: &Connection) -> Result<Option<Trust>> {
    let mut statement = sql.prepare_cached("SELECT believed, doubted, ahead_ms, ran_ms FROM clock")?;
    let found = statement.query_row([], |row| {
        let millis = |column| Ok::<_, rusqlite::Error>(Duration::from_millis(row.get(column)?));
        let doubt = match row.get::<_, Option<i64>>(1)? {
            Some(seen) => Some(Doubt { seen: Timestamp::clamped(seen), ahead: millis(2)?, ran: millis(3)? }),
            None => None,
        };
        Ok(Trust { believed: Timestamp::clamped(row.get(0)?), doubt })
    });
    Ok(found.optional()?)
}

/// Keeps what is believed.
pub(super) fn keep(sql: &Connection, trust: Trust) -> Result<()> {
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let doubt = trust.doubt;
    sql.prepare_cached(
        "INSERT OR REPLACE INTO clock (id, believed, doubted, ahead_ms, ran_ms) VALUES (1, ?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        trust.believed.as_millis(),
        doubt.map(|doubt| doubt.seen.as_millis()),
        doubt.map(|doubt| millis(doubt.ahead)),
        doubt.map(|doubt| millis(doubt.ran))
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);
    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn noon() -> Timestamp {
        "2026-06-01T12:00:00Z".parse().unwrap()
    }

    /// Looks once a minute for so long, with a clock that is right by then.
    fn run(mut trust: Trust, from: Timestamp, how_long: Duration) -> (Trust, Timestamp) {
        let mut wall = from;
        for _ in 0..how_long.as_secs() / 60 {
            wall = wall.after(MINUTE);
            trust = trust.look(wall, Some(MINUTE));
        }
        (trust, wall)
    }

    #[test]
    fn a_clock_that_is_a_year_ahead_at_the_start_is_doubted_for_a_week_of_running_and_then_believed() {
        let wrong = noon().after(YEAR);
        let trust = Trust::in_clock(noon()).look(wrong, None);
        assert_eq!(trust.believed, noon());
        assert_eq!(trust.doubt.map(|doubt| (doubt.ahead, doubt.left())), Some((YEAR, 7 * DAY)));
        let (trust, wall) = run(trust, wrong, 7 * DAY - MINUTE);
        assert_eq!(trust.doubt.map(|doubt| doubt.left()), Some(MINUTE));
        let (trust, wall) = run(trust, wall, MINUTE);
        assert_eq!(trust, Trust::in_clock(wall));
    }

    #[test]
    fn restarts_neither_end_a_doubt_nor_begin_it_again() {
        let wrong = noon().after(YEAR);
        let (mut trust, mut wall) = (Trust::in_clock(noon()).look(wrong, None), wrong);
        for left in (1..7).rev() {
            (trust, wall) = run(trust, wall, DAY);
            wall = wall.after(MINUTE * 30);
            trust = trust.look(wall, None);
            assert_eq!(trust.doubt.map(|doubt| doubt.left()), Some(left * DAY));
        }
    }

    #[test]
    fn who_was_down_for_less_than_a_day_is_not_doubted_and_who_was_for_two_waits_for_as_long() {
        let trust = Trust::in_clock(noon());
        assert_eq!(trust.look(noon().after(DAY), None).doubt, None);
        let back = noon().after(2 * DAY);
        let (trust, _) = run(trust.look(back, None), back, 2 * DAY - MINUTE);
        assert_eq!(trust.doubt.map(|doubt| doubt.left()), Some(MINUTE));
    }

    #[test]
    fn a_clock_that_leaps_while_the_server_runs_is_doubted_until_it_is_set_back() {
        let trust = Trust::in_clock(noon());
        let later = noon().after(MINUTE);
        let doubted = trust.look(later.after(2 * LEAP), Some(MINUTE));
        assert_eq!(doubted.doubt.map(|doubt| doubt.ahead), Some(2 * LEAP));
        assert_eq!(doubted.look(later.after(MINUTE), Some(MINUTE)), Trust::in_clock(later.after(MINUTE)));
        // One that leaps on has not been run with.
        let (ran, wall) = run(doubted, later.after(2 * LEAP), LEAP);
        let again = ran.look(wall.after(YEAR), Some(MINUTE));
        assert!(again.doubt.is_some_and(|doubt| doubt.ran.is_zero() && doubt.left() == 7 * DAY), "{again:?}");
    }

    #[test]
    fn a_host_without_a_clock_of_its_own_starts_in_1970_and_is_believed_once_it_has_the_time() {
        let trust = Trust::in_clock(noon()).look(Timestamp::EPOCH, None);
        assert_eq!(trust, Trust::in_clock(noon()));
        let set = noon().after(MINUTE);
        assert_eq!(trust.look(set, Some(MINUTE)), Trust::in_clock(set));
    }
}

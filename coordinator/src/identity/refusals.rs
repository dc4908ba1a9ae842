//! Refused sign-ins on their way into the audit trail. Pure.
//!
//! A stranger can fail as fast as it can connect, and for ever, and the trail is never cut. So refusals are summed: an entry
//! at the first of a user, an address and a reason, and then one an hour while it goes on; a bounded number of them in an
//! hour, and one for all the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use millpond_protocol::Timestamp;

/// Kinds that are told apart in an hour; what comes beyond is summed in one.
const KINDS: usize = 128;
/// Between two entries of one kind.
const EVERY: Duration = Duration::from_secs(3_600);

/// Sign-ins of one kind that were refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The user that was tried, where one was named; `None` for several, and where it may be a secret in the wrong field.
    pub user: Option<String>,
    /// Where from; `None`: from several addresses.
    pub from: Option<IpAddr>,
    pub why: &'static str,
    pub count: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

/// User, address and reason.
type Kind = (Option<String>, IpAddr, &'static str);
/// How many, the first and the last.
type Sum = (u64, Timestamp, Timestamp);

/// What was refused lately.
#[derive(Debug, Default)]
pub struct Refusals {
    kinds: HashMap<Kind, Open>,
    others: Open,
}

/// What is known of a kind.
#[derive(Debug, Default)]
struct Open {
    /// What is not taken yet.
    sum: Option<Sum>,
    /// When some was taken last.
    taken: Option<Instant>,
}

impl Open {
    fn note(&mut self, now: Timestamp) {
        let (count, first, _) = self.sum.unwrap_or((0, now, now));
        self.sum = Some((count + 1, first, now));
    }

    fn is_due(&self, at: Instant) -> bool {
        self.taken.is_none_or(|taken| at.saturating_duration_since(taken) >= EVERY)
    }

    fn take(&mut self, at: Instant) -> Option<Sum> {
        let sum = self.sum.take()?;
        self.taken = Some(at);
        Some(sum)
    }
}

impl Refusals {
    /// Notes one.
    pub fn note(&mut self, now: Timestamp, user: Option<&str>, from: IpAddr, why: &'static str) {
        let key = (user.map(str::to_owned), from, why);
        let known = self.kinds.len() < KINDS || self.kinds.contains_key(&key);
        let open = if known { self.kinds.entry(key).or_default() } else { &mut self.others };
        open.note(now);
    }

    /// What is to be written at that instant, or `all` that was not, by time of the first.
    pub fn take(&mut self, at: Instant, all: bool) -> Vec<Refused> {
        let mut taken = Vec::new();
        if let Some((count, first, last)) =
            (all || self.others.is_due(at)).then(|| self.others.take(at)).flatten()
        {
            let why = "more users and addresses than are told apart";
            taken.push(Refused { user: None, from: None, why, count, first, last });
        }
        self.kinds.retain(|(user, from, why), open| {
            if !(all || open.is_due(at)) {
                return true;
            }
            let sum = open.take(at);
            taken.extend(sum.map(|(count, first, last)| Refused {
                user: user.clone(),
                from: Some(*from),
                why,
                count,
                first,
                last,
            }));
            // Whoever was not refused for an hour is forgotten.
            sum.is_some()
        });
        taken.sort_by_key(|refused| refused.first);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_in_one_sum_however_many_there_are() {
        let mut refusals = Refusals::default();
        let at = |n: i64| Timestamp::clamped(n);
        for n in 0..1_000_u32 {
            let from = IpAddr::from(n.to_be_bytes());
            refusals.note(at(i64::from(n)), Some("p/m"), from, "wrong");
            refusals.note(at(i64::from(n)), Some("p/m"), [192, 0, 2, 1].into(), "wrong");
        }
        let start = Instant::now();
        let taken = refusals.take(start, false);
        assert_eq!(taken.len(), KINDS + 1);
        assert_eq!(taken.iter().map(|refused| refused.count).sum::<u64>(), 2_000);
        let one = taken.iter().find(|refused| refused.from == Some([192, 0, 2, 1].into())).unwrap();
        assert_eq!((one.count, one.first, one.last), (1_000, at(0), at(999)));
        assert_eq!(taken.iter().filter(|refused| refused.from.is_none()).count(), 1);
        assert_eq!(refusals.take(start, true), []);
    }

    #[test]
    fn whoever_is_refused_for_a_day_is_an_entry_at_once_and_then_one_an_hour() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let (mut entries, mut count) = (Vec::new(), 0);
        for second in (0..86_400).step_by(5) {
            for n in 0..200_u32 {
                refusals.note(Timestamp::clamped(second), None, n.to_be_bytes().into(), "wrong");
                count += 1;
            }
            let at = start + Duration::from_secs(second.unsigned_abs());
            entries.extend(refusals.take(at, false));
            assert!(second > 0 || entries.len() == KINDS + 1);
        }
        assert_eq!(entries.len(), 24 * (KINDS + 1));
        entries.extend(refusals.take(start, true));
        assert_eq!(entries.iter().map(|refused| refused.count).sum::<u64>(), count);
    }
}

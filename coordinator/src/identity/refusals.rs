//! Refused sign-ins on their way into the audit trail. Pure.
//!
//! A stranger can fail as fast as it can connect, so refusals are summed: one entry for each user, address and reason, a
//! bounded number of them between two looks, and one for all the others.

use std::collections::HashMap;
use std::net::IpAddr;

use millpond_protocol::Timestamp;

/// Entries between two looks; what comes beyond is summed in one.
const ENTRIES: usize = 32;

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

/// What was refused since the last look.
#[derive(Debug, Default)]
pub struct Refusals {
    kinds: HashMap<Kind, Sum>,
    others: Option<Sum>,
}

impl Refusals {
    /// Notes one.
    pub fn note(&mut self, now: Timestamp, user: Option<&str>, from: IpAddr, why: &'static str) {
        let key = (user.map(str::to_owned), from, why);
        let known = self.kinds.len() < ENTRIES || self.kinds.contains_key(&key);
        let sum = match known {
            true => self.kinds.entry(key).or_insert((0, now, now)),
            false => self.others.get_or_insert((0, now, now)),
        };
        *sum = (sum.0 + 1, sum.1, now);
    }

    /// What was refused, by time of the first; nothing is left.
    pub fn take(&mut self) -> Vec<Refused> {
        let others = self.others.take().map(|(count, first, last)| {
            let why = "more users and addresses than are told apart";
            Refused { user: None, from: None, why, count, first, last }
        });
        let kinds = self.kinds.drain().map(|((user, from, why), (count, first, last))| Refused {
            user,
            from: Some(from),
            why,
            count,
            first,
            last,
        });
        let mut all: Vec<_> = kinds.chain(others).collect();
        all.sort_by_key(|refused| refused.first);
        all
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
        let taken = refusals.take();
        assert_eq!(taken.len(), ENTRIES + 1);
        assert_eq!(taken.iter().map(|refused| refused.count).sum::<u64>(), 2_000);
        let one = taken.iter().find(|refused| refused.from == Some([192, 0, 2, 1].into())).unwrap();
        assert_eq!((one.count, one.first, one.last), (1_000, at(0), at(999)));
        assert_eq!(taken.iter().filter(|refused| refused.from.is_none()).count(), 1);
        assert_eq!(refusals.take(), []);
    }
}

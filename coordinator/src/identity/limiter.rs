//! How often a sign-in may fail. Pure: time is handed in.
//!
//! Failures count for the address they come from, and for the address together with the name that was tried; never for a
//! name alone, or a stranger could lock a device out. Each key is a leaky bucket, kept as the one instant at which it will
//! be empty again. An IPv6 client owns a whole /64, so that is its address here.
//!
//! Tokens cannot be guessed; what is saved is the work, and the audit trail from drowning. So a device behind a shared
//! address does not pay for its neighbour: of a name that fails for ever, however slowly, only the first failure costs the
//! address. What the address's own limit ends is trying ever other names.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use millpond_net::network;

/// Keys of one generation; there are two, of about 48 bytes each key.
const KEYS: usize = 32_768;

/// Failures that are let pass at once, and how fast they are forgiven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    pub burst: u32,
    /// Time for which one failure counts after those before it.
    pub each: Duration,
}

impl Allowance {
    /// How full the bucket may be for one more failure to fit.
    fn room(self) -> Duration {
        self.each * self.burst.saturating_sub(1)
    }
}

/// Who failed: a network address, and the hash of a name where it is about one.
type Key = (IpAddr, Option<u64>);

/// What failed lately.
#[derive(Debug)]
pub struct Limiter {
    per_name: Allowance,
    per_address: Allowance,
    names: RandomState,
    /// When each bucket is empty. Keys that were not used since the last turn are in `old`, and forgotten at the next.
    young: HashMap<Key, Instant>,
    old: HashMap<Key, Instant>,
}

impl Limiter {
    /// A limiter that nobody has failed at.
    pub fn new(per_name: Allowance, per_address: Allowance) -> Self {
        Self { per_name, per_address, names: RandomState::new(), young: HashMap::new(), old: HashMap::new() }
    }

    /// How long whoever is at `from` has to wait until its credentials for `name` are looked at again; `None`: not at all.
    pub fn wait(&self, now: Instant, from: IpAddr, name: Option<&str>) -> Option<Duration> {
        let of_name = name.and_then(|name| self.over(now, self.named(from, name), self.per_name));
        of_name.max(self.over(now, (network(from), None), self.per_address))
    }

    /// The same for `one` of those who share a name that is right, as devices do that have one join token.
    pub fn wait_among(&self, now: Instant, from: IpAddr, name: &str, one: &str) -> Option<Duration> {
        let (own, among) = self.shared(from, name, one);
        self.over(now, own, self.per_name).max(self.over(now, among, self.per_address))
    }

    fn over(&self, now: Instant, key: Key, allowance: Allowance) -> Option<Duration> {
        let empty = self.young.get(&key).or_else(|| self.old.get(&key))?;
        empty.saturating_duration_since(now).checked_sub(allowance.room()).filter(|wait| !wait.is_zero())
    }

    /// Counts a failure.
    pub fn failed(&mut self, now: Instant, from: IpAddr, name: Option<&str>) {
        let first = name.is_none_or(|name| self.count(now, self.named(from, name), self.per_name));
        if first {
            self.count(now, (network(from), None), self.per_address);
        }
    }

    /// Counts a failure of `one` of those who share a name: the others go on, unless ever other ones fail.
    pub fn failed_among(&mut self, now: Instant, from: IpAddr, name: &str, one: &str) {
        let (own, among) = self.shared(from, name, one);
        if self.count(now, own, self.per_name) {
            self.count(now, among, self.per_address);
        }
    }

    /// Fills the bucket of a key by one; whether the key was not known.
    fn count(&mut self, now: Instant, key: Key, allowance: Allowance) -> bool {
        let empty = self.old.remove(&key).or_else(|| self.young.remove(&key));
        if self.young.len() >= KEYS {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, empty.map_or(now, |empty| empty.max(now)) + allowance.each);
        empty.is_none()
    }

    fn named(&self, from: IpAddr, name: &str) -> Key {
        (network(from), Some(self.names.hash_one(name)))
    }

    /// The keys of one of those who share a name, and of all of them.
    fn shared(&self, from: IpAddr, name: &str, one: &str) -> (Key, Key) {
        let key = |one: Option<&str>| (network(from), Some(self.names.hash_one((name, one))));
        (key(Some(one)), key(None))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limiter() -> (Limiter, Instant) {
        let per_name = Allowance { burst: 3, each: 10 * SECOND };
        (Limiter::new(per_name, Allowance { burst: 5, each: SECOND }), Instant::now())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_may_fail_as_often_as_its_burst_and_then_once_each_time() {
        let (mut limiter, now) = limiter();
        let (here, name) = (ip("192.0.2.1"), Some("p/m"));
        for _ in 0..3 {
            assert_eq!(limiter.wait(now, here, name), None);
            limiter.failed(now, here, name);
        }
        assert_eq!(limiter.wait(now, here, name), Some(10 * SECOND));
        assert_eq!(limiter.wait(now + 9 * SECOND, here, name), Some(SECOND));
        assert_eq!(limiter.wait(now + 10 * SECOND, here, name), None);
        limiter.failed(now + 10 * SECOND, here, name);
        assert_eq!(limiter.wait(now + 10 * SECOND, here, name), Some(10 * SECOND));
    }

    #[test]
    fn neither_the_same_name_elsewhere_nor_another_name_here_pays_for_it() {
        let (mut limiter, now) = limiter();
        for _ in 0..4 {
            limiter.failed(now, ip("192.0.2.1"), Some("p/m"));
        }
        assert!(limiter.wait(now, ip("192.0.2.1"), Some("p/m")).is_some());
        assert_eq!(limiter.wait(now, ip("192.0.2.1"), Some("p/n")), None);
        assert_eq!(limiter.wait(now, ip("192.0.2.2"), Some("p/m")), None);
    }

    #[test]
    fn names_that_fail_for_ever_do_not_lock_their_neighbours_out() {
        let (mut limiter, start) = limiter();
        let here = ip("192.0.2.1");
        for second in 0..600 {
            let now = start + second * SECOND;
            // One that tries all the time, and many that try twice a minute.
            for name in ["p/eager".to_owned(), format!("p/a-{}", second % 30), format!("p/b-{}", second % 30)]
            {
                if limiter.wait(now, here, Some(&name)).is_none() {
                    limiter.failed(now, here, Some(&name));
                }
            }
            if second > 60 {
                assert_eq!(limiter.wait(now, here, Some("p/healthy")), None, "after {second} s");
            }
        }
    }

    #[test]
    fn one_that_shares_a_name_pays_for_itself_and_only_ever_other_ones_pay_for_the_name() {
        let (mut limiter, now) = limiter();
        let (here, join) = (ip("192.0.2.1"), "token");
        for _ in 0..9 {
            limiter.failed_among(now, here, join, "eager");
        }
        assert!(limiter.wait_among(now, here, join, "eager").is_some());
        assert_eq!(limiter.wait_among(now, here, join, "other"), None);
        for n in 0..4 {
            limiter.failed_among(now, here, join, &n.to_string());
        }
        assert_eq!(limiter.wait_among(now, here, join, "other"), Some(SECOND));
        // Of another name, from elsewhere, and of the address itself nothing is counted.
        assert_eq!(limiter.wait_among(now, here, "another", "other"), None);
        assert_eq!(limiter.wait_among(now, ip("192.0.2.2"), join, "other"), None);
        assert_eq!(limiter.wait(now, here, Some(join)), None);
    }

    #[test]
    fn an_address_has_a_limit_over_all_names_and_a_network_of_ipv6_is_one_address() {
        let (mut limiter, now) = limiter();
        for n in 0..5 {
            limiter.failed(now, ip(&format!("2001:db8::{n}")), Some(&n.to_string()));
        }
        assert_eq!(limiter.wait(now, ip("2001:db8::ffff"), Some("new")), Some(SECOND));
        assert_eq!(limiter.wait(now, ip("2001:db8::ffff"), None), Some(SECOND));
        assert_eq!(limiter.wait(now, ip("2001:db8:0:1::1"), Some("new")), None);
        for _ in 0..5 {
            limiter.failed(now, ip("::ffff:192.0.2.1"), None);
        }
        assert!(limiter.wait(now, ip("192.0.2.1"), None).is_some());
    }

    #[test]
    fn memory_is_bounded_and_whoever_still_fails_is_not_forgotten() {
        let (mut limiter, now) = limiter();
        let busy = ip("192.0.2.1");
        for n in 0..200_000_u32 {
            limiter.failed(now, Ipv6Addr::from_bits(u128::from(n) << 64).into(), None);
            if n % 20_000 == 0 {
                limiter.failed(now, busy, None);
            }
        }
        assert!(limiter.young.len() <= KEYS && limiter.old.len() <= KEYS);
        assert!(limiter.wait(now, busy, None).is_some());
    }
}

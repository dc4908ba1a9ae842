//! How fast members may send: so many packets and bytes a second for each member, and for each pool. Pure: time is handed
//! in.
//!
//! What has been read is charged; whoever is over its rate then is not read for as long as it takes to be within it again,
//! so nothing is refused and TCP holds the client back. Each rate is a leaky bucket that holds what may come in [`BURST`].
//!
//! **What is fair in a pool.** A pool over its rate holds back those of its members alone who are over their share, which is
//! the pool's rate divided by the members that sent lately, or wait. So a member that sends less than its share never waits for
//! one that floods; what others leave of their shares is for whoever comes first. All connections of a member are one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond_protocol::{MemberName, PoolName, Principal};

/// What comes in this time at the rate may come at once.
const BURST: Duration = Duration::from_secs(1);
/// Who has sent in this time or in the one before has a share of its pool's rate.
const LATELY: Duration = Duration::from_secs(2);
/// The least time for which a connection is not read: a timer has no finer steps.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Members that are remembered before those who have sent nothing for a while are looked for.
const REMEMBERED: usize = 64;

/// What may come in a second; 0: any number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Packets, acknowledgements aside.
    pub messages: u64,
    /// Bytes, all included.
    pub bytes: u64,
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// Not to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) until: Instant,
    /// Whose rate it is, for metrics.
    pub(crate) limit: &'static str,
}

/// What all connections of the gate share.
#[derive(Debug)]
pub(crate) struct Rates {
    member: Rate,
    pool: Rate,
    pools: Mutex<HashMap<PoolName, Arc<Mutex<Pool>>>>,
}

/// What one connection has of it.
#[derive(Debug)]
pub(crate) struct Meter {
    pool: Arc<Mutex<Pool>>,
    member: MemberName,
}

impl Rates {
    pub(crate) fn new(member: Rate, pool: Rate) -> Self {
        Self { member, pool, pools: Mutex::default() }
    }

    /// The meter of a member's connection; `None`: it may send as fast as it can.
    pub(crate) fn meter(&self, who: &Principal) -> Option<Meter> {
        if (self.member, self.pool) == Default::default() {
            return None;
        }
        // Pools are made by who runs the server, so they are few.
        let mut pools = lock(&self.pools);
        let pool = pools
            .entry(who.pool.clone())
            .or_insert_with(|| Arc::new(Mutex::new(Pool::new(self.member, self.pool, Instant::now()))));
        Some(Meter { pool: pool.clone(), member: who.name.clone() })
    }
}

impl Meter {
    /// Charges what was read, which may be nothing; whether the connection is to pause.
    pub(crate) fn charge(&self, now: Instant, load: Load) -> Option<Pause> {
        lock(&self.pool).charge(now, &self.member, load)
    }
}

/// The rates of one pool and of its members.
#[derive(Debug)]
struct Pool {
    member_rate: Rate,
    rate: Rate,
    used: Bucket,
    members: HashMap<MemberName, Member>,
    /// Members at which those that are idle are looked for.
    look_at: usize,
    /// Since when `sending` is counted, and how many had sent in the time before.
    since: Instant,
    period: u64,
    sending: u64,
    sent_before: u64,
}

#[derive(Debug)]
struct Member {
    own: Bucket,
    /// Beside its share of the pool's rate.
    share: Bucket,
    /// In which it was counted last.
    period: u64,
}

impl Pool {
    fn new(member_rate: Rate, rate: Rate, now: Instant) -> Self {
        Self {
            member_rate,
            rate,
            used: Bucket::empty(now),
            members: HashMap::new(),
            look_at: REMEMBERED,
            since: now,
            period: 1,
            sending: 0,
            sent_before: 0,
        }
    }

    fn charge(&mut self, now: Instant, name: &MemberName, load: Load) -> Option<Pause> {
        self.turn(now);
        let share = self.share();
        let (own_flow, pool_flow) = (Flow::of(self.member_rate), Flow::of(self.rate));
        if !self.members.contains_key(name) {
            if load == Load::default() {
                return None;
            }
            self.forget_idle(now);
            let member = Member { own: Bucket::empty(now), share: Bucket::empty(now), period: 0 };
            self.members.insert(name.clone(), member);
        }
        let member = self.members.get_mut(name)?;
        if load != Load::default() && member.period != self.period {
            member.period = self.period;
            self.sending += 1;
        }
        let own = member.own.charge(now, own_flow, load);
        let over_share = member.share.charge(now, share, load);
        let over_pool = self.used.charge(now, pool_flow, load);
        if over_pool.is_zero() {
            // What a pool had room for is held against nobody later.
            member.share.forgive(share);
        }
        // Within its share nobody waits; over it, until it is not, or until the pool has room.
        let pool = over_pool.min(over_share);
        let (wait, limit) = if own >= pool { (own, "member") } else { (pool, "pool") };
        (!wait.is_zero()).then(|| Pause { until: now + wait.max(PAUSE_MIN), limit })
    }

    /// What each of those who sent lately, or wait, may have of the pool's rate.
    fn share(&self) -> Flow {
        Flow::of(self.rate).divided(self.sending.max(self.sent_before))
    }

    /// Begins a new period for the count of those who send.
    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= LATELY {
            let share = self.share();
            let waits = |member: &mut Member| !member.share.charge(now, share, Load::default()).is_zero();
            // Who waits has sent nothing lately, and still wants its share.
            let waiting = self.members.values_mut().map(waits).map(u64::from).sum::<u64>();
            self.sent_before = waiting.max(if passed < 2 * LATELY { self.sending } else { 0 });
            (self.since, self.period, self.sending) = (now, self.period + 1, 0);
        }
    }

    /// Forgets members whose buckets are empty, as those of new ones are, when there have come to be many.
    fn forget_idle(&mut self, now: Instant) {
        if self.members.len() < self.look_at {
            return;
        }
        let (share, own) = (self.share(), Flow::of(self.member_rate));
        self.members.retain(|_, member| {
            member.own.drain(now, own);
            member.share.drain(now, share);
            !(member.own.is_empty() && member.share.is_empty())
        });
        self.look_at = REMEMBERED.max(2 * self.members.len());
    }
}

/// A rate that can be divided; `None`: any.
#[derive(Debug, Clone, Copy)]
struct Flow {
    messages: Option<f64>,
    bytes: Option<f64>,
}

impl Flow {
    fn of(rate: Rate) -> Self {
        let flow = |n: u64| (n > 0).then_some(n as f64);
        Self { messages: flow(rate.messages), bytes: flow(rate.bytes) }
    }

    fn divided(self, by: u64) -> Self {
        let by = by.max(1) as f64;
        Self { messages: self.messages.map(|n| n / by), bytes: self.bytes.map(|n| n / by) }
    }
}

/// What came and has not leaked away yet.
#[derive(Debug)]
struct Bucket {
    messages: f64,
    bytes: f64,
    at: Instant,
}

impl Bucket {
    fn empty(now: Instant) -> Self {
        Self { messages: 0.0, bytes: 0.0, at: now }
    }

    fn is_empty(&self) -> bool {
        self.messages <= 0.0 && self.bytes <= 0.0
    }

    fn drain(&mut self, now: Instant, flow: Flow) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        let left = |held: f64, flow: Option<f64>| flow.map_or(0.0, |flow| (held - flow * seconds).max(0.0));
        (self.messages, self.bytes) = (left(self.messages, flow.messages), left(self.bytes, flow.bytes));
        self.at = self.at.max(now);
    }

    /// Leaves no more in it than may come at once.
    fn forgive(&mut self, flow: Flow) {
        let most = |held: f64, flow: Option<f64>| flow.map_or(held, |flow| held.min(at_once(flow)));
        (self.messages, self.bytes) = (most(self.messages, flow.messages), most(self.bytes, flow.bytes));
    }

    /// How long it takes until no more is in it than may come at once.
    fn charge(&mut self, now: Instant, flow: Flow, load: Load) -> Duration {
        self.drain(now, flow);
        self.messages += load.messages as f64;
        self.bytes += load.bytes as f64;
        let over = |held: f64, flow: Option<f64>| {
            let flow = flow?;
            let over = held - at_once(flow);
            (over > 0.0).then(|| Duration::try_from_secs_f64(over / flow).unwrap_or(Duration::MAX / 2))
        };
        let waits = [over(self.messages, flow.messages), over(self.bytes, flow.bytes)];
        waits.into_iter().flatten().max().unwrap_or_default()
    }
}

/// What may come at once at a rate. One message is always within it, however low it is.
fn at_once(flow: f64) -> f64 {
    (flow * BURST.as_secs_f64()).max(1.0)
}

/// Nothing panics under these locks, so a poisoned one still holds a consistent value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! Turns at what takes long and may be asked for without end: a new subscription looks at what its pool retains.
//!
//! One connection of a pool is at it at a time, and one of the server, which then rests for as long as that took: however many
//! subscribe, they take half a core at the most, and a pool waits for a turn of each other pool that has somebody at it. Both
//! lines are first come, first served. Where nobody is at it, nobody waits; and what is short, because few topics come into
//! question, is free, up to [`FREE`]: who wants little does not wait for those who want much.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use millpond_protocol::PoolName;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// How long a connection may be at what is short without waiting for anybody, and how long a turn lasts.
const FREE: Duration = Duration::from_millis(1);

/// A rest that is shorter is added to the next one: the timer would make one of microseconds a millisecond or two.
const SHORT_REST: Duration = Duration::from_millis(1);

/// Who holds it has the turn.
type Line<T> = Arc<tokio::sync::Mutex<T>>;

/// The turns of all connections.
#[derive(Debug)]
pub(super) struct Turns {
    /// When the next may begin.
    server: Line<Instant>,
    /// Pools are made by who runs the server, so they are few.
    pools: Mutex<HashMap<PoolName, Line<()>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { server: Arc::new(tokio::sync::Mutex::new(Instant::now())), pools: Mutex::default() }
    }
}

/// Somebody's turn, until it is dropped.
struct Turn {
    server: tokio::sync::OwnedMutexGuard<Instant>,
    _pool: tokio::sync::OwnedMutexGuard<()>,
}

impl Turns {
    fn pool(&self, pool: &PoolName) -> Line<()> {
        self.pools.lock().entry(pool.clone()).or_default().clone()
    }

    /// A turn at once, if nobody has one or waits for one, and the server does not rest.
    fn at_once(&self, pool: &PoolName) -> Option<Turn> {
        let pool = self.pool(pool).try_lock_owned().ok()?;
        let server = self.server.clone().try_lock_owned().ok()?;
        is_rested(*server).then_some(Turn { server, _pool: pool })
    }

    /// Takes a place in line; resolves when it is its turn.
    fn turn(&self, pool: &PoolName) -> BoxFuture<'static, Turn> {
        let (pool, server) = (self.pool(pool), self.server.clone());
        Box::pin(async move {
            let pool = pool.lock_owned().await;
            let server = server.lock_owned().await;
            if !is_rested(*server) {
                sleep_until(*server).await;
            }
            Turn { server, _pool: pool }
        })
    }
}

fn is_rested(until: Instant) -> bool {
    until <= Instant::now() + SHORT_REST
}

/// What one connection has of them.
#[derive(Default)]
pub(crate) struct Work {
    /// Since it last waited for a turn, or since it is there.
    spent: Duration,
    /// Of that, what was before its turn.
    before: Duration,
    waits: Option<BoxFuture<'static, Turn>>,
    turn: Option<Turn>,
    is_impatient: bool,
}

impl Work {
    /// Of somebody who has waited for long enough: what is long is free as well, up to [`FREE`].
    pub(crate) fn impatient() -> Self {
        Self { is_impatient: true, ..Self::default() }
    }

    /// Whether it may go on; if not, it has a place in line, and [`Work::turn`] is to be waited for.
    pub(super) fn may_go_on(
        &mut self,
        turns: &Turns,
        pool: &PoolName,
        is_short: impl FnOnce() -> bool,
    ) -> bool {
        if self.waits.is_some() {
            return false;
        }
        if self.spent < FREE {
            if self.turn.is_some() || self.is_impatient {
                return true;
            }
            self.turn = turns.at_once(pool);
            self.before = self.spent;
            if self.turn.is_some() || is_short() {
                return true;
            }
        }
        self.rest();
        self.waits = Some(turns.turn(pool));
        false
    }

    /// It has worked for so long.
    pub(super) fn has_spent(&mut self, time: Duration) {
        self.spent += time;
    }

    /// It has nothing to do for now.
    pub(crate) fn rest(&mut self) {
        if let Some(mut turn) = self.turn.take() {
            *turn.server = Instant::now().max(*turn.server) + (self.spent - self.before);
            // What it did in its turn is not of what is free.
            self.spent = self.before;
        }
    }

    /// Resolves when it may go on. Whoever does not wait waits for ever.
    pub(crate) async fn turn(&mut self) {
        let Some(waits) = &mut self.waits else { return std::future::pending().await };
        let turn = waits.await;
        *self = Self { turn: Some(turn), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn pool(name: &str) -> PoolName {
        name.parse().unwrap()
    }

    /// Somebody who has used up what is free.
    fn at_work(turns: &Turns, name: &str) -> Work {
        let mut work = Work::default();
        work.has_spent(FREE);
        assert!(!work.may_go_on(turns, &pool(name), || true));
        work
    }

    /// Whether somebody new may begin with what is not short.
    fn begins(turns: &Turns, name: &str) -> bool {
        Work::default().may_go_on(turns, &pool(name), || false)
    }

    fn has_turn(work: &mut Work) -> bool {
        work.turn().now_or_never().is_some()
    }

    #[tokio::test]
    async fn one_connection_of_a_pool_works_at_a_time_and_one_of_the_server() {
        let turns = Turns::default();
        let mut many: Vec<Work> = (0..9).map(|_| at_work(&turns, "many")).collect();
        let mut other = at_work(&turns, "other");
        assert!(has_turn(&mut many[0]) && many[0].may_go_on(&turns, &pool("many"), || false));
        assert!(!many[1..].iter_mut().any(has_turn) && !has_turn(&mut other));
        // It asks for another turn at once, behind all who wait.
        many[0].has_spent(5 * FREE);
        let begun = Instant::now();
        assert!(!many[0].may_go_on(&turns, &pool("many"), || false));
        other.turn().await;
        assert!(begun.elapsed() > 4 * FREE, "the server rests for as long as that took");
        assert!(!many.iter_mut().any(has_turn), "it waited for one of the other pool, and not for nine");
        other.rest();
        let order: Vec<usize> = (0..9)
            .map(|_| {
                let at = (0..9).find(|n| has_turn(&mut many[*n])).unwrap();
                many[at].rest();
                at
            })
            .collect();
        assert_eq!(order, [1, 2, 3, 4, 5, 6, 7, 8, 0]);
    }

    #[test]
    fn who_comes_first_begins_at_once_and_whoever_comes_meanwhile_only_with_what_is_short() {
        let turns = Turns::default();
        assert!(begins(&turns, "p") && begins(&turns, "p"), "nobody is at it");
        let mut first = Work::default();
        assert!(first.may_go_on(&turns, &pool("p"), || false));
        assert!(!begins(&turns, "p") && !begins(&turns, "other"));
        let mut short = Work::default();
        assert!(short.may_go_on(&turns, &pool("p"), || true) && short.may_go_on(&turns, &pool("p"), || true));
        short.has_spent(FREE);
        assert!(!short.may_go_on(&turns, &pool("p"), || true), "much of it is not short");
        drop(first);
        assert!(begins(&turns, "p"));
        // What it did before its turn was free.
        let mut late = Work::default();
        late.has_spent(FREE / 2);
        assert!(late.may_go_on(&turns, &pool("p"), || false));
        late.rest();
        assert!(begins(&turns, "p"));
        assert!(late.may_go_on(&turns, &pool("p"), || false));
        late.has_spent(Duration::from_secs(3_600));
        late.rest();
        assert!(!begins(&turns, "p") && !begins(&turns, "other"), "the server rests");
        let mut impatient = Work::impatient();
        assert!(impatient.may_go_on(&turns, &pool("p"), || false));
        impatient.has_spent(FREE);
        assert!(!impatient.may_go_on(&turns, &pool("p"), || false));
    }

    #[test]
    fn short_rests_are_one_when_they_are_long_enough_and_a_turn_leaves_what_is_free() {
        let turns = Turns::default();
        let mut work = Work::default();
        let looks = (0..1_000).take_while(|_| {
            let begins = work.may_go_on(&turns, &pool("p"), || false);
            work.has_spent(FREE / 2);
            work.rest();
            begins
        });
        // Three, unless the machine makes it wait for longer than it works.
        assert!((2..1_000).contains(&looks.count()), "none rests for half a millisecond, all together do");
        let mut other = Work::default();
        assert!(!other.may_go_on(&turns, &pool("p"), || false));
        assert!(Work::default().may_go_on(&turns, &pool("p"), || true));
        let turns = Turns::default();
        let mut long = Work::default();
        assert!(long.may_go_on(&turns, &pool("p"), || false));
        long.has_spent(9 * FREE);
        long.rest();
        assert!(long.may_go_on(&turns, &pool("p"), || true), "what is short is free as before");
    }

    #[tokio::test]
    async fn who_is_there_behind_somebody_in_line_does_not_go_ahead() {
        let turns = Turns::default();
        let mut works = [at_work(&turns, "p"), at_work(&turns, "p")];
        assert!(has_turn(&mut works[0]) && !has_turn(&mut works[1]));
        works[0].rest();
        assert!(!begins(&turns, "p"));
        assert!(has_turn(&mut works[1]));
    }

    #[tokio::test]
    async fn who_gives_up_its_place_keeps_nobody() {
        let turns = Turns::default();
        let mut works: Vec<Work> = (0..3).map(|_| at_work(&turns, "p")).collect();
        assert!(has_turn(&mut works[0]) && !has_turn(&mut works[1]));
        works.drain(..2);
        assert!(has_turn(&mut works[0]));
    }
}

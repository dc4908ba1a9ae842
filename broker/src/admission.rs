//! Who signs in when. Only so many are seen to at once, or whoever comes alone is behind all of a fleet that comes back: the
//! runtime's line knows no addresses, this one does.
//!
//! Whoever waits is no task, for thousands of these would be before everybody else's. And a turn is short: whoever has not
//! finished in it waits for a far client or a slow backend, not for the processor, so it goes on and the turn is the next one's.

use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use millpond_net::{Arrival, Entrance, Place, Places};
use millpond_protocol::limits;
use tokio::time::{Instant, timeout_at};

use crate::config::GateConfig;

/// Turns at once; half of them are one address's, or all where it may have all places.
const TURNS: usize = 32;
/// How long a turn lasts at the most: of clients that never finish in it, 3,200 are seen to in a second.
const LASTS: Duration = Duration::from_millis(10);

/// The way in of all listeners together.
#[derive(Debug)]
pub(crate) struct Admission {
    entrance: Entrance,
    turns: Places,
}

/// Somebody whose turn it is.
pub(crate) struct Admitted {
    pub(crate) arrival: Arrival,
    /// Its place among those who have not signed in.
    pub(crate) stranger: Place,
    pub(crate) turn: Turn,
}

impl Admission {
    pub(crate) fn new(config: &GateConfig) -> Self {
        let waiting = |places: usize| places.saturating_mul(limits::WAITING_PER_STRANGER);
        let (max, per_address) = (config.strangers_max, config.strangers_per_address);
        let room = Places::new(waiting(max), waiting(max) / 2);
        let entrance = Entrance::new("mqtt", Places::new(max, per_address), room, config.connect_timeout);
        let share = if per_address < max { TURNS / 2 } else { TURNS };
        Self { entrance, turns: Places::new(TURNS, share) }
    }

    /// A connection has come: what resolves when it is its turn, or to nothing if it has waited for too long. `None`: there is no
    /// room for it.
    pub(crate) fn arrive(
        &self,
        arrival: Arrival,
    ) -> Option<impl Future<Output = Option<Admitted>> + Send + use<>> {
        let from = arrival.from().ip();
        let place = self.entrance.arrive(from)?;
        let mut turn = Turn { turns: self.turns.clone(), from, has: None };
        Some(async move {
            let stranger = place.await?;
            turn.resume().await;
            Some(Admitted { arrival, stranger, turn })
        })
    }

    pub(crate) fn measure(&self) {
        metrics::gauge!("millpond_gate_strangers").set(self.entrance.taken() as f64);
        metrics::gauge!("millpond_gate_waiting").set(self.entrance.waiting() as f64);
    }
}

/// One connection's turn; dropped, it is the next one's.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Places,
    from: IpAddr,
    /// And when it ends.
    has: Option<(Place, Instant)>,
}

impl Turn {
    /// Waits for another, if the last one has ended. Safe to cancel.
    pub(crate) async fn resume(&mut self) {
        if self.has.is_none() {
            self.has = Some((self.turns.take(self.from).await, Instant::now() + LASTS));
        }
    }

    /// Does a thing in what is left of it, and what it takes longer, without.
    pub(crate) async fn within<T>(&mut self, thing: impl Future<Output = T>) -> T {
        let mut thing = pin!(thing);
        if let Some((_, until)) = self.has {
            if let Ok(done) = timeout_at(until, thing.as_mut()).await {
                return done;
            }
            self.end();
        }
        thing.await
    }

    /// Leaves it to the next.
    pub(crate) fn end(&mut self) {
        self.has = None;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use millpond_net::{Listener, Stream};

    use super::*;

    #[tokio::test]
    async fn one_address_has_half_of_the_turns_and_all_where_it_may_have_all_places() {
        for (strangers_per_address, turns) in [(999, 16), (1_000, 32)] {
            let config = GateConfig { strangers_max: 1_000, strangers_per_address, ..GateConfig::default() };
            let admission = Admission::new(&config);
            let (give, mut take) = Listener::handed(1);
            let mut arrival = async |from: u8| {
                give.pass(Stream::over(tokio::io::empty()), ([192, 0, 2, from], 1).into());
                take.accept().await.unwrap()
            };
            let mut crowd = Vec::new();
            for _ in 0..34 {
                crowd.push(Box::pin(admission.arrive(arrival(1).await).expect("there is room")));
            }
            // A task that polls without end is told to wait.
            tokio::task::yield_now().await;
            let mut admitted: Vec<_> = crowd.iter_mut().filter_map(|waits| waits.now_or_never()).collect();
            assert_eq!(admitted.len(), turns);
            let alone = admission.arrive(arrival(2).await).expect("there is room").now_or_never();
            assert_eq!(alone.is_some(), turns < TURNS, "who comes alone has one of the others");
            drop((alone, admitted.pop()));
            let next: Vec<_> =
                crowd.iter_mut().skip(turns).filter_map(|waits| waits.now_or_never()).collect();
            assert_eq!(next.len(), 1, "of the same address");
        }
    }

    fn turn(turns: &Places) -> Turn {
        Turn { turns: turns.clone(), from: [192, 0, 2, 1].into(), has: None }
    }

    #[tokio::test]
    async fn a_turn_ends_when_what_is_done_in_it_takes_long_and_that_goes_on() {
        let turns = Places::new(1, 1);
        let (mut slow, mut next) = (turn(&turns), turn(&turns));
        slow.resume().await;
        let (say, said) = tokio::sync::oneshot::channel();
        let both = async {
            tokio::join!(slow.within(said), async {
                next.resume().await;
                say.send("of the next one").unwrap();
            })
        };
        let (heard, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("the turn ends");
        assert_eq!(heard, Ok("of the next one"));
        assert!(slow.has.is_none() && next.has.is_some());
        // And what is done after it needs none.
        assert_eq!(slow.within(async { 7 }).await, 7);
        assert!(slow.has.is_none());
    }

    #[tokio::test]
    async fn a_turn_is_for_all_that_is_done_in_time_and_the_next_ones_when_it_is_dropped() {
        let turns = Places::new(1, 1);
        let (mut first, mut next) = (turn(&turns), turn(&turns));
        first.resume().await;
        let until = first.has.as_ref().map(|(_, until)| *until);
        first.within(async {}).await;
        first.resume().await;
        assert_eq!(first.has.as_ref().map(|(_, until)| *until), until, "it is the same one");
        drop(first);
        next.resume().await;
        assert_eq!(turns.taken(), 1);
        next.end();
        assert_eq!(turns.taken(), 0);
    }
}

//! The way in for new connections: a place, or a room to wait in.

use std::net::IpAddr;
use std::time::Duration;

use crate::places::{Full, Place, Places};

/// Places, and a room for those who come when there is none for them.
///
/// A connection that waits has said nothing and costs a socket, so many can; a fleet that comes back all at once is let in
/// one after the other instead of being sent away. Whoever finds the room full too is closed without a word, for listening
/// to it would take a place.
#[derive(Debug, Clone)]
pub struct Entrance {
    of: &'static str,
    places: Places,
    room: Places,
    patience: Duration,
}

impl Entrance {
    /// `of` is the listener's name in metrics; `patience` is how long a connection may wait in the room.
    pub fn new(of: &'static str, places: Places, room: Places, patience: Duration) -> Self {
        Self { of, places, room, patience }
    }

    /// A connection has come: what resolves to its place, or to none if it has waited for too long. `None`: it is to be
    /// closed at once.
    pub fn arrive(&self, from: IpAddr) -> Option<impl Future<Output = Option<Place>> + Send + use<>> {
        let placed = match self.places.try_take(from) {
            Ok(place) => Ok(place),
            Err(full) => match self.room.try_take(from) {
                Ok(seat) => Err((seat, full)),
                Err(_) => {
                    self.turn_away(full);
                    return None;
                }
            },
        };
        let this = self.clone();
        Some(async move {
            let (seat, full) = match placed {
                Ok(place) => return Some(place),
                Err(waits) => waits,
            };
            let place = tokio::time::timeout(this.patience, this.places.take(from)).await;
            drop(seat);
            place.map_err(|_| this.turn_away(full)).ok()
        })
    }

    /// Waits until a place is free for somebody, and counts that there was none. Safe to cancel.
    pub async fn vacancy(&self) {
        if self.places.is_full() {
            metrics::counter!("millpond_full_total", "listener" => self.of).increment(1);
        }
        self.places.vacancy().await;
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.places.taken()
    }

    /// Connections that wait for one.
    pub fn waiting(&self) -> usize {
        self.room.taken()
    }

    fn turn_away(&self, full: Full) {
        metrics::counter!("millpond_turned_away_total", "listener" => self.of, "limit" => full.as_str())
            .increment(1);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn who_is_over_its_share_waits_in_the_room_and_keeps_nobody_from_a_place() {
        let entrance = Entrance::new("test", Places::new(2, 1), Places::new(2, 1), LONG);
        let (here, there) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let first = entrance.arrive(here).unwrap().await.unwrap();
        let mut second = pin!(entrance.arrive(here).unwrap());
        assert!(tokio::time::timeout(SHORT, second.as_mut()).await.is_err(), "there is no place for it");
        assert!(entrance.arrive(here).is_none(), "the room has a share for each address too");
        let _other = entrance.arrive(there).unwrap().await.unwrap();
        assert_eq!((entrance.taken(), entrance.waiting()), (2, 1));
        drop(first);
        let _second = second.await.unwrap();
        assert_eq!((entrance.taken(), entrance.waiting()), (2, 0));
    }

    #[tokio::test]
    async fn who_waits_for_too_long_or_gives_up_leaves_nothing_behind() {
        let (places, room) = (Places::new(1, 1), Places::new(2, 2));
        let entrance = |patience| Entrance::new("test", places.clone(), room.clone(), patience);
        let here = ip("192.0.2.1");
        let held = entrance(LONG).arrive(here).unwrap().await.unwrap();
        assert!(entrance(SHORT).arrive(here).unwrap().await.is_none());
        let gives_up = entrance(LONG).arrive(here).unwrap();
        assert!(tokio::time::timeout(SHORT, gives_up).await.is_err());
        assert_eq!(room.taken(), 0);
        drop(held);
        assert!(places.keeps_nothing() && room.keeps_nothing());
        assert!(entrance(LONG).arrive(here).unwrap().await.is_some());
    }
}

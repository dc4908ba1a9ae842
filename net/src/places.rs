//! How many connections there may be: in all, and from one address, so that no address keeps the others out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The address that limits count by: an IPv6 client owns a whole /64, so that is one, and IPv4 is the same however it is
/// written.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// That of all addresses together.
    All,
    /// That of one address.
    Address,
}

impl Full {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Address => "address",
        }
    }
}

/// Places, so many in all and so many of them for one address. Clones share them.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: Arc<Semaphore>,
    max: usize,
    per_address: usize,
    /// Of each address that has a place or waits for one, and how many do.
    addresses: Mutex<HashMap<IpAddr, (Arc<Semaphore>, usize)>>,
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    // In this order: the ticket is given back last.
    _all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
    _ticket: Ticket,
}

/// Keeps what is known of an address for as long as somebody from there has or wants a place.
#[derive(Debug)]
struct Ticket {
    of: Places,
    network: IpAddr,
    own: Arc<Semaphore>,
}

impl Places {
    /// `max` places, at most `per_address` of them for one address.
    pub fn new(max: usize, per_address: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared {
            all: Arc::new(Semaphore::new(max)),
            max,
            per_address: per_address.min(max),
            addresses: Mutex::default(),
        }))
    }

    /// A place, if one is free now.
    ///
    /// # Errors
    /// Which limit says no.
    pub fn try_take(&self, from: IpAddr) -> Result<Place, Full> {
        let ticket = self.ticket(from);
        let own = ticket.own.clone().try_acquire_owned().map_err(|_| Full::Address)?;
        let all = self.0.all.clone().try_acquire_owned().map_err(|_| Full::All)?;
        Ok(Place { _all: Some(all), _own: Some(own), _ticket: ticket })
    }

    /// Waits for a place, in order of asking. Whoever is over the share of its address waits for that alone, and so keeps
    /// nobody else waiting. Safe to cancel.
    pub async fn take(&self, from: IpAddr) -> Place {
        let ticket = self.ticket(from);
        // Neither is ever closed.
        let own = ticket.own.clone().acquire_owned().await.ok();
        let all = self.0.all.clone().acquire_owned().await.ok();
        Place { _all: all, _own: own, _ticket: ticket }
    }

    /// Waits until a place is free for somebody. Safe to cancel.
    pub async fn vacancy(&self) {
        let _free = self.0.all.acquire().await;
    }

    fn is_full(&self) -> bool {
        self.0.all.available_permits() == 0
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.0.max.saturating_sub(self.0.all.available_permits())
    }

    fn ticket(&self, from: IpAddr) -> Ticket {
        let network = network(from);
        let mut addresses = self.addresses();
        let (own, tickets) =
            addresses.entry(network).or_insert_with(|| (Arc::new(Semaphore::new(self.0.per_address)), 0));
        *tickets += 1;
        Ticket { of: self.clone(), network, own: own.clone() }
    }

    /// Nothing panics under this lock, so a poisoned one still holds a consistent value.
    fn addresses(&self) -> MutexGuard<'_, HashMap<IpAddr, (Arc<Semaphore>, usize)>> {
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut addresses = self.of.addresses();
        if let Some((_, tickets)) = addresses.get_mut(&self.network) {
            *tickets -= 1;
            if *tickets == 0 {
                addresses.remove(&self.network);
            }
        }
    }
}

/// The way in for new connections: places, and a room for those who come when there is none for them.
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

    #[test]
    fn one_address_has_its_share_and_leaves_the_rest_to_others() {
        let places = Places::new(4, 2);
        let (here, there) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let held = [places.try_take(here).unwrap(), places.try_take(here).unwrap()];
        assert_eq!(places.try_take(here).unwrap_err(), Full::Address);
        let others = [places.try_take(there).unwrap(), places.try_take(there).unwrap()];
        assert_eq!(places.try_take(ip("192.0.2.3")).unwrap_err(), Full::All);
        drop(others);
        assert_eq!(places.try_take(here).unwrap_err(), Full::Address, "what others leave is not here's");
        assert_eq!(places.taken(), 2);
        drop(held);
        assert!(places.try_take(here).is_ok());
        assert!(places.addresses().is_empty(), "nothing is kept of who has no place");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_ipv4_is_the_same_however_it_is_written() {
        let places = Places::new(9, 1);
        let _held = [places.try_take(ip("2001:db8::1")).unwrap(), places.try_take(ip("192.0.2.1")).unwrap()];
        for same in ["2001:db8::ffff:1", "::ffff:192.0.2.1"] {
            assert_eq!(places.try_take(ip(same)).unwrap_err(), Full::Address, "{same}");
        }
        assert!(places.try_take(ip("2001:db8:0:1::1")).is_ok());
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
        assert!(places.addresses().is_empty() && room.addresses().is_empty());
        assert!(entrance(LONG).arrive(here).unwrap().await.is_some());
    }
}

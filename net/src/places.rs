//! How many connections there may be: in all, and from one address, so that no address keeps the others out.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

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
    state: Mutex<State>,
    /// A place has become free, and nobody waits for it.
    vacant: Notify,
}

#[derive(Debug)]
struct State {
    max: usize,
    per_address: usize,
    taken: usize,
    /// Each address that has a place or waits for one.
    addresses: HashMap<IpAddr, Address>,
    /// Addresses that wait and may have another place: whose turn is next.
    turns: VecDeque<IpAddr>,
}

#[derive(Debug, Default)]
struct Address {
    taken: usize,
    waiting: VecDeque<oneshot::Sender<Place>>,
    has_turn: bool,
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    of: Places,
    network: IpAddr,
}

impl Places {
    /// `max` places, at most `per_address` of them for one address.
    pub fn new(max: usize, per_address: usize) -> Self {
        let (addresses, turns) = (HashMap::new(), VecDeque::new());
        let state = State { max, per_address: per_address.min(max), taken: 0, addresses, turns };
        Self(Arc::new(Shared { state: Mutex::new(state), vacant: Notify::new() }))
    }

    /// A place, if one is free now.
    ///
    /// # Errors
    /// Which limit says no.
    pub fn try_take(&self, from: IpAddr) -> Result<Place, Full> {
        let network = network(from);
        let mut state = self.state();
        let taken = state.addresses.get(&network).map_or(0, |address| address.taken);
        if taken >= state.per_address {
            return Err(Full::Address);
        }
        // None is free while somebody waits who may have it.
        if state.is_full() {
            return Err(Full::All);
        }
        Ok(self.give(&mut state, network))
    }

    /// Waits for a place. Addresses have turns, and those of one address their order of asking: whoever comes alone waits for one
    /// of each address at most, and whoever is over the share of its address keeps nobody else waiting. Safe to cancel.
    pub async fn take(&self, from: IpAddr) -> Place {
        loop {
            // Nobody is left without an answer.
            if let Ok(place) = self.wait(network(from)).await {
                return place;
            }
        }
    }

    fn wait(&self, network: IpAddr) -> oneshot::Receiver<Place> {
        let (give, given) = oneshot::channel();
        let mut state = self.state();
        let address = state.addresses.entry(network).or_default();
        address.waiting.push_back(give);
        state.line_up(network);
        self.hand_out(state);
        given
    }

    /// Waits until a place is free for somebody, and nobody waits who may have it. Safe to cancel.
    pub async fn vacancy(&self) {
        loop {
            let mut vacant = pin!(self.0.vacant.notified());
            vacant.as_mut().enable();
            if !self.is_full() {
                return;
            }
            vacant.await;
        }
    }

    fn is_full(&self) -> bool {
        self.state().is_full()
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.state().taken
    }

    fn give(&self, state: &mut State, network: IpAddr) -> Place {
        state.taken += 1;
        state.addresses.entry(network).or_default().taken += 1;
        Place { of: self.clone(), network }
    }

    /// Gives free places to those who wait, in turns; the first one while nobody else can take it.
    fn hand_out<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        loop {
            if state.is_full() {
                return;
            }
            let Some((network, waits)) = state.next() else { break };
            let place = self.give(&mut state, network);
            state.line_up(network);
            drop(state);
            // Who has given up in this moment leaves it to the next one.
            let _ = waits.send(place);
            state = self.state();
        }
        drop(state);
        self.0.vacant.notify_waiters();
    }

    /// Nothing panics under this lock, so a poisoned one still holds a consistent value.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.taken >= self.max
    }

    /// The address has a turn if somebody there waits and may have a place; nothing is kept of one that has none and wants none.
    fn line_up(&mut self, network: IpAddr) {
        let Some(address) = self.addresses.get_mut(&network) else { return };
        while address.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            address.waiting.pop_front();
        }
        let waits = !address.waiting.is_empty();
        if address.has_turn {
            return;
        }
        if waits && address.taken < self.per_address {
            address.has_turn = true;
            self.turns.push_back(network);
        } else if !waits && address.taken == 0 {
            self.addresses.remove(&network);
        }
    }

    /// Whose turn it is.
    fn next(&mut self) -> Option<(IpAddr, oneshot::Sender<Place>)> {
        while let Some(network) = self.turns.pop_front() {
            let Some(address) = self.addresses.get_mut(&network) else { continue };
            address.has_turn = false;
            // A place of its own may have been taken meanwhile.
            let may = address.taken < self.per_address;
            while may && let Some(waits) = address.waiting.pop_front() {
                if !waits.is_closed() {
                    return Some((network, waits));
                }
            }
            if may && address.taken == 0 {
                self.addresses.remove(&network);
            }
        }
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.of.state();
        state.taken -= 1;
        if let Some(address) = state.addresses.get_mut(&self.network) {
            address.taken -= 1;
        }
        state.line_up(self.network);
        self.of.hand_out(state);
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
        assert!(places.state().addresses.is_empty(), "nothing is kept of who has no place");
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
    async fn whoever_comes_alone_waits_for_one_of_each_address_and_not_for_all_of_a_crowd() {
        let places = Places::new(2, 2);
        let (crowd, alone) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let other = places.try_take(ip("192.0.2.3")).unwrap();
        let held = places.try_take(crowd).unwrap();
        let mut first: Vec<_> = (0..3).map(|_| Box::pin(places.take(crowd))).collect();
        for waits in &mut first {
            assert!(tokio::time::timeout(Duration::ZERO, waits).await.is_err());
        }
        let mut late = pin!(places.take(alone));
        assert!(tokio::time::timeout(Duration::ZERO, late.as_mut()).await.is_err());
        // One of the crowd gives up, and leaves its turn to the next one there.
        drop(first.remove(0));
        drop(held);
        let second = first.remove(0).await;
        assert!(tokio::time::timeout(Duration::ZERO, late.as_mut()).await.is_err(), "there is one place");
        drop(second);
        let own = late.await;
        drop(own);
        drop(first.remove(0).await);
        drop(other);
        let state = places.state();
        assert!(state.addresses.is_empty() && state.turns.is_empty(), "{state:?}");
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
        assert!(places.state().addresses.is_empty() && room.state().addresses.is_empty());
        assert!(entrance(LONG).arrive(here).unwrap().await.is_some());
    }
}
